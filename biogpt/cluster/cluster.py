"""The replicas of Ray Serve as the page calls them, on a cluster or on a Ray that is started for it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from biogpt.cluster.far import (
    SILENT,
    Answer,
    FarClassifier,
    FarGenerator,
    FarRecognizer,
    Message,
    Unanswered,
    answered,
)
from biogpt.cluster.fleet import TASKS, Fleet, application_of
from biogpt.cluster.replicas import run
from biogpt.cluster.starting import start_ray
from biogpt.serving.engine import QueueFull
from biogpt.serving.service import Lost
from biogpt.serving.worker import Health
from biogpt.text.results import Look, go_on

_LOOK = 0.2  # seconds between looks of who waits for a call
_SILENT = (
    f"the replica that served this has been silent for {SILENT:.0f} seconds, and no other one took over; "
    "try again"
)
_GLANCE = 2.0  # between looks at how the applications fare
_NONE = Health("failed", "no replica runs")


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Raise what a replica raised, and ``Lost`` for whatever else befell a call."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from None
    except BackPressureError as error:
        raise QueueFull(
            "so many requests wait for a replica that another one is refused; try again later"
        ) from error
    except (RayError, RayServeException) as error:
        raise Lost(
            f"the replica that served this was lost ({type(error).__name__}), and no other one took over; "
            "try again"
        ) from error


def _handle(task: str) -> Any:
    """Ray's way to a deployment, of which it keeps one a process."""
    return serve.get_deployment_handle(task, application_of(task))


class _RayCall:
    """A call that streams, and its messages. Ray's wait for one has no end, so a thread of its own waits."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._messages: SimpleQueue[tuple[Message | None, BaseException | None]] = SimpleQueue()
        Thread(target=self._read, name="biogpt-call", daemon=True).start()

    def _read(self) -> None:
        try:
            with _in_our_words():
                for message in self._response:
                    self._messages.put((message, None))
            self._messages.put((None, StopIteration()))
        except BaseException as error:  # of whatever kind: who waits is told
            self._messages.put((None, error))

    def __iter__(self) -> Iterator[Message | None]:
        return self.messages()

    def messages(self, look: Look = go_on) -> Iterator[Message | None]:
        """As they come.

        Args:
            look: called several times a second while none comes.

        Raises:
            Lost: the replica is lost, or silent.
            Unanswered: no replica has begun.
        """
        heard = time.monotonic()
        kind: type[Lost] = Unanswered
        while True:
            try:
                message, error = self._messages.get(timeout=_LOOK)
            except Empty:
                look()
                if time.monotonic() - heard > SILENT:
                    self.cancel()
                    raise kind(_SILENT) from None
                continue
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            heard, kind = time.monotonic(), Lost
            yield message

    def cancel(self) -> None:
        self._response.cancel()


@dataclass(frozen=True)
class RayDeployment:
    """The replicas of a task, for calls that name one model.

    Args:
        health: of the task.
    """

    task: str
    model: str
    health: Callable[[], Health]

    def begin(self, method: str, *arguments: Any) -> _RayCall:
        """As of ``biogpt.cluster.far.Deployment``."""
        with _in_our_words():
            handle = _handle(self.task).options(multiplexed_model_id=self.model, stream=True)
            return _RayCall(getattr(handle, method).remote(*arguments))

    def ask(self, method: str, *arguments: Any, look: Look = go_on) -> Any:
        """As of ``biogpt.cluster.far.Deployment``."""
        return answered(lambda: self._asked(method, arguments, look))

    def _asked(self, method: str, arguments: tuple[Any, ...], look: Look) -> Any:
        call = self.begin("answer", method, arguments)
        try:
            [answer] = filter(None, call.messages(look))
        except BaseException:
            call.cancel()
            raise
        assert isinstance(answer, Answer)
        return answer.value


class Cluster:
    """Where replicas are.

    Ray is joined or started at once, by the thread that makes this: what it starts ends with that thread.

    Args:
        address: of a Ray cluster whose applications serve; None starts Ray on this machine, and the fleet.
        fleet: which replicas are started here.
        tasks: that are asked for.

    Raises:
        OSError: there is no cluster at the address.
    """

    def __init__(self, address: str | None, fleet: Fleet, tasks: Sequence[str] = TASKS) -> None:
        self._address, self._fleet, self._tasks = address, fleet, tasks
        self._lock = Lock()
        self._is_there = False
        self._health = {task: Health("loading") for task in tasks}
        self._ended = Event()
        start_ray(address, round(fleet.cpus * fleet.most * len(tasks)) + 1)

    def generator(self, source: str) -> FarGenerator:
        """A language model on replicas.

        Raises:
            ValueError: it cannot be loaded there.
            OSError: the applications are not deployed there.
        """
        return FarGenerator(self._deployment("writing", source))

    def recognizer(self, source: str) -> FarRecognizer:
        """Of entities, as ``generator``."""
        return FarRecognizer(self._deployment("entities", source))

    def classifier(self, source: str) -> FarClassifier:
        """Of texts or sentences, as ``generator``."""
        return FarClassifier(self._deployment("classes", source))

    def close(self) -> None:
        """Leave the cluster; what was started here ends."""
        self._ended.set()
        if self._is_there:  # else what is being started ends with this process
            for task in self._tasks:
                _handle(task).shutdown()
            ray.shutdown()

    def _deployment(self, task: str, source: str) -> RayDeployment:
        with self._lock:
            if not self._is_there:
                self._start()
                self._is_there = True
                Thread(target=self._watch, name="biogpt-cluster", daemon=True).start()
        return RayDeployment(task, source, lambda: self._health[task])

    def _start(self) -> None:
        if self._address is None:
            run(self._fleet.config(self._tasks))
        there = serve.status().applications
        missing = [name for name in map(application_of, self._tasks) if name not in there]
        if missing:
            raise OSError(
                f"{', '.join(missing)} do not run at {self._address}; deploy them: python -m biogpt cluster "
                "config --out biogpt.yaml && serve deploy biogpt.yaml"
            )

    def _watch(self) -> None:
        """Look at times how the applications fare: asking takes a while, and /health does not wait."""
        while not self._ended.is_set():
            try:
                found = serve.status().applications
                for task in self._tasks:
                    there = found.get(application_of(task))
                    states = {} if there is None else there.deployments[task].replica_states
                    is_served = states.get("RUNNING", 0) > 0
                    self._health[task] = Health("serving") if is_served else _NONE
            except Exception as error:  # Ray's, of whatever kind
                gone = Health("failed", f"{type(error).__name__}: {error}")
                self._health = dict.fromkeys(self._tasks, gone)
            self._ended.wait(_GLANCE)
