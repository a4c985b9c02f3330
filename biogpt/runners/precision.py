"""Which device and precision a model runs in, and why; and the threads that compute on a CPU."""

import ctypes
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread, current_thread, main_thread
from typing import Any, TypeVar

import torch

from biogpt.runners.layers import SMALL, float_speeds, int8_kernel, int8_speeds

T = TypeVar("T")
R = TypeVar("R")

_setting_threads = Lock()

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """While it lasts, processes are started that leave Ctrl+C, which a terminal sends to all, to this one."""
    if current_thread() is not main_thread():  # which alone may change what a signal does
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


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

    ``auto`` is bfloat16 on a GPU that computes in it, and float16 on the others. On a CPU it is float32 for a model
    that is to be trained, or so small that its weights stay in the processor's caches; else what a measurement of
    some tenths of a second shows to be fastest here: int8, bfloat16 or float32.

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


def describe(device: torch.device, precision: torch.dtype | Precision, threads: int | None = None) -> str:
    """A line for people: precision, device and, on a CPU, the number of threads; as many as torch takes when None."""
    name = precision.name if isinstance(precision, Precision) else str(precision).removeprefix("torch.")
    if device.type == "cuda":
        return f"{name} · {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return f"{name} · Apple GPU"
    threads = threads or torch.get_num_threads()
    return f"{name} · CPU, {threads} thread{'s' if threads > 1 else ''}"


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


def use_threads(count: int) -> None:
    """Compute with so many threads in the calling thread, and leave all other threads as they are."""
    with _setting_threads:
        others = torch.get_num_threads()
        torch.set_num_threads(count)  # speaks for this thread, and for those that begin later
        other = Thread(target=torch.set_num_threads, args=(others,))
        other.start()
        other.join()


def side_by_side(function: Callable[[T], R], parts: Sequence[T]) -> Iterator[R]:
    """What a function makes of each part in inference mode, in order; where torch computes with two threads, two at once.

    Two threads that go their own ways do more than two that meet at every operation, where each waits for the slower
    one and small operations are left to one of them. An odd part is left for both together.
    """
    if len(parts) < 2 or not has_pair():
        for part in parts:
            yield function(part)
        return

    @torch.inference_mode()
    def run(part: T) -> R:
        return function(part)

    running: deque[Future[R]] = deque()
    try:
        for part in parts[: len(parts) // 2 * 2]:
            if len(running) == 2:
                yield running.popleft().result()
            running.append(Future())
            _pair().put((running[-1], partial(run, part)))
        while running:
            yield running.popleft().result()
    finally:
        wait(running)
    if len(parts) % 2:
        yield run(parts[-1])


def has_pair() -> bool:
    """Whether ``side_by_side`` computes two parts at once: on more cores it was not measured."""
    return torch.get_num_threads() == 2


@cache
def _pair() -> "SimpleQueue[tuple[Future[Any], Callable[[], Any]]]":
    """Tasks for two threads that last; no executor, since that refuses work while Python ends and others finish theirs."""
    tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def serve() -> None:
        use_threads(1)
        while True:
            fulfil(*tasks.get())

    for _ in range(2):
        Thread(target=serve, name="biogpt-part", daemon=True).start()
    return tasks


def fulfil(future: "Future[T]", task: Callable[[], T]) -> None:
    """Give a future what a task returns or raises."""
    try:
        future.set_result(task())
    except BaseException as error:  # of whatever kind: it is raised where the task came from
        future.set_exception(error)


os.register_at_fork(after_in_child=_pair.cache_clear)  # which has none of its parent's threads


def rest_threads() -> None:
    """End the helpers that OpenMP keeps for the calling thread; its next large operation starts new ones.

    A process that is forked while there are any waits for them for ever.

    GNU's OpenMP lets helpers stay awake between two operations only while there are no more of them than cores. A
    thread that has computed and then waits for another one would leave that one half as fast.
    """
    openmp = _gnu_openmp()
    if openmp is not None:
        openmp.omp_pause_resource_all(1)  # omp_pause_soft


@cache
def _gnu_openmp() -> ctypes.CDLL | None:
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.is_file() else []
    paths = [line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line]
    library = ctypes.CDLL(paths[0]) if paths else None
    return library if hasattr(library, "omp_pause_resource_all") else None
