"""Bulk copies and reductions: bytes, mbarriers, groups, multicast, clusters, and misuse.
Tensor copies: test_tensor_map.py."""

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.emulator.errors import LaunchError
from tests.emulator.snippets import Snippet, refusal, run_all, run_module

RANDOM = np.random.default_rng(3)
BYTES = RANDOM.integers(0, 256, 256, np.uint8)

SHARED = (
    ".shared .align 1024 .b8 tile[33792]; .shared .align 8 .b64 bar; .reg .b32 %i, %v, %t, %n; "
    ".reg .b64 %s, %hint; .reg .pred %p, %one;"
)
# One warp.  Lane 0 sets up the barrier; WAIT waits for phase 0; copy_out() stores the tile.
BEGIN = f"{SHARED} setp.eq.u32 %one, %tid32, 0; @%one mbarrier.init.shared.b64 [bar], 1; bar.sync 0;"
WAIT = "waiting: mbarrier.try_wait.parity.shared.b64 %p, [bar], 0; @!%p bra waiting;"


def _fill(words: int, value: int) -> str:
    """The tile's first words, by all lanes, before anything else."""
    return (
        f"mov.u32 %i, %tid32; filling: mov.u32 %t, tile; mad.lo.u32 %t, %i, 4, %t; st.shared.u32 [%t], "
        f"{value};"
        f"add.u32 %i, %i, 32; setp.lt.u32 %p, %i, {words}; @%p bra filling; fence.proxy.async; bar.sync 0;"
    )


def copy_out(words: int) -> str:
    return (
        ".reg .b64 %to; mov.u32 %i, %tid32; emptying: mov.u32 %t, tile; mad.lo.u32 %t, %i, 4, %t; "
        "ld.shared.u32 %v, [%t];"
        "mul.wide.u32 %to, %i, 4; add.u64 %to, %base_out, %to; st.global.u32 [%to], %v;"
        f"add.u32 %i, %i, 32; setp.lt.u32 %p, %i, {words}; @%p bra emptying;"
    )


def _loading(name: str, copy: str, size: int, words: int = 64) -> Snippet:
    expect = f"@%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], {size};"
    body = f"{BEGIN} {_fill(words, 7)} {expect} {copy} {WAIT} {copy_out(words)}"
    return Snippet(name, body, inputs={"a": BYTES[None].repeat(32, 0)}, output=((32, words // 32), np.uint32))


LOADS = {
    "cta": "@%one cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [tile], [%base_a], 256, "
    "[bar];",
    "cluster": "@%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], "
    "[%base_a], 256, [bar];",
    "hint": (
        "mov.b64 %hint, 0; @%one "
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [tile], [%base_a], 256, [bar], %hint;"
    ),
    "halves": (
        "@%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile+128], "
        "[%base_a+128], 128, [bar];"
        "@%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [%base_a], "
        "128, [bar];"
    ),
}


@pytest.mark.parametrize("completion", ["lazy", "eager"])
@pytest.mark.parametrize("mode", ["fast", "check"])
def test_loads(completion: str, mode: str) -> None:
    results = run_all(
        [_loading(name, code, 256) for name, code in LOADS.items()], mode=mode, cp_async=completion
    )
    for name in LOADS:
        np.testing.assert_array_equal(results[name].view(np.uint8).ravel(), BYTES, err_msg=name)


def test_prefetch_checks_its_range() -> None:
    body = "cp.async.bulk.prefetch.L2.global [%base_a], 256; cp.async.bulk.prefetch.L2.global [%base_a], 24;"
    with pytest.raises(LaunchError, match="multiple of 16"):
        run_all([Snippet("prefetch", body, inputs={"a": BYTES[None]})])


# ---- to global memory --------------------------------------------------------------------------------------


def _storing(name: str, code: str, wait: str, after: str = "", words: int = 64) -> Snippet:
    """Lane 0 sends the tile, all words 7, to the output; `after` runs before the complete wait."""
    sent = (
        f"@%one bra send; bra sent; send: {code} cp.async.bulk.commit_group; {wait} {after} "
        f"cp.async.bulk.wait_group 0; sent:"
    )
    return Snippet(name, f"{BEGIN} {_fill(words, 7)} {sent}", output=((32, words // 32), np.uint32))


STORE = "cp.async.bulk.global.shared::cta.bulk_group [%base_out], [tile], 256;"


@pytest.mark.parametrize("completion", ["lazy", "eager"])
def test_stores(completion: str) -> None:
    hint = (
        "mov.b64 %hint, 0; cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint "
        "[%base_out], [tile], 256, %hint;"
    )
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
        _storing("too early", half, "", overwrite).__class__(
            "early", _storing("x", half, "", overwrite).body, output=((32, 2), np.uint32)
        ),
        _storing("peeked", half, "cp.async.bulk.wait_group.read 0;", peek),
    ]
    results = run_all(cases)
    assert (results["overwritten"].ravel()[:32] == 7).all()
    assert results["early"].ravel()[0] == 9
    assert results["peeked"].ravel()[32] == 0xFFFFFFFF
    assert run_all(cases, cp_async="eager")["peeked"].ravel()[32] == 7


def test_groups_complete_oldest_first() -> None:
    """wait_group 1 leaves the youngest group in flight."""
    code = (
        "cp.async.bulk.global.shared::cta.bulk_group [%base_out], [tile], 64; cp.async.bulk.commit_group;"
        + ("cp.async.bulk.global.shared::cta.bulk_group [%base_out+64], [tile], 64;")
    )
    peek = "cp.async.bulk.wait_group 1;" + "".join(
        f"ld.global.u32 %v, [%base_out+{64 * i}]; st.global.u32 [%base_out+{128 + 4 * i}], %v;"
        for i in range(2)
    )
    out = run_all([_storing("groups", code, "", peek)])["groups"].ravel()
    assert (out[:32] == 7).all()
    np.testing.assert_array_equal(out[32:34], [7, 0xFFFFFFFF])


# ---- reductions --------------------------------------------------------------------------------------------

NUMBERS = {
    "u32": np.uint32,
    "s32": np.int32,
    "b32": np.uint32,
    "u64": np.uint64,
    "s64": np.int64,
    "b64": np.uint64,
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
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
IN_SHARED = {
    "add": ("u32", "s32", "u64"),
    "min": ("u32", "s32"),
    "max": ("u32", "s32"),
    "inc": ("u32",),
    "dec": ("u32",),
    "and": ("b32",),
    "or": ("b32",),
    "xor": ("b32",),
}


def _numbers(type: str) -> np.ndarray:
    """128 bytes of numbers, the same as the words of the tile: 7 in every word, read as the type."""
    dtype = np.dtype(NUMBERS[type])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        shift = RANDOM.integers(0, 8 * dtype.itemsize, 128 // dtype.itemsize).astype(dtype)
        return RANDOM.integers(info.min, info.max, 128 // dtype.itemsize, dtype, endpoint=True) >> shift
    return (RANDOM.standard_normal(128 // dtype.itemsize) * 100).astype(dtype)


def reduced(operation: str, old: np.ndarray, value: np.ndarray) -> np.ndarray:
    if operation in ("inc", "dec"):
        up = np.where(old >= value, 0, old + np.uint32(1))
        down = np.where((old == 0) | (old > value), value, old - np.uint32(1))
        return (up if operation == "inc" else down).astype(old.dtype)
    if old.dtype.kind not in "iu":
        old, value, back = old.astype(np.float64), value.astype(np.float64), old.dtype
        return {"add": old + value, "min": np.minimum(old, value), "max": np.maximum(old, value)}[
            operation
        ].astype(back)
    functions = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    return functions[operation](old, value)


def _through_shared(name: str, reduce: str, old: np.ndarray, value: np.ndarray, after: str) -> Snippet:
    """Loads `value` into the tile and `old` to where `reduce` expects it; `after` stores the result."""
    lane = (
        "ld.global.u32 %v, [%rd_value]; mov.u32 %t, tile; mad.lo.u32 %t, %tid32, 4, %t; "
        "st.shared.u32 [%t], %v; ld.global.u32 %v, [%rd_old];"
    )
    body = (
        f"{BEGIN} {lane} st.global.u32 [%rd_out], %v; st.shared.u32 [%t+1024], %v; "
        f"fence.proxy.async; bar.sync 0; {reduce} {after}"
    )
    return Snippet(
        name,
        body,
        inputs={"old": old.view(np.uint32), "value": value.view(np.uint32)},
        output=((32,), np.uint32),
    )


def test_reductions() -> None:
    cases, expected = [], {}
    for operation, type in ((operation, type) for operation, types in REDUCTIONS.items() for type in types):
        old, value = _numbers(type), _numbers(type)
        noftz = ".noftz" if operation == "add" and type in ("f16", "bf16") else ""
        send = (
            f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}{noftz}.{type} "
            f"[%base_out], [tile], 128;"
        )
        to_global = (
            f"@%one bra send; bra sent; send: {send} cp.async.bulk.commit_group; "
            f"cp.async.bulk.wait_group 0; sent:"
        )
        cases.append(_through_shared(f"global_{operation}_{type}", to_global, old, value, ""))
        expected[cases[-1].name] = reduced(operation, old, value)
        if type in IN_SHARED.get(operation, ()):
            to_shared = (
                "@%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], 128; @%one "
                "cp.reduce.async.bulk.shared::cluster.shared::cta"
                f".mbarrier::complete_tx::bytes.{operation}.{type} [tile+1024], [tile], 128, [bar]; {WAIT}"
            )
            back = "ld.shared.u32 %v, [%t+1024]; st.global.u32 [%rd_out], %v;"
            cases.append(_through_shared(f"shared_{operation}_{type}", to_shared, old, value, back))
            expected[cases[-1].name] = reduced(operation, old, value)
    results = run_all(cases, mode="check")
    for name, wanted in expected.items():
        np.testing.assert_array_equal(results[name], wanted.view(np.uint32), err_msg=name)


# ---- clusters ----------------------------------------------------------------------------------------------

CLUSTER = ".reqnctapercluster 4, 1, 1"
RANK = ".reg .b32 %rank, %remote, %far; mov.u32 %rank, %cluster_ctarank;"
MEET = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"


def _in_cluster(name: str, code: str, words: int = 32) -> Snippet:
    """Four blocks of 32 threads; every block stores its tile's first words in its own rows."""
    out = "ld.shared.u32 %v, [tile]; mov.u32 %t, tile; mad.lo.u32 %t, %tid32, 4, %t; "
    local = ".reg .b32 %lane; mov.u32 %lane, %tid.x; setp.eq.u32 %one, %lane, 0;"
    begin = f"{SHARED} {RANK} {local} @%one mbarrier.init.shared.b64 [bar], 1; {MEET}"
    out = (
        "mov.u32 %t, tile; mad.lo.u32 %t, %lane, 4, %t; ld.shared.u32 %v, [%t]; st.global.u32 [%rd_out], %v;"
    )
    return Snippet(
        name,
        f"{begin} {code} {WAIT} {out} {MEET}",
        inputs={"a": np.arange(128, dtype=np.uint32)},
        output=((128,), np.uint32),
        block=32,
        limits=CLUSTER,
    )


EXPECT = "@%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], 128;"
MULTICAST = f"""
    {EXPECT} {MEET}                                    // every block expects before anybody sends
    setp.eq.and.u32 %p, %rank, 1, %one; .reg .b16 %mask; mov.b16 %mask, 13;
    @%p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
        [tile], [%base_a], 128, [bar], %mask;
    setp.eq.and.u32 %p, %rank, 1, %one;
    @%p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [%base_a+256], 128, [bar];
"""
NEIGHBOUR = f"""
    mad.lo.u32 %v, %rank, 100, %lane;
    mov.u32 %t, tile; mad.lo.u32 %t, %lane, 4, %t; st.shared.u32 [%t+1024], %v;
    fence.proxy.async; {EXPECT} {MEET}
    add.u32 %n, %rank, 1; and.b32 %n, %n, 3; mov.u32 %t, tile; mapa.shared::cluster.u32 %remote, %t, %n;
    mov.u32 %t, bar; mapa.shared::cluster.u32 %far, %t, %n;
    @%one cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes
        [%remote], [tile+1024], 128, [%far];
"""
STORE_ASYNC = f"""
    {EXPECT} {MEET}
    add.u32 %n, %rank, 3; and.b32 %n, %n, 3;
    mov.u32 %t, tile; mad.lo.u32 %t, %lane, 4, %t; mapa.shared::cluster.u32 %remote, %t, %n;
    mov.u32 %t, bar; mapa.shared::cluster.u32 %far, %t, %n; mad.lo.u32 %v, %rank, 100, %lane;
    st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%remote], %v, [%far];
"""
VECTORS = f"""
    {EXPECT} {MEET} .reg .b32 %w<4>;
    mov.u32 %t, tile; mad.lo.u32 %t, %lane, 16, %t; mapa.shared::cluster.u32 %remote, %t, %rank;
    mov.u32 %t, bar; mapa.shared::cluster.u32 %far, %t, %rank; mad.lo.u32 %w0, %rank, 100, %lane;
    add.u32 %w1, %w0, 10; add.u32 %w2, %w0, 20; add.u32 %w3, %w0, 30; setp.lt.u32 %p, %lane, 8;
    @%p st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32
        [%remote], {{%w0, %w1, %w2, %w3}}, [%far];
"""
REDUCE_ASYNC = f"""
    mov.u32 %t, tile; mad.lo.u32 %t, %lane, 4, %t; st.shared.u32 [%t], %rank;
    @%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], 512; {MEET}    // all four add to every block
    mov.u32 %n, 0;
    sending: mapa.shared::cluster.u32 %remote, %t, %n; mov.u32 %v, bar; mapa.shared::cluster.u32 %far, %v, %n;
    mad.lo.u32 %v, %rank, 10, %lane;
    red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%remote], %v, [%far];
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


# ---- misuse ------------------------------------------------------------------------------------------------

LOAD = (
    "@%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [%base_a], 256, [bar];"
)
EXPECT_256 = "@%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], 256;"
READ = "ld.shared.u32 %v, [tile]; st.global.u32 [%rd_out], %v;"
WRONG = {
    "read before the wait": (f"{EXPECT_256} {LOAD} bar.sync 0; {READ} {WAIT}", "async"),
    "nobody waits": (f"{EXPECT_256} {LOAD}", "async"),
    "generic write not fenced": (
        f"{_fill(64, 7).replace('fence.proxy.async;', '')} @%one bra send; bra sent; send: "
        f"{STORE.replace('256', '128')} cp.async.bulk.commit_group;"
        "cp.async.bulk.wait_group 0; sent:",
        "async",
    ),
    "tile changed while it is read": (
        f"{_fill(64, 7)} @%one bra send; bra sent; send: {STORE.replace('256', '128')} "
        f"cp.async.bulk.commit_group;"
        "st.shared.u32 [tile], 3; cp.async.bulk.wait_group 0; sent:",
        "async",
    ),
    "store not waited for": (
        f"{_fill(64, 7)} @%one bra send; bra sent; send: {STORE.replace('256', '128')} "
        f"cp.async.bulk.commit_group; sent:",
        "async",
    ),
    "store never committed": (
        f"{_fill(64, 7)} @%one bra send; bra sent; send: {STORE.replace('256', '128')} sent:",
        "async",
    ),
    "past the end of the source": (
        f"{EXPECT_256} {LOAD.replace('%base_a]', '%base_a+8064]')} {WAIT}",
        "out_of_bounds",
    ),
    "fewer bytes than expected": (f"{EXPECT_256} {LOAD.replace('256', '128')} {WAIT}", "deadlock"),
    "16-byte alignment": (f"{EXPECT_256} {LOAD.replace('%base_a]', '%base_a+8]')} {WAIT}", "misaligned"),
    "size": (f"{EXPECT_256} {LOAD.replace('256', '40')} {WAIT}", "misaligned"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_misuse_is_reported(wrong: str) -> None:
    code, kind = WRONG[wrong]
    case = Snippet(
        "wrong", f"{BEGIN} {code}", inputs={"a": BYTES[None].repeat(32, 0)}, output=((32,), np.uint32)
    )
    module, _ = run_module([case], mode="check")
    assert [report.kind for report in module.reports][:1] == [kind], module.reports


REFUSED = {
    "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r], [%rd_out, "
    "{%r, %r, %r, %r}], [%r], {%h, %h};": "'.im2col'",
    "cp.async.bulk.tensor.2d.shared::cta.global.tile::gather4.mbarrier::complete_tx::bytes [%r], "
    "[%rd_out, {%r, %r, %r, %r, %r}], [%r];": "'.tile::gather4'",
    "cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes.cta_group::1 [%r], "
    "[%rd_out, {%r, %r}], [%r];": "'.cta_group::1'",
    "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd_out, {%r, %r, %r}], "
    "[%r];": "2 coordinates",
    "cp.async.bulk.global.shared::cta.bulk_group.cp_mask [%rd_out], [%r], 16, %h;": "sm_100",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.s64 [%rd_out], [%r], 16;": "no such type",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f16 [%rd_out], [%r], 16;": "no such type",
    "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.f32 [%r], [%r], "
    "16, [%r];": "no such type",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.ignore_oob [%r], [%rd_out], 16, "
    "[%r];": "'.ignore_oob'",
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
