"""Links: every state comes back, and nothing hostile gets in."""

import base64
import json
import random
import string
import tracemalloc
import zlib
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biogpt.ui.links import LONGEST, PLAIN, decode, encode


def query_of(link: str) -> dict[str, str]:
    return dict(parse_qsl(link, keep_blank_values=True, strict_parsing=bool(link)))


def packed(content: bytes) -> dict[str, str]:
    return {"z": base64.urlsafe_b64encode(zlib.compress(content, 9)).decode().rstrip("=")}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=1200)
states = st.fixed_dictionaries(
    {"tab": st.sampled_from(["write", "entities", "classify"]), "text": texts},
    optional={
        "model": st.text(st.characters(codec="ascii"), max_size=100),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(0, 200),
        "seed": st.integers(0, 2**63 - 1).map(str),
        "stop": st.text(max_size=50, alphabet="ab\n"),
    },
)


@given(states)
def test_what_is_put_in_a_link_comes_out(state) -> None:
    link = encode(state)
    assert len(link) <= LONGEST
    assert link.isascii()
    found, ignored = decode(query_of(link))
    assert ignored == []
    assert found == {name: value for name, value in state.items() if value != ""}


def test_a_long_text_is_compressed_and_one_that_is_too_long_refused() -> None:
    text = "Aspirin reduced the risk. " * 200
    link = encode({"tab": "write", "text": text})
    assert link.startswith("z=")
    assert len(link) < PLAIN
    assert decode(query_of(link))[0]["text"] == text
    noise = "".join(random.Random(0).choices(string.printable, k=20_000))
    with pytest.raises(ValueError, match="too long for a link"):
        encode({"tab": "write", "text": noise})


@pytest.mark.parametrize(
    ("query", "left_out"),
    [
        ({"tab": "<script>"}, "tab"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "1e999"}, "temperature"),
        ({"top_k": "2.5"}, "top_k"),
        ({"beams": "-1"}, "beams"),
        ({"length": "9" * 5000}, "length"),
        ({"model": "m" * 201}, "model"),
        ({"unknown": "x"}, "unknown"),
        ({"z": "not base64!"}, "the compressed part"),
        ({"z": "A" * (3 * LONGEST)}, "the compressed part"),
        (packed(b"[1, 2]"), "the compressed part"),
        (packed(b"{" + b'"a":[' * 30_000), "the compressed part"),
        (packed(b"\xff\xfe"), "the compressed part"),
        (packed(b" " * 5_000_000), "the compressed part"),
        (packed(json.dumps({"text": {"a": 1}}).encode()), "text"),
        (packed(json.dumps({"temperature": True}).encode()), "temperature"),
    ],
)
def test_what_is_hostile_is_left_out_and_named(query, left_out) -> None:
    state, ignored = decode(query)
    assert state == {}
    assert len(ignored) == 1
    assert ignored[0].startswith(left_out)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=200), max_size=5), st.binary(max_size=200))
def test_no_query_raises(query, noise) -> None:
    decode(query)
    decode({"z": base64.urlsafe_b64encode(noise).decode()})
    decode(packed(noise))


def test_what_a_link_unpacks_to_is_limited_and_so_is_the_memory_for_it() -> None:
    """Valid JSON all the same, so that nothing but its size can be why it is left out.

    Twelve million bytes are the most that a link of the longest kind can name: zlib packs a thousandth of it.
    """
    link = packed(b'{"text": "gene"}' + b" " * 12_000_000)
    assert len(link["z"]) < 2 * LONGEST
    tracemalloc.start()
    try:
        assert decode(link) == ({}, ["the compressed part, which is damaged or too large"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(("size", "fits"), [(399_000, True), (401_000, False)])
def test_a_link_just_within_the_limit_is_read(size: int, fits: bool) -> None:
    state, ignored = decode(packed(b'{"text": "gene"}'.ljust(size)))
    assert (state, len(ignored)) == (({"text": "gene"}, 0) if fits else ({}, 1))
