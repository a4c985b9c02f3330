"""Which files a model folder has, in the Hub's layout."""

import json
import re
from collections.abc import Collection
from pathlib import Path

from biogpt.text.added import ADDED_FILES

CONFIG = "config.json"
TOKENIZER_FILES = ("vocab.json", "merges.txt", *ADDED_FILES)
WEIGHTS = (  # the first that exists is read; an index names its shards
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")


def require(folder: Path, name: str) -> Path:
    """The path of a file that a folder must hold.

    Raises:
        FileNotFoundError: it is not there; the message says where to get it.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {name}. Copy it from where the checkpoint came from; that of the original "
            "BioGPT is at https://huggingface.co/microsoft/biogpt/tree/main"
        )
    return path


def weights_file(names: Collection[str]) -> str | None:
    """Which of these file names to read weights from: the first of ``WEIGHTS``; None when there is none."""
    return next((name for name in WEIGHTS if name in names), None)


def shard_names(index: Path) -> list[str]:
    """File names in a ``*.index.json``, sorted.

    Raises:
        ValueError: it is not such an index, or a name is not that of a shard (it might lead elsewhere).
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights: expected JSON with a weight_map") from error
    for name in names:
        if not isinstance(name, str) or not SHARD.fullmatch(name):
            raise ValueError(
                f"{index} names the file {name!r}; expected model-00001-of-00002.safetensors or so"
            )
    return sorted(names)
