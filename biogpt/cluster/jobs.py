"""Jobs: files of texts in, a file of results for each, one row for every row and in their order.

A file of results is written whole, so what is there is finished: a job that is started again does the rest.
Rows are read, worked on and written in parts, whose bounds depend on the file alone, so that a job that was
cut off and goes on writes the very bytes of one that ran through.
"""

import glob
import json
import logging
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, takewhile
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn, Protocol

import torch
from tqdm import tqdm

from biogpt.checkpoint.files import written_whole
from biogpt.cluster.parquet import SUFFIX, ParquetRows, check_parquet, read_parquet
from biogpt.cluster.work import Task, loaded, worked
from biogpt.text.documents import FORMATS, Row, read_rows

logger = logging.getLogger(__name__)

OUTPUTS = ("jsonl", "parquet")
SETTINGS = "job.json"  # in the folder of results: what they were made with
_ROWS = 128  # of a part
_SHOWN = 5  # files that could not be read


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a file.

    Attributes:
        path: of the file.
        first, total: the place of the first row, and how many the file has.
        rows: as read; none where the file has none or cannot be read.
        error: why the file cannot be read.
    """

    path: str
    first: int
    total: int
    rows: Sequence[Row] = ()
    error: str = ""


@dataclass(frozen=True)
class Done:
    """A part and the results of its rows."""

    path: str
    first: int
    total: int
    results: Sequence[dict[str, Any]] = ()
    error: str = ""


class Workers(Protocol):
    """Who works: gives the parts of all files in order, the files in the order given."""

    def __call__(self, task: Task, paths: Sequence[str]) -> Generator[Done, None, None]: ...


def parts_of(path: str) -> Iterator[Part]:
    """The rows of a file in parts: at least one."""
    try:
        rows = read_parquet(Path(path)) if path.lower().endswith(SUFFIX) else read_rows(path)
    except (ValueError, OSError) as error:
        yield Part(path, 0, 0, error=str(error))
        return
    for first in range(0, max(1, len(rows)), _ROWS):
        yield Part(path, first, len(rows), rows[first : first + _ROWS])


def work_on(task: Task, part: Part) -> Done:
    """The results of a part.

    Raises:
        ValueError, OSError: the task's model cannot be loaded.
    """
    return Done(part.path, part.first, part.total, worked(loaded(task), part.rows), part.error)


def work_here(task: Task, paths: Sequence[str]) -> Generator[Done, None, None]:
    """Work in this process."""
    for path in paths:
        for part in parts_of(path):
            yield work_on(task, part)


@dataclass(frozen=True)
class Processes:
    """So many processes of this machine, which share its cores; each loads the model."""

    count: int

    def __call__(self, task: Task, paths: Sequence[str]) -> Generator[Done, None, None]:
        """As ``Workers``.

        Raises:
            OSError: one of the processes ended.
        """
        parts = (part for path in paths for part in parts_of(path))
        threads = max(1, (os.cpu_count() or 1) // self.count)
        pool = ProcessPoolExecutor(self.count, get_context("spawn"), partial(_begin, threads))
        waiting: deque[Future[Done]] = deque()
        try:
            for part in parts:
                waiting.append(pool.submit(work_on, task, part))
                if len(waiting) > 2 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise OSError(
                "a process of the job ended: it was killed, or had too little memory. Finished files are "
                "kept; run the same command again to go on, perhaps with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    """In a new process: leave Ctrl+C to the one that started it, and end when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    parent = parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    Thread(target=end, daemon=True).start()


def _root(pattern: Path) -> Path:
    """The folder of all that a pattern names, below which files of results lie as those lie below it."""
    plain = takewhile(lambda part: not set("*?[") & set(part), pattern.parts)
    root = Path(*plain)
    return pattern.parent if root == pattern else root


class _Lines:
    """Rows written to a JSON Lines file."""

    def __init__(self, path: Path, _: Mapping[str, Any]) -> None:
        self._file = path.open("w", encoding="utf-8", errors="replace", newline="\n")

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Job:
    """Files and where their results go.

    Args:
        given: a folder, with all below it, or a glob pattern.
        output: a folder; it is made, and what lies below it is not read.
        kind: of the results, one of ``OUTPUTS``.
    """

    task: Task
    given: str
    output: Path
    kind: str = "jsonl"

    def files(self) -> dict[str, Path]:
        """The files to read, sorted, and the file of results of each.

        Raises:
            ValueError: there is none.
        """
        folder = Path(self.given).expanduser()
        if "://" in self.given:
            raise ValueError(
                f"{self.given} is an address; expected a folder, or a pattern of files, of this machine"
            )
        if folder.is_dir():
            root, found = folder, sorted(folder.rglob("*"))
        else:
            root, found = _root(folder), sorted(map(Path, glob.glob(str(folder), recursive=True)))
        files: dict[str, Path] = {}
        others = 0
        for path in found:
            inside = path.relative_to(root)
            if not path.is_file() or path.resolve().is_relative_to(self.output.resolve()):
                continue
            if path.suffix.lower() not in (*FORMATS, SUFFIX) or any(part[0] == "." for part in inside.parts):
                others += 1
                continue
            files[str(path)] = self.output / f"{inside}.{self.kind}"
        if others:
            logger.info("%d files are hidden or of other kinds, and are left out", others)
        if not files:
            raise ValueError(
                f"{self.given} names no file that can be read; expected a folder or a pattern such as "
                f"'texts/*.csv', and files of {', '.join((*FORMATS, SUFFIX))}"
            )
        return files

    def run(self, workers: Workers) -> int:
        """Do what is not done yet, with a bar of progress on standard error.

        Returns:
            How many rows failed.

        Raises:
            ValueError: the folder holds results of another job, or something else; no file is found; some
                could not be read, and all others are done.
            OSError: results cannot be written.
        """
        files = self.files()
        if self.kind == "parquet" or any(path.lower().endswith(SUFFIX) for path in files):
            check_parquet()
        self._claim()
        left = [path for path, results in files.items() if not results.exists()]
        if len(left) < len(files):
            logger.info("%d of %d files are done already", len(files) - len(left), len(files))
        if not left:
            return 0
        faults: list[str] = []
        failed = 0
        sizes = {path: os.path.getsize(path) for path in left}
        with tqdm(unit=" rows", smoothing=0.05) as bar, closing(workers(self.task, left)) as done:
            seen_bytes = seen_rows = 0
            for path in left:
                first = next(done)
                seen_bytes, seen_rows = seen_bytes + sizes[path], seen_rows + first.total
                # Rows are known of files that were read; of the others, as many a byte are expected.
                bar.total = round(seen_rows * sum(sizes.values()) / max(1, seen_bytes))
                if first.error:
                    faults.append(f"{path}: {first.error}")
                else:
                    failed += self._write(path, files[path], chain([first], done), bar)
            bar.total = bar.n
        if faults:
            raise ValueError(
                f"{len(faults)} of {len(files)} files could not be read, all others are done: "
                + "; ".join(faults[:_SHOWN])
            )
        return failed

    def _write(self, path: str, results: Path, parts: Iterator[Done], bar: "tqdm[NoReturn]") -> int:
        """Write the results of a file, whose parts come next, and say how many of them are errors."""
        failed = written = 0
        results.parent.mkdir(parents=True, exist_ok=True)
        make = ParquetRows if self.kind == "parquet" else _Lines
        columns = {"id": str, "text": str, **self.task.columns, "error": str}
        with (
            written_whole(results.parent, results.name) as (unfinished,),
            closing(make(unfinished, columns)) as rows,
        ):
            for part in parts:
                if (part.path, part.first) != (path, written):
                    raise RuntimeError(f"row {part.first} of {part.path} came after {written} of {path}")
                rows.write(part.results)
                written += len(part.results)
                failed += sum("error" in result for result in part.results)
                bar.update(len(part.results))
                if written == part.total:
                    break
        return failed

    def _claim(self) -> None:
        """Make the folder of results, or see that it is this job's.

        Raises:
            ValueError: it is not.
        """
        settings = json.loads(
            json.dumps({"task": type(self.task).__name__, **asdict(self.task), "results": self.kind})
        )
        path = self.output / SETTINGS
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                before = {}
            other = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
            if other:
                said = ", ".join(f"{name} {before.get(name)!r}, not {settings.get(name)!r}" for name in other)
                raise ValueError(
                    f"{self.output} holds results of another job ({said}); choose another folder, or these "
                    "settings again"
                )
        elif self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise ValueError(
                f"{self.output} is there and holds no results of a job; choose a new or empty folder"
            )
        else:
            self.output.mkdir(parents=True, exist_ok=True)
            with written_whole(self.output, SETTINGS) as (unfinished,):
                unfinished.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
