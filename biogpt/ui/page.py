"""The whole page: header, tabs, footer, keyboard, and how it is served."""

import html
import socket

import gradio as gr

from biogpt.classify import TextClassifier
from biogpt.device import describe
from biogpt.entities import EntityRecognizer
from biogpt.service import TextGenerator
from biogpt.ui.classify import classify_tab
from biogpt.ui.entities import entities_tab
from biogpt.ui.models import LazyModel
from biogpt.ui.theme import STYLE_SHEET, theme
from biogpt.ui.write import write_tab

WAITING_LINE = 32  # requests that may wait; one more is refused at once, with HTTP 503
CACHE_AGE = 3600  # seconds until uploads and files for download are deleted

_FOOTER = (
    "What is written and found here is not medical advice and can be wrong. "
    "The models' cards say what they were trained on and how they scored."
)

# Ctrl+Enter (Cmd+Enter) and Esc press the buttons of the tab in view; a disabled button disables its key, too.
_KEYBOARD = """
() => document.addEventListener("keydown", (event) => {
  const enter = event.key === "Enter" && (event.ctrlKey || event.metaKey);
  if (!enter && event.key !== "Escape") return;
  const buttons = [...document.querySelectorAll(enter ? "#generate, button.run" : "#stop, button.stop")];
  const button = buttons.find((each) => each.offsetParent !== null);
  if (!button || button.disabled) return;
  event.preventDefault();
  button.click();
})
"""


def build_page(
    generator: TextGenerator,
    name: str,
    recognizer: LazyModel[EntityRecognizer],
    classifier: LazyModel[TextClassifier],
    sentence_classifier: LazyModel[TextClassifier],
) -> gr.Blocks:
    """Lay out the page for a language model that is loaded, and heads that are loaded when they are used.

    Args:
        generator: writes text, and compares labels of the visitor's own.
        name: what to call its model in the header: an embedded name, a folder's, or a Hub id.
        recognizer: finds entities.
        classifier, sentence_classifier: label whole texts, and the sentences of abstracts.
    """
    with gr.Blocks(title="BioGPT", analytics_enabled=False, delete_cache=(CACHE_AGE, CACHE_AGE)) as page:
        gr.HTML(_header(generator, name))
        with gr.Tabs():
            with gr.Tab("Write", id="write"):
                write_tab(generator)
            if recognizer.expected:
                with gr.Tab("Entities", id="entities"):
                    entities_tab(recognizer)
            with gr.Tab("Classify", id="classify"):
                classify_tab(classifier, sentence_classifier, LazyModel(name, lambda: generator))
        gr.HTML(f'<p class="note">{_FOOTER}</p>')
    page.queue(max_size=WAITING_LINE)
    return page


def serve(page: gr.Blocks, host: str, port: int, share: bool = False) -> None:
    """Serve the page until the process is told to end.

    Args:
        host, port: where to listen.
        share: ask gradio.live for a public link; needs the network.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}, port {port}: {error.strerror}; choose another"
            ) from error
    page.launch(
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
        js=_KEYBOARD,
    )


def _header(generator: TextGenerator, name: str) -> str:
    model = generator.model
    state = f"{name} · {describe(model.device, model.precision or model.dtype)} · ready"
    return (
        '<header class="top"><h1>BioGPT</h1><p>completes, tags and classifies biomedical text</p>'
        f'<p class="state" id="model-state">{html.escape(state)}</p></header>'
    )
