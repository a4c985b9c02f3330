"""Words that never come, or come more or less often: rules of ids, whatever the pieces of a word are."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Phrase:
    """A phrase as steps from one state to the next; state 0 is before its first token, which begins a word.

    Attributes:
        steps: for each state but the last, the ids that go on with the phrase, and the states they lead to.
        bias: added to the logits of those ids; -inf forbids only those that complete the phrase.
    """

    steps: Sequence[Mapping[int, int]]
    bias: float

    def biases(self, ids: Sequence[int], ends: Collection[int]) -> dict[int, float]:
        """What to add to the logits of the token after some ids, by id."""
        end = len(self.steps)
        begun: set[int] = set()  # states that the last ids have led to
        for before, token_id in pairwise(ids[-end - 1 :]):
            begun |= {0} if before in ends else set()
            begun = {self.steps[state][token_id] for state in begun if token_id in self.steps[state]} - {end}
        begun |= {0} if ids[-1] in ends else set()
        forbids = self.bias == -math.inf
        return {
            token_id: self.bias
            for state in begun
            for token_id, to in self.steps[state].items()
            if not forbids or to == end
        }


@dataclass(frozen=True)
class WordRules:
    """Phrases, and the ids after which a new word begins."""

    phrases: Sequence[Phrase] = ()
    ends: Collection[int] = ()

    def biases(self, ids: Sequence[int]) -> dict[int, float]:
        """What to add to the logits of the token after S ids, by id; the biases of several phrases add up."""
        total: dict[int, float] = {}
        for phrase in self.phrases:
            for token_id, bias in phrase.biases(ids, self.ends).items():
                total[token_id] = total.get(token_id, 0.0) + bias
        return total


NO_WORDS = WordRules()
