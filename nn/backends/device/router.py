"""The router's jitter, and its softmax and top-k, on the device (csrc/kernels/router)."""

from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from nn.backends.device.arrays import FLOAT32, cast, dense, expect


def jitter(x: DeviceArray, counter: Any, *, epsilon: float) -> DeviceArray:
    """x times U(1 - epsilon, 1 + epsilon); counter int64[4] is read on the device: a recorded step draws
    what it holds at each replay."""
    x, counter = dense(x, counter)
    expect("counter", counter, (4,), np.int64)
    y = x.device.empty(x.shape, x.dtype)
    x.device.call("router_jitter_forward", y, x, counter, x.size, epsilon, x.code)
    return y


def router_topk(logits: DeviceArray, k: int, *,
                renormalize: bool = True) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    (logits,) = dense(logits)
    (tokens, num_experts), device = logits.shape, logits.device
    weights, experts = device.empty((tokens, k), FLOAT32), device.empty((tokens, k), np.int64)
    probs = device.empty(logits.shape, FLOAT32)
    device.call("router_topk_forward", weights, experts, probs, logits, tokens, num_experts, k,
                int(renormalize),
                experts.code, logits.code)
    return weights, experts, probs


def router_topk_backward(dweights: DeviceArray, weights: DeviceArray, experts: DeviceArray,
                         probs: DeviceArray, *,
                         renormalize: bool = True) -> DeviceArray:
    probs, experts, dweights, weights = dense(probs, experts, dweights, weights)
    choices = probs.shape[0], experts.shape[-1]
    for name, array in (("experts", experts), ("dweights", dweights), ("weights", weights)):
        expect(name, array, choices)
    dlogits = probs.device.empty(probs.shape, FLOAT32)
    probs.device.call("router_topk_backward", dlogits, cast(dweights, FLOAT32), cast(weights, FLOAT32),
                      experts,
                      cast(probs, FLOAT32), *probs.shape, choices[1], int(renormalize), experts.code)
    return dlogits
