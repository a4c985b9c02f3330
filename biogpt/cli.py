"""The command line: ``python -m biogpt generate · score · train · convert``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from biogpt.convert import convert
from biogpt.device import DEVICES, PRECISIONS
from biogpt.generate import GenerationOptions
from biogpt.heads import BioGptForCausalLM
from biogpt.service import TextGenerator
from biogpt.tokenizer import BioGptTokenizer
from biogpt.training.corpus import read_lines
from biogpt.training.metrics import bits_per_byte
from biogpt.training.pretrain import PretrainOptions, pretrain


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 when the work failed, 2 when the command line is wrong, 130 when interrupted.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    chosen = _parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except (ValueError, OSError) as error:
        print(f"biogpt: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "biogpt", description="BioGPT: complete biomedical text, train, convert."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="continue a text", description="Continue a text.")
    generate.add_argument("prompt", help="the text to continue; - reads it from standard input")
    _add_model(generate)
    _add_generation(generate)
    generate.set_defaults(run=_generate)

    score = commands.add_parser(
        "score", help="bits per byte of a text file", description="Score a file of one document a line."
    )
    score.add_argument("file", type=Path, help=".txt or .txt.xz, UTF-8, one document a line")
    _add_model(score)
    score.set_defaults(run=_score)

    train = commands.add_parser("train", help="train a model").add_subparsers(required=True, metavar="TASK")
    lm = train.add_parser(
        "lm",
        help="pre-train a language model from scratch",
        description="Pre-train a small BioGPT from plain text. Run again with the same folder to go on.",
    )
    _add_pretraining(lm)
    lm.set_defaults(run=_train_lm)

    conversion = commands.add_parser(
        "convert",
        help="turn a fairseq archive into a folder that BioGPT loads",
        description="Turn a fairseq archive of the paper into a folder in the Hub's layout.",
    )
    conversion.add_argument(
        "archive", type=Path, help="folder or .tgz with checkpoint.pt, dict.txt and bpecodes"
    )
    conversion.add_argument("folder", type=Path, help="where to write the converted checkpoint")
    conversion.set_defaults(run=_convert)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="mini", help="embedded name, folder, or Hub id[@revision] (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help=f"{', '.join(DEVICES)} or cuda:N (%(default)s)")
    parser.add_argument(
        "--precision", default="auto", choices=PRECISIONS, help="of the weights (%(default)s)"
    )


def _add_generation(parser: argparse.ArgumentParser) -> None:
    texts = {
        "max_new_tokens": "most tokens to write",
        "min_new_tokens": "least tokens to write",
        "temperature": "0 takes the likeliest token",
        "top_k": "draw from so many likeliest tokens",
        "top_p": "draw from the likeliest tokens of this summed probability",
        "min_p": "draw from tokens at least this share as likely as the likeliest",
        "repetition_penalty": "above 1 makes repeats less likely",
        "no_repeat_ngram_size": "never repeat so many tokens in a row",
        "num_beams": "beams of a beam search; needs temperature 0",
        "length_penalty": "above 0 favours longer beams",
        "num_return_sequences": "completions to return",
        "seed": "of the random draws",
    }
    for field in fields(GenerationOptions):
        if field.name in texts:
            kind = int if field.name == "seed" else type(field.default)
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(
                flag, type=kind, default=field.default, help=f"{texts[field.name]} (%(default)s)"
            )
    parser.add_argument("--stop", action="append", default=[], help="end before this text; may be repeated")


def _add_pretraining(parser: argparse.ArgumentParser) -> None:
    files = "text, one document a line (.txt or .txt.xz)"
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; an unfinished one goes on"
    )
    parser.add_argument(
        "--texts", type=Path, nargs="+", required=True, help=f"{files}; named twice, read twice as often"
    )
    parser.add_argument(
        "--final-texts", type=Path, nargs="+", default=[], help="for the last phase (all of --texts)"
    )
    parser.add_argument("--heldout", type=Path, required=True, help="file to score, never trained on")
    parser.add_argument("--compiled", action="store_true", help="torch.compile: faster, needs a C++ compiler")
    for field in fields(PretrainOptions):
        if field.default is not MISSING and field.type in (int, float):
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=field.type, default=field.default, help="(%(default)s)")


def _generate(chosen: argparse.Namespace) -> None:
    names = {field.name for field in fields(GenerationOptions)} & set(vars(chosen))
    options = GenerationOptions(
        **{name: getattr(chosen, name) for name in names} | {"stop": tuple(chosen.stop)}
    )
    prompt = sys.stdin.read().strip() if chosen.prompt == "-" else chosen.prompt
    generator = TextGenerator.from_pretrained(chosen.model, device=chosen.device, precision=chosen.precision)
    if options.num_beams > 1 or options.num_return_sequences > 1:
        for completion in generator.generate(prompt, options):
            print(prompt + completion.text)
        return
    steps = generator.stream(prompt, options)  # refuses bad input here, before anything is printed
    print(prompt, end="", flush=True)
    shown = ""
    for step in steps:
        if step.text.startswith(shown):
            print(step.text[len(shown) :], end="", flush=True)
        else:  # the words before read differently now that more is known: write the line again
            print(f"\n{prompt}{step.text}", end="", flush=True)
        shown = step.text
    print()


def _score(chosen: argparse.Namespace) -> None:
    texts = read_lines(chosen.file)
    model = BioGptForCausalLM.from_pretrained(chosen.model, device=chosen.device, precision=chosen.precision)
    tokenizer = BioGptTokenizer.from_pretrained(chosen.model)
    print(
        f"{bits_per_byte(model, tokenizer, texts):.4f} bits per byte on {len(texts)} texts of {chosen.file.name}"
    )


def _train_lm(chosen: argparse.Namespace) -> None:
    values = {name: value for name, value in vars(chosen).items() if name != "run"}
    values |= {name: tuple(values[name]) for name in ("texts", "final_texts")}
    print(f"the best checkpoint is in {pretrain(PretrainOptions(**values))}")


def _convert(chosen: argparse.Namespace) -> None:
    convert(chosen.archive, chosen.folder)
    print(
        f"{chosen.folder} can be loaded now: python -m biogpt generate --model {chosen.folder} 'COVID-19 is'"
    )
