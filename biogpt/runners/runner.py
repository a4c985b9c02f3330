"""The contract between those who schedule requests and those who compute them.

Letters: R rows of all requests together, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from biogpt.generation.search import Choice, Rules
from biogpt.model.cache import KVCache
from biogpt.model.config import BioGptConfig

Part = TypeVar("Part")
Made = TypeVar("Made")


class ModelRunner(ABC):
    """Computes the logits of one language model. Nobody above asks about layers, types, threads or devices.

    It promises that a row's bits depend on that row alone: not on who else is there, nor on the place among
    them. One thread at a time may call it.

    Attributes:
        config: of the model.
        stretch: positions of a prompt that are worth keeping for reuse, as ``read`` takes them at once; as
            long as the model where reading again is as fast.
        precision: what it computes in, in one word.
    """

    config: BioGptConfig
    stretch: int
    precision: str

    @property
    @abstractmethod
    def description(self) -> str:
        """A line for people: precision and device."""

    @property
    def most(self) -> int:
        """Texts that may be written at once, unless somebody sets another limit."""
        return 16

    @abstractmethod
    def prepare(self) -> None:
        """Do all that the first step needs, once; else the first step does it."""

    def prepare_ahead(self) -> None:  # noqa: B027
        """The same while the model is loaded, as far as it is wise: a GPU may be there only during a call."""

    def share_cores(self) -> None:  # noqa: B027
        """Leave cores to what else runs on this machine, such as a page; called before ``attach``."""

    @abstractmethod
    def memory(self) -> int:
        """Bytes that caches may take together, unless somebody sets another limit."""

    def limit(self, cache_bytes: int) -> None:  # noqa: B027
        """Told once, before ``open``, how many bytes all caches will take at most."""

    @abstractmethod
    def cache_bytes(self, rows: int, length: int) -> int:
        """Bytes of a cache of so many rows of at most ``length`` positions."""

    @abstractmethod
    def open(self, rows: int, length: int) -> KVCache:
        """A cache for a request of so many rows, of which there is one until ``reorder`` makes more.

        Raises:
            MemoryError: there is no room.
        """

    @abstractmethod
    def read(self, ids: Sequence[int], cache: KVCache) -> Tensor | None:
        """Read the next stretch of a prompt, from ``cache.length`` on, into a cache of one row.

        Returns:
            [1, V] float32 logits on the CPU after the last of ``ids``; None while some of them are still to
            be read.
        """

    def together(self, prompts: Sequence[Sequence[int]], caches: Sequence[KVCache]) -> int:
        """Of how many prompts, counted from the first, the next stretches are read at once; at least 1."""
        return 1

    def read_together(
        self, prompts: Sequence[Sequence[int]], caches: Sequence[KVCache]
    ) -> list[Tensor | None]:
        """As ``read``, for as many prompts as ``together`` says."""
        return [self.read(ids, cache) for ids, cache in zip(prompts, caches, strict=True)]

    @abstractmethod
    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache], rules: Sequence[Rules | None]
    ) -> list[Tensor | Choice]:
        """One more position for each row of each cache.

        Args:
            ids: R, one a row, cache after cache.
            caches: of any lengths, each with room for one more position; they are written to.
            rules: for each cache what its next token is chosen by, if that is asked for; the same object for
                all tokens of a sample.

        Returns:
            For each cache [rows, V] float32 logits on the CPU; or the choice, where there are rules and the
            runner chooses where it computes.
        """

    def close(self, cache: KVCache) -> None:
        """Take a cache back; it holds nothing afterwards."""
        cache.release()

    def each(self, function: Callable[[Part], Made], parts: Iterable[Part]) -> Iterator[Made]:
        """As ``map``, for what follows a step.

        Parts that have nothing to do with each other may run at once.
        """
        return map(function, parts)

    def attach(self) -> None:  # noqa: B027
        """Called by the thread that is going to compute, before it does."""

    def rest(self) -> None:  # noqa: B027
        """Called by a thread that is going to wait for another one: what it keeps for its next step goes."""
