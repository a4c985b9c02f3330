"""The command line, run as a user runs it but within this process."""

import re

import pytest
import torch

from biogpt.cli import main
from biogpt.config import BioGptConfig
from biogpt.generate import GenerationOptions
from biogpt.heads import BioGptForCausalLM
from biogpt.service import TextGenerator
from biogpt.training.vocabulary import count_words, learn_vocabulary

TEXT = ["Aspirin reduces fever in patients .", "The BRCA1 gene repairs DNA in cells ."]


@pytest.fixture
def checkpoint(tmp_path):
    tokenizer = learn_vocabulary(count_words(TEXT * 20), 70)
    torch.manual_seed(0)
    config = BioGptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        initializer_range=0.5,
    )
    folder = tmp_path / "tiny"
    BioGptForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_generate_prints_what_the_generator_writes(checkpoint, capsys):
    arguments = ["--model", str(checkpoint), "--max-new-tokens", "12", "--temperature", "1.5", "--seed", "3"]
    assert main(["generate", "Aspirin reduces", *arguments]) == 0
    options = GenerationOptions(max_new_tokens=12, temperature=1.5, seed=3)
    (expected,) = TextGenerator.from_pretrained(checkpoint).generate("Aspirin reduces", options)
    assert capsys.readouterr().out.rstrip("\n").endswith("Aspirin reduces" + expected.text)


def test_generate_prints_every_beam(checkpoint, capsys):
    arguments = [
        "--model",
        str(checkpoint),
        "--max-new-tokens",
        "5",
        "--num-beams",
        "3",
        "--num-return-sequences",
        "2",
    ]
    assert main(["generate", "Aspirin", *arguments]) == 0
    options = GenerationOptions(max_new_tokens=5, num_beams=3, num_return_sequences=2)
    expected = TextGenerator.from_pretrained(checkpoint).generate("Aspirin", options)
    assert capsys.readouterr().out.splitlines() == ["Aspirin" + completion.text for completion in expected]


def test_score_reports_bits_per_byte(checkpoint, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXT), encoding="utf-8")
    assert main(["score", str(tmp_path / "texts.txt"), "--model", str(checkpoint)]) == 0
    found = re.fullmatch(r"(\d+\.\d{4}) bits per byte on 2 texts of texts\.txt\n", capsys.readouterr().out)
    assert found
    assert 1 < float(found[1]) < 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--model", "no-such-model"], "no model 'no-such-model'"),
        (["generate", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["generate", "x", "--device", "tpu"], "device is 'tpu'"),
        (["score", "nowhere.txt"], "nowhere.txt"),
        (["convert", "nowhere", "out"], "nowhere"),
    ],
)
def test_an_error_is_one_line_that_says_what_was_given(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_prompt_beyond_the_limit_is_refused_before_any_text(checkpoint, capsys):
    assert main(["generate", "gene " * 60, "--model", str(checkpoint), "--max-new-tokens", "5"]) == 1
    out, error = capsys.readouterr()
    assert "48" in error
    assert "gene" not in out
