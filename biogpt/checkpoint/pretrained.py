"""Load and save model folders in the Hub's layout, with the key names of ``transformers``.

Loading is strict and cheap: the model is built without memory, the file is mapped, and every key of the
checkpoint is used and every parameter filled, or an error names those that are not.
"""

import ctypes
import json
import logging
import mmap
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from biogpt.checkpoint.files import written_whole
from biogpt.checkpoint.hub import CONFIG, INDEX, WEIGHTS, find, require, shard_names, weights_file
from biogpt.model.config import BioGptConfig
from biogpt.model.decoder import initialize
from biogpt.model.heads import Head, LanguageModel, SequenceClassifier, TokenClassifier
from biogpt.runners.layers import SCALE_BYTES, dequantize, load_int8
from biogpt.runners.precision import Precision, check_precision, choose_device, choose_precision
from biogpt.text.tokenizer import MERGES_FILE, VOCAB_FILE, Tokenizer

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = 5_000_000_000  # bytes
BODY = "biogpt"
HEADS = {  # name of the head's module: what it does
    "output_projection": "language model",
    "classifier": "token classification",
    "score": "sequence classification",
}
_USES = {  # of a head: what is called to use it
    "classifier": "EntityRecognizer (python -m biogpt ner)",
    "score": "TextClassifier (python -m biogpt classify)",
}
EMBEDDING = f"{BODY}.embed_tokens.weight"
TIED = "output_projection.weight"  # shares its tensor with EMBEDDING, unless the config says otherwise
# Buffers that older software wrote beside the weights; they hold nothing that was learned.
_BUFFERS = re.compile(r"(.*\.)?(position_ids|_float_tensor)")
_SAVED = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_FAULTS_SHOWN = 8


class WrongHead(ValueError):
    """A checkpoint has another head than the one asked for, or none.

    Attributes:
        found: what the heads that it has do, such as ``token classification``.
        wanted: what the one asked for does.
    """

    def __init__(self, message: str, found: Sequence[str], wanted: str) -> None:
        super().__init__(message)
        self.found, self.wanted = tuple(found), wanted


class PretrainedModel(Head):
    """A head that can be loaded and saved.

    Attributes:
        precision: as chosen by ``from_pretrained``; None before.
    """

    precision: Precision | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        labels: Sequence[str] | None = None,
        trainable: bool = True,
    ) -> Self:
        """Load a model, in evaluation mode.

        In the precision of the file, on a CPU, the weights stay mapped from it; otherwise they are
        converted one by one. Nothing in a checkpoint runs code.

        Args:
            source: an embedded name, a folder, or a Hub id ``owner/name`` with an optional ``@revision``.
            revision: branch, tag or commit of a Hub id.
            device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
            precision: ``auto``, ``float32``, ``bfloat16``, ``float16`` or ``int8``; see
                ``biogpt.runners.precision.choose_precision``. Layers are made int8 one by one, so that little more than the
                result is ever held; they cannot be trained.
            labels: names of the labels of a new head, drawn at random to be fine-tuned; whatever head the
                checkpoint has is left out. None takes the checkpoint's own head.
            trainable: False lets ``auto`` take int8 where that is fastest, as those do who only serve a model.

        Raises:
            OSError: a file is missing, or cannot be downloaded (see ``biogpt.checkpoint.hub.find``).
            ValueError: the checkpoint holds another architecture or head, does not fit its config or its
                vocabulary, or is damaged; or an argument is wrong.
        """
        target = choose_device(device)
        check_precision(precision)
        folder = find(source, revision)
        config = BioGptConfig.from_json(require(folder, CONFIG))
        _check_vocabulary(folder, config)
        if labels is not None:
            config = replace(
                config, id2label=_label_names(labels), word_encoder_size=0, word_encoder_groups=()
            )
        with torch.device("meta"):
            model = cls(config)
        weights = read_weights(folder)
        if labels is not None:
            model._drop_heads(weights)
        count = sum(parameter.numel() for parameter in model.parameters())
        to_train = labels is not None or (trainable and precision == "auto")
        chosen = choose_precision(precision, target, count, to_train)
        logger.info("%s: %s", source, chosen.reason)
        model.load_weights(weights, folder, target, chosen.dtype, labels is not None, chosen.int8)
        model.precision = chosen
        return model.eval()

    def load_weights(
        self,
        weights: dict[str, Tensor],
        origin: Path,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        new_head: bool = False,
        int8: bool = False,
    ) -> None:
        """Fill every parameter, strictly.

        Args:
            weights: tensors by key. It is emptied on the way, so that no tensor is held twice.
            origin: named in errors.
            device, dtype: where to put the tensors, and in which precision; None leaves them.
            new_head: draw the head's parameters at random; ``weights`` has none.
            int8: make the linear layers and the embedding int8; else those that are int8 become floats.

        Raises:
            ValueError: a key is missing or left over, or a shape differs.
        """
        self._fill_ties(weights, origin)
        expected = dict(self.named_parameters(remove_duplicate=False))
        drawn = {name for name in expected if new_head and not name.startswith(f"{BODY}.")}
        self._check_keys(expected.keys() - drawn, weights.keys(), origin)
        faults = [
            f"{name} {tuple(_float_shape(weights[name]))}, expected {tuple(parameter.shape)}"
            for name, parameter in expected.items()
            if name in weights and _float_shape(weights[name]) != parameter.shape
        ]
        if faults:
            raise ValueError(f"{origin}: shapes do not fit {CONFIG}: {_listed(faults, '; ')}")
        ties = self.ties
        if int8:
            load_int8(self, weights, BODY, partial(_forget, _mappings(weights.values())))
            ties = {}
        state = {}
        for name in [name for name in weights if name not in ties]:
            tensor = weights.pop(name)
            if tensor.dtype == torch.int8:
                tensor = dequantize(tensor)
            state[name] = tensor.to(device=device, dtype=dtype)
        state |= {name: state[source] for name, source in ties.items()}
        self.load_state_dict(state, strict=not (drawn or int8), assign=True)
        if not int8:
            self.tie_weights()
        if drawn:
            first = next(iter(state.values()))
            head = self.get_submodule(self._head())
            head.to_empty(device=first.device).to(first.dtype)
            initialize(head, self.config)

    def save_pretrained(self, folder: str | Path, max_shard_size: int = MAX_SHARD_SIZE) -> None:
        """Write ``config.json`` and ``model.safetensors``, or shards and their index.

        An int8 model keeps its int8 weights, each row with its scale at its end, and ``quantization_config`` in the
        config says so. Only this package opens such a folder; ``transformers`` refuses it by the weights' shapes.

        Files are written beside the old ones and then renamed, so a full disk or a kill leaves no
        half-written file; shards of an earlier save are removed.

        Args:
            folder: made when missing.
            max_shard_size: bytes; more are split. A single tensor is never split.

        Raises:
            OSError: the folder cannot be written to, or the disk is full; what was there is kept.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ties = self.ties
        state = self.state_dict()
        for name in ties:
            state.pop(name)
        shards = list(_split(state, max_shard_size))
        names = ["model.safetensors"]
        if len(shards) > 1:
            names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
        values = self.config.to_dict() | {"architectures": [type(self).__name__], "dtype": dtype}
        if any(tensor.dtype == torch.int8 for tensor in state.values()):
            values["quantization_config"] = {"quant_method": "biogpt-int8"}
        texts = {CONFIG: values}
        if len(shards) > 1:
            texts[f"model.safetensors{INDEX}"] = {
                "metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())},
                "weight_map": {key: name for name, keys in zip(names, shards, strict=True) for key in keys},
            }
        with written_whole(folder, *names, *texts) as unfinished:
            described = unfinished[len(names) :]
            for path, values in zip(described, texts.values(), strict=True):
                path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            for path, keys in zip(unfinished, shards, strict=False):
                tensors = {key: state[key].detach().contiguous().cpu() for key in keys}
                save_file(tensors, path, metadata={"format": "pt"})
                # save_file lets only its owner read the file (safetensors 0.8), which no server would expect.
                shutil.copymode(described[0], path)
        for path in list(folder.iterdir()):
            if _SAVED.fullmatch(path.name) and path.name not in (*names, *texts):
                path.unlink()

    def _head(self) -> str:
        return next(name for name, _ in self.named_children() if name in HEADS)

    def _drop_heads(self, weights: dict[str, Tensor]) -> None:
        """Take the checkpoint's head out, to make room for a new one."""
        if self.tied_weights:
            raise ValueError("labels are for classification heads; a language model predicts its vocabulary")
        for name in [name for name in weights if not name.startswith(f"{BODY}.")]:
            tensor = weights.pop(name)
            if name == TIED and self.config.tie_word_embeddings:
                weights.setdefault(EMBEDDING, tensor)

    def _fill_ties(self, weights: dict[str, Tensor], origin: Path) -> None:
        """Of two tied tensors a checkpoint may hold either; if it holds two different ones, both are used."""
        for target, source in self.ties.items():
            if target in weights and source in weights:
                if not torch.equal(weights[target], weights[source]):
                    # As the reference does: what was trained counts, not what the config says of it.
                    logger.warning(
                        "%s: %s ties %s to %s, but the two differ; they are loaded as they are, untied",
                        *(origin, CONFIG, target, source),
                    )
                    self.config = self.biogpt.config = replace(self.config, tie_word_embeddings=False)
            elif target in weights:
                weights[source] = weights[target]
            elif source in weights:
                weights[target] = weights[source]

    def _check_keys(self, expected: Set[str], found: Set[str], origin: Path) -> None:
        missing = sorted(expected - found)
        unexpected = sorted(found - expected)
        own = self._head()
        has = sorted({key.partition(".")[0] for key in found} & HEADS.keys())
        if self.tied_weights and (others := [head for head in has if head != own]):
            raise WrongHead(
                f"{origin} has a {HEADS[others[0]]} head ({others[0]}.*), and no {HEADS[own]}'s: "
                f"{_USES[others[0]]} reads it; or choose a {HEADS[own]} such as mini",
                [HEADS[head] for head in has],
                HEADS[own],
            )
        if own not in has and any(key.startswith(f"{own}.") for key in missing):
            held = f" but a {HEADS[has[0]]} head" if has else ", nor any other"
            raise WrongHead(
                f"{origin} has no {HEADS[own]} head ({own}.*){held}; an untrained one would predict at "
                f"random. Choose a checkpoint fine-tuned for {HEADS[own]}"
                + ("" if self.tied_weights else ", or give labels= to draw a new head and fine-tune it"),
                [HEADS[head] for head in has],
                HEADS[own],
            )
        if missing or unexpected:
            raise ValueError(
                f"{origin} does not fit {type(self).__name__} and its {CONFIG}: "
                f"missing {_listed(missing)}; unexpected {_listed(unexpected)}"
            )


class BioGptForCausalLM(PretrainedModel, LanguageModel):
    """``biogpt.model.heads.LanguageModel`` that can be loaded and saved."""


class BioGptForTokenClassification(PretrainedModel, TokenClassifier):
    """``biogpt.model.heads.TokenClassifier`` that can be loaded and saved."""


class BioGptForSequenceClassification(PretrainedModel, SequenceClassifier):
    """``biogpt.model.heads.SequenceClassifier`` that can be loaded and saved."""


class BioGptTokenizer(Tokenizer):
    """``biogpt.text.tokenizer.Tokenizer`` that can be loaded and saved."""

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None, normalize: bool = True) -> Self:
        """Load the tokenizer of a checkpoint.

        Args:
            source: embedded name, folder or Hub id; ``biogpt.checkpoint.hub.find`` tells them apart.
            revision: branch, tag or commit on the Hub.

        Raises:
            FileNotFoundError, ValueError: as ``from_files``, or the checkpoint is not found.
        """
        folder = find(source, revision)
        return cls.from_files(folder / VOCAB_FILE, folder / MERGES_FILE, normalize)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``vocab.json``, ``merges.txt`` and ``tokenizer_config.json``, as ``transformers`` reads them.

        Raises:
            OSError: the folder cannot be written to, or the disk is full; what was there is kept.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = self.files()
        with written_whole(folder, *files) as unfinished:
            for path, content in zip(unfinished, files.values(), strict=True):
                path.write_text(content, encoding="utf-8", newline="\n")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by its key, mapped from the file and not read yet.

    Raises:
        FileNotFoundError: the folder holds no weights, or a shard is missing.
        ValueError: a file is damaged, or needs more than tensors to be loaded.
    """
    name = weights_file(os.listdir(folder))
    if name is None:
        raise FileNotFoundError(
            f"{folder} has no weights: expected one of {', '.join(WEIGHTS)}. "
            "Copy it from where the checkpoint came from"
        )
    names = shard_names(folder / name) if name.endswith(INDEX) else [name]
    weights: dict[str, Tensor] = {}
    for shard in names:
        tensors = read_tensors(require(folder, shard))
        if twice := sorted(weights.keys() & tensors.keys()):
            raise ValueError(f"{folder}: {shard} repeats tensors of another shard: {_listed(twice)}")
        weights |= tensors
    return _with_body_prefix(weights)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one ``.safetensors`` or ``.bin`` file, mapped; without ``_BUFFERS``.

    Raises:
        ValueError: the file is damaged, or holds anything but floating-point tensors by name.
    """
    with path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise ValueError(f"{path} is only a Git LFS pointer: run `git lfs pull` in its folder")
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged or cut short: download it again, or save it anew ({error})"
            ) from error
    else:
        tensors = read_pickle(path)
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds a {type(tensors).__name__}; expected tensors by name")
    tensors = {key: tensor for key, tensor in tensors.items() if not _BUFFERS.fullmatch(str(key))}
    for key, tensor in tensors.items():
        known = isinstance(tensor, Tensor) and (
            tensor.is_floating_point() or (tensor.dtype == torch.int8 and tensor.ndim == 2)
        )
        if not known:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{path}: {key!r} is {kind}; expected a floating-point tensor")
    return tensors


def read_pickle(path: Path, allowed: Sequence[type] = ()) -> Any:
    """What ``torch.save`` wrote, its tensors mapped; plain values and tensors only, so that no code can run.

    Args:
        allowed: classes that may occur as well; making one must be harmless whatever its state.

    Raises:
        ValueError: the file holds other objects, or is damaged.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} is refused: beside tensors it holds Python objects"
            f"{f' ({asked[1]})' if asked else ''}, and loading those can run code. "
            "Ask its author for safetensors, or choose another checkpoint"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read: it is damaged, cut short, or not in the zip format that torch.save "
            f"writes since 1.6. Download it again ({error})"
        ) from error


def _float_shape(tensor: Tensor) -> torch.Size:
    """The shape of a tensor of a file, once its scales are taken off."""
    rows, *columns = tensor.shape
    return torch.Size([rows, columns[0] - SCALE_BYTES]) if tensor.dtype == torch.int8 else tensor.shape


def _mappings(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """First and last address of the mapped files that tensors lie in; none but on Linux.

    Another model of the same file has mappings of its own, and may have trained what lies there.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    files = [line.split()[0].split("-") for line in lines if line.split(maxsplit=5)[-1].startswith("/")]
    ranges = [(int(start, 16), int(end, 16)) for start, end in files]
    starts = {tensor.data_ptr() for tensor in tensors}
    return [(start, end) for start, end in ranges if any(start <= address < end for address in starts)]


def _forget(mappings: Sequence[tuple[int, int]]) -> None:
    """Give back the memory of mapped files; what is needed again is read again, as the file has it."""
    for start, end in mappings:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _label_names(labels: Sequence[str]) -> dict[int, str]:
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"labels are {list(labels)}; expected one or more different names")
    return dict(enumerate(labels))


def _check_vocabulary(folder: Path, config: BioGptConfig) -> None:
    """Refuse a folder whose tokenizer gives other ids than the model was made for; it may have none."""
    path = folder / "vocab.json"
    if not path.is_file():
        return
    try:
        size = len(json.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a vocabulary: expected a JSON object of token: id") from error
    if size != config.vocab_size:
        raise ValueError(
            f"{path} has {size} tokens, but vocab_size in {folder / CONFIG} is {config.vocab_size}: "
            "the files belong to different models"
        )


def _with_body_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A bare decoder's keys (``layers.0…``) as those of a model with a head (``biogpt.layers.0…``)."""
    if any(key.startswith(f"{BODY}.") for key in weights):
        return weights
    return {
        key if key.partition(".")[0] in HEADS else f"{BODY}.{key}": tensor for key, tensor in weights.items()
    }


def _split(state: dict[str, Tensor], limit: int) -> Iterator[list[str]]:
    """Keys in order, cut into groups of at most ``limit`` bytes, or of one tensor that is larger."""
    keys: list[str] = []
    size = 0
    for key, tensor in state.items():
        if keys and size + tensor.nbytes > limit:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += tensor.nbytes
    yield keys


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    more = len(names) - _FAULTS_SHOWN
    shown = separator.join(names[:_FAULTS_SHOWN]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown
