"""What programs get that ask below ``/v1``, by the client that OpenAI publishes, from the real server."""

import http.client
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import openai
import pytest
import torch
import uvicorn
from app_server import ROOT, app_server, call, post
from starlette.applications import Starlette
from starlette.routing import Mount
from test_service import build_tokenizer

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.generation.options import GenerationOptions
from biogpt.generation.tree import TreeOptions
from biogpt.model.config import BioGptConfig
from biogpt.serving.inspection import scored
from biogpt.serving.shelf import LazyModel, Shelf
from biogpt.serving.text_generator import TextGenerator
from biogpt.serving.tree import TextTree, grown
from biogpt.tasks.classification import TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.training.metrics import bits_per_byte
from biogpt.ui import api
from biogpt.ui.api import api_of
from biogpt.ui.classify import Labeller
from biogpt.ui.entities import Tagger
from biogpt.ui.requests import Requests

PROMPT = "The BRCA1 gene"
DRAWN: dict[str, Any] = {"max_tokens": 30, "temperature": 0.9, "seed": 5}
LONG = "Naloxone reverses the antihypertensive effect of clonidine in rats. " * 3000
PYTHONS_OWN = ("object at", "NoneType", "Traceback", ".py", "<class", "/tmp", "/root")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tokenizer = build_tokenizer()
    config = BioGptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    BioGptForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> TextGenerator:
    return TextGenerator.from_pretrained(checkpoint, precision="float32")


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    with app_server("--model", str(checkpoint), "--precision", "float32") as (address, _):
        yield address


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=0, timeout=120)


def complete(client: openai.OpenAI, **asked: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": PROMPT, **DRAWN, **asked})


def options(**changes: Any) -> GenerationOptions:
    return GenerationOptions(**{"max_new_tokens": 30, "temperature": 0.9, "seed": 5, **changes})


def test_a_completion_is_that_of_python_and_of_the_page(
    client: openai.OpenAI, url: str, tiny: TextGenerator
) -> None:
    answer = complete(client)
    [expected] = tiny.generate(PROMPT, options())
    [choice] = answer.choices
    assert choice.text == expected.text
    assert (choice.index, choice.logprobs) == (0, None)
    assert choice.finish_reason == {"eos": "stop", "length": "length"}[expected.finish_reason]
    given = {"max_new_tokens": 30, "temperature": 0.9, "seed": 5, "top_p": 1, "no_repeat_ngram_size": 0}
    event, [update] = call(url, "generate", prompt=PROMPT, **given)
    assert (event, update["text"]) == ("complete", choice.text)
    usage, read = answer.usage, len(tiny.tokenizer.encode(PROMPT).ids)
    assert (usage.prompt_tokens, usage.completion_tokens) == (read, len(expected.ids))
    assert usage.total_tokens == read + len(expected.ids)
    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", "tiny", "cmpl-")
    assert answer.seed == 5


def test_the_settings_that_openai_lacks_are_python_s(client: openai.OpenAI, tiny: TextGenerator) -> None:
    more = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    answer = complete(client, top_p=0.8, extra_body=more)
    assert answer.choices[0].text == tiny.generate(PROMPT, options(top_p=0.8, **more))[0].text
    assert answer.choices[0].text != complete(client).choices[0].text


def test_a_seed_gives_the_same_text_again(client: openai.OpenAI) -> None:
    texts = [complete(client, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    drawn = complete(client, seed=None)
    assert complete(client, seed=drawn.seed).choices[0].text == drawn.choices[0].text
    greedy = [complete(client, temperature=0, seed=seed).choices[0].text for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_a_stream_only_adds_and_comes_to_the_same(client: openai.OpenAI) -> None:
    whole = complete(client, logprobs=2, echo=True)
    events = [*complete(client, logprobs=2, echo=True, stream=True, stream_options={"include_usage": True})]
    *chunks, last = events
    assert (last.choices, last.usage) == ([], whole.usage)
    assert {chunk.usage for chunk in chunks} == {None}
    assert len({event.id for event in events}) == 1
    choices = [chunk.choices[0] for chunk in chunks]
    assert len(choices) > 10
    assert "".join(choice.text for choice in choices) == whole.choices[0].text
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    for part in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        told = [value for choice in choices for value in getattr(choice.logprobs, part)]
        assert told == getattr(whole.choices[0].logprobs, part)


def test_a_stream_is_server_sent_events(url: str) -> None:
    body = json.dumps({"prompt": PROMPT, "max_tokens": 5, "stream": True}).encode()
    asked = urllib.request.Request(f"{url}v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        *events, done, end = answer.read().decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events)


def test_several_prompts_and_samples_have_their_places(client: openai.OpenAI, tiny: TextGenerator) -> None:
    prompts = [PROMPT, "and is"]
    expected = [
        made.text for prompt in prompts for made in tiny.generate(prompt, options(num_return_sequences=3))
    ]
    answer = complete(client, prompt=prompts, n=3)
    assert [choice.index for choice in answer.choices] == [*range(6)]
    assert [choice.text for choice in answer.choices] == expected
    assert len({*expected}) == 6
    assert answer.usage.prompt_tokens == sum(len(tiny.tokenizer.encode(prompt).ids) for prompt in prompts)
    texts = [""] * 6
    for event in complete(client, prompt=prompts, n=3, stream=True):
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == expected


def test_the_text_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    whole = complete(client).choices[0].text
    stop = whole[6:9]
    for given in (stop, ["never met", stop], [whole[-1:], stop, "x" * 50, "?"]):
        [choice] = complete(client, stop=given, logprobs=1).choices
        first = min(
            whole.find(each) for each in ([given] if isinstance(given, str) else given) if each in whole
        )
        assert (choice.text, choice.finish_reason) == (whole[:first], "stop")
        assert "".join(choice.logprobs.tokens) == choice.text
        assert all(choice.logprobs.tokens), "what was cut off is told"
        streamed = [event.choices[0] for event in complete(client, stop=given, stream=True)]
        assert "".join(part.text for part in streamed) == choice.text
    assert complete(client, max_tokens=3).choices[0].finish_reason == "length"


@pytest.mark.parametrize("prompt", [PROMPT, " A  (b-c) is\u200b“ d ", "BRCA1"])
def test_log_probabilities_are_those_of_transformers(
    client: openai.OpenAI, checkpoint: Path, tiny: TextGenerator, prompt: str
) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.BioGptForCausalLM.from_pretrained(checkpoint).eval()
    [completion] = tiny.generate(prompt, options())
    with tiny.stream(prompt, options()) as stream:
        ids = [*stream.prompt.ids, *completion.ids]
        read = stream.prompt.length
    with torch.inference_mode():
        logprobs = reference(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    due = [float(logprobs[place, token]) for place, token in enumerate(ids[1:])]
    tops = logprobs.topk(5).values.tolist()

    [choice] = complete(client, prompt=prompt, echo=True, logprobs=5).choices
    told = choice.logprobs
    assert choice.text == prompt + completion.text
    assert (told.tokens[0], told.token_logprobs[0], told.top_logprobs[0]) == ("</s>", None, None)
    assert told.token_logprobs[1:] == pytest.approx(due, abs=1e-4)
    for place, top in enumerate(told.top_logprobs[1:]):
        chosen = told.tokens[place + 1]
        assert top[chosen] == told.token_logprobs[place + 1]
        assert sorted(top.values(), reverse=True)[:5] == pytest.approx(tops[place], abs=1e-4)
        likeliest = ids[place + 1] == int(logprobs[place].argmax())
        assert (max(top, key=top.__getitem__) == chosen) == likeliest
    pairs = [*zip(told.tokens, told.text_offset, strict=True)]
    assert all(choice.text[offset:].startswith(token) for token, offset in pairs if token != "</s>")
    assert "".join(token for token, _ in pairs if token != "</s>") == choice.text

    only_read = complete(client, prompt=prompt, echo=True, logprobs=5, max_tokens=0)
    assert (only_read.choices[0].text, only_read.choices[0].finish_reason) == (prompt, "length")
    assert only_read.usage.completion_tokens == 0
    given = len(tiny.tokenizer.encode(prompt).ids)
    sample = scored(tiny, "", prompt)
    assert only_read.choices[0].logprobs.token_logprobs[1:] == pytest.approx(sample.logprobs, abs=1e-5)
    assert len(only_read.choices[0].logprobs.tokens) == only_read.usage.total_tokens == given

    spans = tiny.tokenizer.encode(prompt).offsets
    for token, (start, end) in zip(only_read.choices[0].logprobs.tokens[1:], spans[1:], strict=True):
        assert token.endswith(prompt[start:end]) or not prompt.isascii()  # tokens may share a character

    [new] = complete(client, prompt=prompt, logprobs=0).choices
    assert new.logprobs.token_logprobs == pytest.approx(told.token_logprobs[read:], abs=1e-4)
    assert new.logprobs.text_offset[0] == 0


CUT = [
    f"Naloxone reverses the antihypertensive  {end}"
    for end in ("effect of clonidi", "treatm", "respon", "eff")
]


def test_a_word_that_goes_on_is_told_as_it_is_read(client: openai.OpenAI) -> None:
    generator = TextGenerator.from_pretrained("mini", precision="float32")
    given = options(max_new_tokens=4)
    read = {}
    for prompt in CUT:
        with generator.stream(prompt, given) as stream:
            if stream.prompt.is_open:
                read[prompt] = stream.prompt.length
    assert read, "the model takes none for begun"
    for prompt, positions in read.items():
        answer = complete(client, model="mini", prompt=prompt, max_tokens=4, echo=True, logprobs=1)
        [choice] = answer.choices
        assert choice.text == prompt + generator.generate(prompt, given)[0].text
        assert "".join(choice.logprobs.tokens[1:]) == choice.text
        assert "".join(choice.logprobs.tokens[1:positions]) == prompt
        assert answer.usage.prompt_tokens == positions


def test_token_ids_are_a_prompt_too(client: openai.OpenAI, tiny: TextGenerator) -> None:
    encoding = tiny.tokenizer.encode("The BRCA1 gene (is")
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    made = tiny.generate(tiny.prompt_of_ids(encoding.ids), GenerationOptions(max_new_tokens=8))[0]
    for given in (encoding.ids, encoding.ids[1:]):
        answer = complete(client, prompt=given, **greedy)
        assert answer.choices[0].text == made.text
        assert answer.usage.prompt_tokens == len(encoding.ids)
    both = complete(client, prompt=[encoding.ids, encoding.ids[:4]], **greedy)
    assert both.choices[0].text == made.text
    [choice] = complete(client, prompt=encoding.ids, echo=True, logprobs=1, **greedy).choices
    assert choice.text == "The BRCA1 gene (is" + made.text
    assert "".join(choice.logprobs.tokens[1:]).removesuffix("</s>") == choice.text


def test_models_are_listed_and_strangers_get_no_other(
    client: openai.OpenAI, url: str, checkpoint: Path
) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "mini"]
    assert client.models.retrieve("mini").object == "model"
    said = set()
    for name in ("nosuch", str(checkpoint), "microsoft/biogpt", "/etc", "", "mini-ner"):
        with pytest.raises(openai.NotFoundError) as refused:
            complete(client, model=name)
        assert refused.value.param == "model"
        assert refused.value.code == "model_not_found"
        said.add(refused.value.body["message"].replace(repr(name), "…"))
        for path, body in (("score", {"input": "a"}), ("classify", {"input": "a", "labels": ["a", "b"]})):
            status, answer = post(url, f"v1/{path}", {"model": name, **body})
            assert (status, answer["error"]["message"]) == (404, refused.value.body["message"])
    assert said == {"model … is not offered here; choose one of tiny, mini"}
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("microsoft/biogpt")


WRONG: list[tuple[str, Any]] = [
    ("prompt", ""),
    ("prompt", " \u200b"),
    ("prompt", []),
    ("prompt", [[]]),
    ("prompt", [10**6]),
    ("prompt", [-1]),
    ("prompt", [True]),
    ("prompt", ["a", 5]),
    ("prompt", 5),
    ("prompt", {}),
    ("prompt", "gene " * 100),
    ("prompt", ["a"] * 129),
    ("prompt", [4] * 65),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 64),
    ("max_tokens", 1.5),
    ("max_tokens", "5"),
    ("max_tokens", 10**400),
    ("temperature", -1),
    ("temperature", "1"),
    ("temperature", True),
    ("temperature", float("nan")),
    ("temperature", 10**400),
    ("top_p", 1.5),
    ("n", 0),
    ("n", 33),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["a"] * 5),
    ("stop", 5),
    ("seed", -1),
    ("seed", 2**63),
    ("logprobs", 6),
    ("logprobs", True),
    ("echo", "yes"),
    ("stream", 1),
    ("stream_options", {"include_usage": True}),
    ("best_of", 2),
    ("suffix", "end"),
    ("logit_bias", {"five": 1}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {"5": "1"}),
    ("logit_bias", {"99999": 1}),
    ("presence_penalty", 2.5),
    ("frequency_penalty", -3),
    ("typical_p", 2),
    ("banned_words", [""]),
    ("banned_words", ["☃"]),
    ("word_bias", ["gene"]),
    ("word_bias", ["☃=1"]),
    ("model", 5),
    ("tools", []),
    ("num_beams", 2),
    ("<b>'\"&\ud800", 1),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: ascii(value)[:20])
def test_a_wrong_value_is_named_with_its_argument(url: str, name: str, value: Any) -> None:
    status, answer = post(url, "v1/completions", {"prompt": "a", "max_tokens": 1, name: value})
    assert status == 400
    assert [*answer["error"]] == ["message", "type", "param", "code"]
    said = answer["error"]["message"]
    assert answer["error"]["param"] == name.replace("\ud800", "\ufffd")
    assert json.dumps(answer["error"]["param"])[1:-1] in said
    assert not any(word in said for word in PYTHONS_OWN), said
    assert len(said) < 1000


def test_values_that_openai_s_clients_send_for_nothing_are_taken(client: openai.OpenAI) -> None:
    plain = complete(client).choices[0].text
    nothing = {"logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "suffix": "", "best_of": 1}
    assert complete(client, user="u", n=1, **nothing).choices[0].text == plain
    nulls = dict.fromkeys(("logprobs", "echo", "stop", "stream_options", "top_p", "logit_bias"))
    assert complete(client, extra_body=nulls).choices[0].text == plain


def test_openai_s_penalties_and_biases_are_those_of_python(
    client: openai.OpenAI, tiny: TextGenerator
) -> None:
    [plain] = tiny.generate(PROMPT, options())
    word = plain.text.split()[0]
    favoured = plain.ids[5]
    for asked, same in (
        ({"presence_penalty": 2}, {"presence_penalty": 2.0}),
        ({"frequency_penalty": -1.5}, {"frequency_penalty": -1.5}),
        ({"logit_bias": {str(favoured): -50}}, {"logit_bias": {favoured: -50}}),
        (
            {"extra_body": {"banned_words": [word], "typical_p": 0.5}},
            {"banned_words": [word], "typical_p": 0.5},
        ),
    ):
        [expected] = tiny.generate(PROMPT, options(**same))
        assert complete(client, **asked).choices[0].text == expected.text
        assert expected.text != plain.text, f"{asked} changes nothing"


def test_a_tree_is_that_of_python_and_its_paths_are_texts(url: str, tiny: TextGenerator) -> None:
    asked = {"prompt": PROMPT, "branches": 2, "depth": 3, "least": 0, "width": 8}
    status, answer = post(url, "v1/tree", asked)
    assert status == 200
    tree = TextTree(tiny.prompt(PROMPT))
    list(grown(tiny, tree, TreeOptions(2, 3, 0.0, 8)))
    assert [(node["id"], node["parent"]) for node in answer["nodes"]] == [
        (node.id, node.parent) for node in tree.nodes
    ]
    assert [node["text"] for node in answer["nodes"]] == tree.texts
    assert answer["usage"]["total_tokens"] == tree.prompt.length + len(tree.nodes)
    for name, value in (("branches", 9), ("depth", 0), ("depth", 32), ("prompt", " "), ("least", 2)):
        long = {"prompt": "gene " * 10} if (name, value) == ("depth", 32) else {}
        status, refused = post(url, "v1/tree", {**asked, **long, name: value})
        assert (status, refused["error"]["param"]) == (400, name), refused


def test_errors_that_belong_together_are_refused_together(client: openai.OpenAI) -> None:
    for wrong, param in (
        ({"n": 2, "temperature": 0}, "n"),
        ({"n": 32, "prompt": ["a"] * 5}, "n"),
        ({"prompt": PROMPT, "max_tokens": 60}, "max_tokens"),
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as refused:
                complete(client, **wrong, stream=stream)
            assert refused.value.param == param


def test_a_good_request_follows_two_hundred_bad_ones(client: openai.OpenAI, url: str) -> None:
    bodies: list[Any] = [
        "",
        "{",
        "[1]",
        '"x"',
        "null",
        "[" * 100_000,
        "9" * 5000,
        {"prompt": 5},
        {"x": 1},
        {},
    ]
    for path in ("completions", "ner", "classify", "score"):
        for body in bodies * 5:
            status, answer = post(url, f"v1/{path}", body)
            assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
            assert not any(word in answer["error"]["message"] for word in PYTHONS_OWN)
    assert complete(client).choices[0].text


def test_what_is_no_json_or_too_large_or_nowhere_is_refused(url: str) -> None:
    def status_of(path: str, body: bytes | None, kind: str = "application/json") -> tuple[int, str]:
        asked = urllib.request.Request(f"{url}v1/{path}", body, {"Content-Type": kind})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=60)
        return refused.value.code, json.load(refused.value)["error"]["message"]

    large = json.dumps({"input": "a" * 1_000_000}).encode()
    assert status_of("ner", large) == (
        413,
        "the body has more than 1,000,000 bytes; send fewer texts at once",
    )
    assert status_of("ner", b"{" + b" " * 8_000_000)[0] == 413
    assert status_of("ner", b'{"input": "a"}', "text/plain")[0] == 400
    assert status_of("nosuch", b"{}")[0] == 404
    assert status_of("ner", None)[0] == 405


def test_half_of_a_surrogate_pair_is_read_as_its_replacement(url: str) -> None:
    for path, given in (
        ("completions", {"prompt": "a \ud800", "echo": True, "logprobs": 1, "max_tokens": 1}),
        ("ner", {"input": "\ud800 aspirin"}),
        ("score", {"input": "a \ud800"}),
        ("classify", {"input": "a \ud800", "task": "sentences"}),
    ):
        status, answer = post(url, f"v1/{path}", given)
        assert status == 200, answer


TEXTS = ["🧬 Naloxone reverses “hypertension”\u200b in rats.", "Nothing here.", "p53 and aspirin"]


def test_entities_have_exact_offsets(url: str) -> None:
    expected = EntityRecognizer.from_pretrained("mini-ner").batch(TEXTS)
    status, answer = post(url, "v1/ner", {"input": TEXTS})
    assert (status, answer["object"], answer["model"]) == (200, "list", "mini-ner")
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    for text, row, entities in zip(TEXTS, answer["data"], expected, strict=True):
        assert [(e["label"], e["start"], e["end"]) for e in row["entities"]] == [
            (e.label, e.start, e.end) for e in entities
        ]
        assert all(text[e["start"] : e["end"]] == e["text"] for e in row["entities"])
    assert answer["data"][0]["entities"]
    status, one = post(url, "v1/ner", {"input": TEXTS[0], "types": ["Disease"]})
    assert {entity["label"] for entity in one["data"][0]["entities"]} == {"Disease"}
    status, one = post(url, "v1/ner", {"input": "The HD gene product is huntingtin.", "types": ["Disease"]})
    assert [entity["text"] for entity in one["data"][0]["entities"]] == ["HD"]  # else the gene has it
    status, few = post(url, "v1/ner", {"input": TEXTS, "min_score": 1})
    assert [row["entities"] for row in few["data"]] == [[], [], []]
    for wrong in (
        {"types": ["Nosuch"]},
        {"types": "Disease"},
        {"min_score": 2},
        {"x": 1},
        {"input": ["a", ""]},
    ):
        status, answer = post(url, "v1/ner", {"input": "a", **wrong})
        assert (status, next(iter(wrong)) in answer["error"]["message"]) == (400, True)


def test_texts_and_sentences_are_labelled(url: str) -> None:
    expected = TextClassifier.from_pretrained("mini-hoc").batch(TEXTS)
    status, answer = post(url, "v1/classify", {"input": TEXTS})
    assert (status, answer["model"]) == (200, "mini-hoc")
    for row, result in zip(answer["data"], expected, strict=True):
        found = {label["label"]: label["score"] for label in row["labels"]}
        # Two processes may choose kernels that round otherwise, and labels of like scores change places.
        assert found == pytest.approx({label.label: label.score for label in result.scores}, abs=1e-2)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    text = "🧬 We looked. It was found that p53 matters."
    status, answer = post(url, "v1/classify", {"input": [text], "task": "sentences"})
    [row] = answer["data"]
    assert [text[s["start"] : s["end"]] for s in row["labels"]] == [s["text"] for s in row["labels"]]
    assert len(row["labels"]) == 2
    own = {"input": TEXTS, "labels": ["is", "and"]}
    status, answer = post(url, "v1/classify", own)
    assert (status, answer["model"], len(answer["data"])) == (200, "tiny", 3)
    assert sum(label["score"] for label in answer["data"][0]["labels"]) == pytest.approx(1)
    assert post(url, "v1/classify", {**own, "threshold": 1})[1]["data"][0]["labels"] == []
    for wrong in ({"labels": ["a"]}, {"task": "x"}, {"threshold": -1}, {"model": "mini"}):
        status, answer = post(url, "v1/classify", {"input": "a", **wrong})
        assert (status, next(iter(wrong)) in answer["error"]["message"].lower()) == (400, True)


def test_texts_are_scored(url: str, tiny: TextGenerator) -> None:
    texts = ["The BRCA1 gene (a-b) is", " Ünit  and 5% "]
    status, answer = post(url, "v1/score", {"input": texts, "top_logprobs": 3})
    assert (status, answer["model"]) == (200, "tiny")
    for text, row in zip(texts, answer["data"], strict=True):
        assert row["bits_per_byte"] == pytest.approx(
            bits_per_byte(tiny.model, tiny.tokenizer, [text]), abs=1e-5
        )
        bits = -sum(token["logprob"] for token in row["tokens"]) / math.log(2)
        assert bits / len(text.encode()) == pytest.approx(row["bits_per_byte"])
        encoding, sample = tiny.tokenizer.encode(text), scored(tiny, "", text)
        assert [token["id"] for token in row["tokens"]] == encoding.ids[1:]
        assert [(t["start"], t["end"]) for t in row["tokens"]] == encoding.offsets[1:]
        assert [token["logprob"] for token in row["tokens"]] == pytest.approx(sample.logprobs, abs=1e-5)
        for token, alternatives in zip(row["tokens"], sample.alternatives, strict=True):
            assert text[token["start"] : token["end"]] == token["text"]
            assert [other["id"] for other in token["top"]] == [index for index, _ in alternatives[:3]]
    read = sum(len(tiny.tokenizer.encode(text).ids) for text in texts)
    assert answer["usage"] == {"prompt_tokens": read, "total_tokens": read}
    for wrong in ("", [], ["a", " "], 5, "gene " * 100, "a" * 100_001):
        status, answer = post(url, "v1/score", {"input": wrong})
        assert (status, answer["error"]["param"]) == (400, "input")


ENDLESS = {"model": "mini", "prompt": ["The gene"] * 4, "n": 32, "max_tokens": 1000}

LEAVERS: list[tuple[str, dict[str, Any]]] = [
    ("completions", ENDLESS),
    ("completions", ENDLESS | {"stream": True}),
    ("completions", ENDLESS | {"stop": "never met"}),
    ("ner", {"input": [LONG[:8000]] * 50}),
    ("classify", {"input": [LONG[:900]] * 200, "task": "sentences"}),
    ("classify", {"input": [LONG[:400]] * 200, "labels": ["a", "b"]}),
    ("score", {"input": [LONG[:400]] * 200}),
]


def send(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection over which a request was sent, and nothing is read."""
    content = json.dumps(body).encode()
    port = int(url.rsplit(":")[-1].strip("/"))
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", port), 120)
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Watched:
    """What ``/v1`` runs on, in this process, with a count of the readings that its models have begun.

    Attributes:
        read: texts, or stretches of a text, that were begun.
        shelf, models: as ``/v1`` has them.
    """

    def __init__(self) -> None:
        self.read = 0
        self.shelf = Shelf("mini", self._generator, ["mini"])
        kinds: list[tuple[Any, str, str]] = [
            (EntityRecognizer, "mini-ner", "batch"),
            (TextClassifier, "mini-hoc", "batch"),
            (TextClassifier, "mini-rct", "sentences"),
        ]
        self.models = [
            LazyModel(name, partial(self._counting, kind, name, method), self.shelf.closed)
            for kind, name, method in kinds
        ]
        recognizer, *classifiers = self.models
        self.app = api_of(
            self.shelf,
            Tagger(recognizer),
            Labeller(*classifiers, self.shelf),
            self.shelf.closed,
            Requests(),
        )

    def _counting(self, kind: Any, name: str, method: str) -> Any:
        model = kind.from_pretrained(name)
        original = getattr(model, method)

        def counted(*given: Any, **named: Any) -> Any:
            self.read += 1
            return original(*given, **named)

        setattr(model, method, counted)
        return model

    def _generator(self, name: str) -> Any:
        return self._counting(TextGenerator, name, "run")

    @property
    def engine(self) -> Any:
        return self.shelf.take()._worker.engine

    @property
    def is_busy(self) -> bool:
        """Whether anything is written or read."""
        lines = [model.line for model in self.models] + [self.shelf.reading]
        return self.engine.is_busy or any(len(line) for line in lines)


@pytest.fixture(scope="module")
def watched() -> Iterator[tuple[str, Watched]]:
    """An address at which ``/v1`` is served from this process, and what it runs on."""
    here = Watched()
    here.shelf.take()
    config = uvicorn.Config(Starlette(routes=[Mount("/v1", here.app)]), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/", here
    server.should_exit = True
    thread.join()
    here.shelf.close(0)


@pytest.mark.parametrize(("path", "body"), LEAVERS, ids=lambda value: value if isinstance(value, str) else "")
def test_who_leaves_leaves_no_work_behind(
    watched: tuple[str, Watched], path: str, body: dict[str, Any]
) -> None:
    url, here = watched
    here.read = 0
    connection = send(url, path, body)
    if path == "completions":
        wait_until(lambda: bool(here.engine.running))
        connection.close()
        wait_until(lambda: not here.engine.is_busy)
        return
    wait_until(lambda: here.read > 0)
    connection.close()
    wait_until(lambda: not here.is_busy)
    time.sleep(1)
    assert not here.is_busy
    assert here.read < 40, "the rest was read for nobody"


def test_who_leaves_the_line_leaves_it(watched: tuple[str, Watched]) -> None:
    url, here = watched
    recognizer = here.models[0]
    with recognizer.turn():
        connections = [send(url, "ner", {"input": "aspirin"}) for _ in range(5)]
        time.sleep(0.5)
        here.read = 0
        for connection in connections:
            connection.close()
        time.sleep(0.5)
    assert post(url, "v1/ner", {"input": "aspirin"})[0] == 200
    assert here.read == 1


def test_a_full_line_says_when_to_come_back(watched: tuple[str, Watched]) -> None:
    url, here = watched

    def fill(path: str, body: dict[str, Any], most: int) -> list[socket.socket]:
        connections = [send(url, path, body) for _ in range(most)]
        time.sleep(1)  # they are there, and wait
        connections.append(send(url, path, body))
        with closing(http.client.HTTPResponse(connections[-1])) as refused:
            refused.begin()
            assert (refused.status, refused.headers["Retry-After"]) == (503, "15")
            assert json.load(refused)["error"]["code"] == "busy"
        return connections

    with here.models[0].turn():
        for connection in fill("ner", {"input": "aspirin"}, 33):
            connection.close()
    go_on = Event()
    held = Thread(target=here.shelf.take().run, args=(go_on.wait,))
    held.start()
    connections = fill("completions", {"prompt": "a", "max_tokens": 1000}, 48)
    go_on.set()
    for connection in connections:
        connection.close()
    held.join()
    wait_until(lambda: not here.is_busy)
    assert post(url, "v1/completions", {"prompt": "a"})[0] == 200
    assert post(url, "v1/ner", {"input": "a"})[0] == 200


def test_a_stream_that_waits_says_so_before_a_proxy_ends_it(
    watched: tuple[str, Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, here = watched
    monkeypatch.setattr(api, "_PAUSE", 0.3)
    go_on = Event()
    held = Thread(target=here.shelf.take().run, args=(go_on.wait,))
    held.start()
    body = {"prompt": "a", "max_tokens": 5, "temperature": 0, "stream": True}
    with closing(http.client.HTTPResponse(send(url, "completions", body))) as answer:
        answer.begin()
        assert answer.status == 200
        comments = [answer.readline() for _ in range(6)][::2]
        go_on.set()
        events = answer.read().decode().split("\n\n")
    held.join()
    assert comments == 3 * [b": it goes on\n"]
    texts = [json.loads(each[6:])["choices"][0]["text"] for each in events if each.startswith("data: {")]
    whole = post(url, "v1/completions", body | {"stream": False})[1]
    assert "".join(texts) == whole["choices"][0]["text"] != ""
    wait_until(lambda: not here.is_busy)


def test_told_to_end_it_tells_every_client() -> None:
    def streamed(url: str) -> Any:
        client = openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError) as failed:
            for _ in client.completions.create(**ENDLESS, stream=True):
                pass
        return 503, {"error": failed.value.body}

    asked = LEAVERS[:4]
    with app_server() as (url, process), ThreadPoolExecutor(len(asked)) as pool:
        told = [
            pool.submit(streamed, url) if body.get("stream") else pool.submit(post, url, f"v1/{path}", body)
            for path, body in asked
        ]
        time.sleep(3)
        process.terminate()
        assert process.wait(60) == 0
        for each in told:
            status, answer = each.result()
            assert (status, answer["error"]["code"]) == (503, "stopping")
            assert answer["error"]["message"] == "The server is stopping; try again in a minute"


@pytest.mark.parametrize(("language", "command"), [("sh", ["sh"]), ("py", [sys.executable])])
def test_what_the_readme_says_works(url: str, language: str, command: list[str]) -> None:
    [code] = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    if not shutil.which(code.split()[0]) and language == "sh":
        pytest.skip("there is no curl")
    code = code.replace("http://127.0.0.1:7860/", url)
    done = subprocess.run([*command, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert ("Chemical" if language == "sh" else " ") in done.stdout


def test_the_documentation_loads_nothing_and_lists_all(url: str) -> None:
    described = json.load(urllib.request.urlopen(f"{url}v1/openapi.json"))
    paths = {"/models", "/models/{name}", "/completions", "/score", "/classify", "/ner", "/tree"}
    assert set(described["paths"]) == paths
    assert described["servers"] == [{"url": "/v1"}]
    assert all(
        "422" not in call["responses"] for path in described["paths"].values() for call in path.values()
    )
    page = urllib.request.urlopen(f"{url}v1/docs").read().decode()
    assert "http" not in page
    assert "<script" not in page
    for path in paths:
        assert f"/v1{path}<" in page
    for name in ("max_tokens", "no_repeat_ngram_size", "min_score", "threshold", "top_logprobs"):
        assert f"<code>{name}</code>" in page
