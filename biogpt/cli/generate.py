"""``generate``: continue a text."""

import argparse

from biogpt.cli.arguments import add_model, flag, standard_input
from biogpt.cli.job import add_job, refuse_job_flags, run_job
from biogpt.cluster.jobs import OUTPUTS
from biogpt.cluster.work import Generate
from biogpt.generation.options import SETTINGS, GenerationOptions
from biogpt.serving.text_generator import TextGenerator


def add_generate(parser: argparse.ArgumentParser) -> None:
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("prompt", nargs="?", help="the text to continue; - reads it from standard input")
    add_job(parser, given)
    parser.add_argument("--format", choices=OUTPUTS, help="of the results of --input (jsonl)")
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
    if chosen.input is not None:
        task = Generate(model=chosen.model, device=chosen.device, precision=chosen.precision, options=options)
        return run_job(chosen, task)
    refuse_job_flags(chosen)
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
