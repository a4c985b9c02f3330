"""BioGPT: complete, tag and classify biomedical text.

A PyTorch re-implementation of BioGPT (Luo et al. 2022, arXiv 2210.10341): the network, its tokenizer, its
checkpoints, text made token by token, entities and labels found in text.
"""

from biogpt.cache import KVCache
from biogpt.classify import Classification, LabelScore, SentenceLabel, TextClassifier
from biogpt.config import BioGptConfig
from biogpt.entities import Entity, EntityRecognizer
from biogpt.generate import GenerationOptions
from biogpt.heads import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
)
from biogpt.model import BioGptModel
from biogpt.service import TextGenerator
from biogpt.tokenizer import BioGptTokenizer

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
