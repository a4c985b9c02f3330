"""The whole page: header, tabs, footer, keyboard, and how it is served."""

import html
import socket

import gradio as gr

from biogpt.device import describe
from biogpt.service import TextGenerator
from biogpt.ui.theme import STYLE_SHEET, theme
from biogpt.ui.write import write_tab

WAITING_LINE = 32  # requests that may wait; one more is refused at once, with HTTP 503

_FOOTER = (
    "Generated text is not medical advice and can be wrong. "
    "The model's card says what it was trained on and how it scored."
)

# Ctrl+Enter (Cmd+Enter) and Esc press the visible buttons, so a disabled button disables its key, too.
_KEYBOARD = """
() => document.addEventListener("keydown", (event) => {
  const enter = event.key === "Enter" && (event.ctrlKey || event.metaKey);
  if (!enter && event.key !== "Escape") return;
  const button = document.getElementById(enter ? "generate" : "stop");
  if (!button || button.disabled) return;
  event.preventDefault();
  button.click();
})
"""


def build_page(generator: TextGenerator, name: str) -> gr.Blocks:
    """Lay out the page for a model that is loaded.

    Args:
        generator: writes the text.
        name: what to call the model in the header: an embedded name, a folder's, or a Hub id.
    """
    with gr.Blocks(title="BioGPT", analytics_enabled=False) as page:
        gr.HTML(_header(generator, name))
        with gr.Tabs(), gr.Tab("Write", id="write"):
            write_tab(generator)
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
    weights = next(generator.model.parameters())
    state = f"{name} · {describe(weights.device, weights.dtype)} · ready"
    return (
        '<header class="top"><h1>BioGPT</h1><p>completes biomedical text, token by token</p>'
        f'<p class="state" id="model-state">{html.escape(state)}</p></header>'
    )
