"""Integer arithmetic, bit fields, dot products, extended precision, against formulas on Python's integers."""

import pytest

from tests.emulator.arithmetic import Case, bits_of, check, clamp, column, operands, random_bits, wrap
from tests.emulator.snippets import refusal

ALL = ("u16", "s16", "u32", "s32", "u64", "s64")
WORDS = ("u32", "s32", "u64", "s64")


def _double(type: str) -> str:
    return f"{type[0]}{2 * bits_of(type)}"


def _quotient(a: int, b: int, type: str) -> int:
    """Truncated; all ones for a divisor of zero, which PTX leaves open."""
    if b == 0:
        return -1
    return wrap(abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1), type)


def _remainder(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) % abs(b) * (-1 if a < 0 else 1)


def _low24(value: int, type: str) -> int:
    value &= 0xFFFFFF
    return value - (1 << 24) if type == "s32" and value >> 23 else value


def test_sums_products_and_quotients() -> None:
    cases = []
    for t in ALL:
        two, three = operands(t, t), operands(t, t, t)
        bits = bits_of(t)
        cases += [
            Case(f"add.{t}", t, two, lambda a, b: a + b),
            Case(f"sub.{t}", t, two, lambda a, b: a - b),
            Case(f"mul.lo.{t}", t, two, lambda a, b: a * b),
            Case(f"mul.hi.{t}", t, two, lambda a, b, n=bits: (a * b) >> n),
            Case(f"mad.lo.{t}", t, three, lambda a, b, c: a * b + c),
            Case(f"mad.hi.{t}", t, three, lambda a, b, c, n=bits: ((a * b) >> n) + c),
            Case(f"div.{t}", t, two, lambda a, b, t=t: _quotient(a, b, t)),
            Case(f"rem.{t}", t, two, _remainder),
            Case(f"min.{t}", t, two, min),
            Case(f"max.{t}", t, two, max),
            Case(f"sad.{t}", t, three, lambda a, b, c: c + abs(a - b)),
        ]
        if t[0] == "s":
            cases += [Case(f"abs.{t}", t, operands(t), abs), Case(f"neg.{t}", t, operands(t), lambda a: -a)]
    check(cases)


def test_wide_products() -> None:
    cases = []
    for t in ("u16", "s16", "u32", "s32"):
        wide = _double(t)
        cases.append(Case(f"mul.wide.{t}", wide, operands(t, t), lambda a, b: a * b))
        cases.append(Case(f"mad.wide.{t}", wide, operands(t, t, wide), lambda a, b, c: a * b + c))
    check(cases)


def test_saturation_and_24_bits() -> None:
    two, three = operands("s32", "s32"), operands("s32", "s32", "s32")
    cases = [
        Case("add.sat.s32", "s32", two, lambda a, b: clamp(a + b, "s32")),
        Case("sub.sat.s32", "s32", two, lambda a, b: clamp(a - b, "s32")),
        Case("mad.hi.sat.s32", "s32", three, lambda a, b, c: clamp((a * b >> 32) + c, "s32")),
        Case(
            "mad24.hi.sat.s32",
            "s32",
            three,
            lambda a, b, c: clamp(wrap(_low24(a, "s32") * _low24(b, "s32") >> 16, "s32") + c, "s32"),
        ),
    ]
    for t in ("u32", "s32"):
        cases += [
            Case(f"mul24.lo.{t}", t, operands(t, t), lambda a, b, t=t: _low24(a, t) * _low24(b, t)),
            Case(f"mul24.hi.{t}", t, operands(t, t), lambda a, b, t=t: _low24(a, t) * _low24(b, t) >> 16),
            Case(f"mad24.lo.{t}", t, operands(t, t, t), lambda a, b, c, t=t: _low24(a, t) * _low24(b, t) + c),
            Case(
                f"mad24.hi.{t}",
                t,
                operands(t, t, t),
                lambda a, b, c, t=t: (_low24(a, t) * _low24(b, t) >> 16) + c,
            ),
        ]
    check(cases)


def _halves(word: int, type: str) -> list[int]:
    return [wrap(word >> shift, type) for shift in (0, 16)]


def _pack(halves: list[int]) -> int:
    return (halves[0] & 0xFFFF) | (halves[1] & 0xFFFF) << 16


def test_packed_16_bit() -> None:
    cases = []
    for t in ("u16", "s16"):
        for name, operation in (("add", lambda a, b: a + b), ("min", min), ("max", max)):

            def formula(a: int, b: int, operation=operation, t=t, floor: int | None = None) -> int:
                results = [operation(x, y) for x, y in zip(_halves(a, t), _halves(b, t), strict=True)]
                return _pack(results if floor is None else [max(result, floor) for result in results])

            cases.append(Case(f"{name}.{t}x2", f"{t}x2", operands(f"{t}x2", f"{t}x2"), formula))
            if t == "s16" and name != "add":
                for spelling in (f"{name}.relu.s16x2", f"{name}.s16x2.relu"):
                    cases.append(
                        Case(
                            spelling,
                            "s16x2",
                            operands("s16x2", "s16x2"),
                            lambda a, b, f=formula: f(a, b, floor=0),
                        )
                    )
    for name, pick in (("min", min), ("max", max)):
        cases.append(
            Case(
                f"{name}.relu.s32", "s32", operands("s32", "s32"), lambda a, b, pick=pick: max(pick(a, b), 0)
            )
        )
    check(cases)


# ---- extended precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["add", "sub"])
def test_carry_chain(operation: str) -> None:
    """A 96-bit (or 192-bit) sum: its three words agree with Python's."""
    cases = []
    for t in ("u32", "s32", "u64"):
        word = f"u{bits_of(t)}"
        n = bits_of(t)
        columns = operands(word, word) + [
            (word, column(word, random_bits(word, 400, seed))) for seed in range(4)
        ]
        columns = [(kind, values[: len(columns[0][1])]) for kind, values in columns]

        def whole(a0: int, b0: int, a1: int, b1: int, a2: int, b2: int, n: int = n) -> int:
            a, b = a0 | a1 << n | a2 << 2 * n, b0 | b1 << n | b2 << 2 * n
            return a + b if operation == "add" else a - b

        for place in range(3):
            r = f".reg .b{n} %w0, %w1, %w2;"
            chain = (
                f"{r} {operation}.cc.{t} %w0, %x0, %x1; {operation}c.cc.{t} %w1, %x2, %x3; "
                f"{operation}c.{t} %w2, %x4, %x5;"
            )
            cases.append(
                Case(
                    f"mov.b{n}",
                    word,
                    columns,
                    lambda *x, k=place, n=n, f=whole: f(*x) >> k * n,
                    before=chain,
                    text=f"%y, %w{place}",
                )
            )
        if t != "u64":
            carry = f".reg .b{n} %w0; {operation}.cc.{t} %w0, %x0, %x1;"
            cases.append(
                Case(
                    f"{operation}c.{t}",
                    word,
                    columns,
                    before=carry,
                    text="%y, 0, 0",
                    formula=lambda *x, n=n, f=whole: f(x[0], x[1], 0, 0, 0, 0) >> n,
                )
            )
    check(cases)


def test_mad_with_carry() -> None:
    """The 64-bit product and sum from 32-bit words: mad.lo.cc then madc.hi."""
    cases = []
    for t, n in (("u32", 32), ("u64", 64), ("s32", 32)):
        columns = operands(t, t, t)

        def full(a: int, b: int, c: int, n: int = n, t: str = t) -> int:
            """The low half's sum is unsigned; its carry goes into the high half, signed as the product."""
            mask = (1 << n) - 1
            carry = ((a * b & mask) + (c & mask)) >> n
            return (a * b >> n) + c + carry

        carry = f".reg .b{n} %w0; mad.lo.cc.{t} %w0, %x0, %x1, %x2;"
        cases.append(Case(f"madc.hi.{t}", t, columns, full, before=carry))
        high = f".reg .b{n} %w0, %w1; mad.lo.cc.{t} %w0, %x0, %x1, %x2; madc.hi.cc.{t} %w1, %x0, %x1, %x2;"

        def carried(a: int, b: int, c: int, n: int = n) -> int:
            mask = (1 << n) - 1
            low = ((a * b & mask) + (c & mask)) >> n
            return ((a * b >> n & mask) + (c & mask) + low) >> n

        cases.append(Case(f"madc.lo.{t}", t, columns, carried, before=high, text="%y, 0, 0, 0"))
    check(cases)


# ---- dot products and bits ---------------------------------------------------------------------------


def _parts(word: int, bits: int, type: str) -> list[int]:
    return [wrap(word >> shift, f"{type[0]}{bits}") for shift in range(0, 32, bits)]


def test_dot_products() -> None:
    cases = []
    columns = operands("b32", "b32", "b32")
    for a_type in ("u32", "s32"):
        for b_type in ("u32", "s32"):

            def four(a: int, b: int, c: int, ta: str = a_type, tb: str = b_type) -> int:
                return c + sum(x * y for x, y in zip(_parts(a, 8, ta), _parts(b, 8, tb), strict=True))

            cases.append(Case(f"dp4a.{a_type}.{b_type}", "b32", columns, four))
            for mode, first in (("lo", 0), ("hi", 2)):

                def two(a: int, b: int, c: int, ta: str = a_type, tb: str = b_type, k: int = first) -> int:
                    return c + sum(
                        x * y for x, y in zip(_parts(a, 16, ta), _parts(b, 8, tb)[k : k + 2], strict=True)
                    )

                cases.append(Case(f"dp2a.{mode}.{a_type}.{b_type}", "b32", columns, two))
    check(cases)


def _find(value: int, bits: int) -> int:
    value = ~value if value < 0 else value
    return value.bit_length() - 1 if value else 0xFFFFFFFF


def _nth_set(mask: int, base: int, offset: int) -> int:
    """The manual's loop."""
    if offset == 0:
        return base if mask >> base & 1 else -1
    left, position = abs(offset) - 1, base
    while 0 <= position < 32:
        if mask >> position & 1:
            if left == 0:
                return position
            left -= 1
        position += 1 if offset > 0 else -1
    return -1


def test_counting_and_finding() -> None:
    cases = []
    for t in ("b32", "b64"):
        n = bits_of(t)
        cases += [
            Case(f"popc.{t}", "u32", operands(t), lambda a: a.bit_count()),
            Case(f"clz.{t}", "u32", operands(t), lambda a, n=n: n - a.bit_length()),
            Case(f"brev.{t}", t, operands(t), lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2)),
        ]
    for t in WORDS:
        n = bits_of(t)
        cases.append(Case(f"bfind.{t}", "u32", operands(t), lambda a, n=n: _find(a, n)))
        cases.append(
            Case(
                f"bfind.shiftamt.{t}",
                "u32",
                operands(t),
                lambda a, n=n: n - 1 - _find(a, n) if _find(a, n) != 0xFFFFFFFF else -1,
            )
        )
    offsets = [0, 1, -1, 2, -2, 5, -5, 16, -31, 32, -(2**31)]
    rows = [
        (m, b, o)
        for m in (0, 1, 0x80000000, 0xAAAAAAAA, 0xFFFFFFFF, 0x00F00F00)
        for b in (0, 2, 3, 31)
        for o in offsets
    ]
    masks = [(t, column(t, [row[i] for row in rows])) for i, t in enumerate(("b32", "b32", "s32"))]
    cases.append(Case("fns.b32", "b32", masks, _nth_set))
    check(cases)


def _extract(a: int, position: int, length: int, type: str) -> int:
    """bfe as the manual writes it, bit by bit."""
    position, length, top = position & 0xFF, length & 0xFF, bits_of(type) - 1
    sign = 0 if type[0] == "u" or length == 0 else a >> min(position + length - 1, top) & 1
    result = 0
    for i in range(top + 1):
        bit = a >> (position + i) & 1 if i < length and position + i <= top else sign
        result |= bit << i
    return result


def _insert(a: int, b: int, position: int, length: int, bits: int) -> int:
    position, length = position & 0xFF, length & 0xFF
    for i in range(length):
        if position + i < bits:
            b = b & ~(1 << position + i) | (a >> i & 1) << position + i
    return b


def _mask(position: int, width: int, mode: str) -> int:
    if mode == "clamp" and (position >= 32 or width >= 32):
        return 0 if position >= 32 else -1 << position
    position, width = position & 31, width & 31
    return ((1 << width) - 1) << position


def _extend(a: int, width: int, type: str, mode: str) -> int:
    if mode == "clamp" and width >= 32:
        return a
    width &= 31
    field = a & ((1 << width) - 1)
    return field - (1 << width) if type == "s32" and width and field >> (width - 1) else field


def test_bit_fields() -> None:
    places = [
        (p, n)
        for p in (0, 1, 5, 31, 32, 33, 63, 64, 255, 256, 261)
        for n in (0, 1, 4, 31, 32, 33, 63, 64, 200, 258)
    ]
    cases = []
    for t in (*WORDS, "b32", "b64"):
        words = [*random_bits(t, len(places) - 2), 0, (1 << bits_of(t)) - 1]
        others = random_bits(t, len(places), seed=1)
        field = [("u32", column("u32", [place[i] for place in places])) for i in (0, 1)]
        if t[0] == "b":
            columns = [(t, column(t, words)), (t, column(t, others)), *field]
            cases.append(
                Case(f"bfi.{t}", t, columns, lambda a, b, p, n, t=t: _insert(a, b, p, n, bits_of(t)))
            )
        else:
            cases.append(
                Case(
                    f"bfe.{t}", t, [(t, column(t, words)), *field], lambda a, p, n, t=t: _extract(a, p, n, t)
                )
            )
    counts = operands("b32", "b32")
    for mode in ("clamp", "wrap"):
        cases.append(Case(f"bmsk.{mode}.b32", "b32", counts, lambda a, b, mode=mode: _mask(a, b, mode)))
        for t in ("u32", "s32"):
            cases.append(
                Case(
                    f"szext.{mode}.{t}",
                    t,
                    operands(t, "u32"),
                    lambda a, b, t=t, mode=mode: _extend(a, b, t, mode),
                )
            )
    check(cases)


# ---- video -------------------------------------------------------------------------------------------


def test_video_lanes() -> None:
    operations = {
        "vadd": lambda a, b: a + b,
        "vsub": lambda a, b: a - b,
        "vabsdiff": lambda a, b: abs(a - b),
        "vmin": min,
        "vmax": max,
    }
    cases = []
    columns = operands("b32", "b32", "b32")
    for name, operation in operations.items():
        for count in (2, 4):
            n = 32 // count
            for types in (("u", "u", "u"), ("s", "s", "s"), ("u", "s", "u"), ("s", "u", "u")):
                for sat in ("", ".sat"):

                    def formula(a: int, b: int, c: int, f=operation, n=n, types=types, sat=sat) -> int:
                        lanes = [
                            f(x, y)
                            for x, y in zip(_parts(a, n, types[1]), _parts(b, n, types[2]), strict=True)
                        ]
                        lanes = [clamp(lane, f"{types[0]}{n}") if sat else lane for lane in lanes]
                        return sum((lane & ((1 << n) - 1)) << n * i for i, lane in enumerate(lanes))

                    spelling = f"{name}{count}." + ".".join(f"{t}32" for t in types) + sat
                    cases.append(Case(spelling, "b32", columns, formula))
    for count in (2, 4):
        for t in ("u", "s"):

            def total(a: int, b: int, c: int, n: int = 32 // count, t: str = t) -> int:
                return c + sum(abs(x - y) for x, y in zip(_parts(a, n, t), _parts(b, n, t), strict=True))

            cases.append(Case(f"vabsdiff{count}.u32.{t}32.{t}32.add", "b32", columns, total))
    check(cases)


# ---- what is refused ---------------------------------------------------------------------------------


def test_registers_wider_than_the_type() -> None:
    """A 16-bit result in a 32-bit register is extended as the type says."""
    columns = operands("s16", "s16")
    check(
        [
            Case("add.s16", "s32", columns, lambda a, b: wrap(a + b, "s16")),
            Case("add.u16", "u32", columns, lambda a, b: (a + b) & 0xFFFF),
            Case(
                "popc.b32",
                "u32",
                operands("u16"),
                lambda a: a.bit_count(),
                before=".reg .b32 %w; cvt.u32.u16 %w, %x0;",
                text="%y, %w",
            ),
        ]
    )


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("add.sat.u32 %r0, %r1, %r2;", ".sat"),
        ("mul.mid.u32 %r0, %r1, %r2;", ".mid"),
        ("mad.lo.sat.s32 %r0, %r1, %r2, %r3;", ".sat"),
        ("vadd4.u32.u32.u32.add %r0, %r1, %r2, %r3;", ".add"),
        ("vadd.u32.u32.u32 %r0, %r1, %r2;", "vadd"),
        ("vabsdiff4.u32.u32.u32 %r0, %r1.b7654, %r2, %r3;", "b7654"),
        ("dp4a.u32.f32 %r0, %r1, %r2, %r3;", ".f32"),
    ],
)
def test_refused(body: str, named: str) -> None:
    assert named in refusal(body, registers=".reg .b32 %r<4>;")


def test_needs_a_newer_target() -> None:
    assert "sm_90" in refusal("add.u16x2 %r0, %r1, %r2;", registers=".reg .b32 %r<4>;", arch="sm_80")
