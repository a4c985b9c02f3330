"""The form of the tabs that label texts, laid out and connected: a text or a file, buttons, a status."""

import html
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from biogpt.text.documents import FORMATS, Document
from biogpt.ui.inputs import Given, given
from biogpt.ui.runs import IN_TURNS, KEEP, QUICK, Refresh
from biogpt.ui.scripts import Buttons, script
from biogpt.ui.status import REFUSALS, counted, refusal, status


class Results(Protocol):
    """What a run found, as far as the form knows it.

    Attributes:
        given: what the run was to read.
        documents: those that it has read: the first ones.
    """

    @property
    def given(self) -> Given: ...

    @property
    def documents(self) -> Sequence[Document]: ...


@dataclass(frozen=True)
class Form:
    """What both tabs have: a text or a file in, buttons, a status line, and what the last run found."""

    text: gr.Textbox
    file: gr.File
    run: gr.Button
    go_on: gr.Button
    stop: gr.Button
    line: gr.HTML
    found: gr.State


@dataclass(frozen=True)
class Tab:
    """What the page has to know of a tab that labels texts.

    Attributes:
        controls: that a link holds, by the names of ``biogpt.ui.links``.
        file: its file slot.
        refresh: shows its results again.
    """

    controls: dict[str, gr.components.Component]
    file: gr.File
    refresh: Refresh


def lay_out_form(
    name: str,
    label: str,
    placeholder: str,
    verb: str,
    examples: Path,
    settings: Sequence[gr.components.Component] = (),
) -> Form:
    """Lay a form out in the Blocks at hand.

    Args:
        name: begins the ids of its elements.
        label, placeholder: of the text.
        verb: on the button that runs.
        examples: JSON Lines of ``name``, ``source``, ``text`` and the values of ``settings``.
    """
    text = gr.Textbox(
        label=label,
        info="A sentence, an abstract or an article.",
        placeholder=placeholder,
        lines=9,
        max_lines=9,
        elem_id=f"{name}-text",
        elem_classes="passage",
    )
    with gr.Row(elem_classes="actions"):
        run = gr.Button(verb, variant="primary", elem_id=f"{name}-run", elem_classes="run")
        go_on = gr.Button("Go on", visible=False, elem_id=f"{name}-go-on")
        stop = gr.Button("Stop", interactive=False, elem_id=f"{name}-stop", elem_classes="stop")
    line = gr.HTML(status("Ready"), elem_id=f"{name}-status", elem_classes="run-status")
    examples_row = gr.Row(elem_classes="examples")
    file = gr.File(
        label="Or a file: texts, a table, PubTator, PubMed, RIS",
        file_types=list(FORMATS),
        height=60,
        elem_id=f"{name}-file",
        elem_classes="drop",
    )
    with examples_row:
        gr.HTML("<span>Try</span>")
        for row in examples.read_text(encoding="utf-8").splitlines():
            example = json.loads(row)
            source = status("Example", html.escape(example["source"]))
            values = [example["text"], source, None, *example["settings"]]
            gr.Button(example["name"], size="sm", min_width=0).click(
                None, None, [text, line, file, *settings], js=script("given", values)
            )
    file.change(None, file, [run, line], js=script("nameRun", verb, f"{verb} in the file"))
    return Form(text, file, run, go_on, stop, line, gr.State(None, time_to_live=KEEP))


def connect(
    name: str,
    form: Form,
    outdated: gr.HTML,
    work: Callable[[Given, Any], Iterator[tuple[str, Any]]],
    settings: Sequence[gr.components.Component | gr.State],
    refresh: Sequence[tuple[Callable[..., Any], list[Any], list[Any]]],
    others: Sequence[tuple[gr.Button, Callable[..., Iterator[tuple[str, Any]]], list[Any]]] = (),
) -> Refresh:
    """Run on a click with the file, or else the text; Stop keeps what is there, and a click goes on from it.

    Args:
        name: as of ``lay_out_form``.
        outdated: says so when the results are not of what the form holds.
        work: given what to read and what a run before found of it, or None; yields status and what was found
            so far.
        settings: whose values ``work`` finds in what it is given.
        refresh: what shows ``form.found``.
        others: buttons of runs that find more in what was found, what they do, as ``work``, and its inputs;
            afterwards the last step of ``refresh`` shows it.

    Returns:
        What shows the form's results again.
    """
    more = [button for button, *_ in others]
    buttons, clicks = [form.run, form.go_on, *more, form.stop], Buttons(name, 3 + len(more))
    inputs: list[Any] = [form.text, form.file, *settings]
    shown = Refresh([(_offer, [form.found], [form.go_on]), *refresh])

    def start(text: str, path: str | None, *values: Any) -> Iterator[tuple[str, Any]]:
        try:
            asked = given(text, path, *values)
        except REFUSALS as error:
            yield refusal(error), gr.skip()  # what was found before stays
            return
        yield from work(asked, None)

    def go_on(found: Results | None) -> Iterator[tuple[str, Any]]:
        if found is None:
            yield refusal(ValueError("What was read is gone: run it again")), gr.skip()
            return
        yield from work(found.given, found)

    def then_show(event: Any, idle: str, shown: Refresh = shown) -> None:
        event = shown.after(event).then(None, None, buttons, js=idle)
        event.then(None, inputs, outdated, js=script("outdated", name))

    runs: list[Any] = []
    own = ((form.run, start, inputs), (form.go_on, go_on, [form.found]))
    for button, run, values in (*own, *others):
        asked_for = inputs if button is form.run else None
        button.click(None, asked_for, buttons, js=clicks.begun)
        running = button.click(
            run,
            values,
            [form.line, form.found],
            show_progress="minimal",
            show_progress_on=form.line,
            api_visibility="private",
            **IN_TURNS,
        )
        running.failure(None, None, buttons, js=clicks.broken_off)  # a setting out of its range
        then_show(running, clicks.ended, Refresh(refresh[-1:]) if button in more else shown)
        runs.append(running)
    form.stop.click(None, None, None, js=clicks.stop)
    # The status comes after the cancelling, or else a last update could write over it.
    stopped = form.stop.click(None, cancels=runs).then(
        partial(ended, "Stopped"), form.found, form.line, **QUICK
    )
    then_show(stopped, clicks.stopped)
    gr.on(
        [component.change for component in inputs],
        None,
        inputs,
        outdated,
        js=script("outdated", name),
    )
    return Refresh([(partial(ended, "As you left it"), [form.found], [form.line]), *shown.steps])


def ended(state: str, found: Results | None) -> Any:
    """The status of a run that has come to no end of its own."""
    if found is None:
        return status(state) if state == "Stopped" else gr.skip()
    total, done = len(found.given.documents), len(found.documents)
    if done == total:
        return status(state, f"{counted(done, 'text')} done")
    said = f"{done:,} of {counted(total, 'text')} done; what was found is kept: download it, or go on"
    return status(state, said)


def _offer(found: Results | None) -> gr.Button:
    """The button that goes on with a run which was stopped or cut off."""
    left = 0 if found is None else len(found.given.documents) - len(found.documents)
    return gr.Button(f"Go on: {counted(left, 'text')} left", visible=left > 0)


def document_choice(documents: Sequence[Document]) -> gr.Dropdown:
    """The update of a dropdown that chooses among several documents."""
    choices = [
        (f"{document.id}: {' '.join(document.text[:60].split())[:40]}", index)
        for index, document in enumerate(documents)
    ]
    return gr.Dropdown(choices=choices, value=0, visible=len(choices) > 1)
