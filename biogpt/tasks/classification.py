"""Labels of texts: by a trained head, or by a language model that is given labels in words.

A text longer than the model is read in windows that overlap by half. Of several windows a label's probability is
the mean, weighted by tokens, where labels exclude each other, and the highest where they do not: a text shows a
hallmark when any part of it does.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptForSequenceClassification, BioGptTokenizer
from biogpt.model.cache import KVCache
from biogpt.runners.packing import pack
from biogpt.runners.threads import rest_threads, side_by_side
from biogpt.text.results import Classification, LabelScore, SentenceLabel
from biogpt.text.sentences import sentence_spans

TEMPLATE = "{text} This abstract is about {label}."
_BATCH_TOKENS = 4096  # of a batch of windows, padding included
_CPU_BATCH_TOKENS = (
    512  # the activations of more leave a CPU's caches: 4096 are 1.6 times as slow on BioGPT base
)
_NOT_FINITE = "the model's scores are not finite: its weights may be damaged, or too large for this precision; try float32"
_CACHE_BYTES = 2**30  # of the cache that labels of your own share; more labels are compared in turns

Progress = Callable[[int, int], None]


class TextClassifier:
    """Labels texts of any length.

    Args:
        model: a sequence classification head; or a language model, with labels of your own.
        tokenizer: of the same checkpoint.
        labels: at least two different phrases for a language model to compare.
        template: what it reads, ``{text}`` before ``{label}``.

    Raises:
        ValueError: labels without a language model or the other way round; labels or template are malformed.
    """

    def __init__(
        self,
        model: BioGptForSequenceClassification | BioGptForCausalLM,
        tokenizer: BioGptTokenizer,
        labels: Sequence[str] | None = None,
        template: str = TEMPLATE,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._phrases: _Phrases | None = None
        if isinstance(model, BioGptForCausalLM):
            if labels is None:
                raise ValueError("a language model has no labels of its own; give labels=[…] to compare")
            self._phrases = _Phrases(model, tokenizer, labels, template)
            self.labels = tuple(labels)
            return
        if labels is not None:
            raise ValueError(
                "labels of your own need a language model such as mini; this checkpoint has a trained head with "
                f"the labels {', '.join(model.config.labels)}"
            )
        if model.config.num_labels < 2 or model.config.problem_type == "regression":
            raise ValueError(
                "this checkpoint predicts a number, not labels; choose one with at least two labels"
            )
        self.labels = model.config.labels

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "mini-hoc",
        revision: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        labels: Sequence[str] | None = None,
        template: str = TEMPLATE,
    ) -> Self:
        """Load a checkpoint with a sequence classification head; with ``labels``, one with a language model's.

        The other args and the errors are those of ``PretrainedModel.from_pretrained``.
        """
        head = BioGptForSequenceClassification if labels is None else BioGptForCausalLM
        try:
            model = head.from_pretrained(source, revision, device, precision, trainable=False)
        except ValueError as error:
            if labels is None and "sequence classification head" in str(error):
                raise ValueError(
                    f"{source} has no sequence classification head. If it is a language model, give labels of your "
                    "own (labels=[…], --labels)"
                ) from error
            if labels is not None and "and no language model's" in str(error):
                raise ValueError(
                    f"{source} has no language model head, which labels of your own need; leave them out to get the "
                    "labels that its own head was trained for, or choose a language model such as mini"
                ) from error
            raise
        pack(model)
        rest_threads()  # so that this process may be forked
        return cls(model, BioGptTokenizer.from_pretrained(model.folder), labels, template)

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels: each score is then the label's own, and they do not sum to 1."""
        return self._phrases is None and self.model.config.problem_type == "multi_label_classification"

    def __call__(self, text: str) -> list[LabelScore]:
        """Scores of all labels of one text, highest first.

        Raises:
            ValueError: the text is empty.
        """
        return self.classify(text).scores

    def classify(self, text: str) -> Classification:
        """As a call, and how the text was read."""
        return self.batch([text])[0]

    @torch.inference_mode()
    def batch(self, texts: Sequence[str], progress: Progress | None = None) -> list[Classification]:
        """Label many texts, in the order given; faster than one at a time.

        Args:
            progress: called with (texts done, all texts); what it raises ends the work.

        Raises:
            TypeError: a text is not a string.
            ValueError: a text is empty; or one string was given in place of a list.
            FloatingPointError: the model's scores are not finite.
        """
        if isinstance(texts, str):
            raise ValueError("batch takes a list of texts; call the classifier with one text")
        for number, text in enumerate(texts, 1):
            where = f"text {number} of {len(texts)}" if len(texts) > 1 else "the text"
            if not isinstance(text, str):
                raise TypeError(f"{where} is of type {type(text).__name__}; expected a string")
            if not text.strip():
                raise ValueError(f"{where} is empty; there is nothing to classify")
        if self._phrases is not None:
            results = []
            for number, text in enumerate(texts, 1):
                probabilities, cut = self._phrases.probabilities(text)
                results.append(Classification(self._ranked(probabilities), cut=cut))
                if progress is not None:
                    progress(number, len(texts))
            return results
        return self._read(texts, progress)

    @torch.inference_mode()
    def sentences(self, text: str, spans: Sequence[tuple[int, int]] | None = None) -> list[SentenceLabel]:
        """The label of each sentence, read after the sentences before it.

        The model looks back only, so the score at a sentence's last piece is that of the text up to there: one pass
        labels all sentences. (A head with bidirectional layers also sees the sentences after.) An abstract longer
        than the model is read in windows, half of each the sentences before; a sentence longer than the model is
        read by its end.

        Args:
            spans: (start, end) of each sentence; found by ``sentence_spans`` when None.

        Raises:
            ValueError: the text is empty, a span is not within it or holds only white space, or this classifier
                compares labels of your own.
        """
        model = self.model
        if not isinstance(model, BioGptForSequenceClassification):
            raise ValueError(
                "labels of your own are for whole texts; sentences need a trained head, as mini-rct"
            )
        if spans is None:
            spans = sentence_spans(text)
        if not spans:
            raise ValueError("the text is empty; there is nothing to classify")
        for start, end in spans:
            if not 0 <= start < end <= len(text) or not text[start:end].strip():
                raise ValueError(
                    f"({start}, {end}) is not a sentence of this text of {len(text)} characters; expected the first "
                    "character and the one after the last"
                )
        room = model.config.max_position_embeddings - 1
        pieces = [self.tokenizer.encode(text[a:b], special_tokens=False).ids[-room:] for a, b in spans]
        found = []
        for ids, reads in sentence_rows(pieces, room, self.tokenizer.eos_token_id):
            hidden = model.biogpt(torch.tensor([ids], device=model.device)).last_hidden_state
            probabilities = self._probabilities(model.score(hidden[0, reads]))
            found += [(int(row.argmax()), float(row.max())) for row in probabilities]
        return [
            SentenceLabel(self.labels[label], start, end, score)
            for (start, end), (label, score) in zip(spans, found, strict=True)
        ]

    def _read(self, texts: Sequence[str], progress: Progress | None) -> list[Classification]:
        config = self.model.config
        windows = [
            (row, ids)
            for row, text in enumerate(texts)
            for ids in _windows(self.tokenizer.encode(text).ids, config.max_position_embeddings)
        ]
        windows.sort(key=lambda item: len(item[1]))
        waiting = np.bincount([row for row, _ in windows], minlength=len(texts))
        found: list[list[tuple[int, np.ndarray]]] = [[] for _ in texts]
        on_cpu = self.model.device.type == "cpu"
        batches = list(_batches(windows, _CPU_BATCH_TOKENS if on_cpu else _BATCH_TOKENS))
        each = side_by_side if on_cpu else map
        for batch, logits in zip(batches, each(self._logits, batches), strict=True):
            probabilities = self._probabilities(logits)
            for (row, ids), each in zip(batch, probabilities, strict=True):
                found[row].append((len(ids), each))
                waiting[row] -= 1
            if progress is not None:
                progress(int((waiting == 0).sum()), len(texts))
        results = []
        for parts in found:
            lengths, rows = zip(*parts, strict=True)
            whole = np.max(rows, axis=0) if self.multi_label else np.average(rows, axis=0, weights=lengths)
            results.append(Classification(self._ranked(whole), windows=len(parts)))
        return results

    def _logits(self, batch: Sequence[tuple[int, list[int]]]) -> Tensor:
        """[B, N]; padding on the right is never looked at, so it needs no mask."""
        model, rows = self.model, [ids for _, ids in batch]
        assert isinstance(model, BioGptForSequenceClassification)
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        ids = ids.to(model.device)
        mask = None
        if model.config.bidirectional_layers:
            mask = torch.tensor(
                [[1] * len(row) + [0] * (width - len(row)) for row in rows], device=ids.device
            )
        hidden = model.biogpt(ids, mask).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
        return model.score(hidden[torch.arange(len(rows), device=ids.device), last])

    def _probabilities(self, logits: Tensor) -> np.ndarray:
        logits = logits.float()
        if not logits.isfinite().all():
            raise FloatingPointError(_NOT_FINITE)
        return (logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)).cpu().numpy()

    def _ranked(self, probabilities: np.ndarray) -> list[LabelScore]:
        order = np.argsort(-probabilities, kind="stable")
        return [LabelScore(self.labels[index], float(probabilities[index])) for index in order]


def sentence_rows(
    pieces: Sequence[list[int]], room: int, separator: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Rows of whole sentences: each sentence is read in one row, after as many before it as half a row holds.

    Args:
        pieces: token ids of each sentence, at most ``room``.
        room: tokens of a row beside the separator in front.

    Yields:
        Token ids, and the positions of the last pieces of the sentences that this row is for.
    """
    ids, reads = [separator], list[int]()
    ends = list[int]()  # of all sentences in the row, context included
    for sentence in pieces:
        if len(ids) + len(sentence) > room + 1:
            yield ids, reads
            spare = min(room // 2, room - len(sentence))
            begin = next((end + 1 for end in ends if len(ids) - end - 1 <= spare), len(ids))
            ids = [separator, *ids[begin:]]
            reads, ends = [], [end - begin + 1 for end in ends if end >= begin]
        ids = ids + sentence
        reads.append(len(ids) - 1)
        ends.append(len(ids) - 1)
    yield ids, reads


def _windows(ids: list[int], limit: int) -> Iterator[list[int]]:
    """Stretches of at most ``limit`` ids, the separator in front of each, overlapping by half."""
    separator, rest = ids[:1], ids[1:]
    room = limit - 1
    for start in range(0, max(1, len(rest) - room // 2), room - room // 2):
        yield separator + rest[start : start + room]
        if start + room >= len(rest):
            return


def _batches(
    windows: Sequence[tuple[int, list[int]]], most: int
) -> Iterator[Sequence[tuple[int, list[int]]]]:
    """Consecutive windows, sorted by length, as many at once as come to ``most`` tokens; at least one."""
    first = 0
    for end in range(1, len(windows) + 1):
        full = end < len(windows) and (end + 1 - first) * len(windows[end][1]) > most
        if full or end == len(windows):
            yield windows[first:end]
            first = end


class _Phrases:
    """Labels in words, compared by how much a text raises their likelihood.

    A label's score is the mean log-probability of its tokens after the text, less the same after an empty text,
    which takes out how common the phrase is (Holtzman et al. 2021, arXiv 2104.08315; Zhao et al. 2021,
    arXiv 2102.09690). The text is read once; all labels go on from its key/value cache. What the template has
    after the label is not read.
    """

    def __init__(
        self, model: BioGptForCausalLM, tokenizer: BioGptTokenizer, labels: Sequence[str], template: str
    ) -> None:
        if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"labels are {labels!r}; expected a list of phrases")
        self._labels = [tokenizer.encode(label, special_tokens=False).ids for label in labels]
        # White space and invisible characters make no label: what counts is what the model reads.
        if len(labels) < 2 or len(set(map(tuple, self._labels))) < len(labels) or not all(self._labels):
            raise ValueError(
                f"labels are {list(labels)}; expected at least two, all different and none empty in the model's vocabulary"
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

    def probabilities(self, text: str) -> tuple[np.ndarray, int]:
        """[N] probabilities of the labels, and how many tokens of the text did not fit."""
        if self._empty is None:
            self._empty = self._likelihoods(self._tokenizer.encode(self._before).ids)
        ids = self._tokenizer.encode(self._before + text).ids
        raised = self._likelihoods(ids[: self._room]) - self._empty
        weights = np.exp(raised - raised.max())
        return weights / weights.sum(), max(0, len(ids) - self._room)

    def _likelihoods(self, ids: list[int]) -> np.ndarray:
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
            raise FloatingPointError(_NOT_FINITE)
        return np.array(means)
