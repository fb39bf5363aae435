"""Fences, and the instructions that only advise the caches.

Every memory fence is executed as the strongest one and told to the checker with its scope: an acquire-only
or release-only fence counts there as both.  A proxy fence orders generic accesses against those of the async
proxy (bulk copies, wgmma)."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Operand
from cuda.nn.emulator.translate.emitter import Emitter
from cuda.nn.emulator.translate.table import Unsupported, instruction

_SCOPES = {"cta": "block", "cluster": "cluster", "gpu": "device", "gl": "device", "sys": "system"}
_SCOPE = "scope:cta|cluster|gpu|sys"


def _fence(e: Emitter, kind: str) -> str:
    return f"emu::memory_fence(t, emu::Fence::{kind}, {e.site()});"


@instruction("membar", "scope:cta|gl|sys")
@instruction("fence", f"sem:sc|acq_rel|acquire|release? {_SCOPE}")
def fence(e: Emitter, m: SimpleNamespace) -> str:
    if m.scope == "cluster":
        e.require(90)
    return _fence(e, _SCOPES[m.scope])


@instruction("fence", "mbarrier_init release cluster")
@instruction("fence", "acquire sync_restrict::shared::cluster cluster")
@instruction("fence", "release sync_restrict::shared::cta cluster")
def restricted_fence(e: Emitter, m: SimpleNamespace) -> str:
    """Orders less than a whole fence: mbarrier.init only, or shared memory only."""
    e.require(90)
    return _fence(e, "cluster")


@instruction("membar", "proxy alias")
@instruction("fence", "proxy alias")
def alias_fence(e: Emitter, m: SimpleNamespace) -> str:
    e.require(70)
    return _fence(e, "proxy_alias")


@instruction("fence", "proxy async space:global|shared::cta|shared::cluster?")
@instruction("fence", "proxy async::generic acquire sync_restrict::shared::cluster cluster")
@instruction("fence", "proxy async::generic release sync_restrict::shared::cta cluster")
def async_fence(e: Emitter, m: SimpleNamespace) -> str:
    e.require(90)
    return _fence(e, "proxy_async")


@instruction("fence", f"proxy tensormap::generic sem:acquire|release {_SCOPE}")
def tensormap_fence(e: Emitter, m: SimpleNamespace, *map_and_size: Operand) -> str:
    e.require(90)
    if m.sem == "acquire" and e.immediate(map_and_size[1]) != 128:
        raise Unsupported("fence.proxy.tensormap::generic.acquire covers 128 bytes")
    return _fence(e, "proxy_tensormap")


# ---- advice ------------------------------------------------------------------------------------------------

_EVICT = "L2::evict_last|L2::evict_normal|L2::evict_first|L2::evict_unchanged"


@instruction("createpolicy", f"fractional first:{_EVICT} second:L2::evict_first|L2::evict_unchanged? b64")
@instruction("createpolicy", f"range global? first:{_EVICT} second:L2::evict_first|L2::evict_unchanged? b64")
@instruction("createpolicy", "cvt L2 b64")
def createpolicy(e: Emitter, m: SimpleNamespace, policy: Operand, *rest: Operand) -> str:
    """An opaque value that only cache hints read, and those do nothing here."""
    e.require(80)
    return e.assign(policy, "b64", "0ull")


@instruction("applypriority", "global? L2::evict_normal")
def applypriority(e: Emitter, m: SimpleNamespace, address: Operand, size: Operand) -> str:
    e.require(80)
    return ";"


@instruction("discard", "global? L2")
def discard(e: Emitter, m: SimpleNamespace, address: Operand, size: Operand) -> str:
    """What was there is lost: the next read must follow a write."""
    e.require(80)
    return f"emu::discard(t, {e.address(address, m.global_ or 'generic')}, {e.immediate(size)}u, {e.site()});"
