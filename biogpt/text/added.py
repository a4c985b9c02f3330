"""Tokens that a checkpoint has beside ``vocab.json``, as ``transformers`` writes them.

They stand in ``tokenizer_config.json`` (``added_tokens_decoder``), or in ``added_tokens.json`` and
``special_tokens_map.json`` of older software.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from biogpt.text.files import read_json

TOKENIZER_CONFIG = "tokenizer_config.json"
ADDED_FILES = (TOKENIZER_CONFIG, "added_tokens.json", "special_tokens_map.json")
ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": None,
    "mask_token": None,
}
_EXTRA = ("extra_special_tokens", "additional_special_tokens")  # of transformers 5, and before


class AddedToken(NamedTuple):
    """A token that is looked for in a text before its words are split; fields as ``transformers`` has them.

    White space on its sides is dropped in any case, and nothing is normalised: ``lstrip``, ``rstrip`` and
    ``normalized`` change nothing here, and are kept for other software.
    """

    content: str
    lstrip: bool = False
    normalized: bool = True
    rstrip: bool = False
    single_word: bool = False
    special: bool = False


@dataclass(frozen=True)
class AddedTokens:
    """The added tokens of a tokenizer.

    Attributes:
        by_id: those that are not control tokens of every BioGPT.
        roles: contents by role (``pad_token``) where they are not those of every BioGPT. Such tokens never
            come from a text, just as a typed ``</s>`` is text.
    """

    by_id: Mapping[int, AddedToken] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> dict[str, int]:
        """Ids by content."""
        return {token.content: index for index, token in self.by_id.items()}

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of those that have a role."""
        roles = set(self.roles.values())
        return frozenset(index for index, token in self.by_id.items() if token.content in roles)

    def pattern(self) -> re.Pattern[str] | None:
        """Finds them in a text, of several at one place the longest; None where none is to be found."""
        roles = set(self.roles.values())
        tokens = [token for token in self.by_id.values() if token.content not in roles]
        if not tokens:
            return None
        alternatives = (
            rf"(?<![^ ]){re.escape(token.content)}(?![^ ])" if token.single_word else re.escape(token.content)
            for token in sorted(tokens, key=lambda token: -len(token.content))
        )
        return re.compile("|".join(alternatives))

    def settings(self) -> dict[str, Any]:
        """What ``tokenizer_config.json`` says of them, in place of all older files."""
        named = set(self.roles.values())
        extra = [token.content for token in self.by_id.values() if token.special]
        return {
            "added_tokens_decoder": {
                str(index): {name: getattr(token, name) for name in AddedToken._fields}
                for index, token in sorted(self.by_id.items())
            },
            "extra_special_tokens": [content for content in extra if content not in named],
            **self.roles,
        }


def read_added(folder: Path, vocab: Mapping[str, int]) -> AddedTokens:
    """The added tokens of a folder, with the ids that ``transformers`` gives them.

    Args:
        folder: may hold none of ``ADDED_FILES``.
        vocab: what ``vocab.json`` holds.

    Raises:
        ValueError: a file is damaged, or gives a token an id that is another one's.
    """
    settings, legacy, special = (
        _read_object(folder / name) if (folder / name).is_file() else {} for name in ADDED_FILES
    )
    path = folder / TOKENIZER_CONFIG
    if (entries := settings.get("added_tokens_decoder")) is None:
        settings = settings | special
        path = folder / "added_tokens.json"
        entries = {index: {"content": content} for content, index in legacy.items()}
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: added_tokens_decoder is no object of id: token")
    named_in = folder / (TOKENIZER_CONFIG if (folder / TOKENIZER_CONFIG).is_file() else ADDED_FILES[2])
    roles = {name: content for name in ROLES if (content := _content(named_in, settings.get(name)))}
    extra = [_content(named_in, value) for name in _EXTRA for value in _values(settings.get(name))]
    named = {*roles.values(), *extra}
    by_id: dict[int, AddedToken] = {}
    for index, entry in entries.items():
        token = _token(path, entry, named)
        by_id[_id(path, index, token.content)] = token
    known = {**vocab, **{token.content: index for index, token in by_id.items()}}
    for content in (*roles.values(), *extra):
        if content and content not in known:
            by_id[len(known)] = AddedToken(content, normalized=False, special=True)
            known[content] = len(known)
    _check(path, by_id, vocab)
    roles = {name: content for name, content in roles.items() if content != ROLES[name]}
    return AddedTokens({i: token for i, token in by_id.items() if token.content not in ROLES.values()}, roles)


def _read_object(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def _values(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _content(path: Path, value: Any) -> str:
    """The text of a token, which is written as itself or as an object; empty for none."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content or "", str):
        raise ValueError(f"{path}: the token {value!r:.80} is no string, nor an object with its content")
    return content or ""


def _token(path: Path, entry: Any, special: set[str]) -> AddedToken:
    content = _content(path, entry)
    if not content or not isinstance(entry, dict):
        raise ValueError(f"{path}: the token {entry!r:.80} has no content")
    is_special = entry.get("special", content in special)
    fields = {"normalized": not is_special} | {
        name: entry[name] for name in AddedToken._fields if name in entry
    }
    flags = {name: value for name, value in fields.items() if name != "content"}
    if wrong := [name for name, value in flags.items() if not isinstance(value, bool)]:
        raise ValueError(f"{path}: {wrong[0]} of {content!r:.80} is {flags[wrong[0]]!r:.80}; expected a bool")
    return AddedToken(content, **flags | {"special": bool(is_special)})


def _id(path: Path, index: Any, content: str) -> int:
    """An id, which is a number, or as a key of JSON the digits of one."""
    if isinstance(index, str) and index.isascii() and index.isdigit() and len(index) < 10:
        index = int(index)
    if type(index) is not int or not 0 <= index < 2**31:
        raise ValueError(f"{path}: the id of {content!r:.80} is {index!r:.80}; expected 0, 1, 2 …")
    return index


def _check(path: Path, by_id: Mapping[int, AddedToken], vocab: Mapping[str, int]) -> None:
    places: dict[str, int] = {}
    for index, token in by_id.items():
        content = token.content
        if (other := places.setdefault(content, index)) != index:
            raise ValueError(f"{path} gives {content!r:.80} the ids {other} and {index}; expected one")
        if (index < len(vocab) or content in ROLES.values()) and vocab.get(content) != index:
            raise ValueError(
                f"{path} gives {content!r:.80} the id {index}, and vocab.json says otherwise: "
                "copy both anew from where the checkpoint came from"
            )
