"""A runner for CUDA: all rows at fixed places, whole steps captured, the next token chosen on the device.

A step is two programs (``graphs``): one feeds a token to each of the first G rows, one chooses their next
tokens (``choosing``). While the host reads what was chosen, the step after it runs already, on the guess that
every text goes on as it was chosen; a row whose text does not is computed anew, which its bits do not tell.

A row's bits must not tell how many rows or keys a program is for. Linear layers and attention are tried at
the start, in every shape that steps will have, and shapes in which any number differs are left out.

Letters: G rows of a program, K keys, H heads, D width; B prompts, T positions, V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from biogpt.generation.search import Choice, Rules
from biogpt.model.cache import KVCache
from biogpt.model.decoder import POSITION_OFFSET, DecoderLayer
from biogpt.model.heads import LanguageModel
from biogpt.runners.attention import Attention, attention_for, causal, masked
from biogpt.runners.choosing import Chooser, Needs, choice_of
from biogpt.runners.graphs import Capture, GraphCapture, Program, launch_each
from biogpt.runners.plain import PlainRunner
from biogpt.runners.rows import Ahead, Block, RowsCache
from biogpt.runners.steady import steady_sizes

logger = logging.getLogger(__name__)

_MOST_ROWS = 64


class CudaRunner(PlainRunner):
    """Computes on a GPU; with operations that any device has, but for the capture.

    Args:
        model: in evaluation mode.
        capture: makes a program of a function: CUDA graphs when None, or elsewhere the function itself.
        attention: of steps; what the device does best with when None.

    Attributes:
        row_counts: G that programs are for, beside all rows.
        key_counts: K that programs are for, beside the model's length, where attention is ``masked``.
        lengths: T that pieces of prompts are padded to, rising; the last one is the longest piece, by which
            others are held up.
        short: B, prompts of the least length that are read at once.
    """

    row_counts = (1, 4, 16)
    key_counts = (128, 256, 512, 1024)
    lengths = (64, 128, 256, 512)
    short = 4

    def __init__(
        self,
        model: LanguageModel,
        capture: Capture | None = None,
        attention: Attention | None = None,
    ) -> None:
        super().__init__(model)
        self.stretch = self.config.max_position_embeddings  # reading anew is as fast as copying
        self._capture, self._wanted = capture, attention
        self._attention: Attention = masked
        self._limit = self.memory()
        self._state: _State | None = None

    @property
    def most(self) -> int:
        return max(1, min(_MOST_ROWS, self.memory() // self.cache_bytes(1, 1)))

    def cache_bytes(self, rows: int, length: int) -> int:
        """As of ``ModelRunner``; a row is as long as the model, however short its text."""
        return rows * (Block.size(self.config, 1, self.cache_dtype) + Chooser.size(self.config))

    def limit(self, cache_bytes: int) -> None:
        self._limit = cache_bytes

    @torch.inference_mode()
    def prepare(self) -> None:
        self._prepared()

    def prepare_ahead(self) -> None:
        if self.device.type == "cuda" and torch.cuda.is_initialized():  # else it is only there during a call
            self.prepare()

    def _prepared(self) -> "_State":
        if self._state is None:
            if self._capture is None:
                self._capture = GraphCapture(self.device) if self.device.type == "cuda" else launch_each
            rows = max(1, min(_MOST_ROWS, self._limit // self.cache_bytes(1, 1)))
            block = Block(self.config, rows, self.device, self.cache_dtype)
            chooser = Chooser(self.config, len(block.owners), self.device)
            self._state = _State(block, chooser, self.lengths[-1])
            self._linears = [_query_key_value(layer) for layer in self._layers()]
            if self._wanted is not None:
                self._attention = self._wanted
            elif self.device.type == "cuda":
                self._attention = attention_for(block.memory[0], self.model.dtype)
            self._find_shapes(self._state)
        return self._state

    def open(self, rows: int, length: int) -> KVCache:
        with torch.inference_mode():
            return RowsCache(self.config, self._prepared().block, length)

    def together(self, prompts: Sequence[Sequence[int]], caches: Sequence[KVCache]) -> int:
        count = 0
        for ids, cache in zip(prompts[: self.short], caches, strict=False):
            if cache.length or len(ids) > self.lengths[0]:
                break
            count += 1
        return max(1, count)

    def read(self, ids: Sequence[int], cache: KVCache) -> Tensor | None:
        return self.read_together([ids], [cache])[0]

    @torch.inference_mode()
    def read_together(
        self, prompts: Sequence[Sequence[int]], caches: Sequence[KVCache]
    ) -> list[Tensor | None]:
        state = self._prepared()
        starts = [cache.length for cache in caches]
        pieces = [
            list(ids[start : start + self.lengths[-1]]) for ids, start in zip(prompts, starts, strict=True)
        ]
        length = next(length for length in self.lengths if length >= max(map(len, pieces)))
        count = self.short if length == self.lengths[0] and not starts[0] else 1
        length = min(length, state.chooser.limit - starts[0])
        lines = [[0, -1, *[0] * length] for _ in range(count)]  # idle
        for place, (piece, cache) in enumerate(zip(pieces, caches, strict=True)):
            assert isinstance(cache, RowsCache)
            cache.require(1, len(piece))
            padding = [0] * (length - len(piece))
            lines[place] = [cache.rows[0], len(piece) - 1, *piece, *padding]
        found = self._read(state, _Shape(count, length, starts[0]), lines)
        results: list[Tensor | None] = [None] * len(caches)
        for place, (piece, ids, cache) in enumerate(zip(pieces, prompts, caches, strict=True)):
            cache.advance(len(piece))
            if cache.length == len(ids):
                assert isinstance(cache, RowsCache)
                known = torch.tensor(ids, device=self.device)
                state.chooser.history[cache.rows[0], : len(ids)] = known
                results[place] = found[place : place + 1].to("cpu", copy=True)
        return results

    @torch.inference_mode()
    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache], rules: Sequence[Rules | None]
    ) -> list[Tensor | Choice]:
        state = self._prepared()
        state.close_up(self.sizes)
        wanted: list[_Wanted] = []
        rest = list(ids)
        for cache, chosen_by in zip(caches, rules, strict=True):
            assert isinstance(cache, RowsCache)
            cache.require(cache.batch_size, 1)
            known = chosen_by if chosen_by is not None and Chooser.knows(chosen_by) else None
            wanted.append(_Wanted(cache, rest[: cache.batch_size], known))
            rest = rest[cache.batch_size :]
        late = [want for want in wanted if not want.is_there]
        if late:
            self._feed(state, late, by_device=False)
        for want in wanted:
            want.found = want.cache.ahead
            want.cache.advance(1)
        # The host looks at no number of this step before the next one is on its way.
        going_on = [want for want in wanted if want.rules and want.cache.length < want.cache.max_length]
        if going_on:
            self._feed(state, going_on, by_device=True)
        return [want.result() for want in wanted]

    def _feed(self, state: "_State", wanted: "list[_Wanted]", by_device: bool) -> None:
        """One more position for some caches: of known ids, or of those that the device has chosen."""
        chooser, fed = state.chooser, [(row, want) for want in wanted for row in want.cache.rows]
        count = next(size for size in self.sizes if size > max(row for row, _ in fed))
        keys = next(keys for keys in self._keys if keys > max(want.cache.length for want in wanted))
        given = [[chooser.limit, -1] for _ in range(count)]
        for want in wanted:
            for row, token_id in zip(want.cache.rows, want.ids, strict=True):
                given[row] = [want.cache.length, -1 if by_device else token_id]
            if want.rules is not None:
                state.follow(want.cache.rows[0], want.rules)
        chooser.given[:count].copy_(torch.tensor(given), non_blocking=True)
        self._run(state, ("feed", count, keys), partial(self._forward, state, count, keys))
        by_rules = [want.rules for want in wanted if want.rules is not None]
        if by_rules:
            needs = Needs.of(by_rules)
            self._run(state, ("choose", count, *needs), partial(chooser.choose, count, needs))
            out = _Out(chooser.out[:count, : chooser.width(needs)])
        for want in wanted:
            if want.rules is None:
                want.logits = chooser.logits[want.cache.rows].to("cpu", copy=True)
            else:
                known = None if by_device else want.ids[0]
                want.cache.ahead = Ahead(want.cache.length, want.rules, known, out, want.cache.rows[0])

    def _run(self, state: "_State", key: tuple[object, ...], program: Program) -> None:
        if key not in state.programs:
            assert self._capture is not None
            state.programs[key] = self._capture(program)
        state.programs[key]()

    def _forward(self, state: "_State", count: int, keys: int) -> None:
        """Feed a token to each of the first G rows, and write the logits after it."""
        chooser = state.chooser
        places, fed = chooser.places[:count], chooser.fed[:count]
        ids = torch.where(fed >= 0, fed, chooser.ids[:count])
        rows = state.numbers[:count]
        chooser.ids[:count] = ids
        chooser.history[rows, places] = ids
        hidden = self._embed(ids, places)
        attend = self._attention(places, keys, self.model.dtype)
        for layer, linear, memory in zip(self._layers(), self._linears, state.block.memory, strict=True):
            normed = layer.self_attn_layer_norm(hidden)
            parts = linear(normed).view(count, 3, layer.self_attn.heads, -1)  # [G, 3, H, D / H]
            hidden = self._rest_of_layer(layer, hidden, attend(parts, memory))
        chooser.logits[:count] = self._logits(hidden)

    def _read(self, state: "_State", shape: "_Shape", lines: list[list[int]]) -> Tensor:
        """Logits [B, V], on the device until the next call, after a piece of each of B prompts.

        Args:
            lines: for each its row, the index of its last id, -1 where it is idle, and T ids.
        """
        if shape not in state.inputs:
            state.inputs[shape] = _Input(
                torch.zeros(shape.prompts, 2 + shape.length, dtype=torch.int64, device=self.device),
                torch.zeros(shape.prompts, self.config.vocab_size, device=self.device),
            )
        read = state.inputs[shape]
        read.given.copy_(torch.tensor(lines), non_blocking=True)
        self._run(state, ("read", *shape), partial(self._forward_piece, state, shape, read))
        return read.logits

    def _forward_piece(self, state: "_State", shape: "_Shape", read: "_Input") -> None:
        rows, last, ids = read.given[:, 0], read.given[:, 1, None], read.given[:, 2:]
        index, end = state.numbers[: shape.length], shape.start + shape.length
        places = (shape.start + index).masked_fill(index > last, state.chooser.limit)  # [B, T]
        hidden = self._embed(ids, places)
        for layer, linear, memory in zip(self._layers(), self._linears, state.block.memory, strict=True):
            normed = layer.self_attn_layer_norm(hidden)
            parts = linear(normed).view(shape.prompts, shape.length, 3, layer.self_attn.heads, -1)
            query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [B, H, T, D / H]
            memory[:, rows[:, None], :, places] = parts[:, :, 1:].to(memory.dtype)
            if shape.start:
                key, value = memory[:, rows, :, :end]
            mixed = causal(query, key, value).transpose(1, 2).flatten(2)
            hidden = self._rest_of_layer(layer, hidden, mixed)
        ends = hidden[state.numbers[: shape.prompts], last[:, 0].clamp(min=0)]
        read.logits.copy_(self._logits(ends))

    def _embed(self, ids: Tensor, places: Tensor) -> Tensor:
        model = self.model.biogpt
        places = places.clamp(max=self.config.max_position_embeddings - 1)  # of what is idle
        return model.embed_tokens(ids) * model.embed_scale + model.embed_positions(places + POSITION_OFFSET)

    def _rest_of_layer(self, layer: DecoderLayer, hidden: Tensor, mixed: Tensor) -> Tensor:
        hidden = hidden + layer.self_attn.out_proj(mixed)
        return hidden + layer.feed_forward(layer.final_layer_norm(hidden))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.output_projection(self.model.biogpt.layer_norm(hidden)).float()

    def _layers(self) -> list[DecoderLayer]:
        layers = list(self.model.biogpt.layers)
        return [layer for layer in layers if isinstance(layer, DecoderLayer)]

    def _find_shapes(self, state: "_State") -> None:
        """The numbers of rows and keys that programs may be for, and of prompts that may be read at once."""
        rows, limit = len(state.block.owners), state.chooser.limit
        sizes = [count for count in self.row_counts if count < rows] + [rows]
        steady = steady_sizes(self.model, sizes, self._linears[0])
        if steady[-1] < rows:
            logger.warning("on %s a row's bits depend on its place among others", self.device)
            steady = (rows,)
        key_counts = [limit]
        if self._attention is masked:  # which takes longer, the more it masks
            key_counts = [count for count in self.key_counts if count < limit] + [limit]
        memory = state.block.memory[0].normal_()
        parts = torch.randn(rows, 3, *memory.shape[2::2], device=self.device).to(self.model.dtype)

        def attended(places: Tensor, count: int, keys: int) -> Tensor:
            return self._attention(places[:count], keys, self.model.dtype)(parts[:count], memory)

        for keys in key_counts[:]:
            places = torch.arange(rows, device=self.device) * 7919 % keys
            full = attended(places, rows, limit)
            if not torch.equal(attended(places, rows, keys), full):
                key_counts.remove(keys)
                continue
            steady = tuple(
                count for count in steady if torch.equal(attended(places, count, keys), full[:count])
            )
        memory.zero_()
        self.sizes, self._keys = steady, tuple(key_counts)
        short = steady_sizes(self.model, (self.short * self.lengths[0],), self._linears[0])
        if short[-1] == 1:
            self.short = 1
        logger.info(
            "%s: %d rows of %d positions, %.2f GB; programs for %s rows, %s keys; %d short prompts at once",
            *(self.device, rows, limit, state.block.memory.nbytes / 1e9),
            *(" ".join(map(str, sizes)) for sizes in (self.sizes, self._keys)),
            self.short,
        )


class _Shape(NamedTuple):
    """Of a program that reads prompts: B, T, and how many positions are in the cache before them."""

    prompts: int
    length: int
    start: int


class _Input(NamedTuple):
    """Of a program that reads prompts: ``lines``, and the logits that it writes."""

    given: Tensor
    logits: Tensor


class _State:
    """What lies on the device, and the programs that were captured with it."""

    def __init__(self, block: Block, chooser: Chooser, longest: int) -> None:
        rows = len(block.owners)
        self.block, self.chooser = block, chooser
        chooser.places.fill_(chooser.limit)
        self.numbers = torch.arange(max(rows, chooser.limit + 1, longest), device=block.memory.device)
        self.rules: list[Rules | None] = [None] * rows  # as the chooser has them
        self.programs: dict[tuple[object, ...], Program] = {}
        self.inputs: dict[_Shape, _Input] = {}

    def follow(self, row: int, rules: Rules) -> None:
        """Let a row be chosen by these rules."""
        if self.rules[row] is not rules:
            self.chooser.set(row, rules)
            self.rules[row] = rules

    def close_up(self, sizes: Sequence[int]) -> None:
        """Let programs for few rows do where few are in use."""
        taken = self.block.taken
        self.block.close_up(next(size for size in sizes if size >= taken), self._moved)

    def _moved(self, source: int, target: int) -> None:
        for part in self.chooser.state:
            part[target] = part[source]
        self.rules[target] = self.rules[source]


class _Out:
    """What a step has chosen, on its way to the host."""

    def __init__(self, out: Tensor) -> None:
        self._numbers = torch.empty(out.shape, dtype=out.dtype, pin_memory=out.is_cuda)
        self._numbers.copy_(out, non_blocking=True)
        self._arrived = torch.cuda.current_stream(out.device).record_event() if out.is_cuda else None

    def row(self, row: int) -> list[float]:
        """Its numbers; waits for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: list[float] = self._numbers[row].tolist()
        return numbers


class _Wanted:
    """What a step is asked of a cache.

    Attributes:
        ids: to be fed to its rows.
        rules: to choose by; None: logits are wanted.
        found: where the choice is.
        logits: [rows, V], on the CPU.
    """

    def __init__(self, cache: RowsCache, ids: Sequence[int], rules: Rules | None) -> None:
        self.cache, self.ids, self.rules = cache, list(ids), rules
        self.found: Ahead | None = None
        self.logits: Tensor | None = None

    @property
    def is_there(self) -> bool:
        """Whether a guess was right, and this is computed already."""
        ahead = self.cache.ahead
        return (
            ahead is not None
            and ahead.rules is self.rules
            and (ahead.place, ahead.token_id) == (self.cache.length, self.ids[0])
        )

    def result(self) -> Tensor | Choice:
        if self.logits is not None:
            return self.logits
        assert self.found is not None
        assert self.rules is not None
        choice = choice_of(self.found.out.row(self.found.row), self.rules)
        if self.cache.ahead is not None and self.cache.ahead is not self.found:
            self.cache.ahead.token_id = choice.id
        return choice


def _query_key_value(layer: DecoderLayer) -> Callable[[Tensor], Tensor]:
    """What computes queries, keys and values in one go, [..., D] to [..., 3 D]."""
    attention = layer.self_attn
    if attention.qkv_proj is not None:
        return attention.qkv_proj
    weight, bias = (
        torch.cat([projection.get_parameter(name) for projection in attention.projections])
        for name in ("weight", "bias")
    )
    return partial(F.linear, weight=weight, bias=bias)
