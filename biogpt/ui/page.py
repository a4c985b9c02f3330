"""The whole page: header, tabs, footer, keyboard, and how it is served."""

import html
import socket
from collections.abc import Callable
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from biogpt.serving.shelf import LazyModel, Shelf
from biogpt.tasks.classification import TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.ui.classify import classify_tab
from biogpt.ui.elsewhere import DEFAULT_ADDRESS, elsewhere
from biogpt.ui.entities import entities_tab
from biogpt.ui.links import decode, encode
from biogpt.ui.models import models_tab, title
from biogpt.ui.runs import QUICK
from biogpt.ui.scripts import head, script
from biogpt.ui.theme import STYLE_SHEET, theme
from biogpt.ui.write_tab import write_tab

WAITING_LINE = 32  # requests that may wait; one more is refused at once, with HTTP 503
CACHE_AGE = 3600  # seconds until uploads and files for download are deleted

_FOOTER = (
    "What is written and found here is not medical advice and can be wrong. "
    "The models' cards say what they were trained on and how they scored."
)


def build_page(
    shelf: Shelf,
    name: str,
    recognizer: LazyModel[EntityRecognizer],
    classifier: LazyModel[TextClassifier],
    sentence_classifier: LazyModel[TextClassifier],
) -> gr.Blocks:
    """Lay out the page; no model needs to be loaded yet.

    Args:
        shelf: of language models; the visitor's one also compares labels of their own.
        name: what to call the default model: an embedded name, a folder's, or a Hub id.
        recognizer: finds entities.
        classifier, sentence_classifier: label whole texts, and the sentences of abstracts.
    """

    def describe_model(chosen: str) -> str:
        shown = name if chosen == shelf.default else chosen
        try:
            generator = shelf.take(chosen)
        except ValueError as error:
            return _header(f"{shown} · failed: {error}")
        return _header(f"{title(shown)} · {generator.description} · ready")

    with gr.Blocks(title="BioGPT", analytics_enabled=False, delete_cache=(CACHE_AGE, CACHE_AGE)) as page:
        model = gr.State(shelf.default)
        with gr.Row(elem_classes="header"):
            header = gr.HTML(_header(f"{name} · loading"))
            link = gr.Button("Copy link", size="sm", elem_id="copy-link")
        notice = gr.HTML("", elem_id="notice")
        with gr.Tabs() as tabs:
            with gr.Tab("Write", id="write"):
                write = write_tab(shelf, model)
            controls = dict(write.controls)
            if recognizer.expected:
                with gr.Tab("Entities", id="entities"):
                    controls["passage"] = entities_tab(recognizer)
            with gr.Tab("Classify", id="classify"):
                controls |= classify_tab(classifier, sentence_classifier, shelf, model)
            with gr.Tab("Models", id="models"):
                chooser = models_tab(shelf, model, header, describe_model)
            with gr.Tab("Use it elsewhere", id="elsewhere"):
                programs = gr.HTML(elsewhere(DEFAULT_ADDRESS), elem_id="programs")
        gr.HTML(f'<p class="note">{_FOOTER}</p>')

        def arrive(chosen: str, length: int) -> tuple[Any, ...]:
            """Wait for the model, then say that it is there, and give the controls its bounds."""
            line = describe_model(chosen)
            return line, *(
                write.fit(chosen, length) if shelf.has(chosen) else [gr.skip()] * len(write.fitted)
            )

        _connect_links(page, shelf, link, notice, tabs, model, chooser, controls).then(
            arrive,
            [model, controls["length"]],
            [header, *write.fitted],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        ).then(write.recount, [model, controls["text"]], write.count, **QUICK)
        page.load(
            None, None, programs, js=script("withOwnAddress", elsewhere(DEFAULT_ADDRESS), DEFAULT_ADDRESS)
        )
    page.queue(max_size=WAITING_LINE)
    return page


def _connect_links(
    page: gr.Blocks,
    shelf: Shelf,
    button: gr.Button,
    notice: gr.HTML,
    tabs: gr.Tabs,
    model: gr.State,
    chooser: gr.Dropdown,
    controls: dict[str, gr.components.Component],
) -> Any:
    """Make the button copy a link to the state of the page, and a link restore it when it is opened: this event."""
    tab, query = gr.Textbox(visible=False), gr.Textbox(visible=False)
    titles = {"Write": "write", "Entities": "entities", "Classify": "classify", "Models": "models"}
    defaults = {name: getattr(control, "value", "") for name, control in controls.items()}

    def make(title: str, model: str, *values: Any) -> tuple[str, str]:
        given = dict(zip(controls, values, strict=True))
        state = {name: value for name, value in given.items() if value not in (None, defaults[name])}
        if model != shelf.default:
            state["model"] = model
        try:
            link = encode({"tab": titles.get(title, "elsewhere"), **state})
        except ValueError as error:
            return "", _notice(str(error))
        return link, _notice("The link is copied: it holds the tab, the texts and the settings.")

    def restore(request: gr.Request) -> tuple[Any, ...]:
        state, ignored = decode(dict(request.query_params))
        known = shelf.allowed is None or state.get("model", shelf.default) in shelf.allowed
        wanted = state.pop("model", None)
        lines = []
        if wanted is not None and not (known and shelf.has(str(wanted))):
            lines.append(
                f"The link was made with the model {wanted}: choose it in Models to get the same text."
            )
            wanted = None
        for name, control in controls.items():
            if isinstance(control, gr.Radio) and state.get(name) not in (
                None,
                *(each for _, each in control.choices),
            ):
                del state[name]
                ignored.append(name)
        choice = state.pop("tab", None)
        if ignored:
            lines.append(f"Parts of the link were ignored: {', '.join(ignored)}.")
        if state or choice:
            lines.append("Opened from a link; nothing has been run.")
        return (
            _notice(" ".join(lines)) if lines else "",
            gr.Tabs(selected=str(choice)) if choice else gr.skip(),
            *(gr.skip() if wanted is None else wanted for _ in (model, chooser)),
            *(state.get(name, gr.skip()) for name in controls),
        )

    made = button.click(
        make, [tab, model, *controls.values()], [query, notice], js=script("withTab"), **QUICK
    )
    made.then(None, query, None, js=script("copyLink"))
    return page.load(restore, None, [notice, tabs, model, chooser, *controls.values()], **QUICK)


def _notice(text: str) -> str:
    dismiss = '<button type="button" aria-label="Dismiss">×</button>'
    return f'<p class="notice" role="status">{html.escape(text)} {dismiss}</p>'


def serve(
    page: gr.Blocks,
    host: str,
    port: int,
    share: bool = False,
    mcp: bool = False,
    health: Callable[[], tuple[int, str]] = lambda: (200, "serving"),
) -> None:
    """Serve the page until the process is told to end.

    Args:
        host, port: where to listen.
        mcp: offer the endpoints as tools at ``/gradio_api/mcp``, too.
        health: HTTP status and a word, for ``/health``.
        share: ask gradio.live for a public link; needs the network.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    check_address(host, port)

    def answer(request: Request) -> JSONResponse:
        status, state = health()
        return JSONResponse({"status": state}, status)

    page.launch(
        mcp_server=mcp,
        app_kwargs={"routes": [Route("/health", answer)]},
        server_name=host,
        server_port=port,
        share=share,
        show_error=True,
        footer_links=["api", "settings"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        max_file_size="10mb",
        theme=theme(),
        css_paths=STYLE_SHEET,
        head=head(),
        js=script("start"),
    )


def check_address(host: str, port: int) -> None:
    """Raise an OSError where nobody can listen."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}, port {port}: {error.strerror}; choose another"
            ) from error


def _header(state: str) -> str:
    return (
        '<header class="top"><h1>BioGPT</h1><p>completes, tags and classifies biomedical text</p>'
        f'<p class="state" id="model-state">{html.escape(state)}</p></header>'
    )
