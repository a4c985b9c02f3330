"""Hugging Face's ZeroGPU: a GPU that is lent for one call at a time, to a process forked for it.

Threads do not cross the fork, and what goes in and comes out is pickled. So the model that writes is there
twice: on the lent GPU, where its steps run inline, and on the CPU for everything else that the page asks of
it. A process may serve one call or, while it is warm, several: it then has its rows and programs already
(``biogpt.runners.cuda``), and the log says which it was.
"""

import logging
import os
import time
from collections.abc import Callable, Generator, Hashable
from pathlib import Path
from typing import Any, Self

from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import start_search
from biogpt.serving.service import Prompt, Step, Stream
from biogpt.serving.text_generator import TextGenerator

logger = logging.getLogger(__name__)

_START_SECONDS = 15  # until the first token of a call
_TOKENS_A_SECOND = 20  # fewer than any GPU that is lent makes
_MOST_SECONDS = 120  # that a visitor without an account may ask for at once


def gpu_is_lent() -> bool:
    """Whether this is a Space on ZeroGPU hardware; ``spaces`` must then be imported before torch."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true", "t", "yes", "y", "on")


def seconds_of(prompt: Prompt, options: GenerationOptions) -> int:
    """How long the GPU is asked for.

    The visitor's quota pays for it, so no longer than the request can take.
    """
    tokens = options.max_new_tokens * (1 if options.num_beams > 1 else options.num_return_sequences)
    return min(_MOST_SECONDS, _START_SECONDS + tokens // _TOKENS_A_SECOND)


class LentGenerator(TextGenerator):
    """Writes on the lent GPU; counts, scores and shows attention on the CPU.

    Args:
        near: on the CPU.
        far: of the same checkpoint, on the GPU, not threaded.
    """

    def __init__(self, near: TextGenerator, far: TextGenerator) -> None:
        super().__init__(near.model, near.tokenizer)
        import spaces  # only such a Space has it

        served: list[int] = []  # the processes of the calls that this one has seen: none, or its own

        def write(prompt: Prompt, options: GenerationOptions) -> Generator[Step, None, None]:
            begun, is_warm = time.perf_counter(), os.getpid() in served
            served.append(os.getpid())
            with far.stream(prompt, options) as steps:
                for number, step in enumerate(steps):
                    if number == 0:
                        logger.info(
                            "a %s process of the lent GPU made its first token after %.2f s",
                            "warm" if is_warm else "new",
                            time.perf_counter() - begun,
                        )
                    yield step

        self._write: Callable[..., Generator[Step, None, None]] = spaces.GPU(duration=seconds_of)(write)

    @classmethod
    def from_pretrained(
        cls, source: str | Path = "mini", *_: Any, precision: str = "auto", **__: Any
    ) -> Self:
        """Load a checkpoint twice; on ZeroGPU, before the page is served."""
        near = TextGenerator.from_pretrained(source, device="cpu")
        return cls(near, TextGenerator.from_pretrained(source, precision=precision, threaded=False))

    def stream(
        self, prompt: str | Prompt, options: GenerationOptions | None = None, session: Hashable = None
    ) -> Stream:
        """As ``TextGenerator.stream``; no prompt is reused, since the process ends with its call."""
        options = GenerationOptions() if options is None else options
        encoded = prompt if isinstance(prompt, Prompt) else self.prompt(prompt)
        start_search(self.config, encoded.ids, options)  # refuses at once what the far one would
        return _LentStream(encoded, self._write(encoded, options))


class _LentStream(Stream):
    """Steps that come from another process; the Space's own queue says who waits."""

    def __init__(self, prompt: Prompt, steps: Generator[Step, None, None]) -> None:
        self.prompt = prompt
        self._steps = steps

    @property
    def position(self) -> int:
        return 0

    @property
    def running(self) -> int:
        return 1

    def wait(self, timeout: float) -> bool:
        return timeout > 0  # what the other process has made cannot be seen; asking for it may block

    def __next__(self) -> Step:
        return next(self._steps)

    def close(self) -> None:
        self._steps.close()

    def __del__(self) -> None:
        self.close()
