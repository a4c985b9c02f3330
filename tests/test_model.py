"""The bare decoder: what it returns, masks, dropouts in training, checkpointing, and what it refuses."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.model.cache import KVCache
from biogpt.model.decoder import POSITION_OFFSET, BioGptModel

TOLERANCE = {"rtol": 0, "atol": 1e-5}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that compares: memory that was never written may hold NaN, which equals nothing."""
    return tensor.view(torch.int32).clone()


@pytest.fixture
def batch():
    """Ids [3, 7] and mask; one row padded on the left, one on the right, one whole."""
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    ids[0, :3] = 1
    ids[1, 5:] = 1
    return ids, (ids != 1).long()


@pytest.mark.parametrize("cached", [False, True])
def test_hidden_states_and_attentions_equal_the_reference(cached, tiny_config, lively, reference_of, batch):
    model = lively(BioGptModel, tiny_config(num_hidden_layers=3))
    reference = reference_of(model, attention="eager")
    ids, mask = batch
    flags = {"output_attentions": True, "output_hidden_states": True}
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        theirs = reference(ids, attention_mask=mask, position_ids=positions, **flags)
        start = 3 if cached else 0
        cache = KVCache(model.config, 3)
        if cached:
            model(ids[:, :start], attention_mask=mask[:, :start], past_key_values=cache)
        ours = model(ids[:, start:], attention_mask=mask, past_key_values=cache, **flags)

    real = mask[:, start:].bool()
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4
    for got, wanted in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(got[real], wanted[:, start:][real], **TOLERANCE)
    assert ours.hidden_states[-1] is ours.last_hidden_state
    assert len(ours.attentions) == len(theirs.attentions) == 3
    for got, wanted in zip(ours.attentions, theirs.attentions, strict=True):
        assert got.shape == (3, 3, 7 - start, 7)
        queries_first = got.transpose(1, 2)[real], wanted[:, :, start:].transpose(1, 2)[real]
        torch.testing.assert_close(*queries_first, **TOLERANCE)


def test_returned_attentions_are_those_that_were_used(tiny_config, lively, batch):
    """Asking for them takes another path through attention, which must not change the result."""
    model = lively(BioGptModel, tiny_config())
    ids, mask = batch
    with torch.no_grad():
        for given in (mask, None):
            fused = model(ids, attention_mask=given)
            shown = model(ids, attention_mask=given, output_attentions=True)
            torch.testing.assert_close(shown.last_hidden_state, fused.last_hidden_state, **TOLERANCE)
    assert fused.attentions is None
    assert fused.hidden_states is None


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_head_mask_scales_what_a_head_adds(per_layer, cached, tiny_config, lively, batch):
    """Oracle: the same model whose output projection has the head's columns scaled by the mask."""
    config = tiny_config(hidden_size=35, num_attention_heads=5)
    model = lively(BioGptModel, config)
    ids, mask = batch
    head_mask = torch.tensor([[1.0, 0.0, 0.5, 0.0, 1.0], [0.0, 1.0, 1.0, 0.25, 0.0]])
    head_mask = head_mask if per_layer else head_mask[0]
    oracle = copy.deepcopy(model)
    with torch.no_grad():
        for layer, scales in zip(oracle.layers, head_mask.expand(2, 5), strict=True):
            layer.self_attn.out_proj.weight *= scales.repeat_interleave(config.head_dim)
        wanted = oracle(ids, attention_mask=mask).last_hidden_state
        plain = model(ids, attention_mask=mask).last_hidden_state
        cache = KVCache(config, 3) if cached else None
        if cached:
            model(ids[:, :4], attention_mask=mask[:, :4], head_mask=head_mask, past_key_values=cache)
        start = 4 if cached else 0
        got = model(ids[:, start:], attention_mask=mask, head_mask=head_mask, past_key_values=cache)
    real = mask[:, start:].bool()
    torch.testing.assert_close(got.last_hidden_state[real], wanted[:, start:][real], **TOLERANCE)
    assert (wanted - plain)[mask.bool()].abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output_attentions", [False, True])
def test_padding_stays_finite_in_half_precision(dtype, output_attentions, tiny_config, lively, batch):
    """The query of a padded position sees nothing but padding: -inf everywhere would make it NaN."""
    model = lively(BioGptModel, tiny_config())
    ids, mask = batch
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).last_hidden_state
        model.to(dtype)
        out = model(ids, attention_mask=mask, use_cache=True, output_attentions=output_attentions)
    assert out.last_hidden_state.dtype == out.past_key_values.keys.dtype == dtype
    assert out.last_hidden_state.isfinite().all()
    error = (out.last_hidden_state.float() - wanted)[mask.bool()]
    assert error.square().mean() < 1e-3 * wanted[mask.bool()].square().mean()


def test_explicit_positions(tiny_config, lively):
    """Positions given are positions used: those of a row that starts at 4."""
    model = lively(BioGptModel, tiny_config())
    ids = torch.randint(3, 40, (1, 5), generator=torch.Generator().manual_seed(0))
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        table = shifted.embed_positions.weight
        table[POSITION_OFFSET : POSITION_OFFSET + 5] = table[
            POSITION_OFFSET + 4 : POSITION_OFFSET + 9
        ].clone()
        got = model(ids, position_ids=torch.arange(4, 9)[None]).last_hidden_state
        torch.testing.assert_close(got, shifted(ids).last_hidden_state, **TOLERANCE)
        assert not torch.allclose(got, model(ids).last_hidden_state, atol=1e-3)


def test_every_position_is_usable_and_no_more(tiny_config, lively):
    model = lively(BioGptModel, tiny_config(max_position_embeddings=9))
    ids = torch.randint(3, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(ids[:, :9]).last_hidden_state.shape == (2, 9, 15)
        cache = model(ids[:, :8], use_cache=True).past_key_values
        model(ids[:, 8:9], past_key_values=cache)
    with pytest.raises(ValueError, match=r"10 positions \(9 cached, 1 new\).*the model's 9; cut 1 tokens"):
        model(ids[:, 9:], past_key_values=cache)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "give either input_ids or inputs_embeds"),
        ({"inputs_embeds": torch.zeros(2, 4, 15)}, "give either input_ids or inputs_embeds"),
        ({"input_ids": torch.ones(2, 0).long()}, "the input has no positions"),
        ({"input_ids": torch.full((2, 25), 5)}, "are more than the model's 24; cut"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(2, 25, 15)}, "are more than the model's 24; cut"),
        ({"input_ids": torch.full((3, 4), 5)}, "KVCache: holds 2 rows; the input has 3"),
        ({"attention_mask": torch.ones(2, 5)}, "attention_mask has the shape (2, 5); expected (2, "),
        ({"attention_mask": torch.ones(1, 4)}, "attention_mask has the shape (1, 4); expected (2, "),
        ({"attention_mask": torch.ones(2, 1, 1, 4)}, "attention_mask has the shape (2, 1, 1, 4)"),
        ({"position_ids": torch.arange(21, 25)[None]}, "position_ids go up to 24; the last one is 23"),
        ({"head_mask": torch.ones(2)}, "head_mask has the shape (2,); expected (3,) or (2, 3)"),
        ({"head_mask": torch.ones(3, 2)}, "head_mask has the shape (3, 2); expected (3,) or (2, 3)"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_compute(change, message, cached, tiny_config, lively):
    model = lively(BioGptModel, tiny_config())
    ids = torch.full((2, 4), 5)
    cache = KVCache(model.config, 2)
    if cached:
        model(ids[:, :3], past_key_values=cache)
    keys, length = bits(cache.keys), cache.length
    ran = []
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: ran.append(module))
    with pytest.raises(ValueError, match=re.escape(message)):
        model(**{"input_ids": ids, "past_key_values": cache} | change)
    assert ran == []
    assert cache.length == length
    assert torch.equal(bits(cache.keys), keys)


def test_training_drops_every_layer_at_layerdrop_1(tiny_config, lively):
    model = lively(BioGptModel, tiny_config(layerdrop=1.0))
    ids = torch.randint(3, 40, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        words = F.embedding(ids, model.embed_tokens.weight) * model.config.hidden_size**0.5
        bare = model.layer_norm(words + model.embed_positions.weight[POSITION_OFFSET : POSITION_OFFSET + 6])
        assert not torch.allclose(model(ids).last_hidden_state, bare, atol=1e-2)
        torch.testing.assert_close(model.train()(ids).last_hidden_state, bare, **TOLERANCE)


@pytest.mark.parametrize(("training", "layer_runs"), [(True, [2, 4]), (False, [2, 2])])
def test_gradient_checkpointing_changes_nothing_but_the_work(
    training, layer_runs, tiny_config, lively, batch
):
    """Same loss and gradients, dropout included; in training each layer runs again in the backward pass."""
    config = tiny_config(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, activation_dropout=0.2)
    ids, mask = batch
    losses, gradients, runs = [], [], []
    for checkpointing in (False, True):
        model = lively(BioGptModel, config).train(training)
        model.gradient_checkpointing = checkpointing
        ran = []
        for layer in model.layers:
            layer.register_forward_pre_hook(lambda layer, *_, ran=ran: ran.append(layer))
        torch.manual_seed(7)
        loss = model(ids, attention_mask=mask).last_hidden_state[mask.bool()].square().sum()
        loss.backward()
        losses.append(loss)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        runs.append(len(ran))
    assert runs == layer_runs
    assert torch.equal(*losses)
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_bidirectional_layers_see_what_follows_and_no_padding(tiny_config, lively):
    """The same weights, read three ways: only the layers that look both ways may notice a later token."""
    ids = torch.randint(3, 40, (1, 6), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[0, 5] = 39 if ids[0, 5] != 39 else 38
    for layers in (0, 1, 2):
        model = lively(BioGptModel, tiny_config(bidirectional_layers=layers))
        with torch.no_grad():
            one, other = (model(each, output_hidden_states=True).hidden_states for each in (ids, changed))
            left = model(F.pad(ids, (2, 0), value=1), attention_mask=F.pad(torch.ones_like(ids), (2, 0)))
            right = model(F.pad(ids, (0, 3), value=1), attention_mask=F.pad(torch.ones_like(ids), (0, 3)))
            weights = model(ids, output_attentions=True).last_hidden_state
        differs = [not torch.allclose(a[0, 0], b[0, 0], atol=1e-6) for a, b in zip(one, other, strict=True)]
        assert differs == [False] + [layer >= 2 - layers for layer in range(2)]
        torch.testing.assert_close(left.last_hidden_state[:, 2:], one[-1], **TOLERANCE)
        torch.testing.assert_close(right.last_hidden_state[:, :6], one[-1], **TOLERANCE)
        torch.testing.assert_close(weights, one[-1], **TOLERANCE)


def test_a_model_that_looks_both_ways_takes_no_cache(tiny_config):
    config = tiny_config(bidirectional_layers=1)
    model = BioGptModel(config)
    ids = torch.tensor([[2, 5]])
    for arguments in ({"use_cache": True}, {"past_key_values": KVCache(config, 1)}):
        with pytest.raises(ValueError, match="bidirectional_layers = 1 reads a text as a whole"):
            model(ids, **arguments)
    with pytest.raises(ValueError, match="must not see the tokens it predicts"):
        BioGptForCausalLM(config)
