"""The decoder's step as one TorchScript program, for CPUs.

A step of few rows is hundreds of operations of some microseconds each; called from Python, each costs as much again.
The program is ``BioGptModel.step`` operation for operation, and gives its bits: one row of a model of 24 layers,
64 wide, takes 2.7 ms in place of 10 (two cores, AVX2).

Letters as in ``biogpt.model.decoder``: R rows, H heads, D width, B rows and S positions of one cache.
"""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biogpt.model.cache import KVCache, Places
from biogpt.model.decoder import Attention, BioGptModel, DecoderLayer
from biogpt.runners.layers import Int8Linear, PackedLinear, are_rounded, in_steps

logger = logging.getLogger(__name__)

# Beside the models, which can be copied and pickled so. What is kept must not hold on to the model itself.
_programs: "WeakKeyDictionary[BioGptModel, tuple[list[Any], nn.Module | None]]" = WeakKeyDictionary()

Step = Callable[[Tensor, Sequence[KVCache]], Tensor]


def step_program(model: BioGptModel, kind: type[KVCache] = KVCache) -> Step:
    """What computes as ``model.step`` does, as fast as this machine can; the layers must not change afterwards.

    Args:
        kind: of the caches it will be given.
    """
    if model.embed_positions.weight.device.type != "cpu":
        return model.step
    layers = _compiled(model, kind)
    if layers is None:
        return model.step

    def run(hidden: Tensor, places: list[Places]) -> Tensor:
        with torch.jit.optimized_execution(
            False
        ):  # what it gains is little, and costs the first steps two seconds
            return layers(hidden, places)

    return lambda input_ids, caches: model.step(input_ids, caches, run)


def _compiled(model: BioGptModel, kind: type[KVCache]) -> nn.Module | None:
    """The layers as a program, kept for the next who asks; None where they do not compile."""
    parts = [kind, *list(model.modules())[1:], *model.parameters()]
    kept, program = _programs.get(model, ([], None))
    if len(kept) == len(parts) and all(one is other for one, other in zip(kept, parts, strict=True)):
        return program
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated; no successor compiles in a second
            program = torch.jit.script(_Layers(model, kind).eval())
    except (RuntimeError, TypeError):
        logger.warning("the layers do not compile here; each operation is called by itself", exc_info=True)
        program = None
    _programs[model] = parts, program
    return program


class _Layers(nn.Module):
    """All layers: [R, D] to [R, D]."""

    def __init__(self, model: BioGptModel, kind: type[KVCache]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(layer, kind) for layer in model.layers)

    def forward(self, hidden: Tensor, places: list[list[list[Tensor]]]) -> Tensor:
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, places[index])
        return hidden


class _Layer(nn.Module):
    """``DecoderLayer.step`` and ``Attention.step``."""

    def __init__(self, layer: nn.Module, kind: type[KVCache]) -> None:
        super().__init__()
        assert isinstance(layer, DecoderLayer)
        self.encode, self.attend = kind.encode, kind.attend
        attention = layer.self_attn
        self.heads = attention.heads
        weight = layer.self_attn_layer_norm.weight
        # A number would be made a tensor at every step.
        self.root = torch.tensor(math.sqrt(len(weight) // self.heads), dtype=weight.dtype)
        self.act = layer.activation_name
        self.attention_norm, self.norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.qkv = _Apart(attention) if attention.qkv_proj is None else _Fused(attention.qkv_proj)
        self.out = _scriptable(attention.out_proj)
        self.fc1, self.fc2 = _scriptable(layer.fc1), _scriptable(layer.fc2)

    def forward(self, hidden: Tensor, places: list[list[Tensor]]) -> Tensor:
        rows = hidden.size(0)
        parts = self.qkv(self.attention_norm(hidden))
        query = parts[0].view(rows, self.heads, -1)
        query = query / self.root
        counts = [place[0].size(0) for place in places]
        counts.append(rows - sum(counts))
        new = self.encode(parts[1].view(rows, self.heads, -1), parts[2].view(rows, self.heads, -1))
        by_place = [part.split_with_sizes(counts) for part in new]
        queries = query.view(rows * self.heads, 1, -1).split_with_sizes(
            [count * self.heads for count in counts]
        )
        mixed: list[Tensor] = []
        for index, place in enumerate(places):
            mixed.append(self.attend(queries[index], [part[index] for part in by_place], place))
        if counts[-1] > 0:
            mixed.append(torch.zeros_like(queries[-1]))
        hidden = hidden + self.out(torch.cat(mixed).to(hidden.dtype).view(rows, -1))
        inner = self.fc1(self.norm(hidden))
        if self.act == "relu":
            inner = F.relu(inner)
        else:
            inner = F.gelu(inner, approximate="tanh" if self.act == "gelu_new" else "none")
        return hidden + self.fc2(inner)


class _Fused(nn.Module):
    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = _scriptable(projection)

    def forward(self, hidden: Tensor) -> list[Tensor]:
        return self.projection(hidden).chunk(3, dim=-1)


class _Apart(nn.Module):
    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.q, self.k, self.v = attention.q_proj, attention.k_proj, attention.v_proj

    def forward(self, hidden: Tensor) -> list[Tensor]:
        return [self.q(hidden), self.k(hidden), self.v(hidden)]


class _Int8(nn.Module):
    """``Int8Linear.forward`` by fbgemm."""

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__()
        self.packed = layer.packed[0]
        assert layer.bias is not None, "every layer of a decoder has one"
        self.scale, self.sums, self.bias = layer.scale, layer.sums, layer.bias
        self.levels, self.one_call, self.is_exact = layer.kernel.levels, layer.one_call, layer.is_exact

    def forward(self, rows: Tensor) -> Tensor:
        if rows.size(0) == 1 and self.one_call:
            products = torch.ops.quantized.linear_dynamic(rows, self.packed, self.levels < 255)
        else:
            counts, zero, step = in_steps(rows, self.levels)
            products = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
                counts, 1.0, 0, self.packed
            )
            if self.one_call and not self.is_exact and are_rounded(products):
                alone = [
                    torch.ops.quantized.linear_dynamic(row, self.packed, self.levels < 255)
                    for row in rows.split(1)
                ]
                products = torch.cat(alone)
            else:
                products.addcmul_(zero, self.sums, value=-1).mul_(step)
        return torch.addcmul(self.bias, products, self.scale)


class _Int8OneDnn(nn.Module):
    """``Int8Linear.forward`` by oneDNN."""

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__()
        self.packed, self.ones, self.zeros = layer.packed
        assert layer.bias is not None, "every layer of a decoder has one"
        self.scale, self.sums, self.bias = layer.scale, layer.sums, layer.bias
        self.levels = layer.kernel.levels

    def forward(self, rows: Tensor) -> Tensor:
        counts, zero, step = in_steps(rows, self.levels)
        products = torch.ops.onednn.qlinear_pointwise(
            counts.round().clamp_(0, 255).to(torch.uint8),
            1.0,
            0,
            self.packed,
            self.ones,
            self.zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        products.addcmul_(zero, self.sums, value=-1).mul_(step)
        return torch.addcmul(self.bias, products, self.scale)


class _Packed(nn.Module):
    """``PackedLinear.forward``."""

    def __init__(self, layer: PackedLinear) -> None:
        super().__init__()
        self.packed, self.bias = layer.packed, layer.bias

    def forward(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")


def _scriptable(layer: nn.Module) -> nn.Module:
    if isinstance(layer, PackedLinear):
        return _Packed(layer)
    if isinstance(layer, Int8Linear) and layer.kernel.name == "fbgemm":
        return _Int8(layer)
    if isinstance(layer, Int8Linear) and layer.kernel.name == "onednn":
        return _Int8OneDnn(layer)
    return layer  # a plain one compiles as it is
