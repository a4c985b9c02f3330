"""Which token comes next: greedy and sampled continuations, beam search; ids only.

Nothing here knows text, and nothing computes logits: ``biogpt.serving.engine`` drives many searches at once.
What is computed here is computed on the CPU in float32. A runner may choose where it computes, for many rows
at once, by the ``Rules`` of a search; random numbers are the same on every machine (``sampling.noise``).

Letters: B rows (beams), S tokens so far (prompt included), V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from biogpt.generation import sampling
from biogpt.generation.options import GenerationOptions
from biogpt.generation.words import NO_WORDS, WordRules
from biogpt.model.cache import KVCache
from biogpt.model.config import BioGptConfig

_LEAST_SCORE = -1e9  # of a beam that does not exist yet; the reference's number


@dataclass(frozen=True)
class Token:
    """A generated token.

    Attributes:
        id: in the vocabulary; the end token is reported too, as the last one.
        logprob: natural logarithm of the probability that the model itself gave it, before penalties, bans
            and temperature.
        alternatives: ids and log-probabilities, by the same measure, of the most likely tokens, best first.
        sequence: which of ``num_return_sequences`` samples it belongs to.
        last: it ends its sample: the end token, or the last of ``max_new_tokens``.
    """

    id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()
    sequence: int = 0
    last: bool = False


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


class _Apart(NamedTuple):
    """Ids that a search treats apart: the end, and those of ``start_search``."""

    eos: int
    banned: Sequence[int]
    padding: Sequence[int]
    words: WordRules


class Choice(NamedTuple):
    """What was chosen for a row, as in ``Token``.

    ``logprob`` is not a number where the model's logits are not.
    """

    id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Rules:
    """What the tokens of one sample are chosen by.

    Attributes:
        seed: of the sample; the token at place i of its text is drawn by seed and i.
        start: S of the prompt, the position of the sample's first token.
        banned, padding, words: as of ``start_search``.
    """

    options: GenerationOptions
    seed: int
    start: int
    banned: tuple[int, ...]
    padding: tuple[int, ...]
    words: WordRules = NO_WORDS


class Samples:
    """Greedy or sampled continuations of a prompt, ``num_return_sequences`` of them, one after another.

    A search is all that a request knows of its texts. It computes no logits: whoever drives it runs ``feed``
    through the model with its cache and hands the logits to ``advance``, or what was chosen from them by
    ``rules``, until ``done``. Sample i draws with ``seed`` + i.

    Attributes:
        prompt_ids: S ids; a BioGPT prompt starts with the end token ``</s>``.
        feed: the token that the model must read next, [[id]]; empty before the first and between two samples.
        rules: of the sample at hand; None before the first.
        kept: logits [1, V] for ``advance`` that need no computing: those of the prompt, at the start of a
            next sample.
        done: no more tokens are to come.
    """

    rows = 1  # of the cache

    def __init__(self, prompt_ids: Sequence[int], options: GenerationOptions, apart: _Apart) -> None:
        self.prompt_ids = list(prompt_ids)
        self.options = options.with_seed()
        self.feed: list[list[int]] = []
        self.rules: Rules | None = None
        self.kept: Tensor | None = None
        self.done = False
        self._apart = apart
        self._sequence = -1
        self._prompt_logits: Tensor | None = None
        self._made: list[int] = []

    def advance(self, given: Tensor | Choice, cache: KVCache) -> "Token":
        """Take the next token, or choose it by the logits [1, V] of the position before it."""
        if not self.feed:
            assert isinstance(given, Tensor), "the first token of a sample is chosen here"
            self._begin(given, cache)
        token_id, logprob, alternatives = given if isinstance(given, Choice) else self._choose(given)
        self._made.append(token_id)
        self.feed = [[token_id]]
        ended = token_id == self._apart.eos or len(self._made) == self.options.max_new_tokens
        token = Token(token_id, logprob, alternatives, self._sequence, ended)
        if ended:
            self.end_sequence()
        return token

    def _choose(self, logits: Tensor) -> Choice:
        assert self.rules is not None
        logits = sampling.ban_tokens(logits, self._apart.padding)
        made = len(self._made)
        scores = _apply_rules(logits, [self.prompt_ids + self._made], made, self.options, self._apart)
        if self.options.temperature == 0:
            # The first of equals, as torch's, which takes ten times as long.
            chosen = int(scores[0].numpy().argmax())
        else:
            chosen = sampling.draw(_cut(scores, self.options)[0], self.rules.seed, made)
        [[logprob]], [alternatives] = _report(logits, [[chosen]], self.options.top_logprobs)
        return Choice(chosen, logprob, alternatives)

    @property
    def fed(self) -> list[list[list[int]]]:
        """What ``feed`` was before, from the first time on since the cache held the prompt alone."""
        return [[[token_id]] for token_id in self._made[:-1]] if self.feed else []

    def end_sequence(self) -> None:
        """Leave the sample as it is, and go on to the next one if there is one."""
        self.feed = []
        self.kept = self._prompt_logits
        self.done = self._sequence + 1 == self.options.num_return_sequences

    def _begin(self, logits: Tensor, cache: KVCache) -> None:
        assert self.options.seed is not None
        cache.truncate(len(self.prompt_ids))
        self.kept, self._prompt_logits = None, logits
        self._sequence += 1
        self._made = []
        self.rules = Rules(
            self.options,
            (self.options.seed + self._sequence) % 2**63,
            len(self.prompt_ids),
            tuple(self._apart.banned),
            tuple(self._apart.padding),
            self._apart.words,
        )


class Beams:
    """Beam search for the likeliest continuations of one prompt; driven as ``Samples`` is.

    The results are those of ``generate`` in ``transformers`` 5.23 (``generation/utils.py``), id for id: of
    the 2 x beams best continuations, those among the first ``num_beams`` that end are candidates for the
    result, and the best that do not end live on.
    """

    kept = None
    rules = None  # chosen here

    def __init__(self, prompt_ids: Sequence[int], options: GenerationOptions, apart: _Apart) -> None:
        self.prompt_ids = list(prompt_ids)
        self.options = options
        self.rows = options.num_beams
        self.feed: list[list[int]] = []
        self.done = False
        self._apart = apart
        self._length = 0
        self._running: list[tuple[Token, ...]] = [()] * self.rows
        # Only the first beam exists at the start: the others would repeat it.
        self._totals = torch.tensor([0.0] + [_LEAST_SCORE] * (self.rows - 1))  # [B] sums of log-probabilities
        self._finished: list[Hypothesis] = []

    def advance(self, given: Tensor | Choice, cache: KVCache) -> list["Hypothesis"]:
        """One more token for every beam, by the logits [B, V] (of the prompt [1, V]) of the position before.

        Returns:
            While the search goes on, the hypotheses that it would extend next, and then those of the
            ``num_beams`` best finished ones that there are; finally the ``num_return_sequences`` best
            finished ones. Best first each time.
        """
        assert isinstance(given, Tensor), "beams are chosen here"
        options, beams = self.options, self.rows
        logits = sampling.ban_tokens(given, self._apart.padding)
        if not self._length:
            logits = logits.expand(beams, -1)
            cache.reorder(torch.zeros(beams, dtype=torch.int64, device=cache.device))
        self._length += 1
        ids = [self.prompt_ids + [token.id for token in tokens] for tokens in self._running]
        logprobs = logits.log_softmax(dim=-1)
        scores = _apply_rules(logprobs, ids, self._length - 1, options, self._apart)
        scores = scores + self._totals[:, None]
        best = scores.flatten().topk(2 * beams)  # at most half of them end: each beam has one end token
        rows = best.indices // scores.shape[1]
        chosen = best.indices % scores.shape[1]
        ends = (chosen == self._apart.eos) | (self._length == options.max_new_tokens)

        extended = _extend(self._running, logits, rows, chosen, options.top_logprobs)
        ranked = (best.values / self._length**options.length_penalty).tolist()
        finished = [Hypothesis(extended[i], ranked[i], finished=True) for i in range(beams) if ends[i]]
        finished = sorted(self._finished + finished, key=lambda hypothesis: -hypothesis.score)[:beams]

        alive = (best.values + ends * _LEAST_SCORE).topk(beams).indices  # [B] of the 2 x B candidates
        self._running = [extended[i] for i in alive.tolist()]
        self._totals, self._finished = best.values[alive], finished
        if self._length == options.max_new_tokens or _is_over(
            finished, self._totals[0], self._length, options
        ):
            self.feed, self.done = [], True
            return finished[: options.num_return_sequences]
        cache.reorder(rows[alive].to(cache.device))
        self.feed = [[tokens[-1].id] for tokens in self._running]
        is_real = best.values > _LEAST_SCORE / 2  # of a beam that exists
        living = [
            Hypothesis(extended[i], ranked[i], finished=False)
            for place, i in enumerate(alive.tolist())
            if place == 0 or is_real[i]
        ]
        return living + finished

    @property
    def fed(self) -> list[list[list[int]]]:
        """As if all that the beams hold now had been fed to them, and not to those that they come from."""
        before = self._length - 1 if self.feed else 0
        return [[[tokens[place].id] for tokens in self._running] for place in range(before)]

    def end_sequence(self) -> None:
        """End the search as it is."""
        self.feed, self.done = [], True


Search = Samples | Beams


def start_search(
    config: BioGptConfig,
    prompt_ids: Sequence[int],
    options: GenerationOptions,
    banned: Sequence[int] = (),
    padding: Sequence[int] = (),
    words: WordRules = NO_WORDS,
) -> Search:
    """The search that the options ask for, checked before any compute.

    Args:
        prompt_ids: S ids.
        banned: ids that never come; none, as in the reference, unless the caller names some.
        padding: ids that are no token's: of the rows that fill an embedding up to a round size. The search is
            as if the model had none of them.
        words: rules for some words.

    Raises:
        ValueError: no or unknown prompt ids, or a bias of one; prompt and ``max_new_tokens`` beyond the
            model's positions.
    """
    check_length(config, len(prompt_ids), options)
    unknown = [token_id for token_id in prompt_ids if not 0 <= token_id < config.vocab_size]
    if unknown:
        raise ValueError(f"prompt_ids holds {unknown[0]}; the vocabulary ends at {config.vocab_size - 1}")
    unknown = [token_id for token_id in dict(options.logit_bias) if not 0 <= token_id < config.vocab_size]
    if unknown:
        raise ValueError(f"logit_bias names {unknown[0]}; the vocabulary ends at {config.vocab_size - 1}")
    kind = Beams if options.num_beams > 1 else Samples
    return kind(prompt_ids, options, _Apart(config.eos_token_id, banned, padding, words))


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


def _apply_rules(
    logits: Tensor, ids: list[list[int]], made: int, options: GenerationOptions, apart: _Apart
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
    if made > 0 and (options.presence_penalty != 0 or options.frequency_penalty != 0):
        new = torch.tensor([row[-made:] for row in ids])
        logits = sampling.penalize_counts(logits, new, options.presence_penalty, options.frequency_penalty)
    logits = sampling.add_biases(logits, dict(options.logit_bias))
    if apart.words.phrases:
        rows = zip(logits, ids, strict=True)
        logits = torch.stack([sampling.add_biases(row, apart.words.biases(before)) for row, before in rows])
    early = [apart.eos] if made < options.min_new_tokens else []
    return sampling.ban_tokens(logits, [*apart.banned, *early])


def _cut(logits: Tensor, options: GenerationOptions) -> Tensor:
    """The distribution to draw from, as logits [1, V]: temperature, and what is cut off."""
    logits = sampling.scale_by_temperature(logits, options.temperature)
    if options.top_k > 0:
        logits = sampling.keep_top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = sampling.keep_top_p(logits, options.top_p)
    if options.min_p > 0:
        logits = sampling.keep_min_p(logits, options.min_p)
    if options.typical_p < 1:
        logits = sampling.keep_typical_p(logits, options.typical_p)
    return logits


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
            f"the prompt has {prompt_length} tokens and the model {limit} positions, "
            "which leaves none for new text; "
            f"cut at least {prompt_length - limit + 1} tokens"
        )
    excess = prompt_length + options.max_new_tokens - limit
    if excess > 0:
        raise ValueError(
            f"{prompt_length} tokens of prompt and max_new_tokens "
            f"{options.max_new_tokens} are more than the model's "
            f"{limit} positions; cut {excess} tokens of the prompt, or set max_new_tokens to "
            f"{limit - prompt_length} or less"
        )
