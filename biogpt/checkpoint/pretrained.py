"""The public models and tokenizer: loaded from and saved to folders in the Hub's layout.

Loading is strict and cheap: the model is built without memory, the file is mapped, and every key of the
checkpoint is used and every parameter filled, or an error names those that are not.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from biogpt.checkpoint.files import written_whole
from biogpt.checkpoint.filling import fill
from biogpt.checkpoint.hub import find
from biogpt.checkpoint.layout import CONFIG, INDEX, require
from biogpt.checkpoint.weights import read_weights
from biogpt.model.config import BioGptConfig
from biogpt.model.heads import Head, LanguageModel, SequenceClassifier, TokenClassifier
from biogpt.runners.precision import Precision, check_precision, choose_device, choose_precision
from biogpt.text.tokenizer import MERGES_FILE, VOCAB_FILE, Tokenizer

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = 5_000_000_000  # bytes
_SAVED = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


class PretrainedModel(Head):
    """A head that can be loaded and saved.

    Attributes:
        precision: as chosen by ``from_pretrained``; None before.
        folder: that ``from_pretrained`` found; read there what else belongs to the model.
    """

    precision: Precision | None = None
    folder: Path

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
                ``biogpt.runners.precision.choose_precision``. Layers are made int8 one by one, so that little
                more than the result is ever held; they cannot be trained.
            labels: names of the labels of a new head, drawn at random to be fine-tuned; whatever head the
                checkpoint has is left out. None takes the checkpoint's own head.
            trainable: False lets ``auto`` take int8 where that is fastest, as those do who only serve it.

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
                config,
                id2label=_label_names(labels),
                word_encoder_size=0,
                word_encoder_groups=(),
                label_chain=False,
                read_layers=0,
            )
        with torch.device("meta"):
            model = cls(config)
        weights = read_weights(folder)
        count = sum(parameter.numel() for parameter in model.parameters())
        to_train = labels is not None or (trainable and precision == "auto")
        chosen = choose_precision(precision, target, count, to_train)
        logger.info("%s: %s", source, chosen.reason)
        fill(model, weights, folder, target, chosen.dtype, labels is not None, chosen.int8)
        model.precision, model.folder = chosen, folder
        return model.eval()

    def save_pretrained(self, folder: str | Path, max_shard_size: int = MAX_SHARD_SIZE) -> None:
        """Write ``config.json`` and ``model.safetensors``, or shards and their index.

        An int8 model keeps its int8 weights, each row with its scale at its end, and ``quantization_config``
        in the config says so. Only this package opens such a folder; ``transformers`` refuses it by its
        shapes.

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
        state = self.state_dict()
        for name in self.ties:
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
