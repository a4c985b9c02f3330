"""A key/value cache of bytes, for int8 models on a CPU.

It takes less than a third of the memory of float32, which is what long texts wait for: at position 1,000 a
step of one row of BioGPT would read as much of a float32 cache as of half the weights. Bags are summed
straight from the bytes.

Letters as in ``biogpt.runners.paged_cache``.
"""

import torch
from torch import Tensor

from biogpt.model.config import BioGptConfig
from biogpt.runners.paged_cache import PagedCache, Pages, places
from biogpt.runners.step import CacheKind

PAGE = 128  # positions
# Bytes at the end of a row of a bag: two float32 numbers, the size of a step and what step 0 stands for
_RANGE = 8
_ZERO = 127.5  # the step of a key that stands for 0: none does exactly


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


class BytePages(Pages):
    """Pages of bytes.

    Attributes:
        keys: [L, P, H, D, PAGE + 8] bytes, of which the last 8 of each row are a step of 1 and what step 0
            is.
        steps: [L, P, H, PAGE] float32, the size of a step of each key.
        values: [L, P, H, PAGE, D + 8] bytes.
    """

    positions = PAGE
    dtype = torch.uint8
    spill = 64

    def __init__(self, config: BioGptConfig, count: int) -> None:
        super().__init__(config, count)
        self.keys, steps, self.values = self.parts
        self.steps = steps.view(torch.float32)[..., 0]
        self.held = self.keys[..., :PAGE], self.steps, self.values
        self.views = [
            [layer, keys.view(-1, PAGE + _RANGE), steps.view(-1, PAGE), values.view(-1, values.shape[-1])]
            for layer, keys, steps, values in zip(self.every, self.keys, self.steps, self.values, strict=True)
        ]

    @staticmethod
    def shapes(config: BioGptConfig) -> list[tuple[int, ...]]:
        heads, width = config.num_attention_heads, config.head_dim
        return [(heads, width, PAGE + _RANGE), (heads, PAGE, 4), (heads, PAGE, width + _RANGE)]

    def addresses(self, heads: Tensor, columns: Tensor) -> Tensor:
        """[R, H, 2, D + 8] numbers."""
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

    def mask(self, is_closed: Tensor) -> Tensor:
        """What is added to scores."""
        return torch.zeros(is_closed.shape).masked_fill_(is_closed, -torch.inf)

    def take(self) -> int:
        page = super().take()
        self.keys[:, page, :, :, PAGE:] = torch.tensor([1.0, -_ZERO]).view(torch.uint8)
        self.steps[:, page] = 0  # what is there may not be a number, and no number added to that is one
        return page


class Int8KVCache(PagedCache):
    """A ``PagedCache`` of bytes."""

    kind = BytePages
    pages: BytePages

    @staticmethod
    def fits(config: BioGptConfig) -> bool:
        return "fbgemm" in torch.backends.quantized.supported_engines and PagedCache.fits(config)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.require(keys.shape[0], keys.shape[2])
        whole, rows = encode(keys[None], values[None])[0].unbind(-2)
        steps = whole[..., -_RANGE:-4].contiguous().view(torch.float32)[..., 0]
        self.store(slice(layer, layer + 1), whole[..., :-_RANGE], steps, rows)
        return self.floats(layer, self.length + keys.shape[2])

    def floats(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, [B, H, S, D] each."""
        own = torch.tensor(
            [table[: BytePages.of(end)] for table in self.tables], dtype=torch.int64
        )  # [B, pages]
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


BYTES = CacheKind(places, encode, attend)  # of ``Int8KVCache``
