"""Links that hold a state of the page: tab, model, texts and settings, in the query of its address.

A short state is written plainly, a longer one as base64url of zlib of JSON under ``z``. A link comes from a
stranger: what is unknown, of the wrong kind or too large is left out and named, and opening one runs nothing.
"""

import base64
import binascii
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from biogpt.generation.options import SETTINGS, Box, Slider

PLAIN = 1_500  # characters of a query; more are compressed
LONGEST = 8_000  # characters of a query; more, and mail programs and servers cut it
_UNPACKED = 400_000  # bytes that a compressed state may have

TABS = ("write", "entities", "classify", "models", "elsewhere")

_PASSAGE = 100_000  # characters
# Texts by the most characters that they may have; numbers by their sliders, and whether they are whole.
_TEXTS = {
    "model": 200,
    "text": _PASSAGE,
    "passage": _PASSAGE,
    "abstract": _PASSAGE,
    "task": 20,
    "labels": 2_000,
    "types": 2_000,
} | {row.control.link: row.control.characters for row in SETTINGS if isinstance(row.control, Box)}
_NUMBERS = {
    row.control.link: (row.control, row.type is int) for row in SETTINGS if isinstance(row.control, Slider)
} | {
    "score": (Slider("Score", "score", 0, 1), False),
    "threshold": (Slider("Threshold", "threshold", 0, 1), False),
    "given": (Slider("Characters before the completion", "given", 0, _PASSAGE), True),
    "rest": (Slider("Characters after the completion", "rest", 0, _PASSAGE), True),
}

Value = str | float | int


def encode(state: Mapping[str, Value]) -> str:
    """A query, without ``?``; empty texts are left out.

    Raises:
        ValueError: the state is too long for a link; the message says by how much.
    """
    kept = {name: value for name, value in state.items() if value != ""}
    query = urlencode({name: _plain(value) for name, value in kept.items()}, errors="replace")
    if len(query) > PLAIN:
        packed = zlib.compress(json.dumps(kept, ensure_ascii=False).encode("utf-8", "replace"), 9)
        query = "z=" + base64.urlsafe_b64encode(packed).decode().rstrip("=")
    if len(query) > LONGEST:
        raise ValueError(
            f"The text is too long for a link: {len(query):,} characters even compressed, and at most "
            f"{LONGEST:,} arrive everywhere. Shorten it, or send it as a file"
        )
    return query


def _plain(value: Value) -> str:
    return value if isinstance(value, str) else repr(value)


def decode(query: Mapping[str, str]) -> tuple[dict[str, Value], list[str]]:
    """The values in a query that can be trusted to fit, and what was left out, in words for the reader."""
    given: dict[str, Any] = dict(query)
    ignored: list[str] = []
    packed = given.pop("z", None)
    if packed is not None:
        unpacked = _unpack(packed)
        if unpacked is None:
            ignored.append("the compressed part, which is damaged or too large")
        else:
            given |= unpacked
    state: dict[str, Value] = {}
    for name, value in given.items():
        if name.startswith("__") or name == "view":
            continue  # Gradio's own: __theme, __sign, and the view of its settings
        checked = _checked(name, value)
        if checked is None:
            ignored.append(name[:40])
        else:
            state[name] = checked
    return state, ignored


def _unpack(packed: str) -> dict[str, Any] | None:
    if len(packed) > 2 * LONGEST:
        return None
    try:
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        # A few bytes can name gigabytes of zeros: no more than the limit is ever unpacked.
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(data, _UNPACKED)
        if not unpacker.eof:
            return None
        values = json.loads(content)
    except (binascii.Error, zlib.error, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _checked(name: str, value: Any) -> Value | None:
    if name == "tab":
        return value if value in TABS else None
    if name in _TEXTS:
        if not isinstance(value, str) or len(value) > _TEXTS[name]:
            return None
        return value.encode("utf-8", "replace").decode()
    if name not in _NUMBERS or isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    slider, whole = _NUMBERS[name]
    most = slider.most if slider.most_in_links is None else slider.most_in_links
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not (math.isfinite(number) and slider.least <= number <= most):
        return None
    if whole:
        return int(number) if number.is_integer() else None
    return number
