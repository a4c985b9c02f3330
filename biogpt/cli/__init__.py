"""The command line: ``python -m biogpt COMMAND``, from ``generate`` and ``ner`` to ``train`` and ``bench``.

Here are the names of the commands; what one takes and does is in its module, which is imported once it is
chosen.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from biogpt import __version__


@dataclass(frozen=True)
class Command:
    """A command: ``add_NAME`` of its module gives a parser its arguments, and ``run``, which does the work.

    Attributes:
        help: in the list of commands.
        description: in its own help.
    """

    help: str
    description: str
    module: str


@dataclass(frozen=True)
class Commands:
    """Commands of a second word."""

    help: str
    tasks: Mapping[str, Command]


_ON_AGAIN = "Run again with the same folder to go on."
COMMANDS: dict[str, Command | Commands] = {
    "generate": Command("continue a text", "Continue a text.", "biogpt.cli.generate"),
    "ner": Command("find entities", "Find the entities of texts.", "biogpt.cli.label"),
    "classify": Command("label texts", "Label texts.", "biogpt.cli.label"),
    "score": Command(
        "bits per byte of a text file", "Score a file of one document a line.", "biogpt.cli.score"
    ),
    "evaluate": Commands(
        "score a head on labelled text",
        {
            "ner": Command("strict entity scores", "Score a tagger, strictly.", "biogpt.cli.evaluate"),
            "classify": Command(
                "scores of labels", "Score a head that labels texts or sentences.", "biogpt.cli.evaluate"
            ),
        },
    ),
    "train": Commands(
        "train a model",
        {
            "lm": Command(
                "pre-train a language model, from scratch or further",
                f"Pre-train a small BioGPT from plain text. {_ON_AGAIN}",
                "biogpt.cli.train",
            ),
            "ner": Command(
                "fine-tune for entities",
                f"Fine-tune a head that tags entities. {_ON_AGAIN}",
                "biogpt.cli.train",
            ),
            "classify": Command(
                "fine-tune for labels of texts, or of the sentences of abstracts",
                f"Fine-tune a head that labels texts. {_ON_AGAIN}",
                "biogpt.cli.train",
            ),
            "calibrate": Command(
                "make the scores of a head the shares in which they are right",
                "Fit a temperature to labelled texts, and write it into the config of a head.",
                "biogpt.cli.train",
            ),
        },
    ),
    "cluster": Commands(
        "serve on a Ray cluster",
        {
            "config": Command(
                "write the YAML that `serve deploy` takes",
                "Write which replicas serve, as YAML for `serve deploy`.",
                "biogpt.cli.cluster",
            ),
        },
    ),
    "bench": Command(
        "measure the speed of this machine",
        "Measure speed and memory on random weights; prints a table, writes bench.json and plots.",
        "biogpt.cli.bench",
    ),
    "convert": Command(
        "turn a fairseq archive into a folder that BioGPT loads",
        "Turn a fairseq archive of the paper into a folder in the Hub's layout.",
        "biogpt.cli.convert",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 when the work failed, 2 when the command line is wrong, 130 when interrupted, 141 when nobody
        reads what is printed any more.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    words = sys.argv[1:] if arguments is None else list(arguments)
    chosen = build_parser(words).parse_args(words)
    try:
        chosen.run(chosen)
        sys.stdout.flush()
    except BrokenPipeError:
        # As `| head` makes it: end like other tools, and let Python find nothing left to print.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"biogpt: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """A parser for these words.

    It knows the names of all commands, and the arguments of the one they begin with.
    """
    parser = argparse.ArgumentParser(
        "biogpt", description="BioGPT: complete biomedical text, train, convert."
    )
    parser.add_argument("--version", action="version", version=f"biogpt {__version__}")
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    first, second = (*words[:2], "", "")[:2]
    for name, command in COMMANDS.items():
        if isinstance(command, Command):
            _add(parsers, name, command, name == first)
            continue
        tasks = parsers.add_parser(name, help=command.help).add_subparsers(required=True, metavar="TASK")
        for task_name, task in command.tasks.items():
            _add(tasks, task_name, task, (name, task_name) == (first, second))
    return parser


def _add(parsers: Any, name: str, command: Command, is_chosen: bool) -> None:
    parser = parsers.add_parser(name, help=command.help, description=command.description)
    if is_chosen:
        getattr(import_module(command.module), f"add_{name}")(parser)
