"""Rotary tables: frequencies, scalings, growth, and what the rotation preserves."""

import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.layers import RopeScaling, Rotary
from nn.layers.rotary import inverse_frequencies
from nn.tensor import Tensor

KINDS = ("none", "linear", "ntk", "dynamic", "yarn")


def frequencies(kind: str, factor: float, dim: int = 8, theta: float = 1e4, trained: int = 32,
                length: int = 128,
                **options: Any) -> np.ndarray:
    return inverse_frequencies(dim, theta, RopeScaling(kind, factor, trained, **options), length)[0]


def base(kind_of_inverse: np.ndarray) -> float:
    """θ of frequencies θ^(−2i/d)"""
    d = 2 * len(kind_of_inverse)
    return float(kind_of_inverse[1] ** (-d / 2))


class TestScalings:
    def test_none(self) -> None:
        np.testing.assert_allclose(frequencies("none", 1.0), [1.0, 0.1, 0.01, 0.001], rtol=1e-15)

    def test_linear(self) -> None:
        np.testing.assert_allclose(frequencies("linear", 4.0), [0.25, 0.025, 0.0025, 0.00025], rtol=1e-15)

    def test_ntk(self) -> None:
        found = frequencies("ntk", 4.0)
        np.testing.assert_allclose(found, [1.0, 0.06299605, 0.0039685, 0.00025], rtol=1e-6)
        assert base(found) == pytest.approx(63496.04207873, abs=1e-7)
        assert found[0] == 1.0
        assert found[-1] == pytest.approx(0.001 / 4.0, rel=1e-14)    # slowed down by exactly the factor

    def test_ntk_from_32k_to_256k(self) -> None:
        stretched = frequencies("ntk", 8.0, dim=64, trained=32768, length=262144)
        assert base(stretched) == pytest.approx(85550.3759, abs=5e-5)

    def test_dynamic(self) -> None:
        assert base(frequencies("dynamic", 4.0, length=48)) == pytest.approx(43267.48710922, abs=1e-7)
        np.testing.assert_array_equal(frequencies("dynamic", 4.0, length=32), frequencies("none", 1.0))
        np.testing.assert_array_equal(frequencies("dynamic", 4.0, length=5), frequencies("none", 1.0))
        bases = [base(frequencies("dynamic", 4.0, length=n)) for n in range(32, 128, 8)]
        assert bases == sorted(bases)
        assert base(frequencies("dynamic", 4.0, length=33)) == pytest.approx(1e4, rel=0.2)    # no jump at L0

    def test_yarn(self) -> None:
        found, factor = inverse_frequencies(8, 1e4, RopeScaling("yarn", 4.0, 32), 128)
        np.testing.assert_allclose(found, [1.0, 0.025, 0.0025, 0.00025], rtol=1e-14)
        assert factor == pytest.approx(1.13862944, abs=5e-9)

    def test_yarn_ends_of_the_ramp(self) -> None:
        """d = 64, L0 = 4096: kept up to channel 10, divided by s from channel 23 on."""
        kept = frequencies("none", 1.0, dim=64)
        ratio = frequencies("yarn", 16.0, dim=64, trained=4096) / kept
        np.testing.assert_allclose(ratio[:11], 1.0, rtol=1e-14)
        np.testing.assert_allclose(ratio[23:], 1 / 16, rtol=1e-14)
        assert np.all(np.diff(ratio[10:24]) < 0)
        np.testing.assert_allclose(ratio[12], 1 - (2 / 13) * (1 - 1 / 16), rtol=1e-14)

    def test_yarn_options(self) -> None:
        assert inverse_frequencies(8, 1e4, RopeScaling("yarn", 4.0, 32, attention_factor=1.0), 128)[1] == 1.0
        # channel 15.3 turns 8 times
        step = frequencies("yarn", 16.0, dim=64, trained=4096, beta_fast=8.0, beta_slow=8.0)
        ratio = step / frequencies("none", 1.0, dim=64)
        np.testing.assert_allclose(ratio, [1.0] * 16 + [1 / 16] * 16, rtol=1e-14)

    @pytest.mark.parametrize("kind", KINDS)
    def test_factor_one_changes_nothing(self, kind: str) -> None:
        found, factor = inverse_frequencies(64, 1e4, RopeScaling(kind, 1.0, 4096), 4096)
        np.testing.assert_allclose(found, frequencies("none", 1.0, dim=64), rtol=1e-15)
        assert factor == 1.0

    @pytest.mark.parametrize("kind", KINDS)
    def test_frequencies_fall(self, kind: str) -> None:
        assert np.all(np.diff(frequencies(kind, 8.0, dim=64, trained=4096, length=32768)) < 0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_trained_context_is_derived_from_the_factor(self, kind: str) -> None:
        np.testing.assert_array_equal(frequencies(kind, 4.0, dim=64, trained=0, length=16384),
                                      frequencies(kind, 4.0, dim=64, trained=4096, length=16384))

    def test_linear_is_position_over_factor(self) -> None:
        plain, scaled = Rotary(8), Rotary(8, scaling=RopeScaling("linear", 4.0))
        np.testing.assert_allclose(scaled(0, 40, np.float64)[0][::4], plain(0, 10, np.float64)[0], atol=1e-14)

    @pytest.mark.parametrize(("make", "message"), [
        (lambda: RopeScaling("nkt", 2.0), "rope_scaling.type: 'nkt'"),
        (lambda: RopeScaling("ntk", 0.5), "rope_scaling.factor: 0.5 is below 1"),
        (lambda: Rotary(7), "rotary width: 7 is not an even number of channels"),
        (lambda: Rotary(0), "rotary width: 0"),
        *((lambda theta=theta: Rotary(4, theta), f"rope_theta: {theta} is not a positive number")
          for theta in (0.0, -1.0, float("nan"), float("inf"))),
        (lambda: Rotary(2, scaling=RopeScaling("ntk", 2.0)),
         "rope_scaling.type: ntk needs a rotary width above 2"),
        (lambda: Rotary(2, scaling=RopeScaling("dynamic", 2.0)),
         "rope_scaling.type: dynamic needs a rotary width above 2")])
    def test_refusals(self, make: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            make()


class TestTables:
    def test_grow_on_demand_and_stay_the_same(self) -> None:
        rotary, whole = Rotary(8), Rotary(8)
        cos, sin = whole(0, 3000, np.float64)
        for start, count in ((0, 1), (1, 1), (2, 300), (299, 4), (2990, 10), (0, 5), (255, 2)):
            found = rotary(start, count, np.float64)
            np.testing.assert_array_equal(found[0], cos[start : start + count])
            np.testing.assert_array_equal(found[1], sin[start : start + count])

    def test_nothing_is_computed_before_it_is_asked_for(self) -> None:
        rotary = Rotary(64, length=262144)
        assert rotary._tables[0].size == 0
        rotary(0, 10, np.float32)
        assert len(rotary._tables[0]) <= 256

    def test_tables_do_not_grow_with_a_text_without_end(self) -> None:
        rotary = Rotary(4, theta=100.0)
        for start in (2**20 - 2, 2**20 - 1, 2**22):              # of two tokens each
            cos, sin = rotary(start, 2, np.float64)
            angle = np.arange(start, start + 2)[:, None] * np.array([1.0, 0.1])
            np.testing.assert_allclose(cos, np.cos(angle), atol=1e-9)
            np.testing.assert_allclose(sin, np.sin(angle), atol=1e-9)
            assert np.array_equal(rotary.at(np.array([[start + 1]]), np.float64)[0][0, 0], cos[1:])
        assert len(rotary._tables[0]) <= 2**20

    def test_types(self) -> None:
        for dtype in (np.float32, np.float64):
            assert {table.dtype for table in Rotary(8)(0, 4, dtype)} == {np.dtype(dtype)}
        assert Rotary(8)(3, 0, np.float32)[0].shape == (0, 4)

    def test_positions_of_their_own_for_every_row(self) -> None:
        rotary = Rotary(8)
        positions = np.array([[0, 0, 1], [5, 6, 7]])
        cos, sin = rotary.at(positions, np.float64)
        assert cos.shape == sin.shape == (2, 1, 3, 4)
        table = rotary(0, 8, np.float64)
        for b, t in np.ndindex(2, 3):
            np.testing.assert_array_equal(cos[b, 0, t], table[0][positions[b, t]])
            np.testing.assert_array_equal(sin[b, 0, t], table[1][positions[b, t]])

    @pytest.mark.parametrize("position", [0, 1, 1000, 262_143])
    def test_far_positions_are_exact(self, position: int) -> None:
        """Against 50-digit arithmetic; in float32 the angle of position 262,143 is off by a hundredth."""
        rotary = Rotary(64, scaling=RopeScaling("ntk", 8.0, 32768), length=262144)
        cos, sin = rotary.at(np.array([[position]]), np.float64)
        with localcontext() as context:
            context.prec = 50
            theta = Decimal(10000) * Decimal(8) ** (Decimal(64) / Decimal(62))
            for i in (0, 1, 7, 20, 31):
                angle = Decimal(position) * theta ** (Decimal(-2 * i) / Decimal(64))
                turned = float(angle % (2 * Decimal("3.14159265358979323846264338327950288419716939937510")))
                assert cos[0, 0, 0, i] == pytest.approx(math.cos(turned), abs=1e-9)
                assert sin[0, 0, 0, i] == pytest.approx(math.sin(turned), abs=1e-9)
        rounded = rotary.at(np.array([[position]]), np.float32)[0]
        np.testing.assert_array_equal(rounded, cos.astype(np.float32))

    def test_yarn_scales_cos_and_sin(self) -> None:
        plain, yarn = Rotary(8), Rotary(8, scaling=RopeScaling("yarn", 4.0, 32))
        assert yarn(0, 1, np.float64)[0][0, 0] == pytest.approx(0.1 * math.log(4.0) + 1.0)
        np.testing.assert_allclose(yarn(0, 9, np.float64)[0][:, 0],
                                   1.13862944 * plain(0, 9, np.float64)[0][:, 0], rtol=1e-8)


@pytest.mark.parametrize("interleaved", [False, True])
class TestRotation:
    def turn(self, x: np.ndarray, start: int, interleaved: bool) -> np.ndarray:
        cos, sin = Rotary(x.shape[-1])(start, x.shape[2], np.float64)
        return ops.rope(Tensor(x), cos, sin, interleaved).data

    def test_preserves_lengths_and_position_0(self, interleaved: bool) -> None:
        x = np.random.default_rng(0).standard_normal((2, 3, 5, 8))
        y = self.turn(x, 0, interleaved)
        np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-14)
        np.testing.assert_array_equal(y[:, :, 0], x[:, :, 0])

    def test_scores_depend_on_the_distance_alone(self, interleaved: bool) -> None:
        q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 8))
        scores = {(m, n): float(np.sum(self.turn(q, m, interleaved) * self.turn(k, n, interleaved)))
                  for m, n in ((5, 2), (6, 3), (103, 100), (2, 5), (0, 3))}
        assert (scores[5, 2] == pytest.approx(scores[6, 3], abs=1e-12)
                == pytest.approx(scores[103, 100], abs=1e-12))
        assert scores[2, 5] == pytest.approx(scores[0, 3], abs=1e-12)
        assert abs(scores[5, 2] - scores[2, 5]) > 1e-3

    def test_turns_add_up(self, interleaved: bool) -> None:
        x = np.random.default_rng(0).standard_normal((1, 1, 1, 8))
        np.testing.assert_allclose(self.turn(self.turn(x, 3, interleaved), 4, interleaved),
                                   self.turn(x, 7, interleaved), atol=1e-14)

    def test_an_offset_equals_a_slice(self, interleaved: bool) -> None:
        x = np.random.default_rng(0).standard_normal((1, 2, 9, 8))
        np.testing.assert_array_equal(self.turn(x[:, :, 4:], 4, interleaved),
                                      self.turn(x, 0, interleaved)[:, :, 4:])


def test_the_two_pairings_are_one_rotation_of_permuted_channels() -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 8))
    cos, sin = Rotary(8)(3, 5, np.float64)
    order = [0, 4, 1, 5, 2, 6, 3, 7]    # half-split channel of each interleaved one
    half = ops.rope(Tensor(x), cos, sin).data
    pairs = ops.rope(Tensor(x[..., order]), cos, sin, interleaved=True).data
    np.testing.assert_allclose(pairs, half[..., order], atol=1e-15)


def test_kept_tables_are_read_only() -> None:
    rotary = Rotary(8)
    kept = rotary(0, 5, np.float32)
    assert rotary(0, 5, np.float32) is kept
    with pytest.raises(ValueError, match="read-only"):
        kept[0][...] = 0.0
