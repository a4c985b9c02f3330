"""Labelled text for fine-tuning: entities in CoNLL or JSON, labels of texts, roles of sentences."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biogpt.documents import read_text

_TAG = re.compile(r"([BILUSEM])-(.+)|O")
_NO_SPACE_BEFORE = frozenset(".,;:)]}%?!'\u2019")
_NO_SPACE_AFTER = frozenset("([{")
_TIGHT = frozenset("-/'\u2019")  # written without spaces on either side


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` of a text, and what they are."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class TaggedText:
    """A text and its entities, sorted and apart."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class TaggedSentence:
    """The tokens of a sentence and their BIO tags."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]

    def as_text(self, natural: bool = False) -> TaggedText:
        """The sentence as text.

        Args:
            natural: leave out the spaces that prose does not have, such as those around a hyphen; else there is
                one space between tokens.
        """
        text = ""
        places = []
        for index, token in enumerate(self.tokens):
            if index and not (natural and _joined(self.tokens[index - 1], token)):
                text += " "
            places.append((len(text), len(text) + len(token)))
            text += token
        spans = (Span(places[a][0], places[b - 1][1], kind) for a, b, kind in tag_spans(self.tags))
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
    """Entities of BIO tags as conlleval reads them: (first, after the last, type).

    An ``I-`` that does not go on with its type begins an entity.
    """
    spans: list[tuple[int, int, str]] = []
    before = ""
    for index, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "B" or (prefix == "I" and before != kind):
            spans.append((index, index + 1, kind))
        elif prefix == "I":
            spans[-1] = (spans[-1][0], index + 1, kind)
        before = kind
    return spans


def read_conll(path: str | Path) -> list[TaggedSentence]:
    """Sentences of a CoNLL file: a token, white space, …, a tag on each line; an empty line between sentences.

    IOB1, IOB2 (BIO), IOBES and BILOU are read, and become BIO.

    Raises:
        ValueError: the file is empty, not UTF-8, or a line has no tag; the message names the line.
    """
    name = Path(path).name
    sentences: list[TaggedSentence] = []
    tokens: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*read_text(path).split("\n"), ""], 1):
        columns = line.split()
        if columns and columns[0] != "-DOCSTART-":
            tag = _TAG.fullmatch(columns[-1])
            if len(columns) < 2 or tag is None:
                raise ValueError(
                    f"{name}, line {number}: {line.strip()[:60]!r} has no tag; expected a token and O, B-type or I-type"
                )
            tokens.append(columns[0])
            tags.append({"S": "B", "U": "B", "B": "B"}.get(tag[1], "I") + f"-{tag[2]}" if tag[1] else "O")
        elif tokens:
            sentences.append(TaggedSentence(tuple(tokens), tuple(_as_bio(tags))))
            tokens, tags = [], []
    return sentences


def _as_bio(tags: Sequence[str]) -> Iterator[str]:
    begins = {first for first, _, _ in tag_spans(tags)}
    for index, tag in enumerate(tags):
        yield "B" + tag[1:] if index in begins else tag


def read_tagged_jsonl(path: str | Path) -> list[TaggedText]:
    """Texts of ``{"text": …, "entities": [{"start", "end", "label"}, …]}`` lines.

    Raises:
        ValueError: a line is malformed, or an entity lies outside its text or overlaps another.
    """
    texts = []
    for where, value in _json_lines(path):
        text = value.get("text")
        try:
            spans = sorted((int(e["start"]), int(e["end"]), str(e["label"])) for e in value["entities"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{where}: expected "entities": [{{"start", "end", "label"}}, …]') from error
        end = 0
        for start, stop, label in spans:
            if not isinstance(text, str) or not end <= start < stop <= len(text):
                raise ValueError(
                    f"{where}: {label} at {start} to {stop} overlaps another or is not inside the text"
                )
            end = stop
        texts.append(TaggedText(str(text), tuple(Span(*span) for span in spans)))
    return texts


def read_labelled(
    path: str | Path,
    text_column: str = "-1",
    label_column: str = "-2",
    separator: str = "|",
    none_label: str = "none",
) -> list[LabelledText]:
    """Texts and labels of a TSV file, or of JSON Lines with ``text`` and ``label`` or ``labels``.

    Args:
        text_column, label_column: of a TSV: a name in the first line, or a number; from 1, or -1 for the last.
        separator: between the labels of one text.
        none_label: stands for no label.

    Raises:
        ValueError: a line lacks a column, or the text is empty; the message names the line.
    """
    if Path(path).suffix == ".jsonl":
        return [_labelled(where, value, none_label) for where, value in _json_lines(path)]
    lines = [line.rstrip("\r") for line in read_text(path).split("\n")]
    header = lines[0].split("\t")
    named = {column for column in (text_column, label_column) if not column.lstrip("-").isdigit()}
    if named - set(header):
        raise ValueError(
            f"{Path(path).name} has the columns {', '.join(header)}; expected {', '.join(sorted(named))}"
        )
    at = [
        header.index(column) if column in named else int(column) - (int(column) > 0)
        for column in (text_column, label_column)
    ]
    texts = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and named):
            continue
        try:
            text, labels = (line.split("\t")[column] for column in at)
        except IndexError:
            text = labels = ""
        if not text.strip() or not labels.strip():
            raise ValueError(
                f"{Path(path).name}, line {number}: {line[:60]!r} lacks a text or a label in columns "
                f"{text_column} and {label_column}"
            )
        chosen = tuple(label for label in labels.split(separator) if label != none_label)
        texts.append(LabelledText(text, chosen))
    return texts


def _labelled(where: str, value: dict[str, Any], none_label: str) -> LabelledText:
    labels = value.get("labels", value.get("label"))
    labels = [labels] if isinstance(labels, str) else labels
    text = value.get("text")
    if not isinstance(text, str) or not text.strip() or not isinstance(labels, list):
        raise ValueError(f'{where}: expected {{"text": "…", "label": "…"}} or "labels": […]')
    return LabelledText(text, tuple(str(label) for label in labels if label != none_label))


def read_sections(path: str | Path) -> list[LabelledSentences]:
    """Abstracts of ``###id`` lines, each followed by ``LABEL<tab>sentence`` lines.

    Raises:
        ValueError: a line is neither; the message names it.
    """
    abstracts: list[LabelledSentences] = []
    found: list[tuple[str, str]] = []
    for number, line in enumerate([*read_text(path).split("\n"), "###"], 1):
        line = line.strip()
        if line.startswith("###"):
            if found:
                labels, sentences = zip(*found, strict=True)
                abstracts.append(LabelledSentences(sentences, labels))
            found = []
        elif line:
            label, tab, sentence = line.partition("\t")
            if not tab or not sentence.strip():
                raise ValueError(
                    f"{Path(path).name}, line {number}: {line[:60]!r}; expected ###id or LABEL<tab>sentence"
                )
            found.append((label, sentence.strip()))
    return abstracts


def _json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{Path(path).name}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object")
        yield where, value


def _joined(left: str, right: str) -> bool:
    """Whether prose has no space between two tokens."""
    return right[0] in _NO_SPACE_BEFORE or left[-1] in _NO_SPACE_AFTER or right in _TIGHT or left in _TIGHT
