"""Pre-training: packing, optimiser, schedule, scoring, and a run that survives a kill."""

import dataclasses
import json
import lzma
import math
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.cli import main
from biogpt.model.config import BioGptConfig
from biogpt.training import corpus
from biogpt.training import pretrain as pretraining
from biogpt.training.corpus import Documents, pack_rows, read_texts, tokenize_file
from biogpt.training.loop import TrainingProgress, TrainingRun
from biogpt.training.metrics import bits_per_byte
from biogpt.training.optimizer import Muon, make_optimizers, orthogonal
from biogpt.training.options import PretrainOptions
from biogpt.training.pretrain import pretrain
from biogpt.training.vocabulary import count_words, learn_vocabulary

SEPARATOR = 2


WORDS = [
    "gene",
    "protein",
    "cell",
    "binds",
    "the",
    "of",
    "in",
    "receptor",
    "tumour",
    "inhibits",
    "growth",
    "with",
]


def write_text(path: Path, lines: int, seed: int) -> Path:
    draw = random.Random(seed)
    path.write_text(
        "".join(" ".join(draw.choices(WORDS, k=draw.randint(5, 60))) + " .\n" for _ in range(lines)),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def options(tmp_path):
    return PretrainOptions(
        out=tmp_path / "run",
        texts=(write_text(tmp_path / "train.txt", 60, seed=1),),
        heldout=write_text(tmp_path / "heldout.txt", 10, seed=2),
        tokens=64 * 40,
        batch_tokens=64,
        vocab_size=80,
        width=16,
        layers=2,
        heads=2,
        positions=32,
        warmup=4,
        minutes_between=0.0,
        processes=1,
    )


def documents_of(lengths):
    """Documents whose ids are all different, so that each can be found again."""
    ends = np.cumsum(lengths)
    return Documents(np.arange(10, 10 + ends[-1], dtype=np.int32), ends)


@pytest.mark.parametrize("lengths", [[5, 3, 9, 2] * 50, [40, 70, 33] * 600])
def test_packing_loses_nothing_and_invents_nothing(lengths):
    documents = documents_of(lengths)
    length = 15
    rows = pack_rows(documents, length, SEPARATOR, seed=0)
    seen: list[int] = []
    # Once round takes at least this many rows; what is cut off may wait a little longer than that.
    for row in islice(rows, 3 * sum(lengths) // length):
        assert row.shape == (length + 1,)
        seen += [i for i in row if i != SEPARATOR]
    counts = np.bincount(seen, minlength=10 + sum(lengths))[10:]
    assert counts.min() >= 1
    assert counts.max() <= 4
    # Ids of a document follow each other wherever they stand side by side in the text.
    for row in islice(pack_rows(documents, length, SEPARATOR, seed=0), 50):
        for left, right in pairwise(row):
            assert right == left + 1 or SEPARATOR in (left, right)


def test_a_row_starts_where_a_document_starts():
    documents = documents_of([20, 8, 11] * 30)
    starts = {10, *(10 + documents.ends[:-1])}
    for row in islice(pack_rows(documents, 15, SEPARATOR, seed=3), 100):
        assert row[0] == SEPARATOR
        assert row[1] in starts


def test_packing_repeats_with_its_seed():
    documents = documents_of([7, 12, 5] * 10)
    first, again, other = (
        np.stack(list(islice(pack_rows(documents, 9, SEPARATOR, seed), 40))) for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_joined_documents_are_those_of_each_file():
    one, two = documents_of([3, 4]), documents_of([5])
    joined = Documents.join([one, two, one])
    assert [list(joined[i]) for i in range(len(joined))] == [
        list(part[i]) for part in (one, two, one) for i in range(len(part))
    ]


def test_tokenised_files_are_kept(tmp_path, options, monkeypatch):
    tokenizer = tiny_tokenizer(tmp_path)
    path = options.texts[0]
    first = tokenize_file(path, tokenizer, tmp_path / "tokens", processes=2)
    lines = read_texts(path)
    assert [list(first[i]) for i in range(len(first))] == [
        tokenizer.encode(line, special_tokens=False).ids for line in lines
    ]
    other = tmp_path / "other" / path.name
    other.parent.mkdir()
    other.write_text(lines[0] + "\n", encoding="utf-8")
    assert len(tokenize_file(other, tokenizer, tmp_path / "tokens", processes=2)) == 1
    monkeypatch.setattr(corpus, "read_texts", None)
    again = tokenize_file(path, tokenizer, tmp_path / "tokens", processes=2)
    assert (again.ids == first.ids).all()
    assert (again.ends == first.ends).all()


def test_tokens_of_another_vocabulary_are_not_reused(tmp_path, options):
    """The file is the same, and so was the name under which its tokens were kept."""
    path, folder = options.texts[0], tmp_path / "tokens"
    counts = count_words(read_texts(path))
    for size in (80, 60):
        tokenizer = learn_vocabulary(counts, size)
        documents = tokenize_file(path, tokenizer, folder, processes=1)
        first = tokenizer.encode(read_texts(path)[0], special_tokens=False).ids
        assert list(documents[0]) == first


def test_another_vocab_size_in_a_folder_that_was_begun_is_refused(options):
    """A run that was killed before its first state has left a vocabulary."""
    learn_vocabulary(count_words(read_texts(options.texts[0])), 80).save_pretrained(
        options.out / "vocabulary"
    )
    with pytest.raises(ValueError, match="holds a vocabulary of 80 entries, but vocab_size is 70"):
        pretrain(dataclasses.replace(options, vocab_size=70))


def test_the_smoothed_loss_is_the_mean_of_the_first_batches_and_then_forgets():
    progress = TrainingProgress()
    for loss in (6.0, 4.0, 5.0):
        progress.count(loss, seconds=1.0)
    assert (progress.loss, progress.step, progress.seconds) == (pytest.approx(5.0), 3, 3.0)
    for _ in range(300):
        progress.count(1.0, seconds=1.0)
    assert progress.loss == pytest.approx(1.0, abs=0.02)


def test_the_mean_is_of_the_last_weights_alone_and_outlives_a_break(tmp_path):
    config = BioGptConfig(vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)

    def begun():
        model = BioGptForCausalLM(config)
        return TrainingRun(tmp_path, {}, model, None, [], TrainingProgress(), averaged_from=2)

    run = begun()
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.fill_(step**2)
        run.count(1.0)
        if step == 4:
            run.save_state()
            run = begun()
            run.resume()
    run.take_average()
    for parameter in run.model.parameters():
        assert parameter.flatten()[0].item() == pytest.approx((9 + 16 + 25) / 3)


def test_rows_before_the_decay_may_be_as_long_as_those_after_it(options):
    for first, length in ((0, 16), (32, 32)):
        chosen = dataclasses.replace(options, first_positions=first, out=options.out / str(first))
        tokenizer = pretraining._vocabulary(chosen)
        shapes = [batch.shape for batch in pretraining._batches(chosen, tokenizer, 0)]
        assert set(shapes[: options.stable_steps]) == {(64 // length, length + 1)}
        assert set(shapes[options.stable_steps :]) == {(2, 33)}
        assert len(shapes) == options.steps


def test_batches_for_another_device_come_in_order_and_their_errors_come_through():
    def batches():
        yield torch.zeros(1, 5)
        yield torch.zeros(2, 5)
        raise ValueError("no more text")

    coming = pretraining._on_device(batches(), torch.device("meta"))
    assert [(batch.shape[0], batch.device.type) for batch in islice(coming, 2)] == [(1, "meta"), (2, "meta")]
    with pytest.raises(ValueError, match="no more text"):
        next(coming)


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 64)])
def test_muon_moves_as_that_of_torch_and_tall_matrices_further(shape, decay):
    """The update of a tall matrix is scaled by the root of rows to columns; momentum is Nesterov's."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.full(shape, 0.5)) for _ in range(2))
    muon = Muon([ours], lr=0.1, weight_decay=decay)
    reference = (
        torch.optim.Muon([theirs], lr=0.1, weight_decay=decay) if hasattr(torch.optim, "Muon") else None
    )
    for _ in range(3):
        before, torchs = ours.detach().clone(), theirs.detach().clone()
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        muon.step()
        update = (ours - (1 - 0.1 * decay) * before).detach()
        size = 0.1 * max(1, shape[0] / shape[1]) ** 0.5
        assert update.norm().item() == pytest.approx(size * min(shape) ** 0.5, rel=0.25)
        if reference is not None:
            reference.step()
            torchs = (theirs - (1 - 0.1 * decay) * torchs).detach()
            assert (update - torchs).norm() < 0.04 * update.norm()  # bfloat16 over five products


def test_without_a_rate_for_muon_all_goes_to_adamw():
    model = BioGptForCausalLM(
        BioGptConfig(vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    )
    (adam,) = make_optimizers(model, lr=0.003, muon_lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    assert sum(len(group["params"]) for group in adam.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (2, 16, 64)])
def test_muon_updates_are_nearly_orthogonal(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonal(matrices).float()
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.3
    assert singular.max() < 1.3
    # It turns nothing: along the singular vectors of the input, the result is close to the identity.
    assert (left.mT @ result @ right.mT).diagonal(dim1=1, dim2=2).min() > 0.3


def test_optimizers_share_out_every_parameter_once():
    model = BioGptForCausalLM(
        BioGptConfig(vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    )
    adam, muon = make_optimizers(model, lr=0.003, muon_lr=0.02, betas=(0.9, 0.95), weight_decay=0.0)
    in_muon, in_adam = ({id(p) for group in o.param_groups for p in group["params"]} for o in (muon, adam))
    assert not in_muon & in_adam
    assert in_muon | in_adam == {id(p) for p in model.parameters()}
    assert id(model.output_projection.weight) in in_adam
    assert id(model.biogpt.layers[0].fc1.weight) in in_muon


def test_learning_rate_rises_stays_and_falls_to_zero(options):
    rates = [options.learning_rate(step) for step in range(options.steps + 1)]
    assert rates[0] == 1 / options.warmup
    assert rates[options.warmup - 1 : options.stable_steps + 1] == [1.0] * (
        options.stable_steps + 2 - options.warmup
    )
    assert rates[-1] == 0
    falling = np.diff(rates[options.stable_steps :])
    assert np.allclose(falling, falling[0])


def tiny_tokenizer(folder: Path) -> BioGptTokenizer:
    lines = read_texts(write_text(folder / "words.txt", 50, seed=5))
    return learn_vocabulary(count_words(lines), 80)


def tiny_model(tokenizer: BioGptTokenizer, positions: int) -> BioGptForCausalLM:
    torch.manual_seed(1)
    config = BioGptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=positions,
        initializer_range=0.3,
    )
    return BioGptForCausalLM(config).eval()


def test_bits_per_byte_of_a_model_that_knows_nothing(tmp_path):
    """All ids equally likely: each token costs log2(V) bits, whatever the windows, none counted twice."""
    tokenizer = tiny_tokenizer(tmp_path)
    model = tiny_model(tokenizer, positions=16)
    torch.nn.init.zeros_(model.output_projection.weight)
    texts = [*read_texts(tmp_path / "words.txt"), "β"]
    tokens = [len(tokenizer.encode(text).ids) - 1 for text in texts]
    assert max(tokens) > 48 > min(tokens)
    expected = sum(tokens) * math.log2(tokenizer.vocab_size) / sum(len(text.encode()) for text in texts)
    assert bits_per_byte(model, tokenizer, texts, batch_size=7) == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte_is_the_likelihood_of_the_reference(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    model = tiny_model(tokenizer, positions=128)
    reference = transformers.BioGptForCausalLM(transformers.BioGptConfig(**model.config.to_dict())).eval()
    reference.load_state_dict(model.state_dict())
    texts = read_texts(tmp_path / "words.txt")[:9]
    nats = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        nats += reference(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    expected = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert bits_per_byte(model, tokenizer, texts, batch_size=4) == pytest.approx(expected, rel=1e-4)


def test_training_learns_saves_the_best_and_transformers_opens_it(options):
    best = pretrain(options)
    log = [json.loads(line) for line in (options.out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["tokens"] == options.tokens
    assert log[-1]["bits_per_byte"] < 0.7 * log[0]["bits_per_byte"]
    model = BioGptForCausalLM.from_pretrained(best)
    tokenizer = BioGptTokenizer.from_pretrained(best)
    assert model.config.max_position_embeddings == options.positions
    score = bits_per_byte(model, tokenizer, read_texts(options.heldout))
    assert score == pytest.approx(log[-1]["bits_per_byte"], abs=2e-3)
    theirs, report = transformers.BioGptForCausalLM.from_pretrained(best, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.config.vocab_size == tokenizer.vocab_size
    recipe = json.loads((best / "training.json").read_text())["recipe"]
    assert recipe["seed"] == options.seed


def test_training_goes_on_from_another_model_with_its_vocabulary(options):
    first = pretrain(options)
    log = [json.loads(line) for line in (options.out / "log.jsonl").read_text().splitlines()]
    more = dataclasses.replace(
        options,
        out=options.out / "more",
        model=str(first),
        muon_lr=1e-4,
        adam_lr=1e-5,
        vocab_size=300,
        width=64,
    )
    second = pretrain(more)
    again = [json.loads(line) for line in (more.out / "log.jsonl").read_text().splitlines()]
    assert again[0]["bits_per_byte"] == pytest.approx(log[-1]["bits_per_byte"], rel=0.05)
    assert (second / "vocab.json").read_bytes() == (first / "vocab.json").read_bytes()
    assert BioGptConfig.from_json(second / "config.json").hidden_size == 16
    with pytest.raises(ValueError, match=r"positions is 64, but .* has 32"):
        pretrain(dataclasses.replace(more, out=options.out / "longer", positions=64))


def words_of(options: PretrainOptions, out: Path) -> list[str]:
    words = ["train", "lm", "--out", str(out)]
    words += ["--texts", *map(str, options.texts), "--heldout", str(options.heldout)]
    for field in dataclasses.fields(options):
        if field.type in (int, float):
            words += [f"--{field.name.replace('_', '-')}", str(getattr(options, field.name))]
    return words


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(options, tmp_path):
    """SIGKILL in the middle: the state on disk is whole, and the weights come out the same to the bit."""
    options = dataclasses.replace(options, averaged=10, dropout=0.1, weight_decay=0.1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(words_of(options, whole)) == 0

    process = subprocess.Popen(
        [sys.executable, "-m", "biogpt", *words_of(options, broken)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    log = broken / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 5):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(broken / "state.pt", weights_only=True)["progress"]["step"]
    assert 0 < reached < options.steps

    assert main(words_of(options, broken)) == 0
    one, other = (torch.load(out / "state.pt", weights_only=True) for out in (whole, broken))
    assert one["progress"]["step"] == other["progress"]["step"] == options.steps
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name


def test_a_folder_of_another_run_is_refused(options):
    pretrain(dataclasses.replace(options, tokens=64 * 4))
    with pytest.raises(ValueError, match="width was 16, now 32"):
        pretrain(dataclasses.replace(options, width=32))
    with pytest.raises(ValueError, match="decay began at step"):
        pretrain(dataclasses.replace(options, tokens=64 * 8))


@pytest.mark.parametrize("part", [0, 0.5, 0.999])
def test_a_damaged_state_is_refused_by_name(options, part):
    short = dataclasses.replace(options, tokens=64 * 4)
    pretrain(short)
    state = options.out / "state.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(
        ValueError, match=r"state\.pt is damaged or cut short: delete it to begin anew, or choose"
    ):
        pretrain(short)


@pytest.mark.parametrize("size", [300, 1000, 5000, 20000, 50000])
def test_a_run_that_met_a_full_disk_goes_on_once_there_is_room(options, full_disk, size):
    """The smaller the disk, the earlier it is full: at vocabulary, tokens, checkpoint or state."""
    short = dataclasses.replace(options, tokens=64 * 4)
    with (
        full_disk(size),
        pytest.raises(OSError, match=r"could not be written to .*; free some space, or choose"),
    ):
        pretrain(short)
    assert (pretrain(short) / "training.json").is_file()
    assert not [path for path in options.out.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("change", [{"warmup": 0}, {"tokens": 1}, {"tokens": 64 * 4, "decay": 0.01}])
def test_the_least_there_can_be_of_a_schedule(options, change):
    chosen = dataclasses.replace(options, **{"tokens": 64 * 4} | change)
    rates = [chosen.learning_rate(step) for step in range(chosen.steps + 1)]
    assert rates[-1] == 0
    assert all(0 < rate <= 1 for rate in rates[:-1])
    assert (pretrain(chosen) / "training.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens is 0; expected at least 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0; expected at least 1"),
        ({"processes": 0}, "processes is 0; expected at least 1"),
        ({"warmup": -1}, "warmup is -1; expected 0 or more"),
        ({"seed": -1}, "seed is -1; expected 0 to"),
        ({"width": 15}, "width is 15; expected a multiple of heads, 2"),
        ({"decay": 0.0}, "decay is 0.0"),
        ({"positions": 31}, "positions 31"),
        ({"batch_tokens": 65}, "batch_tokens is 65"),
        ({"heldout": Path("nowhere.txt")}, "nowhere.txt is not a file"),
        ({"texts": ()}, "texts is empty"),
    ],
)
def test_options_that_cannot_work_are_refused(options, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dataclasses.replace(options, **change)


def test_a_file_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        read_texts(tmp_path / "empty.txt")
    (tmp_path / "broken.txt.xz").write_bytes(lzma.compress(b"gene\n" * 1000)[:-20])
    with pytest.raises(ValueError, match=r"broken\.txt\.xz is damaged"):
        read_texts(tmp_path / "broken.txt.xz")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        read_texts(tmp_path / "latin.txt")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("gene\ncell\n", encoding="utf-8-sig")
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress((tmp_path / "a.txt").read_bytes()))
    assert read_texts(tmp_path / "a.txt") == read_texts(tmp_path / "a.txt.xz") == ["gene", "cell"]
