"""wgmma: the products of a warpgroup (sm_90a), and their fence, commit and wait.

    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16
        {d...}, a-descriptor or {a0, a1, a2, a3}, b-descriptor, scale-d, scale-a, scale-b, trans-a, trans-b;

becomes a struct of csrc/emulator/matrix.h and a call, like mma.  Sparse products and b1 have no row."""

from collections.abc import Sequence
from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Immediate, Operand, Vector
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.instructions.matrix import count_work, element, packed, registers, unpacked
from cuda.nn.emulator.translate.table import Unsupported, instruction

_COLUMNS = range(8, 257, 8)
# Integers: 24 and the multiples of 8 up to 32, then of 16.
_INTEGER_COLUMNS = (8, 16, 24, *range(32, 257, 16))


def _shapes(depth: int, columns: Sequence[int] = _COLUMNS) -> str:
    return "shape:" + "|".join(f"m64n{n}k{depth}" for n in columns)


def _one(e: Emitter, operand: Operand, choices: tuple[int, int], what: str) -> int:
    value = e.immediate(operand)
    if value not in choices:
        raise Unsupported(f"{e.current.opcode!r}: {what} must be {choices[0]} or {choices[1]}, not {value}")
    return value


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _multiply(
    e: Emitter,
    m: SimpleNamespace,
    operands: Sequence[Operand],
    scales: Sequence[Operand],
    transposes: Sequence[Operand],
) -> str:
    """operands: d, a, b, scale-d.  scales: of a and b.  transposes: of those that lie in shared memory."""
    e.require(90, "a")
    d, a, b, accumulate = operands
    columns = int(m.shape[m.shape.index("n") + 1 : m.shape.index("k")])
    depth = int(m.shape[m.shape.index("k") + 1 :])
    to = registers(e, d, columns // (4 if m.d == "f16" else 2))
    negate = [_one(e, scale, (-1, 1), "imm-scale") < 0 for scale in scales]
    in_registers = isinstance(a, Vector)
    transposed = [_one(e, transpose, (0, 1), "imm-trans") == 1 for transpose in transposes]
    if in_registers:
        transposed.insert(0, False)
    count_work(e, m.a, 64 * columns * depth, threads=128)
    shape = ", ".join(
        (
            str(columns),
            element(m.a),
            element(m.b),
            element(m.d),
            *map(_flag, (in_registers, *negate, *transposed)),
            _flag(bool(getattr(m, "satfinite", None))),
        )
    )
    a_descriptor = "0" if in_registers else e.value(a, "b64")
    a_registers = packed(e, registers(e, a, 4)) if in_registers else "{}"
    scale_d = (
        f"{e.value(accumulate, 'b32')} != 0"
        if isinstance(accumulate, Immediate)
        else e.value(accumulate, "pred")
    )
    fields = f"{{{shape}}}, {scale_d}, {a_descriptor}, {e.value(b, 'b64')}, {a_registers}, d"
    return (
        f"{{ uint32_t d[{len(to)}] = {packed(e, to)}; Wgmma m = {{{fields}}}; "
        f"wgmma(t, m, {e.site()}); {unpacked(e, to, 'd')} }}"
    )


@instruction("wgmma", f"mma_async sync aligned {_shapes(16)} d:f16|f32 a:f16 b:f16")
@instruction("wgmma", f"mma_async sync aligned {_shapes(16)} d:f32 a:bf16 b:bf16")
def wgmma_16_bits(
    e: Emitter,
    m: SimpleNamespace,
    d: Operand,
    a: Operand,
    b: Operand,
    scale_d: Operand,
    scale_a: Operand,
    scale_b: Operand,
    *transposes: Operand,
) -> str:
    """imm-trans-a is given where A is in shared memory, imm-trans-b always."""
    if len(transposes) != (1 if isinstance(a, Vector) else 2):
        raise Unsupported(f"{e.current.opcode!r}: unexpected number of imm-trans operands")
    return _multiply(e, m, (d, a, b, scale_d), (scale_a, scale_b), transposes)


@instruction("wgmma", f"mma_async sync aligned {_shapes(8)} d:f32 a:tf32 b:tf32")
@instruction("wgmma", f"mma_async sync aligned {_shapes(32)} d:f16|f32 a:e4m3|e5m2 b:e4m3|e5m2")
def wgmma_float(
    e: Emitter,
    m: SimpleNamespace,
    d: Operand,
    a: Operand,
    b: Operand,
    scale_d: Operand,
    scale_a: Operand,
    scale_b: Operand,
) -> str:
    return _multiply(e, m, (d, a, b, scale_d), (scale_a, scale_b), _untransposed(a))


@instruction(
    "wgmma", f"mma_async sync aligned {_shapes(32, _INTEGER_COLUMNS)} d:s32 a:s8|u8 b:s8|u8 satfinite?"
)
def wgmma_integer(
    e: Emitter, m: SimpleNamespace, d: Operand, a: Operand, b: Operand, scale_d: Operand
) -> str:
    return _multiply(e, m, (d, a, b, scale_d), (Immediate(1), Immediate(1)), _untransposed(a))


def _untransposed(a: Operand) -> list[Operand]:
    return [Immediate(0)] * (1 if isinstance(a, Vector) else 2)


@instruction("wgmma", "fence sync aligned")
def wgmma_fence(e: Emitter, m: SimpleNamespace) -> str:
    e.require(90, "a")
    return f"wgmma_fence(t, {e.site()});"


@instruction("wgmma", "commit_group sync aligned")
def wgmma_commit_group(e: Emitter, m: SimpleNamespace) -> str:
    e.require(90, "a")
    return f"wgmma_commit(t, {e.site()});"


@instruction("wgmma", "wait_group sync aligned")
def wgmma_wait_group(e: Emitter, m: SimpleNamespace, pending: Operand) -> str:
    e.require(90, "a")
    return f"wgmma_wait(t, {e.immediate(pending)}, {e.site()});"
