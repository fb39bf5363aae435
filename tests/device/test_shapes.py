"""Arrays whose shapes do not fit together, or of another device: refused by name before a kernel, which sees
addresses and sizes only, reads past the end of one."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError
from nn.backends import device as kernels
from nn.backends.device.attention import attention_forward, attention_varlen
from nn.backends.device.attention import decode_attention as decode
from nn.backends.device.loss import mean_loss, mean_loss_backward
from nn.backends.device.optimizer import scatter_add_into
from nn.backends.device.rotary import rope_qk

Sizes = dict[str, tuple[int, ...]]
ATTENTION: Sizes = {"q": (2, 4, 3, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 6)}
CACHE: Sizes = {"k_cache": (2, 2, 5, 8), "v_cache": (2, 2, 5, 6)}
NORM: Sizes = {"x": (3, 8), "weight": (8,)}
ROUTED: Sizes = {"dweights": (5, 2), "weights": (5, 2), "experts": (5, 2)}


def plain(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda **arrays: function(*arrays.values(), **options)


# function, the shapes that are right in the order of its arguments, and for an argument those that are wrong
CASES: dict[str, tuple[Callable[..., Any], Sizes, Sizes]] = {
    "attention": (plain(attention_forward, scale=1.0), ATTENTION,
                  {"k": (2, 2, 5, 7), "v": (2, 2, 4, 6)}),
    "attention-batch": (plain(attention_forward, scale=1.0), ATTENTION, {"k": (1, 2, 5, 8)}),
    "attention-lengths": (lambda key_lengths, **x: attention_forward(*x.values(), scale=1.0,
                                                                     key_lengths=key_lengths),
                          ATTENTION | {"key_lengths": (2,)}, {"key_lengths": (1,)}),
    "attention-packed": (plain(attention_varlen, queries=2, keys=2, scale=1.0),
                         {"q": (4, 2, 8), "k": (4, 2, 8), "v": (4, 2, 8), "cu_queries": (3,),
                          "cu_keys": (3,)}, {"cu_keys": (2,)}),
    "attention-backward": (plain(kernels.attention_backward, scale=1.0),
                           {"do": (2, 4, 3, 6)} | ATTENTION | {"o": (2, 4, 3, 6), "lse": (2, 4, 3)},
                           {"do": (2, 4, 2, 6), "v": (2, 2, 4, 6), "o": (2, 4, 3, 5), "lse": (2, 4, 2)}),
    "decode": (plain(decode, scale=1.0), {"q": (2, 4, 1, 8)} | CACHE | {"lengths": (2,)},
               {"k_cache": (1, 2, 5, 8), "v_cache": (2, 2, 4, 6), "lengths": (1,)}),
    "decode-paged": (lambda block_table, **x: decode(*x.values(), scale=1.0, block_table=block_table),
                     {"q": (2, 4, 1, 8), "k_cache": (4, 2, 16, 8), "v_cache": (4, 2, 16, 6), "lengths": (2,),
                      "block_table": (2, 2)}, {"block_table": (1, 2), "v_cache": (3, 2, 16, 6)}),
    "append": (plain(kernels.cache_append), CACHE | {"k": (2, 2, 1, 8), "v": (2, 2, 1, 6), "positions": (2,)},
               {"k": (2, 1, 1, 8), "v": (2, 2, 1, 5), "positions": (1,)}),
    "rms-norm": (plain(kernels.rms_norm, eps=1e-6), NORM, {"weight": (7,)}),
    "rms-norm-residual": (plain(kernels.rms_norm_residual, eps=1e-6),
                          {"x": (3, 8), "residual": (3, 8), "weight": (8,)}, {"residual": (2, 8)}),
    "rms-norm-backward": (lambda dresidual, **x: kernels.rms_norm_backward(*x.values(), dresidual=dresidual),
                          {"dy": (3, 8)} | NORM | {"rstd": (3, 1), "dresidual": (3, 8)},
                          {"dy": (2, 8), "weight": (9,), "rstd": (2, 1), "dresidual": (3, 7)}),
    "layer-norm": (plain(kernels.layer_norm, eps=1e-6), NORM | {"bias": (8,)},
                   {"weight": (7,), "bias": (7,)}),
    "layer-norm-backward": (plain(kernels.layer_norm_backward),
                            {"dy": (3, 8)} | NORM | {"mean": (3, 1), "rstd": (3, 1)},
                            {"dy": (3, 7), "mean": (2, 1), "rstd": (4, 1)}),
    "silu-backward": (plain(kernels.silu_backward), {"dy": (3, 8), "x": (3, 8)}, {"dy": (3, 7)}),
    "softmax-backward": (plain(kernels.softmax_backward), {"dy": (3, 8), "y": (3, 8)}, {"dy": (2, 8)}),
    "swiglu": (plain(kernels.swiglu), {"gate": (3, 8), "up": (3, 8)}, {"up": (3, 7)}),
    "swiglu-backward": (plain(kernels.swiglu_backward), {"dy": (3, 8), "gate": (3, 8), "up": (3, 8)},
                        {"dy": (2, 8), "up": (2, 8)}),
    "swiglu-packed": (plain(kernels.swiglu_packed), {"x": (3, 8)}, {"x": (3, 7)}),
    "swiglu-packed-backward": (plain(kernels.swiglu_packed_backward), {"dy": (3, 4), "x": (3, 8)},
                               {"dy": (3, 8)}),
    "router-backward": (plain(kernels.router_topk_backward), ROUTED | {"probs": (5, 8)},
                        {"dweights": (4, 2), "weights": (5, 1), "experts": (4, 2)}),
    "balance-backward": (plain(kernels.moe_balance_loss_backward, tokens=3, coefficient=1.0),
                         {"dloss": (1,), "load": (8,)}, {"dloss": (2,)}),
    "z-loss-backward": (plain(kernels.moe_z_loss_backward, coefficient=1.0),
                        {"dloss": (1,), "logits": (3, 8), "lse": (3,)}, {"dloss": (0,), "lse": (2,)}),
    "mean-loss": (plain(mean_loss), {"loss": (5,), "targets": (5,)}, {"loss": (4,)}),
    "mean-loss-backward": (plain(mean_loss_backward), {"dmean": (1,), "targets": (5,), "count": (1,)},
                           {"dmean": (0,), "count": (2,)}),
}
INTEGERS = {"experts": np.int64, "targets": np.int64, "count": np.int64, "lengths": np.int32,
            "positions": np.int32, "block_table": np.int32, "key_lengths": np.int32, "cu_queries": np.int32,
            "cu_keys": np.int32}


@pytest.mark.parametrize("name", CASES)
def test_shapes_that_do_not_fit(device: EmulatedDevice, name: str) -> None:
    function, sizes, wrong = CASES[name]

    def call(**other: tuple[int, ...]) -> None:
        function(**{key: device.asarray(np.ones(shape, INTEGERS.get(key, np.float32)))
                    for key, shape in (sizes | other).items()})

    call()
    for argument, shape in wrong.items():
        with pytest.raises(DeviceArgumentError, match=rf"\b{argument}: "):
            call(**{argument: shape})


def test_norms_of_rows_in_more_axes(device: EmulatedDevice) -> None:
    """Statistics for every row, not for every entry of the first axis."""
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    y, rstd = kernels.rms_norm(device.asarray(x), device.asarray(np.ones(8, np.float32)), 1e-6)
    expected = 1.0 / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1) + 1e-6)
    np.testing.assert_allclose(rstd.numpy().reshape(2, 3), expected, rtol=1e-6)
    np.testing.assert_allclose(y.numpy(), x * expected[..., None], rtol=1e-5)


def elsewhere(x: Any) -> Any:
    """The same memory, said to be on another device"""
    moved = x.view(x.shape, x.strides)
    moved.device = SimpleNamespace(name="other", asarray=lambda array: array)
    return moved


@pytest.mark.parametrize("name", ["append", "attention", "attention-backward", "decode", "router-backward",
                                  "swiglu", "z-loss-backward"])
def test_arrays_of_another_device(device: EmulatedDevice, name: str) -> None:
    """In arguments, and in structures of pointers."""
    function, sizes, wrong = CASES[name]
    for argument in wrong.keys() - {"lengths", "positions"}:
        arrays = {key: device.asarray(np.ones(shape, INTEGERS.get(key, np.float32)))
                  for key, shape in sizes.items()}
        with pytest.raises(DeviceArgumentError, match="is on another device"):
            function(**arrays | {argument: elsewhere(arrays[argument])})


def test_what_is_changed_in_place_is_dense(device: EmulatedDevice) -> None:
    x = device.asarray(np.ones((1, 1, 4, 4), np.float32)).permute((0, 1, 3, 2))
    angle = device.asarray(np.zeros((4, 2), np.float32))
    with pytest.raises(DeviceArgumentError, match="q: strides .* must be 1"):
        rope_qk(x, None, angle, angle, in_place=True)
    with pytest.raises(DeviceArgumentError, match="out: strides .* dense"):
        scatter_add_into(x[0, 0], x[0, 0].contiguous(), device.asarray(np.arange(4)))
