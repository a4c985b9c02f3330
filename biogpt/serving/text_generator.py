"""Text in, steps of text out: a language model with its tokenizer, served by one thread.

Requests may come from any number of threads; one thread, started with the first of them, owns the model and
runs the steps of ``biogpt.serving.engine``. Readers get ids from it and make the text of them in their own
time.

``prompt + step.text`` reads right. What Moses' detokenizer makes of new words depends on the words before
them (a comma takes no space, a second quote closes the first), so prompt and new tokens are decoded together,
as a whole at every step, and the prompt is then left out.

A text that was cut inside a word can be continued. ``continued`` knows it by its ids. Of a prompt that is
text alone the model decides: the last word goes on where it is clearly likelier to have been begun there than
to have ended.
"""

import re
import weakref
from collections.abc import Callable, Generator, Hashable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Self, TypeVar

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import Hypothesis, Token, start_search
from biogpt.generation.tree import Node, Tree, TreeOptions
from biogpt.runners import runner_for
from biogpt.serving.engine import Counts, Engine, Result, Slot
from biogpt.serving.service import FinishReason, Prompt, QueuedStream, Step, Stream, TextService, queued_lists
from biogpt.serving.turns import CLIENT
from biogpt.serving.wording import word_rules
from biogpt.serving.worker import Health, Worker
from biogpt.text.tokenizer import moses_text, settled_part

T = TypeVar("T")


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


class _SlotStream(QueuedStream):
    """The steps of a slot, as text."""

    def __init__(self, generator: "TextGenerator", slot: Slot, text: "_NewText") -> None:
        super().__init__(text.prompt)
        self._generator = generator  # which ends its work when nobody holds it
        self._worker = generator._worker
        self._slot = slot
        self._text = text
        self._ids: list[int] = []

    @property
    def position(self) -> int:
        return self._worker.engine.position(self._slot)

    @property
    def running(self) -> int:
        return len(self._worker.engine.running)

    def take(self, timeout: float | None = None) -> Result | Exception | None:
        return self._worker.take(self._slot, timeout)

    def leave(self) -> None:
        self._worker.cancel(self._slot)

    def __del__(self) -> None:
        self._slot.cancelled = True  # and no lock: the garbage collector may come while one is held

    def step_of(self, result: object) -> Step:
        if isinstance(result, Token):
            token, ended = result, result.last
            self._ids.append(token.id)
            text, held, reason = self._text.read(self._ids)
        else:
            assert isinstance(result, list)
            best = result[0]
            assert isinstance(best, Hypothesis)
            token, ended = best.tokens[-1], best.finished
            text, held, reason = self._text.read(best.ids)
            reason = reason if ended else None
        if reason is not None:
            self._ids = []
            if not ended:
                self._slot.skip = True
        self._worker.taken(self._slot)
        return Step(token.id, text, token.logprob, token.alternatives, reason, token.sequence, held)


class TextGenerator(TextService):
    """Continues prompts in this process: the requests of all threads share each step of the model.

    Args:
        model: put in evaluation mode.
        tokenizer: the one it was trained with.
        cache_bytes, max_running, max_waiting: limits, as in ``biogpt.serving.engine.Engine``.
        threaded: as in ``Worker``.
    """

    def __init__(
        self,
        model: BioGptForCausalLM,
        tokenizer: BioGptTokenizer,
        cache_bytes: int | None = None,
        max_running: int | None = None,
        max_waiting: int = 64,
        threaded: bool = True,
    ) -> None:
        super().__init__(model.config, tokenizer)
        self.model = model.eval()
        engine = Engine(runner_for(self.model), cache_bytes, max_running, max_waiting)
        config, probe = model.config, GenerationOptions(max_new_tokens=1)
        self._worker = Worker(engine, threaded, lambda: start_search(config, (config.eos_token_id,), probe))
        # Control tokens that would be no text; the end is needed.
        self._unreadable = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
        weakref.finalize(self, setattr, self._worker, "is_abandoned", True)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "mini",
        revision: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        threaded: bool = True,
    ) -> Self:
        """Load model and tokenizer; arguments and errors are those of ``BioGptForCausalLM.from_pretrained``.

        The weights of a large model are laid out for serving (``biogpt.runners.packing.pack``).
        """
        model = BioGptForCausalLM.from_pretrained(source, revision, device, precision, trainable=False)
        generator = cls(model, BioGptTokenizer.from_pretrained(model.folder), threaded=threaded)
        generator._worker.engine.runner.prepare_ahead()
        return generator

    @property
    def waiting(self) -> int:
        """How many requests wait for one to end."""
        return len(self._worker.engine.waiting)

    @property
    def description(self) -> str:
        return self._worker.engine.runner.description

    @property
    def counts(self) -> Counts:
        return self._worker.engine.counts

    def share_cores(self) -> None:
        """Leave cores to what else runs on this machine, such as a page; call it before the first request.

        On a CPU, a small model then computes in one thread. It gains little from a second one, and would wait
        for it at every operation while something else has its core.
        """
        self._worker.engine.runner.share_cores()

    def health(self) -> Health:
        return self._worker.health

    def close(self, timeout: float = 0.0) -> None:
        self._worker.stop(timeout)

    def stream(
        self, prompt: str | Prompt, options: GenerationOptions | None = None, session: Hashable = None
    ) -> Stream:
        options = GenerationOptions() if options is None else options
        encoded = self._encoded(prompt, options)
        text = _NewText(self.tokenizer, encoded, options)
        return _SlotStream(self, self._submit(encoded, options, session), text)

    def generate(
        self, prompt: str | Prompt, options: GenerationOptions | None = None, session: Hashable = None
    ) -> list[Completion]:
        """The ``num_return_sequences`` finished texts: beams best first, samples in the order of their seeds.

        Arguments and errors are those of ``stream``.
        """
        options = GenerationOptions() if options is None else options
        if options.num_beams == 1:
            completions = []
            with closing(self.stream(prompt, options, session)) as stream:
                for _, steps in groupby(stream, key=lambda step: step.sequence):
                    *earlier, last = steps
                    tokens = [
                        Token(step.token_id, step.logprob, step.alternatives) for step in (*earlier, last)
                    ]
                    completions.append(_completion(tokens, last.text, last.finish_reason))
            return completions
        encoded = self._encoded(prompt, options)
        text = _NewText(self.tokenizer, encoded, options)
        slot = self._submit(encoded, options, session)
        hypotheses: list[Hypothesis] = []
        try:
            while (result := self._worker.take(slot)) is not None:
                if isinstance(result, Exception):
                    raise result
                assert isinstance(result, list)
                hypotheses = [found for found in result if isinstance(found, Hypothesis)]
        finally:
            self._worker.cancel(slot)
        return [
            _completion(found.tokens, written, reason)
            for found in hypotheses
            for written, _, reason in [text.read(found.ids)]
        ]

    def grow(
        self, prompt: Prompt, options: TreeOptions, session: Hashable = None
    ) -> Generator[list[Node] | None, None, None]:
        tree = Tree(self.model.config, prompt.ids, options, self._unreadable, self.padding)
        slot = Slot(tree, session, client=CLIENT.get())
        self._worker.submit(slot)
        yield from self._lists(slot, Node)

    def beams(
        self, prompt: Prompt, options: GenerationOptions, session: Hashable = None
    ) -> Generator[list[Hypothesis] | None, None, None]:
        yield from self._lists(self._submit(prompt, options, session), Hypothesis)

    def ask(self, work: Callable[..., T], *arguments: object) -> T:
        return self.run(partial(work, self, *arguments))

    def run(self, task: Callable[[], T]) -> T:
        """What a task returns or raises that computes with ``model``: ``ask``, for what is here alone."""
        return self._worker.run(task)

    def _lists(self, slot: Slot, kind: type[T]) -> Generator[list[T] | None, None, None]:
        worker = self._worker
        return queued_lists(partial(worker.take, slot), partial(worker.cancel, slot), kind)

    def _encoded(self, prompt: str | Prompt, options: GenerationOptions) -> Prompt:
        encoded = prompt if isinstance(prompt, Prompt) else self.prompt(prompt)
        return self.reading(encoded, options.max_new_tokens)

    def _submit(self, prompt: Prompt, options: GenerationOptions, session: Hashable) -> Slot:
        # A reader that looks for a stop string must see each token before the next one is made.
        lead = 1 if options.stop and options.num_beams == 1 else None
        words = word_rules(self.tokenizer, options)
        search = start_search(self.model.config, prompt.ids, options, self._unreadable, self.padding, words)
        slot = Slot(search, session, lead, CLIENT.get())
        self._worker.submit(slot)
        return slot


class _NewText:
    """Reads generated ids as text that continues a prompt.

    Args:
        tokenizer: that encoded the prompt.
        options: say when a text ends.
    """

    def __init__(self, tokenizer: BioGptTokenizer, prompt: Prompt, options: GenerationOptions) -> None:
        self.prompt = prompt
        self._tokenizer = tokenizer
        self._options = options
        self._words = tokenizer.words(prompt.ids)
        # Of a word that the prompt leaves open, new pieces belong to it.
        self._open_word = self._words.pop() if prompt.is_open else ""
        self._needs_no_space = not prompt.text or prompt.text[-1].isspace()
        # Counted without white space, since new words can move the prompt's: ``"`` closes up to what follows
        # it.
        characters = len(re.findall(r"\S", moses_text(tokenizer.words(prompt.ids))))
        self._read_prompt = re.compile(rf"(?:\s*\S){{{characters}}}")

    def read(self, ids: list[int]) -> tuple[str, str, FinishReason | None]:
        """The text of the ids, cut before the first stop string, what of it is held back, and why it ends."""
        options = self._options
        reason: FinishReason | None = None
        if ids[-1] == self._tokenizer.eos_token_id:
            reason = "eos"
        elif len(ids) == options.max_new_tokens:
            reason = "length"
        whole = self._text(ids)
        text = self._text(ids, settled=True) if reason is None else whole
        # A stop string counts when the token that completes it may be the last one.
        early = self._text(ids[: max(options.min_new_tokens - 1, 0)], settled=True) if options.stop else ""
        starts = [text.find(stop, max(0, len(early) - len(stop) + 1)) for stop in options.stop]
        if found := [start for start in starts if start >= 0]:
            return text[: min(found)], "", "stop"
        if reason is None:
            text = text[: len(text) - _begun_stop(text, options.stop)]
        return text, whole[len(text) :], reason

    def _text(self, ids: list[int], settled: bool = False) -> str:
        """What the ids add to the prompt; ``settled``: without what further ids may change."""
        first, *others = self._tokenizer.words(ids) or [""]
        words = [*self._words, self._open_word + first, *others]
        if settled and ids and not self._tokenizer.ends_word(ids[-1]):
            words[-1] = settled_part(words[-1])
        whole = moses_text(filter(None, words))
        prompt = self._read_prompt.match(whole)
        text = whole[prompt.end() :] if prompt else ""
        return text.lstrip() if self._needs_no_space else text


def _begun_stop(text: str, stops: Iterable[str]) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    begun = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(begun, default=0)


def _completion(tokens: Iterable[Token], text: str, reason: FinishReason | None) -> Completion:
    assert reason is not None, "a text that has not ended"
    return Completion(text, tuple(tokens), reason)
