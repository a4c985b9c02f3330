"""How Python names what the browser does: functions of ``assets/page.js`` and ``marks.js``, and its head."""

import html
import json
import re

from biogpt.paths import assets

# The first makes what the others add to.
_SCRIPTS = [assets() / name for name in ("page.js", "marks.js", "tree.js", "keep.js")]
PICTURE = assets() / "screenshots" / "preview.png"
PICTURE_PATH = "/preview.png"
_PREVIEW = re.compile(r'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')
_SAID = "Completes, tags and classifies biomedical text, and shows what else each word could have been."

# The value of an HTML component drawn by a function, and what listens to its elements once they are there.
COMPLETIONS = "${biogpt.completions(value)}"
COMPLETIONS_EVENTS = "biogpt.listenToView(element, trigger, props, watch)"
ALTERNATIVES_EVENTS = "biogpt.listenToAlternatives(element, trigger, props, watch)"
SUGGESTION = '<div class="where"><p class="remark"></p></div>'
SUGGESTION_EVENTS = "biogpt.listenToSuggestion(element, trigger, props, watch)"
TREE = "${biogpt.tree(value)}"
TREE_EVENTS = "biogpt.listenToTree(element, trigger, props, watch)"
KEPT = "${biogpt.kept()}"
KEPT_EVENTS = "biogpt.listenToKept(element, trigger)"
COMPARISON = "${biogpt.comparison(value)}"
COMPARISON_EVENTS = "biogpt.listenToTokens(element, trigger)"
ATTENTION = "${biogpt.attention(value)}"
ATTENTION_EVENTS = "biogpt.listenToAttention(element, props, watch)"
MARKS_EVENTS = "biogpt.listenToMarks(element, trigger, props, watch)"
PASSAGES_EVENTS = "biogpt.showKept(props, watch)"


def head() -> str:
    """For the page's head: the functions are there before Gradio makes the first component."""
    return "".join(f"<script>{path.read_text(encoding='utf-8')}</script>" for path in _SCRIPTS)


def with_preview(page: str, address: str) -> str:
    """The page with what other sites show of a link to it, in place of what Gradio says of itself.

    What a browser asks for by itself is named from the page on: that may be below the top of its host.

    Args:
        address: of the page, with a slash at its end.
    """
    values = {"title": "BioGPT", "description": _SAID, "image": address.rstrip("/") + PICTURE_PATH}
    tags = {f'property="og:{name}"': value for name, value in values.items()}
    tags |= {'property="og:type"': "website", 'property="og:url"': address}
    tags |= {'name="twitter:card"': "summary_large_image"}
    ours = "".join(f'<meta {name} content="{html.escape(value)}">' for name, value in tags.items())
    ours += '<link rel="icon" href="favicon.ico">'
    page = _PREVIEW.sub("", page).replace('href="/manifest.json"', 'href="manifest.json"')
    return page.replace("</head>", f"{ours}</head>", 1)


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
        self.broken_off = script("brokenOff", form, count)
        self.stop = script("stop", form)
        self.stopped = script("stopped", form, count)
