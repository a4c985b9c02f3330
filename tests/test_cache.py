"""KVCache: one allocation that is written, advanced, cut, reordered and released, and refuses to overflow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.model.cache import KVCache
from biogpt.model.config import BioGptConfig

CONFIG = BioGptConfig(
    vocab_size=40,
    hidden_size=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=10,
    max_position_embeddings=12,
)


def write(cache, count, start):
    """Write ``count`` positions with numbers from ``start`` on, all different, into every layer."""
    total = 2 * cache.batch_size * 2 * count * 3
    new = torch.arange(start, start + total).float().view(2, cache.batch_size, 2, count, 3)
    for layer in range(2):
        cache.write(layer, new[layer], -new[layer])
    cache.advance(count)
    return new


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that compares: memory that was never written may hold NaN, which equals nothing."""
    return tensor.view(torch.int32).clone()


def held(cache):
    return cache.keys[..., : cache.length, :], cache.values[..., : cache.length, :]


@given(data=st.data(), rows=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_any_history_equals_concatenation(data, rows):
    """Against the plain way to keep a cache: concatenate, slice, index."""
    cache = KVCache(CONFIG, rows)
    oracle = torch.zeros(2, rows, 2, 0, 3)
    for step in range(data.draw(st.integers(1, 8))):
        match data.draw(st.sampled_from(["write", "cut", "reorder"])):
            case "write":
                count = data.draw(st.integers(1, 5))
                if cache.length + count > 12:
                    with pytest.raises(ValueError, match="do not fit in 12"):
                        write(cache, count, start=0)
                else:
                    oracle = torch.cat([oracle, write(cache, count, start=1000 * step)], dim=3)
            case "cut":
                length = data.draw(st.integers(0, cache.length))
                cache.truncate(length)
                oracle = oracle[..., :length, :]
            case "reorder":
                order = data.draw(st.lists(st.integers(0, cache.batch_size - 1), min_size=1, max_size=4))
                cache.reorder(torch.tensor(order))
                oracle = oracle[:, order]
        keys, values = held(cache)
        assert torch.equal(keys, oracle)
        assert torch.equal(values, -oracle)


def test_write_returns_the_past_and_the_new():
    cache = KVCache(CONFIG, batch_size=1)
    write(cache, 2, start=0)
    new = torch.full((1, 2, 3, 3), 7.0)
    keys, values = cache.write(1, new, 2 * new)
    assert torch.equal(keys, torch.cat([cache.keys[1, :, :, :2], new], dim=2))
    assert torch.equal(values, torch.cat([cache.values[1, :, :, :2], 2 * new], dim=2))
    assert cache.length == 2  # until every layer has written and advance() says so


def test_nothing_is_allocated_or_moved_between_steps(lively):
    model = lively(BioGptForCausalLM, CONFIG)
    cache = KVCache(CONFIG, batch_size=2)
    keys, values = cache.keys, cache.values
    places = keys.data_ptr(), values.data_ptr()
    ids = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for position in range(12):
            out = model(ids[:, position : position + 1], past_key_values=cache)
            cache.reorder(torch.tensor([1, 0]))
            assert out.past_key_values is cache
            assert cache.keys is keys
            assert cache.values is values
    assert (keys.data_ptr(), values.data_ptr()) == places
    view, _ = KVCache(CONFIG, 2).write(0, *torch.zeros(2, 2, 2, 4, 3))
    assert view.untyped_storage().nbytes() == keys.untyped_storage().nbytes()  # a view of everything, no copy


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 2, 0], [1], [0, 0, 1, 1, 2]], ids=str)
def test_decoding_after_reorder_equals_recomputation(order, lively):
    """What a beam does: the rows that live on continue as if they had always been there."""
    model = lively(BioGptForCausalLM, CONFIG)
    ids = torch.randint(3, 40, (3, 6), generator=torch.Generator().manual_seed(1))
    new = torch.randint(3, 40, (len(order), 3), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        cache.reorder(torch.tensor(order))
        got = model(new, past_key_values=cache).logits
        wanted = model(torch.cat([ids[order], new], dim=1)).logits[:, 6:]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_decoding_after_truncate_equals_recomputation(lively):
    """The positions cut are still in memory and must not be seen."""
    model = lively(BioGptForCausalLM, CONFIG)
    ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cache = model(ids[:, :7], use_cache=True).past_key_values
        cache.truncate(3)
        got = model(ids[:, 7:], past_key_values=cache).logits
        wanted = model(ids[:, [0, 1, 2, 7, 8]]).logits[:, 3:]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_a_full_cache_refuses_and_keeps_what_it_has(lively):
    """Shorter than the model's limit, so that the cache, not the model, has to refuse."""
    model = lively(BioGptForCausalLM, CONFIG)
    cache = KVCache(CONFIG, batch_size=2, max_length=5)
    ids = torch.randint(3, 40, (2, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(ids, past_key_values=cache)
        before = bits(cache.keys), bits(cache.values)
        with pytest.raises(ValueError, match="4 positions are taken and 2 more do not fit in 5; allocate"):
            model(ids[:, :2], past_key_values=cache)
        with pytest.raises(ValueError, match="holds 2 rows; the input has 1"):
            model(ids[:1, :1], past_key_values=cache)
        assert cache.length == 4
        assert torch.equal(bits(cache.keys), before[0])
        assert torch.equal(bits(cache.values), before[1])
        model(ids[:, :1], past_key_values=cache)  # the last place is still free
    assert cache.length == 5


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 2, 1, 3), "12 positions are taken and 1 more"), ((1, 2, 1, 3), "holds 2 rows; the input has 1")],
)
def test_write_itself_refuses(shape, message):
    """One row would otherwise broadcast to all, and one position to an empty slice, in silence."""
    cache = KVCache(CONFIG, batch_size=2)
    write(cache, 12, start=0)
    keys = bits(cache.keys)
    with pytest.raises(ValueError, match=message):
        cache.write(0, torch.ones(shape), torch.ones(shape))
    assert torch.equal(bits(cache.keys), keys)


@pytest.mark.parametrize("length", [-1, 4])
def test_truncate_cannot_lengthen(length):
    cache = KVCache(CONFIG, batch_size=1)
    write(cache, 3, start=0)
    with pytest.raises(ValueError, match=f"cannot cut to {length}; it holds 3 positions"):
        cache.truncate(length)
    assert cache.length == 3


def test_release_gives_the_memory_back(lively):
    model = lively(BioGptForCausalLM, CONFIG)
    ids = torch.full((2, 3), 5)
    cache = model(ids, use_cache=True).past_key_values
    cache.release()
    assert cache.keys.untyped_storage().nbytes() == cache.values.untyped_storage().nbytes() == 0
    assert cache.length == 0
    with pytest.raises(ValueError, match="holds 0 rows; the input has 2"):
        model(ids, past_key_values=cache)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"batch_size": 1, "max_length": 0}, "max_length is 0; expected 1 to 12, the model's limit"),
        ({"batch_size": 1, "max_length": 13}, "max_length is 13; expected 1 to 12, the model's limit"),
    ],
)
def test_an_impossible_size_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        KVCache(CONFIG, **arguments)


def test_size_and_type_are_those_asked_for():
    cache = KVCache(CONFIG, batch_size=3, max_length=7, dtype=torch.bfloat16)
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, 7, 3)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
    assert KVCache(CONFIG, batch_size=1).max_length == 12
