"""The thread that runs the steps of an engine, and how it fares."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition, Lock, Thread, main_thread
from typing import Any, Literal, TypeVar

from biogpt.generation.search import Search
from biogpt.runners.threads import fulfil
from biogpt.serving.engine import Engine, Result, Slot, Stopping

logger = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["loading", "serving", "failed", "stopping"]
_PROBE = 2.0  # seconds after a step that failed until the model is tried again, though nobody asks for it
_FAILED = "the thread of the model failed at this request; try again"
_GLANCE = 0.2  # seconds after which an idle thread looks whether it is still needed


@dataclass(frozen=True)
class Health:
    """Whether requests are served: the state, and in words why it is not "serving"."""

    state: State
    reason: str = ""


class Worker:
    """The thread that runs the steps of an engine, or in its place whoever asks for a result.

    It starts with the first request, so that a process may be forked before, and ends by itself once the
    generator or the main thread is gone. Those who ask for something, and the thread itself while it is idle,
    keep no helpers (``ModelRunner.rest``).

    Args:
        engine: nobody else may call its ``step``.
        threaded: False runs the steps in the threads of those who wait for results, as a process must that is
            forked for a single call.
        probe: makes a short search, with which the thread tries a model that failed until it recovers.
    """

    def __init__(
        self, engine: Engine, threaded: bool = True, probe: Callable[[], Search] | None = None
    ) -> None:
        self.engine = engine
        self._probe = probe
        self._failed_at = 0.0  # time.monotonic()
        self.health = Health("serving")
        self.is_abandoned = False
        self._threaded = threaded
        self._thread: Thread | None = None
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        # Notified when a slot or task came, a slot was cancelled or read, or the end was asked for.
        self._changed = Condition()
        self._turn = Lock()  # of those who run steps themselves

    def submit(self, slot: Slot) -> None:
        """Let a slot wait for its turn.

        Errors are those of ``Engine.submit``, and Stopping after ``stop``.
        """
        with self._changed:
            self._refuse_at_the_end()
            self.engine.submit(slot)
            self._start()

    def run(self, task: Callable[[], T]) -> T:
        """What a task returns or raises, run between two steps by the thread that owns the model."""
        if not self._threaded:
            with self._turn:
                return task()
        future: Future[T] = Future()
        with self._changed:
            self._refuse_at_the_end()
            self._tasks.append((future, task))
            self._start()
        try:
            return future.result()
        except SystemExit as error:  # which would end the thread that asked, in place of the model's
            raise RuntimeError("the task ended the thread of the model") from error

    def _refuse_at_the_end(self) -> None:
        if self.health.state == "stopping" or (self._threaded and not main_thread().is_alive()):
            raise Stopping

    def _start(self) -> None:
        if self._threaded and (self._thread is None or not self._thread.is_alive()):
            self._thread = Thread(target=self._serve, name="biogpt")
            self._thread.start()
        if self._threaded:
            self.engine.runner.rest()
        self._changed.notify()

    def take(self, slot: Slot, timeout: float | None = None) -> Result | Exception | None:
        """The next result of a slot; the reader says with ``taken`` when it has made use of it.

        Raises:
            queue.Empty: there is none within ``timeout`` seconds.
        """
        if self._threaded:
            return slot.results.get(timeout=timeout)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while slot.results.empty() and time.monotonic() < deadline:
            with self._turn:
                if slot.results.empty():
                    self._step()
        return slot.results.get_nowait()

    def taken(self, slot: Slot) -> None:
        """A reader is done with a result; a slot that was held back may go on."""
        slot.taken += 1
        if slot.lead is not None:
            self._wake()

    def cancel(self, slot: Slot) -> None:
        """Let a slot leave before the next step."""
        slot.cancelled = True
        if self._threaded:
            self._wake()
        elif self._turn.acquire(blocking=False):  # else whoever has the turn drops it in the next step
            try:
                self.engine.drop()
            finally:
                self._turn.release()

    def stop(self, timeout: float = 0.0) -> None:
        """Take no more requests, let those at hand go on for so many seconds, and drop the rest."""
        with self._changed:
            self.health = Health("stopping", "the service is shutting down")
            thread = self._thread
        deadline = time.monotonic() + timeout
        while thread is not None and (self.engine.is_busy or self._tasks) and time.monotonic() < deadline:
            time.sleep(min(_GLANCE, timeout))
        self.is_abandoned = True
        self.engine.tell(Stopping())  # at once: a step of a large model takes seconds
        with self._changed:
            while self._tasks:
                self._tasks.popleft()[0].set_exception(Stopping())
        if thread is not None:
            self._wake()
            thread.join()
        # Not for ever: this may be the handler of a signal, in the very thread that has the turn.
        has_turn = self._turn.acquire(timeout=1.0)
        self.engine.drop(everyone=True)
        if has_turn:
            self._turn.release()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _serve(self) -> None:
        while self._is_needed():
            try:
                self._serve_on()
            except BaseException as error:  # whatever ends it: readers are told, and it goes on
                logger.exception("the thread of the model failed")
                self.engine.fail(RuntimeError(_FAILED))
                self._drop_tasks(_FAILED)
                self._note(error)
                time.sleep(_GLANCE)
        self.engine.drop(everyone=True)
        self._drop_tasks("the service has stopped")

    def _drop_tasks(self, reason: str) -> None:
        while self._tasks:
            self._tasks.popleft()[0].set_exception(RuntimeError(reason))

    def _is_needed(self) -> bool:
        return not self.is_abandoned and main_thread().is_alive()

    def _serve_on(self) -> None:
        self.engine.runner.attach()
        while self._is_needed():
            self._try_again()
            with self._changed:
                task = self._tasks.popleft() if self._tasks else None
                if task is None and not self.engine.has_work:
                    self.engine.runner.rest()
                    # What is dropped by the garbage collector sets a flag and notifies nobody, so look at
                    # times.
                    self._changed.wait(_GLANCE)
                    continue
            if task is not None:
                fulfil(*task)
            if self.engine.has_work:
                self._step()

    def _try_again(self) -> None:
        """Let a model that failed make a token: whoever heeds its health sends no request that would."""
        is_due = self.health.state == "failed" and time.monotonic() > self._failed_at + _PROBE
        if is_due and self._probe is not None and not self.engine.is_busy:
            self.engine.submit(Slot(self._probe()))

    def _step(self) -> None:
        try:
            self.engine.step()
            self._note(None)
        except Exception as error:  # its requests were told; others may fare better
            logger.exception("a step of the model failed")
            self._note(error)

    def _note(self, error: BaseException | None) -> None:
        """Keep how a step went."""
        if error is not None:
            self._failed_at = time.monotonic()
        if self.health.state != "stopping":
            self.health = Health("failed", f"{type(error).__name__}: {error}") if error else Health("serving")
