"""Linear layers for serving: packed float32 and bfloat16, and int8 weights with int8 rows.

An int8 layer keeps each output channel's weights as 127ths of the greatest, and quantises each row of its input to
steps between that row's own least and greatest number, 0 among them. The products are summed in integers, which is
exact, so a row's result is the same in any company. One row goes through one call of torch that does all of this;
several rows go through a kernel for many, in the very arithmetic of that call. LayerNorm gains and biases are folded into the weights that follow: a gain that lifts one channel would
take the others' share of the 8 bits (data-free; cf. SmoothQuant, arXiv 2211.10438).

CPUs differ in what their 8-bit instructions can do. With VNNI, rows use 8 bits. Without, the products of two
neighbours are added in 16 bits and would be cut off, so rows use 7 bits there, which cannot overflow. Which kernels
are exact, and which is fastest, is tried once (``int8_kernel``).

Letters: R rows, K input and N output channels.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biogpt.model.decoder import Attention, BioGptModel, DecoderLayer

SCALE_BYTES = 4  # of a float32; columns that an int8 matrix [N, K] has more in a file, see ``join``
SMALL = 30_000_000  # parameters; below, a CPU spends its time on other things than reading weights
_ROWS = 16  # that weights are packed for; the kernel takes any number
_EXACT = 2**24  # whole numbers up to here are exact in float32
_BLOCK = 512  # rows that are converted at a time
_PROBE = (2048, 1024)  # outputs and inputs of the layers that kernels are compared with
_PACKERS = 2  # threads that convert layers; a third is no faster, and each keeps memory of its own


@dataclass(frozen=True)
class Int8Kernel:
    """A way to multiply int8 weights by quantised rows.

    Attributes:
        name: ``fbgemm``, ``onednn`` or ``plain``, the last on any machine and slow.
        levels: a row's greatest number becomes this step, 255 or 127, and its least one becomes step 0.
    """

    name: str
    levels: int

    def pack(self, weight: Tensor) -> tuple[Any, ...]:
        """What ``multiply`` and ``multiply_row`` take, of int8 weights [N, K]."""
        ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int64)
        if self.name == "fbgemm":
            with _fbgemm(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # quantised tensors are deprecated, this kernel is not
                quantized = torch._make_per_channel_quantized_tensor(weight, ones.double(), zeros, 0)
                packed = torch.ops.quantized.linear_prepack(quantized, None)
            # The packed weights hold on to this tensor for unpacking, which nobody asks for: as much memory again.
            quantized.untyped_storage().resize_(0)
            return (packed,)
        if self.name == "onednn":
            packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), [_ROWS, weight.shape[1]])
            return packed, ones, zeros
        return (weight,)

    def multiply(self, rows: Tensor, packed: tuple[Any, ...]) -> Tensor:
        """Float32 rows [R, K] from 0 to ``levels``, rounded, times the weights: [R, N] float32 sums."""
        if self.name == "fbgemm":
            return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(rows, 1.0, 0, packed[0])
        if self.name == "onednn":
            return torch.ops.onednn.qlinear_pointwise(
                rows.round().clamp_(0, 255).to(torch.uint8),
                1.0,
                0,
                *packed,
                None,
                1.0,
                0,
                torch.float32,
                "none",
                [],
                "",
            )
        return (rows.double().round_().clamp_(0, 255) @ packed[0].double().T).float()

    def multiply_row(self, row: Tensor, packed: tuple[Any, ...]) -> Tensor:
        """A row [1, K] of any numbers, quantised as by ``in_steps``, times the weights: [1, N]."""
        return torch.ops.quantized.linear_dynamic(row, packed[0], self.levels < 255)

    @property
    def has_one_call(self) -> bool:
        """Whether ``multiply_row`` is there, and quantises as ``in_steps`` does, also halfway between two steps."""
        return self.name == "fbgemm" and _one_call_agrees(self)

    def __str__(self) -> str:
        return f"{self.name}, {self.levels.bit_length()} bits a row"

    @property
    def is_exact(self) -> bool:
        """Whether it gives the sums of integers, the greatest included."""
        width, random = 512, torch.Generator().manual_seed(0)
        weight = torch.randint(-127, 128, (64, width), generator=random)
        weight[:4] = torch.tensor([127, -127, 127, -127])[:, None]
        rows = torch.randint(0, self.levels + 1, (9, width), generator=random)
        rows[:2] = self.levels
        try:
            packed = self.pack(weight.to(torch.int8))
            found = [self.multiply(rows[:count].float(), packed) for count in (1, 9)]
        except (AttributeError, RuntimeError):
            return False
        wanted = (rows @ weight.T).float()
        return torch.equal(found[0], wanted[:1]) and torch.equal(found[1], wanted)


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


@contextmanager
def _fbgemm() -> Iterator[None]:
    """Packing goes by a global setting, which picks another library on some CPUs."""
    engine = torch.backends.quantized.engine
    if not _has_fbgemm():
        raise RuntimeError("this build of torch has no fbgemm")
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = engine


@dataclass(frozen=True)
class Speeds:
    """Seconds of one layer of the size ``_PROBE`` on this CPU, for one row and for 16."""

    one: float
    many: float


@cache
def int8_kernel() -> Int8Kernel:
    """The kernel for this CPU: of those that are exact, the finest that is not twice as slow as the fastest."""
    candidates = [Int8Kernel(name, levels) for levels in (255, 127) for name in ("fbgemm", "onednn")]
    exact = [kernel for kernel in candidates if kernel.is_exact]
    if not exact:
        return Int8Kernel("plain", 255)
    seconds = {kernel: sum(vars(int8_speeds(kernel)).values()) for kernel in exact}
    least = min(seconds.values())
    good = [kernel for kernel in exact if seconds[kernel] < 2 * least]
    return min(good, key=lambda kernel: (-kernel.levels, seconds[kernel]))


@cache
@torch.inference_mode()
def _one_call_agrees(kernel: Int8Kernel) -> bool:
    random = torch.Generator().manual_seed(0)
    sizes = torch.rand(64, 1, generator=random) + 0.01
    zeros = torch.randint(0, kernel.levels + 1, (64, 1), generator=random)
    halves = torch.arange(256).remainder(kernel.levels).add(0.5).expand(64, -1).clone()
    halves[:, 0], halves[:, 1] = 0, kernel.levels  # the ends of the range
    halves = (halves - zeros) * sizes
    packed = kernel.pack(torch.eye(256).to(torch.int8))
    for row in (halves, torch.randn(64, 256, generator=random)):
        counts, zero, step = in_steps(row, kernel.levels)
        wanted = kernel.multiply(counts, packed).sub_(zero).mul_(step)
        if not torch.equal(torch.cat([kernel.multiply_row(one, packed) for one in row.split(1)]), wanted):
            return False
    return True


@cache
@torch.inference_mode()
def int8_speeds(kernel: Int8Kernel) -> Speeds:
    """Of whole layers: what quantising a row costs beside the kernel differs, too."""
    weight, ones = torch.ones(*_PROBE, dtype=torch.int8), torch.ones(_PROBE[0])
    return _speeds([Int8Linear(weight, ones, ones, ("layer",), kernel) for _ in range(4)])


@cache
@torch.inference_mode()
def float_speeds(dtype: torch.dtype) -> Speeds:
    """Of the float layers that serving uses, packed where that can be."""
    return _speeds([packed_or_plain(torch.ones(*_PROBE, dtype=dtype)) for _ in range(4)], dtype)


def _speeds(layers: Sequence[Callable[[Tensor], Any]], dtype: torch.dtype = torch.float32) -> Speeds:
    """The least of a few times; several layers in turn, so that weights come from memory as they do in a model."""

    def seconds(rows: Tensor) -> float:
        times = []
        for layer in (*layers, *layers, *layers):
            start = time.perf_counter()
            layer(rows)
            times.append(time.perf_counter() - start)
        return min(times[len(layers) :])

    return Speeds(*(seconds(torch.ones(rows, _PROBE[1], dtype=dtype)) for rows in (1, 16)))


def quantize(weight: Tensor, gain: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights [N, K] as int8 and their scales [N]: the greatest of each output channel becomes 127.

    ``gain``: [K], multiplies each input channel's weights first.
    """
    scale, small = torch.empty(len(weight)), torch.empty(weight.shape, dtype=torch.int8)
    for part, own, out in zip(*(t.split(_BLOCK) for t in (weight, scale, small)), strict=True):
        part = part.float() if gain is None else part.float() * gain
        greatest = torch.maximum(part.amax(dim=1), part.amin(dim=1).neg_())
        own.copy_(greatest.div_(127).clamp_min_(torch.finfo(torch.float32).tiny))
        out.copy_((part / own[:, None]).round_())
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


def in_steps(rows: Tensor, levels: int, least: float = 6.2e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise each of some rows as ``torch.ops.quantized.linear_dynamic`` quantises one. Also compiled, so plain.

    Reference: ``ChooseQuantizationParams`` in torch, ``aten/src/ATen/native/quantized/cpu/QuantUtils.h``.

    Args:
        rows: [R, K] float32.
        levels: 255 or 127.
        least: a step below this, torch chooses in another way.

    Returns:
        [R, K] counts of steps in float32, which kernels round; then [R, 1] each: which step is 0, and a step's size.
    """
    # aminmax would be one call, but takes a hundred times as long for many rows (torch 2.13).
    low = rows.amin(dim=1, keepdim=True).clamp_max_(0).double()
    high = rows.amax(dim=1, keepdim=True).clamp_min_(0).double()
    exact = (high - low).div_(levels)
    step, zero = exact.float(), low.div_(exact).round_().neg_().float()
    if not float(exact.min()) >= least:  # nor is it where a row is not a number
        for row in range(rows.shape[0]):
            size, place = torch._choose_qparams_per_tensor(rows[row], levels < 255)
            step[row], zero[row] = size, place
    # addcmul rounds once, as the CPU's own instruction does; where it does not, ``has_one_call`` finds out.
    return torch.addcmul(zero, rows, step.reciprocal()), zero, step


def are_rounded(sums: Tensor) -> bool:
    """Whether float32 may have rounded any of these sums of whole numbers. Also compiled, so plain."""
    return float(torch.maximum(sums.amax(), -sums.amin())) >= 2.0**24


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, for float32 inputs [..., K] on a CPU.

    Args:
        weight, scale: int8 [N, K] and float32 [N], as ``quantize`` gives them.
        bias: [N] or None.
        names: of the layers it stands for, one under the other, as a checkpoint calls them.
        kernel: the best one here when None.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        names: Sequence[str],
        kernel: Int8Kernel | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.names = tuple(names)
        self.kernel = kernel or int8_kernel()
        self.packed = self.kernel.pack(weight)
        # Of each channel's weights; torch would widen them all at once to sum them.
        sums = self.kernel.multiply(torch.ones(1, self.in_features), self.packed)[0]
        # Where float32 might round a sum, the kernels for one row and for many could differ.
        levels = self.kernel.levels + 1
        self.one_call = self.kernel.has_one_call and float(sums.abs().max()) * levels < _EXACT
        self.is_exact = _greatest_sum(weight, sums) * levels < _EXACT
        # No buffers: these are looked up for every row, which costs a module as much as a small operation.
        self.scale, self.sums, self.bias = scale, sums, bias

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden if hidden.ndim == 2 else hidden.reshape(-1, self.in_features)
        if rows.shape[0] == 1 and self.one_call:
            products = self.kernel.multiply_row(rows, self.packed)
        else:
            counts, zero, step = in_steps(rows, self.kernel.levels)
            products = self.kernel.multiply(counts, self.packed)
            if self.one_call and not self.is_exact and are_rounded(products):
                products = torch.cat([self.kernel.multiply_row(row, self.packed) for row in rows.split(1)])
            else:
                products.addcmul_(zero, self.sums, value=-1).mul_(step)
        if self.bias is None:
            products.mul_(self.scale)
        else:
            products = torch.addcmul(self.bias, products, self.scale)
        return products if hidden.ndim == 2 else products.view(*hidden.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        """The int8 weights [N, K], read back from the kernel's own layout."""
        ones = torch.eye(self.in_features)
        columns = [self.kernel.multiply(rows, self.packed) for rows in ones.split(_BLOCK)]
        return torch.cat(columns).to(torch.int8).T.contiguous()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        parts = len(self.names)
        weights, scales = self.weight.chunk(parts), self.scale.chunk(parts)
        biases = [None] * parts if self.bias is None else self.bias.chunk(parts)
        for name, weight, scale, bias in zip(self.names, weights, scales, biases, strict=True):
            key = _sibling(prefix, name)
            destination[f"{key}.weight"] = join(weight, scale)
            if bias is not None:
                destination[f"{key}.bias"] = bias


def _greatest_sum(weight: Tensor, sums: Tensor) -> float:
    """Of the positive or the negative weights of a channel; ``sums``: of all of its weights."""
    sizes = [part.float().abs_().sum(dim=1) for part in weight.split(_BLOCK)]
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

    Args:
        weight, bias: [N, K], and [N] or None.
        names: as in ``Int8Linear``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.names = tuple(names)
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        self.register_buffer("bias", bias, persistent=False)
        self.bias: Tensor | None

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, self.in_features)
        sums = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return sums.view(*hidden.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        return self.packed.to_dense()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        parts = len(self.names)
        biases = [None] * parts if self.bias is None else self.bias.chunk(parts)
        for name, weight, bias in zip(self.names, self.weight.chunk(parts), biases, strict=True):
            key = _sibling(prefix, name)
            destination[f"{key}.weight"] = weight
            if bias is not None:
                destination[f"{key}.bias"] = bias


def _sibling(prefix: str, name: str) -> str:
    """``biogpt.layers.0.self_attn.q_proj`` of ``biogpt.layers.0.self_attn.qkv_proj.`` and ``q_proj``."""
    parent = prefix.rstrip(".").rpartition(".")[0]
    return f"{parent}.{name}" if parent else name


@cache
def _can_pack(dtype: torch.dtype) -> bool:
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
    return PackedLinear(weight, None) if _can_pack(weight.dtype) else partial(F.linear, weight=weight)


class RowLinear(nn.Linear):
    """A float32 layer that gives each of several rows [R, K] the bits it has alone, as in a step of the reference.

    Kernels for many rows add up in another order than those for one. Here each row is a product by itself, all in one
    call; one row alone is two products, of half the outputs each, which two cores compute in two thirds of the time.
    Inputs with more dimensions go through the plain layer, as a prompt does in the reference.
    """

    def forward(self, input: Tensor) -> Tensor:
        rows, half = input.size(0), self.out_features // 2
        if input.dim() != 2 or (rows == 1 and self.out_features % 2 == 1):
            return F.linear(input, self.weight, self.bias)
        if rows == 1:
            inputs, weight = input.expand(2, 1, self.in_features), self.weight.view(2, half, self.in_features)
        else:
            inputs, weight = input.unsqueeze(1), self.weight.expand(rows, -1, -1)
        if self.bias is None:
            return torch.bmm(inputs, weight.transpose(1, 2)).view(rows, -1)
        bias = self.bias.view(inputs.size(0), 1, half) if rows == 1 else self.bias
        return torch.baddbmm(bias, inputs, weight.transpose(1, 2)).view(rows, -1)


@torch.no_grad()
def pack(model: nn.Module) -> None:
    """Lay the weights of a model out for serving on a CPU; it can be saved as before.

    Packed kernels are up to twice as fast, and add up in another order; a model with them cannot be trained. A small
    model gains little from them, and keeps the bits of the reference: of a language model, also those of its steps
    (``RowLinear``). int8 layers and models on other devices stay as they are.
    """
    steps = hasattr(model, "output_projection")
    is_small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    for module in list(model.modules()):
        if not is_small and isinstance(module, Attention) and isinstance(module.q_proj, nn.Linear):
            if not _packs(module.q_proj):
                return
            parts = [module.q_proj, module.k_proj, module.v_proj]
            weight = torch.cat([part.weight for part in parts])
            bias = torch.cat([part.bias for part in parts])
            module.fuse(PackedLinear(weight, bias, ("q_proj", "k_proj", "v_proj")))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child.weight.device.type != "cpu":
                continue
            if not is_small and _can_pack(child.weight.dtype):
                setattr(parent, name, PackedLinear(child.weight, child.bias, (name,)))
            elif is_small and steps and child.weight.dtype == torch.float32:
                child.__class__ = RowLinear  # the parameters stay: they may be tied


def _packs(layer: nn.Linear) -> bool:
    return layer.weight.device.type == "cpu" and _can_pack(layer.weight.dtype)


@torch.no_grad()
def load_int8(
    model: nn.Module, weights: dict[str, Tensor], body: str, after_layer: Callable[[], None]
) -> None:
    """Build the int8 layers of a decoder from a checkpoint's tensors, layer by layer.

    Args:
        model: on the meta device.
        weights: floats, or int8 as ``join`` makes them; those used are taken out, so that no layer is held twice.
        body: name of the decoder in the model, and in the keys.
        after_layer: called when the tensors of a layer are no longer needed.
    """
    decoder = getattr(model, body)
    assert isinstance(decoder, BioGptModel)
    table = weights.pop(f"{body}.embed_tokens.weight")
    pair = _int8(table)
    decoder.embed_tokens = Int8Embedding(*pair)
    after_layer()
    # Packing takes most of the time, runs on one core, and lets go of Python meanwhile.
    with (
        _fbgemm() if _has_fbgemm() else nullcontext(),
        _one_core_a_thread(),
        ThreadPoolExecutor(_PACKERS) as pool,
    ):
        head, projection = weights.pop("output_projection.weight", None), None
        if head is not None:
            own = pair if head is table else _int8(head)
            projection = pool.submit(Int8Linear, *own, None, ("output_projection",))
        del table, head
        for index, layer in enumerate(decoder.layers):
            assert isinstance(layer, DecoderLayer)
            key = f"{body}.layers.{index}"
            attention = layer.self_attn
            first = _take_norm(layer.self_attn_layer_norm, weights, f"{key}.self_attn_layer_norm")
            last = _take_norm(layer.final_layer_norm, weights, f"{key}.final_layer_norm")
            made = pool.map(
                partial(_int8_linear, weights),
                (key, key, f"{key}.self_attn", f"{key}.self_attn"),
                (("fc1",), ("fc2",), ("q_proj", "k_proj", "v_proj"), ("out_proj",)),
                (last, None, first, None),
            )
            layer.fc1, layer.fc2, fused, attention.out_proj = made
            attention.fuse(fused)
            after_layer()
        if projection is not None:
            model.output_projection = projection.result()


@contextmanager
def _one_core_a_thread() -> Iterator[None]:
    """For threads that begin meanwhile; those of a large operation would wait for others at full speed."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    return split(weight) if weight.dtype == torch.int8 else quantize(weight)


def _take_norm(norm: nn.Module, weights: dict[str, Tensor], key: str) -> tuple[Tensor, Tensor]:
    """Gain and bias of a LayerNorm, which keeps neither."""
    assert isinstance(norm, nn.LayerNorm)
    gain, bias = (weights.pop(f"{key}.{name}").float() for name in ("weight", "bias"))
    norm.weight = nn.Parameter(torch.ones_like(gain), requires_grad=False)
    norm.bias = nn.Parameter(torch.zeros_like(bias), requires_grad=False)
    return gain, bias


def _int8_linear(
    weights: dict[str, Tensor], key: str, names: Sequence[str], norm: tuple[Tensor, Tensor] | None = None
) -> Int8Linear:
    pairs, biases = [], []
    for name in names:
        weight, bias = weights.pop(f"{key}.{name}.weight"), weights.pop(f"{key}.{name}.bias").float()
        if weight.dtype == torch.int8:  # saved by us, with its norm folded in already
            pairs.append(split(weight))
        else:
            gain, shift = norm or (None, None)
            if shift is not None:
                bias = bias + torch.cat([part.float() @ shift for part in weight.split(_BLOCK)])
            pairs.append(quantize(weight, gain))
        biases.append(bias)
    weight, scale = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return Int8Linear(weight, scale, torch.cat(biases), names)
