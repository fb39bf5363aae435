"""Compiled kernels: launch them, then read what was found and counted.

    module = emulator.compile("scan.cu", arch="sm_80", defines={"N": 64}, mode="check")
    module.launch("block_scan", grid=(4, 1, 1), block=(128, 1, 1), args=[x, out, np.int32(n)])
    module.reports, module.counters["block_scan"], module.resources("block_scan")

Modes: "fast" runs only; "check" finds faults; "count" also counts what decides speed.  In check and count,
what a kernel does wrong is in `reports`, and launch() returns; in fast, a kernel that stops on a fault raises
LaunchError."""

import operator
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cuda.nn.emulator import report as reporting
from cuda.nn.emulator.arguments import Arguments
from cuda.nn.emulator.buffers import Buffer
from cuda.nn.emulator.build import translated_module
from cuda.nn.emulator.counters import KernelCounters, ModuleCounters, merge_counters
from cuda.nn.emulator.errors import EmulatorError, LaunchError
from cuda.nn.emulator.kernels import Kernel, read_kernels
from cuda.nn.emulator.names import resolve
from cuda.nn.emulator.native import Dim3, Library, library
from cuda.nn.emulator.nvcc import Define, compile_to_ptx
from cuda.nn.emulator.options import MODES, SCHEDULES
from cuda.nn.emulator.profiles import profile_of
from cuda.nn.emulator.report import Report
from cuda.nn.emulator.resources import Resources, assemble, read_resources
from cuda.nn.emulator.sass import Sass, read_sass

Size = int | Sequence[int]
CUDA_ERRORS = {
    1: "invalid value",
    2: "out of memory",
    9: "invalid configuration",
    98: "invalid device function",
    700: "illegal address",
    701: "out of resources",
    702: "launch timeout",
    710: "assert",
    716: "misaligned address",
    719: "launch failure",
}

_last_user: "weakref.ref[Module] | None" = None  # whose findings the runtime library now gathers


def compile(
    source: str | Path,
    *,
    arch: str = "sm_80",
    defines: Mapping[str, Define] | None = None,
    mode: str = "check",
    include_dirs: Iterable[str | Path] = (),
    flags: Sequence[str] = (),
) -> "Module":
    """Compile a .cu file with nvcc and make its kernels ready to run.

    arch: what to compile for and the profile to run as, e.g. "sm_80", "sm_90a".  flags: further options for
    nvcc. EmulatorError where nvcc refuses the file, or the translator an instruction."""
    path = Path(source)
    _check(mode, arch)
    ptx = compile_to_ptx(path, arch=arch, defines=defines, include_dirs=include_dirs, flags=flags)
    return Module(ptx, mode=mode, arch=arch, source=path)


def compile_ptx(text: str, *, mode: str = "check", arch: str | None = None) -> "Module":
    """Make the kernels of a PTX text ready to run.  The profile is that of its .target unless `arch` says
    otherwise."""
    words = text.partition(".target")[2].replace(",", " ").split()
    arch = arch or (words[0] if words else "sm_80")
    _check(mode, arch)
    return Module(text, mode=mode, arch=arch)


class Module:
    """The kernels of one PTX text, loaded.  Made by compile() and compile_ptx()."""

    def __init__(self, ptx: str, *, mode: str, arch: str, source: Path | None = None) -> None:
        self.ptx, self.mode, self.arch, self.source = ptx, mode, arch, source
        self.schedule, self.seed = "forward", 0  # of launches that name none
        self.kernels = read_kernels(ptx, source)  # by mangled name
        self.launches = dict.fromkeys(self.kernels, 0)  # how often each ran
        self.last_launch: dict[str, tuple[int, int]] = {}  # threads of a block and dynamic shared bytes
        self._library: Library = library()
        path = translated_module(ptx, mode)
        self._profile = profile_of(arch)
        self._handle = self._library.load(path)
        self._arguments: dict[str, Arguments] = {}
        self._reports: list[Report] = []
        self._counters: dict[str, KernelCounters] = {}
        self._by_name: dict[str, Kernel] = {}
        self._resources: dict[str, Resources] | None = None
        self._close = weakref.finalize(self, _close, self._library, self._handle, self._arguments)

    # ---- running -------------------------------------------------------------------------------------------

    def launch(
        self,
        kernel: str,
        grid: Size = 1,
        block: Size = 1,
        args: Sequence[Any] = (),
        shared_bytes: int = 0,
        *,
        schedule: str | None = None,
        seed: int | None = None,
        threads: int = 1,
        steps: int | None = None,
        cp_async: str = "lazy",
        cooperative: bool = False,
    ) -> None:
        """Run a kernel to its end.

        kernel: plain ("scan<128>") or mangled.  grid, block: a number or up to three.  args: NumPy arrays
        (copied to the device as C-contiguous, and back unless read-only), Buffers, NumPy scalars and
        structures by value.  shared_bytes: dynamic.
        schedule: order in which threads and blocks run: "forward", "reverse", "random" (by `seed`); default
        module.schedule.
        threads: OS threads that share the blocks (mode "fast").  steps: how many loop iterations and calls a
        launch may take before it is stopped as endless (0: any number).  cp_async: copies happen as late as
        allowed ("lazy") or at once ("eager").
        cooperative: all blocks run at the same time, as this_grid().sync() needs.

        EmulatorError where the call is at fault; LaunchError where the kernel stopped on a fault that no
        report tells."""
        chosen = self.kernel(kernel)
        size, blocks = _dim3("block", block), _dim3("grid", grid)
        seed = self.seed if seed is None else seed
        schedule = schedule or self.schedule
        options = _options(
            self._profile.name, self.mode, schedule, seed, threads, steps, cp_async, cooperative
        )
        with self._library.lock:
            self._claim()
            self._library.configure(options)
            passed = self._arguments.get(chosen.mangled)
            if passed is None:
                passed = self._arguments[chosen.mangled] = Arguments(self._library, chosen)
            passed.send(args)
            code = self._library.launch(
                self._handle,
                chosen.symbol,
                blocks,
                size,
                passed.pointers,
                _count("shared_bytes", shared_bytes),
            )
            passed.fetch()
            self.launches[chosen.mangled] += 1
            self.last_launch[chosen.mangled] = (size[0] * size[1] * size[2], shared_bytes)
            if code:
                self._failed(chosen, code)

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name, plain or mangled.  EmulatorError where none or several fit."""
        if name not in self._by_name:
            self._by_name[name] = self.kernels[resolve(name, self.kernels)]
        return self._by_name[name]

    def array(self, values: Any) -> Buffer:
        """Device memory with a copy of an array; it stays between launches."""
        values = np.asarray(values)
        return self.empty(values.shape, values.dtype).copy_from(values)

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Buffer:
        """Device memory that was never written: a kernel that reads it first is found."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        address = self._library.allocate(size, f"buffer {np.dtype(dtype)}{list(shape)}") if size else 0
        return Buffer(self._library, address, shape, dtype, owned=True)

    def variable(self, name: str, dtype: Any = np.uint8) -> Buffer:
        """A __device__ or __constant__ variable by its mangled name, which is the plain one outside
        namespaces."""
        found = self._library.symbol(self._handle, name)
        if found is None:
            raise EmulatorError(
                f"variable {name!r} is not in the module; nvcc drops variables that no kernel uses"
            )
        address, size = found
        return Buffer(self._library, address, (size // np.dtype(dtype).itemsize,), dtype, owned=False)

    # ---- what was found ------------------------------------------------------------------------------------

    @property
    def reports(self) -> list[Report]:
        """Findings of this module's launches since it was made or clear() was called; equal ones are one with
        a count."""
        self._collect()
        return self._reports

    @property
    def counters(self) -> ModuleCounters:
        """Counts of this module's launches by kernel.  EmulatorError unless the mode is "count"."""
        if self.mode != "count":
            raise EmulatorError(
                f'this module was compiled with mode={self.mode!r}; counters need mode="count"'
            )
        self._collect()
        return ModuleCounters(self._counters)

    def resources(self, kernel: str, block: Size | None = None, shared_bytes: int | None = None) -> Resources:
        """What ptxas gives the kernel: registers, spills, shared_bytes; and its occupancy with blocks of
        `block` threads and `shared_bytes` of dynamic shared memory: those of its last launch, where left out.
        EmulatorError without ptxas."""
        if self._resources is None:
            self._resources = read_resources(self.ptx, self.arch)
        name = self.kernel(kernel).mangled
        threads, dynamic = self.last_launch.get(name, (None, 0))
        if block is not None:
            threads, dynamic = int(np.prod(list(_dim3("block", block)))), 0
        dynamic = dynamic if shared_bytes is None else shared_bytes
        return self._resources[name].with_launch(self._profile, threads, dynamic)

    def sass(self, kernel: str) -> Sass | None:
        """The kernel's machine code: instruction mix, issue cycles of its loops.  None where cuobjdump is not
        installed."""
        found = read_sass(assemble(self.ptx, self.arch)[0])
        return found[self.kernel(kernel).mangled] if found else None

    def clear(self) -> None:
        """Forget reports and counters."""
        self._collect()
        self._reports, self._counters = [], {}

    def __repr__(self) -> str:
        names = ", ".join(kernel.name for kernel in self.kernels.values())
        what = f"{self.source or 'PTX'}, arch={self.arch!r}, mode={self.mode!r}"
        return f"Module({what}, kernels: {names or 'none'})"

    # ---- inside --------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        """The runtime library gathers findings for one module at a time: take it over, after its last user
        has read its own."""
        global _last_user
        user = _last_user() if _last_user else None
        if user is self:
            return
        if user is not None:
            user._collect()
        self._library.clear()
        _last_user = weakref.ref(self)

    def _collect(self) -> None:
        """Fetch what the runtime library gathered since last time."""
        with self._library.lock:
            if _last_user is None or _last_user() is not self:
                return
            self._reports = reporting.merge(
                [*self._reports, *map(reporting.from_json, self._library.reports())]
            )
            if self.mode == "count":
                merge_counters(self._counters, self._library.counters(), self.source)
            self._library.clear()

    def _failed(self, kernel: Kernel, code: int) -> None:
        """Raise LaunchError, unless this mode tells faults as reports and there is one."""
        found = self.reports
        if self.mode != "fast" and found:
            return
        name = CUDA_ERRORS.get(code, "error")
        why = str(found[-1]) if found else self._library.error()
        hint = '; mode="check" tells where' if self.mode == "fast" and not (found and found[-1].line) else ""
        raise LaunchError(f"{kernel.name} stopped: {name} (cudaError {code}): {why}{hint}", code)


def _check(mode: str, arch: str) -> None:
    if mode not in MODES:
        raise EmulatorError(f"mode: {mode!r} is not one of {', '.join(MODES)}")
    profile_of(arch)


@lru_cache
def _options(
    arch: str,
    mode: str,
    schedule: str,
    seed: int,
    threads: int,
    steps: int | None,
    cp_async: str,
    cooperative: bool,
) -> str:
    """A launch's options as the runtime library reads them (csrc/emulator/api.h)."""
    if schedule not in SCHEDULES:
        raise EmulatorError(f"schedule: {schedule!r} is not one of {', '.join(SCHEDULES)}")
    if cp_async not in ("lazy", "eager"):
        raise EmulatorError(f"cp_async: {cp_async!r} is neither lazy nor eager")
    checks = f"check={int(mode != 'fast')};count={int(mode == 'count')}"
    order = f"schedule={schedule};seed={_count('seed', seed)};threads={_count('threads', threads)}"
    budget = -1 if steps is None else _count("steps", steps)
    return f"arch={arch};{checks};{order};cp_async={cp_async};cooperative={int(cooperative)};steps={budget}"


def _dim3(what: str, given: Size) -> Any:
    """A number or up to three as three."""
    try:
        return _known_dim3(int(given) if isinstance(given, int | np.integer) else tuple(given))
    except TypeError:  # nothing that could be counted by
        raise EmulatorError(
            f"{what}: {given!r} is not a size; give a number or up to three, e.g. (4, 1, 1)"
        ) from None


@lru_cache
def _known_dim3(given: int | tuple[int, ...]) -> Any:
    numbers = [operator.index(n) for n in (given if isinstance(given, tuple) else (given,))]
    if not 1 <= len(numbers) <= 3 or any(not 0 <= n < 2**32 for n in numbers):
        raise TypeError
    return Dim3(*numbers, *[1] * (3 - len(numbers)))


def _count(what: str, given: int) -> int:
    """A number from 0."""
    try:
        if (number := operator.index(given)) >= 0:
            return number
    except TypeError:
        pass
    raise EmulatorError(f"{what}: {given!r} is not a number from 0")


def _close(library: Library, handle: int, arguments: Mapping[str, Arguments]) -> None:
    for passed in arguments.values():
        passed.free()
    library.unload(handle)
