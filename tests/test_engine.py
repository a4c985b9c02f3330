"""Many requests on one engine.

What each gets is what it gets alone, and none holds memory it does not need.
"""

import copy
import random
import re
import time
from dataclasses import replace

import pytest
import torch
from engines import engine_of

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.generation.search import GenerationOptions, Token, start_search
from biogpt.model.cache import KVCache
from biogpt.model.decoder import DecoderLayer
from biogpt.runners import plain, runner_for
from biogpt.runners.cpu import CpuRunner
from biogpt.runners.plain import PlainRunner
from biogpt.runners.steady import steady_sizes, swift_sizes
from biogpt.runners.step import DecodeStep
from biogpt.serving.engine import Engine, QueueFull, Slot, TooMany

LONG = GenerationOptions(max_new_tokens=20, min_new_tokens=20, top_logprobs=3)


@pytest.fixture
def model(tiny_config, lively) -> BioGptForCausalLM:
    config = tiny_config(
        hidden_size=64, num_attention_heads=4, intermediate_size=128, max_position_embeddings=512
    )
    return lively(BioGptForCausalLM, config)


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(PlainRunner, "stretch", 8)


def prompt(length: int, seed: int = 0) -> list[int]:
    numbers = random.Random(seed)
    return [2] + [numbers.randrange(4, 40) for _ in range(length - 1)]


def submit(engine: Engine, ids: list[int], options: GenerationOptions, session=None, lead=None) -> Slot:
    slot = Slot(start_search(engine.runner.config, ids, options), session, lead)
    engine.submit(slot)
    return slot


def taken(slot: Slot) -> list:
    """What has been made so far, the end left out; an error is raised."""
    results = []
    while not slot.results.empty():
        result = slot.results.get()
        if isinstance(result, Exception):
            raise result
        if result is not None:
            results.append(result)
    return results


def alone(model: BioGptForCausalLM, ids: list[int], options: GenerationOptions) -> list:
    return list(engine_of(model).run(start_search(model.config, ids, options)))


def mixed_requests(count: int) -> list[tuple[list[int], GenerationOptions]]:
    """Prompts of one token to several chunks; greedy, sampled, several samples, beams, rules."""
    kinds = [
        {},
        {"temperature": 1.5, "top_p": 0.9},
        {"temperature": 3.0, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 2},
        {"temperature": 1.0, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    ]
    numbers = random.Random(1)
    return [
        (
            prompt(numbers.choice([1, 2, 7, 8, 9, 16, 30, 45]), seed=i),
            replace(LONG, max_new_tokens=numbers.randint(20, 40), seed=i, **kinds[i % len(kinds)]),
        )
        for i in range(count)
    ]


@pytest.mark.usefixtures("every_core")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_request_gets_the_same_bits_alone_and_among_others(model, dtype, small_chunks) -> None:
    """They join at different times, some are cancelled on the way, prompts are read in chunks between steps.

    Logprobs and alternatives are floats of the model's own distribution, so equal tokens mean equal bits of
    logits.
    """
    model.to(dtype)
    requests = mixed_requests(24)
    engine = engine_of(model, max_running=9)
    slots, cancelled = [], []
    numbers = random.Random(2)
    most = 0
    for index, request in enumerate(requests):
        slots.append(submit(engine, *request))
        for _ in range(numbers.randrange(4)):
            engine.step()
            most = max(most, len(engine.running))
        if index % 6 == 5:
            cancelled.append(slots[-2])
            slots[-2].cancelled = True
    while engine.has_work:
        engine.step()
        most = max(most, len(engine.running))
    assert most == 9
    for slot, (ids, options) in zip(slots, requests, strict=True):
        results = taken(slot)
        wanted = alone(model, ids, options)
        if slot in cancelled:
            assert results == wanted[: len(results)]
            assert len(results) < len(wanted)
        else:
            assert results == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_the_cpus_logits_and_the_same_bits_in_any_company(model, dtype, small_chunks) -> None:
    ids = torch.tensor([prompt(30)])
    with torch.inference_mode():
        wanted = model(ids).logits
    on_gpu = copy.deepcopy(model).to("cuda", dtype)
    with torch.inference_mode():
        found = on_gpu(ids.cuda()).logits.float().cpu()
    tolerance = 1e-4 if dtype == torch.float32 else 0.05 * float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    requests = mixed_requests(8)
    engine = engine_of(on_gpu)
    slots = [submit(engine, *request) for request in requests]
    while engine.has_work:
        engine.step()
    assert [taken(slot) for slot in slots] == [alone(on_gpu, *request) for request in requests]


def test_the_comparison_notices_rows_that_depend_on_their_number(model, monkeypatch) -> None:
    """With steps of any size, plain float32 kernels round a row by how many there are.

    The test above would fail.
    """
    if 1 in steady_sizes(model):
        pytest.skip("this machine's float32 kernels give a row the same bits in any number")
    requests = mixed_requests(8)
    runner = CpuRunner(model)
    monkeypatch.setattr(runner, "find_sizes", lambda: tuple(range(1, 17)))
    engine = Engine(runner)
    slots = [submit(engine, *request) for request in requests]
    while engine.has_work:
        engine.step()
    assert [taken(slot) for slot in slots] != [alone(model, *request) for request in requests]


def test_steady_sizes_keep_every_bit_of_every_row(model) -> None:
    sizes = steady_sizes(model)
    caches = [KVCache(model.config, 1, 4) for _ in range(sizes[-1])]
    ids = torch.arange(4, 4 + sizes[-1])
    step = DecodeStep(model.biogpt)
    full = step(ids, caches)
    for size in sizes:
        for first in range(0, sizes[-1] - size + 1, size):
            for cache in caches:
                cache.truncate(0)
            rows = slice(first, first + size)
            assert torch.equal(step(ids[rows], caches[rows]), full[rows])


def test_a_step_takes_more_rows_where_these_are_faster(model, monkeypatch) -> None:
    """As oneDNN's are, of four rows in place of one or two."""
    milliseconds = {1: 5, 2: 4, 4: 1, 8: 3}
    monkeypatch.setattr(
        DecoderLayer, "feed_forward", lambda _, rows: time.sleep(milliseconds[len(rows)] / 1000)
    )
    assert swift_sizes(model, (1, 2, 4, 8, 16)) == (4, 8, 16)


def test_reading_in_chunks_and_steps_equals_one_pass(model, small_chunks) -> None:
    ids = prompt(30)
    tokens = alone(model, ids, replace(LONG, temperature=1.0, seed=0))
    with torch.no_grad():
        logits = model(torch.tensor([ids + [token.id for token in tokens[:-1]]])).logits[0, 29:]
    logprobs = logits.log_softmax(dim=-1)[torch.arange(20), [token.id for token in tokens]]
    torch.testing.assert_close(torch.tensor([token.logprob for token in tokens]), logprobs, rtol=0, atol=1e-5)


def test_a_long_prompt_does_not_hold_up_the_others(model, small_chunks) -> None:
    engine = engine_of(model)
    writer = submit(engine, prompt(2), LONG)
    engine.step()
    reader = submit(engine, prompt(80), LONG)
    for step in range(1, 11):
        assert (writer.made, reader.made) == (step, 0)
        engine.step()
    assert (writer.made, reader.made) == (11, 1)


def test_a_slot_leaves_within_one_step_and_gives_its_memory_back(model) -> None:
    engine = engine_of(model)
    first, second = (submit(engine, prompt(3, seed=i), LONG) for i in range(2))
    engine.step(), engine.step()
    cache = first.cache
    first.cancelled = True
    engine.step()
    assert engine.running == [second]
    assert cache.nbytes == 0
    assert len(taken(first)) == 2


def test_cache_memory_is_bounded_and_the_line_keeps_its_order(model) -> None:
    """A small request does not pass a large one that waits for room."""
    size = runner_for(model).cache_bytes(1, 23)
    engine = engine_of(model, cache_bytes=2 * size)
    slots = [submit(engine, prompt(3, seed=i), LONG) for i in range(4)]
    slots.append(submit(engine, prompt(2), replace(LONG, max_new_tokens=20)))
    engine.step()
    assert [engine.position(slot) for slot in slots] == [0, 0, 1, 2, 3]
    held = 0
    while engine.has_work:
        engine.step()
        caches = [slot.cache for slot in engine.running]
        held = max(held, sum(cache.nbytes for cache in caches))
    assert held == 2 * size
    assert [slot.made for slot in slots] == [20] * 5


def test_a_request_beyond_the_budget_is_refused_with_both_numbers(model) -> None:
    least = runner_for(model).cache_bytes(1, 23)
    engine = engine_of(model, cache_bytes=least)
    sizes = (
        f"{3 * least / 1e6:.1f} MB of cache for 3 rows of 23 positions, and the limit is {least / 1e6:.1f}"
    )
    with pytest.raises(ValueError, match=re.escape(sizes)):
        submit(engine, prompt(3), replace(LONG, num_beams=3))
    submit(engine, prompt(3), LONG)


def test_the_line_is_bounded(model) -> None:
    engine = engine_of(model, max_running=1, max_waiting=2)
    submit(engine, prompt(2), LONG)
    engine.step()
    waiting = [submit(engine, prompt(2), LONG) for _ in range(2)]
    with pytest.raises(QueueFull, match="1 requests are running and 2 are waiting, the most allowed"):
        submit(engine, prompt(2), LONG)
    waiting[0].cancelled = True
    engine.step()
    assert engine.position(waiting[1]) == 1
    submit(engine, prompt(2), LONG)


def ask(engine: Engine, client: str | None, options: GenerationOptions = LONG) -> Slot:
    slot = Slot(start_search(engine.runner.config, prompt(2), options), client=client)
    engine.submit(slot)
    return slot


def test_clients_take_turns_and_each_is_served_in_its_order(model) -> None:
    engine = engine_of(model, max_running=1)
    brief = GenerationOptions(max_new_tokens=2, min_new_tokens=2)
    slots = [ask(engine, client, brief) for client in "aaaabbc"]
    assert [engine.position(slot) for slot in slots] == [1, 4, 6, 7, 2, 5, 3]
    begun: list[Slot] = []
    while engine.is_busy:
        engine.step()
        begun += [slot for slot in engine.running if slot not in begun]
        if len(begun) == 3 and len(slots) == 7:
            slots.append(ask(engine, "d", brief))  # comes anew: one of each other client goes first
    assert [slots.index(slot) for slot in begun] == [0, 4, 6, 1, 5, 7, 2, 3]


def test_one_client_leaves_room_for_another(model) -> None:
    engine = engine_of(model)
    many = [ask(engine, "a") for _ in range(30)]
    engine.step()
    assert len(engine.running) == 12
    short = ask(engine, "b", replace(LONG, max_new_tokens=5, min_new_tokens=5))
    for _ in range(7):
        engine.step()
    assert short.search.done, "its prompt was read second, and then it made a token a step"
    assert not any(slot.search.done for slot in many)
    engine.drop(everyone=True)
    nobody = [ask(engine, None) for _ in range(16)]
    engine.step()
    assert len(engine.running) == len(nobody), "what this process asks itself is bound by nothing"


def test_one_client_leaves_memory_for_another(model) -> None:
    engine = engine_of(model)
    need = engine.need(Slot(start_search(model.config, prompt(2), LONG)))
    engine.cache_bytes = 8 * need
    for _ in range(8):
        ask(engine, "a")
    engine.step()
    other = ask(engine, "b")
    engine.step()
    assert [slot.client for slot in engine.running].count("a") == 5
    assert other in engine.running


def test_the_line_of_one_client_is_bounded_and_others_still_come(model) -> None:
    engine = engine_of(model, max_running=2, max_waiting=6)
    first, *_ = [ask(engine, "a") for _ in range(4)]
    with pytest.raises(TooMany, match="4 of your requests are running or waiting, the most allowed"):
        ask(engine, "a")
    for _ in range(4):
        ask(engine, "b")
    with pytest.raises(QueueFull, match="0 requests are running and 8 are waiting"):
        ask(engine, "c")
    first.cancelled = True
    ask(engine, "a")


def test_a_reader_that_lags_is_waited_for(model) -> None:
    engine = engine_of(model)
    slot = submit(engine, prompt(2), LONG, lead=1)
    engine.step(), engine.step()
    assert slot.made == 1
    assert not engine.has_work
    slot.taken = 1
    assert engine.has_work
    engine.step()
    assert slot.made == 2


def test_a_sample_can_be_ended_from_outside(model) -> None:
    """A stop string ends a sample; the next one is what it would be anyway."""
    options = replace(LONG, temperature=2.0, seed=5, num_return_sequences=2)
    first, second = ([t for t in alone(model, prompt(3), options) if t.sequence == i] for i in range(2))
    engine = engine_of(model)
    slot = submit(engine, prompt(3), options, lead=1)
    results: list[Token] = []
    while engine.has_work:
        engine.step()
        results += taken(slot)
        slot.skip = len(results) == 4
        slot.taken = len(results)
    assert results == first[:4] + second


def test_reuse_of_a_prompt_changes_nothing_but_the_work(model, small_chunks, monkeypatch) -> None:
    """Continue (the prompt and what was made of it), the same again, and an edited tail."""
    read: list[int] = []
    forward = model.biogpt.forward

    def spied(input_ids, **arguments):
        read.append(input_ids.shape[1])
        return forward(input_ids, **arguments)

    monkeypatch.setattr(model.biogpt, "forward", spied)
    engine = engine_of(model)
    options = replace(LONG, temperature=1.0, seed=3)

    def made(ids: list[int], session: str | None) -> tuple[list[int], list]:
        read.clear()
        slot = submit(engine, ids, options, session)
        while engine.has_work:
            engine.step()
        return list(read), taken(slot)

    start = prompt(30)
    work, tokens = made(start, "a")
    assert work == [8, 8, 8, 6]
    longer = start + [token.id for token in tokens]
    edited = [*start[:20], 9, 9, 9]
    for ids, session, expected in [
        (start, "a", [6]),
        (longer, "a", [8, 8, 8, 2]),
        (longer, "a", [2]),
        (edited, "a", [7]),
        (start[:24], "a", [8]),
        (start, "b", [8, 8, 8, 6]),
        (start, None, [8, 8, 8, 6]),
    ]:
        work, tokens = made(ids, session)
        assert work == expected
        assert tokens == alone(model, ids, options)


def test_a_prompt_too_long_for_the_room_keeps_its_beginning(model, small_chunks) -> None:
    """Chunks are found from the first on: without it the others would be held for nothing."""
    engine, ids = engine_of(model), prompt(25)
    chunk = KVCache.size(model.config, 1, 8, torch.float32)
    slot = submit(engine, ids, replace(LONG, max_new_tokens=1, min_new_tokens=1), session="a")
    engine.cache_bytes = engine.need(slot) + 2 * chunk
    while engine.has_work:
        engine.step()
    assert [len(key[1]) for key in engine.prompts._chunks] == [16, 8]
    other = submit(engine, prompt(9, seed=1), replace(LONG, max_new_tokens=1, min_new_tokens=1), session="b")
    engine.cache_bytes = engine.need(other) + 2 * chunk
    while engine.has_work:
        engine.step()
    assert [len(key[1]) for key in engine.prompts._chunks] == [8, 8], (
        "the end is forgotten before the beginning"
    )


def test_what_is_kept_for_reuse_stays_within_the_budget_and_goes_first(model, small_chunks) -> None:
    size = runner_for(model).cache_bytes(1, 72)
    engine = engine_of(model, cache_bytes=size)
    short = GenerationOptions(max_new_tokens=8, min_new_tokens=8)
    for seed in range(6):
        submit(engine, prompt(24, seed), short, session="a")
        while engine.has_work:
            engine.step()
            running = sum(engine.need(slot) for slot in engine.running)
            assert engine.prompts.bytes + running <= engine.cache_bytes
    assert engine.prompts.bytes > 0
    submit(engine, prompt(60), replace(short, max_new_tokens=12))
    engine.step()
    assert engine.prompts.bytes == 0


def once(function, calls: int):
    """A function that fails at one call, counted from 1, when its work is done: as a machine might."""
    count = 0

    def failing(*given):
        nonlocal count
        count += 1
        if count == calls:
            function(*given)
            raise ZeroDivisionError
        return function(*given)

    return failing


@pytest.mark.parametrize(
    ("place", "calls"),
    [*(("step", calls) for calls in (1, 2, 5, 9, 12)), ("read", 1), ("read", 3), ("read", 6)],
)
def test_after_a_failed_step_requests_go_on_as_if_nothing_had_been(
    model, small_chunks, monkeypatch, caplog, place, calls
) -> None:
    """No token is lost or doubled, and each has the bits that it has alone."""
    samples = replace(
        LONG, temperature=1.0, seed=3, num_return_sequences=2, max_new_tokens=6, min_new_tokens=6
    )
    asked = [
        (prompt(3), replace(LONG, max_new_tokens=9, min_new_tokens=9)),
        (prompt(20), replace(LONG, num_beams=3, max_new_tokens=7, min_new_tokens=7)),
        (prompt(12), samples),
    ]
    expected = [alone(model, *each) for each in asked]
    engine = engine_of(model)
    slots = [submit(engine, *each, session="me") for each in asked]
    monkeypatch.setattr(engine.runner, place, once(getattr(engine.runner, place), calls))
    while engine.is_busy:
        engine.step()
    assert "a step of the model failed" in caplog.text
    assert [taken(slot) for slot in slots] == expected


def test_a_stop_string_counts_after_a_failed_step_too(model, monkeypatch) -> None:
    options = replace(LONG, temperature=2.0, seed=5, num_return_sequences=2)
    first, second = ([t for t in alone(model, prompt(3), options) if t.sequence == i] for i in range(2))
    engine = engine_of(model)
    slot = submit(engine, prompt(3), options, lead=1)
    monkeypatch.setattr(engine.runner, "step", once(engine.runner.step, 4))
    results: list[Token] = []
    while engine.has_work:
        slot.skip = len(results) == 4 and slot.lost is not None
        engine.step()
        results += taken(slot)
        slot.taken = len(results)
    assert results == first[:4] + second


def test_what_fails_again_right_away_fails_alone(model, monkeypatch) -> None:
    engine = engine_of(model)
    good, bad = submit(engine, prompt(2), LONG), submit(engine, prompt(3), LONG)
    step = engine.runner.step

    def failing(ids, caches, rules):
        if any(bad.cache is cache for cache in caches) and bad.made == 4:
            raise ZeroDivisionError
        return step(ids, caches, rules)

    monkeypatch.setattr(engine.runner, "step", failing)
    told = 0
    while engine.is_busy:
        try:
            engine.step()
        except ZeroDivisionError:
            told += 1
    assert told == 1
    assert taken(good) == alone(model, prompt(2), LONG)
    assert bad.made == 4
    with pytest.raises(ZeroDivisionError):
        taken(bad)


def test_no_memory_for_one_is_no_end_of_others(model, monkeypatch) -> None:
    engine = engine_of(model)
    good = submit(engine, prompt(2), LONG)
    engine.step()
    bad = submit(engine, prompt(3), LONG)
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "open", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    while engine.is_busy:
        engine.step()
    assert len(taken(good)) == 20
    with pytest.raises(ZeroDivisionError):
        taken(bad)


def test_one_row_of_broken_numbers_fails_alone(model) -> None:
    """A prompt that leads to numbers beyond the float range must not take others with it."""
    with torch.no_grad():
        model.biogpt.embed_tokens.weight[39] = float("nan")
        model.output_projection.weight = torch.nn.Parameter(model.output_projection.weight.nan_to_num())
    engine = engine_of(model)
    good, bad = submit(engine, prompt(2), LONG), submit(engine, [2, 39], LONG)
    while engine.has_work:
        engine.step()
    assert len(taken(good)) == 20
    with pytest.raises(FloatingPointError, match="not finite in float32; its weights may be damaged"):
        taken(bad)


def test_a_request_that_fails_by_itself_takes_no_other_with_it(model, caplog) -> None:
    engine = engine_of(model)
    good, bad = submit(engine, prompt(2), LONG), submit(engine, prompt(3), LONG)
    bad.search.advance = None
    while engine.has_work:
        engine.step()
    assert len(taken(good)) == 20
    with pytest.raises(TypeError):
        taken(bad)
    assert "a request failed" in caplog.text


def test_a_session_must_have_a_hash(model) -> None:
    with pytest.raises(TypeError, match=r"session is \['me'\], which has no hash; give a string"):
        submit(engine_of(model), prompt(2), LONG, session=["me"])


def test_one_that_waits_for_a_reader_of_another_is_no_work(model) -> None:
    engine = engine_of(model, max_running=1)
    held = submit(engine, prompt(2), LONG, lead=1)
    submit(engine, prompt(2), LONG)
    engine.step()
    assert not engine.has_work
    held.cancelled = True
    assert engine.has_work


def test_cancelled_requests_take_no_place_in_line(model) -> None:
    engine = engine_of(model, max_running=1, max_waiting=2)
    for slot in [submit(engine, prompt(2), LONG) for _ in range(3)]:
        slot.cancelled = True
    assert len([submit(engine, prompt(2), LONG) for _ in range(3)]) == 3


def test_a_container_limits_the_memory_for_caches(model, monkeypatch, tmp_path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(plain, "_CONTAINER_LIMITS", (limit, tmp_path / "absent"))
    limit.write_text("max\n")
    free = engine_of(model).cache_bytes
    limit.write_text("1000000\n")
    assert engine_of(model).cache_bytes == 250_000 < free


def test_a_sample_is_ended_although_its_reader_is_slower_than_the_step(model) -> None:
    """The reader says ``skip`` and ``taken`` while the step lets others join.

    The sample must not get one token more.
    """
    engine = engine_of(model)
    slot = submit(engine, prompt(2), replace(LONG, temperature=1.0, num_return_sequences=2, seed=1), lead=1)
    engine.step()
    join = engine._join

    def end_meanwhile(errors: list[Exception]) -> None:
        join(errors)
        slot.skip = True
        slot.taken += 1
        engine._join = join

    engine._join = end_meanwhile
    engine.step()
    first, second = taken(slot)
    assert (first.sequence, second.sequence) == (0, 1)
