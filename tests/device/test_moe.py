"""A layer of mixture-of-experts kernels: recorded once for any routing; bad arguments."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.device import DeviceArray, EmulatedDevice
from cuda.nn.errors import DeviceArgumentError, DeviceError
from cuda.nn.graph import Graph
from nn.backends.device import moe
from tests.device.moe_cases import DTYPES, drawn


def layer(x: DeviceArray, experts: DeviceArray, weights: DeviceArray,
          matrix: DeviceArray) -> list[DeviceArray]:
    """Forward and backward of a layer of one linear map, every kernel of the family"""
    choices = experts.shape[1]
    order, inverse, offsets = moe.expert_order(experts, matrix.shape[0])
    xs = moe.moe_dispatch(x, order, choices)
    ys = moe.grouped_linear(xs, matrix, offsets)
    y = moe.moe_combine(ys, weights, inverse)
    dys, dweights = moe.moe_combine_backward(y, ys, weights, order, inverse)
    dxs, dmatrix = moe.grouped_linear_backward(dys, xs, matrix, offsets)
    return [y, moe.moe_dispatch_backward(dxs, inverse, choices), dweights, dmatrix]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_captured_layer_serves_any_routing(device: EmulatedDevice, rng: np.random.Generator,
                                             dtype: str) -> None:
    tokens, choices, num_experts, inputs, outputs = 30, 2, 4, 16, 8

    def inputs_of(experts: np.ndarray) -> list[np.ndarray]:
        return [drawn(rng, dtype, tokens, inputs), experts, rng.random((tokens, choices), np.float32),
                drawn(rng, dtype, num_experts, outputs, inputs)]

    routings = [inputs_of(rng.integers(0, num_experts + 1, (tokens, choices))),
                inputs_of(np.full((tokens, choices), 2)), inputs_of(np.full((tokens, choices), num_experts)),
                inputs_of(rng.integers(0, 2, (tokens, choices)) * 3)]
    arrays = [device.asarray(array) for array in routings[0]]
    layer(*arrays)  # memory for all of it is in the pool from here on
    before = device.counts()
    with Graph.capture(device) as graph:
        results = layer(*arrays)
    after = device.counts()
    assert (after.downloads, after.uploads) == (before.downloads, before.uploads)
    assert after.synchronizations == before.synchronizations
    assert graph.pool is not None                                # all that was allocated is arrays
    assert after.allocations - before.allocations == graph.pool.statistics().allocations
    for routing in routings:
        for array, values in zip(arrays, routing, strict=True):
            device.call("memory_upload", array, np.ascontiguousarray(values).ctypes.data, values.nbytes)
        graph.replay()
        replayed = [array.numpy().tobytes() for array in results]
        assert replayed == [array.numpy().tobytes() for array in layer(*map(device.asarray, routing))]
    graph.close()


# ---- bad arguments -----------------------------------------------------------------------------------------

P = 4096                                                         # an address that is never followed
BAD: list[tuple[str, list[Any], str]] = [
    ("moe_plan", [P, P, P, P, -1, 4, 3, 0, 0], "pairs: -1"),
    ("moe_plan", [P, P, P, P, 2**31 + 1, 4, 3, 0, 0], "pairs: 2147483649"),
    ("moe_plan", [P, P, P, P, 8, 0, 3, 0, 0], "num_experts: 0"),
    ("moe_plan", [P, P, P, P, 8, 1025, 3, 0, 0], "num_experts: 1025"),
    ("moe_plan", [P, P, P, P, 8, 4, 0, 0, 0], "index_dtype: float32"),
    ("moe_plan", [P, 0, P, P, 8, 4, 3, 0, 0], "inverse"),
    ("moe_plan", [P, P, 0, P, 0, 4, 3, 0, 0], "offsets"),
    ("moe_plan", [P, P, P, P + 4, 8, 4, 3, 0, 0], "experts: 0x1004 is not aligned to int64"),
    ("moe_plan", [P, P, P, P, 5000, 4, 3, P, 59], "workspace_bytes: 59, but 80 are needed"),
    ("moe_plan", [P, P, P, P, 5000, 4, 3, 0, 1000], "workspace: a null pointer"),
    ("moe_dispatch_forward", [P, P, P, -1, 2, 8, 0], "tokens: -1"),
    ("moe_dispatch_forward", [P, P, P, 4, 0, 8, 0], "choices: 0"),
    ("moe_dispatch_forward", [P, P, P, 2**30, 4, 8, 0], "tokens * choices"),
    ("moe_dispatch_forward", [P, P, P, 4, 2, -8, 0], "width: -8"),
    ("moe_dispatch_forward", [P, P, P, 4, 2, 8, 8], "dtype: float64"),
    ("moe_dispatch_forward", [0, P, P, 4, 2, 8, 0], "xs: a null pointer"),
    ("moe_dispatch_forward", [P, P + 2, P, 4, 2, 8, 0], "x: 0x1002 is not aligned to float32"),
    ("moe_dispatch_backward", [P, P, 0, 4, 2, 8, 0], "inverse: a null pointer"),
    ("moe_dispatch_backward", [P, 0, P, 4, 2, 8, 1], "dxs: a null pointer"),
    ("moe_dispatch_backward", [P, P, P, 4, 2, 8, 3], "dtype: int64"),
    ("moe_combine_forward", [P, P, 0, P, 4, 2, 8, 0], "weights: a null pointer"),
    ("moe_combine_forward", [P, P, P, P, 4, 2, 8, 99], "dtype: no type (99)"),
    ("moe_combine_forward", [P + 1, P, P, P, 4, 2, 8, 1], "y: 0x1001 is not aligned to float16"),
    ("moe_combine_backward", [P, 0, P, P, P, P, 4, 2, 8, 0], "dweights: a null pointer"),
    ("moe_combine_backward", [P, P, 0, P, P, P, 4, 2, 8, 0], "dy: a null pointer"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, -4, 4, 8, 8, 0], "rows: -4"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, 4, 0, 8, 8, 0], "num_experts: 0"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, 4, 4, -8, 8, 0], "inputs: -8"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, 4, 4, 8, 2**31, 0], "outputs: 2147483648"),
    ("grouped_linear_forward", [P, P, P, P, P, 0, 4, 4, 8, 8, 0], "choices: 0"),
    ("grouped_linear_forward", [P, P, P, 0, 0, 1, 4, 4, 8, 8, 0], "offsets: a null pointer"),
    ("grouped_linear_forward", [P, 0, P, P, 0, 1, 4, 4, 8, 8, 0], "x: a null pointer"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, 4, 4, 8, 8, 4], "dtype: int32"),
    ("grouped_linear_forward", [P, P, P, P, 0, 1, 2**31, 4, 2**20, 2**21, 0], "tiles, more than 2^31"),
    ("grouped_swiglu_forward", [P, P, P, P, P, 0, 1, 4, 4, 8, -1, 0], "width: -1"),
    ("grouped_swiglu_forward", [P, P + 1, P, P, P, 0, 1, 4, 4, 8, 8, 0], "hidden: 0x1001 is not aligned"),
    ("grouped_swiglu_forward", [P, 0, P, 0, P, 0, 1, 4, 4, 8, 8, 0], "weight: a null pointer"),
    ("grouped_linear_backward_input", [P, P, 0, P, 4, 4, 8, 8, 0], "weight: a null pointer"),
    ("grouped_linear_backward_input", [P, P + 2, P, P, 4, 4, 8, 8, 0], "dy: 0x1002 is not aligned"),
    ("grouped_linear_backward_weight", [0, P, P, P, 0, 1, 4, 4, 8, 8, 0], "dweight: a null pointer"),
    ("grouped_linear_backward_weight", [P + 2, P, P, P, 0, 1, 4, 4, 8, 8, 1], "dweight: 0x1002"),
    ("moe_balance_loss_forward", [P, P, P, P, 4, 5, 4, 0.1, 3, P, 64], "choices: 5"),
    ("moe_balance_loss_forward", [P, P, P, P, 4, 2, 4, 0.1, 0, P, 64], "index_dtype: float32"),
    ("moe_balance_loss_forward", [P, P, P, P, 4, 2, 4, 0.1, 3, P, 31], "workspace_bytes: 31, but 32"),
    ("moe_balance_loss_forward", [P, P, P, P, 4, 2, 2000, 0.1, 3, P, 64], "num_experts: 2000"),
    ("moe_balance_loss_backward", [P, 0, P, 4, 4, 0.1], "dloss: a null pointer"),
    ("moe_z_loss_forward", [P, P, P, -4, 4, 0.1, P, 64], "tokens: -4"),
    ("moe_z_loss_forward", [P, P, P, 4, 4, 0.1, P, 3], "workspace_bytes: 3, but 4"),
    ("moe_z_loss_forward", [0, P, P, 4, 4, 0.1, P, 64], "loss: a null pointer"),
    ("moe_z_loss_backward", [P, P, P + 2, P, 4, 4, 0.1], "logits: 0x1002 is not aligned"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), BAD, ids=[f"{b[0]}-{b[2]}" for b in BAD])
def test_bad_arguments(device: EmulatedDevice, name: str, arguments: list[Any], words: str) -> None:
    with pytest.raises(DeviceArgumentError if "tiles" not in words else DeviceError) as raised:
        device.call(name, *arguments)
    assert words in str(raised.value)


def test_shapes_that_do_not_fit(device: EmulatedDevice) -> None:
    array = lambda *shape, dtype="float32": device.empty(shape, DTYPES.get(dtype, dtype))  # noqa: E731
    indices = array(6, dtype=np.int64)
    with pytest.raises(DeviceArgumentError, match=r"weights: float32\[3, 2\]|ys: "):
        moe.moe_combine(array(5, 8), array(3, 2), indices)
    with pytest.raises(DeviceArgumentError, match="weights: bfloat16"):
        moe.moe_combine(array(6, 8), array(3, 2, dtype="bfloat16"), indices)
    with pytest.raises(DeviceArgumentError, match="choices: 4 does not divide 6"):
        moe.moe_dispatch_backward(array(6, 8), indices, 4)
    with pytest.raises(DeviceArgumentError, match="offsets: float32"):
        moe.grouped_linear(array(6, 8), array(2, 4, 8), array(3))
    with pytest.raises(DeviceArgumentError, match="x: float32"):
        moe.grouped_linear(array(6, 7), array(2, 4, 8), array(3, dtype=np.int64))
    with pytest.raises(DeviceArgumentError, match="dy: float32"):
        moe.grouped_linear_backward(array(6, 5), array(6, 8), array(2, 4, 8), array(3, dtype=np.int64))


def test_nothing_to_do_needs_no_arrays(device: EmulatedDevice) -> None:
    device.call("moe_dispatch_forward", 0, 0, 0, 0, 2, 8, 0)
    device.call("moe_combine_forward", 0, 0, 0, 0, 4, 2, 0, 0)
    device.call("grouped_linear_forward", 0, 0, P, P, 0, 1, 0, 4, 8, 8, 0)
    device.call("moe_z_loss_backward", 0, 0, 0, 0, 0, 4, 0.1)
