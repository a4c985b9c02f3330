"""What a click in the Write tab asks of the service, and what becomes of its answer; without a browser."""

import string
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.generation.options import ON_PAGE, Box, GenerationOptions
from biogpt.model.config import BioGptConfig
from biogpt.serving.shelf import Shelf
from biogpt.serving.text_generator import TextGenerator
from biogpt.ui.writing import Writer

PROMPT = "a b"
LIMIT = 40  # positions


def values_of(**changes: Any) -> list[Any]:
    """What the page's controls hold when some were changed."""
    return [changes.get(row.name, "" if isinstance(row.control, Box) else row.start) for row in ON_PAGE]


@pytest.fixture
def generator() -> Iterator[TextGenerator]:
    """It writes words of one letter, and never ends a text early.

    No token that it makes is a control token.
    """
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(f"{letter}</w>" for letter in string.ascii_lowercase)]
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
    tokenizer = BioGptTokenizer({token: index for index, token in enumerate(tokens)}, [("q", "z")])
    made = TextGenerator(model, tokenizer)
    yield made
    made.close()


@pytest.fixture
def writer(generator: TextGenerator) -> Writer:
    shelf = Shelf("tiny", lambda _: generator)
    shelf.take()
    return Writer(shelf)


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
    *_, last = writer.write("tiny", PROMPT, [], *settings)
    assert "Finished" in last[2]
    assert asked == ONCE
    asked.clear()
    *_, last = writer.write("tiny", last[0] or PROMPT, [], *settings)
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
    *_, last = writer.write("tiny", text, [], *settings)
    assert f"{LIMIT} of {LIMIT} positions" in last[2]
    assert "as long as the model can read" in last[2]
    [*_, refused] = writer.write("tiny", "a " * LIMIT, [], *settings)
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
