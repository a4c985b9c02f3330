"""Trees of continuations: the search, its texts, and what programs get."""

import itertools
import math
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from engines import engine_of
from test_writing import PROMPT, tiny

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import Hypothesis, start_search
from biogpt.generation.tree import Node, Tree, TreeOptions
from biogpt.serving.engine import Slot
from biogpt.serving.text_generator import TextGenerator
from biogpt.serving.tree import TextTree, grown, searched

Path = tuple[int, ...]
LETTERS = [f"{letter}</w>" for letter in "abcdefghij"]


@pytest.fixture
def model(tiny_config, lively) -> BioGptForCausalLM:
    return lively(BioGptForCausalLM, tiny_config(hidden_size=30, max_position_embeddings=64))


def paths_of(nodes: list[Node], prompt: list[int]) -> list[list[int]]:
    """The ids up to each node, prompt included."""
    paths: list[list[int]] = []
    for node in nodes:
        paths.append([*(paths[node.parent] if node.parent >= 0 else prompt), node.id])
    return paths


def grow(model: BioGptForCausalLM, prompt: list[int], options: TreeOptions, **bans: list[int]) -> list[Node]:
    levels = engine_of(model).run(Tree(model.config, prompt, options, **bans))
    return [node for level in levels for node in level]  # type: ignore[union-attr, misc]


@torch.inference_mode()
def by_hand(
    model: BioGptForCausalLM, prompt: list[int], options: TreeOptions
) -> dict[tuple[int, ...], float]:
    """Every path with its log-probability, from full forward passes."""
    found: dict[tuple[int, ...], float] = {}
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(options.depth):
        made = []
        for path, total in live:
            logprobs = model(torch.tensor([[*prompt, *path]])).logits[0, -1].log_softmax(-1)
            best = logprobs.topk(options.branches)
            for rank, (value, token_id) in enumerate(
                zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ):
                if rank == 0 or not path or math.exp(value) >= options.least:
                    made.append(((*path, token_id), total + value))
        found |= dict(made)
        going_on = [pair for pair in made if pair[0][-1] != model.config.eos_token_id]
        live = sorted(going_on, key=lambda pair: -pair[1])[: options.width]
    return found


@pytest.mark.parametrize("prompt", [[2], [2, 5, 9, 5], [2, 7, 7, 8, 4, 11]])
@pytest.mark.parametrize(
    "options",
    [TreeOptions(), TreeOptions(2, 5, 0.0, 32), TreeOptions(4, 4, 0.2, 3), TreeOptions(1, 8, 0.0, 1)],
    ids=str,
)
def test_a_tree_holds_the_paths_and_probabilities_of_full_forward_passes(model, prompt, options) -> None:
    nodes = grow(model, prompt, options)
    expected = by_hand(model, prompt, options)
    found = {
        tuple(path[len(prompt) :]): node.total
        for path, node in zip(paths_of(nodes, prompt), nodes, strict=True)
    }
    assert found.keys() == expected.keys()
    assert all(abs(found[path] - total) < 1e-4 for path, total in expected.items())
    assert len(found) <= options.branches * options.width * options.depth


def test_a_path_of_one_branch_is_the_greedy_text(model) -> None:
    tokens = list(
        engine_of(model).run(start_search(model.config, [2, 5], GenerationOptions(max_new_tokens=8)))
    )
    nodes = grow(model, [2, 5], TreeOptions(1, 8, 0.0, 1))
    assert [node.id for node in nodes] == [token.id for token in tokens]  # type: ignore[union-attr]
    assert [node.logprob for node in nodes] == [token.logprob for token in tokens]  # type: ignore[union-attr]


def test_banned_tokens_are_no_branches_and_the_end_has_none(model) -> None:
    options = TreeOptions(8, 3, 0.0, 32)
    plain = grow(model, [2, 5], options)
    eos = model.config.eos_token_id
    banned = plain[0].id
    nodes = grow(model, [2, 5], options, banned=[banned])
    assert banned not in {node.id for node in nodes}
    same = [node for node in plain if node.parent < 0 and node.id == nodes[0].id]
    assert nodes[0].logprob == same[0].logprob, "probabilities are those before bans"
    ends = [number for number, node in enumerate(nodes) if node.id == eos]
    assert all(nodes[number].ended for number in ends)
    assert not any(node.parent in ends for node in nodes)


def test_what_a_tree_holds_does_not_depend_on_who_is_served_beside_it(model) -> None:
    alone = grow(model, [2, 5, 9], TreeOptions())
    engine = engine_of(model)
    slot = Slot(Tree(model.config, [2, 5, 9], TreeOptions()))
    others = [
        Slot(
            start_search(
                model.config, [2, 5, seed + 4], GenerationOptions(max_new_tokens=20, temperature=1.0, seed=1)
            )
        )
        for seed in range(5)
    ]
    for waiting in (*others[:3], slot, *others[3:]):
        engine.submit(waiting)
    while engine.has_work:
        engine.step()
    levels = iter(slot.results.get, None)
    assert [node for level in levels for node in level] == alone


def test_a_tree_goes_on_after_a_step_that_failed(model, monkeypatch) -> None:
    expected = grow(model, [2, 5, 9], TreeOptions())
    engine = engine_of(model)
    slot = Slot(Tree(model.config, [2, 5, 9], TreeOptions()))
    engine.submit(slot)
    step, calls = engine.runner.step, 0

    def failing(ids, caches, rules):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("once")
        return step(ids, caches, rules)

    monkeypatch.setattr(engine.runner, "step", failing)
    while engine.has_work:
        try:
            engine.step()
        except RuntimeError:
            continue
    found = [node for level in iter(slot.results.get, None) for node in level]
    assert [(node.id, node.parent) for node in found] == [(node.id, node.parent) for node in expected]
    assert all(abs(one.total - other.total) < 1e-4 for one, other in zip(found, expected, strict=True))
    assert calls > 3


@pytest.mark.parametrize(
    "wrong",
    [{"branches": 0}, {"branches": 9}, {"depth": 33}, {"width": True}, {"least": 1.5}, {"least": "0"}],
    ids=str,
)
def test_wrong_options_are_refused_by_name_and_value(wrong) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}; expected a"):
        TreeOptions(**wrong)


def all_of(generator: TextGenerator, tree: TextTree, options: TreeOptions, leaf: int = -1) -> TextTree:
    list(grown(generator, tree, options, leaf))
    return tree


def test_a_leaf_grows_on_as_if_it_had_never_ended_and_a_path_becomes_a_text() -> None:
    with tiny(LETTERS) as generator:
        whole = all_of(generator, TextTree(generator.prompt(PROMPT)), TreeOptions(1, 6, 0.0, 1))
        tree = all_of(generator, TextTree(generator.prompt(PROMPT)), TreeOptions(1, 4, 0.0, 1))
        all_of(generator, tree, TreeOptions(1, 2, 0.0, 1), leaf=3)
        assert [node.id for node in tree.nodes] == [node.id for node in whole.nodes]
        assert tree.nodes[-1].total == pytest.approx(whole.nodes[-1].total, abs=1e-4)
        [completion] = generator.generate(PROMPT, GenerationOptions(max_new_tokens=6))
        sample = tree.sample(5)
        assert (sample.ids, sample.text) == (completion.ids, completion.text)
        assert sample.ends[-1] == len(sample.text)
        for number in (2, 99):
            with pytest.raises(ValueError, match="goes on already, or is the end"):
                all_of(generator, tree, TreeOptions(), leaf=number)


def test_closing_ends_the_work_and_keeps_what_is_there() -> None:
    with tiny(LETTERS) as generator:
        tree = TextTree(generator.prompt(PROMPT))
        steps = grown(generator, tree, TreeOptions(2, 30, 0.0, 8))
        assert next(count for count in steps if count)
        kept = len(tree.nodes)
        steps.close()
        assert 0 < kept == len(tree.nodes)
        ended = threading.Event()
        generator.run(ended.set)
        assert generator.waiting == 0


def test_a_tree_grows_no_deeper_than_the_room() -> None:
    with tiny(LETTERS) as generator:
        prompt = generator.prompt(" ".join("a" * 37))
        tree = all_of(generator, TextTree(replace(prompt, is_open=False)), TreeOptions(1, 9, 0.0, 1))
        assert len(tree.nodes) == prompt.room < 9
        with pytest.raises(ValueError, match="leaves none for more"):
            all_of(generator, tree, TreeOptions(), leaf=len(tree.nodes) - 1)


@pytest.mark.parametrize("beams", [2, 4])
def test_a_beam_search_tells_the_very_beams_that_the_model_reads_next(model, beams) -> None:
    options = GenerationOptions(max_new_tokens=9, num_beams=beams, num_return_sequences=beams)
    search = start_search(model.config, [2, 5], options)
    for held in engine_of(model).run(search):
        living = [found for found in held if not found.finished]
        finished = [found for found in held if found.finished]
        assert held == living + finished
        assert [found.ids[-1] for found in living] == [token for [token] in search.feed]
        assert len(living) == (0 if search.done else beams)
        for some in (living, finished):
            assert len(some) <= beams
            assert [found.score for found in some] == sorted((found.score for found in some), reverse=True)
        for found in held:
            total = sum(token.logprob for token in found.tokens)
            assert found.score == pytest.approx(total / len(found.tokens), abs=1e-5)
    assert search.done


@pytest.fixture(params=[1, 6, 8], ids="model {}".format)
def ending(request: pytest.FixtureRequest) -> Iterator[TextGenerator]:
    """Beams of it end early, and some that have ended are dropped for better ones."""
    with tiny(LETTERS) as generator:
        torch.manual_seed(request.param)
        with torch.no_grad():
            generator.model.output_projection.weight.normal_()
        yield generator


def told_by_hand(steps: list[list[Hypothesis]]) -> dict[Path, tuple[str, int]]:
    """How each path of a beam search stands in the end, and since which step."""
    found: dict[Path, tuple[str, int]] = {}
    for number, held in enumerate(steps, start=1):
        now = {tuple(hypothesis.ids): hypothesis.finished for hypothesis in held}
        for path, (state, _) in list(found.items()):
            if state == "dropped" or path in now:
                continue
            if state == "alive" and any(longer[:-1] == path for longer in now):
                del found[path]
            else:
                found[path] = ("dropped", number)
        for path, is_finished in now.items():
            found.setdefault(path, ("finished" if is_finished else "alive", number))
    return found


@pytest.mark.parametrize(
    "change", [{}, {"length_penalty": 0.0}, {"no_repeat_ngram_size": 1}, {"early_stopping": True}], ids=str
)
def test_the_tree_of_a_beam_search_is_all_that_it_held_and_its_winner_the_text(ending, change) -> None:
    options = GenerationOptions(max_new_tokens=12, num_beams=4, **change)
    tree = TextTree(ending.prompt(PROMPT))
    counts = list(searched(ending, tree, options))
    every = replace(options, num_return_sequences=4)
    steps = [held for held in ending.beams(tree.prompt, every) if held is not None]
    assert [count for count in counts if count is not None] == list(range(1, len(steps) + 1))

    search = tree.search
    assert search is not None
    assert search.is_over
    ids = {number: tuple(tree.nodes[place].id for place in tree.path(number)) for number in search.beams}
    expected = told_by_hand(steps)
    assert {ids[number]: (beam.state, beam.step) for number, beam in search.beams.items()} == expected
    assert {"finished", "dropped"} == {state for state, _ in expected.values()}
    lived = {tuple(found.ids): found.score for held in steps for found in held}
    assert {ids[number]: beam.score for number, beam in search.beams.items()} == {
        path: lived[path] for path in expected
    }
    paths = {tuple(path) for path in paths_of(tree.nodes, [])}
    assert paths == {path[:end] for path in lived for end in range(1, len(path) + 1)}
    assert all(
        node.total == pytest.approx(node.logprob + (tree.nodes[node.parent].total if node.parent >= 0 else 0))
        for node in tree.nodes
    )

    [completion] = ending.generate(PROMPT, options)
    best, *others = (number for number, beam in search.beams.items() if beam.state == "finished")
    sample = tree.sample(best)
    assert (sample.ids, sample.text) == (completion.ids, completion.text)
    assert [search.beams[other].score for other in others] == [found.score for found in steps[-1][1:]]
    assert {len(likeliest) for likeliest in sample.alternatives} == {8}, "not its siblings alone"
    texts = [step.text for step in ending.stream(PROMPT, options)]
    assert search.revised == sum(not later.startswith(text) for text, later in itertools.pairwise(texts))


def test_a_beam_search_that_is_closed_keeps_what_lived() -> None:
    with tiny(LETTERS) as generator:
        tree = TextTree(generator.prompt(PROMPT))
        steps = searched(generator, tree, GenerationOptions(max_new_tokens=30, num_beams=3))
        for count in steps:
            if count == 3:
                break
        steps.close()
        search = tree.search
        assert search is not None
        assert (search.steps, search.count("alive"), search.is_over) == (3, 3, False)
        ended = threading.Event()
        generator.run(ended.set)
        assert generator.waiting == 0
        assert not generator._worker.engine.is_busy
        with pytest.raises(ValueError, match="a beam search does not go on"):
            all_of(generator, tree, TreeOptions(), leaf=next(iter(search.beams)))


def test_a_beam_search_needs_beams_and_room() -> None:
    with tiny(LETTERS) as generator:
        prompt = replace(generator.prompt(" ".join("a" * 37)), is_open=False)
        tree = TextTree(prompt)
        assert list(filter(None, searched(generator, tree, GenerationOptions(num_beams=2))))[-1] <= 2
        assert max(len(tree.path(number)) for number in range(len(tree.nodes))) == prompt.room == 2
        with pytest.raises(ValueError, match="num_beams is 1; a beam search needs 2 or more"):
            list(searched(generator, tree, GenerationOptions()))
        full = replace(prompt, room=0)
        with pytest.raises(ValueError, match="leaves none for more"):
            list(searched(generator, TextTree(full), GenerationOptions(num_beams=2)))
