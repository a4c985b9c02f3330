"""A key/value cache of bytes in pages, shared by the requests of one int8 model on a CPU.

It takes less than a third of the memory of float32, which is what long texts wait for: at position 1,000 a step of one
row of BioGPT would read as much of a float32 cache as of half the weights. And since all requests share its memory,
one call attends for all of them.

Both products of attention are sums of rows of bytes, each times its weight: what torch's "embedding bags" compute,
straight from the bytes. A mixture is the sum of its positions' values. The scores of a page are the sum, over the D
numbers of the query, of what each meets in the page's keys; so a page keeps its keys transposed. Every bag is summed
by itself in a fixed order, and a softmax over a page more adds zeros: a row's bits depend on nothing but the row.

Paging follows Kwon et al., "Efficient memory management for large language model serving with PagedAttention", SOSP
2023 (arXiv 2309.06180).

Letters: L layers, R rows, H heads, S key positions, T new positions, D head width, P pages.
"""

import math
import mmap
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Self

import torch
from torch import Tensor

from biogpt.cache import KVCache, Places
from biogpt.config import BioGptConfig

PAGE = 128  # positions
_RANGE = 8  # bytes at the end of a row of a bag: two float32 numbers, the size of a step and what step 0 stands for
_ZERO = 128  # the step of a key that stands for 0


def encode(keys: Tensor, values: Tensor) -> list[Tensor]:
    """New keys and values [..., D] as they are stored.

    Returns:
        [..., D] bytes of the keys, in steps of a 127th of the greatest; [...] the size of these steps; and [..., D + 8]
        of the values, 255 steps from the least to the greatest, then step and least. Each row of D by itself.
    """
    steps = keys.abs().amax(dim=-1, keepdim=True).div_(127).clamp_min_(1e-30)
    whole = (keys / steps).round_().add_(128).to(torch.uint8)
    return [whole, steps.squeeze(-1), torch.ops.quantized.embedding_bag_byte_prepack(values)]


def attend(query: Tensor, new: list[Tensor], place: list[Tensor], out: Tensor) -> None:
    """As ``biogpt.cache.attend``, for all rows of all caches. Also compiled, so plain."""
    key_at, row_at, key_bytes, key_steps, keys, steps, values = place[:7]
    heads, owners, key_rows, key_bags, closed, slots, empty, open_, value_rows, value_bags = place[7:]
    key_bytes.put_(key_at, new[0].reshape(-1))
    key_steps.put_(row_at, new[1].reshape(-1))
    values[row_at] = new[2].reshape(-1, values.size(1))
    rows = query.size(0)
    shares = query.squeeze(1).index_select(0, owners).view(-1)
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
    out.copy_(mixed.unsqueeze(1))


class Pages:
    """Address space for so many pages of all layers, and which of them are free.

    Memory is taken as pages are written to, and given back with them.
    """

    def __init__(self, config: BioGptConfig, count: int) -> None:
        layers, heads, width = config.num_hidden_layers, config.num_attention_heads, config.head_dim
        self._reserved: list[tuple[mmap.mmap, int]] = []  # with the bytes of one page of one layer
        self.count = count
        self.keys = self._reserve(torch.uint8, layers, heads, width, PAGE + _RANGE)
        self.steps = self._reserve(torch.float32, layers, heads, PAGE)
        self.values = self._reserve(torch.uint8, layers, heads, PAGE, width + _RANGE)
        self._free = list(range(count - 1, -1, -1))
        # By layer, what ``attend`` takes of them: all bytes, all steps, and the rows of each.
        self.views = [
            [keys.view(-1), steps.view(-1), keys.view(-1, PAGE + _RANGE), steps.view(-1, PAGE), values]
            for keys, steps, values in zip(
                self.keys, self.steps, self.values.view(layers, -1, width + _RANGE), strict=True
            )
        ]

    @staticmethod
    def size(config: BioGptConfig) -> int:
        """Bytes of one page, all layers."""
        width = config.head_dim
        row = width * (PAGE + _RANGE) + PAGE * (4 + width + _RANGE)
        return config.num_hidden_layers * config.num_attention_heads * row

    @classmethod
    def within(cls, config: BioGptConfig, limit: int) -> Self:
        """As many pages as fit in so many bytes, in the machine, and in the numbers that bags count rows with."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        most = (2**31 - 1) // (config.num_attention_heads * max(config.head_dim, PAGE))
        return cls(config, max(1, min(most, min(limit, memory) // cls.size(config))))

    def _reserve(self, dtype: torch.dtype, layers: int, *shape: int) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        memory = mmap.mmap(-1, layers * self.count * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._reserved.append((memory, size))
        return torch.frombuffer(memory, dtype=dtype).view(layers, self.count, *shape)

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
            for memory, size in self._reserved:
                for start in range(page * size, len(memory), self.count * size):
                    first, last = -(-start // mmap.PAGESIZE), (start + size) // mmap.PAGESIZE
                    if last > first:
                        memory.madvise(
                            mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
                        )


class Int8KVCache(KVCache):
    """A ``KVCache`` of bytes, in pages; what it gives out is float32.

    Args:
        config, batch_size, max_length: as for ``KVCache``.
        pages: where to take them from; as many of its own as it may need when None.
    """

    encode = staticmethod(encode)
    attend = staticmethod(attend)

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
        layer = self.pages.views[0]
        page = (layer[0].nbytes + layer[1].nbytes + layer[4].nbytes) // self.pages.count
        return sum(map(len, self.tables)) * page * len(self.pages.views)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.require(keys.shape[0], keys.shape[2])
        self._store(layer, encode(keys, values))
        return self._floats(layer, self.length + keys.shape[2])

    def _grow(self, count: int) -> None:
        """Take the pages that so many more positions need."""
        for table in self.tables:
            while len(table) < _pages(self.length + count):
                table.append(self.pages.take())

    def _store(self, layer: int | slice, new: Sequence[Tensor]) -> None:
        """Put what ``encode`` gave, [..., B, H, T, ...], after the positions that are held."""
        whole, steps, rows = new
        first, end = self.length, self.length + steps.shape[-1]
        self._grow(steps.shape[-1])
        for number in range(first // PAGE, _pages(end)):
            low, high = max(first, number * PAGE), min(end, (number + 1) * PAGE)
            own = torch.tensor([table[number] for table in self.tables])
            to, of = slice(low - number * PAGE, high - number * PAGE), slice(low - first, high - first)
            self.pages.keys[layer][..., own, :, :, to] = whole[..., of, :].transpose(-1, -2)
            self.pages.steps[layer][..., own, :, to] = steps[..., of]
            self.pages.values[layer][..., own, :, to, :] = rows[..., of, :]

    def _stored(self, layer: int | slice, rows: slice, first: int, last: int) -> list[Tensor]:
        """What was stored of some positions of some rows, in the shapes of ``_store``."""
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
        whole, steps, values = self._stored(layer, slice(None), 0, end)
        keys = whole.float().sub_(_ZERO).mul_(steps[..., None])
        return keys, torch.ops.quantized.embedding_bag_byte_unpack(values)

    @classmethod
    def places(cls, caches: Sequence[Self]) -> list[Places]:
        for cache in caches:
            cache.require(cache.batch_size, 1)
        groups = [list(group) for _, group in groupby(caches, lambda cache: id(cache.pages))]
        by_group = [(group[0].pages.views, _plan(group)) for group in groups]
        return [
            [[*plan[:2], *views[layer], *plan[2:]] for views, plan in by_group]
            for layer in range(len(by_group[0][0]))
        ]

    def copy(self, first: int, last: int) -> list[Tensor]:
        return self._stored(slice(None), slice(0, 1), first, last)

    def append(self, copied: Sequence[Tensor]) -> None:
        self.require(1, copied[1].shape[-1])
        self._store(slice(None), copied)
        self.length += copied[1].shape[-1]

    def reorder(self, rows: Tensor) -> None:
        used, order = _pages(self.length), rows.tolist()
        moved = [row for row, old in enumerate(order) if row != old]
        source = torch.tensor([self.tables[order[row]][:used] for row in moved], dtype=torch.int64).view(-1)
        parts = (self.pages.keys, self.pages.steps, self.pages.values)
        held = [part[:, source] for part in parts]
        self.pages.give(page for table in self.tables[len(order) :] for page in table)
        self.tables = self.tables[: len(order)] + [[] for _ in range(self.batch_size, len(order))]
        self._grow(0)
        target = torch.tensor([self.tables[row][:used] for row in moved], dtype=torch.int64).view(-1)
        for part, own in zip(parts, held, strict=True):
            part[:, target] = own

    def release(self) -> None:
        self.pages.give(page for table in self.tables for page in table)
        self.tables = []
        self.length = self.max_length = 0


def _pages(length: int) -> int:
    return -(-length // PAGE)


def _plan(caches: Sequence[Int8KVCache]) -> list[Tensor]:
    """Where the new position of each row goes, and which rows of bytes make up its bags, for any layer.

    A row is [P H D] of bytes of keys, or [P H PAGE] of values; a head of a page is [P H]. What a row of a cache holds is
    [R, H, pages], or [R, H, S] with whole pages; those that it does not have, or has not filled, are left out.
    """
    for cache in caches:
        cache._grow(1)
    _, _, heads, width, _ = caches[0].pages.keys.shape
    held = [(table, cache.length + 1) for cache in caches for table in cache.tables]
    lengths = torch.tensor([length for _, length in held])
    most = _pages(int(lengths.max()))
    # [R, pages], page 0 in place of those that a row has not
    own = torch.tensor([(table[: _pages(length)] + [0] * most)[:most] for table, length in held])
    every_head = torch.arange(heads)
    of_page = own[:, None] * heads + every_head[:, None]  # [R, H, pages] heads of pages

    last = lengths - 1
    new = own.gather(1, (last // PAGE)[:, None]) * heads + every_head  # [R, H]
    row_at = (new * PAGE + (last % PAGE)[:, None]).view(-1)
    key_at = (new[..., None] * width + torch.arange(width)) * (PAGE + _RANGE) + (last % PAGE)[:, None, None]

    ragged = bool((lengths.min() + PAGE - 1) // PAGE < most)
    position = torch.arange(most * PAGE)
    is_open = (position < lengths[:, None])[:, None].expand(-1, heads, -1)  # [R, H, S]
    slots = is_open[..., ::PAGE].reshape(-1).nonzero()[:, 0]  # of the pages that a row has
    head = of_page.view(-1)[slots]
    closed = torch.zeros(is_open.shape).masked_fill_(~is_open, -torch.inf).view(-1, PAGE)
    open_ = is_open.reshape(-1).nonzero()[:, 0]
    value_rows = (of_page[..., None] * PAGE + torch.arange(PAGE)).view(-1)[open_]
    ends = lengths.repeat_interleave(heads).cumsum(0)
    return [
        key_at.view(len(held), -1),
        row_at,
        head,
        slots // most,
        (head[:, None] * width + torch.arange(width)).view(-1).int(),
        torch.arange(0, len(head) * width, width, dtype=torch.int32),
        closed[slots],
        slots if ragged else slots[:0],
        torch.full_like(closed, -torch.inf) if ragged else closed[:0],
        open_,
        value_rows.int(),
        (ends - lengths.repeat_interleave(heads)).int(),
    ]
