"""What the model thought, as HTML: tokens by their probability, the alternatives of one, attention."""

import html
import math
from collections.abc import Sequence
from typing import Any

from biogpt.serving.inspection import Attention, Sample
from biogpt.text.tokenizer import Tokenizer


def _sample_shown(sample: Sample) -> dict[str, Any]:
    """For the template; escaped, for the browser sets it as HTML."""
    if not sample.ids:
        return {"pieces": [html.escape(sample.text)], "percents": [-1], "end": ""}
    starts = [0, *sample.ends]
    pieces = [html.escape(sample.text[start:end]) for start, end in zip(starts, sample.ends, strict=False)]
    percents = [-1 if math.isnan(p) else round(100 * math.exp(p)) for p in sample.logprobs]
    end = f'<span class="end">end of text, {percents[-1]} %</span>' if sample.finish_reason == "eos" else ""
    return {"pieces": pieces, "percents": percents, "end": end}


def shown(given: str, samples: Sequence[Sample], hint: str = "") -> dict[str, Any]:
    """The value of the view: what was given, and what was generated."""
    return {
        "given": html.escape(given),
        "samples": [_sample_shown(sample) for sample in samples],
        "hint": "" if given or samples else hint,
    }


def piece(tokenizer: Tokenizer, token: int) -> str:
    """A token for people: a piece that does not end its word is followed by a dash."""
    if tokenizer.is_control(token):
        return {"</s>": "end of text"}.get(tokenizer.token(token), tokenizer.token(token))
    return tokenizer.decode([token]) + ("" if tokenizer.ends_word(token) else "‑")


def choices(tokenizer: Tokenizer, samples: Sequence[Sample], sample: int, token: int) -> str:
    """The alternatives of a token as HTML: a bar and a button each."""
    if not (0 <= sample < len(samples) and 0 <= token < len(samples[sample].ids)):
        return ""
    chosen = samples[sample]
    if not chosen.alternatives[token]:
        return ""
    title = html.escape(piece(tokenizer, chosen.ids[token]))
    items = []
    for rank, (other, logprob) in enumerate(chosen.alternatives[token]):
        name, share = html.escape(piece(tokenizer, other)), math.exp(logprob)
        action = (
            "<em>chosen</em>"
            if other == chosen.ids[token]
            else ""
            if tokenizer.is_control(other)
            else f'<button data-s="{sample}" data-i="{token}" data-rank="{rank}" '
            f'aria-label="Continue from here with {name}">Continue with this</button>'
        )
        items.append(
            f'<li><span>{name}</span><i style="--share: {share:.4f}" aria-hidden="true"></i>'
            f"<b>{100 * share:.1f} %</b>{action}</li>"
        )
    probability = 100 * math.exp(chosen.logprobs[token])
    return (
        f'<div class="bars choices hue-5" role="group" aria-label="Alternatives">'
        f"<h3>“{title}” had {probability:.1f} %. The likeliest here:</h3><ul>{''.join(items)}</ul></div>"
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
