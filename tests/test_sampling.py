"""Each sampling rule against its namesake in transformers, on random logits."""

import math

import pytest
import torch
import transformers as reference
from torch import Tensor

from biogpt.generation import sampling
from biogpt.generation.words import Phrase, WordRules

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


def test_presence_counts_once_and_frequency_each_time() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, -torch.inf]])
    made = torch.tensor([[1, 3, 1], [2, 2, 2]])
    changed = sampling.penalize_counts(logits, made, presence=0.5, frequency=0.25)
    expected = torch.tensor([[1.0, 1.0, 3.0, 3.25], [0.0, 0.0, -1.25, -torch.inf]])
    assert torch.equal(changed, expected)


def test_biases_are_added_in_every_row() -> None:
    logits, ids = random_logits(0)
    rule = reference.SequenceBiasLogitsProcessor({(3,): 1.5, (7,): -100.0})
    assert_same_and_effective(sampling.add_biases(logits, {3: 1.5, 7: -100.0}), rule(ids, logits), logits)


@pytest.mark.parametrize("seed", range(5))
def test_a_phrase_of_one_spelling_is_banned_as_by_the_reference(seed: int) -> None:
    """Where each token ends a word, a phrase is a sequence of tokens."""
    logits, ids = random_logits(seed)
    ids[0, -2:] = torch.tensor([4, 5])
    words = [[1], [2, 3], [4, 5, 6], [5, 7]]
    phrases = [
        Phrase([{token_id: state} for state, token_id in enumerate(word, start=1)], -torch.inf)
        for word in words
    ]
    rules = WordRules(phrases, range(VOCABULARY))
    rows = zip(logits, ids.tolist(), strict=True)
    ours = torch.stack([sampling.add_biases(row, rules.biases(before)) for row, before in rows])
    theirs = reference.NoBadWordsLogitsProcessor(words)(ids, logits)
    assert_same_and_effective(ours, theirs, logits)
    assert int((ours[0] == -torch.inf).sum()) >= 3, "6 completes one word, 7 another, and 1 stands alone"


def test_a_bias_goes_on_from_piece_to_piece_and_begins_where_a_word_does() -> None:
    rules = WordRules([Phrase([{5: 1}, {6: 2}], 2.0), Phrase([{5: 1}], 1.0)], ends={2, 6})
    assert rules.biases([2]) == {5: 3.0}
    assert rules.biases([2, 5]) == {6: 2.0}
    assert rules.biases([2, 5, 6]) == {5: 3.0}
    assert rules.biases([2, 7]) == {}, "a word is open"
    assert rules.biases([2, 7, 5]) == {}, "within another word these are other pieces"


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
        (sampling.keep_typical_p, reference.TypicalLogitsWarper, 0.2),
        (sampling.keep_typical_p, reference.TypicalLogitsWarper, 0.6),
        (sampling.keep_typical_p, reference.TypicalLogitsWarper, 0.95),
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


def drawn_at(logits: Tensor, seed: int, count: int) -> Tensor:
    return torch.tensor([sampling.draw(logits, seed, place) for place in range(count)])


def test_draw_follows_the_distribution_and_the_seed() -> None:
    """Shares of 5,000 draws lie within 0.03 of the probabilities: over four standard deviations."""
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0])
    drawn = drawn_at(probabilities.log(), 0, 5_000)
    shares = drawn.bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.03)
    assert shares[3] == 0
    assert torch.equal(drawn, drawn_at(probabilities.log(), 0, 5_000))
    other = drawn_at(probabilities.log(), 1, 5_000)
    agreement = float((drawn == other).float().mean())
    assert agreement == pytest.approx(0.5**2 + 0.3**2 + 0.2**2, abs=0.03), "seeds know nothing of each other"


def test_a_token_that_may_not_come_changes_nothing_for_others() -> None:
    logits = random_logits(0)[0][0]
    wider = torch.cat([logits, torch.full((7,), -torch.inf)])
    assert torch.equal(drawn_at(logits, 3, 200), drawn_at(wider, 3, 200))


def test_noise_has_its_distribution_in_every_direction() -> None:
    """Mean, variance and tail of a Gumbel distribution; neighbours do not go along."""
    seeds, places = torch.tensor([0, 1, 2, 2**63 - 1]), torch.tensor([0, 0, 1, 5])
    noise = torch.stack([sampling.noise(seeds + step, places, torch.arange(1_000)) for step in range(100)])
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(1.6449, abs=0.04)
    for limit in (-1.5, 0.0, 1.0, 3.0, 6.0):
        share = float((noise < limit).float().mean())
        assert share == pytest.approx(math.exp(-math.exp(-limit)), abs=0.004)
    flat = noise.transpose(0, 1).reshape(len(seeds), -1)
    assert float((torch.corrcoef(flat) - torch.eye(len(seeds))).abs().max()) < 0.02
    for dimension in (0, 2):
        before, after = noise.narrow(dimension, 0, 99), noise.narrow(dimension, 1, 99)
        assert abs(float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1])) < 0.02


def test_noise_is_the_same_on_every_machine() -> None:
    """Its bits are those of SplitMix64's finalizer, computed here with Python's whole numbers."""

    def mixed(number: int) -> int:
        number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
        return number ^ (number >> 31)

    step = 0x9E3779B97F4A7C15
    for seed, place, token in ((0, 0, 0), (1, 0, 5), (2**63 - 1, 9, 42_383), (77, 1_023, 2)):
        row = mixed((mixed(seed * step % 2**64) + place) % 2**64)
        share = ((mixed((row + token * step) % 2**64) >> 32) + 0.5) / 2**32
        found = sampling.noise(torch.tensor([seed]), torch.tensor([place]), torch.tensor([token]))
        assert float(found) == pytest.approx(-math.log(-math.log1p(-share)), rel=1e-4, abs=1e-5)
