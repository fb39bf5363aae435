"""Gradients of whole models: native kernels against the reference, both from the same weights and tokens.

float32: every parameter's gradient within 1e-4 of its largest element, or a millionth of the model's largest
(that of a key's bias is 0 but for rounding).  bfloat16: activations are rounded
between kernels, so each backend is compared with the gradients of the same weights in float32: native may be
off by at most twice what the reference is, plus a hundredth of the gradient's norm."""

from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.backends import native, use_backend
from nn.models import MoETransformer
from nn.models.transformer import Transformer
from nn.models.transformer_config import AttentionConfig, BlockConfig, TransformerConfig
from nn.optim import create_optimizer
from nn.train.update import HostUpdate

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
BATCH = np.random.default_rng(0).integers(0, 200, size=(3, 34))
Gradients = dict[str, np.ndarray]


def gpt2(dtype: str) -> Transformer:
    """GPT-2's shape: LayerNorm, biases, GELU by tanh, learned positions, tied head"""
    block = BlockConfig(attn=AttentionConfig(n_heads=4, bias=True), norm="layernorm", positional="learned",
                        activation="gelu_tanh", bias=True)
    return Transformer(TransformerConfig(vocab_size=211, d_model=64, n_layers=3, max_seq_len=64, block=block),
                       seed=1, dtype=dtype)


MODELS = {"gpt2": gpt2, "moe": lambda dtype: MoETransformer.tiny(seed=1, dtype=dtype)}


def gradients(name: str, dtype: str, backend: str | None, weights: Gradients) -> tuple[float, Gradients]:
    """(loss, {parameter: gradient}) with these weights"""
    model = MODELS[name](dtype)
    model.load_state_dict(weights)
    with use_backend(backend) if backend else nullcontext():
        total, figures = model.loss(BATCH[:, :-1] % 200, BATCH[:, 1:] % 200)
        total.backward()
    found = {key: p.grad.astype(np.float64) for key, p in model.named_parameters().items()}
    return figures["loss"], found


def weights_of(name: str) -> Gradients:
    """Values that bfloat16 holds exactly"""
    state = MODELS[name]("float32").state_dict()
    return {key: values.astype(ml_dtypes.bfloat16).astype(np.float32) for key, values in state.items()}


@pytest.mark.parametrize("name", MODELS)
def test_float32(name: str) -> None:
    weights, before = weights_of(name), native.fallbacks()
    expected, right = gradients(name, "float32", "reference", weights)
    loss, found = gradients(name, "float32", None, weights)
    assert loss == pytest.approx(expected, rel=1e-6)
    largest = max(np.max(np.abs(gradient)) for gradient in right.values())
    for key, gradient in right.items():
        limit = max(1e-4 * np.max(np.abs(gradient)), 1e-6 * largest)
        assert np.max(np.abs(found[key] - gradient)) <= limit, key
    assert native.fallbacks() == before


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16(name: str) -> None:
    weights = weights_of(name)
    exact, right = gradients(name, "float32", "reference", weights)
    rough_loss, rough = gradients(name, "bfloat16", "reference", weights)
    loss, found = gradients(name, "bfloat16", None, weights)
    assert abs(loss - exact) <= 2 * abs(rough_loss - exact) + 0.01
    for key, gradient in right.items():
        off, known = (np.linalg.norm(g[key] - gradient) for g in (found, rough))
        assert off <= 2 * known + 0.01 * np.linalg.norm(gradient) + 1e-6, key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_threads_change_no_bit_of_a_step(name: str, dtype: str) -> None:
    states: list[Any] = []
    for count in (1, 3):
        with native.limit_threads(count):
            model = MODELS[name](dtype)
            update = HostUpdate(model, create_optimizer("adamw", model.named_parameters(), lr=1e-2), clip=1.0,
                                seed=0)
            for step in (1, 2):
                update([(BATCH[:, :-1], BATCH[:, 1:])] * 2, step=step, lr=1e-2)
            states.append({key: values.tobytes() for key, values in model.state_dict().items()})
    assert states[0] == states[1]
