"""What the page tells of a text that is read and not written: how surprising it is, whole and by sentence."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from biogpt.serving.inspection import Sample
from biogpt.text.sentences import sentence_spans
from biogpt.ui.tokens import units

_SHOWN = 90  # characters of a sentence in the list of them


@dataclass(frozen=True)
class Score:
    """How surprising a text was.

    Attributes:
        bits: that the model needs for each UTF-8 byte of it; the end of the text is not counted.
        sentences: start, end and bits per byte of each, in characters.
        coming: id and log-probability of the likeliest tokens after it.
    """

    bits: float
    sentences: Sequence[tuple[int, int, float]]
    coming: tuple[tuple[int, float], ...]


def score_of(sample: Sample, coming: tuple[tuple[int, float], ...]) -> Score:
    """The score of a text all of whose tokens are known; a token counts to the sentence in which it ends."""
    text, tokens = sample.text, list(zip(sample.ends, sample.logprobs, strict=True))

    def bits(start: int, end: int, logprobs: Sequence[float]) -> float:
        return -sum(logprobs) / math.log(2) / len(text[start:end].encode("utf-8", "replace"))

    sentences = [
        (start, end, bits(start, end, [logprob for place, logprob in tokens if start < place <= end]))
        for start, end in sentence_spans(text)
    ]
    return Score(bits(0, len(text), sample.logprobs), sentences, coming)


def sentences_shown(text: str, score: Score, most: float = 0.0, can_select: bool = True) -> str:
    """The surprise of each sentence as HTML: a bar each.

    Args:
        most: bits per byte of the longest bar, if no sentence has more.
        can_select: a click on a sentence selects it in the text.
    """
    most = max([most, *(bits for _, _, bits in score.sentences)])
    items = []
    for start, end, bits in score.sentences:
        words = " ".join(text[start:end].split())
        words = words if len(words) <= _SHOWN else f"{words[: _SHOWN - 2]} …"
        name = f"<span>{html.escape(words)}</span>"
        if can_select:
            places = f'data-start="{units(text[:start])}" data-end="{units(text[:end])}"'
            name = f"<button {places}>{html.escape(words)}</button>"
        items.append(
            f'<li>{name}<i style="--share: {bits / most if most else 0:.4f}" aria-hidden="true"></i>'
            f"<b>{bits:.2f}</b></li>"
        )
    return (
        '<div class="bars sentences hue-1"><h2>How surprising each sentence was, in bits per byte '
        f"(all of the text: {score.bits:.2f})</h2><ul>{''.join(items)}</ul></div>"
    )
