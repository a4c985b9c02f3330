"""``bench --quick``: is what a device computes right, and how fast is it; a few minutes, no network.

It runs the runner for CUDA, whose programs are captured on such a GPU and launched operation by operation
elsewhere. Checks come first, on ``mini``, then figures of random weights.
"""

import importlib.util
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptForTokenClassification, BioGptTokenizer
from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import start_search
from biogpt.model.config import BioGptConfig
from biogpt.runners.cuda import CudaRunner
from biogpt.runners.plain import PlainRunner
from biogpt.runners.precision import bfloat16_pays, choose_device, choose_precision, describe
from biogpt.runners.runner import ModelRunner
from biogpt.serving.engine import Engine, Slot
from biogpt.tasks.entities import EntityRecognizer

logger = logging.getLogger(__name__)

_TEXT = (
    "Naloxone reverses the antihypertensive effect of clonidine. In unanesthetized, spontaneously "
    "hypertensive rats the decrease in blood pressure and heart rate produced by intravenous clonidine was "
    "inhibited or reversed by naloxone."
)
_KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8, "top_p": 0.9},
    {"num_beams": 4, "num_return_sequences": 2},
    {"temperature": 1.2, "top_k": 40, "min_p": 0.02, "num_return_sequences": 2},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    {"temperature": 1.0, "min_new_tokens": 20, "repetition_penalty": 1.1},
)


_CHECKED = 8  # rows of the checks, for which some requests have to wait


@dataclass(frozen=True)
class QuickOptions:
    """What to run.

    Attributes:
        device, precision: as of ``BioGptForCausalLM.from_pretrained``.
        config: shape of the model whose figures are taken; weights are random.
        steps: tokens of each stream that a figure is taken over.
        streams: numbers of requests at once.
        requests: after which memory is looked at again.
    """

    device: str = "auto"
    precision: str = "auto"
    config: BioGptConfig = field(default_factory=BioGptConfig)
    steps: int = 64
    streams: Sequence[int] = (1, 4, 16, 64)
    requests: int = 1_000


def quick(options: QuickOptions) -> dict[str, Any]:
    """Check, then measure.

    Returns:
        ``machine``; ``checks``: by name "right", or what is wrong, or why it was left out; ``figures``: by
        name, in seconds, tokens a second, bytes.
    """
    begun = time.perf_counter()
    device = choose_device(options.device)
    if options.precision == "auto" and device.type == "cpu":
        dtype = torch.float32
    else:
        dtype = choose_precision(options.precision, device).dtype
    results: dict[str, Any] = {
        "machine": {
            "device": describe(device, str(dtype).removeprefix("torch.")),
            "torch": torch.__version__,
            "captured": device.type == "cuda",
        },
        "checks": _checks(device),
        "figures": _figures(options, device, dtype),
    }
    return results | {"seconds": time.perf_counter() - begun}


def wrong(results: dict[str, Any]) -> list[str]:
    """The checks that found something wrong."""
    return [name for name, found in results["checks"].items() if not found.startswith(("right", "left out"))]


def _checks(device: torch.device) -> dict[str, str]:
    near = BioGptForCausalLM.from_pretrained("mini", device="cpu", precision="float32")
    tokenizer = BioGptTokenizer.from_pretrained(near.folder)
    ids = tokenizer.encode(_TEXT).ids
    asked = [
        (ids[: 3 + 9 * index], GenerationOptions(max_new_tokens=20, seed=index, top_logprobs=3, **kind))
        for index, kind in enumerate(_KINDS)
    ]
    wanted = _written(PlainRunner(near), asked)
    checks: dict[str, str] = {}
    for precision in ("float32", "bfloat16") if bfloat16_pays(device.type) else ("float32",):
        far = BioGptForCausalLM.from_pretrained("mini", device=str(device), precision=precision)
        runner = CudaRunner(far)
        together = _written(runner, asked)
        alone = [_written(runner, [request])[0] for request in asked]
        differ = [
            str(index) for index, pair in enumerate(zip(together, alone, strict=True)) if pair[0] != pair[1]
        ]
        checks[f"company, {precision}"] = (
            f"requests {', '.join(differ)} of {len(asked)} differ alone" if differ else "right, to the bit"
        )
        if precision == "float32":
            for name, kinds in (("greedy", (0, 4)), ("sampled", (1, 3, 5)), ("beams", (2,))):
                same = [_ids(together[index]) == _ids(wanted[index]) for index in kinds]
                # Sums round otherwise on another device: one id may differ where two were as good as equal.
                checks[f"{name}, ids of the CPU"] = (
                    "right" if all(same) else f"{same.count(False)} of {len(same)} differ"
                )
            checks["logits of transformers"] = _like_reference(far, ids)
    texts = [_TEXT, _TEXT[:59]]
    heads = [
        BioGptForTokenClassification.from_pretrained("mini-ner", device=where, precision="float32")
        for where in ("cpu", str(device))
    ]
    found = [EntityRecognizer(head, tokenizer) for head in heads]
    spans = [
        [(entity.label, entity.start, entity.end) for text in texts for entity in recognizer(text)]
        for recognizer in found
    ]
    checks["entities of the CPU"] = "right" if spans[0] == spans[1] else f"{spans[1]}, not {spans[0]}"
    return checks


def _like_reference(model: BioGptForCausalLM, ids: list[int]) -> str:
    reference = _reference(model)
    if reference is None:
        return "left out: transformers is not installed"
    row = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        difference = float((model(row).logits - reference(row).logits).abs().max())
    [tokens] = _written(CudaRunner(model), [(ids, GenerationOptions(max_new_tokens=24, min_new_tokens=24))])
    theirs = reference.generate(
        row,
        attention_mask=torch.ones_like(row),
        max_new_tokens=24,
        min_new_tokens=24,
        do_sample=False,
        pad_token_id=1,
    )[0, len(ids) :].tolist()
    if difference > 1e-3 or _ids(tokens) != theirs:
        return f"they differ by {difference:.1e}, ids {'' if _ids(tokens) == theirs else 'not '}equal"
    return f"right: they differ by {difference:.1e}, greedy ids equal"


def _reference(model: BioGptForCausalLM) -> Any:
    if importlib.util.find_spec("transformers") is None:
        return None
    import transformers

    transformers.logging.set_verbosity_error()
    reference = transformers.BioGptForCausalLM(transformers.BioGptConfig.from_dict(model.config.to_dict()))
    reference.load_state_dict(model.state_dict())
    moved: torch.nn.Module = reference  # whose types say less
    return moved.to(model.device, model.dtype).eval()


def _ids(results: list[Any]) -> list[Any]:
    return [[found.ids for found in one] if isinstance(one, list) else one.id for one in results]


def _written(runner: ModelRunner, asked: Sequence[tuple[list[int], GenerationOptions]]) -> list[list[Any]]:
    """What requests get that begin one step after another."""
    engine, slots = (
        Engine(runner, _CHECKED * runner.cache_bytes(1, runner.config.max_position_embeddings)),
        [],
    )
    for ids, options in asked:
        slots.append(Slot(start_search(runner.config, ids, options)))
        engine.submit(slots[-1])
        engine.step()
    while engine.has_work:
        engine.step()
    results: list[list[Any]] = []
    for slot in slots:
        results.append([])
        while (result := slot.results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            results[-1].append(result)
    return results


def _figures(options: QuickOptions, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    config, limit, most = options.config, options.config.max_position_embeddings, max(options.streams)
    torch.manual_seed(0)
    with torch.device(device):
        model = BioGptForCausalLM(config).to(dtype).eval().requires_grad_(False)
    figures: dict[str, float] = {}
    begun = time.perf_counter()
    runner = CudaRunner(model)
    bench = _Bench(runner, most)
    bench.read(1, 16, 1)
    figures["ready to serve, s"] = time.perf_counter() - begun
    middle = min(512, limit // 2)
    for streams in (count for count in options.streams if count <= runner.most):
        name = f"{streams} stream{'s in all' if streams > 1 else ''}"
        bench.read(streams, 32, options.steps)
        figures[f"{name}, tokens/s"] = bench.decode(options.steps)
        if streams in (16, most):
            long = min(900, limit - _tokens(streams, options.steps))
            bench.read(streams, 32, options.steps, GenerationOptions(temperature=0.7, top_p=0.9, seed=1))
            figures[f"{name}, drawn, tokens/s"] = bench.decode(options.steps)
            bench.read(streams, long, options.steps)  # in which programs are captured
            figures[f"{streams} prompts of {long}, s"] = bench.read(streams, long, options.steps)
            figures[f"{name} at position {long}, tokens/s"] = bench.decode(options.steps)
    bench.read(1, middle, 1)
    times = sorted(bench.read(1, middle, 1) for _ in range(5))
    figures[f"first token of {middle}, s"] = times[2]
    before = _memory(device)
    for _ in range(-(-options.requests // most)):
        bench.read(most, 4, 1)
    figures[f"memory more after {options.requests} requests, bytes"] = _memory(device) - before
    figures["memory in all, bytes"] = _memory(device)
    bench.end()
    return figures | _of_reference(model, middle, options)


def _memory(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0.0


class _Bench:
    """Requests of random ids on one engine."""

    def __init__(self, runner: CudaRunner, most: int) -> None:
        self.engine = Engine(runner, min(runner.memory(), most * runner.cache_bytes(1, 1)))
        self._slots: list[Slot] = []

    def read(self, streams: int, length: int, steps: int, options: GenerationOptions | None = None) -> float:
        """Seconds until prompts of so many tokens, sent at once, all have their first new one.

        They go on for so many steps afterwards.
        """
        self.end()
        config = self.engine.runner.config
        tokens = min(_tokens(streams, steps), config.max_position_embeddings - length)
        options = replace(options or GenerationOptions(), max_new_tokens=tokens, min_new_tokens=tokens)
        random = torch.Generator().manual_seed(length)
        begun = time.perf_counter()
        for _ in range(streams):
            ids = torch.randint(4, config.vocab_size, (length - 1,), generator=random).tolist()
            self._slots.append(Slot(start_search(config, [config.eos_token_id, *ids], options)))
            self.engine.submit(self._slots[-1])
        while not all(slot.made for slot in self._slots):
            self.engine.step()
        return time.perf_counter() - begun

    def decode(self, steps: int) -> float:
        """Tokens a second of all streams together, after two steps, in which programs may be captured."""
        for _ in range(2):
            self.engine.step()
        made = sum(slot.made for slot in self._slots)
        begun = time.perf_counter()
        for _ in range(steps - 2):
            self.engine.step()
        return (sum(slot.made for slot in self._slots) - made) / (time.perf_counter() - begun)

    def end(self) -> None:
        self.engine.drop(everyone=True)
        self._slots = []


def _tokens(streams: int, steps: int) -> int:
    """How many a stream makes in all: some while the prompts of the others are read, in two pieces each."""
    return steps + 2 * streams + 2


def _of_reference(model: BioGptForCausalLM, length: int, options: QuickOptions) -> dict[str, float]:
    reference = _reference(model)
    if reference is None:
        return {}

    def seconds(streams: int, count: int, tokens: int) -> float:
        ids = torch.randint(4, model.config.vocab_size, (streams, count), device=model.device)
        begun = time.perf_counter()
        arguments = {
            "max_new_tokens": tokens,
            "min_new_tokens": tokens,
            "do_sample": False,
            "pad_token_id": 1,
        }
        int(reference.generate(ids, attention_mask=torch.ones_like(ids), **arguments)[0, -1])
        return time.perf_counter() - begun

    seconds(1, 16, 2)
    figures = {f"transformers: first token of {length}, s": min(seconds(1, length, 1) for _ in range(3))}
    for streams in (1, 16):
        rate = streams * options.steps / seconds(streams, 32, options.steps)
        figures[f"transformers: {streams} stream{'s in all' if streams > 1 else ''}, tokens/s"] = rate
    return figures
