"""Sentences of a text by rule, with exact offsets."""

import re

# What may follow a full stop for the next sentence to begin: a capital, a digit, an opening bracket or quote.
# A run of stops is tried from its beginning only: from each in turn, a line of leaders would take for ever.
_BOUNDARY = re.compile(r"""(?<![.!?])(?P<stop>[.!?]+)[)\]"'”’»]*(?=\s+(?P<next>[(\["'“‘«]*\S))|[\r\n]+""")
_ABBREVIATION = re.compile(
    r"""(?:^|[\s(\[{"'“‘/–-])(?:
        (?:e\.g|i\.e|c\.f|cf|viz|vs|v|ca|approx|resp|incl|excl|al|et|etc|fig|figs|eq|eqs|ref|refs|tab|no|nos|vol|pp|
        sp|spp|subsp|var|str|dr|drs|prof|mr|mrs|ms|st|inc|ltd|co|corp|dept|univ|jan|feb|mar|apr|jun|jul|aug|sept?|oct|
        nov|dec|min|max|wt|s\.c|i\.v|i\.p|i\.m|p\.o|b\.i\.d|t\.i\.d|q\.d|u\.s|u\.k|ph\.d|m\.d|d\.c)
        )\.$""",
    re.IGNORECASE | re.VERBOSE,
)
_INITIAL = re.compile(r"(?:^|[\s(\[.])[A-Z]\.$")
_LOOK_BACK = 12  # characters: longer than any abbreviation


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The sentences of a text: (start, end) in characters, white space around them left out.

    A sentence ends at a line break, or at a full stop, question or exclamation mark that white space and a
    capital, digit or opening bracket follow, unless the stop belongs to an abbreviation or an initial
    ("et al.", "e.g.", "E. coli").
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _BOUNDARY.finditer(text):
        if match["stop"] is not None and not _ends(text, match):
            continue
        _append(spans, text, start, match.end())
        start = match.end()
    _append(spans, text, start, len(text))
    return spans


def _ends(text: str, match: re.Match[str]) -> bool:
    following = match["next"][-1]
    if following.islower() and len(match["next"]) == 1:
        return False
    if match["stop"] != ".":
        return True
    before = text[max(0, match.start() - _LOOK_BACK) : match.start() + 1]
    if match.end() > match.end("stop"):  # a bracket or quote closes after the stop
        return True
    if _INITIAL.search(before):
        # "vitamin D. The dose": what follows decides; a species or a name goes on with a single word.
        return len(match["next"]) > 1 or bool(_OPENING.match(text, match.end()))
    return not _ABBREVIATION.search(before)


_OPENING = re.compile(
    r"\s+(?:The|These|This|Those|We|In|It|Our|A|An|All|At|As|After|Although|Both|However|Here|Patients|Results|Methods"
    r"|There|They|To|When|With|Of|On|For|From|Thus)\b"
)


def _append(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    part = text[start:end]
    stripped = part.strip()
    if stripped:
        begin = start + len(part) - len(part.lstrip())
        spans.append((begin, begin + len(stripped)))
