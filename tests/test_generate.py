"""Greedy, sampled and beam search generation against transformers' generate, on tiny random models."""

import itertools
import math
from collections.abc import Callable, Generator
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
import transformers as reference
from engines import engine_of

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.generation import sampling
from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import start_search
from biogpt.model.config import BioGptConfig
from biogpt.runners.cpu import CpuRunner

EOS = 2
PROMPTS = ([2], [2, 5, 9, 5], [2, 7, 7, 8, 4, 11, 7, 7])


def make_pair(seed: int, vocab_size: int = 40) -> tuple[BioGptForCausalLM, reference.BioGptForCausalLM]:
    """The same random weights in both implementations, scaled up so that the best token leads clearly."""
    config = BioGptConfig(
        vocab_size=vocab_size,
        hidden_size=24,
        num_hidden_layers=1 + seed % 2,
        num_attention_heads=2 + seed % 3,
        intermediate_size=40,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    ours = BioGptForCausalLM(config).eval()
    theirs = reference.BioGptForCausalLM(reference.BioGptConfig(**config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.fixture(scope="module")
def pairs() -> list[tuple[BioGptForCausalLM, reference.BioGptForCausalLM]]:
    return [make_pair(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def ending_pairs() -> list[tuple[BioGptForCausalLM, reference.BioGptForCausalLM]]:
    """Over ten tokens, so that beams often end.

    And with weights for which the rules of when to stop matter.
    """
    return [make_pair(seed, vocab_size=10) for seed in (12, 59, 70, 87)]


@pytest.fixture(scope="module")
def model(pairs) -> BioGptForCausalLM:
    return pairs[0][0]


@pytest.fixture
def forward_calls(model, monkeypatch) -> list[int]:
    """The number of new positions in each call of the model.

    Of a prompt's chunk, and of the rows of a step.
    """
    calls: list[int] = []
    forward, step = model.biogpt.forward, CpuRunner.step

    def spied_forward(input_ids, **arguments):
        calls.append(input_ids.shape[1])
        return forward(input_ids, **arguments)

    def spied_step(runner, ids, caches, rules):
        calls.append(sum(cache.batch_size for cache in caches))
        return step(runner, ids, caches, rules)

    monkeypatch.setattr(model.biogpt, "forward", spied_forward)
    monkeypatch.setattr(CpuRunner, "step", spied_step)
    return calls


def run(
    model: BioGptForCausalLM, prompt: list[int], options: GenerationOptions
) -> Generator[Any, None, None]:
    """Tokens, or rankings of hypotheses, each computed when asked for."""
    return engine_of(model).run(start_search(model.config, prompt, options))


def generate_ids(model: BioGptForCausalLM, prompt: list[int], options: GenerationOptions) -> list[list[int]]:
    if options.num_beams > 1:
        *_, hypotheses = run(model, prompt, options)
        return [hypothesis.ids for hypothesis in hypotheses]
    samples = itertools.groupby(run(model, prompt, options), key=lambda token: token.sequence)
    return [[token.id for token in tokens] for _, tokens in samples]


def reference_ids(model, prompt: list[int], options: GenerationOptions) -> list[list[int]]:
    """What transformers generates under the same options and seed, prompt and padding left out."""
    drawing = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    drawing |= {"typical_p": options.typical_p} if options.typical_p < 1 else {}
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=options.temperature > 0,
        **(drawing | {"min_p": options.min_p or None} if options.temperature > 0 else {}),
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        num_beams=options.num_beams,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        num_return_sequences=options.num_return_sequences,
        eos_token_id=EOS,
        pad_token_id=1,
    )
    rows = []
    for row in output[:, len(prompt) :].tolist():
        end = row.index(EOS) + 1 if EOS in row else options.max_new_tokens
        rows.append(row[:end])
    return rows


@pytest.fixture
def drawn_as_ours(monkeypatch) -> Callable[[int], None]:
    """``drawn_as_ours(seed)``: from here on the reference draws its tokens by this seed, as we would."""

    def begin(seed: int) -> None:
        places = itertools.count()

        def multinomial(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
            [row] = probabilities
            return torch.tensor([[sampling.draw(row.log(), seed, next(places))]])

        monkeypatch.setattr(torch, "multinomial", multinomial)

    return begin


RULES = [
    {},
    {"min_new_tokens": 12},
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 2},
    {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3, "min_new_tokens": 5},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_greedy_equals_the_reference(pairs, rules) -> None:
    options = GenerationOptions(max_new_tokens=24, **rules)
    for (ours, theirs), prompt in itertools.product(pairs, PROMPTS):
        assert generate_ids(ours, prompt, options) == reference_ids(theirs, prompt, options)


@pytest.mark.parametrize("changed", RULES[1:], ids=str)
def test_every_rule_changes_some_result(pairs, changed) -> None:
    """Else the comparisons with the reference would pass with the rule left out."""
    plain, ruled = GenerationOptions(max_new_tokens=24), GenerationOptions(max_new_tokens=24, **changed)
    results = [
        generate_ids(ours, prompt, plain) != generate_ids(ours, prompt, ruled)
        for (ours, _), prompt in itertools.product(pairs, PROMPTS)
    ]
    assert any(results)


def test_the_comparison_notices_a_small_fault() -> None:
    ours, theirs = make_pair(1)
    options = GenerationOptions(max_new_tokens=24)
    assert generate_ids(ours, PROMPTS[2], options) == reference_ids(theirs, PROMPTS[2], options)
    ours.biogpt.embed_scale = 1.0
    assert generate_ids(ours, PROMPTS[2], options) != reference_ids(theirs, PROMPTS[2], options)


@pytest.mark.parametrize("num_beams", [2, 3, 4, 5])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
def test_beam_search_equals_the_reference(ending_pairs, num_beams, early_stopping, length_penalty) -> None:
    options = GenerationOptions(
        max_new_tokens=14,
        num_beams=num_beams,
        early_stopping=early_stopping,
        length_penalty=length_penalty,
        num_return_sequences=num_beams,
    )
    for (ours, theirs), prompt in itertools.product(ending_pairs, PROMPTS[:2]):
        assert generate_ids(ours, prompt, options) == reference_ids(theirs, prompt, options)


@pytest.mark.parametrize(
    "change", [{"early_stopping": True}, {"early_stopping": "never"}, {"length_penalty": -1.0}], ids=str
)
def test_how_a_beam_search_ends_changes_some_result(ending_pairs, change) -> None:
    base = GenerationOptions(max_new_tokens=14, num_beams=2, num_return_sequences=2)
    results = [
        generate_ids(ours, prompt, base) != generate_ids(ours, prompt, replace(base, **change))
        for (ours, _), prompt in itertools.product(ending_pairs, PROMPTS[:2])
    ]
    assert any(results)


@pytest.mark.parametrize("rules", RULES[1:], ids=str)
@pytest.mark.parametrize("length_penalty", [-1.0, 1.0])
def test_beam_search_with_rules_equals_the_reference(ending_pairs, rules, length_penalty) -> None:
    options = GenerationOptions(
        max_new_tokens=16, num_beams=3, num_return_sequences=2, length_penalty=length_penalty, **rules
    )
    for (ours, theirs), prompt in itertools.product(ending_pairs, PROMPTS[:2]):
        assert generate_ids(ours, prompt, options) == reference_ids(theirs, prompt, options)


@pytest.mark.parametrize("num_beams", [3, 5])
def test_beam_search_over_fewer_tokens_than_candidates(num_beams) -> None:
    """With 5 tokens and 2 x 5 candidates the first step reaches into beams that do not exist yet."""
    for seed in range(4):
        ours, theirs = make_pair(seed, vocab_size=5)
        options = GenerationOptions(max_new_tokens=10, num_beams=num_beams, num_return_sequences=num_beams)
        assert generate_ids(ours, [2, 4], options) == reference_ids(theirs, [2, 4], options)


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 3.0, "top_k": 5},
        {"temperature": 3.0, "top_p": 0.6},
        {"temperature": 3.0, "min_p": 0.2},
        {"temperature": 3.0, "typical_p": 0.5},
        {"temperature": 2.0, "repetition_penalty": 1.5},
        {"temperature": 2.0, "no_repeat_ngram_size": 1},
        {"temperature": 4.0, "min_new_tokens": 20},
        {"temperature": 2.5, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_sampling_draws_what_the_reference_draws(pairs, rules, drawn_as_ours) -> None:
    """The reference is made to draw as we do, so equal distributions and seeds give equal ids.

    This is the whole path from the model's [B, T, V] logits to the id, where a rule that works alone may be
    lost.
    """
    for seed, (ours, theirs) in enumerate(pairs):
        options = GenerationOptions(max_new_tokens=20, seed=seed, **rules)
        for prompt in PROMPTS:
            drawn_as_ours(seed)
            assert generate_ids(ours, prompt, options) == reference_ids(theirs, prompt, options)


def test_presence_and_frequency_count_what_was_generated_and_not_the_prompt(model) -> None:
    """By hand from a full forward pass, greedy, token by token."""
    options = GenerationOptions(max_new_tokens=16, presence_penalty=1.5, frequency_penalty=0.5)
    prompt, plain = [2, 7, 7, 8], replace(options, presence_penalty=0.0, frequency_penalty=0.0)
    [made] = generate_ids(model, prompt, options)
    assert made != generate_ids(model, prompt, plain)[0], "the penalties change nothing here"
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + made])).logits[0, len(prompt) - 1 :]
    for place, token_id in enumerate(made):
        scores = [
            value - (1.5 + 0.5 * made[:place].count(index)) * (index in made[:place])
            for index, value in enumerate(logits[place].tolist())
        ]
        assert token_id == max(range(len(scores)), key=scores.__getitem__)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_bias_makes_a_token_come_or_stay_away(model, beams) -> None:
    plain = GenerationOptions(max_new_tokens=8, num_beams=beams)
    [made] = generate_ids(model, [2, 5], plain)
    [other] = generate_ids(model, [2, 5], replace(plain, logit_bias={made[0]: -100}))
    assert made[0] not in other
    [one] = generate_ids(model, [2, 5], replace(plain, logit_bias={30: 100}))
    assert one == [30] * 8
    with pytest.raises(ValueError, match="logit_bias names 40; the vocabulary ends at 39"):
        run(model, [2, 5], replace(plain, logit_bias={40: 1}))


def test_the_end_is_banned_for_exactly_min_new_tokens(ending_pairs, drawn_as_ours) -> None:
    """The shortest of 48 texts over ten tokens ends right where it first may, at the fourth."""
    lengths = []
    for seed, (ours, theirs) in itertools.product(range(12), ending_pairs):
        options = GenerationOptions(max_new_tokens=8, min_new_tokens=3, temperature=8.0, seed=seed)
        [ids] = generate_ids(ours, [2, 5], options)
        drawn_as_ours(seed)
        assert [ids] == reference_ids(theirs, [2, 5], options)
        lengths.append(len(ids))
    assert min(lengths) == 4


def test_one_seed_gives_one_text(model) -> None:
    options = GenerationOptions(max_new_tokens=20, temperature=3.0, seed=7)
    assert generate_ids(model, [2, 5], options) == generate_ids(model, [2, 5], options)
    assert generate_ids(model, [2, 5], options) != generate_ids(model, [2, 5], replace(options, seed=8))
    unseeded = replace(options, seed=None)
    assert generate_ids(model, [2, 5], unseeded) != generate_ids(model, [2, 5], unseeded)


def test_a_drawn_seed_can_be_shown_and_used_again(model) -> None:
    options = GenerationOptions(max_new_tokens=20, temperature=3.0).with_seed()
    assert options.seed is not None
    assert options.with_seed() is options
    assert generate_ids(model, [2, 5], options) == generate_ids(model, [2, 5], options)


def test_several_samples_are_the_single_ones_of_their_seeds(model, forward_calls) -> None:
    options = GenerationOptions(
        max_new_tokens=8, min_new_tokens=8, temperature=3.0, seed=3, num_return_sequences=3
    )
    together = generate_ids(model, [2, 5, 9], options)
    assert forward_calls == [3] + [1] * 7 * 3, "the prompt is computed once, each later token once"
    for index, ids in enumerate(together):
        assert [ids] == generate_ids(
            model, [2, 5, 9], replace(options, seed=3 + index, num_return_sequences=1)
        )
    assert len({tuple(ids) for ids in together}) == 3


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_logprobs_are_those_of_a_full_forward_pass(model, temperature) -> None:
    """Reported before any rule: the same whatever was banned, penalised or cut."""
    prompt = [2, 5, 9]
    options = GenerationOptions(
        max_new_tokens=20,
        min_new_tokens=20,
        temperature=temperature,
        top_k=3,
        repetition_penalty=1.3,
        seed=1,
        top_logprobs=4,
    )
    tokens = list(run(model, prompt, options))
    ids = [token.id for token in tokens]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids[:-1]])).logits[0, len(prompt) - 1 :]
    logprobs = logits.log_softmax(-1)
    torch.testing.assert_close(
        torch.tensor([token.logprob for token in tokens]), logprobs[torch.arange(20), ids], rtol=0, atol=1e-5
    )
    best = logprobs.topk(4)
    assert [[i for i, _ in token.alternatives] for token in tokens] == best.indices.tolist()
    torch.testing.assert_close(
        torch.tensor([[p for _, p in token.alternatives] for token in tokens]), best.values, rtol=0, atol=1e-5
    )


def test_beam_tokens_and_scores_follow_from_a_full_forward_pass(model) -> None:
    options = GenerationOptions(
        max_new_tokens=12, num_beams=4, num_return_sequences=3, length_penalty=0.7, top_logprobs=2
    )
    *_, hypotheses = run(model, [2, 5], options)
    assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
    for hypothesis in hypotheses:
        with torch.no_grad():
            logits = model(torch.tensor([[2, 5, *hypothesis.ids[:-1]]])).logits[0, 1:]
        logprobs = logits.log_softmax(-1)
        for token, row in zip(hypothesis.tokens, logprobs, strict=True):
            assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-5)
            assert [i for i, _ in token.alternatives] == row.topk(2).indices.tolist()
        total = sum(token.logprob for token in hypothesis.tokens)
        assert hypothesis.score == pytest.approx(total / len(hypothesis.tokens) ** 0.7, abs=1e-5)


def test_cached_greedy_equals_uncached_greedy(model) -> None:
    ids = [2, 5, 9]
    for _ in range(20):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    assert generate_ids(model, ids[:3], GenerationOptions(max_new_tokens=20)) == [ids[3:]]


def test_tokens_are_made_one_at_a_time_and_close_ends_the_work(model, forward_calls) -> None:
    tokens = run(model, [2, 5], GenerationOptions(max_new_tokens=30, min_new_tokens=30))
    assert forward_calls == [], "nothing runs before the first token is asked for"
    for count in (1, 2, 3):
        next(tokens)
        assert len(forward_calls) == count
    tokens.close()
    assert list(tokens) == []
    assert len(forward_calls) == 3


@pytest.mark.parametrize("change", [{}, {"num_beams": 3}], ids=str)
def test_close_ends_a_search_and_its_memory(model, change, forward_calls) -> None:
    engine = engine_of(model)
    options = GenerationOptions(max_new_tokens=30, min_new_tokens=30, **change)
    results = engine.run(start_search(model.config, [2, 5], options))
    next(results), next(results)
    [slot] = engine.running
    assert slot.cache.nbytes == engine.runner.cache_bytes(options.num_beams, 32)
    results.close()
    assert forward_calls == [2, options.num_beams]
    assert slot.cache.nbytes == 0
    assert engine.running == []


def test_the_last_position_can_be_reached_but_not_passed(model, forward_calls) -> None:
    prompt = [2] + [5] * 53
    options = GenerationOptions(max_new_tokens=10, min_new_tokens=10)
    assert len(list(run(model, prompt, options))) == 10
    forward_calls.clear()
    for beams in (1, 2):
        with pytest.raises(
            ValueError, match=r"54 tokens .* 11 .* 64 positions; cut 1 tokens .* to 10 or less"
        ):
            start_search(model.config, prompt, replace(options, max_new_tokens=11, num_beams=beams))
    with pytest.raises(ValueError, match=r"64 tokens and the model 64 positions.*cut at least 1 token"):
        start_search(model.config, [5] * 64, options)
    assert forward_calls == [], "a request that cannot finish must not start"


def test_requests_that_make_no_sense_are_refused_at_once(model) -> None:
    options = GenerationOptions(max_new_tokens=5)
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        start_search(model.config, [], options)
    with pytest.raises(ValueError, match="holds 40; the vocabulary ends at 39"):
        start_search(model.config, [2, 40], options)
    training = make_pair(0)[0].train()
    with pytest.raises(ValueError, match="training mode"):
        engine_of(training)


def test_logits_that_are_not_numbers_are_reported() -> None:
    broken = make_pair(0)[0]
    with torch.no_grad():
        broken.biogpt.layer_norm.weight.fill_(math.inf)
    with pytest.raises(FloatingPointError, match="not finite in float32"):
        next(run(broken, [2], GenerationOptions(max_new_tokens=5)))


def test_generation_leaves_the_global_random_state_alone(model) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    generate_ids(model, [2], GenerationOptions(max_new_tokens=5, temperature=1.0))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number of at least 1"),
        ({"max_new_tokens": 8.0}, "max_new_tokens is 8.0; expected a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"temperature": math.nan}, "temperature is nan; expected a number from 0 to 100"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": 1e-9}, "temperature is 1e-09; expected 0, or at least"),
        ({"temperature": "0.7"}, "temperature is '0.7'"),
        ({"temperature": None}, "temperature is None"),
        ({"top_k": -5}, "top_k is -5"),
        ({"top_p": 1.01}, "top_p is 1.01; expected a number from 0 to 1"),
        ({"min_p": True}, "min_p is True"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"length_penalty": math.inf}, "length_penalty is inf"),
        ({"early_stopping": "always"}, "early_stopping is 'always'; expected True, False or 'never'"),
        ({"early_stopping": 1}, "early_stopping is 1"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"stop": [""]}, "stop is"),
        ({"stop": ["a", 1]}, "stop is"),
        ({"stop": 5}, "stop is 5"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5; expected a number from -2 to 2"),
        ({"typical_p": 1.5}, "typical_p is 1.5"),
        ({"banned_words": [" "]}, "banned_words holds ' '; expected words of 1 to 100 characters"),
        ({"banned_words": ["a"] * 101}, "banned_words holds 101 words; expected at most 100"),
        ({"word_bias": ["a"]}, "word_bias holds 'a'; expected a word, = and a number from -100 to 100"),
        ({"word_bias": ["=2"]}, "word_bias holds '=2'"),
        ({"word_bias": ["a=nan"]}, "word_bias holds 'a=nan'"),
        ({"word_bias": ["a=101"]}, "word_bias holds 'a=101'"),
        (
            {"logit_bias": {"5": 1}},
            "logit_bias is {'5': 1}; expected a number from -100 to 100 for each token",
        ),
        ({"logit_bias": {5: math.nan}}, "logit_bias is"),
        ({"logit_bias": [5]}, "logit_bias is"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is"),
        ({"top_logprobs": -1}, "top_logprobs is -1"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9, more than max_new_tokens 8"),
        ({"num_beams": 4, "temperature": 0.7}, "num_beams is 4 and temperature is 0.7.*set temperature to 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3, but num_beams is 2"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2, but temperature 0"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_by_name_and_value(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**wrong)


def test_options_are_values() -> None:
    assert GenerationOptions(stop="END") == GenerationOptions(stop=["END"])
    assert len({GenerationOptions(stop=["a"]), GenerationOptions(stop=("a",))}) == 1
    with pytest.raises(FrozenInstanceError):
        GenerationOptions().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"temperature": 1.0, "seed": 3, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
)
def test_rows_that_stand_for_no_token_are_as_if_they_were_not_there(rules: dict) -> None:
    """The last rows lead by far, so whatever looks at them chooses them."""
    small, _ = make_pair(0)
    torch.manual_seed(0)
    wide = BioGptForCausalLM(replace(small.config, vocab_size=48)).eval()
    state = small.state_dict()
    padding = torch.randn(8, small.config.hidden_size) * 50
    for name in ("biogpt.embed_tokens.weight", "output_projection.weight"):
        state[name] = torch.cat([state[name], padding])
    wide.load_state_dict(state)
    options = GenerationOptions(max_new_tokens=8, top_logprobs=5, **rules)
    expected = list(engine_of(small).run(start_search(small.config, [2, 5], options)))
    free = list(engine_of(wide).run(start_search(wide.config, [2, 5], options)))
    search = start_search(wide.config, [2, 5], options, padding=range(40, 48))
    banned = list(engine_of(wide).run(search))
    if "seed" not in rules:  # of more rows, other numbers are drawn
        assert _ids(banned) == _ids(expected)
    assert max(_ids(banned)) < 40
    assert any(index >= 40 for index in _ids(free)), "the rows would not have been chosen anyway"


def _ids(results: list[Any]) -> list[int]:
    """Every id that some results tell of."""
    found = []
    for result in results:
        for hypothesis in result if isinstance(result, list) else [result]:
            for token in getattr(hypothesis, "tokens", (hypothesis,)):
                found += [token.id, *(index for index, _ in token.alternatives)]
    return found
