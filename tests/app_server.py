"""``python app.py`` as a process of its own, for tests that need the real thing."""

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

ROOT = Path(__file__).resolve().parents[1]
_OURS = ("BIOGPT_", "GRADIO_", "SPACE_", "SPACES_", "HF_", "XDG_")


def clean_environment() -> dict[str, str]:
    """Without the variables that change what the page does."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}


@contextmanager
def app_server(
    *arguments: str, environment: Mapping[str, str] | None = None, path: str = "health"
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
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(1200):
            assert process.poll() is None, "app.py ended"
            try:
                urllib.request.urlopen(url + path).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url, process
    finally:
        process.terminate()
        process.wait()
