"""Attention forward: tensor cores of sm_80 and sm_75, float arithmetic; every option; against float64."""

from ctypes import byref, c_int32
from typing import Any

import numpy as np
import pytest

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from nn.backends.device.attention import attention, attention_call, attention_forward, attention_varlen
from tests.device.accuracy import at_odd_element
from tests.device.attention_cases import (
    DTYPES,
    Triple,
    accurate,
    draw,
    formula,
    heads_inside,
    up,
    visible,
)

ALL = ("float32", "float16", "bfloat16")
FLOAT, SM75, SM80 = 0, 1, 2


def inputs(dtype: str, batch: int = 1, heads: int = 2, groups: int = 1, queries: int = 5, keys: int = 5,
           width: int = 16, value_width: int | None = None, scale: float = 1.0) -> Triple:
    sizes = [(batch, heads, queries, width), (batch, groups, keys, width),
             (batch, groups, keys, value_width or width)]
    q, k, v = (draw(dtype, *shape, seed=i, scale=scale) for i, shape in enumerate(sizes))
    return q, k, v


def forward(device: EmulatedDevice, q: Any, k: Any, v: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    o, lse = attention_forward(*up(device, (q, k, v)), **options)
    return o.numpy(), lse.numpy()


def path(q: DeviceArray, k: DeviceArray, v: DeviceArray, scale: float = 1.0) -> int:
    o = q.device.empty((*q.shape[:3], v.shape[-1]), q.dtype)
    lse = q.device.empty(q.shape[:3], np.float32)
    call, _ = attention_call(q, k, v, o, lse, scale=scale)
    found = c_int32(-1)
    q.device.library.nn_attention_forward_path(byref(call), byref(found))
    return found.value


def check(device: EmulatedDevice, dtype: str, arrays: Triple, *, causal: bool = True,
          window: int = 0, mask: np.ndarray | None = None, softcap: float = 0.0,
          expected: int | None = None) -> None:
    q, k, v = arrays
    scale = q.shape[-1] ** -0.5
    if expected is not None:
        assert path(*up(device, arrays)) == expected
    o, lse = forward(device, q, k, v, scale=scale, causal=causal, window=window, mask=mask, softcap=softcap)
    accurate(dtype, o, lse, q, k, v, visible(q.shape[2], k.shape[2], causal, window, mask), scale=scale,
             softcap=softcap)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("width", [8, 16, 32, 40, 64, 80, 96, 128, 192, 256])
def test_widths(device: EmulatedDevice, dtype: str, width: int) -> None:
    expected = FLOAT if dtype == "float32" else SM80
    check(device, dtype, inputs(dtype, queries=17, keys=33, width=width), expected=expected)
    check(device, dtype, inputs(dtype, heads=1, queries=40, keys=67, width=width,
                                value_width=max(8, width // 16 * 8)),
          causal=False, expected=expected)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("queries", "keys"), [
    (1, 1), (1, 64), (1, 65), (2, 1), (15, 16), (16, 15), (31, 31), (32, 32), (33, 33), (63, 64),
    (64, 63), (65, 65), (5, 130), (127, 129), (130, 3)])
def test_lengths(device: EmulatedDevice, dtype: str, queries: int, keys: int) -> None:
    check(device, dtype, inputs(dtype, queries=queries, keys=keys, width=16))
    if queries < 64:
        check(device, dtype, inputs(dtype, heads=1, queries=queries, keys=keys, width=64), causal=False)


OPTIONS: list[dict[str, Any]] = [
    {"window": 1}, {"window": 3}, {"window": 40}, {"window": 1000}, {"causal": False, "window": 5},
    {"causal": False, "window": 33}, {"softcap": 0.5}, {"softcap": 30.0}, {"softcap": 3.0, "window": 20}]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(device: EmulatedDevice, dtype: str, options: dict[str, Any]) -> None:
    check(device, dtype, inputs(dtype, queries=50, keys=75, width=32, scale=2.0), **options)
    check(device, dtype, inputs(dtype, heads=1, queries=140, keys=140, width=80), **options)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", [(2, 1, 1, 70), (1, 4, 20, 70), (2, 4, 20, 70), (1, 1, 20, 1),
                                   (2, 1, 20, 70)])
def test_masks(device: EmulatedDevice, dtype: str, shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(5).random(shape) < 0.6
    for causal in (True, False):
        check(device, dtype, inputs(dtype, batch=2, heads=4, groups=2, queries=20, keys=70), mask=mask,
              causal=causal)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1), (6, 2), (7, 1)])
def test_groups(device: EmulatedDevice, dtype: str, heads: int, groups: int) -> None:
    check(device, dtype, inputs(dtype, batch=2, heads=heads, groups=groups, queries=9, keys=21))
    check(device, dtype, inputs(dtype, heads=heads, groups=groups, queries=70, keys=70, width=40), window=30)


@pytest.mark.parametrize("dtype", ALL)
def test_rows_that_see_nothing(device: EmulatedDevice, dtype: str) -> None:
    q, k, v = inputs(dtype, batch=2, queries=6, keys=3)  # queries 0 ... 2 stand before key 0
    o, lse = forward(device, q, k, v, scale=0.25)
    assert (o[:, :, :3] == 0).all()
    assert np.isneginf(lse[:, :, :3]).all()
    assert np.isfinite(lse[:, :, 3:]).all()
    assert np.isfinite(o.astype(np.float32)).all()
    o, lse = forward(device, q, k, v, scale=0.25, causal=False, mask=np.zeros((1, 1, 1, 1), bool))
    assert (o == 0).all()
    assert np.isneginf(lse).all()
    o, lse = forward(device, *inputs(dtype, queries=3, keys=0), scale=0.25)
    assert o.shape == (1, 2, 3, 16)
    assert (o == 0).all()
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("dtype", ALL)
def test_nothing_to_do(device: EmulatedDevice, dtype: str) -> None:
    for sizes in ({"queries": 0}, {"batch": 0}):
        o, lse = forward(device, *inputs(dtype, **sizes), scale=0.25)
        assert o.size == lse.size == 0


@pytest.mark.parametrize("dtype", ALL)
def test_views_are_not_copied(device: EmulatedDevice, dtype: str) -> None:
    q, k, v = inputs(dtype, batch=2, heads=4, groups=2, queries=33, keys=70, width=24)
    views = [heads_inside(device, x) for x in (q, k, v)]
    before = device.counts().copies
    o, lse = attention_forward(*views, scale=0.2)
    assert device.counts().copies == before
    assert o.strides[1] < o.strides[2]
    dense, dense_lse = forward(device, q, k, v, scale=0.2)
    inside = o.permute((0, 2, 1, 3)).numpy().transpose(0, 2, 1, 3)
    assert np.array_equal(inside, dense)
    assert np.array_equal(lse.numpy(), dense_lse)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_any_alignment(device: EmulatedDevice, dtype: str) -> None:
    q, k, v = inputs(dtype, queries=9, keys=40, width=16)
    odd = at_odd_element(device, q), at_odd_element(device, k), at_odd_element(device, v)
    assert path(*odd) == FLOAT
    o, lse = attention_forward(*odd, scale=0.25)
    accurate(dtype, o.numpy(), lse.numpy(), q, k, v, visible(9, 40), scale=0.25)
    for width, value_width in ((1, 1), (7, 3), (17, 70), (100, 65)):
        check(device, dtype, inputs(dtype, queries=9, keys=40, width=width, value_width=value_width),
              expected=FLOAT)


def test_negative_and_zero_scale(device: EmulatedDevice) -> None:
    for scale in (-0.3, 0.0):
        q, k, v = inputs("float16", queries=9, keys=40)
        o, lse = forward(device, q, k, v, scale=scale)
        accurate("float16", o, lse, q, k, v, visible(9, 40), scale=scale)


@pytest.mark.parametrize("dtype", ALL)
def test_packed_sequences(device: EmulatedDevice, dtype: str) -> None:
    queries, keys = [3, 0, 40, 1, 5, 2], [3, 4, 70, 1, 0, 9]
    cu_q, cu_k = (np.cumsum([0, *x]).astype(np.int32) for x in (queries, keys))
    q, k, v = (draw(dtype, n, h, 16, seed=i) for i, (n, h) in enumerate(
        [(cu_q[-1], 4), (cu_k[-1], 2), (cu_k[-1], 2)]))
    o_device, lse_device = attention_varlen(*up(device, (q, k, v)), cu_q, cu_k, queries=40, keys=70,
                              scale=0.25, window=30)
    o, lse = o_device.numpy(), lse_device.numpy()
    for b, (t, s) in enumerate(zip(queries, keys, strict=True)):
        rows, cols = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        one = tuple(x.transpose(1, 0, 2)[None] for x in (q[rows], k[cols], v[cols]))
        accurate(dtype, o[rows].transpose(1, 0, 2)[None], lse[None, :, rows], one[0], one[1], one[2],
                 visible(t, s, window=30), scale=0.25)
        if t:
            alone = forward(device, *one, scale=0.25, window=30)
            if dtype != "float32":                       # a packed sequence's bits are those it has alone
                assert np.array_equal(alone[0][0].transpose(1, 0, 2), o[rows])


@pytest.mark.parametrize("dtype", ALL)
def test_key_lengths_from_device_memory(device: EmulatedDevice, dtype: str) -> None:
    q, k, v = inputs(dtype, batch=4, queries=7, keys=70)
    lengths = np.array([70, 0, 7, 33], np.int32)
    for b, s in enumerate(lengths):                      # what lies beyond is not looked at
        k[b, :, s:], v[b, :, s:] = np.nan, np.nan
    o, lse = forward(device, q, k, v, scale=0.25, key_lengths=lengths)
    for b, s in enumerate(lengths):
        accurate(dtype, o[b : b + 1], lse[b : b + 1], q[b : b + 1], k[b : b + 1, :, :s], v[b : b + 1, :, :s],
                 visible(7, s), scale=0.25)


@pytest.mark.parametrize("dtype", ALL)
def test_nan_in_nan_out(device: EmulatedDevice, dtype: str) -> None:
    for which in range(3):
        arrays = inputs(dtype, queries=40, keys=40, groups=2)
        arrays[which][0, 1, 20, 3] = np.nan
        o, lse = forward(device, *arrays, scale=0.25)
        right, _ = formula(np.float64, *arrays, visible(40, 40), scale=0.25)
        seen = {0: [20], 1: range(20, 40), 2: range(20, 40)}[which]
        assert np.isnan(o[0, 1, seen, 3].astype(np.float32)).all()
        assert not np.isnan(o[0, 0].astype(np.float32)).any()
        assert np.isnan(lse).any() == (which < 2)
        if which < 2:
            assert np.array_equal(np.isnan(o.astype(np.float32)).any(-1), np.isnan(right).any(-1))


@pytest.mark.parametrize("dtype", ALL)
def test_huge_scores(device: EmulatedDevice, dtype: str) -> None:
    q, k, v = inputs(dtype, queries=20, keys=80, scale=100.0)
    o, lse = forward(device, q, k, v, scale=1.0)
    accurate(dtype, o, lse, q, k, v, visible(20, 80), scale=1.0)
    q[:], k[:] = 1.0, -30000.0                           # every score -480000, every key alike
    o, lse = forward(device, q, k, v, scale=1.0, causal=False)
    accurate(dtype, o, lse, q, k, v, visible(20, 80, False), scale=1.0)


@pytest.mark.parametrize("arch", ["sm_75"])
@pytest.mark.parametrize("width", [16, 40, 64, 80, 128])
def test_sm75(device: EmulatedDevice, width: int) -> None:
    check(device, "float16", inputs("float16", queries=33, keys=70, width=width), expected=SM75)
    check(device, "float16", inputs("float16", batch=2, heads=6, groups=2, queries=70, keys=130, width=width),
          window=50, expected=SM75)
    mask = np.random.default_rng(5).random((1, 2, 20, 70)) < 0.6
    check(device, "float16", inputs("float16", queries=20, keys=70, width=width), mask=mask, softcap=2.0)


@pytest.mark.parametrize("arch", ["sm_75"])
def test_what_sm75_leaves_to_float_arithmetic(device: EmulatedDevice) -> None:
    for dtype, width in (("bfloat16", 64), ("float16", 192), ("float32", 64)):
        assert path(*up(device, inputs(dtype, width=width))) == FLOAT


@pytest.mark.parametrize(("arch", "width"), [("sm_75", 192), ("sm_86", 256)])
def test_float_tiles_of_half_the_keys(device: EmulatedDevice, width: int) -> None:
    """Where shared memory holds no more: whole tiles in the middle of what a row sees, and edges."""
    for keys, causal, window in ((70, False, 0), (90, True, 40)):
        check(device, "float32", inputs("float32", heads=1, queries=37, keys=keys, width=width),
              causal=causal, window=window, expected=FLOAT)


@pytest.mark.parametrize("dtype", ALL)
def test_bits_do_not_depend_on_the_batch(device: EmulatedDevice, dtype: str) -> None:
    arrays = inputs(dtype, batch=3, heads=4, groups=2, queries=40, keys=70)
    together = forward(device, *arrays, scale=0.25)
    for b in range(3):
        alone = forward(device, *(x[b : b + 1] for x in arrays), scale=0.25)
        assert np.array_equal(alone[0][0], together[0][b])
        assert np.array_equal(alone[1][0], together[1][b])


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("width", [16, 64, 128])
def test_counts(device: EmulatedDevice, dtype: str, width: int) -> None:
    """No bank conflicts; tensor cores do the products; each row of blocks reads K and V once."""
    queries, keys = 256, 128
    q, k, v = (device.asarray(x) for x in inputs(dtype, heads=1, queries=queries, keys=keys, width=width))
    device.configure(count=1)
    o, lse = attention_forward(q, k, v, scale=0.1, causal=False)
    (counts,) = device.counters().values()
    slow = {place: (c.bank_wavefronts, c.ideal_wavefronts) for place, c in counts.places.items()
            if c.bank_wavefronts > c.ideal_wavefronts}
    assert not slow
    rows = 32 if dtype == "float32" else 64 if width == 16 else 128
    assert counts.blocks == queries // rows
    if width > 16 or dtype == "float32":  # a copy of 0 bytes that writes zeros is counted as one of 16
        assert counts.bytes_read == q.nbytes + counts.blocks * (k.nbytes + v.nbytes)
    assert counts.bytes_written == o.nbytes + lse.nbytes
    assert counts.sectors == counts.ideal_sectors
    if dtype != "float32":
        assert counts.flops[f"tensor_{'f16' if dtype == 'float16' else 'bf16'}"] >= 4 * queries * keys * width


def test_causal_skips_what_is_masked(device: EmulatedDevice) -> None:
    q, k, v = (device.asarray(x) for x in inputs("float16", heads=1, queries=256, keys=256, width=64))
    found = []
    for options in ({"causal": False}, {}, {"window": 16}):
        device.clear()
        device.configure(count=1)
        attention_forward(q, k, v, scale=0.1, **options)
        (counts,) = device.counters().values()
        found.append(counts.flops["tensor_f16"])
    assert found[1] <= 0.65 * found[0]
    assert found[2] <= 0.5 * found[0]


BAD: list[tuple[str, dict[str, Any]]] = [
    ("heads", {"heads": -1}), ("groups", {"groups": 0}), ("groups", {"groups": 3}),
    ("queries", {"queries": -1}),
    ("keys", {"keys": 1 << 40}), ("width", {"width": 0}), ("width", {"width": 257}),
    ("value_width", {"value_width": 300}),
    ("batch", {"batch": -2}), ("dtype", {"dtype": 8}), ("dtype", {"dtype": 99}), ("window", {"window": -1}),
    ("softcap", {"softcap": -1.0}), ("scale", {"scale": float("nan")}), ("lse", {"lse": None}),
    ("q", {"q": None}),
    ("k or v", {"v": None}), ("size", {"size": 0}), ("cu_queries", {"cu_queries": 4096})]


@pytest.mark.parametrize(("name", "change"), BAD, ids=str)
def test_bad_arguments(device: EmulatedDevice, name: str, change: dict[str, Any]) -> None:
    q, k, v = (device.asarray(x) for x in inputs("float32", heads=2, groups=2))
    call, _ = attention_call(q, k, v, device.empty(q.shape, q.dtype), device.empty(q.shape[:3], np.float32),
                             scale=1.0)
    for field, value in change.items():
        setattr(call, field, value)
    with pytest.raises(DeviceArgumentError, match=name):
        device.call("attention_forward", byref(call))
    with pytest.raises(DeviceArgumentError, match="null"):
        device.call("attention_forward", None)


def test_protocol_function(device: EmulatedDevice) -> None:
    """attention() decides between forward and decode; masks of other types are refused."""
    for queries, keys in ((1, 5), (4, 40), (16, 600), (20, 20)):
        q, k, v = inputs("float32", heads=2, queries=queries, keys=keys)
        o, lse = attention(*up(device, (q, k, v)), scale=0.25)
        accurate("float32", o.numpy(), lse.numpy(), q, k, v, visible(queries, keys), scale=0.25)
    with pytest.raises(TypeError, match="booleans"):
        attention(*up(device, (q, k, v)), scale=1.0,
                  mask=np.zeros((1, 1, 1, 20), np.float32))


def test_types_are_known() -> None:
    assert set(ALL) == set(DTYPES)
