"""What is found in a text, with exact offsets: entities, labels of texts, labels of sentences."""

from collections.abc import Callable
from dataclasses import dataclass

OnProgress = Callable[[int, int], None]  # called with (texts done, all texts); what it raises ends the work
Look = Callable[[], None]  # called many times a second of work; what it raises ends the work


def go_on() -> None:
    """The ``Look`` of work that nobody stops."""


@dataclass(frozen=True)
class Entity:
    """A span of a text that names something.

    Attributes:
        label: its type, such as ``Disease``.
        start, end: characters of the text as given; ``text[start:end]`` is the entity's text.
        score: the model's probability, 0 to 1, that an entity of this type begins and ends right here.
    """

    label: str
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class LabelScore:
    """A label and its probability, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True)
class SentenceLabel:
    """The likeliest label of the sentence ``text[start:end]``, and its probability."""

    label: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Classification:
    """What was found in one text.

    Attributes:
        scores: of all labels, highest first.
        windows: how many stretches the text was read in.
        cut: tokens at its end that were not read.
    """

    scores: list[LabelScore]
    windows: int = 1
    cut: int = 0
