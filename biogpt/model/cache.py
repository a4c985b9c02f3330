"""The key/value cache: one preallocated value that is handed to the model and holds all request state.

Letters: L layers, B batch, H heads, S key positions, T new positions, D head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from biogpt.model.config import BioGptConfig


class KVCache:
    """Keys and values of the positions seen so far, for every layer, in memory taken once.

    Writing a position costs the same at position 10 and at 1,000: nothing is ever concatenated.

    Args:
        config: shape of the model that will write to it.
        batch_size: B, number of rows.
        max_length: most positions a row can hold; ``config.max_position_embeddings`` when None.
        device, dtype: of the stored tensors; the model's own, or float32 for a bfloat16 model on a CPU, where
            products with one row of bfloat16 take twice as long.

    Raises:
        ValueError: ``batch_size`` or ``max_length`` is not positive, or the latter is beyond the model's
            limit.
    """

    def __init__(
        self,
        config: BioGptConfig,
        batch_size: int,
        max_length: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        limit = config.max_position_embeddings
        max_length = limit if max_length is None else max_length
        if batch_size < 1:
            raise ValueError(f"KVCache: batch_size is {batch_size}; expected at least 1")
        if not 1 <= max_length <= limit:
            raise ValueError(f"KVCache: max_length is {max_length}; expected 1 to {limit}, the model's limit")
        self.length = 0
        self.max_length = max_length
        self._allocate(config, batch_size, device, dtype)

    def _allocate(
        self, config: BioGptConfig, batch_size: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        shape = (layers, batch_size, heads, self.max_length, config.head_dim)
        # Left as found: no position is read before it is written, and memory is taken only as that happens.
        self.keys = torch.empty(shape, device=device, dtype=dtype)  # [L, B, H, S, D]
        self.values = torch.empty(shape, device=device, dtype=dtype)  # [L, B, H, S, D]

    @staticmethod
    def size(config: BioGptConfig, rows: int, length: int, dtype: torch.dtype) -> int:
        """Bytes of a cache with so many rows of so many positions."""
        return 2 * config.num_hidden_layers * rows * length * config.hidden_size * dtype.itemsize

    @property
    def batch_size(self) -> int:
        return self.keys.shape[1]

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def require(self, batch_size: int, count: int) -> None:
        """Check that ``count`` more positions of ``batch_size`` rows fit, before anything is written.

        Raises:
            ValueError: the number of rows differs, or the cache would overflow.
        """
        if batch_size != self.batch_size:
            raise ValueError(f"KVCache: holds {self.batch_size} rows; the input has {batch_size}")
        if self.length + count > self.max_length:
            raise ValueError(
                f"KVCache: {self.length} positions are taken and {count} more do not fit in "
                f"{self.max_length}; allocate a longer cache or cut the input"
            )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new positions of one layer after those already there.

        The new positions count only once ``advance`` is called, after the last layer.

        Args:
            layer: index of the decoder layer.
            keys, values: [B, H, T, D].

        Returns:
            All keys and values of the layer as they are now stored, the new ones included: [B, H, length + T,
            D].

        Raises:
            ValueError: as ``require``; nothing is written then.
        """
        # Without this, assigning one row to many, or one position to an empty slice, broadcasts in silence.
        self.require(keys.shape[0], keys.shape[2])
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, count: int) -> None:
        """Count the positions that every layer has just written."""
        self.length += count

    def copy(self, first: int, last: int) -> list[Tensor]:
        """What is stored of some positions of the first row, in all layers; for ``append``."""
        return [part[:, :1, :, first:last].clone() for part in (self.keys, self.values)]

    def append(self, copied: Sequence[Tensor]) -> None:
        """Add the positions that ``copy`` took to this cache of one row.

        Raises:
            ValueError: as ``require``.
        """
        keys, values = copied
        self.require(1, keys.shape[3])
        end = self.length + keys.shape[3]
        self.keys[:, :, :, self.length : end] = keys
        self.values[:, :, :, self.length : end] = values
        self.length = end

    def truncate(self, length: int) -> None:
        """Forget all positions from ``length`` on.

        Raises:
            ValueError: ``length`` is negative or beyond what is held.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"KVCache: cannot cut to {length}; it holds {self.length} positions")
        self.length = length

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of old row ``rows[i]``: beams that live on, or one prompt for many samples.

        Args:
            rows: [B'] int64 row indices; B' may differ from B.
        """
        if len(rows) == self.batch_size:
            for layer in (
                *self.keys,
                *self.values,
            ):  # one by one: all at once would take as much memory again
                layer[:, :, : self.length] = layer[rows, :, : self.length]
            return
        used = (slice(None), slice(None), slice(None), slice(0, self.length))
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(old.shape[0], len(rows), *old.shape[2:])
            new[used] = old[used][:, rows]
            setattr(self, name, new)

    def release(self) -> None:
        """Give the memory back; the cache holds nothing afterwards and refuses every write."""
        self.keys = self.keys[:, :0].clone()
        self.values = self.values[:, :0].clone()
        self.length = self.max_length = 0
