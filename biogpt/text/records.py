"""Records of bibliographies: MEDLINE, RIS, Web of Science, EndNote and PubMed's XML, each a title and an
abstract.

They are known by their content, whatever the file is called. What else has a structure is refused by name:
read a line at a time, ``PMID- 90000001`` would be a text.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from biogpt.text.files import LINE_END
from biogpt.text.plain import is_blank

RECORD_SUFFIXES = (".nbib", ".medline", ".ris", ".ciw", ".enw", ".xml")
_HEAD = 4000  # characters in which a format shows
Record = tuple[str, str]  # id, which may be empty, and text


class _Tagged(NamedTuple):
    """A format of lines that begin with the name of a field; other lines go on with the field before.

    Attributes:
        first: how the first line begins.
        begins: the line that a record begins with, which one of the first lines must be.
        field: group 1 the name of a field, group 2 its content.
        title, abstract, id: the fields that hold them, the better ones first.
    """

    first: re.Pattern[str]
    begins: re.Pattern[str]
    field: re.Pattern[str]
    title: Sequence[str]
    abstract: Sequence[str]
    id: Sequence[str]


_TAGGED = (
    _Tagged(  # MEDLINE, as PubMed saves it
        re.compile(r"(?=.{4}-)[A-Z][A-Z0-9]{1,3} *- "),
        re.compile(r"PMID ?- ?\d"),
        re.compile(r"(?=.{4}-)([A-Z][A-Z0-9]{1,3}) *- ?(.*)"),
        ("TI", "BTI"),
        ("AB",),
        ("PMID",),
    ),
    _Tagged(  # RIS
        re.compile(""),
        re.compile(r"TY  - ?[A-Z]"),
        re.compile(r"([A-Z][A-Z0-9])  - ?(.*)"),
        ("TI", "T1", "BT", "CT"),
        ("AB", "N2"),
        ("AN", "ID"),
    ),
    _Tagged(  # Web of Science
        re.compile(r"FN |VR 1|PT [A-Z]$"),
        re.compile(r"PT [A-Z]$"),
        re.compile(r"([A-Z][A-Z0-9])(?: (.*)|$)"),
        ("TI",),
        ("AB",),
        ("PM", "UT"),
    ),
    _Tagged(  # EndNote
        re.compile("%0 "),
        re.compile("%0 "),
        re.compile(r"%(\S) (.*)"),
        ("T",),
        ("X",),
        ("M",),
    ),
)
_XML = re.compile(r"<(?:\?xml|!DOCTYPE|html|Pubmed|MedlineCitation)", re.IGNORECASE)
_BIBTEX = re.compile(r"@\w+\s*[{(]")
_NUMBERED = re.compile(r"\d+\. \S")
_PMID_BELOW = re.compile(r"PMID: \d+")
_TAGGED_TOKEN = re.compile(r"[^ \t]+(?:[ \t]+[^ \t]+){0,8}?[ \t]+(?:O|[BILUSE]-\S+)")


def records(path: Path, text: str) -> Iterator[Record] | None:
    """The records of a bibliography; None where the content is none.

    Args:
        path: names the file in messages.
        text: its content.

    Raises:
        ValueError: the records are malformed, or of a format that is refused.
    """
    lines = [line for line in LINE_END.split(text[:_HEAD]) if line.strip()]
    for tagged in _TAGGED:
        if tagged.first.match(lines[0]) and any(map(tagged.begins.match, lines[:40])):
            return _tagged_records(text, tagged)
    if path.suffix.lower() == ".xml" or _XML.match(lines[0].lstrip()):
        return _pubmed_records(path.name, text)
    if _BIBTEX.match(lines[0]):
        raise ValueError(
            f"{path.name} is BibTeX, which is not read; export the records as RIS (.ris) or MEDLINE (.nbib)"
        )
    if _NUMBERED.match(lines[0]) and _PMID_BELOW.search(text):
        raise ValueError(
            f"{path.name} is PubMed's Abstract format, which is not read; save the records in the format "
            "PubMed (.nbib)"
        )
    if len(lines) > 1 and all(map(_TAGGED_TOKEN.fullmatch, lines[:20])):
        raise ValueError(
            f"{path.name} is CoNLL, a token and its tag a line, which is no text; it is read by evaluate ner "
            "and train ner"
        )
    if path.suffix.lower() in RECORD_SUFFIXES:
        raise ValueError(
            f"{path.name} begins with {lines[0][:40]!r}, which no record of MEDLINE, RIS, Web of Science or "
            "EndNote does; save the records anew, or name the file by what it is"
        )
    return None


def _tagged_records(text: str, tagged: _Tagged) -> Iterator[Record]:
    fields: dict[str, list[str]] = defaultdict(list)
    name = ""
    begun = False
    for line in LINE_END.split(text):
        found = tagged.field.match(line)
        if found and tagged.begins.match(line):
            if begun:
                yield from _record(fields, tagged)
                fields = defaultdict(list)
            begun = True
        if found:
            name = found[1]
            fields[name].append(found[2] or "")
        elif line.strip() and name:
            fields[name][-1] += " " + line
    yield from _record(fields, tagged)


def _record(fields: dict[str, list[str]], tagged: _Tagged) -> Iterator[Record]:
    """The record of some fields; none without title and abstract."""
    title, abstract, name = (
        next((content for field in wanted for content in fields[field] if not is_blank(content)), "")
        for wanted in (tagged.title, tagged.abstract, tagged.id)
    )
    yield from _titled(name, title, abstract)


def _titled(name: str, title: str, abstract: str) -> Iterator[Record]:
    text = " ".join([*title.split(), *abstract.split()])
    if not is_blank(text):
        yield name.strip(), text


_ARTICLES = ("PubmedArticle", "PubmedBookArticle", "MedlineCitation")
_PARTS = {"PMID": "id", "ArticleTitle": "title", "BookTitle": "book", "AbstractText": "abstract"}
_SKIPPED = ("OtherAbstract", "CommentsCorrectionsList", "ReferenceList")


class _Articles:
    """What expat calls while it reads the XML of PubMed.

    Attributes:
        records: of the articles that have ended.
        count: of those, with text or without.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.count = 0
        self._open: list[str] = []
        self._article = 0  # how deep the present one lies; 0 outside
        self._skipped = 0  # how deep what is skipped lies
        self._part, self._depth = "", 0  # where text goes, and how deep that lies
        self._found: dict[str, str] = {}

    def start(self, element: str, attributes: dict[str, str]) -> None:
        self._open.append(element)
        depth = len(self._open)
        if not self._article:
            if element in _ARTICLES:
                self._article, self._found = depth, {}
        elif element in _SKIPPED and not self._skipped:
            self._skipped = depth
        elif element in _PARTS and not self._part and not self._skipped:
            part = _PARTS[element]
            if part == "abstract":
                label = attributes.get("Label", "")
                self._found[part] = f"{self._found.get(part, '')} {label + ': ' if label else ''}"
            elif part in self._found:
                return
            self._part, self._depth = part, depth
            self._found.setdefault(part, "")

    def end(self, element: str) -> None:
        depth = len(self._open)
        self._open.pop()
        if depth == self._depth:
            self._part, self._depth = "", 0
        if depth == self._skipped:
            self._skipped = 0
        if depth == self._article:
            found = self._found
            title = found.get("title") or found.get("book", "")
            self.records += _titled(found.get("id", ""), title, found.get("abstract", ""))
            self.count += 1
            self._article = 0

    def text(self, content: str) -> None:
        if self._part:
            self._found[self._part] += content


def _pubmed_records(name: str, text: str) -> Iterator[Record]:
    """The articles of PubMed's XML; a file that declares entities is refused, since they may grow without
    end."""

    def refuse(entity: str, *_: object) -> None:
        raise ValueError(
            f"{name}, line {parser.CurrentLineNumber}: the entity {entity} is not what PubMed writes; save "
            "the records anew as PubMed (.nbib) or XML"
        )

    articles = _Articles()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = articles.start
    parser.EndElementHandler = articles.end
    parser.CharacterDataHandler = articles.text
    parser.EntityDeclHandler = refuse
    parser.SkippedEntityHandler = refuse
    try:
        parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as error:
        reason = expat.errors.messages[error.code]
        raise ValueError(
            f"{name}, line {error.lineno}: no well-formed XML ({reason}); save the records anew"
        ) from error
    if not articles.count:
        raise ValueError(
            f"{name} is XML or HTML, but holds no PubmedArticle; expected records as PubMed saves them, or "
            "plain text"
        )
    yield from articles.records
