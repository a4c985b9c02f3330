"""The language models that are on this machine, and how large one is before it is loaded."""

from pathlib import Path

from biogpt.checkpoint.adapter import base_of
from biogpt.checkpoint.hub import EMBEDDED, download_size, embedded_names, local_folder
from biogpt.checkpoint.layout import CONFIG, INDEX, shard_names, weights_file
from biogpt.text.files import read_json


def embedded_language_models() -> list[str]:
    """Names of the language models that come with this project."""
    return [name for name in embedded_names() if _is_language_model(EMBEDDED / name)]


def language_models() -> list[str]:
    """Names of the language models that are here already: embedded, then Hub ids in the local cache."""
    return [*embedded_language_models(), *_cached_language_models()]


def size_of(name: str) -> tuple[int, bool]:
    """Bytes of a language model's weights, and whether they must be downloaded; 0 for cached ones.

    Raises:
        ValueError, OSError: as ``find``.
    """
    if (folder := local_folder(name)) is not None:
        folder = base_of(folder) or folder  # with an adapter, which is small
        if not _is_language_model(folder):
            raise ValueError(f"{name} is no BioGPT language model: its {CONFIG} is missing or says otherwise")
        weights = weights_file({path.name for path in folder.iterdir()})
        files = shard_names(folder / weights) if weights and weights.endswith(INDEX) else [weights]
        return sum((folder / file).stat().st_size for file in files if file), False
    if name in _cached_language_models():
        return 0, False
    return download_size(name), True


def _is_language_model(folder: Path) -> bool:
    """Whether a folder's config is that of a BioGPT language model, as far as it says."""
    try:
        values = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return False
    if not isinstance(values, dict):
        return False
    heads = values.get("architectures") or ["BioGptForCausalLM"]
    return values.get("model_type") == "biogpt" and "BioGptForCausalLM" in heads


def _cached_language_models() -> list[str]:
    """Hub ids whose config and weights are in the local cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return []
    return sorted(
        repository.repo_id
        for repository in repositories
        for revision in list(repository.revisions)[:1]
        if _is_language_model(revision.snapshot_path)
        and weights_file({file.file_name for file in revision.files})
    )
