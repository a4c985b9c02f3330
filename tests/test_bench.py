"""``python -m biogpt bench`` on a tiny model: every figure is there and is a number; how great, no test can say."""

import json
import math

import pytest

from biogpt.bench import BenchOptions, bench
from biogpt.cli import main
from biogpt.heads import BioGptForCausalLM


@pytest.fixture
def folder(tiny_config, lively, tmp_path):
    lively(BioGptForCausalLM, tiny_config(hidden_size=24, max_position_embeddings=64)).save_pretrained(
        tmp_path / "m"
    )
    return tmp_path / "m"


def test_the_command_measures_prints_and_writes(folder, tmp_path, capsys) -> None:
    pytest.importorskip("transformers")
    arguments = ["--prompts", "8", "40", "--streams", "1", "3", "--contexts", "8", "60", "--tokens", "4"]
    chosen = ["--model", str(folder), "--out", str(tmp_path / "out"), "--rounds", "1"]
    assert (
        main(["bench", *chosen, *arguments, "--precisions", "float32", "int8", "--against", "transformers"])
        == 0
    )
    results = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert list(results["precisions"]) == ["float32", "int8"]
    for name, figures in results["precisions"].items():
        assert figures["described"].startswith(name)
        rows = [(row["figure"], row["at"]) for row in figures["runs"]]
        assert rows == [
            *(("first token", at) for at in (8, 40)),
            *(("streams", at) for at in (1, 3)),
            *(("at position", at) for at in (8, 60)),
        ]
        for row in figures["runs"]:
            assert all(math.isfinite(row[key]) and row[key] > 0 for key in ("value", "transformers", "ratio"))
        assert figures["peak_mb"] > figures["load_s"] > 0
    for plot in ("streams.png", "context.png"):
        assert (tmp_path / "out" / plot).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert printed.count("x transformers") == 12


def test_an_unknown_peer_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="against is 'vllm'; expected 'transformers'"):
        bench(BenchOptions(out=tmp_path, against="vllm"))
