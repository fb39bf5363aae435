"""Hyper-connections and mHC against their equations in NumPy, and what they promise: a plain residual network
at the start, no stream preferred, nothing amplified."""

from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.layers.auxiliary import collect
from nn.layers.residual.connection import Branch
from nn.layers.residual.hyper import HyperConnection, HyperSettings
from nn.layers.residual.manifold import ManifoldConnection, ManifoldMaps, ManifoldSettings
from nn.layers.residual.streams import StreamEnds
from nn.layers.stack import Stack, StackSettings
from nn.ops.streams import read_streams, write_streams
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import SMALL, close, shaken
from tests.gradients import check
from tests.layers.residual.test_sinkhorn import by_loops

random = np.random.default_rng


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def rms(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def values(module: Any) -> dict[str, np.ndarray]:
    return {name: p.data for name, p in module.named_parameters().items()}


# ---- the operations ----


@pytest.mark.parametrize("dynamic", [True, False])
def test_reading_and_writing_are_their_definitions(dynamic: bool) -> None:
    draw = random(0)
    lead = (2, 3) if dynamic else ()
    x, y = draw.standard_normal((2, 3, 4, 5)), draw.standard_normal((2, 3, 5))
    a, b, m = (draw.standard_normal((*lead, *shape)) for shape in ((4,), (4,), (4, 4)))
    close(read_streams(Tensor(x), Tensor(a)).data, np.einsum("...i,...id->...d", a, x), 1e-13)
    written = write_streams(*map(Tensor, (x, m, b, y))).data
    expected = np.einsum("...oi,...id->...od", m, x) + b[..., None] * y[..., None, :]
    close(written, expected, 1e-13)


def test_shapes_that_do_not_fit_are_named() -> None:
    x, one = Tensor(np.zeros((2, 4, 5))), Tensor(np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"mix \[4, 4\], write \[3\] and y \[2, 5\] do not fit"):
        write_streams(x, one, Tensor(np.zeros(3)), Tensor(np.zeros((2, 5))))


# ---- the equations ----


def applied(connection: Any, x: np.ndarray, function: Any) -> np.ndarray:
    branch = Branch(lambda u: Tensor(function(u.data)), connection.settings.branches[0])
    with no_grad():
        return np.asarray(connection(Tensor(x), [branch]).data)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("tanh", [True, False])
def test_hyper_connection_by_its_equations(dynamic: bool, tanh: bool) -> None:
    s = HyperSettings(hidden_size=6, n_streams=3, dynamic=dynamic, tanh=tanh, branches=(True,), norm_eps=1e-5)
    connection, x = shaken(HyperConnection(s, "float64"), 0), random(1).standard_normal((2, 4, 3, 6))
    w = values(connection)
    alpha, beta = w["maps.0.static_alpha"], w["maps.0.static_beta"]
    if dynamic:
        hat, bound = rms(x, 1e-5) * w["maps.0.norm.weight"], np.tanh if tanh else np.asarray
        alpha = alpha + w["maps.0.dynamic_alpha_scale"] * bound(hat @ w["maps.0.dynamic_alpha_fn"])
        beta = beta + w["maps.0.dynamic_beta_scale"] * bound(hat @ w["maps.0.dynamic_beta_fn"])[..., 0]
    u = (alpha[..., 0, None] * x).sum(axis=2)
    y = np.sin(rms(u, 1e-5) * w["norms.0.weight"])
    expected = np.zeros_like(x)
    for o in range(3):
        expected[:, :, o] = sum(alpha[..., i, 1 + o, None] * x[:, :, i] for i in range(3))
        expected[:, :, o] += beta[..., o, None] * y
    close(applied(connection, x, np.sin), expected, 1e-12)


@pytest.mark.parametrize(("variant", "transposed"), [("A", False), ("A", True), ("B", False), ("C", False)])
def test_mhc_by_its_equations(variant: str, transposed: bool) -> None:
    s = ManifoldSettings(hidden_size=5, n_streams=2, sinkhorn_iters=3, sinkhorn_variant=variant,
                         branches=(False,), pre_eps=0.01, transposed=transposed)
    connection, x = shaken(ManifoldConnection(s, "float64"), 0), random(1).standard_normal((2, 3, 2, 5))
    w = values(connection)
    m = rms(x.reshape(2, 3, 10), 1e-6) @ w["maps.0.fn"].T
    scale, base = w["maps.0.scale"], w["maps.0.base"]
    a = sigmoid(scale[0] * m[..., :2] + base[:2]) + 0.01
    b = 2.0 * sigmoid(scale[1] * m[..., 2:4] + base[2:4])
    logits = (scale[2] * m[..., 4:] + base[4:]).reshape(2, 3, 2, 2)
    expected = np.zeros_like(x)
    for place in np.ndindex(2, 3):
        mix = by_loops(logits[place], 3, 1e-6, variant)
        u = a[place] @ x[place]
        expected[place] = (mix.T if transposed else mix) @ x[place] + b[place][:, None] * np.cos(u)
    close(applied(connection, x, np.cos), expected, 1e-12)


@pytest.mark.parametrize("collapse", ["mean", "sum", "gated"])
def test_ends(collapse: str) -> None:
    s = ManifoldSettings(hidden_size=3, n_streams=4, collapse=collapse, stream_embedding=True)
    ends, x = shaken(StreamEnds(s, "float64"), 0), random(1).standard_normal((2, 3, 3))
    w, opened = values(ends), ends.open(Tensor(x))
    streams = x[:, :, None] + w["embedding"]
    close(opened.data, streams, 1e-15)
    gate = np.full((2, 3, 4), 0.25 if collapse == "mean" else 1.0)
    if collapse == "gated":
        gate = sigmoid(w["scale"] * (rms(streams.reshape(2, 3, 12), 1e-6) @ w["fn"].T) + w["base"]) + 1e-6
    close(ends.close(opened).data, (gate[..., None] * streams).sum(axis=2), 1e-13)


# ---- a plain residual network at the start ----


def beside_plain(residual: str, layers: int = 3, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a stack with random blocks gives with this connection, and without"""
    def build(name: str, own: dict[str, Any]) -> Any:
        return Stack(StackSettings(hidden_size=8, num_layers=layers, residual=name,
                                   options={**SMALL, **({name: own} if own else {})}), dtype="float64")

    plain, wide = shaken(build("pre_norm", {}), 0), build(residual, options)
    shared = {name: p.data for name, p in plain.named_parameters().items()}
    own = {name: p.data for name, p in wide.initialize(3).named_parameters().items()}
    wide.load_state_dict(own | shared)
    x = Tensor(random(1).standard_normal((2, 5, 8)))
    with no_grad():
        return wide(x)[0].data, plain(x)[0].data


@pytest.mark.parametrize("n", [1, 2, 4])
def test_hyper_connections_start_as_a_plain_residual(n: int) -> None:
    close(*beside_plain("hc", n_streams=n), 1e-12)
    close(*beside_plain("hc", n_streams=n, dynamic=False), 1e-12)
    wide, plain = beside_plain("hc", n_streams=n, collapse="sum")
    close(wide, n * plain, 1e-12)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_mhc_starts_as_a_plain_residual(n: int) -> None:
    for variant in "ABC":
        close(*beside_plain("mhc", n_streams=n, sinkhorn_variant=variant, sinkhorn_eps=0.0), 1e-12)
    wide, plain = beside_plain("mhc", n_streams=n)
    assert not np.array_equal(wide, plain) or n == 1
    close(wide, plain, 1e-4)                                     # ε of the sums, layer by layer
    close(*beside_plain("mhc", n_streams=n, collapse="gated", sinkhorn_eps=0.0, gate_eps=0.0), 1e-12)


def test_golden_bias_of_what_is_read() -> None:
    base = ManifoldMaps(ManifoldSettings(hidden_size=2)).base.data
    np.testing.assert_allclose(base[:4], -1.09861229, atol=5e-9)
    assert not base[4:8].any()


# ---- what the manifold keeps ----


def random_maps(n: int = 4, width: int = 5, seed: int = 0) -> tuple[ManifoldMaps, np.ndarray]:
    s = ManifoldSettings(hidden_size=width, n_streams=n, dynamic_scale=1.0, res_diagonal=0.0)
    return shaken(ManifoldMaps(s, "float64"), seed), random(seed).standard_normal((2, 3, n, width))


def test_mixing_is_doubly_stochastic_and_keeps_the_mean_of_the_streams() -> None:
    maps, x = random_maps()
    _, mix, _ = maps(Tensor(x))
    assert mix.data.min() > 0.0
    for axis in (-1, -2):
        np.testing.assert_allclose(mix.data.sum(axis=axis), 1.0, atol=1e-5)
    close((mix.data @ x).mean(axis=2), x.mean(axis=2), 1e-5)


def test_what_the_iterations_leave_of_row_sums_is_reported() -> None:
    errors = []
    for iterations in (1, 3, 20):
        settings = ManifoldSettings(hidden_size=5, n_streams=4, dynamic_scale=1.0, res_diagonal=0.0,
                                    sinkhorn_iters=iterations)
        maps = shaken(ManifoldMaps(settings, "float64"), 0)
        with collect() as heard:
            _, mix, _ = maps(Tensor(random(0).standard_normal((2, 3, 4, 5))))
        errors.append(float(dict(heard.figures)["mhc/sum_error"]))
        assert errors[-1] == max(np.abs(mix.data.sum(axis=axis) - 1.0).max() for axis in (-1, -2))
    assert errors[0] > 5.0 * errors[1] > 25.0 * errors[2] > 0.0


def test_nothing_is_amplified_however_deep() -> None:
    """The largest row sum of Π |M| over 60 layers stays 1 for mHC, and grows without the constraint."""
    kept, free = np.eye(4), np.eye(4)
    for layer in range(60):
        maps, x = random_maps(seed=layer)
        kept = np.abs(maps(Tensor(x[:1, :1]))[1].data[0, 0]) @ kept
        s = HyperSettings(hidden_size=5, branches=(True,))
        mix = shaken(HyperConnection(s, "float64"), layer).maps[0](Tensor(x[:1, :1]))[1]
        free = np.abs(mix.data[0, 0]) @ free
    assert kept.sum(axis=1).max() <= 1.0 + 1e-3
    assert free.sum(axis=1).max() > 1e3


@pytest.mark.parametrize("name", ["hc", "mhc"])
def test_no_stream_is_preferred(name: str) -> None:
    """The streams in another order, and the parameters with them: the same, in that order"""
    order, x = np.array([2, 0, 1]), random(1).standard_normal((2, 3, 3, 4))
    kinds: dict[str, Any] = {"hc": (HyperConnection, HyperSettings),
                             "mhc": (ManifoldConnection, ManifoldSettings)}
    cls, settings = kinds[name]
    one, other = (cls(settings(hidden_size=4, n_streams=3, branches=(True,)), "float64") for _ in range(2))
    shaken(one, 0)
    w = dict(values(one))
    if name == "hc":
        w["maps.0.static_alpha"] = w["maps.0.static_alpha"][order][:, [0, *(1 + order)]]
        w["maps.0.static_beta"] = w["maps.0.static_beta"][order]
        w["maps.0.dynamic_alpha_fn"] = w["maps.0.dynamic_alpha_fn"][:, [0, *(1 + order)]]
    else:
        rows = [*order, *(3 + order), *(6 + (3 * order[:, None] + order[None, :]).reshape(-1))]
        w["maps.0.fn"] = w["maps.0.fn"][rows].reshape(15, 3, 4)[:, order].reshape(15, 12)
        w["maps.0.base"] = w["maps.0.base"][rows]
    other.load_state_dict(w)
    close(applied(other, x[:, :, order], np.sin), applied(one, x, np.sin)[:, :, order], 1e-6)


def test_one_branch_meets_each_stream_in_turn() -> None:
    """Branch l of the whole model reads stream l mod n"""
    stack = Stack(StackSettings(hidden_size=8, num_layers=3, residual="hc",
                                options={**SMALL, "hc": {"n_streams": 4}}))
    read = [maps.static_alpha.data[:, 0].argmax() for layer in stack.layers for maps in layer.connection.maps]
    assert read == [0, 1, 2, 3, 0, 1]


def test_gradient_reaches_the_streams_through_maps_and_state_together() -> None:
    """dX = Σ M dX' + a du + the maps' share, by differences"""
    options: dict[str, Any] = {"hidden_size": 4, "n_streams": 2, "branches": (True,)}
    for connection in (HyperConnection(HyperSettings(**options), "float64"),
                       ManifoldConnection(ManifoldSettings(**options), "float64")):
        shaken(connection, 0)
        check(lambda x, c=connection: c(x, [Branch(ops.tanh)]), random(2).standard_normal((1, 2, 2, 4)),
              parameters=connection.parameters())
