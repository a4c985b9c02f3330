"""The form of the tabs that label texts, laid out and connected: a text or a file, buttons, a status."""

import html
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from biogpt.text.documents import FORMATS, Document
from biogpt.ui.inputs import passage, upload
from biogpt.ui.runs import FILES, KEEP, PASSAGES, QUICK
from biogpt.ui.scripts import Buttons, script
from biogpt.ui.status import counted, status


@dataclass(frozen=True)
class Form:
    """What both tabs have: a text or a file in, buttons, a status line, and what the last run found."""

    text: gr.Textbox
    file: gr.File
    run: gr.Button
    stop: gr.Button
    line: gr.HTML
    found: gr.State


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
        stop = gr.Button("Stop", interactive=False, elem_id=f"{name}-stop", elem_classes="stop")
    line = gr.HTML(status("Ready"), elem_id=f"{name}-status", elem_classes="run-status")
    with gr.Row(elem_classes="examples"):
        gr.HTML("<span>Try</span>")
        for row in examples.read_text(encoding="utf-8").splitlines():
            example = json.loads(row)
            values = [
                example["text"],
                status("Example", html.escape(example["source"])),
                *example["settings"],
            ]
            gr.Button(example["name"], size="sm", min_width=0).click(
                None, None, [text, line, *settings], js=script("given", values)
            )
    file = gr.File(
        label="Or a file: texts, a table, PubTator, PubMed, RIS",
        file_types=list(FORMATS),
        height=60,
        elem_id=f"{name}-file",
        elem_classes="drop",
    )
    return Form(text, file, run, stop, line, gr.State(None, time_to_live=KEEP))


def connect(
    name: str,
    form: Form,
    work: Callable[..., Iterator[tuple[str, Any]]],
    settings: Sequence[gr.components.Component | gr.State],
    refresh: Sequence[tuple[Callable[..., Any], list[Any], list[Any]]],
) -> None:
    """Run on a click with the text, on an upload with the file; Stop ends either and keeps what is there.

    Args:
        name: as of ``lay_out_form``.
        work: given how to read, what to read and the values of ``settings``; yields status and what was found
            so far, an object with ``documents``.
        refresh: functions with inputs and outputs, which show ``form.found`` one after another.
    """
    buttons, clicks = [form.run, form.stop], Buttons(name)

    def show(event: Any, idle: str) -> None:
        for function, inputs, outputs in refresh:
            event = event.then(function, inputs, outputs, **QUICK)
        event.then(None, None, buttons, js=idle)

    runs: list[Any] = []
    for trigger, read, source, line in (
        (form.run.click, passage, form.text, PASSAGES),
        (form.file.upload, upload, form.file, FILES),
    ):
        trigger(None, None, buttons, js=clicks.begun)
        run = trigger(
            partial(work, read),
            [source, *settings],
            [form.line, form.found],
            show_progress="minimal",
            show_progress_on=form.line,
            api_visibility="private",
            **line,
        )
        run.failure(None, None, buttons, js=clicks.ended)  # refused by Gradio, a setting out of its range
        show(run, clicks.ended)
        runs.append(run)
    form.stop.click(None, None, None, js=clicks.stop)
    # The status comes after the cancelling, or else a last update could write over it.
    show(form.stop.click(None, cancels=runs).then(_stopped, form.found, form.line, **QUICK), clicks.stopped)


def _stopped(found: Any) -> str:
    if found is None:
        return status("Stopped")
    return status("Stopped", f"{counted(len(found.documents), 'text')} done; what was found stays below")


def document_choice(documents: Sequence[Document]) -> gr.Dropdown:
    """The update of a dropdown that chooses among several documents."""
    choices = [
        (f"{document.id}: {' '.join(document.text[:60].split())[:40]}", index)
        for index, document in enumerate(documents)
    ]
    return gr.Dropdown(choices=choices, value=0, visible=len(choices) > 1)
