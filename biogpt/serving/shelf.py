"""Models in memory: those that their first user loads, and the shelf that visitors choose from."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Generic, TypeVar
from weakref import WeakSet

from biogpt.checkpoint.hub import embedded_names
from biogpt.checkpoint.inventory import language_models
from biogpt.serving.text_generator import TextGenerator

Model = TypeVar("Model")


class LazyModel(Generic[Model]):
    """A model that its first user loads; whoever has a turn has it alone.

    Args:
        name: what to call it: an embedded name, a folder's, or a Hub id.
        load: makes it; called again at the next turn if it fails.
    """

    def __init__(self, name: str, load: Callable[[], Model]) -> None:
        self.name = name
        self._load = load
        self._model: Model | None = None
        self._lock = Lock()

    @property
    def expected(self) -> bool:
        """False for the name of a model that should come with the project and does not: do not offer it."""
        return not self.name.startswith("mini-") or self.name in embedded_names()

    @property
    def loaded(self) -> Model | None:
        """The model, if somebody has loaded it; does not wait."""
        return self._model

    @contextmanager
    def turn(self) -> Iterator[Model]:
        """Wait for the model, load it if nobody has, and keep it from others meanwhile.

        Raises:
            ValueError: it cannot be loaded; the message says which and why.
        """
        with self._lock:
            if self._model is None:
                try:
                    self._model = self._load()
                except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: too little memory
                    said = f"{self.name} cannot be loaded: "  # by a shelf, too
                    raise ValueError(said + str(error).removeprefix(said)) from error
            yield self._model


class Shelf:
    """The language models of the page: the first is loaded at the start, others when a visitor asks for them.

    A request keeps the model that it began with; what leaves the shelf is freed when the last request lets go
    of it.

    Args:
        default: the model of every new visitor.
        load: makes a model from an embedded name, a folder or a Hub id.
        allowed: names that may be taken beside the default; None: any.
        keep: how many stay in memory beside the default.
    """

    def __init__(
        self,
        default: str,
        load: Callable[[str], TextGenerator],
        allowed: Sequence[str] | None = None,
        keep: int = 1,
    ) -> None:
        self.default = default
        self.allowed = None if allowed is None else tuple(dict.fromkeys([default, *allowed]))
        self.failure = ""  # why the default could not be loaded
        self.reading = Lock()  # of runs that read texts with a model, beside the requests that write
        self._load = load
        self._keep = keep
        self._loaded: dict[str, TextGenerator] = {}  # the one used last comes last
        self._known: WeakSet[TextGenerator] = WeakSet()  # and those that left and still write
        self._loading: dict[str, Lock] = {}
        self._lock = Lock()  # of the two dicts

    @property
    def ready(self) -> bool:
        return self.default in self._loaded

    def glance(self, name: str) -> TextGenerator | None:
        """The model if it is in memory; does not wait."""
        return self._loaded.get(name)

    def has(self, name: str) -> bool:
        """Whether the model is in memory."""
        return name in self._loaded

    def health(self) -> tuple[int, str]:
        """HTTP status and one word: 503 while the default model loads, or when it or its worker failed."""
        if not self.ready:
            return 503, f"failed: {self.failure}" if self.failure else "loading"
        state = self._loaded[self.default].health().state
        return (200 if state == "serving" else 503), state

    def close(self, seconds: float) -> None:
        """Take no more requests; let those at hand go on for so many seconds in all, and end the rest."""
        generators = list(self._known)
        with ThreadPoolExecutor(max(1, len(generators))) as pool:  # at once: all have the same time
            list(pool.map(lambda generator: generator.close(seconds), generators))

    def check(self, name: str) -> str:
        """The name without white space around it.

        Raises:
            ValueError: it is empty, or not one of ``allowed``.
        """
        name = (name or "").strip()
        if not name:
            raise ValueError("No model is named: choose one, or type a Hub id or a folder")
        if self.allowed is not None and name not in self.allowed:
            raise ValueError(f"{name} is not offered here; choose one of {', '.join(self.allowed)}")
        return name

    def take(self, name: str | None = None) -> TextGenerator:
        """The model of this name, loaded if it is not there; None is the default.

        Raises:
            ValueError: it cannot be loaded, or is not offered; the message says why.
        """
        name = self.check(self.default if name is None else name)
        with self._lock:
            loading = self._loading.setdefault(name, Lock())
        with loading:  # those who want another model need not wait for this one
            generator = self._taken(name)
            if generator is None:
                try:
                    generator = self._load(name)
                except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: too little memory
                    if name == self.default:
                        self.failure = str(error)
                    raise ValueError(f"{name} cannot be loaded: {error}") from error
                with self._lock:
                    self._loaded[name] = generator
                    self._known.add(generator)
            return generator

    def _taken(self, name: str) -> TextGenerator | None:
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


class OnShelf(LazyModel[TextGenerator]):
    """A language model of the shelf, for a run that reads texts with it; one such run at a time."""

    def __init__(self, shelf: Shelf, name: str | None = None) -> None:
        super().__init__(shelf.check(shelf.default if name is None else name), lambda: shelf.take(name))
        self._shelf = shelf
        self._lock = shelf.reading

    @property
    def loaded(self) -> TextGenerator | None:
        return self._shelf.glance(self.name)
