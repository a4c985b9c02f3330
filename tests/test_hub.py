"""The Hub path, end to end: a real client process against a real HTTP server with the Hub's API."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, Repository
from safetensors.torch import load_file

from biogpt.checkpoint import hub, layout
from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptTokenizer,
)
from biogpt.model.config import BioGptConfig

ROOT = Path(__file__).resolve().parent.parent
CONFIG = BioGptConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
)
CHUNK = 10 * 2**20  # bytes that huggingface_hub writes at a time
CLIENT = """
import json, sys
from biogpt.checkpoint import hub
for source, revision in json.loads(sys.argv[1]):
    steps = []
    try:
        folder = hub.find(source, revision, lambda *step: steps.append(step))
        answer = {"folder": str(folder), "files": sorted(path.name for path in folder.iterdir())}
    except (OSError, ValueError) as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer | {"steps": steps}))
"""


def command(*requests: tuple[str, str | None]) -> list[str]:
    return [sys.executable, "-c", CLIENT, json.dumps(requests)]


def environment(url: str, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}


def ask(url: str, home: Path, *requests: tuple[str, str | None]) -> list[dict]:
    """What ``hub.find`` answers to each (source, revision) in a process of its own."""
    done = subprocess.run(
        command(*requests), env=environment(url, home), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def tiny(folder: Path, seed: int = 0, config: BioGptConfig = CONFIG) -> BioGptForCausalLM:
    torch.manual_seed(seed)
    model = BioGptForCausalLM(config)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two and a half chunks, so that a cut leaves something to go on from."""
    folder = tmp_path_factory.mktemp("large")
    tiny(folder, config=replace(CONFIG, vocab_size=410_000))
    assert (folder / "model.safetensors").stat().st_size > 2.4 * CHUNK
    return folder


def same_file(answer: dict, folder: Path, name: str = "model.safetensors") -> bool:
    return (Path(answer["folder"]) / name).read_bytes() == (folder / name).read_bytes()


def test_download_takes_what_is_needed_and_serves_it_offline(tmp_path: Path) -> None:
    first, second, old = tmp_path / "first", tmp_path / "second", tmp_path / "old"
    model = tiny(first, seed=1)
    for name in ("vocab.json", "merges.txt", "pytorch_model.bin", "flax_model.msgpack", "README.md"):
        (first / name).write_text("{}")
    tiny(second, seed=2).save_pretrained(second, max_shard_size=4000)
    torch.save(dict(tiny(old, seed=3).state_dict()), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    versions = [Repository(first), Repository(second, ("v2",))]
    with HubServer({"lab/tiny": versions, "lab/old": [Repository(old)]}) as server:
        requests = [("lab/tiny", None), ("lab/tiny@v2", None), ("lab/tiny", "v2"), ("lab/old", None)]
        main, tagged, named, only_bin = ask(server.url, tmp_path / "home", *requests)
        asked = len(server.requests)
    assert main["files"] == ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
    assert same_file(main, first)
    size = (first / "model.safetensors").stat().st_size
    assert main["steps"][-1] == ["model.safetensors", size, size]
    assert "model.safetensors.index.json" in tagged["files"]
    assert len(tagged["files"]) > 3
    assert named["folder"] == tagged["folder"] != main["folder"]
    assert named["steps"] == [], "what is cached is not fetched again"
    assert only_bin["files"] == ["config.json", "pytorch_model.bin"]

    (Path(main["folder"]) / "vocab.json").unlink()  # a stand-in of two bytes, which no model has
    loaded = BioGptForCausalLM.from_pretrained(main["folder"], device="cpu")
    ids = torch.tensor([[2, 5, 7]])
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    BioGptForCausalLM.from_pretrained(tagged["folder"], device="cpu")
    BioGptForCausalLM.from_pretrained(only_bin["folder"], device="cpu")

    offline = ask(server.url, tmp_path / "home", *requests, ("lab/tiny", "v3"), ("lab/new", None))
    assert [answer["folder"] for answer in offline[:4]] == [
        answer["folder"] for answer in (main, tagged, named, only_bin)
    ]
    for answer, name in zip(offline[4:], ("lab/tiny", "lab/new"), strict=True):
        assert answer["error"] == "ConnectionError"
        assert f"{name} at " in answer["message"]
        assert f"hf download {name}" in answer["message"]
    assert len(server.requests) == asked, "the server was gone"


def test_transfer_cut_midway_goes_on(tmp_path: Path, large: Path) -> None:
    with HubServer({"lab/large": [Repository(large)]}, cut_at={"model.safetensors": CHUNK + 5000}) as server:
        (answer,) = ask(server.url, tmp_path, ("lab/large", None))
    assert server.transfers("model.safetensors") == [None, CHUNK]
    assert same_file(answer, large)


def test_download_goes_on_after_the_process_was_killed(tmp_path: Path, large: Path) -> None:
    """``huggingface_hub`` alone starts again from nothing: its partial file dies with the process."""
    with HubServer({"lab/large": [Repository(large)]}, stall_at={"model.safetensors": 2 * CHUNK}) as server:
        killed = subprocess.Popen(
            command(("lab/large", None)),
            env=environment(server.url, tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert server.stalled.wait(60)
        (partial,) = wait_for_size(tmp_path, CHUNK, killed)
        killed.kill()
        killed.wait()
        kept = partial.stat().st_size
        (answer,) = ask(server.url, tmp_path, ("lab/large", None))
    assert server.transfers("model.safetensors") == [None, kept]
    assert same_file(answer, large)
    assert not list(tmp_path.rglob("*.partial"))


def wait_for_size(home: Path, size: int, process: subprocess.Popen) -> list[Path]:
    while process.poll() is None:
        found = [path for path in home.rglob("*.partial") if path.stat().st_size >= size]
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("the client ended by itself")


def test_each_failure_has_its_message(tmp_path: Path) -> None:
    tiny(tmp_path / "good")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2/config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "gpt2/model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_text(json.dumps(CONFIG.to_dict()))
    repositories = {
        "lab/good": [Repository(tmp_path / "good")],
        "lab/gated": [Repository(tmp_path / "good", gated=True)],
        "lab/gpt2": [Repository(tmp_path / "gpt2")],
        "lab/bare": [Repository(tmp_path / "bare")],
    }
    cases = {
        ("lab/none", None): ("FileNotFoundError", "no repository lab/none, or it is private"),
        ("lab/good", "v9"): ("FileNotFoundError", "lab/good has no revision 'v9'"),
        ("lab/gated", None): ("PermissionError", "lab/gated is gated: accept its terms"),
        ("lab/gpt2", None): ("ValueError", "model_type is 'gpt2'; expected 'biogpt'"),
        ("lab/bare", None): ("ValueError", "has no weights (model.safetensors"),
    }
    with HubServer(repositories) as server:
        answers = ask(server.url, tmp_path / "home", *cases)
    for answer, (kind, text) in zip(answers, cases.values(), strict=True):
        assert answer["error"] == kind
        assert text in answer["message"]
    assert server.transfers("model.safetensors") == [], "no weights are fetched before the refusal"


def test_full_disk_and_damage_are_told_apart(tmp_path: Path) -> None:
    tiny(tmp_path / "model")
    repositories = {"lab/model": [Repository(tmp_path / "model")]}
    with HubServer(repositories, extra_size={"model.safetensors": 10**15}) as server:
        (full,) = ask(server.url, tmp_path / "home", ("lab/model", None))
        assert server.transfers("model.safetensors") == []
        server.extra_size.clear()
        server.damaged.add("model.safetensors")
        (damaged,) = ask(server.url, tmp_path / "home", ("lab/model", None))
        server.damaged.clear()
        (whole,) = ask(server.url, tmp_path / "home", ("lab/model", None))
    assert full["error"] == "OSError"
    assert "1000000.00 GB needed" in full["message"]
    assert "HF_HOME" in full["message"]
    assert damaged["error"] == "OSError"
    assert "arrived damaged: SHA-256" in damaged["message"]
    assert same_file(whole, tmp_path / "model"), "the damaged bytes were not kept"


LOADING = """
from biogpt import EntityRecognizer, TextClassifier, TextGenerator
from biogpt.checkpoint.hub import find
find("lab/writes@alone")
for kind, name in ((TextGenerator, "writes"), (EntityRecognizer, "tags"), (TextClassifier, "labels")):
    kind.from_pretrained(f"lab/{name}@{name}", device="cpu")
"""


def test_model_and_tokenizer_come_from_one_look_at_the_hub(tmp_path: Path) -> None:
    """A branch may move between two looks, and the second would give the tokenizer of another model."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "a", "b</w>", "ab</w>"]
    tokenizer = BioGptTokenizer({token: index for index, token in enumerate(tokens)}, [("a", "b</w>")])
    config = replace(CONFIG, vocab_size=len(tokens), id2label={0: "O", 1: "B-Gene", 2: "I-Gene"})
    heads = {
        "writes": BioGptForCausalLM,
        "tags": BioGptForTokenClassification,
        "labels": BioGptForSequenceClassification,
    }
    for name, head in heads.items():
        head(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    repositories = {f"lab/{name}": [Repository(tmp_path / name, (name, "alone"))] for name in heads}
    with HubServer(repositories) as server:
        done = subprocess.run(
            [sys.executable, "-c", LOADING],
            env=environment(server.url, tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    paths = [path for _, path, _ in server.requests]
    looks = {name: paths.count(f"revision/{name}") for name in ("alone", *heads)}
    assert set(looks.values()) == {looks["alone"]}, looks
    assert looks["alone"] > 0


def test_local_folder_and_unknown_names(tmp_path: Path) -> None:
    assert hub.find(tmp_path) == tmp_path
    for name in ("no-such-model", "./nowhere", "", "a/b/c", "lab/../x"):
        with pytest.raises(ValueError, match="expected an embedded name") as caught:
            hub.find(name)
        assert all(known in str(caught.value) for known in hub.embedded_names())
    with pytest.raises(ValueError, match="only Hub ids have revisions"):
        hub.find(tmp_path, "v1")
    with pytest.raises(ValueError, match="two revisions"):
        hub.find("lab/tiny@v1", "v2")


def test_embedded_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(tmp_path / "models" / "mini")
    (tmp_path / "models" / "unfinished").mkdir()
    monkeypatch.setattr(hub, "EMBEDDED", tmp_path / "models")
    assert hub.find("mini") == tmp_path / "models" / "mini"
    assert hub.embedded_names() == ["mini"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no vocab\.json.*https://huggingface.co/"):
        layout.require(tmp_path, "vocab.json")


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "weights.pkl", 3])
def test_index_cannot_name_other_files(tmp_path: Path, name: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="names the file"):
        layout.shard_names(index)


def test_importing_the_hub_leaves_the_network_library_alone() -> None:
    code = "import sys, biogpt.checkpoint.hub; print('huggingface_hub' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr


PUSH = """
import sys
from pathlib import Path
from biogpt.checkpoint.push import push_to_hub
errors = []
for folder, name in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        print(push_to_hub(Path(folder), name))
    except (OSError, ValueError) as error:
        errors.append(f"{type(error).__name__}: {error}")
sys.exit("\\0".join(errors) or 0)
"""


def push(url: str, home: Path, *folders_and_names: Path | str) -> subprocess.CompletedProcess[str]:
    """Upload each folder by its name, in one process; what it says of those that fail is parted by NUL."""
    return subprocess.run(
        [sys.executable, "-c", PUSH, *map(str, folders_and_names)],
        env=environment(url, home) | {"HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_folder_is_uploaded_file_by_file(tmp_path: Path) -> None:
    folder, uploads = tmp_path / "folder", tmp_path / "uploads"
    uploads.mkdir()
    tiny(folder)
    with HubServer({}, uploads=uploads) as server:
        done = push(server.url, tmp_path / "home", folder, "lab/new")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/lab/new/commit/" + "0" * 40)
    assert {path.name: path.read_bytes() for path in uploads.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_an_upload_that_is_refused_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    tiny(folder)
    with HubServer({}) as server:
        done = push(
            server.url,
            tmp_path / "home",
            *(folder, "lab/new"),
            *(folder, "new"),
            *(folder, "lab/new--model"),
            *(tmp_path, "lab/new"),
        )
    refused, wrong, odd, empty = done.stderr.split("\0")
    assert "ConnectionError" in refused
    assert "hf auth login" in refused
    assert "'new' is not a Hub id; expected OWNER/NAME" in wrong
    assert "'lab/new--model' is not a Hub id: Cannot have -- or .." in odd
    assert "config.json" in empty


LOAD = """
import sys
from biogpt.checkpoint.pretrained import BioGptForTokenClassification, BioGptTokenizer
try:
    model = BioGptForTokenClassification.from_pretrained(sys.argv[1], device="cpu", precision="float32")
    print(model.base.name, BioGptTokenizer.from_pretrained(model.folder).vocab_size)
    print(sum(float(weight.double().sum()) for weight in model.parameters()))
except (OSError, ValueError) as error:
    print(type(error).__name__, error)
"""


def add_words(folder: Path) -> None:
    """A vocabulary for a folder that ``tiny`` made."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"x{number}</w>" for number in range(36))]
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("x 0</w> 1\n", encoding="utf-8")


def test_a_head_of_the_hub_is_composed_with_its_base_of_the_hub(tmp_path: Path) -> None:
    """At the revision that it names; a folder, which would be one of its author's, is not read."""
    for seed, name in enumerate(("base", "other")):
        tiny(tmp_path / name, seed)
        add_words(tmp_path / name)
    model = BioGptForTokenClassification.from_pretrained(tmp_path / "base", labels=["O", "B-X"])
    model.base = replace(model.base, name="lab/base@v1")
    model.save_pretrained(tmp_path / "head")
    for name, base in {"lost": "lab/none", "local": str(tmp_path / "base"), "moved": "lab/base"}.items():
        model.base = replace(model.base, name=base)
        model.save_pretrained(tmp_path / name)
    bases = [Repository(tmp_path / "other"), Repository(tmp_path / "base", ("v1",))]
    heads = {f"lab/{name}": [Repository(tmp_path / name)] for name in ("head", "lost", "local", "moved")}

    def loaded(source: str) -> str:
        run = [sys.executable, "-c", LOAD, source]
        env = environment(server.url, tmp_path / "home")
        return subprocess.run(run, env=env, capture_output=True, text=True, timeout=120).stdout

    with HubServer({"lab/base": bases} | heads) as server:
        named, total = loaded("lab/head").splitlines()
        assert named == "lab/base@v1 40"
        assert float(total) == sum(float(weight.detach().double().sum()) for weight in model.parameters())
        assert "its base is missing: the Hub has no repository lab/none" in loaded("lab/lost")
        assert "names the folder" in loaded("lab/local")
        assert "weights of the base lab/base" in loaded("lab/moved")
    assert loaded("lab/head").splitlines() == [named, total]  # offline


def test_a_head_above_a_folder_is_uploaded_whole(tmp_path: Path) -> None:
    """The base lies on this machine alone; one that everybody can get is left to be got."""
    tiny(tmp_path / "base")
    add_words(tmp_path / "base")
    model = BioGptForTokenClassification.from_pretrained(tmp_path / "base", labels=["O", "B-X"])
    model.save_pretrained(tmp_path / "near")
    (tmp_path / "near" / "metrics.json").write_text("{}", encoding="utf-8")
    model.base = replace(model.base, name="lab/base")
    model.save_pretrained(tmp_path / "far")
    for name, decoder in {"near": True, "far": False}.items():
        uploads = tmp_path / f"{name}-uploads"
        uploads.mkdir()
        with HubServer({}, uploads=uploads) as server:
            done = push(server.url, tmp_path / "home", tmp_path / name, "lab/new")
        assert done.returncode == 0, done.stderr
        keys = load_file(uploads / "model.safetensors").keys()
        assert any(key.startswith("biogpt.") for key in keys) == decoder
        assert (uploads / "vocab.json").exists() == decoder
        assert ("base_fingerprint" in (uploads / "config.json").read_text(encoding="utf-8")) != decoder
        assert (uploads / "metrics.json").exists() == decoder  # the near one has them
