"""What the model thought: tokens coloured by their probability, the alternatives of one, and attention.

Probabilities are those of the model itself, before temperature, penalties and bans.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from biogpt.checkpoint.pretrained import BioGptTokenizer
from biogpt.serving.text_generator import Step, TextGenerator
from biogpt.text.tokenizer import CONTROL_TOKENS, END_OF_WORD

ALTERNATIVES = 8
ATTENTION_TOKENS = 96  # most that the attention view shows: a square of them
_WORD_PIECES = 8  # most that complete a word begun by an alternative

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


@dataclass
class Sample:
    """A text as it is made.

    Attributes:
        context: ids before its first token.
        text: prompt left out.
        ids, logprobs, alternatives: of each token, as in ``biogpt.generation.search.Token``.
        ends: where each token's characters end in ``text``.
        finish_reason: as in ``biogpt.serving.text_generator.Step``.
    """

    context: list[int]
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, step: Step) -> None:
        """Take one more token in. A step may change the end of the text: tokens before lose those characters."""
        common = _common(self.text, step.text)
        self.ends = [min(end, common) for end in self.ends] + [len(step.text)]
        self.text, self.finish_reason = step.text, step.finish_reason
        self.ids.append(step.token_id)
        self.logprobs.append(step.logprob)
        self.alternatives.append(step.alternatives)

    def replace(self, step: Step) -> None:
        """Beam search: another text altogether, whose earlier tokens are not known yet."""
        self.text, self.finish_reason = step.text, step.finish_reason

    def shown(self) -> dict[str, Any]:
        """For the template; escaped, for the browser sets it as HTML."""
        if not self.ids:
            return {"pieces": [html.escape(self.text)], "percents": [-1], "end": ""}
        starts = [0, *self.ends]
        pieces = [html.escape(self.text[start:end]) for start, end in zip(starts, self.ends, strict=False)]
        percents = [round(100 * math.exp(logprob)) for logprob in self.logprobs]
        end = f'<span class="end">end of text, {percents[-1]} %</span>' if self.finish_reason == "eos" else ""
        return {"pieces": pieces, "percents": percents, "end": end}


def shown(given: str, samples: Sequence[Sample], hint: str = "") -> dict[str, Any]:
    """The value of the view: what was given, and what was generated."""
    return {
        "given": html.escape(given),
        "samples": [sample.shown() for sample in samples],
        "hint": "" if given or samples else hint,
    }


@torch.inference_mode()
def scored(generator: TextGenerator, prompt: str, text: str) -> Sample:
    """A text read once more, for what the model thinks of each token: beam search tells it of the last one alone."""
    encoding = generator.tokenizer.encode(prompt + text)
    first = next((i for i, span in enumerate(encoding.offsets) if span[1] > len(prompt)), len(encoding.ids))
    logits = (
        generator.model(torch.tensor([encoding.ids], device=generator.model.device)).logits[0].float().cpu()
    )
    best = logits.log_softmax(dim=-1).topk(min(ALTERNATIVES, logits.shape[-1]), dim=-1)
    sample = Sample(encoding.ids[:first], text)
    for i in range(max(first, 1), len(encoding.ids)):
        token = encoding.ids[i]
        sample.ids.append(token)
        sample.logprobs.append(float(logits[i - 1].log_softmax(dim=-1)[token]))
        pairs = zip(best.indices[i - 1].tolist(), best.values[i - 1].tolist(), strict=True)
        sample.alternatives.append(tuple(pairs))
        sample.ends.append(max(encoding.offsets[i][1] - len(prompt), 0))
    return sample


def piece(tokenizer: BioGptTokenizer, token: int) -> str:
    """A token for people: a piece that does not end its word is followed by a dash."""
    if token < len(CONTROL_TOKENS):
        return {"</s>": "end of text"}.get(CONTROL_TOKENS[token], CONTROL_TOKENS[token])
    return tokenizer.decode([token]) + ("" if tokenizer.token(token).endswith(END_OF_WORD) else "‑")


def choices(tokenizer: BioGptTokenizer, samples: Sequence[Sample], sample: int, token: int) -> str:
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


@torch.inference_mode()
def branched(generator: TextGenerator, sample: Sample, token: int, other: int) -> str:
    """The text of a sample up to a token, and another one in its place; a word that it only begins is completed."""
    tokenizer = generator.tokenizer
    before = [*sample.context, *sample.ids[:token]]
    ids = [*before, other]
    if not tokenizer.token(other).endswith(END_OF_WORD):
        for _ in range(_WORD_PIECES):
            row = torch.tensor([ids], device=generator.model.device)
            ids.append(int(generator.model(row, logits_to_keep=1).logits[0, -1].argmax()))
            if ids[-1] < len(CONTROL_TOKENS):
                ids.pop()
                break
            if tokenizer.token(ids[-1]).endswith(END_OF_WORD):
                break
    old, new = tokenizer.decode(before), tokenizer.decode(ids)
    common = _common(old, new)
    return sample.text[: sample.ends[token - 1] if token else 0] + new[common:]


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


@torch.inference_mode()
def attention(generator: TextGenerator, text: str, layer: int, head: int) -> dict[str, Any]:
    """Which tokens a token looks at, in whole percent.

    Args:
        layer: counted from 1.
        head: counted from 1; 0 is the mean of all.

    Raises:
        ValueError: the text is empty, or has more than ``ATTENTION_TOKENS`` tokens.
    """
    if not text.strip():
        raise ValueError("The text is empty: type something first")
    count = generator.count(text)
    if count > ATTENTION_TOKENS:
        raise ValueError(
            f"The text has {count:,} tokens; attention is shown for up to {ATTENTION_TOKENS}. Shorten it"
        )
    ids = generator.tokenizer.encode(text).ids
    config, model = generator.config, generator.model
    out = model(torch.tensor([ids], device=model.device), output_attentions=True)
    assert out.attentions is not None
    heads = out.attentions[min(layer, config.num_hidden_layers) - 1][0].float().cpu()  # [H, T, T]
    weights = heads.mean(dim=0) if head == 0 else heads[min(head, config.num_attention_heads) - 1]
    tokens = ["start", *(html.escape(piece(generator.tokenizer, token)) for token in ids[1:])]
    which = "mean of all heads" if head == 0 else f"head {head} of {config.num_attention_heads}"
    note = (
        f'<p class="remark">Layer {layer} of {config.num_hidden_layers}, {which}. '
        "Choose a token: those it looks at are tinted.</p>"
    )
    rows = [(100 * weights[i, : i + 1]).round().int().tolist() for i in range(len(ids))]
    return {"tokens": tokens, "rows": rows, "note": note}
