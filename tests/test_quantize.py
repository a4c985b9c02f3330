"""int8 and packed layers.

Exact sums, rows that keep to themselves, folders that come back, and what rounding costs.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from engines import engine_of

from biogpt.checkpoint import pretrained as checkpoint
from biogpt.checkpoint.pretrained import (
    BioGptForCausalLM,
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptTokenizer,
)
from biogpt.generation.search import GenerationOptions, start_search
from biogpt.model.config import BioGptConfig
from biogpt.runners import kernels as kernels_module
from biogpt.runners.byte_cache import Int8KVCache
from biogpt.runners.kernels import Int8Kernel, PlainProduct, are_rounded, in_steps
from biogpt.runners.layers import Int8Linear, PackedLinear, can_pack, quantize
from biogpt.runners.packing import pack
from biogpt.runners.precision import bfloat16_pays, choose_precision, describe
from biogpt.runners.speeds import int8_kernel
from biogpt.runners.steady import SIZES, is_steady_alone, steady_sizes
from biogpt.serving.engine import Engine, Slot
from biogpt.serving.text_generator import TextGenerator
from biogpt.tasks.entities import EntityRecognizer
from biogpt.training.corpus import read_texts
from biogpt.training.metrics import entity_scores
from biogpt.training.objectives import EntityCorpus

HEADS = (BioGptForCausalLM, BioGptForTokenClassification, BioGptForSequenceClassification)
IDS = torch.tensor([[2, 5, 9, 11, 30, 7], [2, 8, 6, 1, 1, 1]])
MASK = (IDS != 1).long()


def kernels() -> list[Int8Kernel]:
    """All that are exact here, whichever is the fastest: the same list in every process of one machine."""
    every = [Int8Kernel(name, levels) for name in ("fbgemm", "onednn") for levels in (127, 255)]
    return [Int8Kernel("plain", 255), *(kernel for kernel in every if kernel.is_exact)]


@pytest.fixture
def wide(tiny_config) -> BioGptConfig:
    return tiny_config(
        hidden_size=64, num_attention_heads=4, intermediate_size=160, max_position_embeddings=128
    )


def test_a_kernel_that_cuts_sums_off_is_not_taken(monkeypatch) -> None:
    """As the 16-bit additions of CPUs without VNNI do at 8 bits a row."""

    def cut_off(product, counts):
        pairs = (counts[:, None] * product.packed.float()).unflatten(-1, (-1, 2)).sum(-1)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(-1)

    monkeypatch.setattr(PlainProduct, "sums", cut_off)
    assert not Int8Kernel("plain", 255).is_exact
    assert Int8Kernel("plain", 127).is_exact, "7 bits cannot overflow"


@pytest.mark.parametrize("kernel", kernels(), ids=str)
def test_an_int8_layer_is_the_float_layer_but_for_rounding(kernel) -> None:
    """Within the bound that follows from a step of each input and half a step of each weight."""
    assert kernel.is_exact
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 96, generator=random), torch.randn(48, generator=random)
    hidden = torch.randn(2, 5, 96, generator=random) + 0.5
    hidden[1, 3] = 7.0  # no range at all
    layer = Int8Linear(*quantize(weight), bias, ("fc1",), kernel)
    low, high = hidden.amin(-1, keepdim=True).clamp_max(0), hidden.amax(-1, keepdim=True).clamp_min(0)
    input_error = (high - low) / kernel.levels  # half for the value, half for a 0 that is a step itself
    weight_error = weight.abs().amax(1) / 127 / 2
    bound = (
        input_error * weight.abs().sum(1) + (hidden.abs() + input_error).sum(-1, keepdim=True) * weight_error
    )
    error = (layer(hidden) - F.linear(hidden, weight, bias)).abs()
    assert (error <= bound + 1e-4).all()
    assert error.mean() < 0.1 * bound.mean()
    assert torch.equal(layer.weight, quantize(weight)[0])


@pytest.mark.parametrize("levels", [127, 255])
def test_the_steps_of_a_row_are_those_that_torch_chooses(levels) -> None:
    """To the bit: a row alone is quantised by torch, a row in company by us."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 64, generator=random) * torch.logspace(-1, 6, 4000)[:, None]
    rows += torch.randn(4000, 1, generator=random) * rows.amax(
        1, keepdim=True
    )  # around 0, above it, below it
    special = torch.tensor([[0.0], [7.0], [-7.0], [1e-6], [-1e-30]]) * torch.linspace(1, 0.5, 64)
    for part in (rows, special, *rows[:50, None], *special[:, None]):
        _, zero, step = in_steps(part, levels)
        found = torch.cat([step, zero], dim=1)
        wanted = [torch._choose_qparams_per_tensor(row, levels < 255) for row in part]
        assert torch.equal(found, torch.tensor(wanted))


def test_a_row_that_is_rounded_in_another_way_is_noticed(monkeypatch) -> None:
    """The call for one row is left out on a machine where it gives other bits than the kernel for many."""
    kernel = int8_kernel()
    if not kernel.has_one_call:
        pytest.skip(f"{kernel} has no call for one row")
    right = kernels_module.in_steps

    def rounded_twice(rows, levels):
        _, zero, step = right(rows, levels)
        return (rows * step.reciprocal()).round_().add_(zero).clamp_(0, 255), zero, step

    monkeypatch.setattr(kernels_module, "in_steps", rounded_twice)
    kernels_module._one_call_agrees.cache_clear()
    assert not kernel.has_one_call
    kernels_module._one_call_agrees.cache_clear()


@pytest.mark.usefixtures("every_core")
def test_an_int8_row_is_the_same_in_any_company(wide, lively) -> None:
    layer = Int8Linear(*quantize(torch.randn(64, 64)), torch.randn(64), ("fc1",), int8_kernel())
    rows = torch.randn(64, 64) * torch.logspace(-2, 2, 64)[:, None]
    full = layer(rows)
    for size in range(1, 65, 7):
        for first in (0, 11, 64 - size):
            some = slice(first, first + size)
            assert torch.equal(layer(rows[some]), full[some])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_sums_that_float32_would_round_are_those_of_the_call_for_one_row() -> None:
    """A kernel for many rows gives float32 sums; that for one takes off the zero step before it rounds."""
    random = torch.Generator().manual_seed(0)
    weight = torch.full((64, 4096), 127, dtype=torch.int8)
    weight[:, ::2] = -127
    weight[:, :64] = torch.randint(-127, 128, (64, 64), generator=random)
    layer = Int8Linear(weight, torch.ones(64), torch.zeros(64), ("fc2",), int8_kernel())
    if not layer.one_call:
        pytest.skip(f"{int8_kernel()} has no call for one row")
    rows = torch.rand(12, 4096, generator=random) * 0.3 - 0.15
    rows[:, ::2] -= 0.85  # the steps of each row meet weights of one sign
    counts, _, _ = in_steps(rows, layer.levels)
    assert are_rounded(layer.product.sums(counts))
    alone = torch.cat([layer(row) for row in rows.split(1)])
    assert torch.equal(layer(rows), alone)
    assert torch.equal(torch.jit.script(layer)(rows), alone)


def int8_copy(model, folder: Path):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, device="cpu", precision="int8")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tied", [True, False])
def test_an_int8_folder_comes_back_bit_for_bit(head, tied, wide, lively, tmp_path) -> None:
    config = BioGptConfig(**{**vars(wide), "tie_word_embeddings": tied})
    model = int8_copy(lively(head, config), tmp_path / "float")
    model.save_pretrained(tmp_path / "int8")
    again = head.from_pretrained(tmp_path / "int8", device="cpu", precision="int8")
    with torch.inference_mode():
        logits = model(IDS, attention_mask=MASK).logits
        assert torch.equal(again(IDS, attention_mask=MASK).logits, logits)
        floats = head.from_pretrained(tmp_path / "int8", device="cpu", precision="float32")
        kept = MASK.bool() if logits.ndim == 3 else slice(None)
        difference = (floats(IDS, attention_mask=MASK).logits - logits)[kept]
        assert difference.square().mean() < 0.01 * logits[kept].square().mean()
    sizes = [
        sum(p.stat().st_size for p in (tmp_path / name).glob("*.safetensors")) for name in ("float", "int8")
    ]
    assert sizes[1] < 0.45 * sizes[0]


def test_other_software_refuses_an_int8_folder(wide, lively, tmp_path) -> None:
    """It would otherwise read whole numbers as weights, without their scales."""
    transformers = pytest.importorskip("transformers")
    int8_copy(lively(BioGptForCausalLM, wide), tmp_path / "float").save_pretrained(tmp_path / "int8")
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        transformers.BioGptForCausalLM.from_pretrained(tmp_path / "int8")


def test_int8_is_for_cpus_and_for_inference(wide, lively, tmp_path) -> None:
    lively(BioGptForTokenClassification, wide).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'int8', which is for inference"):
        BioGptForTokenClassification.from_pretrained(
            tmp_path, device="cpu", precision="int8", labels=["O", "B-X"]
        )
    with pytest.raises(ValueError, match="'int8', which is for a CPU"):
        choose_precision("int8", torch.device("cuda"))


def test_auto_is_for_training_unless_a_model_is_only_served(wide, lively, tmp_path, monkeypatch) -> None:
    lively(BioGptForCausalLM, wide).save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(
        checkpoint, "choose_precision", lambda *values: asked.append(values[3]) or choose_precision(*values)
    )
    assert (
        BioGptForCausalLM.from_pretrained(tmp_path, device="cpu").precision.reason == "float32, for training"
    )
    BioGptForCausalLM.from_pretrained(tmp_path, device="cpu", trainable=False)
    BioGptForCausalLM.from_pretrained(tmp_path, device="cpu", precision="int8")
    assert asked == [True, False, False]


def test_auto_keeps_a_small_model_exact_and_says_why() -> None:
    cpu = torch.device("cpu")
    small = choose_precision("auto", cpu, parameters=7_000_000)
    assert (small.name, small.int8) == ("float32", False)
    assert "so small" in small.reason
    assert choose_precision("auto", cpu, parameters=10**9, trainable=True).name == "float32"
    large = choose_precision("auto", cpu, parameters=10**9)
    assert large.name in large.reason
    assert describe(cpu, large.name).startswith(f"{large.name} · CPU, ")


@pytest.fixture
def packing() -> Callable[[torch.nn.Module], None]:
    """``pack``; the test is skipped where nothing can be packed."""
    if not can_pack(torch.float32):
        pytest.skip("this build of torch packs no weights")
    return pack


@pytest.mark.parametrize("head", HEADS)
def test_packed_layers_compute_and_save_what_plain_ones_do(head, wide, lively, packing, tmp_path) -> None:
    model = lively(head, wide)
    layers = 4 * wide.num_hidden_layers + (head is BioGptForCausalLM)
    model.save_pretrained(tmp_path / "plain")
    with torch.inference_mode():
        wanted = model(IDS, attention_mask=MASK).logits
        packing(model)
        assert sum(isinstance(module, PackedLinear) for module in model.modules()) == layers
        torch.testing.assert_close(model(IDS, attention_mask=MASK).logits, wanted, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "packed")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "packed" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def made(engine: Engine, requests: list) -> list[list]:
    slots = []

    for ids, options in requests:
        slots.append(Slot(start_search(engine.runner.config, ids, options)))
        engine.submit(slots[-1])
        engine.step()
    while engine.has_work:
        engine.step()
    results = []
    for slot in slots:
        results.append([])
        while (result := slot.results.get()) is not None:
            results[-1].append(result)
    return results


@pytest.mark.usefixtures("every_core")
@pytest.mark.parametrize("precision", ["int8", "float32", "plain"])
def test_mini_gives_a_request_the_same_bits_in_any_company(precision) -> None:
    """Eighteen requests that join one after another, against each alone; equal logprobs mean equal logits."""
    name = "float32" if precision == "plain" else precision
    generator = TextGenerator.from_pretrained("mini", device="cpu", precision=name)
    if precision == "plain":  # as somebody who made the model has it
        model = BioGptForCausalLM.from_pretrained("mini", device="cpu", precision=name)
        generator = TextGenerator(model, generator.tokenizer)
    prompts = ["Aspirin", "The BRCA1 gene is", "", "We report a case of", "Insulin " * 40, "IL-2 and TNF"]
    requests = [
        (
            generator.tokenizer.encode(prompt).ids,
            GenerationOptions(max_new_tokens=12, seed=7, **kind),
        )
        for prompt in prompts
        for kind in ({"top_logprobs": 5}, {"temperature": 0.9}, {"num_beams": 3})
    ]
    together = made(engine_of(generator.model), requests)
    assert together == [made(engine_of(generator.model), [alone])[0] for alone in requests]
    if precision == "int8":
        assert steady_sizes(generator.model) == SIZES
        assert is_steady_alone(generator.model, SIZES)


@pytest.mark.usefixtures("every_core")
@pytest.mark.slow
def test_two_thousand_tokens_in_float32_are_the_same_in_any_company() -> None:
    """Greedy and sampled, prompts of one chunk and of two, joining as others end.

    Guests are cancelled on the way.
    """
    generator = TextGenerator.from_pretrained("mini", device="cpu", precision="float32")
    words = generator.tokenizer.encode("Patients with acute renal failure received carboplatin. " * 20).ids
    requests = [
        (
            words[: 2 + 12 * number],
            GenerationOptions(
                max_new_tokens=128, min_new_tokens=128, temperature=0.9 * (number % 2), seed=number
            ),
        )
        for number in range(16)
    ]

    def ids_of(most: int, chosen: list, guests: int) -> list[list[int]]:
        engine = engine_of(generator.model, max_running=most)
        slots = [Slot(start_search(engine.runner.config, *request)) for request in chosen]
        others = [
            Slot(start_search(engine.runner.config, words[:150], requests[0][1])) for _ in range(guests)
        ]
        for slot in (*others[::2], *slots, *others[1::2]):
            engine.submit(slot)
        steps = 0
        while engine.has_work:
            engine.step()
            steps += 1
            if steps % 16 == 0 and others:
                others.pop().cancelled = True
        return [[token.id for token in iter(slot.results.get, None)] for slot in slots]

    many = ids_of(16, requests, guests=8)
    assert sum(map(len, many)) == 2_048
    assert many[1::2] == ids_of(5, requests[::-2], guests=0)[::-1]
    assert many[:2] == [ids_of(1, [request], guests=0)[0] for request in requests[:2]]


def test_an_int8_model_answers_where_gradients_are_on() -> None:
    """As callers do who forget ``torch.no_grad()``."""
    model = BioGptForCausalLM.from_pretrained("mini", device="cpu", precision="int8")
    row = torch.tensor([[2, 5, 9]])
    logits = model(row).logits
    with torch.inference_mode():
        assert torch.equal(logits.detach(), model(row).logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "kl", "agreement", "bits"), [("int8", 0.012, 0.93, 0.005), ("bfloat16", 0.004, 0.96, 0.002)]
)
def test_what_rounding_costs_mini(precision, kl, agreement, bits, shared_data) -> None:
    """On 20 held-out abstracts, against float32, as they are served.

    Assets/benchmarks states what was found on 40.

    KL divergence a token, how often the likeliest token is the same, and bits a byte.
    """
    if precision == "bfloat16" and not bfloat16_pays("cpu"):
        pytest.skip("this CPU computes in bfloat16 far too slowly")
    tokenizer = BioGptTokenizer.from_pretrained("mini")
    exact, rounded = (
        BioGptForCausalLM.from_pretrained("mini", device="cpu", precision=name)
        for name in ("float32", precision)
    )
    sums = torch.zeros(3)
    count = size = 0
    for text in read_texts(shared_data / "text" / "heldout.txt.xz")[:20]:
        row = torch.tensor([tokenizer.encode(text).ids[:512]])
        kind = Int8KVCache if precision == "int8" and Int8KVCache.fits(exact.config) else None
        with torch.inference_mode():
            p = exact(row).logits[0].log_softmax(-1)
            cache = kind and kind(rounded.config, 1, row.shape[1])
            q = rounded(row, past_key_values=cache).logits[0].float().log_softmax(-1)
        lost = F.nll_loss(q[:-1], row[0, 1:], reduction="sum") - F.nll_loss(
            p[:-1], row[0, 1:], reduction="sum"
        )
        sums += torch.stack([(p.exp() * (p - q)).sum(), (p.argmax(-1) == q.argmax(-1)).sum(), lost])
        count += row.numel()
        size += len(text.encode())
    found = {
        "kl": float(sums[0]) / count,
        "agreement": float(sums[1]) / count,
        "bits": float(sums[2]) / size / math.log(2),
    }
    assert 0 < found["kl"] < kl, found
    assert agreement < found["agreement"] < 1, found
    assert found["bits"] < bits, found


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_what_rounding_costs_entities(precision, shared_data) -> None:
    """Strict F1 on 500 sentences of a test split."""
    if precision == "bfloat16" and not bfloat16_pays("cpu"):
        pytest.skip("this CPU computes in bfloat16 far too slowly")
    corpus = EntityCorpus.read(shared_data / "ner/ncbi-disease/test.tsv")
    gold = [text.spans for text in corpus.texts[:500]]
    f1 = {}
    for name in ("float32", precision):
        recognizer = EntityRecognizer.from_pretrained("mini-ner", device="cpu", precision=name)
        found = recognizer.batch([text.text for text in corpus.texts[:500]])
        diseases = [[entity for entity in each if entity.label == "Disease"] for each in found]
        f1[name] = entity_scores(gold, diseases)["micro"].f1
    assert abs(f1[precision] - f1["float32"]) < 0.015, f1


def test_loading_int8_leaves_what_another_model_has_learned_from_the_same_file(tmp_path, tiny_config) -> None:
    """Both map the file; memory given back while int8 is made must be the loading's own."""
    BioGptForCausalLM(tiny_config()).save_pretrained(tmp_path)
    trained = BioGptForCausalLM.from_pretrained(tmp_path, device="cpu", precision="float32")
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(1.0)
    learned = {name: value.clone() for name, value in trained.state_dict().items()}
    BioGptForCausalLM.from_pretrained(tmp_path, device="cpu", precision="int8", trainable=False)
    assert all(torch.equal(value, learned[name]) for name, value in trained.state_dict().items())
