"""Text in, steps of text out: a language model with its tokenizer, served by one thread.

Requests may come from any number of threads; one thread, started with the first of them, owns the model and runs the
steps of ``biogpt.serving.engine``. Readers get ids from it and make the text of them in their own time.

``prompt + step.text`` reads right. What Moses' detokenizer makes of new words depends on the words before them (a
comma takes no space, a second quote closes the first), so prompt and new tokens are decoded together, as a whole at
every step, and the prompt is then left out.
"""

import logging
import math
import re
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import Empty
from threading import Condition, Lock, Thread, main_thread
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from torch import nn

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import Hypothesis, Token, start_search
from biogpt.model.config import BioGptConfig
from biogpt.runners.layers import SMALL, pack
from biogpt.runners.precision import describe, fulfil, rest_threads, use_threads
from biogpt.serving.engine import Engine, Result, Slot

logger = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["loading", "serving", "failed", "stopping"]
FinishReason = Literal["stop", "length", "eos"]

# A token stands for some five characters. A prompt of more than so many a position cannot fit, and is refused before
# the tokenizer spends time on it.
_CHARACTERS_PER_POSITION = 40
_GLANCE = 0.2  # seconds after which an idle thread looks whether it is still needed


@dataclass(frozen=True)
class Prompt:
    """A text as a model reads it, made once by ``TextGenerator.prompt``, for that generator.

    Attributes:
        text: as given.
        ids: the start token and those of the text.
        room: positions left for new tokens; below 1 nothing can be written.
    """

    text: str
    ids: tuple[int, ...]
    room: int

    @property
    def length(self) -> int:
        """How many of the model's positions it takes."""
        return len(self.ids)


@dataclass(frozen=True)
class Step:
    """The state of a text after one more token.

    Attributes:
        token_id, logprob, alternatives: of the newest token, as in ``biogpt.generation.search.Token``.
        text: everything generated so far, prompt left out; may begin with a space. A later step may change the end
            of it: a space goes, a stop string is cut.
        finish_reason: on the last step of a text: "stop" (a stop string came up), "eos" (the model ended it) or
            "length" (``max_new_tokens``); None before.
        sequence: which of ``num_return_sequences`` samples it belongs to.
    """

    token_id: int
    text: str
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    sequence: int = 0


@dataclass(frozen=True)
class Completion:
    """A finished text.

    Attributes:
        text: prompt and stop string left out.
        tokens: all that were made, an end token and those of a stop string included.
        finish_reason: as in ``Step``.
    """

    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def logprob(self) -> float:
        """Natural logarithm of the probability that the model gives to all tokens together."""
        return sum(token.logprob for token in self.tokens)


@dataclass(frozen=True)
class Health:
    """Whether requests are served: the state, and in words why it is not "serving"."""

    state: State
    reason: str = ""


class Worker:
    """The thread that runs the steps of an engine, or in its place whoever asks for a result.

    It starts with the first request, so that a process may be forked before, and ends by itself once the generator
    or the main thread is gone. Those who ask for something, and the thread itself while it is idle, keep no helpers
    (``biogpt.runners.precision.rest_threads``).

    Args:
        engine: nobody else may call its ``step``.
        threaded: False runs the steps in the threads of those who wait for results, as a process must that is forked
            for a single call.

    Attributes:
        threads: that torch computes with; as many as it likes when None. Read when the thread starts.
    """

    def __init__(self, engine: Engine, threaded: bool = True) -> None:
        self.engine = engine
        self.health = Health("serving")
        self.is_abandoned = False
        self.threads: int | None = None
        self._threaded = threaded
        self._thread: Thread | None = None
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        # Notified when a slot or task came, a slot was cancelled or read, or the end was asked for.
        self._changed = Condition()
        self._turn = Lock()  # of those who run steps themselves

    def submit(self, slot: Slot) -> None:
        """Let a slot wait for its turn; errors are those of ``Engine.submit``, and RuntimeError after ``stop``."""
        with self._changed:
            self._refuse_at_the_end()
            self.engine.submit(slot)
            self._start()

    def run(self, task: Callable[[], T]) -> T:
        """What a task returns or raises, run between two steps by the thread that owns the model."""
        if not self._threaded:
            with self._turn:
                return task()
        future: Future[T] = Future()
        with self._changed:
            self._refuse_at_the_end()
            self._tasks.append((future, task))
            self._start()
        return future.result()

    def _refuse_at_the_end(self) -> None:
        if self.health.state == "stopping" or (self._threaded and not main_thread().is_alive()):
            raise RuntimeError("the service is stopping and takes no more requests")

    def _start(self) -> None:
        if self._threaded and (self._thread is None or not self._thread.is_alive()):
            self._thread = Thread(target=self._serve, name="biogpt")
            self._thread.start()
        if self._threaded:
            rest_threads()
        self._changed.notify()

    def take(self, slot: Slot, timeout: float | None = None) -> Result | Exception | None:
        """The next result of a slot; the reader says with ``taken`` when it has made use of it.

        Raises:
            queue.Empty: there is none within ``timeout`` seconds.
        """
        if self._threaded:
            return slot.results.get(timeout=timeout)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while slot.results.empty() and time.monotonic() < deadline:
            with self._turn:
                if slot.results.empty():
                    self._step()
        return slot.results.get_nowait()

    def taken(self, slot: Slot) -> None:
        """A reader is done with a result; a slot that was held back may go on."""
        slot.taken += 1
        if slot.lead is not None:
            self._wake()

    def cancel(self, slot: Slot) -> None:
        """Let a slot leave before the next step."""
        slot.cancelled = True
        if self._threaded:
            self._wake()
        elif self._turn.acquire(blocking=False):  # else whoever has the turn drops it in the next step
            try:
                self.engine.drop()
            finally:
                self._turn.release()

    def stop(self, timeout: float = 0.0) -> None:
        """Take no more requests, let those at hand go on for so many seconds, and drop the rest."""
        with self._changed:
            self.health = Health("stopping", "the service is shutting down")
            thread = self._thread
        deadline = time.monotonic() + timeout
        while thread is not None and (self.engine.is_busy or self._tasks) and time.monotonic() < deadline:
            time.sleep(min(_GLANCE, timeout))
        self.is_abandoned = True
        if thread is not None:
            self._wake()
            thread.join()
        # Not for ever: this may be the handler of a signal, in the very thread that has the turn.
        has_turn = self._turn.acquire(timeout=1.0)
        self.engine.drop(everyone=True)
        if has_turn:
            self._turn.release()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _serve(self) -> None:
        if self.threads is not None:
            use_threads(self.threads)
        while not self.is_abandoned and main_thread().is_alive():
            with self._changed:
                task = self._tasks.popleft() if self._tasks else None
                if task is None and not self.engine.has_work:
                    rest_threads()
                    # What is dropped by the garbage collector sets a flag and notifies nobody, so look at times.
                    self._changed.wait(_GLANCE)
                    continue
            if task is not None:
                fulfil(*task)
            if self.engine.has_work:
                self._step()
        self.engine.drop(everyone=True)
        while self._tasks:
            self._tasks.popleft()[0].set_exception(RuntimeError("the service has stopped"))

    def _step(self) -> None:
        try:
            self.engine.step()
            health = Health("serving")
        except Exception as error:  # its requests were told; others may fare better
            logger.exception("a step of the model failed")
            health = Health("failed", f"{type(error).__name__}: {error}")
        if self.health.state != "stopping":
            self.health = health


class Stream:
    """The steps of one request, as they are made: an iterator, and a context manager that closes it.

    The request is in line from the start on, and leaves when the stream is closed, ends or is let go of.

    Attributes:
        prompt: what it continues.
    """

    def __init__(self, generator: "TextGenerator", slot: Slot, text: "_NewText") -> None:
        self._generator = generator  # which ends its work when nobody holds it
        self._worker = generator._worker
        self._slot = slot
        self._text = text
        self.prompt = text.prompt
        self._ids: list[int] = []
        self._next: Result | Exception | None = None
        self._open = True

    @property
    def position(self) -> int:
        """The place in line: 0 is running, or ended; 1 is the next to run."""
        return self._worker.engine.position(self._slot)

    @property
    def running(self) -> int:
        """How many requests share the steps of the model now."""
        return len(self._worker.engine.running)

    def wait(self, timeout: float) -> bool:
        """Whether the next step, or the end, is there within so many seconds; asking for it will not block then."""
        if self._open and self._next is None:
            try:
                self._next = self._worker.take(self._slot, timeout)
            except Empty:
                return False
            if self._next is None:
                self.close()
        return True

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        result = self._next
        if result is None and self._open:
            result = self._worker.take(self._slot)
        self._next = None
        if result is None or not self._open:
            self.close()
            raise StopIteration
        if isinstance(result, Exception):
            self.close()
            raise result
        step = self._step_of(result)
        self._worker.taken(self._slot)
        return step

    def close(self) -> None:
        """End the work: the request leaves within one step."""
        if self._open:
            self._open = False
            self._worker.cancel(self._slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._slot.cancelled = True  # and no lock: the garbage collector may come while one is held

    def _step_of(self, result: Result) -> Step:
        if isinstance(result, Token):
            token, ended = result, result.last
            self._ids.append(token.id)
            text, reason = self._text.read(self._ids)
        else:
            token, ended = result[0].tokens[-1], result[0].finished
            text, reason = self._text.read(result[0].ids)
            reason = reason if ended else None
        if reason is not None:
            self._ids = []
            if not ended:
                self._slot.skip = True
        return Step(token.id, text, token.logprob, token.alternatives, reason, token.sequence)


class TextGenerator:
    """Continues prompts. Any number of threads may call it: their requests share each step of the model.

    What a request gets does not depend on the others: the same prompt, options and seed give the same ids.

    Args:
        model: put in evaluation mode.
        tokenizer: the one it was trained with.
        cache_bytes, max_running, max_waiting: limits, as in ``biogpt.serving.engine.Engine``.
        threaded: as in ``Worker``.
    """

    def __init__(
        self,
        model: BioGptForCausalLM,
        tokenizer: BioGptTokenizer,
        cache_bytes: int | None = None,
        max_running: int = 16,
        max_waiting: int = 64,
        threaded: bool = True,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._worker = Worker(Engine(self.model, cache_bytes, max_running, max_waiting), threaded)
        weakref.finalize(self, setattr, self._worker, "is_abandoned", True)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "mini",
        revision: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        threaded: bool = True,
    ) -> Self:
        """Load model and tokenizer; arguments and errors are those of ``BioGptForCausalLM.from_pretrained``.

        The weights of a large model are laid out for serving (``biogpt.runners.layers.pack``).
        """
        model = BioGptForCausalLM.from_pretrained(source, revision, device, precision, trainable=False)
        pack(model)
        generator = cls(model, BioGptTokenizer.from_pretrained(source, revision), threaded=threaded)
        if model.device.type == "cpu":  # a GPU may be there only during a call
            generator._worker.engine.prepare()
            rest_threads()  # so that this process may be forked
        return generator

    @property
    def config(self) -> BioGptConfig:
        return self.model.config

    @property
    def waiting(self) -> int:
        """How many requests wait for one to end."""
        return len(self._worker.engine.waiting)

    @property
    def threads(self) -> int | None:
        """That its worker computes with on a CPU; None is as many as torch takes."""
        return self._worker.threads

    @property
    def description(self) -> str:
        """Device, precision and threads, in words for people."""
        return describe(self.model.device, self.model.precision or self.model.dtype, self.threads)

    def share_cores(self) -> None:
        """Leave cores to what else runs on this machine, such as a page; call it before the first request.

        A small model then computes in one thread. It gains little from a second one, and would wait for it at every
        operation while something else has its core.
        """
        plain = isinstance(self.model.output_projection, nn.Linear)  # packed and int8 layers are large ones
        if plain and sum(parameter.numel() for parameter in self.model.parameters()) < SMALL:
            self._worker.threads = 1

    def health(self) -> Health:
        return self._worker.health

    def close(self, timeout: float = 0.0) -> None:
        """Take no more requests, let those at hand go on for so many seconds, and end the rest."""
        self._worker.stop(timeout)

    def prompt(self, text: str) -> Prompt:
        """Encode a text, to be counted or continued.

        Raises:
            TypeError: it is not a string.
            ValueError: it has more characters than the model's positions can hold.
        """
        if not isinstance(text, str):
            raise TypeError(f"the prompt is of type {type(text).__name__}; expected a string")
        limit = self.config.max_position_embeddings
        most = _CHARACTERS_PER_POSITION * limit
        if len(text) > most:
            raise ValueError(
                f"the prompt has {len(text)} characters, and {limit} positions hold no more than {most}; cut it"
            )
        ids = tuple(self.tokenizer.encode(text).ids)
        return Prompt(text, ids, limit - len(ids))

    def count(self, text: str) -> int:
        """How many of the model's positions a text takes, the start token included; errors as of ``prompt``."""
        return self.prompt(text).length

    def stream(
        self, prompt: str | Prompt, options: GenerationOptions | None = None, session: Hashable = None
    ) -> Stream:
        """Continue a prompt; greedily unless the options say otherwise.

        Several samples come one after another, told apart by ``Step.sequence``. Beam search streams the best text
        at each step, which may change altogether; its last step is the best result.

        Args:
            prompt: any text, or one that ``prompt`` has encoded; an empty one gives text that starts anywhere.
            options: ``GenerationOptions()`` when None.
            session: whose request it is. A prompt that begins as a recent one of the same session is read faster,
                and gives the same text; None shares nothing.

        Returns:
            An iterator of one step a token, already in line; its ``close()`` ends the work within one step. With stop
            strings a stream waits for its reader at each token, so one thread that reads several in turn must not
            open more than run at once.

        Raises:
            TypeError: at once: the prompt is not a string.
            ValueError: at once: prompt and ``max_new_tokens`` are more than the model's positions, or than the
                memory for its cache.
            QueueFull: at once: too many requests wait already.
            RuntimeError: at once: the service is stopping; from the iterator: it has stopped.
            FloatingPointError: from the iterator: the model's numbers overflow in this precision.
        """
        options = GenerationOptions() if options is None else options
        encoded = self._encoded(prompt)
        text = _NewText(self.tokenizer, encoded, options)
        return Stream(self, self._submit(encoded, options, session), text)

    def generate(
        self, prompt: str | Prompt, options: GenerationOptions | None = None, session: Hashable = None
    ) -> list[Completion]:
        """The ``num_return_sequences`` finished texts: beams best first, samples in the order of their seeds.

        Arguments and errors are those of ``stream``.
        """
        options = GenerationOptions() if options is None else options
        if options.num_beams == 1:
            completions = []
            with closing(self.stream(prompt, options, session)) as stream:
                for _, steps in groupby(stream, key=lambda step: step.sequence):
                    *earlier, last = steps
                    tokens = [
                        Token(step.token_id, step.logprob, step.alternatives) for step in (*earlier, last)
                    ]
                    completions.append(_completion(tokens, last.text, last.finish_reason))
            return completions
        encoded = self._encoded(prompt)
        text = _NewText(self.tokenizer, encoded, options)
        slot = self._submit(encoded, options, session)
        hypotheses: list[Hypothesis] = []
        try:
            while (result := self._worker.take(slot)) is not None:
                if isinstance(result, Exception):
                    raise result
                assert isinstance(result, list)
                hypotheses = result
        finally:
            self._worker.cancel(slot)
        return [_completion(found.tokens, *text.read(found.ids)) for found in hypotheses]

    def run(self, task: Callable[[], T]) -> T:
        """What a task returns or raises that computes with ``model``, run between two steps of the requests.

        One thread owns the model: two that compute at once would wait for each other at every operation.

        Raises:
            RuntimeError: the service is stopping.
        """
        return self._worker.run(task)

    def _encoded(self, prompt: str | Prompt) -> Prompt:
        return prompt if isinstance(prompt, Prompt) else self.prompt(prompt)

    def _submit(self, prompt: Prompt, options: GenerationOptions, session: Hashable) -> Slot:
        # A reader that looks for a stop string must see each token before the next one is made.
        lead = 1 if options.stop and options.num_beams == 1 else None
        slot = Slot(start_search(self.model.config, prompt.ids, options), session, lead)
        self._worker.submit(slot)
        return slot


class _NewText:
    """Reads generated ids as text that continues a prompt.

    Args:
        tokenizer: that encoded the prompt.
        options: say when a text ends.
    """

    def __init__(self, tokenizer: BioGptTokenizer, prompt: Prompt, options: GenerationOptions) -> None:
        self.prompt = prompt
        self._tokenizer = tokenizer
        self._prompt_ids = list(prompt.ids)
        self._options = options
        self._needs_no_space = not prompt.text or prompt.text[-1].isspace()
        # Counted without white space, since new words can move the prompt's: ``"`` closes up to what follows it.
        characters = len(re.findall(r"\S", tokenizer.decode(self._prompt_ids)))
        self._read_prompt = re.compile(rf"(?:\s*\S){{{characters}}}")

    def read(self, ids: list[int]) -> tuple[str, FinishReason | None]:
        """The text of the ids, cut before the first stop string, and why it ends there if it does."""
        whole = self._tokenizer.decode(self._prompt_ids + ids)
        prompt = self._read_prompt.match(whole)
        text = whole[prompt.end() :] if prompt else ""
        if self._needs_no_space:
            text = text.lstrip()
        stops = [text.index(stop) for stop in self._options.stop if stop in text]
        if stops:
            return text[: min(stops)], "stop"
        if ids[-1] == self._tokenizer.eos_token_id:
            return text, "eos"
        return text, "length" if len(ids) == self._options.max_new_tokens else None


def _completion(tokens: Iterable[Token], text: str, reason: FinishReason | None) -> Completion:
    assert reason is not None, "a text that has not ended"
    return Completion(text, tuple(tokens), reason)
