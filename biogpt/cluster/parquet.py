"""Parquet: rows of texts in, rows of results out. Needs ``pyarrow``, which ``ray[data]`` brings along."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from biogpt.text.documents import Row, rows_of, text_columns

SUFFIX = ".parquet"
_TOGETHER = 4096  # rows that are written at once: a reader skips and unpacks that many

# A column: the type of its cells, a list of such in brackets, or the columns of a row within it.
Column = type | list[Any] | Mapping[str, Any]


def check_parquet() -> None:
    """Raises ValueError where pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise ValueError("Parquet needs the package pyarrow: pip install pyarrow")


def read_parquet(path: Path) -> list[Row]:
    """The rows of a file with a column ``text``, ``abstract`` (after ``title``) or ``sentence``.

    Raises:
        ValueError: pyarrow is not installed, the file is damaged, or has no such column.
    """
    check_parquet()
    import pyarrow
    from pyarrow import parquet

    try:
        columns = parquet.read_schema(path).names
        found = text_columns(columns)
        if found is None:
            raise ValueError(
                f"{path.name} has the columns {', '.join(columns)}; expected text, abstract or sentence"
            )
        key, parts = found
        wanted = [columns[part] for part in parts]
        named = [] if key is None else [columns[key]]
        cells = parquet.read_table(path, columns=[*wanted, *named]).to_pydict()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path.name} cannot be read as Parquet: {error}") from error
    names = cells[named[0]] if named else len(cells[wanted[0]]) * [None]
    rows = zip(names, zip(*(cells[column] for column in wanted), strict=True), strict=True)
    return rows_of(
        ("" if name is None else str(name), _joined(f"{path.name}, row {number}", content))
        for number, (name, content) in enumerate(rows, 1)
    )


def _joined(where: str, parts: Sequence[Any]) -> str | ValueError:
    kept = [part for part in parts if part is not None]
    if not all(isinstance(part, str) for part in kept):
        return ValueError(f"{where}: the text is of type {type(kept[0]).__name__}; expected a string")
    return " ".join(part for part in kept if part.strip())


class ParquetRows:
    """Rows written to a Parquet file.

    Args:
        columns: all that a row may have; what a row lacks is null.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column]) -> None:
        import pyarrow
        from pyarrow import parquet

        self._schema = pyarrow.schema([(name, _arrow(column)) for name, column in columns.items()])
        self._writer = parquet.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows += rows
        if len(self._rows) >= _TOGETHER:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow

        self._writer.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []


def _arrow(column: Column) -> Any:
    import pyarrow

    if isinstance(column, list):
        return pyarrow.list_(_arrow(column[0]))
    if isinstance(column, Mapping):
        return pyarrow.struct([(name, _arrow(cell)) for name, cell in column.items()])
    return {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}[column]
