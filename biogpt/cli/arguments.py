"""Arguments that several commands take."""

import argparse
import math
import sys
from collections.abc import Callable

from biogpt.runners.precision import DEVICES, PRECISIONS


def flag(name: str) -> str:
    """What a field of options is called on the command line."""
    return "--" + name.replace("_", "-")


def whole(least: int) -> Callable[[str], int]:
    """A kind of argument: whole numbers from ``least`` on."""

    def number(value: str) -> int:
        if not value.removeprefix("-").isdecimal() or int(value) < least:
            raise argparse.ArgumentTypeError(f"{value!r}; expected a whole number, at least {least}")
        return int(value)

    return number


def share(value: str) -> float:
    """A kind of argument: numbers from 0 to 1."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{value!r}; expected a number from 0 to 1")
    return number


def add_model(
    parser: argparse.ArgumentParser, default: str | None = "mini", said: str = "%(default)s"
) -> None:
    """Add which model, where and in which precision.

    Args:
        default: of the model.
        said: that default, in words.
    """
    parser.add_argument(
        "--model", default=default, help=f"embedded name, folder, or Hub id[@revision] ({said})"
    )
    parser.add_argument("--device", default="auto", help=f"{', '.join(DEVICES)} or cuda:N (%(default)s)")
    parser.add_argument(
        "--precision", default="auto", choices=PRECISIONS, help="of the weights (%(default)s)"
    )


def standard_input() -> str:
    return sys.stdin.read().removeprefix("\ufeff")
