"""What programs get that call the page wrongly, from the real server."""

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_server import app_server, call, post

HARD = "<b>'\"&"
PYTHONS_OWN = ("object", "NoneType", "Traceback", ".py", "<class", "&#", "&lt;", "&amp;", "attribute")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    with app_server("--mcp") as (address, process):
        yield address, process.pid


@pytest.fixture
def url(server: tuple[str, int]) -> str:
    return server[0]


@pytest.fixture
def served(server: tuple[str, int]) -> int:
    """The process of the page."""
    return server[1]


@pytest.mark.parametrize("endpoint", ["generate", "ner", "classify"])
def test_arguments_that_no_endpoint_has_are_named(url: str, endpoint: str) -> None:
    first = "prompt" if endpoint == "generate" else "text"
    status, answer = post(url, f"gradio_api/call/v2/{endpoint}", {first: "a", HARD: 1})
    assert status == 422
    assert answer["detail"].startswith(f'unknown argument "<b>\'\\"&"; /{endpoint} takes {first}, ')
    status, answer = post(url, f"gradio_api/call/v2/{endpoint}", {})
    assert (status, answer["detail"].partition(";")[0]) == (422, f'missing argument "{first}"')
    for way in ("call", "run"):
        status, answer = post(url, f"gradio_api/{way}/{endpoint}", {"data": ["a"]})
        assert status == 422
        assert answer["detail"].startswith("data holds 1 values; expected ")
        status, answer = post(url, f"gradio_api/{way}/{endpoint}", {"data": HARD})
        assert (status, HARD[:3] in answer["detail"]) == (422, True)


@pytest.mark.parametrize("body", ["", "{", "[1]", '"x"', "[" * 100_000, "9" * 5000])
def test_a_body_that_is_no_object_is_refused(url: str, body: str) -> None:
    for path in ("call/v2/ner", "call/ner", "run/ner", "queue/join"):
        status, answer = post(url, f"gradio_api/{path}", body)
        assert status == 422
        assert answer["detail"].startswith("the body is")


def test_what_is_not_there_is_refused_and_what_is_there_is_said(url: str) -> None:
    for path in ("call/v2/check", "call/nosuch", "run/nosuch"):
        status, answer = post(url, f"gradio_api/{path}", {"data": []})
        assert status == 404
        assert answer["detail"].endswith("there are /generate, /ner, /classify")
    for index in (9999, -1, None, HARD, [], 1.5):
        body = {"fn_index": index, "data": [], "session_hash": "s"}
        status, answer = post(url, "gradio_api/queue/join", body)
        assert (status, answer["detail"].partition(" is ")[0]) == (422, "fn_index")


BLANK = ("", " \n", "\u200b", "\u200c\u200d", "\ufeff", "\u2060 \u00ad", "\ufe0f", "\u0301\u0308", "\u3164\t")


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_a_text_that_shows_nothing_is_refused_as_empty(url: str, text: str) -> None:
    for endpoint, field in (("ner", "text"), ("classify", "text"), ("generate", "prompt")):
        event, data = call(url, endpoint, **{field: text})
        assert (event, data["error"].partition(":")[0]) == ("error", "The text is empty")


WRONG: list[Any] = [
    HARD,
    5,
    -1,
    1.5,
    10**30,
    10**400,
    None,
    True,
    [],
    {},
    [None],
    [[HARD]],
    float("nan"),
    float("-inf"),
]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:20])
def test_a_wrong_value_is_named_with_its_field_in_plain_words(url: str, value: Any) -> None:
    for endpoint, field in (
        ("ner", "text"),
        ("ner", "types"),
        ("ner", "min_score"),
        ("classify", "text"),
        ("classify", "task"),
        ("classify", "labels"),
        ("classify", "threshold"),
        ("classify", "model"),
        ("generate", "prompt"),
        ("generate", "temperature"),
        ("generate", "seed"),
        ("generate", "stop"),
        ("generate", "model"),
    ):
        least = {"prompt": "a", "max_new_tokens": 1} if endpoint == "generate" else {"text": "a"}
        own = {"labels": ["a", "b"]} if field == "model" else {}
        event, data = call(url, endpoint, **least | (own if endpoint == "classify" else {}) | {field: value})
        if event == "complete":
            allowed = {"types": [None, []], "labels": [None], "model": [None], "seed": [None, 5]}
            allowed |= {"stop": [None, [], HARD], "text": [HARD], "prompt": [HARD], "temperature": [5, 1.5]}
            assert value in allowed[field]
            continue
        assert event == "error"
        said = data["error"]
        assert field in said.lower()
        assert not any(word in said for word in PYTHONS_OWN), said
        assert len(said) < 1000
        if value == HARD:
            assert any(form in said for form in (HARD, json.dumps(HARD), repr(HARD)))


def test_the_page_s_own_functions_refuse_what_no_control_holds(url: str) -> None:
    config = json.load(urllib.request.urlopen(f"{url}config"))
    functions = [each for each in config["dependencies"] if each["backend_fn"]]
    assert len(functions) > 20
    for each in functions:
        for data in ([], *([value] * len(each["inputs"]) for value in (5, None, HARD, [[None]]))):
            body = {"fn_index": each["id"], "data": data, "session_hash": "s", "event_data": {"a": 1}}
            status, answer = post(url, "gradio_api/run/x", body)
            assert status in (200, 422)
            if status == 422:
                assert not any(word in answer["error"] for word in PYTHONS_OWN), answer
    unknown = {"component_id": 9999, "fn_name": "x", "session_hash": "s", "data": []}
    status, answer = post(url, "gradio_api/component_server", unknown)
    assert (status, [*answer]) == (500, ["detail"])


LONG = "Naloxone reverses the antihypertensive effect of clonidine in rats. " * 3000


def idle(process: int) -> bool:
    """Whether a process used less than a tenth of a core in the last second."""

    def used() -> float:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    time.sleep(1)
    return used() - before < 0.1


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(
    ("endpoint", "given"), [("ner", {}), ("classify", {}), ("classify", {"task": "sentences"})]
)
def test_who_leaves_leaves_no_work_behind(
    url: str, served: int, endpoint: str, given: Any, reads: bool
) -> None:
    call(url, endpoint, text="Naloxone.", **given)
    _, asked = post(url, f"gradio_api/call/v2/{endpoint}", {"text": LONG, **given})
    if reads:
        address = f"{url}gradio_api/call/{endpoint}/{asked['event_id']}"
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(address, timeout=1).read()
    else:
        time.sleep(1)
        assert not idle(served), "it is computed meanwhile, in case that somebody comes for it"
    deadline = time.monotonic() + 60
    while not idle(served):
        assert time.monotonic() < deadline
    event, _ = call(url, endpoint, text="Naloxone.", **given)
    assert event == "complete"


def test_a_full_line_says_when_to_come_back() -> None:
    refused = None
    with app_server() as (url, _):
        body = json.dumps({"text": LONG}).encode()
        for _ in range(40):
            asked = urllib.request.Request(
                f"{url}gradio_api/call/v2/ner", body, {"Content-Type": "application/json"}
            )
            try:
                urllib.request.urlopen(asked).close()
            except urllib.error.HTTPError as error:
                refused = error
        assert refused is not None
        assert (refused.code, refused.headers["Retry-After"]) == (503, "15")
        assert json.load(refused) == {"detail": "Too many texts wait here already. Try again in 15 seconds"}


def test_tools_say_the_same(url: str) -> None:
    mcp = pytest.importorskip("mcp")
    http = pytest.importorskip("mcp.client.streamable_http")

    async def ask(*calls: tuple[str, dict[str, Any]]) -> list[tuple[bool, str]]:
        async with (
            http.streamablehttp_client(f"{url}gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            results = [await session.call_tool(*each) for each in calls]
            return [(result.isError, result.content[0].text) for result in results]

    types = ("Chemical", "Disease", "Gene", "CellLine", "CellType", "Species")
    assert asyncio.run(
        ask(
            ("ner", {"text": "Naloxone.", HARD: 1}),
            ("ner", {"text": "Naloxone.", "types": [HARD]}),
            ("generate", {"prompt": "a", "model": HARD}),
            ("ner", {"text": "of"}),
        )
    ) == [
        (True, f"unknown argument {json.dumps(HARD)}; ner takes text, types, min_score"),
        (
            True,
            f"types has {json.dumps([HARD])}; this model knows {', '.join(types)}",
        ),
        (True, f"model {HARD!r} is not offered here; choose one of mini"),
        (False, "[]"),
    ]
