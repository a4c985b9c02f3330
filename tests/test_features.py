"""The page in a real browser: tokens, branches, samples, links, models, accessibility; and for programs."""

import asyncio
import itertools
import json
import re
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from app_server import app_server
from hub_server import HubServer, Repository
from test_page import (
    PROMPT,
    browser,
    click_token,
    made,
    page,
    random_generator,
    server,
    set_length,
    text_of,
    type_text,
    wait_for_status,
)

from biogpt.ui.elsewhere import CURL, JAVASCRIPT, filled

__all__ = ["browser", "page", "server"]  # fixtures

pytestmark = pytest.mark.slow


def generate(page: Any, tokens: int = 5) -> str:
    set_length(page, tokens)
    type_text(page, PROMPT)
    page.locator("#generate").click()
    return wait_for_status(page, "Finished")


def test_a_token_shows_its_alternatives_and_one_of_them_branches(page) -> None:
    generate(page)
    before = text_of(page)
    tokens = page.locator("#ink .tok")
    first, second = tokens.nth(0).inner_text(), tokens.nth(1).inner_text()
    kept = PROMPT + first
    text = page.locator("#text textarea")
    page.mouse.move(0, 0)
    tokens.first.scroll_into_view_if_needed()
    box = tokens.first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 8)
    assert re.fullmatch(r"\d+ %", text.get_attribute("title"))
    text.focus()
    text.evaluate("(area, place) => area.setSelectionRange(place, place)", len(kept) - 1)
    page.keyboard.press("ArrowRight")  # the caret stands before the second token
    page.locator("#choices li").first.wait_for()
    assert page.locator("#choices li").count() == 8
    assert f"“{second.strip()}" in page.locator("#choices h2").inner_text()
    assert re.fullmatch(rf"{re.escape(second.strip())}, \d+ %", page.locator("#said").inner_text())
    button = page.locator("#choices button").first
    other = page.locator("#choices li", has=page.locator("button")).first.locator("span").inner_text()
    button.click()
    page.wait_for_function("old => document.querySelector('#text textarea').value !== old", arg=before)
    wait_for_status(page, "Finished")
    assert text_of(page).startswith(kept.rstrip())
    assert text_of(page)[len(kept.rstrip()) :].lstrip().startswith(other.rstrip("‑"))
    page.locator("#undo").click()
    wait_for_status(page, "Undone")
    assert text_of(page) == before


def test_beam_search_shows_its_text_and_then_its_probabilities(page) -> None:
    page.get_by_role("radio", name="Beam").check()
    generate(page, 4)
    page.locator("#ink .tok").first.wait_for(state="attached")
    assert made(page) == text_of(page).removeprefix(PROMPT)


def test_samples_stand_side_by_side_and_one_is_taken(page) -> None:
    page.locator(".settings button.label-wrap").click()
    samples = page.get_by_label("number input for Samples")
    samples.fill("2")
    samples.press("Tab")
    assert samples.input_value() == "2"
    generate(page, 3)
    assert text_of(page) == PROMPT
    samples = page.locator("#view article mark").all_inner_texts()
    assert len(samples) == 2
    tokens = page.locator("#view .tok")
    tokens.first.focus()
    for key, place in (("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        assert tokens.nth(place).evaluate("token => token === document.activeElement && token.tabIndex === 0")
    page.keyboard.press("Enter")
    page.locator("#choices h2", has_text="had").wait_for()
    assert page.locator("#view .tok.chosen").evaluate("token => token === document.activeElement")
    page.locator("#view .take").nth(1).click()
    page.wait_for_function("p => document.querySelector('#text textarea').value !== p", arg=PROMPT)
    assert text_of(page) == PROMPT + samples[1]


def test_attention_is_shown_by_layer_and_head(page) -> None:
    type_text(page, "gene protein gene")
    page.locator("#attention-panel button.label-wrap").click()
    page.locator("#look").click()
    tokens = page.locator("#attention .tokens button")
    tokens.first.wait_for()
    assert tokens.first.inner_text() == "start"
    tokens.nth(1).click()
    assert "comes later" in tokens.nth(2).get_attribute("title")
    assert "Layer 48 of 48" in page.locator("#attention").inner_text()


def test_the_length_in_tokens_follows_the_text(page, server) -> None:
    page.locator("#text textarea").press_sequentially("gene protein")
    page.locator("#count", has_text=f"{server.generator.count('gene protein')} of 160 tokens").wait_for()


def test_a_link_restores_the_state_and_runs_nothing(page, browser, server) -> None:
    type_text(page, "The gene & <b>protein</b>")
    page.get_by_label("number input for Temperature").fill("0.3")
    page.get_by_label("number input for Temperature").blur()
    page.locator("#copy-link").click()
    page.wait_for_function("location.search.includes('temperature')")
    before = len(server.computed)
    link = page.url
    page = browser.new_page()  # the tab that it was made in has more than the link holds
    page.goto(link)
    page.locator("#notice", has_text="nothing has been run").wait_for()
    page.locator("#count", has_text="of 160").wait_for()  # the last thing that the page asks for
    assert text_of(page) == "The gene & <b>protein</b>"
    assert page.get_by_label("number input for Temperature").input_value() == "0.3"
    assert not any(radio.is_checked() for radio in page.locator("#preset input").all())
    page.locator("#notice button").click()
    assert page.locator("#notice").inner_text() == ""
    page.goto(f"{server.url}?tab=classify&beams=900&evil=<script>&task=all&model=someone/else&abstract=gene")
    page.locator("#notice", has_text="ignored: beams, evil, task").wait_for()
    assert "someone/else" in page.locator("#notice").inner_text()
    assert page.locator("#classify-text textarea").input_value() == "gene"
    page.locator("#count", has_text="of 160").wait_for(state="attached")
    assert len(server.computed) == before


def test_another_model_is_chosen_for_this_visitor(page) -> None:
    page.get_by_role("tab", name="Models").click()
    page.locator("#model-choice input").click()
    page.get_by_role("option", name="mini").click()
    page.locator("#model-use").click()
    page.locator("#model-state", has_text="mini").wait_for()
    page.get_by_role("tab", name="Write").click()
    generate(page, 3)
    type_text(page, "The gene")
    page.locator("#count", has_text="of").wait_for()


def test_a_model_comes_from_the_hub_with_its_size_progress_and_cancel(browser, tmp_path) -> None:
    generator = random_generator()
    generator.model.save_pretrained(tmp_path / "tiny")
    generator.tokenizer.save_pretrained(tmp_path / "tiny")
    repositories = {"someone/tiny": [Repository(tmp_path / "tiny")]}
    hub = HubServer(repositories, stall_at={"model.safetensors": 4096})
    cache = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    with hub, app_server("--models", "any", environment=cache | {"HF_ENDPOINT": hub.url}) as (url, _):
        page = browser.new_page()
        page.goto(url)
        page.get_by_role("tab", name="Models").click()
        status = page.locator("#model-status")
        for name, words in (("someone/none", "Not usable"), ("someone/tiny", "to download")):
            page.locator("#model-choice input").fill(name)
            page.locator("#model-choice input").press("Enter")
            status.get_by_text(words).wait_for()
        assert hub.transfers("model.safetensors") == []  # nothing before the button
        page.locator("#model-use").click()
        status.get_by_text("Downloading").wait_for()
        page.locator("#model-cancel").click()
        status.get_by_text("Cancelled").wait_for()
        hub.resume.set()
        page.locator("#model-use").click()
        page.locator("#model-state", has_text="someone/tiny").wait_for()
        page.get_by_role("tab", name="Write").click()
        generate(page, 3)
        page.close()


def test_no_tab_has_a_serious_fault_of_accessibility(page) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    generate(page)
    page.locator("#score").click()
    wait_for_status(page, "Scored")
    click_token(page, 0)
    page.locator("#choices h2", has_text="had").wait_for()
    faults = []
    tabs = ("Write", "Entities", "Classify", "Models", "Use it elsewhere")
    for tab, scheme in itertools.product(tabs, ("light", "dark")):
        page.emulate_media(color_scheme=scheme)
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", scheme == "dark")
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(400)
        for fault in axe.run(page).response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                nodes = [
                    f"{node['html'][:120]} {node['failureSummary'][:200]}" for node in fault["nodes"][:3]
                ]
                faults.append((tab, scheme, fault["id"], nodes))
    assert faults == []


def test_health_and_the_example_for_curl(server) -> None:
    assert json.load(urllib.request.urlopen(f"{server.url}health")) == {"status": "serving"}
    shown = filled(CURL, server.url.rstrip("/"))
    assert "of the page" not in shown
    answer = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, timeout=120, check=True)
    assert "event: complete" in answer.stdout
    assert '"tokens": 40' in answer.stdout


def test_an_example_is_copied_and_does_what_it_says(server, page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("tab", name="Use it elsewhere").click()
    page.get_by_role("button", name="Copy the JavaScript example").click()
    page.locator(".programs button", has_text="Copied").wait_for()
    code = page.evaluate("navigator.clipboard.readText()")
    assert code == filled(JAVASCRIPT, server.url.rstrip("/"))
    with page.expect_console_message(timeout=60_000) as said:
        page.evaluate(f"(async () => {{ {code} }})()")
    assert len(said.value.text.split()) > 10


def test_the_tools_of_the_mcp_server(server) -> None:
    mcp = pytest.importorskip("mcp")
    http = pytest.importorskip("mcp.client.streamable_http")

    async def ask() -> tuple[dict[str, Any], str]:
        async with (
            http.streamablehttp_client(f"{server.url}gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            name = next(name for name in tools if name.endswith("ner"))
            result = await session.call_tool(name, {"text": "Naloxone reverses clonidine."})
            return tools, result.content[0].text

    with ThreadPoolExecutor(1) as pool:  # the browser's loop runs in this thread
        tools, answer = pool.submit(lambda: asyncio.run(ask())).result(60)
    assert {name.rpartition("_")[2] for name in tools} >= {"generate", "ner", "classify"}
    assert all(tool.description for tool in tools.values())
    assert "label" in answer
