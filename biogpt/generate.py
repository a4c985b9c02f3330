"""Token ids in, token ids out: greedy, sampled and beam search generation, one token at a time.

Nothing here knows text. Every search is a Python generator that computes only when asked for its next item, so that
``close()`` ends it at once and gives the cache back. Logits leave the model's device in float32 and everything after
happens on the CPU: one seed draws the same numbers on every machine.

Letters: B rows (beams), S tokens so far (prompt included), V vocabulary.
"""

import math
import secrets
from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from biogpt import sampling
from biogpt.cache import KVCache
from biogpt.config import BioGptConfig
from biogpt.heads import BioGptForCausalLM

_LEAST_SCORE = -1e9  # of a beam that does not exist yet; the reference's number
_SMALLEST_TEMPERATURE = 1e-6  # below it the division leaves the range of float32

_RANGES: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, math.inf),
    "min_new_tokens": (0, math.inf),
    "temperature": (0, 100),
    "top_k": (0, math.inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "no_repeat_ngram_size": (0, math.inf),
    "num_beams": (1, 32),
    "length_penalty": (-10, 10),
    "num_return_sequences": (1, 32),
    "seed": (0, 2**63 - 1),
    "top_logprobs": (0, 100),
}


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate; checked once, here. The defaults are greedy decoding, as in the reference.

    Attributes:
        max_new_tokens: most tokens to make.
        min_new_tokens: the end token is banned before so many tokens; 0 is off.
        temperature: 0 takes the most likely token each time and leaves top_k, top_p, min_p and seed unused;
            above 0 draws, flatter the higher.
        top_k: draw among the k most likely tokens; 0 is off.
        top_p: draw among the most likely tokens that together reach this probability; 1 is off.
        min_p: draw among tokens at least this many times as likely as the best one; 0 is off.
        repetition_penalty: above 1 makes tokens of the prompt and of the text so far less likely; 1 is off.
        no_repeat_ngram_size: no n-gram of so many tokens comes twice, the prompt included; 0 is off.
        num_beams: above 1 searches for the most likely text with so many beams; needs temperature 0.
        length_penalty: beams are ranked by log-probability / length ** length_penalty; above 0 favours long ones.
        early_stopping: when beam search ends. True: with num_beams finished; False: when none is likely to get
            better; "never": when none can.
        num_return_sequences: how many texts: the best beams, or independent samples (sample i has seed + i).
        stop: strings that end the text and are cut from it; one string, or several. Ids alone ignore them.
        seed: of the random numbers; None draws a new one each time, see ``with_seed``.
        top_logprobs: how many alternatives to report with each token.

    Raises:
        ValueError: a value is of the wrong type or out of range, or two contradict each other.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    stop: Sequence[str] = ()
    seed: int | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _RANGES and not (field.name == "seed" and value is None):
                _check_number(field.name, value, whole=field.type is not float)
        if 0 < self.temperature < _SMALLEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature}; expected 0, or at least {_SMALLEST_TEMPERATURE}"
            )
        if self.early_stopping != "never" and not isinstance(self.early_stopping, bool):
            raise ValueError(f"early_stopping is {self.early_stopping!r}; expected True, False or 'never'")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        self._check_together()

    def _check_together(self) -> None:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens {self.max_new_tokens}"
            )
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"num_beams is {self.num_beams} and temperature is {self.temperature}: beam search looks for the "
                "most likely text and draws nothing; set temperature to 0, or num_beams to 1"
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences}, but num_beams is {self.num_beams}; "
                "a beam search returns at most one sequence a beam"
            )
        if self.num_beams == 1 and self.temperature == 0 and self.num_return_sequences > 1:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences}, but temperature 0 makes the same text each "
                "time; set temperature above 0, or num_beams above 1"
            )

    def with_seed(self) -> "GenerationOptions":
        """The same with a seed: its own, or else one drawn now, to be shown and used again."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(2**32))


def _check_number(name: str, value: object, whole: bool) -> None:
    low, high = _RANGES[name]
    kind: tuple[type, ...] = (int,) if whole else (int, float)
    # "not (a <= b)" also refuses NaN.
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:  # type: ignore[operator]
        expected = "a whole number" if whole else "a number"
        bounds = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name} is {value!r}; expected {expected} {bounds}")


def _stop_strings(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) and s for s in strings):
        raise ValueError(f"stop is {stop!r}; expected strings that are not empty")
    return tuple(strings)


@dataclass(frozen=True)
class Token:
    """A generated token.

    Attributes:
        id: in the vocabulary; the end token is reported too, as the last one.
        logprob: natural logarithm of the probability that the model itself gave it, before penalties, bans and
            temperature.
        alternatives: ids and log-probabilities, by the same measure, of the most likely tokens, best first.
    """

    id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """A text that beam search considers.

    Attributes:
        tokens: made so far, prompt left out.
        score: sum of the log-probabilities, after penalties and bans, / length ** length_penalty.
        finished: it has ended; else the search may still extend it, or drop it.
    """

    tokens: tuple[Token, ...]
    score: float
    finished: bool

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def stream_tokens(
    model: BioGptForCausalLM, prompt_ids: Sequence[int], options: GenerationOptions
) -> Generator[Token, None, None]:
    """Continue a prompt greedily or by sampling, up to the end token or ``max_new_tokens``.

    Of several ``num_return_sequences`` it makes the first.

    Args:
        model: in evaluation mode.
        prompt_ids: S ids; a BioGPT prompt starts with the end token ``</s>``.

    Returns:
        A generator of tokens as they are made.

    Raises:
        ValueError: at once, before any compute: as ``stream_samples``.
    """
    samples = stream_samples(model, prompt_ids, options)

    def first() -> Generator[Token, None, None]:
        try:
            yield from next(samples)
        finally:
            samples.close()

    return first()


def stream_samples(
    model: BioGptForCausalLM, prompt_ids: Sequence[int], options: GenerationOptions
) -> Generator[Generator[Token, None, None], None, None]:
    """One token stream for each of ``num_return_sequences`` samples; the prompt is computed once.

    The streams share one cache: read, or drop, each before asking for the next. Sample i draws with ``seed`` + i.

    Raises:
        ValueError: at once, before any compute: no or unknown prompt ids; prompt and ``max_new_tokens`` beyond the
            model's positions; a model in training mode; options for beam search.
        FloatingPointError: from a stream, when the model's logits are not numbers.
    """
    if options.num_beams != 1:
        raise ValueError(f"num_beams is {options.num_beams}; use beam_search")
    _check_request(model, prompt_ids, options)
    return _samples(model, list(prompt_ids), options.with_seed())


def _samples(
    model: BioGptForCausalLM, prompt_ids: list[int], options: GenerationOptions
) -> Generator[Generator[Token, None, None], None, None]:
    assert options.seed is not None
    cache = _new_cache(model, len(prompt_ids), options)
    try:
        logits = next_logits(model, [prompt_ids], cache)
        for index in range(options.num_return_sequences):
            cache.truncate(len(prompt_ids))
            random = torch.Generator().manual_seed(options.seed + index)
            yield _continue(model, prompt_ids, options, cache, logits, random)
    finally:
        cache.release()


def _continue(
    model: BioGptForCausalLM,
    prompt_ids: list[int],
    options: GenerationOptions,
    cache: KVCache,
    logits: Tensor,
    random: torch.Generator,
) -> Generator[Token, None, None]:
    """Yield the tokens after a prompt that ``cache`` holds and whose last logits [1, V] are given."""
    ids = list(prompt_ids)
    eos = model.config.eos_token_id
    for made in range(options.max_new_tokens):
        if made > 0:
            logits = next_logits(model, [ids[-1:]], cache)
        scores = _apply_rules(logits, [ids], made, options, eos)
        chosen = scores.argmax() if options.temperature == 0 else _sample(scores, options, random)
        [[token_logprob]], [alternatives] = _report(logits, [[int(chosen)]], options.top_logprobs)
        token = Token(int(chosen), token_logprob, alternatives)
        yield token
        if token.id == eos:
            return
        ids.append(token.id)


def beam_search(
    model: BioGptForCausalLM, prompt_ids: Sequence[int], options: GenerationOptions
) -> Generator[list[Hypothesis], None, None]:
    """Search for the most likely continuations with ``num_beams`` beams.

    The results are those of ``generate`` in ``transformers`` 5.23 (``generation/utils.py``), id for id: of the
    2 x beams best continuations, those among the first ``num_beams`` that end are candidates for the result, and
    the best that do not end live on.

    Returns:
        A generator that yields after every step: the best running hypothesis alone while the search goes on, and
        finally the ``num_return_sequences`` best finished ones, best first.

    Raises:
        ValueError: at once, before any compute, as ``stream_samples``; or ``num_beams`` is 1.
    """
    if options.num_beams < 2:
        raise ValueError(f"num_beams is {options.num_beams}; beam search needs at least 2")
    _check_request(model, prompt_ids, options)
    return _beams(model, list(prompt_ids), options)


def _beams(
    model: BioGptForCausalLM, prompt_ids: list[int], options: GenerationOptions
) -> Generator[list[Hypothesis], None, None]:
    beams, eos = options.num_beams, model.config.eos_token_id
    running: list[tuple[Token, ...]] = [()] * beams
    # Only the first beam exists at the start: the others would repeat it.
    totals = torch.tensor([0.0] + [_LEAST_SCORE] * (beams - 1))  # [B] sums of log-probabilities
    finished: list[Hypothesis] = []
    cache = _new_cache(model, len(prompt_ids), options)
    try:
        logits = next_logits(model, [prompt_ids], cache).expand(beams, -1)
        cache.reorder(torch.zeros(beams, dtype=torch.int64, device=cache.keys.device))
        for length in range(1, options.max_new_tokens + 1):
            if length > 1:
                logits = next_logits(model, [[tokens[-1].id] for tokens in running], cache)
            ids = [prompt_ids + [token.id for token in tokens] for tokens in running]
            scores = _apply_rules(logits.log_softmax(dim=-1), ids, length - 1, options, eos) + totals[:, None]
            best = scores.flatten().topk(2 * beams)  # at most half of them end: each beam has one end token
            rows = best.indices // scores.shape[1]
            chosen = best.indices % scores.shape[1]
            ends = (chosen == eos) | (length == options.max_new_tokens)

            extended = _extend(running, logits, rows, chosen, options.top_logprobs)
            ranked = (best.values / length**options.length_penalty).tolist()
            finished += [Hypothesis(extended[i], ranked[i], finished=True) for i in range(beams) if ends[i]]
            finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beams]

            alive = (best.values + ends * _LEAST_SCORE).topk(beams).indices  # [B] of the 2 x B candidates
            running = [extended[i] for i in alive.tolist()]
            totals = best.values[alive]
            if length == options.max_new_tokens or _is_over(finished, totals[0], length, options):
                yield finished[: options.num_return_sequences]
                return
            cache.reorder(rows[alive].to(cache.keys.device))
            yield [Hypothesis(running[0], ranked[int(alive[0])], finished=False)]
    finally:
        cache.release()


def _extend(
    running: list[tuple[Token, ...]], logits: Tensor, rows: Tensor, chosen: Tensor, top_logprobs: int
) -> list[tuple[Token, ...]]:
    """Each candidate's tokens: those of its beam, ``rows``, and its own, ``chosen``."""
    by_row = chosen.expand(len(running), -1).tolist()
    logprobs, alternatives = _report(logits, by_row, top_logprobs)
    return [
        (*running[row], Token(token_id, logprobs[row][i], alternatives[row]))
        for i, (row, token_id) in enumerate(zip(rows.tolist(), chosen.tolist(), strict=True))
    ]


def _is_over(finished: list[Hypothesis], total: Tensor, length: int, options: GenerationOptions) -> bool:
    """Whether the best running beam, with this sum of log-probabilities, is not worth continuing."""
    if len(finished) < options.num_beams:
        return False
    if options.early_stopping is True:
        return True
    # "never" asks what a running beam could still reach; longer is better only under a positive penalty.
    if options.early_stopping == "never" and options.length_penalty > 0:
        length = options.max_new_tokens
    return float(total / length**options.length_penalty) <= finished[-1].score


@torch.inference_mode()
def next_logits(model: BioGptForCausalLM, ids: list[list[int]], cache: KVCache) -> Tensor:
    """Run new tokens [B, T] through the model; returns the last position's logits, [B, V] float32 on the CPU.

    Raises:
        FloatingPointError: a logit is NaN or infinite, as float16 can overflow.
    """
    input_ids = torch.tensor(ids, device=cache.keys.device)
    logits = model(input_ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].float().cpu()
    if not logits.isfinite().all():
        raise FloatingPointError(
            f"the model's logits are not finite in {str(cache.keys.dtype).removeprefix('torch.')}; "
            "load it in bfloat16 or float32"
        )
    return logits


def _apply_rules(
    logits: Tensor, ids: list[list[int]], made: int, options: GenerationOptions, eos: int
) -> Tensor:
    """The rules that hold for greedy, sampled and beam search alike.

    Args:
        logits: [B, V] logits or log-probabilities.
        ids: [B, S] tokens so far, of which the last ``made`` are new.
    """
    if options.repetition_penalty != 1:
        logits = sampling.penalize_repetition(logits, torch.tensor(ids), options.repetition_penalty)
    if options.no_repeat_ngram_size > 0:
        logits = sampling.ban_repeated_ngrams(logits, torch.tensor(ids), options.no_repeat_ngram_size)
    if made < options.min_new_tokens:
        logits = sampling.ban_token(logits, eos)
    return logits


def _sample(logits: Tensor, options: GenerationOptions, random: torch.Generator) -> Tensor:
    """Draw a token from logits [1, V] under the sampling rules; returns [1, 1]."""
    logits = sampling.scale_by_temperature(logits, options.temperature)
    if options.top_k > 0:
        logits = sampling.keep_top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = sampling.keep_top_p(logits, options.top_p)
    if options.min_p > 0:
        logits = sampling.keep_min_p(logits, options.min_p)
    return sampling.draw(logits, random)


def _report(
    logits: Tensor, chosen: list[list[int]], top: int
) -> tuple[list[list[float]], list[tuple[tuple[int, float], ...]]]:
    """What the model itself thinks of the chosen tokens.

    Args:
        logits: [B, V], before any rule.
        chosen: [B, C] ids.
        top: how many alternatives.

    Returns:
        Log-probabilities [B, C], and for each row its ``top`` most likely ids with their log-probabilities.
    """
    logprobs = logits.log_softmax(dim=-1)
    best = logprobs.topk(min(top, logits.shape[-1]), dim=-1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    alternatives = [tuple(zip(ids, values, strict=True)) for ids, values in pairs]
    return logprobs.gather(-1, torch.tensor(chosen)).tolist(), alternatives


def _new_cache(model: BioGptForCausalLM, prompt_length: int, options: GenerationOptions) -> KVCache:
    weight = model.get_input_embeddings().weight
    # The last token made is never fed back, so one position more than needed at most.
    return KVCache(model.config, 1, prompt_length + options.max_new_tokens, weight.device, weight.dtype)


def _check_request(model: BioGptForCausalLM, prompt_ids: Sequence[int], options: GenerationOptions) -> None:
    if model.training:
        raise ValueError("the model is in training mode, where dropout is random; call model.eval() first")
    check_length(model.config, len(prompt_ids), options)
    unknown = [token_id for token_id in prompt_ids if not 0 <= token_id < model.config.vocab_size]
    if unknown:
        raise ValueError(
            f"prompt_ids holds {unknown[0]}; the vocabulary ends at {model.config.vocab_size - 1}"
        )


def check_length(config: BioGptConfig, prompt_length: int, options: GenerationOptions) -> None:
    """Check that a prompt of so many tokens can be continued by ``max_new_tokens``.

    Raises:
        ValueError: it is empty, or both together are more than the model's positions.
    """
    limit = config.max_position_embeddings
    if prompt_length < 1:
        raise ValueError(f"prompt_ids is empty; give at least the start token, [{config.eos_token_id}]")
    if prompt_length >= limit:
        raise ValueError(
            f"the prompt has {prompt_length} tokens and the model {limit} positions, which leaves none for new text; "
            f"cut at least {prompt_length - limit + 1} tokens"
        )
    excess = prompt_length + options.max_new_tokens - limit
    if excess > 0:
        raise ValueError(
            f"{prompt_length} tokens of prompt and max_new_tokens {options.max_new_tokens} are more than the model's "
            f"{limit} positions; cut {excess} tokens of the prompt, or set max_new_tokens to "
            f"{limit - prompt_length} or less"
        )
