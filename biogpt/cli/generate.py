"""``generate``: continue a text."""

import argparse

from biogpt.cli.arguments import add_model, flag, standard_input
from biogpt.generation.options import SETTINGS, GenerationOptions
from biogpt.serving.text_generator import TextGenerator


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the text to continue; - reads it from standard input")
    add_model(parser)
    for row in SETTINGS:
        text = row.help[0].lower() + row.help[1:].rstrip(".")
        if row.command and row.is_list:
            parser.add_argument(flag(row.name), action="append", default=[], help=f"{text}; may be repeated")
        elif row.command:
            kind = float if row.type is float else int
            parser.add_argument(flag(row.name), type=kind, default=row.default, help=f"{text} (%(default)s)")
    parser.set_defaults(run=_generate)


def _generate(chosen: argparse.Namespace) -> None:
    options = GenerationOptions(**{row.name: getattr(chosen, row.name) for row in SETTINGS if row.command})
    prompt = standard_input().strip() if chosen.prompt == "-" else chosen.prompt
    generator = TextGenerator.from_pretrained(chosen.model, device=chosen.device, precision=chosen.precision)
    if options.num_beams > 1 or options.num_return_sequences > 1:
        for completion in generator.generate(prompt, options):
            print(prompt + completion.text)
        return
    steps = generator.stream(prompt, options)  # refuses bad input here, before anything is printed
    print(prompt, end="", flush=True)
    shown = ""
    for step in steps:
        print(step.text[len(shown) :], end="", flush=True)
        shown = step.text
    print()
