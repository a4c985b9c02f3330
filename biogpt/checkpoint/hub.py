"""Find a model's folder: embedded in this project, on the disk, or on the Hugging Face Hub.

Files from the Hub land in its usual cache (``HF_HOME``), so other software shares them. Nothing is looked
up or downloaded before ``find`` is called, and nothing at all for embedded models and local folders.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from biogpt.model.config import BioGptConfig

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).resolve().parents[2] / "assets" / "models"
CONFIG = "config.json"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
WEIGHTS = (  # the first that exists is read; an index names its shards
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
REACH_TIMEOUT = 10.0  # seconds to wait for the Hub to answer before what is cached is used

# Called with a file's name, its bytes so far and its bytes in all; what it raises ends the download.
Progress = Callable[[str, int, int], None]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def embedded_names() -> list[str]:
    """Names of the models that come with this project."""
    return sorted(path.parent.name for path in EMBEDDED.glob(f"*/{CONFIG}"))


def find(source: str | Path, revision: str | None = None, progress: Progress | None = None) -> Path:
    """The local folder that holds a model's files; those of a Hub id are downloaded when not yet cached.

    Only what is needed is downloaded: the config, the tokenizer's files, and one format of the weights,
    safetensors before ``.bin``. An interrupted download goes on where it stopped.

    Args:
        source: an embedded name (``mini``), a folder, or a Hub id ``owner/name`` or ``owner/name@revision``.
        revision: branch, tag or commit of a Hub id.
        progress: told how far the weights are, beside the progress bar on a terminal.

    Raises:
        ValueError: ``source`` is none of these, or the repository holds no BioGPT.
        OSError: the repository or revision does not exist, access is refused, the Hub cannot be reached
            and nothing is cached, or the disk is full. The message says which and what to do.
    """
    name = str(source)
    embedded = [EMBEDDED / name] if name in embedded_names() else []  # and not a path below it
    for folder in (*embedded, Path(name).expanduser()):
        if name and folder.is_dir():
            if revision is not None:
                raise ValueError(
                    f"revision {revision!r} was given with {name!r}; only Hub ids have revisions"
                )
            return folder
    repository, _, tag = name.partition("@")
    if not _HUB_ID.fullmatch(repository):
        known = ", ".join(embedded_names()) or "none in this installation"
        raise ValueError(
            f"no model {name!r}: expected an embedded name ({known}), an existing folder, "
            "or a Hub id owner/name, optionally with @revision"
        )
    if tag and revision is not None and tag != revision:
        raise ValueError(f"two revisions were given: {tag!r} in {name!r}, and {revision!r}; keep one")
    return _from_hub(repository, revision or tag or "main", progress)


def download_size(source: str) -> int:
    """Bytes of the weights that ``find`` would download for a Hub id with an optional ``@revision``.

    Raises:
        ValueError, OSError: as ``find``.
    """
    repository, _, revision = source.partition("@")
    if not _HUB_ID.fullmatch(repository):
        find(source)  # raises: neither embedded, nor a folder, nor a Hub id
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(
            repository, revision=revision or "main", timeout=REACH_TIMEOUT, files_metadata=True
        )
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        raise OSError(
            f"the Hub does not show {source} ({type(error).__name__}): it does not exist, is private, or the "
            "Hub cannot be reached"
        ) from error
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    weights = weights_file(sizes)
    if weights is None or CONFIG not in sizes:
        raise ValueError(f"{source} is no model that can be loaded: it has no {CONFIG} or no weights")
    if not weights.endswith(INDEX):
        return sizes[weights]
    kind = weights.removesuffix(INDEX).rpartition(".")[2]
    return sum(size for name, size in sizes.items() if _SHARD.fullmatch(name) and name.endswith(kind))


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
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise ValueError(
                f"{index} names the file {name!r}; expected model-00001-of-00002.safetensors or so"
            )
    return sorted(names)


def check_hub_id(repository: str) -> None:
    """Raise a ValueError for what the Hub would not take as ``owner/name``."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub.utils import validate_repo_id

    if not _HUB_ID.fullmatch(repository):
        raise ValueError(f"{repository!r} is not a Hub id; expected OWNER/NAME")
    try:
        validate_repo_id(repository)
    except ValueError as error:  # HFValidationError
        raise ValueError(f"{repository!r} is not a Hub id: {error}") from error


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload a checkpoint folder; a repository that does not exist yet is made, private.

    Returns:
        The address of the commit.

    Raises:
        ValueError: ``repository`` is no Hub id, or the folder holds no checkpoint.
        OSError: the Hub cannot be reached, or refuses; the folder is as it was.
    """
    check_hub_id(repository)
    require(folder, CONFIG)
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload BioGPT"))
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalTokenNotFoundError) as error:
        raise ConnectionError(
            f"{folder} was not uploaded to {repository} ({type(error).__name__}: {error}); log in with "
            f"`hf auth login`, then `hf upload {repository} {folder}`"
        ) from error


def _from_hub(repository: str, revision: str, progress: Progress | None) -> Path:
    """The snapshot folder of a repository, downloaded or cached; every failure as one clear message."""
    # Set before the import reads it; imported here because embedded models and folders do without.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repository}"
    try:
        return _download(repository, revision, progress)
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{repository} is gated: accept its terms at {page}, then log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"the Hub has no repository {repository}, or it is private: check the name at {page}; "
            "for a private one log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repository} has no revision {revision!r}: its branches, tags and commits are at {page}/commits"
        ) from error
    # HTTPError is the base of what the Hub's HTTP client raises.
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code in (401, 403):
            raise PermissionError(
                f"the Hub refuses access to {repository} ({response.status_code}): check that your token is "
                "valid and may read it (`hf auth whoami`)"
            ) from error
        cached = _cached(repository, revision)
        if cached is None:
            raise ConnectionError(
                f"{repository} at {revision!r} is not in the cache and the Hub cannot be reached "
                f"({type(error).__name__}: {error}). Connect and try again (and unset HF_HUB_OFFLINE), or run "
                f"`hf download {repository} --local-dir FOLDER` elsewhere and give FOLDER"
            ) from error
        logger.warning("the Hub cannot be reached (%s); using the cached %s", error, cached)
        return cached
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _disk_full(repository, f"{error.strerror}") from error


def _cached(repository: str, revision: str) -> Path | None:
    """The snapshot in the cache, when it holds a config and all weights."""
    from huggingface_hub import errors, snapshot_download

    try:
        # With no pattern, files that were never wanted would count as missing.
        folder = Path(
            snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=CONFIG)
        )
    except errors.LocalEntryNotFoundError:
        return None
    weights = weights_file(os.listdir(folder))
    if weights is None:
        return None
    needed = [CONFIG, *(shard_names(folder / weights) if weights.endswith(INDEX) else ())]
    return folder if all((folder / name).is_file() for name in needed) else None


def _download(repository: str, revision: str, progress: Progress | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    info = HfApi().model_info(repository, revision=revision, timeout=REACH_TIMEOUT)
    commit = info.sha
    assert commit is not None
    names = {sibling.rfilename for sibling in info.siblings or ()}
    weights = weights_file(names)
    if CONFIG not in names or weights is None:
        raise ValueError(
            f"{repository} at {revision!r} is no model that can be loaded: it has no "
            f"{CONFIG if CONFIG not in names else 'weights (' + ', '.join(WEIGHTS) + ')'}"
        )
    # Another architecture is refused here, before gigabytes of it are fetched.
    BioGptConfig.from_json(hf_hub_download(repository, CONFIG, revision=commit))
    wanted = [weights]
    if weights.endswith(INDEX):
        wanted = shard_names(Path(hf_hub_download(repository, weights, revision=commit)))
        if absent := sorted(set(wanted) - names):
            raise ValueError(f"{repository}: {weights} names files that are not there: {', '.join(absent)}")
    for name in wanted:
        _fetch(repository, name, commit, progress)
    # The large files are in the cache by now; this fetches the small ones and records the revision.
    small = [name for name in (CONFIG, weights, *TOKENIZER_FILES) if name in names]
    return Path(snapshot_download(repository, revision=revision, allow_patterns=[*small, *wanted]))


def _fetch(repository: str, name: str, commit: str, progress: Progress | None) -> None:
    """Put one large file into the Hub's cache, going on from what an earlier try left there.

    ``hf_hub_download`` (2.4) resumes within one call but throws the partial file away when the call
    fails, and for gigabytes on a slow line that is the case that matters. So the transfer is done
    here, with its functions, into the blob that it then links. Large files are named by their SHA-256,
    which is checked as well.
    """
    from huggingface_hub import (
        constants,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    if isinstance(try_to_load_from_cache(repository, name, revision=commit), str):
        return
    url = hf_hub_url(repository, name, revision=commit)
    metadata = get_hf_file_metadata(url, timeout=REACH_TIMEOUT)
    digest, size = metadata.etag, metadata.size
    if digest is not None and size is not None and _SHA256.fullmatch(digest):
        cache, stored = Path(constants.HF_HUB_CACHE), repo_folder_name(repo_id=repository, repo_type="model")
        blobs, locks = cache / stored / "blobs", cache / ".locks" / stored
        for path in (blobs, locks):
            path.mkdir(parents=True, exist_ok=True)
        partial = blobs / f"{digest}.partial"
        with WeakFileLock(locks / f"{digest}.lock"):  # the one that hf_hub_download takes
            if not (blobs / digest).exists():
                done = partial.stat().st_size if partial.exists() else 0
                if done > size:  # two processes wrote at once, where locks do not work
                    partial.unlink()
                    done = 0
                _check_space(repository, blobs, size - done)
                with partial.open("ab") as file:
                    http_get(
                        url,
                        file,
                        resume_size=done,
                        headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                        expected_size=size,
                        displayed_filename=name,
                        tqdm_class=_progress_bar(name, done, size, progress),
                    )
                _check_digest(partial, digest, f"{repository}/{name}")
                partial.rename(blobs / digest)
    hf_hub_download(repository, name, revision=commit)


def _progress_bar(name: str, done: int, size: int, progress: Progress | None) -> Any:
    """The Hub's progress bar (a tqdm class) that also tells ``progress`` about every chunk."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        received = done  # counted here: a bar that is not shown does not count

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            if progress is not None:
                progress(name, min(self.received, size), size)
            return super().update(n)

    return Bar


def _check_digest(path: Path, expected: str, what: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        path.unlink()
        raise OSError(
            f"{what} arrived damaged: SHA-256 {actual}, expected {expected}. It was removed; try again"
        )


def _check_space(repository: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _disk_full(repository, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")


def _disk_full(repository: str, reason: str) -> OSError:
    from huggingface_hub import constants

    return OSError(
        f"no room to download {repository} into {constants.HF_HUB_CACHE} ({reason}): "
        "free some space, or set HF_HOME to a larger disk and try again"
    )
