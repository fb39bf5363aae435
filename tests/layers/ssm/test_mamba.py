"""Mamba against its formulas in NumPy float64, and its counts against the published model's."""

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.layers import Stack, StackSettings
from nn.layers.formulas import total
from nn.layers.ssm import (
    ConvState,
    Mamba,
    MambaBlock,
    MambaKernelInputs,
    MambaKernelParams,
    MambaReferenceKernel,
    MambaSettings,
    MambaState,
    RecurrentState,
)
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import close, shaken

SMALL = MambaSettings(hidden_size=8, state_size=4, time_step_rank=3, chunk_size=4)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


def by_formula(w: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
    """One row u[T,D], token by token"""
    channels, states = w["A_log"].shape
    x, z = np.split(u @ w["in_proj.weight"].T, 2, axis=1)
    taps = w["conv1d.weight"].shape[1]
    long = np.concatenate([np.zeros((taps - 1, channels)), x])
    x = silu(np.stack([np.sum(long[t : t + taps].T * w["conv1d.weight"], axis=1) for t in range(len(u))])
             + w["conv1d.bias"])
    low, b, c = np.split(x @ w["x_proj.weight"].T, [len(w["dt_proj.weight"].T), -states], axis=1)
    delta = np.log1p(np.exp(low @ w["dt_proj.weight"].T + w["dt_proj.bias"]))
    h, y = np.zeros((channels, states)), np.zeros_like(x)
    for t in range(len(u)):
        h = np.exp(np.outer(delta[t], np.ones(states)) * -np.exp(w["A_log"])) * h
        h = h + np.outer(delta[t] * x[t], b[t])
        y[t] = h @ c[t] + w["D"] * x[t]
    return (y * silu(z)) @ w["out_proj.weight"].T


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_is_the_formula_of_the_paper(mode: str) -> None:
    layer, u = shaken(Mamba(SMALL, dtype="float64"), 0), np.random.default_rng(1).standard_normal((2, 11, 8))
    weights = {name: p.data for name, p in layer.named_parameters().items()}
    with no_grad():
        y, _ = layer(Tensor(u), mode=mode)
    for row in range(2):
        close(y.data[row], by_formula(weights, u[row]), 1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 64])
def test_any_chunk_size_gives_the_same(size: int) -> None:
    u = Tensor(np.random.default_rng(0).standard_normal((2, 13, 8)))
    options = {"hidden_size": 8, "state_size": 4}
    with no_grad():
        expected, _ = shaken(Mamba(MambaSettings(**options), "float64"), 0)(u, mode="recurrent")
        found, _ = shaken(Mamba(MambaSettings(**options, chunk_size=size), "float64"), 0)(u, mode="chunk")
    close(found.data, expected.data, 1e-12)


def test_steps_near_zero_freeze_the_state() -> None:
    layer = shaken(Mamba(SMALL, dtype="float64"), 0)
    layer.dt_proj.bias.data = np.full(16, -800.0)
    state, x = layer.init_state(2), Tensor(np.random.default_rng(0).standard_normal((2, 9, 8)))
    state.ssm_state.value[:] = held = np.random.default_rng(1).standard_normal((2, 16, 4))
    with no_grad():
        _, state = layer(x, state=state, mode="chunk")
    assert np.array_equal(state.ssm_state.value, held)
    assert state.position == 9


def test_padding_leaves_state_and_convolution_as_they_were() -> None:
    """Padding behind tokens, too, changes no state; a call of nothing but padding at the start keeps zeros"""
    layer = shaken(Mamba(SMALL, dtype="float64"), 0)
    x = np.random.default_rng(0).standard_normal((1, 7, 8))
    with no_grad():
        _, empty = layer(Tensor(x), state=layer.init_state(1), mask=np.zeros((1, 7), bool))
        assert not empty.conv_state.value.any()
        assert not empty.ssm_state.value.any()
        mask = np.arange(7)[None] < 4
        for mode in ("chunk", "recurrent"):
            _, short = layer(Tensor(x[:, :4]), state=layer.init_state(1), mode=mode)
            _, padded = layer(Tensor(x), state=layer.init_state(1), mask=mask, mode=mode)
            close(padded.ssm_state.value, short.ssm_state.value, 1e-13)
            assert np.array_equal(padded.conv_state.value, short.conv_state.value)


def test_start_of_the_parameters() -> None:
    layer = Mamba(MambaSettings(hidden_size=256), dtype="bfloat16").initialize(0)
    assert np.allclose(np.exp(layer.A_log.data), np.arange(1, 17)[None], rtol=1e-6)
    assert np.array_equal(layer.D.data, np.ones(512))
    steps = np.log1p(np.exp(layer.dt_proj.bias.data.astype(np.float64)))
    assert steps.min() >= 0.000999
    assert steps.max() <= 0.1001
    assert abs(np.median(np.log(steps)) - np.log(0.01)) < 0.3             # log-uniform
    assert np.abs(layer.dt_proj.weight.data.astype(np.float64)).max() <= 16**-0.5
    assert {p.dtype for p in (layer.A_log, layer.D, layer.dt_proj.bias)} == {np.dtype(np.float32)}
    assert not any(p.decay for p in (layer.A_log, layer.D, layer.dt_proj.bias))
    floored = Mamba(MambaSettings(hidden_size=64, time_step_floor=0.05), dtype="float64").initialize(0)
    assert np.log1p(np.exp(floored.dt_proj.bias.data)).min() >= 0.05 - 1e-9


def test_counts_of_the_published_model() -> None:
    """mamba-130m: 129,135,360 parameters; operations per token as in the specification's table"""
    s = MambaSettings(hidden_size=768)
    assert s.rank == 48
    assert 24 * (total(s.parameters()) + 768) + 768 + 50280 * 768 == 129_135_360
    d, di, n, r = 768, 1536, 16, 48
    per_token = 2 * d * 2 * di + 2 * di * 4 + 2 * di * (r + 2 * n) + 2 * r * di + 9 * di * n + 2 * di * d
    for mode in ("chunk", "recurrent"):
        assert total(s.flops(2, 100, mode=mode)) == 200 * per_token


def test_state_does_not_grow() -> None:
    """114 KiB per row and layer of the published model, however many tokens were seen"""
    assert MambaState.zeros(1, 1536, 16, 4).nbytes == 1536 * 16 * 4 + 3 * 1536 * 4 == 114 * 1024
    layer, x = shaken(Mamba(SMALL), 0), Tensor(np.ones((1, 50, 8), np.float32))
    with no_grad():
        state = layer.init_state(1)
        before = state.nbytes
        _, state = layer(x, state=state)
    assert state.nbytes == before == MambaState.zeros(1, 16, 4, 4).nbytes


def test_states_from_nothing() -> None:
    assert ConvState.zeros(2, 4, 5, "float64").value.shape == (2, 3, 5)
    assert RecurrentState.zeros(2, 5, 3).value.shape == (2, 5, 3)
    state, fresh = MambaState.zeros(2, 16, 4, 4, "float64"), Mamba(SMALL, "float64").init_state(2)
    for name, values in fresh.state_dict().items():
        assert np.array_equal(values, state.state_dict()[name])
        assert values.dtype == state.state_dict()[name].dtype


def test_the_block_has_its_norm_and_residual_inside() -> None:
    """And is what a stack of one Mamba layer is"""
    block = shaken(MambaBlock(SMALL, dtype="float64"), 0)
    x = np.random.default_rng(0).standard_normal((2, 9, 8))
    normed = x / np.sqrt(np.mean(x**2, axis=2, keepdims=True) + 1e-5) * block.norm.weight.data
    stack = Stack(StackSettings(hidden_size=8, num_layers=1, mixer="M", feed_forward="none", norm_eps=1e-5,
                                options={"mamba": {"state_size": 4, "time_step_rank": 3}}), dtype="float64")
    ours = block.state_dict()
    stack.load_state_dict({name: ours[name.replace("layers.0", "layer")]
                           for name in stack.named_parameters()})
    with no_grad():
        close(stack(Tensor(x), mode="chunk")[0].data, block(Tensor(x), mode="chunk")[0].data, 1e-12)
        y, state = block(Tensor(x), state=block.init_state(2), mode="chunk")
        expected, _ = block.mixer(Tensor(normed), mode="chunk")
        close(y.data, x + expected.data, 1e-12)
        first, half = block(Tensor(x[:, :4]), state=block.init_state(2))
        rest, last = block(Tensor(x[:, 4:]), state=half)
    close(np.concatenate([first.data, rest.data], 1), y.data, 1e-12)
    close(last.ssm_state.value, state.ssm_state.value, 1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-11)])
@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_the_block_is_what_the_reference_kernel_gives(dtype: str, rtol: float, mode: str) -> None:
    """Result, state and gradients, in both modes of both"""
    block = shaken(MambaBlock(SMALL, dtype=dtype), 0)
    mixer, results = block.mixer, []
    for kernel in (None, MambaReferenceKernel(mode=mode, chunk_size=5)):
        block.zero_grad()
        x = Tensor(np.random.default_rng(0).standard_normal((2, 11, 8)).astype(dtype), requires_grad=True)
        if kernel is None:
            y, state = block(x, state=block.init_state(2), mode=mode)
            h = state.ssm_state.value
        else:
            inner, gate = ops.split(mixer.in_proj(block.norm(x)), 16, 16)
            inner, _ = mixer.conv1d(inner)
            delta, b, c = mixer.select(inner)
            first = [ops.permute(z, 0, 2, 1) for z in (inner, delta, ops.silu(gate))]
            read, end = kernel(MambaKernelParams(mixer.A_log, mixer.D),
                               MambaKernelInputs(first[0], first[1], b, c, first[2]))
            y, h = x + mixer.out_proj(ops.permute(read, 0, 2, 1)), end.ssm.data
        (y * y).sum().backward()
        results.append([y.data, h, x.grad, *(p.grad for p in block.parameters())])
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs, rtol)


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="state_size: 0 is not positive"):
        MambaSettings(state_size=0)
    with pytest.raises(InputError, match="time_step_min 0.2, time_step_max 0.1"):
        MambaSettings(time_step_min=0.2)
