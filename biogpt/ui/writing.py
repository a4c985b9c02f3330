"""What a click in the Write tab does: text continued, rewritten, branched, taken back; and ``/generate``."""

import html
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from inspect import Parameter, Signature
from typing import Any, NamedTuple

import gradio as gr

from biogpt.generation.options import ON_PAGE, SETTINGS, GenerationOptions, Setting, Slider
from biogpt.serving.inspection import ALTERNATIVES, Sample, attention, branched, read_whole, scored
from biogpt.serving.service import Prompt, Step, Stream, TextService
from biogpt.serving.shelf import OnShelf, Shelf
from biogpt.text.documents import Document
from biogpt.text.plain import is_blank
from biogpt.text.results import OnProgress
from biogpt.text.sentences import sentence_spans
from biogpt.text.tokenizer import Tokenizer
from biogpt.ui.inputs import as_given
from biogpt.ui.models import title
from biogpt.ui.runs import label_all
from biogpt.ui.scoring import Score, score_of, sentences_shown
from biogpt.ui.status import REFUSALS, api_error, refusal, status
from biogpt.ui.tokens import attention_shown, choices, coming_shown, shown, units

_LOOK = 0.25  # seconds between looks at a request that waits in line, so that Stop acts meanwhile
_SINGLY = 24  # tokens that come one by one; only the first one while others write, too
_PACE = 1 / 15  # seconds between later updates, at least
_UPDATES = 40  # a second, for all who write together

_FEW = 30  # tokens of an example that runs by itself, and of what is suggested

VERSIONS = 50  # that Undo brings back

_NEEDS_SPACE = re.compile(r"[^\s.,;:!?%)\]}’”]")  # of what follows new words: as it begins

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
        found: in words, of a text that was read and not written: it has no limit.
    """

    state: str
    positions: int
    limit: int
    tokens: int
    first: float
    rest: float
    seed: int | None
    found: str = ""

    def line(self) -> str:
        if not self.limit:
            return status(self.state, self.found)
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
        prompt: what is before the samples.
        given: what the model was given: the prompt, and what of the samples is of runs before.
        samples: as many as were asked for.
        status: of the run.
        begin: how many characters are before the first that was generated.
        score: what was found of the text, where it was read for that.
        rest: what of the text is after the samples: it followed the cursor, and stays.

    The run that makes it changes it in place.
    """

    model: str
    prompt: str
    given: str
    samples: list[Sample]
    status: WritingStatus
    begin: int
    score: Score | None = None
    rest: str = ""

    def texts(self) -> list[str]:
        """What the textbox may hold of it."""
        texts = [self.prompt + sample.text for sample in self.samples] + [self.given] * (
            len(self.samples) > 1
        )
        return [text + self.rest for text in texts]

    @property
    def text(self) -> str:
        """What the textbox holds when the run has ended."""
        written = self.given if len(self.samples) > 1 else self.prompt + self.samples[0].text
        return written + self.rest

    @property
    def is_under_way(self) -> bool:
        """Whether the run that writes it has not ended: it is at work, or was cut off."""
        return self.status.limit > 0 and any(sample.finish_reason is None for sample in self.samples)

    def before(self) -> "Draft":
        """What the run went on with."""
        sample = self.samples[0]
        return replace(self, samples=[sample.cut(sample.known, sample.base)], score=None)


def opened(model: str, text: str, given: int, rest: int = 0) -> Draft:
    """A text that was opened from a link; its tokens are not known.

    Args:
        given: its first characters, to which those after them were written.
        rest: its last characters, which were there, too.
    """
    seen = WritingStatus("Opened from a link", 0, 0, 0, 0.0, 0.0, None)
    end = max(given, len(text) - rest)
    return Draft(
        model, text[:given], text[:given], [Sample([], text[given:end])], seen, given, rest=text[end:]
    )


class Version(NamedTuple):
    """A text that was on the screen, and the draft that it came from."""

    text: str
    draft: Draft | None


@dataclass(frozen=True)
class Work:
    """What a visitor has written, and what Undo and Redo bring back, the nearest one last.

    Attributes:
        suggested: what was proposed last, and nothing of it need be in the text.
    """

    draft: Draft | None = None
    past: tuple[Version, ...] = ()
    future: tuple[Version, ...] = ()
    suggested: "Suggestion | None" = None

    def then(self, before: Version, draft: Draft | None) -> "Work":
        """With a new text on the screen, which Undo takes back."""
        kept = () if before.text == "" else (before,)
        return Work(draft, (*self.past, *kept)[-VERSIONS:])


class Suggestion(NamedTuple):
    """How a text could go on.

    Attributes:
        draft: with all of it.
        text, work: before any of it was taken.
        taken: how many characters are in the text.
    """

    draft: Draft
    text: str
    work: Work
    taken: int = 0


class _Run:
    """A text under way: takes steps in, and knows what to show of them.

    Args:
        model: name of the one that writes.
        generator: the model.
        prompt: what it continues.
        options: as asked for; fewer tokens are made where the model has no room for so many.
        start: ``time.perf_counter()`` when it was asked for.
        earlier: the draft whose text the prompt is, whose tokens stay known.
        rest: what follows the new text.

    Attributes:
        prompt: what it continues.
        options: within the room that there is.
        draft: what was written so far.
    """

    def __init__(
        self,
        model: str,
        generator: TextService,
        prompt: Prompt,
        options: GenerationOptions,
        start: float,
        earlier: Draft | None = None,
        rest: str = "",
    ) -> None:
        self._is_cut = 1 <= prompt.room < options.max_new_tokens
        self.options = replace(options, max_new_tokens=prompt.room) if self._is_cut else options
        self._generator = generator
        self.prompt = prompt
        self._start = self._first = start
        limit = prompt.length + prompt.room
        self.draft = Draft(
            model,
            prompt.text if earlier is None else earlier.prompt,
            prompt.text,
            options.num_return_sequences * [Sample([]) if earlier is None else earlier.samples[0]],
            WritingStatus("Writing", prompt.length, limit, 0, 0.0, 0.0, options.seed),
            len(prompt.text) if earlier is None else min(earlier.begin, len(prompt.text)),
            rest=rest,
        )

    def begin(self, prompt: Prompt) -> None:
        """Take in how the service reads the prompt: it may open the last word."""
        self.prompt = prompt
        self.draft.samples = [sample.going_on(prompt.ids) for sample in self.draft.samples]

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
            self.draft.samples = [_read_back(self._generator, self.draft)]
        tokens = before.tokens + len(steps)
        longest = tokens if len(samples) == 1 else max(len(sample.ids) - sample.known for sample in samples)
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

    def shown(self) -> tuple[str, dict[str, Any], str, Any]:
        """Text, view, status and count; several samples are in the view alone."""
        said = self.draft.status
        return self.draft.text, _view(self.draft), said.line(), _counted(self.draft)


class Writer:
    """What the tab does, as Gradio wants it: values of components in, values of components out."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def write(
        self,
        model: str,
        text: str,
        work: Work | None,
        *settings: Any,
        rest: str = "",
        before: Version | None = None,
        session: Hashable = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Continue the text.

        Args:
            model: name of the one to write with.
            work: whose draft goes on where the text is the draft's, or the beginning of it.
            settings: values of the page's controls, in their order.
            rest: what is after the cursor: it stays behind the new text, and the model does not see it.
            before: what Undo brings back, when it is not the text.
            session: whose text it is, for the reuse of prompts.

        Yields:
            Text, view, status, work and count, as tokens come. A refusal changes the status alone.
        """
        work = work or Work()
        try:
            options = replace(options_of(settings).with_seed(), top_logprobs=ALTERNATIVES)
            start = time.perf_counter()
            for generator in self.shelf.coming(model):
                if generator is None:
                    yield _only_status(status("Loading", html.escape(title(model))))
            assert generator is not None
            earlier = _goes_on(work, model, text)
            prompt = _continued(generator, text, earlier) or _encoded(generator, text)
            run = _Run(model, generator, prompt, options, start, earlier, _apart(rest))
            stream = generator.stream(run.prompt, run.options, session)
            run.begin(stream.prompt)
            with closing(_groups(stream)) as groups:
                # A Stop before the first token must not report the run before this one.
                written = work.then(before or Version(text + rest, work.draft), run.draft)
                yield _only_status(status("Reading the prompt"), work=written)
                for group in groups:
                    if isinstance(group, int):
                        yield _only_status(status("Waiting", f"{group} in line"))
                        continue
                    run.add(group)
                    *shown_now, count = run.shown()
                    yield (*shown_now, gr.skip(), count)  # Gradio spends time on what it is given
        except REFUSALS as error:
            yield _only_status(_refusal(error))

    def rewrite(
        self, model: str, text: str, work: Work | None, *settings: Any, session: Hashable = None
    ) -> Iterator[tuple[Any, ...]]:
        """Write another completion in place of the last one; without one, continue the text."""
        before, rest, draft = None, "", work.draft if work else None
        if work is not None and draft is not None and text.startswith(draft.given):
            before, written = Version(text, draft), draft.prompt + draft.samples[0].text
            # Edited after the completion: that stays, too.
            rest = text[len(written) :] if draft.rest and text.startswith(written) else draft.rest
            text, work = draft.given, replace(work, draft=draft.before())
        yield from self.write(model, text, work, *settings, rest=rest, before=before, session=session)

    def go_on(
        self, model: str, text: str, work: Work | None, *settings: Any, session: Hashable = None
    ) -> Iterator[tuple[Any, ...]]:
        """Continue what was written last, or else the text at its end."""
        draft = work.draft if work else None
        rest = draft.rest if draft is not None and text == draft.text else ""
        yield from self.write(model, text.removesuffix(rest), work, *settings, rest=rest, session=session)

    def branch(
        self, text: str, work: Work | None, *settings: Any, event: gr.EventData, session: Hashable = None
    ) -> Iterator[tuple[Any, ...]]:
        """Continue from a token of the draft with another in its place; ``event`` says which.

        What could come after the last token is put there, and the text read again: nothing is written.
        """
        try:
            draft = work.draft if work else None
            if work is None or draft is None:
                raise ValueError("That text is gone: generate again")
            sample, generator = draft.samples[event.sample], self.shelf.take(draft.model)
            appends = draft.score is not None and event.token == len(sample.ids)
            if appends and draft.score is not None:
                sample = replace(sample, alternatives=[*sample.alternatives, draft.score.coming])
            branch = generator.ask(branched, sample, event.token, event.rank)
        except REFUSALS as error:
            yield _only_status(_refusal(error))
            return
        except (IndexError, AttributeError):
            yield _only_status(_refusal(ValueError("That token is gone: choose another")))
            return
        prompt = draft.prompt + branch.text
        before, begin = Version(text, draft), min(draft.begin, len(prompt))
        chosen = replace(draft, samples=[branch], given=prompt, begin=begin, score=None)
        if appends:
            yield from self.score(draft.model, prompt, work.then(before, chosen))
            return
        work = replace(work, draft=chosen)
        yield from self.write(
            draft.model, prompt, work, *settings, rest=draft.rest, before=before, session=session
        )

    def score(self, model: str, text: str, work: Work | None) -> Iterator[tuple[Any, ...]]:
        """Read the text, for what the model thinks of each token of it and of what could come next.

        Yields:
            As ``write``; the text stays.
        """
        work = work or Work()

        def look(generator: TextService, texts: list[str], _: OnProgress) -> list[Draft]:
            return [_looked_into(generator, model, given, _goes_on(work, model, given)) for given in texts]

        try:
            if is_blank(text):
                raise ValueError("The text is empty: type or paste something, or take an example")
            with closing(label_all(OnShelf(self.shelf, model), [Document("text", text)], look)) as runs:
                for run in runs:
                    if not run.ended:
                        yield _only_status(run.line())
            [draft] = run.results
            yield draft.text, _view(draft), draft.status.line(), replace(work, draft=draft), gr.skip()
        except REFUSALS as error:
            yield _only_status(_refusal(error, "Not scored"))

    def write_example(
        self, prompt: str, model: str, text: str, work: Work | None, *settings: Any, session: Hashable = None
    ) -> Iterator[tuple[Any, ...]]:
        """Continue a prompt by a few tokens, in place of the text."""
        before, few = Version(text, work.draft if work else None), _with(settings, max_new_tokens=_FEW)
        yield prompt, *_only_status(status("Reading the prompt"))[1:]
        yield from self.write(model, prompt, work, *few, before=before, session=session)

    def suggest(
        self,
        model: str,
        text: str,
        work: Work | None,
        *settings: Any,
        rest: str = "",
        session: Hashable = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Propose how the text goes on, to the end of a sentence, by a few tokens at the most.

        Arguments are those of ``write``.

        Yields:
            What is proposed, status and work. Nothing of it is in the text yet.
        """
        work = replace(work or Work(), suggested=None)
        few, draft = _with(settings, max_new_tokens=_FEW, num_return_sequences=1), None
        for shown_text, _, line, written, _ in self.write(
            model, text, work, *few, rest=rest, session=session
        ):
            if isinstance(written, Work) and written.draft is not None:
                draft = written.draft
                found = replace(work, suggested=Suggestion(draft, text + rest, work))
                yield gr.skip(), line, found
            elif isinstance(shown_text, str) and draft is not None:
                yield _suggested(draft, rest), status("Suggesting"), gr.skip()
            else:
                yield gr.skip(), line, gr.skip()
        if draft is not None and draft.samples[0].finish_reason:
            _end_well(self.shelf.take(model).tokenizer, draft)
            proposed = _suggested(draft, rest)
            line = status("Suggested", f"seed {draft.status.seed}")
            if is_blank(proposed["text"]):
                line = status("Nothing suggested", "The model ends the text here.")
            yield proposed, line, gr.skip()

    def take(self, work: Work | None, event: gr.EventData) -> tuple[Any, ...]:
        """What was suggested is in the text, up to some character: view, status and work.

        However many steps it was taken in, Undo brings back the text before the first one.
        """
        suggested = work.suggested if work else None
        if work is None or suggested is None or len(event.taken) < suggested.taken:  # it came too late
            return gr.skip(), gr.skip(), gr.skip()
        draft = suggested.draft
        taken = _begun(draft.samples[0], draft.samples[0].base + event.taken)
        seed = draft.status.seed
        seen = WritingStatus("Taken", 0, 0, 0, 0.0, 0.0, seed, f"seed {seed}")
        kept = replace(draft, samples=[taken], status=seen)
        then = suggested.work.then(Version(suggested.text, suggested.work.draft), kept)
        suggested = suggested._replace(taken=len(event.taken))
        return _view(kept), seen.line(), replace(then, suggested=suggested)

    def coming(self, work: Work | None) -> Any:
        """What could come after a text that was scored, as the alternatives are shown."""
        draft = work.draft if work else None
        if draft is None or draft.score is None:
            return gr.skip()
        tokenizer = self.shelf.take(draft.model).tokenizer
        return coming_shown(tokenizer, draft.score.coming, len(draft.samples[0].ids))

    def surprising(self, work: Work | None) -> Any:
        """The alternatives of the least likely token."""
        draft = work.draft if work else None
        if draft is None or not draft.samples[0].ids:
            return gr.skip()
        logprobs = draft.samples[0].logprobs
        least = min(range(len(logprobs)), key=lambda place: logprobs[place])
        return choices(self.shelf.take(draft.model).tokenizer, draft.samples, 0, least)

    def choose(self, work: Work | None, event: gr.EventData) -> Any:
        """The alternatives of the token that was chosen."""
        draft = work.draft if work else None
        if draft is None:
            return ""
        if draft.score is not None and event.token == len(draft.samples[0].ids):
            return self.coming(work)
        return choices(self.shelf.take(draft.model).tokenizer, draft.samples, event.sample, event.token)

    def keep(self, text: str, work: Work | None, event: gr.EventData) -> tuple[Any, ...]:
        """Make one of several samples the text: what ``write`` yields."""
        draft = work.draft if work else None
        if work is None or draft is None or not 0 <= event.sample < len(draft.samples):
            return _only_status(status("That sample is gone"))
        kept = replace(draft, samples=[draft.samples[event.sample]])
        return _brought(Version(kept.text, kept), "Taken", work.then(Version(text, draft), kept))

    def undo(self, text: str, work: Work | None) -> tuple[Any, ...]:
        """Bring back the text before the last change, or the completion before it was edited."""
        work = work or Work()
        edited = work.draft is not None and text not in work.draft.texts()
        if not edited and not work.past:
            return _only_status(status("Nothing to undo"))
        version = Version(work.draft.text, work.draft) if edited and work.draft else work.past[-1]
        past = work.past if edited else work.past[:-1]
        future = (*work.future, Version(text, work.draft))[-VERSIONS:]
        return _brought(version, "Undone", Work(version.draft, past, future))

    def redo(self, text: str, work: Work | None) -> tuple[Any, ...]:
        """Bring back what Undo took."""
        if work is None or not work.future:
            return _only_status(status("Nothing to redo"))
        *future, version = work.future
        past = (*work.past, Version(text, work.draft))[-VERSIONS:]
        return _brought(version, "Redone", Work(version.draft, past, tuple(future)))

    def replaced(self, prompt: str, text: str, work: Work | None) -> tuple[Any, ...]:
        """A prompt in place of the text, which Undo brings back."""
        work = work or Work()
        if text == prompt and work.draft is None:
            return _only_status(gr.skip())
        return _brought(Version(prompt, None), "Ready", work.then(Version(text, work.draft), None))

    def bring(self, version: Version, state: str, text: str, work: Work | None) -> tuple[Any, ...]:
        """Another text in place of this one, which Undo brings back: what ``write`` yields."""
        work = work or Work()
        return _brought(version, state, work.then(Version(text, work.draft), version.draft))

    def take_in(
        self, model: str, prompt: str, sample: Sample, rest: str, text: str, work: Work | None
    ) -> tuple[Any, ...]:
        """A path that goes on from a prompt, and what comes after it, as the text: what ``write`` yields."""
        seen = WritingStatus("Kept from the tree", 0, 0, 0, 0.0, 0.0, None)
        draft = Draft(model, prompt, prompt, [sample], seen, len(prompt), rest=_apart(rest))
        return self.bring(Version(draft.text, draft), seen.state, text, work)

    def stopped(self, text: str, work: Work | None) -> tuple[Any, ...]:
        """What there is after Stop, or when the page is there again: what ``write`` yields."""
        draft = work.draft if work else None
        if work is None or draft is None or not draft.is_under_way:
            return _only_status(status("Stopped"))  # what was stopped writes no text
        if draft.status.tokens == 0:
            version = work.past[-1] if work.past else Version(text, None)
            return _brought(version, "Stopped", Work(version.draft, work.past[:-1]))
        sample = draft.samples[0]
        if sample.finish_reason is None and len(sample.text) > (sample.ends or [0])[-1]:
            draft.samples = [_read_back(self.shelf.take(draft.model), draft)]
        for sample in draft.samples:
            sample.finish_reason = sample.finish_reason or "stopped"
        draft.status = replace(draft.status, state="Stopped")
        count = _counted(draft)
        return draft.text, _view(draft), draft.status.line(), gr.skip(), count

    def recall(self, text: str, work: Work | None) -> tuple[Any, ...]:
        """What to show of a text when the page is there again, or was opened from a link."""
        draft = work.draft if work else None
        if draft is None:
            return _only_status(gr.skip())
        if draft.is_under_way and draft.text.startswith(text.removesuffix(draft.rest)):
            return self.stopped(text, work)
        return gr.skip(), _view(draft), draft.status.line(), gr.skip(), gr.skip()

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
            found = generator.ask(attention, text, layer, head)
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


def _encoded(generator: TextService, text: str) -> Prompt:
    """A prompt; refused if it is empty, too, and otherwise as by ``TextService.prompt``."""
    if not isinstance(text, str):
        raise TypeError(f"prompt is {as_given(text)}; expected a string")
    if is_blank(text):
        raise ValueError("The text is empty: type the start of a sentence, or take an example")
    return generator.prompt(text)


def _goes_on(work: Work, model: str, text: str) -> Draft | None:
    """The draft with the one sample whose text this is, or of what that run went on with.

    Where the text ends after one of its tokens, what is before stays known, too.
    """
    draft = work.draft
    if draft is None or draft.model != model:
        return None
    samples = [*draft.samples, *draft.before().samples]
    same = next((sample for sample in samples if text == draft.prompt + sample.text), None)
    if same is not None:
        return replace(draft, samples=[same])
    start, last = len(draft.prompt), len(text.rstrip())  # white space is of the token after it
    for sample in draft.samples:
        count = bisect_right(sample.ends, last - start)
        ends_there = count > 0 and sample.ends[count - 1] == last - start
        if ends_there and (draft.prompt + sample.text).startswith(text):
            return replace(draft, samples=[sample.cut(count, text[start:])])
    return None


def _apart(rest: str) -> str:
    """What follows new words, with a space before it where it needs one."""
    return f" {rest}" if _NEEDS_SPACE.match(rest) else rest


def _continued(generator: TextService, text: str, draft: Draft | None) -> Prompt | None:
    """The prompt by the ids of the draft, where these say all of the text and no more."""
    sample = draft.samples[0] if draft else Sample([])
    is_known = sample.context and sample.is_made and sample.finish_reason != "stop" and not sample.held
    return generator.continued(text, [*sample.context, *sample.ids]) if is_known else None


def _looked_into(generator: TextService, model: str, text: str, earlier: Draft | None) -> Draft:
    """A text with all its tokens known, and what was found of it; ``earlier`` is the draft that it is of."""
    start = time.perf_counter()
    prompt = _continued(generator, text, earlier) or _encoded(generator, text)
    sample, coming = generator.ask(read_whole, prompt)
    given = text if earlier is None or not text.startswith(earlier.given) else earlier.given
    sample.base, sample.known = given, sum(end <= len(given) for end in sample.ends)
    score = score_of(sample, coming)
    seconds = time.perf_counter() - start
    found = f"{score.bits:.2f} bits per byte · {len(sample.ids):,} tokens · {seconds:.1f} s"
    seed = None if earlier is None else earlier.status.seed
    begin = len(text) if earlier is None else min(earlier.begin, len(text))
    return Draft(
        model, "", given, [sample], WritingStatus("Scored", 0, 0, 0, 0.0, 0.0, seed, found), begin, score
    )


def _read_back(generator: TextService, draft: Draft) -> Sample:
    """The text of a beam search, which tells nothing of its tokens: they are read once more."""
    [sample] = draft.samples
    read = generator.ask(scored, draft.prompt, sample.text)
    known = sum(end <= len(sample.base) for end in read.ends)
    return replace(read, base=sample.base, known=known, finish_reason=sample.finish_reason)


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


def options_of(values: Sequence[Any], changes: Mapping[str, Any] | None = None) -> GenerationOptions:
    """The values of the page's controls, in their order, as options; ValueError as ``GenerationOptions``.

    Args:
        changes: other values of some of the options, by their names.
    """
    given = {row.name: _read(row, value) for row, value in zip(ON_PAGE, values, strict=True)}
    given |= changes or {}
    if given["num_beams"] != 1:  # a search for one text
        given["num_return_sequences"] = 1
    return GenerationOptions(**given)


def _with(settings: Sequence[Any], **most: int) -> list[Any]:
    """The values of the page's controls, some of them no higher than given."""
    pairs = zip(ON_PAGE, settings, strict=True)
    return [min(value, most[row.name]) if row.name in most else value for row, value in pairs]


def _suggested(draft: Draft, rest: str) -> dict[str, str]:
    """For the browser: what is proposed, and the space that comes between it and what follows the cursor."""
    [sample] = draft.samples
    return {"text": sample.text.removeprefix(sample.base), "gap": draft.rest.removesuffix(rest)}


def _end_well(tokenizer: Tokenizer, draft: Draft) -> None:
    """Let a draft end with its first new sentence, or with a whole word where it is shorter and has one."""
    [sample] = draft.samples
    text, start = draft.prompt + sample.text, len(draft.prompt + sample.base)
    end = next((end for _, end in sentence_spans(text) if not is_blank(text[start:end])), len(text))
    end -= draft.rest.startswith(text[end - 1])  # the stop is there already
    if end < len(text.rstrip()):
        draft.samples = [_begun(sample, text[len(draft.prompt) : end])]
        return
    ends = [place for place in range(sample.known, len(sample.ids)) if tokenizer.ends_word(sample.ids[place])]
    if sample.finish_reason == "length" and ends and ends[-1] < len(sample.ids) - 1:
        draft.samples = [_begun(sample, sample.text[: sample.ends[ends[-1]]])]


def _begun(sample: Sample, text: str) -> Sample:
    """The sample as far as this text goes, with which it begins."""
    cut = sample.cut(bisect_right(sample.ends, len(text)), text)
    return replace(cut, base=sample.base, known=sample.known, finish_reason="length")


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


def _view(draft: Draft) -> dict[str, Any]:
    below = sentences_shown(draft.text, draft.score) if draft.score else ""
    view = shown(draft.prompt, draft.samples, units(draft.text[: draft.begin]), below)
    return view | {"text": draft.text, "rest": units(draft.rest)}


def _brought(version: Version, state: str, work: Work) -> tuple[Any, ...]:
    """A text that is on the screen again: what ``write`` yields."""
    draft = version.draft
    view = _view(draft) if draft else shown(version.text, []) | {"text": version.text}
    return version.text, view, status(state), work, gr.skip()


def _only_status(line: Any, work: Any = None) -> tuple[Any, ...]:
    """What ``write`` yields when nothing but the status changes, and what was written if it is given."""
    return gr.skip(), gr.skip(), line, gr.skip() if work is None else work, gr.skip()


def _counted(draft: Draft) -> Any:
    """How much of the positions a draft takes; where something follows the cursor, the page asks for it."""
    return gr.skip() if draft.rest else _count(draft.status.positions, draft.status.limit)


def _count(taken: int, limit: int) -> str:
    over = "" if taken < limit else " over"
    return f'<p class="count{over}">{taken:,} of {limit:,} tokens</p>'


def _refusal(error: Exception, what: str = "Not generated") -> str:
    """A status line with the names that the settings have on the page."""
    names = "|".join(rf"\b{name}\b" for name in _LABELS)
    return refusal(ValueError(re.sub(names, lambda name: _LABELS[name[0]], str(error))), what)
