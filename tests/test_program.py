"""The compiled step: every bit of the step that it stands for, for every kind of layer that is served."""

import gc
import pickle
import weakref

import pytest
import torch

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.model.cache import KVCache
from biogpt.model.config import BioGptConfig
from biogpt.runners import layers as quantize
from biogpt.runners.byte_cache import Int8KVCache
from biogpt.runners.layers import Int8Kernel, pack
from biogpt.runners.step import _programs, step_program


def kernels() -> list[Int8Kernel]:
    every = [Int8Kernel(name, levels) for name in ("fbgemm", "onednn") for levels in (127, 255)]
    return [kernel for kernel in every if kernel.is_exact]


@pytest.fixture
def config(tiny_config) -> BioGptConfig:
    return tiny_config(hidden_size=64, num_attention_heads=4, intermediate_size=160)


def steps_equal(
    model: BioGptForCausalLM, numbers: tuple[int, ...] = (1, 2, 5), kind: type[KVCache] = KVCache
) -> None:
    body = model.biogpt.eval()
    program = step_program(body, kind)
    assert program != body.step, "it compiled"
    for rows in numbers:
        pairs = [[kind(model.config, 1, 20) for _ in range(rows)] for _ in range(2)]
        for position in range(12):
            ids = torch.arange(4, 4 + rows) + position
            if position < 3:  # the rows do not all begin at once
                ids, caches = ids[:1], [each[:1] for each in pairs]
            else:
                caches = pairs
            wanted, found = body.step(ids, caches[0]), program(ids, caches[1])
            assert torch.equal(found, wanted)
        assert wanted.std() > 0.1
        for one, other in zip(*pairs, strict=True):
            assert one.length == other.length
            for mine, yours in zip(one.copy(0, one.length), other.copy(0, one.length), strict=True):
                assert torch.equal(mine, yours)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_plain_layers(activation, config, lively) -> None:
    model = lively(BioGptForCausalLM, BioGptConfig(**vars(config) | {"hidden_act": activation}))
    steps_equal(model)


@pytest.mark.parametrize("kernel", kernels(), ids=str)
def test_int8_layers(kernel, config, lively, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(quantize, "int8_kernel", lambda: kernel)
    lively(BioGptForCausalLM, config).save_pretrained(tmp_path)
    model = BioGptForCausalLM.from_pretrained(tmp_path, device="cpu", precision="int8")
    for kind in (KVCache, Int8KVCache):
        steps_equal(model, kind=kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers(dtype, config, lively, monkeypatch) -> None:
    if not quantize._can_pack(dtype):
        pytest.skip(f"this build of torch packs no {dtype} weights here")
    monkeypatch.setattr(quantize, "SMALL", 0)
    model = lively(BioGptForCausalLM, config).to(dtype)
    pack(model)
    body = model.biogpt
    caches = [[KVCache(config, 1, 8, dtype=dtype)] for _ in range(2)]
    program = step_program(body)
    assert program != body.step, "it compiled"
    for token in (5, 9, 11):
        ids = torch.tensor([token])
        assert torch.equal(program(ids, caches[0]), body.step(ids, caches[1]))


def test_rows_of_several_beams_and_padding(config, lively) -> None:
    body = lively(BioGptForCausalLM, config).biogpt.eval()
    ids = torch.tensor([5, 9, 11, 4, 0, 0])
    caches = [[KVCache(config, rows, 8) for rows in (3, 1)] for _ in range(2)]
    program = step_program(body)
    for _ in range(3):
        assert torch.equal(program(ids, caches[0])[:4], body.step(ids, caches[1])[:4])


def test_what_does_not_compile_is_stepped_as_it_is(config, lively, monkeypatch, caplog) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.jit, "script", refuse)
    body = lively(BioGptForCausalLM, config).biogpt.eval()
    assert step_program(body) == body.step
    assert "do not compile" in caplog.text


def test_a_program_is_kept_until_a_layer_changes(config, lively) -> None:
    model = lively(BioGptForCausalLM, config)
    steps_equal(model, (1,))
    first = _programs[model.biogpt][1]
    steps_equal(model, (1,))
    assert _programs[model.biogpt][1] is first
    with torch.no_grad():
        model.biogpt.layers[0].fc1.weight.mul_(-2)
    steps_equal(model, (1,))
    model.biogpt.layers[1].fc2 = lively(BioGptForCausalLM, config).biogpt.layers[0].fc2
    steps_equal(model, (1,))
    assert _programs[model.biogpt][1] is not first
    model.half().float()
    steps_equal(model, (1,))


def test_a_kept_program_neither_keeps_its_model_nor_keeps_it_from_being_copied(config, lively) -> None:
    model = lively(BioGptForCausalLM, config)
    steps_equal(model, (1,))
    assert len(pickle.dumps(model)) > 1000
    body = weakref.ref(model.biogpt)
    assert body() in _programs
    del model
    gc.collect()
    assert body() is None
