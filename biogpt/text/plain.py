"""Plain forms of a text: what is read in place of characters that a vocabulary lacks, and where it came from.

Typographic quotes and dashes, fullwidth letters, ligatures, superscripts, letters written with combining
marks, words hyphenated at a line's end: each is read as plain text would have it, and every character of the
plain text knows its place in the text as given, whether one became one, many, or many became one.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

# One character for one. Spaces of all widths are missing on purpose: Moses knows them as such.
NORMALIZATION: dict[str, str] = {
    # Fullwidth forms of ASCII, ！ to ～.
    **{chr(code): chr(code - 0xFF01 + ord("!")) for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys("–—―‒‐‑−﹘﹣", "-"),
    **dict.fromkeys("‘’‚‛‹›′ʼ´`｀", "'"),
    **dict.fromkeys("“”„‟«»ʺ", '"'),
    "…": ".",
    "\N{FRACTION SLASH}": "/",
    "\N{OHM SIGN}": "Ω",
    "\N{KELVIN SIGN}": "K",
    "\N{ANGSTROM SIGN}": "Å",
    # Soft hyphen, zero-width and direction marks, byte-order mark, variation selectors: left out.
    **dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufe0e\ufe0f\ufeff", "\0"),
}
_INVISIBLE = frozenset(character for character, plain in NORMALIZATION.items() if plain == "\0")
_JAMO = range(0x1160, 0x1200)  # vowels and finals of Korean syllables, which go on with the letter before
_CACHED_LENGTH = 4  # characters of a letter with its marks; longer ones are not remembered

_LINE_HYPHEN = re.compile(r"(?<=\w)[-\u2010][ \t]*(?:\r\n|\r|\n)[ \t]*(?=\w)")
_SOFT_HYPHEN = re.compile(r"\u00ad[ \t]*(?:\r\n|\r|\n)[ \t]*(?=\w)")
_LETTERS_BEFORE = re.compile(r"[^\W\d_]*\Z")
_LETTERS_AFTER = re.compile(r"[^\W\d_]*")
_LONGEST_PART = 40  # letters of a hyphenated word on either side

# *x*, **x**, _x_, `x`, between white space or punctuation: HLA-A*02 and a_b are no emphasis.
_EMPHASIS = re.compile(
    r"(?<![\w*`_\\-])(?P<mark>\*{1,3}|_{1,3}|`{1,2})(?=[^\s*_`])[^\n*_`]{1,200}?(?<=\S)(?P=mark)(?![\w*`_])"
)

Edit = tuple[int, int, str]  # a stretch of a text, start and end in characters, and what replaces it


# Letters and a symbol by their category, which show nothing: fillers of Hangul, and Braille without a dot.
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, what has no width, and marks without a letter."""
    return all(
        character.isspace()
        or character in _FILLERS
        or unicodedata.category(character)[0] in "MZ"
        or unicodedata.category(character) in ("Cc", "Cf")
        for character in text
    )


class PlainText(NamedTuple):
    """A text as it is read, and where it lies in the text as given.

    Attributes:
        text: the P characters that are read.
        starts, ends: [P] for each of them the first character of the text as given that it stands for, and
            the one after the last. Neither ever falls.
    """

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, text: str) -> "PlainText":
        """A text that is read as it stands."""
        return cls(text, range(len(text)), range(1, len(text) + 1))

    def given(self, start: int, end: int) -> tuple[int, int]:
        """Where ``text[start:end]``, not empty, lies in the text as given."""
        return self.starts[start], self.ends[end - 1]

    def edited(self, edits: Iterable[Edit]) -> "PlainText":
        """With stretches replaced, in order and apart; what is new stands for the whole stretch."""
        parts: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        done = 0
        for start, end, new in edits:
            parts += (self.text[done:start], new)
            starts += self.starts[done:start]
            ends += self.ends[done:start]
            first, last = self.given(start, end)
            starts += [first] * len(new)
            ends += [last] * len(new)
            done = end
        if not done:
            return self
        parts.append(self.text[done:])
        return PlainText("".join(parts), [*starts, *self.starts[done:]], [*ends, *self.ends[done:]])


class PlainForms:
    """The plain forms for one vocabulary: what it knows is read as it stands.

    Args:
        known: characters that the vocabulary has.
        is_word: whether the vocabulary has a whole word.
    """

    def __init__(self, known: Set[str], is_word: Callable[[str], bool]) -> None:
        self._known, self._is_word = known, is_word
        self._form_cached = lru_cache(65_536)(self._form)

    def __call__(self, text: str) -> PlainText:
        """The plain form of a text; that of a plain form is itself."""
        plain = PlainText.of(text)
        lines = "\n" in text or "\r" in text
        if lines:
            plain = plain.edited((*match.span(), "") for match in _SOFT_HYPHEN.finditer(text))
        characters = set(plain.text)
        marked = any(map(_goes_on, characters))
        if marked or not all(character in self._known or character.isspace() for character in characters):
            plain = plain.edited(self._replacements(plain.text, marked))
        return plain.edited(self._joins(plain.text)) if lines else plain

    def _joins(self, text: str) -> Iterable[Edit]:
        """Words that go on after a hyphen and a line break; the hyphen stays where it may be the word's
        own."""
        for match in _LINE_HYPHEN.finditer(text):
            start, end = match.span()
            before = _LETTERS_BEFORE.search(text, max(0, start - _LONGEST_PART), start)
            after = _LETTERS_AFTER.match(text, end, end + _LONGEST_PART)
            assert before is not None
            assert after is not None
            apart = min(len(before[0]), len(after[0])) < 2 or not (before[0][1:] + after[0]).islower()
            # "IL-6", "c-Myc", "insulin-dependent" have their hyphen in the middle of a line, too.
            hyphenated = apart or (
                self._is_word(before[0])
                and self._is_word(after[0])
                and not self._is_word(before[0] + after[0])
            )
            yield start + hyphenated, end, ""

    def _replacements(self, text: str, marked: bool) -> Iterable[Edit]:
        start = 0
        while start < len(text):
            end = _end_of_letter(text, start, self._known) if marked else start + 1
            letter = text[start:end]
            form = self._form_cached(letter) if len(letter) <= _CACHED_LENGTH else self._form(letter)
            if form != letter:
                yield start, end, form
            start = end

    def _form(self, letter: str) -> str:
        """The plain form of a letter and its combining marks."""
        visible = "".join(c for c in letter if c in self._known or c not in _INVISIBLE)
        return "".join(map(self._plain, unicodedata.normalize("NFC", visible)))

    def _plain(self, character: str) -> str:
        """What to read for one character: itself where nothing simpler is known."""
        if character in self._known or character.isspace():
            return character
        if character in NORMALIZATION:
            return NORMALIZATION[character]
        if unicodedata.category(character).startswith("M"):
            return ""
        compatible = unicodedata.normalize("NFKC", character)
        if compatible != character and not any(map(str.isspace, compatible)):
            return "".join(map(self._plain, compatible))
        letter = unicodedata.normalize("NFD", character)[0]
        return letter if letter in self._known else character


def _goes_on(character: str) -> bool:
    """Whether a character belongs to the letter before it."""
    return not character.isascii() and (
        unicodedata.category(character).startswith("M") or ord(character) in _JAMO
    )


def _end_of_letter(text: str, start: int, known: Set[str]) -> int:
    """Where a letter with its combining marks ends; what is invisible does not part them."""

    def after_invisible(index: int) -> int:
        while index < len(text) and text[index] in _INVISIBLE and text[index] not in known:
            index += 1
        return index

    if text[start].isspace():
        return start + 1
    end = max(start + 1, after_invisible(start))
    while (mark := after_invisible(end)) < len(text) and _goes_on(text[mark]):
        end = mark + 1
    return end


def without_emphasis(text: str) -> PlainText:
    """A text without the marks of Markdown around names: ``**aspirin**`` is read as ``aspirin``."""
    edits: list[Edit] = []
    for match in _EMPHASIS.finditer(text):
        size = len(match["mark"])
        edits += [(match.start(), match.start() + size, ""), (match.end() - size, match.end(), "")]
    return PlainText.of(text).edited(edits)
