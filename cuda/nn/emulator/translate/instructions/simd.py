"""Video instructions on the 2 or 4 lanes of a register: what nvcc emits for __vabsdiffu4() and its like.

Lanes are taken in place.  Selectors (`%r1.b3210`), masks and the scalar forms are refused: no intrinsic
uses them any more."""

from types import SimpleNamespace as Modifiers

from cuda.nn.emulator.ptx.syntax import Operand
from cuda.nn.emulator.ptx.types import SCALARS
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.instructions.floating import opcode
from cuda.nn.emulator.translate.table import instruction

_TYPES = "to:u32|s32 a:u32|s32 b:u32|s32"
_OPERATIONS = {
    "vadd": "emu::video_add",
    "vsub": "emu::video_sub",
    "vabsdiff": "emu::video_absdiff",
    "vmin": "emu::least<int32_t>",
    "vmax": "emu::greatest<int32_t>",
}


def _lane_types(e: Emitter, *types: str) -> str:
    """The C++ types of one lane."""
    bits = 32 // int(opcode(e)[-1])
    return ", ".join(SCALARS[f"{type[0]}{bits}"].read_as for type in types)


def lanes(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    """c would give the lanes that a mask leaves out; without a mask all come from the operation."""
    saturate = "true" if m.sat else "false"
    types = f"{_lane_types(e, m.to, m.a, m.b)}, {saturate}"
    values = f"{e.value(a, 'b32')}, {e.value(b, 'b32')}, {_OPERATIONS[opcode(e)[:-1]]}"
    return e.assign(destination, "b32", f"emu::video<{types}>({values})")


for _opcode in _OPERATIONS:
    for _count in (2, 4):
        instruction(f"{_opcode}{_count}", f"{_TYPES} sat?")(lanes)


@instruction("vabsdiff2", f"{_TYPES} add")
@instruction("vabsdiff4", f"{_TYPES} add")
def absdiff_sum(e: Emitter, m: Modifiers, destination: Operand, a: Operand, b: Operand, c: Operand) -> str:
    values = f"{e.value(a, 'b32')}, {e.value(b, 'b32')}, {e.value(c, 'b32')}, emu::video_absdiff"
    return e.assign(destination, "b32", f"emu::video_sum<{_lane_types(e, m.a, m.b)}>({values})")
