"""Keys and values of all rows of a GPU in one block, taken once, and the caches that are rows of it.

A captured program (``graphs``) reads and writes the same addresses every time it runs. So rows lie at fixed
places, those in use in the front, and a program for G rows computes the first G, whoever they belong to. Rows
that are idle meanwhile write to a column of their own, which nobody reads.

Letters: L layers, R rows, H heads, S positions of the model, D head width.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from biogpt.generation.search import Rules
from biogpt.model.cache import KVCache
from biogpt.model.config import BioGptConfig

logger = logging.getLogger(__name__)


class Block:
    """Memory for R rows of the model's length, and whose they are.

    Args:
        config: of the model.
        rows: R; fewer are taken where the device has no room for so many.
        device, dtype: of keys and values.

    Attributes:
        memory: [L, 2, R, H, S + 1, D]; the last column takes what idle rows write. Every number in it is
            finite, but for those of rows that are broken, so that nothing that is masked can be NaN.
        owners: for each row the cache that has it, or None.

    Raises:
        MemoryError: there is no room for a single row.
    """

    def __init__(self, config: BioGptConfig, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        layers, heads, limit = (
            config.num_hidden_layers,
            config.num_attention_heads,
            config.max_position_embeddings,
        )
        self.limit = limit
        wanted = rows
        while True:
            try:
                shape = (layers, 2, rows, heads, limit + 1, config.head_dim)
                self.memory = torch.zeros(shape, device=device, dtype=dtype)
                break
            except torch.OutOfMemoryError as error:
                if rows == 1:
                    size = Block.size(config, 1, dtype)
                    raise MemoryError(
                        f"a text of {limit} positions needs {size / 1e6:.1f} MB of cache, and {device} has "
                        "no room for it; free memory on it, or choose a smaller model"
                    ) from error
                rows = max(1, rows // 2)
        if rows < wanted:
            logger.warning("%s has room for the caches of %d texts, not of %d", device, rows, wanted)
        self.owners: list[RowsCache | None] = [None] * rows

    @staticmethod
    def size(config: BioGptConfig, rows: int, dtype: torch.dtype) -> int:
        """Bytes of so many rows."""
        return KVCache.size(config, rows, config.max_position_embeddings + 1, dtype)

    @property
    def taken(self) -> int:
        """How many rows are somebody's."""
        return sum(owner is not None for owner in self.owners)

    def take(self, owner: "RowsCache") -> int:
        """The first row that is nobody's.

        Raises:
            MemoryError: there is none.
        """
        if None not in self.owners:
            raise MemoryError(
                f"all {len(self.owners)} rows for texts are taken, of "
                f"{self.memory[:, :, 0].nbytes / 1e6:.1f} MB each; try again later, or ask for fewer beams"
            )
        row = self.owners.index(None)
        self.owners[row] = owner
        return row

    @torch.inference_mode()
    def give(self, row: int) -> None:
        """Take a row back. What is left there is made 0: it may not be a number."""
        self.owners[row] = None
        self.memory[:, :, row].zero_()

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of a row to another one."""
        self.memory[:, :, target, :, :length] = self.memory[:, :, source, :, :length]

    def close_up(self, most: int, moved: Callable[[int, int], None]) -> None:
        """Bring all rows in use below ``most``, if that many are enough; ``moved``: from where to where."""
        for row in range(most, len(self.owners)):
            owner = self.owners[row]
            if owner is not None and None in self.owners[:most]:
                target = self.take(owner)
                self.copy(row, target, owner.length + 1)  # that of ``ahead``
                moved(row, target)
                owner.rows[owner.rows.index(row)] = target
                self.give(row)


@dataclass
class Ahead:
    """A step that was computed before anybody asked for it.

    Attributes:
        place: position of the token that was fed.
        rules: that the next one was chosen by.
        token_id: what was fed; unknown, None, until the step before it is read.
        out: where the choice is, and in which row of it.
    """

    place: int
    rules: Rules
    token_id: int | None
    out: Any
    row: int


class RowsCache(KVCache):
    """A cache whose rows are some of a block.

    Attributes:
        rows: their numbers in the block.
        ahead: a step whose position is written, and not yet counted.
    """

    ahead: Ahead | None = None

    def __init__(self, config: BioGptConfig, block: Block, length: int) -> None:
        self._block = block
        super().__init__(config, 1, length, block.memory.device, block.memory.dtype)

    def _allocate(
        self, config: BioGptConfig, batch_size: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.rows = [self._block.take(self) for _ in range(batch_size)]

    @property
    def batch_size(self) -> int:
        return len(self.rows)

    @property
    def device(self) -> torch.device:
        return self._block.memory.device

    @property
    def nbytes(self) -> int:
        return len(self.rows) * self._block.memory[:, :, 0].nbytes

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.require(keys.shape[0], keys.shape[2])
        end = self.length + keys.shape[2]
        memory = self._block.memory[layer]
        memory[0, self.rows, :, self.length : end] = keys
        memory[1, self.rows, :, self.length : end] = values
        return memory[0, self.rows, :, :end], memory[1, self.rows, :, :end]

    def copy(self, first: int, last: int) -> list[Tensor]:
        return [part[:, self.rows[:1], :, first:last] for part in self._block.memory.unbind(1)]

    def append(self, copied: Sequence[Tensor]) -> None:
        count = copied[0].shape[3]
        self.require(1, count)
        for part, given in zip(self._block.memory.unbind(1), copied, strict=True):
            part[:, self.rows, :, self.length : self.length + count] = given
        self.length += count

    def reorder(self, rows: Tensor) -> None:
        order = rows.tolist()
        before = self.rows
        spare = [row for place, row in enumerate(before) if place not in order]
        while len(spare) < len(order) - len(set(order)):
            spare.append(self._block.take(self))
        self.rows = []
        for old in order:
            source = target = before[old]
            if source in self.rows:  # its first heir has it as it is, the others get copies
                target = spare.pop()
                self._block.copy(source, target, self.length)
            self.rows.append(target)
        for row in spare:
            self._block.give(row)

    def release(self) -> None:
        for row, owner in enumerate(self._block.owners):
            if owner is self:
                self._block.give(row)
        self.rows, self.ahead = [], None
        self.length = self.max_length = 0
