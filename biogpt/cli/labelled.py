"""Labelled files, as training and evaluation read them."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biogpt.training.labelled import read_labelled, read_sections
from biogpt.training.objectives import EntityCorpus, SentenceObjective, TextObjective

TAGGED_FILES = (
    "CoNLL (BIO, IOBES), JSONL or PubTator files; FILE:old=New,… takes these types only, and reads what "
    "else the file may hold as not annotated"
)


def add_labelled(parser: argparse.ArgumentParser) -> None:
    """Add how files of labelled texts are to be read."""
    parser.add_argument("--multi-label", action="store_true", help="a text may have several labels, or none")
    parser.add_argument(
        "--sentences",
        action="store_true",
        help="files of '###id' and 'LABEL<tab>sentence' lines: learn each sentence's role "
        "after those before it",
    )
    parser.add_argument(
        "--text-column", default="-1", help="name, or number from 1; -1 is the last (%(default)s)"
    )
    parser.add_argument("--label-column", default="-2", help="name, or number from 1 (%(default)s)")
    parser.add_argument("--separator", default="|", help="between the labels of a text (%(default)s)")
    parser.add_argument("--none-label", default="none", help="stands for no label (%(default)s)")


def add_tagged(parser: argparse.ArgumentParser) -> None:
    """Add how files of tagged texts are to be read."""
    parser.add_argument(
        "--no-discontinuous",
        dest="discontinuous",
        action="store_false",
        help="refuse entities of several parts in PubTator, which else run from the first to the last",
    )


def read_corpus(name: str, discontinuous: bool = True) -> EntityCorpus:
    """The corpus of ``FILE[@SHARE][:old=New,…]``; ``discontinuous`` as of ``read_pubtator``."""
    path, _, types = name.rpartition(":") if "=" in name.rpartition(":")[2] else (name, "", "")
    renames = dict(pair.split("=", 1) for pair in types.split(",")) if types else None
    file, at, share = path.rpartition("@")
    if at and share.replace(".", "", 1).isdecimal():
        return EntityCorpus.read(Path(file), renames, float(share), discontinuous)
    return EntityCorpus.read(Path(path), renames, discontinuous=discontinuous)


def read_scored(name: str, discontinuous: bool = True) -> EntityCorpus:
    """The same without a share, which would be of no use for scores."""
    corpus = read_corpus(name, discontinuous)
    if corpus.share < 1:
        raise ValueError(
            f"{name} names a share, which is for training; scores are of whole files: leave it out"
        )
    return corpus


def labelling_task(
    chosen: argparse.Namespace,
    train: Sequence[Path],
    dev: Sequence[Path],
    settings: Mapping[str, Any] | None = None,
) -> SentenceObjective | TextObjective:
    """What the files of ``add_labelled`` are to teach, with ``settings`` of the config."""
    splits = (train, dev)
    if chosen.sentences:
        learned_from, scored_on = (
            [abstract for path in split for abstract in read_sections(path)] for split in splits
        )
        return SentenceObjective(learned_from, scored_on, settings)
    how = chosen.text_column, chosen.label_column, chosen.separator, chosen.none_label
    learned, scored = ([t for path in split for t in read_labelled(path, *how)] for split in splits)
    return TextObjective(learned, scored, chosen.multi_label, settings)
