"""CUDA's mathematical library, as nvcc inlines it, against Python's math, within the
documented errors.

Also the intrinsics with a direction of rounding, those of cuda_fp16.h, cuda_bf16.h and cuda_fp8.h, and the
video intrinsics.  Half functions get one unit in the last place: the headers correct what the hardware's own
approximations get wrong for single arguments."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn import emulator

Function = Callable[..., float]
Row = tuple[
    str, Function, int, tuple[tuple[float, float], ...]
]  # name, reference, ulps, ranges of the arguments

BIG, ONE, ANY = (-1e5, 1e5), (-1.0, 1.0), (-20.0, 20.0)
POSITIVE = (1e-6, 1e6)


def _reciprocal_root(x: float) -> float:
    return 1 / math.sqrt(x)


def _away(x: float) -> float:
    return math.copysign(math.floor(abs(x) + 0.5), x)


# Names without the f; ulps for (float, double) after the tables of errors in CUDA's programming guide.
ONE_ARGUMENT: list[tuple[str, Function, tuple[int, int], tuple[float, float]]] = [
    ("exp", math.exp, (2, 1), (-80, 80)),
    ("exp2", math.exp2, (2, 1), (-120, 120)),
    ("exp10", lambda x: 10.0**x, (2, 2), (-30, 30)),
    ("expm1", math.expm1, (1, 1), (-5, 5)),
    ("log", math.log, (1, 1), POSITIVE),
    ("log2", math.log2, (1, 1), POSITIVE),
    ("log10", math.log10, (2, 1), POSITIVE),
    ("log1p", math.log1p, (1, 1), (-0.9, 100)),
    ("sin", math.sin, (2, 2), BIG),
    ("cos", math.cos, (2, 2), BIG),
    ("tan", math.tan, (4, 2), BIG),
    ("sin", math.sin, (2, 2), (1e9, 1e15)),
    ("cos", math.cos, (2, 2), (1e9, 1e15)),
    ("sinh", math.sinh, (3, 2), ANY),
    ("cosh", math.cosh, (2, 1), ANY),
    ("tanh", math.tanh, (2, 1), (-4, 4)),
    ("asin", math.asin, (2, 2), ONE),
    ("acos", math.acos, (2, 2), ONE),
    ("atan", math.atan, (2, 2), ANY),
    ("asinh", math.asinh, (3, 3), ANY),
    ("acosh", math.acosh, (4, 3), (1.0, 100)),
    ("atanh", math.atanh, (3, 2), (-0.99, 0.99)),
    ("erf", math.erf, (2, 2), (-4, 4)),
    ("erfc", math.erfc, (4, 5), (-3, 8)),
    ("tgamma", math.gamma, (5, 10), (0.1, 30)),
    ("lgamma", math.lgamma, (6, 4), (3.0, 100)),
    ("cbrt", math.cbrt, (1, 1), BIG),
    ("sqrt", math.sqrt, (0, 0), POSITIVE),
    ("rsqrt", _reciprocal_root, (2, 1), POSITIVE),
    ("floor", math.floor, (0, 0), ANY),
    ("ceil", math.ceil, (0, 0), ANY),
    ("trunc", math.trunc, (0, 0), ANY),
    ("round", _away, (0, 0), ANY),
    ("rint", lambda x: float(round(x)), (0, 0), ANY),
    ("fabs", abs, (0, 0), ANY),
]
TWO_ARGUMENTS: list[tuple[str, Function, tuple[int, int], tuple[float, float], tuple[float, float]]] = [
    ("pow", math.pow, (4, 2), (0.01, 50), (-8, 8)),
    ("atan2", math.atan2, (3, 2), ANY, ANY),
    ("hypot", math.hypot, (3, 2), ANY, ANY),
    ("fmod", math.fmod, (0, 0), BIG, (0.1, 7)),
    ("remainder", math.remainder, (0, 0), BIG, (0.1, 7)),
    ("fdim", lambda x, y: max(x - y, 0.0), (0, 0), ANY, ANY),
    ("fmin", min, (0, 0), ANY, ANY),
    ("fmax", max, (0, 0), ANY, ANY),
    ("copysign", math.copysign, (0, 0), ANY, ANY),
    ("divide", lambda x, y: x / y, (0, 0), ANY, ANY),
]
PRELUDE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
__device__ __forceinline__ float dividef(float a, float b) { return a / b; }
__device__ __forceinline__ double divide(double a, double b) { return a / b; }
template <class T> __device__ T fused(T a, T b, T c) {
#if __CUDA_ARCH__ >= 800
    return __hfma(a, b, c);
#else
    return T(fmaf(float(a), float(b), float(c)));       // bf16 has no __hfma there
#endif
}
#define INDEX const int i = blockIdx.x * blockDim.x + threadIdx.x;
"""


def _build(folder: Path, text: str, arch: str = "sm_80", flags: tuple[str, ...] = ()) -> "emulator.Module":
    source = folder / "functions.cu"
    source.write_text(PRELUDE + text)
    return emulator.compile(source, arch=arch, mode="fast", flags=flags)


def _launch(module: "emulator.Module", kernel: str, inputs: list[np.ndarray], dtype: Any) -> np.ndarray:
    out = np.zeros(len(inputs[0]), dtype)
    module.launch(kernel, len(out) // 64, 64, [*inputs, out])
    return out


def _ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Distance in units of the last place of the result."""
    exact = want.astype(got.dtype)
    step = np.spacing(np.maximum(np.abs(exact), np.finfo(got.dtype).tiny))
    return np.abs(got.astype(np.longdouble) - want) / step


def _column(random: np.random.Generator, low: float, high: float, dtype: Any, count: int = 256) -> np.ndarray:
    if low > 0 and high / low > 1e5:
        return np.exp(random.uniform(math.log(low), math.log(high), count)).astype(dtype)
    return random.uniform(low, high, count).astype(dtype)


# ---- functions of one and two arguments --------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "dtype", "suffix", "place"), [("float", np.float32, "f", 0), ("double", np.float64, "", 1)]
)
def test_functions(tmp_path: Path, type: str, dtype: Any, suffix: str, place: int) -> None:
    rows = [(name, reference, ulps[place], (low_high,)) for name, reference, ulps, low_high in ONE_ARGUMENT]
    rows += [(name, reference, ulps[place], (a, b)) for name, reference, ulps, a, b in TWO_ARGUMENTS]
    names = {name: len(ranges) for name, _, _, ranges in rows}
    text = "".join(
        f'extern "C" __global__ void k_{name}'
        f"(const {type}* a, {f'const {type}* b, ' if count == 2 else ''}{type}* out) "
        f"{{ INDEX out[i] = {name}{suffix}(a[i]{', b[i]' if count == 2 else ''}); }}\n"
        for name, count in names.items()
    )
    module = _build(tmp_path, text)
    random = np.random.default_rng(1)
    wrong = []
    for name, reference, allowed, ranges in rows:
        inputs = [_column(random, low, high, dtype) for low, high in ranges]
        got = _launch(module, f"k_{name}", inputs, dtype)
        want = np.array([reference(*map(float, values)) for values in zip(*inputs, strict=True)], np.float64)
        # Python's own functions of doubles are good to one unit in the last place.
        slack = 0.51 + allowed + (1 if type == "double" and allowed else 0)
        worst = int(np.argmax(_ulps(got, want)))
        if _ulps(got, want)[worst] > slack:
            wrong.append(
                f"{name}{suffix}{[float(x[worst]) for x in inputs]} = {got[worst]!r}, not {want[worst]!r}"
            )
    assert not wrong, "\n".join(wrong)


def test_special_arguments(tmp_path: Path) -> None:
    """Overflow, underflow, infinities, NaN: exp, log, pow, sin and division."""
    text = """
extern "C" __global__ void k_exp(const float* a, float* out) { INDEX out[i] = expf(a[i]); }
extern "C" __global__ void k_log(const float* a, float* out) { INDEX out[i] = logf(a[i]); }
extern "C" __global__ void k_sin(const double* a, double* out) { INDEX out[i] = sin(a[i]); }
extern "C" __global__ void k_div(const double* a, double* out) { INDEX out[i] = 1.0 / a[i]; }
extern "C" __global__ void k_tanh(const float* a, float* out) { INDEX out[i] = tanhf(a[i]); }
"""
    module = _build(tmp_path, text)
    values = np.zeros(64)
    values[:9] = [-300, 300, -np.inf, np.inf, np.nan, -0.0, 0.0, 89, -104]
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(
            _launch(module, "k_exp", [values.astype(np.float32)], np.float32),
            np.exp(values.astype(np.float32).astype(float)).astype(np.float32),
            rtol=3e-7,
            atol=3e-45,
        )
        np.testing.assert_array_equal(_launch(module, "k_div", [values], np.float64), 1 / values)
        np.testing.assert_allclose(_launch(module, "k_sin", [values], np.float64), np.sin(values), rtol=1e-15)
        logarithms = np.log(values.astype(np.float32).astype(float))
        np.testing.assert_allclose(
            _launch(module, "k_log", [values.astype(np.float32)], np.float32), logarithms, rtol=2e-7
        )
        np.testing.assert_allclose(
            _launch(module, "k_tanh", [values.astype(np.float32)], np.float32), np.tanh(values), rtol=3e-7
        )


def test_fast_math(tmp_path: Path) -> None:
    """-use_fast_math: approximations, and subnormal numbers flushed to zero."""
    text = """
extern "C" __global__ void k_exp(const float* a, const float* b, float* out) { INDEX out[i] = expf(a[i]); }
extern "C" __global__ void k_sin(const float* a, const float* b, float* out) { INDEX out[i] = sinf(a[i]); }
extern "C" __global__ void k_div(const float* a, const float* b, float* out) { INDEX out[i] = a[i] / b[i]; }
extern "C" __global__ void k_pow(const float* a, const float* b, float* out) {
    INDEX out[i] = powf(b[i], a[i]);
}
extern "C" __global__ void k_sum(const float* a, const float* b, float* out) {
    INDEX out[i] = a[i] * 1e-30f + b[i] * 1e-39f;
}
"""
    module = _build(tmp_path, text, flags=("-use_fast_math",))
    random = np.random.default_rng(2)
    a, b = random.uniform(-3, 3, 128).astype(np.float32), random.uniform(0.5, 4, 128).astype(np.float32)
    for kernel, want in (("k_exp", np.exp(a)), ("k_sin", np.sin(a)), ("k_div", a / b), ("k_pow", b**a)):
        np.testing.assert_allclose(_launch(module, kernel, [a, b], np.float32), want, rtol=3e-6, atol=3e-7)
    np.testing.assert_array_equal(_launch(module, "k_sum", [a * np.float32(1e-9), b], np.float32), 0)


# ---- intrinsics --------------------------------------------------------------------------------------


def test_directed_intrinsics(tmp_path: Path) -> None:
    """__fadd_rd <= exact <= __fadd_ru, one step apart where inexact; likewise the others, and double."""
    text = ""
    for letter, type in (("f", "float"), ("d", "double")):
        for name in ("add", "mul", "div"):
            for rnd in ("rn", "rz", "rd", "ru"):
                text += (
                    f'extern "C" __global__ void {letter}{name}_{rnd}'
                    f"(const {type}* a, const {type}* b, {type}* out) "
                    f"{{ INDEX out[i] = __{letter}{name}_{rnd}(a[i], b[i]); }}\n"
                )
    module = _build(tmp_path, text)
    random = np.random.default_rng(3)
    for letter, dtype in (("f", np.float32), ("d", np.float64)):
        a, b = (
            np.exp(random.standard_normal(256)).astype(dtype) * random.choice([-1, 1], 256).astype(dtype)
            for _ in range(2)
        )
        for name, operation in (("add", np.add), ("mul", np.multiply), ("div", np.divide)):
            nearest, zero, down, up = (
                _launch(module, f"{letter}{name}_{rnd}", [a, b], dtype) for rnd in ("rn", "rz", "rd", "ru")
            )
            np.testing.assert_array_equal(nearest, operation(a, b))
            exact = operation(a.astype(np.longdouble), b.astype(np.longdouble))
            assert (down <= exact).all()
            assert (exact <= up).all()
            assert ((up == down) | (np.nextafter(down, dtype(np.inf)) == up)).all()
            assert (up != down).sum() > 100, "the operands are not hard enough"
            np.testing.assert_array_equal(zero, np.where(exact > 0, down, up))


def test_integer_intrinsics(tmp_path: Path) -> None:
    text = """
extern "C" __global__ void k(const unsigned* a, const unsigned* b, unsigned* out) {
    INDEX unsigned x = a[i], y = b[i]; unsigned* o = out + 16 * i;
    o[0] = __umulhi(x, y); o[1] = __mulhi((int)x, (int)y); o[2] = __brev(x); o[3] = __clz(x);
    o[4] = __ffs(x); o[5] = __popc(x); o[6] = __byte_perm(x, y, 0x6420); o[7] = __funnelshift_l(x, y, 9);
    o[8] = __usad(x, y, 5); o[9] = __vadd4(x, y); o[10] = __vabsdiffu4(x, y); o[11] = __vsadu4(x, y);
    o[12] = __vmaxs2(x, y); o[13] = x / (y | 1); o[14] = x % (y | 1); o[15] = __dp4a((int)x, (int)y, 7);
}"""
    module = _build(tmp_path, text)
    random = np.random.default_rng(4)
    a, b = (random.integers(0, 1 << 32, 64, np.uint32) for _ in range(2))
    out = np.zeros((64, 16), np.uint32)
    module.launch("k", 1, 64, [a, b, out])
    bytes_a, bytes_b = (x.view(np.uint8).reshape(-1, 4).astype(int) for x in (a, b))
    signed_a, signed_b = (x.view(np.int8).reshape(-1, 4).astype(int) for x in (a, b))
    halves = np.maximum(a.view(np.int16), b.view(np.int16)).view(np.uint32)
    wide_a, wide_b = a.astype(object), b.astype(object)
    want = [
        (wide_a * wide_b) >> 32,
        (a.view(np.int32).astype(object) * b.view(np.int32).astype(object)) >> 32,
        [int(f"{x:032b}"[::-1], 2) for x in a],
        [32 - int(x).bit_length() for x in a],
        [(int(x) & -int(x)).bit_length() for x in a],
        [int(x).bit_count() for x in a],
        bytes_a[:, 0] | bytes_a[:, 2] << 8 | bytes_b[:, 0] << 16 | bytes_b[:, 2] << 24,
        (wide_b << 9) | (wide_a >> 23),
        abs(wide_a - wide_b) + 5,
        ((bytes_a + bytes_b) % 256) @ [1, 1 << 8, 1 << 16, 1 << 24],
        np.abs(bytes_a - bytes_b) @ [1, 1 << 8, 1 << 16, 1 << 24],
        np.abs(bytes_a - bytes_b).sum(1),
        halves,
        a // (b | 1),
        a % (b | 1),
        (signed_a * signed_b).sum(1) + 7,
    ]
    for place, values in enumerate(want):
        expected = [int(value) & 0xFFFFFFFF for value in values]
        assert out[:, place].tolist() == expected, f"result {place}"


HALF = """
extern "C" __global__ void k_{name}(const {type}* a, const {type}* b, {type}* out) {{
    INDEX out[i] = {expression};
}}
"""
HALF_EXPRESSIONS: dict[str, tuple[str, Callable[[Any, Any], Any], int]] = {
    "add": ("__hadd(a[i], b[i])", lambda a, b: a + b, 0),
    "sub": ("a[i] - b[i]", lambda a, b: a - b, 0),
    "mul": ("a[i] * b[i]", lambda a, b: a * b, 0),
    "div": ("a[i] / b[i]", lambda a, b: a / b, 1),
    "fma": ("fused(a[i], b[i], a[i])", lambda a, b: a * b + a, 0),
    "max": ("__hmax(a[i], b[i])", np.maximum, 0),
    "sat": ("__hadd_sat(a[i], b[i])", lambda a, b: np.clip(a + b, 0, 1), 0),
    "exp": ("hexp(a[i])", lambda a, b: np.exp(a), 1),
    "log": ("hlog(b[i])", lambda a, b: np.log(b), 1),
    "sqrt": ("hsqrt(b[i])", lambda a, b: np.sqrt(b), 1),
    "rsqrt": ("hrsqrt(b[i])", lambda a, b: 1 / np.sqrt(b), 1),
    "sin": ("hsin(a[i])", lambda a, b: np.sin(a), 1),
    "rint": ("hrint(a[i])", lambda a, b: np.rint(a), 0),
    "floor": ("hfloor(a[i])", lambda a, b: np.floor(a), 0),
    "abs": ("__habs(a[i])", lambda a, b: np.abs(a), 0),
}


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
def test_half_and_bfloat16(tmp_path: Path, arch: str) -> None:
    """cuda_fp16.h and cuda_bf16.h: other instructions on each architecture, one result."""
    random = np.random.default_rng(5)
    types = {"__half": np.float16, "__nv_bfloat16": ml_dtypes.bfloat16}
    text = "".join(
        HALF.format(name=f"{name}_{type}", type=type, expression=expression)
        for type in types
        for name, (expression, _, _) in HALF_EXPRESSIONS.items()
    )
    module = _build(tmp_path, text, arch=arch)
    wrong = []
    for type, dtype in types.items():
        a = random.uniform(-6, 6, 256).astype(dtype)
        b = random.uniform(0.25, 6, 256).astype(dtype)
        for name, (_, reference, allowed) in HALF_EXPRESSIONS.items():
            got = _launch(module, f"k_{name}_{type}", [a.view(np.uint16), b.view(np.uint16)], np.uint16)
            want = (
                np.asarray(reference(a.astype(np.float64), b.astype(np.float64)))
                .astype(dtype)
                .view(np.uint16)
            )
            far = np.abs((got & 0x7FFF).astype(int) - (want & 0x7FFF)) > allowed
            far |= ((got ^ want) & 0x8000 != 0) & ((got | want) & 0x7FFF != 0)
            if far.any():
                i = int(np.argmax(far))
                wrong.append(f"{type} {name}({a[i]}, {b[i]}) = {got[i]:#x}, not {want[i]:#x}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89"])
def test_fp8_types(tmp_path: Path, arch: str) -> None:
    """Conversions of cuda_fp8.h: arithmetic on bits before sm_89, cvt instructions from there on."""
    text = "".join(
        f"""
extern "C" __global__ void to_{name}(const float* a, unsigned char* out) {{
    INDEX out[i] = __nv_fp8_{name}(a[i]).__x;
}}
extern "C" __global__ void from_{name}(const unsigned char* a, float* out) {{
    INDEX __nv_fp8_{name} value; value.__x = a[i]; out[i] = float(value); }}
"""
        for name in ("e4m3", "e5m2")
    )
    module = _build(tmp_path, text, arch=arch)
    random = np.random.default_rng(6)
    values = (random.standard_normal(512) * 10.0 ** random.uniform(-6, 4, 512)).astype(np.float32)
    for name, dtype in (("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)):
        largest = float(ml_dtypes.finfo(dtype).max)
        want = np.clip(values, -largest, largest).astype(dtype).view(np.uint8)
        np.testing.assert_array_equal(_launch(module, f"to_{name}", [values], np.uint8), want)
        codes = np.arange(256, dtype=np.uint8)
        back = _launch(module, f"from_{name}", [codes], np.float32)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(back, codes.view(dtype).astype(np.float32))
