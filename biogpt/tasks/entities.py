"""Entities of a text: labels of words, read by a token classification head, made into exact character spans.

A word is what Moses splits off; its label is read at its first or last piece (``config.label_piece``). The
likeliest legal sequence of labels becomes the spans. Texts longer than the model are read in windows that
overlap by half; a word takes its label from the window in which it is furthest from both edges.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from biogpt.checkpoint.pretrained import BioGptForTokenClassification, BioGptTokenizer
from biogpt.model.config import BioGptConfig
from biogpt.runners.packing import pack
from biogpt.runners.threads import rest_threads, side_by_side
from biogpt.text.results import Entity
from biogpt.text.tokenizer import END_OF_WORD

OUTSIDE = "O"
_BATCH_TOKENS = 4096  # of a batch of windows, padding included
_CPU_BATCH_TOKENS = 512  # the activations of more leave a CPU's caches
_PREFIXES = frozenset("BILUSE")


class Words(NamedTuple):
    """The words of a text: W of them.

    Attributes:
        spans: [W] (start, end) in characters of the text.
        pieces: [W] token ids of each.
        texts: [W] the words as written.
    """

    spans: list[tuple[int, int]]
    pieces: list[list[int]]
    texts: list[str]


class Window(NamedTuple):
    """A stretch of words that the model reads at once.

    Attributes:
        ids: [T] token ids, control tokens and copies included.
        first: index of its first word.
        reads: the position at which each word is read, so ``len(reads)`` words from ``first`` on.
    """

    ids: list[int]
    first: int
    reads: list[int]

    def words(self, of_text: Sequence[str]) -> Sequence[str]:
        """Its words, of those of the text."""
        return of_text[self.first : self.first + len(self.reads)]


def words_of(tokenizer: BioGptTokenizer, text: str) -> Words:
    """Split a text into the words that get labels."""
    encoding = tokenizer.encode(text, special_tokens=False)
    spans: list[tuple[int, int]] = []
    pieces: list[list[int]] = []
    within = False
    for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if within:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            pieces[-1].append(index)
        else:
            spans.append((start, end))
            pieces.append([index])
        piece = tokenizer.token(index)
        within = not piece.endswith(END_OF_WORD) and index != tokenizer.unk_token_id
    return Words(spans, pieces, [text[start:end] for start, end in spans])


def forms_of(words: Sequence[str], config: BioGptConfig, device: torch.device) -> Tensor | None:
    """[W, 5] forms of words for ``BioGptForTokenClassification.read``; None where the model has no word encoder."""
    if not config.word_encoder_size:
        return None
    return torch.tensor([word_forms(word, config.word_form_rows) for word in words], device=device)


@lru_cache(maxsize=100_000)
def word_forms(word: str, rows: int) -> tuple[int, ...]:
    """How a word looks, as rows of a ``WordEncoder``'s table of ``rows``: spelling, beginning, end, shape.

    Words that were never trained on share their beginnings, ends and shapes with some that were.
    """
    lower = word.lower()
    looks = ("w" + lower, "p" + word[:3], "s" + word[-3:], "e" + lower[-5:], "h" + _shape(word))
    return tuple(zlib.crc32(look.encode("utf-8", "surrogatepass")) % rows for look in looks)


def _shape(word: str) -> str:
    """``Xxdd`` of a word: letters by case, digits, at most two of a kind in a row; other characters stay."""
    kinds = ("X" if c.isupper() else "x" if c.islower() else "d" if c.isdigit() else c for c in word)
    return re.sub(r"(.)\1{2,}", r"\1\1", "".join(kinds))


def windows_of(pieces: Sequence[Sequence[int]], config: BioGptConfig) -> Iterator[Window]:
    """Cut words into windows that fit the model, each overlapping the one before by about half.

    A word too long for a window is read by its last pieces.
    """
    room = config.max_position_embeddings // config.passage_copies - 1
    if room < 1:
        raise ValueError(
            f"{config.passage_copies} copies of a passage do not fit into {config.max_position_embeddings} positions"
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


class Tag(NamedTuple):
    """A label taken apart: ``B-Disease`` is ("B", "Disease"), ``O`` is ("O", "")."""

    prefix: str
    type: str


class TagScheme:
    """The tags behind a head's labels, and which may follow which.

    BIO (IOB2) and IOBES/BILOU by their prefixes; labels without a prefix name the type of each word. Where no
    label is ``O``, ``LABEL_0`` stands for it, as in checkpoints saved without names.

    Args:
        labels: N labels, by id.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        outside = OUTSIDE if OUTSIDE in labels else "LABEL_0"
        self.tags = [_tag(label, outside) for label in labels]
        self.types = tuple(dict.fromkeys(tag.type for tag in self.tags if tag.type))
        start = Tag("O", "")
        known = set(self.tags)
        # [N + 1, N + 1] log-weights: 0 where a tag may follow, else -inf; the last row is the start of the text,
        # the last column its end.
        self.transitions = np.full((len(labels) + 1, len(labels) + 1), -np.inf)
        for row, before in enumerate([*self.tags, start]):
            for column, after in enumerate([*self.tags, start]):
                if _may_follow(before, after, known):
                    self.transitions[row, column] = 0.0

    def decode(self, log_probabilities: np.ndarray) -> list[int]:
        """The likeliest legal labels (Viterbi 1967).

        Args:
            log_probabilities: [W, N] of each word's labels.

        Returns:
            [W] label ids.
        """
        count, size = log_probabilities.shape
        if not count:
            return []
        between, last = self.transitions[:-1, :-1], self.transitions[:-1, -1]
        best = self.transitions[-1, :-1] + log_probabilities[0]
        back = np.zeros((count, size), dtype=np.int32)
        for word in range(1, count):
            paths = best[:, None] + between
            back[word] = paths.argmax(axis=0)
            best = paths[back[word], np.arange(size)] + log_probabilities[word]
        path = [int((best + last).argmax())]
        for word in range(count - 1, 0, -1):
            path.append(int(back[word, path[-1]]))
        return path[::-1]

    def spans(self, path: Sequence[int]) -> list[tuple[int, int, str]]:
        """Entities of a legal path: (first word, word after the last, type)."""
        spans: list[tuple[int, int, str]] = []
        before = Tag("O", "")
        for word, index in enumerate(path):
            tag = self.tags[index]
            if tag.type:
                if before.type == tag.type and _continues(before, tag):
                    spans[-1] = (spans[-1][0], word + 1, tag.type)
                else:
                    spans.append((word, word + 1, tag.type))
            before = tag
        return spans


def _tag(label: str, outside: str) -> Tag:
    if label == outside:
        return Tag("O", "")
    prefix, dash, kind = label.partition("-")
    if dash and kind and prefix in _PREFIXES:
        return Tag({"U": "S", "L": "E"}.get(prefix, prefix), kind)
    return Tag("I", label)


def _continues(before: Tag, after: Tag) -> bool:
    """Whether ``after`` goes on with the entity of ``before``, both of one type."""
    return before.prefix in "BI" and after.prefix in "IE"


def _may_follow(before: Tag, after: Tag, known: set[Tag]) -> bool:
    joined = bool(before.type) and before.type == after.type and _continues(before, after)
    unfinished = before.prefix in "BI" and Tag("E", before.type) in known
    orphan = after.prefix in "IE" and Tag("B", after.type) in known
    return joined or not (unfinished or orphan)


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
        pack(model)
        rest_threads()  # so that this process may be forked
        return cls(model, BioGptTokenizer.from_pretrained(model.folder))

    @property
    def types(self) -> tuple[str, ...]:
        """The types of entities, in the order of the labels."""
        return self.scheme.types

    def __call__(self, text: str) -> list[Entity]:
        """The entities of one text, sorted by start, never overlapping; none in an empty text."""
        return self.batch([text])[0]

    def batch(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> list[list[Entity]]:
        """The entities of many texts, in the order given.

        Windows of like length are read together, so this is faster than one text at a time.

        Args:
            progress: called with (texts done, all texts); what it raises ends the work.

        Raises:
            ValueError: one string was given in place of a list of texts.
            FloatingPointError: the model's scores are not finite.
        """
        if isinstance(texts, str):
            raise ValueError("batch takes a list of texts; call the recognizer with one text")
        words = [words_of(self.tokenizer, text) for text in texts]
        scores = self.log_probabilities(words, progress)
        return [self._entities(*each) for each in zip(texts, words, scores, strict=True)]

    @torch.inference_mode()
    def log_probabilities(
        self,
        texts: Sequence[Words],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[np.ndarray]:
        """Log-probabilities of the labels of each word.

        Args:
            texts: the words of each text.
            progress: as in ``batch``.

        Returns:
            For each text [W, N] float32.
        """
        config = self.model.config
        results = [np.zeros((len(words.pieces), config.num_labels), dtype=np.float32) for words in texts]
        # How far the best window so far has each word from its edges.
        depths = [np.full(len(words.pieces), -1) for words in texts]
        windows = [
            (row, window) for row, words in enumerate(texts) for window in windows_of(words.pieces, config)
        ]
        windows.sort(key=lambda item: len(item[1].ids))
        waiting = np.bincount([row for row, _ in windows], minlength=len(texts))
        on_cpu = self.model.device.type == "cpu"
        batches = list(_batches(windows, _CPU_BATCH_TOKENS if on_cpu else _BATCH_TOKENS))
        each = side_by_side if on_cpu else map
        for batch, logits in zip(batches, each(partial(self._logits, texts), batches), strict=True):
            for (row, window), scores in zip(batch, logits, strict=True):
                count = len(window.reads)
                stretch = slice(window.first, window.first + count)
                depth = np.minimum(np.arange(count), np.arange(count)[::-1])
                # At the ends of the text nothing is cut off: the edge of the window is no edge there.
                if window.first == 0:
                    depth = np.arange(count)[::-1]
                if window.first + count == len(texts[row].pieces):
                    depth = np.arange(count) if window.first else np.full(count, count)
                deeper = depth > depths[row][stretch]
                depths[row][stretch] = np.where(deeper, depth, depths[row][stretch])
                results[row][stretch][deeper] = scores[deeper]
                waiting[row] -= 1
            if progress is not None:
                progress(int((waiting == 0).sum()), len(texts))
        return results

    def _logits(self, texts: Sequence[Words], batch: Sequence[tuple[int, Window]]) -> list[np.ndarray]:
        """Log-probabilities [words, N] of each window of some texts, read as one padded batch.

        Padding on the right is never looked at, so it needs no mask.
        """
        windows = [window for _, window in batch]
        words = [word for row, window in batch for word in window.words(texts[row].texts)]
        device = self.model.device
        width = max(len(window.ids) for window in windows)
        rows = torch.full((len(windows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(rows)
        for row, window in enumerate(windows):
            rows[row, : len(window.ids)] = torch.tensor(window.ids)
            mask[row, : len(window.ids)] = 1
        padded = mask.to(device) if self.model.config.bidirectional_layers and not bool(mask.all()) else None
        hidden = self.model.biogpt(rows.to(device), padded).last_hidden_state
        where = [(row, read) for row, window in enumerate(windows) for read in window.reads]
        index: Tensor = torch.tensor(where, device=device).T
        forms = forms_of(words, self.model.config, device)
        counts = [len(window.reads) for window in windows]
        logits = self.model.read(hidden[index[0], index[1]], forms, counts)
        scores = logits.float().log_softmax(dim=-1).cpu().numpy()
        if np.isnan(scores).any():
            raise FloatingPointError(
                "the model's scores are not finite: its weights may be damaged, or too large for this precision; "
                "try float32"
            )
        return np.split(scores, np.cumsum(counts)[:-1])

    def _entities(self, text: str, words: Words, scores: np.ndarray) -> list[Entity]:
        path = self.scheme.decode(scores)
        entities = []
        for first, end, kind in self.scheme.spans(path):
            log_score = float(sum(scores[word, path[word]] for word in range(first, end)))
            if end < len(path):  # times the probability that the next word does not go on with it
                goes_on = [
                    i for i, tag in enumerate(self.scheme.tags) if tag.type == kind and tag.prefix in "IE"
                ]
                log_score += float(np.log1p(-min(np.exp(scores[end, goes_on]).sum(), 1 - 1e-7)))
            start, stop = words.spans[first][0], words.spans[end - 1][1]
            entities.append(Entity(kind, start, stop, text[start:stop], float(np.exp(log_score))))
        return entities


def _batches(windows: Sequence[tuple[int, Window]], most: int) -> Iterator[Sequence[tuple[int, Window]]]:
    """Consecutive windows, sorted by length, as many at once as come to ``most`` tokens; at least one."""
    first = 0
    for end in range(1, len(windows) + 1):
        full = end < len(windows) and (end + 1 - first) * len(windows[end][1].ids) > most
        if full or end == len(windows):
            yield windows[first:end]
            first = end
