"""One line that says how something stands: a status, a refusal, a notice, remarks. All are HTML."""

import html

import gradio as gr

from biogpt.serving.engine import QueueFull, Stopping
from biogpt.serving.service import Lost

# What is raised on bad input, when a model's numbers overflow, when too many wait already, at the end of the
# process, or where nobody is left to do it; everything else is a fault of ours.
REFUSALS = (ValueError, TypeError, FloatingPointError, QueueFull, Stopping, Lost)
# First words of the states of a run that goes on.
_BUSY = ("Loading", "Downloading", "Waiting", "Reading", "Writing", "Suggesting", "Growing", "Searching")
_HALF = 400  # characters of an error's beginning, and of its end: it may quote what was given


def status(state: str, facts: str = "") -> str:
    """A status line; ``facts`` is HTML. ``busy`` while a run goes on, for the page's script."""
    busy = " busy" if state.split()[0] in _BUSY else ""
    return f'<p class="status{busy}"><b>{html.escape(state)}</b> {facts}</p>'


def refusal(error: Exception, what: str = "Not done") -> str:
    """A status line that says why nothing was done."""
    return f'<p class="status refusal" role="alert"><b>{html.escape(what)}</b> {html.escape(str(error))}</p>'


def api_error(error: Exception, what: str = "Not done") -> gr.Error:
    """The same for a client of the API, as plain text; the middle of a long one is left out."""
    said = str(error)
    if len(said) > 2 * _HALF:
        said = f"{said[:_HALF]} … {said[-_HALF:]}"
    return gr.Error(said, title=what, print_exception=False)


def progress_bar(done: int, total: int, label: str) -> str:
    """How much of something is done, for the facts of a status line."""
    return f'<progress max="{total}" value="{done}" aria-label="{html.escape(label)}"></progress> '


def notice(text: str) -> str:
    """A line above the tabs that the reader can dismiss."""
    dismiss = '<button type="button" aria-label="Dismiss">×</button>'
    return f'<p class="notice" role="status">{html.escape(text)} {dismiss}</p>'


def remarks(*lines: str) -> str:
    """Remarks, one below the other; empty ones are left out."""
    return "".join(f'<p class="remark">{html.escape(line)}</p>' for line in lines if line)


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 text``, ``20 texts``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
