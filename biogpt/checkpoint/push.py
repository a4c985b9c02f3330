"""Upload a checkpoint folder to the Hugging Face Hub."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from biogpt.checkpoint.base import base_name, is_path
from biogpt.checkpoint.convert import rewrite
from biogpt.checkpoint.hub import HUB_ID
from biogpt.checkpoint.layout import CONFIG, require


def check_hub_id(repository: str) -> None:
    """Raise a ValueError for what the Hub would not take as ``owner/name``."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub.utils import validate_repo_id

    if not HUB_ID.fullmatch(repository):
        raise ValueError(f"{repository!r} is not a Hub id; expected OWNER/NAME")
    try:
        validate_repo_id(repository)
    except ValueError as error:  # HFValidationError
        raise ValueError(f"{repository!r} is not a Hub id: {error}") from error


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload a checkpoint folder; a repository that does not exist yet is made, private.

    A head whose base is a folder of this machine is uploaded with its decoder: nobody else has that folder.

    Returns:
        The address of the commit.

    Raises:
        ValueError: ``repository`` is no Hub id, or the folder holds no checkpoint.
        OSError: the Hub cannot be reached, or refuses; the folder is as it was.
    """
    check_hub_id(repository)
    require(folder, CONFIG)
    name = base_name(folder)
    if name is None or not is_path(name):
        return _upload(folder, repository, folder)
    with TemporaryDirectory() as temporary:
        whole = Path(temporary)
        for path in folder.iterdir():
            if path.is_file() and path.suffix not in (".safetensors", ".bin"):
                shutil.copy(path, whole)
        rewrite(folder, whole)
        return _upload(whole, repository, folder)


def _upload(folder: Path, repository: str, original: Path) -> str:
    """Upload what lies in ``folder``; errors name the ``original``."""
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload BioGPT"))
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalTokenNotFoundError) as error:
        raise ConnectionError(
            f"{original} was not uploaded to {repository} ({type(error).__name__}: {error}); log in with "
            f"`hf auth login`, then `hf upload {repository} {original}`"
        ) from error
