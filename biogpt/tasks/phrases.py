"""Labels of one's own, in words: how well each of them goes on with a text, says a language model."""

from collections.abc import Sequence

import numpy as np
import torch

from biogpt.model.cache import KVCache
from biogpt.model.heads import LanguageModel
from biogpt.tasks.batching import NOT_FINITE
from biogpt.text.results import Look, go_on
from biogpt.text.tokenizer import Tokenizer

_CACHE_BYTES = 2**30  # of the cache that the labels share; more labels are compared in turns


class Phrases:
    """Labels in words, compared by how much a text raises their likelihood.

    A label's score is the mean log-probability of its tokens after the text, less the same after an empty
    text, which takes out how common the phrase is (Holtzman et al. 2021, arXiv 2104.08315; Zhao et al. 2021,
    arXiv 2102.09690). The text is read once; all labels go on from its key/value cache. What the template has
    after the label is not read.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, labels: Sequence[str], template: str
    ) -> None:
        if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"labels are {labels!r}; expected a list of phrases")
        self._labels = [tokenizer.encode(label, special_tokens=False).ids for label in labels]
        # White space and invisible characters make no label: what counts is what the model reads.
        if len(labels) < 2 or len(set(map(tuple, self._labels))) < len(labels) or not all(self._labels):
            raise ValueError(
                f"labels are {list(labels)}; expected at least two, all different and none empty in the "
                "model's vocabulary"
            )
        before, text, after = template.partition("{text}")
        middle, label, end = after.partition("{label}")
        if not text or not label or "{text}" in after or "{label}" in end or "{label}" in before:
            raise ValueError(f"the template is {template!r}; expected {{text}} and then {{label}}, once each")
        self._model, self._tokenizer = model, tokenizer
        self._before = before
        room = model.config.max_position_embeddings - max(map(len, self._labels))
        self._ask = tokenizer.encode(middle, special_tokens=False).ids
        self._room = room - len(self._ask)
        if self._room <= len(tokenizer.encode(before).ids):
            raise ValueError("the template and the longest label leave no room for a text; shorten them")
        self._empty: np.ndarray | None = None

    def probabilities(self, text: str, look: Look = go_on) -> tuple[np.ndarray, int]:
        """[N] probabilities of the labels, and how many tokens of the text did not fit."""
        if self._empty is None:
            self._empty = self._likelihoods(self._tokenizer.encode(self._before).ids, look)
        ids = self._tokenizer.encode(self._before + text, look=look).ids
        raised = self._likelihoods(ids[: self._room], look) - self._empty
        weights = np.exp(raised - raised.max())
        return weights / weights.sum(), max(0, len(ids) - self._room)

    def _likelihoods(self, ids: list[int], look: Look) -> np.ndarray:
        """Mean log-probability of the tokens of each label after some ids, [N]."""
        model = self._model
        device = model.device
        ids = ids + self._ask
        longest = max(map(len, self._labels))
        cache = KVCache(model.config, 1, len(ids) + longest, device, model.dtype)
        first = model(torch.tensor([ids], device=device), past_key_values=cache, logits_to_keep=1).logits
        turn = max(1, _CACHE_BYTES // cache.nbytes)  # labels at once
        means: list[float] = []
        for begin in range(0, len(self._labels), turn):
            look()
            labels = self._labels[begin : begin + turn]
            pad = self._tokenizer.pad_token_id
            rows = torch.tensor([label + [pad] * (longest - len(label)) for label in labels], device=device)
            logits = first.expand(len(labels), -1, -1)
            if longest > 1:
                cache.truncate(len(ids))
                cache.reorder(torch.zeros(len(labels), dtype=torch.long, device=device))
                rest = model(rows[:, :-1], past_key_values=cache).logits
                logits = torch.cat([logits, rest], dim=1)
            chosen = logits.float().log_softmax(dim=-1).gather(2, rows[:, :, None])[:, :, 0]
            means += [float(row[: len(label)].mean()) for row, label in zip(chosen, labels, strict=True)]
        if not np.isfinite(means).all():
            raise FloatingPointError(NOT_FINITE)
        return np.array(means)
