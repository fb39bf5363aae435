"""mma.sync in every shape and type: exact on small integers, close on random values, and NaN, infinity and
overflow where they belong."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from cuda.nn.emulator.translate import translate
from tests.emulator.assembler import assert_ptxas_accepts
from tests.emulator.fragments import (
    A_PLACES,
    B_PLACES,
    BITS,
    c_place,
    decode,
    encode,
    extents,
    integers,
    is_float,
    pack,
    unpack,
)
from tests.emulator.snippets import Snippet, ptx_of, refusal, run_all, run_module

GENERATOR = np.random.default_rng(11)
S32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Product:
    """One spelling of mma: D = A B + C."""

    shape: str
    a: str
    b: str
    sum: str  # type of C and D
    satfinite: bool = False
    operation: str = ""  # and, xor

    @property
    def spelling(self) -> str:
        saturate = ".satfinite" if self.satfinite else ""
        operation = f".{self.operation}.popc" if self.operation else ""
        types = f"{self.sum}.{self.a}.{self.b}.{self.sum}"
        return f"mma.sync.aligned.{self.shape}.row.col{saturate}.{types}{operation}"

    @property
    def name(self) -> str:
        return self.spelling.removeprefix("mma.sync.aligned.").replace(".", "_")


PRODUCTS = [
    *(Product(shape, "f16", "f16", total) for shape in ("m16n8k8", "m16n8k16") for total in ("f16", "f32")),
    *(Product(shape, "bf16", "bf16", "f32") for shape in ("m16n8k8", "m16n8k16")),
    *(Product(shape, "tf32", "tf32", "f32") for shape in ("m16n8k4", "m16n8k8")),
    *(
        Product(f"m16n8k{k}", a, b, d)
        for k, a, b, d in product((16, 32), ("e4m3", "e5m2"), ("e4m3", "e5m2"), ("f16", "f32"))
    ),
    *(
        Product(shape, a, b, "s32", satfinite)
        for shape, a, b, satfinite in product(
            ("m8n8k16", "m16n8k16", "m16n8k32"), ("s8", "u8"), ("s8", "u8"), (False, True)
        )
    ),
    *(
        Product(shape, a, b, "s32", satfinite)
        for shape, a, b, satfinite in product(
            ("m8n8k32", "m16n8k32", "m16n8k64"), ("s4", "u4"), ("s4", "u4"), (False, True)
        )
    ),
    *(
        Product(shape, "b1", "b1", "s32", operation=operation)
        for shape, operation in product(("m8n8k128", "m16n8k128", "m16n8k256"), ("and", "xor"))
    ),
    *(Product(shape, "f64", "f64", "f64") for shape in ("m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16")),
]


# ---- running one product -----------------------------------------------------------------------------------


def snippet(p: Product, *products: Sequence[np.ndarray]) -> Snippet:
    """A, B and C of several products, one block each, in the lanes' registers by the manual's figures."""
    places = A_PLACES[p.shape, BITS[p.a]], B_PLACES[p.shape, BITS[p.b]], c_place(p.shape)
    kinds = p.a, p.b, p.sum
    fragments = {
        key: np.concatenate(
            [pack(encode(values[i], kinds[i]), places[i], BITS[kinds[i]]) for values in products]
        )
        for i, key in enumerate("abc")
    }
    return multiplication(p.name, p.spelling, fragments, p.sum, p.sum, fragments["c"].shape[1])


def multiplication(
    name: str, spelling: str, fragments: dict[str, np.ndarray], c: str, d: str, d_registers: int
) -> Snippet:
    """A snippet that multiplies what the lanes' registers hold.  c, d: the element types of C and D."""
    size = fragments["a"].itemsize
    counts = {key: words.shape[1] for key, words in fragments.items()} | {"d": d_registers}
    factor = "f64" if d == "f64" else "b32"
    types = {"a": factor, "b": factor} | {
        key: kind if kind[0] == "f" and kind != "f16" else "b32" for key, kind in (("c", c), ("d", d))
    }
    declared = " ".join(f".reg .{types[key]} %{key}<{count}>;" for key, count in counts.items())
    loads = [
        f"ld.global.{types[key]} %{key}{i}, [%rd_{key}+{size * i}];"
        for key in fragments
        for i in range(counts[key])
    ]
    stores = [f"st.global.{types['d']} [%rd_out+{size * i}], %d{i};" for i in range(d_registers)]
    listed = ", ".join("{" + ", ".join(f"%{key}{i}" for i in range(counts[key])) + "}" for key in "dabc")
    body = " ".join([*loads, f"{spelling} {listed};", *stores])
    return Snippet(
        name, body, fragments, ((len(fragments["a"]), d_registers), fragments["a"].dtype), declared, block=32
    )


def result(p: Product, words: np.ndarray) -> np.ndarray:
    rows, columns, _ = extents(p.shape)
    return decode(unpack(words, c_place(p.shape), (rows, columns), BITS[p.sum]), p.sum)


def exact(p: Product, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """A B + C of values, in float64 or Python integers."""
    if p.operation:
        pairs = a[:, :, None] & b[None] if p.operation == "and" else a[:, :, None] ^ b[None]
        total = pairs.sum(1) + c
    elif is_float(p.a):
        with np.errstate(invalid="ignore"):
            total = (a[:, :, None] * b[None]).sum(1) + c
    else:
        total = a @ b + c
    if p.sum != "s32":
        return total
    return (
        np.clip(total, S32.min, S32.max)
        if p.satfinite
        else total.astype(np.int64).astype(np.int32).astype(np.int64)
    )


# ---- cases -------------------------------------------------------------------------------------------------


def small(p: Product) -> list[np.ndarray]:
    """Integers: every rounding is exact, so that only the layouts decide."""
    m, n, k = extents(p.shape)
    return [
        integers(p.a, (m, k), GENERATOR),
        integers(p.b, (k, n), GENERATOR),
        integers(p.sum, (m, n), GENERATOR),
    ]


def random(p: Product) -> list[np.ndarray]:
    m, n, k = extents(p.shape)
    shapes = zip((p.a, p.b, p.sum), ((m, k), (k, n), (m, n)), strict=True)
    return [decode(encode(GENERATOR.normal(size=shape) * 3, kind), kind) for kind, shape in shapes]


def special(p: Product) -> list[np.ndarray]:
    """Infinities and NaN: row 1 of A, column 2 of B, and inf - inf in row 3."""
    a, b, c = random(p)
    infinite = np.inf if p.a != "e4m3" else np.nan
    a[1, 0], b[1, 2] = infinite, np.nan
    b[0, 2], c[5, 5] = -3, np.inf
    a[3, 2], c[3, :] = infinite, -np.inf
    b[2, :] = 1
    return [a, b, c]


def overflowing(p: Product) -> list[np.ndarray]:
    m, n, k = extents(p.shape)
    a, b = (integers(kind, shape, GENERATOR) for kind, shape in ((p.a, (m, k)), (p.b, (k, n))))
    c = np.where(GENERATOR.integers(0, 2, (m, n)) == 1, S32.max - 5, S32.min + 5)
    return [a, b, c]


# A, B and C by product and by what is looked at.
VALUES: dict[Product, dict[str, list[np.ndarray]]] = {p: {"small": small(p)} for p in PRODUCTS}
for p in PRODUCTS:
    if is_float(p.a):
        VALUES[p] |= {"random": random(p), "special": special(p)}
    elif not p.operation:
        VALUES[p]["overflowing"] = overflowing(p)
CASES = [snippet(p, *values.values()) for p, values in VALUES.items()]


# ---- m8n8k4 of f16 -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quads:
    """Four products of 8x4 by 4x8, each of the lanes 4q..4q+3 and 16+4q..16+4q+3."""

    a_layout: str
    b_layout: str
    d: str
    c: str

    @property
    def spelling(self) -> str:
        return f"mma.sync.aligned.m8n8k4.{self.a_layout}.{self.b_layout}.{self.d}.f16.f16.{self.c}"

    @property
    def name(self) -> str:
        return f"quads_{self.a_layout}_{self.b_layout}_{self.d}_{self.c}"


def quad_a(layout: str, lane: int, i: int) -> tuple[int, int]:
    if layout == "row":
        return (lane % 4 if lane < 16 else lane % 4 + 4), i
    return (i % 4 if lane < 16 else i % 4 + 4), lane % 4


def quad_b(layout: str, lane: int, i: int) -> tuple[int, int]:
    if layout == "row":
        return lane % 4, (i if lane < 16 else i + 4)
    return i, (lane % 4 if lane < 16 else lane % 4 + 4)


def quad_c(kind: str, lane: int, i: int) -> tuple[int, int]:
    if kind == "f16":
        return (lane % 4 if lane < 16 else lane % 4 + 4), i
    x = (lane & 1) + (i & 2)
    return (x if lane < 16 else x + 4), (i & 4) + (lane & 2) + (i & 1)


QUADS = [
    Quads(a, b, d, c)
    for a, b in product(("row", "col"), repeat=2)
    for d, c in (("f16", "f16"), ("f32", "f16"), ("f32", "f32"))
]
QUAD_VALUES = [GENERATOR.integers(-9, 9, (4, *shape)) for shape in ((8, 4), (4, 8), (8, 8))]


def quad_words(values: np.ndarray, kind: str, place, count: int) -> np.ndarray:
    per_word = 32 // BITS[kind]
    words = np.zeros((32, count // per_word), np.uint32)
    codes = encode(values, kind)
    for lane in range(32):
        for i in range(count):
            row, column = place(lane, i)
            code = int(codes[lane % 16 // 4, row, column])
            words[lane, i // per_word] |= np.uint32(code << i % per_word * BITS[kind])
    return words


def quad_snippet(q: Quads) -> Snippet:
    a, b, c = QUAD_VALUES
    fragments = {
        "a": quad_words(a, "f16", lambda lane, i: quad_a(q.a_layout, lane, i), 4),
        "b": quad_words(b, "f16", lambda lane, i: quad_b(q.b_layout, lane, i), 4),
        "c": quad_words(c, q.c, lambda lane, i: quad_c(q.c, lane, i), 8),
    }
    return multiplication(q.name, q.spelling, fragments, q.c, q.d, 8 if q.d == "f32" else 4)


CASES += map(quad_snippet, QUADS)


# ---- tests -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results() -> dict[str, np.ndarray]:
    return run_all(CASES)


def each(results: dict[str, np.ndarray], kind: str) -> Iterator[tuple[Product, list[np.ndarray], np.ndarray]]:
    """The products that have this kind of values: their A, B, C, and what came out."""
    for p, values in VALUES.items():
        if kind in values:
            block = list(values).index(kind)
            yield p, values[kind], result(p, results[p.name][32 * block : 32 * block + 32])


def test_spellings_are_ptx() -> None:
    assert_ptxas_accepts(ptx_of(CASES))


def test_layouts(results: dict[str, np.ndarray]) -> None:
    for p, values, got in each(results, "small"):
        assert (got == exact(p, *values)).all(), p.spelling


def test_rounding(results: dict[str, np.ndarray]) -> None:
    """Float sums within a few units of what was added up; f16 results within half a unit more."""
    for p, (a, b, c), got in each(results, "random"):
        wanted = exact(p, a, b, c)
        magnitude = np.abs(a) @ np.abs(b) + np.abs(c)
        unit = 2.0**-53 if p.sum == "f64" else 2.0**-24
        allowed = (extents(p.shape)[2] + 1) * unit * magnitude
        if p.sum == "f16":
            allowed += 2.0**-11 * np.abs(wanted)
        assert (np.abs(got - wanted) <= allowed).all(), p.spelling


def test_infinities_and_nan(results: dict[str, np.ndarray]) -> None:
    for p, values, got in each(results, "special"):
        wanted = exact(p, *values)
        assert np.isnan(wanted).any(), p.spelling
        assert np.isinf(wanted).any(), p.spelling
        assert (np.isnan(got) == np.isnan(wanted)).all(), p.spelling
        infinite = np.isinf(wanted)
        assert (np.isinf(got) == infinite).all(), p.spelling
        assert (np.sign(got[infinite]) == np.sign(wanted[infinite])).all(), p.spelling


def test_integers_wrap_or_saturate(results: dict[str, np.ndarray]) -> None:
    for p, (a, b, c), got in each(results, "overflowing"):
        plain = a @ b + c
        assert ((plain > S32.max) | (plain < S32.min)).any(), p.spelling
        assert (got == exact(p, a, b, c)).all(), p.spelling


def test_m8n8k4_of_halves(results: dict[str, np.ndarray]) -> None:
    a, b, c = QUAD_VALUES
    wanted = a @ b + c
    for q in QUADS:
        words = results[q.name]
        per_word = 32 // BITS[q.d]
        for lane, i in product(range(32), range(8)):
            code = int(words[lane, i // per_word]) >> i % per_word * BITS[q.d] & (1 << BITS[q.d]) - 1
            row, column = quad_c(q.d, lane, i)
            assert decode(np.array(code), q.d) == wanted[lane % 16 // 4, row, column], (q.spelling, lane, i)


def run_of_products(p: Product, values: list[np.ndarray], times: int) -> Snippet:
    """D = A B + C, many times over; every third takes the result before it for C."""
    one = snippet(p, values)
    fill, _, multiply = one.body.partition("mma.sync")
    factors = multiply[multiply.index("}") + 1 : multiply.rindex("{")]           # ", {a...}, {b...}, "
    results = [f"{{%e{n}_0, %e{n}_1, %e{n}_2, %e{n}_3}}" for n in range(times)]
    lines = [fill]
    for n, result in enumerate(results):
        added = results[n - 1] if n % 3 == 2 else "{%c0, %c1, %c2, %c3}"
        lines.append(f"{p.spelling} {result}{factors}{added};")
    lines += [f"st.global.v4.f32 [%rd_out+{16 * n}], {result};" for n, result in enumerate(results)]
    declared = one.registers + " ".join(f".reg .f32 %e{n}_<4>;" for n in range(times))
    return Snippet("run", "\n".join(lines), one.inputs, ((32, 4 * times), np.uint32), declared)


def test_neighbouring_products_become_one_collective() -> None:
    p = Product("m16n8k16", "bf16", "bf16", "f32")
    a, b, c = VALUES[p]["small"]
    case = run_of_products(p, [a, b, c], times=20)
    # One that needs the result before it begins a new run.
    assert re.findall(r"Mma m\[(\d+)\]", translate(ptx_of([case])).cpp) == ["2", *["3"] * 6]
    got = run_all([case])["run"].reshape(32, 20, 4)
    for number in range(20):
        wanted = a @ b + (a @ b + c if number % 3 == 2 else c)
        assert (result(p, got[:, number]) == wanted).all(), number


def test_lanes_that_stay_away_are_reported() -> None:
    case = CASES[0]
    half = Snippet(
        "half",
        f"setp.ge.u32 %q, %tid32, 16;  @%q exit;  {case.body}",
        {key: a[:32] for key, a in case.inputs.items()},
        ((32, 2), np.uint32),
        case.registers + " .reg .pred %q;",
    )
    module, _ = run_module([half], mode="check")
    assert [report.kind for report in module.reports] == ["collective"]


def test_work_is_counted() -> None:
    p = Product("m16n8k16", "bf16", "bf16", "f32")
    module, _ = run_module([snippet(p, VALUES[p]["small"])], mode="count")
    assert module.counters[p.name].flops["tensor_bf16"] == 2 * 16 * 8 * 16


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("mma.sp.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", "'.sp'"),
        ("mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32", "'.row'"),
        ("mma.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32", "'.bf16'"),
        ("mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e4m3.e4m3.f32", "'.kind::f8f6f4'"),
        ("mma.sync.aligned.m16n8k16.row.col.rz.f64.f64.f64.f64", "'.rz'"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f16", "C and D must have one type"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "takes 4 registers here, not 1"),
    ],
)
def test_refused_by_name(spelling: str, message: str) -> None:
    assert message in refusal(f"{spelling} {{%r}}, {{%r}}, {{%r}}, {{%r}};", registers=".reg .b32 %r;")


def test_target_is_checked() -> None:
    four, two = "{%r, %r, %r, %r}", "{%r, %r}"
    body = f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {four}, {four}, {two}, {four};"
    assert "needs .target sm_80" in refusal(body, registers=".reg .b32 %r;", arch="sm_75")
