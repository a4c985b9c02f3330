"""Labels of words as tags: which may follow which, the likeliest legal sequence, and its entities."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from biogpt.text.results import Look, go_on

OUTSIDE = "O"
_WORDS = 1_000  # after which somebody may look
_PREFIXES = frozenset("BILUSE")


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
        # [N + 1, N + 1] log-weights: 0 where a tag may follow, else -inf; the last row is the start of the
        # text, the last column its end.
        self.transitions = np.full((len(labels) + 1, len(labels) + 1), -np.inf)
        for row, before in enumerate([*self.tags, start]):
            for column, after in enumerate([*self.tags, start]):
                if _may_follow(before, after, known):
                    self.transitions[row, column] = 0.0

    def decode(self, log_probabilities: np.ndarray, look: Look = go_on) -> list[int]:
        """The likeliest legal labels (Viterbi 1967).

        Args:
            log_probabilities: [W, N] of each word's labels.
            look: called every few milliseconds.

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
            if word % _WORDS == 0:
                look()
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
