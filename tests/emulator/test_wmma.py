"""wmma.load, .mma and .store in every shape, type and layout.  Fragments are opaque: what is looked at is
what comes back to memory."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from tests.emulator.assembler import assert_ptxas_accepts
from tests.emulator.fragments import BITS, decode, encode, extents, integers, is_float
from tests.emulator.snippets import Snippet, ptx_of, refusal, run_all

GENERATOR = np.random.default_rng(13)
WIDE = ("m16n16k16", "m32n8k16", "m8n32k16")
LAYOUTS = ("row", "col")
S32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Product:
    """One spelling of wmma.mma with the layouts of all its loads and its store."""

    shape: str
    kind: str  # of A and B
    c: str
    d: str
    a_layout: str
    b_layout: str
    c_layout: str
    space: str = "global"
    satfinite: bool = False
    operation: str = ""

    @property
    def spelling(self) -> str:
        layouts = f"{self.a_layout}.{self.b_layout}.{self.shape}"
        if self.kind == "f16":
            return f"wmma.mma.sync.aligned.{layouts}.{self.d}.{self.c}"
        head = f"wmma.mma.{self.operation}.popc" if self.operation else "wmma.mma"
        tail = ".satfinite" if self.satfinite else ".rn" if self.kind == "f64" else ""
        return f"{head}.sync.aligned.{layouts}.{self.d}.{self.kind}.{self.kind}.{self.c}{tail}"

    @property
    def name(self) -> str:
        return f"{self.spelling}_{self.c_layout}_{self.space}".replace(".", "_")


def float_products() -> list[Product]:
    halves = [
        Product(shape, "f16", c, d, a, b, cd)
        for shape, (c, d), (a, b, cd) in product(
            WIDE,
            product(("f16", "f32"), repeat=2),
            (("row", "col", "row"), ("col", "row", "col"), ("row", "row", "row")),
        )
    ]
    others = [
        Product(shape, kind, "f32", "f32", a, b, cd)
        for shape, kind in [*((shape, "bf16") for shape in WIDE), ("m16n16k8", "tf32")]
        for a, b, cd in product(LAYOUTS, repeat=3)
    ]
    doubles = [Product("m8n8k4", "f64", "f64", "f64", *layouts) for layouts in product(LAYOUTS, repeat=3)]
    return [*halves, *others, *doubles]


PRODUCTS = [
    *float_products(),
    *(
        Product(shape, kind, "s32", "s32", a, b, "row", satfinite=satfinite)
        for shape, kind, (a, b), satfinite in product(
            WIDE, ("s8", "u8"), (("row", "col"), ("col", "row")), (False, True)
        )
    ),
    *(
        Product("m8n8k32", kind, "s32", "s32", "row", "col", "row", satfinite=s)
        for kind in ("s4", "u4")
        for s in (False, True)
    ),
    *(
        Product("m8n8k128", "b1", "s32", "s32", "row", "col", "col", operation=operation)
        for operation in ("and", "xor")
    ),
    *(
        Product("m16n16k16", kind, "f32", "f32", "row", "col", "row", space)
        for kind in ("f16", "bf16")
        for space in ("", "shared")
    ),
]
PADDING = 8  # elements between the end of a line and the next (a whole byte or more of sub-byte types)


def registers(p: Product, matrix: str) -> int:
    m, n, k = extents(p.shape)
    kind = {"a": p.kind, "b": p.kind, "c": p.c, "d": p.d}[matrix]
    if matrix in "ab" and kind == "f16":
        return 8
    size = {"a": m * k, "b": k * n, "c": m * n, "d": m * n}[matrix]
    return size * BITS[kind] // 32 // (64 if kind == "f64" else 32)


def register_type(kind: str) -> str:
    return kind if kind in ("f32", "f64") else "b32"


def stored(codes: np.ndarray, layout: str, bits: int) -> tuple[np.ndarray, int]:
    """A matrix as bytes in memory with lines further apart than they are long; the distance in elements."""
    lines = codes if layout == "row" else codes.T
    padding = max(PADDING, 128 // bits)
    lines = np.pad(lines, ((0, 0), (0, padding)))
    if bits < 8:
        lines = sum(lines[:, i :: 8 // bits] << np.uint64(i * bits) for i in range(8 // bits))
    data = np.ascontiguousarray(lines, f"u{max(bits, 8) // 8}")
    return data.view(np.uint8).reshape(-1), codes.shape[layout == "row"] + padding


def values_of(p: Product) -> list[np.ndarray]:
    m, n, k = extents(p.shape)
    a, b, c = (
        integers(p.kind, (m, k), GENERATOR),
        integers(p.kind, (k, n), GENERATOR),
        integers(p.c, (m, n), GENERATOR),
    )
    if p.satfinite:
        c = np.where(c > 0, S32.max - 5, S32.min + 5)
    return [a, b, c]


def snippet(p: Product, values: list[np.ndarray]) -> Snippet:
    kinds, layouts = (
        {"a": p.kind, "b": p.kind, "c": p.c, "d": p.d},
        {"a": p.a_layout, "b": p.b_layout, "c": p.c_layout},
    )
    counts = {key: registers(p, key) for key in "abcd"}
    parts, inputs = [], {}
    for key, value in zip("abc", values, strict=True):
        data, stride = stored(encode(value, kinds[key]), layouts[key], BITS[kinds[key]])
        inputs[key] = np.pad(data, (0, -data.size % 512)).reshape(32, -1)  # a piece for each thread
        target, space = f"%base_{key}", "" if p.space == "" else ".global"
        if p.space == "shared":
            words = inputs[key].shape[1] // 4
            parts += [
                f"ld.global.b32 %w, [%rd_{key}+{4 * i}];  st.shared.b32 [%at_{key}+{4 * i}], %w;"
                for i in range(words)
            ]
            target, space = f"tile_{key}", ".shared"
        listed = "{" + ", ".join(f"%{key}{i}" for i in range(counts[key])) + "}"
        sync = "bar.sync 0;" if p.space == "shared" else ""
        parts.append(
            f"{sync} wmma.load.{key}.sync.aligned.{layouts[key]}.{p.shape}{space}.{kinds[key]} "
            f"{listed}, [{target}], {stride};"
        )
    lists = {key: "{" + ", ".join(f"%{key}{i}" for i in range(counts[key])) + "}" for key in "abcd"}
    m, n, _ = extents(p.shape)
    parts.append(f"{p.spelling} " + ", ".join(lists[key] for key in "dabc") + ";")
    parts.append(
        f"wmma.store.d.sync.aligned.{p.c_layout}.{p.shape}.global.{p.d} [%base_out], {lists['d']};"
    )  # dense
    declared = [f".reg .{register_type(kinds[key])} %{key}<{counts[key]}>;" for key in "abcd"]
    if p.space == "shared":
        declared.append(".reg .b32 %w, %at_a, %at_b, %at_c;")
        for key in "abc":
            declared.append(f".shared .align 32 .b8 tile_{key}[{inputs[key].size}];")
            parts.insert(
                0,
                f"mov.u32 %at_{key}, tile_{key};"
                f"mad.lo.u32 %at_{key}, %tid32, {inputs[key].shape[1]}, %at_{key};",
            )
    dtype = {"f16": np.uint16, "f64": np.uint64}.get(p.d, np.uint32)
    return Snippet(p.name, " ".join(parts), inputs, ((32, m * n // 32), dtype), " ".join(declared))


def wanted(p: Product, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    if p.operation:
        pairs = a[:, :, None] & b[None] if p.operation == "and" else a[:, :, None] ^ b[None]
        return pairs.sum(1) + c
    total = a @ b + c
    return np.clip(total, S32.min, S32.max) if p.satfinite else total


VALUES = {p: values_of(p) for p in PRODUCTS}
CASES = [snippet(p, values) for p, values in VALUES.items()]


@pytest.fixture(scope="module", params=["fast", "check"])
def results(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    return run_all(CASES, mode=request.param)


def test_spellings_are_ptx() -> None:
    assert_ptxas_accepts(ptx_of(CASES))


def test_products(results: dict[str, np.ndarray]) -> None:
    for p, values in VALUES.items():
        m, n, _ = extents(p.shape)
        codes = results[p.name].reshape(-1)
        matrix = codes.reshape(m, n) if p.c_layout == "row" else codes.reshape(n, m).T
        assert (decode(matrix, p.d) == wanted(p, *values)).all(), p.spelling


def test_every_element_may_be_changed_alike() -> None:
    """What CUDA allows: the same operation on all elements of a fragment, whatever their order."""
    p = Product("m16n16k16", "f16", "f32", "f32", "row", "col", "row")
    a, b, c = VALUES[p]
    plain = snippet(p, [a, b, c])
    doubled = " ".join(f"add.f32 %d{i}, %d{i}, %d{i};" for i in range(8))
    case = Snippet(
        "doubled",
        plain.body.replace("wmma.store", f"{doubled} wmma.store"),
        plain.inputs,
        plain.output,
        plain.registers,
    )
    got = run_all([case])["doubled"].view(np.float32).reshape(16, 16)
    assert (got == 2 * (a @ b + c)).all()
    assert is_float(p.kind)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f16.satfinite {%r}, {%r}, {%r}, {%r};", "'.satfinite'"),
        ("wmma.load.a.sync.aligned.row.m16n16k4.f16 {%r}, [%r];", "'.m16n16k4'"),
        ("wmma.load.a.sync.aligned.col.m8n8k32.s4 {%r}, [%r];", "'.m8n8k32'"),
        ("wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r}, [%r];", "takes 8 registers here, not 1"),
        ("wmma.mma.sync.aligned.row.col.m8n8k4.rz.f64.f64.f64.f64 {%r}, {%r}, {%r}, {%r};", "'.rz'"),
    ],
)
def test_refused_by_name(body: str, message: str) -> None:
    assert message in refusal(body, registers=".reg .b32 %r;")
