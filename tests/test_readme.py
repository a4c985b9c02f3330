"""What the README tells people to type works as it stands."""

import json
import lzma
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest
from app_server import app_server, save_tiny

from biogpt.cli import build_parser, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Run elsewhere: the page by tests/test_app.py, the tests by whoever reads this, an archive's conversion by
# tests/test_convert.py.
_ELSEWHERE = ("pip install", "python -m biogpt convert")
_SMALLER = {  # of what takes minutes or hours, a part
    "bench": "--model mini --prompts 16 --streams 1 --positions 16 --precisions float32 --rounds 1 --steps 4",
    "train ner": "--epochs 1",
    "train classify": "--epochs 1",
    "evaluate ner": "--precision float32",
}
_TAGGED = "Aspirin\tB-{kind}\nhelps\tO\n.\tO\n\n" * 4
_FILES = {
    "abstracts.csv": "id,text\n1,Insulin lowered glucose.\n2,The tumour shrank.\n",
    "abstracts/a.txt": "Insulin lowered glucose.\n",
    "abstracts.jsonl": '{"id": "1", "text": "Aspirin lowers the risk of stroke."}\n',
    "test.tsv": _TAGGED.format(kind="Chemical"),
    "genes.tsv": _TAGGED.format(kind="Gene"),
    "diseases.tsv": _TAGGED.format(kind="Disease"),
    "dev.tsv": _TAGGED.format(kind="Gene"),
}
_LABELLED = {"train.tsv": "a|b\tOne text.\nnone\tAnother.\n", "dev.tsv": "a\tOne text.\nb\tAnother.\n"}
_ROLES = "###1\nMETHODS\tWe looked.\nRESULTS\tWe found it.\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_runs(number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[number]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_behind_nginx_a_client_stays_at_the_page_process_where_it_began(tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx on the path")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    [block] = [block for block in blocks("nginx") if block.startswith("upstream")]
    names = {"one", "two"}  # of the models, by which the processes are told apart
    with ExitStack() as stack:
        for name, there in zip(sorted(names), ("7860", "7861"), strict=True):
            save_tiny(tmp_path / name)
            url, process = stack.enter_context(app_server("--model", str(tmp_path / name)))
            block = block.replace(f"127.0.0.1:{there}", url.removeprefix("http://").rstrip("/"))
        places = "".join(f"{kind}_temp_path {kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
        (tmp_path / "nginx.conf").write_text(
            "daemon off; master_process off; pid nginx.pid; events {}\n"
            f"http {{ access_log off; client_body_temp_path body; {places}\n"
            + block.replace("listen 80", f"listen 127.0.0.1:{port}")
            + "}"
        )
        served = subprocess.Popen([nginx, "-p", tmp_path, "-c", "nginx.conf", "-e", "stderr"])
        stack.callback(served.wait)
        stack.callback(served.terminate)

        def asked(source: str, method: str, path: str, body: object = None) -> str:
            connection = HTTPConnection("127.0.0.1", port, source_address=(source, 0))
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read().decode()
            assert answer.status == 200, said
            return said

        def page_of(source: str) -> str:
            return json.loads(asked(source, "GET", "/v1/models"))["data"][0]["id"]

        while True:
            try:
                page_of("127.0.0.1")
                break
            except OSError:
                assert served.poll() is None, "nginx ended"
        sources = [f"127.0.0.{number}" for number in range(1, 17)]
        first = {source: page_of(source) for source in sources}
        assert set(first.values()) == names
        for source in sources:  # asked for in one request, read in another
            call = asked(
                source, "POST", "/gradio_api/call/v2/generate", {"prompt": "ab", "max_new_tokens": 2}
            )
            events = asked(source, "GET", f"/gradio_api/call/generate/{json.loads(call)['event_id']}")
            assert "event: complete" in events
            assert page_of(source) == first[source]
        process.kill()
        process.wait()
        assert {page_of(source) for source in sources} == {"one"}


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(_ELSEWHERE)]


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path, monkeypatch) -> None:
    """One after another in one folder; those that train come first, for others use what they make.

    All in this process: that each would be one of its own is tried in test_cli.py.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heldout.txt.xz").write_bytes(lzma.compress(b"Insulin lowered glucose.\n"))
    lines = sorted(commands(), key=lambda line: " train " not in line)
    assert len(lines) >= 9
    for line in lines:
        files = _FILES | (_LABELLED if "classify" in line else {})
        files |= {"train.txt": _ROLES, "dev.txt": _ROLES} if "--sentences" in line else {}
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content, encoding="utf-8")
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "biogpt"]
        smaller = next((more for name, more in _SMALLER.items() if f"biogpt {name}" in line), "")
        try:
            status = main([*words[3:], *smaller.split()])
        except SystemExit as end:  # after --help
            status = end.code
        assert status == 0, line
    for made in (
        "labels.csv",
        "entities.zip",
        "my-tagger/best/metrics.json",
        "my-roles/best/config.json",
        "entities/a.txt.jsonl",
    ):
        assert (tmp_path / made).stat().st_size > 0, made


def test_the_conversion_is_called_as_the_readme_says() -> None:
    lines = re.findall(r"^python -m biogpt (convert .*?)  #", README, re.M)
    parsed = [build_parser(words).parse_args(words) for words in map(shlex.split, lines)]
    assert [chosen.source for chosen in parsed] == ["ARCHIVE", "MODEL"]
    assert [chosen.precision for chosen in parsed] == ["", "int8"]


def test_every_flag_of_the_table_is_one_of_the_page() -> None:
    from app import build_parser as flags_of_the_page

    known = flags_of_the_page({}).format_help()
    named = re.findall(r"^\| `(--[a-z-]+)`.*?`(BIOGPT_[A-Z_]+)`", README, re.M)
    assert len(named) >= 6
    for flag, variable in named:
        assert flag in known
        assert variable in known


def test_the_evening_s_read_is_all_there_and_as_long_as_it_says() -> None:
    rows = re.findall(r"^\| `(biogpt/[a-z_/]+\.py)` \| (\d+) \|", README, re.M)
    files = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("model", "generation")
        for path in (ROOT / "biogpt" / folder).glob("[!_]*.py")
    }
    tokenizer = "biogpt/text/tokenizer.py"
    files[tokenizer] = len((ROOT / tokenizer).read_text(encoding="utf-8").splitlines())
    assert {name for name, _ in rows} == set(files)
    wrong = [(name, said, files[name]) for name, said in rows if abs(int(said) - files[name]) > 20]
    assert wrong == []
    (total,) = re.findall(r"One evening .*? some ([\d,]+) lines", README)
    assert abs(int(total.replace(",", "")) - sum(files.values())) <= 50


def test_every_folder_has_its_line() -> None:
    folders = {f"biogpt/{path.parent.name}/" for path in (ROOT / "biogpt").glob("*/__init__.py")}
    assert folders <= set(re.findall(r"^\| `(biogpt/[a-z]+/)` \|", README, re.M))


def test_pictures_and_cards_are_where_the_readme_looks_for_them() -> None:
    linked = [path for path in re.findall(r"\]\(([^)#:]+)\)", README) if not path.startswith("http")]
    assert len(linked) >= 6
    assert [path for path in linked if not (ROOT / path).is_file()] == []
