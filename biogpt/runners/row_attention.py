"""Attention of a step over each row's own keys, in Triton, which comes with PyTorch for CUDA.

One program a head of a row. A tile of keys is a number of places side by side; each keeps a running softmax
of the keys that it has seen (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"), and
they are brought together at the end. Sums are in float32, and what a row reads, and in which order, depends
on its own position alone: so do its bits.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 128  # keys
_WARPS = 4


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    keys, values, first, known, WIDTH, LANES: tl.constexpr, TILE: tl.constexpr
):
    """Some of the keys and values of a row, [TILE, LANES]; 0 where there are none."""
    index, lane = first + tl.arange(0, TILE), tl.arange(0, LANES)
    is_there = (index < known)[:, None] & (lane < WIDTH)[None, :]
    there = index[:, None] * WIDTH + lane[None, :]
    return tl.load(keys + there, mask=is_there, other=0.0), tl.load(values + there, mask=is_there, other=0.0)


@triton.jit(do_not_specialize=["stride"])
def _attend(  # type: ignore[no-untyped-def]
    parts,  # [G, 3, H, D / H]: queries, keys, values
    keys,  # [R, H, S + 1, D / H]
    values,
    places,  # [G]
    mixed,  # [G, H, D / H], to be written
    stride,  # of places
    scale,
    LIMIT: tl.constexpr,  # S
    HEADS: tl.constexpr,  # H
    WIDTH: tl.constexpr,  # D / H
    LANES: tl.constexpr,  # the same, or the next power of two
    TILE: tl.constexpr,
):
    head, row = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, LANES)
    is_lane = lane < WIDTH
    place = tl.load(places + row * stride)
    given = parts + (row * 3 * HEADS + head) * WIDTH + lane
    query = tl.load(given, mask=is_lane, other=0.0).to(tl.float32) * scale
    key = tl.load(given + HEADS * WIDTH, mask=is_lane, other=0.0).to(keys.dtype.element_ty)
    value = tl.load(given + 2 * HEADS * WIDTH, mask=is_lane, other=0.0).to(keys.dtype.element_ty)
    start_of_row = (row * HEADS + head).to(tl.int64) * (LIMIT + 1) * WIDTH
    here = start_of_row + place * WIDTH + lane
    tl.store(keys + here, key, mask=is_lane)
    tl.store(values + here, value, mask=is_lane)

    lowest = -3.0e38  # not infinite: the difference of two such is a number
    most = tl.full([TILE], lowest, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    sums = tl.zeros([TILE, LANES], tl.float32)
    known = tl.where(place < LIMIT, place, 0)  # none of an idle row
    first = 0
    next_keys, next_values = _tile(keys + start_of_row, values + start_of_row, 0, known, WIDTH, LANES, TILE)
    while first < known:
        some_keys, some_values = next_keys.to(tl.float32), next_values.to(tl.float32)
        next_keys, next_values = _tile(
            keys + start_of_row, values + start_of_row, first + TILE, known, WIDTH, LANES, TILE
        )
        is_known = first + tl.arange(0, TILE) < known
        scores = tl.where(is_known, tl.sum(some_keys * query[None, :], axis=1), lowest)
        greatest = tl.maximum(most, scores)
        shrunk, share = tl.exp(most - greatest), tl.exp(scores - greatest)
        total = total * shrunk + share
        sums = sums * shrunk[:, None] + share[:, None] * some_values
        most = greatest
        first += TILE

    score = tl.sum(query * key.to(tl.float32), axis=0)  # of the new key, which no load above has seen
    greatest = tl.maximum(tl.max(most, axis=0), score)
    weights, weight = tl.exp(most - greatest), tl.exp(score - greatest)
    result = tl.sum(sums * weights[:, None], axis=0) + weight * value.to(tl.float32)
    result = result / (tl.sum(total * weights, axis=0) + weight)
    tl.store(mixed + (row * HEADS + head) * WIDTH + lane, result.to(mixed.dtype.element_ty), mask=is_lane)


def over_own_keys(places: Tensor, keys: int, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """As of ``attention.masked``; what it gives depends on ``places`` alone."""

    def attend(parts: Tensor, memory: Tensor) -> Tensor:
        rows, _, heads, width = parts.shape
        assert parts.is_contiguous()
        assert memory.is_contiguous()
        mixed = torch.empty(rows, heads * width, dtype=parts.dtype, device=parts.device)
        _attend[(heads, rows)](
            *(parts, memory[0], memory[1], places, mixed, places.stride(0), width**-0.5),
            LIMIT=memory.shape[3] - 1,
            HEADS=heads,
            WIDTH=width,
            LANES=triton.next_power_of_2(width),
            TILE=_TILE,
            num_warps=_WARPS,
        )
        return mixed

    return attend
