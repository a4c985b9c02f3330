"""The button that copies a link to the state of the page, and what opening such a link does."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from biogpt.serving.shelf import Shelf
from biogpt.ui.links import Value, decode, encode
from biogpt.ui.runs import QUICK
from biogpt.ui.scripts import script
from biogpt.ui.status import notice
from biogpt.ui.writing import Work, opened

_TABS = {
    "Write": "write",
    "Entities": "entities",
    "Classify": "classify",
    "Models": "models",
    "Use it elsewhere": "elsewhere",
}  # by their titles

_COPIED = "The link is copied: it holds the tab, the texts and the settings."
_NOT_COPIED = (
    "The browser lets no page copy here. The link is the address of this page now: copy it from there."
)


class Sharing:
    """What the button and a link do, as Gradio wants it: values of components in, values of components out.

    Args:
        controls: that a link holds, by the names of ``biogpt.ui.links``.
    """

    def __init__(self, shelf: Shelf, controls: Mapping[str, gr.components.Component]) -> None:
        self.shelf, self.controls = shelf, controls
        self._defaults = {name: getattr(control, "value", "") for name, control in controls.items()}

    def make(self, tab: str, model: str, work: Work | None, *values: Any) -> tuple[str, str]:
        """The query of a link, empty when there is too much for one, and a notice.

        Args:
            tab: title of the one in view.
            work: what was written; the seed that it was drawn with gives the same text again.
            values: of the controls.
        """
        given = dict(zip(self.controls, values, strict=True))
        state = {
            name: ",".join(value) if isinstance(value, list) else value
            for name, value in given.items()
            if value not in (None, self._defaults[name])
        }
        draft = work.draft if work else None
        if draft is not None and given["text"] in draft.texts():
            state["given"] = len(draft.given)
            if draft.rest:
                state["rest"] = len(draft.rest)
            if draft.status.seed is not None:
                state["seed"] = str(draft.status.seed)
        if model != self.shelf.default:
            state["model"] = model
        try:
            return encode({"tab": _TABS.get(tab, "elsewhere"), **state}), ""
        except ValueError as error:
            return "", notice(str(error))

    def restore(self, request: gr.Request) -> tuple[Any, ...]:
        """What the address of the page holds: notice, tab, the model twice, what was written, and values of
        the controls.
        """
        state, ignored = decode(dict(request.query_params))
        lines = []
        model = state.pop("model", None)
        if model is not None and not self._is_here(str(model)):
            lines.append(f"The link was made with the model {model}: {self._advice(str(model))}.")
            model = None
        for name in self._not_offered(state):
            del state[name]
            ignored.append(name)
        tab, given, rest = state.pop("tab", None), state.pop("given", None), state.pop("rest", 0)
        if ignored:
            lines.append(f"Parts of the link were ignored: {', '.join(ignored)}.")
        if state or tab:
            lines.append("Opened from a link; nothing has been run.")
        chosen = gr.skip() if model is None else model
        text = str(state.get("text", ""))
        work = (
            gr.skip()
            if given is None
            else Work(opened(str(model or self.shelf.default), text, int(given), int(rest)))
        )
        for name, control in self.controls.items():
            if name in state and isinstance(control, gr.CheckboxGroup):
                state[name] = str(state[name]).split(",")  # type: ignore[assignment]
        return (
            notice(" ".join(lines)) if lines else "",
            gr.Tabs(selected=str(tab)) if tab else gr.skip(),
            chosen,
            chosen,
            work,
            *(state.get(name, gr.skip()) for name in self.controls),
        )

    def _advice(self, model: str) -> str:
        if self.shelf.allowed is not None and model not in self.shelf.allowed:
            return "it is not offered here, so the text will be another one"
        return "choose it in Models to get the same text"

    def _is_here(self, model: str) -> bool:
        """A link loads nothing: only a model in memory is taken from one."""
        return (self.shelf.allowed is None or model in self.shelf.allowed) and self.shelf.has(model)

    def _not_offered(self, state: Mapping[str, Value]) -> list[str]:
        """Names of what is none of its control's choices."""
        return [
            name
            for name, control in self.controls.items()
            if name in state
            and isinstance(control, gr.Radio | gr.CheckboxGroup)
            and control.choices  # else they are known when something was found
            and not {*str(state[name]).split(",")} <= {value for _, value in control.choices}
        ]


def connect_links(
    page: gr.Blocks,
    sharing: Sharing,
    button: gr.Button,
    line: gr.HTML,
    tabs: gr.Tabs,
    model: gr.State,
    chooser: gr.Dropdown,
    work: gr.State,
    files: Sequence[gr.File],
) -> Any:
    """Make the button copy a link to the state of the page, and an opened link restore it: this event.

    A page that loads anew in its tab, since it was reloaded or the server was away, takes up what it had
    instead: the browser keeps what its controls hold, and the server by session what was written and found.

    Args:
        line: for notices.
        model, chooser: the name of the visitor's model, and the control that shows it.
        work: what was written.
        files: that a link does not hold.
    """
    tab, query, session = (gr.Textbox(visible=False) for _ in range(3))
    controls = list(sharing.controls.values())
    ids = {state: number for number, state in page.blocks.items() if isinstance(state, gr.State)}
    others = [state for state in ids if state not in (model, work)]
    kept: list[Any] = [*controls, *files]

    def arrive(before: str, request: gr.Request) -> tuple[Any, ...]:
        own = request.session_hash
        if not before:
            return (own, *sharing.restore(request), *(gr.skip() for _ in others))
        values = _taken(page, before, [ids[state] for state in (model, work, *others)])
        skipped = (gr.skip() for _ in controls)
        return own, "", gr.skip(), values[0], *values[:2], *skipped, *values[2:]

    button.click(
        sharing.make, [tab, model, work, *controls], [query, line], js=script("withTab"), **QUICK
    ).then(None, [query, line], line, js=script("copyLink", notice(_COPIED), notice(_NOT_COPIED)))
    gr.on([control.change for control in kept], None, kept, None, js=script("remember"))
    return page.load(
        arrive,
        session,
        [session, line, tabs, model, chooser, work, *controls, *others],
        js=script("session"),
        **QUICK,
    ).then(None, session, [tabs, *kept], js=script("recall", _TABS, len(kept)))


def _taken(page: gr.Blocks, session: str, states: Sequence[int]) -> list[Any]:
    """The values of these states in a session that has ended, which loses them."""
    holder = page.state_holder
    if session not in holder:
        return [gr.skip() for _ in states]
    values = [holder[session][state] for state in states]
    holder.delete_state(session)
    return values
