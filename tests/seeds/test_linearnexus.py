"""The requirement document "linearnexus": its block protocol, its names, its shapes and the parities it asks
for.  Its commands are in tests/seeds/test_commands.py; numbers and whole models in
tests/models/test_lm_model.py."""

import importlib
import inspect
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest

from nn import Tensor, ops
from nn.layers import registry
from nn.layers.attention import AttentionSettings, CausalSelfAttention, KVCache, MLACache
from nn.layers.conv import depthwise_conv1d_causal
from nn.layers.gating import low_rank_project, normalize_gate_logits
from nn.layers.layer_block import LayerBlock
from nn.layers.mode import KernelMode, select_mode
from nn.layers.padding import compute_unpadded_indices, pad, unpad
from nn.layers.ssm import (
    ConvState,
    MambaBlock,
    MambaKernelInputs,
    MambaKernelParams,
    MambaKernelState,
    MambaReferenceKernel,
    MambaSettings,
    MambaState,
    RecurrentState,
)
from nn.models.lm_model import (
    BLOCKS,
    GPT_SMALL,
    GPT_TINY,
    MAMBA_SMALL,
    LMModel,
    ModelConfig,
    ModelState,
    _create_block,
    create_model,
)
from nn.tensor import Array, no_grad
from tests.blocks.harness import close, shaken

PROTOCOL = (                                                   # two lines there
    "def __call__(self, x: jax.Array, *, state: Optional[BlockState] = None, "
    "mask: Optional[jax.Array] = None, mode: Optional[str] = None) "
    "-> tuple[jax.Array, Optional[BlockState]]:\n"
    "    ...\n")

# Where the names of its modules are here.
NAMES = {
    "nn.models.lm_model": "ModelConfig create_model LMModel ModelState _create_block GPT_SMALL MAMBA_SMALL",
    "nn.layers.attention": "CausalSelfAttention AttentionBlock KVCache MultiHeadLatentAttention MLABlock "
                           "MLACache",
    "nn.layers.ssm": "MambaBlock MambaState selective_scan_ref ConvState RecurrentState MambaReferenceKernel "
                     "MambaKernelParams MambaKernelInputs MambaKernelState",
    "nn.layers": "Embedding RMSNorm",
    "nn.layers.conv": "depthwise_conv1d_causal",
    "nn.layers.padding": "pad unpad compute_unpadded_indices",
    "nn.layers.gating": "low_rank_project normalize_gate_logits",
    "nn.layers.mode": "KernelMode select_mode",
}


def random(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("module", "names"), NAMES.items())
def test_names(module: str, names: str) -> None:
    for name in names.split():
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


# ---- the block protocol ----


def test_block_protocol() -> None:
    """Every block takes x, and by keyword state, mask and mode, all None unless given."""
    names: dict[str, Any] = {"jax": SimpleNamespace(Array=Array), "Optional": Optional, "BlockState": Any}
    exec(PROTOCOL, names)
    wanted = list(inspect.signature(names["__call__"]).parameters.values())
    classes = [registry.find("mixer", name) for name in registry.names("mixer")]
    for cls in [*classes, LayerBlock, *BLOCKS.values(), LMModel]:
        found = inspect.signature(cls.forward).parameters
        for parameter in wanted[2:]:
            assert found[parameter.name].kind is parameter.kind, (cls, parameter.name)
            assert found[parameter.name].default is parameter.default is None
        assert callable(cls.init_state)


@pytest.mark.parametrize("name", ["attention", "mla", "mamba", "mamba2", "deltanet"])
def test_blocks_are_called_uniformly(name: str) -> None:
    """[batch, seq, hidden] in and out, and a state that continues"""
    config = ModelConfig(hidden_size=16, n_heads=4, n_layers=1, vocab_size=9, intermediate_size=8,
                         options={"mamba2": {"head_dim": 8}} if name == "mamba2" else {}, block_pattern=name)
    block = shaken(_create_block(name, config, dtype="float64"), 0)
    x = random(2, 7, 16, dtype="float64")
    with no_grad():
        y, state = block(Tensor(x), state=block.init_state(2), mask=np.ones((2, 7), bool), mode="chunk")
        assert (y.shape, block(Tensor(x))[1]) == ((2, 7, 16), None)
        step, _ = block(Tensor(x[:, :1]), state=state, mode="recurrent")
        both, _ = block(Tensor(np.concatenate([x, x[:, :1]], axis=1)))
    close(step.data, both.data[:, 7:], 1e-9)


def test_the_residual_is_inside() -> None:
    """With a mixer and a feed-forward of zeros, what comes out is what went in."""
    block = MambaBlock(MambaSettings(hidden_size=8))
    block.mixer.out_proj.weight.data = np.zeros((8, 16), np.float32)
    x = random(2, 3, 8)
    assert np.array_equal(block(Tensor(x))[0].data, x)


def test_model_composition() -> None:
    """GPT, Mamba and hybrids by ModelConfig.block_pattern; the blocks one behind the other are the model."""
    for pattern in ("attention", "mamba", ["mamba", "mamba", "attention"], "MMA"):
        config = GPT_TINY.replace(n_layers=3, block_pattern=pattern)
        model = create_model(config, rng=0)
        ids = np.arange(6)[None]
        with no_grad():
            logits, state = model(ids)
            x = model.embed_tokens(ids)
            for block in model.blocks:
                x, _ = block(x)
            close(model.logits(model.norm(x)).data, logits.data, 1e-5)
        assert isinstance(state, ModelState)
        assert len(model.blocks) == len(model.init_state(batch_size=4).block_states) == 3
    assert create_model("gpt-small") == (GPT_SMALL, LMModel)
    assert create_model("mamba-small")[0] is MAMBA_SMALL


# ---- modes ----


def test_modes() -> None:
    assert KernelMode("chunk") is KernelMode.CHUNK
    assert [select_mode(length) for length in (1, 64, 65)] == [
        KernelMode.RECURRENT, KernelMode.RECURRENT, KernelMode.CHUNK]
    assert select_mode(5, threshold=4) is KernelMode.CHUNK
    assert select_mode(500, mode="recurrent") is KernelMode.RECURRENT


@pytest.mark.parametrize("pattern", ["attention", "mamba", "mla", "MA"])
def test_chunk_and_recurrent_agree(pattern: str) -> None:
    """rtol 1e-4, whole models, in the presets' own initialisation"""
    model, ids = create_model("gpt-tiny", seed=0, block_pattern=pattern), np.arange(24).reshape(2, 12)
    with no_grad():
        chunk, _ = model(ids, mode="chunk")
        recurrent, state = None, model.init_state(2)
        for t in range(12):
            recurrent, state = model(ids[:, t : t + 1], state=state, mode="recurrent")
            np.testing.assert_allclose(recurrent.data[:, 0], chunk.data[:, t], rtol=1e-4, atol=1e-5)


# ---- states ----


def test_states_hold_what_they_are_said_to() -> None:
    cache = KVCache.zeros(2, 8, 1, 4)
    cache = cache.update(random(2, 1, 3, 4), random(2, 1, 3, 4, seed=1))
    assert (cache.keys.shape, cache.values.shape, cache.position) == ((2, 1, 3, 4), (2, 1, 3, 4), 3)
    mamba = MambaState.zeros(2, 16, 4, 3)
    assert isinstance(mamba.conv_state, ConvState)
    assert isinstance(mamba.ssm_state, RecurrentState)
    assert (mamba.conv_state.value.shape, mamba.ssm_state.value.shape) == ((2, 2, 16), (2, 16, 4))
    assert mamba.position == 0
    assert ConvState.zeros(2, 4, 6).value.shape == (2, 3, 6)
    assert MambaKernelState.zeros(2, 16, 4).ssm.shape == (2, 16, 4)
    model = LMModel(GPT_TINY.replace(block_pattern=["mla", "mamba"]))
    assert [type(each) for each in model.init_state(2).block_states] == [MLACache, MambaState]


def test_heads_are_shared_by_repetition() -> None:
    """n_kv_heads, n_rep: grouped attention is that of n_rep copies of each key/value head."""
    few = CausalSelfAttention(AttentionSettings(hidden_size=16, num_heads=4, num_kv_heads=2), dtype="float64")
    many = CausalSelfAttention(AttentionSettings(hidden_size=16, num_heads=4), dtype="float64")
    assert (few.n_heads, few.n_kv_heads, few.n_rep, many.n_rep) == (4, 2, 2, 1)
    weights = few.initialize(0).state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        heads = weights[name].reshape(2, 4, 16)
        weights[name] = np.repeat(heads, few.n_rep, axis=0).reshape(16, 16)
    many.load_state_dict(weights)
    x = Tensor(random(2, 5, 16, dtype="float64"))
    close(few(x)[0].data, many(x)[0].data, 1e-12)


def test_causal_masking_has_an_offset_for_cached_tokens() -> None:
    attention = CausalSelfAttention(AttentionSettings(hidden_size=16), dtype="float64").initialize(0)
    x = random(2, 9, 16, dtype="float64")
    with no_grad():
        whole, _ = attention(Tensor(x), mode="chunk")
        first, cache = attention(Tensor(x[:, :4]), state=attention.init_state(2))
        rest, cache = attention(Tensor(x[:, 4:]), state=cache, mode="recurrent")
    assert cache.position == 9
    np.testing.assert_allclose(np.concatenate([first.data, rest.data], axis=1), whole.data, rtol=1e-9)


# ---- the reference kernel ----


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_mamba_block_against_the_reference_kernel(mode: str) -> None:
    """rtol 1e-4, and chunk against recurrent"""
    block = MambaBlock(MambaSettings(hidden_size=8, state_size=4)).initialize(0)
    mixer, x = block.mixer, Tensor(random(2, 10, 8))
    with no_grad():
        y, _ = block(x, mode=mode)
        inner, gate = ops.split(mixer.in_proj(block.norm(x)), 16, 16)
        inner, _ = mixer.conv1d(inner)
        delta, b, c = mixer.select(inner)
        hidden, steps, gates = (ops.permute(z, 0, 2, 1) for z in (inner, delta, ops.silu(gate)))
        params = MambaKernelParams(a_log=mixer.A_log, d=mixer.D)
        inputs = MambaKernelInputs(hidden=hidden, delta=steps, B=b, C=c, gate=gates)
        kernel = MambaReferenceKernel(mode=mode)
        chunk, last = kernel.forward_chunk(params, inputs, None, chunk_size=4)
        recurrent, other = kernel.forward_recurrent(params, inputs, None)
        np.testing.assert_allclose(chunk.data, recurrent.data, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(last.ssm.data, other.ssm.data, rtol=1e-4, atol=1e-6)
        expected = x + mixer.out_proj(ops.permute(recurrent, 0, 2, 1))
    np.testing.assert_allclose(y.data, expected.data, rtol=1e-4, atol=1e-6)


# ---- helpers ----


def test_convolution_with_its_cache() -> None:
    """depthwise_conv1d_causal(inputs, weight, bias, cache=None)"""
    inputs, weight, bias = random(2, 7, 3), random(3, 4, seed=1), random(3, seed=2)
    whole, _ = depthwise_conv1d_causal(Tensor(inputs), Tensor(weight), Tensor(bias), cache=None)
    padded = np.concatenate([np.zeros((2, 3, 3), np.float32), inputs], axis=1)
    expected = bias + sum(padded[:, j : j + 7] * weight[:, j] for j in range(4))
    close(whole.data, expected, 1e-5)
    _, cache = depthwise_conv1d_causal(Tensor(inputs[:, :5]), Tensor(weight), Tensor(bias))
    rest, _ = depthwise_conv1d_causal(Tensor(inputs[:, 5:]), Tensor(weight), Tensor(bias), cache)
    close(rest.data, expected[:, 5:], 1e-5)


def test_padding_and_gates() -> None:
    mask = np.array([[0, 1, 1], [1, 1, 1]], bool)
    indices, cu_seqlens = compute_unpadded_indices(mask)
    x = random(2, 3, 4)
    assert cu_seqlens.tolist() == [0, 2, 5]
    assert np.array_equal(pad(unpad(x, indices), indices, 2, 3), x * mask[:, :, None])
    low, wide = random(2, 4, seed=1), random(5, 2, seed=2)
    projected = low_rank_project(Tensor(x), [Tensor(low), Tensor(wide)], activation=None)
    close(projected.data, x @ low.T @ wide.T, 1e-5)
    gates = normalize_gate_logits(Tensor(x), normalizer=2.0, clip_range=(-0.4, -0.1)).data
    close(gates, np.clip(-np.log1p(np.exp(-x)) / 2.0, -0.4, -0.1), 1e-5)


def test_parameters_have_a_value_and_a_gradient() -> None:
    """self.conv_weight.value"""
    mixer = MambaBlock(MambaSettings(hidden_size=8)).mixer
    weight = mixer.conv1d.weight
    assert weight.value is weight.data
    assert weight.value.shape == (16, 4)
    weight.value = np.zeros((16, 4), np.float32)
    assert not weight.data.any()
    mixer(Tensor(random(1, 3, 8)))[0].sum().backward()
    assert weight.grad.shape == (16, 4)
