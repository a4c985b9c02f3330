"""A tree of likely continuations, grown a token deeper at each step; ids only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from biogpt.generation import sampling
from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import Choice, check_length
from biogpt.model.cache import KVCache
from biogpt.model.config import BioGptConfig

_MOST = {"branches": 8, "depth": 32, "width": 32}


@dataclass(frozen=True)
class TreeOptions:
    """How far a tree grows: ``branches`` x ``width`` x ``depth`` nodes at most.

    Attributes:
        branches: most children of a node, the likeliest ones, 1 to 8.
        depth: tokens of the longest path, 1 to 32.
        least: a node is left out if its probability, given what is before it, is below this; but for those
            right after the prompt, and for the likeliest of its siblings, so that each branch goes on.
        width: nodes of one depth that go on, those of the likeliest paths, 1 to 32.

    Raises:
        ValueError: a value is of the wrong type or out of range.
    """

    branches: int = 3
    depth: int = 6
    least: float = 0.05
    width: int = 12

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r}; expected a whole number from 1 to {most}")
        if type(self.least) not in (int, float) or not 0 <= self.least <= 1:
            raise ValueError(f"least is {self.least!r}; expected a number from 0 to 1")


@dataclass(frozen=True)
class Node:
    """A token that may come next.

    Attributes:
        id: in the vocabulary.
        logprob: natural logarithm of the probability that the model gives it after those before it.
        total: the sum of these along the path to it.
        parent: number of the node before it, counted in the order in which they were made; -1 is the prompt.
        ended: nothing comes after it: the end token.
    """

    id: int
    logprob: float
    total: float
    parent: int
    ended: bool


class Tree:
    """Grows the tree of a prompt; driven as ``biogpt.generation.search.Samples`` is.

    A row of the cache holds a path. All rows are fed at each step, so one that has no path repeats another.

    Args:
        banned, padding: as of ``biogpt.generation.search.start_search``; probabilities are those before bans.

    Raises:
        ValueError: prompt and depth are beyond the model's positions.
    """

    kept = None
    rules = None  # chosen here

    def __init__(
        self,
        config: BioGptConfig,
        prompt_ids: Sequence[int],
        options: TreeOptions,
        banned: Sequence[int] = (),
        padding: Sequence[int] = (),
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.options = GenerationOptions(max_new_tokens=options.depth)
        check_length(config, len(prompt_ids), self.options)
        self.rows = options.width
        self.feed: list[list[int]] = []
        self.done = False
        self.nodes: list[Node] = []
        self._tree = options
        self._eos, self._banned, self._padding = config.eos_token_id, banned, padding
        self._depth = 0
        self._live = [-1]  # numbers of the nodes that go on, a row each

    def advance(self, given: Tensor | Choice, cache: KVCache) -> list[Node]:
        """The nodes of the next depth, by the logits [B, V] (of the prompt [1, V]) of those before.

        Returns:
            They, best path first; the likeliest of them go on.
        """
        assert isinstance(given, Tensor), "nodes are chosen here"
        logprobs = sampling.ban_tokens(given[: len(self._live)], self._padding).log_softmax(dim=-1)
        best = sampling.ban_tokens(logprobs, self._banned).topk(
            min(self._tree.branches, given.shape[-1]), dim=-1
        )
        made: list[tuple[int, Node]] = []  # with the row of its parent
        for row, (parent, ids, values) in enumerate(
            zip(self._live, best.indices.tolist(), best.values.tolist(), strict=True)
        ):
            before = 0.0 if parent < 0 else self.nodes[parent].total
            for rank, (token_id, value) in enumerate(zip(ids, values, strict=True)):
                is_kept = rank == 0 or parent < 0 or math.exp(value) >= self._tree.least
                if is_kept and value > -math.inf:
                    made.append((row, Node(token_id, value, before + value, parent, token_id == self._eos)))
        made.sort(key=lambda pair: -pair[1].total)
        first = len(self.nodes)
        self.nodes += [node for _, node in made]
        self._depth += 1
        goes_on = [(first + place, row) for place, (row, node) in enumerate(made) if not node.ended]
        goes_on = goes_on[: self.rows]
        if not goes_on or self._depth == self._tree.depth:
            self.end_sequence()
            return self.nodes[first:]
        self._live = [number for number, _ in goes_on]
        rows = [row for _, row in goes_on]
        cache.reorder(torch.tensor(self._filled(rows), device=cache.device))
        self.feed = [[self.nodes[number].id] for number in self._filled(self._live)]
        return self.nodes[first:]

    @property
    def fed(self) -> list[list[list[int]]]:
        """As of ``biogpt.generation.search.Beams``: what the paths of the rows hold before ``feed``."""
        paths = [self._path(number) for number in self._filled(self._live)] if self.feed else []
        return [[[path[place]] for path in paths] for place in range(self._depth - 1)] if paths else []

    def end_sequence(self) -> None:
        """Leave the tree as it is."""
        self.feed, self.done = [], True

    def _filled(self, of_live: list[int]) -> list[int]:
        return of_live + of_live[-1:] * (self.rows - len(of_live))

    def _path(self, number: int) -> list[int]:
        ids: list[int] = []
        while number >= 0:
            ids.append(self.nodes[number].id)
            number = self.nodes[number].parent
        return ids[::-1]
