"""From logits to a token: pure functions, each with the meaning of its namesake in ``transformers``.

The caller applies them in the reference's order: repetition penalty, repeated n-grams, banned end,
temperature, top-k, top-p, min-p, draw. A token that may not come gets the logit -inf.

Letters: V vocabulary, S tokens so far (prompt included); ``...`` any leading dimensions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def penalize_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make tokens seen so far less likely: positive logits are divided by the penalty, negative multiplied.

    Keskar et al. 2019, arXiv 1909.05858. 1 changes nothing; below 1 rewards repetition.

    Args:
        logits: [..., V].
        ids: [..., S] tokens so far.
    """
    seen = logits.gather(-1, ids)
    return logits.scatter(-1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def ban_repeated_ngrams(logits: Tensor, ids: Tensor, size: int) -> Tensor:
    """Ban every token that would complete an n-gram of this size for the second time.

    Args:
        logits: [..., V].
        ids: [..., S] tokens so far.
        size: n, at least 1.
    """
    if ids.shape[-1] < size:
        return logits
    ngrams = ids.unfold(-1, size, 1)  # [..., S - n + 1, n]
    ending = ids[..., ids.shape[-1] - size + 1 :]  # [..., n - 1]
    begun = (ngrams[..., :-1] == ending[..., None, :]).all(dim=-1)  # [..., S - n + 1]
    vocabulary = logits.shape[-1]
    # One column beyond the vocabulary takes the n-grams that have not begun again.
    banned = torch.zeros(*logits.shape[:-1], vocabulary + 1, dtype=torch.bool, device=logits.device)
    banned = banned.scatter(-1, ngrams[..., -1].masked_fill(~begun, vocabulary), True)
    return logits.masked_fill(banned[..., :vocabulary], -torch.inf)


def ban_tokens(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Ban some tokens, such as the end before the least number of tokens is reached. ``logits``: [..., V]."""
    if not token_ids:
        return logits
    return logits.index_fill(-1, torch.tensor(token_ids, device=logits.device), -torch.inf)


def scale_by_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide ``logits``, [..., V], by a ``temperature`` above 0: below 1 sharpens, above 1 flattens."""
    # The greatest logit becomes 0 first: a tiny temperature then gives -inf for the others, never inf - inf.
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k most likely tokens, and ties with the last. ``logits``: [..., V]; ``k``: at least 1."""
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of tokens whose probabilities sum to at least p, and always the best one.

    Holtzman et al. 2020, arXiv 1904.09751.

    Args:
        logits: [..., V].
        p: 0 to 1.
    """
    # torch sorts indices as well, and takes twenty times as long.
    ascending = torch.from_numpy(np.sort(logits.float().numpy(force=True), axis=-1)).to(logits)
    tail = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    tail[..., -1] = False
    cut = tail.sum(dim=-1, keepdim=True)
    below = logits < ascending.gather(-1, cut)
    if not torch.equal(below.sum(dim=-1, keepdim=True), cut):  # some that tie with the last one kept are cut
        below = tail.scatter(-1, logits.argsort(dim=-1), tail)
    return logits.masked_fill(below, -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens that are at least p times as likely as the best one.

    Nguyen et al. 2024, arXiv 2407.01082.

    Args:
        logits: [..., V].
        p: 0 to 1.
    """
    probabilities = logits.softmax(dim=-1)
    rare = probabilities < p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(rare, -torch.inf)


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token a row from the distribution. ``logits``: [V] or [B, V]; returns [1] or [B, 1] ids."""
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=generator)
