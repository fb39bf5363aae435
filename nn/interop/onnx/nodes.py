"""What each operation is in ONNX."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.interop.onnx.trace import Step, Trace

Convert = Callable[["Graph", Step, list[str]], list[str]]      # (graph, step, names of inputs) -> of results


class Graph:
    """Nodes, and the names that arrays have among them."""

    def __init__(self, onnx: Any, traced: Trace) -> None:
        self.onnx, self.trace = onnx, traced
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.names: dict[int, str] = {id(traced.ids): "ids"}
        self.dtype = traced.logits.dtype

    def add(self, step: Step) -> None:
        """The nodes of one step.  InputError if there are none for it."""
        if step.name not in TABLE:
            raise InputError(f"{step.name}: no ONNX counterpart is known; this model cannot be exported")
        results = TABLE[step.name](self, step, [self.name(each) for each in step.inputs])
        for array, name in zip(step.results, results, strict=True):
            self.names[id(array)] = name

    def name(self, value: Any) -> str:
        """Of an array: what made it, a parameter, or a constant; "" for None"""
        if value is None:
            return ""
        if not isinstance(value, np.ndarray):
            return self.constant(np.asarray(value, self.dtype))
        if id(value) not in self.names:
            parameter = self.trace.parameters.get(id(value))
            self.names[id(value)] = self.constant(value, parameter[0] if parameter else "")
        return self.names[id(value)]

    def constant(self, value: Any, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def node(self, kind: str, *inputs: str, results: int = 1, **attributes: Any) -> Any:
        """Adds a node; the name of its result, or a list of them"""
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(results)]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if results == 1 else names

    def integers(self, *values: int) -> str:
        """A constant list of whole numbers: axes, shapes"""
        return self.constant(np.array(values, np.int64))

    def finished(self, output: str) -> Any:
        """The graph, from ids to `output`."""
        helper, logits = self.onnx.helper, self.trace.logits
        self.nodes.append(helper.make_node("Identity", [self.name(logits)], [output]))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(logits.dtype))
        return helper.make_graph(
            self.nodes, "model",
            [helper.make_tensor_value_info("ids", self.onnx.TensorProto.INT64, list(self.trace.ids.shape))],
            [helper.make_tensor_value_info(output, kind, list(logits.shape))],
            [self.onnx.numpy_helper.from_array(np.asarray(value, order="C"), name)
             for name, value in self.constants.items()])


# ---- the table ----


def direct(kind: str) -> Convert:
    """The node of that kind, on the same inputs"""
    return lambda g, step, x: [g.node(kind, *x)]


def _linear(g: Graph, step: Step, x: list[str]) -> list[str]:
    y = g.node("MatMul", x[0], g.node("Transpose", x[1], perm=[1, 0]))
    return [g.node("Add", y, x[2]) if len(x) > 2 and x[2] else y]


def _silu(g: Graph, x: str) -> str:
    return str(g.node("Mul", x, g.node("Sigmoid", x)))


def _gelu(g: Graph, step: Step, x: list[str]) -> list[str]:
    number = g.name
    if step.options["approximate"]:
        cube = g.node("Mul", g.node("Mul", x[0], x[0]), g.node("Mul", x[0], number(0.044715)))
        bent = g.node("Tanh", g.node("Mul", g.node("Add", x[0], cube), number(math.sqrt(2.0 / math.pi))))
    else:
        bent = g.node("Erf", g.node("Mul", x[0], number(math.sqrt(0.5))))
    return [g.node("Mul", g.node("Mul", x[0], number(0.5)), g.node("Add", bent, number(1.0)))]


def _rms(g: Graph, x: str, weight: str, eps: float) -> str:
    square = g.node("ReduceMean", g.node("Mul", x, x), axes=[-1], keepdims=1)
    root = g.node("Sqrt", g.node("Add", square, g.name(eps)))
    return str(g.node("Mul", g.node("Div", x, root), weight))


def _l2(g: Graph, step: Step, x: list[str]) -> list[str]:
    square = g.node("ReduceSum", g.node("Mul", x[0], x[0]), g.integers(-1), keepdims=1)
    return [g.node("Div", x[0], g.node("Sqrt", g.node("Add", square, g.name(step.options["eps"]))))]


def _residual_rms(g: Graph, step: Step, x: list[str]) -> list[str]:
    h = g.node("Add", x[0], x[2]) if len(x) > 2 and x[2] else x[0]
    return [_rms(g, h, x[1], step.options["eps"]), h]


def _get_item(g: Graph, step: Step, x: list[str]) -> list[str]:
    """Slices first, then the axes that integers take away, then those that None adds"""
    index, rank = step.options["index"], step.inputs[0].ndim
    parts = list(index) if isinstance(index, tuple) else [index]
    given = sum(part is not None and part is not ... for part in parts)
    if ... in [part if part is ... else None for part in parts]:
        at = next(i for i, part in enumerate(parts) if part is ...)
        parts[at : at + 1] = [slice(None)] * (rank - given)
    y, axis, gone, added, place = x[0], 0, [], [], 0
    for part in parts:
        if part is None:
            added.append(place)
            place += 1
            continue
        length = step.inputs[0].shape[axis]
        whole = part if isinstance(part, slice) else slice(int(part) % length, int(part) % length + 1)
        start, stop, stride = whole.indices(length)
        if stride < 0:
            raise InputError("GetItem: a slice that goes backwards has no ONNX counterpart here")
        if (start, stop, stride) != (0, length, 1):
            y = g.node("Slice", y, *(g.integers(n) for n in (start, stop, axis, stride)))
        if isinstance(part, slice):
            place += 1
        else:
            gone.append(axis)
        axis += 1
    y = g.node("Squeeze", y, g.integers(*gone)) if gone else y
    return [g.node("Unsqueeze", y, g.integers(*added)) if added else y]


def _sum(g: Graph, step: Step, x: list[str]) -> list[str]:
    axis, keep = step.options["axis"], int(step.options["keepdims"])
    axes = range(step.inputs[0].ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    y = g.node("ReduceSum", x[0], g.integers(*axes), keepdims=keep)
    scale = step.options.get("scale", 1.0)
    return [y if scale == 1.0 else g.node("Mul", y, g.name(scale))]


def _rope(g: Graph, step: Step, x: list[str]) -> list[str]:
    """Pairs (i, i + r/2) or (2i, 2i+1) of the first r channels; the others pass"""
    cos, sin, width = g.name(step.options["cos"]), g.name(step.options["sin"]), step.inputs[0].shape[-1]
    half = step.options["cos"].shape[-1]

    def channels(start: int, stop: int, stride: int = 1) -> str:
        return str(g.node("Slice", x[0], *(g.integers(n) for n in (start, stop, -1, stride))))

    apart = step.options["interleaved"]
    a, b = ((channels(0, 2 * half, 2), channels(1, 2 * half, 2)) if apart
            else (channels(0, half), channels(half, 2 * half)))
    first = g.node("Sub", g.node("Mul", a, cos), g.node("Mul", b, sin))
    second = g.node("Add", g.node("Mul", b, cos), g.node("Mul", a, sin))
    if apart:
        pairs = [g.node("Unsqueeze", each, g.integers(-1)) for each in (first, second)]
        shape = (*step.inputs[0].shape[:-1], 2 * half)
        turned = g.node("Reshape", g.node("Concat", *pairs, axis=-1), g.integers(*shape))
    else:
        turned = g.node("Concat", first, second, axis=-1)
    return [turned if width == 2 * half else g.node("Concat", turned, channels(2 * half, width), axis=-1)]


def _attention(g: Graph, step: Step, x: list[str]) -> list[str]:
    """softmax(scale Q Kᵀ) V over what the order, the window and the mask leave visible"""
    o = step.options
    extra = [name for name, value in o.items() if name not in ("scale", "causal", "window", "mask") and value]
    extra += ["a window without order"] if o["window"] and not o["causal"] else []
    if extra:
        raise InputError(f"Attention: {', '.join(extra)} has no ONNX counterpart here")
    (_, heads, length, _), (groups, keys) = step.inputs[0].shape, step.inputs[1].shape[1:3]
    k, v = (_repeated(g, name, array, heads // groups)
            for name, array in zip(x[1:], step.inputs[1:], strict=True))
    scores = g.node("MatMul", x[0], g.node("Transpose", k, perm=[0, 1, 3, 2]))
    scores = g.node("Mul", scores, g.name(o["scale"]))
    at, key = np.arange(keys - length, keys)[:, None], np.arange(keys)
    seen = (key <= at) if o["causal"] else np.ones((length, keys), bool)
    if o["window"]:
        seen &= key > at - o["window"]
    if o["mask"] is not None:
        seen = seen & o["mask"]
    hidden = g.constant(np.where(seen, 0.0, -1e30).astype(g.dtype))
    return [g.node("MatMul", g.node("Softmax", g.node("Add", scores, hidden), axis=-1), v)]


def _repeated(g: Graph, name: str, array: np.ndarray, times: int) -> str:
    """[B,G,S,D] -> [B,G·times,S,D], each head `times` times in a row"""
    if times == 1:
        return name
    batch, groups, keys, width = array.shape
    wide = g.node("Expand", g.node("Unsqueeze", name, g.integers(2)),
                  g.integers(batch, groups, times, keys, width))
    return str(g.node("Reshape", wide, g.integers(batch, groups * times, keys, width)))


TABLE: dict[str, Convert] = {
    **{name: direct(name) for name in ("Add", "Sub", "Mul", "Div", "Exp", "Log", "Sqrt", "Tanh", "Sigmoid",
                                       "Abs", "MatMul")},
    "ReLU": direct("Relu"), "Maximum": direct("Max"), "Linear": _linear, "GELU": _gelu,
    "SiLU": lambda g, step, x: [_silu(g, x[0])],
    "SwiGLU": lambda g, step, x: [g.node("Mul", _silu(g, x[0]), x[1])],
    "Power": lambda g, step, x: [g.node("Pow", x[0], g.name(step.options["exponent"]))],
    "Take": lambda g, step, x: [g.node("Gather", x[0], g.name(step.options["index"]), axis=0)],
    "Cast": lambda g, step, x: [g.node("Cast", x[0], to=g.onnx.helper.np_dtype_to_tensor_dtype(
        np.dtype(step.options["dtype"])))],
    "Softmax": lambda g, step, x: [g.node("Softmax", x[0], axis=-1)],
    "LogSoftmax": lambda g, step, x: [g.node("LogSoftmax", x[0], axis=-1)],
    "CumSum": lambda g, step, x: [g.node("CumSum", x[0], g.constant(np.int64(step.options["axis"])))],
    "Sum": _sum, "L2Norm": _l2,
    "Clip": lambda g, step, x: [g.node("Clip", x[0], g.name(step.options["low"]),
                                       g.name(step.options["high"]))],
    "RMSNorm": lambda g, step, x: [_rms(g, x[0], x[1], step.options["eps"])],
    "ResidualRMSNorm": _residual_rms,
    "LayerNorm": lambda g, step, x: [g.node("LayerNormalization", *x, axis=-1, epsilon=step.options["eps"])],
    "Reshape": lambda g, step, x: [g.node("Reshape", x[0], g.integers(*step.results[0].shape))],
    "Permute": lambda g, step, x: [g.node("Transpose", x[0], perm=[a % step.inputs[0].ndim
                                                                   for a in step.options["axes"]])],
    "BroadcastTo": lambda g, step, x: [g.node("Expand", x[0], g.integers(*step.options["shape"]))],
    "GetItem": _get_item,
    "Concat": lambda g, step, x: [g.node("Concat", *x, axis=step.options["axis"])],
    "Split": lambda g, step, x: list(np.atleast_1d(g.node("Split", x[0], g.integers(*step.options["widths"]),
                                                          axis=-1, results=len(step.options["widths"])))),
    "Where": lambda g, step, x: [g.node("Where", g.name(step.options["condition"]), *x)],
    "Rope": _rope, "Attention": _attention,
}
