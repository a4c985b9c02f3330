"""One decoder, many heads: the base that a head's folder names, and decoders that are in memory once.

A head's folder holds its config and its own tensors. The config names the base whose decoder it reads
(``base_model_name_or_path``), and the fingerprint of that decoder's weights (``base_fingerprint``).
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from biogpt.checkpoint.download import download, is_downloaded
from biogpt.checkpoint.filling import BODY, drop_heads, prefix_body
from biogpt.checkpoint.hub import EMBEDDED, HUB_ID, embedded_names
from biogpt.checkpoint.layout import CONFIG, INDEX, require, shard_names, weights_file
from biogpt.checkpoint.weights import listed, read_weights
from biogpt.model.config import BioGptConfig
from biogpt.model.decoder import BioGptModel
from biogpt.text.files import read_json

BASE, FINGERPRINT = "base_model_name_or_path", "base_fingerprint"  # in the config of a head
_SHAPE = (  # of a decoder; the other fields are a head's own
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "scale_embedding",
)


def base_name(folder: Path) -> str | None:
    """What a model's folder names as its base; None when it names none.

    Raises:
        ValueError: its config names something else than text.
    """
    values = _config_of(folder)
    name = values.get(BASE)
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise ValueError(
            f"{folder / CONFIG}: {BASE} is {name!r}; expected an embedded name, a folder or a Hub id"
        )
    return name


@dataclass(frozen=True)
class Base:
    """The model whose decoder a head reads.

    Attributes:
        name: an embedded name, a Hub id with an optional ``@revision``, or a folder: absolute, or from ``.``.
        folder: where it is.
    """

    name: str
    folder: Path

    @classmethod
    def of(cls, source: str | Path, revision: str | None, folder: Path) -> "Base":
        """The base that somebody gave as ``source``, found in ``folder``; its name is kept as given."""
        name = str(source)
        if name in embedded_names():
            return cls(name, folder)
        path = Path(name).expanduser()
        if path.is_dir():
            return cls(str(path) if path.is_absolute() else f".{os.sep}{name}", folder.resolve())
        return cls(name if revision is None or "@" in name else f"{name}@{revision}", folder)

    @classmethod
    def named_by(cls, folder: Path) -> "Base | None":
        """The base that the config of a head's folder names; None when it names none.

        Raises:
            ValueError: the name is not one, or a folder, in a head that was downloaded.
            OSError: the base is not there, or cannot be downloaded.
        """
        name = base_name(folder)
        if name is None:
            return None
        if name in embedded_names():
            return cls(name, EMBEDDED / name)
        path = Path(name).expanduser()
        if is_path(name) or (folder / path).is_dir():
            if is_downloaded(folder):
                raise ValueError(
                    f"{folder} comes from the Hub and names the folder {name!r} as its base, which is on its "
                    f"author's machine: ask for one that names a Hub id, or was saved with merge=True"
                )
            path = (folder.resolve() / path).resolve()
            if not path.is_dir():
                raise FileNotFoundError(
                    f"{folder} is a head without a decoder, and its base is not there: {path} is no folder. "
                    f"Put it there, or write into {BASE} of {folder / CONFIG} where it is"
                )
            return cls(name, path)
        repository, _, revision = name.partition("@")
        if not HUB_ID.fullmatch(repository):
            raise ValueError(
                f"{folder / CONFIG}: {BASE} is {name!r}; expected an embedded name "
                f"({', '.join(embedded_names())}), a folder that is there, or a Hub id"
            )
        try:
            return cls(name, download(repository, revision or "main", None))
        except OSError as error:
            raise type(error)(
                f"{folder} is a head without a decoder, and its base is missing: {error}"
            ) from error

    def seen_from(self, folder: Path) -> str:
        """Its name for the config of a head in ``folder``."""
        if not self.name.startswith("."):
            return self.name
        path = os.path.relpath(self.folder, folder.resolve())
        return path if path.startswith(".") else f".{os.sep}{path}"

    def tensors(self) -> dict[str, Tensor]:
        """Those of its decoder, mapped.

        Raises:
            ValueError, OSError: they cannot be read, or it is a head without a decoder itself.
        """
        weights = read_weights(self.folder)
        if not has_decoder(weights):
            raise ValueError(
                f"the base {self.name} ({self.folder}) is itself a head without a decoder; name the model "
                "whose decoder it reads"
            )
        config = BioGptConfig.from_json(require(self.folder, CONFIG))
        drop_heads(weights, config.tie_word_embeddings)
        return weights

    def fingerprint(self) -> str:
        """A digest of the decoder's weights, as they are stored."""
        return _fingerprint(self, stamp(self.folder))

    def check(self, head: Path, config: BioGptConfig) -> None:
        """Refuse a base that is not the one that a head was trained above.

        Args:
            head: folder of the head.
            config: of the head.

        Raises:
            ValueError: its shape or its weights are others; or they cannot be read.
        """
        own = BioGptConfig.from_json(require(self.folder, CONFIG))
        faults = [
            f"{name} {getattr(own, name)!r}, expected {getattr(config, name)!r}"
            for name in _SHAPE
            if getattr(own, name) != getattr(config, name)
        ]
        if faults:
            raise ValueError(
                f"the base {self.name} ({self.folder}) is not the one that {head} was trained above: it has "
                f"{listed(faults, '; ')}. Name the right one in {BASE} of {head / CONFIG}"
            )
        expected = _config_of(head).get(FINGERPRINT)
        if expected is not None and expected != self.fingerprint():
            raise ValueError(
                f"the weights of the base {self.name} ({self.folder}) are not those that {head} was "
                f"trained above, so its labels would be wrong: bring those back, or name their revision in "
                f"{BASE}, or train the head anew. To use it all the same, delete {FINGERPRINT} from "
                f"{head / CONFIG}"
            )


def is_path(name: str) -> bool:
    """Whether the name of a base can only be a folder's."""
    return name.startswith((".", "~")) or Path(name).expanduser().is_absolute()


def has_decoder(weights: dict[str, Tensor]) -> bool:
    """Whether a folder's tensors hold any of a decoder; a bare decoder's are renamed to a model's."""
    prefix_body(weights)
    return any(key.startswith(f"{BODY}.") or key == "output_projection.weight" for key in weights)


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of each weight file: other files have other ones."""
    name = weights_file(os.listdir(folder))
    names = [name, *shard_names(folder / name)] if name and name.endswith(INDEX) else [name or CONFIG]
    status = [(file, (folder / file).stat()) for file in names if (folder / file).is_file()]
    return tuple((file, found.st_size, found.st_mtime_ns) for file, found in status)


@lru_cache(maxsize=64)
def _fingerprint(base: Base, _stamp: tuple[tuple[str, int, int], ...]) -> str:
    tensors = base.tensors()

    def digest(key: str) -> str:
        tensor = tensors[key].contiguous()
        content = hashlib.sha256(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return content.hexdigest()

    with ThreadPoolExecutor(2) as pool:  # hashing lets go of Python
        return hashlib.sha256("".join(pool.map(digest, sorted(tensors))).encode()).hexdigest()


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        return {}
    values = read_json(path)
    return values if isinstance(values, dict) else {}


@dataclass(eq=False)
class SharedDecoder:
    """A decoder in memory whose tensors several heads use; it lasts as long as one of them.

    Attributes:
        decoder: for ``biogpt.runners.packing.twin``.
        layout: as in ``biogpt.model.heads.Head``.
    """

    decoder: BioGptModel
    layout: Literal["plain", "packed", "int8"]


_shared: WeakValueDictionary[tuple[Any, ...], SharedDecoder] = WeakValueDictionary()
_locks: dict[tuple[Any, ...], Lock] = {}


@contextmanager
def shared_decoder(
    *key: Any,
) -> Iterator[tuple[SharedDecoder | None, Callable[[SharedDecoder], None]]]:
    """The decoder that is in memory under a key, or None and where to put it; others wait meanwhile."""
    with _locks.setdefault(key, Lock()):
        yield _shared.get(key), lambda made: _shared.__setitem__(key, made)
