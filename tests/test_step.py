"""The scripted step: every bit of the step that it stands for, for every kind of layer that is served."""

import pytest
import torch

from biogpt.checkpoint.pretrained import BioGptForCausalLM
from biogpt.model.cache import KVCache
from biogpt.model.config import BioGptConfig
from biogpt.runners import packing
from biogpt.runners.byte_cache import BYTES, Int8KVCache
from biogpt.runners.float_cache import PAGED, FloatKVCache
from biogpt.runners.kernels import Int8Kernel
from biogpt.runners.layers import Int8Linear, PackedLinear, can_pack
from biogpt.runners.packing import pack
from biogpt.runners.step import FLOATS, DecodeStep

KINDS = {KVCache: FLOATS, Int8KVCache: BYTES, FloatKVCache: PAGED}
SERVED = [KVCache, FloatKVCache]  # of float models: what any device has, and what a CPU's runner takes


def kernels() -> list[Int8Kernel]:
    every = [Int8Kernel(name, levels) for name in ("fbgemm", "onednn") for levels in (127, 255)]
    return [kernel for kernel in every if kernel.is_exact]


@pytest.fixture
def config(tiny_config) -> BioGptConfig:
    return tiny_config(hidden_size=64, num_attention_heads=4, intermediate_size=160)


def steps_equal(
    model: BioGptForCausalLM, numbers: tuple[int, ...] = (1, 2, 5), cache: type[KVCache] = KVCache
) -> None:
    """The scripted step gives the bits of the plain one, with rows that do not all begin at once."""
    body = model.biogpt.eval()
    kind = KINDS[cache]
    plain, scripted = DecodeStep(body, kind), DecodeStep(body, kind, scripted=True)
    assert not isinstance(scripted._layers, torch.nn.Module), "it compiled"
    for rows in numbers:
        pairs = [[cache(model.config, 1, 20) for _ in range(rows)] for _ in range(2)]
        for position in range(12):
            ids = torch.arange(4, 4 + rows) + position
            caches = pairs
            if position < 3:
                ids, caches = ids[:1], [row_caches[:1] for row_caches in pairs]
            wanted, found = plain(ids, caches[0]), scripted(ids, caches[1])
            assert torch.equal(found, wanted)
        assert wanted.std() > 0.1
        for one, other in zip(*pairs, strict=True):
            assert one.length == other.length
            for mine, yours in zip(one.copy(0, one.length), other.copy(0, one.length), strict=True):
                assert torch.equal(mine, yours)


@pytest.mark.parametrize("cache", SERVED)
def test_steps_of_rows_of_any_length_are_one_pass_over_each(cache, config, lively) -> None:
    """The step is the decoder's own arithmetic: each row gets what the decoder gives for its whole text."""
    model = lively(BioGptForCausalLM, config)
    step = DecodeStep(model.biogpt, KINDS[cache])
    lengths = (1, 4, 9)
    random = torch.Generator().manual_seed(0)
    texts = [torch.randint(4, 40, (length + 3,), generator=random) for length in lengths]
    caches = [cache(config, 1, 16) for _ in lengths]
    with torch.inference_mode():
        for text, own, length in zip(texts, caches, lengths, strict=True):
            model.biogpt(text[None, :length], past_key_values=own)
        for position in range(3):
            ids = torch.stack([text[length + position] for text, length in zip(texts, lengths, strict=True)])
            found = step(ids, caches)
            for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
                wanted = model.biogpt(text[None, : length + position + 1]).last_hidden_state[0, -1]
                torch.testing.assert_close(found[row], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", SERVED)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_plain_layers(activation, cache, config, lively) -> None:
    model = lively(BioGptForCausalLM, BioGptConfig(**vars(config) | {"hidden_act": activation}))
    steps_equal(model, cache=cache)


@pytest.mark.parametrize("kernel", kernels(), ids=str)
def test_int8_layers(kernel, config, lively, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(packing, "int8_kernel", lambda: kernel)
    lively(BioGptForCausalLM, config).save_pretrained(tmp_path)
    model = BioGptForCausalLM.from_pretrained(tmp_path, device="cpu", precision="int8")
    for cache in KINDS:
        steps_equal(model, cache=cache)


@pytest.mark.parametrize("cache", SERVED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers(dtype, cache, config, lively) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this build of torch packs no {dtype} weights here")
    model = lively(BioGptForCausalLM, config).to(dtype)
    pack(model)
    steps_equal(model, (1, 4), cache)


@pytest.mark.parametrize("cache", SERVED)
def test_rows_of_several_beams_and_padding(cache, config, lively) -> None:
    body = lively(BioGptForCausalLM, config).biogpt.eval()
    ids = torch.tensor([5, 9, 11, 4, 0, 0])
    caches = [[cache(config, rows, 8) for rows in (3, 1)] for _ in range(2)]
    kind = KINDS[cache]
    plain, scripted = DecodeStep(body, kind), DecodeStep(body, kind, scripted=True)
    for _ in range(3):
        assert torch.equal(scripted(ids, caches[0])[:4], plain(ids, caches[1])[:4])


def test_what_does_not_compile_is_stepped_as_it_is(config, lively, monkeypatch, caplog) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.jit, "script", refuse)
    body = lively(BioGptForCausalLM, config).biogpt.eval()
    step = DecodeStep(body, scripted=True)
    assert "do not compile" in caplog.text
    ids, caches = torch.tensor([5]), [KVCache(config, 1, 8) for _ in range(2)]
    assert torch.equal(step(ids, caches[:1]), DecodeStep(body)(ids, caches[1:]))


@pytest.mark.parametrize("layer", [Int8Linear, PackedLinear])
def test_compiling_reads_no_weights_back(layer, config, lively, monkeypatch, tmp_path) -> None:
    """It would take seconds of those to the first token."""

    def read_back(_: torch.nn.Module) -> None:
        pytest.fail("the weights were read back")

    model = lively(BioGptForCausalLM, config)
    if layer is Int8Linear:
        model.save_pretrained(tmp_path)
        model = BioGptForCausalLM.from_pretrained(tmp_path, device="cpu", precision="int8")
    else:
        pack(model)
    assert any(isinstance(module, layer) for module in model.modules())
    monkeypatch.setattr(layer, "weight", property(read_back))
    DecodeStep(model.biogpt.eval(), scripted=True)
