"""BioGPT: complete, tag and classify biomedical text.

A PyTorch re-implementation of BioGPT (Luo et al. 2022, arXiv 2210.10341): the network, its tokenizer, its
checkpoints, text made token by token, entities and labels found in text.

A name is imported when it is first asked for: what needs no torch, such as ``python -m biogpt --help``,
loads none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biogpt.checkpoint.pretrained import (
        BioGptForCausalLM,
        BioGptForSequenceClassification,
        BioGptForTokenClassification,
        BioGptTokenizer,
    )
    from biogpt.generation.options import GenerationOptions
    from biogpt.model.cache import KVCache
    from biogpt.model.config import BioGptConfig
    from biogpt.model.decoder import BioGptModel
    from biogpt.serving.text_generator import TextGenerator
    from biogpt.tasks.classification import TextClassifier
    from biogpt.tasks.entities import EntityRecognizer
    from biogpt.text.results import Classification, Entity, LabelScore, SentenceLabel

__version__ = "1.0.0"

__all__ = [
    "BioGptConfig",
    "BioGptForCausalLM",
    "BioGptForSequenceClassification",
    "BioGptForTokenClassification",
    "BioGptModel",
    "BioGptTokenizer",
    "Classification",
    "Entity",
    "EntityRecognizer",
    "GenerationOptions",
    "KVCache",
    "LabelScore",
    "SentenceLabel",
    "TextClassifier",
    "TextGenerator",
]

_MODULES = {
    "biogpt.checkpoint.pretrained": (
        "BioGptForCausalLM",
        "BioGptForSequenceClassification",
        "BioGptForTokenClassification",
        "BioGptTokenizer",
    ),
    "biogpt.generation.options": ("GenerationOptions",),
    "biogpt.model.cache": ("KVCache",),
    "biogpt.model.config": ("BioGptConfig",),
    "biogpt.model.decoder": ("BioGptModel",),
    "biogpt.serving.text_generator": ("TextGenerator",),
    "biogpt.tasks.classification": ("TextClassifier",),
    "biogpt.tasks.entities": ("EntityRecognizer",),
    "biogpt.text.results": ("Classification", "Entity", "LabelScore", "SentenceLabel"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
