"""The Models tab, which chooses the model that writes."""

import html
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from queue import Queue
from threading import Event
from typing import Any

import gradio as gr

from biogpt.checkpoint.hub import find
from biogpt.checkpoint.inventory import size_of
from biogpt.serving.shelf import Shelf
from biogpt.serving.text_generator import TextGenerator
from biogpt.ui.scripts import Buttons


def title(name: str) -> str:
    """What to call a model on the page: a folder by its own name, others as they are."""
    return Path(name).name if Path(name).is_absolute() else name


class Cancelled(Exception):
    """Raised inside a download that nobody waits for any more."""


def models_tab(shelf: Shelf, model: gr.State, header: gr.HTML, describe: Callable[[str], str]) -> gr.Dropdown:
    """Lay the tab out in the Blocks at hand and connect it.

    Args:
        model: the name of the visitor's model; set here.
        header: set to ``describe`` of a name when the model changes.
    """
    with gr.Column(elem_classes="narrow"):
        choice = gr.Dropdown(
            shelf.names(),
            value=shelf.default,
            label="Language model",
            info="Those that come with the page or are on this machine"
            + ("; or type a Hub id, owner/name, or a folder." if shelf.allowed is None else "."),
            allow_custom_value=shelf.allowed is None,
            elem_id="model-choice",
        )
        with gr.Row(elem_classes="actions"):
            use = gr.Button("Use this model", variant="primary", elem_id="model-use", elem_classes="run")
            cancel = gr.Button("Cancel", elem_id="model-cancel", elem_classes="stop", interactive=False)
        line = gr.HTML(
            '<p class="status"><b>Ready</b> Nothing is downloaded before you press the button.</p>',
            elem_id="model-status",
            elem_classes="run-status",
        )
        gr.HTML(
            '<p class="remark">The model writes in the Write tab, and compares labels of your own. Other visitors '
            "keep theirs; text that is being written is finished by the model that began it.</p>"
        )

    def check(name: str) -> str:
        try:
            name = shelf.check(name)
            size, missing = size_of(name)
        except (ValueError, OSError) as error:
            return _line("Not usable", str(error), refused=True)
        if missing:
            return _line("On the Hub", f"{size / 1e6:,.0f} MB to download before {name} can be used")
        return _line("On this machine", f"{size / 1e6:,.0f} MB" if size else name)

    def switch(name: str) -> Iterator[tuple[object, object, object]]:
        stopped = Event()
        reports: Queue[tuple[str, int, int]] = Queue()

        def progress(file: str, done: int, size: int) -> None:
            if stopped.is_set():
                raise Cancelled
            reports.put((file, done, size))

        def work(name: str) -> TextGenerator:
            find(name, progress=progress)
            return shelf.take(name)

        try:
            name = shelf.check(name)
            with ThreadPoolExecutor(1) as pool:
                try:
                    yield _line("Loading", html.escape(name)), gr.skip(), gr.skip()
                    future = pool.submit(work, name)
                    while not future.done():
                        wait([future], 0.2)
                        latest = None
                        while not reports.empty():
                            latest = reports.get()
                        if latest:
                            file, done, size = latest
                            bar = (
                                f'<progress max="{size}" value="{done}" aria-label="Downloaded"></progress> '
                            )
                            facts = f"{html.escape(file)}: {done / 1e6:,.0f} of {size / 1e6:,.0f} MB"
                            yield (
                                f'<p class="status"><b>Downloading</b> {bar}{facts}</p>',
                                gr.skip(),
                                gr.skip(),
                            )
                    future.result()
                finally:
                    stopped.set()
            yield _line("In use", name), name, describe(name)
        except (ValueError, OSError) as error:
            yield _line("Not loaded", str(error), refused=True), gr.skip(), gr.skip()

    quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    choice.change(check, choice, line, trigger_mode="always_last", **quick)
    buttons, clicks = [use, cancel], Buttons("models")
    use.click(None, None, buttons, js=clicks.begun)
    run = use.click(
        switch, choice, [line, model, header], concurrency_id="models", concurrency_limit=2, **quick
    )
    run.then(None, None, buttons, js=clicks.ended)
    cancel.click(None, None, None, js=clicks.stop)
    stopped = cancel.click(None, cancels=[run])
    stopped.then(
        lambda: _line("Cancelled", "what was downloaded so far is kept for the next try"),
        None,
        line,
        queue=False,
        **quick,
    ).then(None, None, buttons, js=clicks.stopped)
    return choice


def _line(state: str, facts: str, refused: bool = False) -> str:
    kind = ' refusal" role="alert' if refused else ""
    return f'<p class="status{kind}"><b>{state}</b> {html.escape(facts)}</p>'
