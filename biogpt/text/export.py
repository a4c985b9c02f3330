"""Results as files: JSON, JSON Lines, CSV, BRAT stand-off, CoNLL, PubTator.

Offsets are Unicode characters of the text as given, which is what Python, BRAT and PubTator count.
"""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from biogpt.text.documents import Document
from biogpt.text.results import Classification, Entity, SentenceLabel
from biogpt.text.sentences import sentence_spans

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet may run (OWASP, "CSV Injection")
_UNSAFE_NAME = re.compile(r"[^\w.-]+")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_BREAKS = r"\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029"  # what some reader takes for the end of a line or a cell
_TOKEN = re.compile(r"\w+|[^\w\s]")
_LINE_BREAK = re.compile(r"\s*[\r\n]+\s*")
_SCORE_DIGITS = 6

Row = dict[str, Any]


def entities_as(kind: str, documents: Sequence[Document], entities: Sequence[Sequence[Entity]]) -> bytes:
    """The entities of some documents as the content of a file.

    Args:
        kind: one of ``ENTITY_FORMATS``. BRAT is a ``.zip`` of a ``.txt`` and an ``.ann`` for each document.
        entities: of each document.

    Raises:
        ValueError: the format is unknown, or the numbers of documents and results differ.
    """
    return _written(ENTITY_FORMATS, kind, documents, entities)


def classes_as(kind: str, documents: Sequence[Document], classifications: Sequence[Classification]) -> bytes:
    """The label scores of some documents as the content of a file; ``kind`` is one of ``CLASS_FORMATS``."""
    return _written(CLASS_FORMATS, kind, documents, classifications)


def sentences_as(
    kind: str, documents: Sequence[Document], sentences: Sequence[Sequence[SentenceLabel]]
) -> bytes:
    """The labels of some documents' sentences as a file's content; ``kind`` is one of ``CLASS_FORMATS``."""
    return _written(SENTENCE_FORMATS, kind, documents, sentences)


def table_as_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Any table as a CSV file's content."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([_guarded(cell) for cell in row] for row in rows)
    return _utf8(file.getvalue())


def suffix_of(kind: str) -> str:
    """What a file of a format is called, such as ``.csv``."""
    return {"brat": ".brat.zip", "pubtator": ".pubtator.txt"}.get(kind, f".{kind}")


def _written(
    formats: dict[str, Callable[[Any, Any], str | bytes]],
    kind: str,
    documents: Sequence[Document],
    results: Sequence[Any],
) -> bytes:
    if kind not in formats:
        raise ValueError(f"format is {kind!r}; expected one of {', '.join(formats)}")
    if len(documents) != len(results):
        raise ValueError(f"{len(results)} results were given for {len(documents)} documents")
    content = formats[kind](documents, results)
    return content if isinstance(content, bytes) else _utf8(content)


def _utf8(text: str) -> bytes:
    """UTF-8; half of a surrogate pair, which has none, becomes one question mark, so offsets hold."""
    return text.encode("utf-8", errors="replace")


def _entity_rows(document: Document, entities: Sequence[Entity]) -> list[Row]:
    return [
        {"text": e.text, "label": e.label, "start": e.start, "end": e.end, "score": _rounded(e.score)}
        for e in entities
    ]


def _sentence_rows(document: Document, sentences: Sequence[SentenceLabel]) -> list[Row]:
    return [
        {
            "text": document.text[s.start : s.end],
            "label": s.label,
            "start": s.start,
            "end": s.end,
            "score": _rounded(s.score),
        }
        for s in sentences
    ]


def _class_rows(document: Document, result: Classification) -> list[Row]:
    return [{"label": s.label, "score": _rounded(s.score)} for s in result.scores]


def _rounded(score: float) -> float:
    return round(score, _SCORE_DIGITS)


def _objects(
    name: str, rows_of: Callable[[Document, Any], list[Row]], documents: Sequence[Document], results: Any
) -> Iterable[Row]:
    for document, result in zip(documents, results, strict=True):
        row: Row = {"id": document.id, "text": document.text, name: rows_of(document, result)}
        if isinstance(result, Classification) and result.cut:
            row["tokens_not_read"] = result.cut
        yield row


def _formats(
    name: str, rows_of: Callable[[Document, Any], list[Row]]
) -> dict[str, Callable[[Any, Any], str | bytes]]:
    """The formats that all kinds of results share."""

    def as_json(documents: Sequence[Document], results: Any) -> str:
        return (
            json.dumps(list(_objects(name, rows_of, documents, results)), ensure_ascii=False, indent=2) + "\n"
        )

    def as_jsonl(documents: Sequence[Document], results: Any) -> str:
        rows = _objects(name, rows_of, documents, results)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def as_csv(documents: Sequence[Document], results: Any) -> str:
        columns = ["label", "score"] if name == "labels" else ["text", "label", "start", "end", "score"]
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, ["id", *columns])
        writer.writeheader()
        for document, result in zip(documents, results, strict=True):
            for row in rows_of(document, result):
                cells = {"id": document.id} | row
                writer.writerow({key: _guarded(value) for key, value in cells.items()})
        return file.getvalue()

    return {"json": as_json, "jsonl": as_jsonl, "csv": as_csv}


def _guarded(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _as_brat(documents: Sequence[Document], entities: Sequence[Sequence[Entity]]) -> bytes:
    """A .zip of ``name.txt`` and ``name.ann`` (https://brat.nlplab.org/standoff.html)."""
    files = {}
    for name, document, found in zip(_file_names(documents), documents, entities, strict=True):
        lines = [f"T{number}\t{_brat(entity)}\n" for number, entity in enumerate(found, 1)]
        files[f"{name}.txt"], files[f"{name}.ann"] = _utf8(document.text), _utf8("".join(lines))
    return zipped(files)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A .zip of files by their names; the same files give the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # which has no time of its own
    return file.getvalue()


def _brat(entity: Entity) -> str:
    """``type start end<tab>text``; an entity that runs over a line break is given in two parts or more."""
    parts = []
    start = entity.start
    for gap in _LINE_BREAK.finditer(entity.text):
        parts.append((start, entity.start + gap.start()))
        start = entity.start + gap.end()
    parts.append((start, entity.end))
    spans = ";".join(f"{begin} {end}" for begin, end in parts)
    label = re.sub(r"[^0-9A-Za-z_-]", "_", entity.label)
    return f"{label} {spans}\t{re.sub(f'[{_BREAKS}]', ' ', _LINE_BREAK.sub(' ', entity.text))}"


def _file_names(documents: Sequence[Document]) -> Iterable[str]:
    """A name for each document that any file system takes, all different, also where case does not count."""
    used: set[str] = set()
    for number, document in enumerate(documents, 1):
        base = _UNSAFE_NAME.sub("_", document.id).strip("._")[:80] or str(number)
        if _RESERVED.fullmatch(base):
            base = f"_{base}"
        name, again = base, 1
        while name.lower() in used:
            again += 1
            name = f"{base}-{again}"
        used.add(name.lower())
        yield name


def _as_pubtator(documents: Sequence[Document], entities: Sequence[Sequence[Entity]]) -> str:
    """``id|t|`` holds the first sentence, ``id|a|`` the rest: readers join them by one space.

    Line breaks and tabs, which the format cannot hold, become spaces one by one, so offsets stay right.
    """
    blocks = []
    for document, found in zip(documents, entities, strict=True):
        key = re.sub(r"[|\s]", "_", document.id)
        text = re.sub(f"[{_BREAKS}]", " ", document.text)
        title, abstract = _title(text)
        lines = [f"{key}|t|{title}", f"{key}|a|{abstract}"]
        lines += [f"{key}\t{e.start}\t{e.end}\t{text[e.start : e.end]}\t{e.label}" for e in found]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _as_conll(documents: Sequence[Document], entities: Sequence[Sequence[Entity]]) -> str:
    """A token, a tab and its BIO tag on each line; an empty line after each sentence.

    Tokens are words and single marks, cut where an entity begins or ends. A sentence goes on over the end of
    one that an entity runs across.
    """
    lines: list[str] = []
    for document, found in zip(documents, entities, strict=True):
        rest = list(found)
        for start, end in sentence_spans(document.text):
            if lines and lines[-1] and not (rest and rest[0].start < start):
                lines.append("")
            within = [entity for entity in rest if entity.start < end]
            lines += _conll(document.text, start, end, within)
            rest = [entity for entity in rest if entity.end > end]
        lines += [""] if lines and lines[-1] else []
    return "\n".join(lines) + "\n"


def _conll(text: str, start: int, end: int, entities: Sequence[Entity]) -> Iterable[str]:
    edges = sorted({start, end, *(edge for e in entities for edge in (e.start, e.end) if start < edge < end)})
    for begin, stop in pairwise(edges):
        entity = next((e for e in entities if e.start <= begin < e.end), None)
        kind = re.sub(r"\s", "_", entity.label) if entity else ""
        for token in _TOKEN.finditer(text, begin, stop):
            first = entity is not None and not text[entity.start : token.start()].strip()
            tag = f"{'B' if first else 'I'}-{kind}" if entity else "O"
            yield f"{token[0]}\t{tag}"


def _title(text: str) -> tuple[str, str]:
    """The text up to the end of its first sentence, and the rest after one space."""
    end = re.search(r"[.?!](?= \S)", text)
    if end is None:
        return text, ""
    return text[: end.end()], text[end.end() + 1 :]


# The rows of JSON Lines, from documents and the results of each.
entity_objects = partial(_objects, "entities", _entity_rows)
class_objects = partial(_objects, "labels", _class_rows)
sentence_objects = partial(_objects, "sentences", _sentence_rows)
ENTITY_FORMATS = {
    **_formats("entities", _entity_rows),
    "brat": _as_brat,
    "conll": _as_conll,
    "pubtator": _as_pubtator,
}
CLASS_FORMATS = _formats("labels", _class_rows)
SENTENCE_FORMATS = _formats("sentences", _sentence_rows)
