"""Fill a model from a checkpoint's tensors, strictly: what is missing, left over or misshapen is named.

The keys are those of ``transformers``: ``biogpt.`` before those of the decoder, and the head beside it.
"""

import logging
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from biogpt.checkpoint.layout import CONFIG
from biogpt.checkpoint.weights import MappedFiles, listed
from biogpt.model.decoder import BioGptModel, initialize
from biogpt.model.heads import Head
from biogpt.runners.layers import SCALE_BYTES, dequantize
from biogpt.runners.packing import int8_projection, load_int8, pack_projection

logger = logging.getLogger(__name__)

BODY = "biogpt"  # name of the decoder in a model, and before its keys
HEADS = {  # name of the head's module: what it does
    "output_projection": "language model",
    "classifier": "token classification",
    "score": "sequence classification",
}
_USES = {  # of a head: what is called to use it
    "classifier": "EntityRecognizer (python -m biogpt ner)",
    "score": "TextClassifier (python -m biogpt classify)",
}
_DECODER = ("embed_tokens", "embed_positions", "layers", "layer_norm")  # a bare decoder's keys begin so
EMBEDDING = f"{BODY}.embed_tokens.weight"
PROJECTION = (
    "output_projection.weight"  # shares its tensor with the embedding, unless the config says otherwise
)


class WrongHead(ValueError):
    """A checkpoint has another head than the one asked for, or none.

    Attributes:
        found: what the heads that it has do, such as ``token classification``.
        wanted: what the one asked for does.
    """

    def __init__(self, message: str, found: Sequence[str], wanted: str) -> None:
        super().__init__(message)
        self.found, self.wanted = tuple(found), wanted


def fill(
    model: Head,
    weights: dict[str, Tensor],
    origin: Path,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    new_head: bool = False,
    int8: bool = False,
) -> None:
    """Fill every parameter, strictly.

    Args:
        model: may be on the meta device, and gets the tensors themselves.
        weights: tensors by key. It is emptied on the way, so that no tensor is held twice.
        origin: named in errors.
        device, dtype: where to put the tensors, and in which precision; None leaves them.
        new_head: draw the head's parameters at random, whatever head ``weights`` has.
        int8: make the linear layers and the embedding int8; else those that are int8 become floats.

    Raises:
        ValueError: a key is missing or left over, or a shape differs.
        WrongHead: there is nothing of the head.
    """
    drawn = _check(model, weights, origin, new_head)
    ties = model.ties
    if int8:
        load_int8(model, weights, BODY, MappedFiles(weights.values()).forget)
        ties = {}
    state = {}
    for name in [name for name in weights if name not in ties]:
        tensor = weights.pop(name)
        if tensor.dtype == torch.int8:
            tensor = dequantize(tensor)
        state[name] = tensor.to(device=device, dtype=dtype)
    state |= {name: state[source] for name, source in ties.items()}
    model.load_state_dict(state, strict=not (drawn or int8), assign=True)
    if not int8:
        model.tie_weights()
    if drawn:
        first = next(iter(state.values()))
        head = model.get_submodule(_head_name(model))
        head.to_empty(device=first.device).to(first.dtype)
        initialize(head, model.config)


def fill_head(
    model: Head,
    weights: dict[str, Tensor],
    origin: Path,
    decoder: BioGptModel,
    layout: Literal["plain", "packed", "int8"],
) -> None:
    """As ``fill``, above a decoder that is filled and laid out already; its own tensors are left alone.

    Raises:
        ValueError: as ``fill``.
    """
    _check(model, weights, origin)
    model.biogpt, model.layout = decoder, layout
    decoder.config = model.config
    projection = weights.get(PROJECTION) if model.tied_weights else None
    if layout == "int8" and projection is not None:
        int8_projection(model, weights.pop(PROJECTION))
    state = {
        name: (dequantize(tensor) if tensor.dtype == torch.int8 else tensor).to(model.device, model.dtype)
        for name, tensor in weights.items()
        if not name.startswith(f"{BODY}.")
    }
    model.load_state_dict(state, strict=False, assign=True)
    if layout == "packed" and projection is not None:
        pack_projection(model)
    elif layout == "plain":
        model.tie_weights()


def _check(model: Head, weights: dict[str, Tensor], origin: Path, new_head: bool = False) -> set[str]:
    """Refuse tensors that are not those of the model, one for one; the names of those to be drawn."""
    prefix_body(weights)
    if new_head:
        if model.tied_weights:
            raise ValueError("labels are for classification heads; a language model predicts its vocabulary")
        drop_heads(weights, model.config.tie_word_embeddings)
    _fill_ties(model, weights, origin)
    expected = dict(model.named_parameters(remove_duplicate=False))
    drawn = {name for name in expected if new_head and not name.startswith(f"{BODY}.")}
    _check_keys(model, expected.keys() - drawn, weights.keys(), origin)
    faults = [
        f"{name} {tuple(_float_shape(weights[name]))}, expected {tuple(parameter.shape)}"
        for name, parameter in expected.items()
        if name in weights and _float_shape(weights[name]) != parameter.shape
    ]
    if faults:
        raise ValueError(f"{origin}: shapes do not fit {CONFIG}: {listed(faults, '; ')}")
    return drawn


def _head_name(model: Head) -> str:
    return next(name for name, _ in model.named_children() if name in HEADS)


def prefix_body(weights: dict[str, Tensor]) -> None:
    """Name a bare decoder's keys (``layers.0…``) as those of a model with a head (``biogpt.layers.0…``)."""
    if not any(key.startswith(f"{BODY}.") for key in weights):
        for key in [key for key in weights if key.partition(".")[0] in _DECODER]:
            weights[f"{BODY}.{key}"] = weights.pop(key)


def drop_heads(weights: dict[str, Tensor], tied: bool) -> None:
    """Take all heads out; the projection becomes the embedding where both are one and only it is there."""
    prefix_body(weights)
    for name in [name for name in weights if not name.startswith(f"{BODY}.")]:
        tensor = weights.pop(name)
        if name == PROJECTION and tied:
            weights.setdefault(EMBEDDING, tensor)


def _fill_ties(model: Head, weights: dict[str, Tensor], origin: Path) -> None:
    """Of two tied tensors a checkpoint may hold either; if it holds two different ones, both are used."""
    for target, source in model.ties.items():
        if target in weights and source in weights:
            if not torch.equal(weights[target], weights[source]):
                # As the reference does: what was trained counts, not what the config says of it.
                logger.warning(
                    "%s: %s ties %s to %s, but the two differ; they are loaded as they are, untied",
                    *(origin, CONFIG, target, source),
                )
                model.config = model.biogpt.config = replace(model.config, tie_word_embeddings=False)
        elif target in weights:
            weights[source] = weights[target]
        elif source in weights:
            weights[target] = weights[source]


def _check_keys(model: Head, expected: Set[str], found: Set[str], origin: Path) -> None:
    missing = sorted(expected - found)
    unexpected = sorted(found - expected)
    wanted = _head_name(model)
    heads = sorted({key.partition(".")[0] for key in found} & HEADS.keys())
    if model.tied_weights and (others := [head for head in heads if head != wanted]):
        raise WrongHead(
            f"{origin} has a {HEADS[others[0]]} head ({others[0]}.*), and no {HEADS[wanted]}'s: "
            f"{_USES[others[0]]} reads it; or choose a {HEADS[wanted]} such as mini",
            [HEADS[head] for head in heads],
            HEADS[wanted],
        )
    if wanted not in heads and any(key.startswith(f"{wanted}.") for key in missing):
        held = f" but a {HEADS[heads[0]]} head" if heads else ", nor any other"
        raise WrongHead(
            f"{origin} has no {HEADS[wanted]} head ({wanted}.*){held}; an untrained one would predict at "
            f"random. Choose a checkpoint fine-tuned for {HEADS[wanted]}"
            + ("" if model.tied_weights else ", or give labels= to draw a new head and fine-tune it"),
            [HEADS[head] for head in heads],
            HEADS[wanted],
        )
    if missing or unexpected:
        raise ValueError(
            f"{origin} does not fit {type(model).__name__} and its {CONFIG}: "
            f"missing {listed(missing)}; unexpected {listed(unexpected)}"
        )


def _float_shape(tensor: Tensor) -> torch.Size:
    """The shape of a tensor of a file, once its scales are taken off."""
    rows, *columns = tensor.shape
    return torch.Size([rows, columns[0] - SCALE_BYTES]) if tensor.dtype == torch.int8 else tensor.shape
