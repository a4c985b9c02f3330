"""Labels of texts: by a trained head, or by a language model that is given labels in words.

A text longer than the model is read in windows that overlap by half. Of several windows a label's
probability is the mean, weighted by tokens, where labels exclude each other, and the highest where they do
not: a text shows a hallmark when any part of it does.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from biogpt.checkpoint.filling import WrongHead
from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptTokenizer,
)
from biogpt.runners.threads import rest_threads
from biogpt.tasks.batching import NOT_FINITE, TextWindow, Window, looking, read_windows, states_of
from biogpt.tasks.phrases import Phrases
from biogpt.text.plain import is_blank
from biogpt.text.results import Classification, LabelScore, OnProgress, SentenceLabel
from biogpt.text.sentences import sentence_spans

TEMPLATE = "{text} This abstract is about {label}."


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
        self._phrases: Phrases | None = None
        if isinstance(model, BioGptForCausalLM):
            if labels is None:
                raise ValueError("a language model has no labels of its own; give labels=[…] to compare")
            self._phrases = Phrases(model, tokenizer, labels, template)
            self.labels = tuple(labels)
            return
        if labels is not None:
            raise ValueError(
                "labels of your own need a language model such as mini; this checkpoint has a trained head "
                f"with the labels {', '.join(model.config.labels)}"
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
        """Load a checkpoint with a sequence classification head; for ``labels``, a language model.

        The other args and the errors are those of ``PretrainedModel.from_pretrained``.
        """
        head = BioGptForSequenceClassification if labels is None else BioGptForCausalLM
        try:
            model = head.from_pretrained(source, revision, device, precision, trainable=False)
        except WrongHead as error:
            if labels is None:
                raise ValueError(
                    f"{source} has no sequence classification head. If it is a language model, give labels "
                    "of your own (labels=[…], --labels)"
                ) from error
            if error.found:
                raise ValueError(
                    f"{source} has no language model head, which labels of your own need; leave them out to "
                    "get the labels that its own head was trained for, or choose a language model such as "
                    "mini"
                ) from error
            raise
        rest_threads()  # so that this process may be forked
        return cls(model, BioGptTokenizer.from_pretrained(model.folder), labels, template)

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels: their scores then stand alone, and do not sum to 1."""
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
    def batch(self, texts: Sequence[str], progress: OnProgress | None = None) -> list[Classification]:
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
            if is_blank(text):
                raise ValueError(f"{where} is empty; there is nothing to classify")
        if self._phrases is not None:
            results = []
            for number, text in enumerate(texts, 1):
                probabilities, cut = self._phrases.probabilities(text, looking(progress, len(texts)))
                results.append(Classification(self._ranked(probabilities), cut=cut))
                if progress is not None:
                    progress(number, len(texts))
            return results
        return self._read(texts, progress)

    @torch.inference_mode()
    def sentences(
        self,
        text: str,
        spans: Sequence[tuple[int, int]] | None = None,
        progress: OnProgress | None = None,
    ) -> list[SentenceLabel]:
        """The label of each sentence, read after the sentences before it.

        The model looks back only, so the score at a sentence's last piece is that of the text up to there:
        one pass labels all sentences. (A head with bidirectional layers also sees the sentences after.) An
        abstract longer than the model is read in windows, half of each the sentences before; a sentence
        longer than the model is read by its end.

        Args:
            spans: (start, end) of each sentence; found by ``sentence_spans`` when None.
            progress: called before each window with (sentences done, all); what it raises ends the work.

        Raises:
            ValueError: the text is empty, a span is not within it or shows nothing, or this
                classifier compares labels of your own.
        """
        if spans is None:
            look = looking(progress, 1)
            spans = [
                (start, end) for start, end in sentence_spans(text, look) if not is_blank(text[start:end])
            ]
        found = self.sentence_probabilities(text, spans, progress)
        return [
            SentenceLabel(self.labels[int(row.argmax())], start, end, float(row.max()))
            for (start, end), row in zip(spans, found, strict=True)
        ]

    @torch.inference_mode()
    def sentence_probabilities(
        self, text: str, spans: Sequence[tuple[int, int]], progress: OnProgress | None = None
    ) -> np.ndarray:
        """[S, N] probabilities of all labels of each sentence; arguments and errors as of ``sentences``."""
        model = self.model
        if not isinstance(model, BioGptForSequenceClassification):
            raise ValueError(
                "labels of your own are for whole texts; sentences need a trained head, as mini-rct"
            )
        if model.attention is not None:
            raise ValueError(
                "this head labels texts as a whole, not their sentences; choose a head such as mini-rct"
            )
        look = looking(progress, 1)
        if not spans:
            raise ValueError("the text is empty; there is nothing to classify")
        for start, end in spans:
            if not 0 <= start < end <= len(text) or is_blank(text[start:end]):
                raise ValueError(
                    f"({start}, {end}) is not a sentence of this text of {len(text)} characters; expected "
                    "the first character and the one after the last"
                )
        room = model.config.max_position_embeddings - 1
        pieces = [
            self.tokenizer.encode(text[a:b], special_tokens=False, look=look).ids[-room:] for a, b in spans
        ]
        vectors = []
        for window in sentence_rows(pieces, room, self.tokenizer.eos_token_id):
            if progress is not None:
                progress(window.first, len(spans))
            vectors.append(states_of(model, self.tokenizer.pad_token_id, [window]))
        return self._probabilities(torch.cat(vectors), [len(spans)])

    def _read(self, texts: Sequence[str], progress: OnProgress | None) -> list[Classification]:
        """Label texts by a trained head."""
        model, limit = self.model, self.model.config.max_position_embeddings
        assert isinstance(model, BioGptForSequenceClassification)
        if model.sentences is not None:
            raise ValueError(
                "this head labels the sentences of an abstract, not texts as a whole; use sentences "
                "(--sentences), or a head such as mini-hoc"
            )

        def score(states: Tensor, batch: Sequence[TextWindow]) -> Sequence[np.ndarray]:
            """[N] probabilities for each window."""
            return list(self._probabilities(states, [len(window.reads) for _, window in batch]))

        look = looking(progress, len(texts))
        windows = [
            list(_windows(self.tokenizer.encode(text, look=look).ids, limit, model.config.pooling))
            for text in texts
        ]
        found = [np.empty((len(of_text), len(self.labels)), dtype=np.float32) for of_text in windows]
        for (text, window), scores in read_windows(
            model, self.tokenizer.pad_token_id, windows, score, progress
        ):
            found[text][window.first] = scores
        results = []
        for of_text, rows in zip(windows, found, strict=True):
            lengths = [len(window.ids) for window in of_text]
            whole = rows.max(axis=0) if self.multi_label else np.average(rows, axis=0, weights=lengths)
            results.append(Classification(self._ranked(whole), windows=len(of_text)))
        return results

    def _probabilities(self, states: Tensor, counts: list[int]) -> np.ndarray:
        """[R, N] of all that was read; ``counts`` as of ``SequenceClassifier.read``."""
        model = self.model
        assert isinstance(model, BioGptForSequenceClassification)
        scores = model.read(states, counts)
        if not scores.isfinite().all():
            raise FloatingPointError(NOT_FINITE)
        return model.probabilities(scores, counts).cpu().numpy()

    def _ranked(self, probabilities: np.ndarray) -> list[LabelScore]:
        order = np.argsort(-probabilities, kind="stable")
        return [LabelScore(self.labels[index], float(probabilities[index])) for index in order]


class Served(Protocol):
    """A language model and its tokenizer, as whoever serves it has them."""

    @property
    def model(self) -> BioGptForCausalLM: ...
    @property
    def tokenizer(self) -> BioGptTokenizer: ...


def compared(served: Served, labels: Sequence[str], text: str) -> Classification:
    """How a language model labels a text by labels in words; errors as of ``TextClassifier``."""
    return TextClassifier(served.model, served.tokenizer, labels).classify(text)


def sentence_rows(pieces: Sequence[list[int]], room: int, separator: int) -> Iterator[Window]:
    """Rows of whole sentences: each sentence is read in one row, after as many before it as half a row holds.

    Args:
        pieces: token ids of each sentence, at most ``room``.
        room: tokens of a row beside the separator in front.

    Yields:
        Windows, each read at the last pieces of the sentences that it is for, from their first ones on.
    """
    ids, done = [separator], 0
    begins, reads = list[int](), list[int]()
    ends = list[int]()  # of all sentences in the row, context included
    for sentence in pieces:
        if len(ids) + len(sentence) > room + 1:
            yield Window(ids, done, reads, begins)
            done += len(reads)
            spare = min(room // 2, room - len(sentence))
            begin = next((end + 1 for end in ends if len(ids) - end - 1 <= spare), len(ids))
            ids = [separator, *ids[begin:]]
            begins, reads, ends = [], [], [end - begin + 1 for end in ends if end >= begin]
        begins.append(min(len(ids), len(ids) + len(sentence) - 1))
        ids = ids + sentence
        reads.append(len(ids) - 1)
        ends.append(len(ids) - 1)
    yield Window(ids, done, reads, begins)


def text_window(ids: list[int], pooling: str, number: int = 0) -> Window:
    """A stretch of a text that is labelled as a whole: all of it but the separator in front may be read."""
    last = len(ids) - 1
    first = min(1, last)
    if pooling == "attention":
        return Window(ids, number, list(range(first, last + 1)))
    return Window(ids, number, [last], [first])


def _windows(ids: list[int], limit: int, pooling: str) -> Iterator[Window]:
    """Stretches of at most ``limit`` ids, the separator in front of each, overlapping by half."""
    separator, rest = ids[:1], ids[1:]
    room = limit - 1
    starts = range(0, max(1, len(rest) - room // 2), room - room // 2)
    for number, start in enumerate(starts):
        yield text_window(separator + rest[start : start + room], pooling, number)
        if start + room >= len(rest):
            return
