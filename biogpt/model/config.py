"""The shape of a BioGPT model, read from and written to the Hub's ``config.json``."""

import json
import logging
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin

logger = logging.getLogger(__name__)

MODEL_TYPE = "biogpt"
ACTIVATIONS = ("gelu", "gelu_new", "relu")
LABEL_PIECES = ("first", "last")
POOLINGS = ("last", "mean", "attention")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

_OWN = (  # unknown to other software
    "passage_copies",
    "bidirectional_layers",
    "label_piece",
    "word_encoder_size",
    "word_encoder_groups",
    "label_chain",
    "read_layers",
    "word_form_rows",
    "word_form_size",
    "pooling",
    "pooling_size",
    "sentence_encoder_size",
    "score_temperature",
    "score_bias",
)
_OF_A_HEAD = (  # and of what it was trained for
    "word_encoder_size",
    "word_encoder_groups",
    "label_chain",
    "read_layers",
    "pooling",
    "sentence_encoder_size",
    "score_temperature",
    "score_bias",
)
_AT_LEAST_ONE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "passage_copies",
    "word_form_rows",
    "word_form_size",
    "pooling_size",
)
_MAYBE_NONE = ("word_encoder_size", "sentence_encoder_size")
_MOST = 2**24  # of any of these sizes, and of none is nearly as much known: their products stay numbers
_MOST_LABELS = 100_000
_PROBABILITIES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "activation_dropout",
    "layerdrop",
    "classifier_dropout",
)


@dataclass(frozen=True)
class BioGptConfig:
    """Hyper-parameters under the names of the Hub's ``config.json``; defaults are microsoft/biogpt.

    Some fields are this package's own; a checkpoint without them is read as the reference reads it:

    - ``passage_copies``: a passage is given this many times, and labels are read at the last copy, where a
      causal model has seen all of it. For token classification.
    - ``bidirectional_layers``: so many of the last layers look both ways. Not for a language model.
    - ``label_piece``: the piece of a word, ``"first"`` or ``"last"``, at which its label is read.
    - ``word_encoder_size``: width, each way, of the recurrent layers that read the words of a passage both
      ways, above the decoder. For token classification; 0 has none.
    - ``word_encoder_groups``: the types of entities, by the layer that finds them; one for all when empty.
    - ``word_form_rows``, ``word_form_size``: of the table of spellings that these layers read, too.
    - ``label_chain``: the labels of words or sentences are scored as a chain, above the encoder of either.
    - ``read_layers``: a head reads what so many of the decoder's layers say, and the others are left out; 0:
      what all of them say, normalised. Not for a language model.
    - ``pooling``: what of a text or sentence is read: ``"last"``, its last token, as the reference does, or
      ``"mean"``, the mean over its tokens; or ``"attention"``, of a text, a mean whose weights each label
      learns. For sequence classification, as what follows.
    - ``pooling_size``: width of the layer above which labels attend to tokens.
    - ``sentence_encoder_size``: width, each way, of the recurrent layer that reads the sentences of an
      abstract both ways, above the decoder; 0 has none.
    - ``score_temperature``, ``score_bias``: by the one logits are divided to give calibrated probabilities
      (Guo et al. 2017, arXiv:1706.04599); the other is added then, where a text may have several labels.

    ``layer_norm_eps`` is kept because checkpoints carry it, but every LayerNorm runs at 1e-5, as in
    the reference (``transformers`` ``models/biogpt/modeling_biogpt.py`` never reads it).

    Raises:
        ValueError: a field has the wrong type, is out of range, or contradicts another.
    """

    vocab_size: int = 42384
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    activation_dropout: float = 0.0
    layerdrop: float = 0.0
    classifier_dropout: float | None = None
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    scale_embedding: bool = True
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    passage_copies: int = 1
    bidirectional_layers: int = 0
    label_piece: str = "first"
    word_encoder_size: int = 0
    word_encoder_groups: tuple[tuple[str, ...], ...] = ()
    word_form_rows: int = 8192
    word_form_size: int = 32
    label_chain: bool = False
    read_layers: int = 0
    pooling: str = "last"
    pooling_size: int = 256
    sentence_encoder_size: int = 0
    score_temperature: float = 1.0
    score_bias: float = 0.0
    problem_type: str | None = None
    id2label: dict[int, str] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, field.type, getattr(self, field.name))
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"config: {name} is {getattr(self, name)}; expected at least 1")
        for name in _MAYBE_NONE:
            if getattr(self, name) < 0:
                raise ValueError(f"config: {name} is {getattr(self, name)}; expected 0 or more")
        for name in (*_AT_LEAST_ONE, *_MAYBE_NONE):
            if getattr(self, name) > _MOST:
                raise ValueError(f"config: {name} is {getattr(self, name)}; expected at most {_MOST}")
        _check_label_count(len(self.id2label or ()))
        for name in _PROBABILITIES:
            probability = getattr(self, name)
            if probability is not None and not 0 <= probability <= 1:
                raise ValueError(f"config: {name} is {probability}; expected 0 to 1")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"config: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"config: hidden_act is {self.hidden_act!r}; expected one of {', '.join(ACTIVATIONS)}"
            )
        if not 0 <= self.bidirectional_layers <= self.num_hidden_layers:
            raise ValueError(
                f"config: bidirectional_layers is {self.bidirectional_layers}; "
                f"expected 0 to num_hidden_layers, {self.num_hidden_layers}"
            )
        if not 0 <= self.read_layers <= self.num_hidden_layers:
            raise ValueError(
                f"config: read_layers is {self.read_layers}; expected 0 to num_hidden_layers, "
                f"{self.num_hidden_layers}"
            )
        if self.read_layers and self.bidirectional_layers:
            raise ValueError(
                f"config: read_layers is {self.read_layers} and bidirectional_layers "
                f"{self.bidirectional_layers}; expected 0 for one of them"
            )
        if self.label_chain and not (self.word_encoder_size or self.sentence_encoder_size):
            raise ValueError(
                "config: label_chain is true, word_encoder_size 0 and sentence_encoder_size 0; expected 1 or "
                "more for one of them"
            )
        if self.pooling not in POOLINGS:
            raise ValueError(f"config: pooling is {self.pooling!r}; expected one of {', '.join(POOLINGS)}")
        if self.label_piece not in LABEL_PIECES:
            raise ValueError(
                f"config: label_piece is {self.label_piece!r}; expected one of {', '.join(LABEL_PIECES)}"
            )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"config: problem_type is {self.problem_type!r}; expected one of {', '.join(PROBLEM_TYPES)}"
            )
        self._check_scores()
        for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"config: {name} is {getattr(self, name)}; expected 0 to {self.vocab_size - 1}"
                )
        if self.initializer_range < 0:
            raise ValueError(f"config: initializer_range is {self.initializer_range}; expected 0 or more")
        if self.id2label is not None and sorted(self.id2label) != list(range(max(1, len(self.id2label)))):
            raise ValueError(
                f"config: id2label has the keys {sorted(self.id2label)}; expected 0, 1, 2 … without gaps"
            )
        kinds = {label.partition("-")[2] for label in self.labels} - {""}
        grouped = [kind for group in self.word_encoder_groups for kind in group]
        if grouped and (not self.word_encoder_size or sorted(grouped) != sorted(kinds)):
            raise ValueError(
                f"config: word_encoder_groups has the types {grouped}; expected each of "
                f"{sorted(kinds)} once, "
                f"and a word_encoder_size (it is {self.word_encoder_size})"
            )

    def _check_scores(self) -> None:
        """What turns logits into probabilities."""
        temperature, bias = self.score_temperature, self.score_bias
        if not 0 < temperature < math.inf:
            raise ValueError(f"config: score_temperature is {temperature}; expected more than 0, and finite")
        if not math.isfinite(bias):
            raise ValueError(f"config: score_bias is {bias}; expected a finite number")
        multi_label = self.problem_type == "multi_label_classification"
        if bias and not multi_label:
            raise ValueError(
                f"config: score_bias is {bias} and problem_type {self.problem_type!r}; expected 0: only "
                "labels that do not exclude each other can all be made likelier"
            )
        if self.sentence_encoder_size and self.pooling == "attention":
            raise ValueError(
                f"config: pooling is 'attention' and sentence_encoder_size {self.sentence_encoder_size}; "
                "expected 'last' or 'mean' for sentences, or 0: labels attend to the tokens of whole texts"
            )
        if self.sentence_encoder_size and self.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"config: sentence_encoder_size is {self.sentence_encoder_size} and problem_type "
                f"{self.problem_type!r}; expected single_label_classification: a sentence has one role"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_parameters(self) -> int:
        """Weights of the decoder: its tables and the matrices of its layers; biases and norms left out."""
        width, layers = self.hidden_size, self.num_hidden_layers
        matrices = layers * width * (4 * width + 2 * self.intermediate_size)
        return matrices + width * (self.vocab_size + self.max_position_embeddings)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names by id; two unnamed ones where the checkpoint gives none, as in the reference."""
        if self.id2label is None:
            return ("LABEL_0", "LABEL_1")
        return tuple(self.id2label[index] for index in range(len(self.id2label)))

    @property
    def types_by_reader(self) -> tuple[frozenset[str], ...]:
        """The types that each layer of a word encoder finds."""
        kinds = frozenset(label.partition("-")[2] for label in self.labels) - {""}
        return tuple(frozenset(group) for group in self.word_encoder_groups) or (kinds,)

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    def with_new_head(self, labels: dict[int, str] | None) -> "BioGptConfig":
        """The same decoder below a plain head: what described the head is left out."""
        plain: dict[str, Any] = {
            field.name: field.default for field in fields(self) if field.name in _OF_A_HEAD
        }
        return replace(self, id2label=labels, **plain)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BioGptConfig":
        """Build a config from the content of a ``config.json``.

        Keys that only other software reads (``architectures``, ``transformers_version`` …) are left out.

        Raises:
            ValueError: ``model_type`` is not ``biogpt``, or a value is wrong.
        """
        if not isinstance(values, dict):
            raise ValueError(f"config: expected a JSON object, got {type(values).__name__}")
        model_type = values.get("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise ValueError(
                f"config: model_type is {model_type!r}; expected {MODEL_TYPE!r}. This checkpoint holds "
                "another architecture, whatever its name says; choose a BioGPT checkpoint."
            )
        known = {field.name for field in fields(cls)}
        ignored = sorted(set(values) - known - {"model_type"})
        if ignored:
            logger.debug("config: keys not used by the model: %s", ", ".join(ignored))
        chosen = {name: value for name, value in values.items() if name in known}
        if chosen.get("id2label") is not None:
            chosen["id2label"] = _labels_by_id(chosen["id2label"])
        elif "num_labels" in values:
            _check_type("num_labels", int, values["num_labels"])
            _check_label_count(values["num_labels"])
            chosen["id2label"] = {i: f"LABEL_{i}" for i in range(values["num_labels"])}
        if isinstance(groups := chosen.get("word_encoder_groups"), list):
            chosen["word_encoder_groups"] = tuple(
                tuple(group) if isinstance(group, list) else group for group in groups
            )
        return cls(**chosen)

    @classmethod
    def from_json(cls, path: str | Path) -> "BioGptConfig":
        """Read a ``config.json``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not JSON, not a BioGPT config, or holds a wrong value.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
        except RecursionError as error:
            raise ValueError(
                f"{path}: brackets nested too deep to be read; expected a plain object"
            ) from error
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The content of a ``config.json`` that ``transformers`` reads as well."""
        values: dict[str, Any] = {"model_type": MODEL_TYPE}
        values |= {name: value for name, value in asdict(self).items() if value is not None}
        shape = {"word_form_rows", "word_form_size"} if self.word_encoder_size else set()
        if self.pooling == "attention":
            shape.add("pooling_size")
        for field in fields(self):
            if field.name in _OWN and field.name not in shape and values[field.name] == field.default:
                del values[field.name]
        if self.id2label is not None:
            values["id2label"] = {str(index): label for index, label in self.id2label.items()}
            values["label2id"] = {label: index for index, label in self.id2label.items()}
        return values


def _check_label_count(count: int) -> None:
    if count > _MOST_LABELS:
        raise ValueError(f"config: {count} labels; expected at most {_MOST_LABELS}")


def _labels_by_id(labels: Any) -> dict[int, str]:
    try:
        return {int(index): label for index, label in labels.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"config: id2label is {labels!r}; expected an object of id: label") from error


def _check_type(name: str, expected: Any, value: Any) -> None:
    allowed = tuple(get_origin(part) or part for part in get_args(expected) or (expected,))
    if float in allowed:
        allowed += (int,)  # JSON writes 0 for 0.0
    right = isinstance(value, allowed)
    if isinstance(value, bool):  # to Python a kind of int
        right = bool in allowed
    elif isinstance(value, tuple):
        right = right and all(isinstance(group, tuple) and all(map(_is_text, group)) for group in value)
    elif isinstance(value, dict):
        right = right and all(map(_is_text, value.values()))
    if not right:
        wanted = getattr(expected, "__name__", str(expected))
        raise ValueError(f"config: {name} is {value!r}; expected {wanted}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
