"""Products with packed weights on a device: unpacked by the host for every call, then the device's own
products.  They are made for the CPU; a device gets the same results, slowly."""

from cuda.nn.device import DeviceArray
from nn.backends.device.activation import swiglu_packed
from nn.backends.device.moe import expert_order, grouped_linear, moe_combine, moe_dispatch
from nn.backends.reference.packed import packed_linear, packed_swiglu, unpacked_matrix
from nn.dtypes import narrow, widen

__all__ = ["packed_experts", "packed_linear", "packed_swiglu"]


def packed_experts(x: DeviceArray, gate_up: DeviceArray, down: DeviceArray, weights: DeviceArray,
                   experts: DeviceArray, num_experts: int, features: int, format: int) -> DeviceArray:
    """y[N,D] = Σ_k weights[n,k] W_down SiLU(W_gate x) ⊙ W_up x of expert experts[n,k]; a pair of expert
    num_experts adds nothing.  gate_up: bytes of [E,2F,D], gated; down: of [E,D,F]"""
    width = x.shape[1]
    order, inverse, offsets = expert_order(experts, num_experts)
    up = unpacked_matrix(x, gate_up, format, (num_experts, 2 * features, width), gated=True)
    hidden = swiglu_packed(grouped_linear(moe_dispatch(widen(x), order, experts.shape[1]), up, offsets))
    ys = grouped_linear(hidden, unpacked_matrix(x, down, format, (num_experts, width, features)), offsets)
    return narrow(moe_combine(ys, weights, inverse), x.dtype)
