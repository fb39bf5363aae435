"""Tests of arithmetic instructions as tables: a spelling, its operands, and a Python formula for one element.

    check([Case("add.sat.s32", "s32", [("s32", a), ("s32", b)], lambda a, b: clamp(a + b, "s32"))])

Formulas work on Python integers for integer types and on Number for floats: exact fractions, with NaN,
infinities and the sign of zero beside them.  round_to() is rounding as IEEE 754 says it, written with
integers and without a look at the emulator's code."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from tests.emulator.snippets import Snippet, run_all

Columns = list[tuple[str, Any]]  # of operands: a PTX type and its column of bit patterns

# ---- integers ----------------------------------------------------------------------------------------


_WORDS = {"f16x2": 32, "bf16x2": 32, "u16x2": 32, "s16x2": 32, "f32x2": 64, "pred": 32, "e2m1x2": 8}
_WORDS |= dict.fromkeys(("e4m3x2", "e5m2x2", "e2m3x2", "e3m2x2", "ue8m0x2"), 16)


def bits_of(type: str) -> int:
    """Bits of a type, or of the word that holds a packed one."""
    if type in FORMATS:
        return FORMATS[type].bits
    return _WORDS.get(type) or int(type[1:])


def wrap(value: int, type: str) -> int:
    """An integer reduced to the type, as two's complement."""
    bits = bits_of(type)
    value &= (1 << bits) - 1
    return value - (1 << bits) if type.startswith("s") and value >> (bits - 1) else value


def limits(type: str) -> tuple[int, int]:
    bits = bits_of(type)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if type.startswith("s") else (0, (1 << bits) - 1)


def clamp(value: int, type: str) -> int:
    low, high = limits(type)
    return min(max(value, low), high)


# ---- floats ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A binary float: the widths of its fields; `infinity` false for the formats that have none."""

    exponent: int
    fraction: int
    bits: int
    infinity: bool = True
    nan: int | None = None  # the NaN that PTX writes
    largest: int = 0  # bits of the largest finite value, where it is not derived

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @property
    def sign(self) -> int:
        return 1 << (self.exponent + self.fraction)

    @property
    def largest_bits(self) -> int:
        return self.largest or ((((1 << self.exponent) - 1) << self.fraction) - 1)


FORMATS = {
    "f16": Format(5, 10, 16, nan=0x7FFF),
    "bf16": Format(8, 7, 16, nan=0x7FFF),
    "tf32": Format(8, 10, 32, nan=0x3FFFF),  # without the 13 low bits
    "f32": Format(8, 23, 32, nan=0x7FFFFFFF),
    "f64": Format(11, 52, 64, nan=0x7FFFFFFFFFFFFFFF),
    "e5m2": Format(5, 2, 8, nan=0x7F),
    "e4m3": Format(4, 3, 8, infinity=False, nan=0x7F, largest=0x7E),
    "e3m2": Format(3, 2, 8, infinity=False, largest=0x1F),
    "e2m3": Format(2, 3, 8, infinity=False, largest=0x1F),
    "e2m1": Format(2, 1, 8, infinity=False, largest=0x7),
}


@dataclass(frozen=True)
class Number:
    """A float's value: a fraction, NaN or an infinity (value +1 or -1); `negative` keeps the sign of zero."""

    value: Fraction
    negative: bool = False
    kind: str = "finite"  # finite, infinite, nan

    @property
    def nan(self) -> bool:
        return self.kind == "nan"

    @property
    def finite(self) -> bool:
        return self.kind == "finite"

    @property
    def zero(self) -> bool:
        return self.finite and self.value == 0

    def __neg__(self) -> "Number":
        return Number(-self.value, not self.negative, self.kind)

    def __abs__(self) -> "Number":
        return -self if self.negative else self

    def __lt__(self, other: "Number") -> bool:
        """Ordered; false with a NaN."""
        if self.nan or other.nan:
            return False
        return (self._rank, self.value) < (other._rank, other.value)

    def equals(self, other: "Number") -> bool:
        return not (self.nan or other.nan) and (self._rank, self.value) == (other._rank, other.value)

    @property
    def _rank(self) -> int:
        return 0 if self.finite else int(self.value)


NAN = Number(Fraction(0), kind="nan")


def infinity(negative: bool) -> Number:
    return Number(Fraction(-1 if negative else 1), negative, "infinite")


def number(value: Fraction | int | float) -> Number:
    value = Fraction(value)
    return Number(value, value < 0)


def zero(negative: bool) -> Number:
    return Number(Fraction(0), negative)


def decode(bits: int, name: str) -> Number:
    """The value that the bits of a format mean."""
    form = FORMATS[name]
    negative, magnitude = bool(bits & form.sign), bits & (form.sign - 1)
    if magnitude > form.largest_bits:
        if form.infinity and magnitude == form.largest_bits + 1:
            return infinity(negative)
        return Number(Fraction(0), negative, "nan")
    exponent, fraction = magnitude >> form.fraction, magnitude & ((1 << form.fraction) - 1)
    significand = fraction | (1 << form.fraction if exponent else 0)
    value = Fraction(significand) * Fraction(2) ** ((exponent or 1) - form.bias - form.fraction)
    return Number(-value if negative else value, negative)


def encode(value: Number, name: str) -> int:
    """The bits of a value that the format holds exactly."""
    form = FORMATS[name]
    sign = form.sign if value.negative else 0
    if value.nan:
        return form.largest_bits if form.nan is None else form.nan
    if not value.finite:
        return sign | (form.largest_bits + 1)
    top, denominator = abs(value.value.numerator), value.value.denominator
    assert denominator & (denominator - 1) == 0, f"{value} is not a value of {name}"
    units, beyond = divmod(top << (form.bias - 1 + form.fraction), denominator)
    exponent = max(units.bit_length() - form.fraction - 1, 0)
    beyond += units & ((1 << exponent) - 1)
    assert not beyond, f"{value} is not a value of {name}"
    return sign | ((units >> exponent) + (exponent << form.fraction))


def round_to(value: Number, name: str, mode: str = "rn", finite: bool = False) -> Number:
    """IEEE 754 rounding; `finite` is .satfinite: the largest value instead of infinity."""
    form = FORMATS[name]
    largest = decode(form.largest_bits, name)
    if value.nan or value.zero:
        return value
    if not value.finite:
        return value if form.infinity and not finite else (-largest if value.negative else largest)
    # units + rest / denominator, the magnitude counted in units of the last place.
    top, denominator = abs(value.value.numerator), value.value.denominator
    scale = max(floor_log2(top, denominator), 1 - form.bias) - form.fraction
    top, denominator = (top, denominator << scale) if scale > 0 else (top << -scale, denominator)
    units, rest = divmod(top, denominator)
    up = {
        "rn": 2 * rest > denominator or (2 * rest == denominator and units % 2 == 1),
        "rna": 2 * rest >= denominator,
        "rz": False,
        "rm": value.negative and rest > 0,
        "rp": not value.negative and rest > 0,
    }[mode]
    units += up
    magnitude = Fraction(units << scale) if scale > 0 else Fraction(units, 1 << -scale)
    if magnitude > largest.value:
        inwards = mode == "rz" or mode == ("rp" if value.negative else "rm")
        if not inwards and not finite and form.infinity:
            return infinity(value.negative)
        magnitude = largest.value
    return Number(-magnitude if value.negative else magnitude, value.negative)


def floor_log2(top: int, denominator: int) -> int:
    exponent = top.bit_length() - denominator.bit_length()
    reached = top >= denominator << exponent if exponent > 0 else top << -exponent >= denominator
    return exponent if reached else exponent - 1


def flush(value: Number, name: str) -> Number:
    """.ftz: a subnormal becomes a zero of its sign."""
    form = FORMATS[name]
    tiny = value.finite and abs(value.value) < Fraction(2) ** (1 - form.bias)
    return zero(value.negative) if tiny else value


def saturate(value: Number) -> Number:
    """.sat: to [0, 1], NaN to +0."""
    if value.nan or not number(0) < value:
        return zero(False)
    return value if value < number(1) else number(1)


def relu(value: Number) -> Number:
    return value if value.nan or not value.negative else zero(False)


def add(a: Number, b: Number, mode: str = "rn") -> Number:
    """The exact sum; `mode` decides the sign of a sum of opposite numbers."""
    if a.nan or b.nan or (not a.finite and not b.finite and a.negative != b.negative):
        return NAN
    if not (a.finite and b.finite):
        return b if a.finite else a
    total = a.value + b.value
    if total == 0:
        return zero(a.negative if a.negative == b.negative else mode == "rm")
    return number(total)


def mul(a: Number, b: Number) -> Number:
    negative = a.negative != b.negative
    if a.nan or b.nan or (not a.finite and b.zero) or (a.zero and not b.finite):
        return NAN
    if not (a.finite and b.finite):
        return infinity(negative)
    return Number(a.value * b.value, negative)


def div(a: Number, b: Number) -> Number:
    negative = a.negative != b.negative
    if a.nan or b.nan or (a.zero and b.zero) or not (a.finite or b.finite):
        return NAN
    if not a.finite or b.zero:
        return infinity(negative)
    return zero(negative) if not b.finite else Number(a.value / b.value, negative)


def least(a: Number, b: Number) -> Number:
    """The smaller of two numbers, -0 below +0; a NaN gives way."""
    if a.nan or b.nan:
        return b if a.nan else a
    if a.zero and b.zero:
        return a if a.negative else b
    return a if a < b else b


def greatest(a: Number, b: Number) -> Number:
    return -least(-a, -b) if not (a.nan and b.nan) else NAN


# ---- cases -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One instruction on many elements.  `formula` maps an element of each operand to one of the result."""

    spelling: str
    result: str  # its PTX type; "pred" is seen as 0 or 1
    operands: Sequence[tuple[str, Any]]  # type and column of values; a string is put into the PTX as it is
    formula: Callable[..., Any]
    ulps: int = 0  # how far a float may be off; with 0 all bits count, except those of NaNs
    before: str = ""  # instructions before it, on operands %x0, %x1 ...
    text: str = ""  # the operands as written, where they are not "%y, %x0, %x1 ..."

    @property
    def columns(self) -> Columns:
        return [(type, values) for type, values in self.operands if not isinstance(values, str)]


def check(cases: Sequence[Case], arch: str = "sm_90a") -> None:
    """Run all cases as one module; a failure names the spelling, the operands and both results."""
    snippets = [_snippet(f"case_{i}", case) for i, case in enumerate(cases)]
    results = run_all(snippets, arch)
    wrong = [line for i, case in enumerate(cases) for line in _compare(case, results[f"case_{i}"])]
    assert not wrong, "\n".join(wrong)


def _memory(type: str) -> np.dtype[Any]:
    return np.dtype(f"u{bits_of(type) // 8}")


def _register(type: str) -> str:
    return type if type in ("f32", "f64") else f"b{max(16, bits_of(type))}" if type != "e2m1x2" else "b8"


def _snippet(name: str, case: Case) -> Snippet:
    lines, places, inputs = [], [], {}
    registers = (
        f".reg .{_register(case.result)} %y; "
        if case.result != "pred"
        else ".reg .pred %y; .reg .b32 %seen; "
    )
    number_of = 0
    for type, values in case.operands:
        if isinstance(values, str):
            places.append(values)
            continue
        x = f"%x{number_of}"
        number_of += 1
        inputs[f"a{x[2:]}"] = values
        places.append(x)
        if type == "pred":
            registers += f".reg .pred {x}; .reg .b32 {x}w; "
            lines.append(f"ld.global.b32 {x}w, [%rd_a{x[2:]}]; setp.ne.u32 {x}, {x}w, 0;")
        else:
            registers += f".reg .{_register(type)} {x}; "
            lines.append(f"ld.global.{_access(type)} {x}, [%rd_a{x[2:]}];")
    text = case.text or ", ".join(["%y", *places])
    store = f"st.global.{_access(case.result)} [%rd_out], %y;"
    if case.result == "pred":
        store = "selp.u32 %seen, 1, 0, %y; st.global.u32 [%rd_out], %seen;"
    body = " ".join([*lines, case.before, f"{case.spelling} {text};", store])
    rows = len(case.columns[0][1])
    return Snippet(name, body, inputs=inputs, output=((rows,), _memory(case.result)), registers=registers)


def _access(type: str) -> str:
    return type if type in ("f32", "f64") else f"b{bits_of(type)}"


def _element(type: str, bits: int) -> Any:
    """What a formula sees of an operand."""
    if type in FORMATS:
        return decode(bits, type)
    return wrap(bits, type) if type[0] in "us" and type not in ("u16x2", "s16x2", "ue8m0x2") else bits


def _compare(case: Case, got: np.ndarray) -> list[str]:
    wrong = []
    columns = [(type, values.tolist()) for type, values in case.columns]
    for row, bits in enumerate(got.tolist()):
        operands = [values[row] for _, values in columns]
        want = case.formula(
            *(_element(type, value) for (type, _), value in zip(columns, operands, strict=True))
        )
        expected = (
            encode(want, case.result)
            if isinstance(want, Number)
            else int(want) & ((1 << bits_of(case.result)) - 1)
        )
        if not _agree(case, bits, expected):
            wrong.append(
                f"{case.spelling}({', '.join(f'{x:#x}' for x in operands)}) = {bits:#x}, not {expected:#x}"
            )
    return wrong[:4]


def _agree(case: Case, got: int, expected: int) -> bool:
    if got == expected:
        return True
    if case.result not in ("f32", "f64") and not case.ulps:
        return False
    a, b = decode(got, case.result), decode(expected, case.result)
    if a.nan or b.nan:
        return a.nan and b.nan
    form = FORMATS[case.result]
    signed = [-(bits & (form.sign - 1)) if bits & form.sign else bits for bits in (got, expected)]
    return abs(signed[0] - signed[1]) <= case.ulps


# ---- columns of operands -----------------------------------------------------------------------------


def edges(type: str) -> list[int]:
    """Bit patterns that go wrong first."""
    bits = bits_of(type)
    if type not in FORMATS:
        top = 1 << (bits - 1)
        return [
            0,
            1,
            2,
            3,
            7,
            31,
            32,
            top - 1,
            top,
            top + 1,
            2 * top - 2,
            2 * top - 1,
            0x123456789ABCDEF5 & (2 * top - 1),
        ]
    form = FORMATS[type]
    one, infinite = form.bias << form.fraction, form.largest_bits + 1
    both = [0, 1, one, infinite, infinite + 1 + (1 << (form.fraction - 1))]
    some = [
        (1 << form.fraction) - 1,
        1 << form.fraction | form.sign,
        one - 1,
        one + 1,
        one + 3 | form.sign,
        form.largest_bits,
    ]
    return [value | sign for value in both for sign in (0, form.sign)] + some


def column(type: str, values: Sequence[int]) -> np.ndarray:
    return np.array([value & ((1 << bits_of(type)) - 1) for value in values], dtype=_memory(type))


def random_bits(type: str, count: int, seed: int = 0) -> list[int]:
    """Uniform bit patterns; floats mostly of moderate size, so that sums and products interact."""
    random = np.random.default_rng([seed, count, *type.encode()])
    words = [int(word) & ((1 << bits_of(type)) - 1) for word in random.integers(0, 1 << 64, count, np.uint64)]
    if type not in FORMATS:
        return words
    form = FORMATS[type]
    near = [(form.bias + int(shift)) << form.fraction for shift in random.integers(-6, 7, count)]
    moderate = [
        word & (form.sign | ((1 << form.fraction) - 1)) | exponent
        for word, exponent in zip(words, near, strict=True)
    ]
    return moderate[: 3 * count // 4] + words[3 * count // 4 :]


def operands(*types: str, randoms: int = 50) -> Columns:
    """Columns of operands: every pair of edges of the first two types, then random ones."""
    lists = [edges(type) for type in types]
    if len(types) == 1:
        rows = [[value] for value in lists[0]]
    else:
        rows = [[a, b] for a in lists[0] for b in lists[1]]
    for place in range(2, len(types)):
        rows = [[*row, lists[place][(7 * i + i // 13) % len(lists[place])]] for i, row in enumerate(rows)]
    extra = [random_bits(type, randoms, place) for place, type in enumerate(types)]
    return [(type, column(type, [row[i] for row in rows] + extra[i])) for i, type in enumerate(types)]
