"""A runner for CPUs: a scripted step, rows in the numbers that are fastest, caches in shared pages.

What each of these gives is in ``assets/benchmarks/README.md``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from biogpt.generation.search import Choice, Rules
from biogpt.model.cache import KVCache
from biogpt.model.heads import LanguageModel
from biogpt.runners.byte_cache import BYTES, Int8KVCache
from biogpt.runners.float_cache import PAGED, FloatKVCache
from biogpt.runners.paged_cache import PagedCache, Pages
from biogpt.runners.plain import PlainRunner
from biogpt.runners.precision import describe
from biogpt.runners.steady import is_steady_alone, steady_sizes, swift_sizes
from biogpt.runners.step import FLOATS, DecodeStep
from biogpt.runners.threads import has_pair, rest_threads, side_by_side, use_threads

Part = TypeVar("Part")
Made = TypeVar("Made")

_ROWS_TO_HALVE = 8  # from which on a step is made in two halves, each by threads of its own
_SMALL = 50_000_000  # weights; a second thread gains such a model little, and would wait for what else runs


class CpuRunner(PlainRunner):
    """Computes on a CPU, with layers as ``biogpt.runners.packing`` lays them out.

    Attributes:
        threads: that torch computes with; as many as it likes when None.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self.threads: int | None = None
        self._cache: type[PagedCache] | None = None
        self.cache_kind = FLOATS
        if model.layout == "int8" and Int8KVCache.fits(model.config):
            self._cache, self.cache_kind = Int8KVCache, BYTES
        elif FloatKVCache.fits(model.config):
            self._cache, self.cache_kind = FloatKVCache, PAGED
        self._pages: Pages | None = None
        self._halves = False  # whether two threads may compute half of the rows each

    @property
    def description(self) -> str:
        return describe(self.device, self.precision, self.threads)

    def find_sizes(self) -> tuple[int, ...]:
        sizes = steady_sizes(self.model)
        if self.model.layout == "packed":
            return swift_sizes(self.model, sizes)
        # Large float weights are too much to be read by each of two threads; those of int8 are not.
        if self.model.layout == "int8":
            self._halves = has_pair() and is_steady_alone(self.model, sizes)
        return sizes

    def make_step(self) -> DecodeStep:
        return DecodeStep(self.model.biogpt, self.cache_kind, scripted=True)

    def prepare_ahead(self) -> None:
        self.prepare()
        rest_threads()  # so that this process may be forked

    def cache_bytes(self, rows: int, length: int) -> int:
        if self._cache is not None:
            return self._cache.size(self.config, rows, length)
        return super().cache_bytes(rows, length)

    def limit(self, cache_bytes: int) -> None:
        if self._cache is not None:
            self._pages = self._cache.kind.within(self.config, cache_bytes)

    def open(self, rows: int, length: int) -> KVCache:
        if self._cache is not None:
            return self._cache(self.config, 1, length, self._pages)
        return super().open(rows, length)

    @torch.inference_mode()
    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache], rules: Sequence[Rules | None]
    ) -> list[Tensor | Choice]:
        self.prepare()
        if not self._splits(len(ids)):
            return super().step(ids, caches, rules)
        groups = self.groups(ids, caches, min(self.sizes[-1], -(-len(ids) // 2)))
        logits = torch.cat(list(side_by_side(lambda group: self.compute(*group), groups)))
        return list(logits.split([cache.batch_size for cache in caches]))

    def each(self, function: Callable[[Part], Made], parts: Iterable[Part]) -> Iterator[Made]:
        parts = list(parts)
        if not self._splits(len(parts)):
            return map(function, parts)
        middle = len(parts) // 2
        halves = side_by_side(lambda half: list(map(function, half)), [parts[:middle], parts[middle:]])
        return chain.from_iterable(halves)

    def _splits(self, count: int) -> bool:
        return self._halves and has_pair() and count >= _ROWS_TO_HALVE

    def share_cores(self) -> None:
        if self.config.num_parameters < _SMALL:
            self.threads = 1

    def attach(self) -> None:
        if self.threads is not None:
            use_threads(self.threads)

    def rest(self) -> None:
        rest_threads()
