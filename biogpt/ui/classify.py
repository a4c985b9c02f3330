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
from biogpt.serving.service import TextService
from biogpt.serving.shelf import LazyModel, OnShelf, Shelf
from biogpt.tasks.classification import TextClassifier, compared
from biogpt.text.documents import Document
from biogpt.text.export import CLASS_FORMATS, classes_as, sentences_as, suffix_of, zipped
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

_FILES: dict[Task, str] = {"texts": "labels", "sentences": "sentences", "own": "own-labels"}
_TITLES = {"mini-hoc": "Hallmarks of cancer", "mini-rct": "Sentence roles"}
_HINT = "What is found shows here. Paste an abstract, or take an example, then Classify."
_EXCERPT = 100  # characters of a text in the table
MOST_READ = 400_000  # characters in all, to see what decided: a minute or two, small model
_WORD = re.compile(r"\S+")
_SENTENCES = 200  # of a text, to choose one from


@dataclass(frozen=True)
class Labelled:
    """What a run found of one task.

    Attributes:
        title: of the task.
        labels: that the model knows, in the order of the hues.
        multi_label: whether a text may have several, or none.
        texts: scores of all labels of each document; empty where sentences were labelled.
        sentences: labels of the sentences of each document; empty where whole texts were.
        left_out: by the place of a document, its parts and how it scores without each.
    """

    title: str
    labels: tuple[str, ...]
    multi_label: bool
    texts: Sequence[Classification] = ()
    sentences: Sequence[Sequence[SentenceLabel]] = ()
    left_out: Mapping[int, Sequence[tuple[Span, Classification]]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many documents were read: the first ones."""
        return max(len(self.texts), len(self.sentences))

    def assigned(self, result: Classification, threshold: float) -> list[str]:
        """The labels that a text gets: the likeliest, or all that reach the threshold."""
        if self.multi_label:
            return [label.label for label in result.scores if label.score >= threshold]
        return [result.scores[0].label]


@dataclass(frozen=True)
class Found:
    """What a run found.

    Attributes:
        given: what the run was to read.
        by_task: by the tasks that were asked for, those that anything was found of; read one after another.
    """

    given: Given
    by_task: Mapping[Task, Labelled]

    @property
    def documents(self) -> Sequence[Document]:
        """Those that all tasks have read."""
        all_begun = len(self.by_task) == len(_asked(self.given))
        return self.given.documents[: min(map(len, self.by_task.values())) if all_begun else 0]

    @property
    def shown(self) -> Sequence[Document]:
        """Those that any task has read."""
        return self.given.documents[: max(map(len, self.by_task.values()))]

    @property
    def whole_texts(self) -> dict[Task, Labelled]:
        return {task: labelled for task, labelled in self.by_task.items() if labelled.texts}

    def but(self, task: Task, labelled: Labelled) -> "Found":
        return replace(self, by_task={**self.by_task, task: labelled})


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

    def label(self, given: Given, before: Found | None) -> Iterator[tuple[Any, Any]]:
        """Label what a run is given; yields status and what was found so far.

        Args:
            given: its settings are the tasks, labels of one's own, one a line or with commas between, and the
                name of the visitor's language model.
            before: what an earlier run found of the first documents.
        """
        try:
            tasks = _asked(given)
            _, own_labels, model = given.settings
            if not tasks:
                raise ValueError("No task is ticked: tick one, or several")
            labels = _own_labels(re.split(r"[,;\n]", own_labels)) if "own" in tasks else ()
            yield status("Reading"), before
            found, seconds = before, 0.0
            for task in tasks:
                earlier = before.by_task.get(task) if before else None
                done = [*earlier.texts, *earlier.sentences] if earlier else []
                with closing(self._runs(given.documents, task, labels, model, done)) as runs:
                    for run in runs:
                        labelled = self._labelled(run, task, labels)
                        if labelled is not None:
                            found = found.but(task, labelled) if found else Found(given, {task: labelled})
                        so_far = replace(run, seconds=seconds + run.seconds)
                        what = f"{self.title(task)}" if len(tasks) > 1 and not run.ended else ""
                        goes_on = run.ended and task != tasks[-1]
                        yield gr.skip() if goes_on else so_far.line(what), found
                seconds += run.seconds
        except REFUSALS as error:
            yield refusal(error), gr.skip()  # what was found before stays

    def title(self, task: Task) -> str:
        """What a task is called on the page."""
        if task == "own":
            return "Labels of your own"
        name = (self.texts if task == "texts" else self.sentences).name
        return _TITLES.get(name, f"Labels of {name}" if task == "texts" else f"Sentences, {name}")

    def explain(
        self, found: Found | None, index: int | None, sentence: int | None = -1
    ) -> Iterator[tuple[Any, Any]]:
        """See what decided: label the text that is shown again, without each of its sentences in turn.

        Of a text that is one sentence each word is left out. Yields status and what was found so far.

        Args:
            sentence: the place of one whose words are left out instead; -1 is none.
        """
        try:
            if found is None or not found.whole_texts:
                raise ValueError("What decided is told of whole texts: classify one, by its labels")
            place, seconds = index or 0, 0.0
            text = found.shown[place].text
            parts = parts_of(text, -1 if sentence is None else sentence)
            without = [Document(str(start), text[:start] + text[end:]) for start, end in parts]
            yield status("Reading"), gr.skip()
            for task, labelled in found.whole_texts.items():
                labels = labelled.labels if task == "own" else ()
                with closing(self._runs(without, task, labels, found.given.settings[-1])) as runs:
                    for run in runs:
                        so_far = replace(run, seconds=seconds + run.seconds)
                        line = so_far.line(counted(len(parts), "part") + " left out, one at a time")
                        if not run.ended:
                            yield line, gr.skip()
                scores = list(zip(parts, run.results, strict=True))
                left_out = {**labelled.left_out, place: scores}
                found, seconds = found.but(task, replace(labelled, left_out=left_out)), seconds + run.seconds
            yield line, found
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

    def _labelled(self, run: Run[Any], task: Task, labels: tuple[str, ...]) -> Labelled | None:
        classifier = (self.sentences if task == "sentences" else self.texts).loaded
        if not run.results:
            return None
        title = self.title(task)
        if task == "own":
            return Labelled(title, labels, False, texts=run.results)
        assert classifier is not None, "results without a model"
        if task == "sentences":
            return Labelled(title, classifier.labels, False, sentences=run.results)
        return Labelled(title, classifier.labels, classifier.multi_label, texts=run.results)

    def reset(self, found: Found | None) -> tuple[Any, ...]:
        """Results, threshold and documents as components: the first document shown."""
        if found is None:
            return gr.Column(visible=False), *[gr.skip()] * 3
        return (
            gr.Column(visible=True),
            gr.Slider(visible=any(labelled.multi_label for labelled in found.by_task.values())),
            document_choice(found.shown),
            gr.Row(visible=bool(found.whole_texts)),
        )

    def sentence_choice(self, found: Found | None, index: int | None) -> Any:
        """The sentences whose words can be left out, of the text that is shown."""
        text = found.shown[index or 0].text if found is not None else ""
        spans = sentence_spans(text)[:_SENTENCES]
        choices = [
            (f"Words of {number}: {' '.join(text[start : start + 60].split())[:40]}", number - 1)
            for number, (start, _) in enumerate(spans, start=1)
        ]
        return gr.Dropdown(choices=[("Each sentence", -1), *choices], value=-1, visible=len(spans) > 1)

    def show(
        self, found: Found | None, threshold: float, index: int | None, label: str | None = None
    ) -> tuple[Any, ...]:
        """View, plot, remarks, table, the label whose reasons are shown, and a judgement by given labels.

        Args:
            label: whose reasons are wanted; None or another text's: those of the likeliest.
        """
        if found is None:
            return gr.HTML(view("", _HINT), visible=True), *[gr.skip()] * 5
        place = index or 0
        several = len(found.by_task) > 1
        marks, plots, notes, judgements = [], [], [], []
        rows: list[list[Any]] = []
        for labelled in found.by_task.values():
            draw = _sentences_shown if labelled.sentences else _texts_shown
            shown = draw(found.shown, labelled, threshold, place, f"{labelled.title}: " if several else "")
            marks.append(shown.marks)
            plots.append(shown.plot)
            notes += shown.notes
            rows += [[labelled.title, *row] if several else row for row in shown.rows]
            assigned = [labelled.assigned(result, threshold) for result in labelled.texts]
            judgements.append(judged(found.shown, assigned, labelled.labels, labelled.multi_label))
        explained = {
            label: labelled
            for labelled in reversed(found.whole_texts.values())
            if place in labelled.left_out
            for label in reversed([entry.label for entry in labelled.texts[place].scores])
        }
        names = list(reversed(explained))
        wanted = label if label in explained else names[0] if names else None
        if wanted is not None:
            marks.insert(0, _reasons(found.shown[place].text, explained[wanted], place, wanted))
        echo = not any(marks) and len(found.given.documents) > 1  # one's own text needs none
        text = found.shown[place].text
        drawn = [marked(text, [], (), "sentence")] if echo else list(filter(None, marks))
        cut = cut_note(text) if drawn else ""
        return (
            gr.HTML("".join(drawn), visible=bool(drawn)),
            "".join(plots),
            remarks(*notes, cut, rows_note(len(rows))),
            _table(rows, found, several),
            gr.Dropdown(choices=names, value=wanted, visible=wanted is not None),
            "".join(judgements),
        )

    def save(self, kind: str, found: Found | None) -> tuple[str, bytes]:
        """Name and content of a file of all results; of several tasks a .zip of a file for each."""
        if found is None:
            raise ValueError("There is nothing to save yet: classify a text first")
        files = {}
        for task, labelled in found.by_task.items():
            what, documents = _FILES[task], found.given.documents[: len(labelled)]
            name = found.given.file_name(what, len(labelled), suffix_of(kind))
            files[name] = (
                sentences_as(kind, documents, labelled.sentences)
                if labelled.sentences
                else classes_as(kind, documents, labelled.texts)
            )
        if len(files) == 1:
            [(name, content)] = files.items()
            return name, content
        name = found.given.file_name("results", len(found.documents), f"{suffix_of(kind)}.zip")
        return name, zipped(files)

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
            task, own_labels = _lay_out_task(labeller)
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
                with gr.Row(elem_classes="actions why") as why_row:
                    why = gr.Button("What decided?", size="sm", elem_id="classify-why")
                    parts = gr.Dropdown(
                        [],
                        label="Leave out one by one",
                        show_label=False,
                        container=False,
                        visible=False,
                        elem_id="classify-parts",
                    )
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
            (labeller.reset, [form.found], [results, threshold, document, why_row]),
            (labeller.sentence_choice, [form.found, document], [parts]),
            (labeller.show, chosen, shown),
        ],
        [(why, labeller.explain, [form.found, document, parts])],
    )
    document.input(labeller.sentence_choice, [form.found, document], parts, **QUICK)
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


def _lay_out_task(labeller: Labeller) -> tuple[gr.CheckboxGroup, gr.Textbox]:
    """The choice of tasks, and the labels that one of them needs."""
    offered = {"texts": labeller.texts.expected, "sentences": labeller.sentences.expected, "own": True}
    choices = [(labeller.title(task), task) for task in TASKS if offered[task]]
    task = gr.CheckboxGroup(
        choices,
        value=[choices[0][1]],
        label="Tasks",
        info="Which labels a text, or each of its sentences, can get; one task, or several at once.",
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
    task.change(None, task, own_labels, js=script("visibleWith", "own"))
    return task, own_labels


def _classified(classifier: TextClassifier, texts: list[str], progress: OnProgress) -> list[Classification]:
    return classifier.batch(texts, progress)


def _compared(
    labels: tuple[str, ...], generator: TextService, texts: list[str], progress: OnProgress
) -> list[Classification]:
    found: list[Classification] = []
    for text in texts:
        progress(len(found), len(texts))
        found.append(generator.ask(compared, labels, text))
    return found


def _by_sentence(
    classifier: TextClassifier, texts: list[str], progress: OnProgress
) -> list[list[SentenceLabel]]:
    found: list[list[SentenceLabel]] = []
    for text in texts:
        progress(len(found), len(texts))
        found.append(classifier.sentences(text, progress=progress))
    return found


@dataclass(frozen=True)
class _Shown:
    """One task's part of the page: HTML of a text and its marks, of a plot, remarks, rows of the table."""

    marks: str
    plot: str
    notes: list[str]
    rows: list[list[Any]]


def _asked(given: Given) -> list[Task]:
    """The tasks that are ticked, in the order in which they are read."""
    return [task for task in TASKS if task in given.settings[0]]


def _sentences_shown(
    documents: Sequence[Document], found: Labelled, threshold: float, index: int, title: str
) -> _Shown:
    """Sentences have no threshold."""
    read = found.sentences[index] if index < len(found) else []
    marks = [Mark(s.label, s.start, s.end, s.score) for s in read]
    counts = Counter(mark.label for mark in marks)
    lengths = [
        Bar(label, counts[label] / len(marks) if marks else 0.0, counted(counts[label], "sentence"))
        for label in found.labels
    ]
    rows = [
        [document.id, s.label, round(s.score, 3), document.text[s.start : s.end]]
        for document, sentences in zip(documents, found.sentences, strict=False)
        for s in sentences
    ]
    drawn = marked(documents[index].text, marks, found.labels, "sentence") if marks else ""
    return _Shown(drawn, bars(f"{title}Sentences by label", lengths, found.labels), [], rows)


def _texts_shown(
    documents: Sequence[Document], found: Labelled, threshold: float, index: int, title: str
) -> _Shown:
    """One text needs a plot alone."""
    rows = [
        [
            document.id,
            ", ".join(found.assigned(scores, threshold)) or "none",
            round(scores.scores[0].score, 3),
            document.text[:_EXCERPT],
        ]
        for document, scores in zip(documents, found.texts, strict=False)
    ]
    if index >= len(found):
        return _Shown("", "", [], rows)
    result = found.texts[index]
    chosen = found.assigned(result, threshold)
    scores = [(label.label, label.score) for label in result.scores]
    lengths = [Bar(label, score, f"{score:.2f}", label in chosen) for label, score in scores]
    windows = f"Read in {result.windows} overlapping windows." if result.windows > 1 else ""
    cut = f"The last {counted(result.cut, 'token')} did not fit and were not read." if result.cut else ""
    words = ", ".join(chosen) or f"none reaches {threshold:.2f}"
    plot = bars(f"{title or 'Labels: '}{words}", lengths, found.labels)
    return _Shown("", plot, [windows, cut], rows if len(documents) > 1 else [])


def _table(rows: Sequence[Sequence[Any]], found: Found, several: bool) -> Any:
    """Rows of id, label, score and text, with the task in front where there are several of them."""
    is_file = len(found.given.documents) > 1
    if several and is_file:
        return table(["Task", "Id", "Label", "Score", "Text"], rows, widths=[16, 13, 24, 13, 34])
    if several:
        rows = [[task, *row] for task, _, *row in rows]
        return table(["Task", "Label", "Score", "Text"], rows, widths=[20, 27, 15, 38])
    if found.whole_texts:
        return table(["Id", "Labels", "Highest", "Text"], rows, widths=[14, 36, 16, 34])
    if is_file:
        return table(["Id", "Label", "Score", "Sentence"], rows, widths=[14, 24, 14, 48])
    return table(["Label", "Score", "Sentence"], [row[1:] for row in rows], widths=[27, 15, 58])


def parts_of(text: str, sentence: int = -1) -> list[Span]:
    """The sentences of a text, or where it is one, its words; or the words of the sentence at this place.

    Raises:
        ValueError: it is one word, or leaving out each part would read more than ``MOST_READ`` characters.
    """
    sentences = sentence_spans(text)
    if sentence < 0 and len(sentences) > 1:
        spans = sentences
    else:
        start, end = sentences[sentence] if 0 <= sentence < len(sentences) else (0, len(text))
        spans = [match.span() for match in _WORD.finditer(text, start, end)]
    parts = [span for span in spans if not is_blank(text[: span[0]] + text[span[1] :])]
    if not parts:
        raise ValueError("The text is one word: there is nothing to leave out")
    if len(parts) * len(text) > MOST_READ:
        raise ValueError(
            f"The text has {len(parts):,} parts and {len(text):,} characters: to leave out each would read "
            f"{len(parts) * len(text):,} in all, and {MOST_READ:,} are the most. Give a part of it"
        )
    return parts


def _reasons(text: str, found: Labelled, place: int, label: str) -> str:
    """The text with how much its score for a label falls without each part."""

    def score(result: Classification) -> float:
        return next(entry.score for entry in result.scores if entry.label == label)

    whole = score(found.texts[place])
    reasons = [Reason(*span, whole - score(without)) for span, without in found.left_out[place]]
    return because(text, reasons, label, whole, found.labels)


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
