"""The attention backward: both paths against the formulas in float64, and what the kernels cost, counted."""

from collections.abc import Callable
from ctypes import byref, c_int32
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.prototypes.attention import Attention
from cuda.nn.prototypes.attention_backward import AttentionGradients
from nn.backends.device.attention_backward import attention_backward, launch
from tests.conformance import naive
from tests.conformance.cases import DTYPES
from tests.conformance.compare import compare

Array = np.ndarray
EVERY_TYPE = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


@dataclass(frozen=True)
class Case:
    """Sizes and options of a call; mask: the shape of a random keep-mask."""

    queries: int = 5
    keys: int = 5
    width: int = 16
    value_width: int = 0              # 0: as wide as the keys
    batch: int = 1
    heads: int = 2
    groups: int = 1
    causal: bool = True
    window: int = 0
    softcap: float = 0.0
    mask: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()     # of the keys, read on the device
    hide: bool = False                # some queries see nothing
    scale: float = 0.0                # 0: width^-1/2


@dataclass
class Problem:
    """do, q, k, v, o, lse on the host, options of the call, and dq, dk, dv: exact, and plain in the type."""

    inputs: list[Array]
    options: dict[str, Any]
    right: list[Array]
    plain: list[Array]
    dtype: str = field(default="")


def formula(do: Array, q: Array, k: Array, v: Array, see: Array, scale: float,
            cap: float = 0.0) -> list[Array]:
    """(o, lse, dq, dk, dv) in the arguments' type, every step written out; see[B,H,T,S]"""
    c, wide, repeat = q.dtype.type, naive.accumulator(q.dtype), q.shape[1] // k.shape[1]
    o, lse = np.zeros(do.shape, q.dtype), np.zeros(q.shape[:3], q.dtype)
    dq, dk, dv = np.zeros(q.shape, q.dtype), np.zeros(k.shape, wide), np.zeros(v.shape, wide)
    for b, h in np.ndindex(*q.shape[:2]):
        g = h // repeat
        s = naive.product(q[b, h], k[b, g].T) * c(scale)
        slope = np.ones_like(s)
        if cap:
            t = np.tanh(s / c(cap))
            s, slope = c(cap) * t, c(1) - t * t
        p, lse[b, h] = probabilities(np.where(see[b, h], s, c(-np.inf)))
        o[b, h] = naive.product(p, v[b, g])
        dp = naive.product(do[b, h], v[b, g].T)
        ds = p * (dp - naive.total(p * dp)) * slope * c(scale)
        dq[b, h] = naive.product(ds, k[b, g])
        dk[b, g] += naive.product(ds.T, q[b, h])
        dv[b, g] += naive.product(p.T, do[b, h])
    return [o, lse, dq, dk.astype(k.dtype), dv.astype(v.dtype)]


def probabilities(s: Array) -> tuple[Array, Array]:
    largest = np.max(s, axis=-1, keepdims=True, initial=-np.inf).astype(s.dtype)
    largest = np.where(np.isneginf(largest), np.zeros_like(largest), largest)
    e = np.exp(s - largest)
    sums = naive.total(e)
    safe = np.where(sums == 0, np.ones_like(sums), sums)
    return e / safe, np.where(sums == 0, s.dtype.type(-np.inf), largest + np.log(safe))[:, 0]


def seen(case: Case, mask: Array | None) -> Array:
    """[B,H,T,S]"""
    see = np.zeros((case.batch, case.heads, case.queries, case.keys), bool)
    for b in range(case.batch):
        keys = case.lengths[b] if case.lengths else case.keys
        see[b, ..., :keys] = naive.reach(case.queries, keys, case.causal, case.window)
    return see if mask is None else see & np.broadcast_to(mask, see.shape)


def problem(case: Case, dtype: str, seed: int = 0) -> Problem:
    random, exact = np.random.default_rng(seed), np.float64

    def draw(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32).astype(DTYPES[dtype])

    value_width = case.value_width or case.width
    q = draw(case.batch, case.heads, case.queries, case.width)
    k = draw(case.batch, case.groups, case.keys, case.width)
    v = draw(case.batch, case.groups, case.keys, value_width)
    do = draw(case.batch, case.heads, case.queries, value_width)
    mask = random.random(case.mask) < 0.7 if case.mask else None
    if case.hide:
        assert mask is not None
        mask[..., ::3, :] = False
    see, scale = seen(case, mask), case.scale or case.width**-0.5
    with np.errstate(all="ignore"):
        wide = [x.astype(exact) for x in (do, q, k, v)]
        o, lse, *right = formula(wide[0], wide[1], wide[2], wide[3], see, scale, case.softcap)
        plain = formula(do, q, k, v, see, scale, case.softcap)[2:]
    inputs = [do, q, k, v, o.astype(q.dtype), lse.astype(np.float32)]
    options: dict[str, Any] = {"scale": scale, "causal": case.causal, "window": case.window, "mask": mask,
                               "softcap": case.softcap}
    if case.lengths:                                     # what lies beyond is not looked at
        for b, length in enumerate(case.lengths):
            inputs[2][b, :, length:], inputs[3][b, :, length:] = np.nan, np.nan
        options["key_lengths"] = np.array(case.lengths, np.int32)
    return Problem(inputs, options, right, plain, dtype)


def run(device: EmulatedDevice, p: Problem,
        view: Callable[[DeviceArray], DeviceArray] = lambda x: x) -> list[Array]:
    """(dq, dk, dv); `view` gives the arrays and the gradients other strides."""
    on_device = [device.asarray(x) for x in p.inputs]
    inputs = [view(x) for x in on_device[:5]]
    gradients = [view(device.asarray(np.full(x.shape, np.nan, x.dtype))) for x in p.inputs[1:4]]
    options: Any = {name: device.asarray(x) if isinstance(x, np.ndarray) else x
                    for name, x in p.options.items()}
    arrays: Any = [*inputs, on_device[5], *gradients]
    launch(*arrays, **options)
    return [host(x) for x in gradients]


def host(x: DeviceArray) -> Array:
    """x of any strides without the generic kernels"""
    last = sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)) + 1 if x.size else 0
    memory = x.view((last,), (1,)).numpy()
    return np.lib.stride_tricks.as_strided(memory, x.shape, [s * x.dtype.itemsize for s in x.strides])


def judge(p: Problem, results: list[Array]) -> None:
    inputs = [np.abs(x[np.isfinite(x)].astype(np.float64)).max(initial=0.0) for x in p.inputs[:4]]
    terms = 8.0 * min(1.0, *inputs)                      # dP and its row mean are sums that may cancel
    for name, result, right, plain in zip(("dq", "dk", "dv"), results, p.right, p.plain, strict=True):
        compare(name, result, right, plain, p.dtype, terms)


def check(device: EmulatedDevice, case: Case, dtype: str) -> None:
    p = problem(case, dtype)
    judge(p, run(device, p))


# ---- values ----

def test_the_formula_itself() -> None:
    """As in naive; and with a softcap by finite differences."""
    for case in (Case(window=2, queries=4, keys=6), Case(mask=(2, 5, 5), hide=True)):
        p = problem(case, "float32")
        options = {name: p.options[name] for name in ("scale", "causal", "window", "mask")}
        wide: Any = [x.astype(float) for x in p.inputs]
        for right, known in zip(p.right, naive.attention_backward(*wide, **options), strict=True):
            np.testing.assert_allclose(right, known, rtol=0, atol=1e-12)
    case = Case(queries=3, keys=4, width=2, softcap=0.7)
    do, *qkv = (x.astype(float) for x in problem(case, "float32").inputs[:4])
    q, k, v = qkv
    see = seen(case, None)
    gradients = formula(do, q, k, v, see, 0.5, 0.7)[2:]
    for x, gradient in zip(qkv, gradients, strict=True):
        for at in np.ndindex(*x.shape):
            losses = []
            for step in (1e-6, -2e-6):
                x[at] += step
                losses.append(np.sum(do * formula(do, q, k, v, see, 0.5, 0.7)[0]))
            x[at] += 1e-6
            assert abs((losses[0] - losses[1]) / 2e-6 - gradient[at]) < 1e-7


@EVERY_TYPE
@pytest.mark.parametrize(("width", "value_width"), [
    (16, 16), (32, 16), (40, 40), (64, 64), (80, 80), (96, 96), (64, 128), (128, 128), (256, 256), (72, 200),
    (1, 1), (5, 33)])
def test_widths(device: EmulatedDevice, dtype: str, width: int, value_width: int) -> None:
    check(device, Case(37, 45, width, value_width), dtype)


@pytest.mark.parametrize(("width", "dtype"), [
    (64, "float16"), (64, "bfloat16"), (128, "float16"), (16, "float32")])
@pytest.mark.parametrize(("queries", "keys"), [
    (1, 1), (1, 130), (15, 16), (31, 33), (63, 64), (64, 65), (65, 63), (129, 128), (130, 1), (128, 129)])
def test_edges_of_tiles(device: EmulatedDevice, width: int, dtype: str, queries: int, keys: int) -> None:
    """More queries than keys: the first ones see nothing."""
    check(device, Case(queries, keys, width), dtype)


OPTIONS = {
    "both-ways": Case(40, 70, causal=False), "multi-head": Case(20, 33, heads=3, groups=3, batch=2),
    "grouped": Case(20, 33, heads=6, groups=2, batch=2), "window-1": Case(70, 80, window=1),
    "window-20": Case(70, 100, window=20), "window-64": Case(90, 140, window=64),
    "window-100000000000": Case(20, 20, window=10**11), "two-sided": Case(70, 70, window=17, causal=False),
    "two-sided-continued": Case(30, 75, window=40, causal=False), "softcap": Case(40, 50, softcap=1.5),
    "softcap-window": Case(40, 50, softcap=30.0, window=7), "mask": Case(40, 70, mask=(2, 40, 70)),
    "padding": Case(20, 33, batch=2, mask=(2, 1, 1, 33)), "one-row": Case(20, 33, mask=(33,), causal=False),
    "hidden-rows": Case(40, 50, mask=(2, 40, 50), hide=True),
    "lengths": Case(9, 80, batch=3, lengths=(5, 0, 80)),
    "lengths-window": Case(30, 80, batch=2, lengths=(70, 33), window=9),
    "negative-scale": Case(20, 20, scale=-0.3),
    "no-scale": Case(20, 20, scale=1e-30), "softcap-no-scale": Case(20, 20, softcap=4.0, scale=1e-45),
    "many-heads": Case(3, 5, heads=33, batch=2),
}


@EVERY_TYPE
@pytest.mark.parametrize("name", OPTIONS)
def test_options(device: EmulatedDevice, name: str, dtype: str) -> None:
    check(device, OPTIONS[name], dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("width", [64, 128])
def test_few_keys_and_many_heads_share_the_queries(device: EmulatedDevice, dtype: str, width: int) -> None:
    """Then blocks leave partial sums, which one more kernel adds up in order."""
    device.configure(count=1)
    check(device, Case(70, 75, width, heads=9, window=60, softcap=20.0), dtype)
    ran = {name for kernel in device.counters() for name in ("_sum", "_mma", "_float") if name in kernel}
    assert ran == {"_mma", "_sum"}


@EVERY_TYPE
def test_packed_sequences(device: EmulatedDevice, dtype: str) -> None:
    """Empty ones among them; rows that belong to none are left alone."""
    queries, keys, heads = (3, 0, 70, 1, 20), (5, 4, 70, 0, 33), 4
    parts = [problem(Case(t, s, 24, 16, heads=heads, groups=2, window=50), dtype, i)
             for i, (t, s) in enumerate(zip(queries, keys, strict=True))]
    packed = [np.concatenate([*(p.inputs[i] for p in parts), parts[0].inputs[i][:, :, :2]], axis=2)
              for i in range(6)]
    starts = {f"cu_{name}": np.cumsum([0, *lengths]).astype(np.int32)
              for name, lengths in (("queries", queries), ("keys", keys))}
    sizes = {"batch": len(queries), "queries": max(queries), "keys": max(keys)}
    whole = Problem(packed, parts[0].options | starts | sizes, [], [], dtype)
    found = run(device, whole)
    for i, p in enumerate(parts):
        at = [slice(*starts[name][i : i + 2]) for name in ("cu_queries", "cu_keys", "cu_keys")]
        judge(p, [x[:, :, rows] for x, rows in zip(found, at, strict=True)])
    for x, n in zip(found, (sum(queries), sum(keys), sum(keys)), strict=True):
        assert np.isnan(x[:, :, n:].astype(float)).all()


@EVERY_TYPE
@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 3), (2, 0, 3), (2, 3, 0), (1, 0, 0)])
def test_nothing(device: EmulatedDevice, dtype: str, batch: int, queries: int, keys: int) -> None:
    for result in run(device, problem(Case(queries, keys, batch=batch), dtype)):
        assert not result.any()


def swapped(x: DeviceArray) -> DeviceArray:
    """The same memory as [H,B,T,D], rows twice as far apart"""
    b, h, t, d = x.shape
    wide = x.device.asarray(np.zeros((t, 2, h, b, d), x.dtype))
    view = wide.view((b, h, t, d), (d, b * d, 2 * h * b * d, 1))
    for i, j, n in np.ndindex(b, h, t):
        source, to = ((i * h + j) * t + n) * d, i * d + j * b * d + n * 2 * h * b * d
        row = (x.pointer + source * x.itemsize, d * x.itemsize)
        x.device.call("memory_copy", view.pointer + to * x.itemsize, *row)
    return view


@EVERY_TYPE
def test_strides(device: EmulatedDevice, dtype: str) -> None:
    p = problem(Case(9, 12, 32, batch=2, heads=4, groups=2), dtype)
    judge(p, run(device, p, swapped))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_unaligned_rows_take_the_other_kernels(device: EmulatedDevice, dtype: str) -> None:
    def moved(x: DeviceArray) -> DeviceArray:
        memory = device.asarray(np.zeros(x.size + 1, x.dtype))
        device.call("memory_copy", memory.pointer + x.itemsize, x, x.nbytes)
        return memory.view(x.shape, x.strides, 1)

    p = problem(Case(20, 33, 32), dtype)
    device.configure(count=1)
    judge(p, run(device, p, moved))
    assert not any("mma" in kernel for kernel in device.counters())


@pytest.mark.parametrize(("arch", "width", "dtype"), [
    ("sm_75", 64, "float16"), ("sm_75", 128, "float16"), ("sm_75", 256, "float16"), ("sm_75", 64, "bfloat16"),
    ("sm_75", 256, "float32"), ("sm_86", 128, "float16"), ("sm_86", 256, "float16"),
    ("sm_90", 64, "float16")])
def test_other_architectures(device: EmulatedDevice, dtype: str, width: int) -> None:
    """Less shared memory: fewer rows to a block, on sm_75 one stage."""
    device.configure(count=1)
    check(device, Case(70, 75, width), dtype)
    tensor = sum(counts.mix.get("tensor", 0) for counts in device.counters().values())
    assert (tensor > 0) == (dtype == "float16" or (dtype == "bfloat16" and device.arch != "sm_75"))


@EVERY_TYPE
def test_as_a_backend(device: EmulatedDevice, dtype: str) -> None:
    p = problem(Case(7, 9, heads=4, groups=2, mask=(9,)), dtype)
    options = {name: p.options[name] for name in ("scale", "causal", "window", "mask")}
    found = attention_backward(*map(device.asarray, p.inputs), **options)
    judge(p, [x.numpy() for x in found])


# ---- properties ----

@pytest.mark.parametrize(("case", "dtype"), [
    (Case(40, 70, 64, window=30), "float16"), (Case(40, 45, 128, softcap=9.0), "bfloat16"),
    (Case(20, 70, 24), "float32"), (Case(70, 20, 32, heads=16), "bfloat16")])
def test_same_bits_under_any_schedule(device: EmulatedDevice, same_bits: Any, case: Case, dtype: str) -> None:
    p = problem(case, dtype)
    same_bits(lambda: run(device, p))


@EVERY_TYPE
def test_same_bits_in_any_company(device: EmulatedDevice, dtype: str) -> None:
    both = problem(Case(40, 70, 32, batch=2, heads=2, groups=2), dtype)
    alone = replace(both, inputs=[np.ascontiguousarray(x[1:]) for x in both.inputs])
    for one, two in zip(run(device, alone), run(device, both), strict=True):
        assert np.array_equal(one[0], two[1])


@EVERY_TYPE
@pytest.mark.parametrize("which", [0, 1, 2, 3, 5])
def test_not_a_number(device: EmulatedDevice, dtype: str, which: int) -> None:
    """Of the last query or key, in each argument: it comes out where the formulas say, and in the row itself
    at least; keys it cannot be seen from in the tiles before stay clean."""
    p = problem(Case(300, 300, 32, window=20), dtype)
    p.inputs[which] = p.inputs[which].copy()
    p.inputs[which][0, 0, -1] = np.nan
    dq, dk, dv = (np.isnan(x[0, 0].astype(float)) for x in run(device, p))
    assert dq[-1].all()
    assert dk[-1].all()
    assert dv[-1].all() == (which in (0, 1, 2, 5))
    assert not np.concatenate([dq[:100], dk[:100], dv[:100]]).any()


def test_an_infinite_key_beyond_the_window_is_not_seen(device: EmulatedDevice) -> None:
    p = problem(Case(20, 20, 16, window=4), "float32")
    for i in (2, 3):
        p.inputs[i][0, 0, 0] = np.inf
    _, dk, dv = run(device, p)
    assert np.isfinite(dk[0, 0, 4:]).all()
    assert np.isfinite(dv[0, 0, 1:]).all()


# ---- bad calls ----

def bare(device: EmulatedDevice) -> tuple[Attention, AttentionGradients, DeviceArray]:
    x = device.asarray(np.zeros((1, 1, 8, 16), np.float16))
    lse = device.asarray(np.zeros((1, 1, 8), np.float32))
    strides = x.strides[:3]
    attention = Attention(o=x.pointer, lse=lse.pointer, q=x.pointer, k=x.pointer, v=x.pointer, batch=1,
                          heads=1, groups=1, queries=8, keys=8, width=16, value_width=16, lse_strides=(8, 8),
                          o_strides=strides, q_strides=strides, k_strides=strides, v_strides=strides,
                          scale=1.0, causal=1, dtype=1)
    gradients = AttentionGradients(d_o=x.pointer, dq=x.pointer, dk=x.pointer, dv=x.pointer,
                                   d_o_strides=strides, dq_strides=strides, dk_strides=strides,
                                   dv_strides=strides)
    return attention, gradients, x


@pytest.mark.parametrize(("name", "value"), [
    ("batch", -1), ("heads", -1), ("groups", 0), ("heads", 3), ("queries", 2**29 + 1), ("keys", -1),
    ("width", 0), ("width", 257), ("value_width", 300), ("window", -1), ("softcap", -1.0),
    ("softcap", float("inf")),
    ("scale", float("nan")), ("dtype", 8), ("q", None), ("lse", None), ("k", None), ("cu_queries", 64),
    ("d_o", None), ("dq", None), ("dk", None), ("dv", 4099)])
def test_bad_arguments(device: EmulatedDevice, name: str, value: Any) -> None:
    attention, gradients, _ = bare(device)
    if name == "heads" and value == 3:
        attention.groups = 2
    setattr(attention if hasattr(attention, name) else gradients, name, value)
    with pytest.raises(DeviceArgumentError, match=name):
        device.call("attention_backward", byref(attention), byref(gradients), device.workspace(256), 256)


def test_bad_workspace(device: EmulatedDevice) -> None:
    attention, gradients, _ = bare(device)
    size = device.library.nn_attention_backward_workspace_size(1, 1, 1, 8, 8, 16, 16)
    assert size == 256
    odd = device.workspace(512).pointer + 8
    for workspace, given in ((device.workspace(64), 64), (None, 256), (odd, 256)):
        with pytest.raises(DeviceArgumentError, match="workspace"):
            device.call("attention_backward", byref(attention), byref(gradients), workspace, given)
    attention.size = 8
    with pytest.raises(DeviceArgumentError, match="size"):
        device.call("attention_backward", byref(attention), byref(gradients), device.workspace(256), 256)


def test_workspace_grows_with_the_sizes(device: EmulatedDevice) -> None:
    sizes = [1, 16, 2, 70, 75, 64, 64]
    of = device.library.nn_attention_backward_workspace_size
    for i, n in enumerate(sizes):
        if i != 2:                                       # more groups: fewer heads share keys
            steps = (2 if i == 1 else 0, n, n + 2, 7 * n, 1000 * n)
            larger = [of(*sizes[:i], m, *sizes[i + 1 :]) for m in steps]
            assert larger == sorted(larger)


def test_path(device: EmulatedDevice) -> None:
    attention, gradients, _ = bare(device)
    path = c_int32(-1)

    def taken(**changes: Any) -> int:
        for name, value in changes.items():
            setattr(attention if hasattr(attention, name) else gradients, name, value)
        device.library.nn_attention_backward_path(byref(attention), byref(gradients), byref(path))
        return path.value

    assert taken() == taken(dtype=2) == 1
    assert taken(dtype=0) == taken(dtype=1, width=9) == taken(width=16, dq=gradients.dq + 2) == 0
    assert taken(dq=gradients.dk, q_strides=(132, 132, 12)) == 0


# ---- counted ----

@pytest.mark.parametrize(("width", "dtype"), [
    (32, "bfloat16"), (64, "float16"), (96, "float16"), (128, "bfloat16"), (256, "float16"), (64, "float32")])
def test_costs(device: EmulatedDevice, width: int, dtype: str) -> None:
    """No bank conflicts, no sectors but the ideal ones, nothing in local memory, no more tensor operations
    than 4 products for dK, dV and 3 for dQ (6, where 256 columns take two blocks)."""
    size, heads = 128, 2
    device.configure(count=1)
    check(device, Case(size, size, width, heads=heads, causal=False), dtype)
    product = 2 * size * size * width * heads
    for kernel, counts in device.counters().items():
        assert counts.bank_wavefronts == counts.ideal_wavefronts, kernel
        assert counts.sectors == counts.ideal_sectors, kernel
        assert not any("local" in kind for kind in counts.mix), kernel
        if "mma" in kernel:
            products = 3 if "ELb0E" in kernel else 6 if width == 256 else 4
            assert sum(n for kind, n in counts.flops.items() if "tensor" in kind) == products * product


@pytest.mark.parametrize("options", [{"causal": True}, {"window": 16}])
def test_tiles_nobody_sees_are_skipped(device: EmulatedDevice, options: dict[str, Any]) -> None:
    device.configure(count=1)
    check(device, Case(128, 128, 64, **options), "float16")
    tensor = sum(n for c in device.counters().values() for kind, n in c.flops.items() if "tensor" in kind)
    assert tensor < (0.65 if "causal" in options else 0.4) * 7 * 2 * 128 * 128 * 64 * 2


def test_rows_are_read_once(device: EmulatedDevice) -> None:
    device.configure(count=1)
    check(device, Case(64, 5, 64, heads=4), "bfloat16")
    counts = next(counts for kernel, counts in device.counters().items() if "backward_rows" in kernel)
    compulsory = 4 * 64 * (2 * 64 * 2 + 4 + 8)           # o, dO; lse; what is written
    assert counts.bytes_read + counts.bytes_written <= 1.05 * compulsory
