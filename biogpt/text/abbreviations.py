"""Abbreviations that a text defines, "tumour necrosis factor (TNF)", and where it uses them again.

By the rule of Schwartz and Hearst (2003, "A simple algorithm for identifying abbreviation definitions in
biomedical text"): before a bracket with a short form stands its long form, in which the letters and digits of
the short one follow each other, the first at the beginning of a word; the shortest such stretch is taken. Or
the other way round, "TNF (tumour necrosis factor)".
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from biogpt.text.results import Look, go_on
from biogpt.text.sentences import sentence_spans

Span = tuple[int, int]  # first character and the one after the last

_LONGEST, _WORDS = 10, 2  # characters and words of a short form
_REACH = 400  # characters of a long form, and of a bracket: a text of brackets alone is read in time, too
_BRACKETS = {"(": ")", "[": "]"}
_SIDE = re.compile(r"[;,]\s| or ")  # "(TNF; 5 ng/ml)": what comes first counts
_WORD = re.compile(r"\S+")
_OPENING = "([{\"'“‘"
_LATIN = str.maketrans("αβγδεκλμστω", "abgdeklmsto")  # γ-aminobutyric acid (GABA)


class Abbreviation(NamedTuple):
    """A short form and its long one, where they are defined, and all other places of the short form."""

    short: Span
    long: Span
    again: tuple[Span, ...]


def abbreviations(text: str, look: Look = go_on) -> list[Abbreviation]:
    """The abbreviations that a text defines, in its order.

    A short form has 2 to 10 characters and at most two words, begins with a letter or a digit and holds a
    letter. One that is written small throughout counts only where each letter begins a word ("base pairs
    (bp)"), or any word in brackets would do. A plural s need not be of the long form.

    Args:
        look: called after each sentence.
    """
    found: list[tuple[Span, Span]] = []
    for start, end in sentence_spans(text, look):
        found += _defined(text, start, end)
    first = {text[slice(*short)]: (short, long) for short, long in reversed(found)}
    chosen = sorted(first.values())
    return [Abbreviation(short, long, tuple(_again(text, short, long))) for short, long in chosen]


def _defined(text: str, start: int, end: int) -> list[tuple[Span, Span]]:
    """The short and the long forms that a sentence puts together."""
    found = []
    opened: list[int] = []
    for place in range(start, end):
        if text[place] in _BRACKETS:
            opened.append(place)
        elif opened and text[place] == _BRACKETS[text[opened[-1]]]:
            bracket = opened.pop()
            # Within a bracket, what stands before it does not count.
            begin = max(opened[-1] + 1 if opened else start, bracket - _REACH)
            if place - bracket <= _REACH and (pair := _pair(text, begin, bracket, place)):
                found.append(pair)
    return found


def _pair(text: str, start: int, bracket: int, end: int) -> tuple[Span, Span] | None:
    """What the bracket ``text[bracket:end]`` and the words before it define."""
    side = _SIDE.search(text, bracket + 1, end)
    inside = _stripped(text, bracket + 1, side.start() if side else end)
    if _is_short(text[slice(*inside)]):
        long = _long_form(text, inside, (start, bracket))
        return None if long is None else (inside, long)
    before = list(_WORD.finditer(text, start, bracket))
    if not before:
        return None
    short = before[-1].start(), before[-1].end()
    short = short[0] + len(text[slice(*short)]) - len(text[slice(*short)].lstrip(_OPENING)), short[1]
    if not _is_short(text[slice(*short)]) or len(text[slice(*inside)].split()) < 2:
        return None
    long = _long_form(text, short, inside)
    # Else the bracket says more than what the short form stands for.
    return (short, long) if long is not None and long[0] == inside[0] else None


def _is_short(word: str) -> bool:
    return (
        2 <= len(word) <= _LONGEST
        and len(word.split()) <= _WORDS
        and word[0].isalnum()
        and any(map(str.isalpha, word))
    )


def _long_form(text: str, short: Span, within: Span) -> Span | None:
    """The shortest stretch at the end of ``within`` that the short form can stand for."""
    start, end = _stripped(text, *within)
    word = text[slice(*short)]
    most = min(len(word) + 5, 2 * len(word))  # words
    words = list(_WORD.finditer(text, start, end))
    if not words:
        return None
    start = words[-most:][0].start()
    begin = _matched(word, text[start:end])
    if begin is None and word.endswith("s") and len(word) > 2:
        begin = _matched(word[:-1], text[start:end])
    if begin is None:
        return None
    long = text[start + begin : end]
    if len(long) <= len(word) or word in re.split(r"[\s()\[\]]+", long):
        return None
    if word.islower() and [part[0].lower() for part in re.findall(r"\w+", long)] != list(word):
        return None
    return start + begin, end


def _matched(short: str, text: str) -> int | None:
    """Where the long form of ``short`` begins, if ``text`` ends with one."""
    letters = [_small(letter) for letter in short if letter.isalnum()]
    small = "".join(map(_small, text))
    place = len(small)
    for number in reversed(range(len(letters))):
        place = small.rfind(letters[number], 0, place)
        while number == 0 and place > 0 and small[place - 1].isalnum():
            place = small.rfind(letters[number], 0, place)
        if place < 0:
            return None
    while place > 0 and not text[place - 1].isspace():  # a word before a hyphen belongs to it
        place -= 1
    opening = len(text[place:]) - len(text[place:].lstrip(_OPENING))
    return place + opening


def _small(letter: str) -> str:
    """In lower case and Latin, if that is one character, too: places stay."""
    return letter.lower().translate(_LATIN) if len(letter.lower()) == 1 else letter


def _stripped(text: str, start: int, end: int) -> Span:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def _again(text: str, short: Span, long: Span) -> Sequence[Span]:
    """Where the short form stands elsewhere as a word of its own, also in the plural."""
    word = text[slice(*short)]
    one = re.escape(word.removesuffix("s") if len(word) > 2 and not word.islower() else word)
    places = re.finditer(rf"(?<!\w){one}s?(?!\w)", text)
    return [
        (place.start(), place.end())
        for place in places
        if (place.end() <= short[0] or place.start() >= short[1])
        and (place.end() <= long[0] or place.start() >= long[1])
    ]
