"""The Write tab: a text, its settings, and a completion that streams into it; and the endpoint ``/generate``."""

import html
import json
import re
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr

from biogpt.generation.search import GenerationOptions
from biogpt.serving.inspection import ALTERNATIVES, Sample, attention, branched, scored
from biogpt.serving.shelf import Shelf
from biogpt.serving.text_generator import Step, Stream, TextGenerator
from biogpt.ui.buttons import Buttons
from biogpt.ui.models import title
from biogpt.ui.runs import MOST_CHARACTERS, PASSAGES, REFUSALS
from biogpt.ui.tokens import (
    ATTENTION,
    ATTENTION_SCRIPT,
    CHOICES_SCRIPT,
    VIEW,
    VIEW_SCRIPT,
    attention_shown,
    choices,
    shown,
)

# The service shares each step among its requests, and keeps the line: more may be under way here than run there.
TOGETHER: dict[str, Any] = {"concurrency_id": "generation", "concurrency_limit": 32}

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
_LOOK = 0.25  # seconds between looks at a request that waits in line, so that Stop acts meanwhile
_SINGLY = 24  # tokens that come one by one; only the first one while others write, too
_PACE = 1 / 15  # seconds between later updates, at least
_UPDATES = 40  # a second, for all who write together
_MEAN = ("mean of all", 0)
MOST_SAMPLES = 4

_FINISHED = {
    "eos": "Finished: end of text",
    "length": "Finished: length reached",
    "room": "Finished: the text is as long as the model can read",
    "stop": "Finished: stop string met",
}

# What the settings are called on the page.
_LABELS = {
    "max_new_tokens": "Length",
    "temperature": "Temperature",
    "top_p": "Top-p",
    "top_k": "Top-k",
    "min_p": "Min-p",
    "repetition_penalty": "Repetition penalty",
    "no_repeat_ngram_size": "No-repeat n-grams",
    "num_beams": "Beams",
    "num_return_sequences": "Samples",
    "seed": "Seed",
}

_HINT = (
    "What is generated shows here, tinted. Type the start of a sentence, or take an example, then Generate."
)

_LEGEND = (
    '<p class="legend">Probability of a token: <span class="p0">50 % and more</span> <span class="p1">from 20 %</span> '
    '<span class="p2">from 5 %</span> <span class="p3">below</span>. Choose one to see its alternatives.</p>'
)

# The buttons that change the text, and Stop, switched in the browser: Stop also has to work while the run waits in line.
# The alternatives are those of the text before. What is typed meanwhile would be lost at the next token.
_LOCK = """
  document.querySelector("#text textarea").readOnly = RUNS;
  document.querySelectorAll("#prompts button").forEach((each) => { each.disabled = RUNS; });
"""
_BEGUN = f"""(() => {{{_LOCK.replace("RUNS", "true")}
  return ["", ...[false, false, false, false, true].map((on) => ({{__type__: "update", interactive: on}}))];
}})()"""
_IDLE = f"""(() => {{{_LOCK.replace("RUNS", "false")}
  return [true, true, true, true, false].map((on) => ({{__type__: "update", interactive: on}}));
}})()"""

_COPY = """
async (text) => {
  try { await navigator.clipboard.writeText(text); }
  catch { document.querySelector("#text textarea").select(); document.execCommand("copy"); }
}
"""

_PRESET_OF = f"""(...values) => {{
  const found = Object.entries({json.dumps(PRESETS)}).find(([, each]) => each.every((value, i) => value === values[i]));
  return found ? found[0] : null;
}}"""

# Before and after: the text as it was, and what was then given to the model; they differ where a reader branched.
Undo = list[tuple[str, str]]


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


@dataclass
class Draft:
    """What the last run wrote.

    Attributes:
        model: its name.
        prompt: what the model was given.
        samples: as many as were asked for.

    The run that makes it changes it in place.
    """

    model: str
    prompt: str
    samples: list[Sample]
    progress: Progress


class Writer:
    """What the tab does, as Gradio wants it: values of components in, values of components out."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def write(
        self,
        model: str,
        text: str,
        undo: Undo,
        *settings: Any,
        before: str | None = None,
        session: Hashable = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Continue the text.

        Args:
            model: name of the one to write with.
            settings: those of ``_options``.
            before: the text that Undo brings back, when it is another one.
            session: whose text it is, for the reuse of prompts.

        Yields:
            Text, view, status, draft, undo list and count, as tokens come. A refusal changes the status alone.
        """
        try:
            options = replace(_options(*settings).with_seed(), top_logprobs=ALTERNATIVES)
            start = first = time.perf_counter()
            for generator in self._loading(model):
                if generator is None:
                    yield _only_status(_status("Loading", html.escape(title(model))))
            assert generator is not None
            options, room = _within(generator, text, options)
            context = generator.tokenizer.encode(text).ids if len(text) < MOST_CHARACTERS else []
            samples = [Sample(context) for _ in range(options.num_return_sequences)]
            now_undo = [*undo, (text if before is None else before, text)]
            with closing(_steps(generator, text, options, session)) as steps:
                given, limit = generator.count(text), generator.config.max_position_embeddings
                # A Stop before the first token must not report the run before this one.
                yield _only_status(_status("Reading the prompt"), draft=None)
                draft, tokens = None, 0
                for made in steps:
                    if isinstance(made, int):
                        yield _only_status(_status("Waiting", f"{made} in line"))
                        continue
                    now = time.perf_counter()
                    first = now if tokens == 0 else first
                    tokens += len(made)
                    for step in made:
                        sample = samples[step.sequence]
                        sample.add(step) if options.num_beams == 1 else sample.replace(step)
                    if options.num_beams > 1 and step.finish_reason:
                        samples[0] = generator.run(partial(scored, generator, text, step.text))
                        samples[0].finish_reason = step.finish_reason
                    reason = "room" if step.finish_reason == "length" and room else step.finish_reason
                    state = _FINISHED.get(reason or "", "Writing")
                    if any(each.finish_reason is None for each in samples):
                        state = "Writing" if len(samples) == 1 else f"Writing sample {step.sequence + 1}"
                    longest = tokens if len(samples) == 1 else max(len(each.ids) for each in samples)
                    progress = Progress(
                        state, given + longest, limit, tokens, first - start, now - first, options.seed
                    )
                    kept: tuple[Any, Any] = gr.skip(), gr.skip()  # Gradio spends time on what it is given
                    if draft is None:
                        draft = Draft(model, text, samples, progress)
                        kept = draft, now_undo
                    draft.progress = progress
                    yield (
                        text + step.text if len(samples) == 1 else text,
                        shown(text, samples),
                        progress.line(),
                        *kept,
                        _count(given + longest, limit),
                    )
        except REFUSALS as error:
            yield _only_status(_refusal(error))

    def _loading(self, model: str) -> Iterator[TextGenerator | None]:
        """The model at last, and None while it loads: in a thread, since a run that waits can be stopped."""
        if self.shelf.has(model):
            yield self.shelf.take(model)
            return
        pool = ThreadPoolExecutor(1)
        future = pool.submit(self.shelf.take, model)
        pool.shutdown(wait=False)
        while not future.done():
            yield None
            wait([future], _LOOK)
        yield future.result()

    def rewrite(
        self,
        draft: Draft | None,
        model: str,
        text: str,
        undo: Undo,
        *settings: Any,
        session: Hashable = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Take the last completion back and write another; without one, continue the text.

        Where the reader has changed the completion, Undo brings that back first.
        """
        before = None
        if _completed(text, undo):
            (before, prompt), rest = undo[-1], undo[:-1]
            if draft is not None and text not in (
                draft.prompt,
                *(draft.prompt + each.text for each in draft.samples),
            ):
                before, rest = text, undo
            text, undo = prompt, rest
        yield from self.write(model, text, undo, *settings, before=before, session=session)

    def branch(
        self,
        draft: Draft | None,
        text: str,
        undo: Undo,
        *settings: Any,
        event: gr.EventData,
        session: Hashable = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Continue from a token of the draft with another in its place; ``event`` says which."""
        try:
            if draft is None:
                raise ValueError("That text is gone: generate again")
            sample = draft.samples[event.sample]
            other = sample.alternatives[event.token][event.rank][0]
            generator = self.shelf.take(draft.model)
            prompt = draft.prompt + generator.run(partial(branched, generator, sample, event.token, other))
        except REFUSALS as error:
            yield _only_status(_refusal(error))
            return
        except (IndexError, AttributeError):
            yield _only_status(_refusal(ValueError("That token is gone: choose another")))
            return
        yield from self.write(draft.model, prompt, undo, *settings, before=text, session=session)

    def choose(self, draft: Draft | None, event: gr.EventData) -> str:
        """The alternatives of the token that was chosen."""
        if draft is None:
            return ""
        return choices(self.shelf.take(draft.model).tokenizer, draft.samples, event.sample, event.token)

    def keep(self, draft: Draft | None, event: gr.EventData) -> tuple[Any, ...]:
        """Make one of several samples the text: text, view and draft."""
        if draft is None or not 0 <= event.sample < len(draft.samples):
            return gr.skip(), gr.skip(), gr.skip()
        kept = draft.samples[event.sample]
        return draft.prompt + kept.text, shown(draft.prompt, [kept]), replace(draft, samples=[kept])

    def undo(self, text: str, undo: Undo) -> tuple[Any, ...]:
        """Take the last completion back: what ``write`` yields."""
        if not _completed(text, undo):
            return _only_status(_status("Nothing to undo"))
        before = undo[-1][0]
        return before, shown(before, []), _status("Undone"), None, undo[:-1], gr.skip()

    def stopped(self, draft: Draft | None) -> str:
        """The status after Stop."""
        return _status("Stopped") if draft is None else replace(draft.progress, state="Stopped").line()

    def count(self, model: str, text: str) -> str:
        """How much of the model's positions a text takes."""
        generator = self.shelf.glance(model)
        if generator is None:  # it is loaded when it first writes
            return ""
        limit = generator.config.max_position_embeddings
        try:
            return _count(generator.count(text) if text else 0, limit)
        except REFUSALS as error:
            return f'<p class="count over">{html.escape(str(error))}</p>'

    def attention(self, model: str, text: str, layer: int, head: int) -> dict[str, Any]:
        """The value of the attention view."""
        try:
            generator = self.shelf.take(model)
            found = generator.run(partial(attention, generator, text, layer, head))
            config = generator.config
            return attention_shown(
                found, generator.tokenizer, config.num_hidden_layers, config.num_attention_heads
            )
        except REFUSALS as error:
            return {"tokens": [], "rows": [], "note": _refusal(error, "Not shown")}

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
        model: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Continue a biomedical text with BioGPT, one update a token. It completes; it does not follow instructions.

        Args:
            prompt: The beginning of a text, such as "COVID-19 is".
            max_new_tokens: Most tokens to write; with the prompt no more than the model's positions.
            min_new_tokens: The text does not end before so many.
            temperature: 0 takes the likeliest token each time; higher is more varied.
            top_k: Draw among so many likeliest tokens; 0 is all.
            top_p: Draw among the likeliest tokens that sum to this; 1 is all.
            min_p: Leave out tokens below this share of the likeliest; 0 is none.
            repetition_penalty: Above 1 makes words already in the text less likely.
            no_repeat_ngram_size: No run of so many tokens comes twice; 0 is off.
            num_beams: Above 1 searches for the likeliest text; needs temperature 0.
            length_penalty: Above 0 beam search favours long texts.
            stop: The text ends before the first of these strings.
            seed: The same seed gives the same text; null draws one.
            model: The language model that writes; null is the page's own.

        Returns:
            text: all of the completion so far, the prompt left out; tokens: its length; seed: gives the same text again;
            finish_reason: null until the last update, then "eos", "length" or "stop".
        """
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
            with closing(_steps(self.shelf.take(model), prompt, options)) as steps:
                made = (step for group in steps if not isinstance(group, int) for step in group)
                for tokens, step in enumerate(made, start=1):
                    yield {
                        "text": step.text,
                        "tokens": tokens,
                        "seed": options.seed,
                        "finish_reason": step.finish_reason,
                    }
        except REFUSALS as error:
            raise gr.Error(html.escape(str(error)), title="Not generated", print_exception=False) from error


def _steps(
    generator: TextGenerator, prompt: str, options: GenerationOptions, session: Hashable = None
) -> Generator[list[Step] | int, None, None]:
    """The steps of a text as they come, or while it waits in line its place, an int; refuses at once what it refuses.

    Steps that come fast come together, but for the first few: browser and server spend some tens of milliseconds on an
    update, more than a small model on a token.
    """
    if isinstance(prompt, str) and not prompt.strip():
        raise ValueError("The text is empty: type the start of a sentence, or take an example")
    return _with_places(generator.stream(prompt, options, session))


def _with_places(stream: Stream) -> Generator[list[Step] | int, None, None]:
    count, due = 0, 0.0
    with stream:
        while True:
            while not stream.wait(_LOOK):
                if stream.position:
                    yield stream.position
            step = next(stream, None)
            if step is None:
                return
            steps = [step]
            singly = count < (_SINGLY if stream.running <= 1 else 1)  # speed is counted from the first one on
            while not singly and stream.wait(max(0.0, due - time.monotonic())):
                step = next(stream, None)
                if step is None:
                    break
                steps.append(step)
            count += len(steps)
            due = time.monotonic() + max(_PACE, stream.running / _UPDATES)
            yield steps


@dataclass(frozen=True)
class WriteTab:
    """The controls of the tab that a link holds, by the names of ``biogpt.ui.links``, and what shows their effect."""

    controls: dict[str, gr.components.Component]
    count: gr.HTML
    fit: Callable[[str, int], tuple[Any, ...]]
    fitted: list[gr.components.Component]  # what ``fit`` of a model's name and a length gives values for
    recount: Callable[[str, str], str]


def write_tab(shelf: Shelf, model: gr.State) -> WriteTab:
    """Lay the tab out in the Blocks at hand and connect it.

    Args:
        model: the name of the visitor's model.
    """
    writer = Writer(shelf)
    undo_list, draft = gr.State([]), gr.State(None)
    with gr.Row(elem_classes="columns"):
        with gr.Column(elem_classes="work"):
            text = gr.Textbox(
                label="Text",
                info="Prompt and completion in one. Edit it anywhere; Generate continues from its end.",
                placeholder="Trastuzumab is a monoclonal antibody that",
                lines=10,
                max_lines=10,
                autofocus=True,
                elem_id="text",
            )
            count = gr.HTML("", elem_id="count")
            typed = gr.Button(elem_id="typed", elem_classes="unseen")  # pressed by the page's script
            with gr.Row(elem_classes="actions"):
                generate = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", interactive=False, elem_id="stop")
                proceed = gr.Button("Continue", elem_id="continue")
                rewrite = gr.Button("Regenerate", elem_id="regenerate")
                undo = gr.Button("Undo", elem_id="undo")
                copy = gr.Button("Copy", elem_id="copy")
            status = gr.HTML(_status("Ready"), elem_id="status")
            with gr.Row(elem_classes="examples", elem_id="prompts"):
                gr.HTML("<span>Try</span>")
                examples = [gr.Button(name, size="sm", min_width=0) for name in EXAMPLES]
            view = gr.HTML(
                shown("", [], _HINT),
                html_template=VIEW,
                js_on_load=VIEW_SCRIPT,
                apply_default_css=False,
                elem_id="view",
            )
            gr.HTML(_LEGEND)
            alternatives = gr.HTML("", js_on_load=CHOICES_SCRIPT, elem_id="choices")
            with gr.Accordion("Attention", open=False, elem_id="attention-panel"):
                with gr.Row():
                    layer = gr.Dropdown([1], value=1, label="Layer", info="1 reads the words themselves.")
                    head = gr.Dropdown([_MEAN], value=0, label="Head", info="Each looks for something else.")
                look = gr.Button("Show what each token looks at", size="sm", elem_id="look")
                looked = gr.HTML(
                    {"tokens": [], "rows": [], "note": ""},
                    html_template=ATTENTION,
                    js_on_load=ATTENTION_SCRIPT,
                    apply_default_css=False,
                    elem_id="attention",
                )
        with gr.Column(elem_classes="settings"):
            settings = _settings(draft)

    buttons, clicks = [generate, proceed, rewrite, undo, stop], Buttons("write", _BEGUN, _IDLE, 5)
    results = [text, view, status, draft, undo_list, count]
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    runs: list[dict[str, Any]] = []

    def in_session(run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def handler(request: gr.Request, *values: Any) -> Iterator[Any]:
            yield from run(*values, session=request.session_hash)

        return handler

    def on_branch(event: gr.EventData, request: gr.Request, *values: Any) -> Iterator[Any]:
        yield from writer.branch(*values, event=event, session=request.session_hash)

    chosen = [model, text, undo_list, *list(settings.values())]
    for listen, run, inputs in (
        (generate.click, in_session(writer.write), chosen),
        (proceed.click, in_session(writer.write), chosen),
        (rewrite.click, in_session(writer.rewrite), [draft, *chosen]),
        (alternatives.select, on_branch, [draft, *chosen[1:]]),
    ):
        listen(None, None, [alternatives, *buttons], js=clicks.begun)
        event = listen(
            run,
            inputs,
            results,
            show_progress="minimal",
            show_progress_on=status,
            api_visibility="private",
            **TOGETHER,
        )
        event.then(None, None, buttons, js=clicks.ended)
        event.failure(None, None, buttons, js=clicks.ended)  # refused by Gradio, a setting out of its range
        runs.append(event)
    stop.click(None, None, None, js=clicks.stop)
    # The status comes after the cancelling, or else a last token could write over it.
    cancelled = stop.click(None, cancels=runs)
    cancelled.then(writer.stopped, draft, status, **quick).then(None, None, buttons, js=clicks.stopped)
    undo.click(None, None, alternatives, js="() => ''")
    undo.click(writer.undo, [text, undo_list], results, **quick).then(
        writer.count, [model, text], count, **quick
    )
    copy.click(None, text, None, js=_COPY).then(lambda: _status("Copied"), None, status, **quick)
    view.select(writer.choose, draft, alternatives, **quick)
    view.submit(writer.keep, draft, [text, view, draft], **quick)
    for button, prompt in zip(examples, EXAMPLES.values(), strict=True):
        button.click(partial(_replaced, prompt), [text, undo_list], [text, undo_list], **quick).then(
            writer.count, [model, text], count, **quick
        )
    typed.click(writer.count, [model, text], count, trigger_mode="always_last", **quick)
    for listen in (look.click, layer.input, head.input):
        listen(writer.attention, [model, text, layer, head], looked, api_visibility="private", **PASSAGES)
    gr.api(writer.generate, api_name="generate", **TOGETHER)

    def fit(name: str, length: int) -> tuple[Any, ...]:
        config = shelf.take(name).config
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        most = config.max_position_embeddings - 1
        return (
            gr.Slider(maximum=most, value=min(length, most)),
            gr.Dropdown(choices=list(range(1, layers + 1)), value=layers),
            gr.Dropdown(choices=[_MEAN, *((str(each), each) for each in range(1, heads + 1))], value=0),
        )

    fitted: list[Any] = [settings["length"], layer, head]
    model.change(fit, [model, settings["length"]], fitted, **quick).then(
        writer.count, [model, text], count, **quick
    )
    return WriteTab({"text": text, **settings}, count, fit, fitted, writer.count)


def _settings(draft: gr.State) -> dict[str, gr.components.Component]:
    """Lay the settings out; returns their controls in the order of the arguments of ``_options``."""
    limit = 1024  # until the model is there
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
        DEFAULT_LENGTH,
        precision=0,
        label="Length, tokens",
        info="At most so many; prompt and completion share the model's positions.",
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
        samples = gr.Slider(
            1,
            MOST_SAMPLES,
            1,
            precision=0,
            label="Samples",
            info="Several texts side by side; needs temperature above 0.",
        )
        # Not gr.Number, which shows an empty value as 0.
        seed = gr.Textbox(
            label="Seed", info="The same seed gives the same text. Empty: a new one each time.", max_lines=1
        )
        reuse = gr.Button("Reuse the last seed", size="sm")

    reuse.click(
        lambda last: gr.skip() if last is None else str(last.progress.seed),
        draft,
        seed,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    shaped = [temperature, top_p, ngram, beams]
    preset.input(None, preset, shaped, js=f"(name) => ({json.dumps(PRESETS)})[name]")
    for control in shaped:  # moved by hand, set by a link, or reset
        control.change(None, shaped, preset, js=_PRESET_OF)
    return {
        "length": length,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "penalty": penalty,
        "ngram": ngram,
        "beams": beams,
        "samples": samples,
        "stop": stop,
        "seed": seed,
    }


def _options(
    length: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    no_repeat_ngram_size: int,
    num_beams: int,
    samples: int,
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
        num_return_sequences=samples if num_beams == 1 else 1,
        stop=[line for line in (stop or "").splitlines() if line],
        seed=int(seed) if seed else None,
    )


def _within(
    generator: TextGenerator, text: str, options: GenerationOptions
) -> tuple[GenerationOptions, bool]:
    """The options with no more tokens than there is room for after the text, and whether that is fewer."""
    if len(text) >= MOST_CHARACTERS:  # refused elsewhere
        return options, False
    room = generator.config.max_position_embeddings - generator.count(text)
    if not 1 <= room < options.max_new_tokens:
        return options, False
    return replace(options, max_new_tokens=room), True


def _completed(text: str, undo: Undo) -> bool:
    """Whether the text still is the last prompt and what follows it; a text typed anew is not taken back."""
    return bool(undo) and text.startswith(undo[-1][1])


def _replaced(prompt: str, text: str, undo: Undo) -> tuple[str, Undo]:
    """A prompt in place of the text, which Undo brings back."""
    return prompt, undo if text in ("", prompt) else [*undo, (text, prompt)]


def _only_status(line: str, **changes: Any) -> tuple[Any, ...]:
    """What ``write`` yields when nothing but the status changes, and the draft if it is given."""
    return (gr.skip(), gr.skip(), line, changes.get("draft", gr.skip()), gr.skip(), gr.skip())


def _count(taken: int, limit: int) -> str:
    over = "" if taken < limit else " over"
    return f'<p class="count{over}">{taken:,} of {limit:,} tokens</p>'


def _status(state: str, facts: str = "") -> str:
    return f'<p class="status"><b>{state}</b> {facts}</p>'


def _refusal(error: Exception, what: str = "Not generated") -> str:
    """A status line with the names that the settings have on the page."""
    words = re.sub("|".join(rf"\b{name}\b" for name in _LABELS), lambda name: _LABELS[name[0]], str(error))
    return f'<p class="status refusal" role="alert"><b>{what}</b> {html.escape(words)}</p>'
