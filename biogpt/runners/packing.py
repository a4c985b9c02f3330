"""Weights laid out for serving on a CPU, or made int8 while a model is loaded."""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from biogpt.model.decoder import Attention, BioGptModel, DecoderLayer
from biogpt.model.heads import Head
from biogpt.runners.kernels import Int8Kernel, fbgemm_engine, has_fbgemm
from biogpt.runners.layers import BLOCK, Int8Embedding, Int8Linear, PackedLinear, can_pack, quantize, split
from biogpt.runners.speeds import int8_kernel

_PACKERS = 2  # threads that convert layers; a third is no faster, and each keeps memory of its own


@torch.no_grad()
def pack(model: Head) -> None:
    """Lay the weights of a float model out for serving on a CPU; it can be saved as before.

    Packed kernels are up to twice as fast, and add up in another order; a model with them cannot be trained.
    int8 models, and those on other devices, stay as they are.
    """
    if model.layout != "plain" or model.device.type != "cpu" or not can_pack(model.dtype):
        return
    model.layout = "packed"
    for layer in model.biogpt.layers:
        assert isinstance(layer, DecoderLayer)
        _fuse(layer.self_attn)
        for name in ("fc1", "fc2"):
            setattr(layer, name, _packed(layer, name))
        layer.self_attn.out_proj = _packed(layer.self_attn, "out_proj")
    if hasattr(model, "output_projection"):  # other heads are small
        pack_projection(model)


def pack_projection(model: Head) -> None:
    """Lay out a language model's output projection as the decoder's layers are."""
    model.output_projection = _packed(model, "output_projection")


def int8_projection(model: Head, weight: Tensor) -> None:
    """Build a language model's output projection as ``load_int8`` does; weights [V, D], floats or int8."""
    layer = Int8Linear(*_int8(weight), None, ("output_projection",), int8_kernel())
    model.set_submodule("output_projection", layer)


def twin(decoder: BioGptModel) -> BioGptModel:
    """Another decoder with the same tensors in memory, which cannot be trained.

    Its modules and parameters are its own, so moving it, or what is hung on it, leaves the first alone.
    """
    same: dict[int, Any] = {}
    for module in decoder.modules():
        for part in module.parameters(recurse=False):
            same[id(part)] = nn.Parameter(part.detach(), requires_grad=False)
        for value in (*vars(module).values(), *module.buffers(recurse=False)):
            if isinstance(value, Tensor | torch.ScriptObject):
                same[id(value)] = value
    return copy.deepcopy(decoder, same)


def _packed(parent: nn.Module, name: str) -> PackedLinear:
    layer = parent.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return PackedLinear(layer.weight, layer.bias, (name,))


def _fuse(attention: Attention) -> None:
    names = ("q_proj", "k_proj", "v_proj")
    projections = [attention.get_submodule(name) for name in names]
    weight = torch.cat([projection.get_parameter("weight") for projection in projections])
    bias = torch.cat([projection.get_parameter("bias") for projection in projections])
    attention.fuse(PackedLinear(weight, bias, names))


@torch.no_grad()
def load_int8(model: Head, weights: dict[str, Tensor], body: str, after_layer: Callable[[], None]) -> None:
    """Build the int8 layers of a decoder from a checkpoint's tensors, layer by layer.

    LayerNorm gains and biases are folded into the weights that follow: a gain that lifts one channel would
    take the others' share of the 8 bits (data-free; cf. SmoothQuant, arXiv 2211.10438).

    Args:
        model: on the meta device.
        weights: floats, or int8 as ``join`` makes them; those used are taken out, so that no layer is held
            twice.
        body: name of the decoder in the model, and in the keys.
        after_layer: called when the tensors of a layer are no longer needed.
    """
    decoder = model.biogpt
    model.layout = "int8"
    kernel = int8_kernel()
    table = weights.pop(f"{body}.embed_tokens.weight")
    pair = _int8(table)
    decoder.embed_tokens = Int8Embedding(*pair)
    after_layer()
    # Packing takes most of the time, runs on one core, and lets go of Python meanwhile.
    with (
        fbgemm_engine() if has_fbgemm() else nullcontext(),
        _one_core_a_thread(),
        ThreadPoolExecutor(_PACKERS) as pool,
    ):
        head, projection = weights.pop("output_projection.weight", None), None
        if head is not None:
            own = pair if head is table else _int8(head)
            projection = pool.submit(Int8Linear, *own, None, ("output_projection",), kernel)
        del table, head
        for index, layer in enumerate(decoder.layers):
            assert isinstance(layer, DecoderLayer)
            key = f"{body}.layers.{index}"
            attention = layer.self_attn
            first = _take_norm(layer.self_attn_layer_norm, weights, f"{key}.self_attn_layer_norm")
            last = _take_norm(layer.final_layer_norm, weights, f"{key}.final_layer_norm")
            made = pool.map(
                partial(_int8_linear, weights, kernel),
                (key, key, f"{key}.self_attn", f"{key}.self_attn"),
                (("fc1",), ("fc2",), ("q_proj", "k_proj", "v_proj"), ("out_proj",)),
                (last, None, first, None),
            )
            layer.fc1, layer.fc2, fused, attention.out_proj = made
            attention.fuse(fused)
            after_layer()
        if projection is not None:
            model.set_submodule("output_projection", projection.result())


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
    weights: dict[str, Tensor],
    kernel: Int8Kernel,
    key: str,
    names: Sequence[str],
    norm: tuple[Tensor, Tensor] | None = None,
) -> Int8Linear:
    pairs, biases = [], []
    for name in names:
        weight, bias = weights.pop(f"{key}.{name}.weight"), weights.pop(f"{key}.{name}.bias").float()
        if weight.dtype == torch.int8:  # saved by us, with its norm folded in already
            pairs.append(split(weight))
        else:
            gain, shift = norm or (None, None)
            if shift is not None:
                bias = bias + torch.cat([part.float() @ shift for part in weight.split(BLOCK)])
            pairs.append(quantize(weight, gain))
        biases.append(bias)
    weight, scale = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return Int8Linear(weight, scale, torch.cat(biases), names, kernel)
