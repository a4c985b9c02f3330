"""Trees of continuations as text: grown from a prompt, and further from any of their leaves."""

from collections.abc import Generator, Hashable
from contextlib import closing
from dataclasses import dataclass, field, replace

from biogpt.generation.tree import Node, TreeOptions
from biogpt.serving.inspection import Sample, piece_after
from biogpt.serving.service import Prompt, TextService

MOST_NODES = 2_000  # of a tree, however often it was expanded


@dataclass
class TextTree:
    """A tree and its texts; it is changed as it grows.

    Attributes:
        prompt: what it grows from.
        nodes: as of ``biogpt.generation.tree``; a parent comes before its children.
        texts: what each adds to the text before it, a space in front included.
    """

    prompt: Prompt
    nodes: list[Node] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

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
        """The path to a node as a text that goes on from the prompt, siblings as alternatives."""
        sample = Sample(list(self.prompt.ids))
        for place in self.path(number):
            node = self.nodes[place]
            siblings = [other for other in self.nodes if other.parent == node.parent]
            others = sorted(((other.id, other.logprob) for other in siblings), key=lambda pair: -pair[1])
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
    if prompt.room < 1:
        raise ValueError(f"the text has {prompt.length:,} tokens, which leaves none for more; shorten it")
    options = replace(options, depth=min(options.depth, prompt.room))
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
                tree.nodes.append(replace(node, parent=parent, total=total + node.total))
                before = [*tree.prompt.ids, *(tree.nodes[place].id for place in tree.path(parent))]
                text = piece_after(generator.tokenizer, before, node.id)
                needs_no_space = parent < 0 and (not prompt.text or prompt.text[-1].isspace())
                tree.texts.append(text.lstrip() if needs_no_space else text)
            yield len(tree.nodes)
