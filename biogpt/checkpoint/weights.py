"""Read the tensors of a model folder, mapped from its files; nothing in a file runs code."""

import ctypes
import mmap
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from biogpt.checkpoint.layout import INDEX, WEIGHTS, require, shard_names, weights_file

# Buffers that older software wrote beside the weights; they hold nothing that was learned.
_BUFFERS = re.compile(r"(.*\.)?(position_ids|_float_tensor)")
_FAULTS_SHOWN = 8


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
            raise ValueError(f"{folder}: {shard} repeats tensors of another shard: {listed(twice)}")
        weights |= tensors
    return weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one ``.safetensors`` or ``.bin`` file, mapped; without the buffers of older software.

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


def mappings(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
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


def forget(mappings: Sequence[tuple[int, int]]) -> None:
    """Give back the memory of mapped files; what is needed again is read again, as the file has it."""
    for start, end in mappings:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _FAULTS_SHOWN
    shown = separator.join(names[:_FAULTS_SHOWN]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown
