"""What programs send to ``/v1`` and get where it is refused, as pydantic checks and documents it."""

from math import isfinite
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationInfo, field_validator, model_validator

from biogpt.generation.options import SETTINGS, GenerationOptions
from biogpt.ui.classify import Task
from biogpt.ui.inputs import sendable

MOST_CHOICES = 128  # texts of a request: of all its prompts
_MOST_STOPS = 4


class _First(FailFast):
    """Of a list's many wrong items, one is told."""

    __hash__ = object.__hash__  # unions ask for it


_FIRST = _First()
Texts = Annotated[list[str], _FIRST]
Ids = Annotated[list[int], _FIRST]

_ROWS = {row.name: row for row in SETTINGS}


class Asked(BaseModel):
    """A body: unknown keys are refused, and null is as if the key were left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {sendable(key): value for key, value in body.items() if value is not None}


class StreamOptions(Asked):
    """What a stream tells beside the text."""

    include_usage: bool = Field(False, description="A last event counts the tokens.")


def _like(name: str, default: Any, least: float | None = None) -> Any:
    """A field with bounds and help of a row of ``GenerationOptions``."""
    row = _ROWS[name]
    most = row.most if row.least is not None and isfinite(row.most) else None
    return Field(default, ge=row.least if least is None else least, le=most, description=row.help)


def _prompts(given: Any) -> Any:
    is_one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    return [given] if is_one else given


class CompletionRequest(Asked):
    """A prompt to continue. Defaults are OpenAI's; what it has no name for is named as in Python."""

    model: str | None = Field(None, description="One of /v1/models; left out, the page's own.")
    prompt: str | Texts | Ids | Annotated[list[Ids], _FIRST] = Field(
        description="A text, token ids, or a list of either; ids without the start token get it."
    )
    stream: bool = Field(False, description="Server-sent events as the text is made.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    echo: bool = Field(False, description="Give the prompt back in front of the text.")
    max_tokens: int = _like("max_new_tokens", 16, least=0)
    temperature: float = _like("temperature", 1.0)
    top_p: float = _like("top_p", 1.0)
    n: int = _like("num_return_sequences", 1)
    stop: str | Texts = Field([], description=f"Up to {_MOST_STOPS}. {_ROWS['stop'].help}")
    seed: int | None = _like("seed", None)
    logprobs: int | None = Field(
        None, ge=0, le=5, description="Tell each token's log-probability, and so many likeliest tokens."
    )
    top_k: int = _like("top_k", 0)
    min_p: float = _like("min_p", 0.0)
    repetition_penalty: float = _like("repetition_penalty", 1.0)
    no_repeat_ngram_size: int = _like("no_repeat_ngram_size", 0)
    best_of: int | None = Field(None, description="Only n: no text is made that is not given back.")
    presence_penalty: float = _like("presence_penalty", 0.0)
    frequency_penalty: float = _like("frequency_penalty", 0.0)
    typical_p: float = _like("typical_p", 1.0)
    banned_words: Texts = _like("banned_words", [])
    word_bias: Texts = _like("word_bias", [])
    logit_bias: dict[str, float] = _like("logit_bias", {})
    suffix: str | None = Field(None, description="Not offered: the model only looks back.")
    user: str | None = Field(None, description="Not used.")

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(cls, given: Any, others: ValidationInfo) -> Any:
        if not others.data.get("stream"):
            raise ValueError("expected it only where stream is true")
        return given

    @field_validator("max_tokens")
    @classmethod
    def _some(cls, given: int, others: ValidationInfo) -> int:
        if given == 0 and not others.data.get("echo"):
            raise ValueError("expected at least 1, or echo")
        return given

    @field_validator("prompt")
    @classmethod
    def _not_none(cls, given: Any) -> Any:
        if not 1 <= len(_prompts(given)) <= MOST_CHOICES:
            raise ValueError(f"expected 1 to {MOST_CHOICES} prompts in a request")
        return given

    @field_validator("n")
    @classmethod
    def _different(cls, given: int, others: ValidationInfo) -> int:
        if given * len(_prompts(others.data.get("prompt", ""))) > MOST_CHOICES:
            raise ValueError(f"expected up to {MOST_CHOICES} texts in a request, those of all prompts")
        if given > 1 and others.data.get("temperature") == 0:
            raise ValueError("temperature 0 makes the same text each time; set it above 0, or n to 1")
        return given

    @field_validator("stop")
    @classmethod
    def _few(cls, given: str | list[str]) -> str | list[str]:
        if len(given) > _MOST_STOPS and isinstance(given, list):
            raise ValueError(f"expected up to {_MOST_STOPS} strings")
        if "" in (given if isinstance(given, list) else [given]):
            raise ValueError("expected strings that are not empty")
        return given

    @field_validator("best_of")
    @classmethod
    def _all(cls, given: int, others: ValidationInfo) -> int:
        if given != others.data.get("n"):
            raise ValueError("expected n, or nothing: no text is made that is not given back")
        return given

    @field_validator("logit_bias")
    @classmethod
    def _of_ids(cls, given: dict[str, float]) -> dict[str, float]:
        if not all(key.isascii() and key.isdigit() and abs(bias) <= 100 for key, bias in given.items()):
            raise ValueError("expected token ids, each with a number from -100 to 100")
        return given

    @field_validator("banned_words", "word_bias")
    @classmethod
    def _fit(cls, given: list[str], field: ValidationInfo) -> list[str]:
        words: dict[str, Any] = {str(field.field_name): given}
        GenerationOptions(**words)
        return given

    @field_validator("suffix")
    @classmethod
    def _none(cls, given: Any) -> Any:
        if given:
            raise ValueError("it is not offered here; leave it out")
        return given

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompt, or all of them."""
        return _prompts(self.prompt)

    def options(self) -> GenerationOptions:
        """The same as options, with a seed.

        Raises:
            ValueError: as ``GenerationOptions``.
        """
        own = self.model_dump(include=_ROWS.keys() - {"logit_bias"})
        return GenerationOptions(
            **own,
            max_new_tokens=max(1, self.max_tokens),
            num_return_sequences=self.n,
            logit_bias={int(key): bias for key, bias in self.logit_bias.items()},
            top_logprobs=self.logprobs or 0,
        ).with_seed()


class NerRequest(Asked):
    """Find the named entities of texts. Offsets are Unicode characters of each text as given."""

    input: str | Texts = Field(description="A text, or several.")
    types: Texts | None = Field(None, description="Only these, such as Disease; left out, all.")
    min_score: float = Field(0.0, ge=0, le=1, description="Only entities with at least this probability.")


class ClassifyRequest(Asked):
    """Label texts, or the sentences of abstracts."""

    input: str | Texts = Field(description="A text, or several.")
    task: Task = Field("texts", description="texts, sentences, or own for labels that you give.")
    labels: Texts | None = Field(None, description="Phrases to compare, two at least; task own.")
    threshold: float = Field(0.0, ge=0, le=1, description="Only labels with at least this score.")
    model: str | None = Field(None, description="Of /v1/models, compares your labels; left out, the page's.")


class ScoreRequest(Asked):
    """Tell how likely texts are: bits per byte, and each token's log-probability; nothing is written."""

    input: str | Texts = Field(description="A text, or several, each within the model's positions.")
    top_logprobs: int = Field(0, ge=0, le=20, description="How many of the likeliest tokens in each place.")
    model: str | None = Field(None, description="One of /v1/models; left out, the page's own.")


class TreeRequest(Asked):
    """Tell what is likely to come next, as a tree: nodes whose parents come before them; -1 is the prompt."""

    prompt: str = Field(description="The start of a text.")
    branches: int = Field(3, ge=1, le=8, description="Most children of a node, the likeliest ones.")
    depth: int = Field(6, ge=1, le=32, description="Tokens of the longest path.")
    least: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Leave out less likely children, but for the first ones and the likeliest.",
    )
    width: int = Field(12, ge=1, le=32, description="Nodes of one depth that go on, on the likeliest paths.")
    model: str | None = Field(None, description="One of /v1/models; left out, the page's own.")


class Wrong(BaseModel):
    """What is wrong, in words; which argument it is; and for some errors a code."""

    message: str
    type: str
    param: str | None
    code: str | None


class WrongAnswer(BaseModel):
    """The answer in place of another."""

    error: Wrong
