"""The command ``python app.py``: flags, environment, refusals, and a start without a network."""

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

import gradio_client
import pytest
from app_server import ROOT, app_server, call, clean_environment, last_event, post, save_tiny

from app import build_parser

FLAGS = (
    "model",
    "ner-model",
    "classify-model",
    "sentence-model",
    "device",
    "precision",
    "host",
    "port",
    "share",
    "models",
    "mcp",
    "max-waiting",
    "allow-origin",
    "auth",
    "metrics",
)

# Python runs this at start: each attempt to reach anything but this machine is refused and noted in a file.
NO_NETWORK = """
import os, socket
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", None)
def refuse(host):
    with open(os.environ["OUTBOUND"], "a") as noted:
        print(host, file=noted)
    raise OSError(f"no network: {host}")
def guard(original, host_of):
    def guarded(*args, **kwargs):
        host = host_of(*args)
        return original(*args, **kwargs) if host in LOCAL else refuse(host)
    return guarded
class Socket(socket.socket):
    connect = guard(socket.socket.connect, lambda self, to: to[0] if isinstance(to, tuple) else None)
    connect_ex = guard(socket.socket.connect_ex, lambda self, to: to[0] if isinstance(to, tuple) else None)
socket.socket = Socket
socket.getaddrinfo = guard(socket.getaddrinfo, lambda host, *rest: host)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_tiny(folder)
    return folder


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=ROOT,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_names_every_flag_and_its_environment_variable() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for flag in FLAGS:
        assert f"--{flag}" in shown.stdout
        assert f"BIOGPT_{flag.upper().replace('-', '_')}" in shown.stdout


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environment = {
        "BIOGPT_MODEL": "somewhere/else",
        "BIOGPT_NER_MODEL": "somewhere/ner",
        "BIOGPT_CLASSIFY_MODEL": "somewhere/topics",
        "BIOGPT_SENTENCE_MODEL": "somewhere/roles",
        "BIOGPT_DEVICE": "cpu",
        "BIOGPT_PRECISION": "bfloat16",
        "BIOGPT_BACKEND": "ray",
        "BIOGPT_RAY_ADDRESS": "10.0.0.1:6379",
        "BIOGPT_REPLICAS": "2",
        "BIOGPT_HOST": "::1",
        "BIOGPT_PORT": "9001",
        "BIOGPT_SHARE": "true",
        "BIOGPT_MODELS": "a/b, c",
        "BIOGPT_MCP": "1",
        "BIOGPT_MAX_WAITING": "3",
        "BIOGPT_ALLOW_ORIGIN": "lab.example",
        "BIOGPT_AUTH": "ann:secret",
        "BIOGPT_METRICS": "yes",
    }
    assert vars(build_parser({}).parse_args([])) == {
        "model": "mini",
        "ner_model": "mini-ner",
        "classify_model": "mini-hoc",
        "sentence_model": "mini-rct",
        "device": "auto",
        "precision": "auto",
        "backend": "local",
        "ray_address": "",
        "replicas": 1,
        "host": "127.0.0.1",
        "port": 7860,
        "share": False,
        "models": "",
        "mcp": False,
        "max_waiting": 16,
        "allow_origin": "",
        "auth": {},
        "metrics": False,
    }
    assert vars(build_parser(environment).parse_args([])) == {
        "model": "somewhere/else",
        "ner_model": "somewhere/ner",
        "classify_model": "somewhere/topics",
        "sentence_model": "somewhere/roles",
        "device": "cpu",
        "precision": "bfloat16",
        "backend": "ray",
        "ray_address": "10.0.0.1:6379",
        "replicas": 2,
        "host": "::1",
        "port": 9001,
        "share": True,
        "models": "a/b, c",
        "mcp": True,
        "max_waiting": 3,
        "allow_origin": "lab.example",
        "auth": {"ann": "secret"},
        "metrics": True,
    }
    flags = ["--model", "mini", "--port", "9002", "--share", "false"]
    chosen = build_parser(environment).parse_args(flags)
    assert (chosen.model, chosen.port, chosen.share, chosen.device) == ("mini", 9002, False, "cpu")


def test_on_a_space_the_page_is_reached_from_outside() -> None:
    assert build_parser({"SPACE_ID": "someone/biogpt"}).parse_args([]).host == "0.0.0.0"
    given = {"SPACE_ID": "someone/biogpt", "GRADIO_SERVER_NAME": "10.0.0.1", "GRADIO_SERVER_PORT": "8080"}
    chosen = build_parser(given).parse_args([])
    assert (chosen.host, chosen.port) == ("10.0.0.1", 8080)
    assert build_parser(given | {"BIOGPT_HOST": "127.0.0.1"}).parse_args([]).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--port", "x"], {}, "'x' is no port"),
        ([], {"BIOGPT_PORT": "70000"}, "'70000' is no port"),
        (["--max-waiting", "0"], {}, "'0' is no number; expected a whole one from 1 on"),
        (["--backend", "rey"], {}, "'rey' is no backend; expected local or ray"),
        ([], {"BIOGPT_SHARE": "perhaps"}, "'perhaps' is neither true nor false"),
        (["--auth", "secret-of-ann"], {}, "expected NAME:PASSWORD, or a file"),
        (["--colour", "red"], {}, "--colour"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_2(arguments, environment, message, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser(environment).parse_args(arguments)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert "secret" not in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--device", "toaster"], "device is 'toaster'"),
        (["--precision", "float3"], "precision is 'float3'"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line_and_status_2(checkpoint, arguments, message) -> None:
    failed = run("--model", str(checkpoint), *arguments)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_replicas_need_ray_and_it_is_said_how_to_get_it(checkpoint: Path) -> None:
    failed = run("--model", str(checkpoint), "--backend", "ray")
    assert failed.returncode == 2
    assert failed.stderr == 'app.py: error: this needs Ray: pip install "ray[data,serve]==2.60.*"\n'


def test_visitors_choose_among_what_is_offered_and_learn_of_no_folder(checkpoint: Path) -> None:
    """Whatever their address: through a tunnel or a proxy everyone has this machine's own."""
    arguments = {"prompt": "ab", "max_new_tokens": 2}
    other = checkpoint.parent / "other"
    shutil.copytree(checkpoint, other)
    with app_server("--model", str(checkpoint)) as (url, _):
        refused = []
        for name in (str(other), "/no/such/folder", "../" * 9 + "etc", "microsoft/biogpt", "mini-ner", ""):
            event, data = call(url, "generate", **arguments, model=name)
            assert event == "error"
            refused.append(data["error"].replace(repr(name), "it"))
        assert set(refused) == {"model it is not offered here; choose one of tiny, mini"}
        for name in (None, "tiny", "mini"):
            assert call(url, "generate", **arguments, model=name)[0] == "complete"
        for path in ("", "config", "health", "gradio_api/info"):
            assert str(checkpoint.parent).encode() not in urllib.request.urlopen(url + path).read()
    with app_server("--model", str(checkpoint), "--models", "any") as (url, _):
        assert call(url, "generate", **arguments, model=str(other))[0] == "complete"


def test_a_folder_that_cannot_be_loaded_is_named_without_its_path(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "secret" / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "model.safetensors").write_bytes(b"damaged")
    with app_server("--model", str(broken), "--ner-model", str(tmp_path / "secret" / "x"), path="") as (
        url,
        _,
    ):
        for _ in range(600):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{url}health")
            answer = json.load(refused.value)
            if answer != {"status": "loading"}:
                break
            time.sleep(0.1)
        assert answer == {"status": "failed: broken cannot be loaded; the log says why"}
        for endpoint, given, name in (("generate", {"prompt": "a"}, "broken"), ("ner", {"text": "a"}, "x")):
            event, data = call(url, endpoint, **given)
            assert (event, data["error"]) == ("error", f"{name} cannot be loaded; the log says why")


DEMO = """
import os, sys, app
assert "gradio" not in sys.modules, "looking at the module must cost nothing"
demo = app.demo
import gradio
assert isinstance(demo, gradio.Blocks) and app.demo is demo and not hasattr(app, "interface")
print(sorted(demo.get_api_info()["named_endpoints"]), flush=True)
os._exit(0)  # the model is being loaded by a thread, and Python cannot end well while one is inside torch
"""


def test_the_page_is_there_for_gradio_to_find_when_it_is_asked_for(checkpoint: Path) -> None:
    environment = clean_environment() | {"BIOGPT_MODEL": str(checkpoint)}
    found = subprocess.run(
        [sys.executable, "-c", DEMO], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "'/generate'" in found.stdout, found.stderr


@pytest.fixture
def started(checkpoint: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of the page on a machine without a network, and what ``python app.py`` tried to reach."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    outbound = tmp_path / "outbound"
    environment = {"PYTHONPATH": str(tmp_path), "OUTBOUND": str(outbound)}
    with app_server("--model", str(checkpoint), environment=environment, path="") as (url, _):
        yield url, outbound


def test_without_a_network_it_starts_and_reaches_for_nothing(started) -> None:
    url, outbound = started
    for _ in range(600):
        try:
            assert json.load(urllib.request.urlopen(f"{url}health")) == {"status": "serving"}
            break
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(0.1)
    else:
        pytest.fail("the model was not loaded")
    time.sleep(1)  # what is sent in the background is sent soon after the start
    assert not outbound.exists(), outbound.read_text()


def test_the_terminal_names_the_page_and_how_its_model_computes(checkpoint: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "app.py", "--port", port, "--model", str(checkpoint), "--precision", "float32"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        first, *others = (next(process.stdout) for _ in range(3))
        assert first == f"Starting with {checkpoint} …\n"
        assert f"The page is at http://127.0.0.1:{port}/\n" in others
        assert any(line.startswith(f"{checkpoint.name}: float32 · CPU") for line in others), others
    finally:
        process.terminate()
        assert "launch" not in process.communicate()[0]


LONG = "Naloxone reverses the antihypertensive effect of clonidine in rats. " * 3000


def uploaded(url: str, tab: str, texts: str, taken: Event | None = None) -> str:
    """All that the page is told of a file that it runs in a tab, at its end; ``taken`` as it begins."""
    head = '--x\r\nContent-Disposition: form-data; name="files"; filename="texts.txt"\r\n\r\n'
    content = f"{head}{texts}\r\n--x--\r\n".encode()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}gradio_api/upload", content, kind)) as answer:
        [path] = json.load(answer)
    config = json.load(urllib.request.urlopen(f"{url}config"))
    [button] = [each["id"] for each in config["components"] if each["props"].get("elem_id") == f"{tab}-run"]
    [run] = [
        each for each in config["dependencies"] if [button, "click"] in each["targets"] and each["backend_fn"]
    ]
    data = ["", {"path": path, "orig_name": "texts.txt", "meta": {"_type": "gradio.FileData"}}]
    body = {"fn_index": run["id"], "data": data, "session_hash": tab, "trigger_id": button}
    status, answer = post(url, "gradio_api/queue/join", body)
    assert status == 200, answer
    if taken is not None:
        taken.set()
    with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash={tab}", timeout=120) as told:
        return told.read().decode()


SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
STOPPING = "The server is stopping; try again in a minute"


@SIGNALS
def test_told_to_end_it_tells_every_client_and_ends(number: signal.Signals) -> None:
    endless = {"max_new_tokens": 300, "min_new_tokens": 300, "num_beams": 8, "temperature": 0}
    calls: list[tuple[str, dict[str, Any]]] = [
        *[("generate", {"prompt": "The gene", **endless})] * 20,  # more than run at once
        ("generate", {"prompt": "gene " * 200, **endless}),
        ("ner", {"text": LONG}),
        ("ner", {"text": LONG}),  # waits
        ("classify", {"text": LONG}),
        ("classify", {"text": LONG, "task": "sentences"}),
    ]
    server = app_server("--max-waiting", "32")
    with server as (url, process), ThreadPoolExecutor(len(calls) + 1) as pool:
        told = [pool.submit(call, url, endpoint, **given) for endpoint, given in calls]
        taken = Event()
        page = pool.submit(uploaded, url, "entities", "\n".join([LONG[:900]] * 2000), taken)
        assert taken.wait(60)
        time.sleep(3)
        early = [each for each in (*told, page) if each.done()]
        process.send_signal(number)
        assert process.wait(60) == 0
        assert not early, [each.result() for each in early]
        for each in told:
            event, data = each.result()
            assert (event, data["error"]) == ("error", STOPPING)
        assert STOPPING in page.result()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", int(url.rsplit(":")[-1].strip("/"))))


@SIGNALS
def test_told_to_end_while_models_load_it_answers_or_tells_and_ends(number: signal.Signals) -> None:
    calls = [
        ("generate", {"prompt": "The gene"}),
        ("ner", {"text": "Naloxone."}),
        ("classify", {"text": "p53."}),
    ]
    with app_server(path="") as (url, process):
        asked = [(to, post(url, f"gradio_api/call/v2/{to}", given)[1]["event_id"]) for to, given in calls]
        process.send_signal(number)
        for endpoint, event_id in asked:
            event, data = last_event(url, endpoint, event_id)
            assert event == "complete" or (event, data["error"]) == ("error", STOPPING)
        assert process.wait(60) == 0


def running() -> dict[int, int]:
    """The processes of this machine that have not ended, with their parents."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
            found |= {int(path.parent.name): int(parent)} if state != "Z" else {}
    return found


def heaps_of_threads(process: int) -> int:
    """How many heaps glibc keeps for threads of a process: 64 MB of addresses each, the end unused."""
    size, found, before = 64 << 20, 0, 0
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        start, end = (int(place, 16) for place in line.split()[0].split("-"))
        found += " ---p " in line and end % size == 0 and before == start
        before = end if " rw-p " in line and start % size == 0 and end - start < size else 0
    return found


LENGTHY = {"prompt": "The gene", "max_new_tokens": 120, "min_new_tokens": 120, "temperature": 0}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux alone tells of processes and memory")
def test_who_asks_for_more_memory_than_there_is_fails_alone_and_a_kill_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    environment = {"GRADIO_TEMP_DIR": str(tmp_path / "files"), "HF_HOME": str(tmp_path / "hub")}
    environment |= {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"}  # a small, old machine
    server = app_server("--precision", "float32", environment=environment)
    with server as (url, process), ThreadPoolExecutor(8) as pool:
        warm = [pool.submit(call, url, "generate", prompt="The", max_new_tokens=2) for _ in range(4)]
        assert [each.result()[0] for each in warm] == ["complete"] * 4
        alone = call(url, "generate", **LENGTHY)
        assert heaps_of_threads(process.pid) == 0, "what one thread gives back, another could not use"
        status = Path(f"/proc/{process.pid}/status").read_text()
        [used] = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmSize")]
        resource.prlimit(process.pid, resource.RLIMIT_AS, (used + 120_000_000, resource.RLIM_INFINITY))
        other = pool.submit(call, url, "generate", **LENGTHY)
        labels = [
            f"{size} {kind}" for size in ("small", "large") for kind in ("trial", "gene", "tumor", "cell")
        ]
        event, why = call(url, "classify", text="A gene in cells. " * 150, labels=labels)
        assert event == "error", f"keys and values of each label take 25 MB; {why}"
        event, data = other.result()
        assert (event, data[0]["text"]) == ("complete", alone[1][0]["text"])
        assert json.load(urllib.request.urlopen(f"{url}health")) == {"status": "serving"}
        resource.prlimit(process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

        told = [pool.submit(call, url, "generate", **LENGTHY) for _ in range(4)]
        time.sleep(0.5)
        started = {child for child, parent in running().items() if parent == process.pid}
        process.kill()
        process.wait()
        for each in told:
            with pytest.raises((OSError, http.client.HTTPException, ValueError)):
                each.result()
        deadline = time.monotonic() + 30
        while started & running().keys():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", int(url.rsplit(":")[-1].strip("/"))))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_told_to_end_it_finishes_the_text_under_way_and_takes_no_more() -> None:
    with app_server() as (url, process):
        client = gradio_client.Client(url, verbose=False)
        asked = {"max_new_tokens": 100, "min_new_tokens": 100, "seed": 1, "api_name": "/generate"}
        updates = iter(client.submit("The gene", **asked))
        assert next(updates)["finish_reason"] is None
        process.terminate()
        answer = {"status": "serving"}
        for _ in range(200):
            if answer != {"status": "serving"}:
                break
            try:
                answer = json.load(urllib.request.urlopen(f"{url}health"))
                time.sleep(0.05)
            except urllib.error.HTTPError as error:
                answer = {"code": error.code} | json.load(error)
        assert answer == {"code": 503, "status": "stopping"}
        *_, last = updates
        assert last["tokens"] == 100
        assert last["finish_reason"] == "length"
        assert process.wait(60) == 0
