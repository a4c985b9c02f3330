"""Models in memory: those that their first user loads, and the shelf that visitors choose from."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from types import MappingProxyType
from typing import Generic, TypeVar
from weakref import WeakSet

from biogpt.checkpoint.hub import HUB_ID, embedded_names
from biogpt.checkpoint.inventory import language_models
from biogpt.serving.engine import Counts, Stopping
from biogpt.serving.service import TextService

logger = logging.getLogger(__name__)

Model = TypeVar("Model")
_LOOK = 0.2  # seconds after which whoever waits for a model looks whether the process is to end
_SHOWN = 100  # characters of a name that is refused


class NotOffered(ValueError):
    """A model was named that visitors may not have, whether it exists or not."""


class NotLoaded(ValueError):
    """A model cannot be loaded."""


def _cannot_load(name: str, error: Exception, tell: bool = False) -> NotLoaded:
    """What visitors are told; the cause, which may name folders of this machine, goes to the log.

    Args:
        tell: whether they are told the cause, too.
    """
    logger.error("%s cannot be loaded: %s", name, error)
    return NotLoaded(f"{name} cannot be loaded" + (f": {error}" if tell else "; the log says why"))


def public_names(sources: Sequence[str]) -> dict[str, str]:
    """Sources by what visitors see of them: a folder's own name without the path to it, others as they are.

    A folder that has the name of another one, or of an embedded model, gets a number.
    """
    names: dict[str, str] = {}
    taken = set(embedded_names())
    for source in dict.fromkeys(sources):
        name = source
        if source not in taken and (
            Path(source).expanduser().is_dir() or not HUB_ID.fullmatch(source.partition("@")[0])
        ):
            stem = name = Path(source).expanduser().resolve().name or "model"
            number = 1
            while name in taken:
                number += 1
                name = f"{stem} ({number})"
        taken.add(name)
        names[name] = source
    return names


class Line:
    """Turns in the order of asking: a plain lock may serve again who has just had it."""

    def __init__(self) -> None:
        self._tickets: deque[Event] = deque()  # the first one has its turn
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._tickets)

    def ahead(self, ticket: Event) -> int:
        """How many have their turn before this one."""
        with self._lock:
            return self._tickets.index(ticket) if ticket in self._tickets else 0

    @contextmanager
    def turn(self, ticket: Event) -> Iterator[None]:
        """Wait for a turn, and end it for the next one; the event is set meanwhile."""
        ticket.clear()
        with self._lock:
            self._tickets.append(ticket)
            self._tickets[0].set()
        try:
            ticket.wait()
            yield
        finally:
            with self._lock:
                self._tickets.remove(ticket)
                if self._tickets:
                    self._tickets[0].set()


class LazyModel(Generic[Model]):
    """A model that its first user loads; whoever has a turn has it alone.

    Args:
        name: what to call it: an embedded name, a folder's, or a Hub id.
        load: makes it; called again at the next turn if it fails.
        closed: set once no more work is to be done with it, and what is being done is to end.

    Attributes:
        line: of those who wait for a turn.
    """

    def __init__(self, name: str, load: Callable[[], Model], closed: Event | None = None) -> None:
        self.name = name
        self.closed = Event() if closed is None else closed
        self._load = load
        self._model: Model | None = None
        self.line = Line()

    @property
    def expected(self) -> bool:
        """False for the name of a model that should come with the project and does not: do not offer it."""
        return not self.name.startswith("mini-") or self.name in embedded_names()

    @property
    def loaded(self) -> Model | None:
        """The model, if somebody has loaded it; does not wait."""
        return self._model

    @contextmanager
    def turn(self, ticket: Event | None = None) -> Iterator[Model]:
        """Wait for the model, load it if nobody has, and keep it from others meanwhile.

        Args:
            ticket: by which ``line`` tells how many are ahead.

        Raises:
            NotLoaded: it cannot be loaded; the message says which, and the log why.
        """
        with self.line.turn(ticket or Event()):
            if self._model is None:
                try:
                    self._model = self._load()
                except Exception as error:  # of whatever kind: too little memory, a damaged file
                    raise _cannot_load(self.name, error) from error
            yield self._model


class Shelf:
    """The language models of the page: the first is loaded at the start, others when a visitor asks for them.

    A request keeps the model that it began with; what leaves the shelf is freed when the last request lets go
    of it.

    Args:
        default: name of the model of every new visitor.
        load: makes a model from an embedded name, a folder or a Hub id.
        allowed: names that may be taken beside the default; None: any, folders of this machine included.
        keep: how many stay in memory beside the default.
        sources: what to load for a name that is not its own source, so that visitors see no folder's path.

    Attributes:
        closed: set by ``close``; models beside the shelf may share it.
    """

    def __init__(
        self,
        default: str,
        load: Callable[[str], TextService],
        allowed: Sequence[str] | None = None,
        keep: int = 1,
        sources: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.default = default
        self.allowed = None if allowed is None else tuple(dict.fromkeys([default, *allowed]))
        self.closed = Event()
        self.failure = ""  # what to say when the default could not be loaded
        self.reading = Line()  # of runs that read texts with a model, beside the requests that write
        self._load = load
        self._sources = sources
        self._keep = keep
        self._loaded: dict[str, TextService] = {}  # the one used last comes last
        self._known: WeakSet[TextService] = WeakSet()  # and those that left and still write
        self._loading: dict[str, Lock] = {}
        self._lock = Lock()  # of the two dicts

    @property
    def ready(self) -> bool:
        return self.default in self._loaded

    def glance(self, name: str) -> TextService | None:
        """The model if it is in memory; does not wait."""
        return self._loaded.get(name)

    def has(self, name: str) -> bool:
        """Whether the model is in memory."""
        return name in self._loaded

    def health(self) -> tuple[int, str]:
        """HTTP status and one word: 503 while the default model loads, or when it or its worker failed."""
        if self.closed.is_set():
            return 503, "stopping"
        if not self.ready:
            return 503, self.failure or "loading"
        state = self._loaded[self.default].health().state
        return (200 if state == "serving" else 503), state

    def close(self, seconds: float) -> None:
        """Take no more requests; let those at hand go on for so many seconds in all, and end the rest."""
        self.closed.set()
        generators = list(self._known)
        with ThreadPoolExecutor(max(1, len(generators))) as pool:  # at once: all have the same time
            list(pool.map(lambda generator: generator.close(seconds), generators))

    def check(self, name: str) -> str:
        """The name without white space around it.

        Raises:
            TypeError: it is not a string.
            NotOffered: it is empty, or not one of ``allowed``: the same words whether it exists or not.
        """
        if not isinstance(name, str):
            raise TypeError(f"model is {str(name)[:_SHOWN]}; expected a name")
        name = name.strip()
        if self.allowed is not None and name not in self.allowed:
            raise NotOffered(
                f"model {name[:_SHOWN]!r} is not offered here; choose one of {', '.join(self.allowed)}"
            )
        if not name:
            raise NotOffered("No model is named: choose one, or type a Hub id or a folder")
        return name

    def cannot_load(self, name: str, error: Exception) -> NotLoaded:
        """What to tell a visitor; the cause only where any model may be named, and so any folder."""
        return _cannot_load(name, error, tell=self.allowed is None)

    def counts(self) -> Counts:
        """What the models that are there have written."""
        counts = Counts()
        for generator in list(self._known):
            counts.add(generator.counts)
        return counts

    def source(self, name: str) -> str:
        """What is loaded for a name: an embedded name, a folder or a Hub id."""
        return self._sources.get(name, name)

    def take(self, name: str | None = None) -> TextService:
        """The model of this name, loaded if it is not there; None is the default.

        Raises:
            NotLoaded, NotOffered: where any model is offered, the message says why; else the log does.
            Stopping: the shelf was closed before it was there.
        """
        name = self.check(self.default if name is None else name)
        with self._lock:
            loading = self._loading.setdefault(name, Lock())
        while not loading.acquire(timeout=_LOOK):  # those who want another model need not wait for this one
            self._refuse_at_the_end()
        try:
            generator = self._taken(name)
            if generator is None:
                self._refuse_at_the_end()
                try:
                    generator = self._load(self.source(name))
                except Exception as error:  # of whatever kind: too little memory, a damaged file
                    said = self.cannot_load(name, error)
                    if name == self.default:
                        self.failure = f"failed: {said}"
                    raise said from error
                with self._lock:
                    self._loaded[name] = generator
                    self._known.add(generator)
                self._refuse_at_the_end()
            return generator
        finally:
            loading.release()

    def coming(self, name: str | None = None) -> Iterator[TextService | None]:
        """The model at last, and None several times a second while a thread loads it.

        Errors are those of ``take``; Stopping is raised while the model still loads.
        """
        name = self.check(self.default if name is None else name)
        if self.has(name):
            yield self.take(name)
            return
        pool = ThreadPoolExecutor(1)
        future = pool.submit(self.take, name)
        pool.shutdown(wait=False)
        while not future.done():
            self._refuse_at_the_end()
            yield None
            wait([future], _LOOK)
        yield future.result()

    def _refuse_at_the_end(self) -> None:
        if self.closed.is_set():
            raise Stopping

    def _taken(self, name: str) -> TextService | None:
        """The model if it is in memory; else room is made for it: two large models need not fit at once."""
        with self._lock:
            generator = self._loaded.pop(name, None)
            if generator is not None:
                self._loaded[name] = generator
            elif name != self.default:
                others = [key for key in self._loaded if key != self.default]
                for key in others[: len(others) - self._keep + 1]:
                    del self._loaded[key]
            return generator

    def names(self) -> list[str]:
        """What to offer: all that is allowed, or else what is here: embedded, or in the Hub's cache."""
        if self.allowed is not None:
            return list(self.allowed)
        return list(dict.fromkeys([self.default, *language_models()]))


class OnShelf(LazyModel[TextService]):
    """A language model of the shelf, for a run that reads texts with it; one such run at a time."""

    def __init__(self, shelf: Shelf, name: str | None = None) -> None:
        name = shelf.check(shelf.default if name is None else name)
        super().__init__(name, lambda: shelf.take(name), shelf.closed)
        self._shelf = shelf
        self.line = shelf.reading

    @property
    def loaded(self) -> TextService | None:
        return self._shelf.glance(self.name)

    @contextmanager
    def turn(self, ticket: Event | None = None) -> Iterator[TextService]:
        with self.line.turn(ticket or Event()):
            yield self._load()
