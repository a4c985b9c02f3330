"""Read the tensors of a model folder, mapped from its files; nothing in a file runs code."""

import ctypes
import mmap
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from biogpt.checkpoint.layout import INDEX, no_weights, require, shard_names, weights_file
from biogpt.text.files import SMALL, check_file

# Buffers that older software wrote beside the weights; they hold nothing that was learned.
_BUFFERS = re.compile(r"(.*\.)?(position_ids|_float_tensor)")
# Modules around a model or its parts: of data-parallel training, torch.compile, FSDP, checkpointing, PEFT.
_WRAPPERS = re.compile(
    r"(^|(?<=\.))(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_model\.model)"
    r"\.)+"
)
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # pickled magic number of torch.save before 1.6
_FAULTS_SHOWN = 8


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by its key, mapped from the file and not read yet.

    Raises:
        FileNotFoundError: the folder holds no weights, or a shard is missing.
        ValueError: a file is damaged, or needs more than tensors to be loaded.
    """
    name = weights_file(os.listdir(folder))
    if name is None:
        raise no_weights(folder)
    names = shard_names(require(folder, name)) if name.endswith(INDEX) else [name]
    weights: dict[str, Tensor] = {}
    for shard in names:
        tensors = read_tensors(require(folder, shard))
        if twice := sorted(weights.keys() & tensors.keys()):
            raise ValueError(f"{folder}: {shard} repeats tensors of another shard: {listed(twice)}")
        weights |= tensors
    if adapted := sorted(key for key in weights if ".lora_" in key or ".base_layer." in key):
        raise ValueError(
            f"{folder} holds LoRA layers beside the weights that they change ({listed(adapted)}): merge them "
            "with PEFT (model.merge_and_unload().save_pretrained(…)) and give that folder"
        )
    return weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one ``.safetensors`` or ``.bin`` file, mapped; without the buffers of older software.

    Raises:
        ValueError: the file is damaged, or holds anything but floating-point tensors by name.
    """
    check_file(path)
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
    if not all(isinstance(key, str) for key in tensors):
        raise ValueError(f"{path} has keys that are no text; expected tensors by name")
    tensors = _unwrapped(tensors, path)
    tensors = {key: tensor for key, tensor in tensors.items() if not _BUFFERS.fullmatch(key)}
    for key, tensor in tensors.items():
        known = isinstance(tensor, Tensor) and (
            tensor.is_floating_point() or (tensor.dtype == torch.int8 and tensor.ndim == 2)
        )
        if not known:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{path}: {key!r} is {kind}; expected a floating-point tensor")
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {key!r} has the shape {tuple(tensor.shape)}, but not so many numbers: it was saved "
                "sparse or expanded. Save it with .contiguous()"
            )
    return tensors


def _unwrapped(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors by the keys of the model itself, inside what training has wrapped it or its parts in."""
    unwrapped: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = _WRAPPERS.sub(r"\1", key)
        if name in unwrapped:
            raise ValueError(f"{path} has {name!r} twice, once as {key!r}: it is not the state of one model")
        unwrapped[name] = tensor
    return unwrapped


def read_pickle(path: Path, allowed: Sequence[type] = ()) -> Any:
    """What ``torch.save`` wrote, its tensors mapped; plain values and tensors only, so that no code can run.

    Args:
        allowed: classes that may occur as well; making one must be harmless whatever its state.

    Raises:
        ValueError: the file holds other objects, or is damaged.
    """
    _check_records(path)
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
    except Exception as error:  # of whatever kind: a damaged pickle names any operation on anything
        raise ValueError(
            f"{path} cannot be read: it is damaged or cut short. Download it again "
            f"({type(error).__name__}: {error})"
        ) from error


def _check_records(path: Path) -> None:
    """Refuse what is no zip file as ``torch.save`` writes it: its records stored as they are, in few bytes.

    A packed record could be of any size once unpacked.
    """
    check_file(path)
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    if start == _LEGACY:
        raise ValueError(
            f"{path} is in the format of torch.save before 1.6, which cannot be mapped. Save it anew: "
            f'torch.save(torch.load("{path.name}", weights_only=True), "{path.name}")'
        )
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        kind = (
            "a pickle without the zip file that torch.save writes"
            if start[:1] == b"\x80"
            else ("damaged, cut short, or not in the zip format that torch.save writes since 1.6")
        )
        raise ValueError(f"{path} cannot be read: it is {kind}. Download it again ({error})") from error
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    large = sum(record.file_size for record in records) > path.stat().st_size
    pickles = [record.file_size for record in records if record.filename.endswith(".pkl")]
    if packed or large or max(pickles, default=0) > SMALL:
        what = f"the record {packed[0]!r} is packed" if packed else "its records are larger than it can hold"
        raise ValueError(f"{path} is refused: {what}, which torch.save never writes. Download it again")


class MappedFiles:
    """The mapped files that tensors lie in; none but on Linux.

    They stay mapped as long as this is there: whatever else came to lie at their addresses would be lost with
    ``forget``.

    Attributes:
        ranges: first and last address of each. Another model of the same file has mappings of its own, and
            may have trained what lies there.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        try:
            lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        files = [line.split()[0].split("-") for line in lines if line.split(maxsplit=5)[-1].startswith("/")]
        ranges = [(int(start, 16), int(end, 16)) for start, end in files]
        held = {}
        for tensor in tensors:
            address = tensor.data_ptr()
            around = next((found for found in ranges if found[0] <= address < found[1]), None)
            if around is not None:
                held[around] = tensor.untyped_storage()
        self.ranges, self._held = list(held), list(held.values())

    def forget(self) -> None:
        """Give back the memory of the files; what is needed again is read again, as the file has it."""
        for start, end in self.ranges:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED
            )


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _FAULTS_SHOWN
    shown = separator.join(names[:_FAULTS_SHOWN]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown
