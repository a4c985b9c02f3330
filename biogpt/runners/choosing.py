"""The next token of many rows at once, chosen on the device where their logits are.

The rules are those of ``biogpt.generation.sampling`` in their order, as tensors with a number for each row,
so that one program of fixed shapes serves every mixture of requests and can be captured (``graphs``). A row's
choice depends on that row alone, to the bit: sums over the vocabulary that decide anything are of whole
numbers, which add up to the same in any order.

Letters: R rows, G of them that are computed, V vocabulary, S positions, A alternatives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from biogpt.generation.sampling import noise
from biogpt.generation.search import Choice, Rules
from biogpt.model.config import BioGptConfig

LONGEST_NGRAM = 10  # that is looked for here
_ALTERNATIVES = (0, 8, 100)  # how many are reported; of the numbers asked for, the next greater one
_WHOLE = 2.0**40  # parts that the share of the likeliest token is counted in


class Needs(NamedTuple):
    """What any of the rows of a step asks for; the rest is left out of its program.

    Attributes:
        draws: temperature above 0.
        cuts: top-k, top-p or min-p.
        repeats: repetition penalty or n-grams.
        alternatives: A.
    """

    draws: bool
    cuts: bool
    repeats: bool
    alternatives: int

    @classmethod
    def of(cls, several: Sequence[Rules]) -> "Needs":
        options = [rules.options for rules in several]
        drawn = [option for option in options if option.temperature > 0]
        most = max((option.top_logprobs for option in options), default=0)
        return cls(
            draws=bool(drawn),
            cuts=any(option.top_k or option.top_p < 1 or option.min_p for option in drawn),
            repeats=any(option.repetition_penalty != 1 or option.no_repeat_ngram_size for option in options),
            alternatives=next(count for count in _ALTERNATIVES if count >= most),
        )


class Chooser:
    """What is known of each row, on the device, and the choice by it.

    Args:
        config: of the model.
        rows: R.
        device: where the logits are.

    Attributes:
        logits: [R, V] float32, to be written before a choice.
        places: [R] positions of the tokens that are fed; one beyond the model's last one in idle rows.
        fed: [R] the tokens to be fed, or -1: those of ``ids``.
        given: [R, 2], of which places and fed are the columns.
        ids: [R] the tokens to be fed next, which a choice writes for the rows that are not idle.
        history: [R, S + 1] the tokens fed so far, by position; the last column takes what idle rows are fed.
        out: [R, 2 + 2 A] float64: of each row the token, its log-probability, and the alternatives' tokens
            and log-probabilities.
        state: all that belongs to a row, its number first.
    """

    def __init__(self, config: BioGptConfig, rows: int, device: torch.device) -> None:
        vocabulary, limit = config.vocab_size, config.max_position_embeddings
        self._eos, self.limit = config.eos_token_id, limit
        self._device = device
        most = min(_ALTERNATIVES[-1], vocabulary)
        self.given = torch.zeros(rows, 2, dtype=torch.int64, device=device)
        self.places, self.fed = self.given.unbind(1)
        whole = torch.zeros(6, rows, dtype=torch.int64, device=device)
        self.ids, self._seeds, self._starts, self._ngrams, self._least, self._top_k = whole
        self._temperatures, self._penalties, self._min_p = torch.ones(3, rows, device=device)
        self._cut_off = torch.zeros(rows, dtype=torch.float64, device=device)  # 1 - top-p
        self._greedy = torch.ones(rows, dtype=torch.bool, device=device)
        self._padding, self._banned = torch.zeros(2, rows, vocabulary, dtype=torch.bool, device=device)
        self.history = torch.zeros(rows, limit + 1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(rows, vocabulary, device=device)
        self.out = torch.zeros(rows, 2 + 2 * most, dtype=torch.float64, device=device)
        self._tokens = torch.arange(vocabulary, device=device)
        self._columns = torch.arange(limit + 1, device=device)
        self.state = [
            *(self.ids, self._seeds, self._starts, self._ngrams, self._least, self._top_k),
            *(self._temperatures, self._penalties, self._min_p, self._cut_off, self._greedy),
            *(self._padding, self._banned, self.history),
        ]

    @staticmethod
    def size(config: BioGptConfig) -> int:
        """Bytes that a row takes, some intermediate results included."""
        return 100 * config.vocab_size + 8 * config.max_position_embeddings

    @staticmethod
    def knows(rules: Rules) -> bool:
        """Whether it can choose by these rules; the search itself can by all."""
        options = rules.options
        counts = (options.presence_penalty, options.frequency_penalty)
        is_rare = options.typical_p < 1 or any(counts) or options.logit_bias or rules.words.phrases
        return options.no_repeat_ngram_size <= LONGEST_NGRAM and not is_rare

    def set(self, row: int, rules: Rules) -> None:
        """Let a row be chosen by these rules from now on."""
        options = rules.options
        numbers: tuple[tuple[Tensor, float], ...] = (
            (self._seeds, rules.seed),
            (self._starts, rules.start),
            (self._ngrams, options.no_repeat_ngram_size),
            (self._least, options.min_new_tokens),
            (self._top_k, min(options.top_k, len(self._tokens))),
            (self._temperatures, options.temperature or 1.0),
            (self._penalties, options.repetition_penalty),
            (self._min_p, options.min_p),
            (self._cut_off, 1 - options.top_p),
            (self._greedy, options.temperature == 0),
        )
        for part, number in numbers:
            part[row] = number
        for mask, ids in ((self._padding, rules.padding), (self._banned, rules.banned)):
            mask[row] = False
            if ids:
                mask[row, torch.tensor(ids, device=self._device)] = True

    def width(self, needs: Needs) -> int:
        """How many numbers of each row of ``out`` a choice writes."""
        return 2 + 2 * min(needs.alternatives, len(self._tokens))

    def choose(self, count: int, needs: Needs) -> None:
        """Choose for the first ``count`` rows by their logits; writes ``out`` and ``ids``."""
        rows = slice(0, count)
        places, logits = self.places[rows], self.logits[rows]
        is_broken = ~logits.sum(dim=-1, keepdim=True).isfinite()
        logits = logits.masked_fill(self._padding[rows], -torch.inf)
        made = places + 1 - self._starts[rows]
        scores = self._without_repeats(logits, rows) if needs.repeats else logits
        scores = scores.masked_fill(self._banned[rows], -torch.inf)
        # No torch.where with a number: on a GPU that copies the number, which no capture allows.
        scores[:, self._eos] = scores[:, self._eos].masked_fill(made < self._least[rows], -torch.inf)
        if needs.draws:
            best = scores.amax(dim=-1, keepdim=True)
            drawn = (scores - best) / self._temperatures[rows, None]
            if needs.cuts:
                drawn = self._cut(drawn, rows)
            drawn = drawn + noise(self._seeds[rows], made, self._tokens)
            scores = torch.where(self._greedy[rows, None], scores, drawn)
        chosen = scores.argmax(dim=-1, keepdim=True)  # the first of equals
        logprobs = logits.log_softmax(dim=-1)
        logprob = logprobs.gather(-1, chosen).masked_fill(is_broken, torch.nan)
        parts = [chosen.double(), logprob.double()]
        if alternatives := min(needs.alternatives, logits.shape[-1]):
            best_ids = _ranked(logprobs, self._tokens).topk(alternatives, dim=-1).indices
            parts += [best_ids.double(), logprobs.gather(-1, best_ids).double()]
        self.out[rows, : 2 + 2 * alternatives] = torch.cat(parts, dim=-1)
        self.ids[rows] = torch.where(places < self.limit, chosen[:, 0], self.ids[rows])

    def _without_repeats(self, scores: Tensor, rows: slice) -> Tensor:
        """Scores [G, V] after repetition penalty and n-grams."""
        places, history, vocabulary = self.places[rows], self.history[rows], scores.shape[-1]
        is_known = self._columns <= places[:, None]  # [G, S + 1]
        # One column beyond the vocabulary takes the positions that do not count.
        none = torch.zeros(len(scores), vocabulary + 1, dtype=torch.bool, device=self._device)
        seen = none.scatter(-1, history.masked_fill(~is_known, vocabulary), True)[:, :vocabulary]
        penalties = self._penalties[rows, None]
        scores = torch.where(seen, torch.where(scores < 0, scores * penalties, scores / penalties), scores)
        ngrams = self._ngrams[rows, None]
        is_begun = is_known & (ngrams > 0)  # by what comes before each position, as far as compared
        for back in range(1, LONGEST_NGRAM):
            last = history.gather(-1, (places[:, None] + 1 - back).clamp(min=0))  # [G, 1]
            before = F.pad(history[:, :-back], (back, 0), value=-1)
            is_begun = is_begun & ((ngrams <= back) | (before == last))
        banned = none.scatter(-1, history.masked_fill(~is_begun, vocabulary), True)
        return scores.masked_fill(banned[:, :vocabulary], -torch.inf)

    def _cut(self, scores: Tensor, rows: slice) -> Tensor:
        """Scores [G, V], of which the best is 0, after top-k, top-p and min-p."""
        ascending, order = scores.sort(dim=-1, stable=True)
        top_k = self._top_k[rows, None]
        least = ascending.gather(-1, (scores.shape[-1] - top_k).clamp(max=scores.shape[-1] - 1))
        is_out = (ascending < least) & (top_k > 0)
        shares = (ascending.exp().double() * _WHOLE).long().masked_fill(is_out, 0)
        sums = shares.cumsum(dim=-1)
        cut_off = self._cut_off[rows, None]
        is_tail = (sums.double() <= cut_off * sums[:, -1:].double()) & (cut_off > 0)
        is_tail[:, -1].zero_()
        is_cut = torch.zeros_like(is_out).scatter(-1, order, is_out | is_tail)
        return scores.masked_fill(is_cut | (scores.exp() < self._min_p[rows, None]), -torch.inf)


def choice_of(numbers: Sequence[float], rules: Rules) -> Choice:
    """What a row of ``Chooser.out`` says, with as many alternatives as its rules ask for."""
    token_id, logprob, *others = numbers
    half = len(others) // 2
    pairs = zip(map(int, others[:half]), others[half:], strict=True)
    return Choice(int(token_id), logprob, tuple(pairs)[: rules.options.top_logprobs])


def _ranked(numbers: Tensor, tokens: Tensor) -> Tensor:
    """Whole numbers in the order of float32 ones, [..., V]; of equals the first is the greatest.

    So that which of equals is taken does not depend on the kernel that sorts.
    """
    bits = numbers.view(torch.int32).long()
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) | (len(tokens) - tokens)
