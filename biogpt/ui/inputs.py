"""What may be given to the tabs that label texts: a passage or a file, within limits."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from biogpt.text.documents import Document, read_documents
from biogpt.text.plain import is_blank

MOST_TEXTS = 5_000  # of a file
MOST_CHARACTERS = 2_000_000  # of a passage, or of a file's texts in all

_NAMING = 4  # words of a passage that its files are called by
_SHOWN = 100  # characters of a value that is refused
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Given:
    """What a run is to read, and how.

    Attributes:
        name: of the file, without its ending, or a passage's first words; empty where nobody saves it.
        settings: values of the form's settings.
    """

    name: str
    documents: Sequence[Document]
    settings: tuple[Any, ...] = ()

    def file_name(self, what: str, done: int, suffix: str) -> str:
        """What a file of results is called: after what was read, and how much of it where that is a part."""
        total = len(self.documents)
        parts = [self.name, what, f"{done}-of-{total}" if done < total else ""]
        return "-".join(filter(None, parts)) + suffix


def given(text: str, path: str | None, *settings: Any) -> Given:
    """A file's texts, or without one the passage; errors as of ``upload`` and ``passage``."""
    if path is None:
        documents = passage(text)
        words = re.findall(r"[^\W_]+", text)[:_NAMING]
        return Given("-".join(word[:20] for word in words).lower(), documents, settings)
    return Given(Path(path).stem, upload(path), settings)


def passage(text: str) -> list[Document]:
    """A typed text as the one document of a run.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty, or has more than ``MOST_CHARACTERS``.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {as_given(text)}; expected a string")
    if is_blank(text):
        raise ValueError("The text is empty: paste a passage, or take an example")
    _check_length(len(text), "The text")
    return [Document("text", sendable(text))]


def passages(texts: Sequence[str]) -> list[Document]:
    """Texts of a program as the documents of a run.

    Raises:
        ValueError: there are none, or more than ``MOST_TEXTS``, or one is empty.
    """
    if not 1 <= len(texts) <= MOST_TEXTS:
        raise ValueError(f"input holds {len(texts):,} texts; expected 1 to {MOST_TEXTS:,}")
    blank = next((place for place, text in enumerate(texts) if is_blank(text)), None)
    if blank is not None:
        raise ValueError(f"input is empty at place {blank}; leave out texts that show nothing")
    _check_length(sum(map(len, texts)), "input")
    return [Document(str(place), sendable(text)) for place, text in enumerate(texts)]


def upload(path: str) -> list[Document]:
    """The documents of an uploaded file.

    Raises:
        TypeError: there is none.
        ValueError: it cannot be read, or holds more than ``MOST_TEXTS`` or ``MOST_CHARACTERS``.
    """
    if not isinstance(path, str):
        raise TypeError("no file was given")
    documents = read_documents(path)
    name = Path(path).name
    if len(documents) > MOST_TEXTS:
        raise ValueError(
            f"{name} holds {len(documents):,} texts; at most {MOST_TEXTS:,} are read at once. Split it, or "
            "use the command line, which has no limit"
        )
    _check_length(sum(len(document.text) for document in documents), name)
    return [replace(document, text=sendable(document.text)) for document in documents]


def sendable(text: str) -> str:
    """Half of a surrogate pair, which JSON can name but no reply can hold, becomes U+FFFD; offsets hold."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def _check_length(characters: int, what: str) -> None:
    if characters > MOST_CHARACTERS:
        raise ValueError(
            f"{what} has {characters:,} characters; at most {MOST_CHARACTERS:,} are read at once. "
            "Cut or split it"
        )


def check_names(name: str, values: list[str] | None) -> None:
    """Raises TypeError unless a client gave a list of strings, or nothing."""
    is_list = isinstance(values, list) and all(isinstance(value, str) for value in values)
    if values is not None and not is_list:
        raise TypeError(f"{name} is {as_given(values)}; expected a list of strings, or null")


def as_given(value: Any) -> str:
    """A value as a client wrote it, in JSON, cut where it is long."""
    written = json.dumps(value)
    return written if len(written) <= _SHOWN else f"{written[:_SHOWN]} …"


def check_score(name: str, value: float) -> None:
    """Raises TypeError or ValueError unless a client gave a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {as_given(value)}; expected a number from 0 to 1")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {as_given(value)}; expected 0 to 1")
