"""What a run found, as a table that sorts and as files to download."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from biogpt.ui.runs import QUICK
from biogpt.ui.scripts import script
from biogpt.ui.status import REFUSALS, api_error

LOOK_UP = "Look up"  # name of a column of links, in HTML
MOST_ROWS = 200  # of a table on the page, every update of which costs by its rows; downloads have no limit


def results_table(label: str, elem_id: str) -> gr.Dataframe:
    """A table that sorts by any column, empty as yet."""
    return gr.Dataframe(
        label=label,
        interactive=False,
        wrap=True,
        max_height=360,
        buttons=["copy", "fullscreen"],
        visible=False,
        elem_id=elem_id,
        elem_classes="results",
    )


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    widths: Sequence[int] | None = None,
    page: int = 1,
) -> gr.Dataframe:
    """The update of a table, hidden without rows: ``MOST_ROWS`` of them; a column of numbers sorts as such.

    Args:
        page: which of them, from 1.
        widths: percent of each column; as wide as what it holds when None.
    """
    kinds = [_kind(name, cell) for name, cell in zip(columns, rows[0], strict=True)] if rows else []
    return gr.Dataframe(
        value=list(rows[(page - 1) * MOST_ROWS : page * MOST_ROWS]),
        headers=list(columns),
        datatype=kinds or "str",
        column_widths=None if widths is None else [f"{width}%" for width in widths],
        visible=bool(rows),
    )


def _kind(column: str, cell: Any) -> Any:
    return "html" if column == LOOK_UP else "number" if isinstance(cell, int | float) else "str"


def pages_of(rows: int) -> int:
    """How many pages a table of so many rows has."""
    return max(1, -(-rows // MOST_ROWS))


def rows_note(rows: int, page: int = 1) -> str:
    """What to say when a table is longer than is shown; else nothing."""
    if rows <= MOST_ROWS:
        return ""
    first, last = (page - 1) * MOST_ROWS + 1, min(rows, page * MOST_ROWS)
    return f"The table lists rows {first:,} to {last:,} of {rows:,} and sorts these; the downloads hold all."


def download_buttons(
    kinds: Sequence[str],
    inputs: Sequence[gr.components.Component],
    write: Callable[..., tuple[str, bytes]],
    title: str = "Download",
    js: str | None = None,
) -> None:
    """A row of buttons that make a file of the results and save it.

    Args:
        kinds: of files; a button each.
        write: given the kind and the values of ``inputs``, returns the file's name and content, or refuses.
        title: written before the buttons.
        js: gives the values of ``inputs`` in the browser.
    """
    names = {"brat": "BRAT", "conll": "CoNLL", "pubtator": "PubTator", "table": "Table"}
    with gr.Row(elem_classes="examples downloads"):
        gr.HTML(f"<span>{title}</span>")
        file = gr.DownloadButton(elem_classes="unseen")  # only its file is wanted
        for kind in kinds:

            def save(*values: Any, kind: str = kind) -> str:
                try:
                    name, content = write(kind, *values)
                except REFUSALS as error:
                    raise api_error(error) from error
                return save_bytes_to_cache(content, name, file.GRADIO_CACHE)

            saving = gr.Button(names.get(kind, kind.upper()), size="sm", min_width=0).click(
                save, list(inputs), file, js=js, **QUICK
            )
            saving.success(None, file, None, js=script("saveFile"))
