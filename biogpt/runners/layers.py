"""Layers for serving on a CPU: packed float32 and bfloat16, and int8 weights with int8 rows.

An int8 layer keeps each output channel's weights as 127ths of the greatest, and quantises each row of its
input to steps between that row's own least and greatest number, 0 among them (``biogpt.runners.kernels``).
One row goes through one call of torch that does all of this; several rows go through a kernel for many, in
the very arithmetic of that call.

Letters: R rows, K input and N output channels, V vocabulary, D width.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biogpt.runners.kernels import ROWS, Int8Kernel, are_rounded, in_steps

SCALE_BYTES = 4  # of a float32; columns that an int8 matrix [N, K] has more in a file, see ``join``
BLOCK = 512  # rows that are converted at a time
_EXACT = 2**24  # whole numbers up to here are exact in float32


def quantize(weight: Tensor, gain: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights [N, K] as int8 and their scales [N]: the greatest of each output channel becomes 127.

    ``gain``: [K], multiplies each input channel's weights first.
    """
    scale, small = torch.empty(len(weight)), torch.empty(weight.shape, dtype=torch.int8)
    for part, part_scale, out in zip(*(t.split(BLOCK) for t in (weight, scale, small)), strict=True):
        part = part.float() if gain is None else part.float() * gain
        greatest = torch.maximum(part.amax(dim=1), part.amin(dim=1).neg_())
        part_scale.copy_(greatest.div_(127).clamp_min_(torch.finfo(torch.float32).tiny))
        out.copy_((part / part_scale[:, None]).round_())
    return small, scale


def join(weight: Tensor, scale: Tensor) -> Tensor:
    """Weights and scales as one int8 matrix [N, K + 4] for a file: the scale's bytes end each row.

    The shape is not that of the float weights, so software that does not know of scales refuses it.
    """
    return torch.cat([weight, scale[:, None].contiguous().view(torch.int8)], dim=1)


def split(joined: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [N, K] and scales [N] of what ``join`` made."""
    weight, scale = joined[:, :-SCALE_BYTES].contiguous(), joined[:, -SCALE_BYTES:].contiguous()
    return weight, scale.view(torch.float32)[:, 0].clone()


def dequantize(joined: Tensor) -> Tensor:
    """Float32 weights [N, K] of what ``join`` made."""
    weight, scale = split(joined)
    return weight * scale[:, None]


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, for float32 inputs [..., K] on a CPU. Also scripted, so plain.

    Args:
        weight, scale: int8 [N, K] and float32 [N], as ``quantize`` gives them.
        bias: [N] or None.
        names: of the layers it stands for, one under the other, as a checkpoint calls them.
        kernel: that multiplies, such as ``biogpt.runners.speeds.int8_kernel()``.
    """

    # Else its weights would be read back twice while it is compiled.
    __jit_unused_properties__: ClassVar[list[str]] = ["weight"]
    __jit_ignored_attributes__: ClassVar[list[str]] = ["weight"]

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor | None, names: Sequence[str], kernel: Int8Kernel
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.names = tuple(names)
        self.levels = kernel.levels
        self.product = kernel.pack(weight)
        # Of each channel's weights; torch would widen them all at once to sum them.
        sums = self.product.sums(torch.ones(1, self.in_features))[0]
        # Where float32 might round a sum, the kernels for one row and for many could differ.
        levels = kernel.levels + 1
        self.one_call = kernel.has_one_call and float(sums.abs().max()) * levels < _EXACT
        self.is_exact = _greatest_sum(weight, sums) * levels < _EXACT
        # No buffers: these are looked up for every row, which costs a module as much as a small operation.
        self.scale, self.sums = scale, sums
        self.bias: Tensor | None = bias

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden if hidden.dim() == 2 else hidden.reshape(-1, self.in_features)
        if rows.size(0) == 1 and self.one_call:
            products = self.product.row(rows)
        else:
            counts, zero, step = in_steps(rows, self.levels)
            products = self.product.sums(counts)
            if self.one_call and not self.is_exact and are_rounded(products):
                products = torch.cat([self.product.row(row) for row in rows.split(1)])
            else:
                products.addcmul_(zero, self.sums, value=-1).mul_(step)
        bias = self.bias
        if bias is None:
            products.mul_(self.scale)
        else:
            products = torch.addcmul(bias, products, self.scale)
        return products if hidden.dim() == 2 else products.unflatten(0, hidden.shape[:-1])

    @property
    def weight(self) -> Tensor:
        """The int8 weights [N, K], read back from the kernel's own layout."""
        ones = torch.eye(self.in_features)
        columns = [self.product.sums(rows) for rows in ones.split(BLOCK)]
        return torch.cat(columns).to(torch.int8).T.contiguous()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        parts = len(self.names)
        weights = [
            join(weight, scale)
            for weight, scale in zip(self.weight.chunk(parts), self.scale.chunk(parts), strict=True)
        ]
        _save_apart(destination, prefix, self.names, weights, self.bias)


def _greatest_sum(weight: Tensor, sums: Tensor) -> float:
    """Of the positive or the negative weights of a channel; ``sums``: of all of its weights."""
    sizes = [part.float().abs_().sum(dim=1) for part in weight.split(BLOCK)]
    return float((torch.cat(sizes) + sums.abs()).max()) / 2


class Int8Embedding(nn.Embedding):
    """A table of int8 rows [V, D], each with its scale; gives float32."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        nothing = torch.empty(weight.shape, device="meta")
        super().__init__(weight.shape[0], weight.shape[1], _weight=nothing)
        del self.weight
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return self.weight[input] * self.scale[input][..., None]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = join(self.weight, self.scale)


class PackedLinear(nn.Module):
    """A float32 or bfloat16 layer whose weights oneDNN laid out for itself once; inference on a CPU only.

    Also scripted, so plain.

    Args:
        weight, bias: [N, K], and [N] or None.
        names: as in ``Int8Linear``.
    """

    # Else its weights would be read back twice while it is compiled.
    __jit_unused_properties__: ClassVar[list[str]] = ["weight"]
    __jit_ignored_attributes__: ClassVar[list[str]] = ["weight"]

    def __init__(self, weight: Tensor, bias: Tensor | None, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.names = tuple(names)
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias: Tensor | None = None if bias is None else bias.detach()

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden if hidden.dim() == 2 else hidden.reshape(-1, self.in_features)
        sums = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return sums if hidden.dim() == 2 else sums.unflatten(0, hidden.shape[:-1])

    @property
    def weight(self) -> Tensor:
        return self.packed.to_dense()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        _save_apart(destination, prefix, self.names, self.weight.chunk(len(self.names)), self.bias)


def _save_apart(
    destination: dict[str, Any],
    prefix: str,
    names: Sequence[str],
    weights: Sequence[Tensor],
    bias: Tensor | None,
) -> None:
    """Weights and biases of the layers that one layer stands for, under their names in a checkpoint."""
    biases = [None] * len(names) if bias is None else bias.chunk(len(names))
    for name, weight, part in zip(names, weights, biases, strict=True):
        key = _sibling(prefix, name)
        destination[f"{key}.weight"] = weight
        if part is not None:
            destination[f"{key}.bias"] = part


def _sibling(prefix: str, name: str) -> str:
    """``biogpt.layers.0.self_attn.q_proj`` of ``biogpt.layers.0.self_attn.qkv_proj.`` and ``q_proj``."""
    parent = prefix.rstrip(".").rpartition(".")[0]
    return f"{parent}.{name}" if parent else name


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes this type here, and gives what the plain layer gives."""
    random = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(size, 64, generator=random).to(dtype) for size in (48, 5))
    try:
        packed = PackedLinear(weight, None)
        found, back = packed(rows), packed.weight
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    close = torch.allclose(found.float(), F.linear(rows.float(), weight.float()), rtol=0.02, atol=0.2)
    return close and torch.equal(back, weight)


def packed_or_plain(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """A layer without bias, as ``pack`` would make it."""
    return PackedLinear(weight, None) if can_pack(weight.dtype) else partial(F.linear, weight=weight)
