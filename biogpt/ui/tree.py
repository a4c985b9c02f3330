"""The tree of continuations in the Write tab: what is likely to come next, or all that a beam search held."""

import html
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from biogpt.generation.tree import TreeOptions
from biogpt.serving.inspection import Sample
from biogpt.serving.shelf import Shelf
from biogpt.serving.tree import BeamSearch, TextTree, grown, searched
from biogpt.text.plain import is_blank
from biogpt.ui.models import title
from biogpt.ui.runs import KEEP, QUICK
from biogpt.ui.scripts import TREE, TREE_EVENTS, Buttons, script
from biogpt.ui.status import REFUSALS, counted, refusal, status
from biogpt.ui.writing import options_of

# The service's own line says who waits.
_TOGETHER: dict[str, Any] = {"concurrency_id": "generation", "concurrency_limit": 32}
_WIDTH = 12  # paths that go on at each depth
_EMPTY: dict[str, Any] = {"prompt": "", "nodes": []}
_LIKELY, _BEAMS = "Likely branches", "Beam search"
_INTRO = (
    '<p class="remark">It grows from the end of the text, or from the cursor; what is after the cursor stays '
    "behind a branch that is kept.</p>"
)
_OF_LIKELY = '<p class="remark">What is likely to come next, branch by branch.</p>'
_OF_BEAMS = (
    '<p class="remark">How the likeliest whole text is looked for: at each step the best paths live on, and '
    "the others are dropped. It is the search of Generate with as many beams, by the rules of Settings "
    "(no-repeat n-grams, penalties, words); nothing is drawn.</p>"
)


@dataclass
class Planted:
    """A visitor's tree.

    Attributes:
        model: name of the one that grows it.
        rest: the text after the point that it grows from.
    """

    model: str
    tree: TextTree
    rest: str = ""


Keep = Callable[[str, str, Sample, str, str, Any], tuple[Any, ...]]


def told(model: str, tree: TextTree) -> dict[str, Any]:
    """A tree as JSON can hold it: a flat list, parents before their children."""
    nodes = [
        {
            "parent": node.parent,
            "text": text,
            "id": node.id,
            "logprob": node.logprob,
            "total": node.total,
            "ended": node.ended,
        }
        for node, text in zip(tree.nodes, tree.texts, strict=True)
    ]
    whole = {"model": model, "prompt": tree.prompt.text, "nodes": nodes}
    return whole if tree.search is None else {**whole, "search": _told(tree.search)}


def _told(search: BeamSearch) -> dict[str, Any]:
    beams = [
        {"node": number, "state": beam.state, "score": beam.score, "step": beam.step}
        for number, beam in search.beams.items()
    ]
    return {
        "num_beams": search.most,
        "length_penalty": search.length_penalty,
        "steps": search.steps,
        "revised": search.revised,
        "is_over": search.is_over,
        "beams": beams,
    }


def tree_panel(
    shelf: Shelf,
    model: gr.State,
    text: gr.Textbox,
    work: gr.State,
    rules: list[Any],
    keep: Keep,
    written: list[Any],
) -> None:
    """Lay the panel out in the Blocks at hand and connect it.

    Args:
        model: the name of the visitor's model.
        text: that the tree grows from.
        work: what was written.
        rules: the settings that a beam search has, too, in the order of ``options.ON_PAGE``.
        keep: gives values of ``written``, given model, prompt, path, the text after it, the text so far, and
            what was written.
    """
    planted = gr.State(None, time_to_live=KEEP)
    with gr.Accordion("Tree of continuations", open=False, elem_id="tree-panel"):
        kind = gr.Radio([_LIKELY, _BEAMS], value=_LIKELY, label="Kind", show_label=False, elem_id="tree-kind")
        gr.HTML(_OF_LIKELY, elem_classes="likely")
        gr.HTML(_OF_BEAMS, elem_classes="beams")
        gr.HTML(_INTRO)
        with gr.Row(elem_classes="likely"):
            branches = gr.Slider(1, 5, 3, step=1, label="Branches", info="Of each node, at most.")
            depth = gr.Slider(1, 16, 5, step=1, label="Depth", info="Tokens of the longest path.")
            least = gr.Slider(0, 50, 10, step=1, label="At least, %", info="Leave out less likely ones.")
        with gr.Row(elem_classes="beams"):
            most = gr.Slider(2, 8, 4, step=1, label="Width", info="Paths kept.")
            tokens = gr.Slider(1, 32, 12, step=1, label="Tokens", info="Of the longest path.")
            penalty = gr.Slider(0, 2, 1, step=0.1, label="Length penalty", info="0: short texts win.")
        with gr.Row(elem_classes="actions"):
            make = gr.Button("Make a tree", size="sm", elem_id="tree-make")
            cursor = gr.Button("From the cursor", size="sm", elem_id="tree-cursor")
            stop = gr.Button("Stop", size="sm", interactive=False, elem_id="tree-stop", elem_classes="stop")
        line = gr.HTML(status("Ready"), elem_id="tree-status", elem_classes="run-status")
        view = gr.HTML(
            _EMPTY, html_template=TREE, js_on_load=TREE_EVENTS, apply_default_css=False, elem_id="tree"
        )
    settings = [kind, branches, depth, least, most, tokens, penalty, *rules]
    outputs = [view, line, planted]
    buttons = [make, cursor, stop]
    clicks = Buttons("tree", len(buttons))

    def plant(
        name: str, start: str, rest: str, request: gr.Request, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        try:
            if is_blank(start):
                raise ValueError("There is no text: type the start of a sentence, or take an example")
            for generator in shelf.coming(name):
                if generator is None:
                    yield gr.skip(), status("Loading", html.escape(title(name))), gr.skip()
            assert generator is not None
            new = Planted(name, TextTree(generator.prompt(start)), rest)
            yield from _growing(shelf, new, -1, request.session_hash, values)
        except REFUSALS as error:
            yield gr.skip(), refusal(error, "Not grown"), gr.skip()

    def plant_at_the_end(name: str, given: str, request: gr.Request, *values: Any) -> Iterator[Any]:
        yield from plant(name, given, "", request, *values)

    def expand(
        old: Planted | None, event: gr.EventData, request: gr.Request, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        try:
            if old is None:
                raise ValueError("That tree is gone: make a new one")
            yield from _growing(shelf, old, int(event.node), request.session_hash, (_LIKELY, *values[1:]))
        except REFUSALS as error:
            yield gr.skip(), refusal(error, "Not grown"), gr.skip()

    def take(given: str, old: Planted | None, before: Any, event: gr.EventData) -> tuple[Any, ...]:
        if old is None or not 0 <= int(event.node) < len(old.tree.nodes):
            return (*(gr.skip() for _ in written), status("That branch is gone: make a new tree"))
        sample = old.tree.sample(int(event.node))
        kept = keep(old.model, old.tree.prompt.text, sample, old.rest, given, before)
        return (*kept, status("Kept", "Undo takes the text back."))

    point, rest = gr.Textbox(visible=False), gr.Textbox(visible=False)
    split = cursor.click(None, text, [point, rest], js=script("parted"))
    runs: list[Any] = []
    for listen, run, inputs in (
        (make.click, plant_at_the_end, [model, text, *settings]),
        (split.then, plant, [model, point, rest, *settings]),
        (view.select, expand, [planted, *settings]),
    ):
        listen(None, None, buttons, js=clicks.begun)
        event = listen(
            run,
            inputs,
            outputs,
            show_progress="minimal",
            show_progress_on=line,
            api_visibility="private",
            **_TOGETHER,
        )
        event.then(None, None, buttons, js=clicks.ended)
        event.failure(None, None, buttons, js=clicks.broken_off)
        runs.append(event)
    stop.click(None, None, None, js=clicks.stop)
    stop.click(None, cancels=runs).then(_stopped, planted, line, **QUICK).then(
        None, None, buttons, js=clicks.stopped
    )
    view.submit(take, [text, planted, work], [*written, line], **QUICK)


def _growing(
    shelf: Shelf, planted: Planted, leaf: int, session: Any, values: tuple[Any, ...]
) -> Iterator[tuple[Any, ...]]:
    kind, branches, depth, least, beams, tokens, penalty, *rules = values
    generator, tree = shelf.take(planted.model), planted.tree
    if kind == _BEAMS:
        chosen = {"num_beams": int(beams), "max_new_tokens": int(tokens), "length_penalty": float(penalty)}
        asked = options_of(rules, {**chosen, "temperature": 0.0})
        growth, state = searched(generator, tree, asked, session), "Searching"
    else:
        options = TreeOptions(int(branches), int(depth), least / 100, _WIDTH)
        growth, state = grown(generator, tree, options, leaf, session), "Growing"
    with closing(growth) as steps:
        yield gr.skip(), status("Reading the text"), planted
        for count in steps:
            if count is None:
                yield gr.skip(), status(state if tree.nodes else "Waiting"), gr.skip()
            else:
                facts = counted(count, "token") if tree.search is None else _standing(tree.search)
                yield _shown(planted), status(state, facts), gr.skip()
    yield _shown(planted), _line("Finished", planted), gr.skip()


def _shown(planted: Planted) -> dict[str, Any]:
    return told(planted.model, planted.tree)


def _standing(search: BeamSearch) -> str:
    """How a beam search stands, in words."""
    if not search.steps:
        return ""
    counts = ((search.count(state), state) for state in ("alive", "finished", "dropped"))
    standing = ", ".join(f"{count} {state}" for count, state in counts if count)
    changes = counted(search.revised, "time")
    return f"{counted(search.steps, 'step')}: {standing}; the lead changed {changes}"


def _line(state: str, planted: Planted) -> str:
    if planted.tree.search is not None:
        return status(state, _standing(planted.tree.search))
    nodes = planted.tree.nodes
    ends = {node.parent for node in nodes}
    paths = [node.total for place, node in enumerate(nodes) if place not in ends]
    share = 100 * sum(map(math.exp, paths))
    return status(state, f"{counted(len(paths), 'path')}, {share:.0f} % of what may come")


def _stopped(planted: Planted | None) -> str:
    return _line("Stopped", planted) if planted is not None else status("Stopped")
