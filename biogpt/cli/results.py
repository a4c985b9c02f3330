"""Where results go: a table on standard output, or a file."""

import argparse
from collections.abc import Sequence

from biogpt.checkpoint.files import written_whole


def as_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, a line for each row."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (columns, *rows)
    )
    return "".join(line.rstrip() + "\n" for line in lines)


def check_out(chosen: argparse.Namespace) -> None:
    """Refuse, before any work, what could not be written after it."""
    if chosen.out is None and chosen.format == "brat":
        raise ValueError("brat is a .zip; name a file with --out")
    if chosen.out is not None and (not chosen.out.name or chosen.out.is_dir()):
        raise IsADirectoryError(f"{chosen.out} is a folder; name a file with --out")
    if chosen.out is not None and not chosen.out.parent.is_dir():
        raise FileNotFoundError(
            f"{chosen.out.parent} is not a folder; make it first, or choose another --out"
        )


def put(chosen: argparse.Namespace, content: bytes) -> None:
    """Write to ``--out``, or print."""
    if chosen.out is None:
        print(content.decode("utf-8", errors="replace"), end="")
        return
    out = chosen.out.resolve()
    if chosen.out.is_relative_to("/dev") or (out.exists() and not out.is_file()):  # a device or a pipe
        with chosen.out.open("ab") as stream:
            stream.write(content)
        return
    with written_whole(out.parent, out.name) as (unfinished,):
        unfinished.write_bytes(content)
