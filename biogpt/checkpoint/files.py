"""Files that are written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def written_whole(folder: Path, *names: str) -> Iterator[list[Path]]:
    """Paths beside files of a folder, to write to in their place; they take their names once all are written.

    Raises:
        OSError: one of them could not be written, as on a full disk; the files are as they were.
    """
    unfinished = [folder / f".{name}.tmp" for name in names]
    try:
        yield unfinished
        for path, name in zip(unfinished, names, strict=True):
            path.replace(folder / name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"{', '.join(names)} could not be written to {folder} ({reason}); "
            "free some space, or choose another folder. What was there before is kept"
        ) from error
    finally:
        for path in unfinished:
            path.unlink(missing_ok=True)
