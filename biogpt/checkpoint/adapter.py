"""Merge a LoRA adapter, as PEFT saves it, into the weights of its base (Hu et al. 2021, arXiv 2106.09685)."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biogpt.checkpoint.download import cached
from biogpt.checkpoint.filling import BODY, EMBEDDING, HEADS, PROJECTION, prefix_body
from biogpt.checkpoint.hub import HUB_ID, local_folder
from biogpt.checkpoint.layout import CONFIG, require
from biogpt.checkpoint.weights import listed, read_tensors
from biogpt.model.config import BioGptConfig
from biogpt.runners.layers import dequantize
from biogpt.text.files import read_json
from biogpt.text.tokenizer import VOCAB_FILE

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PART = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<linear>[AB])(?:\.default)?\.weight|embedding_(?P<table>[AB])(?:\.default)?)"
)
_SAVED = re.compile(r"\.modules_to_save(\.default)?(?=\.)|\.base_layer(?=\.)")
# What changes more than W + scale B A, by its name in adapter_config.json.
_UNKNOWN = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
)
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")  # those that leave the base as it is


def base_of(folder: Path) -> Path | None:
    """The folder of the model that an adapter's folder names; None for a folder that is no adapter's.

    Raises:
        FileNotFoundError: the base is neither a folder nor in the cache of the Hub.
        ValueError: ``adapter_config.json`` cannot be read, or names no base.
    """
    if not os.path.lexists(folder / ADAPTER_CONFIG) or os.path.lexists(folder / CONFIG):
        return None
    path = require(folder, ADAPTER_CONFIG)
    name = _settings(path).get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise ValueError(f"{path} names no base (base_model_name_or_path is {name!r:.80})")
    beside = folder / name if not Path(name).is_absolute() else None
    base = beside if beside is not None and beside.is_dir() else local_folder(name)
    if base is None and HUB_ID.fullmatch(name):
        base = cached(name, _settings(path).get("revision") or "main")
    if base is None:
        raise FileNotFoundError(
            f"{folder} is a LoRA adapter, and its base {name!r} is not here: load that first, or name its "
            f"folder as base_model_name_or_path in {ADAPTER_CONFIG}"
        )
    if os.path.samefile(base, folder) or not os.path.lexists(base / CONFIG):
        raise ValueError(f"{path}: the base {name!r} is no model's folder: it has no {CONFIG}")
    return base


def tokenizer_folder(folder: Path) -> Path:
    """Where the vocabulary of a folder's model is: with an adapter that has none, at its base."""
    if os.path.lexists(folder / VOCAB_FILE):
        return folder
    return base_of(folder) or folder


def merge_adapter(folder: Path, weights: dict[str, Tensor], config: BioGptConfig) -> BioGptConfig:
    """Add what an adapter has learned to the weights of its base, in place.

    Returns:
        The base's config, with as many rows and labels as the adapter has.

    Raises:
        FileNotFoundError: the adapter has no weights.
        ValueError: it is of a kind that is not known, or does not fit its base.
    """
    path = require(folder, ADAPTER_CONFIG)
    settings = _settings(path)
    _check_kind(path, settings)
    name = next((name for name in _WEIGHTS if os.path.lexists(folder / name)), _WEIGHTS[0])
    tensors = read_tensors(require(folder, name))
    prefix_body(weights)
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if part := _PART.fullmatch(key):
            kind = part["linear"] or f"table {part['table']}"
            pairs.setdefault(_SAVED.sub("", part["module"]), {})[kind] = tensor
        else:
            whole[_SAVED.sub("", key)] = tensor
    if strange := sorted(key for key in whole if "lora_" in key or not _may_replace(key, weights)):
        raise ValueError(f"{folder / name} has tensors that no LoRA adapter of BioGPT has: {listed(strange)}")
    for module, parts in pairs.items():
        key = f"{module}.weight"
        if key not in weights:
            raise ValueError(f"{folder / name} changes {module}, which its base does not have")
        if key == EMBEDDING and key not in whole:
            weights.setdefault(PROJECTION, weights[key])  # tied, but only what is read has learned
        weights[key] = _merged(
            whole.pop(key, weights[key]), parts, _scale(settings, module, parts), key, path
        )
    return _with_whole(weights, whole, config)


def _settings(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def _check_kind(path: Path, settings: dict[str, Any]) -> None:
    kind = settings.get("peft_type", "LORA")
    found = [f"peft_type is {kind!r:.40}"] if kind != "LORA" else []
    found += [f"{name} is {json.dumps(settings[name])[:40]}" for name in _UNKNOWN if settings.get(name)]
    initial = settings.get("init_lora_weights")
    if not any(initial is known or initial == known for known in _INITIAL):
        found.append(f"init_lora_weights is {initial!r:.40}")
    if found:
        raise ValueError(
            f"{path}: {found[0]}, and only plain LoRA is merged. Merge it with PEFT "
            "(model.merge_and_unload().save_pretrained(…)) and give that folder"
        )


def _scale(settings: dict[str, Any], module: str, parts: dict[str, Tensor]) -> float:
    """alpha / r of a module, or alpha / √r, as the adapter has it."""
    alpha, rank = (
        _special(settings.get(pattern) or {}, pattern, module, settings.get(name, 8))
        for pattern, name in (("alpha_pattern", "lora_alpha"), ("rank_pattern", "r"))
    )
    if type(alpha) not in (int, float) or not math.isfinite(alpha) or type(rank) is not int or rank < 1:
        raise ValueError(f"lora_alpha is {alpha!r:.40} and r {rank!r:.40} for {module}; expected numbers")
    rows = {
        kind: tensor.shape[0 if kind.endswith("A") else -1] for kind, tensor in parts.items() if tensor.ndim
    }
    if any(row != rank for row in rows.values()):
        raise ValueError(
            f"{ADAPTER_CONFIG}: r is {rank}, but {module} has the rank {next(iter(rows.values()))}"
        )
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _special(values: Any, name: str, module: str, default: Any) -> Any:
    """The value of the first module in a table that is this one, or ends its name.

    PEFT reads names as regular expressions; those of a stranger are not run.
    """
    if not isinstance(values, dict) or not all(re.fullmatch(r"[\w.]+", key) for key in values):
        raise ValueError(f"{ADAPTER_CONFIG}: {name} is {values!r:.80}; expected an object of module: number")
    return next((values[key] for key in values if f".{module}".endswith(f".{key}")), default)


def _merged(base: Tensor, parts: dict[str, Tensor], scale: float, key: str, path: Path) -> Tensor:
    pair = [parts.get(kind) for kind in ("A", "B")]
    is_table = pair == [None, None]
    if is_table:
        pair = [parts.get(kind) for kind in ("table A", "table B")]
    first, second = pair
    if base.dtype == torch.int8:
        base = dequantize(base)
    if first is None or second is None or len(parts) != 2 or first.ndim != 2 or second.ndim != 2:
        raise ValueError(f"{path.parent}: {key} has no pair of lora_A and lora_B, each with two dimensions")
    if (second.shape[0], first.shape[1]) != (base.shape[::-1] if is_table else base.shape):
        raise ValueError(
            f"{path.parent}: lora_B lora_A of {key} is {second.shape[0]} × {first.shape[1]}, and its base "
            f"{' × '.join(map(str, base.shape))}: they belong to different models"
        )
    change = second.float() @ first.float() * scale
    return (base.float() + (change.T if is_table else change)).to(base.dtype)


def _may_replace(key: str, weights: dict[str, Tensor]) -> bool:
    return key in weights or key.partition(".")[0] in HEADS or key == PROJECTION


def _with_whole(weights: dict[str, Tensor], whole: dict[str, Tensor], config: BioGptConfig) -> BioGptConfig:
    """Put in what was trained whole (``modules_to_save``): a head takes the place of the base's."""
    heads = {key.partition(".")[0] for key in whole if not key.startswith(f"{BODY}.")}
    if heads and heads.isdisjoint({PROJECTION.partition(".")[0]}):
        for key in [key for key in weights if not key.startswith(f"{BODY}.")]:
            tensor = weights.pop(key)
            if key == PROJECTION and config.tie_word_embeddings:
                weights.setdefault(EMBEDDING, tensor)
    if EMBEDDING in whole and PROJECTION not in whole and config.tie_word_embeddings:
        weights.pop(PROJECTION, None)
    weights |= whole
    labels = [
        tensor.shape[0] for key, tensor in whole.items() if key in ("score.weight", "classifier.weight")
    ]
    if labels and labels[0] != config.num_labels:
        names = {index: f"LABEL_{index}" for index in range(labels[0])}
        config = config.with_new_head(names)
    rows = whole[EMBEDDING].shape[0] if EMBEDDING in whole else config.vocab_size
    return replace(config, vocab_size=rows)
