"""Find a model's folder: embedded in this project, on the disk, or on the Hugging Face Hub.

Nothing is looked up or downloaded before ``find`` is called, and nothing at all for embedded models and
local folders.
"""

import re
from pathlib import Path

from biogpt.checkpoint.download import DownloadProgress, download, weights_size
from biogpt.checkpoint.layout import CONFIG
from biogpt.paths import assets

EMBEDDED = assets() / "models"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def embedded_names() -> list[str]:
    """Names of the models that come with this project."""
    return sorted(path.parent.name for path in EMBEDDED.glob(f"*/{CONFIG}"))


def local_folder(name: str) -> Path | None:
    """The folder of an embedded name or a path; None where there is none.

    Raises:
        ValueError: the path begins with the home of a user whom this machine does not know, or is a file's.
    """
    if name in embedded_names():  # and not a path below it
        return EMBEDDED / name
    try:
        path = Path(name).expanduser()
        if name and path.is_dir():
            return path
        is_file = bool(name) and path.is_file()
    except RuntimeError as error:
        user = name.partition("/")[0]
        raise ValueError(
            f"no model {name!r}: this machine has no user {user[1:]!r}; give ./{name}"
        ) from error
    except (ValueError, OSError):  # a zero, or too long: a name of nothing
        return None
    if is_file:
        raise ValueError(f"{name!r} is a file; expected the folder of a model, such as {str(path.parent)!r}")
    return None


def find(source: str | Path, revision: str | None = None, progress: DownloadProgress | None = None) -> Path:
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
    if (folder := local_folder(name)) is not None:
        if revision is not None:
            raise ValueError(f"revision {revision!r} was given with {name!r}; only Hub ids have revisions")
        return folder
    repository, _, tag = name.partition("@")
    if not HUB_ID.fullmatch(repository):
        known = ", ".join(embedded_names()) or "none in this installation"
        raise ValueError(
            f"no model {name!r}: expected an embedded name ({known}), an existing folder, "
            "or a Hub id owner/name, optionally with @revision"
        )
    if tag and revision is not None and tag != revision:
        raise ValueError(f"two revisions were given: {tag!r} in {name!r}, and {revision!r}; keep one")
    return download(repository, revision or tag or "main", progress)


def download_size(source: str) -> int:
    """Bytes of the weights that ``find`` would download for a Hub id with an optional ``@revision``.

    Raises:
        ValueError, OSError: as ``find``.
    """
    repository, _, revision = source.partition("@")
    if not HUB_ID.fullmatch(repository):
        find(source)  # raises: neither embedded, nor a folder, nor a Hub id
    return weights_size(repository, revision or "main")
