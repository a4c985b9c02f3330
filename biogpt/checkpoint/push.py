"""Upload a checkpoint folder to the Hugging Face Hub."""

import os
from pathlib import Path

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
