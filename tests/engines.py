"""Engines for tests: those of one model share a runner, whose step is compiled once."""

from weakref import WeakKeyDictionary

from biogpt.model.heads import LanguageModel
from biogpt.runners import ModelRunner, runner_for
from biogpt.serving.engine import Engine

_runners: "WeakKeyDictionary[LanguageModel, ModelRunner]" = WeakKeyDictionary()


def engine_of(
    model: LanguageModel,
    cache_bytes: int | None = None,
    max_running: int | None = None,
    max_waiting: int = 64,
) -> Engine:
    """An engine that shares the runner of the model's other engines; they must not run at the same time."""
    if model not in _runners:
        _runners[model] = runner_for(model)
    return Engine(_runners[model], cache_bytes, max_running, max_waiting)
