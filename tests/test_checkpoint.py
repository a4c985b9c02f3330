"""Model folders: ours open in ``transformers`` and theirs in ours, and everything wrong with one is named."""

import gc
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from biogpt.checkpoint.inventory import size_of
from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    PretrainedModel,
)
from biogpt.checkpoint.weights import MappedFiles, read_weights

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


def test_files_stay_mapped_while_their_memory_may_be_given_back(saved: Make) -> None:
    """What came to lie at the addresses of a used-up file was zeroed: a wrong model, now and then."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("mapped files are found in /proc, which Linux has")
    model, folder = saved()
    model.save_pretrained(folder, max_shard_size=3000)
    weights = read_weights(folder)
    mapped = MappedFiles(weights.values())
    assert len(mapped.ranges) == len(list(folder.glob("*.safetensors"))) > 1
    weights.clear()
    gc.collect()
    lines = {line.split()[0]: line.split()[-1] for line in maps.read_text().splitlines()}
    assert {Path(lines[f"{start:x}-{end:x}"]).parent for start, end in mapped.ranges} == {folder}
    mapped.forget()


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


SAVING = """
import sys
from biogpt.checkpoint.pretrained import BioGptForCausalLM
model = BioGptForCausalLM.from_pretrained(sys.argv[1], device="cpu")
while True:
    model.save_pretrained(sys.argv[1])
    print("saved", flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_while_it_saves_leaves_a_whole_model_and_the_next_save_tidies_up(
    saved: Make,
) -> None:
    model, folder = saved()
    names = {path.name for path in folder.iterdir()}
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", SAVING, str(folder)], cwd=root, stdout=subprocess.PIPE
    ) as process:
        for _ in range(20):
            assert process.stdout.readline() == b"saved\n"
        process.kill()  # most of its time it is inside the next save
    assert torch.equal(logits(load(folder)), logits(model))
    (folder / ".model.safetensors.tmp").write_bytes(
        b"half"
    )  # as a kill leaves it, if it hits the right moment
    model.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == names


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
    with pytest.raises(ValueError, match=r"has 975 tokens, but vocab_size .* belong to different models"):
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
        ({3: torch.zeros(1)}, "keys that are no text"),
        ({"a": torch.zeros(1).expand(2**40)}, "'a' has the shape .* but not so many numbers"),
        ({"a": torch.eye(2).to_sparse()}, "'a' has the shape|cannot be read"),
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


# ---- what training and other software leave


WRAPPED = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "base_model.model."]


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("kind", ["safetensors", "bin", "shards"])
def test_what_training_wraps_a_model_in_is_read_through(saved: Make, prefix: str, kind: str) -> None:
    model, folder = saved()
    tensors = {prefix + key: tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif kind == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    else:
        names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        where = {key: names[i % 2] for i, key in enumerate(tensors)}
        for name in names:
            save_file({key: tensors[key] for key in tensors if where[key] == name}, folder / name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert torch.equal(logits(load(folder)), logits(model))


def test_compiled_layers_are_read_through_and_doubles_refused(saved: Make) -> None:
    model, folder = saved()

    def compiled(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if ".layers.0." in key]:
            tensors[key.replace(".layers.0.", ".layers.0._orig_mod.")] = tensors.pop(key)

    edit(folder, compiled)
    assert torch.equal(logits(load(folder)), logits(model))
    edit(folder, lambda tensors: tensors.update({f"module.{EMBEDDING}": tensors[EMBEDDING].clone()}))
    with pytest.raises(ValueError, match=f"'{EMBEDDING}' twice"):
        load(folder)


def test_lora_layers_that_are_not_merged_are_named(saved: Make) -> None:
    _, folder = saved()
    edit(folder, lambda tensors: tensors.update({"biogpt.layers.0.fc1.lora_A.weight": torch.zeros(2, 15)}))
    with pytest.raises(ValueError, match=r"LoRA layers beside the weights .*merge_and_unload"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b"version https://git-lfs.github.com/spec/v1\noid", "only a Git LFS pointer"),
        ("config.json", b"version https://git-lfs.github.com/spec/v1\noid", "only a Git LFS pointer"),
        ("model.safetensors", b"\n<!DOCTYPE html><html>", "is a web page"),
        ("config.json", b"[" * 200_000, "nested too deep"),
        ("vocab.json", b"[" * 200_000, "nested too deep"),
        ("vocab.json", b'{\n"a\0": 1}', r"byte 4 \(line 2\) is 0x00"),
        ("vocab.json", '{"a": 1}'.encode("utf-16"), "not UTF-8 but UTF-16"),
        ("vocab.json", b" " * (2**25 + 1), "more than 32 MiB"),
        ("config.json", b" " * (2**25 + 1), "more than 32 MiB"),
        ("config.json", b'{"num_labels": 100000000}', "100000000 labels; expected at most"),
        ("config.json", b'{"hidden_size": 2147483648}', "hidden_size is 2147483648; expected at most"),
        ("config.json", b'{"vocab_size": 1e30}', "vocab_size is 1e"),
        (
            "config.json",
            b'{"num_hidden_layers": 1000000, "hidden_size": 1, "num_attention_heads": 1}',
            "num_hidden_layers is 1000000, but the weights are",
        ),
    ],
)
def test_a_file_that_is_something_else_is_named(saved: Make, name: str, content: bytes, message: str) -> None:
    _, folder = saved()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)}.*{message}"):
        load(folder)


@pytest.mark.parametrize("name", ["vocab.json", "config.json", "model.safetensors"])
def test_links_out_of_the_folder_and_devices_are_not_read(saved: Make, name: str) -> None:
    _, folder = saved()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is a link to /dev/zero, outside its folder"):
        load(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match="is no file, but a folder, a device or a pipe"):
        load(folder)


def test_links_of_the_cache_of_the_hub_are_read(saved: Make, tmp_path: Path) -> None:
    model, folder = saved()
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(blobs / name[:3])
        (snapshot / name).symlink_to(f"../../blobs/{name[:3]}")
    assert torch.equal(logits(load(snapshot)), logits(model))


def test_a_folder_of_a_training_names_the_checkpoints_in_it(tmp_path: Path) -> None:
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    with pytest.raises(FileNotFoundError, match=re.escape(f"give {tmp_path / 'checkpoint-1000'}")):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tf_model.h5", "it has tf_model.h5, which is not read"),
        ("model.fp16.safetensors", "if that is the model, call it model.safetensors"),
        ("model-00001-of-00002.safetensors", "not the index that names all shards"),
    ],
)
def test_other_weights_are_named(saved: Make, name: str, message: str) -> None:
    _, folder = saved()
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load(folder)


def test_old_and_packed_bins_are_refused(saved: Make) -> None:
    _, folder = saved()
    to_bin(folder)
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path)
    with zipfile.ZipFile(path) as whole:
        records = {record: whole.read(record) for record in whole.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for record, content in records.items():
            packed.writestr(record, content)
    with pytest.raises(ValueError, match="is packed, which"):
        load(folder)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"format of torch\.save before 1\.6"):
        load(folder)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="a pickle without the zip file"):
        load(folder)


# ---- LoRA adapters


def adapter_of(base: Path, folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    """An adapter's folder as PEFT saves it."""
    folder.mkdir()
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": str(base)} | settings
    (folder / "adapter_config.json").write_text(json.dumps(values))
    named = {f"base_model.model.{key}": tensor for key, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def pair_of(rows: int, columns: int, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rank, columns), torch.randn(rows, rank)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 1}}, 0.5),
        ({"fan_in_fan_out": True}, 3.0),  # for another kind of layer than BioGPT has
    ],
)
def test_an_adapter_is_merged_into_its_base(
    saved: Make, tmp_path: Path, settings: dict[str, Any], scale: float
) -> None:
    model, base = saved()
    key = "biogpt.layers.0.self_attn.q_proj"
    a, b = pair_of(15, 15)
    lora = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    folder = adapter_of(base, tmp_path / "adapter", lora, **settings)
    merged = load(folder)
    before = logits(model)
    with torch.no_grad():
        model.get_parameter(f"{key}.weight").add_(scale * b @ a)
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-5)
    assert (before - logits(model)).abs().max() > 0.1
    assert size_of(str(folder)) == ((base / "model.safetensors").stat().st_size, False)


def test_an_adapter_of_the_embedding_leaves_the_projection(saved: Make, tmp_path: Path) -> None:
    model, base = saved()
    a, b = torch.randn(2, 40), torch.randn(15, 2)
    lora = {"biogpt.embed_tokens.lora_embedding_A": a, "biogpt.embed_tokens.lora_embedding_B": b}
    merged = load(adapter_of(base, tmp_path / "adapter", lora))
    table = model.biogpt.embed_tokens.weight
    torch.testing.assert_close(merged.biogpt.embed_tokens.weight, table + 3 * (b @ a).T)
    assert torch.equal(merged.output_projection.weight, table)


def test_a_head_of_an_adapter_takes_the_place_of_the_base_s(saved: Make, tmp_path: Path) -> None:
    model, base = saved()
    a, b = pair_of(22, 15)
    score = torch.randn(3, 15)
    lora = {
        "biogpt.layers.1.fc1.lora_A.weight": a,
        "biogpt.layers.1.fc1.lora_B.weight": b,
        "score.weight": score,
    }
    merged = load(adapter_of(base, tmp_path / "adapter", lora), BioGptForSequenceClassification)
    assert merged.config.num_labels == 3
    assert torch.equal(merged.score.weight, score)
    torch.testing.assert_close(
        merged.biogpt.layers[1].fc1.weight, model.biogpt.layers[1].fc1.weight + 3 * b @ a
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora is true, and only plain LoRA is merged"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"r": 4}, "r is 4, but .* has the rank 2"),
        ({"r": 0}, "expected numbers"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"alpha_pattern": {"(a+)+": 1}}, "alpha_pattern is"),
        ({"base_model_name_or_path": None}, "names no base"),
        ({"base_model_name_or_path": "."}, "is no model's folder"),
    ],
)
def test_other_adapters_are_refused_by_name(
    saved: Make, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    _, base = saved()
    a, b = pair_of(15, 15)
    key = "biogpt.layers.0.self_attn.q_proj.lora_"
    lora = {f"{key}A.weight": a, f"{key}B.weight": b}
    with pytest.raises(ValueError, match=message):
        load(adapter_of(base, tmp_path / "adapter", lora, **settings))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"biogpt.layers.0.fc1.lora_A.weight": torch.zeros(2, 15)}, "no pair of lora_A and lora_B"),
        (
            {
                "biogpt.layers.0.fc1.lora_A.weight": torch.zeros(2, 14),
                "biogpt.layers.0.fc1.lora_B.weight": torch.zeros(22, 2),
            },
            "22 × 14, and its base 22 × 15",
        ),
        ({"biogpt.layers.9.fc1.lora_A.weight": torch.zeros(2, 15)}, "which its base does not have"),
        ({"biogpt.layers.0.fc1.lora_magnitude_vector": torch.zeros(2)}, "that no LoRA adapter of BioGPT has"),
    ],
)
def test_an_adapter_of_another_model(
    saved: Make, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    _, base = saved()
    with pytest.raises(ValueError, match=message):
        load(adapter_of(base, tmp_path / "adapter", tensors))


def test_an_adapter_without_its_base(tmp_path: Path) -> None:
    folder = adapter_of(tmp_path / "gone", tmp_path / "adapter", {"a": torch.zeros(1)})
    with pytest.raises(FileNotFoundError, match=r"is a LoRA adapter, and its base .*gone' is not here"):
        load(folder)
