"""The options of a text, as one table: what each means and may be, for Python and wherever people set it.

The command line, the page, its links, the endpoint ``/generate`` and the words of refusals are made from the
rows of ``GenerationOptions``. A new option is one row here, and the line that uses it.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

_SMALLEST_TEMPERATURE = 1e-6  # below it the division leaves the range of float32
_MOST_BIAS = 100  # as of OpenAI's API: beyond it nothing changes
_MOST_WORDS = 100  # with rules of their own: each is looked for at each token
_LONGEST_WORD = 100  # characters of one of them


@dataclass(frozen=True)
class Slider:
    """How the page asks for a number.

    Attributes:
        label: on the page, and in its refusals.
        link: its name in links.
        least, most: bounds of the control, and of links.
        start: where it stands on a new page, and the default of the endpoint; None: as in Python.
        step: of a number that is not whole.
        unit: of the number, shown after the label.
        most_in_links: where ``most`` only holds until the model says what it can.
        folded: lies under "More".
    """

    label: str
    link: str
    least: float
    most: float
    start: float | None = None
    step: float = 1
    unit: str = ""
    most_in_links: float | None = None
    folded: bool = True


@dataclass(frozen=True)
class Box:
    """How the page asks for a text, and for a number that may be left out.

    Attributes:
        label, link: as of ``Slider``.
        characters: most that a link may hold.
        lines: of the control.
        note: how to fill it in, said before the help.
    """

    label: str
    link: str
    characters: int
    lines: int = 1
    note: str = ""
    folded: bool = True


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Attributes:
        name: in Python, on the command line and of the endpoint.
        type: ``int``, ``float``, ``int | None``, ``Sequence[str]`` or, of what only Python sets, another.
        default: in Python and on the command line.
        help: a sentence.
        least, most: bounds of a number; it has none when ``least`` is None.
        control: of the page; None: not on the page, nor in links.
        command: it is a flag of ``python -m biogpt generate``.
        endpoint: it is a parameter of ``/generate``.
    """

    name: str
    type: Any
    default: Any
    help: str
    least: float | None
    most: float
    control: Slider | Box | None
    command: bool
    endpoint: bool

    @property
    def start(self) -> Any:
        """Its default on the page and of the endpoint."""
        if isinstance(self.control, Slider) and self.control.start is not None:
            return self.control.start
        return self.default

    @property
    def is_list(self) -> bool:
        """Whether it is several texts."""
        return self.type == Sequence[str]

    def check(self, value: object) -> None:
        """Raise a ValueError if a number is of the wrong type or out of its bounds."""
        if self.least is None or (value is None and self.default is None):
            return
        kind: tuple[type, ...] = (int, float) if self.type is float else (int,)
        # "not (a <= b)" also refuses NaN.
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        if not is_number or not self.least <= value <= self.most:  # type: ignore[operator]
            expected = "a number" if self.type is float else "a whole number"
            bounds = (
                f"of at least {self.least}" if self.most == math.inf else f"from {self.least} to {self.most}"
            )
            raise ValueError(f"{self.name} is {value!r}; expected {expected} {bounds}")


def setting(
    default: Any,
    help: str,
    least: float | None = None,
    most: float = math.inf,
    control: Slider | Box | None = None,
    command: bool = True,
    endpoint: bool = True,
) -> Any:
    """A field of ``GenerationOptions`` with its row: arguments are those of ``Setting``."""
    row = {
        "help": help,
        "least": least,
        "most": most,
        "control": control,
        "command": command,
        "endpoint": endpoint,
    }
    return field(default=default, metadata=row)


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate; checked once, here. The defaults are greedy decoding, as in the reference.

    Temperature 0 leaves top_k, top_p, min_p, typical_p and seed unused. N-grams and repeats are those of
    prompt and text together; presence and frequency count what was generated alone. Beams are ranked by
    log-probability / length ** length_penalty. Sample i draws with seed + i; without a seed a new one is
    drawn each time, see ``with_seed``.

    A banned word or phrase never comes as whole words in this spelling, capitals included, in whatever
    pieces; longer words that hold it, and other spellings, may come. A bias is added to the logit of a word's
    first piece where a word begins, and of each next piece where those before it are there. Searches of ids
    alone ignore stop strings, banned words and the bias of words.

    Raises:
        ValueError: a value is of the wrong type or out of range, or two contradict each other.
    """

    max_new_tokens: int = setting(
        128,
        "Most tokens to write; with the prompt no more than the model's positions.",
        least=1,
        control=Slider("Length", "length", 1, 1023, 120, unit="tokens", most_in_links=100_000, folded=False),
    )
    min_new_tokens: int = setting(
        0, "The text does not end before so many tokens; stop strings complete by then do not count.", least=0
    )
    temperature: float = setting(
        0.0,
        "0 takes the likeliest token each time; higher is more varied.",
        least=0,
        most=100,
        control=Slider("Temperature", "temperature", 0, 2, 0.7, step=0.05, folded=False),
    )
    top_k: int = setting(
        0,
        "Draw among so many likeliest tokens; 0 is all.",
        least=0,
        control=Slider("Top-k", "top_k", 0, 200),
    )
    top_p: float = setting(
        1.0,
        "Draw among the likeliest tokens that sum to this; 1 is all.",
        least=0,
        most=1,
        control=Slider("Top-p", "top_p", 0, 1, 0.9, step=0.01, folded=False),
    )
    min_p: float = setting(
        0.0,
        "Leave out tokens below this share of the likeliest; 0 is none.",
        least=0,
        most=1,
        control=Slider("Min-p", "min_p", 0, 1, step=0.01),
    )
    typical_p: float = setting(
        1.0,
        "Draw among tokens about as surprising as the model expects, that sum to this; 1 is all.",
        least=0,
        most=1,
        control=Slider("Typical-p", "typical", 0, 1, step=0.01),
    )
    repetition_penalty: float = setting(
        1.0,
        "Above 1 makes words already in the text less likely.",
        least=0.01,
        most=100,
        control=Slider("Repetition penalty", "penalty", 0.5, 2, step=0.05),
    )
    presence_penalty: float = setting(
        0.0,
        "Above 0 makes tokens that were generated already less likely, however often.",
        least=-2,
        most=2,
        control=Slider("Presence penalty", "presence", -2, 2, step=0.05),
    )
    frequency_penalty: float = setting(
        0.0,
        "Above 0 makes tokens less likely each time that they were generated.",
        least=-2,
        most=2,
        control=Slider("Frequency penalty", "frequency", -2, 2, step=0.05),
    )
    no_repeat_ngram_size: int = setting(
        0,
        "No run of so many tokens comes twice; 0 is off.",
        least=0,
        control=Slider("No-repeat n-grams", "ngram", 0, 10, 6, unit="tokens"),
    )
    num_beams: int = setting(
        1,
        "Above 1 searches for the likeliest text; needs temperature 0.",
        least=1,
        most=32,
        control=Slider("Beams", "beams", 1, 8),
    )
    length_penalty: float = setting(1.0, "Above 0 beam search favours long texts.", least=-10, most=10)
    early_stopping: bool | str = setting(
        False,
        "When beam search ends. True: with num_beams finished; False: when none is likely to get better; "
        '"never": when none can.',
        command=False,
        endpoint=False,
    )
    stop: Sequence[str] = setting(
        (),
        "The text ends before the first of these strings.",
        control=Box("Stop strings", "stop", 1_000, lines=2, note="One a line."),
    )
    banned_words: Sequence[str] = setting(
        (),
        "These words and phrases never come, spelled like this.",
        control=Box("Banned words", "banned", 1_000, lines=2, note="One a line."),
    )
    word_bias: Sequence[str] = setting(
        (),
        "Words that come more often, or below 0 less often, such as tumour=2 or tumor=-5.",
        control=Box("Word bias", "bias", 1_000, lines=2, note="One a line."),
    )
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = setting(
        (),
        "What is added to the logits of tokens, by their ids, from -100 to 100; kept as pairs.",
        command=False,
        endpoint=False,
    )
    num_return_sequences: int = setting(
        1,
        "How many texts to write; several need temperature above 0, or as many beams.",
        least=1,
        most=32,
        control=Slider("Samples", "samples", 1, 4),
        endpoint=False,  # which streams one
    )
    seed: int | None = setting(
        None,
        "The same seed gives the same text; without one it is a new one each time.",
        least=0,
        most=2**63 - 1,
        control=Box("Seed", "seed", 20),
    )
    top_logprobs: int = setting(
        0,
        "How many alternatives to report with each token.",
        least=0,
        most=100,
        command=False,
        endpoint=False,
    )

    def __post_init__(self) -> None:
        for row in SETTINGS:
            row.check(getattr(self, row.name))
        if 0 < self.temperature < _SMALLEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature}; expected 0, or at least {_SMALLEST_TEMPERATURE}"
            )
        if self.early_stopping != "never" and not isinstance(self.early_stopping, bool):
            raise ValueError(f"early_stopping is {self.early_stopping!r}; expected True, False or 'never'")
        for name in ("stop", "banned_words", "word_bias"):
            object.__setattr__(self, name, _strings(name, getattr(self, name)))
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        for name, words in (("banned_words", self.banned_words), ("word_bias", self.word_bias)):
            _check_words(name, words)
        self.biased_words()
        self._check_together()

    def biased_words(self) -> list[tuple[str, float]]:
        """The words of ``word_bias``, and the number of each."""
        pairs = []
        for line in self.word_bias:
            word, _, written = line.rpartition("=")
            try:
                number = float(written)
            except ValueError:
                number = math.nan
            if not word.strip() or not abs(number) <= _MOST_BIAS:
                raise ValueError(
                    f"word_bias holds {line!r}; expected a word, = and a number from -{_MOST_BIAS} to "
                    f"{_MOST_BIAS}, such as tumour=2"
                )
            pairs.append((word.strip(), number))
        return pairs

    def _check_together(self) -> None:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens {self.max_new_tokens}"
            )
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"num_beams is {self.num_beams} and temperature is {self.temperature}: "
                "beam search looks for the "
                "most likely text and draws nothing; set temperature to 0, or num_beams to 1"
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences}, but num_beams is {self.num_beams}; "
                "a beam search returns at most one sequence a beam"
            )
        if self.num_beams == 1 and self.temperature == 0 and self.num_return_sequences > 1:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences}, but temperature 0 "
                "makes the same text each "
                "time; set temperature above 0, or num_beams above 1"
            )

    def with_seed(self) -> "GenerationOptions":
        """The same with a seed: its own, or else one drawn now, to be shown and used again."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(2**32))


def _strings(name: str, given: object) -> tuple[str, ...]:
    strings = (given,) if isinstance(given, str) else given
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) and s for s in strings):
        raise ValueError(f"{name} is {given!r}; expected strings that are not empty")
    return tuple(strings)


def _check_words(name: str, words: Sequence[str]) -> None:
    if len(words) > _MOST_WORDS:
        raise ValueError(f"{name} holds {len(words):,} words; expected at most {_MOST_WORDS}")
    for word in words:
        if not word.strip() or len(word) > _LONGEST_WORD:
            raise ValueError(f"{name} holds {word!r}; expected words of 1 to {_LONGEST_WORD} characters")


def _pairs(given: Any) -> tuple[tuple[int, float], ...]:
    pairs = tuple(given.items()) if isinstance(given, Mapping) else given
    is_fit = isinstance(pairs, list | tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and type(pair[0]) is int
        and type(pair[1]) in (int, float)
        and abs(pair[1]) <= _MOST_BIAS
        for pair in pairs
    )
    if not is_fit:
        raise ValueError(
            f"logit_bias is {given!r}; expected a number from -{_MOST_BIAS} to {_MOST_BIAS} for each token id"
        )
    return tuple((token_id, float(bias)) for token_id, bias in pairs)


SETTINGS = tuple(
    Setting(name=row.name, type=row.type, default=row.default, **row.metadata)
    for row in fields(GenerationOptions)
)
# Those of the page, in its order.
ON_PAGE = tuple(
    row for folded in (False, True) for row in SETTINGS if row.control and row.control.folded is folded
)
# For `help` and editors' pop-ups.
GenerationOptions.__doc__ = f"{GenerationOptions.__doc__}\n    Attributes:\n" + "".join(
    f"        {row.name}: {row.help}\n" for row in SETTINGS
)
