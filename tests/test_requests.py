"""What the owner of a page learns of its requests, and whom it lets in, from real servers."""

import base64
import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import gradio_client
import openai
import pytest
from app_server import app_server, call, post

from biogpt.ui.auth import read_passwords

WORDS = "Naloxone reverses"


def metrics(url: str) -> dict[str, float]:
    text = urllib.request.urlopen(f"{url}metrics").read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{.*?\})?) (\S+)$", text, re.M)}


@pytest.mark.slow
def test_requests_are_told_of_by_number_size_and_end_but_not_by_their_words(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log, app_server("--metrics", log=log) as (url, _):
        assert call(url, "generate", prompt=WORDS, max_new_tokens=5, temperature=0)[0] == "complete"
        assert call(url, "generate", prompt=f"{WORDS} " * 900)[0] == "error"
        assert call(url, "ner", text=WORDS)[0] == "complete"
        assert post(url, "v1/completions", {"prompt": WORDS, "max_tokens": 3, "temperature": 0})[0] == 200
        assert post(url, "v1/completions", {"prompt": WORDS, "wrong": 3})[0] == 400
        assert post(url, f"v1/{WORDS.split()[0]}", {})[0] == 404
        assert post(url, "gradio_api/call/v2/ner", {"text": WORDS, "wrong": 3})[0] == 422
        assert post(url, f"gradio_api/call/v2/{WORDS.split()[0]}", {})[0] == 404
        for _ in range(100):  # a text is counted once it has left
            found = metrics(url)
            if found["biogpt_first_token_seconds_count"] == 2:
                break
            time.sleep(0.1)
    counted = {name: found[name] for name in found if name.startswith("biogpt_requests_total")}
    assert counted == {
        'biogpt_requests_total{how="done",task="/generate"}': 1,
        'biogpt_requests_total{how="refused",task="/generate"}': 1,
        'biogpt_requests_total{how="done",task="/ner"}': 1,
        'biogpt_requests_total{how="refused",task="/ner"}': 1,
        'biogpt_requests_total{how="refused",task="/"}': 1,
        'biogpt_requests_total{how="done",task="/v1/completions"}': 1,
        'biogpt_requests_total{how="refused",task="/v1/completions"}': 1,
        'biogpt_requests_total{how="refused",task="/v1/"}': 1,
    }
    assert found["biogpt_tokens_total"] == 8
    assert found['biogpt_requests_running{task="/ner"}'] == 0
    assert found['biogpt_requests_waiting{task="entities"}'] == 0
    assert found['biogpt_request_seconds_count{task="/generate"}'] == 2
    assert found["process_resident_memory_bytes"] > 1e8
    told = (tmp_path / "log").read_text()
    ends = re.findall(r"request (\d+): (\S+), size (\d+), waited \S+ s, took \S+ s, (\w+)$", told, re.M)
    assert [number for number, *_ in ends] == [str(number) for number in range(1, 9)]
    assert ends[0][1:] == ("/generate", str(len(WORDS)), "done")
    assert ends[1][1:] == ("/generate", str((len(WORDS) + 1) * 900), "refused")
    assert WORDS.split()[0] not in told


@pytest.mark.slow
def test_who_has_no_password_gets_nothing_but_health(tmp_path: Path) -> None:
    def status(path: str, given: str = "", body: bytes | None = None) -> int:
        headers = {"Content-Type": "application/json"} | ({"Authorization": given} if given else {})
        try:
            answer = urllib.request.urlopen(urllib.request.Request(url + path, body, headers))
        except urllib.error.HTTPError as error:
            answer = error
        assert ("Basic " in answer.headers.get("WWW-Authenticate", "")) == (answer.status == 401)
        return answer.status

    def basic(words: str) -> str:
        return f"Basic {base64.b64encode(words.encode()).decode()}"

    (tmp_path / "passwords").write_text("# of the lab\nann:s:ecret\n\nJürgen:grün\n")
    ask = json.dumps({"prompt": WORDS, "max_tokens": 1}).encode()
    ping = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
    with app_server("--auth", str(tmp_path / "passwords"), "--mcp") as (url, _):
        assert status("health") == 200
        for path, body in (
            ("", None),
            ("config", None),
            ("preview.png", None),
            ("gradio_api/call/v2/ner", b'{"text": "Naloxone."}'),
            ("gradio_api/mcp/", ping),
            ("v1/models", None),
            ("v1/completions", ask),
        ):
            assert status(path, body=body) == 401, path
        wrongs = [basic(words) for words in ("ann:wrong", "ann:", "bob:s:ecret")]
        for wrong in (*wrongs, "Basic ?", "Bearer ann", "Digest x"):
            assert status("config", wrong) == 401, wrong
        assert status("config", basic("ann:s:ecret")) == status("", basic("Jürgen:grün")) == 200
        client = openai.OpenAI(base_url=f"{url}v1", api_key="ann:s:ecret")
        answer = client.completions.create(model="mini", prompt=WORDS, max_tokens=2)
        assert answer.usage.completion_tokens == 2
        caller = gradio_client.Client(url, headers={"Authorization": basic("ann:s:ecret")}, verbose=False)
        assert caller.predict("Aspirin lowers the risk of stroke.", api_name="/ner")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ann\n", "line 1 of .* is not NAME:PASSWORD"),
        ("a:b\n:x\n", "line 2 of"),
        ("# none\n", "holds no NAME"),
    ],
)
def test_a_file_without_passwords_is_refused_by_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "passwords").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_passwords(str(tmp_path / "passwords"))
    assert read_passwords("ann:a:b") == {"ann": "a:b"}
