"""Texts from files: one a line, a column of a table, JSON objects, PubTator."""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from biogpt.text.files import LINE_END, json_lines, read_lines, read_text
from biogpt.text.plain import is_blank
from biogpt.text.records import RECORD_SUFFIXES, records

logger = logging.getLogger(__name__)

FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".pubtator", *RECORD_SUFFIXES)
_TEXT_COLUMNS = ("text", "abstract", "sentence")
_ID_COLUMNS = ("id", "pmid", "doc_id", "document_id")
_LABEL_COLUMNS = ("label", "labels")
_NO_LABEL = "none"  # as in labelled text for training, and | between several
_COLUMN_NAME = re.compile(r"[\w.-]*")
_PUBTATOR_LINE = re.compile(r"([^|\t\r\n]+)\|([ta])\|(.*)")

_SURROGATE = re.compile("[\ud800-\udfff]")

_PLACES = re.compile(r"\d+(?:[;,]\d+)*", re.ASCII)
TRIMMED = "entities had white space at an edge, which was left out"

# Id, which may be empty, text, which may be blank, or what is wrong with it, and labels.
Read = tuple[str, str | ValueError, tuple[str, ...] | None]
PubtatorEntity = tuple[int, int, str, str]  # start, end, text, type


@dataclass(frozen=True)
class Document:
    """A text and what to call it; ids of one file differ.

    Attributes:
        labels: that the file gives it, if it does: of a column or a field ``label`` or ``labels``.
    """

    id: str
    text: str
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Row:
    """A row of a file, for work that has a result for each.

    Attributes:
        error: why it has no text to read; empty where it has one.
    """

    id: str
    text: str
    error: str = ""


def read_documents(path: str | Path) -> list[Document]:
    """The texts of a file.

    ``.txt``: one text a line. ``.csv``, ``.tsv``: a header and a column ``text``, ``abstract`` (after
    ``title``, if there is one) or ``sentence``; rows without text are left out. ``.jsonl``, ``.json``:
    objects with ``text``. Title and abstract of MEDLINE, RIS, Web of Science and EndNote records and of
    PubMed's XML. PubTator, records and what a ``.txt`` holds in place of lines are known by their content;
    entities are not looked at. Ids come from ``id`` or ``pmid``, else they count from 1; one used twice gets
    ``-2``, ``-3`` …, so that results of different texts are not mixed up.

    Raises:
        ValueError: the file is empty, not UTF-8, of an unknown kind, or malformed; the message names the
            line.
    """
    path = Path(path)
    read: list[tuple[str, str, tuple[str, ...] | None]] = []
    for name, text, labels in _read(path):
        if isinstance(text, ValueError):
            raise text
        if not is_blank(text):
            read.append((name, text, labels))
    if not read:
        raise ValueError(f"{path.name} holds no text")
    return _with_ids(read)


def read_rows(path: str | Path) -> list[Row]:
    """As ``read_documents``, but all objects and rows of a table are there, malformed and blank ones, too.

    Raises:
        ValueError: the file as a whole cannot be read.
    """
    return rows_of((name, text) for name, text, _ in _read(Path(path)))


def rows_of(pairs: Iterable[tuple[str, str | ValueError]]) -> list[Row]:
    """Rows of ids, which may be empty or used twice, and texts or what is wrong with them."""
    kept = list(pairs)
    named = _with_ids([(name, "" if isinstance(text, ValueError) else text, None) for name, text in kept])
    return [
        Row(document.id, document.text, _fault(text)) for document, (_, text) in zip(named, kept, strict=True)
    ]


def _fault(text: str | ValueError) -> str:
    return str(text) if isinstance(text, ValueError) else "the row holds no text" if is_blank(text) else ""


def text_columns(columns: Sequence[str]) -> tuple[int | None, list[int]] | None:
    """Which columns of a table hold the id, and the parts of the text; None where none holds text.

    Args:
        columns: their names, in whatever case.
    """
    names = [column.strip().lower() for column in columns]
    found = next((names.index(column) for column in _TEXT_COLUMNS if column in names), None)
    if found is None:
        return None
    key = next((names.index(column) for column in _ID_COLUMNS if column in names), None)
    is_titled = names[found] == "abstract" and "title" in names
    return key, [names.index("title"), found] if is_titled else [found]


def _read(path: Path) -> Iterator[Read]:
    """What a file holds."""
    text = read_text(path)
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f"{path.name} is of an unknown kind; expected one of {', '.join(FORMATS)}")
    if is_pubtator(path, text):
        return ((block.id, block.text, None) for block in _pubtator(path))
    if kind in (".txt", *RECORD_SUFFIXES) and (found := records(path, text)) is not None:
        return ((name, content, None) for name, content in found)
    return _READERS[_kind_of_lines(text) if kind == ".txt" else kind](path, text)


def _kind_of_lines(text: str) -> str:
    """What a ``.txt`` holds: a table or JSON, shown by its first line, or a text a line."""
    first = LINE_END.split(text.strip(), maxsplit=1)[0]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        cells = [cell.strip(' "').lower() for cell in first.split(delimiter)]
        if len(cells) > 1 and set(cells) & set(_TEXT_COLUMNS) and all(map(_COLUMN_NAME.fullmatch, cells)):
            return suffix
    if first.startswith(("{", "[")):
        for suffix, content in ((".jsonl", first), (".json", text)):
            try:
                value = json.loads(content)
            except (json.JSONDecodeError, RecursionError):
                continue
            if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
                return suffix
    return ".txt"


def _lines(path: Path, text: str) -> Iterator[Read]:
    return (("", line, None) for line in LINE_END.split(text) if not is_blank(line))


def is_pubtator(path: Path, text: str) -> bool:
    """Whether a file is PubTator: by its suffix, or by its first line, which no JSON is asked for.

    Args:
        text: its content.
    """
    kind = path.suffix.lower()
    first = LINE_END.split(text.lstrip(), maxsplit=1)[0]
    return kind == ".pubtator" or (
        kind not in (".json", ".jsonl") and _PUBTATOR_LINE.fullmatch(first) is not None
    )


def read_pubtator(
    path: str | Path, discontinuous: bool = True
) -> list[tuple[Document, list[PubtatorEntity]]]:
    """Abstracts in PubTator format with their entities, sorted and apart.

    The text is title, space, abstract, as offsets in the BioCreative files count. Of overlapping entities the
    longer one is kept. White space at the edges of an entity is left out. An id used twice is numbered, as in
    ``read_documents``.

    Args:
        discontinuous: read an entity of several parts (``0;19<tab>6;25``) as one from the first to the last
            character; False refuses it.

    Raises:
        ValueError: the file is malformed, or an entity's text is not at its offsets, or is white space.
    """
    name = Path(path).name
    blocks = list(_pubtator(Path(path)))
    documents = _with_ids([(block.id, block.text, None) for block in blocks])
    found = [
        [_entity(where, fields, block.text, discontinuous) for where, fields in block.rows]
        for block in blocks
    ]
    apart = [_apart(entities) for entities in found]
    whole = [entity for entities in found for entity in entities]
    parts = sum(not fields[1].isdecimal() for block in blocks for _, fields in block.rows)
    loose = sum(mention != mention.strip() for block in blocks for _, (_, _, _, mention, *_) in block.rows)
    for count, what in (
        (parts, "entities of several parts were read as one from the first to the last character"),
        (loose, TRIMMED),
        (len(whole) - sum(map(len, apart)), "entities that overlap longer ones were left out"),
    ):
        if count:
            logger.info("%s: %d %s", name, count, what)
    return list(zip(documents, apart, strict=True))


def trimmed(where: str, text: str, start: int, end: int) -> tuple[int, int]:
    """A span without white space at its edges.

    Raises:
        ValueError: there is nothing else in it; the message begins with ``where``.
    """
    content = text[start:end].strip()
    if not content:
        raise ValueError(
            f"{where}: the entity at {start} to {end} is only white space, {text[start:end]!r}; give it "
            "characters of the text, or leave it out"
        )
    begin = start + len(text[start:end]) - len(text[start:end].lstrip())
    return begin, begin + len(content)


class _Block(NamedTuple):
    """One text of a PubTator file; rows: the place and the columns of each of its entities."""

    id: str
    text: str
    rows: list[tuple[str, list[str]]]


def _pubtator(path: Path) -> Iterator[_Block]:
    block: _Block | None = None
    for number, line in enumerate(read_lines(path), 1):
        if is_blank(line):
            continue
        where = f"{path.name}, line {number}"
        fields = line.split("\t")
        match = _PUBTATOR_LINE.fullmatch(line)
        if match and match[2] == "t":
            if block:
                yield block
            block = _Block(match[1], match[3], [])
        elif block and match and match[1] == block.id:
            block = block._replace(text=f"{block.text} {match[3]}")
        elif not block or len(fields) < 3 or fields[0] != block.id:
            raise ValueError(
                f"{where}: {line[:60]!r} is not PubTator; expected ID|t|title, then ID|a|abstract and "
                "ID<tab>start<tab>end<tab>text<tab>type lines with that ID"
            )
        elif not _is_relation(fields):
            block.rows.append((where, fields))
    if block:
        yield block


def _is_relation(fields: list[str]) -> bool:
    """Whether a line is ID, relation, two arguments and perhaps more; else it is an entity, or should be
    one."""
    named = fields[1][:1].isalpha()
    stand_off = (
        len(fields) > 5 and fields[3].isdecimal() and fields[4].isdecimal()
    )  # ID, T1, type, start, end, text
    return named and len(fields) > 3 and not stand_off


def _entity(where: str, fields: list[str], text: str, discontinuous: bool) -> PubtatorEntity:
    if (
        len(fields) < 5
        or not fields[4]
        or not (_PLACES.fullmatch(fields[1]) and _PLACES.fullmatch(fields[2]))
    ):
        raise ValueError(f"{where}: expected ID<tab>start<tab>end<tab>text<tab>type; got {fields}")
    starts, ends = ([int(number) for number in re.split("[;,]", cell)] for cell in fields[1:3])
    mention, kind = fields[3], fields[4]
    places = list(zip(starts, ends, strict=False))
    in_order = sorted([*starts, *ends]) == [edge for place in places for edge in place]
    if len(starts) != len(ends) or not in_order or any(start >= end for start, end in places):
        raise ValueError(f"{where}: {fields[1]} to {fields[2]} are no places of one entity after the other")
    if len(starts) > 1 and not discontinuous:
        raise ValueError(
            f"{where}: {mention!r} has {len(starts)} parts, at {fields[1]} to {fields[2]}; give its first "
            "and its last character, or leave it out"
        )
    whole = text[starts[0] : ends[-1]]
    parts = "".join(text[start:end] for start, end in places)
    spelled = mention.strip() == whole.strip() or (
        len(places) > 1 and "".join(mention.split()) == "".join(parts.split())
    )
    if ends[-1] > len(text) or not spelled:
        raise ValueError(
            f"{where}: {mention!r} was expected at {fields[1]} to {fields[2]}; there is {whole!r}"
        )
    start, end = trimmed(where, text, starts[0], ends[-1])
    return start, end, text[start:end], kind


def _apart(entities: Sequence[PubtatorEntity]) -> list[PubtatorEntity]:
    """The longest entities that do not overlap, sorted; of equally long ones the first."""
    apart: list[PubtatorEntity] = []
    for entity in sorted(entities, key=lambda e: (e[0] - e[1], e)):
        if all(entity[1] <= other[0] or other[1] <= entity[0] for other in apart):
            apart.append(entity)
    return sorted(apart)


def read_table(path: str | Path, comma: bool | None = None) -> list[tuple[str, list[str]]]:
    """The filled rows of a ``.csv``, or of a file with tabs, each with its place (``name, line 3``).

    In a file with tabs a quotation mark is often just that. Cells are unquoted only if this works for all of
    them and leaves none with a tab inside; otherwise every line is a row.

    Args:
        comma: whether commas part the cells, else tabs; None: as the file's name says.

    Raises:
        ValueError: the file is empty, not UTF-8, has no filled cell, or the quotation marks of a ``.csv`` do
            not match.
    """
    path = Path(path)
    if comma is None:
        comma = path.suffix.lower() == ".csv"
    try:
        rows = list(_quoted_rows(path, "," if comma else "\t"))
    except csv.Error as error:
        if comma:
            raise ValueError(
                f'{error}; expected " around a whole cell, and each " inside it doubled'
            ) from error
        rows = []
    if not comma and (not rows or any("\t" in cell for _, cells in rows for cell in cells)):
        numbered = enumerate(read_lines(path), 1)
        rows = [
            (f"{path.name}, line {number}", line.split("\t"))
            for number, line in numbered
            if not is_blank(line)
        ]
    if not rows:
        raise ValueError(f"{path.name} holds no text: all its cells are empty")
    return rows


def _quoted_rows(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    where = f"{path.name}, line 1"
    try:
        for row in reader:
            if not all(map(is_blank, row)):
                yield where, row
            where = f"{path.name}, line {reader.line_num + 1}"
    except csv.Error as error:
        raise csv.Error(f"{where}: {error}") from error


def _table(path: Path, text: str, comma: bool) -> Iterator[Read]:
    (_, header), *rows = read_table(path, comma)
    found = text_columns(header)
    columns = [column.strip().lower() for column in header]
    if found is None:
        raise ValueError(
            f"{path.name} has the columns {', '.join(columns)}; expected one of {', '.join(_TEXT_COLUMNS)} "
            "in its first line"
        )
    key, parts = found
    given = next((columns.index(column) for column in _LABEL_COLUMNS if column in columns), None)
    for where, row in rows:
        if len(row) != len(columns):
            fault = ValueError(
                f"{where}: {len(row)} cells, but {len(columns)} columns; a text with the separator in it "
                "needs quotes"
            )
            yield "", fault, None
            continue
        content = " ".join(row[part] for part in parts if not is_blank(row[part]))
        labels = None if given is None else _labels(row[given].split("|"))
        yield "" if key is None else row[key], content, labels


def _objects(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The objects of a ``.json`` file, each with its place."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}, line {error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"{path.name}: brackets nested too deep to be read") from error
    for number, value in enumerate(whole if isinstance(whole, list) else [whole], 1):
        yield f"{path.name}, object {number}", value


def _texts(path: Path, text: str) -> Iterator[Read]:
    """The texts of a ``.json`` file."""
    return _with_texts(_objects(path, text))


def _text_lines(path: Path, text: str) -> Iterator[Read]:
    """The texts of a JSON Lines file."""
    return _with_texts(json_lines(path))


def _with_texts(objects: Iterator[tuple[str, Any]]) -> Iterator[Read]:
    for where, value in objects:
        if isinstance(value, ValueError):
            yield "", value, None
        elif not isinstance(value, dict) or not isinstance(value.get("text"), str):
            name = _id(value) if isinstance(value, dict) else ""
            yield name, ValueError(f'{where}: expected {{"text": "…"}}'), None
        elif _SURROGATE.search(value["text"]):
            fault = ValueError(f"{where}: half of a surrogate pair, which no UTF-8 file can hold")
            yield _id(value), fault, None
        else:
            yield _id(value), value["text"], _given_labels(value)


def _given_labels(value: dict[str, Any]) -> tuple[str, ...] | None:
    """The labels of an object, where they are words: scores and other records are none."""
    given = next((value[column] for column in _LABEL_COLUMNS if column in value), None)
    labels: list[Any] = given if isinstance(given, list) else [given]
    if not all(isinstance(label, str) for label in labels):
        return None
    return _labels(labels)


def _labels(labels: Sequence[str]) -> tuple[str, ...]:
    stripped = dict.fromkeys(label.strip() for label in labels)
    return tuple(label for label in stripped if label not in ("", _NO_LABEL))


def _id(value: dict[str, Any]) -> str:
    return next((str(value[key]) for key in _ID_COLUMNS if value.get(key) is not None), "")


# What yields the ids and texts of a file, given its path and content.
_READERS: dict[str, Callable[[Path, str], Iterator[Read]]] = {
    ".txt": _lines,
    ".csv": partial(_table, comma=True),
    ".tsv": partial(_table, comma=False),
    ".jsonl": _text_lines,
    ".json": _texts,
}


def _with_ids(read: Sequence[tuple[str, str, tuple[str, ...] | None]]) -> list[Document]:
    used: set[str] = set()
    documents = []
    for number, (given, text, labels) in enumerate(read, 1):
        base = given.strip() or str(number)
        name, again = base, 1
        while name in used:
            again += 1
            name = f"{base}-{again}"
        used.add(name)
        documents.append(Document(name, text, labels))
    return documents
