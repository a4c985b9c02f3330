"""A head's folder names the base whose decoder it reads, and heads of one base hold one decoder in memory."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from biogpt.checkpoint import hub
from biogpt.checkpoint.base import BASE, FINGERPRINT
from biogpt.checkpoint.convert import rewrite
from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptTokenizer,
)
from biogpt.model.config import BioGptConfig
from biogpt.runners.layers import Int8Linear, PackedLinear

Make = Callable[..., Any]
HEADS = {"tags": BioGptForTokenClassification, "roles": BioGptForSequenceClassification}
IDS = torch.tensor([[2, 5, 9, 30], [2, 7, 8, 6]])
ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = ["float32", "bfloat16", "float16", "int8"]


MEMORY = """
import gc, sys, weakref
from pathlib import Path
from biogpt.checkpoint.pretrained import BioGptForTokenClassification as kind

def held():
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if "RssAnon" in line)

def more(count):
    for _ in range(count):
        models.append(kind.from_pretrained(sys.argv[1], precision="bfloat16", device="cpu", trainable=False))
    return held() - start

models = []
start = held()
print(more(1), more(4))
layer = models[0].biogpt.layers[0].fc1
shared = weakref.ref(getattr(layer, "packed", layer))
models.clear()
del layer
gc.collect()
print(shared() is None)
"""


def served(head: Any, folder: Path, precision: str = "float32") -> Any:
    return head.from_pretrained(folder, device="cpu", precision=precision, trainable=False)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits.float()


@pytest.fixture
def family(tmp_path: Path, lively: Make) -> Path:
    """A folder with ``base`` and a head of each kind above it."""
    config = BioGptConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
    )
    lively(BioGptForCausalLM, config).save_pretrained(tmp_path / "base")
    words = ["<s>", "<pad>", "</s>", "<unk>", "a</w>", "b</w>", "c</w>", *(f"x{i}</w>" for i in range(33))]
    (tmp_path / "base" / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "base" / "merges.txt").write_text("x 0</w> 1\n")
    for name, head in HEADS.items():
        new = head.from_pretrained(tmp_path / "base", device="cpu", labels=["O", "B-X", "I-X"])
        new.base = type(new.base)("../base", new.base.folder)
        new.save_pretrained(tmp_path / name)
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | values).items() if v != ""}))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_s_folder_holds_its_own_tensors_and_moves_with_its_base(family: Path, name: str) -> None:
    folder, head = family / name, HEADS[name]
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert {key.partition(".")[0] for key in load_file(folder / "model.safetensors")} <= {
        "classifier",
        "score",
    }
    before = logits(head.from_pretrained(folder, device="cpu"))
    moved = family / "elsewhere"
    moved.mkdir()
    for part in ("base", name):
        (family / part).rename(moved / part)
    assert torch.equal(logits(head.from_pretrained(moved / name, device="cpu")), before)
    assert BioGptTokenizer.from_pretrained(moved / name).encode("a b c").ids == [2, 4, 5, 6]


def test_a_base_is_named_as_it_was_given(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(source: str, target: Path) -> str:
        BioGptForTokenClassification.from_pretrained(source, labels=["O", "B-X"]).save_pretrained(target)
        assert (
            BioGptForTokenClassification.from_pretrained(target).base.folder.resolve()
            == (family / "base").resolve()
        )
        return json.loads((target / "config.json").read_text())[BASE]

    (family / "deep").mkdir()
    monkeypatch.chdir(family / "deep")
    assert named(str(family / "base"), family / "one") == str(family / "base")
    assert named("../base", family / "two") == "../base"
    assert named("../base", family / "deep" / "er" / "three") == "../../../base".replace("/", os.sep)
    monkeypatch.setattr(hub, "EMBEDDED", family)
    monkeypatch.setattr("biogpt.checkpoint.base.EMBEDDED", family)
    assert named("base", family / "four") == "base"
    again = BioGptForTokenClassification.from_pretrained(family / "two")
    again.save_pretrained(family / "deep" / "five")
    assert json.loads((family / "deep" / "five" / "config.json").read_text())[BASE] == "../../base"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_served_above_one_base_shares_its_tensors(family: Path, precision: str) -> None:
    """In whichever order it is loaded, in every layout, and each computes what it computes alone."""
    sources = [(head, family / name) for name, head in HEADS.items()] + [(BioGptForCausalLM, family / "base")]
    for order in (sources, sources[::-1]):
        alone = []
        for head, folder in order:
            alone.append(logits(served(head, folder, precision)))
            gc.collect()
        together = [served(head, folder, precision) for head, folder in order]
        assert len({id(model.biogpt) for model in together}) == 3
        assert len({tensors_of(model) for model in together}) == 1
        assert len(tensors_of(together[0])) > 20
        assert all(map(torch.equal, map(logits, together), alone))
        del together[0]  # the one that was loaded first
        gc.collect()
        assert tensors_of(served(*order[0], precision)) == tensors_of(together[0])


def tensors_of(model: Any) -> frozenset[int]:
    """Where all that the decoder computes with lies in memory."""
    found = {tensor.data_ptr() for tensor in (*model.biogpt.parameters(), *model.biogpt.buffers())}
    for module in model.biogpt.modules():
        if isinstance(module, PackedLinear):
            found |= {id(module.packed), module.bias.data_ptr()}
        if isinstance(module, Int8Linear):
            found |= {module.scale.data_ptr(), module.bias.data_ptr(), id(module.product.packed)}
    return frozenset(found)


def test_a_shared_decoder_costs_its_memory_once_and_goes_with_its_last_user(tmp_path: Path) -> None:
    config = BioGptConfig(
        vocab_size=100, hidden_size=256, num_hidden_layers=20, num_attention_heads=4, intermediate_size=1024
    )
    BioGptForCausalLM(config).save_pretrained(tmp_path / "base")  # 64 MB in float32
    new = BioGptForTokenClassification.from_pretrained(tmp_path / "base", labels=["O", "B-X"])
    new.save_pretrained(tmp_path / "head")
    del new
    if not Path("/proc/self/status").is_file():
        pytest.skip("memory is read from /proc")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "head")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    one, five, is_gone = done.stdout.split()
    assert int(one) > 20e6
    assert int(five) < 1.5 * int(one)
    assert is_gone == "True"


def test_what_can_be_trained_is_its_own(family: Path) -> None:
    shared = served(BioGptForTokenClassification, family / "tags")
    before = logits(shared)
    mine = BioGptForTokenClassification.from_pretrained(family / "tags", device="cpu", precision="float32")
    with torch.no_grad():
        for weight in mine.parameters():
            weight.add_(0.5)
    assert torch.equal(logits(shared), before)
    assert torch.equal(logits(served(BioGptForTokenClassification, family / "tags")), before)


@pytest.mark.parametrize("part", ["biogpt.layers.1.fc2.weight", "biogpt.layer_norm.bias"])
def test_a_trained_decoder_is_never_left_out(family: Path, part: str) -> None:
    model = BioGptForTokenClassification.from_pretrained(family / "tags", device="cpu", precision="float32")
    with torch.no_grad():
        model.get_parameter(part).view(-1)[3] += 0.5
    model.save_pretrained(family / "trained")
    assert BASE not in json.loads((family / "trained" / "config.json").read_text())
    again = BioGptForTokenClassification.from_pretrained(family / "trained", device="cpu")
    assert torch.equal(logits(again), logits(model))


def test_a_base_that_went_or_is_written_over_takes_no_decoder_with_it(family: Path) -> None:
    model = BioGptForTokenClassification.from_pretrained(family / "tags", device="cpu", precision="float32")
    wanted = logits(model)
    model.save_pretrained(family / "base")  # where its base is
    assert torch.equal(logits(BioGptForTokenClassification.from_pretrained(family / "base")), wanted)
    shutil.rmtree(family / "base")
    model.save_pretrained(family / "alone")
    assert torch.equal(logits(BioGptForTokenClassification.from_pretrained(family / "alone")), wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("trainable", [True, False])
def test_a_head_is_saved_small_from_every_layout(family: Path, precision: str, trainable: bool) -> None:
    model = BioGptForTokenClassification.from_pretrained(
        family / "tags", device="cpu", precision=precision, trainable=trainable
    )
    model.save_pretrained(family / "again")
    assert set(load_file(family / "again" / "model.safetensors")) == {"classifier.weight", "classifier.bias"}
    again = BioGptForTokenClassification.from_pretrained(
        family / "again", device="cpu", precision=precision, trainable=trainable
    )
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("name", HEADS)
def test_a_merged_head_opens_in_transformers(family: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = HEADS[name].from_pretrained(family / name, device="cpu", precision="float32")
    model.save_pretrained(family / "whole", merge=True)
    rewrite(family / name, family / "rewritten")
    assert (family / "rewritten" / "vocab.json").is_file()
    for folder in (family / "whole", family / "rewritten"):
        reference, report = getattr(transformers, HEADS[name].__name__).from_pretrained(
            folder, output_loading_info=True
        )
        assert not report["missing_keys"]
        with torch.inference_mode():
            torch.testing.assert_close(reference.eval()(IDS).logits, logits(model), rtol=0, atol=1e-5)


def test_wrong_bases_are_refused_by_name(family: Path, lively: Make) -> None:
    def refusal() -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            BioGptForTokenClassification.from_pretrained(family / "tags", device="cpu")
        return str(caught.value)

    base = BioGptConfig.from_json(family / "base" / "config.json")
    config = (family / "tags" / "config.json").read_text()
    for name, said in {
        "../gone": "gone is no folder. Put it there",
        "no such thing": "expected an embedded name",
        "../roles": "is itself a head without a decoder",
        "./": "is itself a head without a decoder",
    }.items():
        change(family / "tags", **{BASE: name})
        assert said in refusal()
    (family / "tags" / "config.json").write_text(config)
    lively(BioGptForCausalLM, base, seed=1).save_pretrained(family / "base")
    assert "weights of the base ../base" in refusal()
    assert f"delete {FINGERPRINT}" in refusal()
    change(family / "tags", **{FINGERPRINT: ""})
    BioGptForTokenClassification.from_pretrained(family / "tags", device="cpu")
    for field, value in {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 39}.items():
        changed = BioGptConfig(**{**vars(base), field: value})
        lively(BioGptForCausalLM, changed).save_pretrained(family / "base")
        assert f"{field} {value}, expected {getattr(base, field)}" in refusal()


def test_a_base_may_be_kept_in_int8(family: Path) -> None:
    """Its floats are the products of weights and scales, which every precision rounds once."""
    rewrite(family / "base", family / "small", "int8")
    floats = BioGptForCausalLM.from_pretrained(family / "small", device="cpu", precision="float32")
    for precision in ("bfloat16", "float16"):
        found = BioGptForCausalLM.from_pretrained(family / "small", device="cpu", precision=precision)
        for key, tensor in floats.state_dict().items():
            assert torch.equal(found.state_dict()[key], tensor.to(getattr(torch, precision)))
    new = BioGptForTokenClassification.from_pretrained(
        family / "small", device="cpu", precision="float32", labels=["O", "B-X"]
    )
    wanted = logits(new)
    new.half().save_pretrained(family / "above")
    assert len(load_file(family / "above" / "model.safetensors")) == 2
    again = BioGptForTokenClassification.from_pretrained(family / "above", device="cpu", precision="float32")
    torch.testing.assert_close(logits(again), wanted, rtol=0, atol=1e-3)


def test_a_float_folder_of_an_int8_one_opens_in_transformers(family: Path) -> None:
    transformers = pytest.importorskip("transformers")
    rewrite(family / "base", family / "small", "int8")
    rewrite(family / "small", family / "float", "float32")
    reference = transformers.BioGptForCausalLM.from_pretrained(family / "float").eval()
    ours = BioGptForCausalLM.from_pretrained(family / "small", device="cpu", precision="float32")
    with torch.inference_mode():
        torch.testing.assert_close(reference(IDS).logits, logits(ours), rtol=0, atol=1e-5)
