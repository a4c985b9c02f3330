"""Each sampling rule against its namesake in transformers, on random logits."""

import pytest
import torch
import transformers as reference
from torch import Tensor

from biogpt.generation import sampling

VOCABULARY = 50


def random_logits(seed: int) -> tuple[Tensor, Tensor]:
    """Logits [3, V] and earlier ids [3, 30], with enough repetition for every rule to act."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, VOCABULARY, generator=random) * 3
    return logits, torch.randint(0, 8, (3, 30), generator=random)


def assert_same_and_effective(ours: Tensor, theirs: Tensor, given: Tensor) -> None:
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=0, atol=1e-6)
    assert torch.equal(ours == -torch.inf, theirs == -torch.inf)
    assert not torch.equal(theirs, given), "the rule did nothing, so this comparison could not fail"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_repetition_penalty(seed: int, penalty: float) -> None:
    logits, ids = random_logits(seed)
    theirs = reference.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    assert_same_and_effective(sampling.penalize_repetition(logits, ids, penalty), theirs, logits)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_repeat_ngrams(seed: int, size: int) -> None:
    logits, ids = random_logits(seed)
    # The last n - 1 tokens of every row have been there before, so that something is banned.
    ids[:, 30 - size + 1 :] = ids[:, : size - 1]
    theirs = reference.NoRepeatNGramLogitsProcessor(size)(ids, logits)
    assert_same_and_effective(sampling.ban_repeated_ngrams(logits, ids, size), theirs, logits)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_ngrams_longer_than_the_text_ban_nothing(length: int) -> None:
    logits, ids = random_logits(0)
    assert torch.equal(sampling.ban_repeated_ngrams(logits, ids[:, :length], 4), logits)


def test_banned_token() -> None:
    logits, ids = random_logits(0)
    rule = reference.MinNewTokensLengthLogitsProcessor(30, 5, eos_token_id=2)
    assert_same_and_effective(sampling.ban_tokens(logits, [2]), rule(ids, logits), logits)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("ours", "theirs", "value"),
    [
        (sampling.scale_by_temperature, reference.TemperatureLogitsWarper, 0.3),
        (sampling.scale_by_temperature, reference.TemperatureLogitsWarper, 1.7),
        (sampling.keep_top_k, reference.TopKLogitsWarper, 1),
        (sampling.keep_top_k, reference.TopKLogitsWarper, 7),
        (sampling.keep_top_p, reference.TopPLogitsWarper, 0.0),
        (sampling.keep_top_p, reference.TopPLogitsWarper, 0.5),
        (sampling.keep_top_p, reference.TopPLogitsWarper, 0.95),
        (sampling.keep_min_p, reference.MinPLogitsWarper, 0.02),
        (sampling.keep_min_p, reference.MinPLogitsWarper, 1.0),
    ],
)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_rules_on_the_distribution(ours, theirs, value, seed: int, dimensions: int) -> None:
    """At every rank: a top-p that is right on [B, V] but idle on [B, 1, V] has been shipped by others."""
    logits, ids = random_logits(seed)
    expected = theirs(value)(ids, logits)
    shape = {1: (VOCABULARY,), 2: (3, VOCABULARY), 3: (3, 1, VOCABULARY)}[dimensions]
    rows = logits[:1] if dimensions == 1 else logits
    result = ours(rows.reshape(shape), value).reshape(rows.shape)
    assert_same_and_effective(result, expected[: len(rows)], rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.01, 0.3, 0.6, 0.9, 0.99])
def test_top_p_among_equals(p: float, dtype: torch.dtype) -> None:
    """Of tokens that tie at the edge, the reference keeps some."""
    logits = random_logits(1)[0].round().to(dtype)
    assert_same_and_effective(
        sampling.keep_top_p(logits, p), reference.TopPLogitsWarper(p)(None, logits), logits
    )


def test_top_k_beyond_the_vocabulary_keeps_everything() -> None:
    logits, _ = random_logits(0)
    assert torch.equal(sampling.keep_top_k(logits, VOCABULARY + 1), logits)


def test_a_tiny_temperature_means_the_best_token() -> None:
    logits, _ = random_logits(0)
    probabilities = sampling.scale_by_temperature(logits * 1e4, 1e-6).softmax(-1)
    assert torch.equal(probabilities.max(-1).values, torch.ones(3))
    assert torch.equal(probabilities.argmax(-1), logits.argmax(-1))


def test_draw_follows_the_distribution_and_the_seed() -> None:
    """Shares of 20,000 draws lie within 0.015 of the probabilities: over four standard deviations."""
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0])
    rows = probabilities.log().expand(20_000, -1)
    drawn = sampling.draw(rows, torch.Generator().manual_seed(0))
    shares = drawn.flatten().bincount(minlength=4) / len(rows)
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.015)
    assert torch.equal(drawn, sampling.draw(rows, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, sampling.draw(rows, torch.Generator().manual_seed(1)))
