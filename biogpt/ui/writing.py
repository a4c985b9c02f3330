"""What a click in the Write tab does: text continued, rewritten, branched, taken back; and ``/generate``."""

import html
import re
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, Signature
from typing import Any

import gradio as gr

from biogpt.generation.options import ON_PAGE, SETTINGS, GenerationOptions, Setting, Slider
from biogpt.serving.inspection import ALTERNATIVES, Sample, attention, branched, scored
from biogpt.serving.shelf import Shelf
from biogpt.serving.text_generator import Prompt, Step, Stream, TextGenerator
from biogpt.text.plain import is_blank
from biogpt.ui.inputs import as_given
from biogpt.ui.models import title
from biogpt.ui.status import REFUSALS, api_error, refusal, status
from biogpt.ui.tokens import attention_shown, choices, shown

_LOOK = 0.25  # seconds between looks at a request that waits in line, so that Stop acts meanwhile
_SINGLY = 24  # tokens that come one by one; only the first one while others write, too
_PACE = 1 / 15  # seconds between later updates, at least
_UPDATES = 40  # a second, for all who write together

_FINISHED = {
    "eos": "Finished: end of text",
    "length": "Finished: length reached",
    "room": "Finished: the text is as long as the model can read",
    "stop": "Finished: stop string met",
}

_LABELS = {row.name: row.control.label for row in ON_PAGE if row.control is not None}

# As Gradio's documentation of endpoints and tools wants it: a line for each parameter.
_ENDPOINT = """\
Continue a biomedical text with BioGPT, one update a token. It completes; it does not follow instructions.

Args:
{}

Returns:
    text: all of the completion so far, the prompt left out; tokens: its length; seed: gives the same text
    again; finish_reason: null until the last update, then "eos", "length" or "stop".
"""

# Before and after: the text as it was, and what was then given to the model; a branch lets them differ.
Undo = list[tuple[str, str]]


@dataclass(frozen=True)
class WritingStatus:
    """What the status line tells of a text that is written.

    Attributes:
        state: in words.
        positions, limit: taken by prompt and completion, and the most that the model has.
        tokens: generated so far.
        first: seconds to the first token.
        rest: seconds from the first token to the last.
        seed: what the text was drawn with.
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
        return status(self.state, " · ".join(facts))


@dataclass
class Draft:
    """What the last run wrote.

    Attributes:
        model: its name.
        prompt: what the model was given.
        samples: as many as were asked for.
        status: of the run.

    The run that makes it changes it in place.
    """

    model: str
    prompt: str
    samples: list[Sample]
    status: WritingStatus


class _Run:
    """A text under way: takes steps in, and knows what to show of them.

    Args:
        model: name of the one that writes.
        generator: the model.
        prompt: what it continues.
        options: as asked for; fewer tokens are made where the model has no room for so many.
        start: ``time.perf_counter()`` when it was asked for.

    Attributes:
        prompt: what it continues.
        options: within the room that there is.
        draft: what was written so far.
    """

    def __init__(
        self,
        model: str,
        generator: TextGenerator,
        prompt: Prompt,
        options: GenerationOptions,
        start: float,
    ) -> None:
        self._is_cut = 1 <= prompt.room < options.max_new_tokens
        self.options = replace(options, max_new_tokens=prompt.room) if self._is_cut else options
        self._generator = generator
        self.prompt = prompt
        self._start = self._first = start
        samples = [Sample([]) for _ in range(options.num_return_sequences)]
        limit = prompt.length + prompt.room
        self.draft = Draft(
            model,
            prompt.text,
            samples,
            WritingStatus("Writing", prompt.length, limit, 0, 0.0, 0.0, options.seed),
        )

    def begin(self, prompt: Prompt) -> None:
        """Take in how the service reads the prompt: it may open the last word."""
        self.prompt = prompt
        for sample in self.draft.samples:
            sample.context = list(prompt.ids)

    def add(self, steps: Sequence[Step]) -> None:
        """Take steps in: one at least."""
        now, samples, before = time.perf_counter(), self.draft.samples, self.draft.status
        if before.tokens == 0:
            self._first = now
        for step in steps:
            sample = samples[step.sequence]
            sample.add(step) if self.options.num_beams == 1 else sample.replace(step)
        last = steps[-1]
        if self.options.num_beams > 1 and last.finish_reason:
            samples[0] = self._generator.run(partial(scored, self._generator, self.prompt.text, last.text))
            samples[0].finish_reason = last.finish_reason
        tokens = before.tokens + len(steps)
        longest = tokens if len(samples) == 1 else max(len(sample.ids) for sample in samples)
        self.draft.status = replace(
            before,
            state=self._state(last),
            positions=self.prompt.length + longest,
            tokens=tokens,
            first=self._first - self._start,
            rest=now - self._first,
        )

    def _state(self, last: Step) -> str:
        if any(sample.finish_reason is None for sample in self.draft.samples):
            several = len(self.draft.samples) > 1
            return f"Writing sample {last.sequence + 1}" if several else "Writing"
        is_at_the_end = self._is_cut and last.finish_reason == "length"
        return _FINISHED.get("room" if is_at_the_end else last.finish_reason or "", "Writing")

    def shown(self) -> tuple[str, dict[str, Any], str, str]:
        """Text, view, status and count; several samples are in the view alone."""
        samples, said = self.draft.samples, self.draft.status
        completion = samples[0].text if len(samples) == 1 else ""
        text = self.prompt.text
        return text + completion, shown(text, samples), said.line(), _count(said.positions, said.limit)


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
        draft: Draft | None = None,
        before: str | None = None,
        session: Hashable = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Continue the text.

        Args:
            model: name of the one to write with.
            settings: values of the page's controls, in their order.
            draft: of the last run; where the text is its own, it goes on as one run would.
            before: the text that Undo brings back, when it is another one.
            session: whose text it is, for the reuse of prompts.

        Yields:
            Text, view, status, draft, undo list and count, as tokens come. A refusal changes the status
            alone.
        """
        try:
            options = replace(_options(settings).with_seed(), top_logprobs=ALTERNATIVES)
            start = time.perf_counter()
            for generator in self.shelf.coming(model):
                if generator is None:
                    yield _only_status(status("Loading", html.escape(title(model))))
            assert generator is not None
            prompt = _continued(generator, model, text, draft) or _encoded(generator, text)
            run = _Run(model, generator, prompt, options, start)
            stream = generator.stream(run.prompt, run.options, session)
            run.begin(stream.prompt)
            with closing(_groups(stream)) as groups:
                # A Stop before the first token must not report the run before this one.
                yield _only_status(status("Reading the prompt"), draft=None)
                once: tuple[Any, Any] = run.draft, [*undo, (text if before is None else before, text)]
                for group in groups:
                    if isinstance(group, int):
                        yield _only_status(status("Waiting", f"{group} in line"))
                        continue
                    run.add(group)
                    *shown_now, count = run.shown()
                    yield (*shown_now, *once, count)
                    once = gr.skip(), gr.skip()  # Gradio spends time on what it is given
        except REFUSALS as error:
            yield _only_status(_refusal(error))

    def rewrite(
        self,
        model: str,
        text: str,
        undo: Undo,
        *settings: Any,
        draft: Draft | None = None,
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
                *(draft.prompt + sample.text for sample in draft.samples),
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
        sample = draft.samples[event.sample]
        return draft.prompt + sample.text, shown(draft.prompt, [sample]), replace(draft, samples=[sample])

    def undo(self, text: str, undo: Undo) -> tuple[Any, ...]:
        """Take the last completion back: what ``write`` yields."""
        if not _completed(text, undo):
            return _only_status(status("Nothing to undo"))
        before = undo[-1][0]
        return before, shown(before, []), status("Undone"), None, undo[:-1], gr.skip()

    def stopped(self, draft: Draft | None) -> str:
        """The status after Stop."""
        return status("Stopped") if draft is None else replace(draft.status, state="Stopped").line()

    def count(self, model: str, text: str) -> str:
        """How much of the model's positions a text takes."""
        generator = self.shelf.glance(model)
        if generator is None or not isinstance(text, str):  # it is loaded when it first writes
            return ""
        try:
            prompt = generator.prompt(text)
            return _count(prompt.length if text else 0, prompt.length + prompt.room)
        except REFUSALS as error:
            return f'<p class="count over">{html.escape(str(error))}</p>'

    def attention(self, model: str, text: str, layer: int, head: int) -> dict[str, Any]:
        """The value of the attention view."""
        try:
            generator = self.shelf.take(model)
            found = generator.run(partial(attention, generator, text, layer, head))
            layers, heads = generator.config.num_hidden_layers, generator.config.num_attention_heads
            return attention_shown(found, generator.tokenizer, layers, heads)
        except REFUSALS as error:
            return {"tokens": [], "rows": [], "note": _refusal(error, "Not shown")}

    def generate(self, prompt: str, given: Mapping[str, Any], model: str | None) -> Iterator[dict[str, Any]]:
        """Continue a text for a client.

        Args:
            given: values of settings.
            model: name of the one to write with; the page's own when None.

        Yields:
            ``text`` so far, ``tokens`` of it, ``seed``, and ``finish_reason``, one update a token.

        Raises:
            gr.Error: it is refused.
        """
        try:
            options = GenerationOptions(**given).with_seed()
            *_, generator = self.shelf.coming(model)
            assert generator is not None
            with closing(_groups(generator.stream(_encoded(generator, prompt), options))) as groups:
                steps = (step for group in groups if not isinstance(group, int) for step in group)
                for tokens, step in enumerate(steps, start=1):
                    yield {
                        "text": step.text,
                        "tokens": tokens,
                        "seed": options.seed,
                        "finish_reason": step.finish_reason,
                    }
        except REFUSALS as error:
            raise api_error(error, "Not generated") from error

    def endpoint(self) -> Callable[..., Iterator[dict[str, Any]]]:
        """``generate`` as ``gr.api`` reads it: a parameter for each setting, with its default and help."""
        rows = [row for row in SETTINGS if row.endpoint]

        def generate(prompt: str, *values: Any) -> Iterator[dict[str, Any]]:
            *settings, model = values
            pairs = zip(rows, settings, strict=True)
            given = {row.name: value for row, value in pairs if not (row.is_list and value is None)}
            yield from self.generate(prompt, given, model)

        parameters = [
            ("prompt", str, Parameter.empty, 'The beginning of a text, such as "COVID-19 is".'),
            *(
                (row.name, list[str] | None, None, row.help)
                if row.is_list
                else (row.name, row.type, row.start, row.help)
                for row in rows
            ),
            ("model", str | None, None, "The language model that writes; null is the page's own."),
        ]
        generate.__annotations__ = {name: kind for name, kind, _, _ in parameters} | {
            "return": Iterator[dict[str, Any]]
        }
        generate.__signature__ = Signature(  # type: ignore[attr-defined]
            [
                Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
                for name, kind, default, _ in parameters
            ],
            return_annotation=Iterator[dict[str, Any]],
        )
        generate.__doc__ = _ENDPOINT.format(
            "\n".join(f"    {name}: {words}" for name, _, _, words in parameters)
        )
        return generate


def _encoded(generator: TextGenerator, text: str) -> Prompt:
    """A prompt; refused if it is empty, too, and otherwise as by ``TextGenerator.prompt``."""
    if not isinstance(text, str):
        raise TypeError(f"prompt is {as_given(text)}; expected a string")
    if is_blank(text):
        raise ValueError("The text is empty: type the start of a sentence, or take an example")
    return generator.prompt(text)


def _continued(generator: TextGenerator, model: str, text: str, draft: Draft | None) -> Prompt | None:
    """The prompt by the ids of the draft, where the text is all that these say and no more."""
    if draft is None or draft.model != model:
        return None
    for sample in draft.samples:
        complete = sample.is_made and sample.finish_reason != "stop" and not sample.held
        if complete and sample.ids and text == draft.prompt + sample.text:
            return generator.continued(text, [*sample.context, *sample.ids])
    return None


def _groups(stream: Stream) -> Generator[list[Step] | int, None, None]:
    """The steps of a text as they come, or while it waits in line its place, an int.

    Steps that come fast come together, but for the first few: browser and server spend some tens of
    milliseconds on an update, more than a small model on a token.
    """
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


def _options(values: Sequence[Any]) -> GenerationOptions:
    """The values of the page's controls, in their order, as options; ValueError as ``GenerationOptions``."""
    given = {row.name: _read(row, value) for row, value in zip(ON_PAGE, values, strict=True)}
    if given["num_beams"] != 1:  # a search for one text
        given["num_return_sequences"] = 1
    return GenerationOptions(**given)


def _read(row: Setting, value: Any) -> Any:
    if isinstance(row.control, Slider):
        return value
    text = value or ""
    if row.is_list:
        return [line for line in text.splitlines() if line]
    text = text.strip()
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"{row.name} is {text!r}; expected a whole number, or nothing")
    return int(text) if text else None


def _completed(text: str, undo: Undo) -> bool:
    """Whether the text still is the last prompt and what follows it; a text typed anew is not taken back."""
    return bool(undo) and text.startswith(undo[-1][1])


def replaced(prompt: str, text: str, undo: Undo) -> tuple[str, Undo]:
    """A prompt in place of the text, which Undo brings back."""
    return prompt, undo if text in ("", prompt) else [*undo, (text, prompt)]


def _only_status(line: str, **changes: Any) -> tuple[Any, ...]:
    """What ``write`` yields when nothing but the status changes, and the draft if it is given."""
    return (gr.skip(), gr.skip(), line, changes.get("draft", gr.skip()), gr.skip(), gr.skip())


def _count(taken: int, limit: int) -> str:
    over = "" if taken < limit else " over"
    return f'<p class="count{over}">{taken:,} of {limit:,} tokens</p>'


def _refusal(error: Exception, what: str = "Not generated") -> str:
    """A status line with the names that the settings have on the page."""
    names = "|".join(rf"\b{name}\b" for name in _LABELS)
    return refusal(ValueError(re.sub(names, lambda name: _LABELS[name[0]], str(error))), what)
