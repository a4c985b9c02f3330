"""The button that copies a link to the state of the page, and what opening such a link does."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from biogpt.serving.shelf import Shelf
from biogpt.ui.links import Value, decode, encode
from biogpt.ui.runs import QUICK
from biogpt.ui.scripts import script
from biogpt.ui.status import notice

_TABS = {
    "Write": "write",
    "Entities": "entities",
    "Classify": "classify",
    "Models": "models",
}  # by their titles


class Sharing:
    """What the button and a link do, as Gradio wants it: values of components in, values of components out.

    Args:
        controls: that a link holds, by the names of ``biogpt.ui.links``.
    """

    def __init__(self, shelf: Shelf, controls: Mapping[str, gr.components.Component]) -> None:
        self.shelf, self.controls = shelf, controls
        self._defaults = {name: getattr(control, "value", "") for name, control in controls.items()}

    def make(self, tab: str, model: str, *values: Any) -> tuple[str, str]:
        """The query of a link, empty when there is too much for one, and a notice.

        Args:
            tab: title of the one in view.
            values: of the controls.
        """
        given = dict(zip(self.controls, values, strict=True))
        state = {name: value for name, value in given.items() if value not in (None, self._defaults[name])}
        if model != self.shelf.default:
            state["model"] = model
        try:
            query = encode({"tab": _TABS.get(tab, "elsewhere"), **state})
        except ValueError as error:
            return "", notice(str(error))
        return query, notice("The link is copied: it holds the tab, the texts and the settings.")

    def restore(self, request: gr.Request) -> tuple[Any, ...]:
        """What the address of the page holds: notice, tab, the model twice, and values of the controls."""
        state, ignored = decode(dict(request.query_params))
        lines = []
        model = state.pop("model", None)
        if model is not None and not self._is_here(str(model)):
            lines.append(
                f"The link was made with the model {model}: choose it in Models to get the same text."
            )
            model = None
        for name in self._not_offered(state):
            del state[name]
            ignored.append(name)
        tab = state.pop("tab", None)
        if ignored:
            lines.append(f"Parts of the link were ignored: {', '.join(ignored)}.")
        if state or tab:
            lines.append("Opened from a link; nothing has been run.")
        chosen = gr.skip() if model is None else model
        return (
            notice(" ".join(lines)) if lines else "",
            gr.Tabs(selected=str(tab)) if tab else gr.skip(),
            chosen,
            chosen,
            *(state.get(name, gr.skip()) for name in self.controls),
        )

    def _is_here(self, model: str) -> bool:
        """A link loads nothing: only a model in memory is taken from one."""
        return (self.shelf.allowed is None or model in self.shelf.allowed) and self.shelf.has(model)

    def _not_offered(self, state: Mapping[str, Value]) -> list[str]:
        """Names of what is none of its control's choices."""
        return [
            name
            for name, control in self.controls.items()
            if name in state
            and isinstance(control, gr.Radio)
            and state[name] not in [value for _, value in control.choices]
        ]


def connect_links(
    page: gr.Blocks,
    sharing: Sharing,
    button: gr.Button,
    line: gr.HTML,
    tabs: gr.Tabs,
    model: gr.State,
    chooser: gr.Dropdown,
) -> Any:
    """Make the button copy a link to the state of the page, and an opened link restore it: this event.

    Args:
        line: for notices.
        model, chooser: the name of the visitor's model, and the control that shows it.
    """
    tab, query = gr.Textbox(visible=False), gr.Textbox(visible=False)
    controls = list(sharing.controls.values())
    button.click(sharing.make, [tab, model, *controls], [query, line], js=script("withTab"), **QUICK).then(
        None, query, None, js=script("copyLink")
    )
    return page.load(sharing.restore, None, [line, tabs, model, chooser, *controls], **QUICK)
