"""``/v1/completions``: what a program asks for in OpenAI's words, and the text that is written for it."""

import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from biogpt.generation.options import GenerationOptions
from biogpt.serving.inspection import Sample, offsets_of, piece_after, read
from biogpt.serving.service import Prompt, Step, TextService
from biogpt.serving.shelf import Shelf
from biogpt.serving.wording import word_rules
from biogpt.text.plain import is_blank
from biogpt.ui.bodies import CompletionRequest
from biogpt.ui.inputs import as_given, sendable

_LOOK = 0.1  # seconds between looks at whether the client has left

_FINISHED = {"eos": "stop", "stop": "stop", "length": "length"}


class Refused(ValueError):
    """A request cannot be met.

    Attributes:
        param: the argument that is wrong.
        code: as of OpenAI's errors; None for most.
    """

    def __init__(self, message: str, param: str | None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Likelihood:
    """A token as the completions format tells it: its place, and likelier ones by their names."""

    token: str
    offset: int
    logprob: float | None
    top: Mapping[str, float] | None


@dataclass(frozen=True)
class Piece:
    """What a step adds to a choice."""

    index: int
    text: str
    tokens: list[Likelihood] = field(default_factory=list)
    finish_reason: str | None = None


Pieces = Generator[Piece | None, None, None]


class Completion:
    """The answer to a request.

    Args:
        shelf: of the models.
        asked: the request.

    Attributes:
        usage: tokens read and made so far; an end token counts, and those of a stop string do.

    Raises:
        NotOffered: the model is not there for visitors.
        ValueError: as ``GenerationOptions``.
    """

    def __init__(self, shelf: Shelf, asked: CompletionRequest) -> None:
        self._shelf, self._asked = shelf, asked
        self._model = shelf.check(shelf.default if asked.model is None else asked.model)
        self._options = asked.options()
        self._read = self._made = 0
        self._about = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": sendable(self._model),
            "seed": self._options.seed,
        }

    @property
    def usage(self) -> dict[str, int]:
        total = self._read + self._made
        return {"prompt_tokens": self._read, "completion_tokens": self._made, "total_tokens": total}

    def event(self, piece: Piece | None) -> dict[str, Any]:
        """A piece as an event of a stream; None is the last event, which counts the tokens."""
        counted = self._asked.stream_options is not None and self._asked.stream_options.include_usage
        choices = [] if piece is None else [self._choice(piece)]
        usage = {"usage": self.usage if piece is None else None} if counted else {}
        return {**self._about, "choices": choices, **usage}

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """All pieces as one answer."""
        choices = []
        for index in range(len(self._asked.prompts) * self._asked.n):
            ours = [piece for piece in pieces if piece.index == index]
            tokens = [token for piece in ours for token in piece.tokens]
            text = "".join(piece.text for piece in ours)
            choices.append(self._choice(Piece(index, text, tokens, ours[-1].finish_reason)))
        return {**self._about, "choices": choices, "usage": self.usage}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        logprobs = None
        if self._asked.logprobs is not None:
            logprobs = {
                "tokens": [token.token for token in piece.tokens],
                "token_logprobs": [token.logprob for token in piece.tokens],
                "top_logprobs": [token.top for token in piece.tokens],
                "text_offset": [token.offset for token in piece.tokens],
            }
        reason = piece.finish_reason
        return {"index": piece.index, "text": piece.text, "logprobs": logprobs, "finish_reason": reason}

    def pieces(self) -> Pieces:
        """The text as it is made; None where there is nothing new to tell, several times a second.

        Raises:
            Refused: a prompt is empty, unknown, or too long.
            ValueError, RuntimeError, FloatingPointError: as of ``Shelf.take`` and ``TextService.stream``.
        """
        for generator in self._shelf.coming(self._model):
            if generator is None:
                yield None
        assert generator is not None
        self._check_words(generator)
        prompts = [self._prompt(generator, given) for given in self._asked.prompts]
        for place, prompt in enumerate(prompts):
            write = self._written if self._asked.max_tokens else self._only_read
            yield from write(generator, prompt, place * self._asked.n)

    def _check_words(self, generator: TextService) -> None:
        """Refuse rules for what this model's vocabulary lacks."""
        for name in ("banned_words", "word_bias"):
            words: dict[str, Any] = {name: getattr(self._options, name)}
            try:
                word_rules(generator.tokenizer, GenerationOptions(**words))
            except ValueError as error:
                raise Refused(str(error), name) from error
        most = generator.tokenizer.vocab_size - 1
        unknown = [token_id for token_id in dict(self._options.logit_bias) if token_id > most]
        if unknown:
            given = as_given(self._asked.logit_bias)
            raise Refused(f"logit_bias is {given}; the vocabulary ends at {most}", "logit_bias")

    def _prompt(self, generator: TextService, given: str | list[int]) -> Prompt:
        if isinstance(given, str) and is_blank(given):
            raise Refused("prompt is empty; give the start of a text, or token ids", "prompt")
        try:
            if isinstance(given, str):
                prompt = generator.prompt(sendable(given))
            else:
                prompt = generator.prompt_of_ids(given)
        except ValueError as error:
            raise Refused(f"prompt is {as_given(given)}: {error}", "prompt") from error
        most = self._asked.max_tokens
        if prompt.room < most:
            raise Refused(
                f"{prompt.length:,} tokens of prompt and max_tokens {most:,} are more than the model's "
                f"{prompt.length + prompt.room:,} positions; shorten the prompt, or ask for fewer tokens",
                "prompt" if prompt.room < 1 else "max_tokens",
                "context_length_exceeded",
            )
        return prompt

    def _only_read(self, generator: TextService, prompt: Prompt, first: int) -> Pieces:
        self._read += prompt.length
        echoed = self._echoed(generator, prompt)
        for index in range(first, first + self._asked.n):
            yield Piece(index, prompt.text, echoed, "length")

    def _written(self, generator: TextService, prompt: Prompt, first: int) -> Pieces:
        choices: dict[int, _Choice] = {}
        with closing(generator.stream(prompt, self._options)) as stream:
            self._read += stream.prompt.length
            echoed = self._echoed(generator, stream.prompt)
            while True:
                while not stream.wait(_LOOK):
                    yield None
                step = next(stream, None)
                if step is None:
                    return
                self._made += 1
                index = first + step.sequence
                if index not in choices:
                    choices[index] = _Choice(index, generator, stream.prompt, self._asked, echoed)
                yield choices[index].add(step)

    def _echoed(self, generator: TextService, prompt: Prompt) -> list[Likelihood]:
        """The tokens of the prompt, where they are asked for."""
        if not self._asked.echo or self._asked.logprobs is None:
            return []
        tokens = generator.ask(read, prompt.ids, 1, self._asked.logprobs)
        told = [Likelihood(generator.tokenizer.token(prompt.ids[0]), 0, None, None)]
        start = 0
        spans = offsets_of(generator, prompt)[1:]
        for place, (token, (_, end)) in enumerate(zip(tokens, spans, strict=True), start=1):
            name, before = prompt.text[start:end], prompt.ids[:place]
            told.append(_told(generator, before, name, start, token.id, token.logprob, token.alternatives))
            start = max(start, end)
        return told


class _Choice:
    """A text as it is made, and what of it was told."""

    def __init__(
        self,
        index: int,
        generator: TextService,
        prompt: Prompt,
        asked: CompletionRequest,
        echoed: list[Likelihood],
    ) -> None:
        self._index, self._generator, self._asked = index, generator, asked
        self._head = prompt.text if asked.echo else ""
        self._echoed = echoed
        self._sample = Sample(list(prompt.ids))
        self._sent = self._told = 0
        last = echoed[-1] if echoed else None
        self._place = last.offset + len(last.token) if last and len(echoed) > 1 else 0  # of the next token

    def add(self, step: Step) -> Piece:
        sample, is_first = self._sample, not self._sample.ids
        sample.add(step)
        text, self._sent = sample.text[self._sent :], len(sample.text)
        tokens = [] if self._asked.logprobs is None else self._settled()
        return Piece(
            self._index,
            self._head + text if is_first else text,
            self._echoed + tokens if is_first else tokens,
            _FINISHED[step.finish_reason] if step.finish_reason else None,
        )

    def _settled(self) -> list[Likelihood]:
        """The tokens whose text is there by now; those that a stop string cut off are left out."""
        sample, whole, tokens = self._sample, self._head + self._sample.text, []
        for place in range(self._told, len(sample.ids)):
            end = len(self._head) + sample.ends[place]
            if end > len(whole):
                break
            self._told += 1
            if sample.finish_reason == "stop" and self._place == len(whole):
                continue
            token, before = sample.ids[place], [*sample.context, *sample.ids[:place]]
            is_control = self._generator.tokenizer.is_control(token)
            name = self._generator.tokenizer.token(token) if is_control else whole[self._place : end]
            others = sample.logprobs[place], sample.alternatives[place]
            tokens.append(_told(self._generator, before, name, self._place, token, *others))
            self._place = max(self._place, end)
        return tokens


def _told(
    generator: TextService,
    before: Sequence[int],
    name: str,
    offset: int,
    token: int,
    logprob: float,
    alternatives: Sequence[tuple[int, float]],
) -> Likelihood:
    """A token and the likeliest in its place: the token by its characters, others by those they would add.

    Two of the same characters (a word that ends, and one that goes on) are told apart: the likeliest keeps
    them, but for the token itself, and the other is called by its id.
    """
    top = {name: logprob}
    for other, value in alternatives:
        if other != token:
            known = piece_after(generator.tokenizer, before, other)
            top[f"token_id:{other}" if known in top else known] = value
    return Likelihood(name, offset, logprob, dict(sorted(top.items(), key=lambda pair: -pair[1])))
