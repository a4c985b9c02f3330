"""BioGptConfig: what it reads from a checkpoint, what it refuses, what others read from it."""

import json
import math
import re
from dataclasses import fields, replace

import pytest

from biogpt.model.config import BioGptConfig

MULTI_LABEL = "multi_label_classification"
MICROSOFT_BIOGPT = {
    "activation_dropout": 0.0,
    "architectures": ["BioGptForCausalLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-12,
    "layerdrop": 0.0,
    "max_position_embeddings": 1024,
    "model_type": "biogpt",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "scale_embedding": True,
    "torch_dtype": "float32",
    "transformers_version": "4.25.0.dev0",
    "use_cache": True,
    "vocab_size": 42384,
}


def test_microsoft_biogpt_is_the_default():
    assert BioGptConfig.from_dict(MICROSOFT_BIOGPT) == BioGptConfig()


def test_every_value_of_the_file_is_taken():
    """Values unlike the defaults, so that a field that is not read shows."""
    values = {
        "vocab_size": 57717,
        "hidden_size": 1600,
        "num_hidden_layers": 48,
        "num_attention_heads": 25,
        "intermediate_size": 6400,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.3,
        "activation_dropout": 0.4,
        "layerdrop": 0.5,
        "classifier_dropout": 0.6,
        "max_position_embeddings": 2048,
        "initializer_range": 0.01,
        "layer_norm_eps": 1e-6,
        "scale_embedding": False,
        "tie_word_embeddings": False,
        "use_cache": False,
        "bos_token_id": 5,
        "pad_token_id": 6,
        "eos_token_id": 7,
        "passage_copies": 2,
        "bidirectional_layers": 0,
        "label_piece": "last",
        "word_encoder_size": 12,
        "word_encoder_groups": [["Gene"], ["Species", "Disease"]],
        "word_form_rows": 100,
        "word_form_size": 4,
        "label_chain": True,
        "read_layers": 2,
        "pooling": "mean",
        "pooling_size": 7,
        "sentence_encoder_size": 6,
        "score_temperature": 1.5,
        "score_bias": 0.0,
        "problem_type": "single_label_classification",
        "id2label": {"0": "O", "1": "B-Gene", "2": "B-Disease", "3": "B-Species"},
    }
    assert set(values) == {field.name for field in fields(BioGptConfig)}
    config = BioGptConfig.from_dict(values | {"model_type": "biogpt"})
    read = {
        "word_encoder_groups": (("Gene",), ("Species", "Disease")),
        "id2label": {0: "O", 1: "B-Gene", 2: "B-Disease", 3: "B-Species"},
    }
    assert {name: getattr(config, name) for name in values} == values | read
    assert BioGptConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.head_dim == 64


def test_another_architecture_is_refused_whatever_its_name():
    with pytest.raises(ValueError, match=r"model_type is 'gpt2'; expected 'biogpt'.*choose a BioGPT"):
        BioGptConfig.from_dict(MICROSOFT_BIOGPT | {"model_type": "gpt2"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": "42384"}, "vocab_size is '42384'; expected int"),
        ({"vocab_size": 42384.0}, "vocab_size is 42384.0; expected int"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; expected int"),
        ({"pad_token_id": None}, "pad_token_id is None; expected int"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob is '0.1'; expected float"),
        ({"layerdrop": False}, "layerdrop is False; expected float"),
        ({"layerdrop": None}, "layerdrop is None; expected float"),
        ({"classifier_dropout": "none"}, "classifier_dropout is 'none'; expected float | None"),
        ({"scale_embedding": 1}, "scale_embedding is 1; expected bool"),
        ({"hidden_act": None}, "hidden_act is None; expected str"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected at least 1"),
        ({"hidden_size": -64}, "hidden_size is -64; expected at least 1"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5; expected 0 to 1"),
        ({"activation_dropout": float("nan")}, "activation_dropout is nan; expected 0 to 1"),
        ({"classifier_dropout": -0.1}, "classifier_dropout is -0.1; expected 0 to 1"),
        ({"initializer_range": -0.02}, "initializer_range is -0.02; expected 0 or more"),
        ({"num_attention_heads": 7}, "hidden_size 1024 is not a multiple of num_attention_heads 7"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish'; expected one of gelu, gelu_new, relu"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'; expected one of regression, "),
        ({"eos_token_id": 42384}, "eos_token_id is 42384; expected 0 to 42383"),
        ({"pad_token_id": -1}, "pad_token_id is -1; expected 0 to 42383"),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label has the keys [1, 2]; expected 0, 1, 2"),
        ({"id2label": {}}, "id2label has the keys []; expected 0, 1, 2"),
        ({"id2label": {"first": "a"}}, "id2label is {'first': 'a'}; expected an object of id: label"),
        ({"id2label": {None: "a"}}, "id2label is {None: 'a'}; expected an object of id: label"),
        ({"id2label": ["a", "b"]}, "id2label is ['a', 'b']; expected an object of id: label"),
        ({"id2label": {"0": 7}}, "id2label is {0: 7}; expected dict[int, str] | None"),
        ({"num_labels": "3"}, "num_labels is '3'; expected int"),
        ({"num_labels": 0}, "id2label has the keys []; expected 0, 1, 2"),
    ],
)
def test_a_wrong_value_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BioGptConfig.from_dict(MICROSOFT_BIOGPT | change)


def test_whole_numbers_count_as_floats():
    assert BioGptConfig.from_dict({"layerdrop": 0, "classifier_dropout": 1}).classifier_dropout == 1


@pytest.mark.parametrize("values", [[], "biogpt", None])
def test_a_file_that_is_no_object_is_refused(values):
    with pytest.raises(ValueError, match=f"expected a JSON object, got {type(values).__name__}"):
        BioGptConfig.from_dict(values)


def test_labels():
    assert BioGptConfig().labels == ("LABEL_0", "LABEL_1")
    assert BioGptConfig.from_dict({"num_labels": 3}).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    # JSON objects have no order: "10" may come before "2", and a label belongs to its number.
    shuffled = {str(index): f"tag {index}" for index in (10, 1, 0, 2, 9, 3, 8, 4, 7, 5, 6)}
    config = BioGptConfig.from_dict({"id2label": shuffled, "num_labels": 2})
    assert config.labels == tuple(f"tag {index}" for index in range(11))
    assert config.num_labels == 11


@pytest.mark.parametrize(
    "config",
    [
        BioGptConfig(),
        BioGptConfig(id2label={0: "O", 1: "B-Chemical", 2: "I-Chemical"}, classifier_dropout=0.3),
        BioGptConfig(tie_word_embeddings=False, problem_type="multi_label_classification", layerdrop=0.1),
    ],
    ids=["default", "labels", "untied"],
)
def test_to_dict_is_read_back_the_same(config, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert BioGptConfig.from_json(path) == config


def test_transformers_reads_to_dict():
    transformers = pytest.importorskip("transformers")
    config = BioGptConfig(
        hidden_size=15,
        num_attention_heads=3,
        hidden_act="relu",
        layerdrop=0.25,
        tie_word_embeddings=False,
        problem_type="regression",
        id2label={0: "O", 1: "B-Gene", 2: "I-Gene"},
    )
    reference = transformers.BioGptConfig.from_dict(config.to_dict())
    # The first is None, and absent from the reference's class; the others are ours, and unset.
    unset = {"classifier_dropout", "passage_copies", "bidirectional_layers", "label_piece"}
    unset |= {"word_encoder_size", "word_encoder_groups", "word_form_rows", "word_form_size"}
    unset |= {"label_chain", "read_layers", "pooling", "sentence_encoder_size"}
    unset |= {"score_temperature", "score_bias", "pooling_size"}
    assert not unset & config.to_dict().keys()
    for field in fields(config):
        if field.name not in unset:
            assert getattr(reference, field.name) == getattr(config, field.name), field.name
    assert reference.num_labels == 3
    assert reference.label2id == {"O": 0, "B-Gene": 1, "I-Gene": 2}


def test_the_shape_of_a_word_encoder_is_written_whole():
    """Its table's rows are addresses: a default that changed later would read other words' rows."""
    assert BioGptConfig(pooling="attention").to_dict()["pooling_size"] == 256
    written = BioGptConfig(word_encoder_size=8).to_dict()
    assert (written["word_form_rows"], written["word_form_size"]) == (8192, 32)


@pytest.mark.parametrize(
    "groups",
    [(("Gene",),), (("Gene", "Drug"), ("Gene",)), (("Gene", "Drug", "Cell"),), (("Gene", "Drug"), ("",))],
)
def test_every_type_has_one_layer_that_finds_it(groups):
    labels = {"id2label": {0: "O", 1: "B-Gene", 2: "I-Gene", 3: "B-Drug"}, "word_encoder_size": 4}
    with pytest.raises(ValueError, match=r"expected each of \['Drug', 'Gene'\] once"):
        BioGptConfig(**labels, word_encoder_groups=groups)
    assert BioGptConfig(**labels).types_by_reader == ({"Gene", "Drug"},)
    apart = BioGptConfig(**labels, word_encoder_groups=(("Drug",), ("Gene",)))
    assert apart.types_by_reader == ({"Drug"}, {"Gene"})
    with pytest.raises(ValueError, match=r"word_encoder_groups is \('Gene', 'Drug'\); expected tuple"):
        BioGptConfig.from_dict({"word_encoder_groups": ["Gene", "Drug"]})


def test_from_json_names_the_file(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError):
        BioGptConfig.from_json(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json is not a JSON file"):
        BioGptConfig.from_json(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"config\.json is not a JSON file"):
        BioGptConfig.from_json(path)
    path.write_text('{"hidden_size": "wide"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: config: hidden_size is 'wide'"):
        BioGptConfig.from_json(path)


def test_a_config_cannot_be_changed():
    """Models and caches read it at different times, so it must be one value throughout."""
    with pytest.raises(AttributeError):
        BioGptConfig().hidden_size = 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passage_copies": 0}, "passage_copies is 0"),
        ({"bidirectional_layers": 25}, "bidirectional_layers is 25; expected 0 to num_hidden_layers, 24"),
        ({"label_piece": "middle"}, "label_piece is 'middle'; expected one of first, last"),
        ({"pooling": "min"}, "pooling is 'min'; expected one of last, mean, attention"),
        ({"pooling_size": 0}, "pooling_size is 0; expected at least 1"),
        (
            {"pooling": "attention", "sentence_encoder_size": 4},
            "expected 'last' or 'mean' for sentences, or 0",
        ),
        ({"sentence_encoder_size": -1}, "sentence_encoder_size is -1; expected 0 or more"),
        ({"sentence_encoder_size": 2**25}, "sentence_encoder_size is 33554432; expected at most"),
        (
            {"sentence_encoder_size": 4, "problem_type": MULTI_LABEL},
            "expected single_label_classification: a sentence has one role",
        ),
        (
            {"label_chain": True},
            "word_encoder_size 0 and sentence_encoder_size 0; expected 1 or more for one",
        ),
        ({"score_temperature": 0}, "score_temperature is 0; expected more than 0"),
        ({"score_temperature": math.inf}, "score_temperature is inf; expected more than 0, and finite"),
        (
            {"score_bias": math.nan, "problem_type": MULTI_LABEL},
            "score_bias is nan; expected a finite number",
        ),
        ({"score_bias": 0.5}, "score_bias is 0.5 and problem_type None; expected 0"),
    ],
)
def test_fields_of_our_own_are_checked_and_come_back(changes, message):
    with pytest.raises(ValueError, match=message):
        BioGptConfig(**changes)
    for config in (
        BioGptConfig(passage_copies=2, bidirectional_layers=3, label_piece="last"),
        BioGptConfig(sentence_encoder_size=4, label_chain=True, score_temperature=1.7),
        BioGptConfig(pooling="attention", problem_type=MULTI_LABEL, score_temperature=0.5, score_bias=-0.3),
    ):
        assert BioGptConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    plain = replace(config.with_new_head({0: "a", 1: "b"}), problem_type=None)
    assert plain == BioGptConfig(id2label={0: "a", 1: "b"})
