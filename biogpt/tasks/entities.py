"""Entities of a text: labels of words, read by a token classification head, made into exact character spans.

A word's label is read at its first or last piece (``config.label_piece``). The likeliest legal sequence of
labels becomes the spans. Texts longer than the model are read in windows that overlap by half; a word takes
its label from the window in which it is furthest from both edges.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from biogpt.checkpoint.pretrained import BioGptForTokenClassification, BioGptTokenizer
from biogpt.model.config import BioGptConfig
from biogpt.runners.threads import rest_threads
from biogpt.tasks.batching import NOT_FINITE, TextWindow, Window, looking, read_windows
from biogpt.tasks.brackets import balanced
from biogpt.tasks.tags import TagScheme
from biogpt.tasks.words import Words, forms_of, words_of
from biogpt.text.results import Entity, Look, OnProgress, go_on


class EntityRecognizer:
    """Finds the entities of texts of any length.

    Args:
        model: a token classification head whose ``config.id2label`` names BIO or IOBES labels.
        tokenizer: of the same checkpoint.
    """

    def __init__(self, model: BioGptForTokenClassification, tokenizer: BioGptTokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.scheme = TagScheme(model.config.labels)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "mini-ner",
        revision: str | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Self:
        """Load a checkpoint with a token classification head.

        Args and errors are those of ``PretrainedModel.from_pretrained``.
        """
        model = BioGptForTokenClassification.from_pretrained(
            source, revision, device, precision, trainable=False
        )
        rest_threads()  # so that this process may be forked
        return cls(model, BioGptTokenizer.from_pretrained(model.folder))

    @property
    def types(self) -> tuple[str, ...]:
        """The types of entities, in the order of the labels."""
        return self.scheme.types

    def chosen(self, types: Iterable[str]) -> set[str]:
        """These types; all where none are named.

        Raises:
            ValueError: the model does not know one of them.
        """
        wanted = set(types)
        if unknown := wanted - set(self.types):
            raise ValueError(f"unknown types {sorted(unknown)}; the model knows {', '.join(self.types)}")
        return wanted or set(self.types)

    def __call__(self, text: str) -> list[Entity]:
        """The entities of one text, sorted by start, never overlapping; none in an empty text."""
        return self.batch([text])[0]

    def batch(
        self, texts: Sequence[str], progress: OnProgress | None = None, types: Iterable[str] = ()
    ) -> list[list[Entity]]:
        """The entities of many texts, in the order given.

        Windows of like length are read together, so this is faster than one text at a time.

        Args:
            progress: called with (texts done, all texts); what it raises ends the work.
            types: find these only, all where none are named. What finds others in a word encoder is left out
                then: ``HD`` in ``HD gene product`` is found, which else gives way to the gene.

        Raises:
            ValueError: one string was given in place of a list of texts, or as ``types``.
            FloatingPointError: the model's scores are not finite.
        """
        if isinstance(texts, str):
            raise ValueError("batch takes a list of texts; call the recognizer with one text")
        wanted = self.chosen(types)
        look = looking(progress, len(texts))
        words = [words_of(self.tokenizer, text, look) for text in texts]
        scores = self.log_probabilities(words, progress, wanted)
        found = [
            self.entities_of(text, words_of_text, scores_of_text, look)
            for text, words_of_text, scores_of_text in zip(texts, words, scores, strict=True)
        ]
        return [[entity for entity in entities if entity.label in wanted] for entities in found]

    @torch.inference_mode()
    def log_probabilities(
        self,
        texts: Sequence[Words],
        progress: OnProgress | None = None,
        types: Collection[str] | None = None,
    ) -> list[np.ndarray]:
        """Log-probabilities of the labels of each word.

        Args:
            texts: the words of each text.
            progress: as in ``batch``.
            types: as in ``TokenClassifier.read``, of all texts.

        Returns:
            For each text [W, N] float32; -inf for labels that a word encoder left out.
        """
        config = self.model.config
        results = [np.zeros((len(words.pieces), config.num_labels), dtype=np.float32) for words in texts]
        # How far the best window so far has each word from its edges.
        depths = [np.full(len(words.pieces), -1) for words in texts]

        def score(hidden: Tensor, batch: Sequence[TextWindow]) -> list[np.ndarray]:
            """[words, N] log-probabilities for each window."""
            words = [word for text, window in batch for word in texts[text].texts[window.stretch]]
            counts = [len(window.reads) for _, window in batch]
            asked = None if types is None else [types] * len(counts)
            logits = self.model.read(hidden, forms_of(words, config, hidden.device), counts, asked)
            scores = self.model.log_probabilities(logits, counts).cpu().numpy()
            if np.isnan(scores).any():
                raise FloatingPointError(NOT_FINITE)
            return np.split(scores, np.cumsum(counts)[:-1])

        windows = [list(windows_of(words.pieces, config)) for words in texts]
        for (text, window), scores in read_windows(
            self.model, self.tokenizer.pad_token_id, windows, score, progress
        ):
            stretch = window.stretch
            places = np.arange(len(window.reads))
            # An edge at an end of the text cuts nothing off, but another window has its own edge still nearer
            # there.
            depth = np.minimum(places, places[::-1])
            deeper = depth > depths[text][stretch]
            depths[text][stretch][deeper] = depth[deeper]
            results[text][stretch][deeper] = scores[deeper]
        return results

    def entities_of(self, text: str, words: Words, scores: np.ndarray, look: Look = go_on) -> list[Entity]:
        """The entities that the likeliest labels of the words spell, their brackets in pairs.

        Args:
            words: of the text, from ``words_of``.
            scores: [W, N] of them, from ``log_probabilities``.
            look: called every few milliseconds.
        """
        path = self.scheme.decode(scores, look)
        entities = []
        for first, end, kind in self.scheme.spans(path):
            log_score = float(sum(scores[word, path[word]] for word in range(first, end)))
            if end < len(path):  # times the probability that the next word does not go on with it
                goes_on = [
                    i for i, tag in enumerate(self.scheme.tags) if tag.type == kind and tag.prefix in "IE"
                ]
                log_score += float(np.log1p(-min(np.exp(scores[end, goes_on]).sum(), 1 - 1e-7)))
            start, stop = balanced(text, words.spans[first][0], words.spans[end - 1][1])
            if start < stop:
                entities.append(Entity(kind, start, stop, text[start:stop], float(np.exp(log_score))))
        return entities


def windows_of(pieces: Sequence[Sequence[int]], config: BioGptConfig) -> Iterator[Window]:
    """Cut words into windows that fit the model, each overlapping the one before by about half.

    A word too long for a window is read by its last pieces.
    """
    room = config.max_position_embeddings // config.passage_copies - 1
    if room < 1:
        raise ValueError(
            f"{config.passage_copies} copies of a passage do not fit into {config.max_position_embeddings} "
            "positions"
        )
    pieces = [word[-room:] for word in pieces]
    ends = np.cumsum([len(word) for word in pieces])
    first = 0
    while first < len(pieces):
        before = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, before + room, side="right"))
        yield _window(pieces[first:last], first, config)
        if last == len(pieces):
            return
        middle = int(np.searchsorted(ends, before + room // 2, side="right"))
        first = min(max(first + 1, middle), last)


def _window(pieces: Sequence[Sequence[int]], first: int, config: BioGptConfig) -> Window:
    copy = [config.eos_token_id, *(index for word in pieces for index in word)]
    ends = (config.passage_copies - 1) * len(copy) + np.cumsum([len(word) for word in pieces])
    if config.label_piece == "first":
        ends = ends - [len(word) - 1 for word in pieces]
    return Window(copy * config.passage_copies, first, ends.tolist())
