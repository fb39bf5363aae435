"""RMSNorm and LayerNorm kernels: every path by width, the residual, extremes, counts, errors."""


import numpy as np
import pytest

from cuda.nn.array import DeviceArray
from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from nn.backends.device import norm
from tests.conformance import naive
from tests.conformance.cases import cases
from tests.conformance.compare import check, in_layout, to_numpy
from tests.device.accuracy import DTYPES, PLACES, accurate, counted, draw, moved_bytes

KERNELS = ("rms_norm", "rms_norm_backward", "layer_norm", "layer_norm_backward")
CODE = {"float32": 0, "float16": 1, "bfloat16": 2}
EPS = 1e-6
# rows and columns around 8, 16 and 32 lanes, 64 ... 512 threads, and what no longer fits registers: the
# forward's path in float32, then the backward's
ROWS, REREAD = "rows", "reread"
PATHS = ((3, 1, ROWS, ROWS), (70, 64, ROWS, ROWS), (9, 68, ROWS, ROWS), (9, 128, ROWS, ROWS),
         (9, 132, ROWS, ROWS), (5, 256, ROWS, ROWS), (5, 257, ROWS, ROWS), (5, 260, ROWS, ROWS),
         (3, 516, ROWS, ROWS),
         (3, 1028, ROWS, ROWS), (2, 2052, ROWS, ROWS), (3, 4097, REREAD, REREAD), (2, 4100, ROWS, ROWS),
         (2, 8196, ROWS, REREAD), (1, 16384, ROWS, REREAD), (2, 16388, REREAD, REREAD))


def inputs(dtype: str, rows: int, cols: int, count: int) -> list[np.ndarray]:
    """x[rows,cols], dy[rows,cols], then vectors of cols"""
    return [draw(dtype, *((rows, cols) if i < 2 else (cols,)), seed=i) for i in range(count)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_conformance(device: EmulatedDevice, kernel: str, dtype: str) -> None:
    for case in cases(kernel, dtype):
        check(getattr(norm, kernel), case, device.asarray, to_numpy)
        if case.name == "7x33":
            check(getattr(norm, kernel), in_layout(case, "transposed"), device.asarray, to_numpy)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("rows", "cols", "forward", "backward"), PATHS)
def test_every_path(device: EmulatedDevice, rows: int, cols: int, forward: str, backward: str,
                    place: str) -> None:
    x, dy, weight, bias = inputs("float32", rows, cols, 4)
    at = [PLACES[place](device, a) for a in (x, dy, weight, bias)]
    results: list[tuple[DeviceArray, ...]] = []

    def run() -> None:
        results.append(norm.rms_norm(at[0], at[2], EPS))
        results.append(norm.layer_norm(at[0], at[2], at[3], EPS))
        results.append(norm.rms_norm_backward(at[1], at[0], at[2], results[0][1]))
        results.append(norm.layer_norm_backward(at[1], at[0], at[2], *results[1][1:]))

    if place == "aligned" and rows * cols < 10_000:
        found = counted(device, run)
        assert {f"norm_forward_{forward}", f"norm_backward_{backward}"} <= found.keys()
    else:
        run()
    accurate("rms_norm", "float32", list(results[0]), x, weight, EPS)
    accurate("layer_norm", "float32", list(results[1]), x, weight, bias, EPS)
    statistics = [[a.numpy() for a in results[i][1:]] for i in (0, 1)]
    accurate("rms_norm_backward", "float32", list(results[2]), dy, x, weight, *statistics[0])
    accurate("layer_norm_backward", "float32", list(results[3]), dy, x, weight, *statistics[1])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("rows", "cols"), [(40, 64), (5, 520), (3, 2056), (2, 4104), (1, 16392), (1, 32776)])
def test_half_precision(device: EmulatedDevice, rows: int, cols: int, dtype: str, place: str) -> None:
    x, dy, weight, bias = inputs(dtype, rows, cols, 4)
    at = [PLACES[place](device, a) for a in (x, dy, weight, bias)]
    y, rstd = norm.rms_norm(at[0], at[2], EPS)
    accurate("rms_norm", dtype, [y, rstd], x, weight, EPS, floats=(1,))
    accurate("rms_norm_backward", dtype, list(norm.rms_norm_backward(at[1], at[0], at[2], rstd)), dy, x,
             weight,
             rstd.numpy(), floats=(1,))
    y, mean, rstd = norm.layer_norm(at[0], at[2], at[3], EPS)
    accurate("layer_norm", dtype, [y, mean, rstd], x, weight, bias, EPS, floats=(1, 2))
    found = norm.layer_norm_backward(at[1], at[0], at[2], mean, rstd)
    accurate("layer_norm_backward", dtype, list(found), dy, x, weight, mean.numpy(), rstd.numpy(), floats=
             (1, 2))


def test_more_long_rows_than_blocks(device: EmulatedDevice) -> None:
    """A block adds its later rows to the partial sums that it keeps in memory."""
    x, dy, weight = inputs("bfloat16", 2 * device.info.multiprocessors + 1, 2049, 3)
    given = [device.asarray(a) for a in (dy, x, weight)]
    _, mean, rstd = norm.layer_norm(given[1], given[2], given[2], EPS)
    found = norm.layer_norm_backward(*given, mean, rstd)
    accurate("layer_norm_backward", "bfloat16", list(found), dy, x, weight, mean.numpy(), rstd.numpy(),
             floats=(1, 2))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("rows", "cols"), [(3, 64), (40, 24), (5, 260), (2, 4100), (1, 8196)])
def test_one_block_writes_the_gradients_themselves(device: EmulatedDevice, rows: int, cols: int,
                                                   place: str) -> None:
    """Where they lie on 16 bytes; elsewhere a second launch moves the block's partial sum there"""
    x, dy, weight = inputs("float32", rows, cols, 3)
    at = [device.asarray(a) for a in (dy, x, weight)]
    _, mean, rstd = norm.layer_norm(at[1], at[2], at[2], EPS)
    dx = device.empty(x.shape, x.dtype)
    dweight, dbias = (PLACES[place](device, np.full(cols, np.nan, np.float32)) for _ in range(2))
    scratch = device.workspace(device.library.nn_layer_norm_workspace_size(rows, cols))
    found = counted(device, lambda: device.call("layer_norm_backward", dx, dweight, dbias, *at, mean, rstd,
                                                rows, cols, 0, scratch, scratch.size))
    assert [counts.blocks for name, counts in found.items() if name != "norm_weight_gradients"] == [1]
    assert ("norm_weight_gradients" in found) == (place == "odd")
    accurate("layer_norm_backward", "float32", [dx, dweight, dbias], dy, x, weight, mean.numpy(),
             rstd.numpy())


@pytest.mark.parametrize(("dtype", "rows", "cols", "blocks"), [
    ("bfloat16", 1000, 24, 16), ("bfloat16", 130, 512, 2), ("bfloat16", 43, 8192, 2),
    ("float32", 200, 300, 7), ("float32", 43, 2048, 1)])
def test_several_blocks(device: EmulatedDevice, dtype: str, rows: int, cols: int, blocks: int) -> None:
    """As many as a twentieth of the bytes pays for, or as there are whole MiB; each adds up several turns"""
    x, dy, weight = inputs(dtype, rows, cols, 3)
    given = [device.asarray(a) for a in (dy, x, weight)]
    _, mean, rstd = norm.layer_norm(given[1], given[2], given[2], EPS)
    results: list[DeviceArray] = []
    kernels = counted(device, lambda: results.extend(norm.layer_norm_backward(*given, mean, rstd)))
    assert kernels["norm_backward_rows"].blocks == blocks
    assert kernels["norm_backward_rows"].bank_wavefronts == kernels["norm_backward_rows"].ideal_wavefronts
    accurate("layer_norm_backward", dtype, results, dy, x, weight, mean.numpy(), rstd.numpy(), floats=(1, 2))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [5, 72, 1032, 32784])
def test_residual(device: EmulatedDevice, cols: int, dtype: str, place: str) -> None:
    """One call does what a sum, a norm, and in the backward another sum would"""
    rows = 3 if cols < 30_000 else 1
    x, residual, weight = inputs(dtype, rows, cols, 3)
    at = [PLACES[place](device, a) for a in (x, residual, weight)]
    y, rstd, code = device.empty(x.shape, x.dtype), device.empty((rows,), np.float32), CODE[dtype]
    # in place
    device.call("rms_norm_residual_forward", y, at[1], rstd, at[0], at[1], at[2], rows, cols, EPS, code)
    total = (x.astype(np.float32) + residual.astype(np.float32)).astype(x.dtype)
    assert at[1].numpy().tobytes() == total.tobytes()
    right = norm.rms_norm(PLACES[place](device, total), at[2], EPS)
    assert y.numpy().tobytes() == right[0].numpy().tobytes()
    assert rstd.numpy().tobytes() == right[1].numpy().tobytes()
    dy = device.asarray(draw(dtype, rows, cols, seed=5))
    dx, dweight = device.empty(x.shape, x.dtype), device.empty((cols,), np.float32)
    scratch = device.workspace(device.library.nn_rms_norm_workspace_size(rows, cols))
    device.call("rms_norm_backward", dx, dweight, dy, at[1], at[2], rstd, at[0], rows, cols, code, scratch,
                scratch.size)
    exact = naive.rms_norm_backward(*(a.astype(np.float64) for a in (dy.numpy(), total, weight)),
                                    rstd.numpy()[:, None].astype(np.float64))
    unit = {"float32": 2e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    np.testing.assert_allclose(dx.numpy().astype(np.float64), exact[0] + x.astype(np.float64), rtol=unit,
                               atol=unit)
    np.testing.assert_allclose(dweight.numpy(), exact[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cols", [24, 1040])
def test_in_place(device: EmulatedDevice, cols: int) -> None:
    x, dy, weight = inputs("float32", 4, cols, 3)
    right, rstd = norm.rms_norm(device.asarray(x), device.asarray(weight), EPS)
    given, w, gradient = device.asarray(x), device.asarray(weight), device.asarray(dy)
    dx, _ = norm.rms_norm_backward(gradient, given, w, rstd)
    dweight, scratch = device.empty((cols,), np.float32), device.workspace(4 * 4 * cols)
    device.call("rms_norm_backward", gradient, dweight, gradient, given, w, rstd, None, 4, cols, 0, scratch,
                scratch.size)
    device.call("rms_norm_forward", given, rstd, given, w, 4, cols, EPS, 0)
    assert given.numpy().tobytes() == right.numpy().tobytes()
    assert gradient.numpy().tobytes() == dx.numpy().tobytes()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")      # of the formula in NumPy
@pytest.mark.parametrize("cols", [7, 64, 600, 17000])
def test_extremes(device: EmulatedDevice, cols: int) -> None:
    x = draw("float32", 4, cols)
    x[0], x[1], x[2, cols // 2] = 0.0, x[1] * 1e15, np.nan
    one = device.asarray(np.ones(cols, np.float32))
    y, rstd = norm.rms_norm(device.asarray(x), one, 1e-5)
    assert not y.numpy()[0].any()
    assert rstd.numpy()[0] == np.float32(1e-5) ** -0.5
    np.testing.assert_allclose(y.numpy()[1], naive.rms_norm(x.astype(np.float64), np.ones(cols), 0.0)[0][1],
                               rtol=1e-5)
    assert np.isnan(y.numpy()[2]).all()
    assert not np.isnan(y.numpy()[3]).any()
    z = norm.layer_norm(device.asarray(x + np.float32(1000.0)), one, one, 1e-5)[0].numpy()
    exact = naive.layer_norm((x + np.float32(1000.0)).astype(np.float64), np.ones(cols), np.ones(cols),
                             1e-5)[0]
    np.testing.assert_allclose(z[3], exact[3], atol=1e-3)
    assert np.isnan(z[2]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_and_no_columns(device: EmulatedDevice, dtype: str) -> None:
    weight, none = device.asarray(draw(dtype, 40)), device.asarray(draw(dtype, 0, 40))
    rstd = device.empty((0, 1), np.float32)
    assert not norm.rms_norm_backward(none, none, weight, rstd)[1].numpy().any()
    assert not any(a.numpy().any() for a in norm.layer_norm_backward(none, none, weight, rstd, rstd)[1:])
    rstd = device.empty((3,), np.float32)
    device.call("rms_norm_forward", None, rstd, None, None, 3, 0, 0.25, CODE[dtype])
    assert rstd.numpy().tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [128, 512, 2048])
def test_counted_sectors(device: EmulatedDevice, cols: int, dtype: str) -> None:
    """Beside one read of the weight per block, each byte once, in full sectors and without bank conflicts"""
    rows = 16
    x, residual, weight, _ = (device.asarray(a) for a in inputs(dtype, rows, cols, 4))
    y, total = (device.empty(x.shape, x.dtype) for _ in range(2))
    rstd = device.empty((rows,), np.float32)
    counts = counted(device, lambda: device.call("rms_norm_residual_forward", y, total, rstd, x, residual,
                                                 weight, rows,
                                                 cols, EPS, CODE[dtype]))["norm_forward_rows"]
    assert moved_bytes(counts) == 4 * x.nbytes + 4 * rows + counts.blocks * weight.nbytes
    assert counts.sectors == counts.ideal_sectors
    assert counts.bank_wavefronts == counts.ideal_wavefronts


def test_a_row_has_the_same_bits_in_any_batch(device: EmulatedDevice) -> None:
    for cols in (33, 1024, 5000):
        x, _, weight = inputs("float32", 3, cols, 3)
        together = norm.rms_norm(device.asarray(x), device.asarray(weight), EPS)[0].numpy()
        alone = norm.rms_norm(device.asarray(x[1:2]), device.asarray(weight), EPS)[0].numpy()
        assert alone.tobytes() == together[1].tobytes()


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_other_architectures(device: EmulatedDevice, arch: str) -> None:
    for dtype in DTYPES:
        x, dy, weight = inputs(dtype, 3, 1032, 3)
        y, rstd = norm.rms_norm(device.asarray(x), device.asarray(weight), EPS)
        accurate("rms_norm", dtype, [y, rstd], x, weight, EPS, floats=(1,))
        found = norm.rms_norm_backward(device.asarray(dy), device.asarray(x), device.asarray(weight), rstd)
        accurate("rms_norm_backward", dtype, list(found), dy, x, weight, rstd.numpy(), floats=(1,))
    x, dy, weight = inputs("float32", 1, 8192, 3)  # all of the shared memory that is asked for
    y, mean, rstd = norm.layer_norm(*map(device.asarray, (x, weight, weight)), EPS)
    found = norm.layer_norm_backward(*map(device.asarray, (dy, x, weight)), mean, rstd)
    accurate("layer_norm_backward", "float32", list(found), dy, x, weight, mean.numpy(), rstd.numpy())


def test_workspace_sizes(device: EmulatedDevice) -> None:
    rms, layer = device.library.nn_rms_norm_workspace_size, device.library.nn_layer_norm_workspace_size
    assert [rms(rows, 10) for rows in (0, 1, 512, 10**6)] == [0, 40, 20480, 20480]
    assert [layer(rows, 10) for rows in (0, 1, 512, 10**6)] == [0, 80, 40960, 40960]


def test_errors(device: EmulatedDevice) -> None:
    x, w, s = device.empty((4, 8), np.float32), device.empty((8,), np.float32), device.empty((4,), np.float32)
    room = device.workspace(1024)
    for arguments, words in (
            (("rms_norm_forward", None, s, x, w, 4, 8, EPS, 0), "y: a null"),
            (("rms_norm_forward", x, None, x, w, 4, 8, EPS, 0), "rstd: a null"),
            (("rms_norm_forward", x, s, None, w, 4, 8, EPS, 0), "x: a null"),
            (("rms_norm_forward", x, s, x, w.pointer + 2, 4, 8, EPS, 0), "weight: .* is not aligned"),
            (("rms_norm_forward", x, s, x, w, -1, 8, EPS, 0), "rows: -1 is not"),
            (("rms_norm_forward", x, s, x, w, 4, -8, EPS, 0), "cols: -8 is not"),
            (("rms_norm_forward", x, s, x, w, 2**50, 2**50, EPS, 0), "rows: .* is over"),
            (("rms_norm_forward", x, s, x, w, 4, 8, -1.0, 0), "eps: -1 is negative"),
            (("rms_norm_forward", x, s, x, w, 4, 8, float("nan"), 0), "eps: "),
            (("rms_norm_forward", x, s, x, w, 4, 8, EPS, 8), r"dtype: float64"),
            (("rms_norm_residual_forward", x, None, s, x, x, w, 4, 8, EPS, 0), "sum: a null"),
            (("rms_norm_residual_forward", x, x, s, x, x, w, 4, 8, EPS, 0), "sum: is y"),
            (("rms_norm_residual_forward", x, room, s, x, None, w, 4, 8, EPS, 0), "residual: a null"),
            (("layer_norm_forward", x, None, s, x, w, w, 4, 8, EPS, 0), "mean: a null"),
            (("layer_norm_forward", x, s, s, x, w, None, 4, 8, EPS, 0), "bias: a null"),
            (("rms_norm_backward", x, None, x, x, w, s, None, 4, 8, 0, room, 1024), "dweight: a null"),
            (("rms_norm_backward", x, w, x, x, w, None, None, 4, 8, 0, room, 1024), "rstd: a null"),
            (("rms_norm_backward", x, w, x, x, w, s, x.pointer + 1, 4, 8, 0, room, 1024), "dresidual: "),
            (("rms_norm_backward", x, w, x, x, w, s, None, 4, 8, 0, room, 100),
             "workspace_bytes: 100, but 128"),
            (("rms_norm_backward", x, w, x, x, w, s, None, 4, 8, 0, None, 128), "workspace: a null"),
            (("layer_norm_backward", x, w, None, x, x, w, s, s, 4, 8, 0, room, 1024), "dbias: a null"),
            (("layer_norm_backward", x, w, w, x, x, w, None, s, 4, 8, 0, room, 1024), "mean: a null")):
        with pytest.raises(DeviceArgumentError, match=words):
            device.call(*arguments)
