"""Attention on a GPU: of steps, which feed a position to each of some rows, and of pieces of prompts.

Steps have two kinds: fused attention that masks the keys beyond a row's own, and a kernel of our own that
reads those alone (``row_attention``). The kernel is taken where it can be compiled and gives the same
numbers, whatever the reason that it cannot: a step is only slower without it.

Letters: G rows of a program, R of memory, K keys, H heads, D width, S positions; B prompts, T positions.
"""

import importlib.util
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

logger = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor], Tensor]
Attention = Callable[[Tensor, int, torch.dtype], Attend]

# The first of them goes over a row's keys in order, however many rows there are; others share them out.
_OF_STEPS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_OF_PROMPTS = [SDPBackend.FLASH_ATTENTION, *_OF_STEPS]
_TOLERANCE = 2.0**-5  # of numbers about 1 in bfloat16; one key too many or too few changes more


def attention_for(memory: Tensor, dtype: torch.dtype) -> Attention:
    """The attention that steps on a device do best with.

    Args:
        memory: of a layer, [2, R, H, S + 1, D / H]; what is in it is lost.
        dtype: of queries.
    """
    if importlib.util.find_spec("triton") is None:
        return masked
    try:
        from biogpt.runners.row_attention import over_own_keys  # Triton, which is not everywhere

        rows, heads, columns, width = memory.shape[1:]
        memory.normal_()
        parts = torch.randn(rows, 3, heads, width, device=memory.device).to(dtype)
        places = torch.arange(rows, device=memory.device) * 7919 % columns
        found, wanted = (
            attention(places, columns, dtype)(parts, memory) for attention in (over_own_keys, masked)
        )
        is_idle = places == columns - 1
        torch.testing.assert_close(found[~is_idle], wanted[~is_idle], atol=_TOLERANCE, rtol=_TOLERANCE)
    except Exception:  # no compiler for its launcher, an unknown device, a version that reads it otherwise
        logger.warning("%s gets no kernel of its own for attention", memory.device, exc_info=True)
        return masked
    return over_own_keys


def masked(places: Tensor, keys: int, dtype: torch.dtype) -> Attend:
    """What attends in each layer of a step: fused attention over the first K keys of every row.

    Args:
        places: [G], where each row's new key and value belong; of an idle row S, which nobody reads.
        keys: K, above all places of rows that are not idle.
        dtype: of queries.

    Returns:
        A function of a layer's queries, keys and values, [G, 3, H, D / H], and of its memory,
        [2, R, H, S + 1, D / H], to which it writes the new ones; gives [G, D].
    """
    rows = torch.arange(len(places), device=places.device)
    is_closed = torch.arange(keys, device=places.device) > places[:, None, None, None]  # [G, 1, 1, K]
    mask = torch.zeros(is_closed.shape, dtype=dtype, device=places.device).masked_fill(is_closed, -torch.inf)

    def attend(parts: Tensor, memory: Tensor) -> Tensor:
        memory[:, rows, :, places] = parts[:, 1:].to(memory.dtype)
        known_keys, known_values = memory[:, : len(places), :, :keys].to(parts.dtype)
        with sdpa_kernel(_OF_STEPS):
            mixed = F.scaled_dot_product_attention(parts[:, 0, :, None], known_keys, known_values, mask)
        return mixed.flatten(1)

    return attend


def causal(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[B, H, T, D / H] of T positions, the last ones of K, that see what comes before them and themselves."""
    keys, values = keys.to(query.dtype), values.to(query.dtype)
    before = keys.shape[2] - query.shape[2]
    # The fast kernels take as many queries as keys; those before are of nobody. What would say "the last
    # ones" without them, ``torch.nn.attention.bias``, takes seconds to import.
    query = F.pad(query, (0, 0, before, 0))
    with sdpa_kernel(_OF_PROMPTS):
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True)[:, :, before:]
