"""Bulk copies and reductions: bytes, mbarriers, groups, multicast, tensor maps with swizzles, strides and edges, and misuse."""

import ctypes
from collections.abc import Iterator
from itertools import product

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.emulator.errors import LaunchError
from cuda.nn.emulator.native import library
from tests.emulator.snippets import Snippet, refusal, run_all, run_module

RANDOM = np.random.default_rng(3)
BYTES = RANDOM.integers(0, 256, 256, np.uint8)

SHARED = ".shared .align 1024 .b8 tile[33792]; .shared .align 8 .b64 bar; .reg .b32 %i, %v, %t, %n; .reg .b64 %s, %hint; .reg .pred %p, %one;"
# One warp.  Lane 0 sets up the barrier; WAIT waits for phase 0; COPY_OUT stores `words` words of the tile to the output, in order.
BEGIN = f"{SHARED} setp.eq.u32 %one, %tid32, 0; @%one mbarrier.init.shared.b64 [bar], 1; bar.sync 0;"
WAIT = "waiting: mbarrier.try_wait.parity.shared.b64 %p, [bar], 0; @!%p bra waiting;"


def _fill(words: int, value: int) -> str:
    """The tile's first words, by all lanes, before anything else."""
    return (
        f"mov.u32 %i, %tid32; filling: mov.u32 %t, tile; mad.lo.u32 %t, %i, 4, %t; st.shared.u32 [%t], {value};"
        f"add.u32 %i, %i, 32; setp.lt.u32 %p, %i, {words}; @%p bra filling; fence.proxy.async; bar.sync 0;"
    )


def _copy_out(words: int) -> str:
    return (
        ".reg .b64 %to; mov.u32 %i, %tid32; emptying: mov.u32 %t, tile; mad.lo.u32 %t, %i, 4, %t; ld.shared.u32 %v, [%t];"
        "mul.wide.u32 %to, %i, 4; add.u64 %to, %base_out, %to; st.global.u32 [%to], %v;"
        f"add.u32 %i, %i, 32; setp.lt.u32 %p, %i, {words}; @%p bra emptying;"
    )


def _loading(name: str, copy: str, size: int, words: int = 64) -> Snippet:
    expect = f"@%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], {size};"
    body = f"{BEGIN} {_fill(words, 7)} {expect} {copy} {WAIT} {_copy_out(words)}"
    return Snippet(name, body, inputs={"a": BYTES[None].repeat(32, 0)}, output=((32, words // 32), np.uint32))


LOADS = {
    "cta": "@%one cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [tile], [%base_a], 256, [bar];",
    "cluster": "@%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [%base_a], 256, [bar];",
    "hint": (
        "mov.b64 %hint, 0; @%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [tile], [%base_a], 256, [bar], %hint;"
    ),
    "halves": (
        "@%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile+128], [%base_a+128], 128, [bar];"
        "@%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [%base_a], 128, [bar];"
    ),
}


@pytest.mark.parametrize("completion", ["lazy", "eager"])
@pytest.mark.parametrize("mode", ["fast", "check"])
def test_loads(completion: str, mode: str) -> None:
    results = run_all([_loading(name, code, 256) for name, code in LOADS.items()], mode=mode, cp_async=completion)
    for name in LOADS:
        np.testing.assert_array_equal(results[name].view(np.uint8).ravel(), BYTES, err_msg=name)


def test_prefetch_checks_its_range() -> None:
    body = "cp.async.bulk.prefetch.L2.global [%base_a], 256; cp.async.bulk.prefetch.L2.global [%base_a], 24;"
    with pytest.raises(LaunchError, match="multiple of 16"):
        run_all([Snippet("prefetch", body, inputs={"a": BYTES[None]})])


# ---- to global memory --------------------------------------------------------------------------------------------------


def _storing(name: str, code: str, wait: str, after: str = "", words: int = 64) -> Snippet:
    """Lane 0 sends the tile, all words 7, to the output; `after` runs before the complete wait."""
    sent = f"@%one bra send; bra sent; send: {code} cp.async.bulk.commit_group; {wait} {after} cp.async.bulk.wait_group 0; sent:"
    return Snippet(name, f"{BEGIN} {_fill(words, 7)} {sent}", output=((32, words // 32), np.uint32))


STORE = "cp.async.bulk.global.shared::cta.bulk_group [%base_out], [tile], 256;"


@pytest.mark.parametrize("completion", ["lazy", "eager"])
def test_stores(completion: str) -> None:
    hint = "mov.b64 %hint, 0; cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%base_out], [tile], 256, %hint;"
    cases = [_storing("plain", STORE, ""), _storing("hint", hint, "cp.async.bulk.wait_group.read 0;")]
    for result in run_all(cases, mode="check", cp_async=completion).values():
        assert (result == 7).all()


def test_reads_and_writes_complete_apart() -> None:
    """After wait_group.read the tile may change, and the output is not there yet; both as late as allowed."""
    overwrite = "st.shared.u32 [tile], 9;"
    peek = "ld.global.u32 %v, [%base_out]; st.global.u32 [%base_out+128], %v;"
    half = STORE.replace("256", "128")
    cases = [
        _storing("overwritten", half, "cp.async.bulk.wait_group.read 0;", overwrite),
        _storing("too early", half, "", overwrite).__class__("early", _storing("x", half, "", overwrite).body, output=((32, 2), np.uint32)),
        _storing("peeked", half, "cp.async.bulk.wait_group.read 0;", peek),
    ]
    results = run_all(cases)
    assert (results["overwritten"].ravel()[:32] == 7).all()
    assert results["early"].ravel()[0] == 9
    assert results["peeked"].ravel()[32] == 0xFFFFFFFF
    assert run_all(cases, cp_async="eager")["peeked"].ravel()[32] == 7


def test_groups_complete_oldest_first() -> None:
    """wait_group 1 leaves the youngest group in flight."""
    code = "cp.async.bulk.global.shared::cta.bulk_group [%base_out], [tile], 64; cp.async.bulk.commit_group;" + (
        "cp.async.bulk.global.shared::cta.bulk_group [%base_out+64], [tile], 64;"
    )
    peek = "cp.async.bulk.wait_group 1;" + "".join(
        f"ld.global.u32 %v, [%base_out+{64 * i}]; st.global.u32 [%base_out+{128 + 4 * i}], %v;" for i in range(2)
    )
    out = run_all([_storing("groups", code, "", peek)])["groups"].ravel()
    assert (out[:32] == 7).all()
    np.testing.assert_array_equal(out[32:34], [7, 0xFFFFFFFF])


# ---- reductions --------------------------------------------------------------------------------------------------------

NUMBERS = {
    "u32": np.uint32, "s32": np.int32, "b32": np.uint32, "u64": np.uint64, "s64": np.int64, "b64": np.uint64,
    "f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16,
}
REDUCTIONS = {
    "add": ("u32", "s32", "u64", "f32", "f64", "f16", "bf16"),
    "min": ("u32", "s32", "u64", "s64", "f16", "bf16"),
    "max": ("u32", "s32", "u64", "s64", "f16", "bf16"),
    "inc": ("u32",),
    "dec": ("u32",),
    "and": ("b32", "b64"),
    "or": ("b32", "b64"),
    "xor": ("b32", "b64"),
}
IN_SHARED = {"add": ("u32", "s32", "u64"), "min": ("u32", "s32"), "max": ("u32", "s32"), "inc": ("u32",), "dec": ("u32",),
             "and": ("b32",), "or": ("b32",), "xor": ("b32",)}


def _numbers(type: str) -> np.ndarray:
    """128 bytes of numbers, the same as the words of the tile: 7 in every word, read as the type."""
    dtype = np.dtype(NUMBERS[type])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return RANDOM.integers(info.min, info.max, 128 // dtype.itemsize, dtype, endpoint=True) >> RANDOM.integers(0, 8 * dtype.itemsize)
    return (RANDOM.standard_normal(128 // dtype.itemsize) * 100).astype(dtype)


def _reduced(operation: str, old: np.ndarray, value: np.ndarray) -> np.ndarray:
    if operation in ("inc", "dec"):
        up = np.where(old >= value, 0, old + np.uint32(1))
        down = np.where((old == 0) | (old > value), value, old - np.uint32(1))
        return (up if operation == "inc" else down).astype(old.dtype)
    if old.dtype.kind not in "iu":
        old, value, back = old.astype(np.float64), value.astype(np.float64), old.dtype
        return {"add": old + value, "min": np.minimum(old, value), "max": np.maximum(old, value)}[operation].astype(back)
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    return functions[operation](old, value)


def _through_shared(name: str, reduce: str, old: np.ndarray, value: np.ndarray, after: str) -> Snippet:
    """Loads `value` into the tile and `old` to where `reduce` expects it; `after` brings the result to the output."""
    lane = "ld.global.u32 %v, [%rd_value]; mov.u32 %t, tile; mad.lo.u32 %t, %tid32, 4, %t; st.shared.u32 [%t], %v; ld.global.u32 %v, [%rd_old];"
    body = f"{BEGIN} {lane} st.global.u32 [%rd_out], %v; st.shared.u32 [%t+1024], %v; fence.proxy.async; bar.sync 0; {reduce} {after}"
    return Snippet(name, body, inputs={"old": old.view(np.uint32), "value": value.view(np.uint32)}, output=((32,), np.uint32))


def test_reductions() -> None:
    cases, expected = [], {}
    for operation, type in ((operation, type) for operation, types in REDUCTIONS.items() for type in types):
        old, value = _numbers(type), _numbers(type)
        noftz = ".noftz" if operation == "add" and type in ("f16", "bf16") else ""
        send = f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}{noftz}.{type} [%base_out], [tile], 128;"
        to_global = f"@%one bra send; bra sent; send: {send} cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; sent:"
        cases.append(_through_shared(f"global_{operation}_{type}", to_global, old, value, ""))
        expected[cases[-1].name] = _reduced(operation, old, value)
        if type in IN_SHARED.get(operation, ()):
            to_shared = (
                "@%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], 128; @%one cp.reduce.async.bulk.shared::cluster.shared::cta"
                f".mbarrier::complete_tx::bytes.{operation}.{type} [tile+1024], [tile], 128, [bar]; {WAIT}"
            )
            back = "ld.shared.u32 %v, [%t+1024]; st.global.u32 [%rd_out], %v;"
            cases.append(_through_shared(f"shared_{operation}_{type}", to_shared, old, value, back))
            expected[cases[-1].name] = _reduced(operation, old, value)
    results = run_all(cases, mode="check")
    for name, wanted in expected.items():
        np.testing.assert_array_equal(results[name], wanted.view(np.uint32), err_msg=name)


# ---- clusters ----------------------------------------------------------------------------------------------------------

CLUSTER = ".reqnctapercluster 4, 1, 1"
RANK = ".reg .b32 %rank, %remote, %far; mov.u32 %rank, %cluster_ctarank;"
MEET = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"


def _in_cluster(name: str, code: str, words: int = 32) -> Snippet:
    """Four blocks of 32 threads; every block stores its tile's first words in its own rows."""
    out = "ld.shared.u32 %v, [tile]; mov.u32 %t, tile; mad.lo.u32 %t, %tid32, 4, %t; "
    local = ".reg .b32 %lane; mov.u32 %lane, %tid.x; setp.eq.u32 %one, %lane, 0;"
    begin = f"{SHARED} {RANK} {local} @%one mbarrier.init.shared.b64 [bar], 1; {MEET}"
    out = "mov.u32 %t, tile; mad.lo.u32 %t, %lane, 4, %t; ld.shared.u32 %v, [%t]; st.global.u32 [%rd_out], %v;"
    return Snippet(
        name, f"{begin} {code} {WAIT} {out} {MEET}",
        inputs={"a": np.arange(128, dtype=np.uint32)}, output=((128,), np.uint32), block=32, limits=CLUSTER,
    )


EXPECT = "@%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], 128;"
MULTICAST = f"""
    {EXPECT} {MEET}                                    // every block expects before anybody sends
    setp.eq.and.u32 %p, %rank, 1, %one; .reg .b16 %mask; mov.b16 %mask, 13;
    @%p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [tile], [%base_a], 128, [bar], %mask;
    setp.eq.and.u32 %p, %rank, 1, %one;
    @%p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [%base_a+256], 128, [bar];
"""
NEIGHBOUR = f"""
    mad.lo.u32 %v, %rank, 100, %lane; mov.u32 %t, tile; mad.lo.u32 %t, %lane, 4, %t; st.shared.u32 [%t+1024], %v;
    fence.proxy.async; {EXPECT} {MEET}
    add.u32 %n, %rank, 1; and.b32 %n, %n, 3; mov.u32 %t, tile; mapa.shared::cluster.u32 %remote, %t, %n;
    mov.u32 %t, bar; mapa.shared::cluster.u32 %far, %t, %n;
    @%one cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%remote], [tile+1024], 128, [%far];
"""
STORE_ASYNC = f"""
    {EXPECT} {MEET}
    add.u32 %n, %rank, 3; and.b32 %n, %n, 3; mov.u32 %t, tile; mad.lo.u32 %t, %lane, 4, %t; mapa.shared::cluster.u32 %remote, %t, %n;
    mov.u32 %t, bar; mapa.shared::cluster.u32 %far, %t, %n; mad.lo.u32 %v, %rank, 100, %lane;
    st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%remote], %v, [%far];
"""
VECTORS = f"""
    {EXPECT} {MEET} .reg .b32 %w<4>;
    mov.u32 %t, tile; mad.lo.u32 %t, %lane, 16, %t; mapa.shared::cluster.u32 %remote, %t, %rank;
    mov.u32 %t, bar; mapa.shared::cluster.u32 %far, %t, %rank; mad.lo.u32 %w0, %rank, 100, %lane;
    add.u32 %w1, %w0, 10; add.u32 %w2, %w0, 20; add.u32 %w3, %w0, 30; setp.lt.u32 %p, %lane, 8;
    @%p st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%remote], {{%w0, %w1, %w2, %w3}}, [%far];
"""
REDUCE_ASYNC = f"""
    mov.u32 %t, tile; mad.lo.u32 %t, %lane, 4, %t; st.shared.u32 [%t], %rank;
    @%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], 512; {MEET}                 // all four blocks add to every block
    mov.u32 %n, 0; sending: mapa.shared::cluster.u32 %remote, %t, %n; mov.u32 %v, bar; mapa.shared::cluster.u32 %far, %v, %n;
    mad.lo.u32 %v, %rank, 10, %lane; red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%remote], %v, [%far];
    add.u32 %n, %n, 1; setp.lt.u32 %p, %n, 4; @%p bra sending;
"""
LANES = np.arange(32)
CLUSTERED = {
    "multicast": (MULTICAST, [LANES, LANES + 64, LANES, LANES]),
    "neighbour": (NEIGHBOUR, [(rank + 3) % 4 * 100 + LANES for rank in range(4)]),
    "store_async": (STORE_ASYNC, [(rank + 1) % 4 * 100 + LANES for rank in range(4)]),
    "vectors": (VECTORS, [rank * 100 + LANES // 4 + LANES % 4 * 10 for rank in range(4)]),
    "reduce_async": (REDUCE_ASYNC, [rank + 60 + 4 * LANES for rank in range(4)]),
}


@pytest.mark.parametrize("completion", ["lazy", "eager"])
@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_clusters(completion: str, schedule: str) -> None:
    cases = [_in_cluster(name, code) for name, (code, _) in CLUSTERED.items()]
    results = run_all(cases, mode="check", cp_async=completion, schedule=schedule)
    for name, (_, expected) in CLUSTERED.items():
        np.testing.assert_array_equal(results[name].reshape(4, 32), expected, err_msg=name)


# ---- tensor maps -------------------------------------------------------------------------------------------------------

TYPES = ("u1", "u2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")      # numbered as CUtensorMapDataType; bf16 is 9


def encode(type: int, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], *, steps: tuple[int, ...] = (),
           swizzle: int = 0, fill: int = 0, address: int = 0, interleave: int = 0) -> tuple[int, np.ndarray]:
    """cuTensorMapEncodeTiled: its code and the map.  Dimensions are given innermost first."""
    rank = len(shape)
    opaque = np.zeros(128, np.uint8)
    code = library()._c.tensor_map_encode_tiled(
        opaque.ctypes.data_as(ctypes.c_void_p), type, rank, ctypes.c_void_p(address), (ctypes.c_uint64 * 5)(*shape),
        (ctypes.c_uint64 * 5)(*strides), (ctypes.c_uint32 * 5)(*box), (ctypes.c_uint32 * 5)(*(steps or (1,) * rank)),
        interleave, swizzle, 0, fill,
    )
    return code, opaque


def _strides(shape: tuple[int, ...], itemsize: int, pad: int) -> tuple[int, ...]:
    """Bytes between neighbours along dimensions 1.., rows padded to multiples of 16 and by `pad` bytes."""
    strides, extent = [], shape[0] * itemsize
    for size in shape[1:]:
        extent = -(-extent // 16) * 16 + pad
        strides.append(extent)
        extent *= size
    return tuple(strides)


def swizzled(offset: np.ndarray, span: int) -> np.ndarray:
    """Where byte `offset` of a tile lies: the 16-byte chunk's number within its span XOR the number of the 128-byte line."""
    if not span:
        return offset
    chunk = offset // 16 % (span // 16)
    return offset // span * span + (chunk ^ (offset // 128 % (span // 16))) * 16 + offset % 16


def _indices(box: tuple[int, ...], steps: tuple[int, ...], at: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Coordinates of the box's elements, in the order of the tile: innermost dimension fastest, where steps do not count."""
    ranges = [range(-(-size // step)) for size, step in zip(box[1:], steps[1:], strict=True)]
    for outer in product(*reversed(ranges)):
        rest = tuple(start + i * step for start, i, step in zip(at[1:], reversed(outer), steps[1:], strict=True))
        for x in range(box[0]):
            yield (at[0] + x, *rest)


class Tensor:
    """A tensor in memory, a box of it, and what a load of the box must give."""

    def __init__(self, name: str, type: int, shape: tuple[int, ...], box: tuple[int, ...], at: tuple[int, ...],
                 steps: tuple[int, ...] = (), swizzle: int = 0, fill: int = 0, pad: int = 16) -> None:
        self.name, self.type, self.shape, self.box, self.at = name, type, shape, box, at
        self.steps, self.swizzle, self.fill = steps or (1,) * len(shape), swizzle, fill
        self.dtype = np.dtype(ml_dtypes.bfloat16 if type == 9 else TYPES[type])
        self.strides = _strides(shape, self.dtype.itemsize, pad)
        size = (self.strides[-1] * shape[-1] if self.strides else shape[0] * self.dtype.itemsize) + 64
        self.memory = RANDOM.integers(0, 256, size, np.uint8)

    @property
    def map(self) -> np.ndarray:
        code, opaque = encode(self.type, self.shape, self.strides, self.box, steps=self.steps, swizzle=self.swizzle, fill=self.fill)
        assert code == 0
        return opaque

    def places(self) -> "list[int | None]":
        """Byte offset in memory of each element of the tile; None outside the tensor."""
        all_strides = (self.dtype.itemsize, *self.strides)
        return [
            sum(i * stride for i, stride in zip(index, all_strides, strict=True))
            if all(0 <= i < size for i, size in zip(index, self.shape, strict=True)) else None
            for index in _indices(self.box, self.steps, self.at)
        ]

    @property
    def bytes(self) -> int:
        return len(self.places()) * self.dtype.itemsize

    def offsets(self) -> np.ndarray:
        """Where each byte of the tile lies in shared memory."""
        return swizzled(np.arange(self.bytes), 16 << self.swizzle if self.swizzle else 0)

    def loaded(self) -> np.ndarray:
        """The tile's bytes as they lie in shared memory; NaN fill as 0xFF..., compared as NaN."""
        item = self.dtype.itemsize
        outside = np.zeros(item, np.uint8) if not self.fill else np.array([np.nan], self.dtype).view(np.uint8)
        dense = np.concatenate([outside if place is None else self.memory[place:place + item] for place in self.places()])
        tile = np.empty_like(dense)
        tile[self.offsets()] = dense
        return tile

    @property
    def coordinates(self) -> str:
        return "{" + ", ".join(map(str, self.at)) + "}"


TENSORS = [
    Tensor("plain_1d", 2, (100,), (32,), (40,)),
    Tensor("edge_1d", 2, (100,), (32,), (-5,)),
    Tensor("plain_2d", 9, (64, 40), (64, 8), (0, 16)),
    Tensor("swizzle_128", 9, (128, 40), (64, 32), (64, 4), swizzle=3),
    Tensor("swizzle_64", 7, (48, 40), (16, 24), (16, 8), swizzle=2),
    Tensor("swizzle_32", 0, (96, 20), (32, 17), (32, 2), swizzle=1),
    Tensor("corner_2d", 7, (20, 10), (16, 16), (12, 3)),
    Tensor("before_2d", 7, (20, 10), (16, 8), (-3, -2)),
    Tensor("far_outside", 7, (20, 10), (16, 4), (500, -100)),
    Tensor("nan_2d", 7, (20, 10), (16, 16), (12, 3), fill=1),
    Tensor("nan_bf16", 9, (20, 10), (16, 4), (10, -2), fill=1, swizzle=1),
    Tensor("nan_f64", 8, (20, 10), (4, 4), (18, 8), fill=1),
    Tensor("int8_3d", 0, (48, 7, 5), (16, 4, 3), (16, 5, 3)),
    Tensor("steps_3d", 2, (40, 30, 9), (8, 12, 5), (4, 1, 2), steps=(3, 4, 2)),
    Tensor("u64_4d", 4, (6, 5, 4, 3), (2, 3, 2, 2), (4, 3, 1, 2)),
    Tensor("f16_5d", 6, (16, 3, 4, 3, 3), (8, 2, 2, 2, 2), (8, 2, 1, -1, 2), pad=0),
    Tensor("swizzled_3d", 9, (64, 9, 5), (64, 5, 3), (0, 6, 1), swizzle=3),
]
# The map's global address is known in the kernel only: tensormap.replace puts it in.
ADDRESS = "@%one tensormap.replace.tile.global_address.global.b1024.b64 [%base_map], %base_a; fence.proxy.tensormap::generic.acquire.gpu [%base_map], 128;"


def _tensor_load(tensor: Tensor, extra: str = "") -> Snippet:
    rank = len(tensor.shape)
    words = -(-tensor.bytes // 4)
    copy = (
        f"@%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], {tensor.bytes}; @%one cp.async.bulk.tensor.{rank}d.shared::cluster.global"
        f".tile.mbarrier::complete_tx::bytes [tile], [%base_map, {tensor.coordinates}], [bar];"
    )
    body = f"{BEGIN} {extra} {ADDRESS} {copy} {WAIT} {_copy_out(words)}"
    inputs = {"a": tensor.memory[None].repeat(32, 0), "map": tensor.map[None].repeat(32, 0)}
    return Snippet(tensor.name, body, inputs=inputs, output=((32, -(-words // 32)), np.uint32))


@pytest.mark.parametrize("completion", ["lazy", "eager"])
@pytest.mark.parametrize("mode", ["fast", "check"])
def test_tensor_loads(completion: str, mode: str) -> None:
    results = run_all([_tensor_load(tensor) for tensor in TENSORS], mode=mode, cp_async=completion)
    for tensor in TENSORS:
        got, expected = results[tensor.name].view(np.uint8).ravel()[: tensor.bytes], tensor.loaded()
        if tensor.fill:
            values, wanted = got.view(tensor.dtype).astype(np.float64), expected.view(tensor.dtype).astype(np.float64)
            np.testing.assert_array_equal(values, wanted, err_msg=tensor.name)
        else:
            np.testing.assert_array_equal(got, expected, err_msg=tensor.name)


def _tensor_store(tensor: Tensor, operation: str = "") -> Snippet:
    """The tile's bytes come from an input; the output, copied from `before` first, is the tensor."""
    rank, size = len(tensor.shape), -(-len(tensor.memory) // 128) * 128
    before, tile = np.zeros(size, np.uint8), np.zeros(33792, np.uint8)
    before[: len(tensor.memory)], tile[: tensor.bytes] = tensor.memory, tensor.loaded()
    reduce = "reduce." if operation else ""
    loops = (
        ".reg .b64 %at, %to; mov.u32 %i, %tid32; filling: mul.wide.u32 %at, %i, 4; add.u64 %to, %base_before, %at; ld.global.u32 %v, [%to];"
        f"add.u64 %to, %base_out, %at; st.global.u32 [%to], %v; add.u32 %i, %i, 32; setp.lt.u32 %p, %i, {size // 4}; @%p bra filling;"
        "mov.u32 %i, %tid32; tiling: mul.wide.u32 %at, %i, 4; add.u64 %to, %base_tile, %at; ld.global.u32 %v, [%to];"
        f"mov.u32 %t, tile; mad.lo.u32 %t, %i, 4, %t; st.shared.u32 [%t], %v; add.u32 %i, %i, 32; setp.lt.u32 %p, %i, {-(-tensor.bytes // 4)};"
        "@%p bra tiling; fence.proxy.async; bar.sync 0;"
    )
    send = (
        f"@%one bra send; bra sent; send: cp.{reduce}async.bulk.tensor.{rank}d.global.shared::cta{operation}.tile.bulk_group"
        f" [%base_map, {tensor.coordinates}], [tile]; cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; sent:"
    )
    inputs = {"before": before[None].repeat(32, 0), "tile": tile[None].repeat(32, 0), "map": tensor.map[None].repeat(32, 0)}
    body = f"{BEGIN} {loops} {ADDRESS.replace('%base_a', '%base_out')} {send}"
    return Snippet(tensor.name, body, inputs=inputs, output=((32, size // 128), np.uint32))


def _stored(tensor: Tensor, operation: str = "") -> np.ndarray:
    """The tensor's memory after the tile of tensor.loaded() came back to its place: only elements inside change."""
    item = tensor.dtype.itemsize
    memory, dense = tensor.memory.copy(), tensor.loaded()[tensor.offsets()]
    for number, place in enumerate(tensor.places()):
        if place is not None:
            value, old = (x.view(tensor.dtype) for x in (dense[number * item:(number + 1) * item], memory[place:place + item]))
            memory[place:place + item] = (_reduced(operation, old, value) if operation else value).view(np.uint8)
    return memory


def test_tensor_stores() -> None:
    """A loaded box, changed, goes back to where it was; what lies outside the tensor is skipped."""
    for tensor in TENSORS:
        original = tensor.memory
        tensor.memory = RANDOM.permutation(original)
    results = run_all([_tensor_store(tensor) for tensor in TENSORS], mode="check")
    for tensor in TENSORS:
        got = results[tensor.name].view(np.uint8).ravel()[: len(tensor.memory)]
        np.testing.assert_array_equal(got, _stored(tensor), err_msg=tensor.name)


def test_tensor_reductions() -> None:
    chosen = [("add", 2), ("add", 3), ("min", 3), ("max", 2), ("inc", 2), ("dec", 2), ("and", 2), ("or", 4), ("xor", 5), ("add", 6), ("add", 9)]
    tensors = [
        Tensor(f"{operation}_{type}", type, (40, 6), (16, 4), (32, 3), swizzle=0) for operation, type in chosen
    ]
    for tensor in tensors:
        if tensor.dtype.kind not in "iu":
            tensor.memory = RANDOM.standard_normal(len(tensor.memory) // 2).astype(tensor.dtype).view(np.uint8)
    cases = [_tensor_store(tensor, f".{tensor.name.split('_')[0]}") for tensor in tensors]
    results = run_all(cases, mode="check")
    for tensor in tensors:
        got = results[tensor.name].view(np.uint8).ravel()[: len(tensor.memory)]
        np.testing.assert_array_equal(got, _stored(tensor, tensor.name.split("_")[0]), err_msg=tensor.name)


def test_replaced_fields() -> None:
    """A map whose every field was replaced in the kernel loads like one encoded that way.  tensormap.replace counts the rank from 0."""
    wanted = Tensor("replaced", 9, (64, 9, 5), (64, 5, 3), (0, 6, 1), swizzle=3, fill=1)
    fields = [("rank", "", 2), ("elemtype", "", 10), ("swizzle_mode", "", 3), ("fill_mode", "", 1), ("interleave_layout", "", 0)]
    fields += [("swizzle_atomicity", "", 0)]
    fields += [("box_dim", f"{i}, ", size) for i, size in enumerate(wanted.box)]
    fields += [("global_dim", f"{i}, ", size) for i, size in enumerate(wanted.shape)]
    fields += [("element_stride", f"{i}, ", 1) for i in range(3)]
    code = " ".join(f"@%one tensormap.replace.tile.{field}.global.b1024.b32 [%base_map], {number}{value};" for field, number, value in fields)
    code += " ".join(
        f"@%one tensormap.replace.tile.global_stride.global.b1024.b64 [%base_map], {i}, {stride};" for i, stride in enumerate(wanted.strides)
    )
    case = _tensor_load(wanted, code)
    first = Tensor("other", 2, (100,), (32,), (40,)).map
    case.inputs["map"][...] = first
    got = run_all([case], mode="check")["replaced"].view(np.uint8).ravel()[: wanted.bytes]
    expected = wanted.loaded()
    np.testing.assert_array_equal(got.view(wanted.dtype).astype(float), expected.view(wanted.dtype).astype(float))


ENCODINGS = {
    "rank": (1, dict(shape=(), box=())),
    "misaligned address": (1, dict(address=8)),
    "stride": (1, dict(strides=(100,))),
    "box": (1, dict(box=(32, 257))),
    "row of 12 bytes": (1, dict(box=(3, 4))),
    "wider than the swizzle": (1, dict(swizzle=1)),
    "empty dimension": (1, dict(shape=(32, 0))),
    "step": (1, dict(steps=(1, 9))),
    "NaN of integers": (1, dict(fill=1)),
    "no such swizzle": (1, dict(swizzle=7)),
    "interleave": (801, dict(interleave=1)),
    "tf32": (801, dict(type=11)),
    "atoms of 32 bytes": (801, dict(swizzle=4)),
    "narrower than the swizzle": (801, dict(box=(16, 4), swizzle=3)),
    "fine": (0, dict(swizzle=3)),
}


@pytest.mark.parametrize("case", ENCODINGS)
def test_encoding(case: str) -> None:
    code, changed = ENCODINGS[case]
    chosen = {"type": 2, "shape": (64, 64), "strides": (256,), "box": (32, 4), **changed}
    assert encode(**chosen)[0] == code
    library()._c.emu_clear()


# ---- misuse ------------------------------------------------------------------------------------------------------------

LOAD = "@%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [%base_a], 256, [bar];"
EXPECT_256 = "@%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], 256;"
READ = "ld.shared.u32 %v, [tile]; st.global.u32 [%rd_out], %v;"
WRONG = {
    "read before the wait": (f"{EXPECT_256} {LOAD} bar.sync 0; {READ} {WAIT}", "async"),
    "nobody waits": (f"{EXPECT_256} {LOAD}", "async"),
    "generic write not fenced": (
        f"{_fill(64, 7).replace('fence.proxy.async;', '')} @%one bra send; bra sent; send: {STORE.replace('256', '128')} cp.async.bulk.commit_group;"
        "cp.async.bulk.wait_group 0; sent:", "async",
    ),
    "tile changed while it is read": (
        f"{_fill(64, 7)} @%one bra send; bra sent; send: {STORE.replace('256', '128')} cp.async.bulk.commit_group;"
        "st.shared.u32 [tile], 3; cp.async.bulk.wait_group 0; sent:", "async",
    ),
    "store not waited for": (
        f"{_fill(64, 7)} @%one bra send; bra sent; send: {STORE.replace('256', '128')} cp.async.bulk.commit_group; sent:", "async",
    ),
    "store never committed": (f"{_fill(64, 7)} @%one bra send; bra sent; send: {STORE.replace('256', '128')} sent:", "async"),
    "past the end of the source": (f"{EXPECT_256} {LOAD.replace('%base_a]', '%base_a+8064]')} {WAIT}", "out_of_bounds"),
    "fewer bytes than expected": (f"{EXPECT_256} {LOAD.replace('256', '128')} {WAIT}", "deadlock"),
    "16-byte alignment": (f"{EXPECT_256} {LOAD.replace('%base_a]', '%base_a+8]')} {WAIT}", "misaligned"),
    "size": (f"{EXPECT_256} {LOAD.replace('256', '40')} {WAIT}", "misaligned"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_misuse_is_reported(wrong: str) -> None:
    code, kind = WRONG[wrong]
    case = Snippet("wrong", f"{BEGIN} {code}", inputs={"a": BYTES[None].repeat(32, 0)}, output=((32,), np.uint32))
    module, _ = run_module([case], mode="check")
    assert module.reports and {report.kind for report in module.reports} == {kind}, module.reports


def test_tensor_map_without_an_encoder() -> None:
    tensor = TENSORS[0]
    case = _tensor_load(tensor)
    body = case.body.replace(ADDRESS, "")
    broken = Snippet("broken", body, inputs={**case.inputs, "map": np.zeros((32, 128), np.uint8)}, output=case.output)
    module, _ = run_module([broken], mode="check")
    assert "cuTensorMapEncodeTiled" in module.reports[0].message


REFUSED = {
    "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r], [%rd_out, {%r, %r, %r, %r}], [%r], {%h, %h};":
        "'.im2col'",
    "cp.async.bulk.tensor.2d.shared::cta.global.tile::gather4.mbarrier::complete_tx::bytes [%r], [%rd_out, {%r, %r, %r, %r, %r}], [%r];":
        "'.tile::gather4'",
    "cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes.cta_group::1 [%r], [%rd_out, {%r, %r}], [%r];":
        "'.cta_group::1'",
    "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd_out, {%r, %r, %r}], [%r];": "2 coordinates",
    "cp.async.bulk.global.shared::cta.bulk_group.cp_mask [%rd_out], [%r], 16, %h;": "sm_100",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.s64 [%rd_out], [%r], 16;": "no such type",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f16 [%rd_out], [%r], 16;": "no such type",
    "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.f32 [%r], [%r], 16, [%r];": "'.f32'",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.ignore_oob [%r], [%rd_out], 16, [%r];": "'.ignore_oob'",
    "st.async.release.gpu.global.b32 [%rd_out], %r;": "'.release'",
    "st.bulk.weak.shared::cta [%r], 16, 0;": "'.bulk'",
    "tensormap.replace.tile.box_dim.global.b1024.b64 [%rd_out], 0, %rd_out;": "operands",
}


@pytest.mark.parametrize("body", REFUSED)
def test_refused(body: str) -> None:
    assert REFUSED[body] in refusal(body, registers=".reg .b32 %r; .reg .b16 %h;")


def test_older_targets_refuse_what_came_later() -> None:
    assert "sm_90" in refusal("cp.async.bulk.commit_group;", arch="sm_80")
    assert "sm_90a" in refusal("tensormap.replace.tile.rank.global.b1024.b32 [%rd_out], 1;", arch="sm_90")
