"""Which files a model folder has, in the Hub's layout."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from biogpt.text.added import ADDED_FILES
from biogpt.text.files import SMALL, check_file, read_json

CONFIG = "config.json"
TOKENIZER_FILES = ("vocab.json", "merges.txt", *ADDED_FILES)
WEIGHTS = (  # the first that exists is read; an index names its shards
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
_COPY = ". Copy it from where the checkpoint came from"
SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")


def require(folder: Path, name: str) -> Path:
    """The path of a file that a folder must hold.

    Raises:
        FileNotFoundError: it is not there; the message says where to get it.
        ValueError: it is not what its name says, see ``biogpt.text.files.check_file``.
    """
    path = folder / name
    if not os.path.lexists(path):
        raise FileNotFoundError(
            f"{folder} has no {name}{_instead(folder) or _COPY}; that of the original BioGPT is at "
            "https://huggingface.co/microsoft/biogpt/tree/main"
        )
    check_file(path)
    if path.suffix == ".json" and path.stat().st_size > SMALL:
        raise ValueError(f"{path} has more than {SMALL >> 20} MiB, which no {name} has: copy it anew")
    return path


def no_weights(folder: Path) -> FileNotFoundError:
    """The error for a folder that holds none of ``WEIGHTS``; it says what there is in their place."""
    return FileNotFoundError(
        f"{folder} has no weights: expected one of {', '.join(WEIGHTS)}{_instead(folder) or _COPY}"
    )


def _instead(folder: Path) -> str:
    """What a folder has that its owner may have taken for a checkpoint."""
    names = sorted(os.listdir(folder))
    steps = [name for name in names if re.fullmatch(r"checkpoint-\d+", name) and (folder / name).is_dir()]
    if steps:
        last = max(steps, key=lambda name: int(name.partition("-")[2]))
        return f"; it is the output folder of a training, with checkpoints in it: give {folder / last}"
    shards = [name for name in names if SHARD.fullmatch(name)]
    if shards:
        return f"; it has {shards[0]}, but not the index that names all shards (*{INDEX})"
    other = [name for name in names if Path(name).suffix in _OTHER_WEIGHTS and name not in WEIGHTS]
    if other and Path(other[0]).suffix in (".safetensors", ".bin"):
        name = next(name for name in WEIGHTS if name.endswith(Path(other[0]).suffix))
        return f"; it has {other[0]}: if that is the model, call it {name}"
    return f"; it has {other[0]}, which is not read: save it anew as safetensors" if other else ""


def weights_file(names: Collection[str]) -> str | None:
    """Which of these file names to read weights from: the first of ``WEIGHTS``; None when there is none."""
    return next((name for name in WEIGHTS if name in names), None)


def shard_names(index: Path) -> list[str]:
    """File names in a ``*.index.json``, sorted.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not such an index, or a name is not that of a shard (it might lead elsewhere).
    """
    try:
        names = set(read_json(index)["weight_map"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights: expected JSON with a weight_map") from error
    for name in names:
        if not isinstance(name, str) or not SHARD.fullmatch(name):
            raise ValueError(
                f"{index} names the file {name!r}; expected model-00001-of-00002.safetensors or so"
            )
    return sorted(names)
