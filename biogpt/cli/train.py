"""``train``: language models and heads."""

import argparse
from dataclasses import MISSING, fields
from pathlib import Path

from biogpt.checkpoint.pretrained import BioGptForTokenClassification
from biogpt.checkpoint.push import check_hub_id, push_to_hub
from biogpt.cli.arguments import add_model, flag, whole
from biogpt.cli.labelled import (
    TAGGED_FILES,
    add_labelled,
    add_tagged,
    labelling_task,
    read_corpus,
    read_scored,
)
from biogpt.model.config import POOLINGS
from biogpt.runners.precision import DEVICES
from biogpt.training.calibration import calibrate, calibrate_entities
from biogpt.training.finetune import Objective, finetune
from biogpt.training.objectives import EntityObjective
from biogpt.training.options import ARITHMETIC, FinetuneOptions, PretrainOptions
from biogpt.training.pretrain import pretrain

_OF_A_NEW_HEAD = {"copies": 1, "bidirectional_layers": 0, "word_encoder": 0, "read_layers": 0}


def add_lm(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--model", default="", help="embedded name, folder or Hub id to go on from; a new one when left out"
    )
    parser.add_argument("--compiled", action="store_true", help="torch.compile: faster, needs a C++ compiler")
    parser.add_argument("--device", default="auto", help=f"{', '.join(DEVICES)} or cuda:N (%(default)s)")
    for field in fields(PretrainOptions):
        if field.default is not MISSING and field.type in (int, float):
            parser.add_argument(
                flag(field.name), type=field.type, default=field.default, help="(%(default)s)"
            )
    parser.set_defaults(run=_train_lm)


def add_ner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train",
        nargs="+",
        required=True,
        metavar="FILE[@SHARE][:old=New,…]",
        help=f"{TAGGED_FILES}; FILE@0.5 reads a random half of it in each epoch",
    )
    parser.add_argument("--dev", nargs="+", default=[], metavar="FILE[:old=New,…]", help="to score on")
    add_tagged(parser)
    parser.add_argument(
        "--copies",
        type=whole(1),
        default=1,
        help="give a passage so many times, read labels at the last (%(default)s)",
    )
    parser.add_argument(
        "--bidirectional-layers",
        type=whole(0),
        default=0,
        help="so many of the last layers look both ways (%(default)s)",
    )
    parser.add_argument(
        "--word-encoder",
        type=whole(0),
        default=0,
        metavar="SIZE",
        help="read the words both ways above the decoder, this wide; 0: do not (%(default)s)",
    )
    _add_read_layers(parser)
    parser.add_argument(
        "--extend",
        action="store_true",
        help="keep the head of --model: its types stay as they are, and those of --train are added, or "
        "learned on; the decoder is frozen",
    )
    parser.add_argument(
        "--auxiliary",
        default="",
        metavar="TYPE,…",
        help="types of --train that are learned, as it helps to tell the others from them, and not kept",
    )
    parser.add_argument(
        "--alone",
        type=_share,
        metavar="SHARE",
        help="of passages that are a single sentence; the others fill the window (0.3; of CoNLL files 0.85)",
    )
    _add_finetuning(parser)
    parser.set_defaults(run=_train_ner)


def add_classify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train", nargs="+", type=Path, required=True, metavar="FILE", help="TSV or JSONL files"
    )
    parser.add_argument("--dev", nargs="+", type=Path, default=[], metavar="FILE", help="to score on")
    add_labelled(parser)
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="last",
        help="what of a text or sentence is read: its last token, the mean of all, or, of texts, a mean "
        "whose weights each label learns (%(default)s)",
    )
    parser.add_argument(
        "--pooling-size",
        type=whole(1),
        default=256,
        help="width of the layer below --pooling attention (%(default)s)",
    )
    parser.add_argument(
        "--sentence-encoder",
        type=whole(0),
        default=0,
        metavar="SIZE",
        help="with --sentences, read them both ways above the decoder, this wide, and their roles as a "
        "chain; 0: do not (%(default)s)",
    )
    _add_read_layers(parser)
    _add_finetuning(parser)
    parser.set_defaults(run=_train_classify)


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="labelled files that were not trained on: TSV or JSONL"
    )
    add_model(parser, None, "required: the folder of a trained head, whose config is changed")
    add_labelled(parser)
    parser.add_argument(
        "--entities",
        action="store_true",
        help="the head is a tagger, and the files are tagged text, as of train ner",
    )
    parser.set_defaults(run=_calibrate)


def _add_read_layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--read-layers",
        type=whole(0),
        default=0,
        help="read what so many of the decoder's layers say; 0: all of them (%(default)s)",
    )


def _add_finetuning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; an unfinished one goes on"
    )
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the best checkpoint when done")
    texts = {
        "model": "embedded name, folder or Hub id to start from",
        "epochs": "passes over the data",
        "frozen_epochs": "so many first ones train what is above the decoder only",
        "editions": "of a frozen decoder: draw rows so often only, keep in memory what it says; 0: anew",
        "muon_lr": "highest learning rate of Muon, for the layers' matrices; 0: AdamW for all",
        "lr": "highest learning rate of AdamW",
        "layer_decay": "each layer learns at this share of the rate of the one above",
        "batch_tokens": "tokens a batch, padding included",
        "accumulation": "batches a step",
        "warmup": "share of the steps during which the rate rises",
        "dropout": "while training",
        "weight_decay": "of AdamW",
        "patience": "stop after so many epochs without a better dev score; 0: never",
        "arithmetic": f"one of {', '.join(ARITHMETIC)}",
        "device": f"{', '.join(DEVICES)} or cuda:N",
        "minutes_between": "how often the state is saved",
        "seed": "of the order and the dropout",
    }
    for field in fields(FinetuneOptions):
        if field.name in texts:
            parser.add_argument(
                flag(field.name),
                type=type(field.default),
                default=field.default,
                help=f"{texts[field.name]} (%(default)s)",
            )
    parser.add_argument("--balanced", action="store_true", help="count rare labels more")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--compiled", action="store_true", help="torch.compile: faster, needs a C++ compiler")


def _train_lm(chosen: argparse.Namespace) -> None:
    values = {name: value for name, value in vars(chosen).items() if name != "run"}
    values |= {name: tuple(values[name]) for name in ("texts", "final_texts")}
    print(f"the best checkpoint is in {pretrain(PretrainOptions(**values))}")


def _train_ner(chosen: argparse.Namespace) -> None:
    options = _finetune_options(chosen)
    train = [read_corpus(name, chosen.discontinuous) for name in chosen.train]
    dev = [read_scored(name, chosen.discontinuous) for name in chosen.dev]
    settings = {
        "passage_copies": chosen.copies,
        "bidirectional_layers": chosen.bidirectional_layers,
        "word_encoder_size": chosen.word_encoder,
        "read_layers": chosen.read_layers,
    }
    auxiliary = [kind for kind in chosen.auxiliary.split(",") if kind]
    extends = None
    if chosen.extend:
        if given := [flag(name) for name, value in _OF_A_NEW_HEAD.items() if getattr(chosen, name) != value]:
            raise ValueError(f"{', '.join(given)}: for a new head; one that is extended stays as it is")
        extends = BioGptForTokenClassification.from_pretrained(
            options.model, precision="float32", device="cpu"
        )
    objective = EntityObjective(train, dev, settings, extends, auxiliary, chosen.alone)
    how = {"extend": chosen.extend, "auxiliary": auxiliary, "alone": chosen.alone}
    _finetune(chosen, options, objective, {"train": chosen.train, "dev": chosen.dev} | settings | how)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share; expected 0 to 1")
    return value


def _train_classify(chosen: argparse.Namespace) -> None:
    options = _finetune_options(chosen)
    if chosen.sentence_encoder and not chosen.sentences:
        raise ValueError(
            f"--sentence-encoder {chosen.sentence_encoder} reads the sentences of abstracts; add "
            "--sentences, or leave it out"
        )
    if chosen.pooling == "attention" and chosen.sentences:
        raise ValueError("--pooling attention is for whole texts; choose mean or last for --sentences")
    train, dev = ([str(path) for path in split] for split in (chosen.train, chosen.dev))
    settings = {
        "pooling": chosen.pooling,
        "pooling_size": chosen.pooling_size,
        "sentence_encoder_size": chosen.sentence_encoder,
        "read_layers": chosen.read_layers,
    }
    task = labelling_task(chosen, chosen.train, chosen.dev, settings)
    _finetune(chosen, options, task, {"train": train, "dev": dev} | settings)


def _calibrate(chosen: argparse.Namespace) -> None:
    if chosen.model is None:
        raise ValueError("name the folder of the head to calibrate (--model FOLDER)")
    folder, how = Path(chosen.model), (chosen.device, chosen.precision)
    if chosen.entities:
        done = calibrate_entities(folder, [read_scored(name) for name in chosen.files], *how)
    else:
        files = [Path(name) for name in chosen.files]
        done = calibrate(folder, labelling_task(chosen, files, files), *how)
    bias = f", bias {done.bias}" if chosen.multi_label else ""
    print(
        f"temperature {done.temperature}{bias}; expected calibration error {done.before:.4f} before, "
        f"{done.after:.4f} after"
    )


def _finetune_options(chosen: argparse.Namespace) -> FinetuneOptions:
    """How to train, checked, and so is the Hub id to upload to: before any data are read."""
    if chosen.push_to_hub is not None:
        check_hub_id(chosen.push_to_hub)
    values = {
        field.name: getattr(chosen, field.name) for field in fields(FinetuneOptions) if field.name in chosen
    }
    return FinetuneOptions(**values)


def _finetune(
    chosen: argparse.Namespace, options: FinetuneOptions, objective: Objective, data: dict[str, object]
) -> None:
    folder = finetune(objective, options, data)
    print(f"the best checkpoint is in {folder}")
    if chosen.push_to_hub:
        print(f"it is on the Hub: {push_to_hub(folder, chosen.push_to_hub)}")
