"""Micro-batches add up to one large batch, and a bad number is traced to the operation that made it."""

import math

import numpy as np
import pytest

from nn.models import MoETransformer, MoETransformerConfig
from nn.train.gradients import accumulate, explain_nonfinite, scored_tokens


def model(**changes):
    shape = {"vocab_size": 11, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "num_experts": 3,
             "top_k": 2, "intermediate_size": 8, "max_seq_len": 16, "init_std": 0.3}
    return MoETransformer(MoETransformerConfig(**shape | changes), seed=0, dtype="float64")


def batch(rows, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 11, (rows, 6)), rng.integers(0, 11, (rows, 6))


def gradients(model):
    return {name: p.grad.copy() for name, p in model.named_parameters().items()}


@pytest.mark.parametrize("sizes", [(4,), (2, 2), (1, 1, 1, 1), (3, 1)])
def test_micro_batches_of_any_size_equal_one_large_batch(sizes):
    """Targets that do not count are spread unevenly: a mean of means would be off."""
    inputs, targets = batch(4)
    targets[0, 1:] = -100
    targets[3, :2] = -100
    whole = model(balance_coef=0.0, router_z_coef=0.0)
    expected = accumulate(whole, [(inputs, targets)], seed=0, step=1)
    parts = model(balance_coef=0.0, router_z_coef=0.0)
    ends = np.cumsum(sizes)
    rows = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    batches = [(inputs[part], targets[part]) for part in rows]
    found = accumulate(parts, batches, seed=0, step=1)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-12)
    for name, gradient in gradients(whole).items():
        np.testing.assert_allclose(gradients(parts)[name], gradient, rtol=1e-9, atol=1e-13, err_msg=name)


def test_auxiliary_losses_do_not_grow_with_the_number_of_micro_batches():
    inputs, targets = batch(2)
    one, four = model(), model()
    first = accumulate(one, [(inputs, targets)], seed=0, step=1)
    second = accumulate(four, [(inputs, targets)] * 4, seed=0, step=1)
    assert second["moe/load_balance"] == pytest.approx(first["moe/load_balance"], rel=1e-12)
    for name, gradient in gradients(one).items():
        np.testing.assert_allclose(gradients(four)[name], gradient, rtol=1e-9, atol=1e-13, err_msg=name)


def test_the_loss_is_the_mean_over_scored_tokens():
    inputs, targets = batch(2)
    targets[1] = -100
    m = model(balance_coef=0.0, router_z_coef=0.0)
    logits = m(inputs).numpy()[0]
    logits -= logits.max(-1, keepdims=True)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), targets[0]]
    found = accumulate(m, [(inputs, targets)], seed=0, step=1)["loss"]
    assert found == pytest.approx(losses.mean(), rel=1e-12)


def test_scored_tokens():
    assert scored_tokens([(None, np.array([[1, -100, 0]])), (None, np.array([[-100, 5]]))]) == 3
    assert scored_tokens([(None, np.array([[-100]]))]) == 1


def test_a_batch_without_any_target_gives_zero():
    inputs, targets = batch(2)
    m = model(balance_coef=0.0, router_z_coef=0.0)
    assert accumulate(m, [(inputs, np.full_like(targets, -100))], seed=0, step=1)["loss"] == 0.0
    assert all(p.grad is None or not p.grad.any() for p in m.parameters())


def test_noise_is_a_function_of_seed_step_and_micro_batch():
    base = loss_with_noise(0, 1)
    assert loss_with_noise(0, 1) == base
    assert len({base, loss_with_noise(1, 1), loss_with_noise(0, 2), loss_with_noise(0, 1, 1)}) == 4


def loss_with_noise(seed, step, micro=0):
    empty = (batch(2)[0], np.full((2, 6), -100))
    return accumulate(model(router_jitter=0.3), [empty] * micro + [batch(2)], seed=seed, step=step)["loss"]


def test_a_loss_that_is_not_finite_is_reported_as_nan():
    m = model()
    m.named_parameters()["norm.weight"].data[0] = np.inf
    assert math.isnan(accumulate(m, [batch(2)], seed=0, step=1)["loss"])


def test_the_first_bad_operation_is_named_with_its_layer_and_micro_batch():
    m = model()
    next(p for name, p in m.named_parameters().items() if name.startswith("layers.1.")).data[0] = np.nan
    text = explain_nonfinite(m, [batch(2), batch(2)], seed=0, step=1)
    assert text.startswith("micro-batch 1 of 2, ")
    assert "layers.1" in text
    assert "first non-finite" in text
    assert all(p.grad is None for p in m.parameters())


def test_a_batch_whose_every_operation_is_finite_says_so():
    assert "every single operation was finite" in explain_nonfinite(model(), [batch(2)], seed=0, step=1)
