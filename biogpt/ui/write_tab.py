"""The layout of the Write tab: a text, its settings, and a completion that streams into it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from biogpt.generation.options import ON_PAGE, Setting, Slider
from biogpt.serving.shelf import Shelf
from biogpt.ui.comparing import comparing
from biogpt.ui.keeping import keep_panel
from biogpt.ui.runs import KEEP, PASSAGES, QUICK, Refresh
from biogpt.ui.scripts import (
    ALTERNATIVES_EVENTS,
    ATTENTION,
    ATTENTION_EVENTS,
    COMPLETIONS,
    COMPLETIONS_EVENTS,
    SUGGESTION,
    SUGGESTION_EVENTS,
    Buttons,
    script,
)
from biogpt.ui.status import status
from biogpt.ui.tokens import shown
from biogpt.ui.tree import tree_panel
from biogpt.ui.writing import Work, Writer

# The service shares each step among its requests, and keeps the line: more may be under way here than run
# there.
TOGETHER: dict[str, Any] = {"concurrency_id": "generation", "concurrency_limit": 32}

EXAMPLES = {
    "COVID-19": "COVID-19 is",
    "Trastuzumab": "Trastuzumab is a monoclonal antibody",
    "BRCA1": "The BRCA1 gene encodes",
    "Trial": "We conducted a randomized controlled trial of metformin in patients with",
    "Abstract": "BACKGROUND: Antibiotic resistance is a growing problem in",
}

# Several settings at once; those of "Balanced" are what the page starts with. Without a limit on n-grams, one
# text in twenty of mini ended in a loop, sampled ones too; a small limit cuts words apart.
_SHAPED = tuple(
    row for row in ON_PAGE if row.name in ("temperature", "top_p", "no_repeat_ngram_size", "num_beams")
)
DEFAULT_PRESET = "Balanced"
PRESETS: dict[str, tuple[float, ...]] = {
    "Precise": (0.0, 1.0, 4, 1),
    DEFAULT_PRESET: tuple(row.start for row in _SHAPED),
    "Creative": (1.0, 0.95, 6, 1),
    "Beam": (0.0, 1.0, 4, 4),
}
_COPY = "the browser lets no page copy here: the text is selected, press Ctrl + C (Cmd + C)"
_MEAN = ("mean of all", 0)

_WHAT = (
    "BioGPT continues biomedical text, one token (a word, or a piece of one) at a time. It answers no "
    "questions and follows no instructions, and what it writes can be wrong."
)
_SMALL = (
    "mini is a small model for demonstration; <code>python app.py --model microsoft/biogpt</code> "
    "runs the one of the paper."
)
# A sentence as mini read it: the percent of each token.
_LOOKS = (
    ("Insulin", 0),
    (" low", 0),
    ("ers", 99),
    (" blood", 36),
    (" glucose", 56),
    (" in", 5),
    (" patients", 8),
    (" with", 96),
    (" diabetes", 26),
)
_HINTS = (
    "Type the start of a sentence, or take an example, and <b>Generate</b>. <b>Suggest</b> proposes words, "
    "to be taken one by one.",
    "The less likely a word was, the stronger its colour. Choose one: what else could have been?",
    "<b>Score text</b> reads what you have written: each word, each sentence, and what would come next.",
    "<b>Compare</b>, below, sets two texts or two models side by side.",
)

_LEGEND = (
    '<p class="legend"><label><input type="checkbox" id="colours" checked> Colours</label> '
    'Probability: <span class="p0">50 % and more</span> <span class="p1">from 20 %</span> '
    '<span class="p2">from 5 %</span> <span class="p3">below</span></p>'
)


@dataclass(frozen=True)
class WriteTab:
    """The controls that a link holds, by the names of ``biogpt.ui.links``, and what shows their effect."""

    controls: dict[str, gr.components.Component]
    work: gr.State
    refresh: Refresh  # shows what was written again
    count: gr.HTML
    fit: Callable[[str, int], tuple[Any, ...]]
    fitted: list[gr.components.Component]  # what ``fit`` of a model's name and a length gives values for
    recount: Callable[[str, str], str]


@dataclass(frozen=True)
class _Parts:
    """What the tab consists of."""

    text: gr.Textbox
    count: gr.HTML
    typed: gr.Button
    suggestion: gr.HTML
    actions: dict[str, gr.Button]  # by their ids
    status: gr.HTML
    show: gr.Button  # an example that runs by itself
    examples: list[gr.Button]
    view: gr.HTML
    alternatives: gr.HTML
    layer: gr.Dropdown
    head: gr.Dropdown
    look: gr.Button
    looked: gr.HTML


def write_tab(shelf: Shelf, model: gr.State) -> WriteTab:
    """Lay the tab out in the Blocks at hand and connect it.

    Args:
        model: the name of the visitor's model.
    """
    writer = Writer(shelf)
    work = gr.State(None, time_to_live=KEEP)
    with gr.Row(elem_classes="columns write"):
        with gr.Column(elem_classes="side"):
            with gr.Column(elem_classes="work"):
                editor = _editor()
            below = gr.Column(elem_classes="below")
        with gr.Column(elem_classes="side"):
            with gr.Column(elem_id="settings", elem_classes="settings"):
                settings = _settings(work)
                gr.HTML('<a href="#text">Back to the text</a>', elem_classes="jump")
            with gr.Column(elem_classes="beside") as panels:
                beside = _beside()
        with below:
            view = _below(shelf.default)
            with gr.Accordion("Compare two texts, or two models", open=False, elem_id="compare-panel"):
                comparing(shelf, model, editor["text"], beside["alternatives"])
    parts = _Parts(**editor, view=view, **beside)
    written = _written(parts, work)
    with panels:
        tree_panel(shelf, model, parts.text, work, list(settings.values()), writer.take_in, written)
        keep_panel(writer, model, parts.text, work, list(settings.values()), written)
    _connect_runs(writer, parts, model, work, list(settings.values()))
    _connect_rest(writer, parts, model, work)
    gr.api(writer.endpoint(), api_name="generate", **TOGETHER)

    def fit(name: str, length: int) -> tuple[Any, ...]:
        config = shelf.take(name).config
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        most = config.max_position_embeddings - 1
        numbers = [(str(number), number) for number in range(1, heads + 1)]
        return (
            gr.Slider(maximum=most, value=min(length, most)),
            gr.Dropdown(choices=list(range(1, layers + 1)), value=layers),
            gr.Dropdown(choices=[_MEAN, *numbers], value=0),
        )

    fitted: list[Any] = [settings["length"], parts.layer, parts.head]
    model.change(fit, [model, settings["length"]], fitted, **QUICK).then(
        writer.count, [model, parts.text], parts.count, **QUICK
    )
    refresh = Refresh([(writer.recall, [parts.text, work], _written(parts, work))])
    return WriteTab({"text": parts.text, **settings}, work, refresh, parts.count, fit, fitted, writer.count)


def _first_visit(model: str) -> str:
    """What is below the text before there is any: what this is, what a result looks like, and four hints."""
    level = [(50, 0), (20, 1), (5, 2), (0, 3)]
    looks = "".join(
        f'<span class="p{next(number for least, number in level if percent >= least)}">{word}</span>'
        f"<small> {percent} %</small>"
        for word, percent in _LOOKS
    )
    hints = "".join(f"<li>{hint}</li>" for hint in _HINTS)
    small = f" {_SMALL}" if model == "mini" else ""
    return f'<div class="first"><p>{_WHAT}{small}</p><p class="looks">{looks}</p><ol>{hints}</ol></div>'


def _editor() -> dict[str, Any]:
    """The text with the colours of its tokens, and its buttons."""
    text = gr.Textbox(
        label="Text",
        info="Prompt and completion in one: edit it anywhere.",
        placeholder="Trastuzumab is a monoclonal antibody that",
        lines=10,
        max_lines=10,
        autofocus=True,
        autoscroll=False,  # the page's script follows the end, unless the reader has left it
        elem_id="text",
    )
    with gr.Row(elem_classes="under"):
        gr.HTML(_LEGEND)
        count = gr.HTML("", elem_id="count")
    typed = gr.Button(elem_id="typed", elem_classes="unseen")  # pressed by the page's script
    suggestion = gr.HTML(
        "",
        html_template=SUGGESTION,
        js_on_load=SUGGESTION_EVENTS,
        apply_default_css=False,
        elem_id="where",
    )
    with gr.Row(elem_classes="actions"):
        actions = {
            "generate": gr.Button("Generate", variant="primary", elem_id="generate"),
            "stop": gr.Button("Stop", interactive=False, elem_id="stop"),
            "suggest": gr.Button("Suggest", elem_id="suggest"),
            "continue": gr.Button("Continue", elem_id="continue"),
            "regenerate": gr.Button("Regenerate", elem_id="regenerate"),
            "undo": gr.Button("Undo", elem_id="undo"),
            "redo": gr.Button("Redo", elem_id="redo"),
            "copy": gr.Button("Copy", elem_id="copy"),
            "score": gr.Button("Score text", elem_id="score"),
        }
        gr.HTML('<a href="#settings">Settings</a>', elem_classes="jump")
    line = gr.HTML(status("Ready"), elem_id="status")
    with gr.Row(elem_classes="examples", elem_id="prompts"):
        gr.HTML("<span>Try</span>")
        show = gr.Button("Show me", size="sm", min_width=0, elem_id="show-me")
        examples = [gr.Button(name, size="sm", min_width=0) for name in EXAMPLES]
    return {
        "text": text,
        "count": count,
        "typed": typed,
        "suggestion": suggestion,
        "actions": actions,
        "status": line,
        "show": show,
        "examples": examples,
    }


def _below(model: str) -> gr.HTML:
    """Samples, what was found of the text, and before there is any what the page is for."""
    return gr.HTML(
        shown("", []) | {"hint": _first_visit(model)},
        html_template=COMPLETIONS,
        js_on_load=COMPLETIONS_EVENTS,
        apply_default_css=False,
        elem_id="view",
    )


def _beside() -> dict[str, Any]:
    """Alternatives of a token, and which tokens it looks at."""
    alternatives = gr.HTML("", js_on_load=ALTERNATIVES_EVENTS, elem_id="choices")
    with gr.Accordion("Attention", open=False, elem_id="attention-panel"):
        with gr.Row():
            layer = gr.Dropdown([1], value=1, label="Layer", info="1 reads the words themselves.")
            head = gr.Dropdown([_MEAN], value=0, label="Head", info="Each looks for something else.")
        look = gr.Button("Show what each token looks at", size="sm", elem_id="look")
        looked = gr.HTML(
            {"tokens": [], "rows": [], "note": ""},
            html_template=ATTENTION,
            js_on_load=ATTENTION_EVENTS,
            apply_default_css=False,
            elem_id="attention",
        )
    return {"alternatives": alternatives, "layer": layer, "head": head, "look": look, "looked": looked}


def _written(parts: _Parts, work: gr.State) -> list[Any]:
    """What ``Writer.write`` yields values of."""
    return [parts.text, parts.view, parts.status, work, parts.count]


def _connect_runs(
    writer: Writer, parts: _Parts, model: gr.State, work: gr.State, settings: list[Any]
) -> None:
    """What writes, and Stop."""

    def in_session(run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def handler(request: gr.Request, *values: Any) -> Iterator[Any]:
            yield from run(*values, session=request.session_hash)

        return handler

    def at_cursor(run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def handler(request: gr.Request, name: str, text: str, rest: str, *values: Any) -> Iterator[Any]:
            yield from run(name, text, *values, rest=rest, session=request.session_hash)

        return handler

    def on_branch(event: gr.EventData, request: gr.Request, *values: Any) -> Iterator[Any]:
        yield from writer.branch(*values, event=event, session=request.session_hash)

    actions = parts.actions
    names = ("generate", "suggest", "continue", "regenerate", "score", "undo", "redo", "stop")
    buttons = [parts.show, *(actions[name] for name in names)]
    click = {name: actions[name].click for name in names}
    clicks = Buttons("write", len(buttons), cleared=2)
    rest = gr.Textbox(visible=False)  # what is after the cursor
    parted = [model, parts.text, rest, work, *settings]
    given = [model, parts.text, work, *settings]
    written, suggested = _written(parts, work), [parts.suggestion, parts.status, work]
    coming = writer.coming
    runs: list[Any] = []
    example = partial(writer.write_example, EXAMPLES["Trastuzumab"])
    for listen, run, inputs, outputs, then in (
        (click["generate"], at_cursor(writer.write), parted, written, coming),
        (click["suggest"], at_cursor(writer.suggest), parted, suggested, coming),
        (click["continue"], in_session(writer.go_on), given, written, coming),
        (click["regenerate"], in_session(writer.rewrite), given, written, coming),
        (parts.alternatives.select, on_branch, given[1:], written, coming),
        (click["score"], writer.score, given[:3], written, coming),
        (parts.show.click, in_session(example), given, written, writer.surprising),
    ):
        # The alternatives are those of the text before.
        listen(None, None, [parts.alternatives, parts.suggestion, *buttons], js=clicks.begun)
        event = listen(
            run,
            inputs,
            outputs,
            js=script("atCursor") if inputs is parted else None,
            show_progress="minimal",
            show_progress_on=parts.status,
            api_visibility="private",
            **TOGETHER,
        )
        event.then(then, work, parts.alternatives, **QUICK)
        event.then(None, None, buttons, js=clicks.ended)
        event.failure(None, None, buttons, js=clicks.broken_off)  # a setting out of its range
        runs.append(event)
    stop = actions["stop"]
    stop.click(None, None, None, js=clicks.stop)
    # The status comes after the cancelling, or else a last token could write over it.
    stop.click(None, cancels=runs).then(
        writer.stopped, [parts.text, work], _written(parts, work), **QUICK
    ).then(None, None, buttons, js=clicks.stopped)


def _connect_rest(writer: Writer, parts: _Parts, model: gr.State, work: gr.State) -> None:
    """What changes the text, or shows something of it, and writes nothing."""
    text, copy = parts.text, parts.actions["copy"]
    both, written = [text, work], _written(parts, work)

    def then_count(event: Any) -> None:
        event.then(writer.count, [model, text], parts.count, **QUICK)

    changes: list[tuple[Any, Callable[..., Any]]] = [
        (parts.actions["undo"].click, writer.undo),
        (parts.actions["redo"].click, writer.redo),
        (parts.view.submit, writer.keep),
    ]
    for button, prompt in zip(parts.examples, EXAMPLES.values(), strict=True):
        changes.append((button.click, partial(writer.replaced, prompt)))
    for listen, change in changes:
        listen(None, None, parts.alternatives, js=script("given", ""))
        then_count(listen(change, both, written, **QUICK))
    text.change(None, None, None, js=script("drawSoon"))
    copy.click(None, text, parts.status, js=script("copyText", status("Copied"), status("Not copied", _COPY)))
    taken = [parts.view, parts.status, work]
    take = parts.suggestion.select(writer.take, work, taken, trigger_mode="multiple", **QUICK)
    take.then(None, None, None, js=script("tellMore"))
    parts.view.select(writer.choose, work, parts.alternatives, **QUICK)
    parts.typed.click(writer.count, [model, text], parts.count, trigger_mode="always_last", **QUICK)
    for listen in (parts.look.click, parts.layer.input, parts.head.input):
        inputs = [model, text, parts.layer, parts.head]
        listen(writer.attention, inputs, parts.looked, api_visibility="private", **PASSAGES)


def _settings(work: gr.State) -> dict[str, gr.Slider | gr.Textbox]:
    """Lay the settings out; returns their controls in the order of ``ON_PAGE``, by their names in links."""
    preset = gr.Radio(
        list(PRESETS),
        value=DEFAULT_PRESET,
        label="Preset",
        info="Sets temperature, top-p, n-grams and beams.",
        elem_id="preset",
    )
    controls = {row.name: _control(row) for row in ON_PAGE if row.control and not row.control.folded}
    with gr.Accordion("More", open=False):
        controls |= {row.name: _control(row) for row in ON_PAGE if row.control and row.control.folded}
        reuse = gr.Button("Reuse the last seed", size="sm")

    reuse.click(
        _last_seed,
        work,
        controls["seed"],
        **QUICK,
    )
    shaped = [controls[row.name] for row in _SHAPED]
    preset.input(None, preset, shaped, js=script("chosen", PRESETS))
    for control in shaped:  # moved by hand, set by a link, or reset
        control.change(None, shaped, preset, js=script("nameOf", PRESETS))
    return {row.control.link: controls[row.name] for row in ON_PAGE if row.control is not None}


def _last_seed(last: Work | None) -> Any:
    """What the text was drawn with; a text that was only read, or opened from a link, has none."""
    seed = last.draft.status.seed if last and last.draft else None
    return gr.skip() if seed is None else str(seed)


def _control(row: Setting) -> gr.Slider | gr.Textbox:
    control = row.control
    if isinstance(control, Slider):
        return gr.Slider(
            control.least,
            control.most,
            row.start,
            step=control.step if row.type is float else None,
            precision=0 if row.type is int else None,
            label=", ".join(filter(None, (control.label, control.unit))),
            info=row.help,
        )
    assert control is not None
    # Not gr.Number for a number that may be left out: it shows an empty value as 0.
    return gr.Textbox(
        label=control.label,
        info=f"{control.note} {row.help}".strip(),
        lines=control.lines,
        max_lines=1 if control.lines == 1 else None,
    )
