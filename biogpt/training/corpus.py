"""Plain text for language-model training: read, tokenised once, packed into rows of equal length."""

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from biogpt.checkpoint.files import written_whole
from biogpt.checkpoint.pretrained import BioGptTokenizer
from biogpt.runners.threads import interrupts_ignored
from biogpt.text.files import LINE_END, read_text

_LINES_AT_ONCE = 1000
_RESTS_AT_MOST = 1000


def read_texts(path: str | Path) -> list[str]:
    """The non-empty lines of a UTF-8 text file, one document each; ``.xz`` is unpacked.

    Raises:
        ValueError: the file holds no text, is not UTF-8, or is a damaged ``.xz``.
    """
    return [line.strip() for line in LINE_END.split(read_text(path)) if line.strip()]


@dataclass(frozen=True)
class Documents:
    """Tokenised documents, one after the other.

    Attributes:
        ids: [N] uint16 or int32 token ids of all documents, without control tokens.
        ends: [documents] int64, where in ``ids`` each document ends.
    """

    ids: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]

    @classmethod
    def join(cls, parts: Sequence["Documents"]) -> "Documents":
        """All documents of several files; a file named twice counts twice."""
        starts = np.cumsum([0, *(len(part.ids) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate(ends))


def tokenize_file(path: str | Path, tokenizer: BioGptTokenizer, folder: Path, processes: int) -> Documents:
    """Tokenise a text file with all cores, or read what a run with this vocabulary left in ``folder``."""
    path = Path(path)
    status = path.stat()
    # Files of one name are told apart, one that changed, and one that another vocabulary read.
    mark = zlib.crc32(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    mark = zlib.crc32(repr((list(tokenizer.vocab.items()), tokenizer.merges)).encode(), mark)
    tokens_path = folder / f"{path.name}.{mark:08x}.npz"
    if tokens_path.exists():
        with np.load(tokens_path) as arrays:
            return Documents(arrays["ids"], arrays["ends"])
    lines = read_texts(path)
    chunks = [lines[start : start + _LINES_AT_ONCE] for start in range(0, len(lines), _LINES_AT_ONCE)]
    if processes == 1:
        _keep_tokenizer(tokenizer.vocab, tokenizer.merges)
        encoded = [document for chunk in chunks for document in _encode_lines(chunk)]
    else:
        # Threads may be running by now: a forked child could inherit a lock that nobody frees.
        with interrupts_ignored():
            pool = get_context("spawn").Pool(processes, _keep_tokenizer, (tokenizer.vocab, tokenizer.merges))
        with pool:
            encoded = [document for chunk in pool.imap(_encode_lines, chunks) for document in chunk]
    documents = Documents(np.concatenate(encoded), np.cumsum([len(document) for document in encoded]))
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder, tokens_path.name) as (unfinished,), unfinished.open("wb") as file:
        np.savez(file, ids=documents.ids, ends=documents.ends)
    return documents


_worker_tokenizer: BioGptTokenizer


def _keep_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    global _worker_tokenizer
    _worker_tokenizer = BioGptTokenizer(vocab, merges)


def _encode_lines(lines: list[str]) -> list[np.ndarray]:
    dtype = np.uint16 if _worker_tokenizer.vocab_size <= 2**16 else np.int32
    return [np.array(_worker_tokenizer.encode(line, special_tokens=False).ids, dtype) for line in lines]


def pack_rows(documents: Documents, length: int, separator: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of ``length`` + 1 ids, without end: documents in a new random order each time round.

    A row starts where a document starts, as every prompt does, so that position 0 means what it will mean in
    use. The rest of a document that a row cut off fills a later row; only where such rests pile up (documents
    longer than rows) do they start rows of their own, like the later windows of a long text. Nothing is lost.

    Args:
        documents: at least one.
        length: T, positions that a row trains; the last id is only predicted.
        separator: the id before each document (``</s>``).
        seed: of the order.

    Yields:
        [T + 1] int64.
    """
    order = _endless_order(len(documents), seed)
    mark = np.array([separator])
    rests: deque[np.ndarray] = deque()
    while True:
        row: list[np.ndarray] = []
        room = length + 1
        while room:
            if rests and not row and len(rests) > _RESTS_AT_MOST:
                piece = rests.popleft()
            elif rests and row:
                piece = np.concatenate([mark, rests.popleft()])
            else:
                piece = np.concatenate([mark, documents[next(order)]])
            if len(piece) > room:
                rests.append(piece[room:])
            row.append(piece[:room])
            room -= len(row[-1])
        yield np.concatenate(row).astype(np.int64)


def _endless_order(count: int, seed: int) -> Iterator[int]:
    random = np.random.default_rng(seed)
    while True:
        yield from random.permutation(count)
