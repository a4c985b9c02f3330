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
from biogpt.serving.engine import Stopping
from biogpt.serving.service import TextService
from biogpt.serving.shelf import Shelf
from biogpt.ui.runs import QUICK
from biogpt.ui.scripts import Buttons
from biogpt.ui.status import progress_bar, refusal, status

_TICK = 0.2  # seconds between looks at whether a download was cancelled


def title(name: str) -> str:
    """What to call a model on the page: a folder by its own name, others as they are."""
    return Path(name).name if Path(name).is_absolute() else name


class _Cancelled(Exception):
    """Raised inside a download that nobody waits for any more."""


class Chooser:
    """What the tab does, as Gradio wants it: values of components in, values of components out.

    Args:
        describe: what the page's header says of the model of a name.
    """

    def __init__(self, shelf: Shelf, describe: Callable[[str], str]) -> None:
        self.shelf, self.describe = shelf, describe

    def check(self, name: str) -> str:
        """A status line: where the model is and how large; nothing is downloaded."""
        try:
            name = self.shelf.check(name)
        except (TypeError, ValueError) as error:
            return refusal(error, "Not usable")
        try:
            size, missing = size_of(self.shelf.source(name))
        except (ValueError, OSError) as error:
            return refusal(self.shelf.cannot_load(name, error), "Not usable")
        megabytes = f"{size / 1e6:,.0f} MB"
        if missing:
            return status("On the Hub", f"{megabytes} to download before {html.escape(name)} can be used")
        return status("On this machine", megabytes if size else html.escape(name))

    def switch(self, name: str) -> Iterator[tuple[Any, Any, Any]]:
        """Download and load a model; yields status, and at the end its name and the header."""
        cancelled = Event()
        reports: Queue[tuple[str, int, int]] = Queue()

        def report(file: str, done: int, size: int) -> None:
            if cancelled.is_set():
                raise _Cancelled
            reports.put((file, done, size))

        def work(name: str) -> TextService:
            try:
                find(self.shelf.source(name), progress=report)
            except (ValueError, OSError) as error:
                raise self.shelf.cannot_load(name, error) from error
            return self.shelf.take(name)

        try:
            name = self.shelf.check(name)
            pool = ThreadPoolExecutor(1)
            try:
                yield status("Loading", html.escape(name)), gr.skip(), gr.skip()
                future = pool.submit(work, name)
                pool.shutdown(wait=False)
                while not future.done():
                    if self.shelf.closed.is_set():
                        raise Stopping
                    wait([future], _TICK)
                    latest = None
                    while not reports.empty():
                        latest = reports.get()
                    if latest:
                        yield _downloading(*latest), gr.skip(), gr.skip()
                future.result()
            finally:
                cancelled.set()
            yield status("In use", html.escape(name)), name, self.describe(name)
        except (TypeError, ValueError, Stopping) as error:
            yield refusal(error, "Not loaded"), gr.skip(), gr.skip()


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
            status("Ready", "Nothing is downloaded before you press the button."),
            elem_id="model-status",
            elem_classes="run-status",
        )
        gr.HTML(
            '<p class="remark">The model writes in the Write tab, and compares labels of your own. Other '
            "visitors keep theirs; text that is being written is finished by the model that began it.</p>"
        )

    chooser = Chooser(shelf, describe)
    waiting: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    choice.change(chooser.check, choice, line, trigger_mode="always_last", **waiting)
    buttons, clicks = [use, cancel], Buttons("models")
    use.click(None, None, buttons, js=clicks.begun)
    run = use.click(
        chooser.switch, choice, [line, model, header], concurrency_id="models", concurrency_limit=2, **waiting
    )
    run.then(None, None, buttons, js=clicks.ended)
    run.failure(None, None, buttons, js=clicks.broken_off)
    cancel.click(None, None, None, js=clicks.stop)
    cancel.click(None, cancels=[run]).then(
        lambda: status("Cancelled", "what was downloaded so far is kept for the next try"),
        None,
        line,
        **QUICK,
    ).then(None, None, buttons, js=clicks.stopped)
    return choice


def _downloading(file: str, done: int, size: int) -> str:
    bar = progress_bar(done, size, "Downloaded")
    return status("Downloading", f"{bar}{html.escape(file)}: {done / 1e6:,.0f} of {size / 1e6:,.0f} MB")
