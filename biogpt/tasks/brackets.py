"""Spans with one bracket of a pair: completed where the other one stands beside them, else cut."""

from itertools import pairwise

_CLOSING = {"(": ")", "[": "]", "{": "}"}
_OPENING = {closing: opening for opening, closing in _CLOSING.items()}
_LOOSE = " \t\r\n-–,;:/"  # what is left over at a cut


def balanced(text: str, start: int, end: int) -> tuple[int, int]:
    """The span nearest to ``text[start:end]`` that holds brackets in pairs only; empty where there is none.

    A bracket at an edge is left out. One within is completed by its other, if that stands beside the span
    (``tRNA(Leu`` before ``)``); else of the parts beside it the one with most letters is left (``ketamine``
    of ``S)-ketamine``). Spans that lie apart stay apart: what one grows by is at the other's edge, and left
    out there.
    """
    while singles := _singles(text, start, end):
        first, last = singles[0], singles[-1]
        if first == start:
            start += 1
        elif last == end - 1:
            end -= 1
        elif end < len(text) and len(_singles(text, start, end + 1)) < len(singles):
            end += 1
        elif start > 0 and len(_singles(text, start - 1, end)) < len(singles):
            start -= 1
        else:
            edges = [start - 1, *singles, end]
            parts = [(a + 1, b) for a, b in pairwise(edges)]
            start, end = max(parts, key=lambda part: sum(map(str.isalpha, text[slice(*part)])))
            part = text[start:end]
            start += len(part) - len(part.lstrip(_LOOSE))
            end = start + len(part.strip(_LOOSE))
    return start, end


def _singles(text: str, start: int, end: int) -> list[int]:
    """Where brackets of ``text[start:end]`` have no other, in order."""
    opened: list[int] = []
    singles: list[int] = []
    for index in range(start, end):
        if text[index] in _CLOSING:
            opened.append(index)
        elif text[index] in _OPENING:
            if opened and text[opened[-1]] == _OPENING[text[index]]:
                opened.pop()
            else:
                singles.append(index)
    return sorted(singles + opened)
