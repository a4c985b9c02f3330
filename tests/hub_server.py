"""A small Hugging Face Hub on 127.0.0.1: the part of its HTTP API that downloads and uploads need.

Repositories are folders. Weights are served as the Hub serves LFS files (named by their SHA-256), with byte
ranges. A transfer can be cut or stalled midway, a size overstated, a repository gated.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".msgpack")


@dataclass
class Repository:
    folder: Path
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(str(self.folder).encode()).hexdigest()


@dataclass
class HubServer:
    """Use as a context manager; ``url`` is the value for ``HF_ENDPOINT``.

    Attributes:
        repositories: those of one id differ by their revisions.
        cut_at: bytes after which the next transfer of a file breaks off; applied once.
        stall_at: bytes after which the next transfer of a file waits for ``resume``; applied once.
        extra_size: bytes that a file is said to have beyond those it has.
        damaged: files whose last byte arrives changed.
        uploads: where the files of a new repository go; None refuses uploads.
        requests: (method, file or API path, start of the range or None) of every request.
    """

    repositories: dict[str, list[Repository]]
    cut_at: dict[str, int] = field(default_factory=dict)
    stall_at: dict[str, int] = field(default_factory=dict)
    extra_size: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    uploads: Path | None = None
    requests: list[tuple[str, str, int | None]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume.set()
        self._server.shutdown()
        self._server.server_close()

    def transfers(self, name: str) -> list[int | None]:
        """Where each transfer of a file started; None is one of the whole file."""
        return [start for method, path, start in self.requests if method == "GET" and path == name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            self._api(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._note(path, None)
            self._error(404, "")

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self._note(path, None)
        lines = self.rfile.read(int(self.headers["Content-Length"])).decode().splitlines()
        if self.server_state.uploads is None or not self.headers.get("Authorization"):
            self._error(403, "")
        elif path == "/api/repos/create":
            asked = json.loads(lines[0])
            assert asked.get("visibility", asked.get("private")) in (
                "private",
                True,
            )  # by version of the library
            self._answer({"url": f"{self.server_state.url}/{asked.get('organization')}/{asked['name']}"})
        elif path.endswith("/preupload/main"):
            files = json.loads(lines[0])["files"]
            self._answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            )
        elif path.endswith("/commit/main"):
            for entry in map(json.loads, lines):
                if entry["key"] == "file":
                    target = self.server_state.uploads / entry["value"]["path"]
                    target.write_bytes(base64.b64decode(entry["value"]["content"]))
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            commit = "0" * 40
            address = f"{self.server_state.url}/{name}/commit/{commit}"
            self._answer({"commitUrl": address, "commitOid": commit, "success": True})
        else:
            self._error(404, "")

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _note(self, path: str, start: int | None) -> None:
        self.server_state.requests.append((self.command, path, start))

    def _repository(self, name: str, revision: str) -> Repository | None:
        known = self.server_state.repositories.get(name)
        if known is None:
            self._error(401, "RepoNotFound")  # the Hub does not tell missing from private
            return None
        for repository in known:
            if revision in (*repository.revisions, repository.commit):
                return repository
        self._error(404, "RevisionNotFound")
        return None

    def _api(self, name: str, what: str, revision: str) -> None:
        self._note(f"{what}/{revision}", None)
        repository = self._repository(name, revision.rstrip("/"))
        if repository is None:
            return
        paths = sorted(path for path in repository.folder.iterdir() if path.is_file())
        if what == "revision":
            siblings = [{"rfilename": path.name} for path in paths]
            answer: object = {"id": name, "sha": repository.commit, "siblings": siblings, "tags": []}
        else:
            answer = [_entry(path) for path in paths]
        self._answer(answer)

    def _file(self, name: str, revision: str, file: str) -> None:
        state = self.server_state
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else None
        self._note(file, start)
        repository = self._repository(name, revision)
        if repository is None:
            return
        if repository.gated:
            return self._error(403, "GatedRepo")
        path = repository.folder / file
        if not path.is_file():
            return self._error(404, "EntryNotFound")
        content = path.read_bytes()
        digest = _digest(path, content)
        if file in state.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        size = len(content) + state.extra_size.get(file, 0)
        self.send_response(200 if start is None else 206)
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - (start or 0)))
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if path.suffix in LARGE:
            self.send_header("X-Linked-ETag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = content[start or 0 :]
        if file in state.cut_at:
            self.wfile.write(body[: state.cut_at.pop(file)])
            self.close_connection = True
        elif file in state.stall_at:
            self.wfile.write(body[: state.stall_at.pop(file)])
            self.wfile.flush()
            state.stalled.set()
            state.resume.wait()
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _digest(path: Path, content: bytes) -> str:
    if path.suffix in LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # as git names it


def _entry(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    entry: dict[str, object] = {"type": "file", "path": path.name, "size": len(content), "oid": "0" * 40}
    if path.suffix in LARGE:
        entry["lfs"] = {"oid": _digest(path, content), "size": len(content), "pointerSize": 134}
    else:
        entry["oid"] = _digest(path, content)
    return entry
