"""The Classify tab: labels of texts, roles of sentences, labels of one's own; and ``/classify``."""

import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import gradio as gr

from biogpt.paths import assets
from biogpt.serving.shelf import LazyModel, OnShelf, Shelf
from biogpt.serving.text_generator import TextGenerator
from biogpt.tasks.classification import TextClassifier
from biogpt.text.documents import Document
from biogpt.text.export import CLASS_FORMATS, classes_as, sentences_as, suffix_of
from biogpt.text.plain import is_blank
from biogpt.text.results import Classification, SentenceLabel
from biogpt.text.sentences import sentence_spans
from biogpt.ui.forms import Tab, connect, document_choice, lay_out_form
from biogpt.ui.inputs import Given, as_given, check_names, check_score, passage
from biogpt.ui.judging import judged
from biogpt.ui.marks import Bar, Mark, Reason, bars, because, cut_note, marked, view
from biogpt.ui.results import download_buttons, results_table, rows_note, table
from biogpt.ui.runs import QUICK, OnProgress, Run, label_all, last_of
from biogpt.ui.scripts import script
from biogpt.ui.status import REFUSALS, api_error, counted, refusal, remarks, status

EXAMPLES = assets() / "examples" / "classify.jsonl"
THRESHOLD = 0.5
MOST_LABELS = 50  # of one's own: each is read after the text

Span = tuple[int, int]
Task = Literal["texts", "sentences", "own"]
TASKS: tuple[Task, ...] = ("texts", "sentences", "own")

_TITLES = {"mini-hoc": "Hallmarks of cancer", "mini-rct": "Sentence roles"}
_HINT = "What is found shows here. Paste an abstract, or take an example, then Classify."
_EXCERPT = 100  # characters of a text in the table
MOST_READ = 400_000  # characters in all, to see what decided: a minute or two, small model
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Labelled:
    """What a run found.

    Attributes:
        given: what the run was to read.
        labels: that the model knows, in the order of the hues.
        multi_label: whether a text may have several, or none.
        texts: scores of all labels of each document; empty where sentences were labelled.
        sentences: labels of the sentences of each document; empty where whole texts were.
        left_out: by the place of a document, its parts and how it scores without each.
    """

    given: Given
    labels: tuple[str, ...]
    multi_label: bool
    texts: Sequence[Classification] = ()
    sentences: Sequence[Sequence[SentenceLabel]] = ()
    left_out: Mapping[int, Sequence[tuple[Span, Classification]]] = field(default_factory=dict)

    @property
    def documents(self) -> Sequence[Document]:
        return self.given.documents[: max(len(self.texts), len(self.sentences))]

    def assigned(self, result: Classification, threshold: float) -> list[str]:
        """The labels that a text gets: the likeliest, or all that reach the threshold."""
        if self.multi_label:
            return [label.label for label in result.scores if label.score >= threshold]
        return [result.scores[0].label]


class Labeller:
    """What the tab does, as Gradio wants it: values of components in, values of components out.

    Args:
        texts, sentences: trained heads for whole texts, and for the sentences of an abstract.
        shelf: of the language models that compare labels of one's own.
    """

    def __init__(
        self,
        texts: LazyModel[TextClassifier],
        sentences: LazyModel[TextClassifier],
        shelf: Shelf,
    ) -> None:
        self.texts, self.sentences, self.shelf = texts, sentences, shelf

    def label(self, given: Given, before: Labelled | None) -> Iterator[tuple[str, Any]]:
        """Label what a run is given; yields status and what was found so far.

        Args:
            given: its settings are the task, labels of one's own, one a line or with commas between, and the
                name of the visitor's language model.
            before: what an earlier run found of the first documents.
        """
        task, own_labels, model = given.settings
        try:
            labels = _own_labels(re.split(r"[,;\n]", own_labels)) if task == "own" else ()
            yield status("Reading"), before
            done = [*before.texts, *before.sentences] if before else []
            with closing(self._runs(given.documents, task, labels, model, done)) as runs:
                for run in runs:
                    yield run.line(), self._labelled(given, run, task, labels)
        except REFUSALS as error:
            yield refusal(error), gr.skip()  # what was found before stays

    def explain(self, found: Labelled | None, index: int | None) -> Iterator[tuple[str, Any]]:
        """See what decided: label the text that is shown again, without each of its sentences in turn.

        Of a text that is one sentence each word is left out. Yields status and what was found so far.
        """
        try:
            if found is None or not found.texts:
                raise ValueError("What decided is told of whole texts: classify one, by its labels")
            task, _, model = found.given.settings
            labels = found.labels if task == "own" else ()
            place = index or 0
            text = found.documents[place].text
            parts = parts_of(text)
            without = [Document(str(start), text[:start] + text[end:]) for start, end in parts]
            yield status("Reading"), gr.skip()
            with closing(self._runs(without, task, labels, model)) as runs:
                for run in runs:
                    scores = list(zip(parts, run.results, strict=False))
                    line = run.line(counted(len(parts), "part") + " left out, one at a time")
                    yield (
                        line,
                        replace(found, left_out={**found.left_out, place: scores})
                        if run.ended
                        else gr.skip(),
                    )
        except REFUSALS as error:
            yield refusal(error), gr.skip()

    def _runs(
        self,
        documents: Sequence[Document],
        task: Task,
        labels: tuple[str, ...],
        model: str | None,
        done: Sequence[Any] = (),
    ) -> Generator[Run[Any], None, None]:
        if task == "own":
            return label_all(OnShelf(self.shelf, model), documents, partial(_compared, labels), done)
        if task == "sentences":
            return label_all(self.sentences, documents, _by_sentence, done)
        return label_all(self.texts, documents, _classified, done)

    def _labelled(self, given: Given, run: Run[Any], task: Task, labels: tuple[str, ...]) -> Labelled | None:
        classifier = (self.sentences if task == "sentences" else self.texts).loaded
        if not run.results:
            return None
        if task == "own":
            return Labelled(given, labels, False, texts=run.results)
        assert classifier is not None, "results without a model"
        if task == "sentences":
            return Labelled(given, classifier.labels, False, sentences=run.results)
        return Labelled(given, classifier.labels, classifier.multi_label, texts=run.results)

    def reset(self, found: Labelled | None) -> tuple[Any, ...]:
        """Results, threshold and documents as components: the first document shown."""
        if found is None:
            return gr.Column(visible=False), *[gr.skip()] * 3
        return (
            gr.Column(visible=True),
            gr.Slider(visible=found.multi_label),
            document_choice(found.documents),
            gr.Button(visible=not found.sentences),
        )

    def show(
        self, found: Labelled | None, threshold: float, index: int | None, label: str | None = None
    ) -> tuple[Any, ...]:
        """View, plot, remarks, table, the label whose reasons are shown, and a judgement by given labels.

        Args:
            label: whose reasons are wanted; None or another text's: those of the likeliest.
        """
        if found is None:
            return gr.HTML(view("", _HINT), visible=True), *[gr.skip()] * 5
        place = index or 0
        draw = _sentences_shown if found.sentences else _texts_shown
        parts = draw(found, threshold, place)
        assigned = [found.assigned(result, threshold) for result in found.texts]
        score = judged(found.documents, assigned, found.labels, found.multi_label)
        if place not in found.left_out:
            return *parts, gr.Dropdown(visible=False), score
        whole = found.texts[place]
        wanted = label if label in found.labels else whole.scores[0].label
        return (
            gr.HTML(_reasons(found, place, wanted), visible=True),
            *parts[1:],
            gr.Dropdown(choices=[entry.label for entry in whole.scores], value=wanted, visible=True),
            score,
        )

    def save(self, kind: str, found: Labelled | None) -> tuple[str, bytes]:
        """Name and content of a file of all results."""
        if found is None:
            raise ValueError("There is nothing to save yet: classify a text first")
        what = "sentences" if found.sentences else "labels"
        name = found.given.file_name(what, len(found.documents), suffix_of(kind))
        if found.sentences:
            return name, sentences_as(kind, found.documents, found.sentences)
        return name, classes_as(kind, found.documents, found.texts)

    async def classify(
        self,
        text: str,
        task: Task = "texts",
        labels: list[str] | None = None,
        threshold: float = 0.0,
        model: str | None = None,
    ) -> list[dict[str, str | int | float]]:
        """Classify a biomedical text, or the sentences of an abstract.

        The task is "texts" for labels of the whole text (by default the hallmarks of cancer that it shows),
        "sentences" for the role of each sentence (background, objective, methods, results, conclusions), or
        "own" for labels that you give, compared by a language model.

        Args:
            text: Up to 2,000,000 characters.
            task: "texts", "sentences" or "own".
            labels: Two or more phrases to compare, such as "heart disease" and "cancer"; task "own".
            threshold: Only labels with at least this score, 0 to 1.
            model: The language model that compares your labels; null is the page's own.

        Returns:
            Objects with label and score (probability, 0 to 1), highest first; of sentences in the order of
            the text, with start, end (Unicode characters of the text as given) and text as well.
        """
        try:
            [rows] = await self.labels_of(passage(text), task, labels, threshold, model)
        except REFUSALS as error:
            raise api_error(error) from error
        return rows

    async def labels_of(
        self,
        documents: Sequence[Document],
        task: Task,
        labels: list[str] | None,
        threshold: float,
        model: str | None,
    ) -> list[list[dict[str, str | int | float]]]:
        """What ``classify`` returns, of each document."""
        check_names("labels", labels)
        if task not in TASKS:
            raise ValueError(f"task is {as_given(task)}; expected one of {', '.join(TASKS)}")
        if labels is not None and task == "sentences":
            raise ValueError("labels of your own are for whole texts; leave out labels, or the task")
        check_score("threshold", threshold)
        task = task if labels is None else "own"
        own = _own_labels(labels or []) if task == "own" else ()
        last = await last_of(self._runs(documents, task, own, model))
        found = []
        for document, result in zip(documents, last.results, strict=True):
            if task == "sentences":
                spans = [(sentence, document.text[sentence.start : sentence.end]) for sentence in result]
                rows = [asdict(sentence) | {"text": text} for sentence, text in spans]
            else:
                rows = [asdict(label) for label in result.scores]
            found.append([row for row in rows if row["score"] >= threshold])
        return found


def classify_tab(
    texts: LazyModel[TextClassifier],
    sentences: LazyModel[TextClassifier],
    shelf: Shelf,
    model: gr.State,
) -> Tab:
    """Lay the tab out in the Blocks at hand and connect it.

    Args:
        texts, sentences, shelf: as in ``Labeller``.
        model: the name of the visitor's language model.
    """
    labeller = Labeller(texts, sentences, shelf)
    with gr.Row(elem_classes="columns halves"):
        with gr.Column():
            task, own_labels = _lay_out_task(texts, sentences)
            form = lay_out_form(
                "classify",
                label="Abstract",
                placeholder="BACKGROUND: A concern persists that",
                verb="Classify",
                examples=EXAMPLES,
                settings=[task],
            )
        with gr.Column():
            outdated = gr.HTML("", elem_classes="outdated")
            marks = gr.HTML(view("", _HINT), apply_default_css=False, elem_id="classify-view")
            with gr.Column(visible=False) as results:
                with gr.Row():
                    threshold = gr.Slider(
                        0,
                        1,
                        THRESHOLD,
                        step=0.01,
                        label="Threshold",
                        info="A text gets the labels that score at least this.",
                    )
                    document = gr.Dropdown(
                        [],
                        label="Text",
                        info="The one shown here.",
                        visible=False,
                        elem_id="classify-document",
                    )
                plot = gr.HTML("", elem_id="classify-plot")
                with gr.Row(elem_classes="actions"):
                    why = gr.Button("What decided?", size="sm", elem_id="classify-why")
                reasons = gr.Dropdown(
                    [],
                    label="What decided",
                    info="For this label: how much its score falls without each part of the text.",
                    visible=False,
                    elem_id="classify-reasons",
                )
                judgement = gr.HTML("", elem_id="classify-judged")
                notes = gr.HTML("")
                listed = results_table("Results", "classify-table")
                download_buttons(list(CLASS_FORMATS), [form.found], labeller.save)

    chosen = [form.found, threshold, document, reasons]
    shown = [marks, plot, notes, listed, reasons, judgement]
    refresh = connect(
        "classify",
        form,
        outdated,
        labeller.label,
        [task, own_labels, model],
        [
            (labeller.reset, [form.found], [results, threshold, document, why]),
            (labeller.show, chosen, shown),
        ],
        [(why, labeller.explain, [form.found, document])],
    )
    for control in (threshold, document, reasons):
        control.input(labeller.show, chosen, shown, trigger_mode="always_last", **QUICK)
    gr.api(labeller.classify, api_name="classify", concurrency_id="classes", concurrency_limit=1)
    controls: dict[str, Any] = {
        "task": task,
        "labels": own_labels,
        "abstract": form.text,
        "threshold": threshold,
    }
    return Tab(controls, form.file, refresh)


def _lay_out_task(
    texts: LazyModel[TextClassifier], sentences: LazyModel[TextClassifier]
) -> tuple[gr.Radio, gr.Textbox]:
    """The choice of a task, and the labels that one of them needs."""
    choices = [("Labels of your own", "own")]
    if sentences.expected:
        choices.insert(0, (_TITLES.get(sentences.name, f"Sentences, {sentences.name}"), "sentences"))
    if texts.expected:
        choices.insert(0, (_TITLES.get(texts.name, f"Labels of {texts.name}"), "texts"))
    task = gr.Radio(
        choices,
        value=choices[0][1],
        label="Task",
        info="Which labels a text, or each of its sentences, can get.",
        elem_id="task",
    )
    own_labels = gr.Textbox(
        label="Labels of your own",
        info="Phrases that your language model compares, untrained: one a line, or with commas between.",
        value="heart disease, cancer, infection, diabetes",
        lines=2,
        visible=choices[0][1] == "own",
        elem_id="own-labels",
    )
    task.change(None, task, own_labels, js=script("visibleWhen", "own"))
    return task, own_labels


def _classified(classifier: TextClassifier, texts: list[str], progress: OnProgress) -> list[Classification]:
    return classifier.batch(texts, progress)


def _compared(
    labels: tuple[str, ...], generator: TextGenerator, texts: list[str], progress: OnProgress
) -> list[Classification]:
    classifier = TextClassifier(generator.model, generator.tokenizer, labels)
    found: list[Classification] = []
    for text in texts:
        progress(len(found), len(texts))
        found.append(generator.run(partial(classifier.classify, text)))
    return found


def _by_sentence(
    classifier: TextClassifier, texts: list[str], progress: OnProgress
) -> list[list[SentenceLabel]]:
    found: list[list[SentenceLabel]] = []
    for text in texts:
        progress(len(found), len(texts))
        found.append(classifier.sentences(text, progress=progress))
    return found


def _sentences_shown(found: Labelled, threshold: float, index: int) -> tuple[Any, ...]:
    """View, plot, remarks and table; sentences have no threshold."""
    text = found.documents[index].text
    marks = [Mark(s.label, s.start, s.end, s.score) for s in found.sentences[index]]
    counts = Counter(mark.label for mark in marks)
    lengths = [
        Bar(label, counts[label] / len(marks), counted(counts[label], "sentence")) for label in found.labels
    ]
    several = len(found.documents) > 1
    rows = [
        [*([document.id] if several else []), s.label, round(s.score, 3), document.text[s.start : s.end]]
        for document, sentences in zip(found.documents, found.sentences, strict=True)
        for s in sentences
    ]
    return (
        gr.HTML(marked(text, marks, found.labels, "sentence"), visible=True),
        bars("Sentences by label", lengths, found.labels),
        remarks(cut_note(text), rows_note(len(rows))),
        table(
            [*(["Id"] if several else []), "Label", "Score", "Sentence"],
            rows,
            widths=[14, 24, 14, 48] if several else [27, 15, 58],
        ),
    )


def _texts_shown(found: Labelled, threshold: float, index: int) -> tuple[Any, ...]:
    """View, plot, remarks and table; one text needs a plot alone."""
    text, result = found.documents[index].text, found.texts[index]
    chosen = found.assigned(result, threshold)
    scores = [(label.label, label.score) for label in result.scores]
    lengths = [Bar(label, score, f"{score:.2f}", label in chosen) for label, score in scores]
    windows = f"Read in {result.windows} overlapping windows." if result.windows > 1 else ""
    cut = f"The last {counted(result.cut, 'token')} did not fit and were not read." if result.cut else ""
    rows = [
        [
            document.id,
            ", ".join(found.assigned(scores, threshold)) or "none",
            round(scores.scores[0].score, 3),
            document.text[:_EXCERPT],
        ]
        for document, scores in zip(found.documents, found.texts, strict=True)
    ]
    several = len(rows) > 1
    return (
        gr.HTML(marked(text, [], found.labels, "sentence"), visible=several),  # one's own text needs no echo
        bars(f"Labels: {', '.join(chosen) or f'none reaches {threshold:.2f}'}", lengths, found.labels),
        remarks(windows, cut, cut_note(text) if several else "", rows_note(len(rows))),
        table(["Id", "Labels", "Highest", "Text"], rows if several else [], widths=[14, 36, 16, 34]),
    )


def parts_of(text: str) -> list[Span]:
    """The sentences of a text, or where it is one, its words.

    Raises:
        ValueError: it is one word, or leaving out each part would read more than ``MOST_READ`` characters.
    """
    parts = [span for span in sentence_spans(text) if not is_blank(text[: span[0]] + text[span[1] :])]
    if len(parts) < 2:
        words = [match.span() for match in _WORD.finditer(text)]
        parts = [span for span in words if not is_blank(text[: span[0]] + text[span[1] :])]
    if not parts:
        raise ValueError("The text is one word: there is nothing to leave out")
    if len(parts) * len(text) > MOST_READ:
        raise ValueError(
            f"The text has {len(parts):,} parts and {len(text):,} characters: to leave out each would read "
            f"{len(parts) * len(text):,} in all, and {MOST_READ:,} are the most. Give a part of it"
        )
    return parts


def _reasons(found: Labelled, place: int, label: str) -> str:
    """The text with how much its score for a label falls without each part."""

    def score(result: Classification) -> float:
        return next(entry.score for entry in result.scores if entry.label == label)

    whole = score(found.texts[place])
    reasons = [Reason(*span, whole - score(without)) for span, without in found.left_out[place]]
    return because(found.documents[place].text, reasons, label, whole, found.labels)


def _own_labels(given: Sequence[str]) -> tuple[str, ...]:
    """Labels without white space around them, empty ones and repeats.

    Raises:
        ValueError: there are fewer than two, or more than ``MOST_LABELS``.
    """
    labels = tuple(dict.fromkeys(label.strip() for label in given if not is_blank(label)))
    if not 2 <= len(labels) <= MOST_LABELS:
        raise ValueError(
            f"Labels of your own given: {len(labels)}; give 2 to {MOST_LABELS} different ones, one a line"
        )
    return labels
