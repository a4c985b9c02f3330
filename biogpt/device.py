"""Which device and precision a model runs in, and why."""

import time
from functools import cache

import torch

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def choose_device(wanted: str = "auto") -> torch.device:
    """The device to compute on: the one named, or the best there is (CUDA, then MPS, then CPU).

    Args:
        wanted: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    kind, _, index = wanted.partition(":")
    if kind not in DEVICES or (index and not (kind == "cuda" and index.isdigit())):
        raise ValueError(f"device is {wanted!r}; expected one of {', '.join(DEVICES)} or cuda:N")
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {wanted!r}, but this machine shows {torch.cuda.device_count()} CUDA devices; "
            "choose auto or cpu, or install a CUDA build of torch"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is 'mps', but this machine has no Apple GPU; choose auto or cpu")
    return torch.device(wanted)


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The floating-point type of the weights.

    ``auto`` is float32 on a CPU (exact), bfloat16 on a GPU that computes in it, and float16 on the others.

    Raises:
        ValueError: the name is unknown.
    """
    if wanted not in PRECISIONS:
        raise ValueError(f"precision is {wanted!r}; expected one of {', '.join(PRECISIONS)}")
    if wanted != "auto":
        return getattr(torch, wanted)
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float16


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """A line for people: precision, device and, on a CPU, the number of threads."""
    precision = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{precision} · {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return f"{precision} · Apple GPU"
    threads = torch.get_num_threads()
    return f"{precision} · CPU, {threads} thread{'s' if threads > 1 else ''}"


@cache
def bfloat16_pays(kind: str) -> bool:
    """Whether a device multiplies matrices in bfloat16 at least as fast as in float32; CPUs are measured, once.

    A CPU without instructions for it computes the same numbers up to a hundred times slower.

    Args:
        kind: ``cpu``, ``cuda`` or ``mps``.
    """
    if kind != "cpu":
        return kind == "cuda" and torch.cuda.is_bf16_supported()

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) <= seconds(torch.float32)
