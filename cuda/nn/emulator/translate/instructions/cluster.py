"""Addresses in a thread block cluster: mapa and getctarank.

A shared address names its block by its upper bits, see csrc/emulator/device.h."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Operand
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.table import instruction

_GENERIC_TO_SHARED = "(uint32_t)({} - reinterpret_cast<uint64_t>(t.shared))"


@instruction("mapa", "shared::cluster type:u32|u64")
def mapa_shared(e: Emitter, m: SimpleNamespace, destination: Operand, address: Operand, rank: Operand) -> str:
    e.require(90)
    mapped = f"emu::map_to_rank(t, (uint32_t){e.value(address, m.type)}, {e.value(rank, 'u32')}, {e.site()})"
    return e.assign(destination, m.type, mapped)


@instruction("mapa", "u64")
def mapa_generic(
    e: Emitter, m: SimpleNamespace, destination: Operand, address: Operand, rank: Operand
) -> str:
    e.require(90)
    shared = _GENERIC_TO_SHARED.format(e.value(address, "u64"))
    mapped = f"emu::map_to_rank(t, {shared}, {e.value(rank, 'u32')}, {e.site()})"
    return e.assign(destination, "u64", f"reinterpret_cast<uint64_t>(t.shared + {mapped})")


@instruction("getctarank", "shared::cluster type:u32|u64")
def rank_of_shared(e: Emitter, m: SimpleNamespace, destination: Operand, address: Operand) -> str:
    e.require(90)
    return e.assign(destination, "u32", f"emu::rank_of((uint32_t){e.value(address, m.type)})")


@instruction("getctarank", "u64")
def rank_of_generic(e: Emitter, m: SimpleNamespace, destination: Operand, address: Operand) -> str:
    e.require(90)
    return e.assign(destination, "u32", f"emu::rank_of({_GENERIC_TO_SHARED.format(e.value(address, 'u64'))})")
