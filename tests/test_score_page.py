"""The Write tab in a real browser: texts that are scored and compared, the editor, and a first visit."""

import itertools
import math
import threading
from functools import partial
from typing import Any

import pytest
from test_page import (
    LIMIT,
    PROMPT,
    at_leisure,
    browser,
    click_token,
    made,
    page,
    press,
    random_generator,
    server,
    set_length,
    text_of,
    type_text,
    wait_for_status,
    wait_for_text,
)

from biogpt.serving.inspection import read_whole
from biogpt.serving.shelf import Shelf
from biogpt.serving.text_generator import TextGenerator
from biogpt.ui.comparing import Comparer

__all__ = ["at_leisure", "browser", "page", "server"]  # fixtures

pytestmark = pytest.mark.slow

TEXT = "😀 The gene has patients. Protein treatment 😀\n\nexpression of <b>it."


def score(page: Any, text: str) -> None:
    type_text(page, text)
    page.locator("#score").click()
    wait_for_status(page, "Scored")
    page.locator("#choices h2", has_text="come next").wait_for()
    page.locator("#generate:enabled").wait_for()


def read(generator: TextGenerator, text: str) -> Any:
    return generator.run(partial(read_whole, generator, generator.prompt(text)))


def bits(generator: TextGenerator, text: str) -> str:
    """Per byte, of the whole text."""
    sample, _ = read(generator, text)
    return f"{-sum(sample.logprobs) / math.log(2) / len(text.encode()):.2f}"


def test_a_text_is_scored_without_writing_and_goes_on_by_choice(page, server) -> None:
    score(page, TEXT)
    assert text_of(page) == TEXT
    sample, coming = read(server.generator, TEXT)
    seen = page.locator("#ink .tok").evaluate_all(
        "all => all.map((each) => [each.textContent, each.className.split(' ')[1]])"
    )
    percents = [round(100 * math.exp(logprob)) for logprob in sample.logprobs]
    spans = itertools.pairwise([0, *sample.ends])
    assert seen == [
        [TEXT[start:end], f"p{sum(percent < least for least in (50, 20, 5))}"]
        for (start, end), percent in zip(spans, percents, strict=True)
        if start < end
    ]
    assert bits(server.generator, TEXT) in page.locator("#status .status").inner_text()
    assert page.locator(".sentences li").count() == 3
    page.locator(".sentences button").nth(1).click()
    chosen = "(area) => area.value.slice(area.selectionStart, area.selectionEnd)"
    assert page.locator("#text textarea").evaluate(chosen) == "Protein treatment 😀"
    names = page.locator("#choices li b").all_inner_texts()
    assert names == [f"{100 * math.exp(logprob):.1f} %" for _, logprob in coming]

    other = page.locator("#choices li", has=page.locator("button")).nth(1)
    name = other.locator("span").inner_text().rstrip("‑")
    other.locator("button").click()
    page.wait_for_function(
        "old => document.querySelector('#text textarea').value.length > old.length", arg=TEXT
    )
    wait_for_status(page, "Scored")
    assert text_of(page).removeprefix(TEXT).strip().startswith(name)
    page.locator("#choices h2", has_text="come next").wait_for()
    page.locator("#undo").click()
    wait_for_text(page, TEXT)

    set_length(page, 3)
    page.locator("#generate:enabled").click()
    wait_for_status(page, "Finished")
    assert page.locator("#ink .tok").count() == len(seen) + 3, "what was known of the prompt is kept"
    assert page.locator("#ink .tok.made").count() == 3
    long = "gene " * 40
    type_text(page, long)
    page.locator("#score").click()
    sizes = f"{server.generator.count(long)} tokens and the model {LIMIT} positions"
    assert sizes in wait_for_status(page, "Not scored")


def test_scoring_is_stopped(page, server) -> None:
    may_go_on = threading.Event()
    held = server.generator.model.biogpt.register_forward_pre_hook(lambda *_: may_go_on.wait(60) and None)
    type_text(page, PROMPT)
    page.locator("#score").click()
    wait_for_status(page, "Reading")
    page.keyboard.press("Escape")
    wait_for_status(page, "Stopped")
    page.locator("#generate:enabled").wait_for()
    may_go_on.set()
    held.remove()
    page.wait_for_timeout(1000)
    assert page.locator("#ink .tok").count() == 0
    assert page.locator("#status .status").inner_text().startswith("Stopped")


def test_an_edit_keeps_what_is_known_of_the_tokens_before_it(page, server) -> None:
    text = "gene protein patients expression"
    score(page, text)
    edited = "gene protein treatment expression"
    page.locator("#text textarea").fill(edited)
    kept = server.generator.count("gene protein") - 1  # letters, here
    page.wait_for_function("n => document.querySelectorAll('#ink .tok').length === n", arg=kept)
    assert page.get_by_text("of the text before it was edited").is_visible()
    assert not page.locator("#choices h2").is_visible(), "what would come after another text"
    click_token(page, 1)
    page.locator("#choices h2", has_text="“e‑” had").wait_for()
    set_length(page, 2)
    page.locator("#choices button[data-rank]").first.click()
    wait_for_status(page, "Finished")
    assert text_of(page).startswith("g")
    assert "treatment expression" not in text_of(page)
    page.locator("#undo").click()
    wait_for_text(page, edited)
    page.locator("#colours").uncheck()
    assert not page.locator("#ink").is_visible()


def test_the_colours_lie_under_their_words_and_nothing_jumps(page) -> None:
    text = "gene protein\n\n" + "patients treatment expression gene, " * 25 + "\n\nprotein\n"
    for width in (390, 768, 1000, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        type_text(page, text)
        page.wait_for_function("document.querySelector('#ink').textContent.startsWith('gene')")
        sizes = page.evaluate(
            """() => ["#ink", "#text textarea"].map((name) => {
                const part = document.querySelector(name);
                part.scrollTop = 150;
                return [part.scrollHeight, part.clientWidth, part.clientHeight];
            })"""
        )
        assert sizes[0] == sizes[1]
        page.wait_for_function("document.querySelector('#ink').scrollTop === 150")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    score(page, "gene protein")
    text, settings = page.locator("#text").bounding_box(), page.locator("#preset").bounding_box()
    beside = page.locator("#choices").bounding_box()
    assert beside["x"] >= text["x"] + text["width"]
    assert beside["y"] > settings["y"] + settings["height"]
    places = [page.locator(name).bounding_box() for name in ("#generate", "#preset", "#view")]
    click_token(page, 0)
    page.locator("#choices h2", has_text="had").wait_for()
    assert [page.locator(name).bounding_box() for name in ("#generate", "#preset", "#view")] == places


def test_a_phone_answers_a_tap_within_the_screen(browser, server) -> None:
    page = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True).new_page()
    page.goto(server.url)
    page.locator("#model-state", has_text="ready").wait_for()
    score(page, "gene protein patients")
    small = page.evaluate(
        """() => [...document.querySelectorAll("[role=tabpanel] button")]
            .filter((each) => each.offsetParent && each.closest("#text, .work, .beside, .below"))
            .map((each) => [each.innerText, each.getBoundingClientRect()])
            .filter(([, box]) => Math.min(box.width, box.height) < 24).map(([name]) => name)"""
    )
    assert small == []
    page.locator("#choices .close").click()
    page.evaluate("document.activeElement.blur()")
    box = page.locator("#ink .tok").nth(1).bounding_box()
    tap = partial(page.touchscreen.tap, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tap()
    page.locator("#choices h2", has_text="“e‑” had").wait_for()
    answer = page.locator("#choices").bounding_box()
    assert answer["y"] + answer["height"] <= 844
    covering = page.evaluate(
        """async () => {
          const [covering, sheet] = [new Set(), document.querySelector("#choices")];
          for (let top = 0; top < document.documentElement.scrollHeight; top += 100) {
            window.scrollTo(0, top);
            await new Promise(requestAnimationFrame);
            const { left, right, top: begin, bottom } = sheet.getBoundingClientRect();
            for (let x = left + 8; x < right; x += 16)
              for (let y = begin + 8; y < bottom; y += 16) {
                const shown = document.elementFromPoint(x, y);
                if (!sheet.contains(shown)) covering.add(shown?.outerHTML.slice(0, 80));
              }
          }
          window.scrollTo(0, 0);
          return [...covering];
        }"""
    )
    assert covering == [], "what lies above the answer"
    assert page.evaluate("document.activeElement.tagName") != "TEXTAREA", "a keyboard would cover the answer"
    page.locator("#choices .close").click()
    assert not page.locator("#choices h2").is_visible()
    tap()
    page.locator("#choices h2").wait_for()
    tap()
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA", "a second tap edits there"
    page.context.close()


def test_runs_are_told_and_the_focus_is_kept(page, at_leisure) -> None:
    page.evaluate(
        """() => { window.said = [];
            new MutationObserver(() => said.push(document.querySelector("#said")?.textContent))
                .observe(document.body, {childList: true, subtree: true, characterData: true}); }"""
    )
    set_length(page, 3)
    type_text(page, PROMPT)
    page.locator("#generate").click()
    page.wait_for_function("document.querySelector('#said').textContent.startsWith('Finished')")
    page.wait_for_function("document.activeElement.id === 'generate'")
    click_token(page, 0)
    page.locator("#choices button[data-rank]").first.click()
    wait_for_status(page, "Finished")
    page.wait_for_function("document.activeElement.id === 'generate'")
    click_token(page, 0)
    page.locator("#choices h2").wait_for()
    assert page.evaluate(
        """[...document.querySelectorAll("h1, h2, h3, h4")].filter((each) => each.offsetParent)
            .map((each) => +each.tagName[1])"""
    ) == [1, 2]
    page.emulate_media(forced_colors="active", reduced_motion="reduce")
    style = "(each, name) => getComputedStyle(each)[name]"
    assert page.locator("[role=tab][aria-selected=true]").first.evaluate(style, "outlineStyle") == "solid"
    assert page.locator("#preset label.selected").evaluate(style, "outlineStyle") == "solid"
    assert page.locator("#generate").evaluate(style, "transitionDuration") == "0s"
    set_length(page, 100)
    page.locator("#generate").click()
    page.wait_for_function("document.activeElement.id === 'stop'")
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelector('#said').textContent === 'Stopped'")
    page.wait_for_function("document.activeElement.id === 'generate'")
    assert "Writing" in page.evaluate("said")


def test_the_end_of_a_long_text_is_followed_where_the_reader_is_there(page) -> None:
    type_text(page, "gene\n" * 24)
    page.locator("#text textarea").evaluate("area => { area.scrollTop = area.scrollHeight; }")
    set_length(page, 60)
    page.locator("#generate").click()
    wait_for_status(page, "Finished")
    below = "area => area.scrollHeight - area.clientHeight - area.scrollTop"
    assert page.locator("#text textarea").evaluate(below) < 30
    assert page.locator("#ink").evaluate(below) < 30


def test_two_texts_and_two_models_are_compared(page, server) -> None:
    type_text(page, "gene protein. Patients")
    page.locator("#compare-panel button.label-wrap").click()
    page.locator("#compare-run").click()
    page.locator("#compare-status", has_text="Both sides are the same").wait_for()
    page.locator("#compare-text textarea").fill("treatment expression")
    page.locator("#compare-run").click()
    page.locator("#compare-status", has_text="Less surprising").wait_for()
    heads = page.locator("#comparison h2").all_inner_texts()
    assert f"Text above: {bits(server.generator, 'gene protein. Patients')} bits" in heads[0]
    assert f"Other text: {bits(server.generator, 'treatment expression')} bits" in heads[2]
    page.locator("#compare-text textarea").fill("")
    page.locator("#compare-model input").click()
    page.get_by_role("option", name="mini").click()
    page.locator("#compare-run:enabled").click()
    page.locator("#comparison h2", has_text="random:").wait_for()
    first, second = (bits(each, "gene protein. Patients") for each in (server.generator, server.other))
    assert first != second
    heads = page.locator("#comparison article h2").all_inner_texts()
    assert heads == [f"random: {first} bits per byte", f"mini: {second} bits per byte"]
    sample, _ = read(server.other, "gene protein. Patients")
    page.locator("#comparison article").nth(1).locator(".tok").nth(1).click()
    words = f"had {100 * math.exp(sample.logprobs[1]):.1f} %"
    page.locator("#choices h2", has_text=words).wait_for()
    assert page.locator("#choices button[data-rank]").count() == 0


def test_a_comparison_refuses_what_is_too_long_or_not_offered() -> None:
    generator = random_generator()
    comparer = Comparer(Shelf("random", lambda _: generator, ["random"]))
    for text, other, model, words in (
        ("gene", "a " * LIMIT, None, f"{LIMIT + 1} tokens and the model {LIMIT} positions"),
        ("gene", "", "someone/else", "is not offered here"),
        (" ", "gene", None, "text above is empty"),
    ):
        *_, (line, view, _) = comparer.compare("random", text, other, model)
        assert words in line
        assert not isinstance(view, dict) or "sides" not in view
    generator.close()


def test_a_first_visit_says_what_this_is_and_shows_an_example(page) -> None:
    first = page.locator("#view .first")
    assert "answers no questions" in first.inner_text()
    assert first.locator("li").count() == 4
    assert [first.locator(f".p{level}").count() > 0 for level in range(4)] == [True] * 4
    type_text(page, "mine")
    page.locator("#show-me").click()
    wait_for_status(page, "Finished")
    assert text_of(page).startswith("Trastuzumab is a monoclonal antibody")
    page.locator("#choices h2", has_text="had").wait_for()
    assert page.locator("#ink .tok.chosen").count() == 1
    assert first.count() == 0
    page.locator("#undo").click()
    wait_for_text(page, "mine")


def put_cursor(page: Any, place: int) -> None:
    page.locator("#text textarea").evaluate(
        "(area, place) => { area.focus(); area.setSelectionRange(place, place); }", place
    )


def cursor(page: Any) -> int:
    return page.locator("#text textarea").evaluate("area => area.selectionEnd")


def wait_for_tokens(page: Any, count: int) -> None:
    page.wait_for_function("n => document.querySelectorAll('#ink .tok').length === n", arg=count)


def wait_for_made(page: Any, words: str) -> None:
    page.wait_for_function(
        """words => words ===
            [...document.querySelectorAll("#ink .made")].map((each) => each.textContent).join("")""",
        arg=words,
    )


def test_generate_writes_at_the_cursor_and_what_follows_stays(page, browser, server, at_leisure) -> None:
    set_length(page, 4)
    whole = f"{PROMPT}, and the rest."
    type_text(page, whole)
    page.locator("#where", has_text="at the end of the text").wait_for()
    put_cursor(page, len(PROMPT) - 2)  # a word is not taken apart
    page.locator("#where", has_text="what follows stays").wait_for()
    page.locator("#generate").click()
    wait_for_status(page, "Finished")
    first = text_of(page)
    new = made(page)
    assert first == f"{PROMPT}{new}, and the rest."
    assert page.locator("#ink .tok").count() == 4
    assert page.locator("#ink").text_content().rstrip("\u200b") == first, "the colours lie under other words"
    page.locator("#count", has_text=f"{server.generator.count(first)} of").wait_for()
    assert cursor(page) == len(PROMPT + new)
    page.locator("#generate").click()  # once more at the cursor, which is after the new words
    page.wait_for_function("old => document.querySelector('#text textarea').value !== old", arg=first)
    wait_for_status(page, "Finished")
    second = text_of(page)
    assert second.startswith(PROMPT + new)
    assert second.endswith(", and the rest.")
    assert page.locator("#ink .tok").count() == 8, "the tokens before lose their probabilities"
    for text, count in ((first, 4), (whole, 0)):
        press(page, "undo", text)
        wait_for_tokens(page, count)
    press(page, "redo", first)
    wait_for_tokens(page, 4)
    page.wait_for_function(
        "n => document.querySelector('#text textarea').selectionEnd === n", arg=len(PROMPT + new)
    )

    page.locator("#copy-link").click()
    page.wait_for_function("location.search.includes('rest=')")
    other = browser.new_page()
    other.goto(page.url)
    wait_for_text(other, first)
    other.locator("#model-state", has_text="ready").wait_for()
    other.locator("#regenerate").click()
    wait_for_status(other, "Finished")
    assert text_of(other) == first, "the same seed, between the same words"
    other.close()
    page.reload()
    wait_for_tokens(page, 4)
    assert text_of(page).endswith(", and the rest.")

    set_length(page, 100)
    put_cursor(page, len(PROMPT))
    page.evaluate("window.updates = []")
    page.locator("#generate").click()
    page.wait_for_function("window.updates.length >= 3")
    page.keyboard.press("Escape")
    wait_for_status(page, "Stopped")
    assert text_of(page).startswith(PROMPT)
    assert len(text_of(page)) > len(whole)
    page.locator("#continue:enabled").wait_for()
    stopped = text_of(page)
    page.locator("#continue").click()
    page.wait_for_function("old => document.querySelector('#text textarea').value !== old", arg=stopped)
    page.keyboard.press("Escape")
    wait_for_status(page, "Stopped")


def suggested_in(page: Any, whole: str) -> list[str]:
    """The words that are suggested after the prompt in a text that begins with it."""
    type_text(page, whole)
    put_cursor(page, len(PROMPT) + 1)
    page.locator("#suggest").click()
    wait_for_status(page, "Suggested")
    page.locator("#generate:enabled").wait_for()
    return page.locator("#ink .ghost").text_content().split()


def test_what_is_suggested_is_taken_word_by_word_or_whole(page) -> None:
    whole = f"{PROMPT} in the rest"
    words = suggested_in(page, whole)
    ghost = page.locator("#ink .ghost")
    assert len(words) >= 4
    assert text_of(page) == whole, "nothing is taken yet"
    assert page.locator("#ink").text_content().rstrip("\u200b") == f"{PROMPT} {' '.join(words)} in the rest"
    for _ in range(2):  # the second while the server is told of the first
        page.keyboard.press("Tab")
    wait_for_text(page, f"{PROMPT} {words[0]} {words[1]} in the rest")
    assert ghost.text_content().split() == words[2:]
    wait_for_made(page, " ".join(words[:2]))
    page.locator("#where button", has_text="Next word").click()
    three = f"{PROMPT} {' '.join(words[:3])} in the rest"
    wait_for_text(page, three)
    wait_for_made(page, " ".join(words[:3]))
    page.locator("#text textarea").focus()
    page.keyboard.press("Escape")
    assert ghost.count() == 0
    assert text_of(page) == three
    assert page.locator("#text.suggesting").count() == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") != "TEXTAREA", (
        "Tab leaves where nothing is proposed"
    )
    wait_for_status(page, "Taken")
    page.locator("#undo").click()
    wait_for_text(page, whole)

    for key in ("Enter", "ArrowRight"):
        put_cursor(page, len(PROMPT))
        page.locator("#suggest").click()
        wait_for_status(page, "Suggested")
        page.locator("#generate:enabled").wait_for()
        words = ghost.text_content()
        page.keyboard.press(key)
        wait_for_text(page, f"{PROMPT}{words} in the rest")
        wait_for_status(page, "Taken")
        page.wait_for_function("() => document.querySelectorAll('#ink .made').length > 2")
        assert made(page) == words
        assert not page.locator("#status").evaluate("line => line.classList.contains('outdated')")
        page.locator("#undo").click()
        wait_for_text(page, whole)
    long = "gene\n" * 10 + PROMPT
    type_text(page, long)
    button = page.locator("#generate").bounding_box()
    page.locator("#suggest").click()
    wait_for_status(page, "Suggested")
    page.locator("#generate:enabled").wait_for()
    assert page.locator("#generate").bounding_box() == button, (
        "what is suggested at the end moves the buttons"
    )
    ends = "() => [...document.querySelectorAll('#ink, #text textarea')].map((each) => each.scrollHeight)"
    assert len({*page.evaluate(ends)}) == 1, "its end cannot be scrolled to"
    type_text(page, whole)
    put_cursor(page, len(PROMPT))
    page.locator("#suggest").click()
    wait_for_status(page, "Suggested")
    page.locator("#generate:enabled").wait_for()
    page.keyboard.type(".")
    wait_for_text(page, f"{PROMPT}. in the rest")
    assert ghost.count() == 0, "what was typed is another text"


def test_of_two_words_taken_at_once_none_is_lost_though_the_first_answer_is_late(page) -> None:
    whole = f"{PROMPT} in the rest"
    words = suggested_in(page, whole)
    held: list[Any] = []

    def tells(request: Any) -> bool:
        return '"taken"' in (request.post_data or "")

    page.route(
        "**/gradio_api/**",
        lambda route: route.fallback() if held or not tells(route.request) else held.append(route),
    )
    page.locator("#text textarea:focus").wait_for()
    page.keyboard.press("Tab")
    wait_for_text(page, f"{PROMPT} {words[0]} in the rest")
    for _ in range(600):  # what is routed is told while the page waits
        if held:
            break
        page.wait_for_timeout(50)
    [first] = held
    answer = first.fetch()
    page.keyboard.press("Tab")
    both = f"{PROMPT} {words[0]} {words[1]} in the rest"
    wait_for_text(page, both)
    page.wait_for_timeout(500)  # in which the second word's answer would come, were it asked for
    first.fulfill(response=answer)
    page.wait_for_timeout(500)
    wait_for_made(page, f"{words[0]} {words[1]}")
    wait_for_status(page, "Taken")
    assert text_of(page) == both
    page.locator("#undo").click()
    wait_for_text(page, whole)


PANELS = ("#text", "#compare-panel", "#settings", "#tree-panel")


def test_the_tab_key_goes_as_the_eye_does(page) -> None:
    seen = page.evaluate(
        """panels => [...document.querySelectorAll("a[href], button, input, textarea, [tabindex]")]
            .filter((each) => each.offsetParent && each.tabIndex >= 0)
            .map((each) => [panels.find((panel) => each.closest(panel)), each.tabIndex])""",
        PANELS,
    )
    assert {place for _, place in seen} == {0}, "an order of its own"
    assert list(dict.fromkeys(panel for panel, _ in seen if panel)) == list(PANELS)
    for width in (390, 640, 768, 1000, 1180):
        page.set_viewport_size({"width": width, "height": 900})
        boxes = [page.locator(panel).bounding_box() for panel in PANELS]
        for one, other in itertools.pairwise(boxes):
            is_right = other["x"] >= one["x"] + one["width"]
            assert is_right or other["y"] >= one["y"] + one["height"], width
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("link", name="Settings", exact=True).click()
    page.wait_for_function("document.querySelector('#preset').getBoundingClientRect().top < innerHeight / 2")
    page.get_by_role("link", name="Back to the text").click()
    page.wait_for_function("document.querySelector('#text').getBoundingClientRect().top > -9")
