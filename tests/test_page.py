"""The page in a real browser, served by the real server, on a random model too slow for updates to fall together."""

import itertools
import re
import shutil
import socket
import string
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from biogpt.config import BioGptConfig
from biogpt.heads import BioGptForCausalLM
from biogpt.service import TextGenerator
from biogpt.tokenizer import BioGptTokenizer
from biogpt.ui.page import build_page, serve

pytestmark = pytest.mark.slow

PROMPT = "The gene"
LIMIT = 160  # positions
STREAMED = 24  # tokens

# Keeps each value that the page gives to the textbox: every one of them is an update of the DOM.
RECORD_UPDATES = """
window.updates = [];
const property = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value");
Object.defineProperty(HTMLTextAreaElement.prototype, "value", {
  get() { return property.get.call(this); },
  set(value) {
    if (this.closest("#text") && value !== window.updates.at(-1)) window.updates.push(value);
    property.set.call(this, value);
  },
});
"""

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Server:
    """A served page, and when its model computed."""

    url: str
    generator: TextGenerator
    computed: list[float] = field(default_factory=list)  # time.monotonic() at the start of each forward pass


def random_generator() -> TextGenerator:
    """Deep and narrow: a token takes some milliseconds on any machine, as small operations cost the same on all.

    No token is a control token: the text never ends early, and grows with each token.
    """
    pieces = [letter + end for letter in string.ascii_letters for end in ("", "</w>")]
    words = [f"{word}</w>" for word in ("gene", "protein", "patients", "expression", "treatment")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces, *words]
    tokenizer = BioGptTokenizer({token: index for index, token in enumerate(tokens)}, [])
    torch.manual_seed(0)
    model = BioGptForCausalLM(
        BioGptConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            num_hidden_layers=48,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=LIMIT,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.output_projection.weight.normal_()
        model.output_projection.weight[:4] = 0
    return TextGenerator(model, tokenizer)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    generator = random_generator()
    served = Server(f"http://127.0.0.1:{port}/", generator)
    generator.model.register_forward_pre_hook(lambda *_: served.computed.append(time.monotonic()))
    page = build_page(generator, "random")
    threading.Thread(target=serve, args=(page, "127.0.0.1", port), daemon=True).start()
    for _ in range(600):
        try:
            urllib.request.urlopen(served.url).close()
            break
        except OSError:
            time.sleep(0.1)
    yield served
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the path")
    with (
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS) as launched,
    ):
        yield launched


@pytest.fixture
def page(server: Server, browser: Any) -> Iterator[Any]:
    """A fresh session; afterwards: nothing was fetched from elsewhere, and the console holds no error."""
    opened = browser.new_page()
    elsewhere: list[str] = []
    errors: list[str] = []
    opened.on(
        "request",
        lambda request: (
            request.url.startswith((server.url, "data:", "blob:")) or elsewhere.append(request.url)
        ),
    )
    opened.on("console", lambda message: message.type == "error" and errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.add_init_script(RECORD_UPDATES)
    opened.goto(server.url)
    opened.locator("#generate").wait_for()
    set_length(opened, STREAMED)
    yield opened
    opened.close()
    assert elsewhere == []
    assert errors == []


def set_length(page: Any, tokens: int) -> None:
    page.get_by_label("number input for Length, tokens").fill(str(tokens))


def text_of(page: Any) -> str:
    return page.locator("#text textarea").input_value()


def type_text(page: Any, text: str) -> None:
    page.locator("#text textarea").fill(text)
    page.evaluate("window.updates = []")


def wait_for_status(page: Any, words: str) -> str:
    page.wait_for_function("words => document.querySelector('.status').innerText.includes(words)", arg=words)
    return page.locator(".status").inner_text()


def test_every_token_is_an_update_of_the_page(page) -> None:
    type_text(page, PROMPT)
    page.locator("#generate").click()
    status = wait_for_status(page, "Finished")
    updates = page.evaluate("window.updates")
    assert len(updates) >= STREAMED
    assert all(update.startswith(PROMPT) for update in updates)
    assert updates[-1] == text_of(page)
    assert re.search(rf"\d+ of {LIMIT} positions · \d+ tokens/s · first token \d+\.\d s · seed \d+", status)
    assert page.locator("#view mark").inner_text() == text_of(page).removeprefix(PROMPT)


def test_stop_ends_the_work_within_one_token_and_another_run_starts(page, server) -> None:
    set_length(page, LIMIT - 20)
    type_text(page, PROMPT)
    page.locator("#generate").click()
    page.wait_for_function("window.updates.length >= 3")
    with page.expect_response(lambda response: response.url.endswith("/cancel")) as cancelled:
        page.keyboard.press("Escape")
    cancelled.value.finished()
    acknowledged = time.monotonic()
    wait_for_status(page, "Stopped")
    kept = text_of(page)
    page.wait_for_timeout(500)  # some ten tokens, were they still made
    assert sum(start > acknowledged for start in server.computed) <= 1
    assert text_of(page) == kept
    assert kept.startswith(PROMPT)
    assert len(kept) > len(PROMPT)
    assert page.locator("#stop").is_disabled()

    set_length(page, 4)
    page.keyboard.press("Control+Enter")
    wait_for_status(page, "Finished: length reached")
    assert text_of(page).startswith(kept)
    assert len(text_of(page)) > len(kept)


def test_undo_and_regenerate_take_the_last_completion_back(page) -> None:
    set_length(page, 4)
    type_text(page, PROMPT)
    page.locator("#generate").click()
    first = wait_for_status(page, "Finished")
    page.locator("#regenerate").click()
    page.wait_for_function(
        """first => (now => now.includes("Finished") && now !== first)(document.querySelector(".status").innerText)""",
        arg=first,
    )
    second = page.locator(".status").inner_text()
    positions, seed = r"\d+ of", r"seed \d+"
    assert re.search(positions, second)[0] == re.search(positions, first)[0]
    assert re.search(seed, second)[0] != re.search(seed, first)[0]
    page.locator("#undo").click()
    wait_for_status(page, "Undone")
    assert text_of(page) == PROMPT
    page.locator("#undo").click()
    wait_for_status(page, "Nothing to undo")
    assert text_of(page) == PROMPT


def test_a_refusal_says_why_and_leaves_the_page_usable(page, server) -> None:
    before = len(server.computed)
    for text, message in {
        "  ": "text is empty",
        "gene " * LIMIT: str(LIMIT),
        "gene " * 10_000: "cut it",
    }.items():
        type_text(page, text)
        page.locator("#generate").click()
        page.wait_for_function(
            "words => document.querySelector('.status[role=alert]')?.innerText.includes(words)", arg=message
        )
        assert text_of(page) == text
    page.get_by_role("button", name="More").click()
    page.get_by_label("Seed").fill("<img src=x>")
    type_text(page, PROMPT)
    page.locator("#generate").click()
    assert "seed is '<img src=x>'" in wait_for_status(page, "seed is")
    assert len(server.computed) == before

    page.get_by_label("Seed").fill("7")
    page.locator("#generate").click()
    assert wait_for_status(page, "Finished").endswith("seed 7")


def test_a_preset_sets_the_sliders_and_an_example_fills_the_text(page) -> None:
    page.get_by_role("radio", name="Beam").check()
    page.get_by_role("button", name="More").click()
    assert page.get_by_label("number input for Temperature").input_value() == "0"
    assert page.get_by_label("number input for Beams").input_value() == "4"
    page.get_by_role("button", name="COVID-19").click()
    page.wait_for_function("window.updates.at(-1) === 'COVID-19 is'")
    set_length(page, 3)
    page.locator("#generate").click()
    wait_for_status(page, "Finished: length reached")


def test_the_page_fits_its_window_and_long_text_moves_no_button(page) -> None:
    page.add_style_tag(content="* { transition: none !important; }")  # what is measured stands still
    for width, scheme in itertools.product((390, 1280), ("light", "dark")):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 844})
        type_text(page, "")
        button = page.locator("#generate").bounding_box()
        type_text(page, "gene " * 400)
        assert page.locator("#generate").bounding_box() == button
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        text, settings = page.locator("#text").bounding_box(), page.locator("#preset").bounding_box()
        beside = settings["x"] >= text["x"] + text["width"]
        assert beside if width == 1280 else settings["y"] > text["y"] + text["height"]


def test_the_scroll_position_is_the_readers(page) -> None:
    type_text(page, "gene\n" * 24)
    page.evaluate("document.querySelector('#text textarea').scrollTop = 60")
    page.locator("#generate").click()
    wait_for_status(page, "Finished")
    assert page.evaluate("document.querySelector('#text textarea').scrollTop") == 60


def test_a_taken_port_is_refused(server) -> None:
    port = int(server.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port}"):
        serve(build_page(server.generator, "random"), "127.0.0.1", port)


def test_the_endpoint_streams_and_names_its_results(server) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(server.url, verbose=False)
    job = client.submit(PROMPT, max_new_tokens=6, seed=7, api_name="/generate")
    last = job.result()
    assert [update["tokens"] for update in job.outputs()] == [1, 2, 3, 4, 5, 6]
    assert last["finish_reason"] == "length"
    assert last["seed"] == 7
    again = client.submit(PROMPT, max_new_tokens=6, seed=7, api_name="/generate").result()
    assert again == last
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/generate"}


def test_the_endpoint_refuses_nonsense_and_goes_on(server) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(server.url, verbose=False)
    for arguments, message in (
        ({"prompt": ""}, "text is empty"),
        ({"prompt": None}, "NoneType"),
        ({"temperature": -1}, "temperature is -1"),
        ({"max_new_tokens": 10**6}, str(LIMIT)),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"top_p": "<b>"}, "top_p is &#x27;&lt;b&gt;&#x27;"),
    ):
        job = client.submit(api_name="/generate", **{"prompt": PROMPT} | arguments)
        with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)):
            job.result()
    assert client.submit(PROMPT, max_new_tokens=1, api_name="/generate").result()["tokens"] == 1
