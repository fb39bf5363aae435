"""How fast a launch could at best be on a chosen GPU, from what was counted: bytes over bandwidth, operations
over peak rate.

    line = roofline.bound(module.counters["gemm"], roofline.GPUS["A100"])
    print(line)       # on an A100 at least 2.1 us, bound by memory: 4.2 MB at 2,039 GB/s; 4.2 MFLOP f32; 1.0
    FLOP/byte

A lower bound, not a prediction: every distinct byte is moved once, at full bandwidth, and the operations
overlap with that."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuda.nn.emulator.errors import EmulatorError

if TYPE_CHECKING:
    from cuda.nn.emulator.counters import KernelCounters

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Gpu:
    """Peak rates of a part, dense, at boost clock."""

    name: str
    arch: str
    bandwidth: float  # bytes/s of its memory
    peaks: dict[str, float]  # operations/s by kind, as the counters name them
    source: str


def _gpu(name: str, arch: str, bandwidth: float, source: str, **tera: float) -> Gpu:
    return Gpu(name, arch, bandwidth * GIGA, {kind: rate * TERA for kind, rate in tera.items()}, source)


# tensor_*: matrix instructions, with fp32 accumulation for 16-bit types, without sparsity.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu(
            "T4",
            "sm_75",
            320,
            "NVIDIA Turing architecture whitepaper, appendix B",
            f16=16.2,
            f32=8.1,
            f64=0.25,
            tensor_f16=65,
            tensor_int8=130,
        ),
        _gpu(
            "A100",
            "sm_80",
            2039,
            "NVIDIA A100 80GB SXM data sheet; A100 whitepaper, table 1 (f16, bf16)",
            f16=78,
            bf16=39,
            f32=19.5,
            f64=9.7,
            tensor_f16=312,
            tensor_bf16=312,
            tensor_tf32=156,
            tensor_int8=624,
            tensor_f64=19.5,
        ),
        _gpu(
            "RTX 3090",
            "sm_86",
            936,
            "NVIDIA Ampere GA102 whitepaper, table 2",
            f16=35.6,
            bf16=35.6,
            f32=35.6,
            f64=0.56,
            tensor_f16=71,
            tensor_bf16=71,
            tensor_tf32=35.6,
            tensor_int8=284,
        ),
        _gpu(
            "L4",
            "sm_89",
            300,
            "NVIDIA L4 data sheet (its tensor figures are with sparsity: halved here)",
            f16=30.3,
            bf16=30.3,
            f32=30.3,
            f64=0.47,
            tensor_f16=121,
            tensor_bf16=121,
            tensor_tf32=60,
            tensor_f8=242,
            tensor_int8=242,
        ),
        _gpu(
            "RTX 4090",
            "sm_89",
            1008,
            "NVIDIA Ada GPU architecture whitepaper, table 2",
            f16=82.6,
            bf16=82.6,
            f32=82.6,
            f64=1.29,
            tensor_f16=165.2,
            tensor_bf16=165.2,
            tensor_tf32=82.6,
            tensor_f8=330.3,
            tensor_int8=660.6,
        ),
        _gpu(
            "H100",
            "sm_90",
            3352,
            "NVIDIA H100 whitepaper, table 3 (SXM5)",
            f16=133.8,
            bf16=133.8,
            f32=66.9,
            f64=33.5,
            tensor_f16=989.4,
            tensor_bf16=989.4,
            tensor_tf32=494.7,
            tensor_f8=1978.9,
            tensor_int8=1978.9,
            tensor_f64=66.9,
        ),
    )
}
DEFAULTS = {"sm_75": "T4", "sm_80": "A100", "sm_86": "RTX 3090", "sm_89": "L4", "sm_90": "H100"}


@dataclass(frozen=True)
class Bound:
    """The least time, and what sets it."""

    gpu: Gpu
    seconds: float  # per launch
    limit: str  # "memory", or the kind of operation
    bytes: float  # distinct bytes per launch
    flops: dict[str, float]  # per launch, by kind
    flops_per_byte: float

    def __str__(self) -> str:
        work = (
            ", ".join(f"{_scaled(count)}FLOP {kind}" for kind, count in self.flops.items())
            or "no counted operations"
        )
        return (
            f"on {self.gpu.name} at least {_time(self.seconds)}, bound by {self.limit}: "
            f"{_scaled(self.bytes)}B at "
            f"{self.gpu.bandwidth / GIGA:,.0f} GB/s; {work}; {self.flops_per_byte:.2g} FLOP/byte"
        )


def gpu_of(name: str) -> Gpu:
    """A part by name ("A100") or an architecture's usual one ("sm_80").  EmulatorError where unknown."""
    name = DEFAULTS.get(name.rstrip("af") if name.startswith("sm_") else name, name)
    if name not in GPUS:
        raise EmulatorError(f"GPU {name!r} is not in the table; known are {', '.join(GPUS)}")
    return GPUS[name]


def bound(counts: "KernelCounters", gpu: Gpu) -> Bound:
    """For one launch: the mean of those counted.  EmulatorError for operations that the part does not
    have."""
    launches = max(counts.launches, 1)
    moved = (counts.distinct_bytes_read + counts.distinct_bytes_written) / launches
    flops = {kind: count / launches for kind, count in counts.flops.items() if count}
    if missing := [kind for kind in flops if kind not in gpu.peaks]:
        raise EmulatorError(f"{gpu.name} has no {missing[0]} instructions")
    times = {"memory": moved / gpu.bandwidth} | {
        kind: count / gpu.peaks[kind] for kind, count in flops.items()
    }
    limit = max(times, key=lambda name: times[name])
    return Bound(
        gpu, times[limit], limit, moved, flops, sum(flops.values()) / moved if moved else float("inf")
    )


def _scaled(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
