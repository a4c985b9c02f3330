"""The panel that compares two texts, or two models on one text, side by side."""

import html
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from biogpt.serving.inspection import Sample, read_whole
from biogpt.serving.service import TextService
from biogpt.serving.shelf import OnShelf, Shelf
from biogpt.text.documents import Document
from biogpt.text.plain import is_blank
from biogpt.text.results import OnProgress
from biogpt.ui.models import title
from biogpt.ui.runs import IN_TURNS, QUICK, label_all
from biogpt.ui.scoring import Score, score_of, sentences_shown
from biogpt.ui.scripts import COMPARISON, COMPARISON_EVENTS, Buttons
from biogpt.ui.status import REFUSALS, refusal, status
from biogpt.ui.tokens import choices, sample_shown


@dataclass(frozen=True)
class Side:
    """A text as a model read it; ``name`` tells it from the other side."""

    name: str
    model: str
    sample: Sample
    score: Score


class Comparer:
    """What the panel does, as Gradio wants it: values of components in, values of components out."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def compare(
        self, model: str, text: str, other_text: str, other_model: str | None
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Read both sides; yields status, the value of the view, and the sides.

        Args:
            other_text: of the second side; where it is empty, that is the same text.
            other_model: of the second side; where it is empty, that is the same model.
        """
        try:
            second = other_text if not is_blank(other_text) else text
            asked = [(model, text), (other_model or model, second)]
            if is_blank(text):
                raise ValueError("The text above is empty: type or paste something there")
            if asked[0] == asked[1]:
                raise ValueError("Both sides are the same: paste another text, or choose another model")
            sides = []
            for place, (name, words) in enumerate(asked):
                document = Document("text", words)
                with closing(label_all(OnShelf(self.shelf, name), [document], _looked_into)) as runs:
                    for run in runs:
                        if not run.ended:
                            yield run.line(), gr.skip(), gr.skip()
                [(sample, score)] = run.results
                parts = ["Text above" if place == 0 else "Other text"] if second != text else []
                parts += [title(name)] if asked[0][0] != asked[1][0] else []
                sides.append(Side(", ".join(parts), name, sample, score))
            yield status("Compared", html.escape(_verdict(sides))), _shown(sides), sides
        except REFUSALS as error:
            yield refusal(error, "Not compared"), gr.skip(), gr.skip()

    def choose(self, sides: Sequence[Side] | None, event: gr.EventData) -> Any:
        """The likeliest tokens in the place of one that was chosen."""
        if not sides or not 0 <= event.sample < len(sides):
            return gr.skip()
        side = sides[event.sample]
        tokenizer = self.shelf.take(side.model).tokenizer
        samples = [other.sample for other in sides]
        return choices(tokenizer, samples, event.sample, event.token, can_branch=False)


def _looked_into(
    generator: TextService, texts: list[str], progress: OnProgress
) -> list[tuple[Sample, Score]]:
    found = []
    for text in texts:
        sample, coming = generator.ask(read_whole, generator.prompt(text))
        found.append((sample, score_of(sample, coming)))
    return found


def _verdict(sides: Sequence[Side]) -> str:
    less, more = sorted(sides, key=lambda side: side.score.bits)
    return f"Less surprising: {less.name}, {less.score.bits:.2f} bits per byte against {more.score.bits:.2f}"


def _shown(sides: Sequence[Side]) -> dict[str, Any]:
    most = max((bits for side in sides for _, _, bits in side.score.sentences), default=0.0)
    return {
        "sides": [
            sample_shown(side.sample)
            | {
                "title": html.escape(f"{side.name}: {side.score.bits:.2f} bits per byte"),
                "below": sentences_shown(side.sample.text, side.score, most, can_select=False),
            }
            for side in sides
        ]
    }


def comparing(shelf: Shelf, model: gr.State, text: gr.Textbox, alternatives: gr.HTML) -> None:
    """Lay the panel out in the Blocks at hand and connect it.

    Args:
        model: the name of the visitor's model, which reads the first side.
        text: the first side.
        alternatives: shows those of a token that is chosen.
    """
    comparer, sides = Comparer(shelf), gr.State(None)
    other_text = gr.Textbox(
        label="Other text",
        info="Read beside the text above; leave it empty to compare two models on the text above.",
        lines=4,
        max_lines=8,
        elem_id="compare-text",
    )
    other_model = gr.Dropdown(
        shelf.names(),
        value=None,
        label="Second model",
        info="Reads the second side; leave it empty to compare two texts by one model.",
        allow_custom_value=shelf.allowed is None,
        elem_id="compare-model",
    )
    with gr.Row(elem_classes="actions"):
        run = gr.Button("Compare", elem_id="compare-run")
        stop = gr.Button("Stop", interactive=False, elem_id="compare-stop", elem_classes="stop")
    line = gr.HTML(status("Ready"), elem_id="compare-status", elem_classes="run-status")
    view = gr.HTML(
        {"sides": []},
        html_template=COMPARISON,
        js_on_load=COMPARISON_EVENTS,
        apply_default_css=False,
        elem_id="comparison",
    )
    buttons, clicks = [run, stop], Buttons("compare")
    run.click(None, None, buttons, js=clicks.begun)
    event = run.click(
        comparer.compare,
        [model, text, other_text, other_model],
        [line, view, sides],
        show_progress="minimal",
        show_progress_on=line,
        api_visibility="private",
        **IN_TURNS,
    )
    event.then(None, None, buttons, js=clicks.ended)
    event.failure(None, None, buttons, js=clicks.broken_off)
    stop.click(None, None, None, js=clicks.stop)
    stop.click(None, cancels=[event]).then(lambda: status("Stopped"), None, line, **QUICK).then(
        None, None, buttons, js=clicks.stopped
    )
    view.select(comparer.choose, sides, alternatives, **QUICK)
