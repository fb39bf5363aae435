"""Learning-rate schedules at their key steps, and the factories that build by name."""

import math

import pytest

from nn.errors import InputError
from nn.layers.module import Parameter
from nn.optim import AdamW, create_optimizer, create_schedule
from nn.optim.schedules import SCHEDULES, constant, warmup_cosine, warmup_linear, warmup_stable_decay


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_first_update_moves_and_the_peak_is_reached_after_the_warm_up(name):
    rate = create_schedule(name, lr=2.0, steps=100, warmup=10, floor=0.1)
    assert rate(0) == pytest.approx(0.2)
    assert rate(9) == pytest.approx(2.0)
    assert [rate(s) for s in range(10)] == sorted(rate(s) for s in range(10))


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_step_jumps(name):
    """Continuity at the borders of the phases: no change above the steepest slope of any schedule here."""
    rate = create_schedule(name, lr=1.0, steps=1000, warmup=100, floor=0.1)
    assert max(abs(rate(s + 1) - rate(s)) for s in range(1200)) <= 0.0101


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warm_up_it_starts_at_the_peak(name):
    assert create_schedule(name, lr=3.0, steps=10)(0) == pytest.approx(3.0)


def test_cosine():
    settings = {"steps": 110, "warmup": 10, "floor": 0.1}
    assert warmup_cosine(60, **settings) == pytest.approx(0.55)
    assert warmup_cosine(10, **settings) == pytest.approx(1.0)
    assert warmup_cosine(35, **settings) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert warmup_cosine(110, **settings) == pytest.approx(0.1)
    assert warmup_cosine(10_000, **settings) == pytest.approx(0.1)


def test_linear():
    assert warmup_linear(60, steps=110, warmup=10, floor=0.1) == pytest.approx(0.55)
    assert warmup_linear(110, steps=110, warmup=10, floor=0.0) == 0.0


@pytest.mark.parametrize(("shape", "value"), [("linear", 0.55), ("cosine", 0.55), ("sqrt", 0.3636039)])
def test_warm_up_stable_decay(shape, value):
    settings = {"steps": 100, "warmup": 10, "floor": 0.1, "decay": 10, "shape": shape}
    assert warmup_stable_decay(95, **settings) == pytest.approx(value, abs=1e-7)
    assert [warmup_stable_decay(s, **settings) for s in (10, 50, 90)] == [1.0, 1.0, 1.0]
    assert warmup_stable_decay(100, **settings) == pytest.approx(0.1)


def test_constant():
    assert [constant(s, warmup=4) for s in (0, 1, 3, 4, 999)] == [0.25, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("call", [
    lambda: create_schedule("cosin", lr=1.0, steps=10),
    lambda: create_optimizer("adamv", {}, lr=1.0),
])
def test_an_unknown_name_suggests_the_nearest(call):
    with pytest.raises(InputError, match=r"did you mean '(cosine|adamw)'"):
        call()


def test_unknown_settings_are_refused():
    with pytest.raises(InputError, match="unknown setting 'warmpu'; did you mean 'warmup'"):
        create_schedule("cosine", lr=1.0, steps=10, warmpu=3)
    with pytest.raises(InputError, match="unknown setting 'momentum'"):
        create_optimizer("adamw", {}, lr=1.0, momentum=0.9)
    with pytest.raises(InputError, match="'cubic' is not a decay"):
        create_schedule("wsd", lr=1.0, steps=10, shape="cubic")


def test_one_configuration_switches_between_schedules():
    for name in SCHEDULES:
        create_schedule(name, lr=1.0, steps=10, warmup=2, floor=0.5)(3)


def test_an_optimizer_by_name():
    optimizer = create_optimizer("adamw", {"p": Parameter((2,))}, lr=0.1, weight_decay=0.2)
    assert isinstance(optimizer, AdamW)
    assert optimizer.lr == 0.1
