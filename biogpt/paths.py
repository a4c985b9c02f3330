"""Where the files lie that come with the package."""

from pathlib import Path


def assets() -> Path:
    """The folder of models, examples and style: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "assets"
    return installed if installed.is_dir() else package.parent / "assets"
