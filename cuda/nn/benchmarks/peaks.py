"""What a device could do at best, from its properties: the roofline that a measured time is compared with.

    ceiling = ceiling_of(device.info)
    ceiling.seconds(call.bytes_read + call.bytes_written, call.flops, ceiling.kind(dtype))

Bandwidth: memory clock, twice per cycle, times the bus.  Arithmetic: multiprocessors, times the clock that
the driver names (the highest; a part under load may run slower), times what a multiprocessor does per cycle
by the CUDA C++ programming guide, table "Throughput of Native Arithmetic Instructions", and NVIDIA's
architecture papers for tensor cores.  GeForce parts multiply halves with float32 sums at half that rate."""

from dataclasses import dataclass

import numpy as np

from cuda.nn.device import Info
from cuda.nn.dtypes import BFLOAT16, FLOAT16

# {capability: (float32 multiply-adds, float16 multiply-adds on tensor cores) per cycle and multiprocessor}
RATES = {70: (64, 512), 75: (64, 512), 80: (64, 1024), 86: (128, 512), 87: (128, 512), 89: (128, 512),
         90: (128, 2048), 100: (128, 4096), 103: (128, 4096), 120: (128, 512), 121: (128, 512)}
GEFORCE = (75, 86, 89, 120)
BF16_FROM = 80            # bfloat16 and tf32 on tensor cores, tf32 at half the rate


@dataclass(frozen=True)
class Ceiling:
    """Bytes/s, and operations/s by kind; None and {} where the properties do not tell."""

    bandwidth: float | None
    peaks: dict[str, float]
    assumed: tuple[str, ...]         # in words, for the report

    def kind(self, dtype: np.dtype, tf32: bool = False) -> str:
        """The fastest arithmetic there is for products of a type with float32 sums."""
        wanted = {FLOAT16: "tensor_f16", BFLOAT16: "tensor_bf16"}.get(dtype, "tensor_tf32" if tf32 else "f32")
        return wanted if wanted in self.peaks else "f32"

    def seconds(self, moved: int, flops: int, kind: str) -> tuple[float, str] | None:
        """(the least time, "memory" or the kind of arithmetic that sets it); None if nothing is known."""
        times = {}
        if self.bandwidth and moved:
            times["memory"] = moved / self.bandwidth
        if flops and self.peaks.get(kind):
            times[kind] = flops / self.peaks[kind]
        return max((value, name) for name, value in times.items()) if times else None


def ceiling_of(info: Info) -> Ceiling:
    """For one device."""
    bandwidth = 2e3 * info.memory_clock_khz * info.memory_bus_bits / 8
    megahertz = info.memory_clock_khz / 1e3
    assumed = [f"memory {bandwidth / 1e9:,.0f} GB/s ({megahertz:,.0f} MHz, twice per cycle, "
               f"{info.memory_bus_bits} bits)" if bandwidth else "memory: the driver names no clock"]
    peaks: dict[str, float] = {}
    if info.capability in RATES and info.clock_khz:
        peaks = _peaks(info)
        rates = ", ".join(f"{name} {rate / 1e12:,.1f}" for name, rate in peaks.items())
        assumed.append(f"TFLOP/s at {info.clock_khz / 1e3:,.0f} MHz on {info.multiprocessors} "
                       f"multiprocessors: {rates}")
    else:
        assumed.append(f"arithmetic: no table for sm_{info.capability}, so no share of its peak is given")
    return Ceiling(bandwidth or None, peaks, tuple(assumed))


def _peaks(info: Info) -> dict[str, float]:
    float32, tensor = RATES[info.capability]
    if info.capability in GEFORCE and "GeForce" in info.name:
        tensor //= 2
    each = 2e3 * info.clock_khz * info.multiprocessors
    found = {"f32": each * float32, "tensor_f16": each * tensor}
    if info.capability >= BF16_FROM:
        found |= {"tensor_bf16": each * tensor, "tensor_tf32": each * tensor / 2}
    return found
