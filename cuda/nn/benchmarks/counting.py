"""What the emulator counts while a call runs once: sectors, wavefronts, bytes, operations.

    found = counted(device, call.run)
    found["sectors"] / found["ideal_sectors"]

The device must be emulated and count: device("emulated", mode="fast", count=1).  A memset that a call queues
is no kernel, and is not counted."""

from collections.abc import Callable
from typing import Any

from cuda.nn.device import EmulatedDevice
from cuda.nn.emulator.counters import KernelCounters
from cuda.nn.emulator.names import plain_name

SUMS = ("launches", "requests", "sectors", "ideal_sectors", "bank_wavefronts", "ideal_wavefronts",
        "bytes_read", "bytes_written", "distinct_bytes_read", "distinct_bytes_written", "atomics", "barriers")


def counted(device: EmulatedDevice, run: Callable[[], None]) -> dict[str, Any]:
    """Sums over the kernels that `run` launches, "flops" by kind, and "kernels", one by one."""
    device.clear()
    run()
    by_kernel = dict(device.counters().items())
    sums: dict[str, Any] = {name: sum(getattr(c, name) for c in by_kernel.values()) for name in SUMS}
    flops: dict[str, int] = {}
    for counts in by_kernel.values():
        for kind, number in counts.flops.items():
            flops[kind] = flops.get(kind, 0) + number
    kernels = [_kernel(mangled, counts) for mangled, counts in by_kernel.items()]
    return sums | {"flops": flops, "tensor_operations": tensor_operations(flops), "kernels": kernels}


def tensor_operations(flops: dict[str, int]) -> int:
    return sum(number for kind, number in flops.items() if kind.startswith("tensor"))


def _kernel(mangled: str, counts: KernelCounters) -> dict[str, Any]:
    return {"name": plain_name(mangled), "mangled": mangled, "launches": counts.launches,
            "blocks": counts.blocks, "threads_per_block": counts.threads // max(counts.blocks, 1),
            "instructions": counts.instructions, "sectors": counts.sectors,
            "ideal_sectors": counts.ideal_sectors, "bank_wavefronts": counts.bank_wavefronts,
            "ideal_wavefronts": counts.ideal_wavefronts}
