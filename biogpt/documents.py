"""Texts from files: one a line, a column of a table, JSON objects, PubTator."""

import csv
import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".pubtator")
_TEXT_COLUMNS = ("text", "abstract", "sentence")
_ID_COLUMNS = ("id", "pmid", "doc_id", "document_id")
_PUBTATOR_LINE = re.compile(r"([^|\t\r\n]+)\|([ta])\|(.*)")

PubtatorEntity = tuple[int, int, str, str]  # start, end, text, type


@dataclass(frozen=True)
class Document:
    """A text and what to call it; ids of one file differ."""

    id: str
    text: str


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 file; a byte-order mark is left out, line ends stay as they are.

    Raises:
        ValueError: the file is empty, or not UTF-8; the message names the first wrong byte.
    """
    data = Path(path).read_bytes()
    name = Path(path).name
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; save it as UTF-8 and try again"
        ) from error
    if not text.strip():
        raise ValueError(f"{name} is empty; expected at least one text")
    return text


def read_documents(path: str | Path) -> list[Document]:
    """The texts of a file.

    ``.txt``: one text a line. ``.csv``, ``.tsv``: a header and a column ``text``, ``abstract`` (after ``title``, if
    there is one) or ``sentence``. ``.jsonl``, ``.json``: objects with ``text``. PubTator is known by its content.
    Ids come from ``id`` or ``pmid``, else they count from 1; one used twice gets ``-2``, ``-3`` …, so that results
    of different texts are not mixed up.

    Raises:
        ValueError: the file is empty, not UTF-8, of an unknown kind, or malformed; the message names the line.
    """
    path = Path(path)
    text = read_text(path)
    kind = path.suffix.lower()
    first = text.lstrip().splitlines()[0]
    if kind == ".pubtator" or _PUBTATOR_LINE.fullmatch(first):
        pairs = [(document.id, document.text) for document, _ in _pubtator(text, path.name)]
    elif kind == ".txt":
        pairs = [("", line) for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    elif kind in (".csv", ".tsv"):
        pairs = list(_table(text, path.name, "\t" if kind == ".tsv" else ","))
    elif kind in (".jsonl", ".json"):
        pairs = list(_objects(text, path.name, lines=kind == ".jsonl"))
    else:
        raise ValueError(f"{path.name} is of an unknown kind; expected one of {', '.join(FORMATS)}")
    if not pairs:
        raise ValueError(f"{path.name} holds no text")
    return _with_ids(pairs)


def read_pubtator(path: str | Path) -> list[tuple[Document, list[PubtatorEntity]]]:
    """Abstracts in PubTator format with their entities, sorted and apart.

    The text is title, space, abstract, as offsets in the BioCreative files count. Of overlapping entities the longer
    one is kept.

    Raises:
        ValueError: the file is malformed, or an entity's text is not at its offsets.
    """
    return list(_pubtator(read_text(path), Path(path).name))


def _pubtator(text: str, name: str) -> Iterator[tuple[Document, list[PubtatorEntity]]]:
    parts: dict[str, dict[str, str]] = {}
    entities: dict[str, list[PubtatorEntity]] = {}
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if not line.strip():
            continue
        if match := _PUBTATOR_LINE.fullmatch(line):
            parts.setdefault(match[1], {})[match[2]] = match[3]
            continue
        fields = line.split("\t")
        if len(fields) >= 5 and fields[1].isdigit() and fields[2].isdigit() and fields[0] in parts:
            entity = (int(fields[1]), int(fields[2]), fields[3], fields[4])
            entities.setdefault(fields[0], []).append(entity)
        elif len(fields) < 3 or fields[0] not in parts:  # others are relations: id, relation, two arguments
            raise ValueError(
                f"{name}, line {number}: {line[:60]!r} is not PubTator; expected ID|t|title, ID|a|abstract or "
                "ID<tab>start<tab>end<tab>text<tab>type"
            )
    dropped = 0
    for key, part in parts.items():
        whole = " ".join(part[letter] for letter in "ta" if letter in part)
        kept: list[PubtatorEntity] = []
        for start, end, mention, kind in sorted(entities.get(key, []), key=lambda e: (e[0] - e[1], e)):
            if whole[start:end] != mention:
                raise ValueError(
                    f"{name}, {key}: {mention!r} was expected at {start} to {end}; there is {whole[start:end]!r}"
                )
            if all(end <= other[0] or start >= other[1] for other in kept):
                kept.append((start, end, mention, kind))
            else:
                dropped += 1
        yield Document(key, whole), sorted(kept)
    if dropped:
        logger.info("%s: %d entities inside others were left out", name, dropped)


def _table(text: str, name: str, delimiter: str) -> Iterator[tuple[str, str]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = {str(column).strip().lower(): column for column in reader.fieldnames or []}
    found = next((columns[column] for column in _TEXT_COLUMNS if column in columns), None)
    if found is None:
        raise ValueError(
            f"{name} has the columns {', '.join(columns)}; expected one of {', '.join(_TEXT_COLUMNS)} in its first line"
        )
    key = next((columns[column] for column in _ID_COLUMNS if column in columns), None)
    title = columns.get("title") if "text" not in columns else None
    for row in reader:
        content = " ".join(part for column in (title, found) if column and (part := row[column] or ""))
        if content.strip():
            yield (row[key] or "") if key else "", content


def _objects(text: str, name: str, lines: bool) -> Iterator[tuple[str, str]]:
    try:
        if lines:
            numbered = [
                (number, json.loads(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()
            ]
        else:
            whole = json.loads(text)
            numbered = list(enumerate(whole if isinstance(whole, list) else [whole], 1))
    except json.JSONDecodeError as error:
        where = f"line {number_of_error(text, error)}" if lines else f"line {error.lineno}"
        raise ValueError(f"{name}, {where}: not JSON ({error.msg})") from error
    for number, value in numbered:
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise ValueError(f'{name}, {"line" if lines else "object"} {number}: expected {{"text": "…"}}')
        if value["text"].strip():
            yield _id(value), value["text"]


def number_of_error(text: str, error: json.JSONDecodeError) -> int:
    """The line of a JSON Lines file that ``error`` is about."""
    return next(number for number, line in enumerate(text.split("\n"), 1) if line == error.doc)


def _id(value: dict[str, Any]) -> str:
    return next((str(value[key]) for key in _ID_COLUMNS if value.get(key) is not None), "")


def _with_ids(pairs: list[tuple[str, str]]) -> list[Document]:
    used: set[str] = set()
    documents = []
    for number, (given, text) in enumerate(pairs, 1):
        base = given.strip() or str(number)
        name, again = base, 1
        while name in used:
            again += 1
            name = f"{base}-{again}"
        used.add(name)
        documents.append(Document(name, text))
    return documents
