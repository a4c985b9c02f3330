"""``python app.py`` as a process of its own, for tests that need the real thing."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.model.config import BioGptConfig

ROOT = Path(__file__).resolve().parents[1]
_OURS = ("BIOGPT_", "GRADIO_", "SPACE_", "SPACES_", "HF_", "XDG_")


def clean_environment() -> dict[str, str]:
    """Without the variables that change what the page does."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}


def post(url: str, path: str, body: Any) -> tuple[int, Any]:
    """The HTTP status and the JSON that a program gets which sends JSON, or text as it is."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def call(url: str, endpoint: str, **arguments: Any) -> tuple[str, Any]:
    """The last event of a call of the API and its data; the event is an HTTP status where that refuses."""
    status, asked = post(url, f"gradio_api/call/v2/{endpoint}", arguments)
    if status != 200:
        return str(status), asked
    return last_event(url, endpoint, asked["event_id"])


def last_event(url: str, endpoint: str, event_id: str) -> tuple[str, Any]:
    """The last event of a call that was asked for, and its data."""
    with urllib.request.urlopen(f"{url}gradio_api/call/{endpoint}/{event_id}", timeout=120) as answer:
        *_, event, data = answer.read().decode().strip().splitlines()
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def save_tiny(folder: Path, layers: int = 1) -> None:
    """A small language model of random weights, with one layer in no time at its end."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "a", "b</w>", "ab</w>"]
    tokenizer = BioGptTokenizer({token: index for index, token in enumerate(tokens)}, [("a", "b</w>")])
    config = BioGptConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=1024,
    )
    BioGptForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def app_server(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    path: str = "health",
    log: IO[str] | None = None,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of the page, as soon as ``path`` answers with success, and its process, ended after use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), *arguments],
        cwd=ROOT,
        env=clean_environment() | dict(environment or {}),
        stdout=subprocess.DEVNULL,
        stderr=log,
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(6000):
            assert process.poll() is None, "app.py ended"
            try:
                urllib.request.urlopen(url + path).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise TimeoutError(f"{url}{path} did not answer in ten minutes")
        yield url, process
    finally:
        process.terminate()
        process.wait()
