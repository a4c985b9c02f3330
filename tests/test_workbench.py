"""What brings people back to the page: trees of continuations, and work that is kept in the browser."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_page import (
    PROMPT,
    browser,
    click_token,
    page,
    server,
    set_length,
    text_of,
    type_text,
    wait_for_status,
    wait_for_text,
)
from test_writing import values_of

from biogpt.ui.writing import options_of

__all__ = ["browser", "page", "server"]  # fixtures

pytestmark = pytest.mark.slow


def open_panel(page: Any, panel: str) -> None:
    page.locator(f"#{panel}-panel button.label-wrap").click()


def plant(page: Any, text: str = PROMPT) -> Any:
    """A tree, and its branches at the first level."""
    type_text(page, text)
    open_panel(page, "tree")
    page.get_by_label("number input for At least, %").fill("0")
    page.get_by_label("number input for Depth").fill("3")
    page.locator("#tree-make").click()
    page.locator("#tree-status", has_text="Finished").wait_for()
    return page.locator("#tree [role=tree] > [role=treeitem]")


def faults(page: Any) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [fault["id"] for fault in found if fault["impact"] in ("serious", "critical")]


def test_a_tree_of_three_branches_is_folded_expanded_and_one_path_kept(page) -> None:
    branches = plant(page)
    assert branches.count() == 3
    shown = page.locator("#tree [role=treeitem]:visible").count()
    first, second = branches.nth(0), branches.nth(1)

    first.focus()
    page.keyboard.press("ArrowLeft")
    assert first.get_attribute("aria-expanded") == "false"
    assert page.locator("#tree [role=treeitem]:visible").count() < shown
    page.keyboard.press("ArrowDown")
    assert second.evaluate("item => item === document.activeElement"), "what is folded is passed over"

    leaf = second.locator("[role=treeitem]:not([aria-expanded])").first
    leaf.locator(".node").click()
    number = leaf.get_attribute("data-node")
    page.locator("#tree [data-do=expand]").click()
    page.wait_for_function(
        "number => document.querySelector(`#tree [data-node='${number}'][aria-expanded=true]`)", arg=number
    )
    page.locator("#tree-make:enabled").wait_for()
    assert first.get_attribute("aria-expanded") == "false", "a branch that is folded stays so"

    page.locator(f"#tree [data-node='{number}'] [role=treeitem] .node").first.click()
    path = page.locator("#tree .path p").inner_text()
    page.locator("#tree [data-do=keep]").click()
    wait_for_status(page, "Kept from the tree")
    written = re.fullmatch(r"“(.*)” \S+ %", path)[1]
    assert text_of(page) == f"{PROMPT} {written}"
    assert page.locator("#ink .tok").count() >= 4
    page.locator("#undo").click()
    wait_for_text(page, PROMPT)


def test_a_tree_grows_from_the_cursor_and_what_follows_stays(page) -> None:
    type_text(page, f"{PROMPT} and the rest")
    open_panel(page, "tree")
    page.locator("#text textarea").evaluate(f"area => area.setSelectionRange({len(PROMPT)}, {len(PROMPT)})")
    page.locator("#tree-cursor").click()
    page.locator("#tree-status", has_text="Finished").wait_for()
    assert page.locator("#tree .stem").inner_text() == PROMPT
    page.locator("#tree [data-do=keep]").click()
    page.locator("#tree-status", has_text="Kept").wait_for()
    assert re.fullmatch(rf"{PROMPT} \S.* and the rest", text_of(page))


def test_a_tree_is_downloaded_as_json_and_stands_at_every_size(page, tmp_path: Path) -> None:
    plant(page)
    with page.expect_download() as download:
        page.locator("#tree [data-do=save]").click()
    tree = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert tree["prompt"] == PROMPT
    assert sum(node["parent"] == -1 for node in tree["nodes"]) == 3
    assert all(node["parent"] < number for number, node in enumerate(tree["nodes"]))
    assert faults(page) == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#tree .node").first.evaluate("row => row.scrollWidth <= row.clientWidth")


def test_a_beam_search_shows_what_it_dropped_and_its_winner_is_the_text_of_generate(page, server) -> None:
    type_text(page, PROMPT)
    open_panel(page, "tree")
    page.locator("#tree-kind").get_by_text("Beam search").click()
    assert page.get_by_label("number input for Branches").is_hidden()
    page.get_by_label("number input for Width").fill("3")
    page.get_by_label("number input for Tokens").fill("7")
    page.get_by_label("number input for Length penalty").fill("0.5")
    page.get_by_label("number input for Temperature").fill("1.5")  # draws nothing here
    page.locator("#tree-make").click()
    page.locator("#tree-status", has_text="Finished").wait_for()
    asked = {"num_beams": 3, "max_new_tokens": 7, "length_penalty": 0.5, "temperature": 0.0}
    [expected] = server.generator.generate(PROMPT, options_of(values_of(), asked))

    with page.expect_download() as download:
        page.locator("#tree [data-do=save]").click()
    tree = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    beams = tree["search"]["beams"]
    assert tree["search"]["is_over"]
    assert [beam["state"] for beam in beams][:4] == ["finished"] * 3 + ["dropped"]

    def path(at: int) -> list[Any]:
        return [*path(tree["nodes"][at]["parent"]), tree["nodes"][at]] if at >= 0 else []

    winner, dropped = (path(beams[place]["node"]) for place in (0, 3))
    assert [node["id"] for node in winner] == expected.ids
    assert beams[0]["score"] == pytest.approx(winner[-1]["total"] / len(winner) ** 0.5, abs=1e-3)

    words = page.locator("#tree .node b").all_text_contents()
    assert sum(word.startswith("dropped at ") for word in words) == len(beams) - 3
    assert [word.split(",")[0] for word in words if "," in word].count("best") == 1
    assert page.locator("#tree [aria-selected=true] > .node b").inner_text().startswith("best, ")
    assert page.locator("#tree .dropped s").first.evaluate("s => getComputedStyle(s).textDecorationLine") == (
        "line-through"
    )
    assert page.locator("#tree [data-do=expand]").count() == 0
    assert faults(page) == []

    page.locator("#tree [aria-selected=true]").focus()
    page.keyboard.press("Home")
    reached = []
    for _ in range(page.locator("#tree [role=treeitem]").count()):
        reached.append(int(page.locator("#tree [role=treeitem]:focus").get_attribute("data-node")))
        page.keyboard.press("ArrowDown")
    assert {beam["node"] for beam in beams} <= {*reached}
    page.keyboard.press("End")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#tree [data-do=keep]").click()
    wait_for_status(page, "Kept from the tree")
    assert text_of(page) == PROMPT + expected.text
    page.locator("#text textarea").scroll_into_view_if_needed()
    click_token(page, 0)
    page.locator("#choices li").nth(7).wait_for()
    page.locator("#choices .close").click()

    page.locator(f"#tree [data-node='{beams[3]['node']}'] > .node").click()
    page.locator("#tree [data-do=keep]").click()
    wait_for_text(page, PROMPT + "".join(node["text"] for node in dropped if not node["ended"]))


@pytest.mark.parametrize("kind", ["Likely branches", "Beam search"])
def test_a_stopped_tree_keeps_what_is_there(page, server, kind: str) -> None:
    type_text(page, PROMPT)
    open_panel(page, "tree")
    page.get_by_label("number input for Depth").fill("16")
    page.locator("#tree-kind").get_by_text(kind).click()
    slow = server.generator.model.output_projection.register_forward_pre_hook(lambda *_: time.sleep(0.5))
    try:
        page.locator("#tree-make").click()
        page.locator("#tree [role=treeitem]").first.wait_for()
        page.locator("#tree-stop").click()
        page.locator("#tree-status", has_text="Stopped").wait_for()
    finally:
        slow.remove()
    page.locator("#tree-make:enabled").wait_for()
    last = page.locator("#tree [role=treeitem]").count()
    assert last >= 3
    alive = page.locator("#tree .node b", has_text="alive").count()
    assert alive == (4 if kind == "Beam search" else 0)
    page.locator("#tree [data-do=keep]").click()
    page.locator("#tree-status", has_text="Kept").wait_for()
    assert len(text_of(page)) > len(PROMPT)


@pytest.fixture
def visitor(browser: Any, server: Any) -> Iterator[Any]:
    """A browser of one person, which keeps things from page to page."""
    context = browser.new_context(accept_downloads=True)
    yield context
    context.close()


def come(visitor: Any, server: Any) -> Any:
    opened = visitor.new_page()
    opened.goto(server.url)
    opened.locator("#model-state", has_text="ready").wait_for()
    open_panel(opened, "kept")
    return opened


def save(page: Any, name: str, act: str = "text") -> None:
    page.locator("#kept input[type=text]").fill(name)
    page.locator(f"#kept [data-act={act}]").click()
    page.locator("#kept li span", has_text=name).wait_for()


def act(page: Any, what: str, name: str) -> None:
    page.locator(f"#kept [data-act={what}][data-name='{name}']").click()


def test_who_comes_back_tomorrow_finds_the_work(visitor, server) -> None:
    today = come(visitor, server)
    set_length(today, 5)
    type_text(today, PROMPT)
    today.locator("#generate").click()
    wait_for_status(today, "Finished")
    written, tokens = text_of(today), today.locator("#ink .tok").count()
    save(today, "my <b>text</b>")
    today.close()

    tomorrow = come(visitor, server)
    assert text_of(tomorrow) == ""
    act(tomorrow, "open", "my <b>text</b>")
    wait_for_text(tomorrow, written)
    tomorrow.locator("#ink .tok").first.wait_for()
    assert tomorrow.locator("#ink .tok").count() == tokens
    assert tomorrow.get_by_label("number input for Length, tokens").input_value() == "5"
    tomorrow.locator("#text textarea").scroll_into_view_if_needed()
    click_token(tomorrow, 0)
    tomorrow.locator("#choices li").first.wait_for()
    tomorrow.once("dialog", lambda dialog: dialog.accept("another"))
    act(tomorrow, "rename", "my <b>text</b>")
    tomorrow.locator("#kept li span", has_text="another").wait_for()

    with tomorrow.expect_download() as download:
        tomorrow.locator("#kept [data-act=all]").click()
    file = Path(download.value.path()).read_bytes()
    act(tomorrow, "delete", "another")
    tomorrow.locator("#kept", has_text="Nothing is saved yet").wait_for()
    tomorrow.locator("#kept input[type=file]").set_input_files(
        {"name": "saved.json", "mimeType": "application/json", "buffer": file}
    )
    tomorrow.locator("#kept li span", has_text="another").wait_for()
    assert faults(tomorrow) == []


def test_settings_are_kept_by_name_and_shared_by_a_link(visitor, server) -> None:
    visitor.grant_permissions(["clipboard-read", "clipboard-write"])
    page = come(visitor, server)
    page.get_by_label("number input for Temperature").fill("1.25")
    set_length(page, 7)
    save(page, "warm", "settings")
    page.get_by_label("number input for Temperature").fill("0.3")
    type_text(page, "kept as it is")
    act(page, "open", "warm")
    page.wait_for_function(
        "document.querySelector('[aria-label=\"number input for Temperature\"]').value === '1.25'"
    )
    assert text_of(page) == "kept as it is"
    act(page, "link", "warm")
    page.locator("#kept-status", has_text="The link is copied").wait_for()
    other = visitor.new_page()
    other.goto(page.evaluate("navigator.clipboard.readText()"))
    other.locator("#notice", has_text="Opened from a link").wait_for()
    other.wait_for_function(
        "document.querySelector('[aria-label=\"number input for Temperature\"]').value === '1.25'"
    )
    assert other.get_by_label("number input for Length, tokens").input_value() == "7"


def test_a_text_is_taken_away_as_json_markdown_and_a_picture(visitor, server) -> None:
    page = come(visitor, server)
    set_length(page, 6)
    type_text(page, PROMPT)
    page.locator("#generate").click()
    wait_for_status(page, "Finished")
    files = {}
    for kind in ("json", "markdown", "picture"):
        with page.expect_download() as download:
            page.locator(f"#kept [data-act={kind}]").click()
        files[kind] = Path(download.value.path()).read_text(encoding="utf-8")
    record = json.loads(files["json"])
    [sample] = record["samples"]
    assert record["text"] == text_of(page) == PROMPT + sample["text"]
    assert "".join(token["text"] for token in sample["tokens"]) == sample["text"]
    assert all(token["logprob"] < 0 and len(token["likeliest"]) == 8 for token in sample["tokens"])
    assert f"seed {record['seed']}" in page.locator("#status").inner_text()
    assert record["seconds_to_first_token"] > 0
    assert record["settings"]["length"] == 6
    assert f"seed {record['seed']}" in files["markdown"]
    assert f"**{sample['text'].strip()}**" in files["markdown"]
    assert files["picture"].count("<rect") == 1 + sum(
        bool(token["text"].strip()) for token in sample["tokens"]
    )
    viewer = visitor.new_page()
    viewer.set_content(files["picture"])
    assert sample["text"].split()[0] in viewer.locator("svg").text_content()
