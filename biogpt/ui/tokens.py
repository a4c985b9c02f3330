"""What the model thought, as HTML: tokens coloured by their probability, the alternatives of one, and attention."""

import html
import math
from collections.abc import Sequence
from typing import Any

from biogpt.serving.inspection import Attention, Sample
from biogpt.text.tokenizer import CONTROL_TOKENS, END_OF_WORD, Tokenizer

# ${…} is filled in by the browser; flat lists of strings and numbers, so that only what is new goes over the wire.
VIEW = """
<div class="view" role="region" tabindex="0" aria-label="The text, with what was generated marked"
><span>${value.given}</span>${value.samples.map((s, n) =>
  (value.samples.length > 1 ? '<article><h3>Sample ' + (n + 1) + ' <button class="take" data-s="' + n + '">Use this one</button></h3>' : '')
  + '<mark>' + s.pieces.map((p, i) => p === '' ? '' : s.percents[i] < 0 ? p :
    '<span role="button" tabindex="' + (i ? -1 : 0) + '" class="tok p' + (s.percents[i] >= 50 ? 0 : s.percents[i] >= 20 ? 1 :
    s.percents[i] >= 5 ? 2 : 3) + '" data-s="' + n + '" data-i="' + i + '" title="' + s.percents[i] + ' %">' + p + '</span>').join('')
  + '</mark>' + s.end + (value.samples.length > 1 ? '</article>' : '')).join('')}<em>${value.hint}</em></div>
"""

# One stop of the Tab key, arrows from token to token, Enter or a click chooses. The choice survives a new rendering.
VIEW_SCRIPT = """
const tokens = () => [...element.querySelectorAll(".tok")];
const choose = (token) => {
  tokens().forEach((each) => each.classList.toggle("chosen", each === token));
  trigger("select", {sample: +token.dataset.s, token: +token.dataset.i});
};
element.addEventListener("click", (event) => {
  const take = event.target.closest(".take"), token = event.target.closest(".tok");
  if (take && !document.querySelector("#generate").disabled) trigger("submit", {sample: +take.dataset.s});
  else if (token) choose(token);
});
element.addEventListener("keydown", (event) => {
  const token = event.target.closest(".tok");
  if (!token) return;
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  if (step) {
    const all = tokens(), next = all[all.indexOf(token) + step];
    if (next) { token.tabIndex = -1; next.tabIndex = 0; next.focus(); }
    event.preventDefault();
  } else if ((event.key === "Enter" || event.key === " ") && !event.ctrlKey && !event.metaKey) {
    choose(token);
    event.preventDefault();
  }
});
"""

CHOICES_SCRIPT = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || document.querySelector("#generate").disabled) return;  // a run would write into the same text
  trigger("select", {sample: +button.dataset.s, token: +button.dataset.i, rank: +button.dataset.rank});
});
"""

ATTENTION = """
<div class="attention">${value.note}<div class="tokens">${value.tokens.map((t, i) =>
  '<button data-i="' + i + '" aria-pressed="false">' + t + '</button>').join('')}</div></div>
"""

# Chosen: outlined. Looked at: tinted, and the share written, above two percent.
ATTENTION_SCRIPT = """
const look = (index) => {
  const row = props.value.rows[index] || [], most = Math.max(...row, 1);
  element.querySelectorAll(".tokens button").forEach((button, i) => {
    button.setAttribute("aria-pressed", i === index);
    button.style.setProperty("--share", (row[i] || 0) / most);
    button.dataset.share = row[i] >= 2 ? row[i] + " %" : "";
    button.title = i <= index ? (row[i] || 0) + " % of the attention" : "comes later";
  });
};
let chosen = -1;
element.addEventListener("click", (event) => {
  const button = event.target.closest(".tokens button");
  if (button) look(chosen = +button.dataset.i);
});
watch("value", () => {
  const last = props.value.tokens.length - 1;
  if (last >= 0) look(chosen >= 0 && chosen <= last ? chosen : last);
});
"""


def _sample_shown(sample: Sample) -> dict[str, Any]:
    """For the template; escaped, for the browser sets it as HTML."""
    if not sample.ids:
        return {"pieces": [html.escape(sample.text)], "percents": [-1], "end": ""}
    starts = [0, *sample.ends]
    pieces = [html.escape(sample.text[start:end]) for start, end in zip(starts, sample.ends, strict=False)]
    percents = [round(100 * math.exp(logprob)) for logprob in sample.logprobs]
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
    if token < len(CONTROL_TOKENS):
        return {"</s>": "end of text"}.get(CONTROL_TOKENS[token], CONTROL_TOKENS[token])
    return tokenizer.decode([token]) + ("" if tokenizer.token(token).endswith(END_OF_WORD) else "‑")


def choices(tokenizer: Tokenizer, samples: Sequence[Sample], sample: int, token: int) -> str:
    """The alternatives of a token as HTML: a bar and a button each."""
    if not (0 <= sample < len(samples) and 0 <= token < len(samples[sample].ids)):
        return ""
    chosen = samples[sample]
    title = html.escape(piece(tokenizer, chosen.ids[token]))
    items = []
    for rank, (other, logprob) in enumerate(chosen.alternatives[token]):
        name, share = html.escape(piece(tokenizer, other)), math.exp(logprob)
        action = (
            "<em>chosen</em>"
            if other == chosen.ids[token]
            else ""
            if other < len(CONTROL_TOKENS)
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
