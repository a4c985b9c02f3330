"""fairseq archives, built here in the paper's format, become folders that ``transformers`` opens."""

import argparse
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from biogpt.checkpoint.convert import convert
from biogpt.checkpoint.pretrained import BioGptForCausalLM

SYMBOLS = ["the", "gen@@", "e", "\u2028", "α@@", "@-@", "ex@@", "madeupword0000", "learned"]
BPE_CODES = "e x 9\nth e</w> 8\ng en 7\n"
ROWS = 4 + len(SYMBOLS)
IDS = torch.tensor([[2, 4, 5, 6, 9]])

Make = Callable[..., Any]


def fairseq_settings(model: nn.Module) -> dict[str, Any]:
    config = model.config
    return {
        "arch": "transformer_lm_gpt2_small",
        "activation_fn": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.2,
        "activation_dropout": 0.0,
        "decoder_embed_dim": config.hidden_size,
        "decoder_ffn_embed_dim": config.intermediate_size,
        "decoder_layers": config.num_hidden_layers,
        "decoder_attention_heads": config.num_attention_heads,
        "decoder_layerdrop": 0.0,
        "decoder_normalize_before": True,
        "decoder_learned_pos": True,
        "no_scale_embedding": False,
        "share_decoder_input_output_embed": config.tie_word_embeddings,
        "max_target_positions": config.max_position_embeddings,
    }


def fairseq_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors under fairseq's keys; a tied projection is stored as well, as fairseq does."""
    renamed = {
        "decoder." + key.removeprefix("biogpt."): tensor.detach().clone()
        for key, tensor in model.state_dict().items()
    }
    return renamed | {"decoder.version": torch.tensor([3.0])}


@pytest.fixture
def archive(tiny_config: Make, lively: Make, tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """``archive(settings=…, tensors=…, old=…, **config changes)``: a model and its fairseq folder.

    ``settings`` and ``tensors`` are laid over the right ones (None takes a key out); ``old`` stores settings
    as fairseq did before 0.11; ``extra`` is stored beside them.
    """

    def build(
        settings: dict[str, Any] | None = None,
        tensors: dict[str, Any] | None = None,
        old: bool = False,
        extra: Any = None,
        symbols: list[str] = SYMBOLS,
        **changes: Any,
    ) -> tuple[Any, Path]:
        model = lively(BioGptForCausalLM, tiny_config(**{"vocab_size": ROWS, "id2label": None} | changes))
        chosen = fairseq_settings(model) | (settings or {})
        chosen = {key: value for key, value in chosen.items() if value is not None}
        state = fairseq_tensors(model) | (tensors or {})
        content = {
            "args": argparse.Namespace(**chosen) if old else None,
            "model": {key: tensor for key, tensor in state.items() if tensor is not None},
            "optimizer_history": [{"optimizer_name": "FairseqAdam", "num_updates": 7}],
            "extra_state": {"epoch": 1, "extra": extra},
        }
        if not old:
            content["cfg"] = {"task": {"_name": "language_modeling"}, "model": chosen}
        folder = tmp_path / "archive"
        folder.mkdir(exist_ok=True)
        torch.save(content, folder / "checkpoint.pt")
        lines = [f"{symbol} {100 - i}\n" for i, symbol in enumerate(symbols)]
        (folder / "dict.txt").write_text("".join(lines), encoding="utf-8")
        (folder / "bpecodes").write_text(BPE_CODES, encoding="utf-8")
        return model, folder

    return build


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_converted_folder_is_the_same_model(archive: Make, tmp_path: Path, old: bool, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model, folder = archive(old=old, tie_word_embeddings=tied)
    convert(folder, tmp_path / "out")
    reference, info = transformers.BioGptForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    torch.testing.assert_close(logits(reference), logits(model), atol=1e-5, rtol=0)
    assert torch.equal(
        logits(BioGptForCausalLM.from_pretrained(tmp_path / "out", device="cpu")), logits(model)
    )
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["max_position_embeddings"] == model.config.max_position_embeddings
    assert config["attention_probs_dropout_prob"] == 0.2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"no_scale_embedding": True}, {"scale_embedding": False}),
        ({"activation_fn": "relu"}, {"hidden_act": "relu"}),
        ({"max_target_positions": None, "tokens_per_sample": 24}, {"max_position_embeddings": 24}),
    ],
)
def test_settings_are_taken_over(
    archive: Make, tmp_path: Path, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    _, folder = archive(settings)
    convert(folder, tmp_path / "out")
    assert expected.items() <= json.loads((tmp_path / "out/config.json").read_text()).items()


def test_vocabulary_and_merges(archive: Make, tmp_path: Path) -> None:
    _, folder = archive()
    convert(folder, tmp_path / "out")
    vocabulary = json.loads((tmp_path / "out/vocab.json").read_text(encoding="utf-8"))
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "the</w>", "gen", "e</w>", "\u2028</w>", "α", "@-@</w>", "ex"]
    assert list(vocabulary) == [*tokens, "madeupword0000</w>", "learned</w>"]
    assert list(vocabulary.values()) == list(range(ROWS))
    assert (tmp_path / "out/merges.txt").read_text() == BPE_CODES


def test_learned_prompt_tokens_follow_the_dictionary(archive: Make, tmp_path: Path) -> None:
    model, folder = archive({"learned_prompt": 9}, vocab_size=ROWS + 9)
    convert(folder, tmp_path / "out")
    vocabulary = json.loads((tmp_path / "out/vocab.json").read_text())
    assert list(vocabulary)[-9:] == [f"learned{i}</w>" for i in range(1, 10)]
    assert torch.equal(
        logits(BioGptForCausalLM.from_pretrained(tmp_path / "out", device="cpu")), logits(model)
    )


def test_original_vocabulary(archive: Make, tmp_path: Path, shared_data: Path) -> None:
    """The ids that ``transformers`` publishes for microsoft/biogpt come out of the converted files."""
    transformers = pytest.importorskip("transformers")
    model, folder = archive(vocab_size=42384)
    for name in ("dict.txt", "bpecodes"):
        (folder / name).write_bytes((shared_data / "biogpt-vocab/biogpt" / name).read_bytes())
    convert(folder, tmp_path / "out")
    tokenizer = transformers.BioGptTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("COVID-19 is")["input_ids"] == [2, 4805, 9, 656, 21]
    reference = transformers.BioGptForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(reference), logits(model), atol=1e-5, rtol=0)


def test_packed_archive(archive: Make, tmp_path: Path) -> None:
    model, folder = archive()
    (folder / "checkpoint.pt").rename(folder / "checkpoint_avg.pt")  # as the fine-tuned ones are named
    with tarfile.open(tmp_path / "packed.tgz", "w:gz") as tar:
        tar.add(folder, "RE-BC5CDR-BioGPT")
    convert(tmp_path / "packed.tgz", tmp_path / "out")
    assert torch.equal(
        logits(BioGptForCausalLM.from_pretrained(tmp_path / "out", device="cpu")), logits(model)
    )
    assert sorted(os.listdir(tmp_path / "out")) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "vocab.json",
    ]


def test_packed_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "packed.tgz", "w:gz") as tar:
        member = tarfile.TarInfo("../../escaped")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"escaped.* outside the destination"):
        convert(tmp_path / "packed.tgz", tmp_path / "a" / "out")
    assert not list(tmp_path.rglob("escaped"))


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_checkpoint_that_would_run_code(archive: Make, tmp_path: Path) -> None:
    _, folder = archive(extra=Harmful(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"is refused: .*\(posix\.mkdir\)"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"decoder_layers": 3}}, "missing biogpt.layers.2.fc1.bias"),
        ({"settings": {"decoder_layers": 1}}, "unexpected biogpt.layers.1.fc1.bias"),
        ({"settings": {"decoder_ffn_embed_dim": 23}}, "fc1.weight (22, 15), expected (23, 15)"),
        ({"settings": {"max_target_positions": 25}}, "embed_positions.weight (26, 15), expected (27, 15)"),
        ({"settings": {"dropout": None}}, "its settings lack dropout"),
        ({"settings": {"max_target_positions": None}}, "its settings lack max_target_positions"),
        ({"settings": {"activation_fn": "tanh"}}, "activation_fn is 'tanh'; expected one of gelu"),
        ({"settings": {"decoder_normalize_before": False}}, "BioGPT is a pre-norm decoder"),
        ({"settings": {"learned_prompt": 2}, "vocab_size": ROWS + 1}, f"has {ROWS + 1} embedding rows"),
        ({"symbols": SYMBOLS[:-1]}, "dict.txt has 8 symbols, expected 9"),
        ({"symbols": [*SYMBOLS[:-1], "the"]}, "repeats 1 symbols"),
        ({"symbols": [*SYMBOLS[:-1], ""]}, "line 9: ' 92'; expected a symbol and its count"),
        (
            {"tensors": {"encoder.layer_norm.bias": torch.zeros(1)}},
            "unexpected key 'encoder.layer_norm.bias'",
        ),
        ({"tensors": {"decoder.embed_tokens.weight": None}}, "is no fairseq language model"),
        ({"tensors": {"decoder.layers.0.fc1.gain": torch.zeros(1)}}, "unexpected biogpt.layers.0.fc1.gain"),
        ({"tensors": {"decoder.layer_norm.weight": None}}, "missing biogpt.layer_norm.weight"),
    ],
)
def test_contradictions_are_refused(
    archive: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _, folder = archive(**changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_missing_and_damaged_files(archive: Make, tmp_path: Path) -> None:
    _, folder = archive()
    out = tmp_path / "out"
    (folder / "bpecodes").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="expected two symbols and a count"):
        convert(folder, out)
    (folder / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:-300])
    with pytest.raises(ValueError, match="cannot be read: it is damaged"):
        convert(folder, out)
    (folder / "checkpoint.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected checkpoint\.pt, .* found none"):
        convert(folder, out)
    (folder / "bpecodes").unlink()
    with pytest.raises(FileNotFoundError, match=r"no bpecodes; .* https://github.com/microsoft/BioGPT"):
        convert(folder, out)
    with pytest.raises(FileNotFoundError, match="expected a folder or a"):
        convert(tmp_path / "nothing", out)
    (tmp_path / "bad.tgz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"refused or damaged; expected a \.tar\.gz"):
        convert(tmp_path / "bad.tgz", out)


def test_damaged_packed_archives_are_named(archive: Make, tmp_path: Path) -> None:
    """However few of its bytes are left, and wherever one is flipped."""
    _, folder = archive()
    path = tmp_path / "packed.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, "BioGPT")
    whole = path.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 0x40]) + whole[i + 1 :] for i in range(40, len(whole), 997)]
    for content in (b"", b"x" * 600, whole[:5], whole[: len(whole) // 2], whole[:-5], *flipped):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"packed\.tgz is refused or damaged"):
            convert(path, tmp_path / "out")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="only a Git LFS pointer"):
        convert(path, tmp_path / "out")


def test_tensors_of_the_wrong_kind_are_named(archive: Make, tmp_path: Path) -> None:
    for wrong, message in ((torch.tensor(1.0), r"has the shape \(\)"), (3, "is int; expected a tensor")):
        _, folder = archive(tensors={"decoder.embed_tokens.weight": wrong})
        with pytest.raises(ValueError, match=rf"decoder\.embed_tokens\.weight'? {message}"):
            convert(folder, tmp_path / "out")
