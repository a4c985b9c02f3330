"""The Entities tab: entities marked in place, filtered, counted, listed and saved; and ``/ner``."""

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import gradio as gr

from biogpt.paths import assets
from biogpt.serving.shelf import LazyModel
from biogpt.tasks.entities import EntityRecognizer
from biogpt.text.documents import Document
from biogpt.text.export import ENTITY_FORMATS, entities_as, suffix_of
from biogpt.text.results import Entity
from biogpt.ui.forms import Tab, connect, document_choice, lay_out_form
from biogpt.ui.inputs import Given, as_given, check_names, check_score, passage
from biogpt.ui.marks import Bar, Mark, bars, cut_note, marked, view
from biogpt.ui.results import LOOK_UP, download_buttons, results_table, rows_note, table
from biogpt.ui.runs import QUICK, OnProgress, Run, label_all, last_of
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


@dataclass(frozen=True)
class Found:
    """What a run found, for the filters to choose from.

    Attributes:
        given: what the run was to read.
        types: that the model knows, in the order of the hues.
        entities: of each document that was read.
    """

    given: Given
    types: tuple[str, ...]
    entities: list[list[Entity]]

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


def _look_up(entity: Entity) -> str:
    """A link to the search of a database for the entity's name, which the reader may open; HTML."""
    if entity.label not in _DATABASES:
        return ""
    database, address = _DATABASES[entity.label]
    href = html.escape(address + quote(" ".join(entity.text.split()), safe=""))
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

    def reset(self, found: Found | None, types: list[str] | None = None) -> tuple[Any, ...]:
        """Results, types and documents as components: the first document shown, all types or those given."""
        if found is None:
            return gr.Column(visible=False), gr.skip(), gr.skip()
        return (
            gr.Column(visible=True),
            gr.CheckboxGroup(
                choices=[(kind, kind) for kind in found.types],
                value=[kind for kind in found.types if kind in (types or found.types)],
            ),
            document_choice(found.documents),
        )

    def show(
        self, found: Found | None, types: list[str], min_score: float, index: int | None
    ) -> tuple[Any, ...]:
        """Types with their counts, view, remarks, table and plot of what the filters leave."""
        if found is None:
            return gr.skip(), view("", _HINT), gr.skip(), gr.skip(), gr.skip()
        counts = found.filtered(found.types, min_score).counts()
        shown = found.filtered(types, min_score)
        text, entities = found.documents[index or 0].text, shown.entities[index or 0]
        several = len(found.documents) > 1
        rows = [
            [
                *([document.id] if several else []),
                e.text,
                e.label,
                e.start,
                e.end,
                round(e.score, 3),
                _look_up(e),
            ]
            for document, found_there in zip(shown.documents, shown.entities, strict=True)
            for e in found_there
        ]
        columns = [*(["Id"] if several else []), "Text", "Type", "Start", "End", "Score", LOOK_UP]
        nothing, left = "", shown.counts().total()
        if not found.counts():
            nothing = f"Nothing was found. The model knows these types: {', '.join(found.types)}."
        elif not rows:
            nothing = "No entity is left: lower the score, or choose more types."
        elif left < found.counts().total():
            nothing = (
                f"The filter leaves {left:,} of {found.counts().total():,} entities, in the downloads, too."
            )
        return (
            gr.CheckboxGroup(choices=[(f"{kind} {counts[kind]:,}", kind) for kind in found.types]),
            marked(text, [Mark(e.label, e.start, e.end, e.score) for e in entities], found.types, "entity"),
            remarks(nothing, cut_note(text), rows_note(len(rows))),
            table(columns, rows, [11, 22, 15, 11, 11, 12, 18] if several else [28, 17, 12, 11, 12, 20]),
            _plot(shown),
        )

    def save(self, kind: str, found: Found | None, types: list[str], min_score: float) -> tuple[str, bytes]:
        """Name and content of a file of what the filters leave, in all documents."""
        if found is None:
            raise gr.Error("There is nothing to save yet: find entities first", print_exception=False)
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
        with gr.Column():
            outdated = gr.HTML("", elem_classes="outdated")
            marks = gr.HTML(view("", _HINT), apply_default_css=False, elem_id="entities-view")
            with gr.Column(visible=False) as results:
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
                notes = gr.HTML("")
                listed = results_table("Entities", "entities-table")
                plot = gr.HTML("", elem_id="entities-plot")
                download_buttons(list(ENTITY_FORMATS), [form.found, types, min_score], tagger.save)

    chosen = [form.found, types, min_score, document]
    shown = [types, marks, notes, listed, plot]
    refresh = connect(
        "entities",
        form,
        outdated,
        tagger.find,
        [],
        [(tagger.reset, [form.found, types], [results, types, document]), (tagger.show, chosen, shown)],
    )
    for control in (types, min_score, document):
        control.input(tagger.show, chosen, shown, trigger_mode="always_last", **QUICK)
    gr.api(tagger.ner, api_name="ner", concurrency_id="entities", concurrency_limit=1)
    return Tab({"passage": form.text, "types": types, "score": min_score}, form.file, refresh)


def _entities(recognizer: EntityRecognizer, texts: list[str], progress: OnProgress) -> list[list[Entity]]:
    return recognizer.batch(texts, progress)


def _entities_of(
    types: Sequence[str], recognizer: EntityRecognizer, texts: list[str], progress: OnProgress
) -> list[list[Entity]]:
    """All entities, when the model knows these types."""
    if unknown := [kind for kind in types if kind not in recognizer.types]:
        raise ValueError(f"types has {as_given(unknown)}; this model knows {', '.join(recognizer.types)}")
    return recognizer.batch(texts, progress)


def _plot(found: Found) -> str:
    counts = found.counts()
    most = max(counts.values(), default=1)
    rows = [Bar(kind, counts[kind] / most, f"{counts[kind]:,}") for kind in found.types]
    return bars("Entities by type", rows, found.types)
