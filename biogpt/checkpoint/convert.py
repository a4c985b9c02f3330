"""Convert a fairseq archive of the BioGPT paper (checkpoint, ``dict.txt``, ``bpecodes``) to a model folder.

And a model folder to another precision, or a head to a folder that stands alone.

The archives of https://github.com/microsoft/BioGPT, the fine-tuned ones included, are in this format.
"""

import argparse
import gzip
import json
import logging
import lzma
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biogpt.checkpoint.files import written_whole
from biogpt.checkpoint.filling import fill
from biogpt.checkpoint.hub import find
from biogpt.checkpoint.pretrained import (
    MAX_SHARD_SIZE,
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptTokenizer,
    PretrainedModel,
)
from biogpt.checkpoint.weights import read_pickle, read_weights
from biogpt.model.config import BioGptConfig
from biogpt.text.files import check_file, read_small

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq puts them before the dictionary
DICTIONARY, MERGES = "dict.txt", "bpecodes"

# fairseq's setting: ours. The tensors' shapes are checked against them when the model is filled.
SETTINGS = {
    "decoder_embed_dim": "hidden_size",
    "decoder_layers": "num_hidden_layers",
    "decoder_attention_heads": "num_attention_heads",
    "decoder_ffn_embed_dim": "intermediate_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "activation_dropout": "activation_dropout",
    "decoder_layerdrop": "layerdrop",
    "share_decoder_input_output_embed": "tie_word_embeddings",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new", "relu": "relu"}
# fairseq's key prefix: ours, the first that fits; None is dropped.
KEYS = {
    "decoder.version": None,
    "decoder.output_projection.": "output_projection.",
    "decoder.": "biogpt.",
}


def convert(archive: str | Path, folder: str | Path) -> None:
    """Write ``config.json``, ``model.safetensors``, ``vocab.json`` and ``merges.txt`` for a fairseq archive.

    Loading the checkpoint runs no code: it may hold tensors, plain values and ``argparse.Namespace``.

    Args:
        archive: a folder with ``checkpoint.pt`` (or one other ``.pt``), ``dict.txt`` and ``bpecodes``; or a
            ``.tar.gz`` or ``.tgz`` of one.
        folder: where to write; made when missing.

    Raises:
        FileNotFoundError: a file is missing; the message says where to get it.
        ValueError: a file is damaged or refused, or the files contradict each other.
    """
    archive, folder = Path(archive), Path(folder)
    if archive.is_dir():
        return _convert_folder(archive, folder)
    if not archive.is_file():
        raise FileNotFoundError(f"{archive} does not exist; expected a folder or a .tar.gz")
    check_file(archive)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unpacked:  # as large as the result: on the same disk
        try:
            with tarfile.open(archive) as tar:
                # The filter refuses links and paths that lead out of the folder.
                tar.extractall(unpacked, filter="data")
                while tar.fileobj is not None and tar.fileobj.read(2**20):
                    pass  # to the checksum at the end
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise ValueError(f"{archive} is refused or damaged; expected a .tar.gz: {error}") from error
        checkpoints = sorted(Path(unpacked).rglob("*.pt"))
        _convert_folder(checkpoints[0].parent if checkpoints else Path(unpacked), folder)


def rewrite(
    source: str | Path, folder: str | Path, precision: str = "", shard_bytes: int = MAX_SHARD_SIZE
) -> None:
    """Write a model anew, with its vocabulary, as a folder that stands alone: a head with its decoder.

    Args:
        source: embedded name, folder or Hub id.
        precision: ``float32``, ``bfloat16``, ``float16`` or ``int8``; that of the source when empty.
        shard_bytes: of the largest file.

    Raises:
        ValueError, OSError: as ``from_pretrained`` and ``save_pretrained``.
    """
    found = find(source)
    stored = read_weights(found)
    heads: dict[str, type[PretrainedModel]] = {
        "classifier.weight": BioGptForTokenClassification,
        "score.weight": BioGptForSequenceClassification,
    }
    kind = next((kind for key, kind in heads.items() if key in stored), BioGptForCausalLM)
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()}
    first = str(next(iter(stored.values())).dtype).removeprefix("torch.")
    precision = precision or ("int8" if "int8" in types else first)
    del stored
    model = kind.from_pretrained(found, device="cpu", precision=precision)
    model.save_pretrained(folder, shard_bytes, merge=True)
    BioGptTokenizer.from_pretrained(found).save_pretrained(folder)


def _convert_folder(archive: Path, folder: Path) -> None:
    dictionary, merges = (_original(archive, name) for name in (DICTIONARY, MERGES))
    path = _checkpoint_file(archive)
    settings, tensors = _read_checkpoint(path)
    rows = tensors["decoder.embed_tokens.weight"].shape[0]
    vocabulary = _vocabulary(_symbols(dictionary), rows, settings, path)
    merges_text = _merges(merges)
    config = _config(settings, tensors, len(vocabulary), path)
    with torch.device("meta"):
        model = BioGptForCausalLM(config)
    fill(model, _renamed(tensors, path), path)
    model.save_pretrained(folder)
    with written_whole(folder, "vocab.json", "merges.txt") as (vocab_path, merges_path):
        vocab_path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        merges_path.write_text(merges_text, encoding="utf-8")
    logger.info("%s: %d parameters, %d tokens", folder, sum(p.numel() for p in model.parameters()), rows)


def _original(archive: Path, name: str) -> Path:
    path = archive / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{archive} has no {name}; those of the paper are in data/BioGPT and data/BioGPT-Large of "
            "https://github.com/microsoft/BioGPT"
        )
    return path


def _checkpoint_file(archive: Path) -> Path:
    found = sorted(archive.glob("*.pt"))
    if archive / "checkpoint.pt" in found:
        return archive / "checkpoint.pt"
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise FileNotFoundError(f"{archive}: expected checkpoint.pt, or one other .pt file; found {names}")
    return found[0]


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings of task and model by name, and tensors by fairseq's keys."""
    content = read_pickle(path, allowed=[argparse.Namespace])
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or "decoder.embed_tokens.weight" not in tensors:
        raise ValueError(f"{path} is no fairseq language model: expected model → decoder.embed_tokens.weight")
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: {key!r:.80} is {type(tensor).__name__}; expected a tensor by name")
    if tensors["decoder.embed_tokens.weight"].ndim != 2:
        shape = tuple(tensors["decoder.embed_tokens.weight"].shape)
        raise ValueError(f"{path}: decoder.embed_tokens.weight has the shape {shape}; expected (rows, width)")
    settings: dict[str, Any] = {}
    groups = content.get("cfg") or {}  # fairseq from 0.11 on; args before
    for group in (groups.get("task"), groups.get("model"), content.get("args")):
        settings |= vars(group) if isinstance(group, argparse.Namespace) else group or {}
    return settings, tensors


def _symbols(path: Path) -> list[str]:
    """Symbols of a fairseq dictionary, one ``symbol count`` a line, in order."""
    symbols = []
    # Not splitlines(): some symbols are Unicode line separators.
    for number, line in enumerate(read_small(path).removesuffix("\n").split("\n"), 1):
        symbol, _, count = line.rpartition(" ")
        if not symbol or not count.isdigit():
            raise ValueError(f"{path}, line {number}: {line!r}; expected a symbol and its count")
        symbols.append(symbol)
    return symbols


def _vocabulary(symbols: list[str], rows: int, settings: dict[str, Any], path: Path) -> dict[str, int]:
    """Ids by token, where ``x@@`` (more of the word follows) becomes ``x``, and ``x`` becomes ``x</w>``.

    Prompt-tuned checkpoints (PubMedQA) have rows for learned prompt tokens after the dictionary's.
    """
    known = len(SPECIAL_TOKENS) + len(symbols)
    learned = int(settings.get("learned_prompt") or 0)
    if rows == known + learned:
        symbols = symbols + [f"learned{i}" for i in range(1, learned + 1)]
    elif rows != known:
        raise ValueError(
            f"{path} has {rows} embedding rows; {DICTIONARY} has {len(symbols)} symbols, expected "
            f"{rows - len(SPECIAL_TOKENS)} ({len(SPECIAL_TOKENS)} special tokens come on top): "
            "they belong to different models"
        )
    tokens = [s.removesuffix("@@") if s.endswith("@@") else f"{s}</w>" for s in symbols]
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *tokens))}
    if len(vocabulary) != rows:
        raise ValueError(f"{DICTIONARY} beside {path} repeats {rows - len(vocabulary)} symbols")
    return vocabulary


def _merges(path: Path) -> str:
    """The content of ``bpecodes``, which is that of ``merges.txt``: two symbols and a count a line."""
    text = read_small(path)
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        if len(line.split(" ")) != 3:
            raise ValueError(f"{path}, line {number}: {line!r}; expected two symbols and a count")
    return text


def _config(
    settings: dict[str, Any], tensors: dict[str, Tensor], vocab_size: int, path: Path
) -> BioGptConfig:
    missing = sorted({*SETTINGS, "activation_fn"} - settings.keys())
    if missing:
        raise ValueError(f"{path}: its settings lack {', '.join(missing)}")
    if not settings.get("decoder_normalize_before", True):
        raise ValueError(f"{path}: decoder_normalize_before is false; BioGPT is a pre-norm decoder")
    activation = settings["activation_fn"]
    if activation not in ACTIVATIONS:
        raise ValueError(f"{path}: activation_fn is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    limit = settings.get("max_target_positions") or settings.get("tokens_per_sample")
    if not limit:
        raise ValueError(f"{path}: its settings lack max_target_positions")
    return BioGptConfig(
        **{ours: settings[theirs] for theirs, ours in SETTINGS.items()},
        vocab_size=vocab_size,
        max_position_embeddings=limit,
        hidden_act=ACTIVATIONS[activation],
        scale_embedding=not settings.get("no_scale_embedding", False),
    )


def _renamed(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in tensors.items():
        prefix = next((prefix for prefix in KEYS if key.startswith(prefix)), None)
        if prefix is None:
            raise ValueError(f"{path}: unexpected key {key!r}; all of a language model begin with 'decoder.'")
        if (ours := KEYS[prefix]) is not None:
            renamed[ours + key.removeprefix(prefix)] = tensor
    return renamed
