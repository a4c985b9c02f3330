"""The command line: ``python -m biogpt generate · ner · classify · score · evaluate · train · convert · bench``."""

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path

from tqdm import tqdm

from biogpt.bench import POSITIONS, PROMPTS, REFERENCE, BenchOptions, bench, table
from biogpt.checkpoint.convert import convert
from biogpt.checkpoint.files import written_whole
from biogpt.checkpoint.hub import check_hub_id, find, push_to_hub
from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptForSequenceClassification, BioGptTokenizer
from biogpt.generation.options import SETTINGS, GenerationOptions
from biogpt.model.config import BioGptConfig
from biogpt.runners.precision import DEVICES, PRECISIONS
from biogpt.serving.text_generator import TextGenerator
from biogpt.tasks.classification import TEMPLATE, TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.text.documents import FORMATS, Document, read_documents
from biogpt.text.export import CLASS_FORMATS, ENTITY_FORMATS, classes_as, entities_as, sentences_as
from biogpt.training.corpus import read_lines
from biogpt.training.finetune import ARITHMETIC, FinetuneOptions, Task, finetune
from biogpt.training.labelled import read_labelled, read_sections
from biogpt.training.metrics import bits_per_byte
from biogpt.training.pretrain import PretrainOptions, pretrain
from biogpt.training.tasks import EntityCorpus, EntityTask, SentenceTask, TextTask

_TAGGED_FILES = (
    "CoNLL (BIO, IOBES), JSONL or PubTator files; FILE:old=New,… takes these types only, and reads what "
    "else the file may hold as not annotated"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 when the work failed, 2 when the command line is wrong, 130 when interrupted, 141 when nobody reads what
        is printed any more.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    chosen = _parser().parse_args(arguments)
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

    ner = commands.add_parser("ner", help="find entities", description="Find the entities of texts.")
    _add_model(ner, "mini-ner")
    _add_texts(ner, ENTITY_FORMATS)
    ner.add_argument("--min-score", type=_share, default=0.0, help="leave out less sure ones (%(default)s)")
    ner.add_argument("--types", nargs="+", help="these types only")
    ner.set_defaults(run=_ner)

    classify = commands.add_parser("classify", help="label texts", description="Label texts.")
    _add_model(classify, None, "mini-hoc; mini-rct with --sentences, mini with --labels")
    _add_texts(classify, CLASS_FORMATS)
    classify.add_argument("--labels", nargs="+", help="labels of your own, compared by a language model")
    classify.add_argument("--template", default=TEMPLATE, help="what it reads with --labels (%(default)s)")
    classify.add_argument(
        "--sentences", action="store_true", help="label each sentence after those before it"
    )
    classify.set_defaults(run=_classify)

    score = commands.add_parser(
        "score", help="bits per byte of a text file", description="Score a file of one document a line."
    )
    score.add_argument("file", type=Path, help=".txt or .txt.xz, UTF-8, one document a line")
    _add_model(score)
    score.set_defaults(run=_score)

    evaluate = commands.add_parser("evaluate", help="score a head on labelled text").add_subparsers(
        required=True, metavar="TASK"
    )
    tagger = evaluate.add_parser("ner", help="strict entity scores", description="Score a tagger, strictly.")
    tagger.add_argument("files", nargs="+", metavar="FILE[:old=New,…]", help=_TAGGED_FILES)
    _add_model(tagger, "mini-ner")
    tagger.set_defaults(run=_evaluate_ner)
    labeller = evaluate.add_parser(
        "classify", help="scores of labels", description="Score a head that labels texts or sentences."
    )
    labeller.add_argument("files", nargs="+", type=Path, metavar="FILE", help="TSV or JSONL files")
    _add_model(labeller, None, "mini-hoc; mini-rct with --sentences")
    _add_labelled(labeller)
    labeller.set_defaults(run=_evaluate_classify)

    train = commands.add_parser("train", help="train a model").add_subparsers(required=True, metavar="TASK")
    lm = train.add_parser(
        "lm",
        help="pre-train a language model, from scratch or further",
        description="Pre-train a small BioGPT from plain text. Run again with the same folder to go on.",
    )
    _add_pretraining(lm)
    lm.set_defaults(run=_train_lm)

    tagging = train.add_parser(
        "ner",
        help="fine-tune for entities",
        description="Fine-tune a head that tags entities. Run again with the same folder to go on.",
    )
    _add_entity_training(tagging)
    tagging.set_defaults(run=_train_ner)
    classes = train.add_parser(
        "classify",
        help="fine-tune for labels of texts, or of the sentences of abstracts",
        description="Fine-tune a head that labels texts. Run again with the same folder to go on.",
    )
    _add_text_training(classes)
    classes.set_defaults(run=_train_classify)

    speed = commands.add_parser(
        "bench",
        help="measure the speed of this machine",
        description="Measure speed and memory on random weights; prints a table, writes bench.json and plots.",
    )
    _add_bench(speed)
    speed.set_defaults(run=_bench)

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


def _whole(least: int) -> Callable[[str], int]:
    """A kind of argument: whole numbers from ``least`` on."""

    def number(value: str) -> int:
        if not value.removeprefix("-").isdecimal() or int(value) < least:
            raise argparse.ArgumentTypeError(f"{value!r}; expected a whole number, at least {least}")
        return int(value)

    return number


def _share(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{value!r}; expected a number from 0 to 1")
    return number


def _add_model(
    parser: argparse.ArgumentParser, default: str | None = "mini", said: str = "%(default)s"
) -> None:
    parser.add_argument(
        "--model", default=default, help=f"embedded name, folder, or Hub id[@revision] ({said})"
    )
    parser.add_argument("--device", default="auto", help=f"{', '.join(DEVICES)} or cuda:N (%(default)s)")
    parser.add_argument(
        "--precision", default="auto", choices=PRECISIONS, help="of the weights (%(default)s)"
    )


def _add_texts(parser: argparse.ArgumentParser, formats: Iterable[str]) -> None:
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("text", nargs="?", help="the text; - reads it from standard input")
    given.add_argument("--file", type=Path, help=f"many texts: {', '.join(FORMATS)}")
    parser.add_argument(
        "--format", default="table", choices=("table", *formats), help="of the results (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="file to write; standard output when left out")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder to write to (%(default)s)"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="of ours (auto, float32)")
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="transformers[:PRECISION]",
        help="measure it as well, in turns; it must be installed (transformers is float32)",
    )
    for name, words, default in (
        ("prompts", "lengths of prompts, in tokens", PROMPTS),
        ("streams", "numbers of requests at once", BenchOptions.streams),
        ("positions", "lengths of the text so far, in tokens", POSITIONS),
    ):
        fitting = "" if name == "streams" else ", as far as they fit"
        text = f"{words} ({' '.join(map(str, default))}{fitting})"
        parser.add_argument(f"--{name}", nargs="+", type=int, help=text)
    parser.add_argument("--tagging", action="store_true", help="entities and labels of documents, too")
    parser.add_argument("--rounds", type=int, help=f"times each figure is taken ({BenchOptions.rounds})")
    parser.add_argument("--steps", type=int, help=f"tokens a figure is taken over ({BenchOptions.steps})")
    parser.add_argument("--model", help="shape to measure: a folder or embedded name (BioGPT base, 347 M)")


def _add_generation(parser: argparse.ArgumentParser) -> None:
    for row in SETTINGS:
        flag, text = _flag(row.name), row.help[0].lower() + row.help[1:].rstrip(".")
        if row.command and row.is_list:
            parser.add_argument(flag, action="append", default=[], help=f"{text}; may be repeated")
        elif row.command:
            kind = float if row.type is float else int
            parser.add_argument(flag, type=kind, default=row.default, help=f"{text} (%(default)s)")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


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
    parser.add_argument(
        "--model", default="", help="embedded name, folder or Hub id to go on from; a new one when left out"
    )
    parser.add_argument("--compiled", action="store_true", help="torch.compile: faster, needs a C++ compiler")
    for field in fields(PretrainOptions):
        if field.default is not MISSING and field.type in (int, float):
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=field.type, default=field.default, help="(%(default)s)")


def _add_entity_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train",
        nargs="+",
        required=True,
        metavar="FILE[@SHARE][:old=New,…]",
        help=f"{_TAGGED_FILES}; FILE@0.5 reads a random half of it in each epoch",
    )
    parser.add_argument("--dev", nargs="+", default=[], metavar="FILE[:old=New,…]", help="to score on")
    parser.add_argument(
        "--copies",
        type=_whole(1),
        default=1,
        help="give a passage so many times, read labels at the last (%(default)s)",
    )
    parser.add_argument(
        "--bidirectional-layers",
        type=_whole(0),
        default=0,
        help="so many of the last layers look both ways (%(default)s)",
    )
    parser.add_argument(
        "--word-encoder",
        type=_whole(0),
        default=0,
        metavar="SIZE",
        help="read the words both ways above the decoder, this wide; 0: do not (%(default)s)",
    )
    _add_finetuning(parser)


def _add_text_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train", nargs="+", type=Path, required=True, metavar="FILE", help="TSV or JSONL files"
    )
    parser.add_argument("--dev", nargs="+", type=Path, default=[], metavar="FILE", help="to score on")
    _add_labelled(parser)
    _add_finetuning(parser)


def _add_labelled(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--multi-label", action="store_true", help="a text may have several labels, or none")
    parser.add_argument(
        "--sentences",
        action="store_true",
        help="files of '###id' and 'LABEL<tab>sentence' lines: learn each sentence's role after those before it",
    )
    parser.add_argument(
        "--text-column", default="-1", help="name, or number from 1; -1 is the last (%(default)s)"
    )
    parser.add_argument("--label-column", default="-2", help="name, or number from 1 (%(default)s)")
    parser.add_argument("--separator", default="|", help="between the labels of a text (%(default)s)")
    parser.add_argument("--none-label", default="none", help="stands for no label (%(default)s)")


def _add_finetuning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; an unfinished one goes on"
    )
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the best checkpoint when done")
    texts = {
        "model": "embedded name, folder or Hub id to start from",
        "epochs": "passes over the data",
        "frozen_epochs": "so many first ones train what is above the decoder only",
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
        flag = "--" + field.name.replace("_", "-")
        if field.name in texts:
            parser.add_argument(
                flag,
                type=type(field.default),
                default=field.default,
                help=f"{texts[field.name]} (%(default)s)",
            )
    parser.add_argument("--balanced", action="store_true", help="count rare labels more")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--compiled", action="store_true", help="torch.compile: faster, needs a C++ compiler")


def _generate(chosen: argparse.Namespace) -> None:
    options = GenerationOptions(**{row.name: getattr(chosen, row.name) for row in SETTINGS if row.command})
    prompt = _standard_input().strip() if chosen.prompt == "-" else chosen.prompt
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
    bits = bits_per_byte(model, tokenizer, texts)
    if not math.isfinite(bits):
        raise FloatingPointError(
            f"bits per byte are {bits}: the weights of {chosen.model} may be damaged, or too large for this precision; "
            "try --precision float32"
        )
    print(f"{bits:.4f} bits per byte on {len(texts)} texts of {chosen.file.name}")


def _evaluate_ner(chosen: argparse.Namespace) -> None:
    corpora = [_scored(name) for name in chosen.files]
    recognizer = EntityRecognizer.from_pretrained(
        chosen.model, device=chosen.device, precision=chosen.precision
    )
    for corpus in corpora:
        _check_known(f"the types of {corpus.name}", corpus.types, recognizer.types, "; FILE:old=New renames")
    result = EntityTask(corpora, corpora, {}).evaluate(recognizer.model, recognizer.tokenizer)
    assert result is not None
    for name, scores in result.metrics.items():
        print(f"{name}\n{_scores(scores)}", end="")


def _evaluate_classify(chosen: argparse.Namespace) -> None:
    task = _labelling_task(chosen, chosen.files, chosen.files)
    classifier = TextClassifier.from_pretrained(
        chosen.model or ("mini-rct" if chosen.sentences else "mini-hoc"),
        device=chosen.device,
        precision=chosen.precision,
    )
    _check_known("the labels", task.labels, classifier.labels)
    task.labels = classifier.labels
    assert isinstance(classifier.model, BioGptForSequenceClassification)
    result = task.evaluate(classifier.model, classifier.tokenizer)
    assert result is not None
    scores = dict(result.metrics)
    if "accuracy" in scores:
        print(f"accuracy {scores.pop('accuracy'):.4f}")
    print(_scores(scores), end="")


def _check_known(what: str, given: Iterable[str], known: Sequence[str], hint: str = "") -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{what} include {unknown}; the model knows {', '.join(known)}{hint}")


def _scores(scores: dict[str, dict[str, float]]) -> str:
    columns = ("precision", "recall", "f1", "support")
    rows = [(label, *(f"{each[column]}" for column in columns)) for label, each in scores.items()]
    return _table(("label", *columns), rows)


def _standard_input() -> str:
    return sys.stdin.read().removeprefix("\ufeff")


def _documents(chosen: argparse.Namespace) -> list[Document]:
    if chosen.file:
        return read_documents(chosen.file)
    text = _standard_input() if chosen.text == "-" else chosen.text
    if not text.strip():
        raise ValueError("the text is empty; give a text, or a file with --file")
    return [Document("1", text)]


def _ner(chosen: argparse.Namespace) -> None:
    documents = _documents(chosen)
    _check_out(chosen)
    recognizer = EntityRecognizer.from_pretrained(
        chosen.model, device=chosen.device, precision=chosen.precision
    )
    unknown = set(chosen.types or ()) - set(recognizer.types)
    if unknown:
        raise ValueError(f"unknown types {sorted(unknown)}; the model knows {', '.join(recognizer.types)}")
    types = set(chosen.types or recognizer.types)
    with _bar(documents) as bar:
        found = recognizer.batch([document.text for document in documents], bar)
    kept = [[e for e in each if e.label in types and e.score >= chosen.min_score] for each in found]
    if chosen.format == "table":
        rows = [
            (document.id, e.label, str(e.start), str(e.end), f"{e.score:.3f}", " ".join(e.text.split()))
            for document, each in zip(documents, kept, strict=True)
            for e in each
        ]
        _put(chosen, _table(("id", "label", "start", "end", "score", "text"), rows).encode())
    else:
        _put(chosen, entities_as(chosen.format, documents, kept))


def _classify(chosen: argparse.Namespace) -> None:
    documents = _documents(chosen)
    _check_out(chosen)
    default = "mini-rct" if chosen.sentences else "mini" if chosen.labels else "mini-hoc"
    classifier = TextClassifier.from_pretrained(
        chosen.model or default,
        device=chosen.device,
        precision=chosen.precision,
        labels=chosen.labels,
        template=chosen.template,
    )
    texts = [document.text for document in documents]
    with _bar(documents) as bar:
        if chosen.sentences:
            roles = []
            for number, text in enumerate(texts, 1):
                roles.append(classifier.sentences(text))
                bar(number, len(texts))
        else:
            results = classifier.batch(texts, bar)
    if chosen.sentences:
        if chosen.format != "table":
            return _put(chosen, sentences_as(chosen.format, documents, roles))
        sentences = [
            (
                document.id,
                role.label,
                f"{role.score:.3f}",
                " ".join(document.text[role.start : role.end].split()),
            )
            for document, each in zip(documents, roles, strict=True)
            for role in each
        ]
        return _put(chosen, _table(("id", "label", "score", "sentence"), sentences).encode())
    for document, result in zip(documents, results, strict=True):
        if result.cut:
            print(f"biogpt: text {document.id}: its last {result.cut} tokens were not read", file=sys.stderr)
    if chosen.format != "table":
        return _put(chosen, classes_as(chosen.format, documents, results))
    rows = [
        (document.id, score.label, f"{score.score:.3f}")
        for document, result in zip(documents, results, strict=True)
        for score in result.scores
    ]
    _put(chosen, _table(("id", "label", "score"), rows).encode())


@contextmanager
def _bar(documents: Sequence[Document]) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, for more than one text."""
    with tqdm(total=len(documents), unit="text", disable=len(documents) < 2) as bar:

        def show(done: int, total: int) -> None:
            bar.update(done - bar.n)

        yield show


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (columns, *rows)
    )
    return "".join(line.rstrip() + "\n" for line in lines)


def _check_out(chosen: argparse.Namespace) -> None:
    """Refuse, before any work, what could not be written after it."""
    if chosen.out is None and chosen.format == "brat":
        raise ValueError("brat is a .zip; name a file with --out")
    if chosen.out is not None and (not chosen.out.name or chosen.out.is_dir()):
        raise IsADirectoryError(f"{chosen.out} is a folder; name a file with --out")
    if chosen.out is not None and not chosen.out.parent.is_dir():
        raise FileNotFoundError(
            f"{chosen.out.parent} is not a folder; make it first, or choose another --out"
        )


def _put(chosen: argparse.Namespace, content: bytes) -> None:
    if chosen.out is None:
        print(content.decode("utf-8", errors="replace"), end="")
        return
    out = chosen.out.resolve()
    if chosen.out.is_relative_to("/dev") or (out.exists() and not out.is_file()):  # a device or a pipe
        with chosen.out.open("ab") as stream:
            stream.write(content)
        return
    with written_whole(out.parent, out.name) as (unfinished,):
        unfinished.write_bytes(content)


def _train_lm(chosen: argparse.Namespace) -> None:
    values = {name: value for name, value in vars(chosen).items() if name != "run"}
    values |= {name: tuple(values[name]) for name in ("texts", "final_texts")}
    print(f"the best checkpoint is in {pretrain(PretrainOptions(**values))}")


def _train_ner(chosen: argparse.Namespace) -> None:
    options = _finetune_options(chosen)
    train, dev = [_corpus(name) for name in chosen.train], [_scored(name) for name in chosen.dev]
    settings = {
        "passage_copies": chosen.copies,
        "bidirectional_layers": chosen.bidirectional_layers,
        "word_encoder_size": chosen.word_encoder,
    }
    data = {"train": chosen.train, "dev": chosen.dev} | settings
    _finetune(chosen, options, EntityTask(train, dev, settings), data)


def _corpus(name: str) -> EntityCorpus:
    path, _, types = name.rpartition(":") if "=" in name.rpartition(":")[2] else (name, "", "")
    renames = dict(pair.split("=", 1) for pair in types.split(",")) if types else None
    file, at, share = path.rpartition("@")
    if at and share.replace(".", "", 1).isdecimal():
        return EntityCorpus.read(Path(file), renames, float(share))
    return EntityCorpus.read(Path(path), renames)


def _scored(name: str) -> EntityCorpus:
    corpus = _corpus(name)
    if corpus.share < 1:
        raise ValueError(
            f"{name} names a share, which is for training; scores are of whole files: leave it out"
        )
    return corpus


def _train_classify(chosen: argparse.Namespace) -> None:
    options = _finetune_options(chosen)
    train, dev = ([str(path) for path in split] for split in (chosen.train, chosen.dev))
    task = _labelling_task(chosen, chosen.train, chosen.dev)
    _finetune(chosen, options, task, {"train": train, "dev": dev})


def _labelling_task(
    chosen: argparse.Namespace, train: Sequence[Path], dev: Sequence[Path]
) -> SentenceTask | TextTask:
    splits = (train, dev)
    if chosen.sentences:
        return SentenceTask(
            *([abstract for path in split for abstract in read_sections(path)] for split in splits)
        )
    how = chosen.text_column, chosen.label_column, chosen.separator, chosen.none_label
    learned, scored = ([t for path in split for t in read_labelled(path, *how)] for split in splits)
    return TextTask(learned, scored, chosen.multi_label)


def _finetune_options(chosen: argparse.Namespace) -> FinetuneOptions:
    """How to train, checked, and so is the Hub id to upload to: before any data are read."""
    if chosen.push_to_hub is not None:
        check_hub_id(chosen.push_to_hub)
    values = {
        field.name: getattr(chosen, field.name) for field in fields(FinetuneOptions) if field.name in chosen
    }
    return FinetuneOptions(**values)


def _finetune(
    chosen: argparse.Namespace, options: FinetuneOptions, task: Task, data: dict[str, object]
) -> None:
    folder = finetune(task, options, data)
    print(f"the best checkpoint is in {folder}")
    if chosen.push_to_hub:
        print(f"it is on the Hub: {push_to_hub(folder, chosen.push_to_hub)}")


def _bench(chosen: argparse.Namespace) -> None:
    names = ("out", "precisions", "prompts", "streams", "positions", "tagging", "rounds", "steps")
    values = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    against = []
    for name in chosen.against or ():
        kind, _, precision = name.partition(":")
        if kind != REFERENCE or precision not in ("", "float32", "bfloat16"):
            raise ValueError(
                f"--against {name!r}; expected transformers, transformers:float32 or transformers:bfloat16"
            )
        against.append(precision or "float32")
    if chosen.model:
        values["config"] = BioGptConfig.from_json(find(chosen.model) / "config.json")
    results = bench(BenchOptions(against=against, **values))
    print(table(results))
    print(f"\nbench.json and plots are in {chosen.out}")


def _convert(chosen: argparse.Namespace) -> None:
    convert(chosen.archive, chosen.folder)
    print(
        f"{chosen.folder} can be loaded now: python -m biogpt generate --model {chosen.folder} 'COVID-19 is'"
    )
