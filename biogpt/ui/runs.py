"""Runs that label texts, in a thread that can be stopped at any time, and the lines they wait in."""

import asyncio
import html
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Generic, TypeVar

from biogpt.serving.engine import Stopping
from biogpt.serving.shelf import LazyModel, Model
from biogpt.text.documents import Document
from biogpt.text.results import OnProgress
from biogpt.ui.status import counted, progress_bar, status

Output = TypeVar("Output")  # what is found in one document

# Runs take turns on the model, some texts each, so that a long file holds nobody up: many are under way here.
IN_TURNS: dict[str, Any] = {"concurrency_id": "runs", "concurrency_limit": 32}
PASSAGES: dict[str, Any] = {"concurrency_id": "passages", "concurrency_limit": 1}
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

KEEP = 3600  # seconds that a visitor's texts and results are kept, for one who comes back

_CHUNK = 8_000  # characters labelled in one turn, after which they are kept: a second or two, small model
_TICK = 0.2  # seconds between looks at whether a run was stopped


class _Stopped(Exception):
    """Raised inside a run that nobody waits for any more."""


@dataclass(frozen=True)
class Refresh:
    """Functions that show what a run found, one after another, each with its inputs and outputs."""

    steps: Sequence[tuple[Callable[..., Any], list[Any], list[Any]]]

    def after(self, event: Any) -> Any:
        for function, inputs, outputs in self.steps:
            event = event.then(function, inputs, outputs, **QUICK)
        return event


@dataclass(frozen=True)
class Run(Generic[Output]):
    """How far a run is.

    Attributes:
        documents: all that were given.
        results: of the first of them; of all, once the run has ended.
        seconds: since its start.
        state: in words.
        others: whose runs take turns with this one, or before its first turn those who are ahead of it.
    """

    documents: Sequence[Document]
    results: list[Output] = field(default_factory=list)
    seconds: float = 0.0
    state: str = "Reading"
    others: int = 0

    @property
    def ended(self) -> bool:
        return len(self.results) == len(self.documents)

    def line(self, found: str = "") -> str:
        """The status line.

        Args:
            found: what was found, in words.
        """
        total, done = len(self.documents), len(self.results)
        texts = counted(total, "text") if self.ended else f"{done:,} of {counted(total, 'text')}"
        others = f"{self.others:,} before you"
        if self.state != "Waiting":
            others = f"in turns with {counted(self.others, 'other')}"
        facts = [found, texts if total > 1 else "", f"{self.seconds:.1f} s", others if self.others else ""]
        words = html.escape(" · ".join(filter(None, facts)))
        bar = "" if self.ended else progress_bar(done, total, "Texts done")
        return status("Finished" if self.ended else self.state, bar + words)


def label_all(
    model: LazyModel[Model],
    documents: Sequence[Document],
    label: Callable[[Model, list[str], OnProgress], list[Output]],
    done: Sequence[Output] = (),
) -> Generator[Run[Output], None, None]:
    """Label documents in a thread, looking up often enough for Stop to act within one step of the model.

    Closing the generator makes ``progress`` raise inside ``label``, which ends it.

    Args:
        label: given the model, some texts, and what to call as it goes.
        done: results of the first documents, from a run before.

    Yields:
        The run so far, several times a second and once at the end.

    Raises:
        Stopping: the model was closed.
    """
    stopped, begun, ticket = Event(), Event(), Event()
    start = time.perf_counter()
    results = list(done)

    def progress(done: int, total: int) -> None:
        if stopped.is_set():
            raise _Stopped

    def work(texts: list[str]) -> list[Output]:
        with model.turn(ticket) as loaded:
            begun.set()
            progress(0, len(texts))
            return label(loaded, texts, progress)

    def so_far() -> Run[Output]:
        waits = not begun.is_set() and model.line.ahead(ticket) > 0
        state = "Waiting" if waits else "Reading" if model.loaded else f"Loading {model.name}"
        others = model.line.ahead(ticket) if waits else max(0, len(model.line) - 1)
        return Run(documents, list(results), time.perf_counter() - start, state, others)

    pool = ThreadPoolExecutor(1)
    try:
        for texts in _chunks(documents[len(results) :]):
            future = pool.submit(work, texts)
            while not future.done():
                if model.closed.is_set():
                    raise Stopping
                yield so_far()
                wait([future], _TICK)
            results += future.result()
    finally:
        stopped.set()
        pool.shutdown(wait=False)  # a model that loads for a run that was stopped is there for the next one
    yield Run(documents, results, time.perf_counter() - start)


async def last_of(runs: Generator[Run[Output], None, None]) -> Run[Output]:
    """The run once it has ended; cancelling this task ends it within one step of the model."""
    last: Run[Output] | None = None
    with closing(runs):
        while True:
            coming = asyncio.ensure_future(asyncio.to_thread(next, runs, None))
            try:
                run = await asyncio.shield(coming)
            except asyncio.CancelledError:
                await asyncio.wait([coming])  # what runs in a thread can't be closed before it looks up
                raise
            if run is None:
                assert last is not None, "a run that has not begun"
                return last
            last = run


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
