"""How fast a model is on this machine: a table, a JSON file and plots, alone or against ``transformers``.

Speed does not depend on what weights hold, so without a checkpoint a random model is made: of the size of BioGPT base.
Every figure comes from the engine that serves requests. The reference, when asked for, takes turns with it in the same
run; what counts are the ratios, since machines and moments differ.
"""

import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biogpt.config import BioGptConfig
from biogpt.device import describe
from biogpt.engine import Engine, Slot
from biogpt.generate import GenerationOptions, start_search
from biogpt.heads import BioGptForCausalLM
from biogpt.quantize import pack

_MEGABYTE = 10**6
_READ = 256 * _MEGABYTE  # bytes that are summed to measure memory


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        out: folder of ``bench.json`` and the plots.
        model: a folder with a language model; a random BioGPT base when None.
        precisions: of ours, in turn.
        prompts: tokens of the prompts whose first token is timed.
        streams: how many at once.
        contexts: positions at which one stream's speed is measured.
        tokens: made by each stream.
        rounds: repetitions, of which the median counts.
        against: "transformers", in float32, or nothing.
    """

    out: Path
    model: Path | None = None
    precisions: tuple[str, ...] = ("auto",)
    prompts: tuple[int, ...] = (16, 128, 512, 1000)
    streams: tuple[int, ...] = (1, 4, 8, 16)
    contexts: tuple[int, ...] = (32, 500, 1000)
    tokens: int = 16
    rounds: int = 3
    against: str = ""


Measured = dict[str, Any]
Run = Callable[
    [int, int, int], tuple[float, float]
]  # streams, prompt tokens, new tokens: first token s, tokens/s


def bench(options: BenchOptions) -> Measured:
    """Measure, write ``bench.json`` and plots, and return what the file holds.

    Raises:
        ValueError: ``against`` is not a known peer.
    """
    if options.against not in ("", "transformers"):
        raise ValueError(f"against is {options.against!r}; expected 'transformers', or nothing")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = options.model or _random_model(Path(folder))
        results: Measured = {
            "machine": f"{platform.machine()}, {platform.system()}, torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "read_gb_s": _read_bandwidth(),
            "precisions": {},
        }
        peer = _Reference(source) if options.against else None
        for precision in options.precisions:
            results["precisions"][precision] = _measure(
                source, precision, options, peer, results["read_gb_s"]
            )
    (options.out / "bench.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    _plot(results, options.out)
    return results


def table(results: Measured) -> str:
    """The figures as lines for people; ratios are of the peer in the same run."""
    lines = [
        f"{results['machine']}, {results['threads']} threads, memory read at {results['read_gb_s']:.0f} GB/s"
    ]
    for precision, figures in results["precisions"].items():
        lines.append(
            f"{precision}: {figures['described']}; loaded in {figures['load_s']:.2f} s, "
            f"at most {figures['peak_mb']:.0f} MB resident"
        )
        for row in figures["runs"]:
            ratio = f"  {row['ratio']:.2f} x transformers" if "ratio" in row else ""
            lines.append(f"  {row['figure']:<16}{row['at']:>6}  {row['value']:>9.3f} {row['unit']}{ratio}")
        lines.append(
            f"  one stream reads weights at {figures['share_of_bandwidth']:.0%} of the memory's speed"
        )
    return "\n".join(lines)


def _measure(
    source: Path, precision: str, options: BenchOptions, peer: "_Reference | None", bandwidth: float
) -> Measured:
    start = time.perf_counter()
    model = BioGptForCausalLM.from_pretrained(source, device="cpu", precision=precision)
    pack(model)
    load = time.perf_counter() - start
    ours = _ours(model)
    ours(1, 4, 2)  # what the first request prepares
    if peer:
        peer(1, 4, 2)
    limit = model.config.max_position_embeddings - options.tokens
    runs: list[Measured] = []

    def figure(name: str, at: int, unit: str, request: tuple[int, int, int], which: int) -> None:
        pairs = [
            (ours(*request)[which], peer(*request)[which] if peer else 0.0) for _ in range(options.rounds)
        ]
        value, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        row: Measured = {"figure": name, "at": at, "unit": unit, "value": value}
        if peer:
            ratios = [theirs / mine if which == 0 else mine / theirs for mine, theirs in pairs]
            row |= {"transformers": theirs, "ratio": statistics.median(ratios)}
        runs.append(row)

    for prompt in options.prompts:
        figure("first token", prompt, "s", (1, min(prompt, limit), 1), 0)
    for streams in options.streams:
        figure("streams", streams, "tokens/s", (streams, 16, options.tokens), 1)
    for context in options.contexts:
        figure("at position", context, "tokens/s", (1, min(context, limit), options.tokens), 1)
    config = model.config
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    weights = config.num_hidden_layers * layer + config.vocab_size * config.hidden_size
    assert model.precision is not None
    one = next((row["value"] for row in runs if row["figure"] == "streams" and row["at"] == 1), 0.0)
    bytes_a_token = weights * (1 if model.precision.int8 else model.dtype.itemsize)
    return {
        "described": describe(model.device, model.precision),
        "reason": model.precision.reason,
        "load_s": load,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEGABYTE,
        "achieved_gb_s": one * bytes_a_token / 1e9,
        "share_of_bandwidth": one * bytes_a_token / 1e9 / bandwidth,
        "runs": runs,
    }


def _ours(model: BioGptForCausalLM) -> Run:
    engine = Engine(model)

    def run(streams: int, prompt: int, tokens: int) -> tuple[float, float]:
        options = GenerationOptions(max_new_tokens=tokens, min_new_tokens=tokens)
        slots = [Slot(start_search(model, _prompt(model.config, prompt, i), options)) for i in range(streams)]
        start = time.perf_counter()
        for slot in slots:
            engine.submit(slot)
        while not all(slot.made for slot in slots):
            engine.step()
        first = time.perf_counter()
        made = sum(slot.made for slot in slots)
        while engine.has_work:
            engine.step()
        rest = streams * tokens - made
        return first - start, rest / max(time.perf_counter() - first, 1e-9)

    return run


class _Reference:
    """The same requests by ``transformers``, as one batch, in float32."""

    def __init__(self, source: Path) -> None:
        import transformers

        self.model = transformers.BioGptForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    @torch.inference_mode()
    def __call__(self, streams: int, prompt: int, tokens: int) -> tuple[float, float]:
        config = self.model.config
        ids = torch.tensor([_prompt(config, prompt, i) for i in range(streams)])
        start = time.perf_counter()
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        first = time.perf_counter()
        for _ in range(tokens - 1):
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            out = self.model(ids, past_key_values=out.past_key_values, use_cache=True)
        return first - start, streams * (tokens - 1) / max(time.perf_counter() - first, 1e-9)


def _prompt(config: Any, length: int, seed: int) -> list[int]:
    return [2] + [4 + (7 * i + seed) % (config.vocab_size - 4) for i in range(length - 1)]


def _random_model(folder: Path) -> Path:
    torch.manual_seed(0)
    BioGptForCausalLM(BioGptConfig()).save_pretrained(folder)
    return folder


def _read_bandwidth() -> float:
    """Gigabytes a second of a sum over memory, the best of a few."""
    numbers = torch.ones(_READ // 4)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return _READ / min(seconds) / 1e9


def _plot(results: Measured, folder: Path) -> None:
    """``streams.png`` and ``context.png``: tokens a second in all against how many streams, and against position."""
    from matplotlib.figure import Figure

    for name, kind, label in (
        ("streams", "streams", "streams at once"),
        ("context", "at position", "position"),
    ):
        plot = Figure(figsize=(6, 4), layout="constrained")
        axes = plot.subplots()
        for precision, figures in results["precisions"].items():
            rows = [row for row in figures["runs"] if row["figure"] == kind]
            axes.plot([row["at"] for row in rows], [row["value"] for row in rows], "o-", label=precision)
            if rows and "transformers" in rows[0]:
                places = [row["at"] for row in rows]
                axes.plot(places, [row["transformers"] for row in rows], "s--", label="transformers, float32")
        axes.set(xlabel=label, ylabel="tokens a second in all", ylim=(0, None))
        axes.legend()
        plot.savefig(folder / f"{name}.png", dpi=120)
