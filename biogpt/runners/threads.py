"""The threads that compute on a CPU, and processes that leave Ctrl+C to this one."""

import ctypes
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread, current_thread, main_thread
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_setting_threads = Lock()


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


def use_threads(count: int) -> None:
    """Compute with so many threads in the calling thread, and leave all other threads as they are."""
    with _setting_threads:
        others = torch.get_num_threads()
        torch.set_num_threads(count)  # speaks for this thread, and for those that begin later
        other = Thread(target=torch.set_num_threads, args=(others,))
        other.start()
        other.join()


def side_by_side(function: Callable[[T], R], parts: Sequence[T]) -> Iterator[R]:
    """What a function makes of each part in inference mode, in order.

    Two at once, each with half of torch's threads.

    Threads that meet at every operation wait for each other there: while something else has a core, 16
    streams of BioGPT in int8 are three times as fast in two halves (alone on two quiet cores up to a tenth
    slower). An odd part is left for all threads together.
    """
    if len(parts) < 2 or not has_pair():
        for part in parts:
            yield function(part)
        return

    @torch.inference_mode()
    def run(part: T) -> R:
        return function(part)

    tasks = _pair(torch.get_num_threads() // 2)
    running: deque[Future[R]] = deque()
    try:
        for part in parts[: len(parts) // 2 * 2]:
            if len(running) == 2:
                yield running.popleft().result()
            running.append(Future())
            tasks.put((running[-1], partial(run, part)))
        while running:
            yield running.popleft().result()
    finally:
        wait(running)
    if len(parts) % 2:
        yield run(parts[-1])


def has_pair() -> bool:
    """Whether ``side_by_side`` computes two parts at once."""
    return torch.get_num_threads() > 1


@cache
def _pair(threads: int) -> "SimpleQueue[tuple[Future[Any], Callable[[], Any]]]":
    """Tasks for two threads that last, each computing with so many.

    No executor, since that refuses work while Python ends and others finish theirs.
    """
    tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def serve() -> None:
        use_threads(threads)
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

    GNU's OpenMP lets helpers stay awake between two operations only while there are no more of them than
    cores. A thread that has computed and then waits for another one would leave that one half as fast.
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
