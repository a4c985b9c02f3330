"""Fixtures that more than one test file needs."""

import gc
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

# Before torch is loaded, and for all processes that tests start: on two cores, threads that turn round and
# round while they wait take the time of page, browser and tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that starts the tests in the background lets them ignore Ctrl+C, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from torch import nn

from biogpt.model.config import BioGptConfig

# Tests that run side by side share the cores: with all of them for each, threads wait for one another.
torch.set_num_threads(
    max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels are run by Python; read when Triton is imported

# Files that take minutes begin first: at the end, one would keep a single worker busy.
LONG = (
    "test_page",
    "test_quantize",
    "test_readme",
    "test_app",
    "test_gate",
    "test_bench",
    "test_mini",
    "test_space",
)
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, in the order above."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_collection_finish() -> None:
    """Leave what is there by now out of every search for garbage, which takes a second with it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture
def shared_data() -> Path:
    """The folder of corpora beside the checkout; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the corpora are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def full_disk() -> Callable[..., AbstractContextManager[None]]:
    """``with full_disk(size)``: no file can grow beyond so many bytes, as if the disk were full."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@contextmanager
def _computing_with(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def every_core() -> Iterator[None]:
    """Computes with as many threads as there are cores, two at least, whatever else runs."""
    with _computing_with(max(2, os.cpu_count() or 2)):
        yield


@pytest.fixture
def one_core() -> Iterator[None]:
    """Computes with one thread, as a process does where ``OMP_NUM_THREADS`` is 1."""
    with _computing_with(1):
        yield


@pytest.fixture
def tiny_config() -> Callable[..., BioGptConfig]:
    """``tiny_config(**changes)``: a config small enough for milliseconds, with every dropout off."""

    def build(**changes: Any) -> BioGptConfig:
        values: dict[str, Any] = {
            "vocab_size": 40,
            "hidden_size": 15,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 22,
            "max_position_embeddings": 24,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "id2label": {0: "Chemical", 1: "Disease", 2: "Gene"},
        }
        return BioGptConfig(**values | changes)

    return build


@pytest.fixture
def lively() -> Callable[..., Any]:
    """``lively(head_class, config, seed=0)``: a model in eval mode whose every weight matters.

    At initialisation biases are 0, norms are 1 and attention is nearly uniform, which hides faults. The
    embeddings stay small, because a wrong LayerNorm epsilon shows only where the variance is small.
    """

    def build(head_class: type[nn.Module], config: BioGptConfig, seed: int = 0) -> nn.Module:
        model = head_class(config).eval()
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.weight.normal_(std=1.5 / math.sqrt(module.in_features), generator=random)
                if isinstance(module, nn.LayerNorm):
                    module.weight.normal_(mean=1.0, std=0.3, generator=random)
                if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                    module.bias.normal_(std=0.3, generator=random)
            for module in model.modules():  # last, as a tied projection shares its weight with one of them
                if isinstance(module, nn.Embedding):
                    module.weight.normal_(std=0.05, generator=random)
        return model

    return build


@pytest.fixture
def reference_of() -> Callable[..., Any]:
    """``reference_of(model, attention="eager")``: the model of ``transformers`` with the same weights."""
    transformers = pytest.importorskip("transformers")

    def build(model: nn.Module, attention: str = "eager") -> nn.Module:
        config = transformers.BioGptConfig.from_dict(model.config.to_dict(), attn_implementation=attention)
        reference = getattr(transformers, type(model).__name__)(config)
        reference.load_state_dict(model.state_dict())
        return reference.train(model.training)

    return build
