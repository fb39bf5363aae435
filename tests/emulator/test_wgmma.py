"""wgmma: every type, width, operand source, swizzle and layout against NumPy, and the rules for fences and
waits.

The images of matrices in shared memory are written here as a copy engine would, not by the emulator's
address arithmetic: 16-byte chunks change places within lines of 32, 64 or 128 bytes (of 128: chunk c of
line r goes to c ^ r)."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest

from cuda.nn.emulator.translate import translate
from tests.emulator.assembler import assert_ptxas_accepts
from tests.emulator.fragments import BITS, decode, encode, integers, pack
from tests.emulator.snippets import Snippet, ptx_of, refusal, run_all, run_module

GENERATOR = np.random.default_rng(17)
SWIZZLES = {0: 0, 32: 3, 64: 2, 128: 1}  # bytes -> code in the descriptor


@dataclass(frozen=True)
class Product:
    """One wgmma over `steps` instructions along K: D = A B + C."""

    n: int
    a: str
    b: str
    d: str
    swizzle: int = 128
    a_in_registers: bool = False
    transposed_a: bool = False
    transposed_b: bool = False
    scale_a: int = 1
    scale_b: int = 1
    scale_d: bool = True
    satfinite: bool = False
    steps: int = 1

    @property
    def k(self) -> int:
        """Of one instruction: 32 bytes."""
        return 256 // BITS[self.a]

    @property
    def shape(self) -> str:
        return f"m64n{self.n}k{self.k}"

    @property
    def name(self) -> str:
        flags = "".join(
            str(int(x))
            for x in (self.a_in_registers, self.transposed_a, self.transposed_b, self.scale_d, self.satfinite)
        )
        signs = "".join("n" if s < 0 else "p" for s in (self.scale_a, self.scale_b))
        return f"{self.shape}_{self.d}_{self.a}_{self.b}_s{self.swizzle}_{flags}_{signs}_{self.steps}"

    @property
    def registers(self) -> int:
        return self.n // 4 if self.d == "f16" else self.n // 2


HALVES = ("f16", "bf16")
BASE = Product(64, "bf16", "bf16", "f32")
PRODUCTS = [
    *(replace(BASE, n=n) for n in (8, 16, 40, 128, 200, 256)),
    *(
        replace(BASE, n=n, a=a, b=a, d=d, swizzle=s)
        for n, (a, d), s in product(
            (8, 48), (("f16", "f16"), ("f16", "f32"), ("bf16", "f32"), ("tf32", "f32")), SWIZZLES
        )
    ),
    *(
        replace(BASE, n=24, a=a, b=b, d=d)
        for a, b, d in product(("e4m3", "e5m2"), ("e4m3", "e5m2"), ("f16", "f32"))
    ),
    *(
        replace(BASE, n=n, a=a, b=b, d="s32", satfinite=s, swizzle=64)
        for n, (a, b), s in product((8, 80), product(("s8", "u8"), repeat=2), (False, True))
    ),
    *(
        replace(BASE, a=a, b=a, d="f32", swizzle=s, transposed_a=ta, transposed_b=tb, n=72)
        for a, s, ta, tb in product(HALVES, SWIZZLES, (False, True), (False, True))
    ),
    *(
        replace(BASE, n=16, a=a, b=a, d=d, a_in_registers=True, transposed_b=t)
        for (a, d), t in (
            *product((("f16", "f16"), ("f16", "f32"), ("bf16", "f32")), (False, True)),
            (("tf32", "f32"), False),
            (("e4m3", "f32"), False),
            (("s8", "s32"), False),
        )
    ),
    *(
        replace(BASE, n=8, scale_a=x, scale_b=y, scale_d=z)
        for x, y, z in product((1, -1), (1, -1), (True, False))
    ),
    *(replace(BASE, n=32, steps=4, swizzle=s, a=a, b=a) for s, a in product((0, 128), ("bf16", "tf32"))),
    *(
        replace(BASE, n=32, steps=2, swizzle=64),
        replace(BASE, n=64, steps=4, transposed_a=True, transposed_b=True),
    ),
]
PRODUCTS = list(dict.fromkeys(PRODUCTS))


# ---- matrices in shared memory -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """Bytes of a matrix in shared memory, and the fields of its descriptor."""

    data: np.ndarray
    leading: int
    stride: int
    step: int  # from one instruction's K to the next, bytes

    def descriptor(self, swizzle: int) -> int:
        """Without the start address."""
        return self.leading >> 4 << 16 | self.stride >> 4 << 32 | SWIZZLES[swizzle] << 62


def permuted(lines: np.ndarray, swizzle: int) -> np.ndarray:
    """Lines of `swizzle` bytes, from a multiple of the pattern on, with their chunks moved."""
    rows = lines.reshape(len(lines), -1, 16)
    if not swizzle:
        return rows
    repeat = 128 // swizzle  # lines in 128 bytes, which share one permutation
    return np.stack(
        [row[np.arange(len(row)) ^ (r // repeat % (swizzle // 16))] for r, row in enumerate(rows)]
    )


def k_major(lines: np.ndarray, swizzle: int, k_bytes: int) -> Image:
    """lines: bytes [rows, K of all steps].  Eight rows lie together."""
    rows, length = lines.shape
    if not swizzle:  # chunks of eight rows, 128 bytes; then the next chunk along K
        chunks = lines.reshape(rows // 8, 8, length // 16, 16).swapaxes(1, 2)
        return Image(chunks.reshape(-1), leading=128, stride=8 * length, step=128 * k_bytes // 16)
    assert length <= swizzle
    wide = np.pad(lines, ((0, 0), (0, swizzle - length)))
    return Image(permuted(wide, swizzle).reshape(-1), leading=16, stride=8 * swizzle, step=k_bytes)


def transposed(lines: np.ndarray, swizzle: int) -> Image:
    """lines: 16-bit elements [K, rows].  Spans of 8, 16, 32 or 64 rows lie together, for eight k."""
    depth, rows = lines.shape
    span = max(swizzle, 16) // 2
    full = -(-rows // span) * span
    padded = np.pad(lines, ((0, 0), (0, full - rows))).reshape(depth // 8, 8, full // span, span)
    blocks = padded.transpose(2, 0, 1, 3)  # [span, k / 8, k % 8, element]
    data = np.ascontiguousarray(blocks).view(np.uint8).reshape(-1, max(swizzle, 16))
    k_stride, span_stride = 8 * data.shape[1], depth * data.shape[1]
    if not swizzle:
        return Image(data.reshape(-1), leading=k_stride, stride=span_stride, step=2 * k_stride)
    return Image(permuted(data, swizzle).reshape(-1), leading=span_stride, stride=k_stride, step=2 * k_stride)


def image(codes: np.ndarray, kind: str, swizzle: int, is_transposed: bool) -> Image:
    """codes: bit patterns [rows of A or columns of B, K]."""
    elements = np.ascontiguousarray(codes, f"u{BITS[kind] // 8}")
    if is_transposed:
        return transposed(np.ascontiguousarray(elements.T), swizzle)
    return k_major(elements.view(np.uint8).reshape(len(codes), -1), swizzle, 32)


# ---- one product as a snippet ------------------------------------------------------------------------------


def a_place(kind: str):
    """A in registers: four words a lane, as in mma.m16n8, 16 rows a warp."""
    per = 32 // BITS[kind]

    def place(g: int, t: int, i: int) -> tuple[int, int]:
        word, part = divmod(i, per)
        return (g if word in (0, 2) else g + 8), t * per + part + (4 * per if word >= 2 else 0)

    return place


def d_places(p: Product) -> tuple[np.ndarray, np.ndarray]:
    """Of the 128 threads: row and column of element i, as arrays [lane, i]."""
    lane, i = np.ogrid[:128, : p.n // 2]
    warp, g, t = lane // 32, lane % 32 // 4, lane % 4
    return warp * 16 + g + np.where(i % 4 >= 2, 8, 0), i // 4 * 8 + t * 2 + i % 2


def d_words(matrix: np.ndarray, p: Product) -> np.ndarray:
    codes = encode(matrix, p.d)[d_places(p)]
    return np.ascontiguousarray(codes, f"u{BITS[p.d] // 8}").view(np.uint32)


def d_matrix(words: np.ndarray, p: Product) -> np.ndarray:
    codes = np.zeros((64, p.n), np.uint64)
    codes[d_places(p)] = words.view(f"u{BITS[p.d] // 8}")
    return decode(codes, p.d)


def listed(name: str, count: int) -> str:
    return "{" + ", ".join(f"%{name}{i}" for i in range(count)) + "}"


PROXY_FENCE = "fence.proxy.async.shared::cta;"
FENCE, COMMIT, WAIT = (
    "wgmma.fence.sync.aligned;",
    "wgmma.commit_group.sync.aligned;",
    "wgmma.wait_group.sync.aligned 0;",
)


def fill(name: str, size: int) -> str:
    """128 threads copy a row of input each into shared memory."""
    at = f"mov.u32 %at, tile_{name};  mad.lo.u32 %at, %tid32, {size // 128}, %at;"
    words = (
        f"ld.global.b32 %w, [%rd_{name}+{i}];  st.shared.b32 [%at+{i}], %w;" for i in range(0, size // 128, 4)
    )
    return " ".join((at, *words))


def descriptor(register: str, name: str, made: Image, swizzle: int, step: int) -> str:
    return (
        f"mov.u32 %at, tile_{name};  add.u32 %at, %at, {made.step * step};"
        f"shr.u32 %at, %at, 4;  cvt.u64.u32 {register}, %at;"
        f"or.b64 {register}, {register}, {made.descriptor(swizzle):#x};"
    )


def instruction(p: Product, a: str = "%desc_a") -> str:
    operands = [listed("d", p.registers), a, "%desc_b", "%accumulate"]
    if p.d != "s32":
        operands += [str(p.scale_a), str(p.scale_b)]
    if p.a in HALVES:
        operands += [str(int(t)) for t in (() if p.a_in_registers else (p.transposed_a,))] + [
            str(int(p.transposed_b))
        ]
    saturate = ".satfinite" if p.satfinite else ""
    return f"wgmma.mma_async.sync.aligned.{p.shape}.{p.d}.{p.a}.{p.b}{saturate} {', '.join(operands)};"


def snippet(p: Product, a: np.ndarray, b: np.ndarray, c: np.ndarray, name: str = "") -> Snippet:
    b_image = image(encode(b.T, p.b), p.b, p.swizzle, p.transposed_b)
    images = {"b": b_image}
    inputs = {"c": d_words(c, p)}
    if p.a_in_registers:
        inputs["a"] = np.concatenate(
            [pack(encode(a, p.a)[16 * w : 16 * w + 16], a_place(p.a), BITS[p.a]) for w in range(4)]
        )
    else:
        images["a"] = image(encode(a, p.a), p.a, p.swizzle, p.transposed_a)
    declared = [f".reg .b32 %at, %w, %a<4>; .reg .{'f32' if p.d == 'f32' else 'b32'} %d<{p.registers}>;"]
    declared.append(".reg .b64 %desc_a, %desc_b; .reg .pred %accumulate;")
    body = []
    for key, made in images.items():
        data = np.pad(made.data, (0, -made.data.size % 512))
        inputs[key] = data.reshape(128, -1)
        declared.append(f".shared .align 1024 .b8 tile_{key}[{data.size}];")
        body.append(fill(key, data.size))
    body += [PROXY_FENCE, "bar.sync 0;", f"setp.{'eq' if p.scale_d else 'ne'}.u32 %accumulate, 0, 0;"]
    kind = "f32" if p.d == "f32" else "b32"
    body += [f"ld.global.{kind} %d{i}, [%rd_c+{4 * i}];" for i in range(p.registers)]
    if p.a_in_registers:
        body += [f"ld.global.b32 %a{i}, [%rd_a+{4 * i}];" for i in range(4)]
    body.append(FENCE)
    for step in range(p.steps):
        body.append(descriptor("%desc_b", "b", b_image, p.swizzle, step))
        if not p.a_in_registers:
            body.append(descriptor("%desc_a", "a", images["a"], p.swizzle, step))
        body.append(instruction(p, listed("a", 4) if p.a_in_registers else "%desc_a"))
    body += [COMMIT, WAIT]
    body += [f"st.global.{kind} [%rd_out+{4 * i}], %d{i};" for i in range(p.registers)]
    return Snippet(
        name or p.name, "\n".join(body), inputs, ((128, p.registers), np.uint32), " ".join(declared)
    )


def values_of(p: Product) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    depth = p.k * p.steps
    a, b, c = (
        integers(kind, shape, GENERATOR)
        for kind, shape in ((p.a, (64, depth)), (p.b, (depth, p.n)), (p.d, (64, p.n)))
    )
    if p.satfinite:
        c = np.where(c > 0, 2**31 - 9, -(2**31) + 9)
    return a, b, c


def wanted(p: Product, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    total = p.scale_a * p.scale_b * (a @ b) + (c if p.scale_d else 0)
    return np.clip(total, -(2**31), 2**31 - 1) if p.satfinite else total


VALUES = {p: values_of(p) for p in PRODUCTS}
CASES = [snippet(p, *values) for p, values in VALUES.items()]


def test_spellings_are_ptx() -> None:
    assert_ptxas_accepts(ptx_of(CASES))


def test_every_width_is_known() -> None:
    widths = [replace(BASE, n=n) for n in range(8, 257, 8)]
    widths += [replace(BASE, n=n, a="s8", b="u8", d="s32") for n in (8, 16, 24, *range(32, 257, 16))]
    cases = []
    for p in widths:
        declared = f".reg .{'f32' if p.d == 'f32' else 'b32'} %d<{p.registers}>; .reg .pred %accumulate;"
        cases.append(Snippet(p.name, instruction(p), registers=declared + ".reg .b64 %desc_a, %desc_b;"))
    assert_ptxas_accepts(ptx_of(cases))
    assert translate(ptx_of(cases))


def test_products() -> None:
    results = run_all(CASES)
    for p, values in VALUES.items():
        assert (d_matrix(results[p.name], p) == wanted(p, *values)).all(), p


# ---- the rules ---------------------------------------------------------------------------------------------

RULED = Product(16, "bf16", "bf16", "f32")
CORRECT = snippet(RULED, *values_of(RULED), name="correct")


def broken(name: str, old: str, new: str) -> Snippet:
    assert CORRECT.body.count(old) == 1
    return replace(CORRECT, name=name, body=CORRECT.body.replace(old, new))


# Between the instruction and its wait, one thread writes to the operand.
LATE_WRITE = (
    "mov.u32 %at, tile_b;  .reg .pred %first;  setp.eq.u32 %first, %tid32, 77;"
    "@%first st.shared.b32 [%at], %w;"
)
BREACHES = {
    "no_fence": (FENCE, "", "async", "no wgmma.fence before it"),
    "no_commit": (COMMIT, "", "async", "no wgmma.commit_group follows"),
    "no_wait": (WAIT, "", "async", "before wgmma.wait_group covered"),
    "used_early": (
        WAIT,
        "st.global.f32 [%rd_out], %d0;" + WAIT,
        "async",
        "before wgmma.wait_group covers it",
    ),
    "wait_too_weak": (WAIT, WAIT.replace(" 0", " 1"), "async", "before wgmma.wait_group covers it"),
    "no_proxy_fence": (PROXY_FENCE, "", "async", "fence.proxy.async"),
    "written_in_flight": (COMMIT, COMMIT + LATE_WRITE, "race", "the read by thread"),
    "written_before_wait": (COMMIT, COMMIT + "bar.sync 0;" + LATE_WRITE, "race", "the read by thread"),
    "no_barrier": ("bar.sync 0;", "", "race", "the read by thread"),
}


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_correct_use_is_clean(schedule: str) -> None:
    run_all([CORRECT], mode="check", schedule=schedule)


@pytest.mark.parametrize("name", BREACHES)
def test_breach_is_reported(name: str) -> None:
    old, new, kind, message = BREACHES[name]
    module, _ = run_module([broken(name, old, new)], mode="check")
    assert any(report.kind == kind and message in report.message for report in module.reports), module.reports


def test_work_is_counted() -> None:
    module, _ = run_module([CORRECT], mode="count")
    assert module.counters["correct"].flops["tensor_bf16"] == 2 * 64 * 16 * 16


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%r}, %d, %d, %r, %p, 1, 1, 0, 0;", "'.sp'"),
        ("wgmma.mma_async.sync.aligned.m64n8k256.s32.b1.b1.and.popc {%r}, %d, %d, %p;", "'.m64n8k256'"),
        (
            "wgmma.mma_async.sync.aligned.m64n12k16.f32.bf16.bf16 {%r}, %d, %d, %p, 1, 1, 0, 0;",
            "'.m64n12k16'",
        ),
        ("wgmma.mma_async.sync.aligned.m64n40k32.s32.s8.s8 {%r}, %d, %d, %p;", "'.s32'"),
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r, %r, %r, %r}, %d, %d, %p, 2, 1, 0, 0;",
            "imm-scale must be -1 or 1",
        ),
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r, %r, %r, %r}, %d, %d, %p, 1, 1, 0;",
            "number of imm-trans",
        ),
        ("wgmma.fence.aligned;", "'.aligned'"),
    ],
)
def test_refused_by_name(body: str, message: str) -> None:
    assert message in refusal(body, registers=".reg .b32 %r; .reg .b64 %d; .reg .pred %p;")


def test_needs_its_target() -> None:
    assert "sm_90a" in refusal("wgmma.fence.sync.aligned;", arch="sm_90")
