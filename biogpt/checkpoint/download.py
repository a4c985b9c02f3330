"""Transfer repositories of the Hugging Face Hub to its usual cache (``HF_HOME``), which others share."""

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from biogpt.checkpoint.layout import CONFIG, INDEX, SHARD, TOKENIZER_FILES, WEIGHTS, shard_names, weights_file
from biogpt.model.config import BioGptConfig

logger = logging.getLogger(__name__)

REACH_TIMEOUT = 10.0  # seconds to wait for the Hub to answer before what is cached is used

# Called with a file's name, its bytes so far and its bytes in all; what it raises ends the download.
DownloadProgress = Callable[[str, int, int], None]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def download(repository: str, revision: str, progress: DownloadProgress | None) -> Path:
    """The snapshot folder of a repository, downloaded or cached.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit.

    Raises:
        ValueError: the repository holds no BioGPT.
        OSError: it or the revision does not exist, access is refused, the Hub cannot be reached and nothing
            is cached, or the disk is full. The message says which and what to do.
    """
    # Set before the import reads it; imported here because embedded models and folders do without.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repository}"
    try:
        return _snapshot(repository, revision, progress)
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{repository} is gated: accept its terms at {page}, then log in with `hf auth login` or set "
            "HF_TOKEN"
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
        folder = cached(repository, revision)
        if folder is None:
            raise ConnectionError(
                f"{repository} at {revision!r} is not in the cache and the Hub cannot be reached "
                f"({type(error).__name__}: {error}). Connect and try again (and unset HF_HUB_OFFLINE), or "
                f"run `hf download {repository} --local-dir FOLDER` elsewhere and give FOLDER"
            ) from error
        logger.warning("the Hub cannot be reached (%s); using the cached %s", error, folder)
        return folder
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _disk_full(repository, f"{error.strerror}") from error


def is_downloaded(folder: Path) -> bool:
    """Whether a folder lies in the Hub's cache, so that somebody else wrote what is in it."""
    from huggingface_hub import constants

    return folder.absolute().is_relative_to(Path(constants.HF_HUB_CACHE).absolute())


def weights_size(repository: str, revision: str) -> int:
    """Bytes of the weights that ``download`` would fetch into an empty cache.

    Raises:
        ValueError: the repository holds no model that can be loaded.
        OSError: the Hub does not show it.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=REACH_TIMEOUT, files_metadata=True)
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        raise OSError(
            f"the Hub does not show {repository} at {revision!r} ({type(error).__name__}): it does not "
            "exist, is private, or the Hub cannot be reached"
        ) from error
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    weights = weights_file(sizes)
    if weights is None or CONFIG not in sizes:
        raise ValueError(
            f"{repository} at {revision!r} is no model that can be loaded: it has no {CONFIG} or no weights"
        )
    if not weights.endswith(INDEX):
        return sizes[weights]
    kind = weights.removesuffix(INDEX).rpartition(".")[2]
    return sum(size for name, size in sizes.items() if SHARD.fullmatch(name) and name.endswith(kind))


def cached(repository: str, revision: str) -> Path | None:
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


def _snapshot(repository: str, revision: str, progress: DownloadProgress | None) -> Path:
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


def _fetch(repository: str, name: str, commit: str, progress: DownloadProgress | None) -> None:
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
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import WeakFileLock

    if isinstance(try_to_load_from_cache(repository, name, revision=commit), str):
        return
    metadata = get_hf_file_metadata(hf_hub_url(repository, name, revision=commit), timeout=REACH_TIMEOUT)
    digest, size = metadata.etag, metadata.size
    if digest is not None and size is not None and _SHA256.fullmatch(digest):
        cache, stored = Path(constants.HF_HUB_CACHE), repo_folder_name(repo_id=repository, repo_type="model")
        blobs, locks = cache / stored / "blobs", cache / ".locks" / stored
        for path in (blobs, locks):
            path.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(locks / f"{digest}.lock"):  # the one that hf_hub_download takes
            if not (blobs / digest).exists():
                _transfer(repository, name, commit, blobs / digest, size, progress)
    hf_hub_download(repository, name, revision=commit)


def _transfer(
    repository: str, name: str, commit: str, blob: Path, size: int, progress: DownloadProgress | None
) -> None:
    """Fetch a file of so many bytes, to a path whose name is its SHA-256."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    partial = blob.with_name(f"{blob.name}.partial")
    done = partial.stat().st_size if partial.exists() else 0
    if done > size:  # two processes wrote at once, where locks do not work
        partial.unlink()
        done = 0
    _check_space(repository, blob.parent, size - done)
    with partial.open("ab") as file:
        http_get(
            hf_hub_url(repository, name, revision=commit),
            file,
            resume_size=done,
            headers=build_hf_headers() | {"Accept-Encoding": "identity"},
            expected_size=size,
            displayed_filename=name,
            tqdm_class=_progress_bar(name, done, size, progress),
        )
    _check_digest(partial, blob.name, f"{repository}/{name}")
    partial.rename(blob)


def _progress_bar(name: str, done: int, size: int, progress: DownloadProgress | None) -> Any:
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
