"""What page, endpoints and commands ask of a language model, wherever it computes.

``TextGenerator`` computes in this process, ``biogpt.cluster.far.FarGenerator`` on replicas elsewhere. Both
read prompts here: that needs a vocabulary and no weights.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Hashable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from queue import Empty
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

import torch

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import Hypothesis
from biogpt.generation.tree import Node, TreeOptions
from biogpt.model.config import BioGptConfig
from biogpt.serving.engine import Counts
from biogpt.serving.worker import Health
from biogpt.text.tokenizer import moses_text

T = TypeVar("T")
FinishReason = Literal["stop", "length", "eos"]

# A token stands for some five characters. A prompt of more than so many a position cannot fit, and is refused
# before the tokenizer spends time on it.
_CHARACTERS_PER_POSITION = 40

# Whether a prompt's last word goes on is asked of the model with so many tokens before it, and taken for
# true where that is more likely by this logarithm. On held-out abstracts cut anywhere, mini opened 3 of 400
# whole words, and missed 4 of 111 begun ones.
_CONTEXT = 48
_LEAST_ODDS = 1.0

_LOOK = 0.2  # seconds between looks of who waits for a tree, or for beams


class Lost(RuntimeError):
    """Whoever served a request is gone, and nobody else could take it over; try again."""


@dataclass(frozen=True)
class Prompt:
    """A text as a model reads it, made once by ``TextService.prompt``, for that service.

    Attributes:
        text: as given.
        ids: the start token and those of the text.
        room: positions left for new tokens; below 1 nothing can be written.
        is_open: whether the last word goes on; None: the model decides.
        offsets: the characters of ``text`` that each id stands for, as of ``Encoding``; empty where the ids
            were given.
    """

    text: str
    ids: tuple[int, ...]
    room: int
    is_open: bool | None = None
    offsets: tuple[tuple[int, int], ...] = ()

    @property
    def length(self) -> int:
        """How many of the model's positions it takes."""
        return len(self.ids)


@dataclass(frozen=True)
class Step:
    """The state of a text after one more token.

    Attributes:
        token_id, logprob, alternatives: of the newest token, as in ``biogpt.generation.search.Token``.
        text: everything generated so far, prompt left out; may begin with a space. Later steps only add to
            it, but for beam search, where another text may become the best one.
        finish_reason: on the last step of a text: "stop" (a stop string came up), "eos" (the model ended it)
            or "length" (``max_new_tokens``); None before.
        sequence: which of ``num_return_sequences`` samples it belongs to.
        held: what comes after ``text`` and is kept back: more tokens may change it, or make it a stop
            string. Empty on the last step.
    """

    token_id: int
    text: str
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    sequence: int = 0
    held: str = ""


class Stream(ABC):
    """The steps of one request, as they are made: an iterator, and a context manager that closes it.

    The request is in line from the start on, and leaves when the stream is closed, ends or is let go of.

    Attributes:
        prompt: what it continues.
    """

    prompt: Prompt

    @property
    @abstractmethod
    def position(self) -> int:
        """The place in line: 0 is running, or ended; 1 is the next to run."""

    @property
    @abstractmethod
    def running(self) -> int:
        """How many requests share the steps of the model now."""

    @abstractmethod
    def wait(self, timeout: float) -> bool:
        """Whether the next step, or the end, is there within so many seconds.

        Asking for it will not block then.
        """

    @abstractmethod
    def __next__(self) -> Step: ...

    @abstractmethod
    def close(self) -> None:
        """End the work: the request leaves within one step."""

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class QueuedStream(Stream):
    """A stream whose results wait somewhere until they are taken, one by one."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self._next: object = None
        self._open = True

    @abstractmethod
    def take(self, timeout: float | None = None) -> object:
        """The next result, an exception where the request failed, None at the end.

        Raises:
            queue.Empty: there is none within ``timeout`` seconds.
        """

    @abstractmethod
    def step_of(self, result: object) -> Step: ...

    @abstractmethod
    def leave(self) -> None:
        """Give up what has not been taken; called once."""

    def wait(self, timeout: float) -> bool:
        if self._open and self._next is None:
            try:
                self._next = self.take(timeout)
            except Empty:
                return False
            if self._next is None:
                self.close()
        return True

    def __next__(self) -> Step:
        result = self._next
        if result is None and self._open:
            result = self.take()
        self._next = None
        if result is None or not self._open:
            self.close()
            raise StopIteration
        if isinstance(result, Exception):
            self.close()
            raise result
        return self.step_of(result)

    def close(self) -> None:
        if self._open:
            self._open = False
            self.leave()


def queued_lists(
    take: Callable[[float], object], leave: Callable[[], None], kind: type[T]
) -> Generator[list[T] | None, None, None]:
    """The results of one request where each is a list; closing this ends the work.

    Args:
        take, leave: as of ``QueuedStream``.
        kind: of what is in the lists.

    Yields:
        The lists; None several times a second while there is none.
    """
    try:
        while True:
            try:
                result = take(_LOOK)
            except Empty:
                yield None
                continue
            if result is None:
                return
            if isinstance(result, Exception):
                raise result
            assert isinstance(result, list)
            yield [entry for entry in result if isinstance(entry, kind)]
    finally:
        leave()


async def with_pauses(source: AsyncGenerator[T, None], seconds: float) -> AsyncGenerator[T | None, None]:
    """What a source gives, and None whenever it gave nothing for so long: a sign that it goes on.

    Closing this closes the source, which runs in one context all along.
    """
    loop, context, end = asyncio.get_running_loop(), copy_context(), object()

    async def next_one() -> T | object:
        return await anext(source, end)

    coming: asyncio.Task[Any] | None = None
    try:
        while True:
            coming = loop.create_task(next_one(), context=context)
            while not (await asyncio.wait([coming], timeout=seconds))[0]:
                yield None
            if (item := coming.result()) is end:
                return
            yield item
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.wait([coming])
        await source.aclose()


class TextService(ABC):
    """Continues prompts. Any number of threads may call it.

    What a request gets does not depend on the others: the same prompt, options and seed give the same ids.

    Attributes:
        padding: ids that are no token's, which are never chosen.
    """

    def __init__(self, config: BioGptConfig, tokenizer: BioGptTokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.padding = tokenizer.padding_rows(config.vocab_size)

    @property
    @abstractmethod
    def description(self) -> str:
        """A line for people: in which precision it computes, and on what."""

    @property
    @abstractmethod
    def counts(self) -> Counts:
        """What it has written since it was made."""

    @abstractmethod
    def health(self) -> Health: ...

    @abstractmethod
    def close(self, timeout: float = 0.0) -> None:
        """Take no more requests, let those at hand go on for so many seconds, and end the rest."""

    @abstractmethod
    def stream(
        self, prompt: str | Prompt, options: GenerationOptions | None = None, session: Hashable = None
    ) -> Stream:
        """Continue a prompt; greedily unless the options say otherwise.

        Several samples come one after another, told apart by ``Step.sequence``. Beam search streams the best
        text at each step, which may change altogether; its last step is the best result.

        Args:
            prompt: any text, or one that ``prompt`` has encoded; an empty one gives text that starts
                anywhere.
            options: ``GenerationOptions()`` when None.
            session: whose request it is. A prompt that begins as a recent one of the same session is read
                faster, and gives the same text; None shares nothing.

        Returns:
            An iterator of one step a token, already in line; its ``close()`` ends the work within one step.
            With stop strings a stream waits for its reader at each token, so one thread that reads several in
            turn must not open more than run at once.

        Raises:
            TypeError: at once: the prompt is not a string.
            ValueError: at once: prompt and ``max_new_tokens`` are more than the model's positions, or the
                model cannot write a word that has a rule; at once or from the iterator: they are more than
                the memory for its cache.
            QueueFull: at once or from the iterator: too many requests wait already; TooMany: of this client
                (``turns.CLIENT``).
            RuntimeError: at once: the service is stopping; from the iterator: it has stopped, or ``Lost``.
            FloatingPointError: from the iterator: the model's numbers overflow in this precision.
        """

    @abstractmethod
    def grow(
        self, prompt: Prompt, options: TreeOptions, session: Hashable = None
    ) -> Generator[list[Node] | None, None, None]:
        """Grow a tree of continuations; closing this ends the work within one step.

        Args:
            prompt: as ``reading`` gives it.
            session: as of ``stream``.

        Yields:
            The nodes of a depth, one after another; None several times a second while there are none.

        Raises:
            ValueError, QueueFull, TooMany, RuntimeError, FloatingPointError: as of ``stream``.
        """

    @abstractmethod
    def beams(
        self, prompt: Prompt, options: GenerationOptions, session: Hashable = None
    ) -> Generator[list[Hypothesis] | None, None, None]:
        """Beam search, with all that it holds; closing this ends the work within one step.

        Args:
            prompt: as ``reading`` gives it.
            options: with several ``num_beams``; stop strings change nothing.
            session: as of ``stream``.

        Yields:
            After each step, what ``biogpt.generation.search.Beams.advance`` returns; None several times a
            second while there is nothing.

        Raises:
            ValueError, QueueFull, TooMany, RuntimeError, FloatingPointError: as of ``stream``.
        """

    @abstractmethod
    def ask(self, work: Callable[..., T], *arguments: object) -> T:
        """What ``work(generator, *arguments)`` returns or raises, run between two steps of the requests.

        One thread owns the model: two that compute at once would wait for each other at every operation.

        Args:
            work: a function of a module, which may use the model of the ``TextGenerator`` it is given, for it
                may run elsewhere.

        Raises:
            RuntimeError: the service is stopping.
        """

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
                f"the prompt has {len(text)} characters, and {limit} positions hold no "
                f"more than {most}; cut it"
            )
        encoding = self.tokenizer.encode(text)
        room = limit - len(encoding.ids)
        return Prompt(text, tuple(encoding.ids), room, offsets=tuple(encoding.offsets))

    def prompt_of_ids(self, ids: Sequence[int]) -> Prompt:
        """A prompt of these very tokens; the start token is put before them where it is missing.

        Raises:
            ValueError: there are none, or more than the model's positions, or the vocabulary lacks one.
        """
        limit, start = self.config.max_position_embeddings, self.tokenizer.eos_token_id
        if not 1 <= len(ids) <= limit:
            raise ValueError(f"{len(ids):,} token ids were given; expected 1 to {limit:,}")
        ids = tuple(ids) if ids[0] == start else (start, *ids)
        text = moses_text(self.tokenizer.words(ids))
        return Prompt(text, ids, limit - len(ids), is_open=not self.tokenizer.ends_word(ids[-1]))

    def continued(self, text: str, ids: Sequence[int]) -> Prompt:
        """The prompt for what comes after a text whose ids are known: as if its run had gone on.

        Args:
            text: all of it, as the reader has it.
            ids: the start token, those of the first prompt and of what was made; an end token is left out.
        """
        is_open = not self.tokenizer.ends_word(ids[-1])
        if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return Prompt(text, tuple(ids), self.config.max_position_embeddings - len(ids), is_open)

    def count(self, text: str) -> int:
        """How many of the model's positions a text takes, the start token included.

        Errors as of ``prompt``.
        """
        return self.prompt(text).length

    def reading(self, prompt: Prompt, tokens: int) -> Prompt:
        """How a prompt is read that so many tokens are to continue: its last word may be open."""
        forms = None if prompt.is_open is not None else self.tokenizer.begun(prompt.text, prompt.ids)
        if forms is None:
            return prompt
        ended, begun = forms
        before = prompt.ids[: -len(ended)]
        ids = (*before, *begun)
        room = prompt.room + prompt.length - len(ids)
        if min(room, prompt.room) < tokens:  # no place to open it, or refused soon
            return prompt
        recent = [prompt.ids[0], *before[1:][-_CONTEXT:]]
        if self.ask(_odds, recent, begun, ended) <= _LEAST_ODDS:
            return prompt
        spans = (*prompt.offsets[: -len(ended)], *self.tokenizer.last_spans(prompt.text, begun))
        return Prompt(prompt.text, ids, room, is_open=True, offsets=spans)


class _Owner(Protocol):
    """A generator, as far as its model is concerned."""

    @property
    def model(self) -> BioGptForCausalLM: ...


def _odds(generator: _Owner, before: list[int], begun: list[int], ended: list[int]) -> float:
    """Natural logarithm of how much likelier some ids are than others after what comes before."""
    return _logprob(generator.model, before, begun) - _logprob(generator.model, before, ended)


@torch.inference_mode()
def _logprob(model: BioGptForCausalLM, before: list[int], ids: list[int]) -> float:
    """Natural logarithm of the probability that ids come after others."""
    row = torch.tensor([before + ids[:-1]], device=model.device)
    logprobs = model(row, logits_to_keep=len(ids)).logits[0].float().cpu().log_softmax(dim=-1)
    return float(logprobs.gather(-1, torch.tensor(ids)[:, None]).sum())
