"""Text marked in place, and bars: HTML in the hues of the style sheet."""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

HUES = 8  # .hue-0 to .hue-7 in assets/style.css
SHOWN_CHARACTERS = 50_000  # of one text; more of it slows the browser down


class Mark(NamedTuple):
    """``text[start:end]`` with its label; score 0 to 1."""

    label: str
    start: int
    end: int
    score: float


class Bar(NamedTuple):
    """A name, its length 0 to 1, what is written behind it, and whether it stands out."""

    name: str
    share: float
    value: str
    chosen: bool = True


def marked(text: str, marks: Iterable[Mark], labels: Sequence[str], kind: str) -> str:
    """A text with its marks in the hues of their labels; each label is written beside its span, too.

    The labels stand in an attribute that the style sheet shows, so what a reader selects and copies is the
    text alone.

    Args:
        marks: sorted, never overlapping.
        labels: all there are, in the order of the hues.
        kind: ``entity`` or ``sentence``: how the label is set.
    """
    hues = {label: number % HUES for number, label in enumerate(labels)}
    parts: list[str] = []
    position = 0
    for mark in marks:
        if mark.end > SHOWN_CHARACTERS:
            break
        parts.append(html.escape(text[position : mark.start]))
        label = html.escape(mark.label)
        parts.append(
            f'<mark class="{kind} hue-{hues.get(mark.label, 0)}" data-label="{label}" '
            f'title="{label}, score {mark.score:.2f}">{html.escape(text[mark.start : mark.end])}</mark>'
        )
        position = mark.end
    parts.append(html.escape(text[position : max(position, SHOWN_CHARACTERS)]))
    return view("".join(parts))


def view(content: str, hint: str = "") -> str:
    """The frame around a marked text; ``content`` is HTML."""
    return (
        '<div class="view" role="region" tabindex="0" aria-label="The text, with what was found marked">'
        f"<span>{content}</span><em>{hint}</em></div>"
    )


def cut_note(text: str) -> str:
    """What to say when a text is longer than is shown; else nothing."""
    if len(text) <= SHOWN_CHARACTERS:
        return ""
    return (
        f"Marked above: the first {SHOWN_CHARACTERS:,} of {len(text):,} characters. "
        "All of them were read; the downloads hold everything."
    )


def bars(title: str, rows: Sequence[Bar], labels: Sequence[str]) -> str:
    """A bar chart as a list, in the hues of the labels."""
    hues = {label: number % HUES for number, label in enumerate(labels)}
    items = "".join(
        f'<li class="hue-{hues.get(row.name, 0)}{"" if row.chosen else " faint"}">'
        f"<span>{html.escape(row.name)}</span>"
        f'<i style="--share: {row.share:.4f}" aria-hidden="true"></i><b>{html.escape(row.value)}</b></li>'
        for row in rows
    )
    return f'<div class="bars"><h3>{html.escape(title)}</h3><ul>{items}</ul></div>'
