"""The three heads against the reference: logits for every padding and cache history, losses, gradients.

Reference: ``transformers`` ``models/biogpt``, float32, with the same weights.
"""

import itertools
import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import biogpt.model.decoder
from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
)
from biogpt.model.cache import KVCache
from biogpt.model.chain import LabelChain
from biogpt.model.config import ACTIVATIONS, BioGptConfig
from biogpt.model.decoder import BioGptModel

HEADS = (BioGptForCausalLM, BioGptForTokenClassification, BioGptForSequenceClassification)
PAD, EOS = 1, 2
TOLERANCE = 1e-5


def assert_close(got, wanted, where=""):
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE, msg=lambda text: f"{where}: {text}")


@pytest.mark.parametrize("asked", [(0, 1, 2), (0, 2)])
@torch.no_grad()
def test_a_chain_of_labels_sums_over_every_sequence(asked):
    """Beside all sequences written out: the loss, and the share of each label of each word."""
    torch.manual_seed(0)
    chain = LabelChain(3)
    torch.nn.init.normal_(chain.transitions, std=2.0)
    counts = [4, 1, 3]
    left_out = [label for label in range(3) if label not in asked]
    scores = 3 * torch.randn(8, 3)
    scores[:, left_out] = -math.inf
    right = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 1], [1, 1, 1]] * 2).float()
    every, loss, shares = chain.transitions, 0.0, []
    for first, count in ((0, 4), (4, 1), (5, 3)):
        weights = {}
        for labels in itertools.product(asked, repeat=count):
            steps = [3, *labels, 3]
            total = sum(every[one, other] for one, other in pairwise(steps))
            weights[labels] = (total + sum(scores[first + i, label] for i, label in enumerate(labels))).exp()
        both = sum(weights.values())
        allowed = [w for ls, w in weights.items() if all(right[first + i, x] for i, x in enumerate(ls))]
        loss += (both / sum(allowed)).log()
        for i in range(count):
            shares.append([sum(w for ls, w in weights.items() if ls[i] == x) / both for x in range(3)])
    assert_close(chain.loss(scores, right, counts), loss / 8)
    assert_close(chain.log_marginals(scores, counts).exp(), torch.tensor(shares))


def test_a_head_may_read_some_of_the_layers_alone():
    torch.manual_seed(0)
    config = BioGptConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    decoder = BioGptModel(config).eval()
    ids = random_rows(1, [7])[0][None]
    states = decoder(ids, output_hidden_states=True).hidden_states
    decoder.config = replace(config, read_layers=2)
    torch.nn.init.constant_(decoder.layers[2].fc1.weight, math.nan)  # never read
    out = decoder(ids, output_hidden_states=True)
    assert_close(out.last_hidden_state, states[2])
    assert len(out.hidden_states) == 3
    with pytest.raises(ValueError, match=r"read_layers is 2; a language model reads all layers"):
        BioGptForCausalLM(decoder.config)
    with pytest.raises(ValueError, match=r"read_layers is 4; expected 0 to num_hidden_layers, 3"):
        replace(config, read_layers=4)


def random_rows(seed, lengths, vocab_size=40):
    """Prompts of the given lengths: ``</s>``, then tokens that are not special."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, vocab_size, (length,), generator=generator) for length in lengths]
    for row in rows:
        row[0] = EOS
    return rows


def pad(rows, side):
    """Ids and mask, [B, T], padded on the ``side``; for "none", rows cut to the shortest, no mask."""
    if side == "none":
        shortest = min(len(row) for row in rows)
        return torch.stack([row[:shortest] for row in rows]), None
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), PAD)
    for row, tokens in zip(ids, rows, strict=True):
        start = longest - len(tokens) if side == "left" else 0
        row[start : start + len(tokens)] = tokens
    return ids, (ids != PAD).long()


def reference_inputs(ids, mask):
    """The reference counts padding on the left as positions, unless it is told them."""
    if mask is None:
        return {"input_ids": ids}
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }


@torch.no_grad()
def cached_logits(model, ids, mask, pieces):
    """Logits computed in pieces of the given lengths through one cache."""
    cache = KVCache(model.config, len(ids), ids.shape[1])
    logits = []
    for piece in pieces:
        end = cache.length + piece
        seen = None if mask is None else mask[:, :end]
        out = model(ids[:, cache.length : end], attention_mask=seen, past_key_values=cache)
        logits.append(out.logits)
    if isinstance(model, BioGptForSequenceClassification):
        return logits[-1]
    return torch.cat(logits, dim=1)


def random_pieces(seed, total):
    """``total`` as a random sum."""
    generator = random.Random(seed)
    cuts = sorted(generator.sample(range(1, total), generator.randint(1, min(3, total - 1))))
    return [end - start for start, end in itertools.pairwise([0, *cuts, total])]


@torch.no_grad()
def assert_parity(model, reference, rows, seed=0):
    """Logits of all real tokens equal the reference's, for each padding and each cache history."""
    for side in ("none", "left", "right"):
        ids, mask = pad(rows, side)
        wanted = reference(**reference_inputs(ids, mask)).logits
        length = ids.shape[1]
        histories = {
            "no cache": model(ids, attention_mask=mask).logits,
            "one piece": cached_logits(model, ids, mask, [length]),
            "chunks": cached_logits(model, ids, mask, random_pieces(seed, length)),
            "one by one": cached_logits(model, ids, mask, [1] * length),
        }
        for history, got in histories.items():
            if wanted.ndim == 2:
                if side == "right" and history in ("chunks", "one by one"):
                    continue  # a short row's last token is not in the last piece
                expected = wanted
            else:
                real = torch.ones_like(ids).bool() if mask is None else mask.bool()
                got, expected = got[real], wanted[real]
            assert_close(got, expected, f"{side} padding, {history}")


CHOICES = list(itertools.product(ACTIVATIONS, (True, False), (True, False)))


@pytest.mark.parametrize("index", range(len(CHOICES)), ids=lambda i: "-".join(map(str, CHOICES[i])))
@pytest.mark.parametrize("head", HEADS)
def test_logits_equal_the_reference(head, index, tiny_config, lively, reference_of):
    """Every activation, tied or not, scaled or not, at a random size for each."""
    generator = random.Random(index)
    activation, tied, scaled = CHOICES[index]
    odd = {0: (15, 3), 1: (35, 5), 2: (35, 7)}
    heads = generator.randint(1, 7)
    width, heads = odd.get(index, (heads * generator.randint(2, 9), heads))
    config = tiny_config(
        hidden_act=activation,
        tie_word_embeddings=tied,
        scale_embedding=scaled,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=generator.randint(1, 3),
        intermediate_size=generator.randint(3, 70),
        vocab_size=generator.randint(20, 90),
        max_position_embeddings=generator.randint(11, 40),
        id2label={i: f"label {i}" for i in range(generator.randint(1, 6))},
    )
    model = lively(head, config, seed=index)
    reference = reference_of(model, attention=generator.choice(["eager", "sdpa"]))
    lengths = [11, *(generator.randint(2, 11) for _ in range(generator.randint(1, 3)))]
    assert_parity(model, reference, random_rows(index, lengths, config.vocab_size), seed=index)


@pytest.mark.parametrize("head", HEADS)
def test_a_row_does_not_depend_on_its_padding(head, tiny_config, lively):
    model = lively(head, tiny_config())
    rows = random_rows(3, [9, 4, 1, 6])
    with torch.no_grad():
        alone = [model(row[None]).logits[0] for row in rows]
        for side in ("left", "right"):
            ids, mask = pad(rows, side)
            logits = model(ids, attention_mask=mask).logits
            for got, real, wanted in zip(logits, mask.bool(), alone, strict=True):
                got = got[real] if got.ndim == 2 else got
                assert_close(got, wanted)


def plant_eps(value):
    def plant(model, monkeypatch):
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = value

    return plant


def plant_offset(model, monkeypatch):
    monkeypatch.setattr(biogpt.model.decoder, "POSITION_OFFSET", 3)


def plant_embed_scale(model, monkeypatch):
    model.biogpt.embed_scale = 1.0


def plant_missing_score_scale(model, monkeypatch):
    """As if the scores were not divided by the root of the head width."""
    for layer in model.biogpt.layers:
        for parameter in layer.self_attn.q_proj.parameters():
            parameter.data *= math.sqrt(model.config.head_dim)


def plant_tanh_gelu(model, monkeypatch):
    for layer in model.biogpt.layers:
        layer.activation = nn.GELU(approximate="tanh")


def plant_no_causal_mask(model, monkeypatch):
    def bias(attention_mask, past, length, hidden):
        return hidden.new_zeros(1, 1, length, past + length)

    monkeypatch.setattr(biogpt.model.decoder, "attention_bias", bias)


def plant_no_padding_mask(model, monkeypatch):
    right = biogpt.model.decoder.attention_bias
    monkeypatch.setattr(biogpt.model.decoder, "attention_bias", lambda mask, *rest: right(None, *rest))


def plant_positions_count_padding(model, monkeypatch):
    right = biogpt.model.decoder.positions
    monkeypatch.setattr(biogpt.model.decoder, "positions", lambda mask, *rest: right(None, *rest))


def plant_positions_forget_the_past(model, monkeypatch):
    right = biogpt.model.decoder.positions
    monkeypatch.setattr(
        biogpt.model.decoder, "positions", lambda mask, past, length, device: right(None, 0, length, device)
    )


def plant_cache_loses_the_first_position(model, monkeypatch):
    right = KVCache.write

    def write(cache, layer, keys, values):
        keys, values = right(cache, layer, keys, values)
        keys[:, :, 0] = 0
        return keys, values

    monkeypatch.setattr(KVCache, "write", write)


FAULTS = {
    "eps 1e-12, as in config.json": plant_eps(1e-12),
    "eps 1e-3": plant_eps(1e-3),
    "position offset 3": plant_offset,
    "embeddings not scaled": plant_embed_scale,
    "scores not scaled": plant_missing_score_scale,
    "tanh for erf": plant_tanh_gelu,
    "no causal mask": plant_no_causal_mask,
    "no padding mask": plant_no_padding_mask,
    "positions count padding": plant_positions_count_padding,
    "positions forget the past": plant_positions_forget_the_past,
    "cache loses a key": plant_cache_loses_the_first_position,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("head", HEADS)
def test_a_planted_fault_breaks_the_comparison(head, fault, tiny_config, lively, reference_of, monkeypatch):
    model = lively(head, tiny_config())
    reference = reference_of(model)
    rows = random_rows(5, [9, 4, 7])
    assert_parity(model, reference, rows)
    FAULTS[fault](model, monkeypatch)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_parity(model, reference, rows)


def test_a_fault_in_pooling_breaks_the_comparison(tiny_config, lively, reference_of, monkeypatch):
    model = lively(BioGptForSequenceClassification, tiny_config())
    reference = reference_of(model)
    monkeypatch.setattr(
        BioGptForSequenceClassification,
        "_spans",
        lambda _, ids, hidden: [(row, 1, hidden.shape[1] - 1) for row in range(len(hidden))],
    )
    with pytest.raises(AssertionError, match="right padding, no cache"):
        assert_parity(model, reference, random_rows(5, [9, 4, 7]))


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@torch.no_grad()
def test_what_is_pooled_are_the_tokens_alone(tiny_config, lively, pooling):
    """The separator and padding are left out, and whatever else is in the batch."""
    config = tiny_config(pooling=pooling, pooling_size=6, read_layers=1)
    model = lively(BioGptForSequenceClassification, config)
    rows = random_rows(3, [9, 4, 7])
    if pooling == "attention":
        nn.init.normal_(model.attention.bias)
    for side in ("left", "right"):
        logits = model(*pad(rows, side)).logits
        for row, together in zip(rows, logits, strict=True):
            states = model.biogpt(row[None], output_hidden_states=True).hidden_states[1][0, 1:]
            if pooling == "mean":
                centred = states - states.mean(dim=1, keepdim=True)
                normed = centred / (centred.pow(2).mean(dim=1, keepdim=True) + 1e-5).sqrt()
                expected = model.score.weight @ model.norm(normed.sum(dim=0) / len(normed))
            else:
                attention = model.attention
                tokens = nn.functional.gelu(attention.inner(model.norm(states)))
                expected = []
                for label in range(3):
                    weights = (tokens @ attention.query.weight[label]).exp()
                    vector = sum(w * token for w, token in zip(weights, tokens, strict=True)) / weights.sum()
                    expected.append(vector @ model.score.weight[label] + attention.bias[label])
                expected = torch.stack(expected)
            assert_close(together, expected, side)
    alone = model(torch.tensor([[EOS]])).logits  # nothing but the separator, which is then read itself
    assert alone.isfinite().all()


@torch.no_grad()
def test_sentences_are_read_both_ways_and_no_abstract_sees_another(tiny_config, lively):
    """Beside torch's own bidirectional layer, which reads one abstract at a time."""
    config = tiny_config(sentence_encoder_size=4, label_chain=True)
    model = lively(BioGptForSequenceClassification, config)
    reader, size = model.sentences, 4
    beside = nn.LSTM(8, size, batch_first=True, bidirectional=True)
    for name, weight in reader.ahead.named_parameters():
        beside.get_parameter(name).copy_(weight)
        beside.get_parameter(f"{name}_reverse").copy_(reader.back.get_parameter(name))
    torch.manual_seed(0)
    counts = [3, 1, 5]
    vectors = torch.randn(9, 15)
    together = model.read(vectors, counts)
    shares = model.probabilities(together, counts)
    for first, count in ((0, 3), (3, 1), (4, 5)):
        own = vectors[first : first + count]
        states, _ = beside(nn.functional.gelu(reader.inner(model.norm(own)))[None])
        assert_close(together[first : first + count], states[0] @ model.score.weight.T)
        alone = model.read(own, [count])
        marginals = model.chain.log_marginals(alone, [count]).exp()
        assert_close(model.probabilities(alone, [count]), marginals)
        assert_close(shares[first : first + count], model.probabilities(alone, [count]))
    assert not torch.allclose(model.read(vectors[:3].flip(0), [3]).flip(0), together[:3])


def test_fields_of_another_head_are_refused(tiny_config):
    for changes in ({"pooling": "mean"}, {"sentence_encoder_size": 4}):
        with pytest.raises(ValueError, match=rf"{next(iter(changes))} is .* not for token classification"):
            BioGptForTokenClassification(tiny_config(**changes))
    with pytest.raises(ValueError, match="word_encoder_size is 4, which is not for sequence classification"):
        BioGptForSequenceClassification(tiny_config(word_encoder_size=4))
    model = BioGptForSequenceClassification(tiny_config(sentence_encoder_size=4))
    with pytest.raises(ValueError, match=r"labels the sentences of a text; use TextClassifier\.sentences"):
        model(torch.tensor([[EOS, 5]]))


def sequence_labels(kind, num_labels):
    generator = torch.Generator().manual_seed(8)
    match kind:
        case "ids":
            return torch.randint(num_labels, (3,), generator=generator)
        case "switches":
            return torch.randint(2, (3, num_labels), generator=generator).float()
        case "numbers":
            return torch.randn(3, generator=generator)
        case _:
            return torch.randn(3, num_labels, generator=generator)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "kind"),
    [
        (None, 3, "ids"),
        (None, 3, "switches"),
        (None, 1, "numbers"),
        (None, 1, "rows of numbers"),
        ("single_label_classification", 4, "ids"),
        ("multi_label_classification", 4, "switches"),
        ("multi_label_classification", 1, "switches"),
        ("regression", 1, "numbers"),
        ("regression", 4, "rows of numbers"),
        ("regression", 3, "switches"),
    ],
)
def test_sequence_loss_equals_the_reference(
    problem_type, num_labels, kind, tiny_config, lively, reference_of
):
    labels = {i: f"label {i}" for i in range(num_labels)}
    config = tiny_config(problem_type=problem_type, id2label=labels)
    model = lively(BioGptForSequenceClassification, config)
    assert_same_training_signal(
        model,
        reference_of(model),
        *pad(random_rows(2, [6, 3, 5]), "right"),
        sequence_labels(kind, num_labels),
    )


def test_label_ids_of_32_bits_are_ids(tiny_config, lively):
    model = lively(BioGptForSequenceClassification, tiny_config())
    ids, labels = torch.stack(random_rows(2, [5, 5])), torch.tensor([2, 0])
    assert model(ids, labels=labels.int()).loss == model(ids, labels=labels).loss


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_causal_loss_equals_the_reference(side, tied, tiny_config, lively, reference_of):
    """Shifted by one, -100 left out: padding, one token, and first tokens, with nothing real before them."""
    model = lively(BioGptForCausalLM, tiny_config(tie_word_embeddings=tied))
    ids, mask = pad(random_rows(4, [8, 3, 6]), side)
    labels = ids.masked_fill((ids == PAD) | (ids == EOS), -100)
    labels[0, 2] = -100
    assert_same_training_signal(model, reference_of(model), ids, mask, labels)


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_token_loss_equals_the_reference(side, tiny_config, lively, reference_of):
    """Padding carries labels here: what leaves them out is the mask."""
    model = lively(BioGptForTokenClassification, tiny_config())
    ids, mask = pad(random_rows(4, [8, 3, 6]), side)
    labels = ids % 3
    labels[0, 0] = -100
    assert_same_training_signal(model, reference_of(model), ids, mask, labels)


def assert_same_training_signal(model, reference, ids, mask, labels):
    """Loss and the gradient of every parameter equal the reference's."""
    ours = model(ids, attention_mask=mask, labels=labels).loss
    theirs = reference(**reference_inputs(ids, mask), labels=labels).loss
    assert ours.ndim == 0
    assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert {name for name, _ in model.named_parameters()} == set(gradients)
    for name, parameter in model.named_parameters():
        scale = gradients[name].abs().max().clamp(min=1)  # squared errors give gradients in the hundreds
        assert_close(parameter.grad / scale, gradients[name] / scale, name)


def test_labels_of_a_cached_piece(tiny_config, lively):
    """The mask then covers the past too; the labels only the piece."""
    model = lively(BioGptForTokenClassification, tiny_config())
    ids, mask = pad(random_rows(4, [8, 3]), "left")
    labels = ids % 3
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, labels=labels.index_fill(1, torch.arange(5), -100)).loss
        cache = model(ids[:, :5], attention_mask=mask[:, :5], use_cache=True).past_key_values
        piece = model(ids[:, 5:], attention_mask=mask, past_key_values=cache, labels=labels[:, 5:]).loss
    assert_close(piece, whole)


def test_only_the_last_logits(tiny_config, lively):
    model = lively(BioGptForCausalLM, tiny_config())
    ids = torch.stack(random_rows(1, [6, 6]))
    everything, last = model(ids).logits, model(ids, logits_to_keep=2).logits
    assert last.shape == (2, 2, model.config.vocab_size)
    assert_close(last, everything[:, -2:])
    with pytest.raises(ValueError, match="labels need the logits of all positions"):
        model(ids, labels=ids, logits_to_keep=2)


@pytest.mark.parametrize("head", HEADS)
def test_embeddings_instead_of_ids(head, tiny_config, lively, reference_of):
    model = lively(head, tiny_config())
    reference = reference_of(model)
    embeddings = torch.randn(2, 6, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(inputs_embeds=embeddings).logits
        theirs = reference(inputs_embeds=embeddings).logits
        assert_close(ours, theirs)
        ids = torch.stack(random_rows(1, [6, 6]))
        scaled = model.get_input_embeddings()(ids) * math.sqrt(model.config.hidden_size)
        assert torch.equal(model(inputs_embeds=scaled).logits, model(ids).logits)


@pytest.mark.parametrize("head", HEADS)
def test_heads_pass_on_what_the_model_returns(head, tiny_config, lively, reference_of):
    model = lively(head, tiny_config())
    reference = reference_of(model)
    ids = torch.stack(random_rows(1, [6, 6]))
    with torch.no_grad():
        ours = model(ids, use_cache=True, output_attentions=True, output_hidden_states=True)
        theirs = reference(ids, output_attentions=True, output_hidden_states=True)
        bare = model(ids)
    assert ours.past_key_values.length == 6
    for name in ("hidden_states", "attentions"):
        for got, wanted in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            assert_close(got, wanted)
        assert getattr(bare, name) is None
    assert bare.loss is None
    assert bare.past_key_values is None


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "option",
    [
        {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])},
        {"position_ids": torch.arange(5, 11)[None]},
        {"head_mask": torch.tensor([1.0, 0.0, 0.5])},
    ],
    ids="".join,
)
def test_heads_hand_every_option_to_the_model(head, option, tiny_config, lively):
    model = lively(head, tiny_config())
    ids = torch.stack(random_rows(1, [6, 6]))
    with torch.no_grad():
        got = model(ids, output_hidden_states=True, **option).hidden_states[-1]
        assert torch.equal(got, model.biogpt(ids, **option).last_hidden_state)
        assert not torch.allclose(got, model.biogpt(ids).last_hidden_state, atol=1e-3)


DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "activation_dropout",
    "classifier_dropout",
    "layerdrop",
)


@pytest.mark.parametrize("chosen", [*([name] for name in DROPOUTS), DROPOUTS], ids="+".join)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dropout_in_training_equals_the_reference(attention, chosen, tiny_config, lively, reference_of):
    """From one seed both draw the same masks, as long as they drop the same tensors in the same order."""
    config = tiny_config(num_hidden_layers=3, **dict.fromkeys(chosen, 0.5))
    model = lively(BioGptForTokenClassification, config)
    reference = reference_of(model, attention)
    ids, mask = pad(random_rows(6, [7, 4]), "right")

    def logits(network, **options):
        torch.manual_seed(4)  # drops one or two of the three layers when layerdrop is 0.5
        return network(ids, attention_mask=mask, **options).logits[mask.bool()]

    with torch.no_grad():
        calm = logits(model)
        model.train()
        reference.train()
        options = {"output_attentions": True} if attention == "eager" else {}
        trained = logits(model, **options)
        assert_close(trained, logits(reference))
        assert (trained - calm).abs().max() > 0.01
        assert torch.equal(logits(model.eval()), calm)


def test_classifier_dropout_defaults_to_hidden_dropout(tiny_config):
    assert BioGptForTokenClassification(tiny_config(hidden_dropout_prob=0.3)).dropout.p == 0.3
    config = tiny_config(hidden_dropout_prob=0.3, classifier_dropout=0.0)
    assert BioGptForTokenClassification(config).dropout.p == 0.0


def test_a_tied_model_stays_tied(tiny_config, lively):
    model = lively(BioGptForCausalLM, tiny_config())
    width = model.config.hidden_size
    ids = torch.stack(random_rows(1, [6, 6]))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    embedding = nn.Embedding(50, width, PAD)
    model.set_input_embeddings(embedding)
    assert model.get_input_embeddings() is embedding
    assert model.get_output_embeddings().weight is embedding.weight
    assert model(ids).logits.shape[-1] == 50

    projection = nn.Linear(width, 60, bias=False)
    model.set_output_embeddings(projection)
    assert model.get_output_embeddings() is projection
    assert model.get_input_embeddings().weight is projection.weight
    assert model(ids + 15).logits.shape[-1] == 60


def test_an_untied_model_stays_untied(tiny_config, lively):
    model = lively(BioGptForCausalLM, tiny_config(tie_word_embeddings=False))
    before = model.get_input_embeddings().weight.clone()
    model.set_output_embeddings(nn.Linear(model.config.hidden_size, 40, bias=False))
    assert torch.equal(model.get_input_embeddings().weight, before)
    output = model.get_output_embeddings().weight
    model.set_input_embeddings(nn.Embedding(40, model.config.hidden_size, PAD))
    assert model.get_output_embeddings().weight is output


@pytest.mark.parametrize("head", HEADS[1:])
def test_classifiers_take_new_embeddings(head, tiny_config, lively):
    model = lively(head, tiny_config())
    embedding = nn.Embedding(40, model.config.hidden_size, PAD)
    model.set_input_embeddings(embedding)
    assert model.get_input_embeddings() is model.biogpt.embed_tokens is embedding


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_weight_initialisation(head, tied, tiny_config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 300}
    model = head(tiny_config(**sizes, initializer_range=0.05, tie_word_embeddings=tied))
    assert torch.equal(model.get_input_embeddings().weight[PAD], torch.zeros(64))
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones(64))
        elif isinstance(module, nn.Linear | nn.Embedding):
            drawn = module.weight[module.weight.any(dim=1)]  # without the padding row, tied or not
            error = 0.05 * 5 / math.sqrt(drawn.numel())  # five standard errors
            assert abs(drawn.mean()) < error
            assert abs(drawn.std() - 0.05) < error
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any()
