"""What the model thought, as HTML: tokens by their probability, the alternatives of one, attention."""

import html
import math
from collections.abc import Sequence
from typing import Any

from biogpt.serving.inspection import Attention, Sample
from biogpt.text.tokenizer import Tokenizer


def sample_shown(sample: Sample) -> dict[str, Any]:
    """For the browser: tokens by their characters, what of the text no token is known of last."""
    starts = [0, *sample.ends]
    pieces = [sample.text[start:end] for start, end in zip(starts, sample.ends, strict=False)]
    percents = [-1 if math.isnan(p) else round(100 * math.exp(p)) for p in sample.logprobs]
    ending = f"end of text, {percents[-1]} %" if sample.finish_reason == "eos" else ""
    rest = sample.text[starts[-1] :]
    return {
        "pieces": [*pieces, rest] if rest else pieces,
        "percents": [*percents, -1] if rest else percents,
        "known": sample.known,
        "count": len(sample.ids),
        "end": ending,
    }


def shown(given: str, samples: Sequence[Sample], begin: int = 0, below: str = "") -> dict[str, Any]:
    """The value of the view.

    Args:
        given: the text before the samples.
        begin: how many characters are before the first that was generated.
        below: HTML, what else is told of the text.
    """
    return {
        "given": given,
        "samples": [sample_shown(sample) for sample in samples],
        "begin": begin,
        "below": below,
    }


def piece(tokenizer: Tokenizer, token: int) -> str:
    """A token for people: a piece that does not end its word is followed by a dash."""
    if tokenizer.is_control(token):
        return {"</s>": "end of text"}.get(tokenizer.token(token), tokenizer.token(token))
    return tokenizer.decode([token]) + ("" if tokenizer.ends_word(token) else "‑")


def choices(
    tokenizer: Tokenizer, samples: Sequence[Sample], sample: int, token: int, can_branch: bool = True
) -> str:
    """The alternatives of a token as HTML: a bar each, and a button where they can take its place."""
    if not (0 <= sample < len(samples) and 0 <= token < len(samples[sample].ids)):
        return ""
    chosen = samples[sample]
    if not chosen.alternatives[token]:
        return ""
    title = html.escape(piece(tokenizer, chosen.ids[token]))
    probability = 100 * math.exp(chosen.logprobs[token])
    return _choices(
        tokenizer,
        f"“{title}” had {probability:.1f} %. The likeliest here:",
        chosen.alternatives[token],
        (sample, token),
        ("Continue with this", "Continue from here with") if can_branch else None,
        chosen.ids[token],
    )


def coming_shown(tokenizer: Tokenizer, coming: Sequence[tuple[int, float]], end: int) -> str:
    """What could come after a text, as HTML.

    Args:
        end: how many tokens the text has.
    """
    return _choices(tokenizer, "What would come next:", coming, (0, end), ("Append", "Append"))


def _choices(
    tokenizer: Tokenizer,
    title: str,
    likeliest: Sequence[tuple[int, float]],
    place: tuple[int, int],
    verbs: tuple[str, str] | None,
    chosen: int | None = None,
) -> str:
    """Tokens with a bar and a button each.

    Args:
        title: HTML.
        place: sample and token.
        verbs: what a button says, and what is read aloud before the token's name; None: no buttons.
        chosen: id of the token that is there.
    """
    items = []
    for rank, (other, logprob) in enumerate(likeliest):
        name, share = html.escape(piece(tokenizer, other)), math.exp(logprob)
        action = (
            "<em>chosen</em>"
            if other == chosen
            else ""
            if verbs is None or tokenizer.is_control(other)
            else f'<button data-s="{place[0]}" data-i="{place[1]}" data-rank="{rank}" '
            f'aria-label="{verbs[1]} {name}">{verbs[0]}</button>'
        )
        items.append(
            f'<li><span>{name}</span><i style="--share: {share:.4f}" aria-hidden="true"></i>'
            f"<b>{100 * share:.1f} %</b>{action}</li>"
        )
    return (
        f'<div class="bars choices hue-5" role="group" aria-label="Alternatives">'
        f"<h2>{title}</h2><ul>{''.join(items)}</ul>"
        '<button class="close" aria-label="Close">×</button></div>'
    )


def attention_shown(found: Attention, tokenizer: Tokenizer, layers: int, heads: int) -> dict[str, Any]:
    """The value of the attention view.

    Args:
        layers, heads: that the model has.
    """
    tokens = ["start", *(html.escape(piece(tokenizer, token)) for token in found.ids[1:])]
    head = f"head {found.head} of {heads}" if found.head else "mean of all heads"
    note = (
        f'<p class="remark">Layer {found.layer} of {layers}, {head}. '
        "Choose a token: those it looks at are tinted.</p>"
    )
    return {"tokens": tokens, "rows": found.percents, "note": note}


def units(text: str) -> int:
    """The length of a text as browsers count it."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
