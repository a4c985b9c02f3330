"""The Entities tab: entities marked in place, corrected, filtered, counted and saved; and ``/ner``."""

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote

import gradio as gr

from biogpt.paths import assets
from biogpt.serving.shelf import LazyModel
from biogpt.tasks.counts import names_of, pairs_of
from biogpt.tasks.entities import EntityRecognizer
from biogpt.text.abbreviations import abbreviations
from biogpt.text.documents import Document
from biogpt.text.export import ENTITY_FORMATS, entities_as, suffix_of, table_as_csv
from biogpt.text.results import Entity
from biogpt.ui.annotating import (
    MOST_TYPES,
    TRAINING_FORMATS,
    corrected,
    passage_row,
    training_file,
)
from biogpt.ui.forms import Tab, connect, document_choice, lay_out_form
from biogpt.ui.inputs import Given, as_given, check_names, check_score, passage
from biogpt.ui.marks import Bar, Gloss, Mark, bars, cut_note, marked, view
from biogpt.ui.results import LOOK_UP, download_buttons, pages_of, results_table, rows_note, table
from biogpt.ui.runs import QUICK, OnProgress, Run, label_all, last_of
from biogpt.ui.scripts import MARKS_EVENTS, PASSAGES_EVENTS, script
from biogpt.ui.status import REFUSALS, api_error, counted, refusal, remarks, status

EXAMPLES = assets() / "examples" / "entities.jsonl"

# Where the names of a type can be searched for, and the address that the name is added to.
_OLS = "https://www.ebi.ac.uk/ols4/search?ontology="
_DATABASES = {
    "Gene": ("Gene", "https://www.ncbi.nlm.nih.gov/gene/?term="),
    "Disease": ("MeSH", "https://www.ncbi.nlm.nih.gov/mesh/?term="),
    "Chemical": ("ChEBI", f"{_OLS}chebi&q="),
    "Species": ("Taxonomy", "https://www.ncbi.nlm.nih.gov/taxonomy/?term="),
    "CellType": ("Ontology", f"{_OLS}cl&q="),
    "CellLine": ("Cellosaurus", "https://www.cellosaurus.org/search?query="),
}
_HINT = "What is found is marked here. Paste a passage, or take an example, then Find entities."
_HOW = (
    "Choose a mark to correct it, or select words to mark them. By keys: arrows from word to word, with "
    "Shift for several, Enter, Delete, Ctrl + Z."
)
MENTIONS, NAMES, PAIRS, SHORT_FORMS = LISTINGS = ("Mentions", "Names", "Together", "Abbreviations")
_UNDONE = 100  # corrections that can be taken back
_BARS = 12


@dataclass(frozen=True)
class Found:
    """What a run found, for the filters to choose from.

    Attributes:
        given: what the run was to read.
        types: that the model knows, then those of the reader's own, in the order of the hues.
        entities: of each document that was read, as corrected.
        before: the last corrections: which document, and what its entities were.
    """

    given: Given
    types: tuple[str, ...]
    entities: list[list[Entity]]
    before: tuple[tuple[int, list[Entity]], ...] = ()

    @property
    def documents(self) -> Sequence[Document]:
        return self.given.documents[: len(self.entities)]

    def filtered(self, types: Sequence[str], min_score: float) -> "Found":
        """The entities of these types with at least this score."""
        filtered = [
            [entity for entity in entities if entity.label in types and entity.score >= min_score]
            for entities in self.entities
        ]
        return Found(self.given, self.types, filtered)

    def counts(self) -> Counter[str]:
        """How many entities there are of each type."""
        return Counter(entity.label for entities in self.entities for entity in entities)

    def corrected(self, index: int, entities: list[Entity], label: str) -> "Found":
        """With other entities in a document, one of them of this type."""
        types = self.types if label in self.types or not label else (*self.types, label)
        if len(types) > MOST_TYPES:
            raise ValueError(f"There are {MOST_TYPES} types already: take one of them")
        before = (*self.before, (index, self.entities[index]))[-_UNDONE:]
        return replace(self._with(index, entities), types=types, before=before)

    def undone(self) -> "Found":
        """Without the last correction."""
        *before, (index, entities) = self.before
        return replace(self._with(index, entities), before=tuple(before))

    def _with(self, index: int, entities: list[Entity]) -> "Found":
        return replace(self, entities=[*self.entities[:index], entities, *self.entities[index + 1 :]])


def _look_up(label: str, name: str) -> str:
    """A link to the search of a database for an entity's name, which the reader may open; HTML."""
    if label not in _DATABASES:
        return ""
    database, address = _DATABASES[label]
    href = html.escape(address + quote(" ".join(name.split()), safe=""))
    return f'<a href="{href}" target="_blank" rel="noopener noreferrer">{database}</a>'


class Tagger:
    """What the tab does, as Gradio wants it: values of components in, values of components out."""

    def __init__(self, recognizer: LazyModel[EntityRecognizer]) -> None:
        self.recognizer = recognizer

    def find(self, given: Given, before: Found | None) -> Iterator[tuple[str, Any]]:
        """Find the entities of what a run is given; yields status and what was found so far.

        Args:
            before: what an earlier run found of the first documents.
        """
        try:
            yield status("Reading"), before
            done = before.entities if before else []
            with closing(label_all(self.recognizer, given.documents, _entities, done)) as runs:
                for run in runs:
                    found = sum(map(len, run.results))
                    yield run.line(counted(found, "entity", "entities")), self._found(given, run)
        except REFUSALS as error:
            yield refusal(error), gr.skip()  # what was found before stays

    def _found(self, given: Given, run: Run[list[Entity]]) -> Found | None:
        recognizer = self.recognizer.loaded
        return Found(given, recognizer.types, run.results) if recognizer and run.results else None

    def offer(self, found: Found | None) -> Any:
        """The types to choose from: a page that loads anew sends what was chosen before it knows any."""
        return gr.skip() if found is None else gr.CheckboxGroup(choices=list(found.types))

    def reset(self, found: Found | None, types: list[str] | None = None) -> tuple[Any, ...]:
        """Results, types and documents as components: the first document shown, all types or those given."""
        if found is None:
            return gr.Column(visible=False), gr.skip(), gr.skip(), gr.skip()
        return (
            gr.Column(visible=True),
            gr.CheckboxGroup(
                choices=[(kind, kind) for kind in found.types],
                value=[kind for kind in found.types if kind in (types or found.types)],
            ),
            document_choice(found.documents),
            _corrections(found) if found.before else remarks(_HOW),
        )

    def show(
        self,
        found: Found | None,
        types: list[str],
        min_score: float,
        index: int | None,
        listing: str = MENTIONS,
        search: str = "",
        page: float | None = 1,
    ) -> tuple[Any, ...]:
        """Types with their counts, view, remarks, pages, table and plot of what the filters leave."""
        if found is None:
            return gr.skip(), view("", _HINT), *[gr.skip()] * 5
        counts = found.filtered(found.types, min_score).counts()
        shown = found.filtered(types, min_score)
        text, entities = found.documents[index or 0].text, shown.entities[index or 0]
        listed = _listed(shown, listing, index or 0)
        rows = _searched(listed.rows, search)
        pages = pages_of(len(rows))
        at = min(max(1, int(page or 1)), pages)
        nothing, left = "", shown.counts().total()
        if not found.counts():
            nothing = f"Nothing was found. The model knows these types: {', '.join(found.types)}."
        elif not left:
            nothing = "No entity is left: lower the score, or choose more types."
        elif left < found.counts().total():
            nothing = (
                f"The filter leaves {left:,} of {found.counts().total():,} entities, in the downloads, too."
            )
        searched = ""
        if listed.rows and len(rows) < len(listed.rows):
            searched = f"The search leaves {len(rows):,} of {len(listed.rows):,} rows, in the table alone."
        elif not listed.rows and left:
            searched = f"{listing}: none here."
        marks = [Mark(e.label, e.start, e.end, e.score) for e in entities]
        return (
            gr.CheckboxGroup(choices=[(f"{kind} {counts[kind]:,}", kind) for kind in found.types]),
            marked(text, marks, found.types, "entity", _glosses(text), correctable=True),
            remarks(nothing, searched, cut_note(text), rows_note(len(rows), at)),
            gr.Number(value=at, label=f"Page, of {pages:,}", maximum=pages, visible=pages > 1),
            table(listed.columns, rows, listed.widths, at),
            bars(listed.title, listed.bars, found.types),
            gr.Button(interactive=bool(found.before)),
        )

    def correct(
        self, found: Found | None, types: list[str], index: int | None, event: gr.EventData
    ) -> tuple[Any, ...]:
        """Change, add or take out an entity of the text that is shown; ``event`` says which."""
        try:
            if found is None:
                raise ValueError("What was found is gone: find entities again")
            place, label = index or 0, event.label
            text, entities = found.documents[place].text, found.entities[place]
            entities = corrected(text, entities, event.old, event.start, event.end, label)
            found = found.corrected(place, entities, label)
        except REFUSALS as error:
            return gr.skip(), gr.skip(), refusal(error)
        chosen = [kind for kind in found.types if kind in types or kind == label]
        return found, gr.CheckboxGroup(choices=list(found.types), value=chosen), _corrections(found)

    def undo(self, found: Found | None) -> tuple[Any, ...]:
        """Take the last correction back, and show the text that it was made in."""
        if found is None or not found.before:
            return gr.skip(), gr.skip(), status("Nothing to undo")
        back = found.undone()
        return back, gr.Dropdown(value=found.before[-1][0]), _corrections(back)

    def keep(self, found: Found | None, types: list[str], min_score: float, index: int | None) -> str:
        """The text that is shown, with the entities that are marked, as the browser keeps it."""
        if found is None:
            raise gr.Error("There is nothing to keep yet: find entities first", print_exception=False)
        place = index or 0
        entities = found.filtered(types, min_score).entities[place]
        return passage_row(found.given.name, found.documents[place], entities)

    def save_table(
        self,
        kind: str,
        found: Found | None,
        types: list[str],
        min_score: float,
        index: int | None,
        listing: str,
        search: str,
    ) -> tuple[str, bytes]:
        """Name and content of a file of all rows of what is listed."""
        if found is None:
            raise ValueError("There is nothing to save yet: find entities first")
        listed = _listed(found.filtered(types, min_score), listing, index or 0)
        columns = [column for column in listed.columns if column != LOOK_UP]
        rows = [row[: len(columns)] for row in _searched(listed.rows, search)]
        name = found.given.file_name(listing.lower(), len(found.documents), ".csv")
        return name, table_as_csv(columns, rows)

    def save(self, kind: str, found: Found | None, types: list[str], min_score: float) -> tuple[str, bytes]:
        """Name and content of a file of what the filters leave, in all documents."""
        if found is None:
            raise ValueError("There is nothing to save yet: find entities first")
        shown = found.filtered(types, min_score)
        what = "entities" if shown.counts() == found.counts() else "entities-filtered"
        name = found.given.file_name(what, len(found.documents), suffix_of(kind))
        return name, entities_as(kind, shown.documents, shown.entities)

    async def ner(
        self, text: str, types: list[str] | None = None, min_score: float = 0.0
    ) -> list[dict[str, str | int | float]]:
        """Find the named entities of a biomedical text: diseases, chemicals, genes and so on.

        Args:
            text: Up to 2,000,000 characters.
            types: Only these, such as Disease; null for all that the model knows.
            min_score: Only entities with at least this probability, 0 to 1.

        Returns:
            Objects, sorted by start: label (its type), start and end (Unicode characters of the text as
            given, so text[start:end] is the entity), text, and score (probability, 0 to 1).
        """
        try:
            [entities] = await self.entities_of(passage(text), types, min_score)
        except REFUSALS as error:
            raise api_error(error) from error
        return [asdict(entity) for entity in entities]

    async def entities_of(
        self, documents: Sequence[Document], types: list[str] | None, min_score: float
    ) -> list[list[Entity]]:
        """The entities of each document, of these types and with at least this probability."""
        check_score("min_score", min_score)
        check_names("types", types)
        runs = label_all(self.recognizer, documents, partial(_entities_of, types or ()))
        found = self._found(Given("", documents), await last_of(runs))
        assert found is not None, "a run that has ended"
        return found.filtered(found.types if types is None else types, min_score).entities


def entities_tab(recognizer: LazyModel[EntityRecognizer]) -> Tab:
    """Lay the tab out in the Blocks at hand and connect it."""
    tagger = Tagger(recognizer)
    with gr.Row(elem_classes="columns halves"):
        with gr.Column():
            form = lay_out_form(
                "entities",
                label="Passage",
                placeholder="Naloxone reverses the antihypertensive effect of clonidine",
                verb="Find entities",
                examples=EXAMPLES,
            )
            kept_line, kept_row = _lay_out_kept()
        with gr.Column():
            outdated = gr.HTML("", elem_classes="outdated")
            marks = gr.HTML(
                view("", _HINT),
                js_on_load=MARKS_EVENTS,
                apply_default_css=False,
                elem_id="entities-view",
            )
            with gr.Column(visible=False) as results:
                edits = gr.HTML("", elem_id="corrections", elem_classes="corrections")
                with gr.Row(elem_classes="actions"):
                    undo = gr.Button("Undo", size="sm", interactive=False, elem_id="entities-undo")
                    keep = gr.Button("Keep for training", size="sm", elem_id="entities-keep")
                types = gr.CheckboxGroup(
                    [], label="Types", info="Those to show, and how many there are.", elem_id="types"
                )
                with gr.Row():
                    min_score = gr.Slider(
                        0,
                        1,
                        0,
                        step=0.01,
                        label="Score, at least",
                        info="How sure the model has to be. 0: all.",
                    )
                    document = gr.Dropdown(
                        [],
                        label="Text",
                        info="The one marked above.",
                        visible=False,
                        elem_id="entities-document",
                    )
                listing = gr.Radio(
                    list(LISTINGS),
                    value=MENTIONS,
                    label="List",
                    info="Mentions one by one, names counted, names that share a sentence, or short forms.",
                    elem_id="listing",
                )
                with gr.Row():
                    search = gr.Textbox(
                        label="Search",
                        info="Rows with these letters.",
                        max_length=200,
                        elem_id="entities-search",
                    )
                    page = gr.Number(
                        1,
                        label="Page",
                        info="Of the table.",
                        minimum=1,
                        precision=0,
                        visible=False,
                        elem_id="entities-page",
                    )
                notes = gr.HTML("")
                listed = results_table("Entities", "entities-table")
                plot = gr.HTML("", elem_id="entities-plot")
                download_buttons(list(ENTITY_FORMATS), [form.found, types, min_score], tagger.save)
                rows = [form.found, types, min_score, document, listing, search]
                download_buttons(["table"], rows, tagger.save_table, "This list, all rows")

    chosen = [form.found, types, min_score, document, listing, search, page]
    shown = [types, marks, notes, page, listed, plot, undo]
    refresh = connect(
        "entities",
        form,
        outdated,
        tagger.find,
        [],
        [
            (tagger.offer, [form.found], [types]),
            (tagger.reset, [form.found, types], [results, types, document, edits]),
            (tagger.show, chosen, shown),
        ],
    )
    for control in (types, min_score, document, listing, page):
        control.input(tagger.show, chosen, shown, trigger_mode="always_last", **QUICK)
    # Gradio tells of keys as input, but not of what is pasted.
    search.change(tagger.show, chosen, shown, trigger_mode="always_last", **QUICK)
    correcting = marks.select(
        tagger.correct, [form.found, types, document], [form.found, types, edits], **QUICK
    )
    undoing = gr.on([undo.click, marks.undo], tagger.undo, form.found, [form.found, document, edits], **QUICK)
    for event in (correcting, undoing):
        event.then(tagger.show, chosen, shown, **QUICK)
    keep.click(tagger.keep, [form.found, types, min_score, document], kept_row, **QUICK).success(
        None, kept_row, kept_line, js=script("keepPassage")
    )
    gr.api(tagger.ner, api_name="ner", concurrency_id="entities", concurrency_limit=1)
    return Tab({"passage": form.text, "types": types, "score": min_score}, form.file, refresh)


def _lay_out_kept() -> tuple[gr.HTML, gr.Textbox]:
    """What the browser keeps as training data: a line, and what a passage travels in to it."""
    row, rows = gr.Textbox(visible=False), gr.Textbox(visible=False)
    with gr.Column(elem_classes="passages", elem_id="passages"):
        line = gr.HTML("", js_on_load=PASSAGES_EVENTS)
        download_buttons(TRAINING_FORMATS, [rows], training_file, "Training data", js=script("keptPassages"))
        with gr.Row(elem_classes="actions"):
            for label, name in (("Take out the last", "takeOutPassage"), ("Clear", "clearPassages")):
                gr.Button(label, size="sm").click(None, None, line, js=script(name))
    return line, row


def _corrections(found: Found) -> str:
    """The status of what was corrected."""
    return status("Corrected", f"{counted(len(found.before), 'change')} that can be taken back")


@dataclass(frozen=True)
class Listed:
    """A table and its plot."""

    columns: list[str]
    rows: list[list[Any]]
    widths: list[int]
    title: str
    bars: list[Bar]


def _listed(shown: Found, listing: str, index: int) -> Listed:
    """What the reader wants to see listed."""
    return {NAMES: _names, PAIRS: _pairs, SHORT_FORMS: _short_forms}.get(listing, _mentions)(shown, index)


def _mentions(shown: Found, index: int) -> Listed:
    several = len(shown.documents) > 1
    rows = [
        [
            *([document.id] if several else []),
            e.text,
            e.label,
            e.start,
            e.end,
            round(e.score, 3),
            _look_up(e.label, e.text),
        ]
        for document, found_there in zip(shown.documents, shown.entities, strict=True)
        for e in found_there
    ]
    columns = [*(["Id"] if several else []), "Text", "Type", "Start", "End", "Score", LOOK_UP]
    widths = [11, 22, 15, 11, 11, 12, 18] if several else [28, 17, 12, 11, 12, 20]
    counts = shown.counts()
    most = max(counts.values(), default=1)
    lengths = [Bar(kind, counts[kind] / most, f"{counts[kind]:,}") for kind in shown.types]
    return Listed(columns, rows, widths, "Entities by type", lengths)


def _names(shown: Found, index: int) -> Listed:
    names = names_of(shown.entities)
    rows = [[n.text, n.label, n.mentions, n.texts, _look_up(n.label, n.text)] for n in names]
    most = names[0].mentions if names else 1
    lengths = [Bar(n.label, n.mentions / most, f"{n.mentions:,}", said=n.text) for n in names[:_BARS]]
    columns = ["Name", "Type", "Mentions", "Texts", LOOK_UP]
    return Listed(columns, rows, [34, 18, 16, 12, 20], "Names by mentions", lengths)


def _pairs(shown: Found, index: int) -> Listed:
    pairs = pairs_of(shown.documents, shown.entities)
    rows = [[p.first.text, p.first.label, p.second.text, p.second.label, p.sentences] for p in pairs]
    most = pairs[0].sentences if pairs else 1
    lengths = [
        Bar(p.first.label, p.sentences / most, f"{p.sentences:,}", said=f"{p.first.text} – {p.second.text}")
        for p in pairs[:_BARS]
    ]
    columns = ["Name", "Type", "With", "Type of it", "Sentences"]
    return Listed(columns, rows, [26, 16, 26, 16, 16], "Names in one sentence", lengths)


def _short_forms(shown: Found, index: int) -> Listed:
    """The abbreviations of the text that is shown."""
    text = shown.documents[index].text
    found = abbreviations(text)
    types = {(e.start, e.end): e.label for e in shown.entities[index]}
    rows: list[list[Any]] = [
        [
            text[slice(*a.short)],
            " ".join(text[slice(*a.long)].split()),
            types.get(a.long, ""),
            1 + len(a.again),
        ]
        for a in found
    ]
    most = max((row[3] for row in rows), default=1)
    lengths = [Bar(row[2], row[3] / most, f"{row[3]:,}", said=row[0]) for row in rows[:_BARS]]
    columns = ["Short form", "Stands for", "Type", "Times"]
    return Listed(columns, rows, [20, 48, 16, 16], "Short forms in this text", lengths)


def _searched(rows: list[list[Any]], search: str) -> list[list[Any]]:
    """The rows with these letters in what they name."""
    wanted = " ".join(search.casefold().split())
    if not wanted:
        return rows
    return [
        row for row in rows if any(wanted in cell.casefold() for cell in row[:4] if isinstance(cell, str))
    ]


def _glosses(text: str) -> list[Gloss]:
    """What the short forms of a text stand for, at each place, in order."""
    glosses = [
        Gloss(start, end, text[slice(*found.long)])
        for found in abbreviations(text)
        for start, end in (found.short, *found.again)
    ]
    apart: list[Gloss] = []
    for gloss in sorted(glosses):
        if not apart or gloss.start >= apart[-1].end:
            apart.append(gloss)
    return apart


def _entities(recognizer: EntityRecognizer, texts: list[str], progress: OnProgress) -> list[list[Entity]]:
    return recognizer.batch(texts, progress)


def _entities_of(
    types: Sequence[str], recognizer: EntityRecognizer, texts: list[str], progress: OnProgress
) -> list[list[Entity]]:
    """The entities of these types, all where none are named, when the model knows them."""
    if unknown := [kind for kind in types if kind not in recognizer.types]:
        raise ValueError(f"types has {as_given(unknown)}; this model knows {', '.join(recognizer.types)}")
    return recognizer.batch(texts, progress, types)
