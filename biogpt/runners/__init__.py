"""How rows are computed: plain torch on any device, and what makes a CPU fast."""

from biogpt.model.heads import LanguageModel
from biogpt.runners.cpu import CpuRunner
from biogpt.runners.plain import PlainRunner
from biogpt.runners.runner import ModelRunner

__all__ = ["CpuRunner", "ModelRunner", "PlainRunner", "runner_for"]


def runner_for(model: LanguageModel) -> ModelRunner:
    """The kind of runner for the device that a model is on."""
    return CpuRunner(model) if model.device.type == "cpu" else PlainRunner(model)
