"""The public models and tokenizer: loaded from and saved to folders in the Hub's layout.

Loading is strict and cheap: the model is built without memory, the file is mapped, and every key of the
checkpoint is used and every parameter filled, or an error names those that are not.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from biogpt.checkpoint.adapter import base_of, merge_adapter, tokenizer_folder
from biogpt.checkpoint.base import (
    BASE,
    FINGERPRINT,
    Base,
    SharedDecoder,
    has_decoder,
    shared_decoder,
    stamp,
)
from biogpt.checkpoint.files import written_whole
from biogpt.checkpoint.filling import BODY, fill, fill_head
from biogpt.checkpoint.hub import find
from biogpt.checkpoint.layout import CONFIG, INDEX, require
from biogpt.checkpoint.weights import read_weights
from biogpt.model.config import BioGptConfig
from biogpt.model.heads import Head, LanguageModel, SequenceClassifier, TokenClassifier
from biogpt.runners.packing import pack, twin
from biogpt.runners.precision import Precision, check_precision, choose_device, choose_precision
from biogpt.text.added import read_added
from biogpt.text.files import read_json
from biogpt.text.tokenizer import MERGES_FILE, VOCAB_FILE, Tokenizer

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = 5_000_000_000  # bytes
MOST_PADDING = 1024  # rows of an embedding without a token; of a large one, a quarter
_SAVED = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


class PretrainedModel(Head):
    """A head that can be loaded and saved.

    Attributes:
        precision: as chosen by ``from_pretrained``; None before.
        folder: that ``from_pretrained`` found; read there what else belongs to the model.
        base: of a head, the model whose decoder it has; None where that is its own.
    """

    precision: Precision | None = None
    folder: Path
    base: Base | None = None
    _shared: SharedDecoder | None = None  # kept alive by those that use it

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
        converted one by one. Nothing in a checkpoint runs code. A head's folder may name the base whose
        decoder it reads; models that cannot be trained share the tensors of one decoder in memory.

        Args:
            source: an embedded name, a folder, or a Hub id ``owner/name`` with an optional ``@revision``.
            revision: branch, tag or commit of a Hub id.
            device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
            precision: ``auto``, ``float32``, ``bfloat16``, ``float16`` or ``int8``; see
                ``biogpt.runners.precision.choose_precision``. Layers are made int8 one by one, so that little
                more than the result is ever held; they cannot be trained.
            labels: names of the labels of a new head, drawn at random to be fine-tuned; whatever head the
                checkpoint has is left out. None takes the checkpoint's own head.
            trainable: False, as those choose who only serve it, lets ``auto`` take int8 where that is
                fastest, lays the weights out for the CPU (``biogpt.runners.packing.pack``), and shares the
                decoder with whatever else of the same folder or base is served in this process.

        Raises:
            OSError: a file is missing, or cannot be downloaded (see ``biogpt.checkpoint.hub.find``).
            ValueError: the checkpoint holds another architecture or head, does not fit its config, its
                vocabulary or its base, or is damaged; or an argument is wrong.
        """
        target = choose_device(device)
        check_precision(precision)
        folder = find(source, revision)
        adapted = base_of(folder)
        home = adapted or folder
        config = BioGptConfig.from_json(require(home, CONFIG))
        weights = read_weights(home)
        base = None if has_decoder(weights) else Base.named_by(home)
        if base is not None:
            base.check(home, config)
            _check_vocabulary(base.folder, config)
            weights = base.tensors() | weights
        if config.num_hidden_layers > len(weights):
            raise ValueError(
                f"{home / CONFIG}: num_hidden_layers is {config.num_hidden_layers}, but the "
                f"weights are {len(weights)} tensors, which is less than one a layer"
            )
        if adapted is not None:
            config = merge_adapter(folder, weights, config)
        _check_vocabulary(tokenizer_folder(folder), config)
        if labels is not None:
            config = config.with_new_head(_label_names(labels))
        elif issubclass(cls, LanguageModel):
            config = config.with_new_head(config.id2label)  # or what reads such a head would not be said
        with torch.device("meta"):
            model = cls(config)
        count = sum(parameter.numel() for parameter in model.biogpt.parameters())  # the same for all heads
        to_train = labels is not None or (trainable and precision == "auto")
        chosen = choose_precision(precision, target, count, to_train)
        logger.info("%s: %s", source, chosen.reason)
        model.precision, model.folder, model.base = chosen, folder, base
        if labels is not None and base is None:
            model.base = Base.of(source, revision, folder)
        if labels is None and (chosen.int8 or not trainable):
            _fill_shared(model, weights, target, chosen, adapted is not None)
        else:
            fill(model, weights, folder, target, chosen.dtype, labels is not None, chosen.int8)
        return model.eval()

    def save_pretrained(
        self, folder: str | Path, max_shard_size: int = MAX_SHARD_SIZE, merge: bool = False
    ) -> None:
        """Write ``config.json`` and ``model.safetensors``, or shards and their index.

        A head whose decoder is still that of its base writes its own tensors only, and the config names the
        base; the vocabulary is the base's, too. Whether it is, is told by comparing the weights: a decoder
        that was trained is written.

        An int8 model keeps its int8 weights, each row with its scale at its end, and ``quantization_config``
        in the config says so. Only this package opens such a folder; ``transformers`` refuses it by its
        shapes.

        Files are written beside the old ones and then renamed, so a full disk or a kill leaves no
        half-written file; shards of an earlier save are removed.

        Args:
            folder: made when missing.
            max_shard_size: bytes; more are split. A single tensor is never split.
            merge: write the decoder in any case: a folder that stands alone, as ``transformers`` wants it.

        Raises:
            OSError: the folder cannot be written to, or the disk is full; what was there is kept.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.state_dict()
        for name in self.ties:
            state.pop(name)
        base = None if merge or not self._has_decoder_of_base(folder) else self.base
        if base is not None:
            state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{BODY}.")}
        shards = list(_split(state, max_shard_size))
        names = ["model.safetensors"]
        if len(shards) > 1:
            names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
        values = self.config.to_dict() | {"architectures": [type(self).__name__], "dtype": dtype}
        if base is not None:
            values |= {BASE: base.seen_from(folder), FINGERPRINT: base.fingerprint()}
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

    def keep_shared(self, shared: SharedDecoder) -> None:
        """Hold on to the decoder whose tensors this model uses."""
        self._shared = shared

    def _has_decoder_of_base(self, folder: Path) -> bool:
        """Whether the decoder's weights are those of the base, which does not lie in ``folder`` itself."""
        if self.base is None or self.tied_weights or folder.resolve() == self.base.folder.resolve():
            return False
        own = self.state_dict()
        head = {name: tensor.cpu() for name, tensor in own.items() if not name.startswith(f"{BODY}.")}
        with torch.device("meta"):
            fresh = type(self)(self.config)
        try:
            fill(fresh, self.base.tensors() | head, folder, None, self.dtype, int8=self.layout == "int8")
        except (OSError, ValueError) as error:  # it is gone, or of another shape by now
            logger.warning("%s is written with its decoder: %s", folder, error)
            return False
        wanted = fresh.biogpt.state_dict()
        found = self.biogpt.state_dict()
        return all(torch.equal(found[name].cpu(), tensor) for name, tensor in wanted.items())


def _fill_shared(
    model: PretrainedModel,
    weights: dict[str, Tensor],
    device: torch.device,
    chosen: Precision,
    is_adapted: bool,
) -> None:
    """Fill a model that is only served; the decoder's tensors are those that are in memory already."""
    if is_adapted:  # another decoder than the one in the files
        fill(model, weights, model.folder, device, chosen.dtype, int8=chosen.int8)
        pack(model)
        model.requires_grad_(False)
        return
    home = (model.base.folder if model.base is not None else model.folder).resolve()
    with shared_decoder(home, stamp(home), device, chosen.dtype, chosen.int8) as (shared, keep):
        if shared is not None:
            fill_head(model, weights, model.folder, twin(shared.decoder), shared.layout)
        else:
            fill(model, weights, model.folder, device, chosen.dtype, int8=chosen.int8)
            pack(model)
            shared = SharedDecoder(twin(model.biogpt), model.layout)
            keep(shared)
    model.keep_shared(shared)
    model.requires_grad_(False)


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
        """Load the tokenizer of a checkpoint; that of its base where a head has none.

        Args:
            source: embedded name, folder or Hub id; ``biogpt.checkpoint.hub.find`` tells them apart.
            revision: branch, tag or commit on the Hub.

        Raises:
            FileNotFoundError, ValueError: as ``from_files``, or the checkpoint is not found.
        """
        folder = tokenizer_folder(find(source, revision))
        if not (folder / VOCAB_FILE).is_file() and (base := Base.named_by(folder)) is not None:
            folder = base.folder
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
    """Refuse a folder whose tokenizer gives other ids than the model was made for; it may have none.

    Rows that stand for no token fill an embedding up to a round size, and are few.
    """
    path = folder / VOCAB_FILE
    if not os.path.lexists(path):
        return
    vocab = read_json(path)
    if not isinstance(vocab, dict):
        raise ValueError(f"{path} is not a vocabulary: expected a JSON object of token: id")
    added = read_added(folder, vocab)
    size, rows = len(vocab), config.vocab_size
    known = size + sum(index >= size for index in added.by_id)
    more = f" ({known - size} more are added)" if known > size else ""
    if size > rows or rows - known > max(MOST_PADDING, rows // 4):
        raise ValueError(
            f"{path} has {size} tokens{more}, but vocab_size in {folder / CONFIG} is "
            f"{rows}: the files belong to different models"
        )
    beyond = [index for index in added.by_id if index >= rows and index not in added.control_ids]
    if beyond:
        raise ValueError(
            f"{folder} adds the token {added.by_id[beyond[0]].content!r:.80} with the id {beyond[0]}, but "
            f"vocab_size in its {CONFIG} is {rows}: save it after resize_token_embeddings"
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
