"""Entities corrected in a real browser, and the training data that come of it; names counted over texts."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from app_server import ROOT, clean_environment, save_tiny
from test_page import (  # noqa: F401
    ABSTRACT,
    browser,
    download,
    file_of,
    open_tab,
    page,
    put_file,
    run_tab,
    server,
    wait_for_cells,
    wait_for_line,
)

from biogpt.tasks.counts import names_of, pairs_of, spelling
from biogpt.text.documents import Document
from biogpt.text.export import entities_as
from biogpt.text.results import Entity
from biogpt.training.labelled import read_conll, read_tagged_jsonl
from biogpt.training.objectives import EntityCorpus
from biogpt.ui.annotating import corrected, passage_row, training_file
from biogpt.ui.marks import Mark, marked


def entity(text: str, words: str, label: str, score: float = 0.5) -> Entity:
    start = text.index(words)
    return Entity(label, start, start + len(words), words, score)


def wait_for_marks(opened, expected) -> None:
    """Until these are marked: (label, text)."""
    opened.wait_for_function(
        """expected => JSON.stringify(expected) === JSON.stringify(
            [...document.querySelectorAll("#entities-view mark")].map(
                (mark) => [mark.dataset.label, mark.textContent]))""",
        arg=[list(pair) for pair in expected],
    )


def select_words(opened, words: str) -> None:
    """As by a mouse: a selection in the text, and the button let go."""
    opened.evaluate(
        """words => {
            const body = document.querySelector("#entities-view .view > span");
            const walker = document.createTreeWalker(body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const at = walker.currentNode.data.indexOf(words);
                if (at < 0) continue;
                const range = document.createRange();
                range.setStart(walker.currentNode, at);
                range.setEnd(walker.currentNode, at + words.length);
                getSelection().removeAllRanges();
                getSelection().addRange(range);
                body.dispatchEvent(new PointerEvent("pointerdown", {pointerType: "mouse", bubbles: true}));
                body.dispatchEvent(new PointerEvent("pointerup", {pointerType: "mouse", bubbles: true}));
                return;
            }
            throw words;
        }""",
        words,
    )


def test_an_entity_is_corrected_and_what_is_exported_trains(page, server, tmp_path) -> None:  # noqa: F811
    open_tab(page, "Entities")
    run_tab(page, "entities", ABSTRACT)
    found = server.recognizer(ABSTRACT)
    now = [(each.label, each.text) for each in found]
    wait_for_marks(page, now)
    dialog, view = page.locator(".correcting"), page.locator("#entities-view .view")
    target = found[0]
    wanted = next(kind for kind in ("Disease", "Chemical", "Gene") if kind != target.label)

    page.locator("#entities-view mark").first.click()
    assert dialog.get_by_role("button", name=target.label, exact=True).get_attribute("aria-pressed") == "true"
    dialog.get_by_role("button", name=wanted, exact=True).click()
    wait_for_marks(page, [(wanted, target.text.strip()), *now[1:]])
    page.locator("#corrections", has_text="1 change").wait_for()
    wait_for_cells(page, "entities", 1, [wanted])
    assert page.evaluate("document.activeElement.className").startswith("view"), "the focus comes back"

    page.keyboard.press("Delete")
    wait_for_marks(page, now[1:])
    page.keyboard.press("Control+z")
    wait_for_marks(page, [(wanted, target.text.strip()), *now[1:]])
    page.locator("#entities-undo").click()
    wait_for_marks(page, now)
    assert page.locator("#entities-undo").is_disabled()

    select_words(page, "ethyldop")  # out to the ends of the word
    dialog.get_by_label("Another type").fill("Drug")
    dialog.get_by_label("Another type").press("Enter")
    page.locator("#types").get_by_label("Drug 1").wait_for()
    made = [each for each in json.loads(download(page, "JSON"))[0]["entities"] if each["label"] == "Drug"]
    assert [(each["text"], each["start"]) for each in made] == [("Methyldopa", ABSTRACT.index("Methyldopa"))]
    page.locator("#entities-view mark[data-label=Drug]").click()
    dialog.get_by_role("button", name="Begin a word earlier").click()
    dialog.get_by_role("button", name="Begin a word earlier").click()
    dialog.get_by_role("button", name="Drug", exact=True).click()
    page.locator("#entities-view mark[data-label=Drug]", has_text="α-Methyldopa").wait_for()
    view.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    page.keyboard.press("Escape")
    assert dialog.count() == 0

    page.locator("#entities-text textarea").fill("another passage")
    page.get_by_text("found in another text").wait_for()
    page.locator("#entities-view mark").first.click()
    assert dialog.count() == 0, "what is outdated is not corrected"
    page.locator("#entities-text textarea").fill(ABSTRACT)
    page.get_by_text("found in another text").wait_for(state="hidden")
    page.locator("#entities-keep").click()
    page.locator("#passages", has_text="1 of at most 500 passages").wait_for()
    page.locator("#entities-keep").click()
    page.reload()
    page.locator("#passages", has_text="1 of at most 500 passages").wait_for()
    open_tab(page, "Entities")
    with page.expect_download() as saved:
        page.locator("#passages").get_by_role("button", name="JSONL", exact=True).click()
    assert saved.value.suggested_filename == "training-1-passages.jsonl"
    [tagged] = read_tagged_jsonl(saved.value.path().rename(tmp_path / "checked.jsonl"))
    drugs = [tagged.text[span.start : span.end] for span in tagged.spans if span.label == "Drug"]
    assert (tagged.text, drugs) == (ABSTRACT, ["α-Methyldopa"])
    page.locator("#passages").get_by_role("button", name="Clear", exact=True).click()
    page.get_by_text("Cleared.").wait_for()
    assert not page.locator("#passages").get_by_role("button", name="JSONL", exact=True).is_visible()

    save_tiny(tmp_path / "base")
    command = ["-m", "biogpt", "train", "ner", "--train", str(tmp_path / "checked.jsonl")]
    command += ["--model", str(tmp_path / "base"), "--out", str(tmp_path / "tagger")]
    command += ["--epochs", "1", "--batch-tokens", "400", "--arithmetic", "float32", "--device", "cpu"]
    trained = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    config = json.loads((tmp_path / "tagger" / "best" / "config.json").read_text())
    assert "B-Drug" in config["id2label"].values()


TEXT = "TNF-alpha\r\nbinds e.g. 😀 receptors. It kills Tumour cells."


@pytest.mark.parametrize(
    ("old", "span", "label", "expected"),
    [
        ("TNF-alpha", (0, 3), "Gene", [("Gene", "TNF"), ("Cell", "Tumour cells")]),
        ("TNF-alpha", (0, 9), "", [("Cell", "Tumour cells")]),
        (None, (9, 16), "Verb", [("Gene", "TNF-alpha"), ("Verb", "binds"), ("Cell", "Tumour cells")]),
        (None, (0, len(TEXT)), "All", [("All", TEXT)]),
    ],
)
def test_what_a_correction_leaves(old, span, label, expected) -> None:
    entities = [entity(TEXT, "TNF-alpha", "Gene"), entity(TEXT, "Tumour cells", "Cell")]
    before = next(([e.start, e.end] for e in entities if e.text == old), None)
    left = corrected(TEXT, entities, before, *span, label)
    assert [(each.label, each.text) for each in left] == expected
    assert all(TEXT[each.start : each.end] == each.text for each in left)


@pytest.mark.parametrize(
    ("old", "span", "label", "message"),
    [
        ([1, 2], (0, 3), "Gene", "is gone"),
        (None, (9, 11), "Gene", "only white space"),
        (None, (0, 999), "Gene", "not within the text"),
        (None, (0.5, 3), "Gene", "not within the text"),
        (None, (0, 3), "a type", "no space"),
        (None, (0, 3), 7, "letters"),
    ],
)
def test_a_correction_that_makes_no_sense_is_refused(old, span, label, message) -> None:
    with pytest.raises(ValueError, match=message):
        corrected(TEXT, [entity(TEXT, "TNF-alpha", "Gene")], old, *span, label)


def test_all_formats_of_training_data_are_read_as_they_were_meant(tmp_path) -> None:
    entities = [
        entity(TEXT, "TNF-alpha", "Gene"),
        entity(TEXT, "receptors. It", "X"),
        entity(TEXT, "cell", "Cell"),
    ]
    rows = f"[{passage_row('paper', Document('7', TEXT), entities)}]"
    expected = [(each.label, "".join(each.text.split())) for each in entities]
    for kind in ("jsonl", "conll", "pubtator"):
        name, content = training_file(kind, rows)
        assert name.startswith("training-1-passages.")
        path = tmp_path / name
        path.write_bytes(content)
        texts = EntityCorpus.read(path).texts
        spans = [(s.label, "".join(t.text[s.start : s.end].split())) for t in texts for s in t.spans]
        assert spans == expected, kind
    tokens = [sentence.tokens for sentence in read_conll(tmp_path / "training-1-passages.conll")]
    assert tokens[0][:4] == ("TNF", "-", "alpha", "binds")
    assert tokens[0][-4:] == ("Tumour", "cell", "s", "."), (
        "an entity across two sentences keeps them together"
    )
    assert len(tokens) == 1
    apart = entities_as("conll", [Document("1", TEXT)], [[]]).decode()
    assert apart.count("\n\n") == 2
    for wrong in (
        "7",
        "[]",
        "[7]",
        '[{"id": "1", "text": "a", "entities": [{"start": 0, "end": 9, "label": "X"}]}]',
    ):
        with pytest.raises((ValueError, TypeError)):
            training_file("jsonl", wrong)


def test_names_are_grouped_by_spelling_and_counted_by_text_and_sentence() -> None:
    same = [
        ("TNF-alpha", "TNFα"),
        ("IL-2", "IL 2"),
        ("Mice", "mice"),
        ("receptors", "receptor"),
        ("ﬁbrin", "Fibrin"),
    ]
    assert all(spelling(one) == spelling(other) for one, other in same)
    different = ["IL-2", "IL-12", "virus", "viru", "p53", "p5", "AIDS", "AID", "β", "α"]
    assert all(spelling(one) != spelling(other) for one, other in itertools.combinations(different, 2))
    texts = ["TNF-alpha kills mice. Aspirin helps.", "TNFα kills mice. TNFα helps. Aspirin and TNFα."]
    words = [["TNF-alpha", "mice", "Aspirin"], ["TNFα", "mice", "Aspirin"]]
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    entities = [[entity(t, word, "X") for word in of_t] for t, of_t in zip(texts, words, strict=True)]
    entities[1] += [Entity("X", at, at + 4, "TNFα", 0.5) for at in (17, texts[1].rindex("TNFα"))]
    names = names_of(entities)
    assert [(n.text, n.mentions, n.texts) for n in names] == [
        ("TNFα", 4, 2),
        ("Aspirin", 2, 2),
        ("mice", 2, 2),
    ]
    pairs = [(p.first.text, p.second.text, p.sentences) for p in pairs_of(documents, entities)]
    assert pairs == [("mice", "TNFα", 2), ("Aspirin", "TNFα", 1)]


def test_three_thousand_texts_are_listed_page_by_page(page, server, tmp_path) -> None:  # noqa: F811
    texts = [f"Case {n % 7} took naloxone and clonidine{n % 450}." for n in range(3000)]
    received: list[int] = []
    page.on("response", lambda answer: received.append(int(answer.headers.get("content-length", 0))))
    open_tab(page, "Entities")
    put_file(page, "entities", file_of(tmp_path, texts))
    page.locator("#entities-run").click()
    assert "3,000 texts" in wait_for_line(page, "entities", "Finished")
    found = server.recognizer.batch(texts)
    page.locator("#listing").get_by_label("Names").check()
    names = names_of(found)
    wait_for_cells(page, "entities", 2, [str(names[0].mentions)])
    wait_for_cells(page, "entities", 0, [names[0].text])
    search = page.locator("#entities-search").get_by_role("textbox")
    search.fill("Clonidine17")
    left = sum("clonidine17" in name.text.casefold() for name in names)
    assert 0 < left < len(names)
    page.get_by_text(f"The search leaves {left:,} of {len(names):,} rows").wait_for()
    search.fill("")
    page.locator("#listing").get_by_label("Mentions").check()
    mentions = [each for of_text in found for each in of_text]
    page.get_by_text(f"rows 1 to 200 of {len(mentions):,}").wait_for()
    page.locator("#entities-page input").fill("2")
    page.get_by_text("rows 201 to 400").wait_for()
    wait_for_cells(page, "entities", 1, [mentions[200].text])
    assert page.evaluate("document.documentElement.outerHTML.length") < 2_000_000
    with page.expect_download() as saved:
        page.get_by_role("button", name="Table", exact=True).click()
    assert saved.value.suggested_filename == "texts-mentions.csv"
    assert len(Path(saved.value.path()).read_bytes().splitlines()) == len(mentions) + 1


def test_short_forms_are_listed_and_what_they_stand_for_is_said(page) -> None:  # noqa: F811
    open_tab(page, "Entities")
    run_tab(page, "entities", "Tumour necrosis factor (TNF) rose. TNF <b>fell</b>.")
    shown = page.locator("#entities-view abbr")
    assert set(shown.all_text_contents()) <= {"TNF"}
    assert all(each.get_attribute("title") == "Tumour necrosis factor" for each in shown.all())
    page.locator("#listing").get_by_label("Abbreviations").check()
    wait_for_cells(page, "entities", 1, ["Tumour necrosis factor"])
    wait_for_cells(page, "entities", 3, ["2"])


def test_a_label_stays_with_its_word_and_is_not_turned_round(page) -> None:  # noqa: F811
    def drawn(text: str, words: str) -> str:
        starts = [match.start() for match in re.finditer(re.escape(words), text)]
        return marked(text, [Mark("Gene", at, at + len(words), 0.5) for at in starts], ["Gene"], "entity")

    open_tab(page, "Entities")
    broken = page.evaluate(
        """html => {
            const view = document.querySelector("#entities-view");
            view.innerHTML = html;
            const apart = [];
            for (let width = 150; width < 400; width += 7) {
                view.firstChild.style.width = `${width}px`;
                for (const mark of view.querySelectorAll("mark"))
                    if (mark.getClientRects().length > 1) apart.push(width);
            }
            return apart;
        }""",
        drawn("to be β- or " * 12, "β-"),
    )
    assert broken == []
    page.evaluate(
        "html => { document.querySelector('#entities-view').innerHTML = html; }", drawn("\u202eTNF", "TNF")
    )
    turned = page.locator("#entities-view mark").evaluate(
        """mark => [getComputedStyle(mark), getComputedStyle(mark, "::after")]
            .map(({unicodeBidi, direction}) => `${unicodeBidi} ${direction}`)"""
    )
    assert turned == ["isolate ltr", "isolate ltr"]
