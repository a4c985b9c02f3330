"""The bench command on a tiny model: what it measures, not how fast."""

import json
from dataclasses import replace

import pytest
import torch

from biogpt.bench import POSITIONS, PROMPTS, BenchOptions, _make_weights, bench, table
from biogpt.checkpoint.hub import find
from biogpt.cli import main, quick
from biogpt.model.config import BioGptConfig

TINY = BioGptConfig(
    vocab_size=17000,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=400,
)


@pytest.mark.slow
def test_every_subject_is_measured_in_every_case(tmp_path):
    options = BenchOptions(
        tmp_path,
        precisions=("int8",),
        against=("float32",),
        prompts=(16, 300),
        streams=(1, 3),
        positions=(32, 200),
        tagging=True,
        heads=["mini-rct"],
        rounds=1,
        steps=4,
        config=TINY,
    )
    results = bench(options)
    assert json.loads((tmp_path / "bench.json").read_text()) == results
    assert list(results["subjects"]) == ["biogpt int8", "transformers float32"]
    cases = {"first_token 16", "first_token 300", "ner", "classify"}
    cases |= {f"decode {streams} {position}" for streams in (1, 3) for position in (32, 200)}
    for name, subject in results["subjects"].items():
        heads = {"mini-rct"} if name.startswith("biogpt") else set()
        assert set(subject["figures"]) == cases | heads
        assert all(figure > 0 for figure in subject["figures"].values())
        assert subject["peak_bytes"] >= subject["served_bytes"] > 10_000_000
    assert [subject["weight_bytes"] for subject in results["subjects"].values()] == [1, 4]
    lines = table(results).splitlines()
    assert sum("tokens/s" in line for line in lines) == 4
    assert sum("Times as fast as transformers float32" in line for line in lines) == 1
    for name in ("streams.png", "position.png", "position-1.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_smaller_model_is_measured_as_far_as_it_goes(tmp_path):
    mini = BioGptConfig.from_json(find("mini") / "config.json")
    half = BenchOptions(tmp_path, config=replace(mini, max_position_embeddings=512))
    assert (half.prompts, half.positions) == ((16, 128), (32, 256))
    base = BenchOptions(tmp_path)
    assert (base.prompts, base.positions) == (PROMPTS, POSITIONS)
    with pytest.raises(
        ValueError, match="the model has 12: choose shorter ones, fewer steps or fewer streams"
    ):
        BenchOptions(tmp_path, config=replace(TINY, max_position_embeddings=12))


def test_shapes_of_heads_are_measured_as_those_of_language_models(tmp_path):
    """Its word encoder and the types of its entities are no part of the shape."""
    config = BioGptConfig.from_json(find("mini-ner") / "config.json")
    for task in ("generate", "ner", "classify"):
        _make_weights(task, config, tmp_path / task)


def test_what_cannot_be_measured_is_said_before_anything_is_loaded(tmp_path, capsys):
    with pytest.raises(ValueError, match="need 401 positions with 4 steps; the model has 400"):
        BenchOptions(tmp_path, prompts=(400,), positions=(16,), steps=4, config=TINY)
    with pytest.raises(
        ValueError, match=r"positions \[360\] need 404 positions"
    ):  # for the last of 36 streams
        BenchOptions(tmp_path, prompts=(16,), positions=(360,), streams=(1, 36), steps=4, config=TINY)
    for name, value in (
        ("rounds", 0),
        ("steps", 0),
        ("prompts", (16, 0)),
        ("streams", (-1,)),
        ("positions", (0,)),
    ):
        with pytest.raises(ValueError, match=f"{name} (is|are) .*; expected at least 1"):
            BenchOptions(tmp_path, config=TINY, **{name: value})
    assert main(["bench", "--against", "vllm", "--out", str(tmp_path / "none")]) == 1
    assert "--against 'vllm'; expected transformers" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_quick_bench_takes_every_figure(monkeypatch, capsys):
    """As on a GPU, on a tiny model; what it checks is checked below."""
    monkeypatch.setattr(
        quick, "_checks", lambda device: {"company": "right", "logits": "left out: no reference"}
    )
    config = replace(TINY, vocab_size=50, max_position_embeddings=160)
    options = quick.QuickOptions("cpu", config=config, steps=5, streams=(1, 3), requests=7)
    results = quick.quick(options)
    assert results["machine"]["device"].startswith("float32 · CPU")
    assert quick.wrong(results) == []
    figures = results["figures"]
    names = ["1 stream, tokens/s", "3 streams in all, tokens/s", "3 streams in all, drawn, tokens/s"]
    names += ["3 prompts of 147, s", "3 streams in all at position 147, tokens/s", "first token of 80, s"]
    names += ["ready to serve, s", "transformers: 16 streams in all, tokens/s"]
    for name in names:
        assert figures[name] > 0
    assert figures["memory more after 7 requests, bytes"] == 0
    monkeypatch.setattr(quick, "_figures", lambda *_: figures)
    assert main(["bench", "--quick", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == figures
    monkeypatch.setattr(quick, "_checks", lambda device: {"company": "requests 1 of 6 differ alone"})
    assert main(["bench", "--quick", "--device", "cpu"]) == 1
    assert "wrong on this device: company; the JSON above says what" in capsys.readouterr().err
    assert main(["bench", "--device", "cpu"]) == 1
    assert "--device is 'cpu', which is for --quick" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_bench_checks_what_a_device_computes(monkeypatch):
    found = quick._checks(torch.device("cpu"))
    assert quick.wrong({"checks": found}) == []
    assert found["company, float32"] == "right, to the bit"
    assert found["logits of transformers"].startswith("right: they differ by ")
    assert {"greedy, ids of the CPU", "sampled, ids of the CPU", "beams, ids of the CPU"} <= set(found)
    assert found["entities of the CPU"] == "right"
