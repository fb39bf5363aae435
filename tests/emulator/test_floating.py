"""Floating-point arithmetic on f32 and f64, against exact fractions rounded as IEEE 754 says."""

import math
import struct
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
    div,
    encode,
    flush,
    greatest,
    infinity,
    least,
    mul,
    number,
    operands,
    random_bits,
    round_to,
    saturate,
    zero,
)
from tests.emulator.snippets import refusal

ROUNDS = ("rn", "rz", "rm", "rp")


def _halfway(type: str) -> Columns:
    """Triples whose exact a * b + c lies on or just beside the middle between two floats."""
    form = FORMATS[type]
    one, ulp = form.bias << form.fraction, form.fraction
    rows = []
    for a in (one, one + 1, one + 3):
        for shift in (ulp, ulp + 1, ulp + 2, 2 * ulp, 3 * ulp):
            for sign in (0, form.sign):
                for extra in (0, 1):
                    rows.append((a | sign, one + extra, (form.bias - shift << form.fraction) + extra))
                    rows.append((a, one + extra, (form.bias - shift << form.fraction) + extra | form.sign))
    return [(type, column(type, [row[i] for row in rows])) for i in range(3)]


def _sum(mode: str, type: str) -> Callable[..., Number]:
    return lambda a, b: round_to(add(a, b, mode), type, mode)


def _product(mode: str, type: str) -> Callable[..., Number]:
    return lambda a, b: round_to(mul(a, b), type, mode)


def _fused(mode: str, type: str) -> Callable[..., Number]:
    return lambda a, b, c: round_to(add(mul(a, b), c, mode), type, mode)


@pytest.mark.parametrize("type", ["f32", "f64"])
def test_arithmetic_in_every_direction(type: str) -> None:
    two, three, middles = operands(type, type), operands(type, type, type), _halfway(type)
    cases = []
    for mode in ("", *ROUNDS):
        spelled, used = (f".{mode}" if mode else ""), mode or "rn"
        cases += [
            Case(f"add{spelled}.{type}", type, two, _sum(used, type)),
            Case(f"sub{spelled}.{type}", type, two, lambda a, b, m=used: _sum(m, type)(a, -b)),
            Case(f"mul{spelled}.{type}", type, two, _product(used, type)),
        ]
        if mode:
            cases += [
                Case(f"fma.{mode}.{type}", type, three, _fused(mode, type)),
                Case(f"fma.{mode}.{type}", type, middles, _fused(mode, type)),
                Case(f"mad.{mode}.{type}", type, three, _fused(mode, type)),
                Case(f"add.{mode}.{type}", type, [middles[0], middles[2]], _sum(mode, type)),
                Case(f"div.{mode}.{type}", type, two, lambda a, b, m=mode: round_to(div(a, b), type, m)),
                Case(
                    f"rcp.{mode}.{type}",
                    type,
                    operands(type),
                    lambda a, m=mode: round_to(div(number(1), a), type, m),
                ),
                Case(f"sqrt.{mode}.{type}", type, operands(type), lambda a, m=mode: _root(a, type, m)),
            ]
    check(cases)


def _root(a: Number, type: str, mode: str) -> Number:
    """The square root, from an integer root with 200 bits and a sticky one."""
    if a.nan or (a.negative and not a.zero):
        return NAN
    if a.zero or not a.finite:
        return a
    scaled = a.value * Fraction(2) ** 2600
    root = math.isqrt(scaled.numerator // scaled.denominator)
    exact = scaled.denominator == 1 and root * root == scaled
    return round_to(number(Fraction(2 * root + (not exact), 2) / Fraction(2) ** 1300), type, mode)


def test_flushed_and_saturated() -> None:
    """.ftz on operands and result, .sat on the result, with each other and with a direction."""
    two, three = operands("f32", "f32"), operands("f32", "f32", "f32")
    cases = []
    for mode in ("rn", "rm"):
        for ftz in (False, True):
            for sat in (False, True):

                def wrapped(
                    *values: Number, formula: Callable[..., Number], ftz: bool = ftz, sat: bool = sat
                ) -> Number:
                    if ftz:
                        values = tuple(flush(value, "f32") for value in values)
                    result = formula(*values)
                    result = flush(result, "f32") if ftz else result
                    return saturate(result) if sat else result

                suffix = f"{'.ftz' * ftz}{'.sat' * sat}.f32"
                for name, columns, formula in (
                    ("add", two, _sum),
                    ("mul", two, _product),
                    ("fma", three, _fused),
                ):
                    cases.append(
                        Case(
                            f"{name}.{mode}{suffix}",
                            "f32",
                            columns,
                            lambda *v, w=wrapped, f=formula, m=mode: w(*v, formula=f(m, "f32")),
                        )
                    )
                if not sat:
                    cases.append(
                        Case(
                            f"div.{mode}{suffix}",
                            "f32",
                            two,
                            lambda a, b, w=wrapped, m=mode: w(
                                a, b, formula=lambda x, y: round_to(div(x, y), "f32", m)
                            ),
                        )
                    )
                    cases.append(
                        Case(
                            f"sqrt.{mode}{suffix}",
                            "f32",
                            operands("f32"),
                            lambda a, w=wrapped, m=mode: w(a, formula=lambda x: _root(x, "f32", m)),
                        )
                    )
    check(cases)


def _lanes(word: int) -> tuple[Number, Number]:
    return decode(word & 0xFFFFFFFF, "f32"), decode(word >> 32, "f32")


def test_pairs_of_floats() -> None:
    """f32x2, which sm_100 has."""
    words = [random_bits("f32", 400, seed) for seed in range(3)]
    edge = operands("f32", "f32", "f32")
    columns = []
    for i in range(3):
        low = edge[i][1].tolist()
        high = (words[i] * 3)[: len(low)]
        columns.append(("b64", column("b64", [x | y << 32 for x, y in zip(low, high, strict=True)])))
    cases = []
    for mode in ROUNDS:
        for ftz in ("", ".ftz"):
            for name, count, formula in (
                ("add", 2, _sum),
                ("sub", 2, _sum),
                ("mul", 2, _product),
                ("fma", 3, _fused),
            ):

                def both(
                    *pairs: int,
                    formula: Callable[..., Callable[..., Number]] = formula,
                    mode: str = mode,
                    ftz: str = ftz,
                    name: str = name,
                ) -> int:
                    result = 0
                    for lane in range(2):
                        values = [_lanes(pair)[lane] for pair in pairs]
                        values = [flush(value, "f32") if ftz else value for value in values]
                        values[-1] = -values[-1] if name == "sub" else values[-1]
                        value = formula(mode, "f32")(*values)
                        result |= encode(flush(value, "f32") if ftz else value, "f32") << 32 * lane
                    return result

                numbers = list(columns[:count])
                cases.append(Case(f"{name}.{mode}{ftz}.f32x2", "b64", _without_nan(numbers), both))
    check(cases, arch="sm_100a")


def _without_nan(columns: Columns) -> Columns:
    """Rows of finite moderate numbers: the bits of a NaN are not laid down for f32."""

    def tame(word: int) -> bool:
        return all(lane.finite and abs(lane.value) < 2**60 for lane in _lanes(word))

    rows = [
        row for row in zip(*(values.tolist() for _, values in columns), strict=True) if all(map(tame, row))
    ]
    return [("b64", column("b64", [row[i] for row in rows])) for i in range(len(columns))]


def test_mixed_precision() -> None:
    """add.f32.f16 and its like: the narrow operands are widened, the rest is f32."""
    cases = []
    for narrow in ("f16", "bf16"):
        columns = [*operands(narrow, narrow), ("f32", operands("f32", "f32")[0][1])]
        rows = min(len(values) for _, values in columns)
        columns = [(t, values[:rows]) for t, values in columns]
        for mode in ("rn", "rp"):
            cases.append(Case(f"add.{mode}.f32.{narrow}", "f32", [columns[0], columns[2]], _sum(mode, "f32")))
            cases.append(
                Case(
                    f"sub.{mode}.f32.{narrow}",
                    "f32",
                    [columns[0], columns[2]],
                    lambda a, c, m=mode: _sum(m, "f32")(a, -c),
                )
            )
            cases.append(Case(f"fma.{mode}.f32.{narrow}", "f32", columns, _fused(mode, "f32")))
        cases.append(
            Case(
                f"add.sat.f32.{narrow}",
                "f32",
                [columns[0], columns[2]],
                lambda a, c: saturate(_sum("rn", "f32")(a, c)),
            )
        )
    check(cases, arch="sm_100a")


# ---- min, max, signs, tests --------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["f32", "f64"])
def test_min_and_max(type: str) -> None:
    two = operands(type, type)
    cases = [Case(f"min.{type}", type, two, least), Case(f"max.{type}", type, two, greatest)]
    if type == "f32":
        for name, pick in (("min", least), ("max", greatest)):
            for ftz in (False, True):

                def seen(value: Number, ftz: bool = ftz) -> Number:
                    return flush(value, "f32") if ftz else value

                def strict(a: Number, b: Number, pick=pick) -> Number:
                    return NAN if a.nan or b.nan else pick(a, b)

                def signed(a: Number, b: Number, pick=pick) -> Number:
                    result = pick(abs(a), abs(b))
                    return result if result.nan else (-result if a.negative != b.negative else result)

                z = ".ftz" * ftz
                cases += [
                    Case(f"{name}{z}.f32", "f32", two, lambda a, b, s=seen, f=pick: f(s(a), s(b))),
                    Case(f"{name}{z}.NaN.f32", "f32", two, lambda a, b, s=seen, f=strict: f(s(a), s(b))),
                    Case(
                        f"{name}{z}.xorsign.abs.f32", "f32", two, lambda a, b, s=seen, f=signed: f(s(a), s(b))
                    ),
                    Case(
                        f"{name}{z}.NaN.xorsign.abs.f32",
                        "f32",
                        two,
                        lambda a, b, s=seen, f=signed: NAN if a.nan or b.nan else f(s(a), s(b)),
                    ),
                ]
    check(cases)


def test_three_operands() -> None:
    three = operands("f32", "f32", "f32")
    check(
        [
            Case("min.f32", "f32", three, lambda a, b, c: least(least(a, b), c)),
            Case("max.f32", "f32", three, lambda a, b, c: greatest(greatest(a, b), c)),
            Case(
                "max.NaN.f32",
                "f32",
                three,
                lambda a, b, c: NAN if a.nan or b.nan or c.nan else greatest(greatest(a, b), c),
            ),
            Case("max.abs.f32", "f32", three, lambda a, b, c: greatest(greatest(abs(a), abs(b)), abs(c))),
        ],
        arch="sm_100a",
    )


@pytest.mark.parametrize("type", ["f32", "f64"])
def test_signs_and_tests(type: str) -> None:
    one, two = operands(type), operands(type, type)
    cases = [
        Case(f"abs.{type}", type, one, abs),
        Case(f"neg.{type}", type, one, lambda a: -a),
        Case(
            f"copysign.{type}", type, two, lambda a, b: b if b.nan else abs(b) if not a.negative else -abs(b)
        ),
        Case(f"testp.finite.{type}", "pred", one, lambda a: a.finite),
        Case(f"testp.infinite.{type}", "pred", one, lambda a: a.kind == "infinite"),
        Case(f"testp.number.{type}", "pred", one, lambda a: not a.nan),
        Case(f"testp.notanumber.{type}", "pred", one, lambda a: a.nan),
        Case(f"testp.normal.{type}", "pred", one, lambda a: a.finite and not flush(a, type).zero),
        Case(
            f"testp.subnormal.{type}", "pred", one, lambda a: a.finite and not a.zero and flush(a, type).zero
        ),
    ]
    if type == "f32":
        cases += [
            Case("abs.ftz.f32", "f32", one, lambda a: abs(flush(a, "f32"))),
            Case("neg.ftz.f32", "f32", one, lambda a: -flush(a, "f32")),
        ]
    check(cases)


# ---- approximations ----------------------------------------------------------------------------------


def _real(function: Callable[[float], float]) -> Callable[[Number], Number]:
    """A function of Python's math on finite numbers, its domain errors NaN."""

    def formula(a: Number) -> Number:
        try:
            value = function(float(a.value))
        except (ValueError, OverflowError):
            return NAN
        return round_to(zero(a.negative) if value == 0 else number(value), "f32")

    return formula


def _finite(low: float, high: float, count: int = 200) -> Columns:
    values = np.random.default_rng(3).uniform(low, high, count).astype(np.float32)
    return [("f32", values.view(np.uint32))]


def test_approximations_are_close() -> None:
    """The manual bounds their errors; libm's functions are within one unit in the last place."""
    cases = []
    for ftz in ("", ".ftz"):
        cases += [
            Case(f"sin.approx{ftz}.f32", "f32", _finite(-100, 100), _real(math.sin), ulps=1),
            Case(f"cos.approx{ftz}.f32", "f32", _finite(-100, 100), _real(math.cos), ulps=1),
            Case(f"lg2.approx{ftz}.f32", "f32", _finite(1e-30, 1e3), _real(math.log2), ulps=1),
            Case(f"ex2.approx{ftz}.f32", "f32", _finite(-126, 127), _real(math.exp2), ulps=1),
            Case(f"sqrt.approx{ftz}.f32", "f32", _finite(1e-30, 1e30), _real(math.sqrt), ulps=1),
            Case(
                f"rsqrt.approx{ftz}.f32",
                "f32",
                _finite(1e-30, 1e30),
                _real(lambda x: 1 / math.sqrt(x)),
                ulps=1,
            ),
            Case(f"rcp.approx{ftz}.f32", "f32", _finite(-1e30, 1e30), _real(lambda x: 1 / x), ulps=1),
            Case(
                f"div.full{ftz}.f32",
                "f32",
                _finite(-9, 9) + _finite(1, 2),
                ulps=2,
                formula=lambda a, b: round_to(div(a, b), "f32"),
            ),
            Case(
                f"div.approx{ftz}.f32",
                "f32",
                _finite(-9, 9) + _finite(1, 2),
                ulps=2,
                formula=lambda a, b: round_to(div(a, b), "f32"),
            ),
        ]
    cases.append(Case("tanh.approx.f32", "f32", _finite(-10, 10), _real(math.tanh), ulps=1))
    check(cases)


def _special(name: str, a: Number) -> Number:
    """The manual's tables of special operands."""
    if a.nan:
        return NAN
    if name in ("sin", "cos"):
        return NAN if not a.finite else (a if name == "sin" else number(1))
    if name == "ex2":
        return number(1) if a.zero else (infinity(False) if not a.negative else zero(False))
    if name == "tanh":
        return a if a.zero else number(-1 if a.negative else 1)
    if name == "rcp":
        return infinity(a.negative) if a.zero else zero(a.negative)
    if a.zero:
        return {"lg2": infinity(True), "sqrt": a, "rsqrt": infinity(a.negative)}[name]
    if a.negative:
        return NAN
    return zero(False) if name == "rsqrt" else infinity(False)


def test_approximations_of_special_numbers() -> None:
    specials = [("f32", column("f32", [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000]))]
    subnormal = [("f32", column("f32", [1, 0x80000001, 0x7FFFFF]))]
    cases = []
    for name in ("sin", "cos", "lg2", "ex2", "sqrt", "rsqrt", "rcp", "tanh"):
        for ftz in ("", ".ftz") if name != "tanh" else ("",):
            cases.append(
                Case(f"{name}.approx{ftz}.f32", "f32", specials, lambda a, name=name: _special(name, a))
            )
        if name != "tanh":
            cases.append(
                Case(
                    f"{name}.approx.ftz.f32",
                    "f32",
                    subnormal,
                    lambda a, name=name: _special(name, flush(a, "f32")),
                )
            )
    cases.append(
        Case(
            "lg2.approx.f32",
            "f32",
            [("f32", column("f32", [1, 2]))],
            lambda a: number(-149 if a.value == Fraction(2) ** -149 else -148),
        )
    )
    huge = [
        ("f32", column("f32", [0x3F800000, 0xC0000000, 0x7F800000, 0])),
        ("f32", column("f32", [0x7F000000] * 4)),
    ]
    huge[1] = ("f32", column("f32", [0x7EFFFFFF, 0x7F000000, 0x7F000001, 0x7F7FFFFF]))
    cases.append(
        Case(
            "div.approx.f32",
            "f32",
            huge,
            _divided_by_huge,
        )
    )
    check(cases)


def _divided_by_huge(a: Number, b: Number) -> Number:
    """Beyond 2^126 the reciprocal is flushed: 0, and NaN for an infinite dividend."""
    if abs(b.value) > 2**126:
        return NAN if not a.finite else zero(a.negative != b.negative)
    return round_to(div(a, b), "f32")


def _upper(value: float) -> int:
    """The upper 32 bits of a double."""
    return int(struct.unpack("<Q", struct.pack("<d", value))[0]) >> 32


def test_gross_approximations_of_f64() -> None:
    """Only the upper 32 bits of the operand count, and only those of the result are not zero."""
    positive = [bits for bits in random_bits("f64", 300) if 0x010 < bits >> 52 < 0x7E0]
    columns = [("f64", column("f64", positive))]
    cases = []
    for name, power in (("rcp", -1.0), ("rsqrt", -0.5)):

        def formula(a: Number, power: float = power) -> int:
            seen = struct.unpack("<d", struct.pack("<Q", _upper(float(a.value)) << 32))[0]
            return _upper(seen**power) >> 1  # the last bit depends on how the square root was rounded

        computed = f".reg .f64 %g; .reg .b64 %w; {name}.approx.ftz.f64 %g, %x0; mov.b64 %w, %g;"
        cases.append(Case("shr.b64", "b64", columns, formula, before=computed, text="%y, %w, 33"))
        cases.append(Case("cvt.u32.u64", "u32", columns, lambda a: 0, before=computed, text="%y, %w"))
    special = [("f64", column("f64", [0, 1 << 63, 1, 0x7FF << 52, 0x7FFFFFFF << 32, 0x7FE << 52]))]
    cases.append(Case("rcp.approx.ftz.f64", "f64", special, _flushed_reciprocal))
    check(cases)


def _flushed_reciprocal(a: Number) -> Number:
    """Of 0, infinity, NaN and numbers whose reciprocal is subnormal."""
    return flush(div(number(1), flush(a, "f64")), "f64")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("add.rna.f32 %f0, %f1, %f2;", ".rna"),
        ("fma.f32 %f0, %f1, %f2, %f3;", ".f32"),
        ("add.ftz.f64 %d0, %d1, %d2;", ".f64"),
        ("div.f32 %f0, %f1, %f2;", ".f32"),
        ("sqrt.full.f32 %f0, %f1;", ".full"),
        ("ex2.f32 %f0, %f1;", ".f32"),
        ("tanh.approx.ftz.f32 %f0, %f1;", ".ftz"),
        ("max.abs.f32 %f0, %f1, %f2;", "operands"),
        ("add.rn.relu.f32 %f0, %f1, %f2;", ".relu"),
        ("add.f32 %f0, %f1, %f2, %f3;", "operands"),
        ("add.rn.f32x2 %d0, %d1, %d2;", "sm_100"),
        ("min.f32 %f0, %f1, %f2, %f3;", "sm_100"),
    ],
)
def test_refused(body: str, named: str) -> None:
    assert named in refusal(body, registers=".reg .f32 %f<4>; .reg .f64 %d<4>;")
