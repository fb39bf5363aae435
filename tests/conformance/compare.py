"""Runs a kernel on a backend and judges what comes back: shapes and types against the protocol's text, values
against the formulas in naive/.

The rule is FlashAttention's (Dao et al. 2022): a kernel's largest error against float64 may be twice that of
a plain implementation in the same type, plus a few units in the last place of the largest value."""

import ctypes
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from nn.backends import Backend, choose, devices, kernels, use_backend
from nn.backends.protocol import KERNELS, Kernel
from tests.conformance import naive
from tests.conformance.cases import DTYPES, HALF, Case

IN_PLACE = {"accumulate": (0,), "adamw": (0, 2, 3), "cache_append": (0, 1)}   # arguments that are the results
SYMBOLS = {"k": "K", "num_experts": "E", "choices": "K", "tokens": "N",       # integers that stand for axes
           "outputs": "O", "features": "F", "steps": "T", "parts": "P"}
TERMS = {"gathered_swiglu": 4.0, "gathered_swiglu_backward": 4.0,      # of rounded sums of products
         "attention_backward": 8.0,       # dP and its row mean are sums of products; they may cancel
         "linear_cross_entropy": 4.0}     # dlogits may be rounded to the storage type before sums
UNITS = {"float64": 64, "float32": 8, "bfloat16": 1, "float16": 1}
Function = Callable[..., Any]
devices.OPTIONS["emulated"] |= {"mode": "check"}          # every access of every kernel is checked


def served(backend: Backend, case: Case) -> Function | None:
    """The backend's function for this case, None if it does not take such arrays; proves who would run."""
    if backend.name in devices.DEVICES:                       # nothing is put there before its test
        return backend.kernel(case.kernel) if case.dtype != "float64" else None
    array = backend.from_numpy(case.arguments[0])
    if backend.missing() or not backend.serves(array) or backend.kernel(case.kernel) is None:
        return None
    with use_backend(backend.name):
        chosen, function = choose(case.kernel, array)
    assert chosen is backend
    return function


def check_on(backend: Backend, case: Case) -> None:
    """The case through `nn.backends.kernels`, forced to this backend, and the proof that its function ran."""
    calls: list[str] = []
    expected = served(backend, case)

    def through_dispatch(*arguments: Any, **options: Any) -> Any:
        with use_backend(backend.name):
            result = getattr(kernels, case.kernel)(*arguments, **options)
        bound = getattr(kernels, case.kernel).bound[(backend.name, type(arguments[0]), arguments[0].dtype)]
        assert bound is expected, (
            f"{case.kernel} ran {bound.__module__}.{bound.__name__}, not the {backend.name} backend's")
        calls.append(backend.name)
        return result

    into = on(devices.open_device(backend.name)) if backend.name in devices.DEVICES else backend.from_numpy
    check(through_dispatch, case, into, to_numpy)
    assert calls == [backend.name]


def on(device: Any) -> Function:
    """Puts NumPy arrays on a device, strides and all; its findings up to now are forgotten."""
    from cuda.nn.device import DeviceArray

    def place(array: np.ndarray) -> DeviceArray:
        if array.size == 0 or array.flags.c_contiguous:
            return device.asarray(array)
        low = sum(min(0, s * (n - 1)) for s, n in zip(array.strides, array.shape, strict=True))
        high = sum(max(0, s * (n - 1)) for s, n in zip(array.strides, array.shape, strict=True))
        high += array.itemsize
        memory = (ctypes.c_uint8 * (high - low)).from_address(array.ctypes.data + low)
        whole = device.asarray(np.frombuffer(memory, array.dtype))
        strides = tuple(s // array.itemsize for s in array.strides)
        return DeviceArray(device, whole.block, array.dtype, array.shape, strides, -low // array.itemsize)

    return place


def to_numpy(result: Any) -> Any:
    return result.numpy() if hasattr(result, "numpy") else result


def check(function: Function, case: Case, into: Function = lambda array: array,
          back: Function = lambda array: array) -> None:
    """Run function on the case's arguments, converted by `into`; judge its results,
    converted back by `back`."""
    arguments = tuple(into(fresh(a)) if isinstance(a, np.ndarray) else a for a in case.arguments)
    options = {name: into(value) if isinstance(value, np.ndarray) else value
               for name, value in case.options.items()}
    untouched = [back(a).copy() if isinstance(a, np.ndarray) else None for a in case.arguments]
    results = function(*arguments, **options)
    if case.kernel in IN_PLACE:
        assert results is None
        results = tuple(arguments[i] for i in IN_PLACE[case.kernel])
    results = [back(r) if r is not None else None
               for r in (results if isinstance(results, tuple) else (results,))]
    for i, (before, after) in enumerate(zip(untouched, arguments, strict=True)):
        if before is not None and i not in IN_PLACE.get(case.kernel, ()):
            assert np.array_equal(before, back(after), equal_nan=True), f"argument {i} was changed"
    judge(case, results)


def fresh(array: np.ndarray) -> np.ndarray:
    """A copy with the same strides"""
    if array.size == 0 or array.flags.c_contiguous:
        return array.copy()
    return strided(array, array.strides)


def strided(array: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
    """The array's values in new memory that is walked with these strides"""
    low = sum(min(0, s * (n - 1)) for s, n in zip(strides, array.shape, strict=True))
    high = sum(max(0, s * (n - 1)) for s, n in zip(strides, array.shape, strict=True)) + array.itemsize
    memory = np.zeros(high - low, np.uint8)
    view = np.ndarray(array.shape, array.dtype, memory.data, offset=-low, strides=strides)
    view[...] = array
    return view


def judge(case: Case, results: list[Any]) -> None:
    expect, plain = values(case)
    if case.kernel not in IN_PLACE:
        check_protocol(KERNELS[case.kernel], case, results)
    assert len(results) == len(expect)
    sizes = (np.max(np.abs(a[np.isfinite(a)]), initial=0.0) for a in floats(case) if a.size)
    terms = TERMS.get(case.kernel, 1.0) * min([1.0, *sizes])
    for i, (result, right, rough) in enumerate(zip(results, expect, plain, strict=True)):
        if right is None:
            assert result is None
            continue
        if np.asarray(right).dtype.kind == "i":
            assert np.array_equal(result, right), f"result {i}: {result} is not {right}"
        else:
            compare(f"result {i}", np.asarray(result), np.asarray(right), np.asarray(rough), case.dtype,
                    terms)


def floats(case: Case) -> list[np.ndarray]:
    return [a for a in case.arguments if isinstance(a, np.ndarray) and a.dtype.kind not in "iub"]


_VALUES: dict[tuple[str, str, str], tuple[list[Any], list[Any]]] = {}


def values(case: Case) -> tuple[list[Any], list[Any]]:
    """naive's results in float64, and with everything computed in the case's type: where the protocol says
    `float`, in float32 at least.  Kept, since a case in another layout has the same."""
    key = (case.kernel, case.name, case.dtype)
    if key not in _VALUES:
        plain = run_naive(case, DTYPES[case.dtype])
        if case.dtype in HALF:
            texts = KERNELS[case.kernel].results.split() or [":float"] * len(plain)
            pairs = zip(texts, plain, run_naive(case, np.float32), strict=True)
            plain = [wide if text.endswith(":float") else half for text, half, wide in pairs]
        _VALUES[key] = run_naive(case, np.float64), plain
    return _VALUES[key]


def run_naive(case: Case, dtype: Any) -> list[Any]:
    inputs = [a.astype(dtype) if any(a is x for x in floats(case)) else a for a in case.arguments]
    with np.errstate(all="ignore"):
        results = getattr(naive, case.kernel)(*inputs, **case.options)
    return list(results) if isinstance(results, tuple) else [results]


def compare(what: str, result: np.ndarray, right: np.ndarray, rough: np.ndarray, dtype: str,
            scale: float = 0.0) -> None:
    """scale: size of the terms that the result is a sum of, where they may cancel"""
    assert result.shape == right.shape, f"{what}: shape {result.shape}, expected {right.shape}"
    result, rough = result.astype(np.float64), rough.astype(np.float64)
    finite = np.isfinite(right)
    assert np.array_equal(result[~finite], right[~finite], equal_nan=True), f"{what}: infinities differ"
    if not finite.any():
        return
    error, known = np.abs(result[finite] - right[finite]), np.abs(rough[finite] - right[finite])
    largest = max(scale, np.max(np.abs(right[finite])))
    limit = 2.0 * np.max(known[np.isfinite(known)], initial=0.0) + UNITS[dtype] * _unit(dtype) * largest
    assert np.all(error <= limit), (
        f"{what}: error {np.max(error):.3g}, allowed {limit:.3g} (plain {np.max(known):.3g})")


def _unit(dtype: str) -> float:
    return {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]


# the protocol's text:  "x[R,D] weight[D] eps; option=default"  ->  "y[R,D] rstd[R,1]:float"

ITEM = re.compile(r"(?P<name>\w+)(?:\[(?P<axes>[^\]]*)\])?(?::(?P<kind>\w+))?")


def positional(kernel: Kernel) -> list[re.Match[str]]:
    matches = (ITEM.fullmatch(text) for text in kernel.arguments.split(";")[0].split())
    return [match for match in matches if match]


def check_protocol(kernel: Kernel, case: Case, results: list[Any]) -> None:
    sizes: dict[str, Any] = {}
    named = dict(zip((match["name"] for match in positional(kernel)), case.arguments, strict=False))
    for match in positional(kernel):
        if match["name"] in named:
            bind(match["axes"], named[match["name"]], sizes, match["name"])
    if "N" in sizes and "K" in sizes:
        sizes["M"] = sizes["N"] * sizes["K"]
    for text, result in zip(kernel.results.split(), results, strict=True):
        match = ITEM.fullmatch(text)
        assert match is not None
        if result is not None:
            bind(match["axes"], result, sizes, match["name"])
            check_type(match, named, result, case)


def bind(axes: str | None, value: Any, sizes: dict[str, Any], name: str) -> None:
    """Read the axes' sizes off the array, or compare with those already known."""
    if axes is None:
        sizes[SYMBOLS.get(name, name)] = value
        return
    shape, letters = tuple(value.shape), axes.split(",")
    if letters[0] == "...":
        letters = letters[1:]
        shape = shape[len(shape) - len(letters) :]
        lead = value.shape[: value.ndim - len(letters)]
        if name not in ("cos", "sin"):
            known = sizes.setdefault("...", lead)
            assert known == lead, f"{name}[{axes}]: leading axes {lead}, expected {known}"
    assert len(shape) == len(letters), f"{name}[{axes}] has shape {value.shape}"
    for letter, size in zip(letters, shape, strict=True):
        known = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
        assert known == size, f"{name}[{axes}] has shape {value.shape}, but {letter} is {known}"


def check_type(match: re.Match[str], named: dict[str, Any], result: Any, case: Case) -> None:
    first = next(iter(named.values()))
    kind = match["kind"]
    if kind == "number":
        assert isinstance(result, float)
    elif kind == "int":
        assert result.dtype.kind == "i"
    elif kind in DTYPES:
        assert result.dtype == DTYPES[kind]
    else:
        source = named.get(kind, first)
        expected = np.dtype(np.float32) if kind == "float" and case.dtype in HALF else source.dtype
        assert result.dtype == expected, f"{match['name']} is {result.dtype}, expected {expected}"


# the same values in other memory

def transposed(array: np.ndarray) -> np.ndarray:
    return np.asfortranarray(array)


def every_other(array: np.ndarray) -> np.ndarray:
    """A view with gaps along the last axis"""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1] if array.ndim else 1), array.dtype)
    view = wide[..., ::2]
    view[...] = array
    return view


def reversed_view(array: np.ndarray) -> np.ndarray:
    """Negative strides along every axis"""
    backwards = tuple(slice(None, None, -1) for _ in array.shape)
    return array[backwards].copy()[backwards]


LAYOUTS = {"transposed": transposed, "every-other": every_other, "reversed": reversed_view}


def in_layout(case: Case, layout: str) -> Case:
    change = LAYOUTS[layout]
    moved = tuple(change(a) if isinstance(a, np.ndarray) and a.ndim else a for a in case.arguments)
    options = {k: change(v) if isinstance(v, np.ndarray) else v for k, v in case.options.items()}
    return replace(case, layout=layout, arguments=moved, options=options)
