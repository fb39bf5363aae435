"""The error function of nn.backends.array_api, against Python's,
and its coefficients, worked out anew with 60 digits.

erfc(x) = t exp(−x² + f(2t − 1)) with t = 2/(2 + x);  f is smooth on [−1, 1],
its Chebyshev coefficients are the table."""

import math
from decimal import Decimal, getcontext, localcontext

import numpy as np
import pytest

from nn.backends.array_api import _ERFC, erf

NODES = 48


@pytest.mark.parametrize(("dtype", "units"), [(np.float64, 4), (np.float32, 6)])
def test_against_the_library_of_c(dtype: type, units: int) -> None:
    x = np.linspace(-6.0, 6.0, 24001).astype(dtype)
    right = np.array([math.erf(value) for value in x.astype(np.float64)])
    result = erf(x)
    assert result.dtype == dtype
    assert np.max(np.abs(result - right)) <= units * np.finfo(dtype).eps / 2


def test_ends_and_symmetry() -> None:
    x = np.array([0.0, 0.3, 2.5, 30.0, np.inf])
    assert np.array_equal(erf(x[3:]), [1.0, 1.0])
    assert np.array_equal(erf(-x[3:]), [-1.0, -1.0])
    assert np.array_equal(erf(-x[1:]), -erf(x[1:]))
    assert abs(erf(x)[0]) <= np.finfo(np.float64).eps
    assert np.isnan(erf(np.array([np.nan]))[0])


def test_coefficients() -> None:
    with localcontext() as context:
        context.prec = 60
        angles = [(Decimal(j) + Decimal("0.5")) * PI / NODES for j in range(NODES)]
        values = [smooth_part(cosine(angle)) for angle in angles]
        for k, published in enumerate(_ERFC):
            c = 2 * sum(f * cosine(k * angle) for f, angle in zip(values, angles, strict=True)) / NODES
            allowed = max(Decimal("1e-17"), abs(c) * Decimal(2) ** -53)
            assert abs(c - Decimal(published)) <= allowed, f"coefficient {k}: {c}"


PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def cosine(angle: Decimal) -> Decimal:
    angle %= 2 * PI
    term, total, n = Decimal(1), Decimal(1), 0
    while abs(term) > Decimal(10) ** -getcontext().prec:
        n += 2
        term *= -angle * angle / (n * (n - 1))
        total += term
    return total


def smooth_part(u: Decimal) -> Decimal:
    """f(u) = ln(erfc(x) exp(x²) / t)"""
    t = (u + 1) / 2
    return (scaled_erfc(2 / t - 2) / t).ln()


def scaled_erfc(x: Decimal) -> Decimal:
    """exp(x²) erfc(x): the power series of erf below 3, Laplace's continued fraction above"""
    if x > 3:
        fraction = Decimal(0)
        for k in range(400, 0, -1):
            fraction = Decimal(k) / 2 / (x + fraction)
        return 1 / ((x + fraction) * PI.sqrt())
    term, total, n = x, x, 0
    while abs(term) > Decimal(10) ** -getcontext().prec:
        n += 1
        term *= 2 * x * x / (2 * n + 1)          # erf(x) exp(x²) √π/2 = Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!
        total += term
    return (x * x).exp() - 2 * total / PI.sqrt()
