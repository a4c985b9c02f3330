"""Trees of continuations as text: of what is likely, from a prompt or a leaf on, and of a beam search."""

from collections.abc import Generator, Hashable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal

from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import Hypothesis
from biogpt.generation.tree import Node, TreeOptions
from biogpt.serving.inspection import ALTERNATIVES, Sample, piece_after
from biogpt.serving.service import Prompt, TextService

MOST_NODES = 2_000  # of a tree, however often it was expanded


@dataclass(frozen=True)
class Beam:
    """A path of a beam search, from the prompt to a last token.

    Attributes:
        score: by which the search ranks it, as of ``biogpt.generation.search.Hypothesis``.
        state: "alive" if the search would extend it next; "finished" if it has ended and is one of the best
            that have; else "dropped".
        step: of the search, in which it came to that; 1 is the first.
    """

    score: float
    state: Literal["alive", "finished", "dropped"]
    step: int


@dataclass
class BeamSearch:
    """How a beam search stands.

    Attributes:
        most, length_penalty: as ``num_beams`` and ``length_penalty`` of ``GenerationOptions``.
        steps: that were taken.
        beams: by the numbers of their last nodes; those alive, best first, then those finished, best first,
            then what was dropped, the last first.
        revised: how often another text became the best one, and not a longer one.
        is_over: it came to its end, and its first beam is the result.
    """

    most: int
    length_penalty: float
    steps: int = 0
    beams: dict[int, Beam] = field(default_factory=dict)
    revised: int = 0
    is_over: bool = False

    def count(self, state: str) -> int:
        return sum(beam.state == state for beam in self.beams.values())


@dataclass
class TextTree:
    """A tree and its texts; it is changed as it grows.

    Attributes:
        prompt: what it grows from.
        nodes: as of ``biogpt.generation.tree``; a parent comes before its children.
        texts: what each adds to the text before it, a space in front included.
        coming: the likeliest ids with their log-probabilities, by the number of the node that they are after,
            where those are not its children.
        search: that the paths are of; None: they are what is likely.
    """

    prompt: Prompt
    nodes: list[Node] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    coming: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    search: BeamSearch | None = None

    def path(self, number: int) -> list[int]:
        """The numbers of the nodes from the prompt to this one; errors as of a list."""
        path = []
        while number >= 0:
            path.append(number)
            number = self.nodes[number].parent
        return path[::-1]

    def is_leaf(self, number: int) -> bool:
        return all(node.parent != number for node in self.nodes)

    def sample(self, number: int) -> Sample:
        """The path to a node as a text that goes on from the prompt, with what else could have come."""
        sample = Sample(list(self.prompt.ids))
        for place in self.path(number):
            node = self.nodes[place]
            siblings = [other for other in self.nodes if other.parent == node.parent]
            others = sorted(((other.id, other.logprob) for other in siblings), key=lambda pair: -pair[1])
            others = list(self.coming.get(node.parent, others))
            sample.text += self.texts[place] if not node.ended else ""
            sample.put(node.id, node.logprob, tuple(others), len(sample.text))
            sample.finish_reason = "eos" if node.ended else None
        return sample


def grown(
    generator: TextService,
    tree: TextTree,
    options: TreeOptions,
    leaf: int = -1,
    session: Hashable = None,
) -> Generator[int | None, None, None]:
    """Grow a tree, from its prompt or from one of its leaves; closing this ends the work within a step.

    Yields:
        How many nodes there are, after each depth; None several times a second while there is nothing new.

    Raises:
        ValueError: the leaf is none, or the end of the text; there is no room for so many tokens; the tree
            has ``MOST_NODES`` already.
    """
    prompt = tree.prompt
    if leaf >= 0:
        if tree.search is not None:
            raise ValueError("a beam search does not go on from its paths; make a tree of likely branches")
        if leaf >= len(tree.nodes) or tree.nodes[leaf].ended or not tree.is_leaf(leaf):
            raise ValueError("that branch goes on already, or is the end of the text; choose a last one")
        if len(tree.nodes) >= MOST_NODES:
            raise ValueError(
                f"the tree has {len(tree.nodes):,} nodes, the most that are kept; make a new one"
            )
        ids = (*prompt.ids, *(tree.nodes[place].id for place in tree.path(leaf)))
        is_open = not generator.tokenizer.ends_word(ids[-1])
        prompt = Prompt(
            prompt.text + tree.sample(leaf).text, ids, prompt.room - len(ids) + prompt.length, is_open
        )
    options = replace(options, depth=_within(prompt, options.depth))
    if leaf < 0:
        prompt = tree.prompt = generator.reading(prompt, options.depth)
    first = len(tree.nodes)
    total = 0.0 if leaf < 0 else tree.nodes[leaf].total
    with closing(generator.grow(prompt, options, session)) as levels:
        for level in levels:
            if level is None:
                yield None
                continue
            for node in level:
                parent = leaf if node.parent < 0 else first + node.parent
                _add(generator, tree, replace(node, parent=parent, total=total + node.total))
            yield len(tree.nodes)


def searched(
    generator: TextService, tree: TextTree, options: GenerationOptions, session: Hashable = None
) -> Generator[int | None, None, None]:
    """Let a tree without nodes hold what a beam search does; closing this ends the work within a step.

    Args:
        options: with several ``num_beams``; fewer tokens are made where there is no room for so many. The
            best finished text is that of ``TextService.stream`` with these options.

    Yields:
        How many steps were taken, after each; None several times a second while there is nothing new.

    Raises:
        ValueError: there is one beam alone, or no room for a token.
    """
    if options.num_beams < 2:
        raise ValueError(f"num_beams is {options.num_beams}; a beam search needs 2 or more")
    options = replace(options, max_new_tokens=_within(tree.prompt, options.max_new_tokens))
    tree.prompt = generator.reading(tree.prompt, options.max_new_tokens)
    tree.search = BeamSearch(options.num_beams, options.length_penalty)
    told = replace(options, num_return_sequences=options.num_beams, top_logprobs=ALTERNATIVES)
    numbers: dict[tuple[int, int], int] = {}  # of nodes, by those of their parents and their ids
    with closing(generator.beams(tree.prompt, told, session)) as steps:
        for step in steps:
            if step is not None:
                _take(generator, tree, tree.search, step, numbers)
            yield None if step is None else tree.search.steps
    tree.search.is_over = True


def _take(
    generator: TextService,
    tree: TextTree,
    search: BeamSearch,
    held: list[Hypothesis],
    numbers: dict[tuple[int, int], int],
) -> None:
    """Take in all that a beam search holds after one more step, the text that is best now first."""
    search.steps += 1
    now: dict[int, Beam] = {}
    for hypothesis in held:
        last, total = -1, 0.0
        for token in hypothesis.tokens:
            total += token.logprob
            place = (last, token.id)
            if place not in numbers:
                tree.coming[last] = token.alternatives
                ended = token.id == generator.tokenizer.eos_token_id
                _add(generator, tree, Node(token.id, token.logprob, total, last, ended))
                numbers[place] = len(tree.nodes) - 1
            last = numbers[place]
        state: Literal["finished", "alive"] = "finished" if hypothesis.finished else "alive"
        now.setdefault(last, Beam(hypothesis.score, state, len(hypothesis.tokens)))
    gone_on = {tree.nodes[number].parent for number in now}
    dropped = {
        number: beam if beam.state == "dropped" else replace(beam, state="dropped", step=search.steps)
        for number, beam in search.beams.items()
        if number not in now and (beam.state != "alive" or number not in gone_on)
    }
    best = next(iter(now))
    search.revised += next(iter(search.beams), best) not in tree.path(best)
    search.beams = now | dict(sorted(dropped.items(), key=lambda pair: -pair[1].step))


def _within(prompt: Prompt, tokens: int) -> int:
    """So many tokens, or as many as there is room for."""
    if prompt.room < 1:
        raise ValueError(f"the text has {prompt.length:,} tokens, which leaves none for more; shorten it")
    return min(tokens, prompt.room)


def _add(generator: TextService, tree: TextTree, node: Node) -> None:
    """Put a node into a tree that has its parent."""
    prompt, parent = tree.prompt, node.parent
    before = [*prompt.ids, *(tree.nodes[place].id for place in tree.path(parent))]
    text = piece_after(generator.tokenizer, before, node.id)
    needs_no_space = parent < 0 and (not prompt.text or prompt.text[-1].isspace())
    tree.nodes.append(node)
    tree.texts.append(text.lstrip() if needs_no_space else text)
