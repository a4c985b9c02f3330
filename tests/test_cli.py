"""The command line, run as a user runs it but within this process."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

import biogpt
from biogpt.checkpoint.hub import EMBEDDED, find
from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptTokenizer,
)
from biogpt.cli import COMMANDS, Command, main
from biogpt.generation.options import GenerationOptions
from biogpt.model.config import BioGptConfig
from biogpt.serving.text_generator import TextGenerator
from biogpt.tasks.classification import TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.text.documents import read_documents
from biogpt.text.export import entities_as
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


def modules_after(*arguments):
    """Names of the modules that a command has loaded when it ends."""
    script = (
        "import sys\nfrom biogpt.cli import COMMANDS, Command, main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('modules', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=EMBEDDED.parents[1]
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("modules")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["nonsense"], []], ids=str)
def test_the_list_of_commands_loads_nothing_heavy(arguments):
    heavy = {"torch", "numpy", "matplotlib", "gradio", "tqdm", "safetensors", "tokenizers", "transformers"}
    assert modules_after(*arguments) & heavy == set()


@pytest.mark.parametrize(
    ("arguments", "packages"),
    [
        (["generate", "x", "--max-new-tokens", "1"], {"training", "tasks", "bench", "ui"}),
        (["ner", "Aspirin helps"], {"training", "serving", "bench", "ui"}),
        (["classify", "Aspirin helps"], {"training", "bench", "ui"}),
        (["score", "--help"], {"serving", "tasks", "bench", "ui"}),
        (["convert", "--help"], {"training", "serving", "tasks", "bench", "ui"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_imports_no_more_than_it_needs(arguments, packages):
    loaded = modules_after(*arguments)
    assert "torch" in loaded, "it has not come to its work"
    assert {"matplotlib", "gradio", "transformers"} & loaded == set()
    assert {f"biogpt.{package}" for package in packages} & loaded == set()


def test_every_command_has_its_module_and_help(capsys):
    names = [
        [name, *task]
        for name, command in COMMANDS.items()
        for task in ([[]] if isinstance(command, Command) else [[task] for task in command.tasks])
    ]
    assert len(names) == 13
    for words in names:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: biogpt {' '.join(words)} ")


def test_public_names_are_listed_imported_when_asked_for_and_no_others():
    assert {"TextGenerator", "GenerationOptions", "BioGptConfig"} <= set(dir(biogpt))
    for name in biogpt.__all__:
        assert getattr(biogpt, name).__name__.endswith(name.removeprefix("BioGpt"))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        biogpt.Nonsense  # noqa: B018


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


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """A tagger and a classifier with heads drawn at random, loud enough to find something."""
    folder = tmp_path_factory.mktemp("heads")
    tokenizer = BioGptTokenizer.from_pretrained("mini")
    torch.manual_seed(0)
    for head, labels in (
        (BioGptForTokenClassification, ["O", "B-Gene", "I-Gene", "B-Disease", "I-Disease"]),
        (BioGptForSequenceClassification, ["AIM", "RESULT"]),
    ):
        model = head.from_pretrained("mini", labels=labels, precision="float32")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("biogpt."):
                    parameter.mul_(10)
        model.save_pretrained(folder / head.__name__, merge=True)
        tokenizer.save_pretrained(folder / head.__name__)
    return folder


TEXTS = "TP53 was lost.\nAspirin helped patients with colorectal cancer.\n"


def test_entities_of_a_file_in_each_format(heads, tmp_path, capsys):
    model = str(heads / "BioGptForTokenClassification")
    texts, out = tmp_path / "a.txt", tmp_path / "out"
    texts.write_text(TEXTS)
    found = EntityRecognizer.from_pretrained(model).batch(TEXTS.splitlines())
    assert any(found)
    for kind in ("json", "jsonl", "csv", "brat", "pubtator"):
        assert main(["ner", "--file", str(texts), "--model", model, "--format", kind, "--out", str(out)]) == 0
        assert out.read_bytes() == entities_as(kind, read_documents(texts), found)
    assert main(["ner", "--file", str(texts), "--model", model]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["id", "label", "start", "end", "score", "text"]
    assert len(table) == 1 + sum(map(len, found))
    assert (
        main(["ner", TEXTS, "--model", model, "--types", "Gene", "--min-score", "0.2", "--format", "json"])
        == 0
    )
    (one,) = json.loads(capsys.readouterr().out)
    assert all(each["label"] == "Gene" and each["score"] >= 0.2 for each in one["entities"])


def test_labels_and_roles_of_texts(heads, tmp_path, capsys):
    model = str(heads / "BioGptForSequenceClassification")
    assert main(["classify", TEXTS, "--model", model, "--format", "json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert sum(each["score"] for each in one["labels"]) == pytest.approx(1, abs=1e-5)
    assert main(["classify", TEXTS, "--model", model, "--sentences", "--format", "jsonl"]) == 0
    roles = json.loads(capsys.readouterr().out)["sentences"]
    assert [role["text"] for role in roles] == TEXTS.splitlines()
    assert main(["classify", TEXTS, "--labels", "cancer", "diabetes"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1] == "cancer"


def test_heads_are_scored_on_labelled_files(heads, tmp_path, capsys):
    tagged, labelled, roles = (tmp_path / name for name in ("a.tsv", "b.tsv", "c.txt"))
    tagger = str(heads / "BioGptForTokenClassification")
    found = EntityRecognizer.from_pretrained(tagger)("TP53 was lost .")
    assert found
    at = dict(zip([0, 5, 9, 14], ("TP53", "was", "lost", "."), strict=True))
    tags = {start: "O" for start in at}
    for entity in found:
        inside = [start for start in at if entity.start <= start < entity.end]
        tags |= {start: f"{'I' if start > entity.start else 'B'}-{entity.label}" for start in inside}
    tagged.write_text("".join(f"{at[start]}\t{tag}\n" for start, tag in tags.items()))
    assert main(["evaluate", "ner", str(tagged), "--model", tagger]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["micro", "1.0", "1.0", "1.0", str(len(found))]

    classifier = str(heads / "BioGptForSequenceClassification")
    first = TextClassifier.from_pretrained(classifier)("Aspirin helped.")[0].label
    labelled.write_text(f"{first}\tAspirin helped.\n")
    assert main(["evaluate", "classify", str(labelled), "--model", classifier]) == 1
    assert "expected at least two" in capsys.readouterr().err
    other = {"AIM": "RESULT", "RESULT": "AIM"}[first]
    labelled.write_text(f"{first}\tAspirin helped.\n{other}\tAspirin helped.\n")
    assert main(["evaluate", "classify", str(labelled), "--model", classifier]) == 0
    assert capsys.readouterr().out.startswith("accuracy 0.5000\n")
    roles.write_text("###1\nAIM\tWe asked.\nODD\tWe saw.\n")
    assert main(["evaluate", "classify", "--sentences", str(roles), "--model", classifier]) == 1
    assert "['ODD']; the model knows AIM, RESULT" in capsys.readouterr().err
    tagged.write_text("TP53\tB-Protein\n")
    assert main(["evaluate", "ner", str(tagged), "--model", tagger]) == 1
    assert (
        "include ['Protein']; the model knows Gene, Disease; FILE:old=New renames" in capsys.readouterr().err
    )
    assert main(["evaluate", "ner", f"{tagged}@1.0:Protein=Gene", "--model", tagger]) == 0


def test_entities_of_several_parts_are_refused_where_that_is_asked_for(heads, tmp_path, capsys):
    path = tmp_path / "a.pubtator"
    path.write_text("1|t|Breast and ovarian cancer.\n1\t0;19\t6;25\tBreast cancer\tDisease\n")
    model = ["--model", str(heads / "BioGptForTokenClassification")]
    assert main(["evaluate", "ner", str(path), *model]) == 0
    capsys.readouterr()
    out = ["--out", str(tmp_path / "run")]
    for command in (["evaluate", "ner", str(path)], ["train", "ner", *out, "--train", str(path)]):
        assert main([*command, *model, "--no-discontinuous"]) == 1
        assert "a.pubtator, line 2: 'Breast cancer' has 2 parts" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_done_is_said_and_leaves_no_file(heads, tmp_path, capsys):
    model = str(heads / "BioGptForTokenClassification")
    empty, out = tmp_path / "a.txt", tmp_path / "out.json"
    empty.write_text(" \n")
    wrong = {
        ("ner", "--file", str(empty), "--model", model, "--out", str(out)): "is empty",
        ("ner", " ", "--model", model): "the text is empty",
        ("ner", "\u200b \ufeff", "--model", model): "the text is empty",
        ("classify", "\u00ad", "--model", "mini-hoc"): "the text is empty",
        (
            "ner",
            "a",
            "--model",
            model,
            "--types",
            "Plant",
        ): "unknown types ['Plant']; the model knows Gene, Disease",
        ("ner", "a", "--model", model, "--format", "brat"): "name a file with --out",
        ("ner", "a", "--model", model, "--out", str(tmp_path / "none" / "a")): "is not a folder",
        ("classify", "a", "--model", "mini"): "give labels of your own",
        ("train", "ner", "--train", str(empty), "--out", str(tmp_path / "run")): "is empty",
    }
    for arguments, message in wrong.items():
        assert main(list(arguments)) == 1, arguments
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_results_go_where_they_are_sent(heads, tmp_path, capsys, monkeypatch):
    """A link keeps pointing, a pipe keeps being one, and a folder is refused before any work."""
    model = str(heads / "BioGptForTokenClassification")
    target, link, pipe = tmp_path / "real.csv", tmp_path / "link.csv", tmp_path / "pipe"
    link.symlink_to(target)
    target.touch()
    command = ["ner", "TP53 was lost.", "--model", model, "--format", "csv", "--out"]
    assert main([*command, str(link)]) == 0
    assert link.is_symlink()
    content = target.read_bytes()
    assert content.startswith(b"id,text,label")
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        assert main([*command, str(pipe)]) == 0
        assert read.result(30) == content
    assert pipe.is_fifo()
    monkeypatch.setattr(EntityRecognizer, "batch", None)
    assert main([*command, str(tmp_path)]) == 1
    assert "is a folder; name a file" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "pipe", "real.csv"]


def test_a_path_is_not_taken_for_an_embedded_model(tmp_path, monkeypatch):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find(".").resolve() == tmp_path
    assert find("./mini").resolve() == tmp_path / "mini"
    assert find("mini") == EMBEDDED / "mini"


@pytest.mark.parametrize("head", ["BioGptForTokenClassification", "BioGptForSequenceClassification", ""])
def test_scores_that_are_no_numbers_are_an_error(heads, checkpoint, tmp_path, capsys, head):
    """NaN was printed as a score, or no entity found, and the status was 0."""
    folder = tmp_path / "nan"
    shutil.copytree(heads / head if head else checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights["biogpt.layer_norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    texts, tagged, labelled = (tmp_path / name for name in ("a.txt", "a.tsv", "b.tsv"))
    texts.write_text("\n".join(TEXT))
    tagged.write_text("TP53\tB-Gene\n")
    labelled.write_text("AIM\tWe asked.\nRESULT\tWe saw.\n")
    commands = {
        "BioGptForTokenClassification": [["ner", TEXTS], ["evaluate", "ner", str(tagged)]],
        "BioGptForSequenceClassification": [
            ["classify", TEXTS],
            ["classify", "--sentences", TEXTS],
            ["evaluate", "classify", str(labelled)],
        ],
        "": [["score", str(texts)], ["classify", TEXT[0], "--labels", "Aspirin", "gene"]],
    }
    for arguments in commands[head]:
        assert main([*arguments, "--model", str(folder)]) == 1, arguments
        out, error = capsys.readouterr()
        assert "may be damaged" in error
        assert "nan" not in out


def test_corpora_of_one_name_are_scored_apart(heads, tmp_path, capsys):
    model = str(heads / "BioGptForTokenClassification")
    files = [tmp_path / one / "a" / "test.tsv" for one in ("first", "second")]
    for count, path in enumerate(files, 1):
        path.parent.mkdir(parents=True)
        path.write_text("TP53\tB-Gene\n\n" * count)
    assert main(["evaluate", "ner", *map(str, files), "--model", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("a/")] == ["a/test", "a/test-2"]
    assert [line.split()[-1] for line in lines if line.startswith("micro")] == ["1", "2"]
    assert main(["evaluate", "ner", f"{files[0]}@0.5", "--model", model]) == 1
    assert "names a share, which is for training" in capsys.readouterr().err


def test_numbers_out_of_range_and_a_wrong_hub_id_are_refused_before_any_file_is_read(tmp_path, capsys):
    train = ["train", "ner", "--train", "nowhere.tsv", "--out", str(tmp_path / "run")]
    for wrong, message in (
        (["--push-to-hub", "lab/a--b"], "'lab/a--b' is not a Hub id"),
        (["--push-to-hub", ""], "'' is not a Hub id; expected OWNER/NAME"),
        (["--batch-tokens", "0"], "batch_tokens is 0; expected more than 0"),
        (["--patience", "-1"], "patience is -1; expected 0 or more"),
    ):
        assert main([*train, *wrong]) == 1
        assert message in capsys.readouterr().err
    for arguments, message in (
        ([*train, "--copies", "0"], "argument --copies: '0'; expected a whole number, at least 1"),
        (
            [*train, "--word-encoder", "-1"],
            "argument --word-encoder: '-1'; expected a whole number, at least 0",
        ),
        (["ner", "a", "--min-score", "2"], "argument --min-score: '2'; expected a number from 0 to 1"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_head_of_another_kind_says_what_reads_it(capsys):
    assert main(["generate", "x", "--model", "mini-ner"]) == 1
    assert "token classification head (classifier.*), and no language model's" in (
        error := capsys.readouterr().err
    )
    assert "python -m biogpt ner" in error


def test_a_byte_order_mark_on_standard_input_is_no_text(heads, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffTP53 was lost."))
    model = str(heads / "BioGptForTokenClassification")
    assert main(["ner", "-", "--model", model, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["text"] == "TP53 was lost."


def test_results_for_which_there_is_no_room_leave_those_of_before(heads, tmp_path, capsys, full_disk):
    out = tmp_path / "out.json"
    out.write_text("before")
    model = str(heads / "BioGptForTokenClassification")
    with full_disk(10):
        assert main(["ner", TEXTS, "--model", model, "--format", "json", "--out", str(out)]) == 1
    assert "out.json could not be written to" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def started(*arguments):
    command = [sys.executable, "-m", "biogpt", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=EMBEDDED.parents[1],
        start_new_session=True,
    )


def test_output_that_nobody_reads_ends_the_work_silently():
    with started("generate", "COVID-19 is", "--min-new-tokens", "900", "--max-new-tokens", "900") as process:
        assert process.stdout.read(5) == b"COVID"
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 141
    assert b"rror" not in error
    assert b"Traceback" not in error


def test_an_interrupt_ends_without_a_traceback():
    with started("generate", "COVID-19 is", "--min-new-tokens", "900", "--max-new-tokens", "900") as process:
        process.stdout.read(30)
        os.killpg(process.pid, signal.SIGINT)
        error = process.stderr.read()
    assert process.returncode == 130
    assert b"Traceback" not in error


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_may_be_forked_after_loading():
    script = (
        "import multiprocessing as m; from biogpt import EntityRecognizer, GenerationOptions, TextGenerator\n"
        "generator, tagger = TextGenerator.from_pretrained('mini'), "
        "EntityRecognizer.from_pretrained('mini-ner')\n"
        "def work(queue):\n"
        "    tagger('Aspirin helps')\n"
        "    queue.put(len(generator.generate('gene', GenerationOptions(max_new_tokens=5))[0].tokens))\n"
        "context = m.get_context('fork'); queue = context.Queue()\n"
        "process = context.Process(target=work, args=(queue,), daemon=True); process.start()\n"
        "print(queue.get(timeout=60))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "5\n", done.stderr
