"""Models that serve on replicas of Ray Serve, called as those of this process are.

A replica that is lost takes nothing with it: the call is made again on another one. What a request gets
depends on nothing but itself, so the other one gives the same, and what was given already is left out.
"""

import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, Protocol, TypeVar

from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import Hypothesis, start_search
from biogpt.generation.tree import Node, TreeOptions
from biogpt.serving.engine import Counts, Stopping
from biogpt.serving.service import Lost, Prompt, QueuedStream, Step, Stream, TextService, queued_lists
from biogpt.serving.turns import CLIENT
from biogpt.serving.wording import word_rules
from biogpt.serving.worker import Health
from biogpt.text.results import Classification, Entity, Look, OnProgress, SentenceLabel, go_on

T = TypeVar("T")

# A machine whose cable is cut says nothing, and Ray may take a minute to miss it. So a replica that works
# gives signs of life, and is left when none has come for a while.
SIGN, SILENT = 2.0, 15.0  # seconds
_TRIES = 3  # in a row that may give nothing new
_STOPPING = "the replica that served this is stopping, and no other one took over; try again"
_PART = 2_000  # characters of passages in one call, and the calls of one run at once
_PARTS = 8


@dataclass(frozen=True)
class Place:
    """How a text stands that waits or runs: as of ``Stream``."""

    position: int
    running: int


@dataclass(frozen=True)
class Refusal:
    """An error that is the request's own."""

    error: Exception


@dataclass(frozen=True)
class Answer:
    """What a call that gives one thing gives."""

    value: Any


Message = Step | list[Node] | list[Hypothesis] | Place | Refusal | Answer


class Call(Protocol):
    """The messages of a call that streams; None is a sign of life."""

    def __iter__(self) -> Iterator[Message | None]: ...
    def cancel(self) -> None: ...


class Unanswered(Lost):
    """A call has not begun: the replica that it was sent to is silent, or all are busy."""


class _Other(Lost):
    def __init__(self) -> None:
        super().__init__(
            "the replica that wrote this text was lost, and another one goes on in other words; generate "
            "again"
        )


def going_on(begin: Callable[[], Iterable[Message | None]]) -> Iterator[Message]:
    """The messages of a call, which is begun again where its replica is lost.

    Raises:
        Lost: several replicas were lost, or another one does not say the same.
        Exception: what refuses the request.
    """
    given: list[Hashable] = []
    tries = 0
    while True:
        again = iter(list(given))
        try:
            for message in begin():
                if message is None:
                    continue
                if isinstance(message, Refusal):
                    if isinstance(message.error, Stopping):
                        raise Lost(_STOPPING)
                    raise message.error
                if isinstance(message, Place):
                    yield message
                    continue
                mark = _mark(message)
                before = next(again, None)
                if before is None:
                    given.append(mark)
                    tries = 0
                    yield message
                elif before != mark:
                    raise _Other
            if next(again, None) is not None:
                raise _Other
            return
        except _Other:
            raise
        except Lost as error:
            tries += not isinstance(error, Unanswered)
            if tries >= _TRIES:
                raise


def answered(ask: Callable[[], T | Refusal]) -> T:
    """What a call returns, which is made again where its replica is lost.

    Raises:
        Lost: several replicas were lost.
        Exception: what refuses the request.
    """
    tries = 0
    while True:
        try:
            found = ask()
            if isinstance(found, Refusal):
                raise Lost(_STOPPING) if isinstance(found.error, Stopping) else found.error
            return found
        except Lost as error:
            tries += not isinstance(error, Unanswered)
            if tries >= _TRIES:
                raise


def _mark(message: Message) -> Hashable:
    """What two replicas that say the same have in common; the last digits of numbers may differ."""
    if isinstance(message, Step):
        return message.sequence, message.token_id
    assert isinstance(message, list)
    return tuple(
        (entry.parent, entry.id) if isinstance(entry, Node) else (entry.finished, *entry.ids)
        for entry in message
    )


class Asked:
    """A call under way, whose messages are read by a thread of its own.

    Args:
        begin: begins the call, and is asked again where a replica is lost.
        count: is told of its first token, and of how many there were.

    Attributes:
        results: what came, in order; an exception when it failed, None after the last.
        place: as it was told last.
        ended: set after the last result.
    """

    def __init__(self, begin: Callable[[], Call], count: Callable[[Counts], None]) -> None:
        self.results: SimpleQueue[Step | list[Node] | list[Hypothesis] | Exception | None] = SimpleQueue()
        self.place = Place(0, 1)
        self.ended = Event()
        self._begin, self._count = begin, count
        self._call: Call | None = None
        self._left = False
        self._lock = Lock()  # of the call, and of leaving it
        self._begun = time.monotonic()
        Thread(target=self._read, name="biogpt-far", daemon=True).start()

    def cancel(self) -> None:
        """End the work: the replica drops the request within one step."""
        with self._lock:
            self._left = True
            if self._call is not None and not self.ended.is_set():
                self._call.cancel()

    def fail(self, error: Exception) -> None:
        """Give the reader an error, and end the work."""
        self.results.put(error)
        self.cancel()

    def _read(self) -> None:
        tokens = 0
        try:
            for message in going_on(self._next_call):
                if isinstance(message, Place):
                    self.place = message
                elif not isinstance(message, Refusal | Answer):
                    self.results.put(message)
                    is_token = isinstance(message, Step)
                    if is_token and not tokens:
                        self._count(Counts(1, 0, time.monotonic() - self._begun))
                    tokens += is_token
        except Exception as error:  # of whatever kind: who waits is told
            if not self._left:
                self.results.put(error)
        finally:
            self._count(Counts(0, tokens))
            self.ended.set()
            self.results.put(None)

    def _next_call(self) -> Iterable[Message | None]:
        with self._lock:
            if self._left:
                return ()
            self._call = self._begin()
        return self._call


class _FarStream(QueuedStream):
    """The steps of a text that is written elsewhere."""

    def __init__(self, prompt: Prompt, asked: Asked) -> None:
        super().__init__(prompt)
        self._asked = asked

    @property
    def position(self) -> int:
        return self._asked.place.position

    @property
    def running(self) -> int:
        return self._asked.place.running

    def take(self, timeout: float | None = None) -> object:
        return self._asked.results.get(timeout=timeout)

    def leave(self) -> None:
        self._asked.cancel()

    def __del__(self) -> None:
        self.close()

    def step_of(self, result: object) -> Step:
        assert isinstance(result, Step)
        return result


class Deployment(Protocol):
    """The replicas of a task, for calls that name one model."""

    def begin(self, method: str, *arguments: Any) -> Call:
        """Begin a call that streams; ``Lost`` is raised where the replica is lost, here or on the way."""
        ...

    def ask(self, method: str, *arguments: Any, look: Look = go_on) -> Any:
        """What a call returns, which is made again where its replica is lost.

        Args:
            look: called several times a second; what it raises ends the call.
        """
        ...

    def health(self) -> Health: ...


class FarGenerator(TextService):
    """Continues prompts on replicas; texts are encoded here."""

    def __init__(self, deployment: Deployment) -> None:
        config, tokenizer, description = deployment.ask("ask", _described, ())
        super().__init__(config, tokenizer)
        self._deployment = deployment
        self._description = description
        self._counts = Counts()
        self._under_way: set[Asked] = set()
        self._lock = Lock()  # of counts and set
        self._is_closed = False

    @property
    def description(self) -> str:
        return f"{self._description}, on Ray"

    @property
    def counts(self) -> Counts:
        return self._counts

    def health(self) -> Health:
        return (
            Health("stopping", "the service is shutting down")
            if self._is_closed
            else self._deployment.health()
        )

    def close(self, timeout: float = 0.0) -> None:
        self._is_closed = True
        deadline = time.monotonic() + timeout
        with self._lock:
            under_way = list(self._under_way)
        for asked in under_way:
            if not asked.ended.wait(max(0.0, deadline - time.monotonic())):
                asked.fail(Stopping())

    def stream(
        self, prompt: str | Prompt, options: GenerationOptions | None = None, session: Hashable = None
    ) -> Stream:
        options = (GenerationOptions() if options is None else options).with_seed()
        encoded = prompt if isinstance(prompt, Prompt) else self.prompt(prompt)
        start_search(self.config, encoded.ids, options)  # refuses at once what a replica would
        word_rules(self.tokenizer, options)
        encoded = self.reading(encoded, options.max_new_tokens)
        return _FarStream(encoded, self._asked("stream", encoded, options, session))

    def grow(
        self, prompt: Prompt, options: TreeOptions, session: Hashable = None
    ) -> Generator[list[Node] | None, None, None]:
        yield from _lists(self._asked("grow", prompt, options, session), Node)

    def beams(
        self, prompt: Prompt, options: GenerationOptions, session: Hashable = None
    ) -> Generator[list[Hypothesis] | None, None, None]:
        yield from _lists(self._asked("beams", prompt, options, session), Hypothesis)

    def ask(self, work: Callable[..., T], *arguments: object) -> T:
        self._refuse_at_the_end()
        found: T = self._deployment.ask("ask", work, arguments)
        return found

    def _asked(self, method: str, *arguments: Any) -> Asked:
        self._refuse_at_the_end()
        client = CLIENT.get()
        asked = Asked(lambda: self._deployment.begin(method, *arguments, client), self._count)
        with self._lock:
            self._under_way = {other for other in self._under_way if not other.ended.is_set()} | {asked}
        return asked

    def _count(self, counts: Counts) -> None:
        with self._lock:
            self._counts.add(counts)

    def _refuse_at_the_end(self) -> None:
        if self._is_closed:
            raise Stopping


def _lists(asked: Asked, kind: type[T]) -> Generator[list[T] | None, None, None]:
    return queued_lists(lambda seconds: asked.results.get(timeout=seconds), asked.cancel, kind)


def _described(generator: TextService) -> tuple[Any, Any, str]:
    return generator.config, generator.tokenizer, generator.description


class FarRecognizer:
    """Finds entities on replicas; what is here of ``EntityRecognizer`` is as there."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        [self.types] = deployment.ask("about", ["types"])

    def batch(
        self, texts: Sequence[str], progress: OnProgress | None = None, types: Iterable[str] = ()
    ) -> list[list[Entity]]:
        return _in_parts(self._deployment, texts, progress, tuple(types))


class FarClassifier:
    """Labels texts on replicas; what is here of ``TextClassifier`` is as there."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.labels, self.multi_label = deployment.ask("about", ["labels", "multi_label"])

    def batch(self, texts: Sequence[str], progress: OnProgress | None = None) -> list[Classification]:
        return _in_parts(self._deployment, texts, progress)

    def sentences(self, text: str, progress: OnProgress | None = None) -> list[SentenceLabel]:
        found: list[SentenceLabel] = self._deployment.ask("sentences", text, look=_look(progress, 0, 1))
        return found


def _in_parts(
    deployment: Deployment, texts: Sequence[str], progress: OnProgress | None, *settings: Any
) -> list[Any]:
    """What is found in each text; they are sent some at a time, to as many replicas as there are."""
    parts: list[list[str]] = []
    size = _PART
    for text in texts:
        if size >= _PART:
            parts.append([])
            size = 0
        parts[-1].append(text)
        size += len(text)
    found: list[Any] = []

    def ask(part: list[str]) -> list[Any]:
        results: list[Any] = deployment.ask(
            "batch", part, *settings, look=_look(progress, len(found), len(texts))
        )
        return results

    with ThreadPoolExecutor(_PARTS) as pool:
        for results in pool.map(ask, parts):
            found += results
            if progress is not None:
                progress(len(found), len(texts))
    return found


def _look(progress: OnProgress | None, done: int, total: int) -> Look:
    return go_on if progress is None else partial(progress, done, total)
