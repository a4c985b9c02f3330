"""A Hugging Face Space, as far as it can be had here: forked processes, a home nobody can write to."""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio_client
import pytest
from app_server import ROOT, app_server

from biogpt import GenerationOptions, TextGenerator
from biogpt.serving.zero import LentGenerator, gpu_is_lent, seconds_of

LARGEST = 10_000_000  # bytes of a file that plain Git takes there

# What the package of this name does on ZeroGPU: each call of a generator runs in a process forked for it, and
# all that goes in or comes out is pickled.
SPACES = """
import multiprocessing, os, pickle

def GPU(function=None, duration=60):
    if function is None:
        return lambda decorated: GPU(decorated, duration)

    def call(*args):
        args = pickle.loads(pickle.dumps(args))
        seconds = duration(*args) if callable(duration) else duration
        receiver, sender = multiprocessing.Pipe(duplex=False)

        def work():
            with open(os.environ["LENT"], "a") as noted:
                print(os.getpid(), seconds, file=noted)
            for value in function(*args):
                sender.send(value)
            os._exit(0)

        process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        process.start()
        sender.close()
        try:
            while True:
                try:
                    yield receiver.recv()
                except EOFError:
                    return
        finally:
            process.terminate()
            process.join()

    return call
"""


def front_matter() -> dict[str, str]:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1].splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith(" "))


def test_the_front_matter_is_what_a_space_needs() -> None:
    given = front_matter()
    assert (given["sdk"], given["app_file"]) == ("gradio", "app.py")
    requirement = re.search(r"^gradio\S*>=([\d.]+),<(\d+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert requirement is not None
    assert given["sdk_version"].startswith(requirement[1])
    assert given["python_version"].strip('"') in (
        "3.12",
        "3.12.12",
    )  # of ZeroGPU's two, the one this code runs on
    assert len(given["short_description"]) <= 60
    for colour in ("colorFrom", "colorTo"):
        assert given[colour] in ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


def test_no_file_is_too_large_for_a_space() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    files = [ROOT / name for name in listed if name] or [
        *(ROOT / "assets").rglob("*"),
        *(ROOT / "biogpt").rglob("*"),
    ]
    assert len(files) > 50
    assert [str(path) for path in files if path.is_file() and path.stat().st_size > LARGEST] == []


def test_the_gpu_is_asked_for_no_longer_than_a_request_can_take() -> None:
    short, long = GenerationOptions(max_new_tokens=20), GenerationOptions(max_new_tokens=400)
    assert seconds_of("", short) < seconds_of("", long) < 60
    samples = GenerationOptions(max_new_tokens=400, num_return_sequences=8, temperature=1.0)
    assert seconds_of("", long) < seconds_of("", samples) == 120


def test_only_zero_gpu_hardware_lends(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, lent in (("true", True), ("1", True), ("false", False), ("", False)):
        monkeypatch.setenv("SPACES_ZERO_GPU", value)
        assert gpu_is_lent() is lent


def test_the_log_says_whether_a_process_of_the_lent_gpu_was_warm(monkeypatch, caplog) -> None:
    """One that serves two calls, as ZeroGPU's may."""
    monkeypatch.setitem(
        sys.modules, "spaces", SimpleNamespace(GPU=lambda duration: lambda function: function)
    )
    near, far = (
        TextGenerator.from_pretrained("mini", device="cpu", threaded=threaded) for threaded in (True, False)
    )
    generator, options = LentGenerator(near, far), GenerationOptions(max_new_tokens=3)
    with caplog.at_level(logging.INFO):
        texts = [[step.text for step in generator.stream("The BRCA1 gene", options)] for _ in range(2)]
    assert texts[0] == texts[1]
    told = re.findall(r"a (\w+) process of the lent GPU made its first token after [\d.]+ s", caplog.text)
    assert told == ["new", "warm"]


@pytest.fixture
def space(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of the page as a ZeroGPU Space runs it, and where the forked processes are noted."""
    (tmp_path / "spaces.py").write_text(SPACES, encoding="utf-8")
    environment = {
        "SPACE_ID": "someone/biogpt",
        "SPACES_ZERO_GPU": "true",
        "HOME": "/dev/null/home",  # nothing can be written there, not even by root
        "PATH": str(Path(sys.executable).parent),
        "PYTHONPATH": str(tmp_path),
        "LENT": str(tmp_path / "lent"),
        "OMP_NUM_THREADS": "1",  # a forked process can't use its parent's threads; a GPU needs none
    }
    with app_server(environment=environment) as (url, _):
        yield url, tmp_path / "lent"


@pytest.mark.slow
def test_on_zero_gpu_each_text_is_written_in_a_process_of_its_own(space: tuple[str, Path]) -> None:
    url, lent = space
    client = gradio_client.Client(url, verbose=False)
    asked = {"temperature": 0.0, "max_new_tokens": 12}
    expected = TextGenerator.from_pretrained("mini").generate(
        "The BRCA1 gene", GenerationOptions(max_new_tokens=12)
    )
    for calls in (1, 2):
        job = client.submit("The BRCA1 gene", **asked, api_name="/generate")
        assert job.result()["text"] == expected[0].text
        assert len(job.outputs()) >= 10  # it streams
        noted = lent.read_text().split()
        assert len(set(noted[::2])) == calls
        assert noted[1::2] == ["15"] * calls
    with pytest.raises(ValueError, match="positions"):
        client.predict("gene " * 1200, api_name="/generate")
    assert len(lent.read_text().split()) == 4  # what is refused costs no quota
    found = client.predict("Aspirin lowers the risk of stroke.", api_name="/ner")
    assert [each["text"] for each in found if each["label"] == "Chemical"] == ["Aspirin"]
    assert len(lent.read_text().split()) == 4


@pytest.mark.slow
def test_a_text_that_nobody_waits_for_ends_its_process(space: tuple[str, Path]) -> None:
    url, lent = space
    client = gradio_client.Client(url, verbose=False)
    job = client.submit("The gene", max_new_tokens=400, min_new_tokens=400, api_name="/generate")
    assert next(iter(job))["text"]
    process = Path("/proc") / lent.read_text().split()[0]
    assert process.exists()
    job.cancel()
    for _ in range(100):
        if not process.exists():
            return
        time.sleep(0.1)
    pytest.fail("the forked process goes on")
