"""Model folders: ours open in ``transformers`` and theirs in ours, and everything wrong with one is named."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    PretrainedModel,
)

HEADS = [BioGptForCausalLM, BioGptForTokenClassification, BioGptForSequenceClassification]
EMBEDDING, PROJECTION = "biogpt.embed_tokens.weight", "output_projection.weight"
IDS = torch.tensor([[2, 5, 9, 30], [2, 7, 1, 1]])

Make = Callable[..., Any]


@pytest.fixture
def saved(tiny_config: Make, lively: Make, tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """``saved(head, **config changes)``: a model and the folder it was saved to."""

    def save(head: type[PretrainedModel] = BioGptForCausalLM, **changes: Any) -> tuple[Any, Path]:
        model = lively(head, tiny_config(**changes))
        model.save_pretrained(tmp_path)
        return model, tmp_path

    return save


def load(folder: Path, head: type[PretrainedModel] = BioGptForCausalLM, **options: Any) -> Any:
    return head.from_pretrained(folder, device="cpu", **options)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, attention_mask=(IDS != 1).long()).logits


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Apply ``change`` to the tensors of a saved folder."""
    path = folder / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def to_bin(folder: Path, content: Any = None) -> None:
    """Replace a folder's safetensors by a ``.bin`` of the same tensors, or of something else."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors if content is None else content, folder / "pytorch_model.bin")


# ---- with transformers


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shard", [5_000_000_000, 3000])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_opens_ours(saved: Make, head: Any, shard: int, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model, folder = saved(head, tie_word_embeddings=tied)
    model.save_pretrained(folder, max_shard_size=shard)
    reference, info = getattr(transformers, head.__name__).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert type(reference).__name__ in json.loads((folder / "config.json").read_text())["architectures"]
    assert reference.config.id2label == {0: "Chemical", 1: "Disease", 2: "Gene"}
    # The mask is spelled out as positions, which the reference counts from it in generation only.
    positions = ((IDS != 1).long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = reference(IDS, attention_mask=(IDS != 1).long(), position_ids=positions).logits
    kept = IDS != 1 if expected.ndim == 3 else slice(None)
    torch.testing.assert_close(logits(model)[kept], expected[kept], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shard", ["5GB", "3KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_ours_opens_theirs(
    tiny_config: Make, lively: Make, reference_of: Make, tmp_path: Path, head: Any, shard: str, tied: bool
) -> None:
    model = lively(head, tiny_config(tie_word_embeddings=tied))
    reference_of(model).save_pretrained(tmp_path, max_shard_size=shard)
    loaded = load(tmp_path, head)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config == model.config


def test_bare_decoder_of_transformers(
    tiny_config: Make, lively: Make, reference_of: Make, tmp_path: Path
) -> None:
    """Its keys have no ``biogpt.`` before them; a tied language model still has all it needs."""
    model = lively(BioGptForCausalLM, tiny_config())
    reference_of(model).biogpt.save_pretrained(tmp_path)
    assert "embed_tokens.weight" in load_file(tmp_path / "model.safetensors")
    assert torch.equal(logits(load(tmp_path)), logits(model))


# ---- what a loaded model is


def test_loaded_model_is_ready_to_use_and_to_train(saved: Make) -> None:
    model, folder = saved()
    loaded = load(folder)
    assert not loaded.training
    assert all(isinstance(parameter, nn.Parameter) for parameter in loaded.parameters())
    assert loaded.output_projection.weight is loaded.biogpt.embed_tokens.weight
    before = (folder / "model.safetensors").read_bytes()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    optimizer.step()
    assert not torch.equal(logits(loaded), logits(model))
    assert (folder / "model.safetensors").read_bytes() == before, "training wrote into the mapped file"


def test_weights_on_the_cpu_are_mapped_not_copied(tiny_config: Make, tmp_path: Path) -> None:
    """Loading 64 MB leaves the process's own (anonymous) memory as it was."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory is read from /proc, which Linux has")

    def own_memory() -> int:
        return int(re.search(r"RssAnon:\s+(\d+) kB", status.read_text())[1]) * 1024

    config = tiny_config(vocab_size=250_000, hidden_size=64, num_attention_heads=2)
    BioGptForCausalLM(config).save_pretrained(tmp_path)
    load(tmp_path)  # whatever the first call allocates for good
    before = own_memory()
    model = load(tmp_path)
    assert model.biogpt.embed_tokens.weight.sum().isfinite()
    assert own_memory() - before < 32e6 < model.biogpt.embed_tokens.weight.nbytes


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_round_trip(saved: Make, tmp_path: Path, precision: str) -> None:
    transformers = pytest.importorskip("transformers")
    dtype = getattr(torch, precision)
    _, folder = saved()
    half = load(folder, precision=precision)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    half.save_pretrained(folder)
    assert transformers.BioGptForCausalLM.from_pretrained(folder).dtype == dtype
    again = load(folder, precision="float32")
    assert torch.equal(again.biogpt.embed_tokens.weight, half.biogpt.embed_tokens.weight.float())


def test_tied_weight_is_stored_once(saved: Make) -> None:
    _, folder = saved()
    tensors = load_file(folder / "model.safetensors")
    assert EMBEDDING in tensors
    assert PROJECTION not in tensors


def test_saving_again_removes_the_shards_of_before(saved: Make) -> None:
    model, folder = saved()
    (folder / "vocab.json").write_text(json.dumps({str(i): i for i in range(model.config.vocab_size)}))
    model.save_pretrained(folder, max_shard_size=3000)
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" not in names
    assert sum(name.startswith("model-") for name in names) > 2
    largest = max(path.stat().st_size for path in folder.glob("model-*"))
    assert largest < 3000 + 2000, "a header comes on top of the tensors"
    assert torch.equal(logits(load(folder)), logits(model))
    load(folder).save_pretrained(folder)  # over the files it is mapped from
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "vocab.json"}
    assert torch.equal(logits(load(folder)), logits(model))


def test_saved_files_can_be_read_by_whoever_reads_new_files(saved: Make) -> None:
    """``safetensors`` makes files of mode 0600: a server running as another user could not open them."""
    _, folder = saved()
    (folder / "plain").touch()
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_failed_save_leaves_the_old_files(saved: Make) -> None:
    model, folder = saved()
    expected = logits(model)
    with torch.no_grad():
        model.biogpt.layer_norm.bias += 1
    model.register_buffer("spoiler", torch.zeros(2).to("meta"))  # has no data to write
    with pytest.raises(NotImplementedError):
        model.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(logits(load(folder)), expected)


def test_a_full_disk_leaves_the_old_files(saved: Make, full_disk: Make) -> None:
    model, folder = saved()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        model.biogpt.layer_norm.bias += 1
    with (
        full_disk(1000),
        pytest.raises(OSError, match=r"could not be written to .*; free some space, or choose"),
    ):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ---- tied weights


@pytest.mark.parametrize("kept", [EMBEDDING, PROJECTION])
def test_either_tied_tensor_will_do(saved: Make, kept: str) -> None:
    model, folder = saved()

    def keep_one(tensors: dict[str, torch.Tensor]) -> None:
        tensors[kept] = tensors.pop(EMBEDDING)

    edit(folder, keep_one)
    assert torch.equal(logits(load(folder)), logits(model))


def test_tied_tensors_that_differ_are_both_used(saved: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The reference's rule: what was trained counts, not the config's word for it."""
    transformers = pytest.importorskip("transformers")
    _, folder = saved()
    edit(folder, lambda tensors: tensors.update({PROJECTION: tensors[EMBEDDING] + 1}))
    with caplog.at_level(logging.WARNING):
        loaded = load(folder)
    assert "untied" in caplog.text
    assert not loaded.config.tie_word_embeddings
    reference = transformers.BioGptForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded)[0], reference(IDS[:1]).logits[0], atol=1e-5, rtol=0)
    loaded.save_pretrained(folder)
    assert torch.equal(logits(load(folder)), logits(loaded))


def test_equal_tied_tensors_become_one(saved: Make) -> None:
    model, folder = saved()
    edit(folder, lambda tensors: tensors.update({PROJECTION: tensors[EMBEDDING].clone()}))
    loaded = load(folder)
    assert loaded.output_projection.weight is loaded.biogpt.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(model))


def test_untied_projection_must_be_there(saved: Make) -> None:
    _, folder = saved(tie_word_embeddings=False)
    edit(folder, lambda tensors: tensors.pop(PROJECTION))
    with pytest.raises(ValueError, match=r"no language model head \(output_projection"):
        load(folder)


# ---- heads


def test_missing_head_is_refused(saved: Make) -> None:
    _, folder = saved()
    with pytest.raises(ValueError, match=r"no token classification head .*nor any other.*labels="):
        load(folder, BioGptForTokenClassification)
    _, folder = saved(BioGptForSequenceClassification)
    with pytest.raises(
        ValueError, match=r"no token classification head .*but a sequence classification head"
    ):
        load(folder, BioGptForTokenClassification)
    with pytest.raises(
        ValueError, match=r"sequence classification head.*no language model's: TextClassifier .*mini"
    ):
        load(folder)


@pytest.mark.parametrize("source", HEADS)
@pytest.mark.parametrize("target", HEADS[1:])
def test_new_head_on_any_checkpoint(saved: Make, source: Any, target: Any) -> None:
    model, folder = saved(source)
    torch.manual_seed(3)
    loaded = load(folder, target, labels=["O", "B", "I", "X"], precision="bfloat16")
    assert loaded.config.labels == ("O", "B", "I", "X")
    assert logits(loaded).shape[-1] == 4
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    drawn = [value for name, value in loaded.named_parameters() if not name.startswith("biogpt.")]
    assert 0.5 < drawn[0].float().std() / model.config.initializer_range < 2
    body = loaded.biogpt.state_dict()
    assert all(torch.equal(body[key], value.bfloat16()) for key, value in model.biogpt.state_dict().items())


def test_new_head_where_only_the_tied_projection_is_stored(saved: Make) -> None:
    model, folder = saved()
    edit(folder, lambda tensors: tensors.update({PROJECTION: tensors.pop(EMBEDDING)}))
    loaded = load(folder, BioGptForTokenClassification, labels=["A", "B"])
    assert torch.equal(loaded.biogpt.embed_tokens.weight, model.biogpt.embed_tokens.weight)


def test_senseless_labels(saved: Make) -> None:
    _, folder = saved()
    with pytest.raises(ValueError, match="labels are for classification heads"):
        load(folder, labels=["A"])
    for labels in ([], ["A", "A"]):
        with pytest.raises(ValueError, match="one or more different names"):
            load(folder, BioGptForTokenClassification, labels=labels)


# ---- what is refused


def test_keys_are_strict(saved: Make) -> None:
    _, folder = saved()
    missing = "biogpt.layers.1.fc1.bias"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["biogpt.layers.1.fc1.beta"] = tensors.pop(missing)

    edit(folder, spoil)
    with pytest.raises(
        ValueError, match=re.escape(f"missing {missing}; unexpected biogpt.layers.1.fc1.beta")
    ):
        load(folder)


def test_buffers_of_old_software_are_left_out(saved: Make) -> None:
    model, folder = saved()
    edit(folder, lambda tensors: tensors.update({"biogpt.embed_positions._float_tensor": torch.zeros(1)}))
    assert torch.equal(logits(load(folder)), logits(model))


def test_wrong_shapes_are_named_with_both_sizes(saved: Make) -> None:
    _, folder = saved()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"vocab_size": 41, "intermediate_size": 23}))
    with pytest.raises(ValueError, match=r"shapes do not fit config.json") as caught:
        load(folder)
    assert "biogpt.embed_tokens.weight (40, 15), expected (41, 15)" in str(caught.value)
    assert "biogpt.layers.0.fc1.weight (22, 15), expected (23, 15)" in str(caught.value)


def test_vocabulary_must_fit(saved: Make) -> None:
    _, folder = saved()
    (folder / "vocab.json").write_text(json.dumps({str(i): i for i in range(41)}))
    with pytest.raises(ValueError, match=r"has 41 tokens, but vocab_size .* is 40"):
        load(folder)
    (folder / "vocab.json").write_text(json.dumps({str(i): i for i in range(39)}))
    load(folder)  # the last row is padding
    (folder / "added_tokens.json").write_text(json.dumps({"[GENE]": 40}))
    with pytest.raises(
        ValueError, match=r"adds the token '\[GENE\]' with the id 40, but vocab_size .* is 40"
    ):
        load(folder)


def test_a_vocabulary_of_another_model_is_not_taken_for_one_with_padding(saved: Make) -> None:
    _, folder = saved(vocab_size=2000)
    for size in (1500, 2000 - 1024):
        (folder / "vocab.json").write_text(json.dumps({str(i): i for i in range(size)}))
        load(folder)
    (folder / "vocab.json").write_text(json.dumps({str(i): i for i in range(2000 - 1025)}))
    with pytest.raises(ValueError, match="has 975 tokens, but vocab_size .* belong to different models"):
        load(folder)


def test_another_architecture_is_refused(saved: Make) -> None:
    _, folder = saved()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type is 'gpt2'; expected 'biogpt'"):
        load(folder)


def test_missing_files_are_named(saved: Make, tmp_path: Path) -> None:
    _, folder = saved()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights: expected one of model\.safetensors"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load(folder)


def test_missing_shard_is_named(saved: Make) -> None:
    model, folder = saved()
    model.save_pretrained(folder, max_shard_size=3000)
    lost = sorted(folder.glob("model-*"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"has no {lost.name}")):
        load(folder)


@pytest.mark.parametrize("cut", [0, 5, 200, -40])
def test_truncated_safetensors(saved: Make, cut: int) -> None:
    _, folder = saved()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="damaged or cut short: download it again"):
        load(folder)


def test_git_lfs_pointer(saved: Make) -> None:
    _, folder = saved()
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        load(folder)


# ---- .bin


def test_bin_and_sharded_bin(saved: Make) -> None:
    model, folder = saved()
    tensors = load_file(folder / "model.safetensors")
    to_bin(folder)
    assert torch.equal(logits(load(folder)), logits(model))
    (folder / "pytorch_model.bin").unlink()
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    where = {key: names[i % 2] for i, key in enumerate(tensors)}
    for name in names:
        torch.save({key: tensors[key] for key in tensors if where[key] == name}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert torch.equal(logits(load(folder)), logits(model))


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_bin_that_would_run_code_is_refused_and_does_not(saved: Make, tmp_path: Path) -> None:
    _, folder = saved()
    to_bin(folder, {EMBEDDING: torch.zeros(2), "extra": Harmful(tmp_path / "ran")})
    with pytest.raises(ValueError, match=r"is refused: .*\(posix\.mkdir\), and loading those can run code"):
        load(folder)
    assert not (tmp_path / "ran").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists(), "the file was harmless, so the test proved nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list; expected tensors by name"),
        ({"state_dict": {"a": torch.zeros(1)}}, "'state_dict' is dict; expected a floating-point tensor"),
        ({"a": torch.zeros(1, dtype=torch.int8)}, r"'a' is torch\.int8"),
    ],
)
def test_bin_of_something_else(saved: Make, content: Any, message: str) -> None:
    _, folder = saved()
    to_bin(folder, content)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("cut", [0, 10, -300])
def test_truncated_bin(saved: Make, cut: int) -> None:
    _, folder = saved()
    to_bin(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="cannot be read: it is damaged"):
        load(folder)


def test_loading_imports_no_compiler() -> None:
    """torch's takes seconds to import, which drawing numbers on the meta device would do."""
    code = (
        "import sys; from biogpt import EntityRecognizer, TextClassifier, TextGenerator\n"
        "TextGenerator.from_pretrained('mini')\n"
        "EntityRecognizer.from_pretrained('mini-ner')\n"
        "TextClassifier.from_pretrained('mini-rct')\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
