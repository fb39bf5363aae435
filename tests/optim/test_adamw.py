"""AdamW against hand-computed values, its groups, its master weights and its saved state."""

import ml_dtypes
import numpy as np
import pytest

from nn.errors import InputError
from nn.layers.module import Parameter
from nn.optim import AdamW, ParamGroup


def parameter(values, dtype="float64", decay=True):
    array = np.asarray(values, dtype=np.float64)
    made = Parameter(array.shape, dtype=dtype, decay=decay)
    made.data = array.astype(made.dtype)
    return made


def give_gradients(parameters, seed):
    rng = np.random.default_rng(seed)
    for p in parameters.values():
        p.grad = rng.standard_normal(p.shape).astype(np.float32 if p.dtype != np.float64 else np.float64)


def test_two_steps_of_hand_computed_values():
    p = parameter([1.0])
    optimizer = AdamW({"p": p}, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    p.grad = np.array([0.5])
    optimizer.step()
    assert p.data[0] == pytest.approx(0.890000002, abs=1e-9)
    p.grad = np.array([-0.25])
    optimizer.step()
    assert p.data[0] == pytest.approx(0.85426306, abs=1e-8)


def test_matches_the_equations_over_many_steps():
    rng = np.random.default_rng(0)
    p = parameter(rng.standard_normal((3, 5)))
    expected, m, v = p.data.copy(), np.zeros((3, 5)), np.zeros((3, 5))
    optimizer = AdamW({"p": p}, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    for t in range(1, 21):
        p.grad = rng.standard_normal((3, 5))
        m, v = 0.8 * m + 0.2 * p.grad, 0.9 * v + 0.1 * p.grad**2
        update = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
        expected = expected * (1 - 0.01 * 0.3) - 0.01 * update
        optimizer.step()
    np.testing.assert_allclose(p.data, expected, rtol=1e-12)


@pytest.mark.parametrize("gradient", [3.0, -0.02])
def test_the_first_step_has_the_size_of_the_learning_rate(gradient):
    p = parameter([2.0])
    optimizer = AdamW({"p": p}, lr=0.01, weight_decay=0.0)
    p.grad = np.array([gradient])
    optimizer.step()
    assert p.data[0] == pytest.approx(2.0 - 0.01 * np.sign(gradient), abs=1e-6)


def test_a_zero_gradient_only_decays_and_only_what_should_decay():
    matrix, norm = parameter(np.ones((2, 2))), parameter(np.ones(2), decay=False)
    optimizer = AdamW({"matrix": matrix, "norm": norm}, lr=0.1, weight_decay=0.5)
    matrix.grad, norm.grad = np.zeros((2, 2)), np.zeros(2)
    optimizer.step()
    np.testing.assert_allclose(matrix.data, 1.0 - 0.1 * 0.5, rtol=1e-15)
    np.testing.assert_array_equal(norm.data, 1.0)


def test_the_step_takes_another_learning_rate():
    p = parameter([1.0])
    optimizer = AdamW({"p": p}, lr=1.0, weight_decay=0.0)
    p.grad = np.array([1.0])
    optimizer.step(lr=0.25)
    assert p.data[0] == pytest.approx(0.75)


def test_groups_scale_the_rate_and_set_the_decay_and_the_first_match_wins():
    parameters = {"embed.weight": parameter([1.0]), "layers.0.weight": parameter([1.0])}
    groups = [ParamGroup("embed*", lr_scale=5.0, weight_decay=0.0), ParamGroup("*", lr_scale=2.0)]
    optimizer = AdamW(parameters, lr=0.01, weight_decay=0.1, groups=groups)
    for p in parameters.values():
        p.grad = np.array([1.0])
    optimizer.step()
    assert parameters["embed.weight"].data[0] == pytest.approx(1.0 - 5 * 0.01)
    assert parameters["layers.0.weight"].data[0] == pytest.approx(1.0 * (1 - 2 * 0.01 * 0.1) - 2 * 0.01)


def test_a_group_that_matches_nothing_names_the_nearest_parameters():
    with pytest.raises(InputError, match=r"'embd\*' matches no parameter.*embed"):
        AdamW({"embed.weight": parameter([1.0])}, lr=0.1, groups=[ParamGroup("embd*")])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_updates_below_the_storage_resolution_add_up_in_the_master_weights(dtype):
    """One update of 1e-4 rounds to nothing at 1.0 (bfloat16 resolves 0.0039 below 1, float16 0.0005)."""
    with_master, without = parameter([1.0], dtype), parameter([1.0], dtype)
    precise = AdamW({"p": with_master}, lr=1e-4, weight_decay=0.0)
    coarse = AdamW({"p": without}, lr=1e-4, weight_decay=0.0, master_weights=False)
    for _ in range(100):
        with_master.grad = without.grad = np.ones(1, np.float32)
        precise.step()
        coarse.step()
    assert float(with_master.data[0]) == pytest.approx(1.0 - 100 * 1e-4, abs=0.004)
    assert with_master.data.dtype == with_master.dtype
    assert float(with_master.data[0]) < 1.0
    assert float(without.data[0]) == 1.0


def test_a_parameter_without_gradient_is_left_alone_and_starts_at_its_own_step_one():
    used, idle = parameter([1.0]), parameter([1.0])
    optimizer = AdamW({"used": used, "idle": idle}, lr=0.01, weight_decay=0.5)
    for _ in range(30):
        used.grad = np.array([1.0])
        optimizer.step()
    assert idle.data[0] == 1.0
    assert "idle.m" not in optimizer.state_dict()
    idle.grad = np.array([1.0])
    optimizer.step()
    assert idle.data[0] == pytest.approx(1.0 * (1 - 0.01 * 0.5) - 0.01)      # bias-corrected as a first step


def test_a_gradient_scale_equals_scaled_gradients_and_leaves_them_alone():
    one, two = parameter([[1.0, -2.0]]), parameter([[1.0, -2.0]])
    first, second = AdamW({"p": one}, lr=0.1), AdamW({"p": two}, lr=0.1)
    for gradient in ([[4.0, 8.0]], [[-1.0, 2.0]]):
        one.grad, two.grad = np.array(gradient), np.array(gradient) * 0.25
        first.step(grad_scale=0.25)
        second.step()
        np.testing.assert_array_equal(one.grad, gradient)
    np.testing.assert_array_equal(one.data, two.data)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_saved_state_continues_to_the_same_bits(dtype):
    def build():
        rng = np.random.default_rng(5)
        found = {"a": parameter(rng.standard_normal((4, 3)), dtype)}
        found["b"] = parameter(rng.standard_normal(3), dtype)
        return found, AdamW(found, lr=0.01)

    straight, optimizer = build()
    for step in range(6):
        give_gradients(straight, step)
        optimizer.step()
    before, first = build()
    for step in range(3):
        give_gradients(before, step)
        first.step()
    saved = {name: array.copy() for name, array in first.state_dict().items()}
    weights = {name: p.data.copy() for name, p in before.items()}
    after, second = build()
    for name, p in after.items():
        p.data = weights[name]
    second.load_state_dict(saved)
    assert second.steps == 3
    for step in range(3, 6):
        give_gradients(after, step)
        second.step()
    for name, p in straight.items():
        np.testing.assert_array_equal(after[name].data.view(np.uint8), p.data.view(np.uint8))
    assert ("a.master" in saved) == (dtype == "bfloat16")


def test_loading_copies():
    p = parameter([1.0])
    optimizer = AdamW({"p": p}, lr=0.1)
    p.grad = np.array([1.0])
    optimizer.step()
    saved = {name: array.copy() for name, array in optimizer.state_dict().items()}
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert saved["p.m"][0] == pytest.approx(0.1)


def stepped():
    p = parameter(np.ones((2, 2)))
    optimizer = AdamW({"p": p}, lr=0.1)
    p.grad = np.ones((2, 2))
    optimizer.step()
    return optimizer, {name: array.copy() for name, array in optimizer.state_dict().items()}


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda s: s.pop("p.v"), r"p\.v is missing"),
    (lambda s: s.pop("steps"), "steps is missing"),
    (lambda s: s.update({"q.m": np.ones(1)}), r"q\.m belongs to no parameter"),
    (lambda s: s.update({"p.m": np.ones((2, 3))}), r"p\.m has shape \[2, 3\], not \[2, 2\]"),
])
def test_a_state_that_does_not_fit_is_refused_before_anything_changes(spoil, message):
    optimizer, saved = stepped()
    spoil(saved)
    with pytest.raises(InputError, match=message):
        optimizer.load_state_dict(saved)
    assert optimizer.steps == 1
    np.testing.assert_allclose(optimizer.state_dict()["p.m"], 0.1)


@pytest.mark.parametrize("settings", [
    {"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": 0.0}, {"weight_decay": -0.1}])
def test_impossible_settings_are_refused_by_name(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        AdamW({"p": parameter([1.0])}, **{"lr": 0.1, **settings})


def test_zero_grad_forgets_the_gradients():
    p = parameter([1.0])
    optimizer = AdamW({"p": p}, lr=0.1)
    p.grad = np.ones(1)
    optimizer.zero_grad()
    assert p.grad is None


def test_half_precision_is_rounded_to_nearest_from_the_master():
    p = parameter([1.0], "bfloat16")
    optimizer = AdamW({"p": p}, lr=0.003, weight_decay=0.0)
    p.grad = np.ones(1, np.float32)
    optimizer.step()
    master = optimizer.state_dict()["p.master"]
    assert master.dtype == np.float32
    assert p.data[0] == master.astype(ml_dtypes.bfloat16)[0]
