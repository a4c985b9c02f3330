"""How Python names what the browser does: functions of ``assets/page.js``."""

import json

from biogpt.paths import assets

_PAGE = assets() / "page.js"

# The value of an HTML component drawn by a function, and what listens to its elements once they are there.
COMPLETIONS = "${biogpt.completions(value)}"
COMPLETIONS_EVENTS = "biogpt.listenToTokens(element, trigger, props, watch)"
ALTERNATIVES_EVENTS = "biogpt.listenToAlternatives(element, trigger)"
ATTENTION = "${biogpt.attention(value)}"
ATTENTION_EVENTS = "biogpt.listenToAttention(element, props, watch)"


def head() -> str:
    """For the page's head: the functions are there before Gradio makes the first component."""
    return f"<script>{_PAGE.read_text(encoding='utf-8')}</script>"


def script(name: str, *given: object) -> str:
    """What Gradio's ``js`` takes: a function that calls ``biogpt.name`` with what is given and its values.

    Args:
        given: what JSON can hold.
    """
    fixed = "".join(f"{json.dumps(value)}, " for value in given)
    return f"(...values) => biogpt.{name}({fixed}...values)"


class Buttons:
    """What ``js`` takes as the runs of a form begin, end and are stopped: it switches the form's buttons.

    Args:
        form: its name.
        count: of its buttons, as outputs of the event; the last one stops what the others begin.
        cleared: how many texts, outputs before the buttons, are emptied when a run begins.
    """

    def __init__(self, form: str, count: int = 2, cleared: int = 0) -> None:
        self.begun = script("begun", form, count, cleared)
        self.ended = script("ended", form, count)
        self.stop = script("stop", form)
        self.stopped = script("stopped", form, count)
