"""Text in, steps of text out: a language model with its tokenizer.

``prompt + step.text`` reads right. What Moses' detokenizer makes of new words depends on the words before them (a
comma takes no space, a second quote closes the first), so prompt and new tokens are decoded together, as a whole at
every step, and the prompt is then left out.
"""

import re
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Literal, Self, TypeVar

from biogpt.config import BioGptConfig
from biogpt.generate import GenerationOptions, Hypothesis, Token, beam_search, stream_samples
from biogpt.heads import BioGptForCausalLM
from biogpt.tokenizer import BioGptTokenizer

Item = TypeVar("Item")
FinishReason = Literal["stop", "length", "eos"]

# A token stands for some five characters. A prompt of more than so many a position cannot fit, and is refused before
# the tokenizer spends time on it.
_CHARACTERS_PER_POSITION = 40


@dataclass(frozen=True)
class Step:
    """The state of a text after one more token.

    Attributes:
        token_id, logprob, alternatives: of the newest token, as in ``biogpt.generate.Token``.
        text: everything generated so far, prompt left out; may begin with a space. A later step may change the end
            of it: a space goes, a stop string is cut.
        finish_reason: on the last step of a text: "stop" (a stop string came up), "eos" (the model ended it) or
            "length" (``max_new_tokens``); None before.
        sequence: which of ``num_return_sequences`` samples it belongs to.
    """

    token_id: int
    text: str
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    sequence: int = 0


@dataclass(frozen=True)
class Completion:
    """A finished text.

    Attributes:
        text: prompt and stop string left out.
        tokens: all that were made, an end token and those of a stop string included.
        finish_reason: as in ``Step``.
    """

    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def logprob(self) -> float:
        """Natural logarithm of the probability that the model gives to all tokens together."""
        return sum(token.logprob for token in self.tokens)


class TextGenerator:
    """Continues prompts. Any number of threads may call it: their requests take turns, one token at a time.

    Args:
        model: put in evaluation mode.
        tokenizer: the one it was trained with.
    """

    def __init__(self, model: BioGptForCausalLM, tokenizer: BioGptTokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._lock = Lock()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "mini",
        revision: str | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Self:
        """Load model and tokenizer; arguments and errors are those of ``BioGptForCausalLM.from_pretrained``."""
        model = BioGptForCausalLM.from_pretrained(source, revision, device, precision)
        return cls(model, BioGptTokenizer.from_pretrained(source, revision))

    @property
    def config(self) -> BioGptConfig:
        return self.model.config

    def count(self, prompt: str) -> int:
        """How many of the model's positions a prompt takes, the start token included.

        Raises:
            TypeError, ValueError: as ``stream``, but for a prompt that is merely too long in tokens.
        """
        return len(self._prompt_ids(prompt))

    def stream(self, prompt: str, options: GenerationOptions | None = None) -> Generator[Step, None, None]:
        """Continue a prompt; greedily unless the options say otherwise.

        Several samples come one after another, told apart by ``Step.sequence``. Beam search streams the best text
        at each step, which may change altogether; its last step is the best result.

        Args:
            prompt: any text; an empty one gives text that starts anywhere.
            options: ``GenerationOptions()`` when None.

        Returns:
            A generator of one step a token; its ``close()`` ends the work at once.

        Raises:
            TypeError: at once: the prompt is not a string.
            ValueError: at once: prompt and ``max_new_tokens`` are more than the model's positions.
            FloatingPointError: from the generator: the model's numbers overflow in this precision.
        """
        options = GenerationOptions() if options is None else options
        prompt_ids = self._prompt_ids(prompt)
        text = _NewText(self.tokenizer, prompt, prompt_ids, options)
        if options.num_beams > 1:
            return self._beam_steps(beam_search(self.model, prompt_ids, options), text)
        return self._sample_steps(stream_samples(self.model, prompt_ids, options), text)

    def generate(self, prompt: str, options: GenerationOptions | None = None) -> list[Completion]:
        """The ``num_return_sequences`` finished texts: beams best first, samples in the order of their seeds.

        Arguments and errors are those of ``stream``.
        """
        options = GenerationOptions() if options is None else options
        if options.num_beams == 1:
            completions = []
            for _, steps in groupby(self.stream(prompt, options), key=lambda step: step.sequence):
                *earlier, last = steps
                tokens = [Token(step.token_id, step.logprob, step.alternatives) for step in (*earlier, last)]
                completions.append(_completion(tokens, last.text, last.finish_reason))
            return completions
        prompt_ids = self._prompt_ids(prompt)
        text = _NewText(self.tokenizer, prompt, prompt_ids, options)
        *_, hypotheses = self._turns(beam_search(self.model, prompt_ids, options))
        return [_completion(found.tokens, *text.read(found.ids)) for found in hypotheses]

    def _prompt_ids(self, prompt: str) -> list[int]:
        if not isinstance(prompt, str):
            raise TypeError(f"the prompt is of type {type(prompt).__name__}; expected a string")
        most = _CHARACTERS_PER_POSITION * self.config.max_position_embeddings
        if len(prompt) > most:
            raise ValueError(
                f"the prompt has {len(prompt)} characters, and {self.config.max_position_embeddings} positions hold "
                f"no more than {most}; cut it"
            )
        return self.tokenizer.encode(prompt).ids

    def _sample_steps(
        self, samples: Generator[Generator[Token, None, None], None, None], text: "_NewText"
    ) -> Generator[Step, None, None]:
        with closing(self._turns(samples)) as streams:
            for sequence, stream in enumerate(streams):
                ids = []
                with closing(self._turns(stream)) as tokens:
                    for token in tokens:
                        ids.append(token.id)
                        so_far, reason = text.read(ids)
                        yield Step(token.id, so_far, token.logprob, token.alternatives, reason, sequence)
                        if reason is not None:
                            break

    def _beam_steps(
        self, search: Generator[list[Hypothesis], None, None], text: "_NewText"
    ) -> Generator[Step, None, None]:
        with closing(self._turns(search)) as rankings:
            for best, *_ in rankings:
                so_far, reason = text.read(best.ids)
                token = best.tokens[-1]
                yield Step(
                    token.id, so_far, token.logprob, token.alternatives, reason if best.finished else None
                )

    def _turns(self, work: Generator[Item, None, None]) -> Generator[Item, None, None]:
        """The items of a generator, each computed while no other request computes."""
        with closing(work):
            while True:
                with self._lock:
                    item = next(work, None)
                if item is None:
                    return
                yield item


class _NewText:
    """Reads generated ids as text that continues a prompt.

    Args:
        tokenizer: that made ``prompt_ids`` of ``prompt``.
        options: say when a text ends.
    """

    def __init__(
        self, tokenizer: BioGptTokenizer, prompt: str, prompt_ids: list[int], options: GenerationOptions
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt_ids = prompt_ids
        self._options = options
        self._needs_no_space = not prompt or prompt[-1].isspace()
        # Counted without white space, since new words can move the prompt's: ``"`` closes up to what follows it.
        characters = len(re.findall(r"\S", tokenizer.decode(prompt_ids)))
        self._prompt = re.compile(rf"(?:\s*\S){{{characters}}}")

    def read(self, ids: list[int]) -> tuple[str, FinishReason | None]:
        """The text of the ids, cut before the first stop string, and why it ends there if it does."""
        whole = self._tokenizer.decode(self._prompt_ids + ids)
        prompt = self._prompt.match(whole)
        text = whole[prompt.end() :] if prompt else ""
        if self._needs_no_space:
            text = text.lstrip()
        stops = [text.index(stop) for stop in self._options.stop if stop in text]
        if stops:
            return text[: min(stops)], "stop"
        if ids[-1] == self._tokenizer.eos_token_id:
            return text, "eos"
        return text, "length" if len(ids) == self._options.max_new_tokens else None


def _completion(tokens: Iterable[Token], text: str, reason: FinishReason | None) -> Completion:
    assert reason is not None, "a text that has not ended"
    return Completion(text, tuple(tokens), reason)
