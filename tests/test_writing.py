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
from biogpt.text.sentences import sentence_spans
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


def test_new_words_stand_at_the_cursor_and_what_follows_them_stays(writer: Writer) -> None:
    settings = values_of(temperature=0.0, max_new_tokens=3)
    work, sample = drafts(writer.write("tiny", PROMPT, None, *settings, rest="and. the rest"))
    assert work.draft is not None
    assert work.past == ((f"{PROMPT}and. the rest", None),)
    text = work.draft.text
    assert text == f"{PROMPT}{sample.text} and. the rest"
    going_on, longer = drafts(writer.go_on("tiny", text, work, *settings))
    assert going_on.draft is not None
    assert (longer.ids[:3], longer.known) == (sample.ids, 3)
    assert going_on.draft.text == f"{PROMPT}{longer.text} and. the rest"
    again, rewritten = drafts(writer.rewrite("tiny", text + " by hand", work, *settings))
    assert again.draft is not None
    assert rewritten.ids == sample.ids
    assert again.draft.text == text + " by hand", "what was typed behind them stays, too"
    assert writer.undo(text, work)[0] == f"{PROMPT}and. the rest"


def test_what_is_before_the_cursor_stays_known(writer: Writer) -> None:
    settings = values_of(temperature=0.0, max_new_tokens=6)
    work, whole = drafts(writer.write("tiny", PROMPT, None, *settings))
    end = whole.ends[2]
    for space in ("", " "):
        head = PROMPT + whole.text[:end] + space
        then, sample = drafts(writer.write("tiny", head, work, *settings, rest=whole.text[end:]))
        assert (sample.ids[:3], sample.logprobs[:3]) == (whole.ids[:3], whole.logprobs[:3])
        assert sample.ids[3:6] == whole.ids[3:], "it has not read the same text"
        assert then.draft is not None
        assert then.draft.text == f"{PROMPT}{sample.text}{whole.text[end:]}"
    _, other = drafts(writer.write("tiny", f"{PROMPT}{whole.text[:end]}x", work, *settings))
    assert other.known == 0, "a word that goes on is another one"


def test_a_suggestion_is_no_text_until_it_is_taken(writer: Writer) -> None:
    settings = values_of(temperature=0.0, max_new_tokens=4, num_return_sequences=3)
    before, _ = drafts(writer.write("tiny", PROMPT, None, *values_of(max_new_tokens=2)))
    [*updates] = writer.suggest("tiny", "c d", before, *settings, rest="e")
    [work] = [update[2] for update in updates if isinstance(update[2], Work)]
    assert (work.draft, work.past) == (before.draft, before.past)
    assert all("status busy" in line for _, line, _ in updates[:-1] if isinstance(line, str)), "it goes on"
    assert "busy" not in updates[-1][1]
    words, gap = updates[-1][0].values()
    assert (len(words.split()), gap) == (4, " ")
    for count in (1, 3):
        taken = "".join(f" {word}" for word in words.split()[:count])
        event: Any = SimpleNamespace(taken=taken)
        view, _, work = writer.take(work, event)
        assert view["text"] == f"c d{taken} e"
        assert (len(work.draft.samples[0].ids), work.past[-1].text) == (count, "c de")
    assert len(work.past) == len(before.past) + 1, "one step back, however many words"
    plain = values_of(temperature=0.0, max_new_tokens=4)
    _, longer = drafts(writer.go_on("tiny", view["text"], work, *plain))
    assert longer.ids[:3] == work.draft.samples[0].ids


def test_a_suggestion_ends_with_its_sentence() -> None:
    with tiny(["A</w>", "B</w>", ".</w>"]) as generator:
        settings = values_of(temperature=1.0, max_new_tokens=20, seed="1")
        _, whole = drafts(writer_of(generator).write("tiny", "A. B", None, *settings))
        *_, (words, _, _) = writer_of(generator).suggest("tiny", "A. B", None, *settings)
        *_, (fewer, _, _) = writer_of(generator).suggest("tiny", "A. B", None, *settings, rest=". A")
    text = "A. B" + whole.text
    first, *others = (end for _, end in sentence_spans(text) if end > len("A. B"))
    assert others, "a stand-in that ends no sentence shows nothing"
    assert "A. B" + words["text"] == text[:first]
    assert f"{fewer['text']}." == words["text"], "with its stop, which is there"


def test_a_suggestion_ends_with_a_whole_word(spelling: TextGenerator) -> None:
    ends = set()
    for length in range(3, 10):
        settings = values_of(temperature=0.0, max_new_tokens=length)
        *_, (words, line, _) = writer_of(spelling).suggest("tiny", PROMPT, None, *settings)
        _, whole = drafts(writer_of(spelling).write("tiny", PROMPT, None, *settings))
        assert "Suggested" in line
        assert whole.text.startswith(words["text"])
        is_whole = spelling.tokenizer.ends_word(whole.ids[-1])
        ends.add(is_whole)
        if not is_whole and any(map(spelling.tokenizer.ends_word, whole.ids)):
            assert whole.text[len(words["text"]) :].strip(), "a word that was cut is left out"
        else:
            assert whole.text == words["text"]
    assert ends == {True, False}, "a stand-in whose words all end there shows nothing"


def test_a_stop_that_ends_no_writing_leaves_the_text(writer: Writer) -> None:
    work, _ = drafts(writer.write("tiny", PROMPT, None, *values_of(max_new_tokens=2)))
    assert "Stopped" in writer.stopped("another text, which was scored", work)[2]
    assert not isinstance(writer.stopped("another text, which was scored", work)[0], str)
