"""The caches in pages, of bytes and of floats.

What they hold and compute, against plain attention, in any company and after any history.
"""

import math
import os
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.generation.search import GenerationOptions, start_search
from biogpt.model.config import BioGptConfig
from biogpt.runners import byte_cache, float_cache, runner_for
from biogpt.runners.byte_cache import Int8KVCache
from biogpt.runners.float_cache import FloatKVCache
from biogpt.runners.paged_cache import PagedCache, Pages
from biogpt.serving.engine import Engine, Slot

CONFIG = BioGptConfig(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=520
)

pytestmark = [
    pytest.mark.skipif(not Int8KVCache.fits(CONFIG), reason="no fbgemm, or no madvise, here"),
    pytest.mark.parametrize("kind", [Int8KVCache, FloatKVCache]),
]
STEPS = {Int8KVCache: byte_cache.BYTES, FloatKVCache: float_cache.PAGED}
Kind = type[PagedCache]


def write(cache: PagedCache, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random positions in both layers.

    Returns keys and values [L, B, H, T, D], one head far larger than another.
    """
    random = torch.Generator().manual_seed(seed)
    size = torch.tensor([0.01, 1.0, 5.0, 100.0])[:, None, None]
    new = size * torch.randn(2, 2, cache.batch_size, 4, count, 8, generator=random)
    for layer in range(2):
        cache.write(layer, *new[layer])
    cache.advance(count)
    return new[:, 0], new[:, 1]


def held(cache: PagedCache, layer: int) -> tuple[Tensor, Tensor]:
    if isinstance(cache, Int8KVCache):
        return cache.floats(layer, cache.length)
    keys, values = cache.stored(slice(layer, layer + 1), slice(None), 0, cache.length)
    return keys[0], values[0]


def step(caches: Sequence[PagedCache], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Attend from a new position of every row, in layer 1: the queries [R, H, D] and what they found."""
    rows = sum(cache.batch_size for cache in caches)
    random = torch.Generator().manual_seed(seed)
    # Each row draws its own, so that a row gets the same numbers in any company.
    query, key, value = torch.stack([torch.randn(3, 4, 8, generator=random) for _ in range(rows)], dim=1)
    return query, attended(caches, query, key, value)


def attended(caches: Sequence[PagedCache], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    places, encode, attend = STEPS[type(caches[0])]
    of_layer = places(caches)[1]
    counts = [len(place[0]) for place in of_layer]
    parts = zip(query.split(counts), key.split(counts), value.split(counts), of_layer, strict=True)
    return torch.cat(
        [attend(q.view(-1, 1, 8), encode(k, v), place).view(-1, 4, 8) for q, k, v, place in parts]
    )


@given(data=st.data(), rows=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_any_history_is_held_to_half_a_step(data, rows, kind) -> None:
    pages = kind.kind(CONFIG, 40)
    cache = kind(CONFIG, rows, pages=pages)
    keys = values = torch.zeros(2, rows, 4, 0, 8)
    for number in range(data.draw(st.integers(1, 6))):
        match data.draw(st.sampled_from(["write", "cut", "reorder"])):
            case "write":
                count = data.draw(st.integers(1, 200))
                if cache.length + count > 520:
                    with pytest.raises(ValueError, match="do not fit in 520"):
                        write(cache, count)
                else:
                    new = write(cache, count, number)
                    keys, values = torch.cat([keys, new[0]], dim=3), torch.cat([values, new[1]], dim=3)
            case "cut":
                length = data.draw(st.integers(0, cache.length))
                cache.truncate(length)
                keys, values = keys[..., :length, :], values[..., :length, :]
            case "reorder":
                order = data.draw(st.lists(st.integers(0, cache.batch_size - 1), min_size=1, max_size=4))
                cache.reorder(torch.tensor(order))
                keys, values = keys[:, order], values[:, order]
        for layer in range(2):
            for found, wanted in zip(held(cache, layer), (keys[layer], values[layer]), strict=True):
                assert found.shape == wanted.shape
                if kind is FloatKVCache:
                    assert torch.equal(found, wanted)
                # 254 steps from -greatest to greatest, and 255 from least to greatest: never more than this.
                most = wanted.abs().amax(dim=-1, keepdim=True) / 254
                assert ((found - wanted).abs() <= 1.02 * most).all()
    cache.release()
    assert sorted(pages._free) == list(range(40))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 77, 127, 128, 129, 383])
def test_attention_is_that_over_the_numbers_it_holds(length, kind) -> None:
    cache = kind(CONFIG, 2, 400)
    if length:
        write(cache, length)
    query, found = step([cache])
    cache.advance(1)
    keys, values = held(cache, 1)
    wanted = (query[:, :, None] @ keys.transpose(2, 3)).softmax(dim=-1) @ values
    torch.testing.assert_close(found, wanted[:, :, 0], rtol=1e-3, atol=1e-5)
    assert keys.shape[2] == length + 1


@pytest.mark.usefixtures("every_core")
def test_a_row_gets_the_same_bits_in_any_company(kind) -> None:
    """Of different lengths, with one page or four, one row or more, in pages of their own or shared."""
    lengths = [3, 130, 127, 500, 128, 1, 256]

    def company(shared: bool) -> list[PagedCache]:
        pages = kind.kind(CONFIG, 40) if shared else None
        caches = [kind(CONFIG, 1 + (length == 130), pages=pages) for length in lengths]
        for number, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
            write(cache, length, number)
        return caches

    query, key, value = torch.randn(3, 8, 4, 8, generator=torch.Generator().manual_seed(1))
    together = attended(company(shared=True), query, key, value)
    assert torch.equal(attended(company(shared=False), query, key, value), together)
    first = 0
    for cache in company(shared=True):
        rows = slice(first, first + cache.batch_size)
        assert torch.equal(attended([cache], query[rows], key[rows], value[rows]), together[rows])
        first = rows.stop
    assert first == 8


def test_a_page_carries_nothing_over_from_whoever_had_it(kind) -> None:
    pages = kind.kind(CONFIG, kind.kind.of(200))
    broken = kind(CONFIG, 1, pages=pages)
    for layer in range(2):
        broken.write(layer, *torch.full((2, 1, 4, 200, 8), math.nan))
    broken.advance(200)
    broken.release()
    cache = kind(CONFIG, 1, pages=pages)
    write(cache, 130)
    assert step([cache])[1].isfinite().all()


def test_pages_that_are_given_back_leave_the_memory_but_for_what_a_text_takes(kind) -> None:
    config = BioGptConfig(num_hidden_layers=2, vocab_size=40)  # pages of BioGPT's size
    pages = kind.kind(config, 40)
    numbers = [pages.take() for _ in range(40)]
    for layers in pages.held:
        layers.view(torch.uint8).fill_(1)
    pages.give(numbers)

    def in_memory() -> set[int]:
        return {page for part in pages.held for page in range(40) if part[:, page].view(torch.uint8).any()}

    left = kind.kind.of(config.max_position_embeddings)
    assert in_memory() == set(numbers[-left:])
    assert {pages.take() for _ in range(left)} == set(numbers[-left:]), "the next text has them"
    pages.give(numbers[-left:][:3])
    assert in_memory() == set(numbers[-left:])


def test_no_page_is_taken_twice(kind) -> None:
    count = 2 * kind.kind.of(100)
    pages = kind.kind(CONFIG, count)
    one, other = (kind(CONFIG, 1, pages=pages) for _ in range(2))
    write(one, 100)
    write(other, 100)
    before = held(other, 0)
    with pytest.raises(MemoryError, match=f"all {count} pages"):
        write(one, 100)
    assert all(map(torch.equal, before, held(other, 0)))
    other.release()
    write(one, 100)
    assert one.length == 200


def test_pages_are_as_many_as_memory_allows(kind) -> None:
    pages = kind.kind
    assert pages.within(CONFIG, 10 * pages.size(CONFIG) + 1).count == 10
    assert pages.within(CONFIG, 0).count == 1
    count = pages.within(BioGptConfig(), 2**62).count
    assert 0 < count * pages.size(BioGptConfig()) < 2**50


def test_a_process_with_more_pages_than_memory_can_be_forked(kind) -> None:
    """As a Space does for each call; the system must not count address space as memory in use."""
    many = [kind.kind.within(BioGptConfig(), 2**62) for _ in range(4)]
    numbers = [pages.parts[0][0, pages.take(), 0, 0, :1] for pages in many]
    for number in numbers:
        number[0] = 5
    child = os.fork()
    if child == 0:
        for number in numbers:
            number[0] = 7
        os._exit(int(min(numbers).item()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert [number.item() for number in numbers] == [5] * 4, "each process has its own"


def test_where_less_address_space_is_granted_there_are_fewer_pages(kind) -> None:
    wanted = 1000
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = kind.kind.size(BioGptConfig())
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 300 * size, before[1]))
    try:
        pages = kind.kind.within(BioGptConfig(), wanted * size)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert 100 < pages.count < 300


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[Kind, BioGptForCausalLM]:
    folder = tmp_path_factory.mktemp("small")
    BioGptForCausalLM(replace(CONFIG, vocab_size=8000)).save_pretrained(folder)
    return {
        kind: BioGptForCausalLM.from_pretrained(folder, device="cpu", precision=precision)
        for kind, precision in ((Int8KVCache, "int8"), (FloatKVCache, "float32"))
    }


def results(engine: Engine, ids: Sequence[int], options: GenerationOptions, session: str | None) -> list:
    slot = Slot(start_search(engine.runner.config, ids, options), session)
    engine.submit(slot)
    while engine.has_work:
        engine.step()
    return list(iter(slot.results.get, None))


@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "temperature": 1.0}])
def test_a_reused_prompt_gives_the_same_bits(way, kind, models, monkeypatch) -> None:
    model = models[kind]
    options = GenerationOptions(max_new_tokens=12, seed=3, **way)
    ids = [2, *torch.randint(4, 8000, (300,), generator=torch.Generator().manual_seed(0)).tolist()]
    engine = Engine(runner_for(model))
    first = results(engine, ids, options, "one")
    read = []
    forward = model.biogpt.forward
    monkeypatch.setattr(
        model.biogpt, "forward", lambda ids, **rest: read.append(ids.shape[1]) or forward(ids, **rest)
    )
    assert results(engine, ids, options, "one") == first
    assert sum(read) == 301 - 256
    assert results(engine, ids, options, "another") == first
    assert sum(read) == 2 * 301 - 256
    assert len(engine.runner._pages._free) == engine.runner._pages.count


def test_the_engine_pages_what_it_promised(kind, models, monkeypatch) -> None:
    """As many requests run as the limit has room for, and the pages suffice for each of them."""
    model = models[kind]
    most = kind.size(model.config, 1, 140)
    engine = Engine(runner_for(model), cache_bytes=3 * most)
    taken = []
    take = Pages.take
    monkeypatch.setattr(Pages, "take", lambda self: taken.append(len(self._free)) or take(self))
    options = GenerationOptions(max_new_tokens=20, min_new_tokens=20)
    slots = [Slot(start_search(model.config, list(range(4, 124)), options)) for _ in range(5)]
    for slot in slots:
        engine.submit(slot)
    while engine.has_work:
        engine.step()
        assert len(engine.running) <= 3
    assert [len(list(iter(slot.results.get, None))) for slot in slots] == [20] * 5
    assert min(taken) == 1, "the last page was taken, too"
