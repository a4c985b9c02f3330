"""Programs for a GPU: what is launched operation by operation once, and as a whole from then on.

A step of few rows is some three hundred operations of a few microseconds each; launched from Python, each
takes longer than it computes. A CUDA graph keeps them with the addresses that they read and write, so what
is captured must be of fixed shapes, ask for no number on the way, and find its input where it was.
"""

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

Program = Callable[[], None]
Capture = Callable[[Program], Program]

_WARM = 2  # runs before capture, in which libraries take their memory and choose their kernels


class GraphCapture:
    """Captures programs on one device; they share memory for what is in between, and run one at a time.

    What a program does must be the same however often it is done: it runs before it is captured. Where it
    cannot be captured, it is launched operation by operation each time, and the log says why.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, program: Program) -> Program:
        here = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(here)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM):
                    program()
                self._stream.synchronize()
                # Not torch.cuda.graph, which lets Python collect its garbage first, for longer than all this.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    program()
                finally:
                    graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            logger.warning(
                "a program cannot be captured here; each operation is launched by itself", exc_info=True
            )
            return program
        finally:
            here.wait_stream(self._stream)
        return graph.replay


def launch_each(program: Program) -> Program:
    """As ``GraphCapture`` where there are no graphs: the program as it is."""
    return program
