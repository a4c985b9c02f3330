"""Text generation over a tiny random model and a vocabulary built by hand."""

import asyncio
import re
import string
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import torch
from engines import engine_of

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import start_search
from biogpt.model.config import BioGptConfig
from biogpt.runners import cpu, runner_for
from biogpt.runners.threads import _gnu_openmp, rest_threads
from biogpt.serving.engine import QueueFull
from biogpt.serving.service import Step, with_pauses
from biogpt.serving.text_generator import TextGenerator
from biogpt.serving.worker import Health
from biogpt.text.tokenizer import moses_text

PROMPT = "The BRCA1 gene"
UNREADABLE = (0, 1, 3)  # control tokens that never come in a text: all but the end
DRAW = GenerationOptions(max_new_tokens=24, min_new_tokens=24, temperature=5.0, seed=0)


def build_tokenizer() -> BioGptTokenizer:
    """Single characters, in words and at their ends, and a few pieces that Moses joins in its own ways."""
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

    Only the position reaches the last LayerNorm, each as a direction of its own, which the projection maps to
    the piece that is due.
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


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.01)


def test_each_step_holds_the_text_so_far_and_one_token(generator) -> None:
    options = replace(DRAW, top_logprobs=3)
    stream = generator.stream(PROMPT, options)
    steps, prompt_ids = list(stream), list(stream.prompt.ids)
    search = start_search(generator.model.config, prompt_ids, options, UNREADABLE)
    tokens = list(engine_of(generator.model).run(search))
    assert [step.token_id for step in steps] == [token.id for token in tokens]
    assert [step.logprob for step in steps] == [token.logprob for token in tokens]
    assert [step.alternatives for step in steps] == [token.alternatives for token in tokens]
    assert [step.finish_reason for step in steps] == [None] * 23 + ["length"]
    ids = prompt_ids + [step.token_id for step in steps]
    assert PROMPT + steps[-1].text == moses_text(generator.tokenizer.words(ids))


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
        ("gene\u2603", "is</w> ,</w>", ["gene\u2603 is", "gene\u2603 is,"]),
        ("TNF-\u2603", "@-@</w> 1</w>", ["TNF-\u2603-", "TNF-\u2603-1"]),
        ("\u2603", "@-@</w> @-@</w> 1</w>", ["\u2603-", "\u2603--", "\u2603--1"]),
        ("a (b", ")</w> @-@</w> 1</w>", ["a (b)", "a (b)-", "a (b)-1"]),
        ("a", ") b</w>", ["a", "a )b"]),
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
    """Found across the borders of tokens, also where a false start, the first a of a, a, b, comes before."""
    generator = scripted("The gene", pieces)
    options = GenerationOptions(stop=stop, max_new_tokens=20)
    *_, last = steps = list(generator.stream("The gene", options))
    assert (last.text, last.finish_reason, len(steps)) == (text, "stop", made)
    [completion] = generator.generate("The gene", options)
    assert (completion.text, completion.finish_reason, len(completion.ids)) == (text, "stop", made)


def test_a_stop_string_that_is_complete_before_the_least_length_does_not_count() -> None:
    generator = scripted("gene", "a</w> is</w> b</w> a</w> is</w> a</w>")
    options = GenerationOptions(stop=" is", max_new_tokens=20)
    for least, text, made in [
        (2, " a", 2),
        (3, " a is b a", 5),
        (5, " a is b a", 5),
        (6, " a is b a is a", 7),
    ]:
        *_, last = steps = list(generator.stream("gene", replace(options, min_new_tokens=least)))
        assert (last.text, len(steps)) == (text, made)


@pytest.mark.parametrize("stop", [(), ("ab",), (" a", "and is", ").", "q;"), ("x" * 30, "is a b")])
def test_a_stream_never_takes_back_what_it_gave(generator, stop) -> None:
    """Pieces of quotes, brackets and escapes, drawn nearly at random, move the words around them."""
    for seed in range(12):
        steps = list(generator.stream(PROMPT, replace(DRAW, min_new_tokens=0, seed=seed, stop=stop)))
        for step, after in pairwise(steps):
            assert after.text.startswith(step.text)
        assert not steps[-1].held


def test_what_may_begin_a_stop_string_is_held_back_and_given_when_it_does_not() -> None:
    generator = scripted("gene", "a</w> and</w> is</w> b</w> and</w>")
    steps = list(generator.stream("gene", GenerationOptions(stop=["and is c", "b and a"], max_new_tokens=20)))
    assert texts(steps) == [" ", " a ", " a ", " a and is ", " a and is ", " a and is b and"]
    assert [step.held for step in steps] == ["a", "and", "and is", "b", "b and", ""]


def test_no_token_is_invisible(generator) -> None:
    """The control tokens that a model may write, and rows of its vocabulary that stand for nothing."""
    options = GenerationOptions(max_new_tokens=8)
    [completion] = scripted("gene", "<unk> <pad> <s> is</w>").generate("gene", options)
    assert set(completion.ids).isdisjoint(UNREADABLE)
    assert completion.text.endswith("is")
    options = replace(DRAW, temperature=50.0)
    made = {
        token
        for seed in range(12)
        for c in generator.generate(PROMPT, replace(options, seed=seed))
        for token in c.ids
    }
    assert len(made) > 100
    assert made.isdisjoint(UNREADABLE)


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


def test_close_ends_the_work_within_one_step(generator) -> None:
    worker = generator._worker
    for options in (DRAW, replace(DRAW, temperature=0.0, num_beams=3)):
        with generator.stream(PROMPT, options) as steps:
            next(steps)
            cache = steps._slot.cache
        assert list(steps) == []
        wait_for(lambda: not worker.engine.is_busy)
        assert cache.nbytes == 0


def test_a_stream_that_is_let_go_of_frees_its_slot(generator) -> None:
    """Nobody closes it: the last reference goes, as when a client drops its connection."""
    engine = generator._worker.engine
    steps = generator.stream(PROMPT, replace(DRAW, stop="never made"))
    next(steps)
    assert engine.is_busy
    del steps
    wait_for(lambda: not engine.is_busy)


def test_the_place_in_line(generator) -> None:
    served = TextGenerator(generator.model, generator.tokenizer, max_running=1, max_waiting=2)
    held = replace(DRAW, stop="never made")  # waits for its reader at each token
    first, second, third = (served.stream(PROMPT, held) for _ in range(3))
    assert first.wait(10)
    assert [steps.position for steps in (first, second, third)] == [0, 1, 2]
    assert served.waiting == 2
    assert not third.wait(0.05)
    with pytest.raises(QueueFull, match="2 are waiting, the most allowed"):
        served.stream(PROMPT, DRAW)
    second.close()
    wait_for(lambda: third.position == 1)
    alone = texts(generator.stream(PROMPT, held))
    assert texts(first) == texts(third) == alone
    served.close()


def test_closing_lets_requests_end_in_time_and_drops_the_rest(generator) -> None:
    served = TextGenerator(generator.model, generator.tokenizer)
    steps = served.stream(PROMPT, DRAW)
    assert served.health() == Health("serving")
    served.close(timeout=30)
    assert len(texts(steps)) == 24
    assert served.health().state == "stopping"
    with pytest.raises(RuntimeError, match="server is stopping"):
        served.stream(PROMPT, DRAW)
    served = TextGenerator(generator.model, generator.tokenizer)
    steps = served.stream(PROMPT, replace(DRAW, stop="never made"))
    next(steps)
    served.close()
    with pytest.raises(
        RuntimeError, match="server is stopping"
    ):  # a cut text must not look like a finished one
        list(steps)
    assert not served._worker._thread.is_alive()


def test_closing_waits_for_tasks_too(generator) -> None:
    served, done = TextGenerator(generator.model, generator.tokenizer), []

    def task() -> None:
        time.sleep(0.05)
        done.append(1)

    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(served.run, task) for _ in range(3)]
        wait_for(lambda: len(done) == 1)
        served.close(timeout=30)
        assert [each.result() for each in tasks] == [None] * 3


def test_a_stream_keeps_its_generator(generator) -> None:
    served = TextGenerator(generator.model, generator.tokenizer)
    steps = served.stream(PROMPT, DRAW)
    del served
    assert len(texts(steps)) == 24


def test_after_the_end_of_the_main_thread_requests_are_refused(tmp_path, generator) -> None:
    generator.model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(tmp_path)
    script = (
        "import sys, threading; from biogpt import GenerationOptions, TextGenerator\n"
        "generator = TextGenerator.from_pretrained(sys.argv[1])\n"
        "def ask():\n"
        "    threading.main_thread().join()\n"
        "    try: print(generator.generate('gene', GenerationOptions(max_new_tokens=9)))\n"
        "    except RuntimeError as error: print(error)\n"
        "threading.Thread(target=ask).start()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert "server is stopping" in done.stdout


@pytest.mark.parametrize("threaded", [True, False])
def test_what_computes_with_the_model_waits_for_the_step_of_others(generator, threaded) -> None:
    """Two threads that compute at once would slow each other down many times."""
    own = TextGenerator(generator.model, generator.tokenizer, threaded=threaded)
    within = []
    step = own._worker.engine.step

    def watched() -> None:
        within.append(True)
        step()
        within.pop()

    own._worker.engine.step = watched
    with own.stream("Aspirin", GenerationOptions(max_new_tokens=40, min_new_tokens=40)) as stream:
        next(stream)
        seen = [own.run(lambda: (threading.current_thread().name, list(within))) for _ in range(5)]
        assert seen == [("biogpt" if threaded else threading.current_thread().name, [])] * 5
        with pytest.raises(ZeroDivisionError):
            own.run(lambda: 1 / 0)
        assert len(list(stream)) == 39, "the request goes on"
    own.close()
    with pytest.raises(RuntimeError, match="stopping"):
        own.run(lambda: None) if threaded else own.stream("Aspirin", GenerationOptions(max_new_tokens=4))


@pytest.mark.usefixtures("every_core")
def test_a_small_model_that_shares_cores_computes_in_one_thread_and_others_as_before(generator) -> None:
    own = TextGenerator(generator.model, generator.tokenizer)
    own.share_cores()
    before = torch.get_num_threads()
    assert own.run(torch.get_num_threads) == 1
    assert own.description.endswith("CPU, 1 thread")
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before
    options = GenerationOptions(max_new_tokens=8)
    assert own.generate("Aspirin", options)[0].ids == generator.generate("Aspirin", options)[0].ids
    own.close()


def test_an_int8_model_does_not_pass_for_a_small_one(tiny_config, lively, tmp_path, monkeypatch) -> None:
    """Its weights are no parameters."""
    model = lively(BioGptForCausalLM, tiny_config(hidden_size=48, intermediate_size=96))
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(cpu, "_SMALL", sum(weight.numel() for weight in model.parameters()) // 2)
    for precision in ("float32", "int8"):
        runner = runner_for(BioGptForCausalLM.from_pretrained(tmp_path, device="cpu", precision=precision))
        runner.share_cores()
        assert runner.threads is None


@pytest.mark.usefixtures("every_core")
def test_no_thread_keeps_helpers_while_another_computes(generator) -> None:
    if _gnu_openmp() is None or torch.get_num_threads() == 1:
        pytest.skip("only GNU's OpenMP, with several threads, has helpers that slow each other down")

    def helpers() -> int:
        return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()

    def compute() -> int:
        torch.ones(600, 600) @ torch.ones(600, 600)
        return helpers()

    rest_threads()
    time.sleep(0.5)  # workers of other tests look around at times
    none = helpers()
    own = compute()
    assert own > none
    served = TextGenerator(generator.model, generator.tokenizer)  # whose thread begins now, with every core
    assert served.run(compute) == own, "the worker has helpers, and the thread that asked it none any more"
    wait_for(lambda: helpers() == none)
    served.close()


def test_the_thread_ends_with_its_generator(generator) -> None:
    served = TextGenerator(generator.model, generator.tokenizer)
    texts(served.stream(PROMPT, DRAW))
    thread = served._worker._thread
    del served
    thread.join(10)
    assert not thread.is_alive()


def test_python_ends_while_a_stream_is_open(tmp_path, generator) -> None:
    """The thread must neither keep the process alive nor crash it."""
    generator.model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(tmp_path)
    script = (
        "import sys; from biogpt import GenerationOptions, TextGenerator\n"
        "generator = TextGenerator.from_pretrained(sys.argv[1])\n"
        "many = GenerationOptions(max_new_tokens=50, min_new_tokens=50)\n"
        "streams = [generator.stream('gene', many) for _ in range(4)]\n"
        "steps = generator.stream('gene', GenerationOptions(max_new_tokens=50, stop='never made'))\n"
        "print(len(next(steps).text))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("change", [{}, {"stop": "a"}, {"temperature": 0.0, "num_beams": 3}], ids=str)
def test_without_a_thread_the_text_is_the_same(generator, change) -> None:
    inline = TextGenerator(generator.model, generator.tokenizer, threaded=False)
    options = replace(DRAW, **change)
    assert texts(inline.stream(PROMPT, options)) == texts(generator.stream(PROMPT, options))
    assert inline._worker._thread is None
    first, second = (inline.stream(PROMPT, replace(options, seed=seed)) for seed in range(2))
    next(first)
    second.close()
    assert [steps._slot for steps in (first,)] == inline._worker.engine.running
    first.close()
    assert not inline._worker.engine.is_busy


def test_a_model_that_failed_is_tried_again_though_nobody_asks(generator, monkeypatch) -> None:
    served = TextGenerator(generator.model, generator.tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(served._worker.engine.runner, "read", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(served.stream(PROMPT, DRAW))
        wait_for(lambda: served.health().state == "failed")
    wait_for(lambda: served.health() == Health("serving"))
    wait_for(lambda: not served._worker.engine.is_busy)


@pytest.mark.parametrize("place", ["step", "attach"])
def test_what_ends_the_thread_is_told_to_readers_and_it_goes_on(generator, monkeypatch, place) -> None:
    def end(*_: object) -> None:
        raise SystemExit

    served = TextGenerator(generator.model, generator.tokenizer)
    expected = texts(generator.stream(PROMPT, DRAW))
    with monkeypatch.context() as patch:
        patch.setattr(served._worker.engine.runner, place, end)
        with pytest.raises(RuntimeError, match="the thread of the model failed"):
            list(served.stream(PROMPT, DRAW))
        wait_for(lambda: served.health().state == "failed")
    assert texts(served.stream(PROMPT, DRAW)) == expected
    assert served.health() == Health("serving")
    with pytest.raises(RuntimeError, match="ended the thread"):
        served.run(lambda: end())
    assert texts(served.stream(PROMPT, DRAW)) == expected


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_damaged_model_fails_its_request_and_the_service_goes_on(tmp_path, number) -> None:
    served = scripted("The gene", "is</w> a</w>")
    weight = served.model.output_projection.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[7] = number
    for options in (GenerationOptions(max_new_tokens=9), GenerationOptions(max_new_tokens=9, num_beams=2)):
        with pytest.raises(FloatingPointError, match="not finite"):
            served.generate("The gene", options)
    with torch.no_grad():
        weight.copy_(kept)
    assert served.generate("The gene", GenerationOptions(max_new_tokens=9))[0].text == " is a"
    assert served.health() == Health("serving")


def test_a_failure_is_told_to_its_reader_and_to_the_health(generator, monkeypatch) -> None:
    served = TextGenerator(generator.model, generator.tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(served._worker.engine.runner, "step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(served.stream(PROMPT, DRAW))
        wait_for(lambda: served.health() == Health("failed", "ZeroDivisionError: division by zero"))
    assert texts(served.stream(PROMPT, DRAW)) == texts(generator.stream(PROMPT, DRAW))
    assert served.health() == Health("serving")


def test_a_source_that_takes_a_while_gives_signs_of_life_and_ends_with_its_reader() -> None:
    done: list[str] = []
    client: ContextVar[str] = ContextVar("client", default="nobody")

    async def source(last: float) -> AsyncGenerator[str, None]:
        try:
            client.set("ann")
            yield "one"
            await asyncio.sleep(0.5)
            yield client.get()
            await asyncio.sleep(last)
            raise ValueError("two words")
        finally:
            await asyncio.sleep(0.01)
            done.append("closed")

    async def read(last: float, count: int) -> list[str | None]:
        found: list[str | None] = []
        async with aclosing(with_pauses(source(last), 0.1)) as items:
            async for item in items:
                found.append(item)
                if len(found) == count:
                    break
        return found

    found = asyncio.run(read(60.0, 8))
    assert [item for item in found if item] == ["one", "ann"]
    assert found[1] is found[-1] is None
    assert done == ["closed"], "who leaves in a pause leaves no work behind"
    with pytest.raises(ValueError, match="two words"):
        asyncio.run(read(0.0, 100))
    assert asyncio.run(read(0.0, 1)) == ["one"]
    assert done == 3 * ["closed"]
