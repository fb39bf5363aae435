"""Every registered block learns, within 300 steps, something that it is for (tests/blocks/learning.py)."""

import math
from collections import Counter
from itertools import pairwise, permutations, product

import numpy as np
import pytest

from nn.layers import registry
from tests.blocks import learning, tasks
from tests.blocks.learning import CONTROLS, TRIALS, Trial, learn, without
from tests.blocks.tasks import IGNORED, Task
from tests.docs.pages import marked, rows

TASKS = list({trial.task.name: trial.task for trial in TRIALS}.values())
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def test_every_registered_block_has_a_trial() -> None:
    """A new block is to be given one."""
    registered = {(role, name) for role in registry.ROLES for name in registry.names(role)}
    assert {(trial.role, trial.name) for trial in TRIALS} == registered
    assert len(TRIALS) == len(registered)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_learns(trial: Trial) -> None:
    outcome = learn(trial.task, trial.model)
    assert outcome.start > 0.9 * trial.task.blind
    assert outcome.end < trial.bound
    assert outcome.end > trial.task.perfect - 1e-6, "better than perfect: the answers leak"


# ---- what a bound is worth ----


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_the_bound_lies_below_what_a_blind_model_can_reach(trial: Trial) -> None:
    assert trial.bound < 0.5 * trial.task.blind


@pytest.mark.parametrize(("control", "task"), sorted({(trial.control, trial.task.name) for trial in TRIALS}))
def test_without_the_block_the_bound_is_out_of_reach(control: str, task: str) -> None:
    bounds = [trial.bound for trial in TRIALS if (trial.control, trial.task.name) == (control, task)]
    assert without(control, task) > 1.3 * max(bounds)


def test_every_control_is_used() -> None:
    assert {trial.control for trial in TRIALS} == set(CONTROLS)


@every_task
def test_what_sees_the_token_alone_reaches_no_less_than_blind(task: Task) -> None:
    """The entropy of the answer given the token it is asked at, counted over many rows: a window of one token
    cannot do better, and `blind`, which knows more, not worse"""
    batch = task.draw(np.random.default_rng(5), 20_000)
    asked = batch.targets != IGNORED
    pairs = Counter(zip(batch.ids[asked].tolist(), batch.targets[asked].tolist(), strict=True))
    tokens = Counter(batch.ids[asked].tolist())
    total = asked.sum()
    entropy = -sum(n / total * math.log(n / tokens[token]) for (token, _), n in pairs.items())
    assert entropy > task.blind - 0.01


def test_blind_losses_are_those_of_counting() -> None:
    """Small cases, all of their rows written out"""
    threes = list(product(range(2), repeat=3))                # copies of three of two symbols
    orders = [len(set(permutations(row))) for row in threes]
    assert tasks.copy(2, 3).blind == pytest.approx(np.mean(np.log(orders)) / 3)
    left = [math.log(count) for count in (3, 2, 1)]           # after the first of four, three can follow
    assert tasks.induction(4).blind == pytest.approx(sum(left) / 3)
    assert tasks.recall(2, 2).blind == pytest.approx(0.5 * math.log(2))    # half the rows have one value
    assert tasks.modular_sum(7).blind == pytest.approx(math.log(7))
    assert tasks.first_token(3).blind == pytest.approx(math.log(3))
    table = np.random.default_rng(1).integers(0, 8, (8, 8))
    entropy = [-sum(c / 8 * math.log(c / 8) for c in Counter(column.tolist()).values()) for column in table.T]
    assert tasks.bigrams().blind == pytest.approx(np.mean(entropy))


# ---- the tasks ask what they say ----


def test_copies_are_at_a_fixed_distance() -> None:
    batch = tasks.copy(5, 3).draw(np.random.default_rng(0), 4)
    assert (batch.targets[:, :3] == IGNORED).all()
    assert np.array_equal(batch.targets[:, 3:], batch.ids[:, :3])
    assert np.array_equal(batch.ids[:, 4:], batch.ids[:, :2])


def test_induction_asks_for_the_token_that_followed() -> None:
    batch = tasks.induction(5).draw(np.random.default_rng(0), 50)
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        after = dict(pairwise([*ids[:5], ids[0]]))
        assert targets == [IGNORED] * 5 + [after[token] for token in ids[5:]]


def test_recall_asks_for_the_value_of_the_key() -> None:
    batch = tasks.recall(4, 3).draw(np.random.default_rng(0), 50)
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        values = dict(divmod(pair - 4, 3) for pair in ids[:4])
        assert targets == [IGNORED] * 4 + [values[key] for key in ids[4:]]
        assert sorted(ids[4:]) == [0, 1, 2, 3]


def test_sums_are_modular() -> None:
    batch = tasks.modular_sum(5, 4).draw(np.random.default_rng(0), 20)
    assert np.array_equal(batch.targets[:, 1:], np.cumsum(batch.ids, axis=1)[:, 1:] % 5)


def test_bigrams_have_one_answer_each() -> None:
    batch, answer = tasks.bigrams().draw(np.random.default_rng(0), 100), dict[tuple[int, int], int]()
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        for pair, target in zip(pairwise(ids), targets[1:], strict=True):
            assert answer.setdefault(pair, target) == target


# ---- the page ----


def test_the_table_is_on_the_page() -> None:
    """Every block with its task, blind loss and bound; what was reached, below the bound"""
    table = rows("6-blocks.md", "learning")
    found = {name: (task, *map(float, losses)) for name, task, *losses in table}
    assert set(found) == {trial.name for trial in TRIALS}
    for trial in TRIALS:
        task, start, blind, control, bound, reached = found[trial.name]
        assert (task, bound) == (trial.task.name, trial.bound)
        assert blind == pytest.approx(trial.task.blind, abs=0.006)
        assert reached < bound < control
        assert start > reached
    assert marked("6-blocks.md", "table: learning").startswith(learning.HEAD)
