"""Models that a tab needs only when it is used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Generic, TypeVar

from biogpt.hub import embedded_names

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
                    raise ValueError(f"{self.name} cannot be loaded: {error}") from error
            yield self._model
