"""Sentences of a text by rule, with exact offsets.

Two questions, one after the other: which line breaks end a sentence (an empty line, a heading, an item of a
list, but not where text was merely wrapped), and which full stops do.
"""

import re
from collections.abc import Iterator, Sequence

from biogpt.text.results import Look, go_on


def _any_of(words: str) -> str:
    """A pattern for one of some words, each a pattern itself, with white space between them."""
    return "(?:" + "|".join(words.split()) + ")"


def _abbreviation(words: str) -> re.Pattern[str]:
    """One of some words at the end of a text, before its full stop."""
    return re.compile(r"""(?:^|[\s(\[{"'“‘/–-])""" + _any_of(words) + r"\.$", re.IGNORECASE)


_OPEN = r"""[(\["'“‘«]*"""
_CITATION = (
    r"[¹²³⁰⁴-⁹]+|\(\d[\d,–\- ]{0,20}\)|\[\d[\d,–\- ]{0,20}\]"
    r"|(?<=[^\W\d]{2}\.)\d{1,3}(?:[,–-]\d{1,3}){0,5}"
)
# A stop, what cites or closes after it ("before.(1)", "before.¹"), white space, and what begins then; or a
# stop with the space lost ("it.RESULTS:"). A run of stops is tried from its beginning only: from each in
# turn, a line of leaders would take for ever.
_STOP = re.compile(
    rf"""(?<![.!?])(?P<stop>[.!?]+)(?:{_CITATION})?(?P<closing>[)\]"'”’»]*)"""
    rf"""(?=\s+(?P<next>{_OPEN}\S))"""
    r"""|(?<=[^\W\d]{2})(?P<glued>[.!?])(?=[A-Z][A-Z /&]{3,30}:|[A-Z][a-z]+\s)"""
)
_LABEL = re.compile(r"[A-Z][A-Z /&]{3,30}:")
_LOOK_BACK = 40  # characters: longer than any abbreviation with the word before it

_NEVER_ENDS = _abbreviation(
    r"e\.g i\.e c\.f cf viz vs v ca dr drs prof mr mrs ms messrs st approx var subsp nov cv"
)
_ENDS_BEFORE_OPENING = _abbreviation(
    r"""
    al fig figs eq eqs ref refs tab no nos vol pp resp incl excl dept univ jan feb mar apr jun jul aug
    sept? oct dec ph\.d m\.d d\.c
    """
)
_ENDS_BEFORE_CAPITAL = _abbreviation(
    r"""
    i\.v i\.p i\.m s\.c p\.o i\.c\.v i\.d i\.n i\.t b\.i\.d t\.i\.d q\.d q\.i\.d a\.m p\.m u\.s u\.k etc
    min max sec wt hr hrs h inc ltd co corp sp spp
    """
)
_OPENING_WORDS = """
    The These This Those That We In It Its Our A An All At As After Although Both However Here Patients
    Results Methods There They Their To When With Of On For From Thus Moreover Furthermore Therefore Hence
    Additionally Finally Conversely Conclusions? Background Objectives? Most Some Many Since While Whereas
    Because Such If By During Among Between Using But And Also Only Each Every No None Not He She His Her
    One Two Three Four Five Six Several Similarly Interestingly Importantly Recently Nevertheless
    Nonetheless Indeed Then Overall Together Subsequently Consequently Further Yet So Despite Given Other
    Another What Where Which Who How Why
    """
_OPENING = re.compile(rf"\s*{_OPEN}{_any_of(_OPENING_WORDS)}\b")
_CAPITALISED = re.compile(rf"\s*{_OPEN}[A-Z][a-z]+")

_INITIAL = re.compile(r"(?:^|(?P<before>\S+)\s+|[\s(\[.])[A-Z]\.$")
# What a single capital may be the name of: "kinase A.", "Protein A."
_LETTERED_WORDS = r"""
    \S*ase \S*gen \S*lin \S*sin \S*globulin \S*toxin \S*virus \S*hepatitis vitamins? protein factor
    coenzyme group type class grade panel arm phase stage level region domain chain subunit receptor
    complex influenza h(?:a|ae)mophilia schedule method model site strain score cohort team box appendix
    figure table part step point
    """
_LETTERED = re.compile(_any_of(_LETTERED_WORDS) + "$", re.IGNORECASE)
# Words after which an initial is of a species or a person: "Growth of E. coli", "by A. Smith".
_LEADS_ON_WORDS = """
    a an and as at by for from in into of on or per than the to with de van von et dr prof mr mrs ms
    """
_LEADS_ON = re.compile(_any_of(_LEADS_ON_WORDS))
# Names that begin in lower case: p53, mTOR, miR-21, eGFR, c-Myc, n-3, α-Synuclein, von Willebrand.
_LOWER_NAME = re.compile(
    rf"\s*{_OPEN}(?:[^\W\d_]\w*[A-Z\d]|[^\W\d_]{{1,5}}[-‐–]\w|[^\W\d_A-Za-z]"
    r"|(?:von|van|de|den|der|du|da|di|del|della|la|le|ten|ter|al|el)\s+(?:\w+\s+)?[A-Z])"
)

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_WIDE = 40  # characters: text that is wrapped has lines no shorter
_ITEM = re.compile(r"\s*(?:[-•*·–▪]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+\S")
_HEADINGS = r"""
    abstract background introduction objectives? aims? purpose hypothesis rationale discussion
    conclusions? (?:materials?|patients?|subjects?|animals?)\sand\smethods
    methods?(?:\sand\s(?:materials|results))? methodology (?:study\s)?design setting participants patients
    interventions? main\soutcome\smeasures? measurements? results?(?:\sand\sdiscussion)?
    (?:main\s)?findings interpretation summary significance funding trial\sregistration key\s?words
    references acknowledge?ments?
    """
_HEADING = re.compile(rf"\s*(?:\d+(?:\.\d+)*\.?\s+)?{_any_of(_HEADINGS)}\s*:?\s*", re.IGNORECASE)
_CAPITALS = re.compile(r"\s*[A-Z][A-Z &/,-]{3,}:?\s*")
_LABELLED = re.compile(r"\s*[A-Z][A-Z /&]{3,30}:\s")
# What stands at the end of a line and cannot be the end of a sentence.
_UNFINISHED_WORDS = r"""
    a an the of in on at by to for from with and or nor but as than that which who whose into between
    among during after before under over per via versus vs\.? both either is are was were be been being
    has have had not its their our this these those we such using through without within against e\.g\.
    i\.e\. et
    """
_UNFINISHED = re.compile(rf"(?:[,;(\[/–—‐-]|(?:^|\s){_any_of(_UNFINISHED_WORDS)})\s*$", re.IGNORECASE)
_FINISHED = re.compile(rf"""[.!?:](?:{_CITATION})?[)\]"'”’»]*\s*$""")


def sentence_spans(text: str, look: Look = go_on) -> list[tuple[int, int]]:
    """The sentences of a text: (start, end) in characters, white space around them left out.

    A sentence ends at a full stop, question or exclamation mark before white space and a capital, a digit, an
    opening bracket or a name such as p53, unless the stop belongs to an abbreviation or an initial ("et al.",
    "e.g.", "E. coli") that what follows goes on from. A line break ends it after a heading, before an item of
    a list, at an empty line, and wherever the text does not look wrapped.

    Args:
        look: called after each of them.
    """
    spans: list[tuple[int, int]] = []
    for start, end in _passages(text):
        begin = start
        look()
        for match in _STOP.finditer(text, start, end):
            look()
            if _ends(text, match, end):
                _append(spans, text, begin, match.end())
                begin = match.end()
        _append(spans, text, begin, end)
    return spans


def _passages(text: str) -> Iterator[tuple[int, int]]:
    """Stretches of a text between the line breaks that end a sentence."""
    lines: list[tuple[int, int]] = []
    start = 0
    for match in _LINE_BREAK.finditer(text):
        lines.append((start, match.start()))
        start = match.end()
    lines.append((start, len(text)))
    paragraph: list[tuple[int, int]] = []
    for begin, end in lines:
        if text[begin:end].strip():
            paragraph.append((begin, end))
        elif paragraph:
            yield from _of_paragraph(text, paragraph)
            paragraph = []
    if paragraph:
        yield from _of_paragraph(text, paragraph)


def _of_paragraph(text: str, lines: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The passages of lines without an empty one between them."""
    contents = [text[start:end].strip() for start, end in lines]
    width = max(map(len, contents))
    finished = any(_FINISHED.search(content[-20:]) for content in contents)
    begin = lines[0][0]
    for number in range(1, len(lines)):
        before, after = contents[number - 1], contents[number]
        # Where a paragraph has whole sentences, a line without an end that is not its title goes on, too.
        if not _goes_on(before, after, width, finished and number > 1):
            yield begin, lines[number - 1][1]
            begin = lines[number][0]
    yield begin, lines[-1][1]


def _goes_on(before: str, after: str, width: int, in_prose: bool) -> bool:
    """Whether a line break was made by wrapping only.

    Args:
        before, after: the lines on both sides of it.
        width: of the longest line around.
        in_prose: whether a line that has no end is likelier wrapped than a title.
    """
    if any(map(_is_heading, (before, after))) or _LABELLED.match(after) or _ITEM.match(after):
        return False
    if _FINISHED.search(before[-20:]):
        return before.endswith(".") and not _full_stop_ends(before[-_LOOK_BACK:], after)
    if _UNFINISHED.search(before[-20:]) or not after[0].isupper():
        return True
    wrapped = width >= _WIDE and len(before) + 1 + len(after.split(maxsplit=1)[0]) > width
    return wrapped or in_prose


def _is_heading(line: str) -> bool:
    return bool(_HEADING.fullmatch(line) or _CAPITALS.fullmatch(line))


def _ends(text: str, match: re.Match[str], end: int) -> bool:
    """Whether a stop ends a sentence.

    Args:
        end: of the passage.
    """
    following = text[match.end() : min(end, match.end() + _LOOK_BACK)]
    if match["glued"] is not None:
        return bool(_LABEL.match(following) or _OPENING.match(following))
    first = match["next"]
    if first[-1].islower() and len(first) == 1 and not _LOWER_NAME.match(following):
        return False
    if match["stop"] != "." or match["closing"]:
        return True
    return _full_stop_ends(text[max(0, match.start() - _LOOK_BACK) : match.start() + 1], following)


def _full_stop_ends(before: str, following: str) -> bool:
    """Whether a single full stop ends a sentence, by the words on both sides.

    Args:
        before: the text up to the stop.
        following: the text after it.
    """
    opens = bool(_OPENING.match(following))
    initial = _INITIAL.search(before)
    if initial:
        # "vitamin D. The dose": what follows decides; a species or a name goes on with a single word.
        if opens or following.lstrip()[:1] in tuple("([\"'“‘«"):
            return True
        word = initial["before"] or ""
        common = word.isalpha() and word.islower() and not _LEADS_ON.fullmatch(word)
        lettered = common or bool(_LETTERED.match(word))
        return lettered and not following.lstrip()[:1].islower()
    if _NEVER_ENDS.search(before):
        return False
    if _ENDS_BEFORE_OPENING.search(before):
        return opens
    if _ENDS_BEFORE_CAPITAL.search(before):
        return opens or bool(_CAPITALISED.match(following))
    return True


def _append(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    part = text[start:end]
    stripped = part.strip()
    if stripped:
        begin = start + len(part) - len(part.lstrip())
        spans.append((begin, begin + len(stripped)))
