"""Parts of a work side by side, on the threads of a machine with two cores."""

import os
import time
from threading import Barrier, current_thread

import pytest
import torch

from biogpt.runners.threads import side_by_side


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_come_in_the_order_of_the_parts(threads, count: int) -> None:
    def square(part: int) -> int:
        time.sleep(0.01 if part % 2 == 0 else 0)  # so that the second of two ends first
        return part * part

    assert list(side_by_side(square, range(count))) == [part * part for part in range(count)]


def test_two_parts_run_at_once_in_one_thread_each_and_an_odd_one_with_all(two_threads) -> None:
    meeting = Barrier(2)

    def meet(part: int) -> tuple[int, bool, bool]:
        if part < 4:
            meeting.wait(10)  # breaks where parts come one after the other
        return torch.get_num_threads(), torch.is_inference_mode_enabled(), current_thread() is caller

    caller = current_thread()
    assert list(side_by_side(meet, range(5))) == [(1, True, False)] * 4 + [(2, True, True)]
    assert torch.get_num_threads() == 2


def test_an_error_waits_for_the_other_part(two_threads) -> None:
    ended = []

    def fail_first(part: int) -> None:
        if part == 0:
            raise ValueError("the first")
        time.sleep(0.2)
        ended.append(part)

    with pytest.raises(ValueError, match="the first"):
        list(side_by_side(fail_first, [0, 1]))
    assert ended == [1]


def test_a_reader_that_stops_leaves_nothing_running(two_threads) -> None:
    begun, ended = [], []

    def work(part: int) -> int:
        begun.append(part)
        time.sleep(0.05)
        ended.append(part)
        return part

    results = side_by_side(work, range(100))
    assert next(results) == 0
    results.close()
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_threads_of_its_own(two_threads) -> None:
    assert list(side_by_side(abs, [-1, -2])) == [1, 2]
    child = os.fork()
    if child == 0:
        os._exit(0 if list(side_by_side(abs, [-3, -4])) == [3, 4] else 1)
    end = time.monotonic() + 20
    while (state := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.05)
    if state == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert state == (child, 0), "the child waited for threads that only its parent has"
