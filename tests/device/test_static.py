"""Gates on machine code: what ptxas made of every kernel, for three generations of devices.

    python tests/device/test_static.py --update      # write budgets.json anew, after a change that is meant

budgets.json holds each kernel's registers; a kernel that needs more, or has no entry, fails.  Kernels whose
name says `mma` or `wgmma` claim tensor cores; an instantiation that an architecture cannot run is empty
there."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from cuda.nn import build
from cuda.nn.emulator import toolchain
from cuda.nn.emulator.fatbin import NoPtxError
from cuda.nn.machine_code import Kernel, read

ARCHS = ("sm_75", "sm_80", "sm_90")         # of the last, files named *_sm90a.cu are for sm_90a
BUDGETS = Path(__file__).with_name("budgets.json")
EMPTY = 48                                  # instructions: an empty kernel and its padding
TENSOR_CORES = {"mma": "HMMA", "wgmma": "HGMMA"}
LOADS = ("LDG", "LD", "LDGSTS")
BULK_LOADS = ("UTMALDG", "UBLKCP")
# cudaMemsetAsync of device memory only queues work, and is recorded in a graph as a kernel is.
MAY_CALL = re.compile(
    r"__cuda\w+|cudaLaunchKernel\w*|cudaGetLastError|cudaPeekAtLastError|cudaGetDevice|cudaDeviceGetAttribute|"
    r"cudaMemsetAsync|cudaFunc[SG]etAttributes?|cudaOccupancy\w+|cudaGetDriverEntryPoint\w*|cudaGetErrorName|cudaGetErrorString"
)
RUNTIME_CALL = re.compile(r"_*cu(?:da)?[A-Z_]\w*")
MUST_NOT_CALL = re.compile(r"printf|puts|putchar|fwrite|abort|exit|__assert_fail|__cxa_throw|_ZSt9terminatev")


@cache
def kernels(arch: str) -> list[Kernel]:
    try:
        return read(build.emulated_library(), arch)
    except NoPtxError as error:              # a build for one's own development
        pytest.skip(f"{build.emulated_library()} was not built for {arch}: {error}")


@cache
def budgets() -> dict[str, list[int | None]]:
    found: dict[str, list[int | None]] = json.loads(BUDGETS.read_text())["kernels"]
    return found


def compiler() -> str:
    return toolchain.version(toolchain.ptxas())


def is_complete() -> bool:
    options = json.loads((build.emulated_library().parent / "options.json").read_text())
    return not options["only"]


def listed(lines: Iterable[str]) -> str:
    return "\n".join(lines)


# ---- what every kernel keeps -------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_no_kernel_spills_or_uses_local_memory(arch: str) -> None:
    wrong = [
        f"{k.name}: {k.stack_bytes} bytes of stack, {local_instructions(k)} instructions on local memory"
        for k in kernels(arch) if k.stack_bytes or k.local_bytes or local_instructions(k)
    ]
    assert not wrong, listed(wrong)


def local_instructions(kernel: Kernel) -> int:
    return sum(n for opcode, n in kernel.opcodes.items() if opcode.partition(".")[0] in ("LDL", "STL"))


@pytest.mark.parametrize("arch", ARCHS)
def test_registers_stay_within_the_budget(arch: str) -> None:
    recorded = json.loads(BUDGETS.read_text())["compiler"]
    if recorded != compiler():
        pytest.skip(f"the budgets are for {recorded}, and this is {compiler()}")
    wrong = [f"{k.name}: {k.registers} registers, budget {budget(k, arch)}"
             for k in kernels(arch) if k.registers > (budget(k, arch) or 0)]
    assert not wrong, listed([*wrong, "if that is meant: python tests/device/test_static.py --update"])


def budget(kernel: Kernel, arch: str) -> int | None:
    return budgets().get(kernel.name, [None] * len(ARCHS))[ARCHS.index(arch)]


def test_no_budget_is_left_over() -> None:
    if is_complete():
        here = {kernel.name for arch in ARCHS for kernel in kernels(arch)}
        assert budgets().keys() <= here, listed(budgets().keys() - here)


# ---- what some claim ---------------------------------------------------------------------------------------


def claim(kernel: Kernel) -> str:
    """The instruction that a kernel's name claims, or ""."""
    words = kernel.name.partition("<")[0].rpartition("::")[2].split("_")
    return next((TENSOR_CORES[word] for word in reversed(words) if word in TENSOR_CORES), "")


def claimants(arch: str) -> list[Kernel]:
    return [k for k in kernels(arch) if claim(k) and sum(k.opcodes.values()) > EMPTY]


@pytest.mark.parametrize("arch", ARCHS)
def test_tensor_cores_work_where_a_name_claims_it(arch: str) -> None:
    wrong = [k.name for k in claimants(arch) if not has(k.opcodes, claim(k))]
    assert not wrong, listed(wrong)


def test_no_claim_is_empty_everywhere() -> None:
    used = {kernel.name for arch in ARCHS for kernel in claimants(arch)}
    wrong = {kernel.name for arch in ARCHS for kernel in kernels(arch) if claim(kernel)} - used
    assert not wrong, listed(wrong)


@pytest.mark.parametrize("arch", ARCHS)
def test_tensor_cores_are_fed_by_loads_of_16_bytes(arch: str) -> None:
    """In a loop: a loop of its own where other warps than the multiplying ones load."""
    wrong = [k.name for k in claimants(arch) if not any(loads_16_bytes(loop.opcodes) for loop in k.loops)]
    assert not wrong, listed(wrong)


def test_wgmma_is_fed_by_tensor_copies_and_not_serialized() -> None:
    """Copies and products have loops of their own, and a stage's products are waited for once, together:
    ptxas waits for each where it fears for the registers (its message C7514)."""
    found = [k for k in claimants("sm_90") if claim(k) == TENSOR_CORES["wgmma"]]
    assert found or not is_complete()
    for kernel in found:
        multiplying, copying = (min((loop for loop in kernel.loops if has(loop.opcodes, wanted)),
                                    key=lambda loop: loop.instructions) for wanted in ("HGMMA", "UTMALDG"))
        waits = sum(n for opcode, n in multiplying.opcodes.items() if opcode.startswith("WARPGROUP.DEPBAR"))
        assert waits == 1, kernel.name
        moved = sum(n for opcode, n in kernel.opcodes.items() if opcode.startswith("USETMAXREG"))
        assert moved == 2, f"{kernel.name}: ptxas left out setmaxnreg"
        assert not has(multiplying.opcodes, "UTMALDG"), kernel.name
        assert not has(copying.opcodes, "HGMMA"), kernel.name


def has(opcodes: Iterable[str], wanted: str) -> bool:
    return any(opcode.partition(".")[0] == wanted for opcode in opcodes)


def loads_16_bytes(opcodes: Iterable[str]) -> bool:
    words = [opcode.split(".") for opcode in opcodes]
    return any(w[0] in BULK_LOADS or (w[0] in LOADS and "128" in w) for w in words)


# ---- what host code calls ----------------------------------------------------------------------------------


def objects() -> list[Path]:
    return sorted((build.emulated_library().parent / "objects" / "kernels").rglob("*.o"))


def undefined(file: Path) -> set[str]:
    done = subprocess.run(["nm", "-u", file], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines() if line.strip()}


def test_no_kernel_call_allocates_waits_copies_prints_or_throws() -> None:
    assert objects()
    called = [(file.name, name) for file in objects() for name in sorted(undefined(file))]
    wrong = [f"{file}: {name}" for file, name in called if forbidden(name)]
    assert not wrong, listed(wrong)


def forbidden(name: str) -> bool:
    runtime = RUNTIME_CALL.fullmatch(name) and not MAY_CALL.fullmatch(name)
    return bool(runtime or MUST_NOT_CALL.fullmatch(name))


@pytest.mark.parametrize(("name", "wrong"), [
    ("cudaMalloc", True), ("cudaMemcpyAsync", True), ("cudaMemset", True), ("cudaMemsetAsync", False),
    ("cudaStreamSynchronize", True), ("cuMemAlloc_v2", True),
    ("cudaLaunchKernel", False), ("cudaFuncSetAttribute", False), ("cudaGetDriverEntryPointByVersion", False),
    ("_ZN2nn4failEiPKcz", False), ("__cudaRegisterFatBinary", False), ("printf", True), ("memcpy", False),
])
def test_what_is_forbidden(name: str, wrong: bool) -> None:
    assert forbidden(name) == wrong


# ---- the budgets -------------------------------------------------------------------------------------------


def measured() -> dict[str, list[int | None]]:
    found: dict[str, list[int | None]] = {}
    for at, arch in enumerate(ARCHS):
        for kernel in read(build.emulated_library(), arch):
            row = found.setdefault(kernel.name, [None] * len(ARCHS))
            row[at] = max(row[at] or 0, kernel.registers)
    return found


def write_budgets(kept: dict[str, list[int | None]]) -> None:
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(kept.items()))
    head = f'"compiler": {json.dumps(compiler())},\n "architectures": {json.dumps(ARCHS)}'
    BUDGETS.write_text(f'{{{head},\n "kernels": {{\n{rows}\n}}}}\n')


def main() -> int:
    parser = argparse.ArgumentParser(description="Write budgets.json from the library that is built.")
    parser.add_argument("--update", action="store_true", required=True)
    parser.parse_args()
    kept = {} if is_complete() or not BUDGETS.exists() else dict(budgets())
    write_budgets(kept | measured())
    print(BUDGETS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
