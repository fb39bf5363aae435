"""Module and Parameter: names, counting, initialisation, training mode, state dictionaries."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nn.errors import InputError
from nn.layers import Linear, Module, Parameter, RMSNorm
from nn.tensor import Tensor


class Two(Module):
    def __init__(self) -> None:
        self.first = Linear(2, 3, bias=True)
        self.items = [RMSNorm(3), Linear(3, 2)]
        self.own = Parameter((4,), fill=2.0)
        self.shared = self.first.weight
        self.size = 7


def test_names_are_paths_in_the_order_of_definition() -> None:
    assert list(Two().named_parameters()) == [
        "first.weight", "first.bias", "items.0.weight", "items.1.weight", "own"]


def test_a_shared_parameter_counts_once() -> None:
    model = Two()
    assert model.num_parameters() == 6 + 3 + 3 + 6 + 4
    assert len(model.parameters()) == 5


def test_modules_know_their_names_and_modes() -> None:
    model = Two()
    assert [module.name for module in model.modules()] == ["", "first", "items.0", "items.1"]
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())


def test_zero_grad() -> None:
    model = Two()
    for parameter in model.parameters():
        parameter.grad = np.ones(parameter.shape)
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


class TestParameter:
    def test_is_allocated_on_first_use(self) -> None:
        parameter = Parameter((1 << 40, 1 << 20), std=1.0)
        assert (parameter.shape, parameter.size, parameter.dtype) == ((1 << 40, 1 << 20), 1 << 60, np.float32)
        assert not parameter.allocated
        small = Parameter((2, 3), fill=0.5)
        assert small.data.tolist() == [[0.5] * 3] * 2
        assert small.allocated
        assert small.value is small.data

    def test_normal_with_the_given_spread(self) -> None:
        values = Parameter((400, 500), std=0.02).data
        assert abs(values.std() / 0.02 - 1) < 0.01
        assert abs(values.mean()) < 2e-4

    @pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
    def test_types_hold_the_same_numbers(self, dtype: str) -> None:
        parameter, reference = Parameter((5, 7), std=0.1, dtype=dtype), Parameter((5, 7), std=0.1)
        np.testing.assert_array_equal(parameter.data, reference.data.astype(parameter.dtype))
        assert parameter.data.dtype.name == dtype

    def test_another_shape_is_refused(self) -> None:
        parameter = Parameter((2, 3))
        with pytest.raises(ValueError, match=r"parameter: shape \[3, 2\] given, \[2, 3\] expected"):
            parameter.data = np.ones((3, 2))

    def test_gradient_of_a_half_parameter_is_float32(self) -> None:
        parameter = Parameter((3,), fill=1.0, dtype="bfloat16")
        (parameter * parameter).sum().backward()
        assert (parameter.grad.dtype, parameter.grad.tolist()) == (np.float32, [2.0] * 3)


class TestInitialize:
    def test_streams_belong_to_seed_and_name(self) -> None:
        a, b = Two().initialize(1), Two().initialize(1)
        reverse = list(reversed(b.parameters()))
        touched = [parameter.data for parameter in reverse]                    # allocated in the other order
        assert len(touched) == 5
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            np.testing.assert_array_equal(x.data, y.data)
        other = Two().initialize(2)
        assert not np.array_equal(a.first.weight.data, other.first.weight.data)
        assert not np.array_equal(a.first.weight.data[:2], a.items[1].weight.data[:, :2])

    def test_what_else_the_model_has_changes_nothing(self) -> None:
        class Three(Two):
            def __init__(self) -> None:
                self.before = Linear(5, 5)
                super().__init__()

        np.testing.assert_array_equal(Two().initialize(0).first.weight.data,
                                      Three().initialize(0).first.weight.data)

    def test_negative_seed(self) -> None:
        with pytest.raises(InputError, match="seed: -1 is out of range"):
            Two().initialize(-1).first.weight.data      # noqa: B018


class TestStateDict:
    def test_round_trip(self) -> None:
        a, b = Two().initialize(1), Two().initialize(2)
        b.load_state_dict(a.state_dict())
        for name, values in b.state_dict().items():
            np.testing.assert_array_equal(values, a.state_dict()[name])
        b.first.weight.data += 1.0                                              # its own copy
        assert not np.array_equal(a.first.weight.data, b.first.weight.data)

    def test_holds_the_arrays_themselves(self) -> None:
        model = Two()
        assert model.state_dict()["own"] is model.own.data

    def test_casts_to_the_models_type(self) -> None:
        model = Linear(2, 2, dtype="bfloat16")
        model.load_state_dict({"weight": np.full((2, 2), 1 + 2.0**-10)})
        assert model.weight.data.dtype == ml_dtypes.bfloat16
        assert float(model.weight.data[0, 0]) == 1.0

    @pytest.mark.parametrize(("change", "message"), [
        (lambda d: d.pop("own"), "weights do not fit the model: own: missing"),
        (lambda d: d.update(extra=np.ones(1)), "weights do not fit the model: extra: unexpected"),
        (lambda d: d.update(own=np.ones(3)),
         r"weights do not fit the model: own: shape \[3\], expected \[4\]"),
        (lambda d: d.clear(),
         r"first.weight: missing; first.bias: missing; items.0.weight: missing \(and 2 more\)")])
    def test_what_does_not_fit_is_named_and_nothing_changes(self, change: Any, message: str) -> None:
        model = Two().initialize(3)
        before = {name: values.copy() for name, values in model.state_dict().items()}
        wrong = {name: values + 1.0 for name, values in before.items()}
        change(wrong)
        with pytest.raises(InputError, match=message):
            model.load_state_dict(wrong)
        for name, values in model.state_dict().items():
            np.testing.assert_array_equal(values, before[name])


def test_a_module_without_forward_says_so() -> None:
    class Empty(Module):
        pass

    with pytest.raises(TypeError, match="Empty defines no forward"):
        Empty()(Tensor([1.0]))


def test_decay_is_for_matrices_only() -> None:
    model = Two()
    decayed = {name for name, p in model.named_parameters().items() if p.decay}
    assert decayed == {"first.weight", "items.1.weight", "own"}
