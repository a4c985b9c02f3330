"""A runner of plain torch operations, for any device.

The rows of a step go through the linear layers together, but only in numbers of rows for which the kernels of
this machine give each row the very same bits (``biogpt.runners.steady``); attention is computed cache by
cache.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from biogpt.generation.search import Choice, Rules
from biogpt.model.cache import KVCache
from biogpt.model.heads import LanguageModel
from biogpt.runners.precision import describe
from biogpt.runners.runner import ModelRunner
from biogpt.runners.steady import steady_sizes
from biogpt.runners.step import FLOATS, DecodeStep

_SHARE_OF_MEMORY = 0.25  # for caches
_LENT = 2**34  # bytes that a GPU which is lent has at least
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class PlainRunner(ModelRunner):
    """Computes with the model as it is.

    Args:
        model: in evaluation mode; its weights stay as they are from the first step on.

    Raises:
        ValueError: the model is in training mode.
    """

    stretch = 128
    cache_kind = FLOATS

    def __init__(self, model: LanguageModel) -> None:
        if model.training:
            raise ValueError(
                "the model is in training mode, where dropout is random; call model.eval() first"
            )
        self.model, self.config = model, model.config
        self.device = model.device
        # A bfloat16 model on a CPU keeps float32 keys and values: products with one row of bfloat16 take
        # twice as long.
        self.cache_dtype = torch.float32 if self.device.type == "cpu" else model.dtype
        self.precision = "int8" if model.layout == "int8" else str(model.dtype).removeprefix("torch.")
        self.sizes: tuple[int, ...] = ()  # numbers of rows that a step may have, rising
        self._decode: DecodeStep | None = None

    @property
    def description(self) -> str:
        return describe(self.device, self.precision)

    def prepare(self) -> None:
        if self._decode is None:
            self.sizes = self.find_sizes()
            self._decode = self.make_step()

    def find_sizes(self) -> tuple[int, ...]:
        """The numbers of rows that a step may have, rising."""
        return steady_sizes(self.model)

    def make_step(self) -> DecodeStep:
        """What computes a step, with caches of ``cache_kind``."""
        return DecodeStep(self.model.biogpt, self.cache_kind)

    def memory(self) -> int:
        return _share_of_memory(self.device)

    def cache_bytes(self, rows: int, length: int) -> int:
        return KVCache.size(self.config, rows, length, self.cache_dtype)

    def open(self, rows: int, length: int) -> KVCache:
        return KVCache(self.config, 1, length, self.device, self.cache_dtype)

    @torch.inference_mode()
    def read(self, ids: Sequence[int], cache: KVCache) -> Tensor | None:
        given = torch.tensor([ids[cache.length : cache.length + self.stretch]], device=self.device)
        hidden = self.model.biogpt(given, past_key_values=cache).last_hidden_state
        if cache.length < len(ids):
            return None
        return self.model.output_projection(hidden[:, -1]).float().cpu()

    @torch.inference_mode()
    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache], rules: Sequence[Rules | None]
    ) -> list[Tensor | Choice]:
        self.prepare()
        logits = torch.cat([self.compute(*group) for group in self.groups(ids, caches, self.sizes[-1])])
        return list(logits.split([cache.batch_size for cache in caches]))

    def groups(
        self, ids: Sequence[int], caches: Sequence[KVCache], most: int
    ) -> list[tuple[list[int], list[KVCache]]]:
        """Rows that are computed together: at most so many, or those of one cache that has more."""
        groups: list[tuple[list[int], list[KVCache]]] = []
        first = 0
        for cache in caches:
            rows = ids[first : first + cache.batch_size]
            first += len(rows)
            if not groups or len(groups[-1][0]) + len(rows) > most:
                groups.append(([], []))
            groups[-1][0].extend(rows)
            groups[-1][1].append(cache)
        return groups

    def compute(self, ids: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """The logits [R, V] of one group, padded to a number of rows of ``sizes``."""
        assert self._decode is not None
        padded = next((size for size in self.sizes if size >= len(ids)), len(ids))
        given = torch.tensor([*ids, *[0] * (padded - len(ids))], device=self.device)
        return self.model.output_projection(self._decode(given, caches))[: len(ids)].float().cpu()


def _share_of_memory(device: torch.device) -> int:
    """Of the GPU's; or of the machine's, and of what a container may take of it."""
    if device.type == "cuda":
        try:
            memory = torch.cuda.get_device_properties(device).total_memory
        except (RuntimeError, AssertionError):  # a GPU that is lent comes later
            memory = _LENT
        return int(_SHARE_OF_MEMORY * memory)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not on every system
        memory = 2**32
    for path in _CONTAINER_LIMITS:
        text = path.read_text(encoding="ascii").strip() if path.is_file() else "max"
        memory = min(memory, int(text)) if text.isdigit() else memory
    return int(_SHARE_OF_MEMORY * memory)
