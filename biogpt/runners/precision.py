"""Which device and precision a model runs in, and why."""

import time
from dataclasses import dataclass
from functools import cache

import torch

from biogpt.runners.speeds import float_speeds, int8_kernel, int8_speeds

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
SMALL = 30_000_000  # parameters; below, a CPU spends its time on other things than reading weights


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


@dataclass(frozen=True)
class Precision:
    """How a model computes.

    Attributes:
        dtype: of hidden states, and of the weights that are not int8.
        int8: the linear layers have int8 weights.
        reason: why, in words.
    """

    dtype: torch.dtype
    int8: bool
    reason: str

    @property
    def name(self) -> str:
        return "int8" if self.int8 else str(self.dtype).removeprefix("torch.")


def check_precision(wanted: str) -> None:
    """Raise a ValueError for an unknown name."""
    if wanted not in PRECISIONS:
        raise ValueError(f"precision is {wanted!r}; expected one of {', '.join(PRECISIONS)}")


def choose_precision(
    wanted: str, device: torch.device, parameters: int = 0, trainable: bool = False
) -> Precision:
    """The precision of a model.

    ``auto`` is bfloat16 on a GPU that computes in it, and float16 on the others. On a CPU it is float32 for a
    model that is to be trained, or so small that its weights stay in the processor's caches; else what a
    measurement of some tenths of a second shows to be fastest here: int8, bfloat16 or float32.

    Args:
        parameters: of the model.

    Raises:
        ValueError: the name is unknown, or int8 is asked for on another device than a CPU or for training.
    """
    check_precision(wanted)
    if wanted == "int8" and (device.type != "cpu" or trainable):
        raise ValueError(
            f"precision is 'int8', which is for {'inference' if trainable else 'a CPU'}; "
            "choose auto, float32 or bfloat16"
        )
    if wanted == "int8":
        return Precision(torch.float32, True, "int8, as asked for")
    if wanted != "auto":
        return Precision(getattr(torch, wanted), False, f"{wanted}, as asked for")
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return Precision(torch.bfloat16, False, "bfloat16, which this GPU computes in")
    if device.type != "cpu":
        return Precision(torch.float16, False, "float16, which this GPU computes in")
    if trainable:
        return Precision(torch.float32, False, "float32, for training")
    if parameters < SMALL:
        return Precision(
            torch.float32, False, "float32: the model is so small that less precision gains nothing"
        )
    exact, quantized = float_speeds(torch.float32), int8_speeds(kernel := int8_kernel())
    gain = min(exact.one / quantized.one, exact.many / quantized.many)
    if kernel.name != "plain" and gain > 1.2:
        return Precision(
            torch.float32,
            True,
            f"int8: {exact.one / quantized.one:.1f} times as fast as float32 on this CPU ({kernel})",
        )
    if bfloat16_pays("cpu") and float_speeds(torch.bfloat16).one < exact.one:
        return Precision(
            torch.bfloat16, False, "bfloat16: int8 is slow on this CPU, and bfloat16 faster than float32"
        )
    return Precision(torch.float32, False, "float32: nothing less is faster on this CPU")


def describe(device: torch.device, precision: str, threads: int | None = None) -> str:
    """A line for people: precision, device and, on a CPU, the number of threads.

    As many as torch takes when None.
    """
    if device.type == "cuda":
        return f"{precision} · {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return f"{precision} · Apple GPU"
    threads = threads or torch.get_num_threads()
    return f"{precision} · CPU, {threads} thread{'s' if threads > 1 else ''}"


@cache
def bfloat16_pays(kind: str) -> bool:
    """Whether a device multiplies matrices in bfloat16 at least as fast as in float32.

    CPUs are measured, once.

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
