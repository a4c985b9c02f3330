"""What the tabs that label texts share: limits, a run that can be stopped at any time, status lines, downloads."""

import html
import json
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Generic, TypeVar

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from biogpt.serving.engine import QueueFull
from biogpt.serving.shelf import LazyModel, Model
from biogpt.text.documents import FORMATS, Document, read_documents
from biogpt.ui.scripts import Buttons, script

Result = TypeVar("Result")
Progress = Callable[[int, int], None]

# A passage need not wait for another visitor's file: they wait in two lines, and take turns on the model.
PASSAGES: dict[str, Any] = {"concurrency_id": "passages", "concurrency_limit": 1}
FILES: dict[str, Any] = {"concurrency_id": "files", "concurrency_limit": 1}
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

MOST_TEXTS = 5_000  # of a file
MOST_CHARACTERS = 2_000_000  # of a passage, or of a file's texts in all
MOST_ROWS = 200  # of a table on the page, every update of which costs by its rows; downloads have no limit
KEEP_RESULTS = 3600  # seconds, for a visitor who may come back to the tab

# What is raised on bad input, when a model's numbers overflow, or when too many wait already; everything else is a
# fault of ours.
REFUSALS = (ValueError, TypeError, FloatingPointError, QueueFull)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CHUNK = 8_000  # characters labelled before what is there so far is kept: a second or two with a small model
_TICK = 0.2  # seconds between looks at whether a run was stopped


class _Stopped(Exception):
    """Raised inside a run that nobody waits for any more."""


@dataclass(frozen=True)
class Run(Generic[Result]):
    """How far a run is.

    Attributes:
        documents: all that were given.
        results: of the first of them; of all, once the run has ended.
        seconds: since its start.
        state: in words.
    """

    documents: Sequence[Document]
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    state: str = "Reading"

    @property
    def ended(self) -> bool:
        return len(self.results) == len(self.documents)

    def line(self, found: str = "") -> str:
        """The status line.

        Args:
            found: what was found, in words.
        """
        total, done = len(self.documents), len(self.results)
        texts = count(total, "text") if self.ended else f"{done:,} of {count(total, 'text')}"
        facts = [found, texts if total > 1 else "", f"{self.seconds:.1f} s"]
        words = html.escape(" · ".join(filter(None, facts)))
        bar = (
            ""
            if self.ended
            else f'<progress max="{total}" value="{done}" aria-label="Texts done"></progress> '
        )
        return status("Finished" if self.ended else self.state, bar + words)


def label_all(
    model: LazyModel[Model],
    documents: Sequence[Document],
    label: Callable[[Model, list[str], Progress], list[Result]],
) -> Generator[Run[Result], None, None]:
    """Label documents in a thread, looking up often enough for Stop to act within one step of the model.

    Closing the generator makes ``progress`` raise inside ``label``, which ends it.

    Args:
        label: given the model, some texts, and what to call as it goes.

    Yields:
        The run so far, several times a second and once at the end.
    """
    stopped = Event()
    start = time.perf_counter()
    results: list[Result] = []

    def progress(done: int, total: int) -> None:
        if stopped.is_set():
            raise _Stopped

    def work(texts: list[str]) -> list[Result]:
        with model.turn() as loaded:
            progress(0, len(texts))
            return label(loaded, texts, progress)

    pool = ThreadPoolExecutor(1)
    try:
        for texts in _chunks(documents):
            state = f"Loading {model.name}" if model.loaded is None else "Reading"
            future = pool.submit(work, texts)
            while not future.done():
                yield Run(documents, list(results), time.perf_counter() - start, state)
                wait([future], _TICK)
            results += future.result()
    finally:
        stopped.set()
        pool.shutdown(wait=False)  # a model that loads for a run that was stopped is there for the next one
    yield Run(documents, results, time.perf_counter() - start)


def _chunks(documents: Sequence[Document]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for document in documents:
        if chunk and size + len(document.text) > _CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(document.text)
        size += len(document.text)
    if chunk:
        yield chunk


def passage(text: str) -> list[Document]:
    """A typed text as the one document of a run.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty, or has more than ``MOST_CHARACTERS``.
    """
    if not isinstance(text, str):
        raise TypeError(f"the text is of type {type(text).__name__}; expected a string")
    if not text.strip():
        raise ValueError("The text is empty: paste a passage, or take an example")
    _check_length(len(text), "The text")
    return [_sendable(Document("text", text))]


def upload(path: str) -> list[Document]:
    """The documents of an uploaded file.

    Raises:
        ValueError: it cannot be read, or holds more than ``MOST_TEXTS`` or ``MOST_CHARACTERS``.
    """
    documents = read_documents(path)
    name = Path(path).name
    if len(documents) > MOST_TEXTS:
        raise ValueError(
            f"{name} holds {len(documents):,} texts; at most {MOST_TEXTS:,} are read at once. Split it, or use "
            "the command line, which has no limit"
        )
    _check_length(sum(len(document.text) for document in documents), name)
    return [_sendable(document) for document in documents]


def _sendable(document: Document) -> Document:
    """Half of a surrogate pair, which JSON can name but no reply can hold, becomes U+FFFD; offsets hold."""
    return Document(document.id, _LONE_SURROGATE.sub("\ufffd", document.text))


def _check_length(characters: int, what: str) -> None:
    if characters > MOST_CHARACTERS:
        raise ValueError(
            f"{what} has {characters:,} characters; at most {MOST_CHARACTERS:,} are read at once. Cut or split it"
        )


def check_score(name: str, value: float) -> None:
    """Raises TypeError or ValueError unless a client gave a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; expected a number from 0 to 1")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected 0 to 1")


def status(state: str, facts: str = "") -> str:
    """A status line; ``facts`` is HTML."""
    return f'<p class="status"><b>{html.escape(state)}</b> {facts}</p>'


def refusal(error: Exception, what: str = "Not done") -> str:
    """A status line that says why nothing was done."""
    return f'<p class="status refusal" role="alert"><b>{what}</b> {html.escape(str(error))}</p>'


def api_error(error: Exception, what: str = "Not done") -> gr.Error:
    """The same for a client of the API."""
    return gr.Error(html.escape(str(error)), title=what, print_exception=False)


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
        label="Or a file: " + ", ".join(suffix.removeprefix(".") for suffix in FORMATS),
        file_types=list(FORMATS),
        height=60,
        elem_id=f"{name}-file",
        elem_classes="drop",
    )
    return Form(text, file, run, stop, line, gr.State(None, time_to_live=KEEP_RESULTS))


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
        work: given how to read, what to read and the values of ``settings``; yields status and what was found so far,
            an object with ``documents``.
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
    return status("Stopped", f"{count(len(found.documents), 'text')} done; what was found stays below")


def document_choice(documents: Sequence[Document]) -> gr.Dropdown:
    """The update of a dropdown that chooses among several documents."""
    choices = [
        (f"{document.id}: {' '.join(document.text[:60].split())[:40]}", index)
        for index, document in enumerate(documents)
    ]
    return gr.Dropdown(choices=choices, value=0, visible=len(choices) > 1)


def results_table(label: str, elem_id: str) -> gr.Dataframe:
    """A table that sorts by any column, empty as yet."""
    return gr.Dataframe(
        label=label,
        interactive=False,
        wrap=True,
        max_height=360,
        buttons=["copy", "fullscreen"],
        visible=False,
        elem_id=elem_id,
        elem_classes="results",
    )


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], widths: Sequence[int] | None = None
) -> gr.Dataframe:
    """The update of a table: its first ``MOST_ROWS`` rows; a column of numbers sorts as such. Not shown without rows.

    Args:
        widths: percent of each column; as wide as what it holds when None.
    """
    kinds: list[Any] = (
        ["number" if isinstance(cell, int | float) else "str" for cell in rows[0]] if rows else []
    )
    return gr.Dataframe(
        value=list(rows[:MOST_ROWS]),
        headers=list(columns),
        datatype=kinds or "str",
        column_widths=None if widths is None else [f"{width}%" for width in widths],
        visible=bool(rows),
    )


def remarks(*lines: str) -> str:
    """Remarks as HTML; empty ones are left out."""
    return "".join(f'<p class="remark">{html.escape(line)}</p>' for line in lines if line)


def rows_note(rows: int) -> str:
    """What to say when a table is longer than is shown; else nothing."""
    if rows <= MOST_ROWS:
        return ""
    return f"The table lists the first {MOST_ROWS:,} of {rows:,} rows; the downloads hold all."


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 text``, ``20 texts``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def download_buttons(
    kinds: Sequence[str],
    inputs: Sequence[gr.components.Component],
    write: Callable[..., tuple[str, bytes]],
) -> None:
    """A row of buttons that make a file of the results and save it.

    Args:
        kinds: of files; a button each.
        write: given the kind and the values of ``inputs``, returns the file's name and content.
    """
    names = {"brat": "BRAT", "pubtator": "PubTator"}
    with gr.Row(elem_classes="examples downloads"):
        gr.HTML("<span>Download</span>")
        file = gr.DownloadButton(elem_classes="unseen")  # only its file is wanted
        for kind in kinds:

            def save(*values: Any, kind: str = kind) -> str:
                name, content = write(kind, *values)
                return save_bytes_to_cache(content, name, file.GRADIO_CACHE)

            made = gr.Button(names.get(kind, kind.upper()), size="sm", min_width=0).click(
                save, list(inputs), file, **QUICK
            )
            made.success(None, file, None, js=script("saveFile"))
