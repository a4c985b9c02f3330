"""The whole page: header, tabs and footer, and how it is served."""

import html
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr
from gradio.tunneling import CURRENT_TUNNELS
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from biogpt.serving.engine import Stopping
from biogpt.serving.shelf import LazyModel, Shelf
from biogpt.tasks.classification import TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.ui.api import api_of
from biogpt.ui.auth import Auth
from biogpt.ui.classify import Labeller, classify_tab
from biogpt.ui.elsewhere import DEFAULT_ADDRESS, elsewhere
from biogpt.ui.entities import Tagger, entities_tab
from biogpt.ui.gate import Gate, Page
from biogpt.ui.hosts import SiteCheck, Sites
from biogpt.ui.models import models_tab, title
from biogpt.ui.runs import QUICK
from biogpt.ui.scripts import PICTURE, PICTURE_PATH, head, script
from biogpt.ui.sharing import Sharing, connect_links
from biogpt.ui.theme import STYLE_SHEET, theme
from biogpt.ui.write_tab import WriteTab, write_tab

_THREADS = 64  # more than all lines let run at once
_LOOK = 0.1  # seconds between looks at whether all clients were told
CACHE_AGE = 3600  # seconds until uploads and files for download are deleted
SESSIONS = 256  # whose texts and results are kept; the one used least recently goes first

_FOOTER = (
    "What is written and found here is not medical advice and can be wrong. "
    "The models' cards say what they were trained on and how they scored."
)


def build_page(
    shelf: Shelf,
    recognizer: LazyModel[EntityRecognizer],
    classifier: LazyModel[TextClassifier],
    sentence_classifier: LazyModel[TextClassifier],
) -> Page:
    """Lay out the page; no model needs to be loaded yet.

    Args:
        shelf: of language models; the visitor's one also compares labels of their own.
        recognizer: finds entities.
        classifier, sentence_classifier: label whole texts, and the sentences of abstracts.
    """

    def describe_model(chosen: str) -> str:
        try:
            *_, generator = shelf.coming(chosen)
        except (ValueError, Stopping) as error:
            return _header(f"{title(chosen)} · failed: {error}")
        assert generator is not None
        return _header(f"{title(chosen)} · {generator.description} · ready")

    with Page(title="BioGPT", analytics_enabled=False, delete_cache=(CACHE_AGE, CACHE_AGE)) as page:
        model = gr.State(shelf.default)
        with gr.Row(elem_classes="header"):
            header = gr.HTML(_header(f"{shelf.default} · loading"))
            link = gr.Button("Copy link", size="sm", elem_id="copy-link")
        line = gr.HTML("", elem_id="notice")
        with gr.Tabs() as tabs:
            with gr.Tab("Write", id="write"):
                write = write_tab(shelf, model)
            labelling = []
            if recognizer.expected:
                with gr.Tab("Entities", id="entities"):
                    labelling.append(entities_tab(recognizer))
            with gr.Tab("Classify", id="classify"):
                labelling.append(classify_tab(classifier, sentence_classifier, shelf, model))
            with gr.Tab("Models", id="models"):
                chooser = models_tab(shelf, model, header, describe_model)
            with gr.Tab("Use it elsewhere", id="elsewhere"):
                programs = gr.HTML(elsewhere(DEFAULT_ADDRESS), elem_id="programs")
        gr.HTML(f'<p class="note">{_FOOTER}</p>')

        controls = dict(write.controls)
        for tab in labelling:
            controls |= tab.controls
        files = [tab.file for tab in labelling]
        arrived = connect_links(
            page, Sharing(shelf, controls), link, line, tabs, model, chooser, write.work, files
        )
        for refresh in (write.refresh, *(tab.refresh for tab in labelling)):
            arrived = refresh.after(arrived)
        arrived.then(
            partial(_arrive, shelf, write, describe_model),
            [model, controls["length"]],
            [header, *write.fitted],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        ).then(write.recount, [model, controls["text"]], write.count, **QUICK)
        page.load(
            None, None, programs, js=script("withOwnAddress", elsewhere(DEFAULT_ADDRESS), DEFAULT_ADDRESS)
        )
    page.stopping = shelf.closed
    labeller = Labeller(classifier, sentence_classifier, shelf)
    page.api = api_of(shelf, Tagger(recognizer), labeller, shelf.closed, page.lines.requests)
    return page


def _arrive(
    shelf: Shelf, write: WriteTab, describe_model: Callable[[str], str], model: str, length: int
) -> tuple[Any, ...]:
    """Wait for the model, then say that it is there, and give the controls its bounds."""
    described = describe_model(model)
    fitted = write.fit(model, length) if shelf.has(model) else [gr.skip()] * len(write.fitted)
    return described, *fitted


def end(page: Page, told: float, shut: float) -> None:
    """Wait until every client has read how its call ended, then stop listening.

    Args:
        told, shut: most seconds that the one and the other may take.
    """
    deadline = time.monotonic() + told
    while page.under_way and time.monotonic() < deadline:
        time.sleep(_LOOK)
    for tunnel in CURRENT_TUNNELS:
        tunnel.kill()
    server = getattr(page, "server", None)
    if server is not None:  # else the signal came before it listened
        server.config.timeout_graceful_shutdown = 1  # pages in browsers keep connections open
        server.should_exit = True
        server.thread.join(shut)


def serve(
    page: Page,
    host: str,
    port: int,
    share: bool = False,
    mcp: bool = False,
    health: Callable[[], tuple[int, str]] = lambda: (200, "serving"),
    allowed: Sequence[str] = (),
    listening: Callable[[str, str | None], None] = lambda *_: None,
    passwords: Mapping[str, str] | None = None,
    metrics: Callable[[], tuple[bytes, str]] | None = None,
) -> None:
    """Serve the page until the process is told to end.

    Args:
        host, port: where to listen.
        mcp: offer the endpoints as tools at ``/gradio_api/mcp``, too.
        health: HTTP status and a word, for ``/health``.
        share: ask gradio.live for a public link; needs the network.
        allowed: other hosts and origins that the page may be asked by, as in ``Sites``.
        passwords: by name, of those who may use the page; None lets everybody in.
        metrics: what ``/metrics`` answers, and its content type; None has no such place.
        listening: called with the page's address, and its public link where there is one, once it answers.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    check_address(host, port)

    def answer(request: Request) -> JSONResponse:
        status, state = health()
        return JSONResponse({"status": state}, status)

    def picture(request: Request) -> FileResponse:
        return FileResponse(PICTURE)

    def told(request: Request) -> Response:
        assert metrics is not None
        content, kind = metrics()
        return Response(content, headers={"Content-Type": kind})

    routes = [Route("/health", answer), Route(PICTURE_PATH, picture), Mount("/v1", page.api)]
    if metrics is not None:
        routes.append(Route("/metrics", told))
    sites = Sites(allowed, host, os.environ)
    check = Middleware(SiteCheck, sites=sites, shared=lambda: getattr(page, "share_url", None))
    page.launch(
        mcp_server=mcp,
        app_kwargs={
            "routes": routes,
            "middleware": [check, Middleware(Auth, passwords=passwords or {}), Middleware(Gate, page=page)],
        },
        server_name=host,
        server_port=port,
        quiet=True,  # what it would say is of ``launch`` and its arguments
        prevent_thread_lock=True,
        share=share,
        show_error=False,  # of Python's; ``Page`` words all that are ours
        footer_links=["api", "settings"],
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=SESSIONS,
        ssr_mode=False,
        pwa=False,
        max_file_size="10mb",
        max_threads=_THREADS,
        _frontend=False,  # else Gradio asks for its own page, and ends the process where that takes 3 seconds
        theme=theme(),
        css_paths=STYLE_SHEET,
        head=head(),
        js=script("start"),
    )
    assert page.local_url is not None
    listening(page.local_url, getattr(page, "share_url", None))
    page.block_thread()


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
