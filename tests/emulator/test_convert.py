"""cvt: every pair of types, every direction of rounding, the packed forms; against fractions rounded once."""

from collections.abc import Callable
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from tests.emulator.arithmetic import (
    FORMATS,
    Case,
    Columns,
    Number,
    bits_of,
    check,
    clamp,
    column,
    decode,
    edges,
    encode,
    floor_log2,
    flush,
    limits,
    number,
    operands,
    random_bits,
    relu,
    round_to,
    saturate,
    wrap,
    zero,
)
from tests.emulator.snippets import refusal

INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
FLOATS = ("f16", "bf16", "f32", "f64")
ROUNDS = ("rn", "rz", "rm", "rp")


def _integral(value: Number, mode: str) -> int:
    """A finite number to an integer: mode rni, rzi, rmi or rpi."""
    below, rest = divmod(value.value, 1)
    half = Fraction(1, 2)
    up = {
        "rni": rest > half or (rest == half and below % 2 == 1),
        "rzi": value.negative and rest > 0,
        "rmi": False,
        "rpi": rest > 0,
    }[mode]
    return int(below) + up


def _to_integer(source: str, to: str, mode: str) -> Callable[[Number], int]:
    """Saturating; NaN becomes 0, or the top bit alone where f64 or 64-bit integers take part."""

    def formula(value: Number) -> int:
        if value.nan:
            return wrap(1 << (bits_of(to) - 1), to) if source == "f64" or bits_of(to) == 64 else 0
        if not value.finite:
            return limits(to)[0 if value.negative else 1]
        return clamp(_integral(value, mode), to)

    return formula


def _near_integers(type: str) -> Columns:
    """Halves, and the ends of every integer type, with their neighbours."""
    values = [Fraction(k, 4) for k in range(-14, 15)]
    values += [
        Fraction(sign * (1 << n) + k, 2)
        for n in (8, 9, 16, 17, 32, 33, 64, 65)
        for k in (-3, -1, 0, 1, 3)
        for sign in (1, -1)
    ]
    bits = [encode(round_to(number(value), type, mode), type) for value in values for mode in ("rz", "rn")]
    return [(type, column(type, sorted({*bits, *edges(type), *random_bits(type, 40)})))]


@pytest.mark.parametrize("source", FLOATS)
def test_float_to_integer(source: str) -> None:
    columns = _near_integers(source)
    cases = []
    for to in INTEGERS:
        for mode in ("rni", "rzi", "rmi", "rpi"):
            formula = _to_integer(source, to, mode)
            cases.append(
                Case(f"cvt.{mode}.{to}.{source}", to if bits_of(to) > 8 else f"{to[0]}16", columns, formula)
            )
        if source != "bf16":
            cases.append(
                Case(
                    f"cvt.rzi.sat.{to}.{source}",
                    to if bits_of(to) > 8 else f"{to[0]}16",
                    columns,
                    _to_integer(source, to, "rzi"),
                )
            )
    if source == "f32":
        cases.append(
            Case(
                "cvt.rpi.ftz.s32.f32",
                "s32",
                columns,
                lambda a: _to_integer("f32", "s32", "rpi")(flush(a, "f32")),
            )
        )
    check(cases)


def _integer_columns(type: str) -> Columns:
    """Edges, and integers that lie on and beside the middles between floats."""
    bits = bits_of(type)
    some = [
        (1 << n) + (k << max(n - p, 0)) + e
        for n in range(2, bits)
        for p in (9, 12, 25, 54)
        for k in (1, 3)
        for e in (-1, 0, 1)
    ]
    some = [value for value in some if 0 <= value < 1 << bits]
    chosen = sorted({*edges(type), *some[:: max(1, len(some) // 150)], *random_bits(type, 60)})
    return [
        (
            type,
            column(
                type,
                [value & ((1 << bits) - 1) for value in chosen]
                + [-value & ((1 << bits) - 1) for value in chosen],
            ),
        )
    ]


def _held(type: str) -> str:
    """The name of the register's type: 8-bit integers lie in 16-bit registers."""
    return type if bits_of(type) > 8 else f"{type[0]}16"


@pytest.mark.parametrize("to", FLOATS)
def test_integer_to_float(to: str) -> None:
    cases = []
    for source in INTEGERS[2:]:
        columns = _integer_columns(source)
        for mode in ROUNDS:
            cases.append(
                Case(f"cvt.{mode}.{to}.{source}", to, columns, lambda a, m=mode: round_to(number(a), to, m))
            )
        if to != "bf16":
            cases.append(Case(f"cvt.rn.sat.{to}.{source}", to, columns, lambda a: number(min(max(a, 0), 1))))
    for source in ("u8", "s8"):  # the low byte of a register

        def low_byte(a: int, source: str = source) -> Number:
            byte = a & 0xFF
            return round_to(number(byte - 256 if source == "s8" and byte > 127 else byte), to)

        cases.append(
            Case(f"cvt.rn.{to}.{source}", to, [("b16", np.arange(0, 1 << 16, 97, dtype=np.uint16))], low_byte)
        )
    check(cases)


def test_integer_to_integer() -> None:
    cases = []
    for source in INTEGERS:
        words = (
            [("b16", column("b16", [*random_bits("u16", 100), 127, 128, 255, 65408]))]
            if bits_of(source) == 8
            else operands(source)
        )
        for to in INTEGERS:

            def formula(a: int, source: str = source, to: str = to, sat: bool = False) -> int:
                if bits_of(source) == 8:
                    a = (a & 0xFF) - (256 if source == "s8" and a & 0x80 else 0)
                if sat:
                    return clamp(a, to)
                a &= (1 << bits_of(to)) - 1
                return a - (1 << bits_of(to)) if to[0] == "s" and a >> (bits_of(to) - 1) else a

            cases.append(Case(f"cvt.{to}.{source}", _held(to), words, formula))
            cases.append(
                Case(f"cvt.sat.{to}.{source}", _held(to), words, lambda a, f=formula: f(a, sat=True))
            )
    check(cases)


# ---- float to float ----------------------------------------------------------------------------------


def _middles(source: str, to: str) -> Columns:
    """Values of `source` on and beside the middles between values of `to`, subnormal ones too."""
    form, wide = FORMATS[to], FORMATS[source]
    if wide.fraction <= form.fraction:
        return operands(source)
    bits = []
    for pattern in [*edges(to), *random_bits(to, 30)]:
        low = decode(pattern & (form.sign - 1), to)
        above = decode(min((pattern & (form.sign - 1)) + 1, form.largest_bits), to)
        if low.finite and above.finite:
            middle = number((low.value + above.value) / 2)
            base = encode(round_to(middle, source), source)
            bits += [base - 1, base, base + 1, base | wide.sign, (base + 1) | wide.sign]
    return [(source, column(source, [b for b in bits if b >= 0] + edges(source) + random_bits(source, 40)))]


@pytest.mark.parametrize("source", FLOATS)
def test_float_to_float(source: str) -> None:
    cases = []
    for to in FLOATS:
        columns = _middles(source, to)
        narrowing = FORMATS[to].fraction < FORMATS[source].fraction or (source, to) == ("bf16", "f16")
        if narrowing or (source, to) == ("f16", "bf16"):
            for mode in ROUNDS:
                cases.append(
                    Case(
                        f"cvt.{mode}.{to}.{source}", to, columns, lambda a, m=mode, to=to: round_to(a, to, m)
                    )
                )
        elif source != to:
            cases.append(Case(f"cvt.{to}.{source}", to, columns, lambda a: a))
        if "bf16" not in (source, to) and source != to:
            mode = ".rn" if narrowing else ""
            cases.append(
                Case(f"cvt{mode}.sat.{to}.{source}", to, columns, lambda a, to=to: saturate(round_to(a, to)))
            )
    cases += [
        Case(
            f"cvt.{mode}.{source}.{source}",
            source,
            _near_integers(source),
            lambda a, m=mode: _whole(a, m, source),
        )
        for mode in ("rni", "rzi", "rmi", "rpi")
    ]
    check(cases)


def _whole(a: Number, mode: str, type: str) -> Number:
    """Rounded to an integral value; a zero keeps the operand's sign."""
    if not a.finite:
        return a
    value = _integral(a, mode)
    return round_to(number(value), type) if value else zero(a.negative)


def test_flushed() -> None:
    """.ftz concerns the f32 side alone."""
    f32, f64, bf16 = operands("f32"), _middles("f64", "f32"), operands("bf16")
    check(
        [
            Case("cvt.ftz.f64.f32", "f64", f32, lambda a: flush(a, "f32")),
            Case("cvt.rn.ftz.f32.f64", "f32", f64, lambda a: flush(round_to(a, "f32"), "f32")),
            Case("cvt.rn.ftz.f16.f32", "f16", f32, lambda a: round_to(flush(a, "f32"), "f16")),
            Case("cvt.ftz.f32.bf16", "f32", bf16, lambda a: flush(a, "f32")),
            Case("cvt.ftz.f32.f32", "f32", f32, lambda a: flush(a, "f32")),
            Case("cvt.rpi.ftz.f32.f32", "f32", f32, lambda a: _whole(flush(a, "f32"), "rpi", "f32")),
            Case("cvt.ftz.sat.f32.f32", "f32", f32, lambda a: saturate(flush(a, "f32"))),
            Case("cvt.sat.f32.f32", "f32", f32, saturate),
        ]
    )


# ---- limited and packed ------------------------------------------------------------------------------


def _limited(to: str, mode: str, has_relu: bool, finite: bool) -> Callable[[Number], Number]:
    return lambda a: round_to(relu(a) if has_relu else a, to, mode, finite)


def test_relu_and_satfinite() -> None:
    cases = []
    for to in ("f16", "bf16", "tf32"):
        columns = _middles("f32", to)
        pairs = [columns[0], ("f32", columns[0][1][::-1].copy())]
        for mode in ("rn", "rz"):
            for has_relu in (False, True):
                for finite in (False, True):
                    formula = _limited(to, mode, has_relu, finite)
                    words = f".{mode}{'.relu' * has_relu}{'.satfinite' * finite}"
                    if to == "tf32":
                        cases.append(
                            Case(f"cvt{words}.tf32.f32", "b32", columns, lambda a, f=formula: _tf32(f(a)))
                        )
                        continue
                    cases.append(Case(f"cvt{words}.{to}.f32", to, columns, formula))
                    cases.append(
                        Case(
                            f"cvt{words}.{to}x2.f32",
                            "b32",
                            pairs,
                            lambda a, b, f=formula, to=to: encode(f(a), to) << 16 | encode(f(b), to),
                        )
                    )
    columns = _middles("f32", "tf32")
    for finite in (False, True):
        cases.append(
            Case(
                f"cvt.rna{'.satfinite' * finite}.tf32.f32",
                "b32",
                columns,
                lambda a, f=finite: _tf32(round_to(a, "tf32", "rna", f)),
            )
        )
    cases.append(
        Case(
            "cvt.rn.satfinite.relu.f16x2.f32",
            "b32",
            _middles("f32", "f16") * 2,
            lambda a, b: encode(_limited("f16", "rn", True, True)(a), "f16") * 0x10001,
        )
    )
    check(cases, arch="sm_100a")


def _tf32(value: Number) -> int:
    """In the register of a float, the low 13 bits zero; NaN is that of f32."""
    return 0x7FFFFFFF if value.nan else encode(value, "tf32") << 13


NARROW = ("e4m3", "e5m2", "e2m3", "e3m2", "e2m1")


@pytest.mark.parametrize("narrow", NARROW)
def test_to_narrow_pairs(narrow: str) -> None:
    shift = 4 if narrow == "e2m1" else 8
    cases = []

    def packed(a: Number, b: Number, has_relu: bool) -> int:
        high, low = (encode(_quiet(_limited(narrow, "rn", has_relu, True)(x)), narrow) for x in (a, b))
        return high << shift | low

    columns = _middles("f32", narrow)
    pairs = [columns[0], ("f32", columns[0][1][::-1].copy())]
    for words, has_relu in (("satfinite", False), ("satfinite.relu", True), ("relu.satfinite", True)):
        cases.append(
            Case(
                f"cvt.rn.{words}.{narrow}x2.f32",
                f"{narrow}x2",
                pairs,
                lambda a, b, r=has_relu: packed(a, b, r),
            )
        )
    if narrow in ("e4m3", "e5m2"):
        halves = _middles("f16", narrow)[0][1].astype(np.uint32)
        words = [("b32", halves | halves[::-1] << 16)]
        cases.append(
            Case(
                f"cvt.rn.satfinite.{narrow}x2.f16x2",
                f"{narrow}x2",
                words,
                lambda w: packed(decode(w >> 16, "f16"), decode(w & 0xFFFF, "f16"), False),
            )
        )
    check(cases, arch="sm_100a")


def _quiet(value: Number) -> Number:
    """The NaN of a destination has no sign."""
    return Number(Fraction(0), kind="nan") if value.nan else value


def test_fp8_agrees_with_ml_dtypes() -> None:
    """An implementation nobody here wrote, over all f16 values."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    values = halves.view(np.float16).astype(np.float32)
    cases = []
    for narrow, dtype in (("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)):
        largest = float(ml_dtypes.finfo(dtype).max)
        with np.errstate(invalid="ignore"):
            bits = np.clip(values, -largest, largest).astype(dtype).view(np.uint8)
        bits = np.where(np.isnan(values), 0x7F, bits).tolist()
        words = [("b32", halves[::3].astype(np.uint32))]
        cases.append(
            Case(f"cvt.rn.satfinite.{narrow}x2.f16x2", "b16", words, lambda w, bits=bits: bits[w & 0xFFFF])
        )
    check(cases)


def test_from_narrow_pairs() -> None:
    cases = []
    for narrow in NARROW:
        width = {"e4m3": 8, "e5m2": 8, "e2m3": 6, "e3m2": 6, "e2m1": 4}[narrow]
        shift = 4 if narrow == "e2m1" else 8
        words = [
            (high % (1 << width)) << shift | low for low in range(1 << width) for high in (low, 3 * low + 1)
        ]
        for words_, has_relu in (("", False), (".relu", True)):

            def unpacked(w: int, narrow: str = narrow, shift: int = shift, r: bool = has_relu) -> int:
                parts = [decode(w & ((1 << shift) - 1), narrow), decode(w >> shift, narrow)]
                parts = [_quiet(relu(part) if r else part) for part in parts]
                return encode(parts[0], "f16") | encode(parts[1], "f16") << 16

            cases.append(
                Case(
                    f"cvt.rn{words_}.f16x2.{narrow}x2",
                    "b32",
                    [(f"{narrow}x2", column(f"{narrow}x2", words))],
                    unpacked,
                )
            )
    check(cases, arch="sm_100a")


def _scale(value: Number, mode: str, finite: bool) -> int:
    """ue8m0: the power of two at or below (rz), at or above (rp); 255 is NaN.  The sign is dropped."""
    if value.nan:
        return 255
    if not value.finite:
        return 254 if finite else 255
    if value.value == 0:
        return 0
    magnitude = abs(value.value)
    exponent = floor_log2(magnitude.numerator, magnitude.denominator)
    field = exponent + 127 + (mode == "rp" and magnitude != Fraction(2) ** exponent)
    return min(max(field, 0), 254 if finite else 255)


def test_scale_factors() -> None:
    cases = []
    f32 = operands("f32", "f32")
    bf16 = np.arange(0, 1 << 16, 31, dtype=np.uint32)
    pairs = [("b32", bf16 | bf16[::-1] << 16)]
    for mode in ("rz", "rp"):
        for finite in (False, True):
            words = f"cvt.{mode}{'.satfinite' * finite}.ue8m0x2"
            cases.append(
                Case(
                    f"{words}.f32",
                    "ue8m0x2",
                    f32,
                    lambda a, b, m=mode, f=finite: _scale(a, m, f) << 8 | _scale(b, m, f),
                )
            )
            cases.append(
                Case(
                    f"{words}.bf16x2",
                    "ue8m0x2",
                    pairs,
                    lambda w, m=mode, f=finite: (
                        _scale(decode(w >> 16, "bf16"), m, f) << 8 | _scale(decode(w & 0xFFFF, "bf16"), m, f)
                    ),
                )
            )

    def powers(w: int) -> int:
        halves = [
            0x7FFF if byte == 255 else encode(number(Fraction(2) ** (byte - 127)), "bf16")
            for byte in (w & 255, w >> 8)
        ]
        return halves[0] | halves[1] << 16

    cases.append(
        Case(
            "cvt.rn.bf16x2.ue8m0x2",
            "b32",
            [("ue8m0x2", column("b16", [i | (255 - i) << 8 for i in range(256)]))],
            powers,
        )
    )
    check(cases, arch="sm_100a")


def test_pack() -> None:
    cases = []
    for to in ("u16", "s16", "u8", "s8", "u4", "s4", "u2", "s2"):
        n = int(to[1:])
        mask = (1 << n) - 1

        def narrow(value: int, to: str = to, mask: int = mask) -> int:
            low, high = (-(mask + 1 >> 1), mask >> 1) if to[0] == "s" else (0, mask)
            return min(max(value, low), high) & mask

        columns = operands("s32", "s32") if n == 16 else operands("s32", "s32", "b32")
        small = [("s32", column("s32", [k % 41 - 20 for k in range(len(columns[0][1]))])), *columns[1:]]
        for operands_ in (columns, small):
            if n == 16:
                cases.append(
                    Case(f"cvt.pack.sat.{to}.s32", "b32", operands_, lambda a, b, f=narrow: f(a) << 16 | f(b))
                )
            else:
                cases.append(
                    Case(
                        f"cvt.pack.sat.{to}.s32.b32",
                        "b32",
                        operands_,
                        lambda a, b, c, f=narrow, n=n: c << 2 * n | f(a) << n | f(b),
                    )
                )
    check(cases)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("cvt.rn.u32.f32 %r0, %f1;", "cvt.rn.u32.f32"),
        ("cvt.u32.f32 %r0, %f1;", "cvt.u32.f32"),
        ("cvt.f32.s32 %f0, %r1;", "cvt.f32.s32"),
        ("cvt.f16.f32 %h0, %f1;", "rounding"),
        ("cvt.f32.f64 %f0, %d1;", "rounding"),
        ("cvt.rni.f32.f64 %f0, %d1;", ".rni"),
        ("cvt.rn.f32.f32 %f0, %f1;", ".rn"),
        ("cvt.rn.ftz.f64.s32 %d0, %r1;", ".ftz"),
        ("cvt.rs.f16x2.f32 %r0, %f1, %f0, %r1;", ".rs"),
        ("cvt.rn.e4m3x2.f32 %h0, %f1, %f0;", "e4m3x2"),
        ("cvt.rz.satfinite.e4m3x2.f32 %h0, %f1, %f0;", "e4m3x2"),
        ("cvt.pack.u16.s32 %r0, %r1, %r2;", "cvt.pack"),
    ],
)
def test_refused(body: str, named: str) -> None:
    assert named in refusal(
        body, registers=".reg .b16 %h<4>; .reg .b32 %r<4>; .reg .f32 %f<4>; .reg .f64 %d<4>;"
    )


def test_needs_a_newer_target() -> None:
    message = refusal(
        "cvt.rn.satfinite.e4m3x2.f32 %h0, %f1, %f0;",
        registers=".reg .b16 %h<2>; .reg .f32 %f<2>;",
        arch="sm_86",
    )
    assert "sm_89" in message
