"""``convert``: a fairseq archive in the Hub's layout."""

import argparse
from pathlib import Path

from biogpt.checkpoint.convert import convert


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("archive", type=Path, help="folder or .tgz with checkpoint.pt, dict.txt and bpecodes")
    parser.add_argument("folder", type=Path, help="where to write the converted checkpoint")
    parser.set_defaults(run=_convert)


def _convert(chosen: argparse.Namespace) -> None:
    convert(chosen.archive, chosen.folder)
    print(
        f"{chosen.folder} can be loaded now: python -m biogpt generate --model {chosen.folder} 'COVID-19 is'"
    )
