"""What a click in the Write tab asks of the service, and what becomes of its answer; without a browser."""

import itertools
import math
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.generation.options import ON_PAGE, Box, GenerationOptions
from biogpt.model.config import BioGptConfig
from biogpt.serving.inspection import Sample, branched
from biogpt.serving.shelf import Shelf
from biogpt.serving.text_generator import TextGenerator
from biogpt.ui.tokens import choices, shown
from biogpt.ui.writing import Work, Writer, opened

PROMPT = "a b"
LIMIT = 40  # positions


def values_of(**changes: Any) -> list[Any]:
    """What the page's controls hold when some were changed."""
    return [changes.get(row.name, "" if isinstance(row.control, Box) else row.start) for row in ON_PAGE]


@contextmanager
def tiny(pieces: Iterable[str], merges: Sequence[tuple[str, str]] = ()) -> Iterator[TextGenerator]:
    """It never ends a text early: no token that it makes is a control token.

    A checkpoint without merges is refused; one is there of letters that no text here has.
    """
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    config = BioGptConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LIMIT,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = BioGptForCausalLM(config)
    with torch.no_grad():
        model.output_projection.weight.normal_()
        model.output_projection.weight[:4] = 0
    tokenizer = BioGptTokenizer({token: index for index, token in enumerate(tokens)}, [*merges, ("q", "z")])
    made = TextGenerator(model, tokenizer)
    yield made
    made.close()


@pytest.fixture
def generator() -> Iterator[TextGenerator]:
    """It writes words of one letter."""
    with tiny(f"{letter}</w>" for letter in string.ascii_lowercase) as made:
        yield made


@pytest.fixture
def writer(generator: TextGenerator) -> Writer:
    return writer_of(generator)


def writer_of(generator: TextGenerator) -> Writer:
    shelf = Shelf("tiny", lambda _: generator)
    shelf.take()
    return Writer(shelf)


def drafts(updates: Iterable[tuple[Any, ...]]) -> tuple[Work, Sample]:
    """What a run leaves behind, and its first sample."""
    [work] = [update[3] for update in updates if isinstance(update[3], Work)]
    assert work.draft is not None
    return work, work.draft.samples[0]


@pytest.fixture
def asked(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often what was called of the service, and of its tokenizer."""
    calls: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **named)

        return call

    for name in ("prompt", "count", "stream", "generate", "run"):
        monkeypatch.setattr(generator, name, counted(name, getattr(generator, name)))
    monkeypatch.setattr(generator.tokenizer, "encode", counted("encode", generator.tokenizer.encode))
    return calls


ONCE = {"prompt": 1, "encode": 1, "stream": 1}


def test_generate_and_continue_encode_the_text_once_and_ask_once(writer: Writer, asked: Counter[str]) -> None:
    """Four times, and five, until the page and the service shared one ``Prompt``."""
    settings = values_of(max_new_tokens=4)
    *_, last = writer.write("tiny", PROMPT, None, *settings)
    assert "Finished" in last[2]
    assert asked == ONCE
    asked.clear()
    *_, last = writer.write("tiny", last[0], None, *settings)
    assert "Finished" in last[2]
    assert asked == ONCE


def test_the_endpoint_encodes_the_text_once_and_asks_once(writer: Writer, asked: Counter[str]) -> None:
    *_, last = writer.generate(PROMPT, {"max_new_tokens": 4}, None)
    assert last["finish_reason"] in ("length", "eos")
    assert asked == ONCE


def test_what_is_typed_is_counted_by_encoding_it_once(writer: Writer, asked: Counter[str]) -> None:
    assert f"3 of {LIMIT} tokens" in writer.count("tiny", PROMPT)
    assert f"0 of {LIMIT} tokens" in writer.count("tiny", "")
    assert asked == {"prompt": 2, "encode": 2}


def test_the_text_ends_where_the_room_does(writer: Writer) -> None:
    text = "a " * (LIMIT - 4)
    settings = values_of(max_new_tokens=20, temperature=0.0)
    *_, last = writer.write("tiny", text, None, *settings)
    assert f"{LIMIT} of {LIMIT} positions" in last[2]
    assert "as long as the model can read" in last[2]
    [*_, refused] = writer.write("tiny", "a " * LIMIT, None, *settings)
    assert f"{LIMIT + 1} tokens and the model {LIMIT} positions" in refused[2]


def test_one_prompt_is_counted_and_continued(generator: TextGenerator) -> None:
    prompt = generator.prompt(PROMPT)
    assert prompt.ids == tuple(generator.tokenizer.encode(PROMPT).ids)
    assert prompt.length == len(prompt.ids) == generator.count(PROMPT)
    assert prompt.room == LIMIT - prompt.length
    options = GenerationOptions(max_new_tokens=5)
    with generator.stream(prompt, options) as stream:
        assert stream.prompt is prompt
    assert generator.generate(prompt, options) == generator.generate(PROMPT, options)


@pytest.fixture
def spelling() -> Iterator[TextGenerator]:
    """It writes letters and pairs of letters, not always those that the text would be encoded as."""
    pairs = list(itertools.product("abcd", repeat=2))
    letters = [letter + end for letter in "abcd" for end in ("", "</w>")]
    with tiny([*letters, *map("".join, pairs)], pairs) as made:
        yield made


@pytest.mark.parametrize("length", [1, 3])
def test_runs_that_go_on_are_as_one_run(spelling: TextGenerator, length: int) -> None:
    """Each reads the ids that were made: encoded anew, a text that was cut inside a word has other ones."""
    writer, settings = writer_of(spelling), values_of(temperature=0.0, max_new_tokens=12)
    _, whole = drafts(writer.write("tiny", PROMPT, None, *settings))
    work, text, parts = None, PROMPT, values_of(temperature=0.0, max_new_tokens=length)
    for _ in range(12 // length):
        work, sample = drafts(writer.write("tiny", text, work, *parts))
        assert work.draft is not None
        text = work.draft.text
    assert (sample.context, sample.ids, sample.text) == (whole.context, whole.ids, whole.text)
    assert sample.ends == whole.ends
    assert sample.logprobs == pytest.approx(whole.logprobs, abs=1e-5)


def test_a_text_that_was_cut_at_a_stop_string_goes_on_by_what_is_left_of_it(spelling: TextGenerator) -> None:
    """The ids that were made hold the stop string, which is no part of the text."""
    writer = writer_of(spelling)
    _, whole = drafts(writer.write("tiny", PROMPT, None, *values_of(temperature=0.0, max_new_tokens=12)))
    word = whole.text.split()[1]
    settings = values_of(temperature=0.0, max_new_tokens=12, stop=word)
    work, cut = drafts(writer.write("tiny", PROMPT, None, *settings))
    assert work.draft is not None
    assert cut.finish_reason == "stop"
    with spelling.stream(work.draft.text, GenerationOptions(max_new_tokens=3)) as stream:
        read = stream.prompt.ids
    _, sample = drafts(writer.write("tiny", work.draft.text, work, *values_of(max_new_tokens=3)))
    ids = [*sample.context, *sample.ids]
    assert (tuple(ids[:-3]), sample.known) == (read, len(sample.ids) - 3)
    assert sample.text.startswith(cut.text)


def test_rewriting_gives_the_model_what_the_run_before_was_given(spelling: TextGenerator) -> None:
    writer, settings = writer_of(spelling), values_of(temperature=0.0, max_new_tokens=5)
    work, _ = drafts(writer.write("tiny", PROMPT, None, *settings))
    for _ in range(2):
        assert work.draft is not None
        work, again = drafts(writer.write("tiny", work.draft.text, work, *settings))
    assert work.draft is not None
    _, rewritten = drafts(writer.rewrite("tiny", work.draft.text, work, *settings))
    assert (rewritten.ids, rewritten.text, rewritten.known) == (again.ids, again.text, again.known)


def test_another_token_in_its_place_goes_on_from_there(spelling: TextGenerator) -> None:
    writer, settings = writer_of(spelling), values_of(temperature=0.0, max_new_tokens=6)
    work, sample = drafts(writer.write("tiny", PROMPT, None, *settings))
    assert work.draft is not None
    offered = [(rank, *pair) for rank, pair in enumerate(sample.alternatives[3])]
    for rank, other, logprob in offered:
        if spelling.tokenizer.is_control(other):
            continue
        event: Any = SimpleNamespace(sample=0, token=3, rank=rank)
        _, branch = drafts(writer.branch(work.draft.text, work, *settings, event=event))
        given = spelling.run(partial(branched, spelling, sample, 3, rank))
        assert branch.ids[: branch.known] == given.ids
        assert branch.ids[:4] == [*sample.ids[:3], other]
        assert branch.logprobs[:4] == [*sample.logprobs[:3], logprob]
        assert len(branch.ids) == branch.known + 6
        assert spelling.tokenizer.ends_word(branch.ids[branch.known - 1]) or branch.known == 12


def test_a_text_from_a_link_goes_on_with_tokens_of_which_nothing_is_known(writer: Writer) -> None:
    work = Work(opened("tiny", "a b c d", 3))
    _, sample = drafts(writer.write("tiny", "a b c d", work, *values_of(max_new_tokens=2)))
    assert sample.text.startswith(" c d ")
    assert sample.ends[sample.known - 1] == len(" c d")
    assert [math.isnan(logprob) for logprob in sample.logprobs] == [True, False, False]
    assert [piece["percents"][0] for piece in shown("a b", [sample])["samples"]] == [-1]
    assert choices(writer.shelf.take().tokenizer, [sample], 0, 0) == ""
