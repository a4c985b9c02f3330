"""Text marked in place, and bars: HTML in the hues of the style sheet."""

import html
import json
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


class Gloss(NamedTuple):
    """``text[start:end]`` and what it stands for."""

    start: int
    end: int
    meaning: str


class Reason(NamedTuple):
    """``text[start:end]``, and how much a score falls without it; below 0: rises."""

    start: int
    end: int
    fall: float


class Bar(NamedTuple):
    """A label, its length 0 to 1, what is written behind it, whether it stands out, and before it, if not the
    label.
    """

    name: str
    share: float
    value: str
    chosen: bool = True
    said: str = ""


def marked(
    text: str,
    marks: Iterable[Mark],
    labels: Sequence[str],
    kind: str,
    glosses: Sequence[Gloss] = (),
    correctable: bool = False,
) -> str:
    """A text with its marks in the hues of their labels; each label is written beside its span, too.

    The labels stand in an attribute that the style sheet shows, so what a reader selects and copies is the
    text alone.

    Args:
        marks: sorted, never overlapping.
        labels: all there are, in the order of the hues.
        kind: ``entity`` or ``sentence``: how the label is set.
        glosses: sorted, never overlapping; one across the edge of a mark is left out.
        correctable: whether ``listenToMarks`` lets the reader correct it.
    """
    hues = {label: number % HUES for number, label in enumerate(labels)}
    rest = list(reversed(glosses))

    def plain(start: int, end: int) -> str:
        parts = []
        while rest and rest[-1].start < end:
            gloss = rest.pop()
            if gloss.start >= start and gloss.end <= end:
                meaning = html.escape(" ".join(gloss.meaning.split()))
                parts += [_escaped(text[start : gloss.start]), f'<abbr title="{meaning}">']
                parts += [_escaped(text[gloss.start : gloss.end]), "</abbr>"]
                start = gloss.end
        return "".join([*parts, _escaped(text[start:end])])

    parts: list[str] = []
    position = 0
    for mark in marks:
        if mark.end > SHOWN_CHARACTERS:
            break
        parts.append(plain(position, mark.start))
        label = html.escape(mark.label)
        parts.append(
            f'<mark class="{kind} hue-{hues.get(mark.label, 0)}" data-label="{label}" '
            f'title="{label}, score {mark.score:.2f}">{plain(mark.start, mark.end)}</mark>'
        )
        position = mark.end
    parts.append(plain(position, max(position, min(SHOWN_CHARACTERS, len(text)))))
    types = f" data-types='{html.escape(json.dumps(list(labels)))}'" if correctable else ""
    return view("".join(parts), more=types)


def _escaped(text: str) -> str:
    """As HTML of as many characters: a browser would leave out U+0000, and make CR and LF one."""
    return html.escape(text.replace("\0", "\ufffd")).replace("\r", "&#13;")


def view(content: str, hint: str = "", more: str = "") -> str:
    """The frame around a marked text; ``content`` is HTML, ``more`` further attributes."""
    return (
        '<div class="view" role="region" tabindex="0" aria-label="The text, with what was found marked"'
        f"{more}><span>{content}</span><em>{hint}</em></div>"
    )


def because(text: str, reasons: Sequence[Reason], label: str, score: float, labels: Sequence[str]) -> str:
    """A text with the parts that decided a label: tinted by how much, and the number written.

    Args:
        reasons: sorted, never overlapping.
        score: of the label, for the whole text.
    """
    most = max((abs(reason.fall) for reason in reasons), default=0.0)
    hue = list(labels).index(label) % HUES
    parts: list[str] = []
    position = 0
    for reason in reasons:
        if reason.end > SHOWN_CHARACTERS:
            break
        share = abs(reason.fall) / most if most else 0.0
        number = f"{reason.fall:+.2f}".replace("-", "\N{MINUS SIGN}")
        side = "" if reason.fall >= 0 else " against"
        title = f"{html.escape(label)}: {score:.2f} with this, {score - reason.fall:.2f} without"
        parts.append(_escaped(text[position : reason.start]))
        parts.append(
            f'<mark class="because hue-{hue}{side}" style="--share: {share:.3f}" data-label="{number}" '
            f'title="{title}">{_escaped(text[reason.start : reason.end])}</mark>'
        )
        position = reason.end
    parts.append(_escaped(text[position : max(position, min(SHOWN_CHARACTERS, len(text)))]))
    return view("".join(parts))


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
        f"<span>{html.escape(row.said or row.name)}</span>"
        f'<i style="--share: {row.share:.4f}" aria-hidden="true"></i><b>{html.escape(row.value)}</b></li>'
        for row in rows
    )
    return f'<div class="bars"><h3>{html.escape(title)}</h3><ul>{items}</ul></div>'
