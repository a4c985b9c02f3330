"""BioGPT: complete, tag and classify biomedical text.

A PyTorch re-implementation of BioGPT (Luo et al. 2022, arXiv 2210.10341): the network, its tokenizer, its
checkpoints, text made token by token, entities and labels found in text.
"""

from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptTokenizer,
)
from biogpt.generation.search import GenerationOptions
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
