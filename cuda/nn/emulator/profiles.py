"""The devices that can be emulated, as far as Python needs them: for occupancy.  csrc/emulator/profiles.cpp
has all of it.

Figures: CUDA C++ programming guide, table "Technical Specifications per Compute Capability"."""

import re
from dataclasses import dataclass

from cuda.nn.emulator.errors import EmulatorError

KIB = 1024


@dataclass(frozen=True)
class Profile:
    """What one multiprocessor of an architecture holds."""

    name: str  # sm_80
    threads: int  # resident threads
    blocks: int  # resident blocks
    shared_bytes: int  # shared memory
    shared_reserved: int  # bytes that the system takes of it for each block
    registers: int = 65536
    register_unit: int = 256  # registers are given to a warp in such units
    schedulers: int = 4  # among which registers and warps are divided
    shared_unit: int = 128  # bytes


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("sm_75", 1024, 16, 64 * KIB, 0, shared_unit=256),
        Profile("sm_80", 2048, 32, 164 * KIB, KIB),
        Profile("sm_86", 1536, 16, 100 * KIB, KIB),
        Profile("sm_89", 1536, 24, 100 * KIB, KIB),
        Profile("sm_90", 2048, 32, 228 * KIB, KIB),
    )
}


def profile_of(arch: str) -> Profile:
    """The profile of "sm_80", "sm_90a".  EmulatorError where there is none."""
    found = PROFILES.get(re.sub(r"(?<=\d)[af]$", "", arch))
    if found is None:
        raise EmulatorError(
            f"arch: {arch!r} is not a device that can be emulated; known are {', '.join(PROFILES)} and sm_90a"
        )
    return found


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of one kernel share a multiprocessor."""

    blocks: int
    limit: str  # what keeps it from being more: threads, blocks, registers, shared memory
    share: float  # of the multiprocessor's threads


def occupancy(profile: Profile, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """For blocks of `threads`, `registers` per thread and `shared_bytes` static and dynamic shared memory per
    block."""
    warps = -(-threads // 32)
    by = {"threads": profile.threads // (warps * 32), "blocks": profile.blocks}
    if registers:
        per_warp = _up(registers * 32, profile.register_unit)
        by["registers"] = profile.registers // profile.schedulers // per_warp * profile.schedulers // warps
    if per_block := _up(shared_bytes + profile.shared_reserved, profile.shared_unit):
        by["shared memory"] = profile.shared_bytes // per_block
    limit = min(by, key=lambda name: by[name])
    return Occupancy(by[limit], limit, by[limit] * warps * 32 / profile.threads)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
