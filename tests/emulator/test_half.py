"""f16 and bf16 arithmetic, alone and in pairs, against exact fractions rounded once."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from tests.emulator.arithmetic import (
    FORMATS,
    NAN,
    Case,
    Columns,
    Number,
    add,
    check,
    column,
    decode,
    encode,
    flush,
    greatest,
    infinity,
    least,
    mul,
    number,
    operands,
    relu,
    round_to,
    saturate,
    zero,
)
from tests.emulator.snippets import refusal

TYPES = ("f16", "bf16")


def _double_rounding(type: str) -> Columns:
    """Triples for fma whose sum lies so little beside a middle that rounding it twice would hide it."""
    form = FORMATS[type]
    one = form.bias << form.fraction
    rows = []
    for a in (one, one + 1, one + (1 << form.fraction) - 1):
        for b in (one, one + 1):
            for c in (
                1,
                2,
                1 << form.fraction,
                form.bias - form.fraction - 1 << form.fraction,
                form.bias - 2 * form.fraction << form.fraction,
            ):
                for sign in (0, form.sign):
                    rows += [(a, b, c | sign), (c, one, a | sign), (c + 1, b, a | sign)]
    half = form.bias - form.fraction - 1 << form.fraction  # half a unit in the last place of 1
    rows += [(half, one, one), (half, one + 1, one), (half, one, one + 1), (half | form.sign, one, one)]
    return [(type, column(type, [row[i] for row in rows])) for i in range(3)]


def _as_pairs(columns: Columns) -> Columns:
    """Words whose low halves are the column and whose high halves are it backwards."""
    return [
        ("b32", column("b32", [x | y << 16 for x, y in zip(v.tolist(), v.tolist()[::-1], strict=True)]))
        for _, v in columns
    ]


def _both(type: str, formula: Callable[..., Number]) -> Callable[..., int]:
    def packed(*words: int) -> int:
        low = formula(*(decode(word & 0xFFFF, type) for word in words))
        high = formula(*(decode(word >> 16, type) for word in words))
        return encode(low, type) | encode(high, type) << 16

    return packed


def _cases(type: str, spelling: str, columns: Columns, formula: Callable[..., Number]) -> list[Case]:
    """The instruction on one value and on pairs."""
    return [
        Case(f"{spelling}.{type}", type, columns, formula),
        Case(f"{spelling}.{type}x2", "b32", _as_pairs(columns), _both(type, formula)),
    ]


def _rounded(
    type: str, name: str, ftz: bool = False, finish: Callable[[Number], Number] = lambda x: x
) -> Callable[..., Number]:
    exact = {
        "add": add,
        "sub": lambda a, b: add(a, -b),
        "mul": mul,
        "fma": lambda a, b, c: add(mul(a, b), c),
    }[name]

    def formula(*values: Number) -> Number:
        if ftz:
            values = tuple(flush(value, type) for value in values)
        result = round_to(exact(*values), type)
        return finish(flush(result, type) if ftz else result)

    return formula


@pytest.mark.parametrize("type", TYPES)
def test_arithmetic(type: str) -> None:
    two, three = operands(type, type), operands(type, type, type)
    cases = []
    for name in ("add", "sub", "mul"):
        cases += _cases(type, name, two, _rounded(type, name)) + _cases(
            type, f"{name}.rn", two, _rounded(type, name)
        )
    cases += _cases(type, "fma.rn", three, _rounded(type, "fma"))
    cases += _cases(type, "fma.rn", _double_rounding(type), _rounded(type, "fma"))
    cases += _cases(type, "fma.rn.relu", three, _rounded(type, "fma", finish=relu))
    if type == "f16":
        for name, columns in (("add", two), ("sub", two), ("mul", two), ("fma", three)):
            cases += _cases(type, f"{name}.rn.ftz", columns, _rounded(type, name, True))
            cases += _cases(type, f"{name}.rn.sat", columns, _rounded(type, name, finish=saturate))
            cases += _cases(type, f"{name}.rn.ftz.sat", columns, _rounded(type, name, True, saturate))
        cases += _cases(type, "fma.rn.ftz.relu", three, _rounded(type, "fma", True, relu))
    check(cases)


def test_products_and_sums_of_all_magnitudes() -> None:
    """Thousands of random bit patterns, against NumPy's own f16 arithmetic."""
    random = np.random.default_rng(8)
    a, b = (random.integers(0, 1 << 16, 20000, np.uint16) for _ in range(2))

    def known(operation: Callable[..., object]) -> dict[tuple[int, int], int]:
        with np.errstate(all="ignore"):
            result = operation(a.view(np.float16), b.view(np.float16))
        bits = np.where(np.isnan(result), 0x7FFF, result.view(np.uint16))
        return dict(zip(zip(a.tolist(), b.tolist(), strict=True), bits.tolist(), strict=True))

    tables = {"add": known(np.add), "sub": known(np.subtract), "mul": known(np.multiply)}
    check(
        [
            Case(f"{name}.f16", "b16", [("b16", a), ("b16", b)], lambda x, y, t=table: t[x, y])
            for name, table in tables.items()
        ]
    )


# ---- signs, min, max ---------------------------------------------------------------------------------


@pytest.mark.parametrize("type", TYPES)
def test_signs(type: str) -> None:
    """Of all values but NaN, whose sign is not laid down."""
    values = [
        ("b16", np.array([bits for bits in range(1 << 16) if not decode(bits, type).nan], np.uint16)[::7])
    ]
    cases = [
        Case(f"neg.{type}", "b16", values, lambda a: a ^ 0x8000),
        Case(f"abs.{type}", "b16", values, lambda a: a & 0x7FFF),
    ]
    pairs = _as_pairs(values)
    cases += [
        Case(f"neg.{type}x2", "b32", pairs, lambda a: a ^ 0x80008000),
        Case(f"abs.{type}x2", "b32", pairs, lambda a: a & 0x7FFF7FFF),
    ]
    if type == "f16":
        numbers = [("f16", values[0][1])]
        cases += _cases(type, "neg.ftz", numbers, lambda a: -flush(a, type))
        cases += _cases(type, "abs.ftz", numbers, lambda a: abs(flush(a, type)))
    check(cases)


@pytest.mark.parametrize("type", TYPES)
def test_min_and_max(type: str) -> None:
    two = operands(type, type)
    cases = []
    for name, pick in (("min", least), ("max", greatest)):
        for ftz in (False, True) if type == "f16" else (False,):

            def seen(value: Number, ftz: bool = ftz) -> Number:
                return flush(value, type) if ftz else value

            def plain(a: Number, b: Number, s=seen, pick=pick) -> Number:
                return pick(s(a), s(b))

            def signed(a: Number, b: Number, s=seen, pick=pick) -> Number:
                result = pick(abs(s(a)), abs(s(b)))
                return result if result.nan else -result if a.negative != b.negative else result

            for nan in (False, True):
                for words, formula in (("", plain), (".xorsign.abs", signed)):

                    def whole(a: Number, b: Number, f=formula, nan: bool = nan) -> Number:
                        return NAN if nan and (a.nan or b.nan) else f(a, b)

                    cases += _cases(type, f"{name}{'.ftz' * ftz}{'.NaN' * nan}{words}", two, whole)
    check(cases)


# ---- approximations ----------------------------------------------------------------------------------


def _approximated(
    type: str, function: Callable[[float], float], limits: dict[str, Number]
) -> Callable[[Number], Number]:
    def formula(a: Number) -> Number:
        if a.nan:
            return NAN
        if not a.finite:
            return limits["-" if a.negative else "+"]
        try:
            value = function(float(a.value))
        except OverflowError:
            return infinity(False)
        return round_to(zero(math.copysign(1, value) < 0) if value == 0 else number(value), type)

    return formula


@pytest.mark.parametrize("type", TYPES)
def test_ex2_and_tanh(type: str) -> None:
    """Within one unit in the last place: the approximation is rounded a second time."""
    values = [(type, np.arange(0, 1 << 16, 5, dtype=np.uint16))]
    power = _approximated(type, math.exp2, {"+": infinity(False), "-": zero(False)})
    tangent = _approximated(type, math.tanh, {"+": number(1), "-": number(-1)})

    def flushed(a):
        return flush(power(flush(a, type)), type)

    spelling, formula = (
        (f"ex2.approx.{type}", power) if type == "f16" else (f"ex2.approx.ftz.{type}", flushed)
    )
    few = [(type, values[0][1][::20])]
    check(
        [
            Case(spelling, type, values, formula, ulps=1),
            Case(f"tanh.approx.{type}", type, values, tangent, ulps=1),
            Case(f"{spelling}x2", "b32", _as_pairs(few), _both(type, formula)),
            Case(f"tanh.approx.{type}x2", "b32", _as_pairs(few), _both(type, tangent)),
        ]
    )


def test_the_reference_itself() -> None:
    """1/3 in f16 by hand: 0x3555 is 0.33325, the next 0.33350."""
    assert encode(round_to(number(Fraction(1, 3)), "f16"), "f16") == 0x3555


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("add.rz.f16 %h0, %h1, %h2;", ".f16"),
        ("add.sat.bf16 %h0, %h1, %h2;", ".bf16"),
        ("fma.rn.sat.relu.f16 %h0, %h1, %h2, %h3;", ".relu"),
        ("fma.rn.oob.f16 %h0, %h1, %h2, %h3;", ".oob"),
        ("ex2.approx.bf16 %h0, %h1;", ".bf16"),
        ("max.abs.f16 %h0, %h1, %h2;", ".f16"),
        ("div.rn.f16 %h0, %h1, %h2;", ".f16"),
    ],
)
def test_refused(body: str, named: str) -> None:
    assert named in refusal(body, registers=".reg .b16 %h<4>;")


@pytest.mark.parametrize(
    ("body", "arch", "needed"),
    [
        ("add.bf16 %h0, %h1, %h2;", "sm_80", "sm_90"),
        ("fma.rn.bf16 %h0, %h1, %h2, %h3;", "sm_75", "sm_80"),
        ("max.xorsign.abs.f16 %h0, %h1, %h2;", "sm_80", "sm_86"),
    ],
)
def test_needs_a_newer_target(body: str, arch: str, needed: str) -> None:
    assert needed in refusal(body, registers=".reg .b16 %h<4>;", arch=arch)
