"""The page in a real browser, served by the real server, on random models.

The one that writes is too slow for updates to fall together.
"""

import csv
import io
import itertools
import json
import re
import shutil
import socket
import string
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
import gradio_client
import pytest
import torch
from test_writing import values_of

from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptTokenizer,
)
from biogpt.generation.options import GenerationOptions
from biogpt.model.config import BioGptConfig
from biogpt.serving.service import Prompt, Step
from biogpt.serving.shelf import LazyModel, Shelf
from biogpt.serving.text_generator import TextGenerator
from biogpt.serving.zero import _LentStream
from biogpt.tasks.classification import TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.text.documents import Document
from biogpt.text.results import Entity
from biogpt.ui.entities import Found, Tagger
from biogpt.ui.inputs import MOST_TEXTS, Given, given, passage, upload
from biogpt.ui.page import build_page, serve
from biogpt.ui.scripts import Buttons
from biogpt.ui.status import status
from biogpt.ui.writing import Writer, _groups, options_of

pytestmark = pytest.mark.slow

PROMPT = "The gene"
LIMIT = 160  # positions
STREAMED = 24  # tokens
TYPES = ("Disease", "Chemical", "Gene")
TOPICS = ("angiogenesis", "apoptosis", "energetics", "inflammation")
ROLES = ("METHODS", "RESULTS")
ABSTRACT = (
    "\t😀 Naloxone (5–20 µg/kg) reverses clonidine.\n\nα-Methyldopa <b>did</b> not; 𝛽-blockers\tdid, too.  "
)

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
    other: TextGenerator
    recognizer: EntityRecognizer
    topics: TextClassifier
    roles: TextClassifier
    computed: list[float] = field(
        default_factory=list
    )  # time.monotonic() at the start of each pass that writes
    read: list[float] = field(default_factory=list)  # the same of each that labels
    rest: float = 0.0  # seconds before each pass that writes

    def begin_pass(self) -> None:
        self.computed.append(time.monotonic())
        time.sleep(self.rest)


def random_generator(seed: int = 0) -> TextGenerator:
    """Deep and narrow: a token takes milliseconds on any machine, as small operations cost the same on all.

    No token is a control token: the text never ends early, and grows with each token.
    """
    pieces = [letter + end for letter in string.ascii_letters for end in ("", "</w>")]
    words = [f"{word}</w>" for word in ("gene", "protein", "patients", "expression", "treatment")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces, *words]
    # A checkpoint without merges is refused; this one is of letters that no text here has.
    tokenizer = BioGptTokenizer({token: index for index, token in enumerate(tokens)}, [("q", "z")])
    torch.manual_seed(seed)
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


def random_head(kind: type, labels: tuple[str, ...], **changes: Any) -> Any:
    """A small model whose fresh weights are spread, so that it has different opinions of different words."""
    torch.manual_seed(0)
    tokenizer = BioGptTokenizer.from_pretrained("mini")
    config = BioGptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        id2label=dict(enumerate(labels)),
        **changes,
    )
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model, tokenizer


def shelf_of(served: Server) -> Shelf:
    def load(name: str) -> TextGenerator:
        if name not in ("random", "mini"):
            raise ValueError(f"no model {name!r}")
        return served.generator if name == "random" else served.other

    shelf = Shelf("random", load, ["mini"])
    shelf.take()
    return shelf


def page_of(served: Server) -> Any:
    return build_page(
        shelf_of(served),
        LazyModel("tagger", lambda: served.recognizer),
        LazyModel("topics", lambda: served.topics),
        LazyModel("roles", lambda: served.roles),
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tags = ("O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI"))
    several = {"problem_type": "multi_label_classification"}
    served = Server(
        f"http://127.0.0.1:{port}/",
        random_generator(),
        random_generator(1),
        EntityRecognizer(*random_head(BioGptForTokenClassification, tags)),
        TextClassifier(*random_head(BioGptForSequenceClassification, TOPICS, **several)),
        TextClassifier(*random_head(BioGptForSequenceClassification, ROLES)),
    )
    served.generator.model.output_projection.register_forward_pre_hook(lambda *_: served.begin_pass())
    for labelling in (served.recognizer, served.topics, served.roles):
        labelling.model.biogpt.register_forward_pre_hook(lambda *_: served.read.append(time.monotonic()))
    page = page_of(served)
    threading.Thread(
        target=serve,
        args=(page, "127.0.0.1", port),
        kwargs={"mcp": find_spec("mcp") is not None},
        daemon=True,
    ).start()
    for _ in range(600):
        try:
            urllib.request.urlopen(served.url).close()
            break
        except OSError:
            time.sleep(0.1)
    yield served
    page.close()


@pytest.fixture
def at_leisure(server: Server) -> Iterator[None]:
    """No text ends by itself before it is stopped, be the browser as slow as it may."""
    server.rest = 0.1
    yield
    server.rest = 0.0


NGINX = """
daemon off; master_process off; pid nginx.pid; events {}
http {
  access_log off; client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {
    listen 127.0.0.1:PORT;
    location /lab/biogpt/ {
      proxy_pass SERVER;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-Prefix /lab/biogpt;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
    }
  }
}
"""


@pytest.fixture(scope="module")
def below_a_path(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's address behind a proxy that serves it below a path, with the README's settings."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx on the path")
    folder = tmp_path_factory.mktemp("nginx")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(NGINX.replace("PORT", str(port)).replace("SERVER", server.url))
    process = subprocess.Popen([nginx, "-p", folder, "-c", "nginx.conf", "-e", "stderr"])
    url = f"http://127.0.0.1:{port}/lab/biogpt/"
    try:
        for _ in range(600):
            assert process.poll() is None, "nginx ended"
            try:
                urllib.request.urlopen(f"{url}health").close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


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
    yield from session_at(server.url, browser)


def session_at(url: str, browser: Any) -> Iterator[Any]:
    opened = browser.new_page()
    elsewhere: list[str] = []
    errors: list[str] = []
    opened.on(
        "request",
        lambda request: request.url.startswith((url, "data:", "blob:")) or elsewhere.append(request.url),
    )
    opened.on(
        "console",
        lambda told: told.type == "error" and errors.append(f"{told.text} {told.location['url']}"),
    )
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.add_init_script(RECORD_UPDATES)
    opened.goto(url)
    opened.locator("#generate").wait_for()
    opened.locator("#model-state", has_text="ready").wait_for()  # and the controls have its bounds
    set_length(opened, STREAMED)
    yield opened
    opened.close()
    assert elsewhere == []
    assert errors == []


def set_length(page: Any, tokens: int) -> None:
    page.get_by_label("number input for Length, tokens").fill(str(tokens))


def text_of(page: Any) -> str:
    return page.locator("#text textarea").input_value()


def made(page: Any) -> str:
    """What of the text is marked as generated."""
    return "".join(page.locator("#ink .made").all_text_contents())


def click_token(page: Any, number: int) -> None:
    """In the text, which lies above its colours; counted among those of which something is known."""
    box = page.locator("#ink .tok").nth(number).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def type_text(page: Any, text: str) -> None:
    page.locator("#text textarea").fill(text)
    page.evaluate("window.updates = []")


def wait_for_text(page: Any, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#text textarea')?.value === text", arg=text)


def press(page: Any, button: str, text: str | None = None, words: str = "") -> None:
    """Click until this is the text, and these words are in the status.

    While the click before is still under way, Gradio drops those after it.
    """
    for look in range(300):
        if look % 50 == 0:
            page.locator(f"#{button}").click()
        page.wait_for_timeout(100)
        is_there = text is None or text_of(page) == text
        if is_there and words in page.locator("#status .status").inner_text():
            return
    pytest.fail(f"{button} does not lead to {text!r} {words}")


def put_file(page: Any, form: str, path: Path) -> None:
    """Into the slot, which starts nothing."""
    page.locator(f"#{form}-file input[type=file]").set_input_files(path)
    page.locator(f"#{form}-run", has_text="the file").wait_for()


def wait_for_status(page: Any, words: str) -> str:
    page.wait_for_function(
        "words => document.querySelector('#status .status').innerText.includes(words)", arg=words
    )
    return page.locator("#status .status").inner_text()


def test_every_token_is_an_update_of_the_page(page) -> None:
    type_text(page, PROMPT)
    page.locator("#generate").click()
    status = wait_for_status(page, "Finished")
    updates = page.evaluate("window.updates")
    assert len(updates) >= STREAMED
    assert all(update.startswith(PROMPT) for update in updates)
    assert updates[-1] == text_of(page)
    assert re.search(rf"\d+ of {LIMIT} positions · \d+ tokens/s · first token \d+\.\d s · seed \d+", status)
    assert made(page) == text_of(page).removeprefix(PROMPT)


@pytest.mark.parametrize(("others", "singly"), [(0, 24), (2, 1)])
def test_after_a_while_tokens_that_are_ready_come_together(others: int, singly: int) -> None:
    generator = random_generator()
    made, longer = GenerationOptions(max_new_tokens=40), GenerationOptions(max_new_tokens=LIMIT - 40)
    company = [generator.stream(PROMPT, longer) for _ in range(others)]
    stream = generator.stream(PROMPT, made)
    while not stream._slot.search.done:
        time.sleep(0.01)
    groups = list(_groups(stream))
    for other in company:
        other.close()
    generator.close()
    assert [len(group) for group in groups] == [1] * singly + [40 - singly]
    assert groups[-1][-1].finish_reason == "length"


def test_what_another_process_writes_does_not_wait_for_its_end() -> None:
    def steps() -> Iterator[Step]:
        for number in range(48):
            time.sleep(0.02)
            yield Step(number, "a" * number, 0.0)

    sizes = [len(group) for group in _groups(_LentStream(Prompt("", (2,), 48), steps()))]
    assert sizes[:24] == [1] * 24
    assert max(sizes) <= 5, "the time between two updates is over after four"
    assert sum(sizes) == 48


def test_a_click_encodes_the_text_once(page, server, monkeypatch) -> None:
    encoded: list[str] = []
    used = server.generator.count(PROMPT)
    encode = server.generator.tokenizer.encode
    monkeypatch.setattr(
        server.generator.tokenizer, "encode", lambda text: encoded.append(text) or encode(text)
    )
    set_length(page, 3)
    type_text(page, PROMPT)
    page.locator("#count", has_text=f"{used} of {LIMIT} tokens").wait_for()  # what is typed is counted, too
    for button in ("#generate", "#continue"):
        encoded.clear()
        before = text_of(page)
        page.locator(button).click()
        page.wait_for_function("old => document.querySelector('#text textarea').value !== old", arg=before)
        wait_for_status(page, "Finished")
        assert encoded == ([before] if button == "#generate" else []), "a run goes on with the ids there are"


def test_stop_ends_the_work_within_one_token_and_another_run_starts(page, server, at_leisure) -> None:
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
    page.wait_for_timeout(500)  # some tokens, were they still made
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


# What Gradio does after the server's answer that a run is cancelled comes as late as over a slow line.
SLOW_ANSWER = """() => {
  const asked = window.fetch;
  window.fetch = async (...given) => {
    const answer = await asked(...given);
    if (/\\/(cancel|reset)$/.test(given[0])) await new Promise((done) => setTimeout(done, 500));
    return answer;
  };
}"""


@pytest.mark.parametrize("line", ["quick", "slow"])
def test_a_run_that_begins_right_after_stop_can_be_stopped(page, at_leisure, line) -> None:
    if line == "slow":
        page.evaluate(SLOW_ANSWER)
    set_length(page, LIMIT - 40)
    for _ in range(3):
        type_text(page, PROMPT)
        page.locator("#generate").click()
        page.locator("#status .busy").wait_for()
        page.locator("#stop").click()
        page.locator("#generate").click()  # as soon as it can be
        page.wait_for_timeout(1000)  # what is told late of the first run is told
        assert page.locator("#stop").is_enabled()
        page.locator("#stop").click()
        page.locator("#generate:enabled").wait_for()
        assert page.locator("#stop").is_disabled()


def test_what_is_told_late_of_a_stopped_run_does_not_end_the_next(page) -> None:
    """Its end is told two or three times, within a moment that depends on the machine."""
    clicks, idle, as_it_was = Buttons("write"), [True, False], [None, None]

    def given(script: str) -> list[bool | None]:
        return [update.get("interactive") for update in page.evaluate(script)]

    def line(words: str) -> None:
        page.evaluate("(line) => (document.querySelector('#status .status').outerHTML = line)", status(words))

    assert given(clicks.ended) == idle
    page.evaluate(clicks.stop)
    for told in (clicks.ended, clicks.broken_off, clicks.ended):
        assert given(told) == as_it_was
    line("Stopped")
    assert given(clicks.stopped) == idle
    page.evaluate(clicks.begun)
    assert given(clicks.ended) == as_it_was, "nothing is known of the run that has begun"
    line("Writing")
    assert given(clicks.ended) == as_it_was, "it could not be stopped"
    page.wait_for_timeout(3500)  # on a slow machine, later than any moment
    assert given(clicks.ended) == as_it_was, "it could not be stopped"
    assert given(clicks.broken_off) == idle
    line("Writing")
    draw = "(line) => setTimeout(() => (document.querySelector('#status .status').outerHTML = line), 100)"
    page.evaluate(draw, status("Finished"))
    assert given(clicks.ended) == idle, "its last line is drawn after its end is told"
    page.evaluate(clicks.begun)
    assert given(clicks.ended) == idle, "it was refused in the words of the one before"


def test_the_browser_has_every_function_that_python_names(page) -> None:
    named = set(re.findall(r"\bbiogpt\.(\w+)\(", page.evaluate("JSON.stringify(gradio_config)")))
    assert {"begun", "completions", "listenToTokens", "start", "withTab"} <= named
    assert page.evaluate("names => names.filter((name) => !(name in biogpt))", sorted(named)) == []
    assert sorted(page.evaluate("Object.keys(biogpt)")) == sorted(named), "one that nobody calls"


def test_a_model_that_loads_does_not_keep_a_stopped_run() -> None:
    generator, may_load = random_generator(), threading.Event()
    shelf = Shelf("tiny", lambda _: may_load.wait(20) and generator)
    settings = values_of(max_new_tokens=4, temperature=0.0)
    stopped = Writer(shelf).write("tiny", PROMPT, [], *settings)
    for _ in range(2):  # it looks up while the model loads
        assert "Loading" in next(stopped)[2]
    stopped.close()
    assert not shelf.ready, "closing it has waited for the model"
    may_load.set()
    *_, last = Writer(shelf).write("tiny", PROMPT, [], *settings)
    assert "Finished" in last[2]
    generator.close()


def test_a_length_beyond_the_room_that_is_left_ends_where_the_room_does(page) -> None:
    type_text(page, "a " * (LIMIT - 10))
    page.locator("#generate").click()
    assert f"{LIMIT} of {LIMIT} positions" in wait_for_status(page, "as long as the model can read")


def test_undo_and_regenerate_take_the_last_completion_back(page) -> None:
    set_length(page, 4)
    type_text(page, PROMPT)
    page.locator("#generate").click()
    first = wait_for_status(page, "Finished")
    completed = text_of(page)
    page.locator("#regenerate").click()
    page.wait_for_function(
        """first => (now => now.includes("Finished") && now !== first)(
            document.querySelector(".status").innerText)""",
        arg=first,
    )
    second = page.locator(".status").inner_text()
    positions, seed = r"\d+ of", r"seed \d+"
    assert re.search(positions, second)[0] == re.search(positions, first)[0]
    assert re.search(seed, second)[0] != re.search(seed, first)[0]
    rewritten = text_of(page)
    page.locator("#continue").click()
    page.wait_for_function("text => document.querySelector('#text textarea').value !== text", arg=rewritten)
    wait_for_status(page, "Finished")
    longer = text_of(page)
    tokens = page.locator("#ink .tok").count()
    assert tokens == 8, "the tokens before lose their probabilities"
    for text, count in ((rewritten, 4), (completed, 4), (PROMPT, 0)):
        press(page, "undo", text)
        assert page.locator("#ink .tok").count() == count
    press(page, "undo", words="Nothing to undo")
    for text in (completed, rewritten, longer):
        press(page, "redo", text)
    assert page.locator("#ink .tok").count() == tokens
    press(page, "redo", words="Nothing to redo")


def test_twelve_tabs_of_one_browser_work(browser, server) -> None:
    """A browser opens six connections to a host: a request that each tab held stopped the others."""
    context = browser.new_context()
    tabs = [context.new_page() for _ in range(12)]
    for tab in tabs:
        tab.goto(server.url)
        tab.locator("#model-state", has_text="ready").wait_for()
    for tab in (tabs[0], tabs[-1]):
        set_length(tab, 3)
        tab.locator("#text textarea").fill(PROMPT)
        tab.locator("#generate").click()
        wait_for_status(tab, "Finished")
    context.close()


def test_a_closed_tab_stops_its_work(browser, server, at_leisure) -> None:
    tab = browser.new_page()
    tab.goto(server.url)
    tab.locator("#model-state", has_text="ready").wait_for()
    set_length(tab, LIMIT - 20)
    tab.locator("#text textarea").fill(PROMPT)
    before = len(server.computed)
    tab.locator("#generate").click()
    tab.wait_for_function(f"document.querySelector('#text textarea').value.length > {len(PROMPT) + 4}")
    tab.close()
    while time.monotonic() - server.computed[-1] < 1:
        time.sleep(0.1)
    assert len(server.computed) - before < LIMIT - 20


def test_what_was_typed_is_never_lost(page) -> None:
    """By hand into a completion, or before an example was taken, or when the page loads anew."""
    set_length(page, 3)
    type_text(page, "gene")
    page.locator("#generate").click()
    wait_for_status(page, "Finished")
    edited = text_of(page) + " in my own words"
    type_text(page, edited)
    page.locator("#regenerate").click()
    page.wait_for_function("() => window.updates.length >= 3")
    wait_for_status(page, "Finished")
    assert "my own words" not in text_of(page)
    page.locator("#undo").click()
    wait_for_status(page, "Undone")
    assert text_of(page) == edited
    page.get_by_role("button", name="BRCA1", exact=True).click()
    page.wait_for_function("document.querySelector('#text textarea').value.startsWith('The BRCA1')")
    page.locator("#undo").click()
    page.wait_for_function("text => document.querySelector('#text textarea').value === text", arg=edited)
    page.reload()
    page.wait_for_function("text => document.querySelector('#text textarea')?.value === text", arg=edited)
    page.locator("#count", has_text="of 160").wait_for()


def test_a_setting_out_of_its_range_leaves_the_buttons(page) -> None:
    type_text(page, "gene")
    set_length(page, 9_999)
    page.keyboard.press("Control+Enter")
    page.get_by_text("out of its range").first.wait_for()
    page.locator("#generate:enabled").wait_for()
    assert page.locator("#stop").is_disabled()
    set_length(page, 3)
    page.locator("#generate").click()
    wait_for_status(page, "Finished")


def test_a_number_that_was_cleared_comes_back(page) -> None:
    length = page.get_by_label("number input for Length, tokens")
    length.fill("7")
    length.press("Tab")
    length.fill("")
    length.press("Tab")
    assert length.input_value() == "7"
    type_text(page, PROMPT)
    page.locator("#generate").click()
    wait_for_status(page, "Finished")
    assert page.evaluate("document.querySelectorAll('#ink .tok').length") == 7


def test_beams_give_one_text_whatever_the_number_of_samples() -> None:
    given = {"num_beams": 4, "num_return_sequences": 3, "temperature": 0.0}
    assert options_of(values_of(**given)).num_return_sequences == 1
    assert options_of(values_of(**given | {"num_beams": 1, "temperature": 1.0})).num_return_sequences == 3


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
    assert "Seed is '<img src=x>'" in wait_for_status(page, "Seed is")
    assert len(server.computed) == before

    page.get_by_label("Seed").fill("7")
    page.locator("#generate").click()
    assert wait_for_status(page, "Finished").endswith("seed 7")


def test_a_preset_sets_the_sliders_and_an_example_fills_the_text(page) -> None:
    page.get_by_role("radio", name="Beam").check()
    page.get_by_role("button", name="More").click()
    assert page.get_by_label("number input for Temperature").input_value() == "0"
    page.wait_for_timeout(300)
    assert page.get_by_role("radio", name="Beam").is_checked(), "the sliders have said which preset they are"
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
        serve(page_of(server), "127.0.0.1", port)


def test_the_endpoint_streams_and_names_its_results(server) -> None:
    client = gradio_client.Client(server.url, verbose=False)
    job = client.submit(PROMPT, max_new_tokens=6, seed=7, api_name="/generate")
    last = job.result()
    assert [update["tokens"] for update in job.outputs()] == [1, 2, 3, 4, 5, 6]
    assert last["finish_reason"] == "length"
    assert last["seed"] == 7
    again = client.submit(PROMPT, max_new_tokens=6, seed=7, api_name="/generate").result()
    assert again == last
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/generate", "/ner", "/classify"}


def test_the_endpoint_refuses_nonsense_and_goes_on(server) -> None:
    client = gradio_client.Client(server.url, verbose=False)
    for arguments, message in (
        ({"prompt": ""}, "text is empty"),
        ({"prompt": None}, "prompt is null"),
        ({"temperature": -1}, "temperature is -1"),
        ({"max_new_tokens": 10**6}, str(LIMIT)),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"top_p": "<b>"}, "top_p is '<b>'"),
        ({"model": "someone/else"}, "model 'someone/else' is not offered here"),
    ):
        job = client.submit(api_name="/generate", **{"prompt": PROMPT} | arguments)
        with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)):
            job.result()
    assert client.submit(PROMPT, max_new_tokens=1, api_name="/generate").result()["tokens"] == 1


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    page.locator(f"#{name.lower()}-run").wait_for()


def run_tab(page: Any, name: str, text: str) -> str:
    """Label a text; returns the status."""
    page.locator(f"#{name}-text textarea").fill(text)
    page.locator(f"#{name}-run").click()
    return wait_for_line(page, name, "Finished")


def choose_task(page: Any, title: str) -> None:
    """This one alone."""
    for task in page.locator("#task label").all():
        task.locator("input").set_checked(title in task.inner_text())


def wait_for_line(page: Any, name: str, words: str) -> str:
    line = page.locator(f"#{name}-status .status", has_text=words)
    line.wait_for()
    page.locator(f"#{name}-run:not([disabled])").wait_for()  # enabled last, when the results are there
    return line.inner_text()


def marks(page: Any, name: str = "entities") -> list[tuple[str, str]]:
    """What is marked in the view: (label, text)."""
    return [
        (mark.get_attribute("data-label"), mark.text_content())
        for mark in page.locator(f"#{name}-view mark").all()
    ]


def wait_for_cells(page: Any, name: str, column: int, wanted: list[str]) -> None:
    """Until a column of the table begins with these words; Gradio draws it some time after its event."""
    for row, words in enumerate(wanted):
        cell = page.locator(f"#{name}-table").get_by_test_id(f"cell-{row}-{column}")
        cell.get_by_text(words, exact=True).first.wait_for()


def download(page: Any, kind: str) -> bytes:
    """The file that the button in sight saves."""
    with page.expect_download() as saved:
        page.get_by_role("button", name=kind, exact=True).locator("visible=true").click()
    return Path(saved.value.path()).read_bytes()


def file_of(folder: Path, texts: list[str]) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


def test_entities_are_marked_filtered_listed_and_saved(page, server) -> None:
    found = server.recognizer(ABSTRACT)
    assert len({entity.label for entity in found}) > 1, "a stand-in that finds one type only shows nothing"
    open_tab(page, "Entities")
    assert f"{len(found)} entities" in run_tab(page, "entities", ABSTRACT)
    assert page.locator("#entities-view .view span").text_content() == ABSTRACT
    assert marks(page) == [(entity.label, entity.text) for entity in found]
    table = page.locator("#entities-table")
    wait_for_cells(page, "entities", 2, [str(entity.start) for entity in found[:5]])
    wait_for_cells(page, "entities", 3, [str(entity.end) for entity in found[:5]])
    assert table.get_by_role("grid").get_attribute("aria-rowcount") == str(len(found) + 1)
    table.get_by_test_id("header-3").click()
    table.get_by_test_id("header-2").click()
    table.get_by_test_id("header-4").click()
    linked = next(entity for entity in found if entity.label in ("Disease", "Chemical"))
    link = table.locator("a", has_text={"Disease": "MeSH", "Chemical": "ChEBI"}[linked.label]).first
    assert link.get_attribute("href").startswith("https://www.")
    assert link.get_attribute("rel") == "noopener noreferrer"
    least = f"{min(round(entity.score, 3) for entity in found):g}"
    table.get_by_test_id("cell-0-4").get_by_text(least, exact=True).wait_for()

    before = len(server.read)
    label, least = found[0].label, sorted(entity.score for entity in found)[len(found) // 2]
    least = round(least, 2)
    page.get_by_label("number input for Score, at least").fill(str(least))
    page.locator("#types").get_by_label(label).uncheck()
    kept = [entity for entity in found if entity.label != label and entity.score >= least]
    page.wait_for_function(
        "n => document.querySelectorAll('#entities-view mark').length === n", arg=len(kept)
    )
    assert marks(page) == [(entity.label, entity.text) for entity in kept]
    [saved] = json.loads(download(page, "JSON"))
    assert saved["text"] == ABSTRACT
    assert [(e["label"], e["start"], e["end"]) for e in saved["entities"]] == [
        (e.label, e.start, e.end) for e in kept
    ]
    for kind in ("JSONL", "CSV", "BRAT", "PubTator"):
        assert len(download(page, kind)) > 20, kind
    assert len(server.read) == before, "a filter ran the model again"


def test_a_link_of_an_entity_is_a_search_for_its_name_whatever_that_is() -> None:
    def linked(label: str, text: str) -> str:
        documents = [Document("1", text)]
        found = Found(Given("", documents), (label,), [[Entity(label, 0, len(text), text, 0.5)]])
        *_, listed, _, _ = Tagger(LazyModel("none", lambda: None, threading.Event())).show(
            found, [label], 0.0, 0
        )
        return listed.value["data"][0][-1]

    assert 'href="https://www.ncbi.nlm.nih.gov/gene/?term=IL-2%20R%CE%B1"' in linked("Gene", "IL-2\n Rα")
    hostile = linked("Disease", '"><script>alert(1)</script>')
    assert "<script" not in hostile
    assert hostile.count('"') == 6
    assert linked("Role", "aspirin") == ""


def test_a_file_of_texts_is_tagged_whole(page, server, tmp_path) -> None:
    texts = [f"{number} patients took naloxone, and {number + 1} clonidine." for number in range(20)]
    open_tab(page, "Entities")
    put_file(page, "entities", file_of(tmp_path, texts))
    page.locator("#entities-run").click()
    assert "20 texts" in wait_for_line(page, "entities", "Finished")
    lines = [json.loads(line) for line in download(page, "JSONL").splitlines()]
    assert [line["id"] for line in lines] == [f"d{number}" for number in range(20)]
    for line, expected in zip(lines, server.recognizer.batch(texts), strict=True):
        assert [(e["label"], e["start"], e["end"]) for e in line["entities"]] == [
            (e.label, e.start, e.end) for e in expected
        ]
    page.locator("#entities-document input").click()
    page.get_by_role("option", name="d7: 7 patients").click()
    page.wait_for_function(
        "words => document.querySelector('#entities-view').textContent.includes(words)", arg=texts[7]
    )
    assert marks(page) == [(entity.label, entity.text) for entity in server.recognizer(texts[7])]


def test_stop_ends_a_file_soon_and_keeps_what_is_there(page, server, tmp_path) -> None:
    words = "Naloxone reverses the antihypertensive effect of clonidine. " * 30
    open_tab(page, "Entities")
    slow = server.recognizer.model.biogpt.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    put_file(page, "entities", file_of(tmp_path, [words] * 1000))
    page.locator("#entities-run").click()
    page.wait_for_function("document.querySelector('#entities-status progress')?.value > 0")
    page.keyboard.press("Escape")
    wait_for_line(page, "entities", "Stopped")
    page.wait_for_timeout(500)
    stopped = len(server.read)
    page.wait_for_timeout(1000)
    assert len(server.read) == stopped
    slow.remove()
    kept = download(page, "JSONL").splitlines()
    assert 0 < len(kept) < 1000
    assert str(len(kept)) in page.locator("#entities-status").inner_text()
    page.locator("#entities-file").get_by_label("Clear").click()
    page.locator("#entities-run").get_by_text("Find entities", exact=True).wait_for()
    run_tab(page, "entities", ABSTRACT)


def test_a_page_that_loads_anew_has_what_it_had(browser, server, tmp_path) -> None:
    """Gradio reloads it after a break of the connection; what is newer than the link in the address counts.

    Not in the page of the other tests: Gradio logs the stream that a reload cuts off as an error.
    """
    page = browser.new_page()
    page.goto(f"{server.url}?text=from+the+link")
    wait_for_text(page, "from the link")
    page.locator("#model-state", has_text="ready").wait_for()
    set_length(page, 3)
    type_text(page, PROMPT)
    page.locator("#generate").click()
    wait_for_status(page, "Finished")
    completed = text_of(page)
    texts = [f"{number} patients took naloxone. " * 40 for number in range(60)]
    open_tab(page, "Entities")
    slow = server.recognizer.model.biogpt.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    put_file(page, "entities", file_of(tmp_path, texts))
    page.locator("#entities-run").click()
    page.wait_for_function("document.querySelector('#entities-status progress')?.value > 0")
    page.reload()
    wait_for_line(page, "entities", "of 60 texts done")
    slow.remove()
    assert page.get_by_role("tab", name="Entities").get_attribute("aria-selected") == "true"
    assert 0 < len(download(page, "JSONL").splitlines()) < 60
    page.locator("#entities-go-on").click()
    assert "60 texts" in wait_for_line(page, "entities", "Finished")
    saved = [json.loads(line) for line in download(page, "JSONL").splitlines()]
    assert [[e["start"] for e in line["entities"]] for line in saved] == [
        [entity.start for entity in entities] for entities in server.recognizer.batch(texts)
    ]
    assert page.locator("#entities-run").inner_text().endswith("the file"), "it can be run again"
    page.get_by_role("tab", name="Write").click()
    assert text_of(page) == completed
    assert page.get_by_label("number input for Length, tokens").input_value() == "3"
    assert page.locator("#ink .tok").count() == 3
    page.locator("#undo").click()
    wait_for_text(page, PROMPT)
    page.goto(f"{server.url}?text=another+link")
    wait_for_text(page, "another link")
    page.close()


def test_behind_a_proxy_it_is_whole_below_a_path(below_a_path, browser, tmp_path) -> None:
    sessions = session_at(below_a_path, browser)  # fetches nothing from above the path
    page = next(sessions)
    type_text(page, PROMPT)
    page.locator("#generate").click()
    wait_for_status(page, "Finished")
    assert len(text_of(page)) > len(PROMPT)
    assert len(page.evaluate("window.updates")) > STREAMED / 2, "tokens came together"
    page.get_by_role("tab", name="Use it elsewhere").click()
    examples = page.locator("#programs").inner_text()
    assert set(re.findall(r"http://[\w.:]+(?:/lab/biogpt)?", examples)) == {below_a_path.rstrip("/")}
    open_tab(page, "Entities")
    texts = ["Aspirin helped.", "Naloxone did not."]
    put_file(page, "entities", file_of(tmp_path, texts))
    page.locator("#entities-run").click()
    wait_for_line(page, "entities", "Finished")
    assert [json.loads(line)["text"] for line in download(page, "JSONL").splitlines()] == texts
    next(sessions, None)


def test_behind_a_proxy_programs_get_streams_token_by_token(below_a_path) -> None:
    asked = {"prompt": PROMPT, "max_tokens": STREAMED, "temperature": 0, "stream": True}
    body, kind = json.dumps(asked).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{below_a_path}v1/completions", body, kind)
    with urllib.request.urlopen(request) as answer:
        pieces = list(iter(lambda: answer.read1(100_000), b""))
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    assert len(pieces) > 3, "the proxy kept them back"
    client = gradio_client.Client(below_a_path, verbose=False)
    *_, last = client.submit(PROMPT, max_new_tokens=3, temperature=0, api_name="/generate")
    assert last["tokens"] == 3


def test_files_take_turns(page, browser, server, tmp_path) -> None:
    open_tab(page, "Entities")
    slow = server.recognizer.model.biogpt.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    put_file(page, "entities", file_of(tmp_path, ["Naloxone reverses clonidine. " * 60] * 1000))
    page.locator("#entities-run").click()
    page.wait_for_function("document.querySelector('#entities-status progress')?.value > 0")
    other = browser.new_page()
    other.goto(server.url)
    open_tab(other, "Entities")
    put_file(other, "entities", file_of(tmp_path, ["Naloxone."] * 3))
    other.locator("#entities-run").click()
    assert "3 texts" in wait_for_line(other, "entities", "Finished")
    assert page.locator("#entities-stop").is_enabled(), "the first file has not ended yet"
    page.keyboard.press("Escape")
    wait_for_line(page, "entities", "Stopped")
    slow.remove()
    other.close()


def test_results_of_an_earlier_text_are_marked_so(page) -> None:
    set_length(page, 3)
    type_text(page, PROMPT)
    page.locator("#generate").click()
    wait_for_status(page, "Finished")
    completed = text_of(page)
    for text, outdated in (("another text", 1), (completed, 0)):
        page.locator("#text textarea").fill(text)
        page.wait_for_function(
            "n => document.querySelectorAll('#status.outdated').length === n", arg=outdated
        )
        assert page.locator("#ink .tok").count() == (0 if outdated else 3)
    page.get_by_role("button", name="BRCA1", exact=True).click()
    page.wait_for_function("document.querySelectorAll('#ink .tok').length === 0")
    open_tab(page, "Entities")
    run_tab(page, "entities", ABSTRACT)
    page.locator("#entities-text textarea").fill("another passage")
    page.get_by_text("found in another text").wait_for()
    page.locator("#entities-text textarea").fill(ABSTRACT)
    page.get_by_text("found in another text").wait_for(state="hidden")


def test_labels_of_a_text_and_their_threshold(page, server) -> None:
    scores = server.topics(ABSTRACT)
    open_tab(page, "Classify")
    run_tab(page, "classify", ABSTRACT)
    shown = page.locator("#classify-plot li").all_inner_texts()
    assert [text.split() for text in shown] == [[each.label, f"{each.score:.2f}"] for each in scores]
    least = round(scores[1].score - 0.005, 2)
    page.get_by_label("number input for Threshold").fill(str(least))
    given = ", ".join(each.label for each in scores if each.score >= least)
    page.locator("#classify-plot h3", has_text=re.compile(rf"^Labels: {given}$")).wait_for()
    [saved] = json.loads(download(page, "JSON"))
    assert [each["label"] for each in saved["labels"]] == [each.label for each in scores]


def test_sentences_are_marked_with_their_roles(page, server) -> None:
    text = ABSTRACT * 3
    open_tab(page, "Classify")
    choose_task(page, "roles")
    run_tab(page, "classify", text)
    found = server.roles.sentences(text)
    assert marks(page, "classify") == [(each.label, text[each.start : each.end]) for each in found]
    assert page.locator("#classify-view .view span").text_content() == text
    saved = list(csv.DictReader(io.StringIO(download(page, "CSV").decode(), newline="")))
    assert [(each["label"], int(each["start"])) for each in saved] == [
        (each.label, each.start) for each in found
    ]


def test_labels_of_ones_own_are_compared_by_the_language_model(page, server) -> None:
    open_tab(page, "Classify")
    assert not page.locator("#own-labels").is_visible()
    choose_task(page, "Labels of your own")
    page.locator("#own-labels textarea").fill("gene")
    page.locator("#classify-text textarea").fill("gene protein")
    page.locator("#classify-run").click()
    wait_for_line(page, "classify", "own given: 1")
    page.locator("#own-labels textarea").fill("gene, patients\nexpression")
    run_tab(page, "classify", "gene protein")
    scores = TextClassifier(
        server.generator.model, server.generator.tokenizer, ["gene", "patients", "expression"]
    )("gene protein")
    shown = page.locator("#classify-plot li").all_inner_texts()
    assert [text.split() for text in shown] == [[each.label, f"{each.score:.2f}"] for each in scores]


def test_an_example_says_where_it_is_from_and_sets_its_task(page) -> None:
    open_tab(page, "Classify")
    page.get_by_role("button", name="Amalgam trial").click()
    assert "PubMed Central 1849920" in wait_for_line(page, "classify", "Example")
    assert page.locator("#task").get_by_label("roles").is_checked()
    page.keyboard.press("Control+Enter")
    wait_for_line(page, "classify", "Finished")
    assert marks(page, "classify")


def test_what_cannot_be_read_is_refused_in_words(page, tmp_path) -> None:
    open_tab(page, "Entities")
    page.locator("#entities-text textarea").fill(" \n ")
    page.locator("#entities-run").click()
    wait_for_line(page, "entities", "text is empty")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "<i>.csv").write_text("a,b\n1,2\n")
    for name, words in (
        ("latin.txt", "latin.txt is not UTF-8"),
        ("empty.txt", "empty.txt is empty"),
        ("<i>.csv", "expected one of text"),
    ):
        put_file(page, "entities", tmp_path / name)
        page.locator("#entities-run").click()
        wait_for_line(page, "entities", words)
        page.locator("#entities-file").get_by_label("Clear").click()
    assert page.locator("#entities-status i").count() == 0


def test_long_text_fits_the_window_and_is_shown_in_part(page, server) -> None:
    text = "Aspirin reduced the risk of colorectal cancer in BRCA1 carriers. " * 1600
    open_tab(page, "Entities")
    for width, scheme in itertools.product((390, 1440), ("light", "dark")):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    run_tab(page, "entities", text)
    assert page.locator("#entities-view .view span").text_content() == text[:50_000]
    assert page.get_by_text("the first 50,000 of 104,000 characters").is_visible()
    [saved] = json.loads(download(page, "JSON"))
    assert saved["entities"][-1]["end"] > 100_000


def test_a_file_with_too_many_texts_is_refused(tmp_path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("text\n" * (MOST_TEXTS + 1))
    with pytest.raises(ValueError, match="holds 5,001 texts; at most 5,000"):
        upload(str(path))


def test_half_a_surrogate_pair_is_replaced_and_offsets_hold() -> None:
    [document] = passage("a \ud83d b")
    assert document.text == "a \ufffd b"


def test_a_model_that_is_not_there_is_named_and_tried_again(server) -> None:
    missing = iter([FileNotFoundError("no such folder"), server.recognizer])

    def load() -> EntityRecognizer:
        if isinstance(given := next(missing), Exception):
            raise given
        return given

    tagger = Tagger(LazyModel("mini-ner", load))
    asked = given(ABSTRACT, None)
    *_, (line, found) = tagger.find(asked, None)
    assert "mini-ner cannot be loaded; the log says why" in line
    assert found == gr.skip(), "what was found before stays"
    *_, (line, found) = tagger.find(asked, None)
    assert found.entities == [server.recognizer(ABSTRACT)]


def test_the_endpoints_that_label_texts(server) -> None:
    client = gradio_client.Client(server.url, verbose=False)
    text = ABSTRACT + "\r\nA\u0301 second\r\nline."
    found = server.recognizer(text)
    assert client.predict(text, api_name="/ner") == [asdict(entity) for entity in found]
    one = client.predict(text, types=["Gene"], min_score=0.5, api_name="/ner")
    assert one == [asdict(e) for e in found if e.label == "Gene" and e.score >= 0.5]
    assert client.predict(text, api_name="/classify") == [asdict(each) for each in server.topics(text)]
    sentences = client.predict(text, task="sentences", api_name="/classify")
    assert [(each["start"], each["text"]) for each in sentences] == [
        (each.start, text[each.start : each.end]) for each in server.roles.sentences(text)
    ]
    own = client.predict("gene", labels=["gene", "protein"], api_name="/classify")
    assert {each["label"] for each in own} == {"gene", "protein"}
    assert client.predict("gene", labels=["gene", "protein"], model="mini", api_name="/classify") != own
    for name, arguments, message in (
        ("/ner", {"text": " "}, "text is empty"),
        ("/ner", {"text": "gene", "types": ["<b>"]}, "this model knows Disease"),
        ("/ner", {"text": "gene", "min_score": 2}, "min_score is 2"),
        ("/classify", {"text": "gene", "labels": ["one"]}, "own given: 1"),
        (
            "/classify",
            {"text": "gene", "labels": ["a", "b"], "model": "x/y"},
            "model 'x/y' is not offered here",
        ),
        ("/classify", {"text": "gene", "labels": ["a", "b"], "task": "sentences"}, "leave out labels"),
    ):
        with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)):
            client.predict(api_name=name, **arguments)
