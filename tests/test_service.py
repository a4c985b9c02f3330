"""Text generation over a tiny random model and a vocabulary built by hand."""

import re
import string
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

import pytest
import torch

from biogpt.config import BioGptConfig
from biogpt.generate import GenerationOptions, stream_tokens
from biogpt.heads import BioGptForCausalLM
from biogpt.service import Step, TextGenerator
from biogpt.tokenizer import BioGptTokenizer

PROMPT = "The BRCA1 gene"
DRAW = GenerationOptions(max_new_tokens=24, min_new_tokens=24, temperature=5.0, seed=0)


def build_tokenizer() -> BioGptTokenizer:
    """Single characters, within words and at their ends, and a few pieces that Moses joins in its own ways."""
    characters = string.ascii_letters + string.digits + ".,;()[]%-"
    pieces = [c + end for c in characters for end in ("", "</w>")]
    merges = [("&", "q"), ("&q", "u"), ("&qu", "o"), ("&quo", "t"), ("&quot", ";</w>")]
    words = ["@-@</w>", "&quot;</w>", "&apos;s</w>", "and</w>", "is</w>"]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces, *words]
    return BioGptTokenizer({token: index for index, token in enumerate(tokens)}, merges)


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    tokenizer = build_tokenizer()
    config = BioGptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return TextGenerator(BioGptForCausalLM(config), tokenizer)


def scripted(prompt: str, pieces: str) -> TextGenerator:
    """A generator whose model answers the prompt with the given pieces and then the end token.

    Only the position reaches the last LayerNorm, each as a direction of its own, which the projection maps to the
    piece that is due.
    """
    tokenizer = build_tokenizer()
    config = BioGptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        max_position_embeddings=64,
        initializer_range=0.0,
        tie_word_embeddings=False,
    )
    model = BioGptForCausalLM(config)
    first = len(tokenizer.encode(prompt).ids) - 1
    due = [tokenizer.vocab[piece] for piece in pieces.split()] + [tokenizer.eos_token_id]
    with torch.no_grad():
        model.biogpt.embed_positions.weight[2:].fill_diagonal_(1.0)
        for position, token_id in enumerate(due, start=first):
            model.output_projection.weight[token_id, position] = 1.0
    return TextGenerator(model, tokenizer)


def texts(steps: Iterable[Step]) -> list[str]:
    return [step.text for step in steps]


def test_each_step_holds_the_text_so_far_and_one_token(generator) -> None:
    options = replace(DRAW, top_logprobs=3)
    steps = list(generator.stream(PROMPT, options))
    prompt_ids = generator.tokenizer.encode(PROMPT).ids
    tokens = list(stream_tokens(generator.model, prompt_ids, options))
    assert [step.token_id for step in steps] == [token.id for token in tokens]
    assert [step.logprob for step in steps] == [token.logprob for token in tokens]
    assert [step.alternatives for step in steps] == [token.alternatives for token in tokens]
    assert [step.finish_reason for step in steps] == [None] * 23 + ["length"]
    ids = prompt_ids + [step.token_id for step in steps]
    assert PROMPT + steps[-1].text == generator.tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("prompt", "pieces", "expected"),
    [
        ("The gene", "is</w> a</w>", ["The gene is", "The gene is a"]),
        ("The gene ", "is</w> a</w>", ["The gene is", "The gene is a"]),
        ("The gene", ",</w> a</w>", ["The gene,", "The gene, a"]),
        ("The gene", "&apos;s</w>", ["The gene's"]),
        ("a (b", ")</w> .</w>", ["a (b)", "a (b)."]),
        ("a (", "b</w> )</w>", ["a (b", "a (b)"]),
        ('the "', "a</w> &quot;</w> is</w>", ['the "a', 'the "a"', 'the "a" is']),
        ("BRCA", "@-@</w> 1</w>", ["BRCA-", "BRCA-1"]),
        ("a  \n b", "is</w>", ["a  \n b is"]),
        ("", "a b</w> is</w>", ["a", "ab", "ab is"]),
        ("  ", "is</w>", ["  is"]),
        ("gene \u2603", "is</w>", ["gene \u2603 is"]),
    ],
)
def test_prompt_and_text_read_right_together(prompt: str, pieces: str, expected: list[str]) -> None:
    generator = scripted(prompt, pieces)
    steps = list(generator.stream(prompt, GenerationOptions(max_new_tokens=20)))
    assert [prompt + step.text for step in steps] == [*expected, expected[-1]]
    assert steps[-1].token_id == generator.tokenizer.eos_token_id
    assert [step.finish_reason for step in steps] == [None] * len(expected) + ["eos"]


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "made"),
    [
        ("a</w> and</w> is</w> b</w>", "and is", " a ", 3),
        ("a</w> and</w> is</w> b</w>", " is", " a and", 3),
        ("a a b</w> c</w>", "ab", " a", 3),
        ("a a b</w> c</w>", ["zzz", "c", "aa"], " ", 2),
        ("a</w> ,</w> b</w>", " a,", "", 2),
    ],
)
def test_stop_strings(pieces: str, stop, text: str, made: int) -> None:
    """Found across the borders of tokens, and also where a false start, the first a of a, a, b, comes before."""
    generator = scripted("The gene", pieces)
    options = GenerationOptions(stop=stop, max_new_tokens=20)
    *_, last = steps = list(generator.stream("The gene", options))
    assert (last.text, last.finish_reason, len(steps)) == (text, "stop", made)
    [completion] = generator.generate("The gene", options)
    assert (completion.text, completion.finish_reason, len(completion.ids)) == (text, "stop", made)


def test_a_stop_string_in_the_prompt_or_after_the_end_does_not_count() -> None:
    generator = scripted("a gene", "is</w> a</w>")
    [completion] = generator.generate("a gene", GenerationOptions(stop=["gene", "ab"], max_new_tokens=20))
    assert (completion.text, completion.finish_reason) == (" is a", "eos")


def test_a_stop_string_in_the_best_beam_cuts_it_at_the_end_only() -> None:
    generator = scripted("gene", "is</w> a</w> and</w> b</w>")
    options = GenerationOptions(num_beams=2, max_new_tokens=8, stop="and", length_penalty=0.0)
    steps = list(generator.stream("gene", options))
    assert steps[-1].text == " is a "
    assert [step.finish_reason for step in steps] == [None] * (len(steps) - 1) + ["stop"]
    assert generator.generate("gene", options)[0].text == " is a "


def test_generate_is_the_end_of_the_stream(generator) -> None:
    options = replace(DRAW, num_return_sequences=3, top_logprobs=2)
    steps = list(generator.stream(PROMPT, options))
    completions = generator.generate(PROMPT, options)
    for completion, (_, sample) in zip(completions, groupby(steps, key=lambda s: s.sequence), strict=True):
        *_, last = sample = list(sample)
        assert (completion.text, completion.finish_reason) == (last.text, "length")
        assert completion.ids == [step.token_id for step in sample]
        assert completion.tokens[5].alternatives == sample[5].alternatives
        assert completion.logprob == pytest.approx(sum(step.logprob for step in sample))
    assert len({completion.text for completion in completions}) == 3


def test_beams_come_best_first_and_the_stream_ends_on_the_best(generator) -> None:
    options = GenerationOptions(max_new_tokens=10, min_new_tokens=10, num_beams=4, num_return_sequences=3)
    completions = generator.generate(PROMPT, options)
    steps = list(generator.stream(PROMPT, options))
    assert len(steps) == 10
    assert (steps[-1].text, steps[-1].finish_reason) == (completions[0].text, "length")
    logprobs = [completion.logprob for completion in completions]
    assert logprobs == sorted(logprobs, reverse=True)
    assert len({completion.text for completion in completions}) == 3


def test_close_ends_the_work_within_one_token(generator) -> None:
    calls: list[int] = []
    handle = generator.model.biogpt.register_forward_pre_hook(lambda *_: calls.append(1))
    for options in (DRAW, replace(DRAW, temperature=0.0, num_beams=3)):
        calls.clear()
        steps = generator.stream(PROMPT, options)
        assert calls == [], "nothing runs before the first step is asked for"
        next(steps), next(steps)
        steps.close()
        assert len(calls) == 2
        assert list(steps) == []
    handle.remove()
    assert list(generator.stream(PROMPT, DRAW)), "the lock is free again"


def test_streams_interleave_in_one_thread_and_in_many(generator) -> None:
    requests = [(f"gene {index}", replace(DRAW, seed=index)) for index in range(4)]
    alone = [texts(generator.stream(*request)) for request in requests]
    streams = [generator.stream(*request) for request in requests]
    taken_in_turn = [texts(steps) for steps in zip(*zip(*streams, strict=True), strict=True)]
    assert taken_in_turn == alone
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: texts(generator.stream(*request)), requests))
    assert together == alone


def test_a_request_that_cannot_finish_is_refused_at_once(generator) -> None:
    used = generator.count(PROMPT)
    assert used == len(generator.tokenizer.encode(PROMPT).ids)
    for beams in (1, 2):
        most = GenerationOptions(max_new_tokens=64 - used, num_beams=beams)
        list(generator.stream(PROMPT, most))
        for start in (generator.stream, generator.generate):
            with pytest.raises(ValueError, match=rf"{used} tokens .* {65 - used} .* 64 positions; cut 1 "):
                start(PROMPT, replace(most, max_new_tokens=65 - used))
    with pytest.raises(ValueError, match="101 tokens and the model 64 positions"):
        generator.stream("a " * 100)
    with pytest.raises(ValueError, match="5000 characters, and 64 positions hold no more than 2560"):
        generator.count("a " * 2500)
    for wrong in (None, 5, b"gene", ["gene"]):
        with pytest.raises(TypeError, match=re.escape(f"of type {type(wrong).__name__}; expected a string")):
            generator.stream(wrong)  # type: ignore[arg-type]


def test_a_saved_folder_gives_the_same_text(generator, tmp_path) -> None:
    generator.model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(tmp_path)
    loaded = TextGenerator.from_pretrained(tmp_path, device="cpu", precision="float32")
    assert loaded.config == generator.config
    assert texts(loaded.stream(PROMPT, DRAW)) == texts(generator.stream(PROMPT, DRAW))


def test_a_control_token_typed_in_a_prompt_is_text(generator) -> None:
    ids = generator.tokenizer.encode("gene </s> <pad>").ids
    assert ids.count(generator.tokenizer.eos_token_id) == 1
    assert list(generator.stream("gene </s>", DRAW))[-1].finish_reason == "length"
