"""One more position for each row of several caches: the decoder's step, scripted where that pays.

A step of few rows is hundreds of operations of some microseconds each; called from Python, each costs as much
again. On a CPU the very same layers run as one TorchScript program: one stream of BioGPT base is 1.4 times as
fast, of a small model 1.6 times.

Letters as in ``biogpt.model.decoder``: R rows of all caches together, H heads, D width; B rows and S
positions of one cache.
"""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biogpt.model.cache import KVCache
from biogpt.model.decoder import POSITION_OFFSET, BioGptModel, DecoderLayer

logger = logging.getLogger(__name__)

Places = list[list[Tensor]]  # of one layer: what ``attend`` takes for each cache, or each group of caches


class CacheKind(NamedTuple):
    """How a step writes to caches of one kind and attends to what they hold.

    Attributes:
        places: for each layer and cache, what ``attend`` takes: where a new position goes, and all that it
            attends to. ValueError when a cache is full.
        encode: new keys and values [R, H, D / H] as they are stored.
        attend: of the query [B H, 1, D / H], divided by the square root of its width, what ``encode`` gave,
            and a place: store the new position of each row, and give what all positions make of the query, [B
                H, 1, D / H].
    """

    places: Callable[[Sequence[Any]], list[Places]]
    encode: Callable[[Tensor, Tensor], list[Tensor]]
    attend: Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]


def places(caches: Sequence[KVCache]) -> list[Places]:
    """Of ``CacheKind``. Slicing costs as much as the arithmetic on one position.

    Here it is done for all layers at once.
    """
    by_cache = [_next_position(cache) for cache in caches]
    return [list(of_layer) for of_layer in zip(*by_cache, strict=True)]


def _next_position(cache: KVCache) -> Places:
    cache.require(cache.batch_size, 1)
    rows = cache.batch_size * cache.keys.shape[2]
    new = (part[:, :, :, cache.length].unbind() for part in (cache.keys, cache.values))
    keys, values = (
        part.view(len(part), rows, cache.max_length, -1)[:, :, : cache.length + 1]
        for part in (cache.keys, cache.values)
    )
    return [list(views) for views in zip(*new, keys.transpose(2, 3).unbind(), values.unbind(), strict=True)]


def encode(keys: Tensor, values: Tensor) -> list[Tensor]:
    """Of ``CacheKind``: as they are."""
    return [keys, values]


def attend(query: Tensor, new: list[Tensor], place: list[Tensor]) -> Tensor:
    """Of ``CacheKind``; in the type of the cache. Also scripted, so plain.

    As little as possible is done here, since a call costs more than the arithmetic in it. For one query, two
    matrix products are quicker than the fused kernel.
    """
    key, value, keys, values = place
    key.copy_(new[0])
    value.copy_(new[1])
    return torch.bmm(torch.bmm(query.to(keys.dtype), keys).softmax(dim=-1), values)


FLOATS = CacheKind(places, encode, attend)  # of ``KVCache``


class DecodeStep:
    """What gives each row of several caches its next hidden state.

    Args:
        model: its layers must not change afterwards.
        kind: of the caches it will be given.
        scripted: compile the layers; where they do not compile, each operation is called by itself.
    """

    def __init__(self, model: BioGptModel, kind: CacheKind = FLOATS, scripted: bool = False) -> None:
        self._model, self._places = model, kind.places
        self._layers: Callable[[Tensor, list[Places]], Tensor] = _Layers(model, kind).eval()
        if scripted:
            self._layers = _scripted(self._layers)

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, caches: Sequence[KVCache]) -> Tensor:
        """One more position for each row of the caches, which may hold different numbers of positions.

        Args:
            input_ids: [R] ids, one a row of each cache in turn; what is left over is padding.
            caches: R or fewer rows in all, each with room for one more position; they are written to. No row
                is padded: position 0 is its first token.

        Returns:
            [R, D], after the last LayerNorm.

        Raises:
            ValueError: a cache is full, or the rows are more than the ids.
        """
        model = self._model
        lengths = [cache.length for cache in caches for _ in range(cache.batch_size)]
        if len(lengths) > len(input_ids):
            raise ValueError(f"{len(input_ids)} ids for {len(lengths)} rows; give one a row")
        lengths += [0] * (len(input_ids) - len(lengths))
        at = self._places(caches)
        position_ids = torch.tensor(lengths, device=input_ids.device)
        hidden = model.embed_tokens(input_ids) * model.embed_scale
        hidden = hidden + model.embed_positions(position_ids + POSITION_OFFSET)
        hidden = self._layers(hidden, at)
        for cache in caches:
            cache.advance(1)
        return model.layer_norm(hidden)


def _scripted(layers: nn.Module) -> Callable[[Tensor, list[Places]], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated; no successor compiles in a second
            program = torch.jit.script(layers)
    except (RuntimeError, TypeError):
        logger.warning("the layers do not compile here; each operation is called by itself", exc_info=True)
        return layers

    def run(hidden: Tensor, at: list[Places]) -> Tensor:
        # What its optimisations gain is little, and they cost the first steps two seconds.
        with torch.jit.optimized_execution(False):
            return program(hidden, at)

    return run


class _Layers(nn.Module):
    """All layers: [R, D] to [R, D]."""

    def __init__(self, model: BioGptModel, kind: CacheKind) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(layer, kind) for layer in model.layers)

    def forward(self, hidden: Tensor, places: list[list[list[Tensor]]]) -> Tensor:
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, places[index])
        return hidden


class _Layer(nn.Module):
    """``DecoderLayer.forward`` for one new position of each row.

    Each cache is attended to in shapes that depend on nothing else: a row's bits do not tell who else is
    there.
    """

    def __init__(self, layer: nn.Module, kind: CacheKind) -> None:
        super().__init__()
        assert isinstance(layer, DecoderLayer)
        self.encode, self.attend = kind.encode, kind.attend
        attention = layer.self_attn
        self.heads = attention.heads
        weight = layer.self_attn_layer_norm.weight
        # A number would be made a tensor at every step.
        self.root = torch.tensor(
            math.sqrt(len(weight) // self.heads), dtype=weight.dtype, device=weight.device
        )
        self.attention_norm, self.norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.projections = nn.ModuleList(attention.projections)
        self.parts = 3 // len(self.projections)  # that each gives
        self.out = attention.out_proj
        self.fc1, self.activation, self.fc2 = layer.fc1, layer.activation, layer.fc2

    def forward(self, hidden: Tensor, places: list[list[Tensor]]) -> Tensor:
        rows = hidden.size(0)
        normed = self.attention_norm(hidden)
        query_key_value: list[Tensor] = []
        for projection in self.projections:
            query_key_value += projection(normed).chunk(self.parts, dim=-1)
        query, key, value = [part.view(rows, self.heads, -1) for part in query_key_value]
        counts = [place[0].size(0) for place in places]
        counts.append(rows - sum(counts))  # padding
        new = [part.split_with_sizes(counts) for part in self.encode(key, value)]
        queries = (query / self.root).view(rows * self.heads, 1, -1)
        queries_by_place = queries.split_with_sizes([count * self.heads for count in counts])
        mixed: list[Tensor] = []
        for index, place in enumerate(places):
            mixed.append(self.attend(queries_by_place[index], [part[index] for part in new], place))
        if counts[-1] > 0:
            mixed.append(torch.zeros_like(queries_by_place[-1]))
        hidden = hidden + self.out(torch.cat(mixed).to(hidden.dtype).view(rows, -1))
        return hidden + self.fc2(self.activation(self.fc1(self.norm(hidden))))
