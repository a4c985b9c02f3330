"""Many requests on one model: slots that join and leave between steps, and what each step computes.

A step gives every running slot its next token, all in one pass through the linear layers, and reads one chunk of one
prompt, so that a long prompt holds up nobody for long. What a slot gets depends on nothing but itself, to the bit:

- A prompt is read alone, in chunks of a fixed size from position 0 on: the shapes follow from the prompt.
- Attention is computed row by row, over the row's own keys and values.
- The rest of the network works on rows, and only in numbers of rows for which the kernels of this machine give each
  row the very same bits (``steady_sizes``, found by trying); a step is padded to the next such number that is not
  slower than a greater one (``swift_sizes``).
- Each slot draws from its own random numbers.

Where torch computes with two threads, each makes the tokens of half of many slots by itself (``side_by_side``), if
the bits are those of both together, unless large float weights would be read twice; and a long prompt that is alone is
read two chunks at a time.

Nothing here locks or waits, but for the short ``lock`` around the lists; one thread at a time may call ``step``.
"""

import logging
import math
import os
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from copy import copy
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

import torch
from torch import Tensor

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.generation.search import Hypothesis, Search, Token
from biogpt.model.cache import KVCache
from biogpt.model.decoder import DecoderLayer
from biogpt.runners.byte_cache import Int8KVCache, Pages
from biogpt.runners.layers import Int8Linear, PackedLinear
from biogpt.runners.precision import has_pair, side_by_side
from biogpt.runners.step import Step, step_program

logger = logging.getLogger(__name__)

CHUNK = 128  # positions of a prompt that are read at once
_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)  # numbers of rows that are computed together
_ROUNDED = 2**18  # numbers less precise than float32 that kernels are compared by
_TIMED_LAYERS = 4  # more weights than caches hold, so that they come from memory as they do in a step
_PAIR_ROWS = 8  # from which on two threads with half of the rows each are faster than both with all
_SHARE_OF_MEMORY = 0.25  # for caches
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

Result = Token | list[Hypothesis]


class QueueFull(RuntimeError):
    """So many requests wait already that another one is refused; try again later."""


class Slot:
    """One request: its search, its cache, and where its results go. It joins and leaves the engine whole.

    Args:
        search: what to make.
        session: whose request it is; its prompt may be reused by the same session. None keeps nothing.
        lead: results that may be made before they are taken from ``results``; None is no limit.

    Attributes:
        results: what was made, in order; an exception when the request failed, None after the last.
        taken: how many results the reader has taken; see ``lead``.
        cancelled: set by anyone at any time: the slot leaves before the next step.
        skip: set by the reader: the sample ends here, by what its text says; needs ``lead`` 1 to be in time.
    """

    def __init__(self, search: Search, session: Hashable = None, lead: int | None = None) -> None:
        self.search = search
        self.session = session
        self.lead = lead
        self.results: SimpleQueue[Result | Exception | None] = SimpleQueue()
        self.made = self.taken = 0
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

    def put(self, result: Result) -> None:
        self.made += 1
        self.results.put(result)

    def fail(self, error: Exception) -> None:
        """Give the reader an error, and leave before the next step."""
        self.results.put(error)
        self.cancelled = True


class Engine:
    """The slots of one model, and their steps.

    Args:
        model: in evaluation mode; its weights stay as they are from the first step on.
        cache_bytes: most memory for keys and values, those kept for reuse included; a quarter of the machine's when
            None.
        max_running, max_waiting: most slots that run at once, and that then wait for one to leave.

    Raises:
        ValueError: the model is in training mode.
    """

    def __init__(
        self,
        model: BioGptForCausalLM,
        cache_bytes: int | None = None,
        max_running: int = 16,
        max_waiting: int = 64,
    ) -> None:
        if model.training:
            raise ValueError(
                "the model is in training mode, where dropout is random; call model.eval() first"
            )
        self.model = model
        self.cache_bytes = _share_of_memory(model.device) if cache_bytes is None else cache_bytes
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.lock = Lock()  # of the two lists
        self.waiting: deque[Slot] = deque()
        self.running: list[Slot] = []
        self.prompts = PromptStore()
        self.device, self.dtype = model.device, model.dtype
        self._cache_dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        int8 = isinstance(model.output_projection, Int8Linear) and Int8KVCache.fits(model.config)
        self._pages = Pages.within(model.config, self.cache_bytes) if int8 else None
        self._kind = Int8KVCache if int8 else KVCache
        self._sizes: tuple[int, ...] = ()
        self._pairs = False  # whether two threads may compute half of the rows each
        self._program: Step | None = None

    def prepare(self) -> None:
        """Compile the step, and find how many rows it may take: a second for a large model, here or at its first token."""
        if self._program is None:
            self._sizes = swift_sizes(self.model, steady_sizes(self.model))
            # Large float weights are too much to be read by each of two threads.
            may = self.device.type == "cpu" and not isinstance(self.model.output_projection, PackedLinear)
            self._pairs = may and has_pair() and is_steady_alone(self.model, self._sizes)
            self._program = step_program(self.model.biogpt, self._kind)

    def submit(self, slot: Slot) -> None:
        """Let a slot wait for its turn.

        Raises:
            ValueError: it could never run within ``cache_bytes``.
            QueueFull: too many slots wait already.
        """
        need = self.need(slot)
        if need > self.cache_bytes:
            raise ValueError(
                f"the request needs {need / 1e6:.1f} MB of cache for {slot.search.rows} rows of {self._length(slot)} "
                f"positions, and the limit is {self.cache_bytes / 1e6:.1f} MB; ask for fewer tokens or beams"
            )
        with self.lock:
            self._leave(self.waiting)
            # Counted together: of those that came since the last step, some will not have to wait.
            if len(self.running) + len(self.waiting) >= self.max_running + self.max_waiting:
                raise QueueFull(
                    f"{len(self.running)} requests are running and {len(self.waiting)} are waiting, "
                    "the most allowed; try again later"
                )
            self.waiting.append(slot)

    def position(self, slot: Slot) -> int:
        """Its place in line: 0 is running, or ended; 1 is the next to run."""
        with self.lock:
            return self.waiting.index(slot) + 1 if slot in self.waiting else 0

    def need(self, slot: Slot) -> int:
        """Bytes of cache that a slot takes while it runs."""
        return self._kind.size(self.model.config, slot.search.rows, self._length(slot), self._cache_dtype)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        with self.lock:
            return (
                any(slot.cancelled or not slot.is_held_back for slot in self.running)
                or any(slot.cancelled for slot in self.waiting)
                or self._has_room()
            )

    @property
    def is_busy(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self.running or self.waiting)

    @torch.inference_mode()
    def step(self) -> None:
        """Let slots leave and join, read a chunk of one prompt, and make one token in every other slot.

        Raises:
            Exception: the model failed; every running slot has then been given the error and has left.
        """
        try:
            with self.lock:
                self._leave(self.running, self.waiting)
                self._join()
                # A reader sets ``skip`` before it says ``taken``: who is seen to go on is seen to skip.
                active = [slot for slot in self.running if not slot.is_held_back]
                for slot in active:
                    if slot.skip:
                        slot.skip = False
                        slot.search.end_sequence()
                active = [slot for slot in active if not slot.search.done]
            fed = [slot for slot in active if slot.search.feed]
            kept = [(slot, slot.search.kept) for slot in active if slot.search.kept is not None]
            reading = [slot for slot in active if not slot.made]
            each = side_by_side if self._pairs else map
            for _ in each(self._make_tokens, self._groups(fed)):
                pass
            for slot, own in kept:
                self._advance(slot, own)
            if reading:
                self._read(reading[0], is_alone=len(active) == 1)
            with self.lock:
                self._leave(self.running)
        except Exception as error:
            self.fail(error)
            raise

    def fail(self, error: Exception) -> None:
        """Give every slot that runs the error, and let them go."""
        with self.lock:
            for slot in self.running:
                slot.fail(error)
            self._leave(self.running)

    def run(self, search: Search) -> Generator[Result, None, None]:
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
        """Let the slots leave that were cancelled, or all of them; not while another thread is in ``step``."""
        with self.lock:
            for slot in (*self.running, *self.waiting) if everyone else ():
                slot.fail(RuntimeError("the service has stopped, and dropped the request"))
            self._leave(self.running, self.waiting)

    def _leave(self, *lists: "list[Slot] | deque[Slot]") -> None:
        """Drop the slots that ended or were cancelled; their memory is free at once."""
        for slots in lists:
            for slot in [slot for slot in slots if slot.cancelled or slot.search.done]:
                slots.remove(slot)
                slot.results.put(None)
                if slot.cache is not None:
                    slot.cache.release()

    def _join(self) -> None:
        """Let those that wait run, first come, first served, while there is room."""
        while self._has_room():
            slot = self.waiting.popleft()
            self.running.append(slot)
            self.prompts.shrink(self._free)
            slot.cache = self._cache(self._length(slot))
            self.prompts.recall(slot.session, slot.search.prompt_ids, slot.cache)

    def _has_room(self) -> bool:
        """Whether one waits that could run."""
        if not self.waiting or len(self.running) >= self.max_running:
            return False
        return self.need(self.waiting[0]) <= self._free

    @property
    def _free(self) -> int:
        """Bytes that no running slot may take."""
        return self.cache_bytes - sum(self.need(slot) for slot in self.running)

    def _length(self, slot: Slot) -> int:
        # The last token made is never fed back, so one position more than needed at most.
        return len(slot.search.prompt_ids) + slot.search.options.max_new_tokens

    def _cache(self, length: int) -> KVCache:
        config = self.model.config
        if self._pages is not None:
            return Int8KVCache(config, 1, length, self._pages)
        return KVCache(config, 1, length, self.device, self._cache_dtype)

    def _read(self, slot: Slot, is_alone: bool) -> None:
        """Read one chunk of a prompt; two, side by side, where that changes no bit and holds nobody up."""
        ids, cache = slot.search.prompt_ids, slot.cache
        assert cache is not None
        starts = range(cache.length, len(ids), CHUNK)
        chunks = [torch.tensor([ids[start : start + CHUNK]], device=self.device) for start in starts[:2]]
        if len(chunks) == 2 and is_alone and isinstance(cache, Int8KVCache) and has_pair():
            hidden = self._read_two(chunks, cache)
        else:
            chunks = chunks[:1]
            hidden = self.model.biogpt(chunks[0], past_key_values=cache).last_hidden_state
        for end in (start + CHUNK for start in starts[: len(chunks)]):
            if slot.session is not None and end <= len(ids):
                self.prompts.keep(slot.session, ids[:end], cache, self._free)
        if cache.length == len(ids):
            self._advance(slot, self.model.output_projection(hidden[:, -1]).float().cpu())

    def _read_two(self, chunks: Sequence[Tensor], cache: Int8KVCache) -> Tensor:
        """Hidden states of the second of two chunks; it reads in each layer what the first has just written there."""
        first, second = copy(cache), copy(cache)
        second.length += chunks[0].shape[1]
        cache.reserve(sum(chunk.shape[1] for chunk in chunks))
        written = [Event() for _ in self.model.biogpt.layers]

        def write_first(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            both = cache.write(layer, keys, values)
            written[layer].set()
            return both

        def write_second(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            written[layer].wait()
            return Int8KVCache.write(second, layer, keys, values)

        def read(part: tuple[Tensor, KVCache]) -> Tensor:
            try:
                return self.model.biogpt(part[0], past_key_values=part[1]).last_hidden_state
            finally:
                for event in written:  # whatever happened, nobody waits for it
                    event.set()

        first.write, second.write = write_first, write_second  # type: ignore[method-assign]
        *_, hidden = side_by_side(read, list(zip(chunks, (first, second), strict=True)))
        cache.advance(sum(chunk.shape[1] for chunk in chunks))
        return hidden

    def _groups(self, slots: Sequence[Slot]) -> list[list[Slot]]:
        """Slots that a step computes together: as many rows as are steady, or half of all, or one slot that has more."""
        if not slots:
            return []
        self.prepare()
        most, count = self._sizes[-1], sum(slot.search.rows for slot in slots)
        if self._pairs and has_pair() and count >= _PAIR_ROWS:
            most = min(most, -(-count // 2))
        groups: list[list[Slot]] = []
        rows = 0
        for slot in slots:
            if not groups or rows + slot.search.rows > most:
                groups.append([])
                rows = 0
            groups[-1].append(slot)
            rows += slot.search.rows
        return groups

    def _make_tokens(self, slots: Sequence[Slot]) -> None:
        rows = [slot.search.rows for slot in slots]
        for slot, own in zip(slots, self._next_logits(slots).split(rows), strict=True):
            self._advance(slot, own)

    def _next_logits(self, slots: Sequence[Slot]) -> Tensor:
        """Run what the slots feed through the model; [R, V] float32 logits on the CPU."""
        ids = [row[0] for slot in slots for row in slot.search.feed]
        padded = next((size for size in self._sizes if size >= len(ids)), len(ids))
        input_ids = torch.tensor(ids + [0] * (padded - len(ids)), device=self.device)
        caches = [slot.cache for slot in slots if slot.cache is not None]
        assert self._program is not None
        hidden = self._program(input_ids, caches)
        return self.model.output_projection(hidden)[: len(ids)].float().cpu()

    def _advance(self, slot: Slot, logits: Tensor) -> None:
        assert slot.cache is not None
        if not math.isfinite(float(logits.sum())):
            kind = "int8" if self._pages else str(self.dtype).removeprefix("torch.")
            advice = "load it in bfloat16 or float32" if kind == "float16" else "its weights may be damaged"
            return slot.fail(FloatingPointError(f"the model's logits are not finite in {kind}; {advice}"))
        try:
            slot.put(slot.search.advance(logits, slot.cache))
        except Exception as error:  # of whatever kind: it is this request's alone
            logger.exception("a request failed")
            slot.fail(error)
        return None


class PromptStore:
    """Keys and values of the prompts that sessions sent lately, in whole chunks.

    A chunk is found by its session and by every token up to its end, and is given back in the bits it was computed
    in; computing it again would take the same shapes and give the same bits. So reuse never changes a result.
    """

    def __init__(self) -> None:
        self._chunks: OrderedDict[tuple[Hashable, tuple[int, ...]], list[Tensor]] = OrderedDict()
        self.bytes = 0

    def keep(self, session: Hashable, ids: Sequence[int], cache: KVCache, room: int) -> None:
        """Keep the last chunk of the positions ``ids`` that a cache of one row holds.

        ``room`` bytes must suffice for it and for the chunks before it, without which it is of no use.
        """
        key = (session, tuple(ids))
        self._touch(session, ids)
        if key in self._chunks:
            return
        chunk = cache.copy(len(ids) - CHUNK, len(ids))
        size = sum(part.nbytes for part in chunk)
        if size * len(ids) // CHUNK > room:
            return
        self.shrink(room - size)
        self._chunks[key] = chunk
        self.bytes += size
        self._touch(session, ids)

    def recall(self, session: Hashable, ids: Sequence[int], cache: KVCache) -> None:
        """Fill an empty cache with the chunks that are known; the last token is left to be read in any case."""
        while session is not None and cache.length + CHUNK < len(ids):
            key = (session, tuple(ids[: cache.length + CHUNK]))
            if key not in self._chunks:
                break
            cache.append(self._chunks[key])
        self._touch(session, ids[: cache.length])

    def _touch(self, session: Hashable, ids: Sequence[int]) -> None:
        """Forget the chunks of these positions after all others, and the first of them last."""
        for end in range(len(ids), 0, -CHUNK):
            if (key := (session, tuple(ids[:end]))) in self._chunks:
                self._chunks.move_to_end(key)

    def shrink(self, limit: int) -> None:
        """Forget the chunks that were not used for longest, until no more than ``limit`` bytes are held."""
        while self._chunks and self.bytes > limit:
            _, chunk = self._chunks.popitem(last=False)
            self.bytes -= sum(part.nbytes for part in chunk)


@torch.inference_mode()
def steady_sizes(model: BioGptForCausalLM) -> tuple[int, ...]:
    """Numbers of rows, in rising order, at which each row's bits are the same, whatever its place and company.

    Matrix kernels add up in another order for one row than for eight. What this machine's do is tried here, with
    every layer shape of the model; the most rows alone are always steady, or else one row is.
    """
    most = _SIZES[-1]
    steady = set(_SIZES)
    for part, rows, full in _probes(model):
        if not torch.equal(part(rows.flip(0)).flip(0), full):
            return (1,)
        for size in _SIZES[:-1]:
            for first in (0, most - size):
                if not torch.equal(part(rows[first : first + size]), full[first : first + size]):
                    steady.discard(size)
    return tuple(sorted(steady))


@torch.inference_mode()
def swift_sizes(model: BioGptForCausalLM, sizes: Sequence[int]) -> tuple[int, ...]:
    """Those numbers of rows that no greater one beats: oneDNN may compute four rows faster than one or two."""
    if not isinstance(model.output_projection, PackedLinear):
        return tuple(sizes)
    layers = list(model.biogpt.layers)[:_TIMED_LAYERS]
    few = [size for size in sizes if size <= _PAIR_ROWS]
    hidden = torch.ones(_SIZES[-1], model.config.hidden_size, dtype=model.dtype)

    def seconds(size: int) -> float:
        start = time.perf_counter()
        for layer in layers:
            assert isinstance(layer, DecoderLayer)
            layer.feed_forward(hidden[:size])
        return time.perf_counter() - start

    rounds = [[seconds(size) for size in few] for _ in range(7)]
    usual = [statistics.median(times) for times in zip(*rounds, strict=True)]
    slow = [size for place, size in enumerate(few) if usual[place] > min(usual[place:])]
    return tuple(size for size in sizes if size not in slow)


@torch.inference_mode()
def is_steady_alone(model: BioGptForCausalLM, sizes: Sequence[int]) -> bool:
    """Whether one of two threads (``side_by_side``) gives rows the bits that both together do, for all these sizes."""
    for part, rows, full in _probes(model):
        inputs = [rows[:size] for size in (*sizes, sizes[-1])]  # two at least
        for found in side_by_side(part, inputs):
            if not torch.equal(found, full[: len(found)]):
                return False
    return True


def _probes(model: BioGptForCausalLM) -> Iterator[tuple[Callable[[Tensor], Tensor], Tensor, Tensor]]:
    """Each kind of layer, the most rows for it, and what it makes of them; several times where few bits would differ.

    Sums in another order differ in the last bits of float32, which most numbers show; of bfloat16 numbers, which are
    rounded to 8 bits, very few do.
    """
    body, projection = model.biogpt, model.output_projection
    layer = body.layers[0]
    assert isinstance(layer, DecoderLayer)
    attention = layer.self_attn
    parts: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: torch.cat(attention.query_key_value(layer.self_attn_layer_norm(x)), dim=-1),
        lambda x: attention.out_proj(x),
        lambda x: layer.feed_forward(layer.final_layer_norm(x)),
        lambda x: projection(body.layer_norm(x)),
    )
    random = torch.Generator().manual_seed(0)
    for part in parts:
        missing = 1 if model.dtype == torch.float32 else _ROUNDED
        while missing > 0:
            rows = torch.randn(_SIZES[-1], body.config.hidden_size, generator=random)
            rows = rows.to(model.device, model.dtype)
            full = part(rows)
            yield part, rows, full
            missing -= full.numel()


def _share_of_memory(device: torch.device) -> int:
    """Of the GPU's; or of the machine's, and of what a container may take of it."""
    try:
        if device.type == "cuda":
            return int(_SHARE_OF_MEMORY * torch.cuda.get_device_properties(device).total_memory)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError, RuntimeError):  # not on every system; a GPU may come later
        memory = 2**32
    for path in _CONTAINER_LIMITS:
        text = path.read_text(encoding="ascii").strip() if path.is_file() else "max"
        memory = min(memory, int(text)) if text.isdigit() else memory
    return int(_SHARE_OF_MEMORY * memory)
