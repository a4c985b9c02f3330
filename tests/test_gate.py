"""What programs get that call the page wrongly, from the real server."""

import asyncio
import json
import os
import platform
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
import pytest
from app_server import app_server, call, last_event, post, save_tiny
from load import Level, answer, asks, at_work
from load import run as load
from starlette.datastructures import Headers
from starlette.middleware import Middleware

from biogpt.ui import gate
from biogpt.ui.gate import Gate, Page
from biogpt.ui.hosts import Sites
from biogpt.ui.line import client_of
from biogpt.ui.page import end

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


@pytest.mark.slow
def test_after_each_of_two_hundred_wrong_requests_a_right_one_is_answered_the_same(url: str) -> None:
    wrong = ["", "{", "[1]", {"nonsense": 1}, {"text": 5}, {"prompt": None}, {"text": "a", "labels": "x"}]
    wrong += [{"prompt": "a", "max_new_tokens": value} for value in (-1, 1e9, "many", [1], True)]
    wrong += [{"prompt": "a", "model": "../../etc/passwd"}, {"input": [[]]}, {"prompt": "a", "stop": [""]}]
    right: list[tuple[str, dict[str, Any]]] = [
        ("generate", {"prompt": "Naloxone", "max_new_tokens": 2, "seed": 1}),
        ("ner", {"text": "Naloxone."}),
        ("classify", {"text": "Naloxone.", "labels": ["drug", "disease"]}),
    ]
    answers: dict[str, Any] = {}
    for number in range(200):
        bad = wrong[number % len(wrong)]
        endpoint, good = right[number % len(right)]
        for path in (f"gradio_api/call/v2/{endpoint}", f"gradio_api/run/{endpoint}", "v1/completions"):
            if path.startswith("v1") or isinstance(bad, str) or not set(bad) <= set(good):
                status, asked = post(url, path, bad)
                if status == 200:  # what is wrong with it was found later
                    status, _ = last_event(url, endpoint, asked["event_id"])
                assert status == "error" or 400 <= status < 500, (path, bad)
        event, data = call(url, endpoint, **good)
        assert event == "complete"
        told = [{**each, "seconds": 0} if isinstance(each, dict) else each for each in data]
        assert answers.setdefault(endpoint, json.dumps(told)) == json.dumps(told)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux alone tells of threads and files")
def test_a_hundred_requests_of_eight_clients_get_what_each_gets_alone() -> None:
    """All tasks and lengths mixed, and some leave; ``load.py`` does the same with a thousand."""
    with app_server("--metrics") as (url, process):
        alone = {ask: answer(url, ask) for ask in asks(24, size=0.3)}
        load(url, alone, 24, 8)  # what threads there are to be are there
        before = Level.of(process.pid)
        outcome = load(url, alone, 100, 8)
        assert outcome.wrong == []
        assert outcome.left >= 5
        assert outcome.same + outcome.left == 100
        deadline = time.monotonic() + 60
        while at_work(url) or (now := Level.of(process.pid)).files > before.files + 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert now.threads <= before.threads + 8


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
                assert not any(word in answer["error"] for word in PYTHONS_OWN), (answer, each, data)
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_tiny(folder, layers=8)  # whose texts do not end while this machine is slow to ask for others
    return folder


def ask_from(client: str, url: str, endpoint: str, **given: Any) -> tuple[int, str | None, dict[str, Any]]:
    """HTTP status, ``Retry-After`` and answer to a call that a proxy lets in for a client."""
    headers = {"Content-Type": "application/json", "X-Forwarded-For": client}
    body = json.dumps(given).encode()
    asked = urllib.request.Request(f"{url}gradio_api/call/v2/{endpoint}", body, headers)
    try:
        with urllib.request.urlopen(asked) as answer:
            return answer.status, None, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Retry-After"], json.load(error)


ENDLESS = {"prompt": "ab", "max_new_tokens": 1000, "min_new_tokens": 1000, "no_repeat_ngram_size": 0}


def ask_until_refused(
    client: Callable[[int], str], url: str, endpoint: str, **given: Any
) -> tuple[int, int, str | None, str]:
    """How many calls were taken, and HTTP status, ``Retry-After`` and reason of the first that was not."""
    for taken in range(200):
        status, retry, answer = ask_from(client(taken), url, endpoint, **given)
        if status != 200:
            return taken, status, retry, answer["detail"]
    pytest.fail("all were taken")


def test_one_client_cannot_hold_up_another_nor_a_line_another_line(tiny: Path) -> None:
    yours = "16 of your requests wait here already, the most for one client. Try again in 15 seconds"
    full = "Too many texts wait here already. Try again in 15 seconds"
    with app_server("--model", str(tiny)) as (url, _):
        call(url, "ner", text="Naloxone."), call(url, "classify", text="p53.")  # which loads them
        taken, *refused = ask_until_refused(lambda _: "10.0.0.1", url, "generate", **ENDLESS)
        assert taken >= 24 + 16, "given to the model, and waiting"
        assert refused == [429, "15", yours]

        status, _, asked = ask_from("10.0.0.2", url, "generate", prompt="ab", max_new_tokens=5)
        event, data = last_event(url, "generate", asked["event_id"])
        assert (status, event, data[0]["tokens"] <= 5) == (200, "complete", True)

        for endpoint, given in (("generate", ENDLESS), ("ner", {"text": LONG})):
            _, *refused = ask_until_refused(lambda number: f"10.0.1.{number}", url, endpoint, **given)
            assert refused == [503, "15", full]
        assert call(url, "classify", text="p53.")[0] == "complete"


def test_calls_beside_the_line_are_few(url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        body = {"data": [LONG[:6_000], None, 0.0]}
        answers = [
            each.result() for each in [pool.submit(post, url, "gradio_api/run/ner", body) for _ in range(3)]
        ]
    assert sorted(status for status, _ in answers) == [200, 200, 503]


@pytest.mark.parametrize(
    ("first", "second", "are_one"),
    [
        (("192.0.2.1",), ("192.0.2.1", "tab"), True),
        (("192.0.2.1",), ("192.0.2.2",), False),
        (("::ffff:192.0.2.1",), ("192.0.2.1",), True),
        (("2001:db8::1",), ("2001:db8::ffff:2",), True),
        (("2001:db8::1",), ("2001:db8:0:1::1",), False),
        (("127.0.0.1", "tab"), ("127.0.0.1", "other"), False),
        (("127.0.0.1",), ("127.0.0.1",), True),
        (("::1", "tab"), ("::1", "other"), False),
        (("unix:",), ("unix:",), True),
    ],
)
def test_who_is_one_client(first: tuple[str, ...], second: tuple[str, ...], are_one: bool) -> None:
    assert (client_of(*first) == client_of(*second)) is are_one


SPACE = {"SPACE_ID": "me/biogpt", "SPACE_HOST": "me-biogpt.hf.space"}


@pytest.mark.parametrize(
    ("host", "origin", "allowed", "environment", "shared", "refused"),
    [
        ("127.0.0.1:7860", None, "", {}, None, ""),
        ("[::1]:7860", "http://[::1]:7860", "", {}, None, ""),
        ("localhost:7860", "http://localhost:7860", "", {}, None, ""),
        ("192.168.1.5:7860", "http://192.168.1.5:7860", "", {}, None, ""),
        ("evil.example:7860", "http://evil.example:7860", "", {}, None, "Host"),
        ("127.0.0.1.evil.example", None, "", {}, None, "Host"),
        ("localhost.evil.example", None, "", {}, None, "Host"),
        ("evil", None, "", {}, None, "Host"),
        ("", None, "", {}, None, ""),
        (":7860", None, "", {}, None, "Host"),
        ("127.0.0.1:7860", "https://evil.example", "", {}, None, "Origin"),
        ("127.0.0.1:7860", "https://127.0.0.1.evil.example", "", {}, None, "Origin"),
        ("127.0.0.1:7860", "http://203.0.113.5", "", {}, None, "Origin"),
        ("127.0.0.1:7860", "null", "", {}, None, "Origin"),
        ("127.0.0.1:7860", "[", "", {}, None, "Origin"),
        ("192.168.1.5:7860", "http://localhost:3000", "", {}, None, "Origin"),
        ("lab.example", "https://lab.example", "lab.example", {}, None, ""),
        ("127.0.0.1:7860", "https://lab.example", "https://lab.example/", {}, None, ""),
        ("127.0.0.1:7860", "http://lab.example", "https://lab.example", {}, None, "Origin"),
        ("127.0.0.1:7860", "https://x.lab.example", "lab.example", {}, None, "Origin"),
        ("evil.example", "https://evil.example", "*", {}, None, ""),
        ("me-biogpt.hf.space", "https://me-biogpt.hf.space", "", SPACE, None, ""),
        ("10.1.2.3:7860", "https://me-biogpt.hf.space", "", SPACE, None, ""),
        ("inner", "https://huggingface.co", "", SPACE, None, ""),
        ("inner", "https://evilhuggingface.co", "", SPACE, None, "Origin"),
        ("me-biogpt.hf.space", "https://evil.example", "", SPACE, None, "Origin"),
        ("ab.gradio.live", "https://ab.gradio.live", "", {}, "https://ab.gradio.live", ""),
        ("127.0.0.1:7860", "https://ab.gradio.live", "", {}, "https://ab.gradio.live", ""),
        ("cd.gradio.live", None, "", {}, "https://ab.gradio.live", "Host"),
    ],
)
def test_which_sites_may_ask(
    host: str, origin: str | None, allowed: str, environment: dict[str, str], shared: str | None, refused: str
) -> None:
    headers = Headers({"host": host} | ({} if origin is None else {"origin": origin}))
    said = Sites(allowed.split(","), "0.0.0.0", environment).refusal(headers, shared)
    assert said.partition(" ")[0] == refused


def test_another_site_is_refused_everywhere_and_browsers_are_told_what_not_to_do(url: str) -> None:
    def ask(path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        content = None if body is None else json.dumps(body).encode()
        accept = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url + path, content, accept | headers)
            ) as answer:
                return answer.status, answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.headers

    message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    for path, body in (
        ("", None),
        ("config", None),
        ("gradio_api/call/v2/ner", {"text": "Naloxone."}),
        ("gradio_api/mcp/", message),
    ):
        assert ask(path, body, Host="evil.example:7860")[0] == 403
        assert ask(path, body, Origin="https://evil.example")[0] == 403
        status, headers = ask(path, body, Origin=url.rstrip("/"))
        assert status == 200
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Content-Security-Policy"] == "frame-ancestors 'self'"
    embedders = Sites([], "0.0.0.0", SPACE).embedders
    assert embedders == "'self' https://huggingface.co https://*.huggingface.co"


@pytest.mark.parametrize(
    ("said", "root"),
    [
        ({}, "http://127.0.0.1:7860"),
        ({"X-Forwarded-Host": "localhost:80, inner", "X-Forwarded-Proto": "https"}, "https://localhost:80"),
        ({"X-Forwarded-Host": "evil.example"}, None),
        ({"Host": "evil.example", "X-Forwarded-Host": "localhost"}, None),  # as its page can, once rebound
        ({"X-Gradio-Server": "http://evil.example"}, "http://127.0.0.1:7860"),
        ({"X-Forwarded-Prefix": "/lab/bio-gpt/"}, "http://127.0.0.1:7860/lab/bio-gpt"),
        ({"X-Forwarded-Prefix": "/lab", "X-Forwarded-Host": "localhost"}, "http://localhost/lab"),
        ({"X-Forwarded-Prefix": "//evil.example"}, "http://127.0.0.1:7860"),
        ({"X-Forwarded-Prefix": "@evil.example"}, "http://127.0.0.1:7860"),
    ],
)
def test_where_the_page_is_reached_is_told_by_known_hosts_alone(
    url: str, said: dict[str, str], root: str | None
) -> None:
    request = urllib.request.Request(f"{url}config", headers={"Host": "127.0.0.1:7860"} | said)
    if root is None:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)
    else:
        assert json.load(urllib.request.urlopen(request))["root"] == root


def test_without_the_flag_nothing_is_told_to_prometheus(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}metrics")


def test_a_link_to_the_page_is_shown_with_its_own_words_and_picture(url: str) -> None:
    shown = urllib.request.urlopen(url).read().decode()
    tags = re.findall(r'<meta (?:property|name)="((?:og|twitter):\w+)" content="([^"]*)"', shown)
    assert len(re.findall(r'<meta\s[^>]*"(?:og|twitter):', shown)) == len(tags) == len(dict(tags)) == 6
    told = dict(tags)
    assert (told["og:title"], told["og:url"]) == ("BioGPT", url)
    assert "biomedical text" in told["og:description"]
    with urllib.request.urlopen(told["og:image"]) as picture:
        assert picture.headers["Content-Type"] == "image/png"
        content = picture.read()
    assert [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)] == [1200, 630]


def _same(text: str) -> str:
    return text


ENOUGH = Event()


def _endless(text: str) -> Iterator[str]:
    while not ENOUGH.is_set():
        time.sleep(0.01)
        yield text


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Page, str]]:
    """A page without models, behind its gate, and its address."""
    ENOUGH.clear()
    monkeypatch.setattr(gate, "_KEPT", 20)
    with Page(analytics_enabled=False) as page:
        kept = gr.State("nothing")
        said = gr.Textbox()
        said.change(lambda text: text, said, kept, api_visibility="private")
        gr.api(_same, api_name="echo")
        gr.api(_endless, api_name="endless")
    middleware = [Middleware(Gate, page=page)]
    _, address, _ = page.launch(
        prevent_thread_lock=True, quiet=True, _frontend=False, app_kwargs={"middleware": middleware}
    )
    try:
        yield page, address
    finally:
        page.close()


def test_told_to_end_before_it_listens_it_ends() -> None:
    with Page(analytics_enabled=False) as page:
        gr.Textbox()
    page.under_way = 1
    end(page, 0.2, 0.2)


def test_what_is_kept_of_calls_and_of_those_who_left_is_bounded(echo: tuple[Page, str]) -> None:
    page, url = echo

    def change(session: str) -> None:
        [index] = [index for index, function in page.fns.items() if function.api_visibility == "private"]
        given = {"fn_index": index, "data": ["mine"], "session_hash": session}
        assert post(url, "gradio_api/queue/join", given)[0] == 200
        urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash={session}").read()

    change("visitor")
    for number in range(10):
        change(f"another-{number}")
    for _ in range(300):
        body = {"data": ["x"]}
        _, asked = post(url, "gradio_api/call/echo", body)
        assert last_event(url, "echo", asked["event_id"]) == ("complete", ["x"])
    assert "visitor" in page.state_holder.session_data, "calls of programs drive nobody out"
    for number in range(40):
        change(f"later-{number}")
    kept = set(page.state_holder.session_data)
    assert "later-39" in kept
    assert len(kept) <= 20 + 1
    assert page.lines.events_recorded > 300
    assert not page.lines.event_analytics
    assert page.lines.cached_event_analytics_summary == {"functions": {}}, "nobody counts them anew each time"


@pytest.mark.parametrize("unread", [0.2, 3600.0], ids=["given up", "kept"])
def test_calls_that_nobody_comes_for_are_given_up_and_a_full_line_is_told_of(
    echo: tuple[Page, str], monkeypatch: pytest.MonkeyPatch, unread: float
) -> None:
    page, url = echo
    monkeypatch.setattr(gate, "_UNREAD", unread)
    ended: list[tuple[str, str]] = []
    page.lines.requests.listen(lambda task, how, _: ended.append((task, how)))
    answers = [post(url, "gradio_api/call/endless", {"data": ["x"]})[0] for _ in range(40)]
    if unread > 60:
        assert 32 <= answers.count(200) < 40
        assert ended == [("/endless", "refused")] * (40 - answers.count(200))
        assert sum(page.lines.waiting().values()) > 20
        ENOUGH.set()
    deadline = time.monotonic() + 60
    while any(page.lines.waiting().values()) or page.lines.requests.running["/endless"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert call(url, "echo", text="x") == ("complete", ["x"])


def test_memory_is_given_back_once_nobody_calls(
    echo: tuple[Page, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = echo
    given_back = Event()
    monkeypatch.setattr(gate, "_IDLE", 0.1)
    monkeypatch.setattr(gate, "give_memory_back", given_back.set)
    post(url, "gradio_api/call/echo", {"data": ["x"]})
    assert given_back.wait(60)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_what_is_free_goes_back_to_the_system() -> None:
    def used() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blocks = [bytes(2_000) for _ in range(50_000)]
    last = blocks.pop()  # at the end of the heap, which nothing before it leaves by itself
    blocks.clear()
    before = used()
    assert gate.give_memory_back()
    assert before - used() > 50_000_000
    del last


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
