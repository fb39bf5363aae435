"""Every planted bug is found by every check that claims to, and the healthy code passes the same checks."""

from collections.abc import Callable

import numpy as np
import pytest

from nn import ops
from nn.backends import BACKENDS
from nn.backends.protocol import KERNELS
from nn.tensor import Tensor
from tests import test_tensor
from tests.conformance.cases import cases
from tests.conformance.compare import check_on
from tests.gradients import check
from tests.layers import test_attention, test_moe, test_rotary
from tests.models import test_decoding, test_properties
from tests.mutants.planted import MUTANTS, Mutant, planted
from tests.ops import test_gradients as op_gradients
from tests.ops import test_half, test_values
from tests.ops.table import ROWS

FOUND = (AssertionError, ValueError, RuntimeError)          # a wrong result, or one that fits nowhere
REFERENCE = next(backend for backend in BACKENDS if backend.name == "reference")


def kernel(name: str) -> None:
    for dtype in ("float64", "float32"):
        for case in cases(name, dtype):
            check_on(REFERENCE, case)


def operation(name: str) -> None:
    for row in ROWS:
        if row.op == name:
            check(row.function, *row.inputs, entries=8)


def chunks() -> None:
    with pytest.MonkeyPatch.context() as patch:
        op_gradients.test_logits_in_chunks(patch, 25)


def accumulation() -> None:
    x = Tensor(np.array([1.0]), requires_grad=True)
    for expected in (2.0, 4.0):
        (x * 2.0).backward()
        assert x.grad.tolist() == [expected]


def same_bits() -> None:
    """A row alone and among 99 others"""
    random = np.random.default_rng(0)
    x, w = random.standard_normal((2, 100, 64)), random.standard_normal((1, 64, 64))
    whole = ops.grouped_linear(Tensor(x[0]), Tensor(w), np.array([0, 100])).data
    for rows in (1, 3, 17, 65):
        part = ops.grouped_linear(Tensor(x[0, :rows]), Tensor(w), np.array([0, rows])).data
        np.testing.assert_array_equal(part, whole[:rows])


PROPERTIES: dict[str, Callable[[], None]] = {
    "accumulation": accumulation, "chunks": chunks, "same_bits": same_bits,
    "diamond": lambda: test_tensor.TestBackward().test_diamond(),
    "freed": lambda: test_tensor.TestFreedBuffers().test_saved_arrays_die_during_backward(),
    "long_sums": lambda: test_half.TestLongSums().test_gradient_of_a_broadcast_operand("bfloat16"),
    "ties": lambda: test_values.TestTies().test_max_shares(),
    "causal": lambda: test_properties.test_a_change_leaves_every_bit_before_it("as it is", 17, "float64"),
    "windowed": lambda: test_attention.test_window_forgets(),
    "cached": lambda: test_decoding.test_cached_equals_uncached("as it is", (4, 1, 1, 3)),
    "trimmed": lambda: test_decoding.test_positions_go_on_after_trim(),
    "padded": lambda: test_decoding.test_rows_of_unequal_length_decode_as_if_alone(3, True),
    "capacity": lambda: test_moe.TestCapacity().test_room(100, 2, 4, 1.0, 50),
    "scaled": lambda: test_rotary.TestScalings().test_ntk(),
}


def prove(name: str) -> None:
    PROPERTIES[name]()


CHECKS: dict[str, Callable[[str], None]] = {"kernel": kernel, "op": operation, "property": prove}


def claims(mutant: Mutant) -> list[tuple[str, str]]:
    words = mutant.found_by.split()
    return list(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.module}: {mutant.story}")
def test_is_found(mutant: Mutant) -> None:
    with planted(mutant), np.errstate(all="ignore"):
        for kind, name in claims(mutant):
            with pytest.raises(FOUND):
                CHECKS[kind](name)


@pytest.mark.parametrize("name", PROPERTIES)
def test_healthy_code_has_the_property(name: str) -> None:
    prove(name)


def test_every_property_has_its_mutant() -> None:
    every = [claim for mutant in MUTANTS for claim in claims(mutant)]
    assert {name for kind, name in every if kind == "property"} == set(PROPERTIES)


def test_a_mutant_leaves_nothing_behind() -> None:
    mutant = next(one for one in MUTANTS if one.found_by.startswith("kernel silu "))
    kernel("silu")
    with planted(mutant), pytest.raises(AssertionError):
        kernel("silu")
    kernel("silu")


def test_every_kernel_with_room_for_a_bug_has_one() -> None:
    named = {name for mutant in MUTANTS for kind, name in claims(mutant) if kind == "kernel"}
    simple = {"gelu", "gelu_tanh", "swiglu", "log_softmax", "cross_entropy", "linear_cross_entropy", "matmul"}
    assert named | simple == set(KERNELS)
