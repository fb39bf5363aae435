"""Logic, shifts, byte permutation, comparison (setp, set) and selection, against formulas on integers."""

from collections.abc import Callable

import pytest

from tests.emulator.arithmetic import (
    FORMATS,
    Case,
    Columns,
    Number,
    bits_of,
    check,
    column,
    decode,
    encode,
    flush,
    number,
    operands,
    random_bits,
    zero,
)
from tests.emulator.snippets import refusal

BITS = ("b16", "b32", "b64")
INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")


# ---- logic and shifts --------------------------------------------------------------------------------


def test_logic() -> None:
    cases = []
    for t in BITS:
        two = operands(t, t)
        cases += [
            Case(f"and.{t}", t, two, lambda a, b: a & b),
            Case(f"or.{t}", t, two, lambda a, b: a | b),
            Case(f"xor.{t}", t, two, lambda a, b: a ^ b),
            Case(f"not.{t}", t, operands(t), lambda a: ~a),
            Case(f"cnot.{t}", t, operands(t), lambda a: a == 0),
        ]
    truth = [("pred", column("b32", [0, 0, 1, 1])), ("pred", column("b32", [0, 1, 0, 1]))]
    cases += [
        Case("and.pred", "pred", truth, lambda a, b: a & b),
        Case("or.pred", "pred", truth, lambda a, b: a | b),
        Case("xor.pred", "pred", truth, lambda a, b: a ^ b),
        Case("and.pred", "pred", truth, lambda a, b: a & (1 - b), text="%y, %x0, !%x1"),
        Case("not.pred", "pred", truth, lambda a, b: 1 - a, text="%y, %x0"),
    ]
    check(cases)


def _table(a: int, b: int, c: int, table: int) -> int:
    result = 0
    for i in range(32):
        index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)
        result |= (table >> index & 1) << i
    return result


def test_lop3() -> None:
    """All 256 tables would be slow to compile; these have every entry set once and clear once."""
    three = operands("b32", "b32", "b32", randoms=20)[:3]
    three = [(t, values[-60:]) for t, values in three]
    tables = (
        [1 << i for i in range(8)]
        + [0xFF ^ 1 << i for i in range(8)]
        + [0, 0xFF, 0x96, 0xE8, 0xCA, 0x1E, 0xF8, 0x6A]
    )
    cases = [
        Case(
            "lop3.b32", "b32", three, lambda a, b, c, k=k: _table(a, b, c, k), text=f"%y, %x0, %x1, %x2, {k}"
        )
        for k in tables
    ]
    predicate = [*three, ("pred", column("b32", [i % 2 for i in range(60)]))]
    for name, combine in (("or", lambda p, q: p | q), ("and", lambda p, q: p & q)):
        for table in (0x80, 0x00):
            cases.append(
                Case(
                    f"lop3.{name}.b32",
                    "pred",
                    predicate,
                    before=".reg .b32 %w;",
                    text=f"%w|%y, %x0, %x1, %x2, {table}, %x3",
                    formula=lambda a, b, c, q, k=table, f=combine: f(int(_table(a, b, c, k) != 0), q),
                )
            )
            cases.append(
                Case(
                    f"lop3.{name}.b32",
                    "pred",
                    predicate,
                    text=f"_|%y, %x0, %x1, %x2, {table}, !%x3",
                    formula=lambda a, b, c, q, k=table, f=combine: f(int(_table(a, b, c, k) != 0), 1 - q),
                )
            )
    check(cases)


def test_shifts() -> None:
    amounts = [0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 0x80000000, 0xFFFFFFFF]
    cases = []
    for t in (*BITS, *INTEGERS):
        words = operands(t)[0][1].tolist()
        rows = [(word, amount) for word in words for amount in amounts]
        columns = [(t, column(t, [row[0] for row in rows])), ("u32", column("u32", [row[1] for row in rows]))]
        n = bits_of(t)
        if t in BITS:
            cases.append(Case(f"shl.{t}", t, columns, lambda a, k, n=n: a << k if k < n else 0))
        cases.append(Case(f"shr.{t}", t, columns, lambda a, k: a >> min(k, 80)))
    three = [*operands("b32", "b32")]
    spread = ("b32", column("b32", [amounts[i % len(amounts)] for i in range(len(three[0][1]))]))
    for direction in "lr":
        for mode in ("wrap", "clamp"):

            def funnel(low: int, high: int, k: int, direction: str = direction, mode: str = mode) -> int:
                k = k & 31 if mode == "wrap" else min(k, 32)
                word = high << 32 | low
                return (word << k) >> 32 if direction == "l" else word >> k

            cases.append(Case(f"shf.{direction}.{mode}.b32", "b32", [*three, spread], funnel))
    for t, k in (("b32", 7), ("b64", 32), ("b16", 15)):  # a constant amount is translated by itself
        cases.append(Case(f"shl.{t}", t, operands(t), lambda a, k=k: a << k, text=f"%y, %x0, {k}"))
    cases.append(Case("shr.s32", "s32", operands("s32"), lambda a: a >> 31, text="%y, %x0, 31"))
    cases.append(Case("shl.b32", "b32", operands("b32"), lambda a: 0, text="%y, %x0, 40"))
    check(cases)


# prmt's special forms as the manual tabulates them: for c = 0..3 the source bytes of result bytes 3, 2, 1, 0.
_MODES = {
    "f4e": ("3210", "4321", "5432", "6543"),
    "b4e": ("5670", "6701", "7012", "0123"),
    "rc8": ("0000", "1111", "2222", "3333"),
    "ecl": ("3210", "3211", "3222", "3333"),
    "ecr": ("0000", "1110", "2210", "3210"),
    "rc16": ("1010", "3232", "1010", "3232"),
}


def _permute(a: int, b: int, c: int, mode: str | None) -> int:
    source = [(b << 32 | a) >> 8 * i & 0xFF for i in range(8)]
    if mode:
        chosen = [source[int(digit)] for digit in reversed(_MODES[mode][c & 3])]
    else:
        chosen = []
        for i in range(4):
            selector = c >> 4 * i & 15
            byte = source[selector & 7]
            chosen.append((0xFF if byte & 0x80 else 0) if selector & 8 else byte)
    return sum(byte << 8 * i for i, byte in enumerate(chosen))


def test_prmt() -> None:
    columns = operands("b32", "b32", "b32", randoms=200)
    cases = [
        Case(
            f"prmt.b32{f'.{mode}' if mode else ''}",
            "b32",
            columns,
            lambda a, b, c, mode=mode: _permute(a, b, c, mode),
        )
        for mode in (None, *_MODES)
    ]
    check(cases)


# ---- comparison --------------------------------------------------------------------------------------

_ORDERED: dict[str, Callable[[Number, Number], bool]] = {
    "eq": lambda a, b: a.equals(b),
    "ne": lambda a, b: a < b or b < a,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a < b or a.equals(b),
    "gt": lambda a, b: b < a,
    "ge": lambda a, b: b < a or a.equals(b),
}
_UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
FLOAT_COMPARES = (*_ORDERED, *_UNORDERED, "num", "nan")


def _compare(name: str, a: Number, b: Number) -> bool:
    unordered = a.nan or b.nan
    if name in ("num", "nan"):
        return unordered == (name == "nan")
    if name in _UNORDERED:
        return unordered or _ORDERED[_UNORDERED[name]](a, b)
    return _ORDERED[_UNSIGNED.get(name, name)](a, b)


def _compare_integers(name: str) -> Callable[[int, int], int]:
    return lambda a, b: int(_compare(name, number(a), number(b)))


def test_setp_of_integers() -> None:
    cases = []
    for t in INTEGERS:
        names = ("eq", "ne", "lt", "le", "gt", "ge", *(_UNSIGNED if t[0] == "u" else ()))
        cases += [Case(f"setp.{name}.{t}", "pred", operands(t, t), _compare_integers(name)) for name in names]
    cases += [
        Case(f"setp.{name}.{t}", "pred", operands(t, t), _compare_integers(name))
        for t in BITS
        for name in ("eq", "ne")
    ]
    check(cases)


@pytest.mark.parametrize("type", ["f32", "f64", "f16", "bf16"])
def test_setp_of_floats(type: str) -> None:
    columns = operands(type, type)
    cases = [
        Case(f"setp.{name}.{type}", "pred", columns, lambda a, b, name=name: _compare(name, a, b))
        for name in FLOAT_COMPARES
    ]
    if type in ("f32", "f16"):
        cases += [
            Case(
                f"setp.{name}.ftz.{type}",
                "pred",
                columns,
                lambda a, b, name=name: _compare(name, flush(a, type), flush(b, type)),
            )
            for name in FLOAT_COMPARES
        ]
    check(cases)


_COMBINE = {"and": lambda p, q: p & q, "or": lambda p, q: p | q, "xor": lambda p, q: p ^ q}


def test_setp_combined_and_with_two_destinations() -> None:
    """p = (a < b) op c, q = !(a < b) op c; also where p is the register of c."""
    columns = operands("s32", "s32")
    columns.append(("pred", column("b32", [i % 2 for i in range(len(columns[0][1]))])))
    cases = []
    for name, combine in _COMBINE.items():
        for place, negated in (("%y, %x0, %x1, %x2", 0), ("%y, %x0, %x1, !%x2", 1)):
            cases.append(
                Case(
                    f"setp.lt.{name}.s32",
                    "pred",
                    columns,
                    text=place,
                    formula=lambda a, b, c, f=combine, k=negated: f(int(a < b), c ^ k),
                )
            )
        cases.append(
            Case(
                f"setp.lt.{name}.s32",
                "pred",
                columns,
                text="%w|%y, %x0, %x1, %x2",
                before=".reg .pred %w;",
                formula=lambda a, b, c, f=combine: f(int(not a < b), c),
            )
        )
        cases.append(
            Case(
                f"setp.lt.{name}.s32",
                "pred",
                columns,
                before="mov.pred %y, %x2; .reg .pred %w;",
                text="%y|%w, %x0, %x1, %y",
                formula=lambda a, b, c, f=combine: f(int(a < b), c),
            )
        )
        cases.append(
            Case(
                f"setp.lt.{name}.s32",
                "pred",
                columns,
                before=".reg .pred %w; mov.pred %w, %x2;",
                text="%w|%y, %x0, %x1, %w",
                formula=lambda a, b, c, f=combine: f(int(not a < b), c),
            )
        )
    cases.append(Case("setp.lt.s32", "pred", columns[:2], lambda a, b: not a < b, text="_|%y, %x0, %x1"))
    floats = operands("f32", "f32")
    cases.append(
        Case(
            "setp.ltu.f32",
            "pred",
            floats,
            lambda a, b: not _compare("ltu", a, b),
            before=".reg .pred %w;",
            text="%w|%y, %x0, %x1",
        )
    )
    floats = [*floats, ("pred", column("b32", [i % 2 for i in range(len(floats[0][1]))]))]
    for spelling in ("setp.lt.ftz.and.f32", "setp.lt.and.ftz.f32"):
        cases.append(
            Case(
                spelling,
                "pred",
                floats,
                lambda a, b, c: c & int(_compare("lt", flush(a, "f32"), flush(b, "f32"))),
            )
        )
    check(cases)


def _halves(word: int, type: str) -> tuple[Number, Number]:
    return decode(word & 0xFFFF, type), decode(word >> 16, type)


def _pairs(type: str) -> Columns:
    """Words of two halves: edges against edges in the low half, reversed in the high one."""
    (_, a), (_, b) = operands(type, type)
    return [
        ("b32", column("b32", [int(x) | int(y) << 16 for x, y in zip(v, v[::-1], strict=True)]))
        for v in (a, b)
    ]


@pytest.mark.parametrize("type", ["f16", "bf16"])
def test_comparison_of_pairs(type: str) -> None:
    cases = []
    columns = _pairs(type)
    for name in ("eq", "lt", "geu", "neu", "nan"):
        for place, text in enumerate(("%y|%w, %x0, %x1", "%w|%y, %x0, %x1")):
            cases.append(
                Case(
                    f"setp.{name}.{type}x2",
                    "pred",
                    columns,
                    before=".reg .pred %w;",
                    text=text,
                    formula=lambda a, b, n=name, k=place: _compare(
                        n, _halves(a, type)[k], _halves(b, type)[k]
                    ),
                )
            )
        for to, true in ((f"{type}x2", 0x3C00 if type == "f16" else 0x3F80), ("u32", 0xFFFF)):

            def packed(a: int, b: int, name: str = name, true: int = true) -> int:
                tests = [
                    _compare(name, x, y) for x, y in zip(_halves(a, type), _halves(b, type), strict=True)
                ]
                return sum(true << 16 * i for i, test in enumerate(tests) if test)

            cases.append(Case(f"set.{name}.{to}.{type}x2", "b32", columns, packed))
    check(cases)


def test_set() -> None:
    """1.0 for float destinations, all ones for integers."""
    true = {"u32": -1, "s32": -1, "u16": -1, "f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}
    cases = []
    for to, source in (
        ("u32", "u32"),
        ("s32", "s32"),
        ("u32", "f32"),
        ("f32", "s32"),
        ("f32", "f32"),
        ("f32", "f64"),
        ("f16", "f16"),
        ("bf16", "bf16"),
        ("u16", "f16"),
        ("s32", "bf16"),
        ("u32", "s64"),
    ):
        result = {"f32": "b32", "f16": "b16", "bf16": "b16", "u16": "b16"}.get(to, "b32")
        for name in ("lt", "ge", *(("neu", "nan") if source in FORMATS else ())):

            def formula(
                a: Number, b: Number, name: str = name, value: int = true[to], source: str = source
            ) -> int:
                pair = (a, b) if source in FORMATS else (number(a), number(b))
                return value if _compare(name, *pair) else 0

            cases.append(Case(f"set.{name}.{to}.{source}", result, operands(source, source), formula))
    columns = operands("f32", "f32")
    columns.append(("pred", column("b32", [i % 2 for i in range(len(columns[0][1]))])))
    for name, combine in _COMBINE.items():
        cases.append(
            Case(
                f"set.gt.{name}.u32.f32",
                "b32",
                columns,
                lambda a, b, c, f=combine: -f(int(_compare("gt", a, b)), c),
            )
        )
    cases.append(
        Case(
            "set.eq.ftz.f32.f32",
            "b32",
            columns[:2],
            lambda a, b: 0x3F800000 if _compare("eq", flush(a, "f32"), flush(b, "f32")) else 0,
        )
    )
    check(cases)


# ---- selection ---------------------------------------------------------------------------------------


def test_selp_and_slct() -> None:
    cases = []
    for t in (*BITS, *INTEGERS, "f32", "f64"):
        columns = operands(t, t)
        count = len(columns[0][1])
        chosen = ("pred", column("b32", [i * 7 % 3 % 2 for i in range(count)]))
        signs = ("s32", column("s32", [*random_bits("s32", count - 2), 0, 2147483648]))
        floats = [
            0,
            0x80000000,
            0x3F800000,
            0xBF800000,
            0x7FC00000,
            0xFFC00000,
            0x80000001,
            1,
            0xFF800000,
            0x7F800000,
        ]
        decides = ("f32", column("f32", [floats[i % len(floats)] for i in range(count)]))
        cases.append(Case(f"selp.{t}", t, [*columns, chosen], lambda a, b, p: a if p else b))
        cases.append(Case(f"slct.{t}.s32", t, [*columns, signs], lambda a, b, c: a if c >= 0 else b))
        cases.append(
            Case(
                f"slct.{t}.f32",
                t,
                [*columns, decides],
                lambda a, b, c: a if _compare("ge", c, zero(False)) else b,
            )
        )
        cases.append(
            Case(
                f"slct.ftz.{t}.f32",
                t,
                [*columns, decides],
                lambda a, b, c: a if _compare("ge", flush(c, "f32"), zero(False)) else b,
            )
        )
    assert encode(zero(True), "f32") == 0x80000000
    check(cases)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("and.s32 %r0, %r1, %r2;", ".s32"),
        ("setp.lo.s32 %p0, %r1, %r2;", ".s32"),
        ("setp.ltu.u32 %p0, %r1, %r2;", ".u32"),
        ("setp.lt.b32 %p0, %r1, %r2;", ".b32"),
        ("setp.eq.ftz.s32 %p0, %r1, %r2;", ".s32"),
        ("setp.lt.and.s32 %p0, %r1, %r2;", "operands"),
        ("setp.lt.s32 %p0, %r1, %r2, %p1;", "operands"),
        ("shf.l.b32 %r0, %r1, %r2, %r3;", ".b32"),
        ("prmt.b32.f8e %r0, %r1, %r2, %r3;", ".f8e"),
        ("lop3.xor.b32 %r0|%p0, %r1, %r2, %r3, 1, %p1;", ".xor"),
        ("lop3.b32 %r0, %r1, %r2, %r3, %r1;", "constant"),
    ],
)
def test_refused(body: str, named: str) -> None:
    assert named in refusal(body, registers=".reg .b32 %r<4>; .reg .pred %p<2>;")
