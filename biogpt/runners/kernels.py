"""Products of int8 weights and quantised rows: what this CPU's instructions can do, exactly.

CPUs differ in what their 8-bit instructions can do. With VNNI, rows use 8 bits. Without, the products of two
neighbours are added in 16 bits and would be cut off, so rows use 7 bits there, which cannot overflow. Sums of
whole numbers are exact, so a row's result is the same in any company.

Letters: R rows, K input and N output channels.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

ROWS = 16  # that weights are packed for; the kernels take any number


class FbgemmProduct(nn.Module):
    """By fbgemm, which also quantises and multiplies one row in a single call. Also scripted, so plain."""

    def __init__(self, weight: Tensor, levels: int) -> None:
        super().__init__()
        self.is_seven_bit = levels < 255
        ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int64)
        with fbgemm_engine(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantised tensors are deprecated, this kernel is not
            quantized = torch._make_per_channel_quantized_tensor(weight, ones.double(), zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        # The packed weights hold on to this tensor for unpacking, which nobody asks for: as much memory
        # again.
        quantized.untyped_storage().resize_(0)

    def sums(self, counts: Tensor) -> Tensor:
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(counts, 1.0, 0, self.packed)

    def row(self, row: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(row, self.packed, self.is_seven_bit)


class OneDnnProduct(nn.Module):
    """By oneDNN. Also scripted, so plain."""

    def __init__(self, weight: Tensor, levels: int) -> None:
        super().__init__()
        self.packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), [ROWS, weight.shape[1]])
        self.ones, self.zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int64)

    def sums(self, counts: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
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

    def row(self, row: Tensor) -> Tensor:
        return self.sums(row)


class PlainProduct(nn.Module):
    """In float64, on any machine, and slow. Also scripted, so plain."""

    def __init__(self, weight: Tensor, levels: int) -> None:
        super().__init__()
        self.packed = weight

    def sums(self, counts: Tensor) -> Tensor:
        return (counts.double().round_().clamp_(0, 255) @ self.packed.double().t()).float()

    def row(self, row: Tensor) -> Tensor:
        return self.sums(row)


Product = FbgemmProduct | OneDnnProduct | PlainProduct
_PRODUCTS: dict[str, type[FbgemmProduct] | type[OneDnnProduct] | type[PlainProduct]] = {
    "fbgemm": FbgemmProduct,
    "onednn": OneDnnProduct,
    "plain": PlainProduct,
}


@dataclass(frozen=True)
class Int8Kernel:
    """A way to multiply int8 weights by quantised rows.

    Attributes:
        name: ``fbgemm``, ``onednn`` or ``plain``, the last on any machine and slow.
        levels: a row's greatest number becomes this step, 255 or 127, and its least one becomes step 0.
    """

    name: str
    levels: int

    def pack(self, weight: Tensor) -> Product:
        """Int8 weights [N, K] in the kernel's own layout.

        Its ``sums`` takes float32 rows [R, K] from 0 to ``levels``, which it rounds, and gives [R, N] float32
        sums; its ``row``, only of use where ``has_one_call``, a row [1, K] of any numbers, which it quantises
        as ``in_steps`` does, and gives [1, N].
        """
        return _PRODUCTS[self.name](weight, self.levels)

    @property
    def has_one_call(self) -> bool:
        """Whether ``row`` is there, and quantises as ``in_steps`` does, also halfway between two steps."""
        return self.name == "fbgemm" and _one_call_agrees(self)

    @property
    def is_exact(self) -> bool:
        """Whether it gives the sums of integers, the greatest included."""
        width, random = 512, torch.Generator().manual_seed(0)
        weight = torch.randint(-127, 128, (64, width), generator=random)
        weight[:4] = torch.tensor([127, -127, 127, -127])[:, None]
        rows = torch.randint(0, self.levels + 1, (9, width), generator=random)
        rows[:2] = self.levels
        try:
            product = self.pack(weight.to(torch.int8))
            found = [product.sums(rows[:count].float()) for count in (1, 9)]
        except (AttributeError, RuntimeError):
            return False
        wanted = (rows @ weight.T).float()
        return torch.equal(found[0], wanted[:1]) and torch.equal(found[1], wanted)

    def __str__(self) -> str:
        return f"{self.name}, {self.levels.bit_length()} bits a row"


def has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


@contextmanager
def fbgemm_engine() -> Iterator[None]:
    """Packing goes by a global setting, which picks another library on some CPUs."""
    engine = torch.backends.quantized.engine
    if not has_fbgemm():
        raise RuntimeError("this build of torch has no fbgemm")
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = engine


@cache
@torch.inference_mode()
def _one_call_agrees(kernel: Int8Kernel) -> bool:
    random = torch.Generator().manual_seed(0)
    sizes = torch.rand(64, 1, generator=random) + 0.01
    zeros = torch.randint(0, kernel.levels + 1, (64, 1), generator=random)
    halves = torch.arange(256).remainder(kernel.levels).add(0.5).expand(64, -1).clone()
    halves[:, 0], halves[:, 1] = 0, kernel.levels  # the ends of the range
    halves = (halves - zeros) * sizes
    product = kernel.pack(torch.eye(256).to(torch.int8))
    for rows in (halves, torch.randn(64, 256, generator=random)):
        counts, zero, step = in_steps(rows, kernel.levels)
        wanted = product.sums(counts).sub_(zero).mul_(step)
        if not torch.equal(torch.cat([product.row(row) for row in rows.split(1)]), wanted):
            return False
    return True


def in_steps(rows: Tensor, levels: int, least: float = 6.2e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise each of some rows as ``torch.ops.quantized.linear_dynamic`` quantises one.

    Also scripted, so plain.

    Reference: ``ChooseQuantizationParams`` in torch, ``aten/src/ATen/native/quantized/cpu/QuantUtils.h``.

    Args:
        rows: [R, K] float32.
        levels: 255 or 127.
        least: a step below this, torch chooses in another way.

    Returns:
        [R, K] counts of steps in float32, which kernels round; then [R, 1] each: which step is 0, and a
        step's size.
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
    # addcmul rounds once, as the CPU's own instruction does; where it does not, ``Int8Kernel.has_one_call``
    # finds out.
    return torch.addcmul(zero, rows, step.reciprocal()), zero, step


def are_rounded(sums: Tensor) -> bool:
    """Whether float32 may have rounded any of these sums of whole numbers. Also scripted, so plain."""
    return float(torch.maximum(sums.amax(), -sums.amin())) >= 2.0**24
