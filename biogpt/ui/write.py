"""The Write tab: a text, its settings, and a completion that streams into it; and the endpoint ``/generate``."""

import html
import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from biogpt.generate import GenerationOptions
from biogpt.service import Stream, TextGenerator

# One generation at a time, from whichever button or client: all of them share the limit under this name.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "generation", "concurrency_limit": 1}

EXAMPLES = {
    "COVID-19": "COVID-19 is",
    "Trastuzumab": "Trastuzumab is a monoclonal antibody",
    "BRCA1": "The BRCA1 gene encodes",
    "Trial": "We conducted a randomized controlled trial of metformin in patients with",
    "Abstract": "BACKGROUND: Antibiotic resistance is a growing problem in",
}

# Temperature, top-p, no-repeat n-grams, beams.
PRESETS: dict[str, tuple[float, float, int, int]] = {
    "Precise": (0.0, 1.0, 4, 1),
    "Balanced": (0.7, 0.9, 0, 1),
    "Creative": (1.0, 0.95, 0, 1),
    "Beam": (0.0, 1.0, 4, 4),
}
DEFAULT_PRESET = "Balanced"
DEFAULT_LENGTH = 120  # tokens

_FINISHED = {
    "eos": "Finished: end of text",
    "length": "Finished: length reached",
    "stop": "Finished: stop string met",
}

# What a generator raises on bad input, and when its numbers overflow; everything else is a fault of ours.
_REFUSALS = (ValueError, TypeError, FloatingPointError)

# ${…} is filled in by the browser from the view's value; as the text grows, only what is new goes over the wire.
_VIEW = """
<div class="view" role="region" tabindex="0" aria-label="The text, with what was generated marked"
><span>${value.given}</span><mark>${value.written}</mark><em>${value.hint}</em></div>
"""
_HINT = (
    "What is generated shows here, tinted. Type the start of a sentence, or take an example, then Generate."
)

# Generate, Regenerate, Undo and Stop, switched in the browser: Stop also has to work while the run waits in line.
_WHILE_RUNNING = "() => [false, false, false, true].map((on) => ({__type__: 'update', interactive: on}))"
_WHILE_IDLE = "() => [true, true, true, false].map((on) => ({__type__: 'update', interactive: on}))"


@dataclass(frozen=True)
class Progress:
    """What the status line tells of a run.

    Attributes:
        state: in words.
        positions, limit: taken by prompt and completion, and the most that the model has.
        tokens: generated so far.
        first: seconds to the first token.
        rest: seconds from the first token to the last.
        seed: what the run was drawn with.
    """

    state: str
    positions: int
    limit: int
    tokens: int
    first: float
    rest: float
    seed: int | None

    def line(self) -> str:
        facts = [f"{self.positions:,} of {self.limit:,} positions"]
        if self.tokens > 1:
            facts.append(f"{(self.tokens - 1) / self.rest:,.0f} tokens/s")
        facts += [f"first token {self.first:.1f} s", f"seed {self.seed}"]
        return _status(self.state, " · ".join(facts))


class Writer:
    """What the tab does, as Gradio wants it: values of components in, values of components out.

    ``undo`` is the list of texts as they were before each completion, the oldest first.
    """

    def __init__(self, generator: TextGenerator) -> None:
        self.generator = generator

    def write(self, text: str, undo: list[str], *settings: Any) -> Iterator[tuple[Any, ...]]:
        """Continue the text.

        Args:
            settings: those of ``_options``.

        Yields:
            Text, view, status, progress and undo list, once a token. A refusal changes the status alone.
        """
        try:
            options = _options(*settings).with_seed()
            start = first = time.perf_counter()
            with closing(self._steps(text, options)) as steps:
                given, limit = self.generator.count(text), self.generator.config.max_position_embeddings
                # A Stop before the first token must not report the run before this one.
                yield gr.skip(), gr.skip(), _status("Reading the prompt"), None, gr.skip()
                for tokens, step in enumerate(steps, start=1):
                    now = time.perf_counter()
                    first = now if tokens == 1 else first
                    state = _FINISHED.get(step.finish_reason or "", "Writing")
                    progress = Progress(
                        state, given + tokens, limit, tokens, first - start, now - first, options.seed
                    )
                    yield text + step.text, _view(text, step.text), progress.line(), progress, [*undo, text]
        except _REFUSALS as error:
            yield gr.skip(), gr.skip(), _refusal(error), gr.skip(), gr.skip()

    def rewrite(self, text: str, undo: list[str], *settings: Any) -> Iterator[tuple[Any, ...]]:
        """Take the last completion back and write another; without one, continue the text."""
        if _completed(text, undo):
            text, undo = undo[-1], undo[:-1]
        yield from self.write(text, undo, *settings)

    def undo(self, text: str, undo: list[str]) -> tuple[Any, ...]:
        """Take the last completion back: text, view, status, progress and undo list."""
        if not _completed(text, undo):
            return gr.skip(), gr.skip(), _status("Nothing to undo"), gr.skip(), gr.skip()
        return undo[-1], _view(undo[-1], ""), _status("Undone"), None, undo[:-1]

    def stopped(self, progress: Progress | None) -> str:
        """The status after Stop."""
        return _status("Stopped") if progress is None else replace(progress, state="Stopped").line()

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = DEFAULT_LENGTH,
        min_new_tokens: int = 0,
        temperature: float = 0.7,
        top_k: int = 0,
        top_p: float = 0.9,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram_size: int = 0,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        stop: list[str] | None = None,
        seed: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Continue a prompt, one update a token: `text` is all of the completion so far, the prompt left out;
        `tokens` its length; `seed` gives the same text again; `finish_reason` is null until the last update."""
        try:
            options = GenerationOptions(
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                no_repeat_ngram_size=no_repeat_ngram_size,
                num_beams=num_beams,
                length_penalty=length_penalty,
                stop=() if stop is None else stop,
                seed=seed,
            ).with_seed()
            with closing(self._steps(prompt, options)) as steps:
                for tokens, step in enumerate(steps, start=1):
                    yield {
                        "text": step.text,
                        "tokens": tokens,
                        "seed": options.seed,
                        "finish_reason": step.finish_reason,
                    }
        except _REFUSALS as error:
            raise gr.Error(html.escape(str(error)), title="Not generated", print_exception=False) from error

    def _steps(self, prompt: str, options: GenerationOptions) -> Stream:
        if isinstance(prompt, str) and not prompt.strip():
            raise ValueError("The text is empty: type the start of a sentence, or take an example")
        return self.generator.stream(prompt, options)


def write_tab(generator: TextGenerator) -> None:
    """Lay the tab out in the Blocks at hand and connect it."""
    writer = Writer(generator)
    undo_list, progress = gr.State([]), gr.State(None)
    with gr.Row(elem_classes="columns"):
        with gr.Column(elem_classes="work"):
            text = gr.Textbox(
                label="Text",
                info="Prompt and completion in one. Edit it anywhere; Generate continues from its end.",
                placeholder="Trastuzumab is a monoclonal antibody that",
                lines=10,
                max_lines=10,
                autofocus=True,
                buttons=["copy"],
                elem_id="text",
            )
            with gr.Row(elem_classes="actions"):
                generate = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", interactive=False, elem_id="stop")
                rewrite = gr.Button("Regenerate", elem_id="regenerate")
                undo = gr.Button("Undo", elem_id="undo")
            status = gr.HTML(_status("Ready"), elem_id="status")
            with gr.Row(elem_classes="examples"):
                gr.HTML("<span>Try</span>")
                examples = [gr.Button(name, size="sm", min_width=0) for name in EXAMPLES]
            view = gr.HTML(_view("", ""), html_template=_VIEW, apply_default_css=False, elem_id="view")
        with gr.Column(elem_classes="settings"):
            settings = _settings(generator.config.max_position_embeddings, progress)

    buttons = [generate, rewrite, undo, stop]
    results = [text, view, status, progress, undo_list]
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    runs: list[dict[str, Any]] = []
    for button, run in ((generate, writer.write), (rewrite, writer.rewrite)):
        button.click(None, None, buttons, js=_WHILE_RUNNING)
        event = button.click(
            run,
            [text, undo_list, *settings],
            results,
            show_progress="minimal",
            show_progress_on=status,
            api_visibility="private",
            **ONE_AT_A_TIME,
        )
        event.then(None, None, buttons, js=_WHILE_IDLE)
        runs.append(event)
    # The status comes after the cancelling, or else a last token could write over it.
    cancelled = stop.click(None, cancels=runs)
    cancelled.then(writer.stopped, progress, status, **quick).then(None, None, buttons, js=_WHILE_IDLE)
    undo.click(writer.undo, [text, undo_list], results, **quick)
    for button, prompt in zip(examples, EXAMPLES.values(), strict=True):
        button.click(None, None, text, js=f"() => {json.dumps(prompt)}")
    gr.api(writer.generate, api_name="generate", **ONE_AT_A_TIME)


def _settings(limit: int, progress: gr.State) -> list[gr.components.Component]:
    """Lay the settings out; returns their controls in the order of the arguments of ``_options``."""
    temperature_set, top_p_set, ngram_set, beams_set = PRESETS[DEFAULT_PRESET]
    preset = gr.Radio(
        list(PRESETS),
        value=DEFAULT_PRESET,
        label="Preset",
        info="Sets temperature, top-p, n-grams and beams.",
        elem_id="preset",
    )
    length = gr.Slider(
        1,
        limit - 1,
        min(DEFAULT_LENGTH, limit // 2),
        precision=0,
        label="Length, tokens",
        info=f"At most so many; no more than {limit:,} with the prompt.",
    )
    temperature = gr.Slider(
        0,
        2,
        temperature_set,
        step=0.05,
        label="Temperature",
        info="0: always the likeliest token. Higher: more varied.",
    )
    top_p = gr.Slider(
        0,
        1,
        top_p_set,
        step=0.01,
        label="Top-p",
        info="Draw among the likeliest tokens that sum to this. 1: all.",
    )
    with gr.Accordion("More", open=False):
        top_k = gr.Slider(
            0, 200, 0, precision=0, label="Top-k", info="Draw among so many likeliest tokens. 0: all."
        )
        min_p = gr.Slider(
            0,
            1,
            0,
            step=0.01,
            label="Min-p",
            info="Leave out tokens below this share of the likeliest. 0: none.",
        )
        penalty = gr.Slider(
            0.5,
            2,
            1,
            step=0.05,
            label="Repetition penalty",
            info="Above 1: words already in the text get less likely.",
        )
        ngram = gr.Slider(
            0,
            10,
            ngram_set,
            precision=0,
            label="No-repeat n-grams, tokens",
            info="No run of so many tokens comes twice. 0: off.",
        )
        beams = gr.Slider(
            1,
            8,
            beams_set,
            precision=0,
            label="Beams",
            info="Above 1: search for the likeliest text; needs temperature 0.",
        )
        stop = gr.Textbox(
            label="Stop strings", info="One a line; the text ends before the first one met.", lines=2
        )
        # Not gr.Number, which shows an empty value as 0.
        seed = gr.Textbox(
            label="Seed", info="The same seed gives the same text. Empty: a new one each time.", max_lines=1
        )
        reuse = gr.Button("Reuse the last seed", size="sm")

    reuse.click(
        lambda last: gr.skip() if last is None else str(last.seed),
        progress,
        seed,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    shaped = [temperature, top_p, ngram, beams]
    preset.input(None, preset, shaped, js=f"(name) => ({json.dumps(PRESETS)})[name]")
    for control in shaped:  # moved by hand, it is no longer the preset
        control.input(None, None, preset, js="() => null")
    return [length, temperature, top_p, top_k, min_p, penalty, ngram, beams, stop, seed]


def _options(
    length: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    no_repeat_ngram_size: int,
    num_beams: int,
    stop: str | None,
    seed: str | None,
) -> GenerationOptions:
    """The values of the settings as options; ValueError as ``GenerationOptions``."""
    seed = (seed or "").strip()
    if seed and not (seed.isascii() and seed.isdigit()):
        raise ValueError(f"seed is {seed!r}; expected a whole number, or nothing for a new one each time")
    return GenerationOptions(
        max_new_tokens=length,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        num_beams=num_beams,
        stop=[line for line in (stop or "").splitlines() if line],
        seed=int(seed) if seed else None,
    )


def _completed(text: str, undo: list[str]) -> bool:
    """Whether the text still is the last prompt and what follows it; a text typed anew is not taken back."""
    return bool(undo) and text.startswith(undo[-1])


def _view(given: str, written: str) -> dict[str, str]:
    """What was given and what was generated, told apart; escaped, for the browser sets it as HTML."""
    hint = "" if given or written else _HINT
    return {"given": html.escape(given), "written": html.escape(written), "hint": hint}


def _status(state: str, facts: str = "") -> str:
    return f'<p class="status"><b>{state}</b> {facts}</p>'


def _refusal(error: Exception) -> str:
    return f'<p class="status refusal" role="alert"><b>Not generated</b> {html.escape(str(error))}</p>'
