"""Many requests on one model: slots that join and leave between steps, and who runs in each.

A step gives every running slot its next token, and reads one stretch of one prompt, or of as many as the
runner reads at once, so that a long prompt holds up nobody for long. What a slot gets depends on nothing but
itself, to the bit: a prompt is read in stretches of a fixed size from position 0 on, a runner promises the
same of each row (``biogpt.runners.runner``), and each slot draws from its own random numbers.

Nothing here locks or waits, but for the short ``lock`` around the lists; one thread at a time may call
``step``.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock

import torch
from torch import Tensor

from biogpt.generation.search import Choice, Hypothesis, Search, Token
from biogpt.generation.tree import Node, Tree
from biogpt.model.cache import KVCache
from biogpt.runners import ModelRunner
from biogpt.serving.prompts import PromptStore
from biogpt.serving.turns import Turns, has_share

logger = logging.getLogger(__name__)

_TOGETHER = 2  # steps that may fail in a row before a slot is computed alone, to find out which one it is

Result = Token | list[Hypothesis] | list[Node]


class QueueFull(RuntimeError):
    """So many requests wait already that another one is refused; try again later."""


class TooMany(QueueFull):
    """So many requests of one client are there already that its next one is refused; others are not."""


class Stopping(RuntimeError):
    """The process has been told to end, and what was asked of it is not done."""

    def __init__(self) -> None:
        super().__init__("The server is stopping; try again in a minute")


class Slot:
    """One request: its search, its cache, and where its results go. It joins and leaves the engine whole.

    Args:
        search: what to make.
        session: whose request it is; its prompt may be reused by the same session. None keeps nothing.
        lead: results that may be made before they are taken from ``results``; None is no limit.
        client: who takes turns with others, and leaves room for them; None is bound by nothing.

    Attributes:
        results: what was made, in order; an exception when the request failed, None after the last.
        first_after: seconds from its making to its first result, 0 before.
        tokens: results that are tokens.
        taken: how many results the reader has taken; see ``lead``.
        lost: what the model must be fed again, prompt first, after a step that failed; None if nothing is.
        failures: steps that failed since the last result.
        cancelled: set by anyone at any time: the slot leaves before the next step.
        skip: set by the reader: the sample ends here, by what its text says; needs ``lead`` 1 to be in time.
    """

    def __init__(
        self,
        search: Search | Tree,
        session: Hashable = None,
        lead: int | None = None,
        client: Hashable = None,
    ) -> None:
        self._begun = time.monotonic()
        self.search = search
        self.session = session
        self.lead = lead
        self.client = client
        self.results: SimpleQueue[Result | Exception | None] = SimpleQueue()
        self.made = self.taken = self.failures = self.tokens = 0
        self.first_after = 0.0
        self.lost: deque[list[list[int]]] | None = None
        self.cancelled = False
        self.skip = False
        self.cache: KVCache | None = None
        try:
            hash(session)
        except TypeError as error:
            raise TypeError(
                f"session is {session!r}, which has no hash; give a string, a number or a tuple"
            ) from error

    @property
    def is_held_back(self) -> bool:
        return self.lead is not None and self.made - self.taken >= self.lead

    @property
    def is_read(self) -> bool:
        """Whether the model has read the prompt."""
        if self.lost is None:
            return self.made > 0
        assert self.cache is not None
        return self.cache.length >= len(self.search.prompt_ids)

    @property
    def feed(self) -> list[list[int]]:
        """The tokens of its rows that the model must read next; empty when there are none."""
        return self.lost[0] if self.lost else self.search.feed

    def put(self, result: Result) -> None:
        if not self.made:
            self.first_after = time.monotonic() - self._begun
        self.made += 1
        self.tokens += isinstance(result, Token)
        self.failures = 0
        self.results.put(result)

    def fail(self, error: Exception) -> None:
        """Give the reader an error, and leave before the next step."""
        self.results.put(error)
        self.cancelled = True


@dataclass
class Counts:
    """What engines have written since they began.

    Attributes:
        texts: that have their first token.
        tokens: of all of them.
        first_seconds: until those first tokens, waiting included, summed.
    """

    texts: int = 0
    tokens: int = 0
    first_seconds: float = 0.0

    def add(self, other: "Counts") -> None:
        self.texts += other.texts
        self.tokens += other.tokens
        self.first_seconds += other.first_seconds


class Engine:
    """The slots of one model, and their steps.

    Args:
        runner: computes; nobody else may use it.
        cache_bytes: most memory for keys and values, those kept for reuse included; as the runner advises
            when None.
        max_running, max_waiting: most slots that run at once, as the runner advises when None, and that then
            wait for one to leave; of one client half as many in all.
    """

    def __init__(
        self,
        runner: ModelRunner,
        cache_bytes: int | None = None,
        max_running: int | None = None,
        max_waiting: int = 64,
    ) -> None:
        self.runner = runner
        self.cache_bytes = runner.memory() if cache_bytes is None else cache_bytes
        runner.limit(self.cache_bytes)
        self.max_running = runner.most if max_running is None else max_running
        self.max_waiting = max_waiting
        self.lock = Lock()  # of the two lists
        self.waiting: deque[Slot] = deque()
        self.running: list[Slot] = []
        self._turns = Turns()  # of those who wait to run
        self._reading = Turns()  # of those whose prompts are read
        self.prompts = PromptStore(runner.stretch)
        self.counts = Counts()  # of those that have left

    def submit(self, slot: Slot) -> None:
        """Let a slot wait for its turn.

        Raises:
            ValueError: it could never run within ``cache_bytes``.
            QueueFull: too many slots wait already; TooMany: of this client.
        """
        need = self.need(slot)
        if need > self.cache_bytes:
            raise ValueError(
                f"the request needs {need / 1e6:.1f} MB of cache for {slot.search.rows} "
                f"rows of {self._length(slot)} "
                f"positions, and the limit is {self.cache_bytes / 1e6:.1f} MB; ask for fewer tokens or beams"
            )
        with self.lock:
            self._leave(self.waiting)
            # Counted together: of those that came since the last step, some will not have to wait.
            most = self.max_running + self.max_waiting
            own = sum(other.client == slot.client for other in (*self.running, *self.waiting))
            if slot.client is not None and own >= max(1, most // 2):
                raise TooMany(
                    f"{own} of your requests are running or waiting, the most allowed; try again later"
                )
            if len(self.running) + len(self.waiting) >= most:
                raise QueueFull(
                    f"{len(self.running)} requests are running and {len(self.waiting)} are waiting, "
                    "the most allowed; try again later"
                )
            self.waiting.append(slot)

    def position(self, slot: Slot) -> int:
        """Its place in line: 0 is running, or ended; 1 is the next to run."""
        with self.lock:
            return self._in_turn().index(slot) + 1 if slot in self.waiting else 0

    def need(self, slot: Slot) -> int:
        """Bytes of cache that a slot takes while it runs."""
        return self.runner.cache_bytes(slot.search.rows, self._length(slot))

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        with self.lock:
            return (
                any(slot.cancelled or not slot.is_held_back for slot in self.running)
                or any(slot.cancelled for slot in self.waiting)
                or self._next() is not None
            )

    @property
    def is_busy(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self.running or self.waiting)

    @torch.inference_mode()
    def step(self) -> None:
        """Let slots leave and join, read a stretch of a prompt, and make one token in every other slot.

        A slot whose step fails is read again from its ids, in the very same steps, and goes on. If it fails
        again right away, alone, it is given the error and leaves.

        Raises:
            Exception: the model failed, and a slot has left for it.
        """
        errors: list[Exception] = []
        with self.lock:
            self._leave(self.running, self.waiting)
            self._join(errors)
            # A reader sets ``skip`` before it says ``taken``: who is seen to go on is seen to skip.
            active = [slot for slot in self.running if not slot.is_held_back]
            for slot in active:
                if slot.skip:
                    slot.skip = False
                    slot.lost = None if slot.is_read else deque()
                    slot.search.end_sequence()
            active = [slot for slot in active if not slot.search.done and not slot.cancelled]
        # Looked up before any token is made: what a slot gets now is for its next step.
        fed = [slot for slot in active if slot.is_read and slot.feed]
        kept = [(slot, slot.search.kept) for slot in active if slot.is_read and slot.search.kept is not None]
        reading = [slot for slot in active if not slot.is_read]
        together = [slot for slot in fed if slot.failures < _TOGETHER]
        for slots in (together, *([slot] for slot in fed if slot.failures >= _TOGETHER)):
            if slots:
                self._try(self._make_tokens, slots, errors)
        for slot, logits in kept:
            self._advance(slot, logits)
        if reading:
            self._try(self._read, self._next_to_read(reading), errors)
        with self.lock:
            self._leave(self.running)
        if errors:
            raise errors[0]

    def _try(self, compute: Callable[[list[Slot]], None], slots: list[Slot], errors: list[Exception]) -> None:
        """Compute something for slots; they begin again if that fails, or leave with the error."""
        try:
            compute(slots)
        except Exception as error:
            logger.exception("a step of the model failed")
            for slot in slots:
                slot.failures += 1
                if slot.failures > 1 and len(slots) == 1:
                    slot.fail(error)
                    errors.append(error)
                else:
                    slot.lost = deque(slot.search.fed) if slot.made else None
                    self._open(slot, errors)

    def fail(self, error: Exception) -> None:
        """Give every slot that runs the error, and let them go."""
        with self.lock:
            for slot in self.running:
                slot.fail(error)
            self._leave(self.running)

    def tell(self, error: Exception) -> None:
        """Give every slot the error; they leave before the next step."""
        with self.lock:
            for slot in (*self.running, *self.waiting):
                slot.fail(error)

    def run(self, search: Search | Tree) -> Generator[Result, None, None]:
        """The results of one search, each computed when asked for; other slots advance on the way."""
        slot = Slot(search, lead=1)
        self.submit(slot)
        try:
            while True:
                while slot.results.empty():
                    self.step()
                result = slot.results.get()
                if result is None:
                    return
                if isinstance(result, Exception):
                    raise result
                slot.taken += 1
                yield result
        finally:
            slot.cancelled = True
            self.drop()

    def drop(self, everyone: bool = False) -> None:
        """Let the slots leave that were cancelled, or all of them.

        Not while another thread is in ``step``.
        """
        if everyone:
            self.tell(Stopping())
        with self.lock:
            self._leave(self.running, self.waiting)

    def _leave(self, *lists: "list[Slot] | deque[Slot]") -> None:
        """Drop the slots that ended or were cancelled; their memory is free at once."""
        for slots in lists:
            for slot in [slot for slot in slots if slot.cancelled or slot.search.done]:
                slots.remove(slot)
                self.counts.add(Counts(slot.made > 0, slot.tokens, slot.first_after))
                slot.results.put(None)
                if slot.cache is not None:
                    self.runner.close(slot.cache)

    def _join(self, errors: list[Exception]) -> None:
        """Let those that wait run, in turn, while there is room."""
        while (slot := self._next()) is not None:
            self.waiting.remove(slot)
            self._turns.took(slot.client)
            self.running.append(slot)
            self.prompts.shrink(self._free)
            self._open(slot, errors)

    def _open(self, slot: Slot, errors: list[Exception]) -> None:
        """Give a slot an empty cache, in place of the one that it has."""
        try:
            if slot.cache is not None:
                self.runner.close(slot.cache)
            slot.cache = self.runner.open(slot.search.rows, self._length(slot))
            self.prompts.recall(slot.session, slot.search.prompt_ids, slot.cache)
        except Exception as error:  # no memory is left: it is this request's alone
            logger.exception("a request has got no cache")
            slot.fail(error)
            errors.append(error)

    def _next(self) -> Slot | None:
        """Who could run now. One that has to wait for memory is not passed by others."""
        if not self.waiting or len(self.running) >= self.max_running:
            return None
        slot = next(filter(self._has_share, self._in_turn()), None)
        return slot if slot is not None and self.need(slot) <= self._free else None

    def _in_turn(self) -> list[Slot]:
        return self._turns.order(self.waiting, _client)

    def _has_share(self, slot: Slot) -> bool:
        """Whether its client leaves enough to others, of places and of memory."""
        own = [other for other in self.running if other.client == slot.client]
        if slot.client is None or not own:
            return True
        need = self.need(slot)
        return has_share(len(own), self.max_running - len(self.running)) and has_share(
            sum(map(self.need, own)) + need, self._free - need
        )

    @property
    def _free(self) -> int:
        """Bytes that no running slot may take."""
        return self.cache_bytes - sum(self.need(slot) for slot in self.running)

    def _length(self, slot: Slot) -> int:
        # The last token made is never fed back, so one position more than needed at most.
        return len(slot.search.prompt_ids) + slot.search.options.max_new_tokens

    def _next_to_read(self, reading: list[Slot]) -> list[Slot]:
        """Whose prompts are read in this step: in turn, and together as far as the runner does that."""
        order = self._reading.order(reading, _client)
        if order[0].failures < _TOGETHER:
            order = [slot for slot in order if slot.failures < _TOGETHER]
            order = order[: self.runner.together(*_prompts(order))]
        else:
            order = order[:1]
        for slot in order:
            self._reading.took(slot.client)
        return order

    def _read(self, slots: list[Slot]) -> None:
        """Read a stretch of the prompt of each of some slots."""
        prompts, caches = _prompts(slots)
        ends = [cache.length + self.runner.stretch for cache in caches]
        found = self.runner.read_together(prompts, caches)
        for slot, cache, end, logits in zip(slots, caches, ends, found, strict=True):
            ids = slot.search.prompt_ids
            if slot.session is not None and end <= len(ids):
                self.prompts.keep(slot.session, ids[:end], cache, self._free)
            if logits is not None and slot.lost is None:
                self._advance(slot, logits)
            elif logits is not None:
                if slot.search.rows > 1:
                    cache.reorder(torch.zeros(slot.search.rows, dtype=torch.int64, device=cache.device))
                slot.lost = slot.lost or None

    def _make_tokens(self, slots: list[Slot]) -> None:
        caches = [slot.cache for slot in slots if slot.cache is not None]
        ids = [row[0] for slot in slots for row in slot.feed]
        found = self.runner.step(ids, caches, [slot.search.rules for slot in slots])
        for _ in self.runner.each(lambda pair: self._made(*pair), zip(slots, found, strict=True)):
            pass

    def _made(self, slot: Slot, found: Tensor | Choice) -> None:
        if slot.lost is None:
            return self._advance(slot, found)
        slot.lost.popleft()  # what comes after it is known
        slot.lost = slot.lost or None
        return None

    def _advance(self, slot: Slot, found: Tensor | Choice) -> None:
        assert slot.cache is not None
        if not math.isfinite(found.logprob if isinstance(found, Choice) else float(found.sum())):
            kind = self.runner.precision
            advice = "load it in bfloat16 or float32" if kind == "float16" else "its weights may be damaged"
            return slot.fail(FloatingPointError(f"the model's logits are not finite in {kind}; {advice}"))
        try:
            slot.put(slot.search.advance(found, slot.cache))
        except Exception as error:  # of whatever kind: it is this request's alone
            logger.exception("a request failed")
            slot.fail(error)
        return None


def _prompts(slots: list[Slot]) -> tuple[list[list[int]], list[KVCache]]:
    return [slot.search.prompt_ids for slot in slots], [
        slot.cache for slot in slots if slot.cache is not None
    ]


def _client(slot: Slot) -> Hashable:
    return slot.client
