"""Labelled text for fine-tuning: entities in CoNLL or JSON, labels of texts, roles of sentences."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biogpt.text.documents import TRIMMED, read_table, trimmed
from biogpt.text.files import read_json_lines, read_lines

logger = logging.getLogger(__name__)

_TAG = re.compile(r"([BILUSE])-(.+)|O")
_NUMBER = re.compile(r"\d+(?:[-.]\d+)?", re.ASCII)
_LABEL_COLUMNS = ("label", "labels")
_NO_SPACE_BEFORE = frozenset(".,;:)]}%?!'\u2019")
_NO_SPACE_AFTER = frozenset("([{")
_TIGHT = frozenset("-/")  # written without spaces on either side
_ENDINGS = frozenset(("s", "t", "d", "m", "ll", "re", "ve"))  # of words, after an apostrophe


@dataclass(frozen=True)
class GoldSpan:
    """Characters ``start`` to ``end`` of a text, and what they are."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class TaggedText:
    """A text and its entities, sorted and apart."""

    text: str
    spans: tuple[GoldSpan, ...]


@dataclass(frozen=True)
class TaggedSentence:
    """The tokens of a sentence and their BIO tags."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]

    def as_text(self, natural: bool = False) -> TaggedText:
        """The sentence as text.

        Args:
            natural: leave out the spaces that prose does not have, such as those around a hyphen; else there
                is one space between tokens.
        """
        text = ""
        places = []
        for index, token in enumerate(self.tokens):
            if index and not (natural and _joined(self.tokens, index)):
                text += " "
            places.append((len(text), len(text) + len(token)))
            text += token
        spans = (GoldSpan(places[a][0], places[b - 1][1], kind) for a, b, kind in tag_spans(self.tags))
        return TaggedText(text, tuple(spans))


@dataclass(frozen=True)
class LabelledText:
    """A text and its labels: one, several, or none."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelledSentences:
    """An abstract, sentence by sentence, and the role of each."""

    sentences: tuple[str, ...]
    labels: tuple[str, ...]


def tag_spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Entities of BIO, IOBES or BILOU tags as conlleval reads them: (first, after the last, type).

    A tag that does not go on with an open entity of its type begins one, whatever its prefix.
    """
    spans: list[tuple[int, int, str]] = []
    open_type = ""
    for index, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if kind and kind == open_type and prefix in "IEL":
            spans[-1] = (spans[-1][0], index + 1, kind)
        elif kind:
            spans.append((index, index + 1, kind))
        open_type = kind if prefix in "BI" else ""
    return spans


def read_conll(path: str | Path) -> list[TaggedSentence]:
    """Sentences of a CoNLL file: a token, a tab or spaces, …, a tag on each line; an empty line between
    sentences.

    IOB1, IOB2 (BIO), IOBES and BILOU are read, and become BIO. Where the first column of all lines numbers
    the tokens of a sentence, the second one holds the tokens.

    Raises:
        ValueError: the file is empty or not UTF-8, holds no sentence, or a line has no tag; the message names
            it.
    """
    name = Path(path).name
    sentences: list[list[list[str]]] = [[]]  # columns of each line
    for number, line in enumerate(read_lines(path), 1):
        # Other white space, such as a no-break space, belongs to the token.
        columns = line.rstrip(" \t").split("\t") if "\t" in line else [c for c in line.split(" ") if c]
        if not line.strip() or columns[0] == "-DOCSTART-":
            sentences.append([])
        elif len(columns) < 2 or not columns[0].strip() or not _TAG.fullmatch(columns[-1]):
            raise ValueError(
                f"{name}, line {number}: {line.strip()[:60]!r} has no tag; expected a token and O, B-type "
                "or I-type"
            )
        else:
            sentences[-1].append(columns)
    filled = [sentence for sentence in sentences if sentence]
    if not filled:
        raise ValueError(f"{name} holds no sentence; expected lines of a token and a tag")
    at = _token_column(name, filled)
    return [
        TaggedSentence(
            tuple(columns[at] for columns in sentence), _as_bio([columns[-1] for columns in sentence])
        )
        for sentence in filled
    ]


def _token_column(name: str, sentences: Sequence[Sequence[Sequence[str]]]) -> int:
    """The column of the tokens: the first, or the second where that one only counts."""
    numbers = [[columns[0] for columns in sentence] for sentence in sentences]
    few = min(len(columns) for sentence in sentences for columns in sentence) < 3
    if few or not all(_NUMBER.fullmatch(number) for column in numbers for number in column):
        return 0
    before = 0
    for column in numbers:
        # From 0 or 1 in each sentence, or on through the file.
        counted = [str(first) for first in (0, 1, before + 1) if column[0] == str(first)]
        before = int(counted[0]) + len(column) - 1 if counted else 0
        if not counted or column != [str(int(column[0]) + index) for index in range(len(column))]:
            raise ValueError(
                f"{name} has numbers in its first column that do not count the tokens, such as {column[:4]}; "
                "expected the tokens there, or a number for each and the tokens in the second column"
            )
    return 1


def _as_bio(tags: Sequence[str]) -> tuple[str, ...]:
    bio = ["O"] * len(tags)
    for first, last, kind in tag_spans(tags):
        bio[first:last] = [f"B-{kind}", *[f"I-{kind}"] * (last - first - 1)]
    return tuple(bio)


def read_tagged_jsonl(path: str | Path) -> list[TaggedText]:
    """Texts of ``{"text": …, "entities": [{"start", "end", "label"}, …]}`` lines.

    White space at the edges of an entity is left out, since no word has it.

    Raises:
        ValueError: a line is malformed, or an entity lies outside its text, overlaps another, or is white
            space.
    """
    texts = []
    loose = 0
    for where, value in read_json_lines(path):
        match value:
            case {"text": str(text), "entities": list(entities)}:
                given = sorted((_span(where, entity) for entity in entities), key=lambda span: span.start)
            case _:
                raise ValueError(f'{where}: expected "entities": [{{"start", "end", "label"}}, …]')
        spans: list[GoldSpan] = []
        end = 0
        for span in given:
            if not end <= span.start < span.end <= len(text):
                raise ValueError(
                    f"{where}: {span.label} at {span.start} to {span.end} overlaps another or is not inside "
                    "the text"
                )
            end = span.end
            spans.append(GoldSpan(*trimmed(where, text, span.start, span.end), span.label))
            loose += spans[-1] != span
        texts.append(TaggedText(text, tuple(spans)))
    if loose:
        logger.info("%s: %d %s", Path(path).name, loose, TRIMMED)
    return texts


def _span(where: str, entity: Any) -> GoldSpan:
    match entity:
        case {"start": int(start), "end": int(end), "label": str(label)} if label:
            return GoldSpan(start, end, label)
    raise ValueError(f'{where}: {entity!r}; expected {{"start": number, "end": number, "label": "…"}}')


def read_labelled(
    path: str | Path,
    text_column: str | int = -1,
    label_column: str | int = -2,
    separator: str = "|",
    none_label: str = "none",
) -> list[LabelledText]:
    """Texts and labels of a TSV or CSV file, or of JSON Lines with ``text`` and ``label`` or ``labels``.

    Args:
        text_column, label_column: of a table: a name in the first line, or a number; from 1, or -1 for the
            last. The first line counts as a header if a column is named or one of its cells is ``label`` or
            ``labels``.
        separator: between the labels of one text.
        none_label: stands for no label.

    Raises:
        ValueError: a line lacks a column, a text or a label is empty, or there is no text; the message names
            the line.
    """
    if Path(path).suffix.lower() == ".jsonl":
        return [_labelled(where, value, none_label) for where, value in read_json_lines(path)]
    rows = read_table(path)
    header = rows[0][1]
    chosen = [_column(text_column), _column(label_column)]
    named = {column for column in chosen if isinstance(column, str)}
    if named - set(header):
        raise ValueError(
            f"{Path(path).name} has the columns {', '.join(header)}; expected {', '.join(sorted(named))}"
        )
    if named or any(cell.strip().lower() in _LABEL_COLUMNS for cell in header):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{Path(path).name} holds a header but no text")
    at = [header.index(column) if isinstance(column, str) else column - (column > 0) for column in chosen]
    texts = []
    for where, row in rows:
        if any(not -len(row) <= column < len(row) for column in at):
            raise ValueError(
                f"{where}: {' '.join(row)[:60]!r} lacks a text or a label in columns {text_column} and "
                f"{label_column}"
            )
        text, labels = (row[column] for column in at)
        texts.append(
            _labelled_text(where, text, labels.split(separator) if separator else [labels], none_label)
        )
    return texts


def _column(given: str | int) -> str | int:
    column = int(given) if str(given).removeprefix("-").isdecimal() else given
    if column == 0:
        raise ValueError("there is no column 0; columns count from 1, or from -1 at the end")
    return column


def _labelled(where: str, value: dict[str, Any], none_label: str) -> LabelledText:
    labels = value["labels"] if "labels" in value else [value.get("label")]
    text = value.get("text")
    if (
        not isinstance(text, str)
        or not isinstance(labels, list)
        or not all(isinstance(label, str | int) for label in labels)
    ):
        raise ValueError(f'{where}: expected {{"text": "…", "label": "…"}} or "labels": […]')
    return _labelled_text(where, text, [str(label) for label in labels], none_label)


def _labelled_text(where: str, text: str, labels: Sequence[str], none_label: str) -> LabelledText:
    stripped = dict.fromkeys(label.strip() for label in labels)
    if not text.strip() or "" in stripped:
        raise ValueError(
            f"{where}: a text or a label is empty; where a text has no label, write {none_label!r}"
        )
    return LabelledText(text, tuple(label for label in stripped if label != none_label))


def read_sections(path: str | Path) -> list[LabelledSentences]:
    """Abstracts of ``###id`` lines, each followed by ``LABEL<tab>sentence`` lines.

    Raises:
        ValueError: a line is neither, or a sentence comes before any ``###id``; the message names it.
    """
    abstracts: list[list[tuple[str, str]]] = []
    for number, line in enumerate(read_lines(path), 1):
        line = line.strip()
        if line.startswith("###"):
            abstracts.append([])
        elif line:
            label, _, sentence = line.partition("\t")
            # Without its first ###, a table of texts would be read as one very long abstract.
            if not sentence.strip() or not abstracts:
                raise ValueError(
                    f"{Path(path).name}, line {number}: {line[:60]!r}; expected ###id, then "
                    "LABEL<tab>sentence"
                )
            abstracts[-1].append((label.strip(), sentence.strip()))
    filled = [tuple(zip(*abstract, strict=True)) for abstract in abstracts if abstract]
    if not filled:
        raise ValueError(
            f"{Path(path).name} holds no sentence; expected ###id, then LABEL<tab>sentence lines"
        )
    return [LabelledSentences(sentences, labels) for labels, sentences in filled]


def _joined(tokens: Sequence[str], index: int) -> bool:
    """Whether prose has no space before token ``index``."""
    before, left, right = tokens[index - 2] if index > 1 else "", tokens[index - 1], tokens[index]
    if left[-1] in "'\u2019":
        return right in _ENDINGS
    if (
        left in (".", ",", ":") and right[0].isdigit()
    ):  # 0 . 5, 1 , 000 and 1 : 10, but not after a word or a year
        return before.isdigit() and (left != "," or (len(before) < 4 and len(right) == 3))
    if right[0] == "." and len(right) > 1:
        return False
    if left == "-" and before == "/":  # +/- 3
        return False
    return right[0] in _NO_SPACE_BEFORE or left[-1] in _NO_SPACE_AFTER or right in _TIGHT or left in _TIGHT
