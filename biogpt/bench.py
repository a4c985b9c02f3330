"""How fast this machine runs BioGPT, beside the reference where that is asked for.

Every subject (ours in each precision, and ``transformers``) loads the same random weights in a process of its
own, and they are measured in turns: what slows the machine down for a while slows all of them. Figures are
    medians.
"""

import json
import logging
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from biogpt.checkpoint.adapter import tokenizer_folder
from biogpt.checkpoint.hub import find
from biogpt.checkpoint.layout import CONFIG
from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptTokenizer,
)
from biogpt.generation.search import GenerationOptions, start_search
from biogpt.model.config import BioGptConfig
from biogpt.paths import assets
from biogpt.runners import runner_for
from biogpt.runners.precision import choose_device
from biogpt.runners.threads import interrupts_ignored
from biogpt.serving.engine import Engine, Slot
from biogpt.tasks.classification import TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.text.files import read_json
from biogpt.text.tokenizer import VOCAB_FILE

logger = logging.getLogger(__name__)

OURS, REFERENCE = "biogpt", "transformers"
HEADS = {
    "generate": BioGptForCausalLM,
    "ner": BioGptForTokenClassification,
    "classify": BioGptForSequenceClassification,
}
PROMPTS = (16, 128, 512, 1000)
POSITIONS = (32, 256, 512, 900, 1000)
_LABELS = {0: "O", 1: "B-Disease", 2: "I-Disease"}
_TEXT = (
    "Acute renal failure in high dose carboplatin chemotherapy. Carboplatin has been "
    "reported to cause acute renal "
    "failure when administered in high doses to adult patients. We report a girl who was "
    "treated with high-dose "
    "carboplatin for metastatic parameningeal embryonal rhabdomyosarcoma. Acute renal "
    "failure developed followed by a "
    "slow partial recovery of renal function. Possible contributing factors are discussed. "
)
DOCUMENTS = "documents"  # the case of documents a second
_DOCUMENTS = [_TEXT * (1 + number % 4) for number in range(8)]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        out: folder for ``bench.json`` and the plots.
        precisions: of ours.
        against: precisions of ``transformers``, which must be installed then.
        prompts: lengths in tokens, for the time to the first new token; those of ``PROMPTS`` that fit when
            empty.
        streams: numbers of requests at once, for tokens a second in all.
        positions: lengths of the text so far, for tokens a second of one stream, and of the most streams
            where these leave room for the tokens that some make while others begin; those of ``POSITIONS``
            that fit when empty.
        tagging: measure documents a second of entities and labels as well.
        heads: names of trained heads, as ``mini-ner``, to measure by documents a second, ours alone.
        rounds: how often each figure is taken.
        steps: tokens of each stream that a figure is taken over.
        config: shape of the model; weights are random.
    """

    out: Path
    precisions: Sequence[str] = ("auto", "float32")
    against: Sequence[str] = ()
    prompts: Sequence[int] = ()
    streams: Sequence[int] = (1, 4, 8, 16)
    positions: Sequence[int] = ()
    tagging: bool = False
    heads: Sequence[str] = ()
    rounds: int = 3
    steps: int = 16
    config: BioGptConfig = field(default_factory=BioGptConfig)

    def __post_init__(self) -> None:
        limit = self.config.max_position_embeddings
        for name in ("prompts", "streams", "positions"):
            if any(number < 1 for number in getattr(self, name)):
                raise ValueError(f"{name} are {list(getattr(self, name))}; expected at least 1 each")
        for name in ("rounds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.streams or not self.precisions:
            raise ValueError("streams or precisions is empty; expected at least one of each")
        spare = self.steps + _spare(min(self.streams))
        # Where none fits, the shortest is taken, to be refused below.
        if not self.prompts:
            fitting = [length for length in PROMPTS if length < limit]
            object.__setattr__(self, "prompts", tuple(fitting or PROMPTS[:1]))
        if not self.positions:
            fitting = [position for position in POSITIONS if position + spare <= limit]
            object.__setattr__(self, "positions", tuple(fitting or POSITIONS[:1]))
        # The least position is measured with the most streams, the others with as many as fit.
        most = min(self.positions) + self.steps + _spare(max(self.streams))
        longest = max([1 + max(self.prompts), *(position + spare for position in self.positions), most])
        if longest > limit:
            raise ValueError(
                f"prompts {list(self.prompts)} and positions {list(self.positions)} need "
                f"{longest} positions with "
                f"{self.steps} steps; the model has {limit}: choose shorter ones, fewer "
                "steps or fewer streams"
            )


def bench(options: BenchOptions) -> dict[str, Any]:
    """Measure, and write ``bench.json`` and plots.

    Returns:
        ``machine``: what it runs on; ``subjects``: for each a name, its figures by case, and what it loaded
            to.

    Raises:
        ValueError: a subject cannot be measured; the message says which and why.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [(OURS, precision) for precision in options.precisions]
    wanted += [(REFERENCE, precision) for precision in options.against]
    cases: list[tuple[str, tuple[int, ...]]] = [("first_token", (length,)) for length in options.prompts]
    at = min(options.positions)
    cases += [("decode", (streams, at, options.steps)) for streams in options.streams]
    for position in options.positions:
        for streams in {min(options.streams), max(options.streams)}:
            fits = position + options.steps + _spare(streams) <= options.config.max_position_embeddings
            if fits and ("decode", (streams, position, options.steps)) not in cases:
                cases.append(("decode", (streams, position, options.steps)))
    results: dict[str, Any] = {
        "machine": _machine(),
        "weights_read_a_token": _weights(options.config),
        "rounds": options.rounds,
        "steps": options.steps,
        "subjects": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        for task in ("generate", "ner", "classify") if options.tagging else ("generate",):
            folder = Path(temporary) / task
            _make_weights(task, options.config, folder)
            chosen = cases if task == "generate" else [(DOCUMENTS, ())]
            _join(results, _measure(task, folder, wanted, chosen, options.rounds))
        for head in options.heads:
            folder = find(head)
            is_tagger = "Token" in str(read_json(folder / CONFIG).get("architectures"))
            ours = wanted[: len(options.precisions)]
            measured = _measure(
                "ner" if is_tagger else "classify", folder, ours, [(DOCUMENTS, ())], options.rounds, head
            )
            _join(results, measured)
    text = json.dumps(results, indent=2, ensure_ascii=False)
    (options.out / "bench.json").write_text(text + "\n", encoding="utf-8")
    _plots(results, options)
    return results


def _join(results: dict[str, Any], measured: dict[str, dict[str, Any]]) -> None:
    for name, figures in measured.items():
        results["subjects"].setdefault(name, {"figures": {}})
        results["subjects"][name]["figures"] |= figures.pop("figures")
        results["subjects"][name] = figures | results["subjects"][name]


def _measure(
    task: str,
    folder: Path,
    wanted: Sequence[tuple[str, str]],
    cases: Sequence[tuple[str, tuple[int, ...]]],
    rounds: int,
    documents: str = "",
) -> dict[str, dict[str, Any]]:
    """Figures of each subject, by case; those of ``DOCUMENTS`` under ``documents``, or the task."""
    subjects: dict[str, _Subject] = {}
    try:
        for kind, precision in wanted:
            subjects[f"{kind} {precision}"] = _Subject(kind, task, folder, precision)
        results: dict[str, dict[str, Any]] = {
            name: subject.ask("loaded") | {"figures": {}} for name, subject in subjects.items()
        }
        for case, values in cases:
            times: dict[str, list[float]] = {name: [] for name in subjects}
            for _ in range(rounds):
                for name, subject in subjects.items():
                    times[name].append(subject.ask(case, *values))
            key = " ".join([documents or task if case == DOCUMENTS else case, *map(str, values[:2])])
            for name in subjects:
                results[name]["figures"][key] = statistics.median(times[name])
            logger.info("%s: %s", key, {name: round(results[name]["figures"][key], 3) for name in subjects})
        for name, subject in subjects.items():
            results[name]["peak_bytes"] = subject.ask("peak_bytes")
        return results
    finally:
        for subject in subjects.values():
            subject.end()


class _Subject:
    """A process with one model, asked over a pipe."""

    def __init__(self, kind: str, task: str, folder: Path, precision: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = f"{kind} {precision}"
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_answer, args=(theirs, kind, task, folder, precision), daemon=True
        )
        with interrupts_ignored():  # this process ends that one
            self._process.start()
        theirs.close()
        # Once it has imported what it needs, which nobody's loading should have to share cores with
        self._receive()

    def ask(self, method: str, *values: int) -> Any:
        try:
            self._pipe.send((method, values))
        except OSError as error:
            raise self._ended() from error
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(answer, str):
            raise ValueError(f"{self.name} cannot be measured: {answer}")
        return answer

    def _ended(self) -> ValueError:
        return ValueError(f"the process of {self.name} ended; is there enough memory for its weights?")

    def end(self) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _answer(pipe: Connection, kind: str, task: str, folder: Path, precision: str) -> None:
    """What a subject's process runs: load, then answer until the pipe closes."""
    model: Any = None
    pipe.send(None)
    while True:
        try:
            method, values = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            model = model or {OURS: _Ours, REFERENCE: _Reference}[kind](task, folder, precision)
            answer = getattr(model, method)(*values)
        except Exception as error:  # of whatever kind: it is reported where the figures are
            answer = f"{type(error).__name__}: {error}"
        try:
            pipe.send(answer)
        except OSError:  # the one who asked was interrupted
            return


class _Measured(ABC):
    """What ours and the reference share.

    Attributes:
        model, info, weight_bytes: set by ``load``: the model, its precision in words, the bytes of one
            weight.
    """

    model: Any
    info: str
    weight_bytes: int

    def __init__(self, task: str, folder: Path, precision: str) -> None:
        torch.set_grad_enabled(False)
        self.tokenizer = BioGptTokenizer.from_pretrained("mini")
        if not isinstance(self, _Ours):
            import transformers  # noqa: F401  (ours is imported by now, too: neither pays for it below)
        start = time.perf_counter()
        self.load(task, folder, precision)
        self.load_seconds = time.perf_counter() - start
        if task == "generate":
            self.first_token(16)
        self.ready_seconds = time.perf_counter() - start

    @abstractmethod
    def load(self, task: str, folder: Path, precision: str) -> None: ...

    @abstractmethod
    def first_token(self, length: int) -> float:
        """Seconds from a prompt of so many tokens to the first new one."""

    def loaded(self) -> dict[str, Any]:
        return {
            "precision": self.info,
            "weight_bytes": self.weight_bytes,
            "load_seconds": self.load_seconds,
            "load_to_first_token_seconds": self.ready_seconds,
            "served_bytes": self.peak_bytes(),
        }

    def peak_bytes(self) -> int:
        status = Path("/proc/self/status")
        if status.is_file():  # getrusage counts what the process that started this one held as well
            lines = status.read_text(encoding="utf-8").splitlines()
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def ids(self, length: int) -> list[int]:
        random = torch.Generator().manual_seed(length)
        size = min(self.model.config.vocab_size, self.tokenizer.vocab_size)
        return [2, *torch.randint(4, size, (length - 1,), generator=random).tolist()]


class _Ours(_Measured):
    def load(self, task: str, folder: Path, precision: str) -> None:
        self.model = HEADS[task].from_pretrained(folder, precision=precision, trainable=False)
        self.info = self.model.precision.reason
        self.weight_bytes = 1 if self.model.precision.int8 else self.model.dtype.itemsize
        if task == "generate":
            self.engine = Engine(runner_for(self.model), cache_bytes=2**62, max_running=1024)
            return
        vocabulary = tokenizer_folder(folder)
        if (vocabulary / VOCAB_FILE).exists():  # not of random weights
            self.tokenizer = BioGptTokenizer.from_pretrained(vocabulary)
        if task == "ner":
            self.batch: Any = EntityRecognizer(self.model, self.tokenizer).batch
        else:
            classifier = TextClassifier(self.model, self.tokenizer)
            of_sentences = self.model.config.sentence_encoder_size > 0
            self.batch = partial(map, classifier.sentences) if of_sentences else classifier.batch

    def first_token(self, length: int) -> float:
        slot = self._submit(length, 1, session=None)
        start = time.perf_counter()
        while not slot.made:
            self.engine.step()
        seconds = time.perf_counter() - start
        self.engine.drop(everyone=True)
        return seconds

    def decode(self, streams: int, position: int, steps: int) -> float:
        """Tokens a second in all."""
        self.engine.runner.prepare()  # once for a process, so it is no part of any figure
        slots: list[Slot] = []
        for _ in range(streams):  # of one session: the first reads the prompt, the others take it from there
            slots.append(self._submit(position, steps + _spare(streams), session="bench"))
            while not slots[-1].made:
                self.engine.step()
        made = sum(slot.made for slot in slots)
        start = time.perf_counter()
        for _ in range(steps):
            self.engine.step()
        seconds = time.perf_counter() - start
        assert sum(slot.made for slot in slots) == made + streams * steps, (
            "a stream ended before the others began"
        )
        self.engine.drop(everyone=True)
        return streams * steps / seconds

    def documents(self) -> float:
        """Documents a second."""
        start = time.perf_counter()
        list(self.batch(_DOCUMENTS))
        return len(_DOCUMENTS) / (time.perf_counter() - start)

    def _submit(self, length: int, tokens: int, session: str | None) -> Slot:
        search = start_search(
            self.model.config,
            self.ids(length),
            GenerationOptions(max_new_tokens=tokens, min_new_tokens=tokens),
        )
        slot = Slot(search, session)
        self.engine.submit(slot)
        return slot


class _Reference(_Measured):
    def load(self, task: str, folder: Path, precision: str) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        kind = getattr(transformers, HEADS[task].__name__)
        self.info = precision
        self.weight_bytes = getattr(torch, precision).itemsize
        self.model = kind.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
        if task == "generate":
            return
        name: Any = {"ner": "token-classification", "classify": "text-classification"}[task]
        tokenizer = transformers.BioGptTokenizer.from_pretrained(assets() / "models" / "mini")
        self.pipeline = transformers.pipeline(name, self.model, tokenizer=tokenizer)

    def first_token(self, length: int) -> float:
        ids = torch.tensor([self.ids(length)])
        start = time.perf_counter()
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=1
        )
        return time.perf_counter() - start

    def decode(self, streams: int, position: int, steps: int) -> float:
        """Tokens a second in all."""
        out = self.model(torch.tensor([self.ids(position)]), use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        cache.batch_repeat_interleave(streams)
        token = out.logits[:, -1].argmax(-1, keepdim=True).repeat(streams, 1)
        start = time.perf_counter()
        for step in range(steps):
            places = torch.full((streams, 1), position + step)
            out = self.model(token, past_key_values=cache, use_cache=True, position_ids=places)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
        return streams * steps / (time.perf_counter() - start)

    def documents(self) -> float:
        """Documents a second."""
        start = time.perf_counter()
        list(self.pipeline(_DOCUMENTS))
        return len(_DOCUMENTS) / (time.perf_counter() - start)


def _weights(config: BioGptConfig) -> int:
    """Of all linear layers, the output projection included: what every step reads."""
    width = config.hidden_size
    layer = 4 * width * width + 2 * width * config.intermediate_size
    return config.num_hidden_layers * layer + width * config.vocab_size


def _spare(streams: int) -> int:
    """Tokens that a stream makes while the prompts of the others are read, and some more."""
    return streams + 4


def _make_weights(task: str, config: BioGptConfig, folder: Path) -> None:
    torch.manual_seed(0)
    plain = config.with_new_head(None if task == "generate" else _LABELS)
    shape = replace(plain, problem_type=None, bidirectional_layers=0)
    model = HEADS[task](shape)
    model.half().save_pretrained(folder)


def _machine() -> dict[str, Any]:
    """Processor, threads, torch, and the bandwidth of reading memory in GB/s."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    block = torch.ones(2**27, dtype=torch.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - start)
    return {
        "device": str(choose_device()),
        "processor": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "read_gb_per_second": block.nbytes / min(times) / 1e9,
    }


def table(results: dict[str, Any]) -> str:
    """The figures for people, in Markdown: a row a case, a column a subject.

    Then the ratios to the reference.
    """
    subjects = results["subjects"]
    names = list(subjects)
    machine = results["machine"]
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, {machine['capability']}, "
        f"torch {machine['torch']}, "
        f"reads {machine['read_gb_per_second']:.0f} GB/s",
        *(f"{name}: {subjects[name]['precision']}" for name in names),
        "",
        "| Figure | " + " | ".join(names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for key, words in (
        ("load_to_first_token_seconds", "load to first token, s"),
        ("served_bytes", "peak memory, GB"),
    ):
        scale = 1e-9 if "bytes" in key else 1
        lines.append(
            f"| {words} | " + " | ".join(f"{subjects[name][key] * scale:.2f}" for name in names) + " |"
        )
    for case in dict.fromkeys(case for name in names for case in subjects[name]["figures"]):
        figures = [subjects[name]["figures"].get(case) for name in names]
        cells = " | ".join("–" if figure is None else f"{figure:.3g}" for figure in figures)
        lines.append(f"| {_words(case)} | {cells} |")
        if case.startswith("decode 1 "):
            rates = [
                subjects[name]["figures"][case]
                * subjects[name]["weight_bytes"]
                * results["weights_read_a_token"]
                for name in names
            ]
            shares = " | ".join(
                f"{rate / 1e9:.1f} ({rate / 1e9 / machine['read_gb_per_second']:.0%})" for rate in rates
            )
            lines.append(f"| – weights read, GB/s, and as a share of what this machine reads | {shares} |")
    lines += _ratios(subjects)
    return "\n".join(lines)


def _ratios(subjects: dict[str, Any]) -> list[str]:
    """How many times as fast each of ours is as each of the reference, case by case."""
    lines = []
    for reference in (name for name in subjects if name.startswith(REFERENCE)):
        ours = [name for name in subjects if name.startswith(OURS)]
        lines += [
            "",
            f"| Times as fast as {reference} | " + " | ".join(ours) + " |",
            "|---" * (1 + len(ours)) + "|",
        ]
        for case, theirs in subjects[reference]["figures"].items():
            ratios = [subjects[name]["figures"][case] / theirs for name in ours]
            if case.startswith("first_token"):
                ratios = [1 / ratio for ratio in ratios]
            lines.append(
                f"| {_words(case).rpartition(',')[0]} | " + " | ".join(f"{r:.1f}" for r in ratios) + " |"
            )
    return lines


def _words(case: str) -> str:
    kind, *values = case.split()
    match kind:
        case "first_token":
            return f"first token of {values[0]}, s"
        case "decode":
            streams = f"{values[0]} stream" + ("s in all" if values[0] != "1" else "")
            return f"{streams} at position {values[1]}, tokens/s"
        case _:
            return f"{kind}, documents/s"


def _plots(results: dict[str, Any], options: BenchOptions) -> None:
    most = max(options.streams)
    curves = {
        "streams.png": ("streams", options.streams, lambda x: f"decode {x} {min(options.positions)}"),
        "position.png": (f"position, {most} streams", options.positions, lambda x: f"decode {most} {x}"),
        "position-1.png": (
            "position, one stream",
            options.positions,
            lambda x: f"decode {min(options.streams)} {x}",
        ),
    }
    for file, (label, points, key) in curves.items():
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for name, subject in results["subjects"].items():
            known = [x for x in points if key(x) in subject["figures"]]
            axes.plot(known, [subject["figures"][key(x)] for x in known], marker="o", label=name)
        axes.set_xlabel(label)
        axes.set_ylabel("tokens/s in all")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
        figure.savefig(options.out / file, dpi=120, format="png")
