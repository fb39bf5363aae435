"""The global gradient norm, and clipping by it."""

import math

import numpy as np
import pytest

from nn.layers.module import Parameter
from nn.optim import AdamW, clip_grad_norm, clip_scale, grad_norm


def with_gradients(*gradients):
    parameters = []
    for gradient in gradients:
        p = Parameter(np.shape(gradient) if gradient is not None else (1,))
        p.grad = None if gradient is None else np.array(gradient, np.float32)
        parameters.append(p)
    return parameters


def test_the_norm_is_over_all_parameters_together():
    assert grad_norm(with_gradients([3.0], [[0.0, 4.0]], None)) == pytest.approx(5.0)


def test_no_gradients_have_norm_zero():
    assert grad_norm(with_gradients(None)) == 0.0
    assert grad_norm([]) == 0.0


def test_the_norm_is_precise_over_many_small_numbers():
    gradient = np.full(1_000_000, 0.1, np.float32)
    assert grad_norm(with_gradients(gradient)) == pytest.approx(float(np.float32(0.1)) * 1000.0, rel=1e-7)


def test_after_clipping_the_norm_is_the_limit_and_the_direction_is_kept():
    parameters = with_gradients([3.0], [4.0])
    assert clip_grad_norm(parameters, 1.0) == pytest.approx(5.0)
    assert grad_norm(parameters) <= 1.0
    assert grad_norm(parameters) == pytest.approx(1.0, rel=1e-5)
    assert parameters[1].grad[0] / parameters[0].grad[0] == pytest.approx(4 / 3)


def test_a_norm_below_the_limit_changes_no_bit():
    parameters = with_gradients([0.3], [0.4])
    clip_grad_norm(parameters, 1.0)
    np.testing.assert_array_equal(parameters[0].grad, np.array([0.3], np.float32))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_norm_is_reported_and_nothing_is_scaled(bad):
    parameters = with_gradients([bad], [4.0])
    assert not math.isfinite(clip_grad_norm(parameters, 1.0))
    assert parameters[1].grad[0] == 4.0
    assert clip_scale(bad, 1.0) == 1.0


def test_no_limit():
    assert clip_scale(100.0, None) == 1.0


def test_the_scale_given_to_the_optimizer_equals_clipping_first():
    clipped, scaled = with_gradients([30.0, 40.0]), with_gradients([30.0, 40.0])
    first, second = AdamW({"p": clipped[0]}, lr=0.1), AdamW({"p": scaled[0]}, lr=0.1)
    clip_grad_norm(clipped, 1.0)
    first.step()
    second.step(grad_scale=clip_scale(grad_norm(scaled), 1.0))
    np.testing.assert_array_equal(clipped[0].data, scaled[0].data)
