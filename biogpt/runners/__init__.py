"""How rows are computed: plain torch on any device, and what makes a CPU or a GPU of CUDA fast."""

from biogpt.model.heads import LanguageModel
from biogpt.runners.cpu import CpuRunner
from biogpt.runners.cuda import CudaRunner
from biogpt.runners.plain import PlainRunner
from biogpt.runners.runner import ModelRunner

__all__ = ["CpuRunner", "CudaRunner", "ModelRunner", "PlainRunner", "runner_for"]


def runner_for(model: LanguageModel) -> ModelRunner:
    """The kind of runner for the device that a model is on."""
    kinds: dict[str, type[PlainRunner]] = {"cpu": CpuRunner, "cuda": CudaRunner}
    return kinds.get(model.device.type, PlainRunner)(model)
