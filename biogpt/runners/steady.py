"""Which numbers of rows a step may have, so that a row's bits do not tell who else is there; found by trying.

Matrix kernels add up in another order for one row than for eight, and which do is a machine's own.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from biogpt.model.decoder import DecoderLayer
from biogpt.model.heads import LanguageModel
from biogpt.runners.threads import side_by_side

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)  # numbers of rows that are computed together
_ROUNDED = 2**18  # numbers less precise than float32 that kernels are compared by
_TIMED_LAYERS = 4  # more weights than caches hold, so that they come from memory as they do in a step
_FEW = 8  # rows, up to which more may be faster than fewer


@torch.inference_mode()
def steady_sizes(
    model: LanguageModel,
    sizes: Sequence[int] = SIZES,
    query_key_value: Callable[[Tensor], Tensor] | None = None,
) -> tuple[int, ...]:
    """Numbers of rows, rising, at which each row's bits are the same, whatever its place and company.

    Matrix kernels add up in another order for one row than for eight. What this machine's do is tried here,
    with every layer shape of the model; the most rows alone are always steady, or else one row is.

    Args:
        sizes: those to try, rising.
        query_key_value: what computes these three of a normed row in the first layer, [R, D] to [R, 3 D]; the
            layer itself when None.
    """
    most = sizes[-1]
    steady = set(sizes)
    for part, rows, full in _probes(model, most, query_key_value):
        if not torch.equal(part(rows.flip(0)).flip(0), full):
            return (1,)
        for size in sizes[:-1]:
            for first in (0, most - size):
                if not torch.equal(part(rows[first : first + size]), full[first : first + size]):
                    steady.discard(size)
    return tuple(sorted(steady))


@torch.inference_mode()
def swift_sizes(model: LanguageModel, sizes: Sequence[int]) -> tuple[int, ...]:
    """Those numbers of rows that no greater one beats.

    OneDNN may compute four rows faster than one or two.
    """
    layers = list(model.biogpt.layers)[:_TIMED_LAYERS]
    few = [size for size in sizes if size <= _FEW]
    hidden = torch.ones(SIZES[-1], model.config.hidden_size, dtype=model.dtype)

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
def is_steady_alone(model: LanguageModel, sizes: Sequence[int]) -> bool:
    """Whether half of the threads (``side_by_side``) give rows the bits that all give, for these sizes."""
    for part, rows, full in _probes(model):
        inputs = [rows[:size] for size in (*sizes, sizes[-1])]  # two at least
        for found in side_by_side(part, inputs):
            if not torch.equal(found, full[: len(found)]):
                return False
    return True


def _probes(
    model: LanguageModel, most: int = SIZES[-1], query_key_value: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[Callable[[Tensor], Tensor], Tensor, Tensor]]:
    """Each kind of layer, the most rows for it, and what it makes of them.

    Several times where few bits would differ.

    Sums in another order differ in the last bits of float32, which most numbers show; of bfloat16 numbers,
    which are rounded to 8 bits, very few do.
    """
    body, projection = model.biogpt, model.output_projection
    layer = body.layers[0]
    assert isinstance(layer, DecoderLayer)
    attention = layer.self_attn
    together = query_key_value or (lambda x: torch.cat(attention.query_key_value(x), dim=-1))
    parts: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: together(layer.self_attn_layer_norm(x)),
        lambda x: attention.out_proj(x),
        lambda x: layer.feed_forward(layer.final_layer_norm(x)),
        lambda x: projection(body.layer_norm(x)),
    )
    random = torch.Generator().manual_seed(0)
    for part in parts:
        missing = 1 if model.dtype == torch.float32 else _ROUNDED
        while missing > 0:
            rows = torch.randn(most, body.config.hidden_size, generator=random)
            rows = rows.to(model.device, model.dtype)
            full = part(rows)
            yield part, rows, full
            missing -= full.numel()
