"""A key/value cache of float32 in pages, for float models on a CPU.

Letters as in ``biogpt.runners.paged_cache``.
"""

import torch
from torch import Tensor

from biogpt.model.config import BioGptConfig
from biogpt.runners.paged_cache import PagedCache, Pages, places
from biogpt.runners.step import CacheKind

PAGE = 64  # positions; 128 are slower for short texts, which also take a whole page


def encode(keys: Tensor, values: Tensor) -> list[Tensor]:
    """New keys and values [..., D] as they are: one tensor [..., 2, D]."""
    return [torch.stack([keys, values], dim=-2).float()]


def attend(query: Tensor, new: list[Tensor], place: list[Tensor]) -> Tensor:
    """As ``biogpt.runners.step.attend``, for all rows of all caches. Also scripted, so plain."""
    at, stored, keys, values = place[:4]
    _, owners, key_rows, key_bags, closed, slots, empty, open_, value_rows, value_bags = place[4:]
    stored.put_(at, new[0])
    rows = query.size(0)
    query = query.float()
    shares = query.index_select(0, owners).view(-1) if owners.size(0) > rows else query.view(-1)
    sums = torch.embedding_bag(keys, key_rows, key_bags, False, 0, False, shares)[0]
    scores = sums.masked_fill_(closed, -torch.inf)
    if slots.size(0) > 0:
        scores = empty.index_copy(0, slots, scores)
    shares = scores.view(rows, -1).softmax(dim=-1).view(-1).index_select(0, open_)
    return torch.embedding_bag(values, value_rows, value_bags, False, 0, False, shares)[0].unsqueeze(1)


class FloatPages(Pages):
    """Pages of float32: keys [L, P, H, D, PAGE], values [L, P, H, PAGE, D]."""

    positions = PAGE
    dtype = torch.float32

    def __init__(self, config: BioGptConfig, count: int) -> None:
        super().__init__(config, count)
        keys, values = self.held = tuple(self.parts)
        self.views = [
            [layer, of_keys.view(-1, PAGE), of_values.view(-1, of_values.shape[-1])]
            for layer, of_keys, of_values in zip(self.every, keys, values, strict=True)
        ]

    @staticmethod
    def shapes(config: BioGptConfig) -> list[tuple[int, ...]]:
        heads, width = config.num_attention_heads, config.head_dim
        return [(heads, width, PAGE), (heads, PAGE, width)]

    def addresses(self, heads: Tensor, columns: Tensor) -> Tensor:
        """[R, H, 2, D] numbers."""
        width = self.held[0].shape[3]
        whole, heads, columns = torch.arange(width), heads[..., None], columns[..., None]
        values = self._starts[1] + (heads * PAGE + columns) * width + whole
        return torch.stack([(heads * width + whole) * PAGE + columns, values], dim=-2)

    def mask(self, is_closed: Tensor) -> Tensor:
        """As it is: what is there may not be a number, and no number added to that is one."""
        return is_closed


class FloatKVCache(PagedCache):
    """A ``PagedCache`` of float32."""

    kind = FloatPages

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.require(keys.shape[0], keys.shape[2])
        keys, values = keys.float(), values.float()
        layers = slice(layer, layer + 1)
        self.store(layers, keys[None], values[None])
        if not self.length:
            return keys, values
        keys, values = self.stored(layers, slice(None), 0, self.length + keys.shape[2])
        return keys[0], values[0]


PAGED = CacheKind(places, encode, attend)  # of ``FloatKVCache``
