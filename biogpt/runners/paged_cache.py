"""A key/value cache in pages, shared by the requests of one model on a CPU.

Memory is taken a page at a time and given back with it; and since all requests share their pages, one call
attends for all of them.

Both products of attention are sums of rows, each times its weight: what torch's "embedding bags" compute. A
mixture is the sum of its positions' values. The scores of a page are the sum, over the D numbers of the
query, of what each meets in the page's keys; so a page keeps its keys transposed. Every bag is summed by
itself in a fixed order, and a softmax over a page more adds zeros: a row's bits depend on nothing but the
row.

Paging follows Kwon et al., "Efficient memory management for large language model serving with
PagedAttention", SOSP 2023 (arXiv 2309.06180).

Letters: L layers, R rows, H heads, S key positions, T new positions, D head width, P pages, Q positions of
a page.
"""

import math
import mmap
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from typing import ClassVar, Self

import torch
from torch import Tensor

from biogpt.model.cache import KVCache
from biogpt.model.config import BioGptConfig
from biogpt.runners.step import Places

# Address space is no promise to use it: Linux would count all of it again for each process that is forked,
# and refuse. Python names the flag from 3.13 on.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class Pages(ABC):
    """Address space for so many pages of all layers, and which of them are free.

    Memory is taken as pages are written to, and given back with them; but what one text of full length takes
    is kept for the next one, as to take it anew costs time.

    Attributes:
        parts: what a page is made of, [L, P, H, …] each, in items of ``dtype``.
        held: what of that is of positions: the keys, [L, P, H, D, Q], then others, [L, P, H, Q, …].
        views: by layer, what steps take of them: every item, and the rows of each.
    """

    positions: ClassVar[int]  # Q
    dtype: ClassVar[torch.dtype]
    spill: ClassVar[int] = 0  # items at the end of a layer for what is written and not used
    held: tuple[Tensor, ...]
    views: list[list[Tensor]]

    def __init__(self, config: BioGptConfig, count: int) -> None:
        self.count = count
        item = self.dtype.itemsize
        shapes = self.shapes(config)
        # One after the other in a layer: where each part begins, the last number being that of the spill.
        self._sizes = [math.prod(shape) for shape in shapes]
        self._starts = [0, *accumulate(count * size for size in self._sizes)]
        self._stride = -(-item * (self._starts[-1] + self.spill) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(
            -1,
            config.num_hidden_layers * self._stride,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE,
        )
        self.every = torch.frombuffer(self._memory, dtype=self.dtype).view(config.num_hidden_layers, -1)
        self.parts = [
            self.every[:, start : start + count * size].unflatten(1, (count, *shape))
            for start, size, shape in zip(self._starts, self._sizes, shapes, strict=False)
        ]
        self._free = list(range(count - 1, -1, -1))  # the next one last
        self._kept: dict[int, None] = {}  # those of them that have their memory still, the oldest first
        self._most_kept = self.of(config.max_position_embeddings)

    @staticmethod
    @abstractmethod
    def shapes(config: BioGptConfig) -> list[tuple[int, ...]]:
        """Of the parts of a page in one layer, [H, …] each."""

    @abstractmethod
    def addresses(self, heads: Tensor, columns: Tensor) -> Tensor:
        """Where in a layer's items new positions go, as ``encode`` of the kind of cache gives them.

        Args:
            heads: of pages, as rows of [P H]; [R, H].
            columns: positions in the pages; [R, H].
        """

    @abstractmethod
    def mask(self, is_closed: Tensor) -> Tensor:
        """What keeps steps from positions, [bags, Q]; they take it."""

    @classmethod
    def of(cls, length: int) -> int:
        """How many pages hold so many positions."""
        return -(-length // cls.positions)

    @classmethod
    def size(cls, config: BioGptConfig) -> int:
        """Bytes of one page, all layers."""
        return config.num_hidden_layers * cls.dtype.itemsize * sum(map(math.prod, cls.shapes(config)))

    @classmethod
    def within(cls, config: BioGptConfig, limit: int) -> Self:
        """As many pages as fit in so many bytes, the machine, and the numbers that bags count rows with.

        Raises:
            OSError: the system grants no address space, not even of one page.
        """
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        most = (2**31 - 1) // (config.num_attention_heads * max(config.head_dim, cls.positions))
        count = max(1, min(most, min(limit, memory) // cls.size(config)))
        asked = count
        while True:
            try:
                pages = cls(config, count)
            except OSError:  # there is a limit (``ulimit -v``), or no more is promised than there is
                if count == 1:
                    raise
                count //= 2
                continue
            if count == asked:
                return pages
            del pages  # half of what is granted is for all else
            return cls(config, max(1, count // 2))

    def take(self) -> int:
        """A page that is ready to be written to.

        Raises:
            MemoryError: none is free.
        """
        if not self._free:
            raise MemoryError(f"all {self.count} pages of the cache are taken")
        page = self._free.pop()
        self._kept.pop(page, None)
        return page

    def give(self, pages: Iterable[int]) -> None:
        """Take pages back, and give the memory of most to the system."""
        for page in pages:
            self._free.append(page)
            self._kept[page] = None
        while len(self._kept) > self._most_kept:
            page = next(iter(self._kept))
            del self._kept[page]
            self._empty(page)

    def _empty(self, page: int) -> None:
        item = self.dtype.itemsize
        for layer in range(0, len(self._memory), self._stride):
            for start, size in zip(self._starts, self._sizes, strict=False):
                first = -(-(layer + item * (start + page * size)) // mmap.PAGESIZE)
                last = (layer + item * (start + (page + 1) * size)) // mmap.PAGESIZE
                if last > first:
                    self._memory.madvise(
                        mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
                    )


class PagedCache(KVCache):
    """A ``KVCache`` in pages; what it gives out is float32.

    Args:
        config, batch_size, max_length: as for ``KVCache``.
        pages: where to take them from; as many of its own as it may need when None.
    """

    kind: ClassVar[type[Pages]]

    def __init__(
        self,
        config: BioGptConfig,
        batch_size: int,
        max_length: int | None = None,
        pages: Pages | None = None,
    ) -> None:
        self._pages = pages
        super().__init__(config, batch_size, max_length)

    def _allocate(
        self, config: BioGptConfig, batch_size: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.pages = self._pages or self.kind(config, batch_size * self.kind.of(self.max_length))
        self.tables: list[list[int]] = [[] for _ in range(batch_size)]  # the pages of each row
        self._bytes = self.kind.size(config)

    @staticmethod
    def fits(config: BioGptConfig) -> bool:
        """Whether this system and this build of torch have what it takes."""
        return hasattr(mmap, "MADV_DONTNEED")

    @classmethod
    def size(cls, config: BioGptConfig, rows: int, length: int, dtype: torch.dtype = torch.float32) -> int:
        return rows * cls.kind.of(length) * cls.kind.size(config)

    @property
    def batch_size(self) -> int:
        return len(self.tables)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.tables)) * self._bytes

    def reserve(self, count: int) -> None:
        """Take the pages that so many more positions need."""
        for table in self.tables:
            while len(table) < self.kind.of(self.length + count):
                table.append(self.pages.take())

    def store(self, layers: slice, keys: Tensor, *others: Tensor) -> None:
        """Put new positions, [L, B, H, T, …] each as ``Pages.held`` has them, after those that are held."""
        self.reserve(keys.shape[3])
        held_keys, *held = self.pages.held
        for row, page, of, to in self._parts(slice(None), self.length, self.length + keys.shape[3]):
            held_keys[layers, page, :, :, to] = keys[:, row, :, of].transpose(-1, -2)
            for part, new in zip(held, others, strict=True):
                part[layers, page, :, to] = new[:, row, :, of]

    def stored(self, layers: slice, rows: slice, first: int, last: int) -> list[Tensor]:
        """Some positions of some rows, as ``store`` takes them."""
        keys, *others = (part[layers] for part in self.pages.held)
        count = len(self.tables[rows])
        found_keys, *found = (
            part.new_empty(len(part), count, part.shape[2], last - first, *part.shape[4:])
            for part in (keys.transpose(-1, -2), *others)
        )
        for row, page, to, of in self._parts(rows, first, last):
            found_keys[:, row, :, to] = keys[:, page, :, :, of].transpose(-1, -2)
            for part, new in zip(others, found, strict=True):
                new[:, row, :, to] = part[:, page, :, of]
        return [found_keys, *found]

    def _parts(self, rows: slice, first: int, last: int) -> Iterator[tuple[int, int, slice, slice]]:
        """Where positions lie: the row, the page, which of them are in it, and where in it."""
        size = self.kind.positions
        for row, table in enumerate(self.tables[rows]):
            for number in range(first // size, self.kind.of(last)):
                low, high = max(first, number * size), min(last, (number + 1) * size)
                yield (
                    row,
                    table[number],
                    slice(low - first, high - first),
                    slice(low % size, (high - 1) % size + 1),
                )

    def copy(self, first: int, last: int) -> list[Tensor]:
        return self.stored(slice(None), slice(0, 1), first, last)

    def append(self, copied: Sequence[Tensor]) -> None:
        count = copied[0].shape[3]
        self.require(1, count)
        self.store(slice(None), *copied)
        self.length += count

    def reorder(self, rows: Tensor) -> None:
        used, order = self.kind.of(self.length), rows.tolist()
        moved = [row for row, old in enumerate(order) if row != old]
        source = torch.tensor([self.tables[order[row]][:used] for row in moved], dtype=torch.int64).view(-1)
        given, kept = self.tables[len(order) :], self.tables[: len(order)]
        self.tables = kept + [[] for _ in range(self.batch_size, len(order))]
        self.reserve(0)
        target = torch.tensor([self.tables[row][:used] for row in moved], dtype=torch.int64).view(-1)
        for part in self.pages.held:
            for layer in part:  # one by one: all at once would take as much memory again
                layer[target] = layer[source]
        self.pages.give(page for table in given for page in table)

    def release(self) -> None:
        self.pages.give(page for table in self.tables for page in table)
        self.tables = []
        self.length = self.max_length = 0


def places(caches: Sequence[PagedCache]) -> list[Places]:
    """Of ``biogpt.runners.step.CacheKind``: one place for all caches that share their pages."""
    for cache in caches:
        cache.require(cache.batch_size, 1)
    groups = [list(group) for _, group in groupby(caches, lambda cache: id(cache.pages))]
    by_group = [(group[0].pages.views, _plan(group)) for group in groups]
    return [
        [[plan[0], *views[layer], *plan[1:]] for views, plan in by_group]
        for layer in range(len(by_group[0][0]))
    ]


def _plan(caches: Sequence[PagedCache]) -> list[Tensor]:
    """What ``attend`` takes beside a layer's items.

    Where new positions go, and which rows make up its bags.

    A row is one of [P H D] of the keys, or of [P H Q] of the values; a head of a page is one of
    [P H]. What a row of a cache holds is [R, H, pages], or [R, H, S] with whole pages; those that it does not
    have, or has not filled, are left out.
    """
    for cache in caches:
        cache.reserve(1)
    pages = caches[0].pages
    size = pages.positions
    held = [
        (tuple(table[: pages.of(cache.length + 1)]), cache.length + 1)
        for cache in caches
        for table in cache.tables
    ]
    fixed = _of_pages(tuple(table for table, _ in held), *pages.held[0].shape[2:4])
    last_head, value_heads, slots, head, owners, *key_bags = fixed
    lengths = torch.tensor([length for _, length in held])
    heads = last_head.shape[1]
    at = pages.addresses(last_head, ((lengths - 1) % size)[:, None].expand_as(last_head))

    position = torch.arange(value_heads.shape[2] * size)
    is_open = (position < lengths[:, None])[:, None].expand(-1, heads, -1)  # [R, H, S]
    closed = (~is_open).reshape(-1, size)
    open_ = is_open.reshape(-1).nonzero()[:, 0]
    value_rows = (value_heads[..., None] * size + torch.arange(size)).view(-1)[open_]
    by_bag = lengths.repeat_interleave(heads)
    empty = torch.empty(0)
    if ragged := len(slots) < len(closed):
        closed, empty = closed[slots], torch.full(closed.shape, -torch.inf)
    return [
        at,
        head,
        owners,
        *key_bags,
        pages.mask(closed),
        slots if ragged else slots[:0],
        empty,
        open_,
        value_rows.int(),
        (by_bag.cumsum(0) - by_bag).int(),
    ]


@lru_cache(maxsize=4)
def _of_pages(tables: tuple[tuple[int, ...], ...], heads: int, width: int) -> tuple[Tensor, ...]:
    """The part of a plan that changes only as rows take pages, join or leave."""
    most = max(map(len, tables))
    counts = torch.tensor([len(table) for table in tables])
    own = torch.tensor([table + (0,) * (most - len(table)) for table in tables])  # [R, pages]
    every = own[:, None] * heads + torch.arange(heads)[:, None]  # [R, H, pages] heads of pages
    is_held = (torch.arange(most) < counts[:, None])[:, None].expand(-1, heads, -1)
    slots = is_held.reshape(-1).nonzero()[:, 0]
    head = every.view(-1)[slots]
    return (
        every.gather(2, (counts - 1)[:, None, None].expand(-1, heads, 1))[..., 0],
        every,
        slots,
        head,
        slots // most,
        (head[:, None] * width + torch.arange(width)).view(-1).int(),
        torch.arange(0, len(head) * width, width, dtype=torch.int32),
    )
