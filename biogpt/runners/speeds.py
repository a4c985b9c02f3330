"""How fast this CPU computes the layers that serve a model; measured once, when somebody asks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from biogpt.runners.kernels import Int8Kernel
from biogpt.runners.layers import Int8Linear, packed_or_plain

_PROBE = (2048, 1024)  # outputs and inputs of the layers that kernels are compared with


@dataclass(frozen=True)
class Speeds:
    """Seconds of one layer of the size ``_PROBE`` on this CPU, for one row and for 16."""

    one: float
    many: float


@cache
def int8_kernel() -> Int8Kernel:
    """The kernel for this CPU.

    Of those that are exact, the finest that is not twice as slow as the fastest.
    """
    candidates = [Int8Kernel(name, levels) for levels in (255, 127) for name in ("fbgemm", "onednn")]
    exact = [kernel for kernel in candidates if kernel.is_exact]
    if not exact:
        return Int8Kernel("plain", 255)
    seconds = {kernel: sum(vars(int8_speeds(kernel)).values()) for kernel in exact}
    least = min(seconds.values())
    good = [kernel for kernel in exact if seconds[kernel] < 2 * least]
    return min(good, key=lambda kernel: (-kernel.levels, seconds[kernel]))


@cache
@torch.inference_mode()
def int8_speeds(kernel: Int8Kernel) -> Speeds:
    """Of whole layers: what quantising a row costs beside the kernel differs, too."""
    weight, ones = torch.ones(*_PROBE, dtype=torch.int8), torch.ones(_PROBE[0])
    return _speeds([Int8Linear(weight, ones, ones, ("layer",), kernel) for _ in range(4)])


@cache
@torch.inference_mode()
def float_speeds(dtype: torch.dtype) -> Speeds:
    """Of the float layers that serving uses, packed where that can be."""
    return _speeds([packed_or_plain(torch.ones(*_PROBE, dtype=dtype)) for _ in range(4)], dtype)


def _speeds(layers: Sequence[Callable[[Tensor], Any]], dtype: torch.dtype = torch.float32) -> Speeds:
    """The least of a few times.

    Several layers in turn, so that weights come from memory as they do in a model.
    """

    def seconds(rows: Tensor) -> float:
        times = []
        for layer in (*layers, *layers, *layers):
            start = time.perf_counter()
            layer(rows)
            times.append(time.perf_counter() - start)
        return min(times[len(layers) :])

    return Speeds(*(seconds(torch.ones(rows, _PROBE[1], dtype=dtype)) for rows in (1, 16)))
