"""Runs small pieces of PTX, many in one module: the tests of single instructions are lists of them.

    cases = [Snippet("add_u32", "ld.global.u32 %r, [%rd_a];  add.u32 %r, %r, 1;  st.global.u32 [%rd_out],
    %r;",
                     inputs={"a": np.arange(64, dtype=np.uint32)}, output=((64,), np.uint32), registers=".reg
                     .u32 %r;")]
    results = run_all(cases)              # {"add_u32": array}

What a body finds (one thread for each row of the output, in blocks of at most 1024):
    %tid32          the thread's number, from 0
    %rd_a           address of row %tid32 of input a        %base_a     address of its row 0
    %rd_out         address of row %tid32 of the output     %base_out   address of its row 0
The body may declare its own registers; it is in braces, so that names do not collide.  `declarations` go
before the entry
(variables, functions).  The output's memory is filled with 0xFF before.

`refusal(body)` is the message with which the translator refuses a body."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cuda.nn import emulator
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.translate import translate


@dataclass(frozen=True)
class Snippet:
    name: str
    body: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    output: tuple[tuple[int, ...], Any] = ((1,), np.uint32)  # shape, dtype; threads = shape[0]
    registers: str = ""  # declarations put before the body
    declarations: str = ""  # module level
    shared_bytes: int = 0  # dynamic
    block: int | None = None  # threads per block; None: as many as fit
    limits: str = ""  # performance directives of the entry, e.g. ".maxntid 64"

    @property
    def threads(self) -> int:
        return self.output[0][0]

    @property
    def block_size(self) -> int:
        return self.block or min(self.threads, 1024)


def run_all(
    cases: Sequence[Snippet], arch: str = "sm_90a", mode: str = "fast", **launch: Any
) -> dict[str, np.ndarray]:
    """The outputs by name.  In the modes check and count nothing may be reported.  `launch` goes to
    Module.launch()."""
    module, results = run_module(cases, arch, mode, **launch)
    assert not module.reports, "\n".join(map(str, module.reports))
    return results


def run_module(
    cases: Sequence[Snippet], arch: str = "sm_90a", mode: str = "fast", **launch: Any
) -> "tuple[emulator.Module, dict[str, np.ndarray]]":
    """The module, with its reports and counters, and the outputs by name."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two snippets have one name"
    device = (
        "sm_90a" if arch.startswith("sm_1") else arch
    )  # the newest that can be emulated, for later instructions
    module = emulator.compile_ptx(ptx_of(cases, arch), mode=mode, arch=device)
    return module, {case.name: _run(module, case, **launch) for case in cases}


def refusal(body: str, *, registers: str = "", declarations: str = "", arch: str = "sm_90a") -> str:
    """The message of the error with which the translator refuses a body; fails where it accepts it."""
    try:
        translate(ptx_of([Snippet("refused", body, registers=registers, declarations=declarations)], arch))
    except EmulatorError as error:
        return str(error)
    raise AssertionError(f"accepted: {body}")


def ptx_of(cases: Sequence[Snippet], arch: str = "sm_90a") -> str:
    """The PTX of a module with one entry for each snippet."""
    return "\n".join(
        [".version 9.0", f".target {arch}", ".address_size 64", *(_entry(case) for case in cases)]
    )


def _run(module: "emulator.Module", case: Snippet, **launch: Any) -> np.ndarray:
    shape, dtype = case.output
    out = (
        np.full(np.prod(shape, dtype=int) * np.dtype(dtype).itemsize, 0xFF, np.uint8)
        .view(dtype)
        .reshape(shape)
    )
    arrays = [np.ascontiguousarray(array) for array in case.inputs.values()]
    for array in arrays:
        array.flags.writeable = False
    blocks = -(-case.threads // case.block_size)
    module.launch(case.name, blocks, case.block_size, [*arrays, out], case.shared_bytes, **launch)
    return out


def _entry(case: Snippet) -> str:
    shape, dtype = case.output
    rows = {name: _row_bytes(np.shape(array), np.asarray(array).dtype) for name, array in case.inputs.items()}
    rows["out"] = _row_bytes(shape, np.dtype(dtype))
    parameters = ", ".join(f".param .u64 p_{name}" for name in rows)
    past = case.threads % case.block_size != 0
    return "\n".join(
        [
            case.declarations,
            f".visible .entry {case.name}({parameters}) {case.limits}",
            "{",
            ".reg .u32 %tid32, %ctaid32, %ntid32;  .reg .u64 %row64;  .reg .pred %past;",
            "mov.u32 %tid32, %tid.x;  mov.u32 %ctaid32, %ctaid.x;  mov.u32 %ntid32, %ntid.x;",
            "mad.lo.u32 %tid32, %ctaid32, %ntid32, %tid32;" if case.threads > case.block_size else "",
            f"setp.ge.u32 %past, %tid32, {case.threads};  @%past exit;" if past else "",
            *(_pointer(name, size) for name, size in rows.items()),
            "{",
            case.registers,
            case.body,
            "}",
            "ret;",
            "}",
        ]
    )


def _row_bytes(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> int:
    return int(np.prod(shape[1:], dtype=int)) * dtype.itemsize


def _pointer(name: str, row_bytes: int) -> str:
    return (
        f".reg .u64 %rd_{name}, %base_{name};  ld.param.u64 %base_{name}, [p_{name}];  "
        f"mul.wide.u32 %row64, %tid32, {row_bytes};  add.u64 %rd_{name}, %base_{name}, %row64;"
    )
