"""Jobs: one row for each row, in order; a job that was cut off goes on to the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from app_server import ROOT, clean_environment, save_tiny

from biogpt.cli import main
from biogpt.cluster.jobs import SETTINGS, Done, Job, Processes, work_here
from biogpt.cluster.work import FindEntities, Generate, Task
from biogpt.generation.options import GenerationOptions

NEEDS_PARQUET = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason='needs pip install "ray[data,serve]==2.60.*"')
# On the cluster of RAY_ADDRESS where that is set, else on one that each process starts on this machine.
ON_RAY = "--ray --workers 2" + (
    f" --ray-address {os.environ['RAY_ADDRESS']}" if "RAY_ADDRESS" in os.environ else ""
)
ROWS = 150  # of a file: two parts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three files in two folders."""
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    lines = ["ab " * (1 + number % 7) + "a" * (number % 3) for number in range(ROWS)]
    (folder / "one.txt").write_text("\n".join(lines))
    (folder / "deep" / "two.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (folder / "three.csv").write_text("id,text\n" + "".join(f"n{i},{line}\n" for i, line in enumerate(lines)))
    return folder


def writing(tiny: Path) -> Task:
    return Generate(
        model=str(tiny), device="cpu", precision="float32", options=GenerationOptions(max_new_tokens=2)
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files of results; what a killed process has left unfinished is none."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--workers 2", pytest.param(ON_RAY, marks=[NEEDS_RAY, pytest.mark.ray])])
def test_a_job_killed_at_any_moment_goes_on_to_the_same_bytes(
    flags: str, tiny: Path, texts: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Job(writing(tiny), str(texts), whole).run(work_here)
    command = ["generate", "--input", str(texts), "--output", str(cut), "--model", str(tiny), "--device"]
    command += ["cpu", "--precision", "float32", "--max-new-tokens", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "biogpt", *command, *flags.split()],
        cwd=ROOT,
        env=clean_environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not any(cut.rglob(".*.tmp")):  # until it has begun to write
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    process.wait()
    assert set(contents(cut).items()) <= set(contents(whole).items())  # each file is whole, or is not there
    assert main([*command, *flags.split()] if "--ray" in flags else command) == 0
    assert contents(cut) == contents(whole)
    assert [len(rows(path)) for path in whole.rglob("*.jsonl")] == 3 * [ROWS]


def test_what_is_finished_is_not_done_again(tiny: Path, texts: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    asked: list[str] = []

    def cut_off(task: Task, paths: Sequence[str]) -> Generator[Done, None, None]:
        for part in work_here(task, paths):
            if part.path.endswith("one.txt") and part.first:  # in the middle of the second file
                raise KeyboardInterrupt
            yield part

    def noted(task: Task, paths: Sequence[str]) -> Generator[Done, None, None]:
        asked.extend(Path(path).name for path in paths)
        yield from work_here(task, paths)

    Job(writing(tiny), str(texts), whole).run(work_here)
    job = Job(writing(tiny), str(texts), cut)
    with pytest.raises(KeyboardInterrupt):
        job.run(cut_off)
    assert sorted(contents(cut)) == ["deep/two.jsonl.jsonl", SETTINGS]
    assert not list(cut.rglob(".*"))
    job.run(noted)
    assert asked == ["one.txt", "three.csv"]
    assert contents(cut) == contents(whole)


def test_each_row_has_its_own_result_or_error(tiny: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.jsonl"
    texts = [
        '{"id": 7, "text": "ab"}',
        '{"text": null}',
        "broken",
        '{"text": " "}',
        "",
        '{"id": "8", "text": "%s"}',
    ]
    given.write_text("\n".join(texts) % ("ab " * 1100))
    out = tmp_path / "out"
    assert Job(writing(tiny), str(given), out).run(work_here) == 4
    found = rows(out / "given.jsonl.jsonl")
    assert [row["id"] for row in found] == ["7", "2", "3", "4", "8"]
    assert [row.get("error", "")[:38] for row in found[1:4]] == [  # type: ignore[index]
        'given.jsonl, line 2: expected {"text":',
        "given.jsonl, line 3: not JSON (Expecti",
        "the row holds no text",
    ]
    assert "1024" in str(found[4]["error"]).replace(",", "") or "positions" in str(found[4]["error"])
    [completion] = found[0]["completions"]  # type: ignore[misc,attr-defined]
    assert completion["tokens"] == 2


def test_a_file_that_cannot_be_read_does_not_end_the_job(tiny: Path, texts: Path, tmp_path: Path) -> None:
    (texts / "a.csv").write_bytes(b"text\n\xff\n")
    job = Job(writing(tiny), str(texts), tmp_path / "out")
    with pytest.raises(ValueError, match=r"^1 of 4 files could not be read, all others are done: .*a\.csv"):
        job.run(work_here)
    assert len(list((tmp_path / "out").rglob("*.jsonl"))) == 3


def test_a_job_finds_what_the_recognizer_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("Naloxone reverses hypertension.\nLithium harmed kidneys of mice.\n")
    model = ["--device", "cpu", "--precision", "float32", "--types", "Chemical"]
    assert main(["ner", "--file", str(texts), "--format", "jsonl", *model]) == 0
    alone = capsys.readouterr().out
    assert "Naloxone" in alone
    assert main(["ner", "--input", str(texts), "--output", str(tmp_path / "out"), *model]) == 0
    assert (tmp_path / "out" / "texts.txt.jsonl").read_text() == alone


@NEEDS_PARQUET
def test_parquet_is_read_and_written_as_json_lines_are(tiny: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path / "texts"
    folder.mkdir()
    table = {"pmid": [11, None, 13], "title": ["ab", "b", None], "abstract": ["ab ab", None, None]}
    parquet.write_table(pyarrow.table(table), folder / "a.parquet")
    Job(writing(tiny), str(folder), tmp_path / "lines").run(work_here)
    assert Job(writing(tiny), str(folder), tmp_path / "tables", "parquet").run(work_here) == 1
    lines = rows(tmp_path / "lines" / "a.parquet.jsonl")
    assert [(row["id"], row["text"]) for row in lines] == [("11", "ab ab ab"), ("2", "b"), ("13", "")]
    read = parquet.read_table(tmp_path / "tables" / "a.parquet.parquet").to_pylist()
    assert [{key: cell for key, cell in row.items() if cell is not None} for row in read] == lines


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_needs_pyarrow(tiny: Path, texts: Path, tmp_path: Path) -> None:
    (texts / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="pip install pyarrow"):
        Job(writing(tiny), str(texts), tmp_path / "out").run(work_here)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nothing-here", "names no file that can be read"),
        ("nothing-*.csv", "names no file that can be read"),
        ("s3://bucket/texts", "is an address"),
    ],
)
def test_an_input_that_is_none_is_refused(given: str, said: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        Job(writing(tiny), given, tmp_path / "out").run(work_here)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_results_is_refused(tiny: Path, texts: Path, tmp_path: Path) -> None:
    Job(writing(tiny), str(texts / "*.csv"), tmp_path / "out").run(work_here)
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds results of another job .*model"):
        Job(FindEntities(model="mini-ner"), str(texts), tmp_path / "out").run(work_here)
    with pytest.raises(ValueError, match="choose a new or empty folder"):
        Job(writing(tiny), str(texts), texts / "deep").run(work_here)
    assert contents(tmp_path / "out") == before


def test_results_below_the_input_are_not_read_as_texts(tiny: Path, texts: Path) -> None:
    for _ in range(2):
        Job(writing(tiny), str(texts), texts / "results").run(work_here)
    assert sorted(contents(texts / "results")) == [
        "deep/two.jsonl.jsonl",
        SETTINGS,
        "one.txt.jsonl",
        "three.csv.jsonl",
    ]


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_job_with_a_word(tiny: Path, texts: Path, tmp_path: Path) -> None:
    def killed(task: Task, paths: Sequence[str]) -> Generator[Done, None, None]:
        work = Processes(2)(task, paths)
        yield next(work)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)
        yield from work

    with pytest.raises(OSError, match="run the same command again"):
        Job(writing(tiny), str(texts), tmp_path / "out").run(killed)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--input", "x"], "--input needs --output"),
        (["a", "--output", "x"], "are for a job; name its files with --input"),
        (["a", "--workers", "2"], "are for a job; name its files with --input"),
        (["--input", "x", "--output", "y", "--format", "csv"], "are jsonl or parquet"),
        (["--input", "x", "--output", "y", "--out", "z"], "--out is for one text or --file"),
        (["a", "--format", "parquet"], "--format parquet needs --input"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ner", *flags]) == 1
    assert said in capsys.readouterr().err
