"""A key/value cache of bytes in pages, shared by the requests of one int8 model on a CPU.

It takes less than a third of the memory of float32, which is what long texts wait for: at position 1,000 a
step of one row of BioGPT would read as much of a float32 cache as of half the weights. And since all requests
share its memory, one call attends for all of them.

Both products of attention are sums of rows of bytes, each times its weight: what torch's "embedding bags"
compute, straight from the bytes. A mixture is the sum of its positions' values. The scores of a page are the
sum, over the D numbers of the query, of what each meets in the page's keys; so a page keeps its keys
transposed. Every bag is summed by itself in a fixed order, and a softmax over a page more adds zeros: a row's
bits depend on nothing but the row.

Paging follows Kwon et al., "Efficient memory management for large language model serving with
PagedAttention", SOSP 2023 (arXiv 2309.06180).

Letters: L layers, R rows, H heads, S key positions, T new positions, D head width, P pages.
"""

import math
import mmap
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Self

import torch
from torch import Tensor

from biogpt.model.cache import KVCache
from biogpt.model.config import BioGptConfig
from biogpt.runners.step import CacheKind, Places

PAGE = 128  # positions
# Bytes at the end of a row of a bag: two float32 numbers, the size of a step and what step 0 stands for
_RANGE = 8
_ZERO = 127.5  # the step of a key that stands for 0: none does exactly
_SPILL = 64  # bytes at the end of a layer for what is written and not used


def encode(keys: Tensor, values: Tensor) -> list[Tensor]:
    """New keys and values [..., D] in bytes, each row of D in 255 steps of its own.

    One tensor [..., 2, D + 8].

    Behind the bytes stand the size of a step and what step 0 is, two float32 numbers. Keys are encoded
    together with their opposites, so that their steps lie evenly around 0 and the size is enough.
    """
    width = keys.size(-1)
    both = torch.cat([-keys, keys, values, values], dim=-1).unflatten(-1, (2, 2 * width))
    return [torch.ops.quantized.embedding_bag_byte_prepack(both).narrow(-1, width, width + 8)]


def attend(query: Tensor, new: list[Tensor], place: list[Tensor]) -> Tensor:
    """As ``biogpt.runners.step.attend``, for all rows of all caches. Also scripted, so plain."""
    at, stored, keys, steps, values = place[:5]
    heads, owners, key_rows, key_bags, closed, slots, empty, open_, value_rows, value_bags = place[5:]
    stored.put_(at, new[0])
    rows = query.size(0)
    shares = query.index_select(0, owners).view(-1) if owners.size(0) > rows else query.view(-1)
    sums = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
        keys, key_rows, key_bags, False, 0, False, shares
    )
    scores = torch.addcmul(closed, sums, steps.index_select(0, heads))
    if slots.size(0) > 0:
        scores = empty.index_copy(0, slots, scores)
    shares = scores.view(rows, -1).softmax(dim=-1).view(-1).index_select(0, open_)
    mixed = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
        values, value_rows, value_bags, False, 0, False, shares
    )
    return mixed.unsqueeze(1)


class Pages:
    """Address space for so many pages of all layers, and which of them are free.

    Memory is taken as pages are written to, and given back with them.

    Attributes:
        keys: [L, P, H, D, PAGE + 8] bytes, of which the last 8 of each row are a step of 1 and what step 0
            is.
        steps: [L, P, H, PAGE] float32, the size of a step of each key.
        values: [L, P, H, PAGE, D + 8] bytes.
    """

    def __init__(self, config: BioGptConfig, count: int) -> None:
        layers, heads, width = config.num_hidden_layers, config.num_attention_heads, config.head_dim
        self.count = count
        shapes = ((heads, width, PAGE + _RANGE), (heads, PAGE, 4), (heads, PAGE, width + _RANGE))
        # One after the other in a layer: where each of the three begins, the last number being that of a
        # layer.
        self._sizes = [math.prod(shape) for shape in shapes]
        self._starts = [0, *accumulate(count * size for size in self._sizes)]
        self.stride = -(-(self._starts[-1] + _SPILL) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, layers * self.stride, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        every = torch.frombuffer(self._memory, dtype=torch.uint8).view(layers, self.stride)
        self.keys, steps, self.values = (
            every[:, start : start + count * size].unflatten(1, (count, *shape))
            for start, size, shape in zip(self._starts, self._sizes, shapes, strict=False)
        )
        self.steps = steps.view(torch.float32)[..., 0]
        self._free = list(range(count - 1, -1, -1))
        # By layer, what ``attend`` takes of them: every byte, and the rows of each.
        self.views = [
            [layer, keys.view(-1, PAGE + _RANGE), steps.view(-1, PAGE), values.view(-1, width + _RANGE)]
            for layer, keys, steps, values in zip(every, self.keys, self.steps, self.values, strict=True)
        ]

    def addresses(self, heads: Tensor, columns: Tensor) -> Tensor:
        """Where in a layer's bytes the parts of ``encode`` go, [..., 2, D + 8] numbers.

        Args:
            heads: of pages, as rows of ``steps``; [...].
            columns: positions in the pages; [...].
        """
        width = self.keys.shape[3]
        _, of_steps, of_values, end = self._starts
        whole, row, step = torch.arange(width), torch.arange(width + _RANGE), torch.arange(4)
        heads, columns = heads[..., None], columns[..., None]
        position = heads * PAGE + columns
        unused = (end + step).expand(*position.shape[:-1], -1)  # what step 0 of a key is
        keys = torch.cat(
            [(heads * width + whole) * (PAGE + _RANGE) + columns, of_steps + 4 * position + step, unused],
            dim=-1,
        )
        return torch.stack([keys, of_values + (width + _RANGE) * position + row], dim=-2)

    @staticmethod
    def size(config: BioGptConfig) -> int:
        """Bytes of one page, all layers."""
        width = config.head_dim
        row = width * (PAGE + _RANGE) + PAGE * (4 + width + _RANGE)
        return config.num_hidden_layers * config.num_attention_heads * row

    @classmethod
    def within(cls, config: BioGptConfig, limit: int) -> Self:
        """As many pages as fit in so many bytes, the machine, and the numbers that bags count rows with."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        most = (2**31 - 1) // (config.num_attention_heads * max(config.head_dim, PAGE))
        return cls(config, max(1, min(most, min(limit, memory) // cls.size(config))))

    def take(self) -> int:
        """A page that is ready to be written to.

        Raises:
            MemoryError: none is free.
        """
        if not self._free:
            raise MemoryError(f"all {self.count} pages of the cache are taken")
        page = self._free.pop()
        self.keys[:, page, :, :, PAGE:] = torch.tensor([1.0, -_ZERO]).view(torch.uint8)
        self.steps[:, page] = 0  # what is there may not be a number, and no number added to that is one
        return page

    def give(self, pages: Iterable[int]) -> None:
        """Take pages back, and give their memory to the system."""
        for page in pages:
            self._free.append(page)
            for layer in range(0, len(self._memory), self.stride):
                for start, size in zip(self._starts, self._sizes, strict=False):
                    first = -(-(layer + start + page * size) // mmap.PAGESIZE)
                    last = (layer + start + (page + 1) * size) // mmap.PAGESIZE
                    if last > first:
                        self._memory.madvise(
                            mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
                        )


class Int8KVCache(KVCache):
    """A ``KVCache`` of bytes, in pages; what it gives out is float32.

    Args:
        config, batch_size, max_length: as for ``KVCache``.
        pages: where to take them from; as many of its own as it may need when None.
    """

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
        self.pages = self._pages or Pages(config, batch_size * _pages(self.max_length))
        self.tables: list[list[int]] = [[] for _ in range(batch_size)]  # the pages of each row

    @staticmethod
    def fits(config: BioGptConfig) -> bool:
        """Whether this system and this build of torch have what it takes."""
        fbgemm = "fbgemm" in torch.backends.quantized.supported_engines
        return fbgemm and hasattr(mmap, "MADV_DONTNEED")

    @staticmethod
    def size(config: BioGptConfig, rows: int, length: int, dtype: torch.dtype = torch.float32) -> int:
        return rows * _pages(length) * Pages.size(config)

    @property
    def batch_size(self) -> int:
        return len(self.tables)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def nbytes(self) -> int:
        parts = (self.pages.keys, self.pages.steps, self.pages.values)
        return sum(map(len, self.tables)) * sum(part.nbytes for part in parts) // self.pages.count

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.require(keys.shape[0], keys.shape[2])
        whole, rows = encode(keys, values)[0].unbind(-2)
        steps = whole[..., -_RANGE:-4].contiguous().view(torch.float32)[..., 0]
        self._store(layer, whole[..., :-_RANGE], steps, rows)
        return self._floats(layer, self.length + keys.shape[2])

    def reserve(self, count: int) -> None:
        """Take the pages that so many more positions need."""
        for table in self.tables:
            while len(table) < _pages(self.length + count):
                table.append(self.pages.take())

    def _store(self, layer: int | slice, whole: Tensor, steps: Tensor, rows: Tensor) -> None:
        """Put new positions, [..., B, H, T] each, after those that are held, in one layer or all."""
        first, end = self.length, self.length + steps.shape[-1]
        self.reserve(steps.shape[-1])
        for row, table in enumerate(self.tables):
            for number in range(first // PAGE, _pages(end)):
                low, high = max(first, number * PAGE), min(end, (number + 1) * PAGE)
                page, to = table[number], slice(low - number * PAGE, high - number * PAGE)
                of = slice(low - first, high - first)
                self.pages.keys[layer][..., page, :, :, to] = whole[..., row, :, of, :].transpose(-1, -2)
                self.pages.steps[layer][..., page, :, to] = steps[..., row, :, of]
                self.pages.values[layer][..., page, :, to, :] = rows[..., row, :, of, :]

    def _stored(self, layer: int | slice, rows: slice, first: int, last: int) -> list[Tensor]:
        """Some positions of some rows, as ``_store`` takes them."""
        start = first // PAGE
        own = torch.tensor([table[start : _pages(last)] for table in self.tables[rows]], dtype=torch.int64)
        whole = self.pages.keys[layer][..., own, :, :, :PAGE].transpose(-1, -2)  # [..., B, pages, H, PAGE, D]
        steps = self.pages.steps[layer][..., own, :, :]
        values = self.pages.values[layer][..., own, :, :, :]
        of = slice(first - start * PAGE, last - start * PAGE)
        return [
            whole.transpose(-3, -4).flatten(-3, -2)[..., of, :].contiguous(),
            steps.transpose(-2, -3).flatten(-2)[..., of].contiguous(),
            values.transpose(-3, -4).flatten(-3, -2)[..., of, :].contiguous(),
        ]

    def _floats(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, [B, H, S, D] each."""
        own = torch.tensor([table[: _pages(end)] for table in self.tables], dtype=torch.int64)  # [B, pages]
        keys, steps, values = (
            part[layer].index_select(0, own.view(-1)).unflatten(0, own.shape)
            for part in (self.pages.keys, self.pages.steps, self.pages.values)
        )
        unpack = torch.ops.quantized.embedding_bag_byte_unpack
        keys = unpack(keys).mul_(steps[..., None, :]).permute(0, 2, 1, 4, 3)  # [B, H, pages, PAGE, D]
        values = unpack(values).transpose(1, 2)
        # Contiguous first, as attention is slow with numbers that lie apart; a single page would stay as it
        # is.
        return tuple(part.contiguous().flatten(2, 3)[:, :, :end] for part in (keys, values))

    def copy(self, first: int, last: int) -> list[Tensor]:
        return self._stored(slice(None), slice(0, 1), first, last)

    def append(self, copied: Sequence[Tensor]) -> None:
        self.require(1, copied[1].shape[-1])
        self._store(slice(None), *copied)
        self.length += copied[1].shape[-1]

    def reorder(self, rows: Tensor) -> None:
        used, order = _pages(self.length), rows.tolist()
        moved = [row for row, old in enumerate(order) if row != old]
        source = torch.tensor([self.tables[order[row]][:used] for row in moved], dtype=torch.int64).view(-1)
        given, kept = self.tables[len(order) :], self.tables[: len(order)]
        self.tables = kept + [[] for _ in range(self.batch_size, len(order))]
        self.reserve(0)
        target = torch.tensor([self.tables[row][:used] for row in moved], dtype=torch.int64).view(-1)
        for part in (self.pages.keys, self.pages.steps, self.pages.values):
            for layer in part:  # one by one: all at once would take as much memory again
                layer[target] = layer[source]
        self.pages.give(page for table in given for page in table)

    def release(self) -> None:
        self.pages.give(page for table in self.tables for page in table)
        self.tables = []
        self.length = self.max_length = 0


def places(caches: Sequence[Int8KVCache]) -> list[Places]:
    """Of ``biogpt.runners.step.CacheKind``: one place for all caches that share their pages."""
    for cache in caches:
        cache.require(cache.batch_size, 1)
    groups = [list(group) for _, group in groupby(caches, lambda cache: id(cache.pages))]
    by_group = [(group[0].pages.views, _plan(group)) for group in groups]
    return [
        [[plan[0], *views[layer], *plan[1:]] for views, plan in by_group]
        for layer in range(len(by_group[0][0]))
    ]


BYTES = CacheKind(places, encode, attend)  # of ``Int8KVCache``


def _pages(length: int) -> int:
    return -(-length // PAGE)


def _plan(caches: Sequence[Int8KVCache]) -> list[Tensor]:
    """What ``attend`` takes beside a layer's bytes.

    Where new positions go, and which rows of bytes make up its bags.

    A row of bytes is one of [P H D] of the keys, or of [P H PAGE] of the values; a head of a page is one of
    [P H]. What a row of a cache holds is [R, H, pages], or [R, H, S] with whole pages; those that it does not
    have, or has not filled, are left out.
    """
    for cache in caches:
        cache.reserve(1)
    pages = caches[0].pages
    held = [
        (tuple(table[: _pages(cache.length + 1)]), cache.length + 1)
        for cache in caches
        for table in cache.tables
    ]
    fixed = _of_pages(tuple(table for table, _ in held), *pages.keys.shape[2:4])
    last_head, value_heads, slots, head, owners, *key_bags = fixed
    lengths = torch.tensor([length for _, length in held])
    heads = last_head.shape[1]
    at = pages.addresses(last_head, ((lengths - 1) % PAGE)[:, None].expand_as(last_head))

    position = torch.arange(value_heads.shape[2] * PAGE)
    is_open = (position < lengths[:, None])[:, None].expand(-1, heads, -1)  # [R, H, S]
    closed = torch.zeros(is_open.shape).masked_fill_(~is_open, -torch.inf).view(-1, PAGE)
    open_ = is_open.reshape(-1).nonzero()[:, 0]
    value_rows = (value_heads[..., None] * PAGE + torch.arange(PAGE)).view(-1)[open_]
    by_bag = lengths.repeat_interleave(heads)
    if ragged := len(slots) < len(closed):
        closed, empty = closed[slots], torch.full_like(closed, -torch.inf)
    return [
        at,
        head,
        owners,
        *key_bags,
        closed,
        slots if ragged else slots[:0],
        empty if ragged else closed[:0],
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
