"""What a model thought of a text: probabilities of its tokens, likelier ones in their place, and attention.

Whatever computes here runs on the thread that owns the model: ``TextService.ask``. Probabilities are those
of the model itself, before temperature, penalties and bans.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import torch

from biogpt.generation.sampling import ban_tokens
from biogpt.generation.search import Token
from biogpt.serving.service import Prompt, Step, TextService
from biogpt.serving.text_generator import TextGenerator
from biogpt.text.plain import is_blank
from biogpt.text.tokenizer import Tokenizer, moses_text

ALTERNATIVES = 8
ATTENTION_TOKENS = 96  # most whose attention is given: a square of them
_WORD_PIECES = 8  # most that complete a word begun by an alternative
_ROWS = 64  # positions whose logits are held at once
_BEFORE = 8  # tokens by which the spacing of the next one is told
_UNKNOWN: tuple[float, tuple[()]] = (math.nan, ())  # of a token: what the model thought of it


@dataclass
class Sample:
    """A text as it is made.

    Attributes:
        context: ids before its first token.
        text: prompt left out.
        base: what of the text was there before the run that goes on with it.
        known: how many of the tokens are of that.
        ids, logprobs, alternatives: of each token, as in ``biogpt.generation.search.Token``; nan and none
            where they are not known.
        ends: where each token's characters end in ``text`` and what is held back of it.
        held: as in ``biogpt.serving.service.Step``.
        is_made: the ids are those that were made; else they were read back from the text.
        finish_reason: as in ``biogpt.serving.service.Step``.
    """

    context: list[int]
    text: str = ""
    base: str = ""
    known: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    held: str = ""
    is_made: bool = True

    @property
    def whole(self) -> str:
        """The text with what is held back of it."""
        return self.text + self.held

    def add(self, step: Step) -> None:
        """Take one more token in. A step may change what was held back: tokens before lose that."""
        whole = self.base + step.text + step.held
        common = _common(self.whole, whole)
        self.text, self.held, self.finish_reason = self.base + step.text, step.held, step.finish_reason
        self.ends = [min(end, common) for end in self.ends]
        self.put(step.token_id, step.logprob, step.alternatives, len(whole))

    def put(self, token: int, logprob: float, alternatives: tuple[tuple[int, float], ...], end: int) -> None:
        """Take in one more token of a text that is there."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.alternatives.append(alternatives)
        self.ends.append(end)

    def replace(self, step: Step) -> None:
        """Beam search: another text altogether, whose earlier tokens are not known yet."""
        self.text, self.finish_reason = self.base + step.text, step.finish_reason

    def cut(self, tokens: int, text: str) -> "Sample":
        """What a run goes on with: so many of these tokens, and the text that they say."""
        return replace(
            self,
            text=text,
            base=text,
            known=tokens,
            ids=self.ids[:tokens],
            logprobs=self.logprobs[:tokens],
            alternatives=self.alternatives[:tokens],
            ends=[min(end, len(text)) for end in self.ends[:tokens]],
            finish_reason=None,
            held="",
        )

    def going_on(self, ids: Sequence[int]) -> "Sample":
        """What a run goes on with that is given these ids for the text of this sample and before it.

        What was known of the tokens stays known up to the first that is another one.
        """
        first = len(self.context)
        same = _common([*self.context, *self.ids], ids)
        if not self.context or same < first:
            first = same = len(ids) - bool(self.text)
        begun = replace(self.cut(same - first, self.text), context=list(ids[:first]), is_made=True)
        for token in ids[same:]:
            begun.put(token, *_UNKNOWN, len(begun.base))
        begun.known = len(begun.ids)
        return begun


@dataclass(frozen=True)
class Attention:
    """Which tokens each token of a text looks at.

    Attributes:
        ids: of the tokens, T of them, the start token first.
        percents: T rows; row t has t + 1 whole numbers, the shares of the tokens up to itself.
        layer, head: that were looked into, counted from 1; head 0 is the mean of all.
    """

    ids: list[int]
    percents: list[list[int]]
    layer: int
    head: int


@torch.inference_mode()
def read(
    generator: TextGenerator, ids: Sequence[int], first: int = 1, top: int = ALTERNATIVES
) -> list[Token]:
    """What the model thinks of each of the ids from ``first`` on, and of the ``top`` likeliest in its place.

    Raises:
        FloatingPointError: the model's numbers overflow in this precision.
    """
    if first >= len(ids):
        return []
    row = torch.tensor([list(ids[:-1])], device=generator.model.device)
    hidden = generator.model.biogpt(row).last_hidden_state[0, first - 1 :]
    tokens = []
    for place in range(first, len(ids), _ROWS):
        given = torch.tensor(ids[place : place + _ROWS])
        logits = generator.model.output_projection(hidden[place - first :][: len(given)]).float().cpu()
        if not bool(logits.isfinite().all()):
            raise FloatingPointError("the model's logits are not finite; load it in bfloat16 or float32")
        logprobs = ban_tokens(logits, generator.padding).log_softmax(dim=-1)  # [rows, V]
        best = logprobs.topk(min(top, logprobs.shape[-1] - len(generator.padding)), dim=-1)
        own = logprobs.gather(-1, given[:, None])[:, 0]
        rows = zip(given.tolist(), own.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
        tokens += [Token(id, value, tuple(zip(*others, strict=True))) for id, value, *others in rows]
    return tokens


def scored(generator: TextGenerator, prompt: str, text: str) -> Sample:
    """A text read once more, for what the model thinks of each token: beam search tells only of the last."""
    encoding = generator.tokenizer.encode(prompt + text)
    first = next((i for i, span in enumerate(encoding.offsets) if span[1] > len(prompt)), len(encoding.ids))
    first = max(first, 1)
    sample = Sample(encoding.ids[:first], text, is_made=False)
    for token, span in zip(read(generator, encoding.ids, first), encoding.offsets[first:], strict=True):
        sample.put(token.id, token.logprob, token.alternatives, max(span[1] - len(prompt), 0))
    return sample


def read_whole(generator: TextGenerator, prompt: Prompt) -> tuple[Sample, tuple[tuple[int, float], ...]]:
    """All of a text's tokens, the start token left out, and the likeliest that could come next.

    Raises:
        ValueError: the text has more tokens than the model has positions.
        FloatingPointError: as of ``read``.
    """
    if prompt.room < 0:
        raise ValueError(
            f"The text has {prompt.length:,} tokens and the model {prompt.length + prompt.room:,} "
            "positions; cut it"
        )
    *tokens, end = read(generator, [*prompt.ids, generator.tokenizer.eos_token_id])
    sample = Sample([prompt.ids[0]], prompt.text, finish_reason="length", is_made=not prompt.offsets)
    for token, span in zip(tokens, offsets_of(generator, prompt)[1:], strict=True):
        sample.put(token.id, token.logprob, token.alternatives, span[1])
    return sample, end.alternatives


def offsets_of(generator: TextService, prompt: Prompt) -> list[tuple[int, int]]:
    """Which characters of a prompt's text each of its ids stands for; where ids were given, as they add up.

    Then white space belongs to the token after it, as in a text that is written.
    """
    if prompt.offsets:
        return list(prompt.offsets)
    words = generator.tokenizer.words
    ends = [
        _common(prompt.text, moses_text(words(prompt.ids[:count]))) for count in range(1, prompt.length + 1)
    ]
    return list(pairwise((0, *accumulate(ends, max))))


def piece_after(tokenizer: Tokenizer, before: Sequence[int], token: int) -> str:
    """What a token adds to the text of those before it, a space in front included; a control token's name."""
    if tokenizer.is_control(token):
        return tokenizer.token(token)
    last = [*before[-_BEFORE:]]
    old, new = (moses_text(tokenizer.words(ids)) for ids in (last, [*last, token]))
    return new[_common(old, new) :]


@torch.inference_mode()
def branched(generator: TextGenerator, sample: Sample, token: int, rank: int) -> Sample:
    """What a run goes on with: a sample up to a token, and in its place the alternative of this rank.

    A word that this begins is completed.
    """
    tokenizer = generator.tokenizer
    other, logprob = sample.alternatives[token][rank]
    before = [*sample.context, *sample.ids[:token]]
    ids = [*before, other]
    if not tokenizer.ends_word(other):
        for _ in range(_WORD_PIECES):
            row = torch.tensor([ids], device=generator.model.device)
            logits = generator.model(row, logits_to_keep=1).logits[0, -1]
            ids.append(int(ban_tokens(logits, generator.padding).argmax()))
            if tokenizer.is_control(ids[-1]):
                ids.pop()
                break
            if tokenizer.ends_word(ids[-1]):
                break
    old, new = tokenizer.decode(before), tokenizer.decode(ids)
    start = sample.ends[token - 1] if token else 0
    branch = sample.cut(token, sample.whole[:start] + new[_common(old, new) :])
    branch.put(other, logprob, sample.alternatives[token], len(branch.text))
    for piece in ids[len(before) + 1 :]:
        branch.put(piece, *_UNKNOWN, len(branch.text))
    return replace(branch, known=len(branch.ids), is_made=True)


@torch.inference_mode()
def attention(generator: TextGenerator, text: str, layer: int, head: int) -> Attention:
    """Which tokens a token looks at.

    Args:
        layer: counted from 1; beyond the last one, the last.
        head: counted from 1; 0 is the mean of all; beyond the last one, the last.

    Raises:
        ValueError: the text is empty, or has more than ``ATTENTION_TOKENS`` tokens.
    """
    if is_blank(text):
        raise ValueError("The text is empty: type something first")
    prompt = generator.prompt(text)
    if prompt.length > ATTENTION_TOKENS:
        raise ValueError(
            f"The text has {prompt.length:,} tokens; attention is shown for up to "
            f"{ATTENTION_TOKENS}. Shorten it"
        )
    ids = list(prompt.ids)
    config, model = generator.config, generator.model
    layer, head = min(layer, config.num_hidden_layers), min(head, config.num_attention_heads)
    out = model(torch.tensor([ids], device=model.device), output_attentions=True, logits_to_keep=1)
    assert out.attentions is not None
    heads = out.attentions[layer - 1][0].float().cpu()  # [H, T, T]
    weights = heads.mean(dim=0) if head == 0 else heads[head - 1]
    percents = [(100 * weights[t, : t + 1]).round().int().tolist() for t in range(len(ids))]
    return Attention(ids, percents, layer, head)


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many characters two texts begin with alike, or ids two lists."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
