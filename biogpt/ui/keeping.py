"""What a visitor keeps in the browser, or takes away: texts with settings, seed, times and tokens.

Nothing of it is stored here: the server makes a record of what is on the screen, and opens one that it is
given. A record comes from a stranger, as a link does: what does not fit is left out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from biogpt.generation.options import ON_PAGE
from biogpt.serving.inspection import ALTERNATIVES, Sample
from biogpt.serving.shelf import Shelf
from biogpt.text.tokenizer import Tokenizer
from biogpt.ui.links import decode
from biogpt.ui.runs import QUICK
from biogpt.ui.scripts import KEPT, KEPT_EVENTS, script
from biogpt.ui.status import refusal, status
from biogpt.ui.tokens import piece
from biogpt.ui.writing import Draft, Version, Work, Writer, WritingStatus

_FORMAT = "biogpt-text-1"
_MOST_SAMPLES = 32
_NAMES = [row.control.link for row in ON_PAGE if row.control is not None]  # of settings, in the page's order


def record(shelf: Shelf, model: str, text: str, work: Work | None, values: Sequence[Any]) -> dict[str, Any]:
    """What is on the screen, as JSON can hold it; tokens only where they are those of the text."""
    settings = dict(zip(_NAMES, values, strict=True))
    kept: dict[str, Any] = {"format": _FORMAT, "model": model, "text": text, "settings": settings}
    draft = work.draft if work else None
    if draft is None or text not in draft.texts():
        return kept
    said, tokenizer = draft.status, shelf.take(draft.model).tokenizer
    kept |= {
        "model": draft.model,
        "prompt": draft.prompt,
        "given": draft.given,
        "rest": draft.rest,
        "seed": said.seed,
        "tokens": said.tokens,
        "seconds_to_first_token": round(said.first, 3),
        "seconds_after_it": round(said.rest, 3),
        "samples": [_told(tokenizer, sample) for sample in draft.samples],
    }
    return kept


def _told(tokenizer: Tokenizer, sample: Sample) -> dict[str, Any]:
    starts = [0, *sample.ends]
    tokens = []
    for place, (token, end) in enumerate(zip(sample.ids, sample.ends, strict=True)):
        others = [
            {"id": other, "piece": piece(tokenizer, other), "logprob": value}
            for other, value in sample.alternatives[place]
        ]
        logprob = sample.logprobs[place]
        known = None if math.isnan(logprob) else logprob
        written = sample.text[starts[place] : end]
        tokens.append({"id": token, "text": written, "end": end, "logprob": known, "likeliest": others})
    return {
        "context": sample.context,
        "text": sample.text,
        "finish_reason": sample.finish_reason,
        "tokens": tokens,
    }


def opened(shelf: Shelf, given: Any) -> tuple[Version, dict[str, Any], str]:
    """A record's text with the draft that it tells, its settings by their names in links, and its model.

    Raises:
        ValueError: it is no record.
    """
    if not isinstance(given, dict) or given.get("format") != _FORMAT:
        raise ValueError("That is no text that was saved here; choose another")
    asked = given.get("settings")
    settings = {name: asked[name] for name in _NAMES if name in asked} if isinstance(asked, dict) else {}
    state: dict[str, Any] = {**settings, "text": given.get("text")}
    values, _ = decode(state)
    text = str(values.pop("text", ""))
    model = str(given.get("model"))
    draft = None
    if model in shelf.names() and shelf.has(model):
        draft = _draft(shelf.take(model).tokenizer, model, given)
    fits = draft is not None and text in draft.texts()
    return Version(text, draft if fits else None), values, model


def _draft(tokenizer: Tokenizer, model: str, given: Mapping[str, Any]) -> Draft | None:
    """What a record tells of how a text was written; None where it is not whole."""
    try:
        prompt, before, rest = given["prompt"], given["given"], given.get("rest", "")
        samples = [_sample(tokenizer, told) for told in given["samples"][:_MOST_SAMPLES]]
        seed = given["seed"]
        if not (all(isinstance(words, str) for words in (prompt, before, rest)) and samples):
            return None
        seen = WritingStatus("Opened", 0, 0, 0, 0.0, 0.0, seed if type(seed) is int else None)
        return Draft(model, prompt, before, samples, seen, len(prompt), rest=rest)
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _sample(tokenizer: Tokenizer, told: Mapping[str, Any]) -> Sample:
    sample = Sample([_id(tokenizer, token) for token in told["context"]], str(told["text"]))
    for token in told["tokens"]:
        others = tuple(
            (_id(tokenizer, other["id"]), _logprob(other["logprob"])) for other in token["likeliest"]
        )
        logprob = math.nan if token["logprob"] is None else _logprob(token["logprob"])
        end = token["end"]
        if type(end) is not int or not (sample.ends or [0])[-1] <= end <= len(sample.text):
            raise ValueError("ends that do not follow")
        sample.put(_id(tokenizer, token["id"]), logprob, others[: 2 * ALTERNATIVES], end)
    reason = told["finish_reason"]
    sample.finish_reason = reason if reason in ("eos", "length", "stop") else "length"
    return sample


def _id(tokenizer: Tokenizer, value: Any) -> int:
    if type(value) is not int:
        raise ValueError("no id")
    tokenizer.token(value)
    return int(value)


def _logprob(value: Any) -> float:
    number = float(value)
    if not number <= 0:
        raise ValueError("no logarithm of a probability")
    return number


def keep_panel(
    writer: Writer,
    model: gr.State,
    text: gr.Textbox,
    work: gr.State,
    settings: list[Any],
    written: list[Any],
) -> None:
    """Lay out what is kept in the browser, in the Blocks at hand, and connect it.

    Args:
        model: the name of the visitor's model.
        text: of the tab.
        work: what was written.
        settings: the controls, in the order of ``ON_PAGE``.
        written: what ``Writer.bring`` gives values of.
    """
    with gr.Accordion("Save, share, take away", open=False, elem_id="kept-panel"):
        view = gr.HTML(
            {}, html_template=KEPT, js_on_load=KEPT_EVENTS, apply_default_css=False, elem_id="kept"
        )
        line = gr.HTML(status("Ready"), elem_id="kept-status")
    made = gr.Textbox(visible=False)

    def make(event: gr.EventData, name: str, given: str, before: Work | None, *values: Any) -> str:
        kept = record(writer.shelf, name, given, before, values)
        return json.dumps({"what": event.what, "name": event.name, "record": kept})

    def open_record(given: str, before: Work | None, event: gr.EventData) -> tuple[Any, ...]:
        try:
            version, values, name = opened(writer.shelf, event.record)
        except ValueError as error:
            return (*(gr.skip() for _ in (*written, *settings)), refusal(error, "Not opened"))
        changed = [values.get(setting, gr.skip()) for setting in _NAMES]
        if event.what == "settings":
            return (*(gr.skip() for _ in written), *changed, status("Settings taken"))
        note = "" if version.draft or "samples" not in event.record else f"Its tokens need the model {name}."
        shown = writer.bring(version, "Opened", given, before)
        return (*shown, *changed, status("Opened", note))

    view.submit(make, [model, text, work, *settings], made, **QUICK).then(
        None, made, line, js=script("keep", status("Done"), status("Not done"))
    )
    view.select(open_record, [text, work], [*written, *settings, line], **QUICK)
