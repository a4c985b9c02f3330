"""Text files: read whole as UTF-8, as lines, as JSON Lines; a checkpoint's small files too.

What cannot be read is refused by name and line.
"""

import json
import lzma
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LINE_END = re.compile(r"\r\n|\r|\n")
SMALL = 32 * 2**20  # most bytes of a file that holds no weights
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LFS = b"version https://git-lfs."
_PAGE = re.compile(rb"\s*<(!doctype html|html|\?xml|head)\b", re.IGNORECASE)


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 file; a byte-order mark is left out, line ends stay; ``.xz`` is unpacked.

    Raises:
        ValueError: the file holds no text, is not UTF-8 (the message names the first wrong byte), or is a
            damaged ``.xz``.
    """
    path = Path(path)
    name = path.name
    try:
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    except lzma.LZMAError as error:
        raise ValueError(f"{name} is damaged or not an .xz file ({error}); make it anew") from error
    text = _decoded(data, name)
    if not text.strip():
        raise ValueError(f"{name} is empty; expected at least one text")
    return text


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file, ended as editors end them: ``str.splitlines`` also cuts at U+2028 and
    others.

    Raises:
        ValueError: see ``read_text``.
    """
    return LINE_END.split(read_text(path))


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its place (``name, line 3``); empty lines are left out.

    Raises:
        ValueError: a line is no JSON object; see also ``read_text``.
    """
    for where, value in json_lines(path):
        if isinstance(value, ValueError):
            raise value
        yield where, value


def json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """As ``read_json_lines``, with what is wrong with a line in place of its object."""
    name = Path(path).name
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            where = f"{name}, line {number}"
            yield where, _object(where, line)


def _object(where: str, line: str) -> dict[str, Any] | ValueError:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"{where}: not JSON ({error.msg})")
    except RecursionError:
        return ValueError(f"{where}: brackets nested too deep to be read")
    if not isinstance(value, dict):
        return ValueError(f'{where}: expected an object such as {{"text": "…"}}; got {line[:60]!r}')
    return value


def check_file(path: Path) -> None:
    """Refuse what is no file of its own folder, or holds something else than its name says.

    Links of the Hub's cache, from ``snapshots/…/`` to ``blobs/``, are followed, others within the folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, a device or a pipe, lies elsewhere, or is a Git LFS pointer or a web page.
    """
    real, folder = os.path.realpath(path), os.path.realpath(path.parent)
    blobs = os.path.join(os.path.dirname(os.path.dirname(folder)), "blobs")
    if path.is_symlink() and not real.startswith((folder + os.sep, blobs + os.sep)):
        raise ValueError(
            f"{path} is a link to {real}, outside its folder, and is not read; put the file itself there"
        )
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is no file, but a folder, a device or a pipe; put the file itself there")
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_LFS):
        raise ValueError(f"{path} is only a Git LFS pointer: run `git lfs pull` in its folder")
    if _PAGE.match(start.removeprefix(b"\xef\xbb\xbf")):
        raise ValueError(
            f"{path} is a web page: that about the file was saved, not the file. Download it anew, from an "
            "address with /resolve/ in place of /blob/"
        )


def read_small(path: str | Path) -> str:
    """The content of a small UTF-8 file of a checkpoint; a byte-order mark is left out.

    Raises:
        FileNotFoundError, ValueError: see ``check_file``; or it is no text, or larger than ``SMALL``.
    """
    path = Path(path)
    check_file(path)
    with path.open("rb") as file:
        data = file.read(SMALL + 1)
    if len(data) > SMALL:
        raise ValueError(
            f"{path} has more than {SMALL >> 20} MiB, which no such file of a checkpoint has: copy it anew "
            "from where the checkpoint came from"
        )
    return _decoded(data, str(path))


def read_json(path: str | Path) -> Any:
    """What a small JSON file holds.

    Raises:
        FileNotFoundError, ValueError: see ``read_small``; or it is not JSON.
    """
    content = read_small(path)
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    except RecursionError as error:
        raise ValueError(
            f"{path} is not a JSON file of a checkpoint: its brackets are nested too deep"
        ) from error


def _decoded(data: bytes, name: str) -> str:
    if data.startswith(_UTF16):
        raise ValueError(f"{name} is not UTF-8 but UTF-16: save it as UTF-8 and try again")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name} is not UTF-8: byte {error.start} (line {line}) is 0x{data[error.start]:02x}; save it as "
            "UTF-8 and try again"
        ) from error
    if (place := data.find(0)) >= 0:  # UTF-16 without a mark is valid UTF-8, full of zeros
        line = data.count(b"\n", 0, place) + 1
        raise ValueError(
            f"{name} is no text: byte {place} (line {line}) is 0x00, as in a damaged file or in UTF-16; save "
            "it as UTF-8 and try again"
        )
    return text
