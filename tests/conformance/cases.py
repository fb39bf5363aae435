"""The arguments on which every kernel is tried, for each floating-point type.

`cases(kernel, dtype)` yields Case objects; their arrays are NumPy's, already rounded to the type.  Arguments
that the protocol keeps in float (statistics, router weights, optimizer state) are float32 where dtype is half
precision."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from nn.packed import Format, PackedWeight
from tests.conformance import naive

DTYPES = {"float64": np.dtype(np.float64), "float32": np.dtype(np.float32),
          "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
HALF = ("bfloat16", "float16")

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    kernel: str
    name: str
    dtype: str
    arguments: Arguments
    options: dict[str, Any] = field(default_factory=dict)
    layout: str = "contiguous"         # how the arrays lie in memory

    @property
    def id(self) -> str:
        return f"{self.kernel}-{self.name}-{self.dtype}" + f"-{self.layout}" * (self.layout != "contiguous")


class Draw:
    """Random arguments of one case, in the case's type; the same at every run."""

    def __init__(self, kernel: str, name: str, dtype: str) -> None:
        self.random = np.random.default_rng(zlib.crc32(f"{kernel}/{name}".encode()))
        self.dtype = DTYPES[dtype]
        self.float = np.dtype(np.float32) if dtype in HALF else self.dtype

    def __call__(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return np.asarray(self.random.standard_normal(shape) * scale, np.float64).astype(self.dtype)

    def wide(self, *shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
        return self.random.uniform(low, high, shape).astype(self.float)

    def integers(self, high: int, *shape: int) -> np.ndarray:
        return self.random.integers(0, max(1, high), shape)

    def like(self, exact: np.ndarray) -> np.ndarray:
        """A float64 result as a kernel of this type would store it"""
        return exact.astype(self.dtype)

    def statistic(self, exact: np.ndarray) -> np.ndarray:
        return exact.astype(self.float)


def exact(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


Builder = Callable[[Draw], tuple[Arguments, dict[str, Any]]]
Table = Iterator[tuple[str, Builder]]
_TABLES: dict[str, Callable[[], Table]] = {}


def table(*kernels: str) -> Callable[[Callable[..., Table]], Callable[..., Table]]:
    """Mark a generator of (name, builder) as the cases of these kernels."""

    def mark(function: Callable[..., Table]) -> Callable[..., Table]:
        for kernel in kernels:
            _TABLES[kernel] = lambda kernel=kernel: function(kernel)
        return function

    return mark


def cases(kernel: str, dtype: str) -> Iterator[Case]:
    for name, build in _TABLES[kernel]():
        arguments, options = build(Draw(kernel, name, dtype))
        yield Case(kernel, name, dtype, arguments, options)


def kernels_with_cases() -> set[str]:
    return set(_TABLES)


def label(*sizes: int) -> str:
    return "x".join(map(str, sizes)) or "scalar"


SHAPES = ((), (0,), (1,), (5,), (3, 0, 2), (3, 4), (2, 1, 7), (33, 65))
EXTREMES = (0.0, -0.0, 1e-4, -1e-4, 3.0, -3.0, 6.0, -6.0, 20.0, -20.0, 100.0, -100.0, 3e4, -3e4)


@table("silu", "silu_backward", "gelu", "gelu_backward", "gelu_tanh", "gelu_tanh_backward",
       "swiglu", "swiglu_backward")
def activation(kernel: str) -> Table:
    count = {"silu": 1, "gelu": 1, "gelu_tanh": 1, "swiglu_backward": 3}.get(kernel, 2)
    for shape in SHAPES:
        yield label(*shape), lambda draw, s=shape: (tuple(draw(*s, scale=2.0) for _ in range(count)), {})
    # dy and up are ones, so that nothing overflows that the function itself does not
    place = {1: 0, 2: 0 if kernel == "swiglu" else 1, 3: 1}[count]
    values = [np.array(EXTREMES) if i == place else np.ones(len(EXTREMES)) for i in range(count)]
    yield "extremes", lambda draw: (tuple(map(draw.like, values)), {})


@table("add", "mul", "accumulate")
def pairs(kernel: str) -> Table:
    for shape in (*SHAPES, (3, 70000)):
        yield label(*shape), lambda draw, s=shape: (
            (draw.wide(*s) if kernel == "accumulate" else draw(*s), draw(*s)), {})


@table("add_row", "mul_row")
def rows_with_a_row(kernel: str) -> Table:
    for shape in ((1,), (0, 3), (3, 0), (2, 5), (2, 1, 16), (4, 3, 33), (300, 259)):
        yield label(*shape), lambda draw, s=shape: ((draw(*s), draw(s[-1])), {})


@table("scale")
def scaled(kernel: str) -> Table:
    for shape in SHAPES:
        for factor in (-1.0, 0.3, 3):
            yield f"{label(*shape)}-{factor}", lambda draw, s=shape, f=factor: ((draw(*s), f), {})


@table("widen", "to_bfloat16")
def casts(kernel: str) -> Table:
    for shape in (*SHAPES, (3, 70000)):
        yield label(*shape), lambda draw, s=shape: ((draw(*s, scale=100.0),), {})
    ties = 1.0 + np.arange(-8, 8) / 256.0 + 2.0 ** -np.arange(6.0, 22.0)
    special = np.concatenate([ties, -ties, EXTREMES, [np.inf, -np.inf, np.nan, 2.0**-130, -(2.0**-133)]])
    yield "ties", lambda draw: ((draw.like(special),), {})


@table("contiguous")
def copies(kernel: str) -> Table:
    for shape in ((1, 1, 1, 1), (2, 3, 5, 7), (0, 2, 3, 4), (2, 1, 3, 0), (3, 17, 2, 64)):
        yield label(*shape), lambda draw, s=shape: ((draw(*s),), {})
        yield f"{label(*shape)}-permuted", lambda draw, s=shape: (
            (np.transpose(draw(s[0], s[2], s[1], s[3]), (0, 2, 1, 3)),), {})


@table("causal_conv", "causal_conv_backward")
def convolutions(kernel: str) -> Table:
    for batch, steps, channels, taps, dilation in ((2, 5, 3, 4, 1), (1, 4, 2, 3, 2), (1, 1, 1, 1, 1),
                                                   (0, 3, 2, 2, 1), (2, 0, 2, 3, 1), (3, 21, 67, 4, 1),
                                                   (2, 30, 33, 3, 5)):
        def build(draw: Draw, b: int = batch, t: int = steps, c: int = channels, k: int = taps,
                  d: int = dilation) -> tuple[Arguments, dict[str, Any]]:
            x, weight = draw(b, t + (k - 1) * d, c), draw(c, k)
            last = (x, weight, t) if kernel == "causal_conv" else (draw(b, t, c), x, weight)
            return last, {"dilation": d}

        yield label(batch, steps, channels, taps, dilation), build


@table("selective_scan", "selective_scan_backward")
def scans(kernel: str) -> Table:
    for batch, length, channels, states, parts in ((2, 5, 3, 4, 2), (1, 1, 1, 1, 1), (3, 1, 70, 16, 1),
                                                   (0, 2, 3, 4, 1), (2, 0, 3, 4, 1), (1, 3, 2, 0, 2),
                                                   (1, 2, 0, 3, 1), (1, 2, 65, 3, 4), (2, 19, 131, 17, 3)):
        def build(draw: Draw, b: int = batch, t: int = length, c: int = channels, n: int = states,
                  p: int = parts) -> tuple[Arguments, dict[str, Any]]:
            given = (draw(b, t, c), draw.wide(b, t, c, low=0.0, high=1.5),
                     draw.wide(c, n, low=-3.0, high=0.0), draw(b, t, n), draw(b, t, n), draw.wide(c))
            if kernel == "selective_scan":
                return (*given, draw.wide(b, c, n), p), {"keep": n != 16}
            return (draw(b, t, c), draw.wide(b, c, n), *given, draw.wide(b, p, n, c)), {}

        yield label(batch, length, channels, states, parts), build


@table("top_k")
def largest_of_rows(kernel: str) -> Table:
    for rows, width, k in ((1, 1, 1), (2, 5, 5), (3, 33, 4), (2, 1000, 50), (1, 700, 699), (0, 4, 2)):
        yield label(rows, width, k), lambda draw, s=(rows, width), k=k: ((draw(*s), k), {})
        yield f"{label(rows, width, k)}-ties", lambda draw, s=(rows, width), k=k: (
            (draw.like(np.round(exact(draw(*s)) * 2.0)), k), {})
    yield "descending", lambda draw: ((draw.like(np.arange(300.0, 0.0, -1.0)[None] / 16.0), 7), {})
    yield "ascending", lambda draw: ((draw.like(np.arange(600.0)[None] / 16.0), 7), {})


@table("next_token")
def tokens(kernel: str) -> Table:
    hows = ({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 5},
            {"temperature": 1.5, "top_p": 0.8}, {"temperature": 0.9, "min_p": 0.1}, {"temperature": 1e-45},
            {"temperature": 2.0, "top_k": 30, "top_p": 0.5, "min_p": 0.01},
            {"temperature": 100.0, "top_p": 0.999999})
    for rows, width in ((0, 3), (1, 1), (3, 5), (4, 67), (2, 4099)):
        for i, how in enumerate(hows):
            for coarse in (0.0, 1.0):               # whole numbers: many ties
                def build(draw: Draw, s: tuple[int, int] = (rows, width), how: Any = how,
                          coarse: float = coarse) -> tuple[Arguments, dict[str, Any]]:
                    z = exact(draw(*s, scale=3.0))
                    counters = np.stack([draw.integers(2**62, s[0]) * 2 - 2**62, draw.integers(2**32, s[0]),
                                         draw.integers(2**32, s[0])], axis=1)
                    return (draw.like(np.round(z) if coarse else z), counters), how

                yield f"{label(rows, width)}-{i}{'-ties' * bool(coarse)}", build
    for i, odd in enumerate((np.nan, np.inf, -np.inf)):
        for hot in (0.0, 1.0):
            yield f"odd-{i}-{hot:g}", lambda draw, odd=odd, hot=hot: (
                (draw.like(np.where(np.arange(4 * 41).reshape(4, 41) % (40 if odd > 0 else 2) == 7 % 2, odd,
                                    exact(draw(4, 41)))), np.arange(12).reshape(4, 3)), {"temperature": hot})
    yield "none", lambda draw: ((draw.like(np.full((2, 37), -np.inf)), np.ones((2, 3), np.int64)), {})


@table("column_sum")
def sums_of_columns(kernel: str) -> Table:
    for shape in ((0, 4), (1, 1), (3, 5), (7, 33), (130, 65), (1025, 19), (5, 0), (20000, 2)):
        yield label(*shape), lambda draw, s=shape: ((draw(*s),), {})


@table("swiglu_packed", "swiglu_packed_backward")
def packed(kernel: str) -> Table:
    for rows, width in ((0, 3), (1, 1), (3, 5), (7, 32), (4, 0)):
        yield label(rows, width), lambda draw, r=rows, f=width: (
            (draw(r, 2 * f, scale=2.0),) if kernel == "swiglu_packed" else (draw(r, f), draw(r, 2 * f)), {})


@table("matmul")
def matrices(kernel: str) -> Table:
    for lead in ((), (3,), (2, 3)):
        for i, j, o in ((5, 7, 3), (1, 1, 1), (17, 33, 65), (0, 3, 4), (4, 0, 3)):
            yield label(*lead, i, j, o), lambda draw, n=lead, s=(i, j, o): (
                (draw(*n, s[0], s[1]), draw(*n, s[1], s[2])), {})
    yield "aligned", lambda draw: ((draw(64, 64), draw(64, 64)), {})


LINEARS = ((0, 3, 4), (1, 1, 1), (5, 7, 3), (2, 64, 40), (33, 65, 17), (64, 32, 64), (3, 4, 0))


@table("linear", "linear_backward")
def linear_map(kernel: str) -> Table:
    for rows, inputs, outputs in LINEARS:
        name, sizes = label(rows, inputs, outputs), (rows, inputs, outputs)
        if kernel == "linear_backward":
            yield name, lambda draw, s=sizes: ((draw(s[0], s[2]), draw(s[0], s[1]), draw(s[2], s[1])), {})
            continue
        yield name, lambda draw, s=sizes: ((draw(s[0], s[1]), draw(s[2], s[1])), {"bias": None})
        yield f"{name}-bias", lambda draw, s=sizes: (
            (draw(s[0], s[1]), draw(s[2], s[1])), {"bias": draw(s[2])})


# rows, inputs, outputs
PACKED = {"f32": ((0, 3, 4), (1, 1, 1), (1, 5, 40), (2, 64, 33), (5, 7, 16), (21, 66, 50), (3, 4, 0)),
          "bf16": ((0, 3, 4), (1, 1, 1), (1, 5, 40), (2, 64, 33), (5, 7, 16), (37, 66, 50), (3, 4, 0)),
          "q8_0": ((0, 32, 4), (1, 64, 40), (3, 96, 33), (21, 64, 16), (70, 32, 50), (3, 32, 0)),
          "q4_0": ((0, 32, 4), (1, 64, 40), (3, 96, 33), (21, 64, 16), (70, 32, 50), (3, 32, 0))}


def _packed(draw: Draw, form: str, *shape: int, gated: bool = False) -> np.ndarray:
    weight = draw.random.standard_normal(shape).astype(np.float32)
    return PackedWeight.pack(weight, form, gated=gated).data.copy()


@table("packed_linear", "packed_swiglu")
def packed_weights(kernel: str) -> Table:
    def build(draw: Draw, form: str, rows: int, inputs: int, outputs: int, more: bool) -> Any:
        if kernel == "packed_swiglu":
            weight = _packed(draw, form, 2 * outputs, inputs, gated=True)
            return (draw(rows, inputs), weight, int(Format[form]), outputs), {}
        options = {"bias": draw(outputs), "residual": draw(rows, outputs)} if more else {}
        weight = _packed(draw, form, outputs, inputs)
        return ((draw(rows, inputs), weight, int(Format[form]), outputs),
                {"bias": None, "residual": None} | options)

    for form, shapes in PACKED.items():
        for sizes in shapes:
            for more in (False, True)[: 1 + (kernel == "packed_linear")]:
                yield f"{form}-{label(*sizes)}" + "-more" * more, lambda draw, f=form, s=sizes, m=more: (
                    build(draw, f, *s, m))


@table("packed_experts")
def packed_mixture(kernel: str) -> Table:
    def build(draw: Draw, form: str, tokens: int, width: int, features: int, experts: int, k: int,
              dropped: bool) -> Any:
        gate_up = _packed(draw, form, experts, 2 * features, width, gated=True)
        down = _packed(draw, form, experts, width, features)
        chosen = np.argsort(draw.random.random((tokens, experts)), axis=1)[:, :k]
        if dropped:
            chosen[:: 2, 0] = experts
        return ((draw(tokens, width), gate_up, down, draw.wide(tokens, k, low=0.0, high=1.0), chosen,
                 experts, features, int(Format[form])), {})

    for form in PACKED:
        for sizes in ((0, 32, 32, 4, 2), (1, 32, 64, 4, 2), (3, 64, 32, 5, 1), (70, 32, 32, 3, 2)):
            yield f"{form}-{label(*sizes)}", lambda draw, f=form, s=sizes: build(draw, f, *s, False)
        yield f"{form}-dropped", lambda draw, f=form: build(draw, f, 5, 32, 64, 4, 2, True)
    yield "f32-odd", lambda draw: build(draw, "f32", 9, 5, 7, 3, 2, False)
    yield "bf16-odd", lambda draw: build(draw, "bf16", 9, 5, 7, 3, 2, False)


ROWS = ((0,), (1,), (7,), (2, 0), (0, 5), (3, 1), (2, 3, 5), (4, 130))


@table("softmax", "log_softmax")
def normalised(kernel: str) -> Table:
    for shape in ROWS:
        yield label(*shape), lambda draw, s=shape: ((draw(*s, scale=3.0),), {})
    yield "masked", lambda draw: ((draw.like(np.array([[-np.inf, 1.0, 2.0], [0.5, -np.inf, -np.inf]])),), {})
    yield "all-masked", lambda draw: ((draw.like(np.array([[-np.inf, -np.inf], [1.0, 3.0]])),), {})
    yield "large", lambda draw: ((draw.like(np.array([[1e4, 1.0001e4, -1e4], [-3e4, -3e4, -3e4]])),), {})


@table("softmax_backward", "log_softmax_backward")
def normalised_backward(kernel: str) -> Table:
    forward = getattr(naive, kernel.removesuffix("_backward"))
    for shape in ROWS:
        yield label(*shape), lambda draw, s=shape: (
            (draw(*s), draw.like(forward(exact(draw(*s, scale=3.0))))), {})
    if kernel == "softmax_backward":
        masked = np.array([[0.25, 0.0, 0.75], [0.0, 0.0, 0.0]])
        yield "all-masked", lambda draw: ((draw(2, 3), draw.like(masked)), {})


NORMS = ((0, 4), (1, 1), (2, 1), (3, 5), (7, 33), (65, 130), (2, 4104))


@table("rms_norm", "layer_norm")
def norm(kernel: str) -> Table:
    extra = 1 if kernel == "rms_norm" else 2
    for rows, width in NORMS:
        yield label(rows, width), lambda draw, r=rows, d=width: (
            (draw(r, d), *(draw(d) for _ in range(extra)), 1e-6), {})
    yield "zero-row", lambda draw: ((draw.like(np.array([[0.0] * 4, [1.0, 2.0, -1.0, 0.5]])),
                                     *(draw(4) for _ in range(extra)), 1e-5), {})
    yield "large", lambda draw: ((draw(3, 8, scale=3000.0), *(draw(8) for _ in range(extra)), 1e-6), {})
    if kernel == "layer_norm":
        yield "offset", lambda draw: ((draw.like(100.0 + exact(draw(4, 16))), draw(16), draw(16), 1e-5), {})


@table("rms_norm_residual")
def norm_of_sum(kernel: str) -> Table:
    for rows, width in NORMS:
        yield label(rows, width), lambda draw, r=rows, d=width: (
            (draw(r, d), draw(r, d, scale=3.0), draw(d), 1e-6), {})
    yield "cancelling", lambda draw: ((draw.like(np.array([[1.0, -2.0, 3.0]])),
                                       draw.like(np.array([[-1.0, 2.0, 0.5]])), draw(3), 1e-5), {})


@table("rms_norm_backward", "layer_norm_backward")
def norm_backward(kernel: str) -> Table:
    rms = kernel == "rms_norm_backward"

    def build(draw: Draw, rows: int, width: int, around: bool = False) -> tuple[Arguments, dict[str, Any]]:
        x, weight = draw(rows, width), draw(width)
        if rms:
            statistics = naive.rms_norm(exact(x), exact(weight), 1e-6)[1:]
        else:
            statistics = naive.layer_norm(exact(x), exact(weight), np.zeros(width), 1e-5)[1:]
        options = {"dresidual": draw(rows, width, scale=2.0) if around else None} if rms else {}
        return (draw(rows, width), x, weight, *map(draw.statistic, statistics)), options

    for rows, width in NORMS:
        yield label(rows, width), lambda draw, r=rows, d=width: build(draw, r, d)
        if rms:
            yield f"{label(rows, width)}-around", lambda draw, r=rows, d=width: build(draw, r, d, True)


@table("rope")
def rotary(kernel: str) -> Table:
    shapes = {"2x3x5x8": (2, 3, 5, 8, 4), "partial": (2, 3, 5, 8, 2), "one-position": (1, 4, 1, 6, 3),
              "empty": (2, 1, 0, 4, 2), "no-batch": (0, 2, 3, 4, 2), "smallest": (1, 1, 1, 2, 1),
              "long": (1, 2, 130, 10, 5)}

    def build(draw: Draw, sizes: tuple[int, ...], per_row: bool, options: dict[str, Any]) -> Any:
        batch, heads, length, width, half = sizes
        angles = draw.random.uniform(-7.0, 7.0, (batch, 1, length, half) if per_row else (length, half))
        tables = draw.statistic(np.cos(angles)), draw.statistic(np.sin(angles))
        return (draw(batch, heads, length, width), *tables), options

    for name, sizes in shapes.items():
        for interleaved in (False, True):
            for inverse in (False, True):
                options = {"interleaved": interleaved, "inverse": inverse}
                suffix = ("-interleaved" if interleaved else "") + ("-inverse" if inverse else "")
                yield name + suffix, lambda draw, s=sizes, o=options: build(draw, s, False, o)
    yield "per-row-positions", lambda draw: build(
        draw, shapes["2x3x5x8"], True, {"interleaved": False, "inverse": False})


@dataclass(frozen=True)
class Heads:
    """One attention case: sizes and masking."""

    batch: int = 2
    heads: int = 4
    groups: int = 2
    queries: int = 5
    keys: int = 5
    width: int = 8
    value_width: int = 6
    causal: bool = True
    window: int = 0
    mask: tuple[int, ...] = ()        # shape of a random keep-mask
    hide: bool = False                # query 0 of batch 0 sees nothing


ATTENTION = {
    "plain": Heads(), "multi-head": Heads(groups=4), "multi-query": Heads(groups=1),
    "one-token": Heads(queries=1, keys=1), "decode": Heads(queries=1, keys=17),
    "continued": Heads(queries=5, keys=8), "17": Heads(queries=17, keys=17),
    "17+3": Heads(queries=17, keys=20, groups=1), "more-queries-than-keys": Heads(queries=6, keys=3),
    "no-query": Heads(queries=0, keys=4), "no-key": Heads(queries=3, keys=0), "no-batch": Heads(batch=0),
    "bidirectional": Heads(causal=False, queries=4, keys=7), "window-1": Heads(window=1, queries=7, keys=7),
    "window-3": Heads(window=3, queries=9, keys=9), "window-3-continued": Heads(window=3, queries=4, keys=11),
    "window-100": Heads(window=100, queries=9, keys=9),
    "two-sided-window": Heads(causal=False, window=3, queries=9, keys=9),
    "padding": Heads(queries=6, keys=6, mask=(2, 1, 1, 6)),
    "own-masks": Heads(queries=6, keys=6, mask=(2, 4, 6, 6)),
    "shared-mask": Heads(queries=6, keys=9, mask=(1, 1, 6, 9)),
    "masked-row": Heads(mask=(2, 1, 5, 5), hide=True),
    "masked-window": Heads(window=3, queries=8, keys=8, mask=(2, 1, 1, 8)),
    "masked-bidirectional": Heads(causal=False, queries=3, keys=7, mask=(2, 1, 3, 7), hide=True),
    "smallest": Heads(batch=1, heads=1, groups=1, queries=1, keys=1, width=1, value_width=1),
    "128": Heads(batch=1, heads=2, groups=1, queries=128, keys=128, width=16, value_width=16),
    "129": Heads(batch=1, heads=2, groups=1, queries=129, keys=129, width=4, value_width=3),
    "131+2": Heads(batch=1, heads=2, groups=2, queries=131, keys=133, width=4, value_width=3),
    "long-window": Heads(batch=1, heads=1, groups=1, queries=130, keys=150,
                         width=4, value_width=3, window=20),
    "long-masked": Heads(batch=1, heads=1, groups=1, queries=130, keys=130,
                         width=4, value_width=3, mask=(1, 1, 130, 130)),
}


def _attention_inputs(draw: Draw, h: Heads) -> tuple[list[np.ndarray], dict[str, Any]]:
    q = draw(h.batch, h.heads, h.queries, h.width)
    k, v = draw(h.batch, h.groups, h.keys, h.width), draw(h.batch, h.groups, h.keys, h.value_width)
    mask = draw.random.random(h.mask) < 0.7 if h.mask else None
    if h.hide:
        assert mask is not None
        mask[0, :, 0] = False
    return [q, k, v], {"scale": h.width**-0.5, "causal": h.causal, "window": h.window, "mask": mask}


@table("attention", "attention_backward")
def attention(kernel: str) -> Table:
    def build(draw: Draw, h: Heads) -> Any:
        inputs, options = _attention_inputs(draw, h)
        if kernel == "attention":
            return tuple(inputs), options
        o, lse = naive.attention(*map(exact, inputs), **options)
        return (draw(*o.shape), *inputs, draw.like(o), draw.statistic(lse)), options

    for name, h in ATTENTION.items():
        yield name, lambda draw, h=h: build(draw, h)


@table("rope_at")
def rotary_at(kernel: str) -> Table:
    def build(draw: Draw, batch: int, heads: int, length: int, width: int, half: int,
              interleaved: bool) -> Any:
        angles = draw.random.uniform(-7.0, 7.0, (20, half))
        tables = draw.statistic(np.cos(angles)), draw.statistic(np.sin(angles))
        positions = draw.integers(20 - length, batch).astype(np.int32)
        return (draw(batch, heads, length, width), *tables, positions), {"interleaved": interleaved}

    for sizes in ((2, 3, 1, 8, 4), (3, 2, 5, 8, 2), (1, 1, 1, 2, 1), (0, 1, 1, 4, 2)):
        for interleaved in (False, True):
            yield label(*sizes) + "-interleaved" * interleaved, lambda draw, s=sizes, i=interleaved: (
                build(draw, *s, i))


# lengths, room, queries, heads, groups, width, window
DECODING = {"one": ((1,), 4, 1, 2, 1, 8, 0), "full": ((9, 9), 9, 1, 4, 2, 8, 0),
            "uneven": ((3, 17, 1), 20, 1, 4, 1, 16, 0), "several-queries": ((5, 12), 16, 4, 4, 2, 8, 0),
            "window": ((30, 7), 33, 1, 2, 2, 8, 6), "window-several": ((30, 7), 33, 3, 2, 1, 8, 6),
            "fewer-than-queries": ((2, 4), 8, 4, 2, 1, 8, 0), "no-row": ((), 4, 1, 2, 1, 8, 0),
            "long": ((200, 131), 260, 1, 4, 1, 16, 0), "prompt": ((40, 33), 64, 33, 2, 1, 8, 0)}


@table("decode_attention")
def decoding(kernel: str) -> Table:
    def build(draw: Draw, lengths: tuple[int, ...], room: int, queries: int, heads: int, groups: int,
              width: int, window: int) -> Any:
        batch = len(lengths)
        k, v = draw(batch, groups, room, width), draw(batch, groups, room, width)
        for b, n in enumerate(lengths):
            k[b, :, n:], v[b, :, n:] = np.nan, np.nan
        return ((draw(batch, heads, queries, width), k, v, np.array(lengths, np.int32)),
                {"scale": width**-0.5, "window": window})

    for name, sizes in DECODING.items():
        yield name, lambda draw, s=sizes: build(draw, *s)


@table("cache_append")
def appending(kernel: str) -> Table:
    def build(draw: Draw, lengths: tuple[int, ...], room: int, new: int) -> Any:
        shape = (len(lengths), 2)
        caches = draw(*shape, room, 8), draw(*shape, room, 6)
        return (*caches, draw(*shape, new, 8), draw(*shape, new, 6), np.array(lengths, np.int32)), {}

    for lengths, room, new in (((0,), 4, 1), ((0, 3, 2), 5, 2), ((7, 0), 8, 3), ((4,), 4, 1), ((), 4, 1)):
        yield f"{label(*lengths)}-{room}-{new}", lambda draw, s=(lengths, room, new): build(draw, *s)


LOSS_OPTIONS = {"": {}, "smoothing": {"label_smoothing": 0.1}, "z-loss": {"z_loss": 0.01},
                "softcap": {"softcap": 5.0}, "all": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0}}
LOSS_SHAPES = ((0, 3), (1, 1), (3, 1), (7, 11), (5, 130))


def _targets(draw: Draw, rows: int, vocabulary: int, ignored: int, ignore_index: int = -100) -> np.ndarray:
    targets = draw.integers(vocabulary, rows)
    targets[:ignored] = ignore_index
    return targets


@table("cross_entropy", "cross_entropy_backward")
def cross_entropy(kernel: str) -> Table:
    def build(draw: Draw, rows: int, vocabulary: int, ignored: int, options: dict[str, Any],
              scale: float = 2.0) -> Any:
        logits = draw(rows, vocabulary, scale=scale)
        targets = _targets(draw, rows, vocabulary, ignored, options.get("ignore_index", -100))
        if kernel == "cross_entropy":
            return (logits, targets), options
        lse = draw.statistic(naive.cross_entropy(exact(logits), targets, **options)[1])
        return (draw.wide(rows), logits, targets, lse), options

    for rows, vocabulary in LOSS_SHAPES:
        yield label(rows, vocabulary), lambda draw, r=rows, v=vocabulary: build(draw, r, v, 0, {})
    for name, options in LOSS_OPTIONS.items():
        yield f"ignored-{name}", lambda draw, o=options: build(draw, 7, 11, 2, o)
    yield "all-ignored", lambda draw: build(draw, 3, 4, 3, {})
    yield "other-ignore-index", lambda draw: build(draw, 5, 6, 2, {"ignore_index": -1})
    yield "large", lambda draw: build(draw, 4, 9, 0, {}, scale=1000.0)


@table("linear_cross_entropy")
def linear_cross_entropy(kernel: str) -> Table:
    def build(draw: Draw, rows: int, width: int, vocabulary: int, ignored: int,
              options: dict[str, Any]) -> Any:
        targets = _targets(draw, rows, vocabulary, ignored)
        return (draw(rows, width), draw(vocabulary, width, scale=0.5), targets), options

    for sizes in ((0, 3, 4), (1, 1, 1), (7, 5, 11), (33, 8, 65)):
        yield label(*sizes), lambda draw, s=sizes: build(draw, *s, 0, {"gradient": True})
    for name, options in LOSS_OPTIONS.items():
        yield f"ignored-{name}", lambda draw, o=options: build(draw, 7, 5, 11, 2, {"gradient": True} | o)
    yield "all-ignored", lambda draw: build(draw, 3, 2, 4, 3, {"gradient": True})
    yield "loss-only", lambda draw: build(draw, 7, 5, 11, 1, {"gradient": False})
    yield "loss-only-capped", lambda draw: build(draw, 7, 5, 11, 1, {"gradient": False, "softcap": 2.0})
    yield "scaled", lambda draw: build(draw, 7, 33, 130, 1, {"gradient": True, "scale": 0.125})


ROUTING = ((0, 4, 2), (1, 1, 1), (5, 4, 1), (13, 5, 2), (9, 16, 4), (6, 3, 3))


@table("router_topk")
def router(kernel: str) -> Table:
    for tokens, experts, k in ROUTING:
        for renormalize in (True, False):
            name = label(tokens, experts, k) + ("" if renormalize else "-raw")
            yield name, lambda draw, s=(tokens, experts), k=k, r=renormalize: (
                (draw(*s), k), {"renormalize": r})
    ties = np.array([[1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0],
                     [3.0, 1.0, 3.0, 3.0], [-1.0, -1.0, -2.0, -1.0]])
    yield "ties", lambda draw: ((draw.like(ties), 2), {"renormalize": True})
    yield "large", lambda draw: ((draw(4, 6, scale=300.0), 2), {"renormalize": True})


@table("router_topk_backward")
def router_backward(kernel: str) -> Table:
    def build(draw: Draw, tokens: int, experts: int, k: int, renormalize: bool) -> Any:
        forward = naive.router_topk(exact(draw(tokens, experts)), k, renormalize=renormalize)
        weights, chosen, probs = draw.statistic(forward[0]), forward[1], draw.statistic(forward[2])
        return (draw.wide(tokens, k), weights, chosen, probs), {"renormalize": renormalize}

    for sizes in ROUTING:
        for renormalize in (True, False):
            name = label(*sizes) + ("" if renormalize else "-raw")
            yield name, lambda draw, s=sizes, r=renormalize: build(draw, *s, r)


@table("jitter")
def jittered(kernel: str) -> Table:
    words = ((0, 0, 0, 0), (-1, 2**32 - 1, 2**32 - 1, 2**32 - 1), (0x0123456789ABCDEF, 7, 1, 3),
             (-(2**63), 1, 0, 2))
    for shape in ((0, 3), (1, 1), (1, 3), (5, 7), (3, 8), (33, 41)):
        for i, place in enumerate(words):
            yield f"{label(*shape)}-{i}", lambda draw, s=shape, p=place: (
                (draw(*s), np.array(p, np.int64)), {"epsilon": 0.1})
    for epsilon in (0.0, 1.0):
        yield f"epsilon-{epsilon:g}", lambda draw, e=epsilon: (
            (draw(3, 5), np.array(words[2], np.int64)), {"epsilon": e})


@table("moe_balance_loss", "moe_balance_loss_backward", "moe_z_loss", "moe_z_loss_backward")
def auxiliary(kernel: str) -> Table:
    def build(draw: Draw, tokens: int, experts: int, k: int) -> Any:
        logits, dloss = draw(tokens, experts, scale=2.0), draw.wide(1)
        if kernel.startswith("moe_z_loss"):
            if kernel == "moe_z_loss":
                return (logits, 0.3), {}
            return (dloss, logits, draw.statistic(naive.moe_z_loss(exact(logits), 0.3)[1]), 0.3), {}
        probs, chosen = draw.like(naive.softmax(exact(logits))), draw.integers(experts, tokens, k)
        if kernel == "moe_balance_loss":
            return (probs, chosen, 0.7), {}
        load = naive.moe_balance_loss(exact(probs), chosen, 0.7)[1]
        return (dloss, draw.statistic(load), tokens, 0.7), {}

    for sizes in (*ROUTING, (300, 7, 3)):
        yield label(*sizes), lambda draw, s=sizes: build(draw, *s)


@table("expert_order")
def order(kernel: str) -> Table:
    for tokens, experts, k in ROUTING:
        yield label(tokens, experts, k), lambda draw, s=(tokens, experts, k): (
            (draw.integers(s[1], s[0], s[2]), s[1]), {})
    yield "one-expert-takes-all", lambda draw: ((np.full((6, 2), 3), 5), {})
    yield "dropped-pairs", lambda draw: ((draw.integers(4, 9, 2), 3), {})        # expert 3 of 3: dropped
    yield "all-dropped", lambda draw: ((np.full((3, 2), 4), 4), {})


@table("moe_dispatch", "moe_dispatch_backward", "moe_combine", "moe_combine_backward")
def permuted(kernel: str) -> Table:
    def build(draw: Draw, tokens: int, choices: int, width: int) -> Any:
        order = draw.random.permutation(tokens * choices)
        inverse, x, rows = np.argsort(order), draw(tokens, width), draw(tokens * choices, width)
        weights = draw.wide(tokens, choices, low=0.0, high=1.0)
        arguments = {"moe_dispatch": (x, order, choices), "moe_dispatch_backward": (rows, inverse, choices),
                     "moe_combine": (rows, weights, inverse),
                     "moe_combine_backward": (x, rows, weights, order, inverse)}
        return arguments[kernel], {}

    for sizes in ((0, 2, 4), (1, 1, 1), (5, 2, 3), (9, 4, 64), (33, 3, 7)):
        yield label(*sizes), lambda draw, s=sizes: build(draw, *s)


GROUPS = {"even": (4, 4, 4), "uneven": (1, 0, 7, 3), "one": (5,), "empty": (0, 0), "all-to-one": (0, 9, 0),
          "beyond-a-tile": (33, 70, 2)}


@table("grouped_linear", "grouped_linear_backward")
def grouped(kernel: str) -> Table:
    def build(draw: Draw, counts: tuple[int, ...], inputs: int, outputs: int, dropped: int,
              options: dict[str, Any]) -> Any:
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = int(offsets[-1]) + dropped
        x, weight = draw(rows, inputs), draw(len(counts), outputs, inputs)
        if kernel == "grouped_linear":
            return (x, weight, offsets), options
        return (draw(rows, outputs), x, weight, offsets), {}

    for name, counts in GROUPS.items():
        yield name, lambda draw, c=counts: build(draw, c, 6, 4, 0, {})
    yield "dropped-rows", lambda draw: build(draw, (2, 0, 5), 6, 4, 3, {})
    yield "odd-widths", lambda draw: build(draw, (3, 2), 33, 17, 0, {})
    yield "width-1", lambda draw: build(draw, (3, 2), 1, 1, 0, {})
    if kernel == "grouped_linear":
        yield "small-groups-as-they-are", lambda draw: build(
            draw, (1, 0, 7, 3), 6, 4, 1, {"batch_invariant": False})


@table("gathered_swiglu", "gathered_swiglu_backward")
def gathered(kernel: str) -> Table:
    def build(draw: Draw, tokens: int, choices: int, experts: int, inputs: int, width: int, dropped: bool,
              options: dict[str, Any]) -> Any:
        chosen = draw.integers(experts + dropped, tokens, choices)                  # expert E of E: dropped
        order, inverse, offsets = naive.expert_order(chosen, experts)
        x, weight = draw(tokens, inputs), draw(experts, 2 * width, inputs, scale=inputs**-0.5)
        if kernel == "gathered_swiglu":
            return (x, weight, offsets, order, choices), {"keep": True} | options
        hidden = naive.gathered_swiglu(exact(x), exact(weight), offsets, order, choices)[1]
        return (draw(tokens * choices, width), draw.like(hidden), x, weight, offsets, order, inverse,
                choices), {}

    for sizes in ((0, 2, 3, 4, 5), (1, 1, 1, 1, 1), (5, 2, 4, 6, 3), (9, 3, 2, 33, 17), (40, 2, 3, 16, 8),
                  (70, 1, 2, 8, 24)):
        for dropped in (False, True):
            yield label(*sizes) + "-dropped" * dropped, lambda draw, s=sizes, d=dropped: (
                build(draw, *s, d, {}))
    if kernel == "gathered_swiglu":
        yield "not-kept", lambda draw: build(draw, 5, 2, 4, 6, 3, True, {"keep": False})
        yield "as-it-is", lambda draw: build(draw, 5, 2, 4, 6, 3, True, {"batch_invariant": False})


@table("embedding")
def embedding(kernel: str) -> Table:
    for vocabulary, width, count in ((3, 4, 0), (1, 1, 1), (2, 3, 5), (9, 7, 40), (3, 1030, 6), (5, 0, 3)):
        yield label(vocabulary, width, count), lambda draw, s=(vocabulary, width, count): (
            (draw(s[0], s[1]), draw.integers(s[0], s[2])), {})
    yield "first-and-last", lambda draw: ((draw(4, 33), np.array([3, 0, 3, 0], np.int32)), {})


@table("scatter_add")
def scatter_add(kernel: str) -> Table:
    for count, width, rows in ((0, 3, 4), (1, 1, 1), (5, 3, 2), (40, 7, 9), (6, 1030, 3)):
        yield label(count, width, rows), lambda draw, s=(count, width, rows): (
            (draw(s[0], s[1]), draw.integers(s[2], s[0]), s[2]), {})
    yield "all-to-one-row", lambda draw: ((draw(300, 2), np.full(300, 1), 3), {})


@table("adamw")
def adamw(kernel: str) -> Table:
    def build(draw: Draw, shape: tuple[int, ...], **changes: float) -> Any:
        options = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                   "weight_decay": 0.1, "step": 3, "grad_scale": 1.0}
        state = draw.wide(*shape), draw(*shape), draw.wide(*shape), draw.wide(*shape, low=0.0)
        return state, options | changes

    for shape in ((), (0,), (1,), (5,), (4, 6), (33, 65)):
        yield label(*shape), lambda draw, s=shape: build(draw, s)
    yield "first-step", lambda draw: build(draw, (4, 6), step=1)
    yield "late", lambda draw: build(draw, (4, 6), step=100000)
    yield "no-decay", lambda draw: build(draw, (5,), weight_decay=0.0)
    yield "scaled", lambda draw: build(draw, (5,), grad_scale=0.125)


@table("sum_of_squares")
def sum_of_squares(kernel: str) -> Table:
    for shape in SHAPES:
        yield label(*shape), lambda draw, s=shape: ((draw(*s),), {})
    yield "many", lambda draw: ((draw(300, 257),), {})
    yield "squares-beyond-the-type", lambda draw: (
        (draw.like(np.array([3e4, 1.0, -2e4]) * (1e20 if draw.dtype != np.float16 else 1.0)),), {})
