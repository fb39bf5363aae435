"""AdamW of all parameters in one native call: the bits of a call per parameter, whatever the threads, and
none of it where a gradient is not finite."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nn.backends import native
from nn.layers.module import Parameter
from nn.models import MoETransformer
from nn.optim import AdamW, Muon, ParamGroup, create_optimizer, grad_norm
from nn.optim.together import NotTakenError, Together
from nn.train.gradients import accumulate
from tests.native.test_recorded_training import batch, bits, recording, steps, update_of

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
SHAPES = [(1,), (3, 5), (0, 4), (), (4096,), (40_001,), (2, 4097), *[(7,)] * 40]
GROUPS = [ParamGroup("2?", lr_scale=3.0, weight_decay=0.5), ParamGroup("4", lr_scale=0.0)]
Optimizer = Callable[..., AdamW]


def made(make: Optimizer, dtype: str, **settings: Any) -> tuple[dict[str, Parameter], AdamW]:
    rng, parameters = np.random.default_rng(0), {}
    for i, shape in enumerate(SHAPES):
        parameters[str(i)] = parameter = Parameter(shape, dtype=dtype, decay=len(shape) > 1)
        parameter.data = np.asarray(rng.standard_normal(shape)).astype(parameter.dtype)
    return parameters, make(parameters, lr=0.01, groups=GROUPS, **settings)


def give_gradients(parameters: dict[str, Parameter], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for i, p in enumerate(parameters.values()):
        kind = p.dtype if i % 3 == 0 else np.float32        # of bfloat16 either
        p.grad = None if i == 9 and seed == 1 else np.asarray(rng.standard_normal(p.shape)).astype(kind)


def everything(parameters: dict[str, Parameter], optimizer: AdamW) -> dict[str, bytes]:
    state = {name: np.asarray(array).tobytes() for name, array in optimizer.state_dict().items()}
    return state | {name: p.data.tobytes() for name, p in parameters.items()}


def run(make: Optimizer, dtype: str, max_norm: float | None, together: bool,
        **settings: Any) -> tuple[list[float], Any]:
    parameters, optimizer = made(make, dtype, **settings)
    norms = []
    for seed in range(1, 5):
        give_gradients(parameters, seed)
        step = optimizer.together(given(optimizer)) if together else None
        assert (step is None) == (not together or seed <= 2)          # moments are there after a step
        norms.append(optimizer.clipped_step(max_norm, lr=0.01 / seed) if step is None
                     else optimizer.take(step, max_norm, lr=0.01 / seed))
        assert step is None or len(step.slots) >= 40
    return norms, everything(parameters, optimizer)


def given(optimizer: AdamW) -> list[tuple[Any, Any]]:
    parameters = [slot.param for slot in optimizer._slots.values()]
    return [(param, param.grad) for param in parameters if param.grad is not None]


def step_of(optimizer: AdamW) -> Together:
    step = optimizer.together(given(optimizer))
    assert step is not None
    return step


@pytest.mark.parametrize("max_norm", [None, 1.0, 1e9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [AdamW, Muon])
def test_the_bits_of_a_call_per_parameter(make: Optimizer, dtype: str, max_norm: float | None) -> None:
    settings = {"adamw_lr_scale": 0.5} if make is Muon else {}
    found = []
    for threads in (1, 2, 3):
        with native.limit_threads(threads):
            found.append(run(make, dtype, max_norm, together=True, **settings))
    expected = run(make, dtype, max_norm, together=False, **settings)
    assert all(each == expected for each in found)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_everything(bad: float) -> None:
    parameters, optimizer = made(AdamW, "bfloat16")
    for way in (optimizer.clipped_step, lambda norm: optimizer.take(step_of(optimizer), norm)):
        give_gradients(parameters, 2)
        parameters["6"].grad[1, 4096] = bad
        before = everything(parameters, optimizer)
        assert not math.isfinite(way(1.0))
        assert everything(parameters, optimizer) == before
        give_gradients(parameters, 3)
        assert way(1.0) == grad_norm(parameters.values())


def test_the_formula_in_float64() -> None:
    parameters, optimizer = made(AdamW, "float32")
    for seed in (2, 3):
        before = {name: p.data.astype(np.float64) for name, p in parameters.items()}
        m, v = ({name: optimizer.state_dict().get(f"{name}.{key}", np.zeros(p.shape)).astype(np.float64)
                 for name, p in parameters.items()} for key in "mv")
        give_gradients(parameters, seed)
        grads = {name: p.grad.astype(np.float64) for name, p in parameters.items()}
        norm = math.sqrt(sum(float(np.sum(g * g)) for g in grads.values()))
        found = optimizer.clipped_step(2.0) if seed == 2 else optimizer.take(step_of(optimizer), 2.0)
        assert found == pytest.approx(norm, rel=1e-12)
        for name, p in parameters.items():
            g, t = grads[name] * 2.0 / norm, seed - 1
            lr = 0.01 * (3.0 if len(name) == 2 and name[0] == "2" else 0.0 if name == "4" else 1.0)
            decay = 0.5 if len(name) == 2 and name[0] == "2" else 0.1 if p.decay else 0.0
            first, second = 0.9 * m[name] + 0.1 * g, 0.95 * v[name] + 0.05 * g * g
            move = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.95**t)) + 1e-8)
            np.testing.assert_allclose(p.data, before[name] * (1 - lr * decay) - lr * move, rtol=1e-5,
                                       atol=1e-6)


def test_what_is_not_dense_goes_one_by_one() -> None:
    parameters, optimizer = made(AdamW, "float32")
    others, right = made(AdamW, "float32")
    for each, step in ((parameters, optimizer), (others, right)):
        give_gradients(each, 2)
        step.step()
        give_gradients(each, 3)
    parameters["6"].grad = np.asfortranarray(parameters["6"].grad)
    with pytest.raises(NotTakenError):
        optimizer.together(given(optimizer))
    assert optimizer.clipped_step(1.0) == pytest.approx(right.take(step_of(right), 1.0), rel=1e-12)
    np.testing.assert_allclose(parameters["6"].data, others["6"].data, rtol=1e-6)


def test_sums_are_exact() -> None:
    rng, exact_sum = np.random.default_rng(0), native.extension().exact_sum
    hard = [[], [1e16, 1.0, 1e-16], [1.0, 2.0**-53, 2.0**-106], [1.0, 2.0**-53], [1e100, 1.0, -1e100],
            [1.0, -(2.0**-54), -(2.0**-107)], [1e308, 1e292, 1e276]]
    drawn = [rng.standard_normal(n) * 10.0 ** rng.integers(-30, 30, n) for n in (1, 2, 3, 10, 148) * 40]
    for x in [*hard, *drawn]:
        assert exact_sum(np.asarray(x, np.float64)) == math.fsum(x)


def test_a_replay_makes_the_optimizers_step_until_its_state_is_another() -> None:
    update, eager = (update_of(MoETransformer.tiny(seed=1), recorded) for recorded in (True, False))
    for each in (update, eager):
        steps(each, [batch(i) for i in range(4)])
    done = recording(update)
    first = done.together
    assert first is not None
    assert first.serves(update.optimizer)
    for each in (update, eager):
        state = {name: np.array(array) for name, array in each.optimizer.state_dict().items()}
        each.optimizer.load_state_dict(state)
        each.optimizer.eps = 1e-3
    assert not first.serves(update.optimizer)
    assert [norm for _, norm in steps(update, [batch(5), batch(6)])] \
        == [norm for _, norm in steps(eager, [batch(5), batch(6)])]
    assert done.together is not first
    assert bits(update.model) == bits(eager.model)
    assert {name: array.tobytes() for name, array in update.optimizer.state_dict().items()} \
        == {name: array.tobytes() for name, array in eager.optimizer.state_dict().items()}


def test_muon_is_recorded_with_its_matrices_behind() -> None:
    found = []
    for recorded in (True, False):
        update = update_of(MoETransformer.tiny(seed=1), recorded)
        update.optimizer = create_optimizer("muon", update.model.named_parameters(), lr=1e-2)
        norms = [norm for _, norm in steps(update, [batch(i) for i in range(4)])]
        found.append((norms, bits(update.model)))
        assert not recorded or recording(update).together is not None
    assert found[0] == found[1]


def test_an_error_of_a_part_in_python_is_no_refusal_of_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    update = update_of(MoETransformer.tiny(seed=1), True)
    update.optimizer = create_optimizer("muon", update.model.named_parameters(), lr=1e-2)
    steps(update, [batch(i) for i in range(4)])
    assert recording(update).together is not None

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("of no kernel")

    monkeypatch.setattr("nn.optim.muon.orthogonalized", broken)
    with pytest.raises(RuntimeError, match="of no kernel"):
        steps(update, [batch(5)])
    assert update.optimizer.steps == 5


def test_the_norm_is_that_of_the_models_gradients() -> None:
    found = []
    for recorded in (True, False):
        update = update_of(MoETransformer.tiny(seed=1), recorded)
        some = dict(list(update.model.named_parameters().items())[:5])
        update.optimizer = AdamW(some, lr=1e-2)
        norms = [norm for _, norm in steps(update, [batch(i) for i in range(4)])]
        found.append((norms, bits(update.model)))
    assert found[0] == found[1]
    model = update_of(MoETransformer.tiny(seed=1), False).model
    accumulate(model, [batch(0)], seed=0, step=1)
    assert found[0][0][0] == grad_norm(model.parameters())


def test_an_optimizer_with_a_step_of_its_own_makes_it() -> None:
    class Counting(AdamW):
        calls = 0

        def step(self, lr: float | None = None, grad_scale: float = 1.0) -> None:
            self.calls += 1
            super().step(lr, grad_scale)

    update = update_of(MoETransformer.tiny(seed=1), True)
    update.optimizer = optimizer = Counting(update.model.named_parameters(), lr=1e-2)
    steps(update, [batch(i) for i in range(5)])
    assert optimizer.calls == 5
    assert recording(update).apart is optimizer
