"""``convert``: a fairseq archive in the Hub's layout; any model in another precision, with its decoder."""

import argparse
from pathlib import Path

from biogpt.checkpoint.convert import convert, rewrite
from biogpt.checkpoint.hub import HUB_ID, embedded_names
from biogpt.checkpoint.layout import CONFIG
from biogpt.checkpoint.pretrained import MAX_SHARD_SIZE
from biogpt.cli.arguments import whole
from biogpt.runners.precision import PRECISIONS


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help="folder or .tgz with checkpoint.pt, dict.txt and bpecodes; or a model: embedded name, folder or "
        "Hub id, which is written anew, a head with its decoder",
    )
    parser.add_argument("folder", type=Path, help="where to write the converted checkpoint")
    parser.add_argument(
        "--precision", default="", choices=PRECISIONS[1:], help="of the weights of a model (as they are)"
    )
    parser.add_argument(
        "--shard-bytes", type=whole(1), default=MAX_SHARD_SIZE, help="of a model's largest file (%(default)s)"
    )
    parser.set_defaults(run=_convert)


def _convert(chosen: argparse.Namespace) -> None:
    if _is_model(chosen.source):
        rewrite(chosen.source, chosen.folder, chosen.precision, chosen.shard_bytes)
        print(f"{chosen.folder} can be loaded now: --model {chosen.folder}")
        return
    convert(chosen.source, chosen.folder)
    print(
        f"{chosen.folder} can be loaded now: python -m biogpt generate --model {chosen.folder} 'COVID-19 is'"
    )


def _is_model(source: str) -> bool:
    """Whether it names a model, and no archive."""
    path = Path(source)
    if source in embedded_names() or (path / CONFIG).is_file():
        return True
    return not path.exists() and HUB_ID.fullmatch(source.partition("@")[0]) is not None
