"""From logits to a token: pure functions, each with the meaning of its namesake in ``transformers``.

The caller applies them in this order, the reference's for those that it has: repetition penalty, repeated
n-grams, presence and frequency, biases, banned end, temperature, top-k, top-p, min-p, typical-p, draw. A
token that may not come gets the logit -inf.

Letters: V vocabulary, S tokens so far (prompt included); ``...`` any leading dimensions.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

# Of SplitMix64, as signed numbers.
_STEP, _FIRST, _SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


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


def penalize_counts(logits: Tensor, made: Tensor, presence: float, frequency: float) -> Tensor:
    """Subtract from the logit of each token: ``presence`` if it was generated, ``frequency`` for each time.

    OpenAI's definition. The prompt does not count.

    Args:
        logits: [..., V].
        made: [..., M] tokens generated so far.
    """
    counts = torch.zeros_like(logits).scatter_add(-1, made, torch.ones_like(made, dtype=logits.dtype))
    return logits - frequency * counts - presence * (counts > 0)


def add_biases(logits: Tensor, biases: Mapping[int, float]) -> Tensor:
    """Add a number to the logits, [..., V], of some tokens, by their ids; -inf bans them."""
    if not biases:
        return logits
    where = torch.tensor([*biases], device=logits.device)
    return logits.index_add(
        -1, where, torch.tensor([*biases.values()]).to(logits).expand(*logits.shape[:-1], -1)
    )


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


def keep_typical_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of tokens whose probabilities sum to at least p, the most typical ones first.

    A token is the more typical, the nearer its surprise, -log probability, is to the one that is expected:
    the entropy. Meister et al. 2022, arXiv 2202.00666. Tokens as typical as the last one are kept, too.

    Args:
        logits: [..., V].
        p: 0 to 1; 0 keeps the most typical ones alone.
    """
    logprobs = logits.log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs).nansum(dim=-1, keepdim=True)
    oddness, order = (-logprobs - entropy).abs().sort(dim=-1)
    masses = logprobs.gather(-1, order).exp().cumsum(dim=-1)
    last = (masses < p).sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    odd = oddness > oddness.gather(-1, last)
    return logits.masked_fill(torch.zeros_like(odd).scatter(-1, order, odd), -torch.inf)


def draw(logits: Tensor, seed: int, place: int) -> int:
    """Draw a token from the distribution of ``logits``, [V]: the one whose logit and ``noise`` sum highest.

    That is a draw from their softmax (Gumbel 1954; "the Gumbel-max trick"). What is drawn depends on the
    logits, the seed and the place alone: not on other rows, on what was drawn before, or on the device.

    Args:
        seed: below 2 ** 63.
        place: of the token among those of its text, from 0 on.

    Raises:
        ValueError: no token may come.
    """
    possible = (logits > -torch.inf).nonzero()[:, 0]  # few, where rules cut many
    if not len(possible):
        raise ValueError("the rules leave no token that may come next; ask for longer n-grams, or for none")
    row = noise(torch.tensor([seed]), torch.tensor([place]), possible)[0]
    return int(possible[(logits[possible] + row).argmax()])


def noise(seeds: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Random numbers with the Gumbel distribution, one for each row and token, made by counting.

    Each is a hash of seed, place and token (the finalizer of SplitMix64: Steele et al. 2014,
    doi 10.1145/2660193.2660195), so any of them is had without the others, in whole numbers that are the same
    on every device.

    Args:
        seeds, places: [R] int64.
        tokens: [K] int64 ids.

    Returns:
        [R, K] float32.
    """
    rows = _mixed(_mixed(seeds * _STEP) + places)
    bits = _mixed(rows[:, None] + tokens * _STEP) >> 32 & 0xFFFFFFFF
    share = ((bits.float() + 0.5) * 2**-32).clamp_(max=1 - 2**-24)  # 0 and 1 left out
    return torch.log1p(share.neg_()).neg_().log_().neg_()


def _mixed(numbers: Tensor) -> Tensor:
    """64 bits that look like chance, other ones for every number. Products are those of 64-bit machines."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, count: int) -> Tensor:
    return numbers >> count & (1 << 64 - count) - 1  # zeros come in, not copies of the sign
