"""What a run found, as a table that sorts and as files to download."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from biogpt.ui.runs import QUICK
from biogpt.ui.scripts import script

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
    columns: Sequence[str], rows: Sequence[Sequence[Any]], widths: Sequence[int] | None = None
) -> gr.Dataframe:
    """The update of a table, hidden without rows: its first ``MOST_ROWS``; a column of numbers sorts as such.

    Args:
        widths: percent of each column; as wide as what it holds when None.
    """
    kinds = [_kind(name, cell) for name, cell in zip(columns, rows[0], strict=True)] if rows else []
    return gr.Dataframe(
        value=list(rows[:MOST_ROWS]),
        headers=list(columns),
        datatype=kinds or "str",
        column_widths=None if widths is None else [f"{width}%" for width in widths],
        visible=bool(rows),
    )


def _kind(column: str, cell: Any) -> Any:
    return "html" if column == LOOK_UP else "number" if isinstance(cell, int | float) else "str"


def rows_note(rows: int) -> str:
    """What to say when a table is longer than is shown; else nothing."""
    if rows <= MOST_ROWS:
        return ""
    return f"The table lists the first {MOST_ROWS:,} of {rows:,} rows; the downloads hold all."


def download_buttons(
    kinds: Sequence[str],
    inputs: Sequence[gr.components.Component],
    write: Callable[..., tuple[str, bytes]],
) -> None:
    """A row of buttons that make a file of the results and save it.

    Args:
        kinds: of files; a button each.
        write: given the kind and the values of ``inputs``, returns the file's name and content.
    """
    names = {"brat": "BRAT", "pubtator": "PubTator"}
    with gr.Row(elem_classes="examples downloads"):
        gr.HTML("<span>Download</span>")
        file = gr.DownloadButton(elem_classes="unseen")  # only its file is wanted
        for kind in kinds:

            def save(*values: Any, kind: str = kind) -> str:
                name, content = write(kind, *values)
                return save_bytes_to_cache(content, name, file.GRADIO_CACHE)

            saving = gr.Button(names.get(kind, kind.upper()), size="sm", min_width=0).click(
                save, list(inputs), file, **QUICK
            )
            saving.success(None, file, None, js=script("saveFile"))
