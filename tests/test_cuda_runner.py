"""The runner for CUDA on a CPU: ids of the plain runner, same bits in any company, out of static buffers.

Its programs are captured as a GPU would: operations are noted once, with the tensors they read and write,
and done again from then on; whatever Python would do otherwise the second time is not done.
"""

import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from test_engine import LONG, mixed_requests, once, prompt, submit, taken
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.generation.search import GenerationOptions, Rules, Samples, start_search
from biogpt.runners import rows as rows_module
from biogpt.runners.attention import attention_for, masked
from biogpt.runners.choosing import Chooser, Needs, choice_of
from biogpt.runners.cpu import CpuRunner
from biogpt.runners.cuda import CudaRunner
from biogpt.runners.plain import PlainRunner
from biogpt.runners.rows import Block, RowsCache
from biogpt.serving.engine import Engine, Slot

Program = Callable[[], None]
# For these a GPU's results come to the CPU, or a number goes from there: no graph can hold them.
WAITS = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "scalar_tensor",
}


class Recording(TorchDispatchMode):
    """Notes operations, and does them again as a CUDA graph does: on the same memory, without Python."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).split(".")[1]
        by_mask = name.startswith("index") and any(part.dtype == torch.bool for part in tensors(args[1]))
        if name in WAITS or by_mask:
            pytest.fail(f"{function} cannot be captured")
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, attention_kernels(), result))
        return result

    def replay(self) -> None:
        with torch.inference_mode():
            for function, args, kwargs, kernels, result in self.calls:
                with sdpa_kernel(kernels):
                    again = function(*args, **kwargs)
                for old, new in zip(tensors(result), tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                        old.copy_(new)


def attention_kernels() -> list[SDPBackend]:
    """Those that attention may use at the moment; a program keeps the one that it was captured with."""
    may = {
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled(),
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled(),
    }
    return [kernel for kernel, is_on in may.items() if is_on]


def tensors(result) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for part in result:
            yield from tensors(part)


def record(program: Program) -> Program:
    program()
    with Recording() as recording:
        program()
    return recording.replay


class SmallRunner(CudaRunner):
    """Programs for few rows, keys and positions, so that short texts cross from one to the next."""

    row_counts = (1, 4)
    key_counts = (16, 32, 64)
    lengths = (4, 8, 16)
    short = 3


class LooseRunner(SmallRunner):
    """With programs of all these shapes, although this CPU may give a row other bits in some of them."""

    def _find_shapes(self, state) -> None:
        super()._find_shapes(state)
        self.sizes, self._keys = (1, 4, len(state.block.owners)), (16, 32, 64, 128)


@pytest.fixture
def model(tiny_config, lively) -> BioGptForCausalLM:
    config = tiny_config(
        hidden_size=64, num_attention_heads=4, intermediate_size=128, max_position_embeddings=128
    )
    return lively(BioGptForCausalLM, config)


def engine_of(runner: CudaRunner, rows: int = 12, **limits: int) -> Engine:
    return Engine(runner, rows * runner.cache_bytes(1, 1), **limits)


def results_of(engine: Engine, requests, pause: Callable[[], int] = lambda: 1) -> list[list]:
    """What requests get that join one after another, ``pause`` steps apart."""
    slots = []
    for request in requests:
        slots.append(submit(engine, *request))
        for _ in range(pause()):
            engine.step()
    while engine.has_work:
        engine.step()
    return [taken(slot) for slot in slots]


def ids_of(results: list) -> list:
    return [
        [hypothesis.ids for hypothesis in result] if isinstance(result, list) else result.id
        for result in results
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_requests_get_the_plain_runners_ids_and_the_same_bits_in_any_company(model, dtype) -> None:
    """Greedy, sampled, several samples, beams and rules; prompts of one piece to several; rows used again."""
    model.to(dtype)
    requests = mixed_requests(13)
    runner = SmallRunner(model, record)
    numbers = random.Random(3)
    found = results_of(engine_of(runner, max_running=7), requests, lambda: numbers.randrange(5))
    if dtype == torch.float32:
        plain = results_of(Engine(CpuRunner(model)), requests)
        assert [ids_of(results) for results in found] == [ids_of(results) for results in plain]
    for request, results in list(zip(requests, found, strict=True))[:5]:
        assert results_of(engine_of(runner), [request]) == [results]


def test_rules_that_the_device_does_not_know_are_left_to_the_search(model) -> None:
    """Such a row's logits come to the CPU, beside rows that are chosen on the device."""
    kinds = (
        {"typical_p": 0.6},
        {"frequency_penalty": 1.0},
        {"logit_bias": {7: 3.0}},
        {"no_repeat_ngram_size": 11},
    )
    requests = [
        (prompt(5, seed), replace(LONG, temperature=1.0, seed=seed, **kind))
        for seed, kind in enumerate(({}, *kinds, {}))
    ]
    plain = results_of(Engine(CpuRunner(model)), requests)
    found = results_of(engine_of(SmallRunner(model, record)), requests)
    assert [ids_of(results) for results in found] == [ids_of(results) for results in plain]


def test_a_program_is_captured_once_and_replayed(model) -> None:
    captured: list[int] = []

    def counted(program: Program) -> Program:
        place, replay = len(captured), record(program)
        captured.append(0)

        def run() -> None:
            captured[place] += 1
            replay()

        return run

    runner = SmallRunner(model, counted)
    requests = [(prompt(3, seed), replace(LONG, temperature=1.0, seed=seed)) for seed in range(6)]
    first = results_of(engine_of(runner), requests)
    programs = len(captured)
    assert results_of(engine_of(runner), requests) == first
    assert len(captured) == programs
    assert sum(captured) > 4 * programs


def test_logits_and_logprobs_are_the_models_own(model) -> None:
    ids = prompt(30)
    [tokens] = results_of(
        engine_of(SmallRunner(model, record)), [(ids, replace(LONG, temperature=1.0, seed=0))]
    )
    with torch.no_grad():
        row = model(torch.tensor([ids + [token.id for token in tokens[:-1]]])).logits[0, 29:].log_softmax(-1)
    wanted = row[torch.arange(20), [token.id for token in tokens]]
    torch.testing.assert_close(torch.tensor([token.logprob for token in tokens]), wanted, rtol=0, atol=1e-5)
    best = row.topk(3)
    for token, values, indices in zip(tokens, best.values, best.indices, strict=True):
        assert [other for other, _ in token.alternatives] == indices.tolist()
        logprobs = torch.tensor([logprob for _, logprob in token.alternatives])
        torch.testing.assert_close(logprobs, values, rtol=0, atol=1e-5)


RULES = [
    {},
    {"temperature": 1.3},
    {"temperature": 0.8, "top_k": 3},
    {"temperature": 2.0, "top_p": 0.7},
    {"temperature": 2.0, "min_p": 0.2},
    {"temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    {"repetition_penalty": 1.8},
    {"temperature": 1.0, "no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 0.7},
    {"temperature": 3.0, "no_repeat_ngram_size": 10},
    {"temperature": 4.0, "min_new_tokens": 40, "top_logprobs": 5},
    {"temperature": 1.0, "top_p": 0.0},
]


def test_each_rule_chooses_what_the_search_itself_chooses(tiny_config) -> None:
    """All rules side by side in one program, each row as if it were alone; 40 tokens over few words."""
    config = tiny_config(vocab_size=50, max_position_embeddings=64)
    numbers = torch.Generator().manual_seed(0)
    chooser = Chooser(config, len(RULES) + 1, torch.device("cpu"))
    chooser.places.fill_(config.max_position_embeddings)
    searches, several = [], []
    for seed, rules in enumerate(RULES):
        options = GenerationOptions(**{"max_new_tokens": 41, "seed": seed, **rules})
        search = start_search(config, [2, 5, 6, 5], options, banned=[0, 1], padding=[48, 49])
        assert isinstance(search, Samples)
        cache = RowsCache(config, Block(config, 1, torch.device("cpu"), torch.float32), 64)
        cache.length = 4
        search.advance(torch.randn(1, 50, generator=numbers) * 2, cache)
        assert search.rules is not None
        chooser.set(seed, search.rules)
        chooser.history[seed, :4] = torch.tensor([2, 5, 6, 5])
        searches.append((search, cache))
        several.append(search.rules)
    needs = Needs.of(several)
    compared = 0
    for place in range(4, 44):
        logits = torch.randn(len(RULES), 50, generator=numbers) * 2
        chooser.logits[: len(RULES)] = logits
        for row, (search, _) in enumerate(searches):
            chooser.places[row] = config.max_position_embeddings if search.done else place
            if not search.done:
                chooser.history[row, place] = search.feed[0][0]
        chooser.choose(len(RULES) + 1, needs)
        for row, (search, cache) in enumerate(searches):
            if not search.done:
                choice = choice_of(chooser.out[row, : chooser.width(needs)].tolist(), several[row])
                token = search.advance(logits[row : row + 1], cache)
                assert (choice.id, len(choice.alternatives)) == (token.id, search.options.top_logprobs), (
                    RULES[row],
                    place,
                )
                assert choice.logprob == pytest.approx(token.logprob, abs=1e-5)
                assert chooser.ids[row] == token.id
                compared += 1
    assert compared > 200
    assert chooser.ids[-1] == 0, "the row that is idle is left alone"


def test_draws_follow_the_distribution_after_the_cuts(tiny_config) -> None:
    """Shares of 4,000 draws, 50 places of 80 seeds, are those of the three tokens that top-p leaves over."""
    config = tiny_config(vocab_size=8)
    chooser = Chooser(config, 80, torch.device("cpu"))
    probabilities = torch.tensor([0.02, 0.01, 0.01, 0.4, 0.3, 0.2, 0.03, 0.03])
    options = GenerationOptions(temperature=1.0, top_p=0.85)
    several = [Rules(options, seed, 1, (), ()) for seed in range(80)]
    for row, rules in enumerate(several):
        chooser.set(row, rules)
    counts = torch.zeros(8)
    chooser.logits[:] = probabilities.log()
    for place in range(50):
        chooser.places.fill_(place % 20)
        for row, rules in enumerate(several):
            if place % 20 == 0:
                chooser.set(row, replace(rules, seed=1_000 * (1 + place) + row))
        chooser.choose(80, Needs.of(several))
        counts += chooser.out[:, 0].long().bincount(minlength=8)
    wanted = torch.tensor([0, 0, 0, 0.4, 0.3, 0.2, 0, 0]) / 0.9
    torch.testing.assert_close(counts / counts.sum(), wanted, rtol=0, atol=0.035)


def test_equal_alternatives_come_in_the_order_of_their_ids(tiny_config) -> None:
    config = tiny_config()
    chooser = Chooser(config, 2, torch.device("cpu"))
    rules = Rules(GenerationOptions(top_logprobs=8), 0, 1, (), ())
    chooser.logits[:] = torch.tensor([1.0, 2.0, 2.0, 0.5] * 10)
    chooser.places.fill_(3)
    chooser.choose(2, Needs.of([rules]))
    choice = choice_of(chooser.out[1, : chooser.width(Needs.of([rules]))].tolist(), rules)
    assert choice.id == 1
    assert [token_id for token_id, _ in choice.alternatives] == [1, 2, 5, 6, 9, 10, 13, 14]


def test_short_prompts_are_read_together_and_long_ones_in_pieces(model) -> None:
    runner = SmallRunner(model)
    engine = engine_of(runner)
    writer = submit(engine, prompt(2), LONG)
    engine.step()
    short = [submit(engine, prompt(4, seed), LONG) for seed in range(4)]
    long = submit(engine, prompt(40), LONG)
    engine.step()
    assert [slot.made for slot in (writer, *short, long)] == [2, 1, 1, 1, 0, 0]
    engine.step()
    assert [slot.made for slot in (writer, *short, long)] == [3, 2, 2, 2, 1, 0]
    for _ in range(3):
        assert long.made == 0
        engine.step()
    assert [slot.made for slot in (writer, *short, long)] == [6, 5, 5, 5, 4, 1], "16, 16 and 8 positions"


class ShortModelRunner(SmallRunner):
    """With pieces that a model's length cannot be divided by."""

    lengths = (7, 48)


def test_the_last_piece_of_a_prompt_ends_where_the_model_does(model) -> None:
    runner = ShortModelRunner(model, record)
    requests = [
        (prompt(length), replace(LONG, min_new_tokens=1, max_new_tokens=128 - length))
        for length in (127, 121, 97, 49)
    ]
    found = results_of(engine_of(runner), requests)
    plain = results_of(Engine(PlainRunner(model)), requests)
    assert [ids_of(results) for results in found] == [ids_of(results) for results in plain]
    assert runner._state is not None
    assert {key[2:] for key in runner._state.programs if key[0] == "read"} == {
        (48, 0),
        (48, 48),
        (7, 48),
        (7, 96),
        (32, 96),
    }


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.float32, (5, 3, 300, 20)),  # rows, heads, positions, width of a head
        (torch.float32, (3, 2, 64, 16)),
        (torch.float16, (4, 2, 130, 64)),
    ],
)
def test_the_kernel_attends_to_what_a_row_has_and_to_nothing_else(dtype, shape) -> None:
    over_own_keys = pytest.importorskip("biogpt.runners.row_attention").over_own_keys
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, heads, limit, width = shape
    torch.manual_seed(0)
    parts = torch.randn(rows, 3, heads, width, device=device).to(dtype)
    memory = torch.randn(2, rows, heads, limit + 1, width, device=device).to(dtype)
    given = torch.tensor([[0, 1], [limit, 1], [limit - 1, 1], [128, 1], [127, 1]], device=device)[:rows]
    places = given[:, 0]  # with a stride
    expected = memory.clone()
    wanted = masked(places, limit, dtype)(parts, expected)
    for row, place in enumerate(places.tolist()):
        memory[:, row, :, (0 if place == limit else place) :] = torch.nan  # of others before, or of nobody
    found = over_own_keys(places, limit, dtype)(parts, memory)
    is_used = places < limit
    torch.testing.assert_close(found[is_used], wanted[is_used], atol=2e-3, rtol=2e-3)
    for row, place in enumerate(places.tolist()):
        assert torch.equal(memory[:, row, :, place], expected[:, row, :, place]), "keys and values are kept"
        assert memory[:, row, :, place + 1 :].isnan().all(), "nothing else is touched"
    if rows > 2:
        alone = over_own_keys(places[2:3], limit, dtype)(parts[2:3], memory[:, 2:3].contiguous())
        assert torch.equal(alone, found[2:3])


def test_texts_by_the_kernel_are_those_of_the_plain_runner(model) -> None:
    over_own_keys = pytest.importorskip("biogpt.runners.row_attention").over_own_keys
    if torch.cuda.is_available():
        model = model.to("cuda")
    runner = SmallRunner(model, attention=over_own_keys)
    options = replace(LONG, max_new_tokens=4, min_new_tokens=4)
    requests = [(prompt(3), options), (prompt(20, 1), replace(options, temperature=0.9, seed=3))]
    found = results_of(engine_of(runner, 2), requests)
    plain = results_of(Engine(PlainRunner(model)), requests)
    assert [ids_of(results) for results in found] == [ids_of(results) for results in plain]
    alone = [results_of(engine_of(runner, 2), [request])[0] for request in requests]
    assert alone == found
    assert runner._keys == (128,), "one program does for texts of all lengths"


def test_the_kernel_is_taken_where_it_gives_the_same_numbers(monkeypatch, caplog) -> None:
    kernel = pytest.importorskip("biogpt.runners.row_attention")
    memory = torch.zeros(2, 3, 2, 41, 16, device="cuda" if torch.cuda.is_available() else "cpu")
    assert attention_for(memory, torch.float32) is kernel.over_own_keys

    def one_key_less(places, keys, dtype):
        return masked((places - 1).clamp(min=0), keys, dtype)

    def without_a_compiler(places, keys, dtype):
        raise RuntimeError("Failed to find C compiler")

    for broken, why in ((one_key_less, "not close"), (without_a_compiler, "C compiler")):
        monkeypatch.setattr(kernel, "over_own_keys", broken)
        caplog.clear()
        assert attention_for(memory, torch.float32) is masked
        assert "no kernel of its own" in caplog.text
        assert why in caplog.text


def test_programs_are_for_few_rows_again_when_most_have_left(model) -> None:
    """The text that goes on lies in the last row, and is moved to the first without a change."""
    runner = LooseRunner(model, record)
    engine = engine_of(runner)
    brief = replace(LONG, max_new_tokens=3, min_new_tokens=3)
    others = [submit(engine, prompt(3, seed), brief) for seed in range(1, 8)]
    engine.step()
    options = replace(LONG, temperature=1.0, seed=9, repetition_penalty=1.3)
    last = submit(engine, prompt(5), options)
    while not all(slot.search.done for slot in others):
        engine.step()
    assert last.cache.rows != [0]
    engine.step()
    assert last.cache.rows == [0]
    while engine.has_work:
        engine.step()
    [alone] = results_of(engine_of(runner), [(prompt(5), options)])
    assert ids_of(taken(last)) == ids_of(alone)


def test_texts_cross_from_program_to_program_as_they_grow_and_others_come_and_go(model) -> None:
    requests = mixed_requests(8)
    runner = LooseRunner(model, record)
    numbers = random.Random(4)
    found = results_of(engine_of(runner), requests, lambda: numbers.randrange(12))
    plain = results_of(Engine(CpuRunner(model)), requests)
    assert [ids_of(results) for results in found] == [ids_of(results) for results in plain]
    assert runner._state is not None
    fed = {key[1:] for key in runner._state.programs if key[0] == "feed"}
    assert {count for count, _ in fed} == {1, 4, 12}
    assert {keys for _, keys in fed} == {16, 32, 64, 128}


def test_one_row_of_broken_numbers_fails_alone_and_leaves_a_clean_row(model) -> None:
    with torch.no_grad():
        model.biogpt.embed_tokens.weight[39] = float("nan")
        model.output_projection.weight = torch.nn.Parameter(model.output_projection.weight.nan_to_num())
    runner = SmallRunner(model, record)
    engine = engine_of(runner, rows=2)
    good, bad = submit(engine, prompt(2), LONG), submit(engine, [2, 39, 5, 6, 7, 8], LONG)
    while engine.has_work:
        engine.step()
    assert len(taken(good)) == 20
    with pytest.raises(FloatingPointError, match="not finite in float32"):
        taken(bad)
    pair = results_of(engine, [(prompt(2, seed), LONG) for seed in (1, 2)])
    assert [len(tokens) for tokens in pair] == [20, 20], "both rows are used again"


def test_numbers_that_break_on_the_way_are_told(model) -> None:
    with torch.no_grad():
        model.output_projection.weight = torch.nn.Parameter(model.output_projection.weight.clone())
    engine = engine_of(SmallRunner(model, record))
    slot = submit(engine, prompt(2), LONG)
    engine.step(), engine.step()
    with torch.no_grad():
        model.output_projection.weight[7] = float("inf")
    while engine.has_work:
        engine.step()
    with pytest.raises(FloatingPointError, match="not finite in float32"):
        taken(slot)


@pytest.mark.parametrize(("place", "calls"), [("step", 3), ("step", 9), ("read_together", 2)])
def test_after_a_failed_step_requests_go_on_as_if_nothing_had_been(model, monkeypatch, place, calls) -> None:
    samples = replace(
        LONG, temperature=1.0, seed=3, num_return_sequences=2, max_new_tokens=6, min_new_tokens=6
    )
    asked = [
        (prompt(3), replace(LONG, max_new_tokens=9, min_new_tokens=9)),
        (prompt(20), replace(LONG, num_beams=3, max_new_tokens=7, min_new_tokens=7)),
        (prompt(12), samples),
    ]
    runner = SmallRunner(model, record)
    expected = results_of(engine_of(runner), asked)
    monkeypatch.setattr(runner, place, once(getattr(runner, place), calls))
    assert results_of(engine_of(runner), asked) == expected


def test_a_sample_can_be_ended_from_outside(model) -> None:
    """The step that was made ahead is for nobody then; the next sample is what it would be anyway."""
    options = replace(LONG, temperature=2.0, seed=5, num_return_sequences=2)
    runner = SmallRunner(model, record)
    [both] = results_of(engine_of(runner), [(prompt(3), options)])
    first, second = ([token for token in both if token.sequence == index] for index in range(2))
    engine = engine_of(runner)
    slot = submit(engine, prompt(3), options, lead=1)
    results: list = []
    while engine.has_work:
        engine.step()
        results += taken(slot)
        slot.skip = len(results) == 4
        slot.taken = len(results)
    assert results == first[:4] + second


def test_rows_are_bounded_by_the_budget_and_a_request_beyond_it_is_refused(model) -> None:
    runner = SmallRunner(model)
    engine = engine_of(runner, rows=3, max_running=8)
    with pytest.raises(ValueError, match=r"MB of cache for 4 rows of 23 positions, and the limit is"):
        submit(engine, prompt(3), replace(LONG, num_beams=4))
    slots = [submit(engine, prompt(3, seed), LONG) for seed in range(5)]
    engine.step()
    assert [engine.position(slot) for slot in slots] == [0, 0, 0, 1, 2]
    while engine.has_work:
        engine.step()
    assert [slot.made for slot in slots] == [20] * 5
    caches = [runner.open(1, 8) for _ in range(3)]
    with pytest.raises(
        MemoryError, match=r"all 3 rows for texts are taken, of 0\.1 MB each; try again later"
    ):
        runner.open(1, 8)
    runner.close(caches[1])
    assert runner.open(1, 8).rows == [1]


def test_a_device_with_less_room_has_fewer_rows_and_one_without_refuses(model, monkeypatch, caplog) -> None:
    zeros, most = torch.zeros, 3

    def short_of_memory(*shape, **options):
        if isinstance(shape[0], tuple) and len(shape[0]) == 6 and shape[0][2] > most:
            raise torch.OutOfMemoryError
        return zeros(*shape, **options)

    monkeypatch.setattr(rows_module.torch, "zeros", short_of_memory)
    runner = SmallRunner(model)
    engine = engine_of(runner, rows=12, max_running=8)
    slots = [submit(engine, prompt(3, seed), LONG) for seed in range(4)]
    with pytest.raises(MemoryError, match="all 3 rows for texts are taken"):
        engine.step()
    while engine.has_work:
        engine.step()
    assert "has room for the caches of 3 texts, not of 12" in caplog.text
    assert [slot.made for slot in slots] == [20, 20, 20, 0]
    most = 0
    with pytest.raises(
        MemoryError, match=r"a text of 128 positions needs 0\.1 MB of cache, and cpu has no room"
    ):
        SmallRunner(model).open(1, 8)


def test_as_many_run_at_once_as_there_is_memory_for(model, monkeypatch) -> None:
    runner = SmallRunner(model)
    row = runner.cache_bytes(1, 1)
    for memory, most in ((10 * row + 1, 10), (10_000 * row, 64), (row // 2, 1)):
        monkeypatch.setattr(runner, "memory", lambda memory=memory: memory)
        assert Engine(runner).max_running == runner.most == most
    assert Engine(PlainRunner(model)).max_running == 16


def test_after_many_requests_nothing_is_held(model) -> None:
    runner = SmallRunner(model)
    engine = engine_of(runner, rows=4)
    numbers = random.Random(0)

    def burst() -> tuple[int, int]:
        for _ in range(20):
            options = replace(LONG, max_new_tokens=numbers.randint(1, 4), min_new_tokens=0, temperature=1.0)
            slots.append(weakref.ref(submit(engine, prompt(numbers.randint(1, 20)), options)))
            if numbers.random() < 0.2:
                slots[-1]().cancelled = True
            engine.step()
        while engine.has_work:
            engine.step()
        return sum(isinstance(slot(), Slot) for slot in slots), runner.open(1, 4).rows[0]

    slots: list[weakref.ref] = []
    assert burst() == (0, 0)
