"""Fine-tuning: what the loss means, that it learns, and that a killed run loses nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from biogpt import (
    BioGptForCausalLM,
    BioGptForTokenClassification,
    BioGptTokenizer,
    EntityRecognizer,
    TextClassifier,
)
from biogpt.cli import main
from biogpt.model.config import BioGptConfig
from biogpt.text.documents import read_documents
from biogpt.training.extending import with_types
from biogpt.training.finetune import Example, FinetuneLoop, _batches, _Dropout, finetune, label_loss
from biogpt.training.labelled import LabelledText
from biogpt.training.objectives import EntityCorpus, EntityObjective, TextObjective
from biogpt.training.options import FinetuneOptions


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny language model to start from."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = BioGptTokenizer.from_pretrained("mini")
    torch.manual_seed(0)
    config = BioGptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BioGptForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two corpora of one kind of sentence: one marks drugs, the other genes."""
    folder = tmp_path_factory.mktemp("corpora")
    random = np.random.default_rng(0)
    drugs, genes = ["aspirin", "insulin", "naloxone"], ["TP53", "BRCA1", "EGFR"]
    verbs = ["inhibits", "binds", "reduces", "raises"]
    for name, marked in (("drugs", drugs), ("genes", genes)):
        lines = []
        for _ in range(60):
            words = [random.choice(drugs), random.choice(verbs), random.choice(genes), "here", "."]
            lines += [f"{word}\t{'B-' + name[:-1].title() if word in marked else 'O'}" for word in words] + [
                ""
            ]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def options(out, base, **changes):
    values = {"epochs": 4, "arithmetic": "float32", "batch_tokens": 256, "device": "cpu", "lr": 5e-3}
    return FinetuneOptions(out=out, model=str(base), **values | changes)


def test_several_right_labels_are_a_marginal_likelihood():
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    p = logits.softmax(dim=1)
    expected = -(torch.log(p[0, 0] + p[0, 2]) + torch.log(p[1, 1])) / 2
    assert label_loss(logits, targets, None, False).item() == pytest.approx(expected.item(), abs=1e-6)
    one = label_loss(logits, targets, torch.tensor([0.0, 2.0, 0.0]), False)
    assert one.item() == pytest.approx(-torch.log(p[1, 1]).item(), abs=1e-6)


def test_an_o_means_none_of_the_types_that_the_corpus_marks(corpora):
    both = [EntityCorpus.read(corpora / f"{name}.tsv") for name in ("drugs", "genes")]
    task = EntityObjective(both, [], {})
    assert task.labels == ("O", "B-Drug", "I-Drug", "B-Gene", "I-Gene")
    assert task._right_labels(("Drug",))[0].tolist() == [1, 0, 0, 1, 1]
    assert task._right_labels(("Drug",))[1].tolist() == [0, 1, 0, 0, 0]
    assert task._right_labels(("Drug", "Gene"))[0].tolist() == [1, 0, 0, 0, 0]


def test_a_tagger_learns_both_types_from_corpora_that_mark_one_each(base, corpora, tmp_path):
    """Cross-entropy on the plain O would teach each corpus to deny what the other marks."""
    both = [EntityCorpus.read(corpora / f"{name}.tsv") for name in ("drugs", "genes")]
    folder = finetune(EntityObjective(both, both, {"passage_copies": 2}), options(tmp_path, base, epochs=6))
    found = EntityRecognizer.from_pretrained(folder, precision="float32")("naloxone raises EGFR here .")
    assert [(entity.label, entity.text) for entity in found] == [("Drug", "naloxone"), ("Gene", "EGFR")]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert all(scores["micro"]["f1"] == 1.0 for scores in metrics["dev"].values())
    assert metrics["options"]["lr"] == 5e-3
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((folder / "config.json").read_text())
    assert config["passage_copies"] == 2
    assert "base_model_name_or_path" not in config  # its decoder was trained, and is here
    assert (folder / "vocab.json").exists()


@pytest.mark.parametrize("editions", [0, 2])
def test_above_a_frozen_decoder_a_word_encoder_learns_what_follows(base, tmp_path, editions):
    """Only the word after "of" tells what the one before it is; the decoder alone cannot know."""
    lines = []
    for count in range(80):
        drug = count % 2
        lines += [
            f"sample{count // 2}\t{'B-Drug' if drug else 'O'}",
            "of\tO",
            f"{'tablets' if drug else 'tissue'}\tO",
            "",
        ]
    path = tmp_path / "samples.tsv"
    path.write_text("\n".join(lines))
    corpus = EntityCorpus.read(path)
    task = EntityObjective([corpus], [corpus], {"word_encoder_size": 32, "read_layers": 1})
    chosen = options(tmp_path / "run", base, epochs=40, frozen_epochs=40, lr=4e-3, batch_tokens=64)
    folder = finetune(task, replace(chosen, editions=editions))
    tagger = EntityRecognizer.from_pretrained(folder, precision="float32")
    assert [entity.text for entity in tagger("sample4 of tablets")] == ["sample4"]
    assert tagger("sample4 of tissue") == []
    before = BioGptForCausalLM.from_pretrained(base, precision="float32").biogpt.state_dict()
    after = tagger.model.biogpt.state_dict()
    for name, weight in before.items():
        assert torch.equal(after[name], weight), name
    assert not [key for key in load_file(folder / "model.safetensors") if key.startswith("biogpt.")]
    assert json.loads((folder / "config.json").read_text())["base_model_name_or_path"] == str(base)
    assert not (folder / "vocab.json").exists()


@pytest.fixture(scope="module")
def drug_tagger(base, corpora, tmp_path_factory):
    """A head with a word encoder that finds drugs."""
    corpus = EntityCorpus.read(corpora / "drugs.tsv")
    task = EntityObjective([corpus], [corpus], {"word_encoder_size": 8, "read_layers": 1})
    out = tmp_path_factory.mktemp("drug-tagger")
    return finetune(task, options(out, base, epochs=8, frozen_epochs=8, lr=2e-2, batch_tokens=64))


@pytest.fixture
def genes_and_verbs(corpora, tmp_path):
    """The corpus of genes, in which verbs are marked, too."""
    path = tmp_path / "both.tsv"
    text = (corpora / "genes.tsv").read_text()
    path.write_text(re.sub(r"^(inhibits|binds|reduces|raises)\tO$", r"\1\tB-Verb", text, flags=re.MULTILINE))
    return path


TEXT = "naloxone raises EGFR here ."


def parts_of(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_tagger_is_extended_and_its_own_types_stay_to_the_bit(drug_tagger, genes_and_verbs, tmp_path):
    arguments = ["train", "ner", "--model", str(drug_tagger), "--extend", "--out", str(tmp_path / "run")]
    files = ["--train", str(genes_and_verbs), "--dev", f"{genes_and_verbs}:Gene=Gene"]
    numbers = ["--epochs", "8", "--lr", "0.02", "--arithmetic", "float32", "--batch-tokens", "64"]
    assert main([*arguments, *files, *numbers, "--auxiliary", "Verb", "--alone", "1"]) == 0
    folder = tmp_path / "run" / "best"
    before, after = (EntityRecognizer.from_pretrained(each) for each in (drug_tagger, folder))
    assert after.model.config.labels == ("O", "B-Drug", "I-Drug", "B-Gene", "I-Gene")
    [genes] = after.batch([TEXT], types=["Gene"])
    assert [(entity.label, entity.text) for entity in genes] == [("Gene", "EGFR")]
    drugs = after.batch([TEXT], types=["Drug"])
    assert [entity.text for entity in drugs[0]] == ["naloxone"]
    assert drugs == before.batch([TEXT]), "with the very same scores"
    old, new = parts_of(drug_tagger), parts_of(folder)
    changed = {name for name in old if name not in new or not torch.equal(new[name], old[name])}
    assert changed == {"classifier.weight", "classifier.bias", "chain.transitions"}, "which have grown"
    assert (
        json.loads((folder / "metrics.json").read_text())["dev"][f"{tmp_path.name}/both"]["micro"]["f1"] == 1
    )


def test_types_that_a_tagger_has_are_learned_on(drug_tagger, corpora, tmp_path):
    corpus = EntityCorpus.read(corpora / "drugs.tsv")
    head = BioGptForTokenClassification.from_pretrained(drug_tagger, precision="float32")
    task = EntityObjective([corpus], [corpus], {}, extends=head)
    rate = 1e-6  # at which nothing is learned that was not known before
    folder = finetune(task, options(tmp_path, drug_tagger, epochs=1, lr=rate))
    old, new = parts_of(drug_tagger), parts_of(folder)
    assert old.keys() == new.keys()
    for name in old:
        torch.testing.assert_close(new[name], old[name], atol=1e-3, rtol=1e-3)


def test_what_a_tagger_cannot_be_extended_by_is_refused(
    base, drug_tagger, corpora, genes_and_verbs, tmp_path
):
    drugs, both = EntityCorpus.read(corpora / "drugs.tsv"), EntityCorpus.read(genes_and_verbs)
    genes = EntityCorpus.read(corpora / "genes.tsv")
    plain = BioGptForTokenClassification.from_pretrained(base, labels=("O", "B-Drug"))
    with pytest.raises(ValueError, match="labels tokens without a word encoder"):
        EntityObjective([genes], [], {}, extends=plain)
    head = BioGptForTokenClassification.from_pretrained(drug_tagger, precision="float32")
    with pytest.raises(ValueError, match="Gene: read by one layer with Verb; give texts in which all"):
        EntityObjective([genes], [], {}, extends=with_types(head, ["Gene", "Verb"]))
    with pytest.raises(ValueError, match="all types are auxiliary, Drug"):
        EntityObjective([drugs], [], {}, auxiliary=["Drug"])
    with pytest.raises(ValueError, match="Cell"):
        EntityObjective([both], [], {}, auxiliary=["Cell"])
    with pytest.raises(ValueError, match="Verb"):
        EntityObjective([both], [both], {}, auxiliary=["Verb"])


def test_types_that_some_corpus_annotates_together_share_a_reader(corpora):
    types = [("Gene",), ("Chemical", "Disease"), ("Species",), ("Disease",), ("Gene", "Cell"), ("Cell",)]
    annotated = [replace(EntityCorpus.read(corpora / "genes.tsv"), types=own) for own in types]
    task = EntityObjective(annotated, [], {"word_encoder_size": 4})
    assert {frozenset(group) for group in task.settings["word_encoder_groups"]} == {
        frozenset({"Chemical", "Disease"}),
        frozenset({"Species"}),
        frozenset({"Gene", "Cell"}),
    }
    assert "word_encoder_groups" not in EntityObjective(annotated, [], {}).settings


def test_renamed_types_leave_the_others_unannotated(corpora):
    corpus = EntityCorpus.read(corpora / "genes.tsv", {"Gene": "Protein"})
    assert corpus.types == ("Protein",)
    assert {span.label for text in corpus.texts for span in text.spans} == {"Protein"}
    with pytest.raises(ValueError, match=r"no entity of the types \['X'\]"):
        EntityCorpus.read(corpora / "genes.tsv", {"Y": "X"})


def test_a_share_of_a_corpus_is_drawn_anew_for_each_epoch(corpora):
    tokenizer = BioGptTokenizer.from_pretrained("mini")
    config = BioGptConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64)
    corpus = EntityCorpus.read(corpora / "drugs.tsv", share=0.25)
    task = EntityObjective([corpus], [], {})
    epochs = [task.examples(tokenizer, config, np.random.default_rng(seed)) for seed in range(30)]
    words = [sum(len(example.reads) for example in epoch) for epoch in epochs]
    assert 0.15 < np.mean(words) / (60 * 5) < 0.35
    assert len(set(words)) > 5
    with pytest.raises(ValueError, match=r"the share of .*drugs.tsv is 1.5; expected more than 0, up to 1"):
        EntityCorpus.read(corpora / "drugs.tsv", share=1.5)


def test_batches_hold_every_example_once_and_like_lengths_together(base, tmp_path):
    random = np.random.default_rng(0)
    examples = [Example([7] * int(n), [0], np.ones((1, 2))) for n in random.integers(1, 200, 500)]
    batches = list(_batches(examples, options(tmp_path, base), random))
    assert sorted(id(e) for batch in batches for e in batch) == sorted(id(e) for e in examples)
    taken = [max(len(e.ids) for e in batch) * len(batch) for batch in batches]
    assert max(taken) <= 256
    assert sum(len(e.ids) for e in examples) / sum(taken) > 0.9  # little is padding


def test_dropout_drops_its_share_anew_each_time_and_keeps_the_mean():
    torch.manual_seed(0)
    dropout, ones = _Dropout(0.1), torch.ones(300, 401)
    first, second = dropout(ones), dropout(ones)
    assert (first == 0).float().mean().item() == pytest.approx(26 / 256, abs=0.003)
    assert first.mean().item() == pytest.approx(1, abs=0.004)
    assert ((first == 0) & (second == 0)).float().mean().item() == pytest.approx((26 / 256) ** 2, abs=0.002)
    assert [(first[:, i::8] == 0).float().mean().item() for i in range(8)] == pytest.approx(
        [0.1] * 8, abs=0.01
    )
    assert torch.equal(dropout.eval()(ones), ones)


LABELLED = [
    LabelledText("Tumours invade and spread.", ("spread",)),
    LabelledText("Vessels grow towards tumours.", ("vessels",)),
    LabelledText("Vessels grow and tumours invade and spread.", ("spread", "vessels")),
    LabelledText("We thank the patients.", ()),
] * 8


@pytest.mark.parametrize(
    "changes", [{}, {"balanced": True, "accumulation": 2, "gradient_checkpointing": True}]
)
def test_several_labels_a_text_are_learned(base, tmp_path, changes):
    folder = finetune(TextObjective(LABELLED, LABELLED, True), options(tmp_path, base, epochs=24, **changes))
    classifier = TextClassifier.from_pretrained(folder, precision="float32")
    assert classifier.multi_label
    for text in LABELLED[:4]:
        assert {s.label for s in classifier(text.text) if s.score > 0.5} == set(text.labels)


def test_roles_of_sentences_through_the_command_line(base, tmp_path):
    abstract = "###1\nAIM\tWe asked.\nMETHOD\tWe counted cells.\nRESULT\tCells died.\n\n"
    (tmp_path / "a.txt").write_text(abstract * 20)
    command = ["train", "classify", "--sentences", "--model", str(base), "--device", "cpu", "--lr", "5e-3"]
    files = [
        "--train",
        str(tmp_path / "a.txt"),
        "--dev",
        str(tmp_path / "a.txt"),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*command, *files, "--epochs", "10", "--arithmetic", "float32"]) == 0
    classifier = TextClassifier.from_pretrained(tmp_path / "run" / "best", precision="float32")
    roles = classifier.sentences("We asked. We counted cells. Cells died.")
    assert [role.label for role in roles] == ["AIM", "METHOD", "RESULT"]


def test_roles_that_hang_on_what_follows_need_a_sentence_encoder(base, tmp_path):
    """The same first sentence is an aim before one sentence, and background before another."""
    numbers = range(12)
    (tmp_path / "a.txt").write_text(
        "".join(
            f"###{n}a\nAIM\tWe asked {n}.\nMETHOD\tCells grew.\n\n"
            f"###{n}b\nBACKGROUND\tWe asked {n}.\nRESULT\tMice died.\n\n"
            for n in numbers
        )
    )
    command = ["train", "classify", "--sentences", "--model", str(base), "--device", "cpu", "--lr", "1e-2"]
    files = ["--train", str(tmp_path / "a.txt"), "--dev", str(tmp_path / "a.txt")]
    often = ["--epochs", "25", "--frozen-epochs", "25", "--editions", "1", "--arithmetic", "float32"]
    encoder = ["--sentence-encoder", "16", "--pooling", "mean", "--read-layers", "1"]
    accuracy = {}
    for name, more in (("plain", []), ("encoder", encoder)):
        assert main([*command, *files, *often, *more, "--out", str(tmp_path / name)]) == 0
        accuracy[name] = json.loads((tmp_path / name / "best/metrics.json").read_text())["dev"]["accuracy"]
    assert accuracy["plain"] <= 0.75  # half of the first sentences at best
    assert accuracy["encoder"] == 1
    best = tmp_path / "encoder" / "best"
    config = json.loads((best / "config.json").read_text())
    assert (config["sentence_encoder_size"], config["label_chain"], config["pooling"]) == (
        16,
        True,
        "mean",
    )
    assert not [key for key in load_file(best / "model.safetensors") if key.startswith("biogpt.")]
    classifier = TextClassifier.from_pretrained(best, precision="float32")
    for second, roles in (("Cells grew.", ["AIM", "METHOD"]), ("Mice died.", ["BACKGROUND", "RESULT"])):
        assert [role.label for role in classifier.sentences(f"We asked 5. {second}")] == roles
    assert (
        main([*command, *files, "--out", str(tmp_path / "b"), "--sentence-encoder", "4", "--balanced"]) == 1
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_calibration_through_the_command_line(base, tmp_path, capsys, multi_label):
    """A head too sure of itself, on labels of which a third are wrong, is told to be less so."""
    words = {"spread": "Tumours invade and spread.", "vessels": "Vessels grow towards tumours."}
    rows = [f"{label}\t{text}" for label, text in words.items()]
    (tmp_path / "train.tsv").write_text("\n".join(rows * 8) + "\n")
    wrong = [f"{label}\t{text}" for label, text in zip(words, reversed(words.values()), strict=True)]
    (tmp_path / "dev.tsv").write_text("\n".join(rows * 6 + wrong * 3) + "\n")
    kind = ["--multi-label"] if multi_label else []
    train = ["train", "classify", "--model", str(base), "--out", str(tmp_path / "run"), "--device", "cpu"]
    often = ["--epochs", "32", "--lr", "5e-3", "--arithmetic", "float32"]
    assert main([*train, "--train", str(tmp_path / "train.tsv"), *often, *kind]) == 0
    best = tmp_path / "run" / "best"
    texts = list(words.values())
    before = TextClassifier.from_pretrained(best, precision="float32").batch(texts)
    fit = ["train", "calibrate", str(tmp_path / "dev.tsv"), "--device", "cpu", "--precision", "float32"]
    shares = []
    for _ in range(2):  # done again, it starts from what the head says without the first calibration
        capsys.readouterr()
        assert main([*fit, "--model", str(best), *kind]) == 0
        said = re.fullmatch(
            r"temperature (\S+?)(?:, bias (\S+))?; .* (\S+) before, (\S+) after\n", capsys.readouterr().out
        )
        assert float(said[3]) > 0.1 > 0.05 > float(said[4])
        assert bool(said[2]) == multi_label
        config = json.loads((best / "config.json").read_text())
        assert config["score_temperature"] == float(said[1]) > 1.2
        after = TextClassifier.from_pretrained(best, precision="float32").batch(texts)
        shares.append([result.scores[0].score for result in after])
    assert shares[0] == pytest.approx(shares[1], abs=1e-3)
    assert shares[0] == pytest.approx([2 / 3] * 2, abs=0.05)
    for one, other in zip(before, after, strict=True):
        assert [score.label for score in one.scores] == [score.label for score in other.scores]
    assert main(["evaluate", "classify", str(tmp_path / "dev.tsv"), "--model", str(best), *kind]) == 0
    assert float(re.search(r"calibration error (\S+)", capsys.readouterr().out)[1]) < 0.05
    assert main([*fit, "--model", "mini-hoc-of-nobody", *kind]) == 1
    (tmp_path / "sure.tsv").write_text("\n".join(rows) + "\n")
    fit[2] = str(tmp_path / "sure.tsv")
    kept = (best / "config.json").read_bytes()
    assert main([*fit, "--model", str(best), *kind]) == 1
    assert "calibrate on more texts that it was not trained on" in capsys.readouterr().err
    assert (best / "config.json").read_bytes() == kept


@pytest.mark.slow
def test_a_tagger_too_sure_of_itself_is_calibrated(base, corpora, tmp_path, capsys):
    """On sentences of which a third do not mark the drug that it finds."""
    train = ["train", "ner", "--model", str(base), "--out", str(tmp_path / "run"), "--device", "cpu"]
    often = [
        "--epochs",
        "60",
        "--batch-tokens",
        "128",
        "--lr",
        "5e-3",
        "--arithmetic",
        "float32",
        "--word-encoder",
        "8",
    ]
    assert main([*train, "--train", str(corpora / "drugs.tsv"), *often]) == 0
    best = tmp_path / "run" / "best"
    sentence = "naloxone\t{tag}\nraises\tO\nEGFR\tO\nhere\tO\n.\tO\n\n"
    dev = tmp_path / "dev.tsv"
    dev.write_text(sentence.format(tag="B-Drug") * 6 + sentence.format(tag="O") * 3)
    text = "naloxone raises EGFR here ."
    [before] = EntityRecognizer.from_pretrained(best, precision="float32")(text)
    fit = [
        "train",
        "calibrate",
        "--entities",
        "--model",
        str(best),
        "--device",
        "cpu",
        "--precision",
        "float32",
    ]
    shares = []
    for _ in range(2):  # done again, it starts from what the head says without the first calibration
        capsys.readouterr()
        assert main([*fit, str(dev)]) == 0
        said = re.fullmatch(r"temperature (\S+?); .* (\S+) before, (\S+) after\n", capsys.readouterr().out)
        assert float(said[2]) > 0.2 > 0.05 > float(said[3])
        assert json.loads((best / "config.json").read_text())["score_temperature"] == float(said[1]) > 1.2
        [after] = EntityRecognizer.from_pretrained(best, precision="float32")(text)
        assert replace(after, score=0.0) == replace(before, score=0.0)
        shares.append(after.score)
    assert shares == pytest.approx([2 / 3] * 2, abs=0.05)
    assert main(["evaluate", "ner", str(dev), "--model", str(best), "--precision", "float32"]) == 0
    assert float(re.search(r"calibration error (\S+)", capsys.readouterr().out)[1]) < 0.05
    kept = (best / "config.json").read_bytes()
    assert main([*fit, str(corpora / "drugs.tsv")]) == 1
    assert "all or none are right" in capsys.readouterr().err
    dev.write_text(sentence.format(tag="B-Drug") + sentence.format(tag="O") * 30)
    assert main([*fit, str(dev)]) == 1
    assert "the best temperature for these 31 entities is 10 or beyond" in capsys.readouterr().err
    assert main([*fit[:4], "mini-hoc-of-nobody", str(dev)]) == 1
    assert (best / "config.json").read_bytes() == kept


def test_training_stops_when_the_dev_score_no_longer_rises(base, tmp_path):
    finetune(TextObjective(LABELLED, LABELLED, True), options(tmp_path, base, epochs=40, patience=2))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    best = max(log, key=lambda entry: entry["dev"])
    assert len(log) == best["epoch"] + 2 < 40


def test_rates_fall_from_the_head_to_the_embeddings(base, tmp_path):
    task = TextObjective(LABELLED, [], True)
    loop = FinetuneLoop(task, options(tmp_path, base, layer_decay=0.5, lr=1.0, muon_lr=0.25), {})
    rate = {
        id(parameter): group["lr"]
        for optimizer in loop.run.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    named = {name: rate[id(parameter)] for name, parameter in loop.model.named_parameters()}
    assert len(named) == len(rate)
    assert named["score.weight"] == named["biogpt.layers.1.fc1.bias"] == 1.0
    assert named["biogpt.layers.0.fc1.bias"] == 0.5
    assert named["biogpt.layers.0.fc1.weight"] == 0.125
    assert named["biogpt.embed_tokens.weight"] == 0.25


FROZEN = ("--frozen-epochs", "3", "--editions", "2", "--word-encoder", "8", "--read-layers", "1")


def words_of(base, corpora, out, more):
    files = [str(corpora / "drugs.tsv"), str(corpora / "genes.tsv")]
    arguments = ["train", "ner", "--model", str(base), "--out", str(out), "--train", *files, "--dev", *files]
    numbers = ["--epochs", "3", "--batch-tokens", "64", "--arithmetic", "float32", "--minutes-between", "0"]
    return [*arguments, *numbers, "--device", "cpu", *more]


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("more", [(), FROZEN], ids=["trained", "frozen"])
def test_a_run_killed_in_the_middle_of_an_epoch_ends_as_if_it_had_not_been(base, corpora, tmp_path, more):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(words_of(base, corpora, whole, more)) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "biogpt", *words_of(base, corpora, killed, more)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # until some batches of the second epoch are done
        if (killed / "state.pt").exists():
            progress = torch.load(killed / "state.pt", weights_only=True)["progress"]
            if progress["epoch"] == 1 and progress["batch"] > 1:
                break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    log = (killed / "log.jsonl").read_text().splitlines()
    assert len(log) < 3
    assert main(words_of(base, corpora, killed, more)) == 0
    ours, theirs = (load_file(folder / "best" / "model.safetensors") for folder in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_texts_that_do_not_have_one_label_each_are_refused_before_training():
    """A text without a right label has an infinite loss, which would show only after the first batch."""
    with pytest.raises(ValueError, match="16 texts have no label or several"):
        TextObjective(LABELLED, [], False)
    with pytest.raises(ValueError, match="expected at least two"):
        TextObjective(LABELLED[:1], [], False)


def test_labels_that_only_the_dev_texts_have_are_refused_before_training():
    new = [replace(LABELLED[0], labels=("unheard",))]
    for multi_label in (False, True):
        with pytest.raises(ValueError, match="the texts to score on have unheard"):
            TextObjective([one for one in LABELLED if len(one.labels) == 1 or multi_label], new, multi_label)


def test_a_checkpoint_with_a_word_encoder_starts_another_head(tmp_path):
    model = BioGptForTokenClassification.from_pretrained("mini-ner", labels=["O", "B-Drug", "I-Drug"])
    assert (model.config.word_encoder_size, model.config.word_encoder_groups) == (0, ())
    kept = BioGptForTokenClassification.from_pretrained("mini-ner", precision="float32").biogpt.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in model.biogpt.state_dict().items())


@pytest.mark.parametrize("part", [0, 0.5, 0.999])
def test_a_damaged_state_is_refused_by_name(base, tmp_path, part):
    task = TextObjective(LABELLED, [], True)
    finetune(task, options(tmp_path, base, epochs=1))
    state = tmp_path / "state.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(
        ValueError, match=r"state\.pt is damaged or cut short: delete it to begin anew, or choose"
    ):
        finetune(task, options(tmp_path, base, epochs=1))


def test_a_state_of_something_else_is_refused(base, tmp_path):
    torch.save({"model": {}}, tmp_path / "state.pt")
    with pytest.raises(
        ValueError,
        match=r"state\.pt is no state of such a run, or one that an earlier version began: expected settings",
    ):
        finetune(TextObjective(LABELLED, [], True), options(tmp_path, base, epochs=1))


def test_a_full_disk_leaves_the_state_of_before(base, tmp_path, full_disk):
    task = TextObjective(LABELLED, [], True)
    finetune(task, options(tmp_path, base, epochs=1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    loop = FinetuneLoop(task, options(tmp_path, base, epochs=1), {})
    with full_disk(200):  # what a head writes above an unchanged decoder is not much more
        with pytest.raises(OSError, match=r"^state\.pt could not be written to .*File too large.*is kept$"):
            loop.run.save_state()
        with pytest.raises(
            OSError, match=r"^model\.safetensors, config\.json could not be written to .*best"
        ):
            loop.score()
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} == {tmp_path / "log.jsonl"}


def test_weights_that_diverge_in_the_last_step_are_not_saved(base, tmp_path):
    """The loss of a step is that of the weights before it."""
    with pytest.raises(
        FloatingPointError, match="the weights are not finite in half precision after 1 batches"
    ):
        finetune(
            TextObjective(LABELLED, [], True),
            options(tmp_path, base, lr=1e20, warmup=0.0, epochs=1, batch_tokens=10**6),
        )
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize("name", ["a.pubtator", "a.txt", "a.PubTator.txt"])
def test_pubtator_is_known_as_everywhere_else(tmp_path, name):
    """Once ``ner`` went by the content and ``train ner`` by the name."""
    path = tmp_path / name
    path.write_text("\ufeff1|t|Aspirin helps.\n1|a|It does.\n1\t0\t7\tAspirin\tDrug\n", encoding="utf-8")
    assert [document.text for document in read_documents(path)] == ["Aspirin helps. It does."]
    (text,) = EntityCorpus.read(path).texts
    assert text.text == "Aspirin helps. It does."
    assert [span.label for span in text.spans] == ["Drug"]


def test_a_folder_of_another_run_and_wrong_options_are_refused(base, corpora, tmp_path):
    task = TextObjective(LABELLED, [], True)
    finetune(task, options(tmp_path, base, epochs=1))
    with pytest.raises(ValueError, match=r"another run: seed was 0, now 1"):
        finetune(task, options(tmp_path, base, epochs=1, seed=1))
    renamed = [replace(one, labels=tuple(label + "s" for label in one.labels)) for one in LABELLED]
    with pytest.raises(ValueError, match="another run: labels was"):
        finetune(TextObjective(renamed, [], True), options(tmp_path, base, epochs=1))
    for name, value in (
        ("batch_tokens", 0),
        ("lr", float("nan")),
        ("muon_lr", -1.0),
        ("patience", -1),
        ("seed", -1),
    ):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            options(tmp_path, base, **{name: value})
    with pytest.raises(ValueError, match="arithmetic is 'int8'"):
        options(tmp_path, base, arithmetic="int8")
    with pytest.raises(ValueError, match="epochs is 0"):
        options(tmp_path, base, epochs=0)
    with pytest.raises(ValueError, match="dropout is 1"):
        options(tmp_path, base, dropout=1.0)
    with pytest.raises(FloatingPointError, match="the loss is"):
        finetune(task, options(tmp_path / "b", base, lr=1e20, warmup=0.0))


def test_the_reported_loss_is_that_of_the_batches(base, tmp_path):
    """Smoothed from 0 on, it would be a seventh of it after eight batches."""
    chosen = options(tmp_path, base, epochs=1, lr=1e-12, muon_lr=0.0, dropout=0.0, batch_tokens=64)
    finetune(TextObjective(LABELLED, [], True), chosen)
    (entry,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert entry["loss"] == pytest.approx(np.log(2), rel=0.1)


def test_padding_is_not_seen_where_layers_look_both_ways(base, corpora, tmp_path):
    """The loss of a batch is the mean over its rows, each by itself without padding; so is its gradient."""
    corpus = EntityCorpus.read(corpora / "drugs.tsv")
    objective = EntityObjective([corpus], [], {"bidirectional_layers": 1})
    loop = FinetuneLoop(objective, options(tmp_path, base, dropout=0.0), {})
    with torch.no_grad():
        for parameter in loop.model.biogpt.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)  # attention is nearly uniform otherwise
    targets = np.eye(3, dtype=np.float32)
    short = Example([2, *range(100, 107)], [3, 6], targets[[0, 1]])
    long = Example([2, *range(200, 231)], [5, 20, 31], targets[[2, 0, 1]])
    assert (len(short.ids), len(long.ids)) == (8, 32)  # multiples of what rows are padded to

    def loss_and_gradient(batch):
        loop.model.zero_grad()
        loss = loop.loss(batch)
        loss.backward()
        return loss.item(), loop.model.biogpt.embed_tokens.weight.grad.clone()

    together, gradient = loss_and_gradient([short, long])
    (first, first_gradient), (second, second_gradient) = loss_and_gradient([short]), loss_and_gradient([long])
    assert together == pytest.approx((2 * first + 3 * second) / 5, abs=1e-5)
    expected = (2 * first_gradient + 3 * second_gradient) / 5
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_label_weights_are_where_the_model_is(base, tmp_path):
    """On a GPU, weights left on the CPU ended a run with --balanced at its first batch."""
    objective = TextObjective(LABELLED, [], True)
    loop = FinetuneLoop(objective, options(tmp_path, base, balanced=True), {})
    examples = objective.examples(loop.run.tokenizer, loop.model.config, np.random.default_rng(0))
    assert loop.label_weights(examples).tolist() == pytest.approx([1.0, 1.0])  # each in half of the texts
    loop.device = torch.device("meta")
    assert loop.label_weights(examples).device.type == "meta"


def test_scaled_gradients_pass_by_a_frozen_decoder(base, tmp_path):
    """float16 scales the loss; the scaler refused the optimizer of matrices that had no gradient."""
    chosen = options(tmp_path, base, arithmetic="float16", epochs=2, frozen_epochs=1, batch_tokens=512)
    folder = finetune(TextObjective(LABELLED, [], True), chosen)
    after = load_file(folder / "model.safetensors")
    before = load_file(base / "model.safetensors")
    name = "biogpt.layers.0.fc1.weight"
    assert not torch.equal(after[name].float(), before[name].half().float())  # learned in the second epoch


def test_the_most_dropout_there_can_be_keeps_something():
    torch.manual_seed(0)
    dropped = _Dropout(0.999)(torch.ones(256, 400))
    assert dropped.isfinite().all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.2)


def test_an_entity_with_the_last_space_of_its_text_keeps_its_sentence(tmp_path):
    path = tmp_path / "a.jsonl"
    entity = {"start": 11, "end": 19, "label": "Drug"}
    path.write_text(json.dumps({"text": "It was so. Aspirin ", "entities": [entity]}))
    (document,) = EntityCorpus.read(path).documents
    spans = [span for (sentence,) in document for span in sentence.spans]
    assert [sentence.text for (sentence,) in document] == ["It was so.", " Aspirin "]
    assert [(span.start, span.end) for span in spans] == [(1, 8)]  # the reader leaves the space out
