"""Text files: read whole as UTF-8, as lines, as JSON Lines. What cannot be read is refused by name and
line."""

import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LINE_END = re.compile(r"\r\n|\r|\n")


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
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; save it as UTF-8 and "
            "try again"
        ) from error
    if "\0" in text:  # UTF-16 without a mark is valid UTF-8, full of zeros
        raise ValueError(
            f"{name} is no text: byte {data.index(0)} is 0x00, as in a damaged file or in UTF-16; save it "
            "as UTF-8 "
            "and try again"
        )
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
    name = Path(path).name
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg})") from error
        except RecursionError as error:
            raise ValueError(f"{where}: brackets nested too deep to be read") from error
        if not isinstance(value, dict):
            raise ValueError(f'{where}: expected an object such as {{"text": "…"}}; got {line[:60]!r}')
        yield where, value
