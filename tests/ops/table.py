"""Every operation of nn.ops on many inputs: one table, which the tests of gradients,
layouts and mutants share."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import ops
from nn.backends.array_api import namespace
from nn.ops.merged import KeySet
from nn.ops.tiled import Tile
from nn.random import counter
from nn.tensor import Tensor

Function = Callable[..., Any]


@dataclass(frozen=True)
class Row:
    op: str                            # name in nn.ops
    case: str
    function: Function                 # of tensors
    inputs: tuple[np.ndarray, ...]     # float64

    @property
    def id(self) -> str:
        return f"{self.op}-{self.case}"


def normal(seed: str, *shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(zlib.crc32(seed.encode())).standard_normal(shape))


def away(x: np.ndarray, distance: float = 0.2) -> np.ndarray:
    """No entry nearer to 0 than this: kinks and poles are there"""
    return np.where(x < 0, x - distance, x + distance)


def integers(seed: str, high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(seed.encode())).integers(0, high, shape)


def distinct(seed: str, *shape: int) -> np.ndarray:
    """Random order of values at least 0.1 apart: no ties for maximum and top-k"""
    count = int(np.prod(shape))
    order = np.random.default_rng(zlib.crc32(seed.encode())).permutation(count)
    return (order.reshape(shape) - count / 2) * 0.1


def label(*shapes: tuple[int, ...]) -> str:
    return "+".join("x".join(map(str, shape)) or "scalar" for shape in shapes)


SHAPES = ((), (0,), (1,), (5,), (3, 4), (2, 0, 3), (1, 1, 1), (2, 1, 3))
PAIRS = (((3, 4), (3, 4)), ((), (3, 4)), ((3, 4), ()), ((4,), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)),
         ((1, 4), (3, 4)), ((2, 1, 3), (4, 1)), ((4, 1), (2, 1, 3)), ((1, 1), (2, 3, 4)),
         ((0, 3), (1, 3)), ((1, 3), (0, 3)), ((1,), (5,)), ((), ()))

SMOOTH: dict[str, Function] = {
    "exp": ops.exp, "tanh": ops.tanh, "sigmoid": ops.sigmoid, "silu": ops.silu, "gelu": ops.gelu,
    "neg": ops.neg, "elu_plus_one": ops.elu_plus_one, "softplus": ops.softplus,
    "log_sigmoid": ops.log_sigmoid, "sqrt_softplus": ops.sqrt_softplus, "normal_cdf": ops.normal_cdf,
    "cast": lambda x: ops.cast(x, np.float64)}
POSITIVE: dict[str, Function] = {"log": ops.log, "sqrt": ops.sqrt, "power": lambda x: ops.power(x, -1.5)}
KINKED: dict[str, Function] = {"absolute": ops.absolute, "relu": ops.relu,
                               "clip": lambda x: ops.clip(x, -0.7, 0.1)}
BINARY: dict[str, Function] = {"add": ops.add, "sub": ops.sub, "mul": ops.mul, "maximum": ops.maximum}


def elementwise() -> Iterator[Row]:
    for shape in SHAPES:
        for name, function in SMOOTH.items():
            yield Row(name, label(shape), function, (normal(f"{name}{shape}", *shape),))
        for name, function in POSITIVE.items():
            yield Row(name, label(shape), function, (np.abs(away(normal(f"{name}{shape}", *shape), 0.5)),))
        for name, function in KINKED.items():
            yield Row(name, label(shape), function, (away(normal(f"{name}{shape}", *shape)),))
        yield Row("gelu", f"tanh-{label(shape)}", lambda x: ops.gelu(x, approximate=True),
                  (normal(f"gelu{shape}", *shape),))
    for exponent in (0, 1, 2, 3):
        yield Row("power", f"{exponent}-of-negative", lambda x, p=exponent: ops.power(x, p),
                  (normal("power", 7),))
    for name in ("softplus", "log_sigmoid"):
        yield Row(name, "large", SMOOTH[name], (np.array([-800.0, -8.0, 8.0, 800.0]),))
    yield Row("silu", "large", ops.silu, (np.array([-30.0, -8.0, 8.0, 30.0]),))
    yield Row("gelu", "large", ops.gelu, (np.array([-8.0, -4.0, 4.0, 8.0]),))


def broadcasting() -> Iterator[Row]:
    for a, b in PAIRS:
        x, y = normal(f"a{a}{b}", *a), normal(f"b{a}{b}", *b)
        for name, function in BINARY.items():
            yield Row(name, label(a, b), function, (x, y + 10.0 * (name == "maximum" and a == ())))
        yield Row("div", label(a, b), ops.div, (x, away(y, 0.5)))
        condition = integers(f"c{a}{b}", 2, *np.broadcast_shapes(a, b)).astype(bool)
        yield Row("where", label(a, b), lambda p, q, c=condition: ops.where(c, p, q), (x, y))
    yield Row("where", "wide-condition", lambda p, q: ops.where(np.array([[True], [False], [True]]), p, q),
              (normal("w1", 4), normal("w2", 4)))
    yield Row("maximum", "many", ops.maximum, (distinct("m1", 6, 5), distinct("m2", 6, 5) + 0.05))
    x = normal("number", 3, 4)
    for name in BINARY:
        function = getattr(ops, name)
        yield Row(name, "number-right", lambda t, f=function: f(t, 5.5), (x,))
        yield Row(name, "number-left", lambda t, f=function: f(-5.5, t), (x,))
        yield Row(name, "array-right", lambda t, f=function: f(t, np.full((2, 1, 4), 9.0)), (x,))
    yield Row("div", "number-left", lambda t: ops.div(2.0, t), (away(x, 0.5),))
    yield Row("div", "number-right", lambda t: ops.div(t, -0.3), (x,))
    yield Row("where", "number-left", lambda t: ops.where(x > 0, 0.0, t), (x,))


AXES = (((), None), ((4,), 0), ((0,), None), ((3, 4), None), ((3, 4), 0), ((3, 4), -1), ((3, 4), (0, 1)),
        ((2, 3, 4), (0, 2)), ((2, 3, 4), (-1,)), ((2, 3, 4), 1), ((2, 0, 3), 1), ((2, 0, 3), 0),
        ((1, 1, 1), (0, 2)))


def reductions() -> Iterator[Row]:
    for shape, axis in AXES:
        for keepdims in (False, True):
            case = f"{label(shape)}-{axis}" + "-kept" * keepdims
            options = {"axis": axis, "keepdims": keepdims}
            for name in ("sum", "mean"):
                function = getattr(ops, name)
                yield Row(name, case, lambda x, f=function, o=options: f(x, **o), (normal(case, *shape),))
            if 0 not in shape:
                yield Row("max", case, lambda x, o=options: ops.max(x, **o), (distinct(case, *shape),))
    for shape, axis in (((4,), 0), ((3, 4), 0), ((3, 4), -1), ((2, 3, 4), 1), ((0, 3), 0), ((1, 1), 1)):
        yield Row("cumsum", f"{label(shape)}-{axis}", lambda x, a=axis: ops.cumsum(x, a),
                  (normal("cumsum", *shape),))
    for shape in ((1,), (5,), (3, 4), (0, 4), (2, 1, 7)):
        x = 3.0 * normal(f"softmax{shape}", *shape)
        yield Row("logsumexp", label(shape), ops.logsumexp, (x,))
        yield Row("softmax", label(shape), ops.softmax, (x,))
        yield Row("log_softmax", label(shape), ops.log_softmax, (x,))


INDICES: dict[str, Any] = {
    "0": 0, "-1": -1, "1:3": slice(1, 3), "::2": slice(None, None, 2), "::-1": slice(None, None, -1),
    "empty": slice(2, 2), "...,1": (..., 1), "1,...": (1, ...), ":,1": (slice(None), 1),
    ":,None": (slice(None), None), "None": None, "...": ...,
    "-1,-2": (-1, -2), "1:,...,::-2": (slice(1, None), ..., slice(None, None, -2)), "0,1,2": (0, 1, 2)}


def views() -> Iterator[Row]:
    x = normal("views", 3, 4, 5)
    for shapes in (((3, 4), (4, 3)), ((3, 4), (12,)), ((3, 4), (2, -1)), ((), (1, 1)), ((1,), ()),
                   ((2, 0), (0, 5)), ((6,), (1, 2, 3))):
        yield Row("reshape", label(*shapes), lambda t, s=shapes[1]: ops.reshape(t, s),
                  (normal("reshape", *shapes[0]),))
    yield Row("reshape", "numbers", lambda t: ops.reshape(t, 4, 15), (x,))
    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (-1, 0, -2)):
        yield Row("permute", label(axes), lambda t, a=axes: ops.permute(t, *a), (x,))
    for shape in ((3, 4), (2, 3, 4), (1, 0), (2, 1, 1)):
        yield Row("transpose", label(shape), ops.transpose, (normal("transpose", *shape),))
    for a, b in (((), (3,)), ((4,), (3, 4)), ((3, 1), (3, 4)), ((1, 1), (2, 3, 4)), ((1, 3), (0, 3)),
                 ((3,), (3,))):
        yield Row("broadcast_to", label(a, b), lambda t, s=b: ops.broadcast_to(t, s),
                  (normal("broadcast", *a),))
    for name, index in INDICES.items():
        yield Row("getitem", name, lambda t, i=index: ops.getitem(t, i), (x,))
    for axis in (0, 1, -1):
        parts = tuple(np.moveaxis(normal(f"concat{axis}{n}", n, 2, 3), 0, axis) for n in (1, 0, 4))
        yield Row("concat", f"axis {axis}", lambda *p, a=axis: ops.concat(list(p), axis=a), parts)
    for axis in (0, 1, 2, -1):
        parts = tuple(normal(f"stack{i}", 2, 3) for i in range(3))
        yield Row("stack", f"axis {axis}", lambda *p, a=axis: ops.stack(list(p), axis=a), parts)
    yield Row("stack", "scalars", lambda *p: ops.stack(list(p)), (normal("s1"), normal("s2")))
    for widths in ((5,), (2, 3), (1, 0, 4)):
        yield Row("split", label(widths), lambda t, w=widths: ops.split(t, *w), (x,))
    yield Row("split", "second-part-only", lambda t: ops.split(t, 2, 3)[1], (x,))


def gathers() -> Iterator[Row]:
    table = normal("take", 5, 3)
    for name, index in {"repeats": [2, 0, 2, 2], "two-axes": [[1, 1], [4, 0]], "none": [],
                        "all-the-same": [3] * 6}.items():
        places = np.array(index, dtype=np.int64)
        yield Row("take", name, lambda x, i=places: ops.take(x, i), (table,))
    yield Row("take", "scalar-index", lambda x: ops.take(x, np.array(1)), (table,))
    yield Row("take", "of-a-vector", lambda x: ops.take(x, np.array([1, 1, 0])), (normal("vector", 4),))
    yield Row("take", "of-three-axes", lambda x: ops.take(x, np.array([1, 0, 1])),
              (normal("three", 2, 3, 2),))
    yield Row("take", "small-integers", lambda x: ops.take(x, np.array([4, 4, 0], np.uint8)), (table,))
    for name, index in {"repeats": [2, 0, 2, 2], "all-the-same": [1] * 4, "reversed": [3, 2, 1, 0]}.items():
        places = np.array(index)
        yield Row("scatter_add", name, lambda x, i=places: ops.scatter_add(x, i, 4),
                  (normal("scatter", 4, 3),))
    yield Row("scatter_add", "none", lambda x: ops.scatter_add(x, np.zeros(0, np.int64), 3),
              (normal("scatter", 0, 2),))
    for name, index in {"repeats": [[0, 0, 3], [2, 2, 2]], "none": [[], []], "once": [[1], [0]]}.items():
        places = np.array(index, dtype=np.int64)
        yield Row("take_along_axis", name, lambda x, i=places: ops.take_along_axis(x, i),
                  (normal("along", 2, 4),))
    deep = integers("deep", 5, 2, 3, 2)
    yield Row("take_along_axis", "three-axes", lambda x: ops.take_along_axis(x, deep),
              (normal("along", 2, 3, 5),))


def products() -> Iterator[Row]:
    for a, b in (((3, 4), (4, 5)), ((1, 1), (1, 1)), ((2, 3, 4), (4, 5)), ((3, 4), (2, 4, 5)),
                 ((2, 1, 3, 4), (5, 4, 2)), ((0, 4), (4, 5)), ((3, 0), (0, 5)), ((3, 4), (4, 0)),
                 ((0, 3, 4), (4, 2)), ((1, 3, 4), (2, 4, 1))):
        yield Row("matmul", label(a, b), ops.matmul, (normal(f"a{a}", *a), normal(f"b{b}", *b)))
    yield Row("matmul", "array-left", lambda x: ops.matmul(np.ones((2, 3)), x), (normal("right", 3, 4),))
    yield Row("matmul", "array-right", lambda x: ops.matmul(x, np.ones((4, 2))), (normal("left", 3, 4),))
    for shape in ((3, 4), (4,), (2, 0, 4), (2, 3, 4), (1, 1, 4)):
        x, w, b = normal(f"x{shape}", *shape), normal("w", 5, 4), normal("b", 5)
        yield Row("linear", label(shape), ops.linear, (x, w))
        yield Row("linear", f"{label(shape)}-bias", ops.linear, (x, w, b))
    yield Row("linear", "width-1", ops.linear, (normal("x", 3, 1), normal("w", 1, 1), normal("b", 1)))
    yield Row("linear", "no-input", ops.linear, (normal("x", 3, 0), normal("w", 2, 0), normal("b", 2)))


def convolutions() -> Iterator[Row]:
    for batch, length, channels, taps, dilation in ((2, 5, 3, 4, 1), (1, 4, 2, 3, 2), (1, 1, 1, 1, 1),
                                                    (2, 3, 2, 1, 3), (0, 3, 2, 2, 1), (2, 0, 2, 3, 1)):
        shape = (batch, (taps - 1) * dilation + length, channels)
        yield Row("causal_conv", f"{label(shape)}-{taps}-{dilation}",
                  lambda x, w, d=dilation: ops.causal_conv(x, w, d),
                  (normal(f"conv{shape}", *shape), normal(f"taps{taps}", channels, taps)))


def norms() -> Iterator[Row]:
    for shape in ((3, 5), (2, 7, 33), (1, 1, 1), (4,), (0, 4), (2, 3, 1), (2, 0, 3, 4)):
        x, w, b = normal(f"n{shape}", *shape), normal("nw", shape[-1]), normal("nb", shape[-1])
        yield Row("rms_norm", label(shape), lambda x, w: ops.rms_norm(x, w, 1e-3), (x, w))
        yield Row("layer_norm", label(shape), lambda x, w, b: ops.layer_norm(x, w, b, 0.05), (x, w, b))
        delta = normal(f"nd{shape}", *shape)
        for part, take in (("", slice(None)), ("-norm-alone", 0)):
            yield Row("rms_norm_residual", label(shape) + part,
                      lambda x, d, w, t=take: ops.rms_norm_residual(x, d, w, 1e-3)[t], (x, delta, w))
        yield Row("rms_norm_residual", f"{label(shape)}-array-weight-sum-alone",
                  lambda x, d, w=w: ops.rms_norm_residual(x, d, Tensor(w), 1e-3)[1], (x, delta))
        yield Row("rms_norm_residual", f"{label(shape)}-no-delta",
                  lambda x, w: ops.rms_norm_residual(x, None, w, 1e-3), (x, w))
    zero = np.array([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]])
    yield Row("rms_norm", "zero-row", lambda x, w: ops.rms_norm(x, w, 0.5), (zero, normal("nw", 3)))
    yield Row("layer_norm", "zero-row", lambda x, w, b: ops.layer_norm(x, w, b, 0.5),
              (zero, normal("nw", 3), normal("nb", 3)))


def linear_attentions() -> Iterator[Row]:
    """Chunks of linear attention with decays and of the delta rule: inputs, a state that came before"""
    for count, size, keys, values in ((3, 4, 3, 2), (1, 1, 2, 2), (2, 8, 3, 5), (2, 2, 1, 1), (1, 16, 4, 3)):
        case, lead = label((count, size, keys, values)), (1, 2, count, size)
        q, k = normal(f"q{case}", *lead, keys), normal(f"k{case}", *lead, keys)
        v, s = normal(f"v{case}", *lead, values), normal(f"s{case}", 1, 2, keys, values)
        slow, fast = -np.exp(normal(f"g{case}", *lead, keys)), -np.exp(normal(f"d{case}", *lead))
        unit, share = k / np.linalg.norm(k, axis=-1, keepdims=True), 1.0 / (1.0 + np.exp(-fast))
        for part, take in (("", slice(None)), ("-alone", 0), ("-state-alone", 1)):
            yield Row("decayed_chunks", case + part, lambda *x, t=take: ops.decayed_chunks(*x)[t],
                      (q, k, v, fast, s))
            yield Row("gla_chunks", case + part, lambda *x, t=take: ops.gla_chunks(*x)[t], (q, k, v, slow, s))
            yield Row("delta_chunks", case + part, lambda *x, t=take: ops.delta_chunks(*x)[t],
                      (q, unit, v, fast, 2.0 * share, s))
    for shape in SHAPES[1:]:
        yield Row("l2_norm", label(shape), lambda x: ops.l2_norm(x, 1e-2), (normal(f"l{shape}", *shape),))


def scans() -> Iterator[Row]:
    """One token at a time, in even and in uneven chunks"""
    for (batch, length, channels, states), size in (((2, 5, 3, 4), 4), ((1, 7, 2, 1), 1), ((1, 9, 1, 2), 64),
                                                    ((1, 1, 1, 1), 4), ((2, 0, 2, 3), 4), ((1, 6, 2, 2), 3)):
        case = f"{label((batch, length, channels, states))}-{size}"
        x, d = normal(f"x{case}", batch, length, channels), normal(f"d{case}", channels)
        steps, rates = np.exp(normal(f"s{case}", *x.shape)), -np.exp(normal(f"r{case}", channels, states))
        b, c = normal(f"b{case}", batch, length, states), normal(f"c{case}", batch, length, states)
        h = normal(f"h{case}", batch, channels, states)
        for part, take in (("", slice(None)), ("-alone", 0), ("-state-alone", 1)):
            yield Row("selective_scan", case + part,
                      lambda *t, s=size, take=take: ops.selective_scan(*t, chunk_size=s)[take],
                      (x, steps, rates, b, c, d, h))


def _angles(*shape: int) -> dict[str, np.ndarray]:
    """Tables whose squares do not add up to 1: the backward may not rely on it more than it says"""
    angles = 3.0 * normal("angles", *shape)
    return {"cos": np.cos(angles), "sin": np.sin(angles)}


ATTENTION: dict[str, tuple[tuple[int, int, int, int, int], dict[str, Any]]] = {       # (B, H, G, T, S)
    "multi-head": ((2, 2, 2, 4, 4), {}), "grouped": ((1, 4, 2, 5, 5), {}),
    "multi-query": ((2, 3, 1, 3, 3), {}), "one-token": ((1, 1, 1, 1, 1), {}),
    "continued": ((1, 2, 1, 3, 7), {}), "more-queries": ((1, 2, 1, 5, 3), {}),
    "bidirectional": ((1, 2, 2, 3, 5), {"causal": False}), "window": ((1, 2, 1, 7, 7), {"window": 3}),
    "window-1": ((1, 1, 1, 4, 4), {"window": 1}),
    "two-sided-window": ((1, 1, 1, 6, 6), {"window": 2, "causal": False}),
    "scale": ((1, 1, 1, 3, 3), {"scale": 1.7}),
    "no-key": ((1, 1, 1, 2, 0), {}), "no-query": ((1, 2, 1, 0, 3), {}),
    "padding": ((2, 2, 1, 4, 4), {"mask": np.array([[False, True, True, True], [True] * 4])[:, None, None]}),
    "blind-query": ((1, 2, 1, 3, 3), {"mask": np.array([[True] * 3, [False] * 3, [True] * 3])}),
    "beyond-a-block": ((1, 1, 1, 130, 130), {}),
    "beyond-a-block-window": ((1, 1, 1, 130, 131), {"window": 9})}


def attentions() -> Iterator[Row]:
    for interleaved in (False, True):
        for shape, half in (((2, 3, 5, 8), 4), ((1, 2, 3, 8), 2), ((1, 1, 1, 2), 1), ((2, 1, 0, 4), 2)):
            tables = _angles(shape[2], half)
            yield Row("rope", f"{label(shape)}-{half}" + "-interleaved" * interleaved,
                      lambda x, t=tables, i=interleaved: ops.rope(x, **t, interleaved=i),
                      (normal("rope", *shape),))
        tables = _angles(2, 1, 3, 2)
        yield Row("rope", "per-row" + "-interleaved" * interleaved,
                  lambda x, t=tables, i=interleaved: ops.rope(x, **t, interleaved=i),
                  (normal("rope", 2, 3, 3, 4),))
    for name, ((b, h, g, t, s), options) in ATTENTION.items():
        inputs = (normal(f"q{name}", b, h, t, 4), normal(f"k{name}", b, g, s, 4),
                  normal(f"v{name}", b, g, s, 3))
        yield Row("attention", name, lambda q, k, v, o=options: ops.attention(q, k, v, **o), inputs)


def parted_attentions() -> Iterator[Row]:
    """Softmax over two sets of keys, with sink logits; over tiles of keys, of which some are in no tile"""
    mask = integers("parts", 2, 2, 1, 5, 3).astype(bool)
    arrays = tuple(normal(f"parts{i}", *shape) for i, shape in enumerate(
        ((2, 4, 5, 4), (2, 2, 6, 4), (2, 2, 6, 3), (2, 2, 3, 4), (2, 2, 3, 3), (4,))))

    def merged(*tensors: Tensor, window: int = 0) -> Tensor:
        q, k, v, k2, v2, *sinks = tensors
        there = namespace(q.data).asarray(mask)
        sets = [KeySet(k, v, window=window), KeySet(k2, v2, causal=False, mask=there)]
        return ops.merged_attention(q, sets, sinks=sinks[0] if sinks else None)

    yield Row("merged_attention", "two-sets", merged, arrays[:5])
    yield Row("merged_attention", "sinks", merged, arrays)
    yield Row("merged_attention", "window", lambda *x: merged(*x, window=2), arrays)

    def blind(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        hidden = namespace(q.data).asarray(np.zeros((1, 1, 3, 4), bool))
        return ops.merged_attention(q, [KeySet(k, v, causal=False, mask=hidden)], sinks=sinks)

    yield Row("merged_attention", "nothing-visible", blind,
              (normal("hq", 1, 2, 3, 4), normal("hk", 1, 1, 4, 4), normal("hv", 1, 1, 4, 2), normal("hb", 2)))

    def dense(*tensors: Tensor, window: int = 0, **options: Any) -> Tensor:
        q, k, v, k2, v2, *sinks = tensors
        there = namespace(q.data).asarray(mask)
        sets = [KeySet(k, v, window=window), KeySet(k2, v2, causal=False, mask=there)]
        return ops.dense_attention(q, sets, sinks=sinks[0] if sinks else None, **options)

    place = counter(5, "dropped", 1, 2, 3)
    yield Row("dense_attention", "two-sets", dense, arrays[:5])
    yield Row("dense_attention", "softcap-sinks", lambda *x: dense(*x, softcap=0.7, scale=0.9), arrays)
    yield Row("dense_attention", "array-dropout",
              lambda *x: dense(*x, window=2, softcap=0.7, dropout=0.4, noise=place), arrays)
    yield Row("dense_attention", "nothing-visible",
              lambda q, k, v: ops.dense_attention(q, [KeySet(k, v)], softcap=2.0),
              (normal("cq", 1, 2, 3, 4), normal("ck", 1, 1, 1, 4), normal("cv", 1, 1, 1, 2)))
    yield Row("dense_attention", "no-keys", lambda q, k, v: ops.dense_attention(q, [KeySet(k, v)]),
              (normal("eq", 1, 2, 3, 4), normal("ek", 1, 1, 0, 4), normal("ev", 1, 1, 0, 2)))
    for p in (0.3, 1.0):
        yield Row("dropout", str(p), lambda x, p=p: ops.dropout(x, p, place), (normal("drop", 3, 5),))
    tiles = [Tile(0, 2, ((0, 2),)), Tile(2, 4, ((0, 1), (3, 5))), Tile(4, 5, ((1, 2), (5, 6)))]
    for causal in (True, False):
        yield Row("tiled_attention", "causal" if causal else "both-ways",
                  lambda q, k, v, c=causal: ops.tiled_attention(q, k, v, tiles, causal=c), arrays[:3])
    yield Row("tiled_attention", "no-queries", lambda q, k, v: ops.tiled_attention(q, k, v, []),
              (normal("none", 1, 2, 0, 4), normal("nk", 1, 1, 3, 4), normal("nv", 1, 1, 3, 2)))


def losses() -> Iterator[Row]:
    for name, options in {"": {}, "smoothing": {"label_smoothing": 0.1}, "z-loss": {"z_loss": 0.02},
                          "softcap": {"softcap": 3.0},
                          "all": {"label_smoothing": 0.1, "z_loss": 0.02, "softcap": 3.0}}.items():
        targets = np.array([3, 0, -100, 10, 3, -100, 5])
        yield Row("cross_entropy", f"7x11-{name}",
                  lambda z, t=targets, o=options: ops.cross_entropy(z, t, **o),
                  (2.0 * normal("logits", 7, 11),))
        yield Row("linear_cross_entropy", f"7x5x11-{name}",
                  lambda x, w, t=targets, o=options: ops.linear_cross_entropy(x, w, t, scale=0.3, **o),
                  (normal("hidden", 7, 5), normal("head", 11, 5)))
    for rows, vocabulary in ((0, 4), (1, 1), (3, 1)):
        targets = np.zeros(rows, np.int64)
        yield Row("cross_entropy", f"{rows}x{vocabulary}", lambda z, t=targets: ops.cross_entropy(z, t),
                  (normal("z", rows, vocabulary),))
        yield Row("linear_cross_entropy", f"{rows}x2x{vocabulary}",
                  lambda x, w, t=targets: ops.linear_cross_entropy(x, w, t),
                  (normal("x", rows, 2), normal("w", vocabulary, 2)))
    ignored = np.full(3, -1)
    yield Row("cross_entropy", "all-ignored", lambda z: ops.cross_entropy(z, ignored, ignore_index=-1),
              (normal("z", 3, 4),))
    yield Row("linear_cross_entropy", "all-ignored",
              lambda x, w: ops.linear_cross_entropy(x, w, ignored, ignore_index=-1),
              (normal("x", 3, 2), normal("w", 4, 2)))
    shaped = np.array([1, 0, 3, 2, 2, 1])
    yield Row("linear_cross_entropy", "two-leading-axes", lambda x, w: ops.linear_cross_entropy(x, w, shaped),
              (normal("x", 2, 3, 4), normal("w", 5, 4)))


def _route(logits: Any, k: int, renormalize: bool) -> Any:
    weights, _, probs = ops.router_topk(logits, k, renormalize)
    return weights, probs


def experts() -> Iterator[Row]:
    for tokens, count, k in ((5, 4, 2), (1, 1, 1), (0, 4, 2), (6, 3, 3), (7, 5, 1)):
        drawn = [distinct(f"route{n}", count) * 4.0 for n in range(tokens)]
        logits = np.stack(drawn) if tokens else np.zeros((0, count))
        for renormalize in (True, False):
            case = label((tokens, count, k)) + ("" if renormalize else "-raw")
            yield Row("router_topk", case, lambda z, k=k, r=renormalize: _route(z, k, r), (logits,))
            yield Row("router_topk", f"{case}-weights-only", lambda z, k=k, r=renormalize: _route(z, k, r)[0],
                      (logits,))
        yield Row("router_topk", label((tokens, count, k)) + "-probs-only",
                  lambda z, k=k: _route(z, k, True)[1], (logits,))
    for tokens, count, k in ((5, 4, 2), (1, 1, 1), (0, 3, 2), (7, 5, 1)):
        chosen, logits = integers(f"chosen{tokens}", count, tokens, k), normal(f"aux{tokens}", tokens, count)
        case = label((tokens, count, k))
        yield Row("balance_loss", case, lambda p, c=chosen: ops.balance_loss(p, c, 0.7)[0], (logits,))
        yield Row("z_loss", case, lambda z: ops.z_loss(z, 0.3), (2.0 * logits,))
    place = counter(3, "table", 1, 2, 3)
    for shape in ((0, 3), (1, 1), (5, 3)):
        yield Row("jitter", label(shape), lambda x: ops.jitter(x, place, 0.25),
                  (normal(f"j{shape}", *shape),))
    choices: dict[str, tuple[list[list[int]], int]] = {
        "mixed": ([[2, 0], [1, 2], [0, 1], [2, 1]], 3), "one-expert": ([[1, 1], [1, 1]], 3), "none": ([], 3),
        "dropped": ([[0, 2], [2, 1], [2, 2]], 2), "single-choice": ([[3], [0], [3]], 4)}
    for name, (chosen, count) in choices.items():
        placed = np.array(chosen, dtype=np.int64).reshape(len(chosen), len(chosen[0]) if chosen else 2)
        plan = ops.plan(placed, count)
        tokens, rows, k = len(placed), placed.size, placed.shape[1]
        yield Row("plan", name, lambda x, c=placed, e=count: ops.dispatch(x, ops.plan(c, e)),
                  (normal("tokens", tokens, 3),))
        yield Row("dispatch", name, lambda x, p=plan: ops.dispatch(x, p), (normal("tokens", tokens, 3),))
        yield Row("combine", name, lambda y, w, p=plan: ops.combine(y, w, p),
                  (normal("ys", rows, 3), normal("weights", tokens, k)))
        for exact in (True, False):
            yield Row("gathered_swiglu", name + ("" if exact else "-as-it-is"),
                      lambda x, w, p=plan, e=exact: ops.gathered_swiglu(x, w, p, e),
                      (normal("tokens", tokens, 3), normal("matrices", count, 4, 3)))
        yield Row("grouped_linear", name, lambda x, w, p=plan: ops.grouped_linear(x, w, p.offsets),
                  (normal("rows", rows, 3), normal("matrices", count, 2, 3)))
        yield Row("grouped_linear", f"{name}-as-it-is",
                  lambda x, w, p=plan: ops.grouped_linear(x, w, p.offsets, False),
                  (normal("rows", rows, 3), normal("matrices", count, 2, 3)))
    yield Row("swiglu", "scalar", ops.swiglu, (normal("g"), normal("u")))
    for shape in SHAPES[1:]:
        yield Row("swiglu", label(shape), ops.swiglu,
                  (normal(f"g{shape}", *shape), normal(f"u{shape}", *shape)))
    for rows, half in ((1, 1), (4, 3), (0, 2)):
        yield Row("swiglu_packed", label((rows, half)), ops.swiglu_packed,
                  (normal(f"packed{rows}", rows, 2 * half),))


def residual_streams() -> Iterator[Row]:
    """Doubly stochastic matrices; streams read from and written to, by maps per token and shared ones"""
    for n, iterations in ((1, 1), (2, 1), (3, 4), (4, 20)):
        for variant in "ABC":
            yield Row("sinkhorn", f"{variant}-{n}-{iterations}",
                      lambda x, t=iterations, v=variant: ops.sinkhorn(x, t, 1e-3, v),
                      (normal(f"sinkhorn{n}", 2, n, n),))
    yield Row("sinkhorn", "empty", ops.sinkhorn, (normal("e", 0, 2, 2),))
    for lead, n, width in (((2, 3), 4, 5), ((1,), 1, 1), ((0,), 2, 3)):
        for case, maps in ((label((*lead, n, width)), lead), (f"{label((*lead, n, width))}-shared", ())):
            x, y = normal(f"x{case}", *lead, n, width), normal(f"y{case}", *lead, width)
            mix, write = normal(f"m{case}", *maps, n, n), normal(f"b{case}", *maps, n)
            yield Row("read_streams", case, ops.read_streams, (x, write))
            yield Row("write_streams", case, ops.write_streams, (x, mix, write, y))
    for shape in SHAPES:
        yield Row("signed_sqrt", label(shape), ops.signed_sqrt, (away(normal(f"r{shape}", *shape)),))


def checkpoints() -> Iterator[Row]:
    yield Row("checkpoint", "one", lambda x: ops.checkpoint(lambda t: ops.tanh(t) * t, x),
              (normal("c", 3, 4),))
    yield Row("checkpoint", "two-results",
              lambda x, y: ops.checkpoint(lambda a, b: (ops.tanh(a @ b), a * 2.0), x, y),
              (normal("c1", 2, 3), normal("c2", 3, 2)))
    yield Row("checkpoint", "nested", lambda x: ops.checkpoint(lambda t: ops.checkpoint(ops.silu, t) * t, x),
              (normal("c", 4),))
    yield Row("checkpoint", "second-result-only",
              lambda x: ops.checkpoint(lambda t: (t * 2.0, ops.exp(t)), x)[1], (normal("c", 4),))


ROWS = [row for part in (elementwise, broadcasting, reductions, views, gathers, products, convolutions, norms,
                         linear_attentions, scans, attentions, parted_attentions, losses, experts,
                         residual_streams, checkpoints)
        for row in part()]
OPS = list(dict.fromkeys(row.op for row in ROWS))


def rows_of(op: str) -> list[Row]:
    return [row for row in ROWS if row.op == op]
