"""What decided a label, and labels judged by those that a file gives."""

import io
import json
import re
import threading
import zipfile

import pytest
from test_page import (  # noqa: F401
    browser,
    choose_task,
    download,
    file_of,
    marks,
    open_tab,
    page,
    put_file,
    run_tab,
    server,
    wait_for_line,
)

from biogpt.text.documents import Document, read_documents
from biogpt.ui.classify import MOST_READ, parts_of
from biogpt.ui.judging import judged
from biogpt.ui.marks import Reason, because

TEXT = "Tumours grew.\r\nApoptosis failed in all cells. Vessels formed."


def test_what_decided_is_shown_by_what_the_score_is_without_it(page, server) -> None:  # noqa: F811
    text = TEXT.replace("\r", "")
    open_tab(page, "Classify")
    run_tab(page, "classify", text)
    page.locator("#classify-why").click()
    wait_for_line(page, "classify", "3 parts left out")
    best = server.topics(text)[0]
    shown = page.locator("#classify-view mark")
    assert [mark.text_content() for mark in shown.all()] == [
        "Tumours grew.",
        "Apoptosis failed in all cells.",
        "Vessels formed.",
    ]

    def falls(label: str) -> list[str]:
        def score(of: str) -> float:
            return next(each.score for each in server.topics(of) if each.label == label)

        without = [text[:start] + text[end:] for start, end in parts_of(text)]
        return [f"{score(text) - score(rest):+.2f}".replace("-", "−") for rest in without]

    assert [mark.get_attribute("data-label") for mark in shown.all()] == falls(best.label)
    other = server.topics(text)[-1].label
    page.locator("#classify-reasons input").click()
    page.get_by_role("option", name=other).click()
    page.locator(f"#classify-view mark[title^='{other}']").first.wait_for()
    assert [mark.get_attribute("data-label") for mark in shown.all()] == falls(other)
    page.locator("#classify-text textarea").fill("Word")
    page.locator("#classify-run").click()
    page.locator("#classify-view mark").first.wait_for(state="hidden")
    wait_for_line(page, "classify", "Finished")
    page.locator("#classify-why").click()
    wait_for_line(page, "classify", "nothing to leave out")


def test_the_parts_of_a_text_are_its_sentences_or_words() -> None:
    assert [TEXT[a:b] for a, b in parts_of(TEXT)][1] == "Apoptosis failed in all cells."
    assert [TEXT[a:b] for a, b in parts_of("Tumours grew.")] == ["Tumours", "grew."]
    with pytest.raises(ValueError, match="one word"):
        parts_of(" Tumours ")
    with pytest.raises(ValueError, match=f"{MOST_READ:,} are the most"):
        parts_of("Tumours grew there. " * 300)


def test_a_reason_says_its_number_and_its_side() -> None:
    drawn = because("A <b>.\rC", [Reason(0, 1, 0.5), Reason(2, 6, -0.25)], "x", 0.75, ["y", "x"])
    assert re.findall(r'data-label="([^"]+)"', drawn) == ["+0.50", "−0.25"]
    assert "x: 0.75 with this, 1.00 without" in drawn
    assert drawn.count("against") == 1
    assert "&lt;b&gt;.</mark>&#13;C" in drawn


def documents(*labels: tuple[str, ...] | None) -> list[Document]:
    return [Document(str(number), "t", given) for number, given in enumerate(labels)]


def test_labels_are_judged_by_those_of_the_file() -> None:
    one = judged(documents(("A",), ("a",), ("b",), None), [["A"], ["B"], ["B"], ["A"]], ["A", "B"], False)
    assert "Accuracy 0.667: 2 of 3" in one
    assert re.findall(r"<td[^>]*>(\d+)", one) == ["1", "0", "0", "1", "0", "1"]
    several = judged(documents(("a", "b"), (), ("c",)), [["A"], ["B"], []], ["A", "B"], True)
    assert "Micro-F1 0.400; 0 of 3" in several
    assert re.findall(r'"row">(\w+)</th>', several) == ["A", "B", "c"]
    assert judged(documents(None, ("z",)), [["A"], ["B"]], ["A", "B"], False) == "", (
        "a label of something else"
    )


def test_a_file_with_labels_is_judged_on_the_page(page, server, tmp_path) -> None:  # noqa: F811
    texts = ["Tumours grew.", "Vessels formed.", "Cells died."]
    given = [server.topics(text)[0].label for text in texts]
    path = tmp_path / "labelled.csv"
    path.write_text(
        "text,label\n" + "".join(f"{t},{label.upper()}\n" for t, label in zip(texts, given, strict=True))
    )
    assert [document.labels for document in read_documents(path)] == [(label.upper(),) for label in given]
    open_tab(page, "Classify")
    put_file(page, "classify", path)
    page.locator("#classify-run").click()
    wait_for_line(page, "classify", "3 texts")
    page.locator("#classify-judged", has_text="Micro-F1").wait_for()


def test_labels_come_from_the_fields_that_say_so(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"label": "A"},
        {"labels": ["A", " B", "none"]},
        {"labels": [{"label": "A", "score": 1}]},
        {},
        {"label": "none"},
    ]
    path.write_text("".join(json.dumps({"text": "t", **row}) + "\n" for row in rows))
    assert [d.labels for d in read_documents(path)] == [("A",), ("A", "B"), None, None, ()]


def test_several_tasks_read_one_text(page, server, tmp_path) -> None:  # noqa: F811
    text = TEXT.replace("\r", "")
    open_tab(page, "Classify")
    page.locator("#task").get_by_label("roles").check()
    page.locator("#task").get_by_label("Labels of your own").check()
    page.locator("#own-labels textarea").fill("gene, protein")
    run_tab(page, "classify", text)
    roles, topics = server.roles.sentences(text), server.topics(text)
    assert marks(page, "classify") == [(each.label, text[each.start : each.end]) for each in roles]
    heads = page.locator("#classify-plot h3").all_inner_texts()
    assert [head.split(":")[0] for head in heads] == [
        "Labels of topics",
        "Sentences, roles",
        "Labels of your own",
    ]
    listed = page.locator("#classify-plot .bars").nth(0).locator("li").all_inner_texts()
    assert [each.split() for each in listed] == [[each.label, f"{each.score:.2f}"] for each in topics]
    with zipfile.ZipFile(io.BytesIO(download(page, "JSON"))) as archive:
        files = [json.loads(archive.read(name)) for name in archive.namelist()]
    assert [each["label"] for each in files[0][0]["labels"]] == [each.label for each in topics]
    assert [each["label"] for each in files[1][0]["sentences"]] == [each.label for each in roles]
    assert {each["label"] for each in files[2][0]["labels"]} == {"gene", "protein"}

    page.locator("#classify-why").click()
    wait_for_line(page, "classify", "3 parts left out")
    assert page.locator("#classify-view mark.because").count() == 3
    assert page.locator("#classify-view mark.sentence").count() == len(roles)
    page.locator("#classify-reasons input").click()
    page.get_by_role("option", name="protein").click()
    page.locator("#classify-view mark[title^='protein']").first.wait_for()

    for task in ("topics", "roles", "Labels of your own"):
        page.locator("#task").get_by_label(task).uncheck()
    page.locator("#classify-run").click()
    wait_for_line(page, "classify", "No task is ticked")


def test_the_words_of_one_sentence_are_left_out(page, server) -> None:  # noqa: F811
    text = TEXT.replace("\r", "")
    open_tab(page, "Classify")
    run_tab(page, "classify", text)
    page.locator("#classify-parts input").click()
    page.get_by_role("option", name="Words of 2").click()
    page.locator("#classify-why").click()
    wait_for_line(page, "classify", "5 parts left out")
    words = ["Apoptosis", "failed", "in", "all", "cells."]
    assert [word for _, word in marks(page, "classify")] == words
    [best, *_] = server.topics(text)
    start = text.index("failed")
    [without] = server.topics.batch([text[:start] + text[start + len("failed") :]])
    fall = best.score - next(each.score for each in without.scores if each.label == best.label)
    assert marks(page, "classify")[1][0] == f"{fall:+.2f}".replace("-", "−")


def test_seeing_what_decided_is_stopped(page, server) -> None:  # noqa: F811
    may_go_on = threading.Event()
    open_tab(page, "Classify")
    run_tab(page, "classify", TEXT.replace("\r", ""))
    held = server.topics.model.biogpt.register_forward_pre_hook(lambda *_: may_go_on.wait(60) and None)
    page.locator("#classify-why").click()
    page.locator("#classify-stop:enabled").click()
    page.locator("#classify-status", has_text="Stopped").wait_for()
    page.locator("#classify-run:enabled").wait_for()
    may_go_on.set()
    held.remove()
    assert page.locator("#classify-view mark.because").count() == 0
    assert page.locator("#classify-plot li").count() == len(server.topics.labels), "what was found stays"
    page.locator("#classify-why").click()
    wait_for_line(page, "classify", "3 parts left out")
    assert page.locator("#classify-view mark.because").count() == 3
