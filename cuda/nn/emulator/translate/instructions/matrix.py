"""ldmatrix, stmatrix, movmatrix, mma.sync and wmma (nvcuda::wmma).

A row packs the operands' registers into a struct of csrc/emulator/matrix.h, calls the collective and
takes the results out of it:

    { Mma m = {&s, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}}; mma(t, m, 7); d0 = m.c[0]; ... }

Refused for want of a row: sparse products (mma.sp), block-scaled and 6- and 4-bit floats (kind::),
tcgen05, and the 8-bit forms of ldmatrix and stmatrix: all of them newer than sm_90, except mma.sp."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Name, Operand
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.products import product_code
from cuda.nn.emulator.translate.table import Unsupported, instruction

BITS = {
    "f16": 16,
    "bf16": 16,
    "tf32": 32,
    "e4m3": 8,
    "e5m2": 8,
    "s8": 8,
    "u8": 8,
    "s4": 4,
    "u4": 4,
    "b1": 1,
    "f32": 32,
    "s32": 32,
}
FLOP_KINDS = {
    "f16": "tensor_f16",
    "bf16": "tensor_bf16",
    "tf32": "tensor_tf32",
    "e4m3": "tensor_f8",
    "e5m2": "tensor_f8",
    "f64": "tensor_f64",
}  # all others: tensor_int8
_SPACE = "space:shared|shared::cta?"


def registers(e: Emitter, operand: Operand, count: int) -> list[Operand]:
    """The registers of a fragment, of which there must be `count`."""
    elements = e.vector(operand)
    if len(elements) != count:
        raise Unsupported(f"{e.current.opcode!r} takes {count} registers here, not {len(elements)}")
    return elements


def packed(e: Emitter, elements: Sequence[Operand], type: str = "b32") -> str:
    """A C++ initialiser list of registers."""
    return "{" + ", ".join(e.value(element, type) for element in elements) + "}"


def unpacked(e: Emitter, elements: Sequence[Operand], source: str, type: str = "b32") -> str:
    """Statements that set registers from an array."""
    return " ".join(e.assign(element, type, f"{source}[{index}]") for index, element in enumerate(elements))


def element(name: str) -> str:
    """The MmaType of a PTX type."""
    return f"MmaType::{name}"


def count_work(e: Emitter, type: str, multiplications: int, threads: int = 32) -> None:
    """What a product counts for: a multiplication and an addition each, divided among the threads."""
    e.flops(FLOP_KINDS.get(type, "tensor_int8"), 2 * multiplications // threads)


# ---- moving 8x8 matrices -----------------------------------------------------------------------------------


def _moved(e: Emitter, m: SimpleNamespace, address: Operand, kind: str) -> tuple[int, str]:
    """Number of matrices; statements that find the row and announce it for the lanes whose address counts."""
    count = int(m.count[1:])
    flags = f"{kind} | MATRIX" + (" | SHARED" if m.space else "")
    row = e.address(address, m.space or "generic")
    announce = f"EMU_ACCESS(t, m.row, 16, {flags}, {e.site()});"
    condition = f"if (t.lane < {8 * count}) " if count < 4 else ""
    return count, f"MatrixRows m; m.row = {row}; {condition}{{ {announce} }}"


@instruction("ldmatrix", f"sync aligned m8n8 count:x1|x2|x4 trans? {_SPACE} b16")
@instruction("ldmatrix", f"sync aligned m8n8 count:x1|x2|x4 {_SPACE} trans? b16")
@instruction("ldmatrix", f"sync aligned count:x1|x2|x4 m8n8 trans? {_SPACE} b16")
@instruction("ldmatrix", f"sync aligned m8n8 trans? {_SPACE} count:x1|x2|x4 b16")
def ldmatrix(e: Emitter, m: SimpleNamespace, destination: Operand, address: Operand) -> str:
    e.require(75)
    count, row = _moved(e, m, address, "READ")
    to = registers(e, destination, count)
    transposed = "true" if m.trans else "false"
    return f"{{ {row} ldmatrix(t, {count}, {transposed}, m, {e.site()}); {unpacked(e, to, 'm.registers')} }}"


@instruction("stmatrix", f"sync aligned m8n8 count:x1|x2|x4 trans? {_SPACE} b16")
@instruction("stmatrix", f"sync aligned m8n8 count:x1|x2|x4 {_SPACE} trans? b16")
@instruction("stmatrix", f"sync aligned count:x1|x2|x4 m8n8 trans? {_SPACE} b16")
def stmatrix(e: Emitter, m: SimpleNamespace, address: Operand, source: Operand) -> str:
    e.require(90)
    count, row = _moved(e, m, address, "WRITE")
    values = " ".join(
        f"m.registers[{i}] = {e.value(register, 'b32')};"
        for i, register in enumerate(registers(e, source, count))
    )
    transposed = "true" if m.trans else "false"
    return f"{{ {row} {values} stmatrix(t, {count}, {transposed}, m, {e.site()}); }}"


@instruction("movmatrix", "sync aligned m8n8 trans b16")
def movmatrix(e: Emitter, m: SimpleNamespace, destination: Operand, source: Operand) -> str:
    e.require(75)
    return e.assign(destination, "b32", f"movmatrix(t, {e.value(source, 'b32')}, {e.site()})")


# ---- mma.sync ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """The types of a matrix product, as spelled."""

    a: str
    b: str
    c: str
    d: str
    saturate: bool = False
    operation: str = ""  # and, xor

    @property
    def elements(self) -> str:
        names = [
            f"{name}_{self.operation}" if self.operation and name == "b1" else name
            for name in (self.a, self.b, self.c, self.d)
        ]
        return ", ".join(map(element, names)) + (", true" if self.saturate else ", false")


def _extents(shape: str) -> tuple[int, int, int]:
    m, rest = shape[1:].split("n")
    n, k = rest.split("k")
    return int(m), int(n), int(k)


def _sum_registers(elements: int, type: str) -> int:
    """Registers of one lane's part of C or D: f16 come in pairs."""
    return elements // 2 if type == "f16" else elements


def _multiply(e: Emitter, shape: str, product: Product, operands: Sequence[Operand]) -> str:
    """mma.sync of any type whose registers are words, in the shapes m8n8 and m16n8."""
    rows, columns, depth = _extents(shape)
    if product.c != product.d:
        raise Unsupported(f"{e.current.opcode!r}: C and D must have one type in the shape .{shape}")
    words = depth * BITS[product.a] // 32  # of a row of A
    sums = _sum_registers(rows * columns // 32, product.d)
    d, a, b, c = (
        registers(e, operand, count)
        for operand, count in zip(
            operands, (sums, rows * words // 32, columns * words // 32, sums), strict=True
        )
    )
    count_work(e, product.a, rows * columns * depth)
    names = product.elements.split(", ")
    return product_code(
        ", ".join((str(rows), str(depth), *names[:2], *names[3:])),
        ", ".join(packed(e, part) for part in (a, b, c)),
        [e.assign(register, "b32", f"{{m}}.c[{index}]") for index, register in enumerate(d)],
        e.site(),
        [name for part in (a, b, c) for name in _registers_of(e, part)],
        _registers_of(e, d),
    )


def _registers_of(e: Emitter, operands: Sequence[Operand]) -> list[str]:
    return [e.register(operand).cpp for operand in operands if isinstance(operand, Name)]


@instruction("mma", "sync aligned shape:m16n8k8|m16n8k16 row col d:f16|f32 a:f16 b:f16 c:f16|f32")
def mma_f16(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    e.require(75 if m.shape == "m16n8k8" else 80)
    return _multiply(e, m.shape, Product(m.a, m.b, m.c, m.d), operands)


@instruction("mma", "sync aligned shape:m16n8k8|m16n8k16 row col f32 type:bf16 bf16_:bf16 c:f32")
@instruction("mma", "sync aligned shape:m16n8k4|m16n8k8 row col f32 type:tf32 tf32_:tf32 c:f32")
def mma_wide(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    e.require(80)
    return _multiply(e, m.shape, Product(m.type, m.type, "f32", "f32"), operands)


@instruction(
    "mma", "sync aligned shape:m16n8k16|m16n8k32 row col d:f16|f32 a:e4m3|e5m2 b:e4m3|e5m2 c:f16|f32"
)
def mma_f8(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    e.require(89)
    return _multiply(e, m.shape, Product(m.a, m.b, m.c, m.d), operands)


@instruction(
    "mma", "sync aligned shape:m8n8k16|m16n8k16|m16n8k32 row col satfinite? s32 a:s8|u8 b:s8|u8 c:s32"
)
@instruction(
    "mma", "sync aligned shape:m8n8k32|m16n8k32|m16n8k64 row col satfinite? s32 a:s4|u4 b:s4|u4 c:s32"
)
def mma_integer(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    e.require(75 if m.shape.startswith("m8") else 80)
    return _multiply(e, m.shape, Product(m.a, m.b, "s32", "s32", saturate=bool(m.satfinite)), operands)


@instruction(
    "mma", "sync aligned shape:m8n8k128|m16n8k128|m16n8k256 row col s32 b1 b:b1 c:s32 operation:and|xor popc"
)
def mma_bits(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    e.require(75 if m.shape.startswith("m8") and m.operation == "xor" else 80)
    return _multiply(e, m.shape, Product("b1", "b1", "s32", "s32", operation=m.operation), operands)


@instruction("mma", "sync aligned shape:m8n8k4|m16n8k4|m16n8k8|m16n8k16 row col rn? f64 a:f64 b:f64 c:f64")
def mma_f64(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    rows, columns, depth = _extents(m.shape)
    e.require(80 if rows == 8 else 90)
    counts = (rows * columns // 32, rows * depth // 32, columns * depth // 32, rows * columns // 32)
    d, a, b, c = (registers(e, operand, count) for operand, count in zip(operands, counts, strict=True))
    count_work(e, "f64", rows * columns * depth)
    fields = ", ".join((str(rows), str(depth), *(packed(e, part, "f64") for part in (a, b, c))))
    return f"{{ MmaDouble m = {{{fields}}}; mma(t, m, {e.site()}); {unpacked(e, d, 'm.c', 'f64')} }}"


@instruction("mma", "sync aligned m8n8k4 a_layout:row|col b_layout:row|col d:f16|f32 f16 b:f16 c:f16|f32")
def mma_quads(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    """m8n8k4: each quarter of the warp multiplies matrices of its own."""
    if (m.c, m.d) == ("f32", "f16"):
        raise Unsupported(f"{e.current.opcode!r}: D must be .f32 where C is")
    counts = (_sum_registers(8, m.d), 2, 2, _sum_registers(8, m.c))
    d, a, b, c = (registers(e, operand, count) for operand, count in zip(operands, counts, strict=True))
    count_work(e, "f16", 4 * 8 * 8 * 4)
    layouts = ", ".join("true" if layout == "row" else "false" for layout in (m.a_layout, m.b_layout))
    fields = ", ".join((layouts, element(m.c), element(m.d), packed(e, a), packed(e, b), packed(e, c)))
    return f"{{ MmaQuads m = {{{fields}}}; mma(t, m, {e.site()}); {unpacked(e, d, 'm.d_')} }}"


# ---- wmma --------------------------------------------------------------------------------------------------

_WIDE = "m16n16k16|m32n8k16|m8n32k16"
_WMMA_SPACE = "space:global|shared|shared::cta?"


@dataclass(frozen=True)
class Fragment:
    """One operand of wmma: lines of elements, and whether a line is consecutive in memory."""

    lines: int
    length: int
    type: str
    along: bool

    @property
    def bits(self) -> int:
        return 64 if self.type == "f64" else BITS[self.type]

    @property
    def registers(self) -> int:
        """Of one lane.  Fragments of f16 are held more than once where they are small."""
        return self.lines * self.length * self.bits // 32 // (64 if self.type == "f64" else 32)

    @property
    def tile(self) -> str:
        words = self.registers * (2 if self.type == "f64" else 1)
        return f"{{{self.lines}, {self.length}, {self.bits}, {'true' if self.along else 'false'}, {words}}}"


class F16Factor(Fragment):
    """A or B of f16: eight registers in every shape."""

    @property
    def registers(self) -> int:
        return 8


def _fragment(shape: str, matrix: str, layout: str, type: str) -> Fragment:
    m, n, k = _extents(shape)
    if matrix in "cd":
        return Fragment(m, n, type, layout == "row")
    kind = F16Factor if type == "f16" else Fragment
    return kind(m, k, type, layout == "row") if matrix == "a" else kind(n, k, type, layout == "col")


def _move(
    e: Emitter,
    m: SimpleNamespace,
    matrix: str,
    address: Operand,
    values: Operand,
    stride: Operand | None,
    load: bool,
) -> str:
    """A load or store.  Without a stride the matrix is dense."""
    fragment = _fragment(m.shape, matrix, m.layout, m.type)
    e.require(80 if m.type in ("bf16", "tf32", "f64") else 75)
    dense = fragment.length if fragment.along else fragment.lines
    space = {None: "", "global": " | GLOBAL"}.get(m.space, " | SHARED")
    place = f"char* const p = {e.address(address, m.space or 'generic')}; const WmmaTile w = {fragment.tile};"
    step = f"(int64_t){e.value(stride, 's32')}" if stride else str(dense)
    cpp, type = ("double", "f64") if m.type == "f64" else ("uint32_t", "b32")
    parts = registers(e, values, fragment.registers)
    if load:
        call = f"{cpp} r[{len(parts)}]; wmma_load(t, w, p, {step}, r, READ{space}, {e.site()});"
        return f"{{ {place} {call} {unpacked(e, parts, 'r', type)} }}"
    array = f"const {cpp} r[{len(parts)}] = {packed(e, parts, type)};"
    return f"{{ {place} {array} wmma_store(t, w, p, {step}, r, WRITE{space}, {e.site()}); }}"


@instruction(
    "wmma", f"load matrix:a|b sync aligned layout:row|col shape:{_WIDE} {_WMMA_SPACE} type:f16|bf16|s8|u8"
)
@instruction("wmma", f"load matrix:a|b sync aligned layout:row|col shape:m16n16k8 {_WMMA_SPACE} type:tf32")
@instruction("wmma", f"load matrix:a|b sync aligned layout:row|col shape:m8n8k4 {_WMMA_SPACE} type:f64")
@instruction("wmma", f"load matrix:a sync aligned layout:row shape:m8n8k32 {_WMMA_SPACE} type:s4|u4")
@instruction("wmma", f"load matrix:b sync aligned layout:col shape:m8n8k32 {_WMMA_SPACE} type:s4|u4")
@instruction("wmma", f"load matrix:a sync aligned layout:row shape:m8n8k128 {_WMMA_SPACE} type:b1")
@instruction("wmma", f"load matrix:b sync aligned layout:col shape:m8n8k128 {_WMMA_SPACE} type:b1")
@instruction(
    "wmma", f"load matrix:c sync aligned layout:row|col shape:{_WIDE} {_WMMA_SPACE} type:f16|f32|s32"
)
@instruction("wmma", f"load matrix:c sync aligned layout:row|col shape:m16n16k8 {_WMMA_SPACE} type:f32")
@instruction(
    "wmma", f"load matrix:c sync aligned layout:row|col shape:m8n8k32|m8n8k128 {_WMMA_SPACE} type:s32"
)
@instruction("wmma", f"load matrix:c sync aligned layout:row|col shape:m8n8k4 {_WMMA_SPACE} type:f64")
def wmma_load(
    e: Emitter, m: SimpleNamespace, values: Operand, address: Operand, stride: Operand | None = None
) -> str:
    return _move(e, m, m.matrix, address, values, stride, load=True)


@instruction("wmma", f"store d sync aligned layout:row|col shape:{_WIDE} {_WMMA_SPACE} type:f16|f32|s32")
@instruction("wmma", f"store d sync aligned layout:row|col shape:m16n16k8 {_WMMA_SPACE} type:f32")
@instruction("wmma", f"store d sync aligned layout:row|col shape:m8n8k32|m8n8k128 {_WMMA_SPACE} type:s32")
@instruction("wmma", f"store d sync aligned layout:row|col shape:m8n8k4 {_WMMA_SPACE} type:f64")
def wmma_store(
    e: Emitter, m: SimpleNamespace, address: Operand, values: Operand, stride: Operand | None = None
) -> str:
    return _move(e, m, "d", address, values, stride, load=False)


def _wmma(e: Emitter, shape: str, product: Product, operands: Sequence[Operand]) -> str:
    """wmma.mma of any type whose registers are words.  The layouts of A and B matter to the loads only."""
    rows, columns, depth = _extents(shape)
    fragments = (
        _fragment(shape, matrix, "row", type)
        for matrix, type in zip("dabc", (product.d, product.a, product.b, product.c), strict=True)
    )
    d, a, b, c = (
        registers(e, operand, part.registers) for operand, part in zip(operands, fragments, strict=True)
    )
    count_work(e, product.a, rows * columns * depth)
    fields = ", ".join(
        (f"{rows}, {columns}, {depth}", product.elements, packed(e, a), packed(e, b), packed(e, c))
    )
    return f"{{ Wmma m = {{{fields}}}; wmma(t, m, {e.site()}); {unpacked(e, d, 'm.d_')} }}"


_LAYOUTS = "a_layout:row|col b_layout:row|col"


@instruction("wmma", f"mma sync aligned {_LAYOUTS} shape:{_WIDE} d:f16|f32 c:f16|f32")
def wmma_f16(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    e.require(75)
    return _wmma(e, m.shape, Product("f16", "f16", m.c, m.d), operands)


@instruction("wmma", f"mma sync aligned {_LAYOUTS} shape:{_WIDE} f32 type:bf16 bf16_:bf16 c:f32")
@instruction("wmma", f"mma sync aligned {_LAYOUTS} shape:m16n16k8 f32 type:tf32 tf32_:tf32 c:f32")
def wmma_wide(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    e.require(80)
    return _wmma(e, m.shape, Product(m.type, m.type, "f32", "f32"), operands)


@instruction("wmma", f"mma sync aligned {_LAYOUTS} shape:{_WIDE} s32 type:s8 s8_:s8 c:s32 satfinite?")
@instruction("wmma", f"mma sync aligned {_LAYOUTS} shape:{_WIDE} s32 type:u8 u8_:u8 c:s32 satfinite?")
@instruction("wmma", "mma sync aligned row col shape:m8n8k32 s32 type:s4 s4_:s4 c:s32 satfinite?")
@instruction("wmma", "mma sync aligned row col shape:m8n8k32 s32 type:u4 u4_:u4 c:s32 satfinite?")
def wmma_integer(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    e.require(75)
    return _wmma(e, m.shape, Product(m.type, m.type, "s32", "s32", saturate=bool(m.satfinite)), operands)


@instruction("wmma", "mma operation:and|xor popc sync aligned row col shape:m8n8k128 s32 b1 b:b1 c:s32")
def wmma_bits(e: Emitter, m: SimpleNamespace, *operands: Operand) -> str:
    e.require(80 if m.operation == "and" else 75)
    return _wmma(e, m.shape, Product("b1", "b1", "s32", "s32", operation=m.operation), operands)


@instruction("wmma", f"mma sync aligned {_LAYOUTS} m8n8k4 f64 a:f64 b:f64 c:f64 rn?")
@instruction("wmma", f"mma sync aligned {_LAYOUTS} m8n8k4 rn? f64 a:f64 b:f64 c:f64")
def wmma_f64(e: Emitter, m: SimpleNamespace, d: Operand, a: Operand, b: Operand, c: Operand) -> str:
    e.require(80)
    count_work(e, "f64", 8 * 8 * 4)
    factors = (e.value(registers(e, operand, 1)[0], "f64") for operand in (a, b))
    fields = ", ".join((*factors, packed(e, registers(e, c, 2), "f64")))
    results = unpacked(e, registers(e, d, 2), "m.d", "f64")
    return f"{{ WmmaDouble m = {{{fields}}}; wmma(t, m, {e.site()}); {results} }}"
