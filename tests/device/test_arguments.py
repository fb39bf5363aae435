"""Bad arguments, one at a time, to every function: a Python exception that names the argument, and no launch.

A launch would fail here by injection, so that nothing is harmed by a call that ought to have been refused."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import Array, Structure, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import partial
from math import nan
from operator import setitem
from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError, DeviceError, UnsupportedError
from cuda.nn.library import Int32, argument_type, split
from cuda.nn.prototypes import prototypes
from tests.device.accuracy import at_odd_element
from tests.device.calls import BUILDERS, VARIANTS, Call, cases, launching, make

HUGE = 1 << 62
BAD: dict[Any, tuple[Any, ...]] = {c_int64: (-1, HUGE), c_int32: (-1, 99), Int32: (-1, 99), c_float: (nan,),
                                   c_double: (nan,)}

# Names of which every value means something, in any function: numbers that are stored or multiplied with;
# flags, where all but 0 is yes; strides, which may go backwards, and whose end the host cannot know.
ANYTHING = re.compile(
    r"(\w+_)?scalar|value|step|alpha|beta|coefficient|ignore_index|causal|descending|right|([okqv]_|d_o_|"
    r"d[qkv]_|lse_|mask_)?strides|[kv]_\w+_stride|[qk]\.[xy]_\w+")
ALSO = {"array_arange": "start", "array_gather": "stride", "array_scatter": "stride", "rope_table": "factor"}
# Pointers that may be null.
OPTIONAL = {
    "array_binary": "a b", "array_where": "a b", "attention_forward": "mask cu_queries cu_keys key_lengths",
    "attention_backward": "mask cu_queries cu_keys key_lengths", "attention_decode": "lse lengths",
    "softmax_causal_forward": "device_offset", "rms_norm_backward": "dresidual",
    "gemm_forward": "bias alpha_device beta_device", "rope_forward": "positions",
    "router_topk_forward": "probs", "sample_forward": "flags history lengths rows",
    "sample_forward-greedy": "flags history lengths rows keys steps",
    "cross_entropy_forward": "dlogits dloss", "cross_entropy_backward": "loss dloss",
    "mean_loss_forward": "sum count tokens", "linear_cross_entropy_forward": "dloss",
    "adamw_forward": "scale skip", "gradient_norm_forward": "skip skipped input_scale",
    "counter_increment": "skip", "grouped_linear_forward": "order", "grouped_swiglu_forward": "hidden order",
    "grouped_linear_backward_weight": "order",
}
# Values that are right although they look wrong.
RIGHT: dict[str, dict[str, tuple[Any, ...]]] = {
    "softmax_causal_forward": {"offset": (-1,), "period": (HUGE,)},
    "sample_forward": {"top_k": (HUGE,)},                                # more than there are: off
    "cross_entropy_forward": {"gradient_stride": (-1, HUGE), "gradient_dtype": (-1, 99)},        # not used
    "attention_forward": {"window": (HUGE,)}, "attention_backward": {"window": (HUGE,)},
    "attention_decode": {"window": (HUGE,)}, "gemm_forward-split": {"splits": (99,)},
}
# Not used without a page size, or without positions: the variants with them refuse bad ones.
UNUSED = {"attention_decode": "pages max_pages", "cache_append": "pages max_pages",
          "rope_forward": "position_dtype"}
USED_IN = ("paged", "placed")
# The argument that is wrong is another: one that was right for the good value.
OTHER = {"workspace": "workspace_bytes", "chunk": "workspace_bytes"}


@dataclass(frozen=True)
class Place:
    """An argument, or a field of one that is a struct."""

    name: str
    put: Callable[[Any], None]
    good: Any
    bad: tuple[Any, ...]
    struct: str = ""                 # whose name will do


def places(call: Call) -> Iterator[Place]:
    words, _ = split(prototypes()[f"nn_{call.function}"])
    for i, (name, word, argument) in enumerate(zip(call.names, words, call.arguments, strict=False)):
        put = partial(setitem, call.arguments, i)
        if isinstance(argument, Structure):
            yield Place(name, put, argument, (None,))
            yield from fields(argument, "layout" if name == "layout" else "")
        elif word.endswith("*"):
            yield Place(name, put, argument, bad_pointers(argument))
        elif not (name == "workspace_bytes" and argument == 0):          # where there is none to be given
            yield Place(name, put, argument, BAD[argument_type(word)])


def fields(struct: Structure, owner: str, prefix: str = "") -> Iterator[Place]:
    for name, kind, *_ in struct._fields_:
        value, put = getattr(struct, name), partial(setattr, struct, name)
        if isinstance(value, Structure):
            yield from fields(value, owner, f"{name}.")
        elif isinstance(value, Array):
            row = first_row(value)
            yield Place(prefix + name, partial(setitem, row, 0), row[0], BAD[c_int64], owner)
        elif kind is c_void_p:
            yield Place(prefix + name, put, value, (None, value + 1) if value else ())
        else:
            yield Place(prefix + name, put, value, (0,) if name == "size" else BAD[kind], owner)


def first_row(array: Any) -> Any:
    return first_row(array[0]) if isinstance(array[0], Array) else array


def bad_pointers(argument: Any) -> tuple[Any, ...]:
    """Null, and one byte off where an element has more"""
    if argument is None:
        return ()
    return (None,) if argument.dtype == np.bool_ else (None, argument.pointer + 1)


def means_something(function: str, variant: str, name: str, value: Any) -> bool:
    if value is None:
        return name in OPTIONAL.get(f"{function}-{variant}", OPTIONAL.get(function, "")).split()
    if name in UNUSED.get(function, "").split() and variant not in USED_IN:
        return True
    if name == "workspace_bytes":
        return bool(value == HUGE)
    if ANYTHING.fullmatch(name) or name == ALSO.get(function):
        return value in (-1, 99, HUGE) or value != value
    return value in RIGHT.get(f"{function}-{variant}", RIGHT.get(function, {})).get(name, ())


def outcome(device: EmulatedDevice, call: Call, place: Place) -> str:
    """"refused", what is wrong with the refusal, or "taken" """
    device.configure(fail_launch=1)
    try:
        call.launch()
    except (DeviceArgumentError, UnsupportedError) as error:
        words = str(error).partition(": ")[2]
        names = {place.name, place.struct or place.name, OTHER.get(place.name, place.name)}
        named = any(re.search(rf"\b{re.escape(name)}\b", words) for name in names)
        return "refused" if named else f"refused without its name: {error}"
    except DeviceError:                          # injected
        return "taken"
    finally:
        device.configure()
    return "taken"


@pytest.mark.parametrize("function", BUILDERS)
def test_a_bad_argument_is_refused_by_name(device: EmulatedDevice, function: str) -> None:
    wrong = []
    for variant, sizes in VARIANTS[function].items():
        call = make(device, function, **sizes)
        for place in places(call):
            for value in place.bad:
                place.put(value)
                expected = "taken" if means_something(function, variant, place.name, value) else "refused"
                found = outcome(device, call, place)
                place.put(place.good)
                if found != expected:
                    wrong.append(f"{variant} {place.name} = {value}: {found}, not {expected}")
    assert not wrong, "\n".join(wrong)


MANY = 1 << 30
PRODUCTS: dict[str, list[dict[str, int]]] = {
    "attention_forward": [{"batch": MANY, "heads": MANY, "groups": MANY, "queries": MANY}],
    "attention_backward": [{"batch": MANY, "heads": MANY, "groups": 1, "queries": MANY // 2},
                           {"heads": 0, "groups": 1 << 32}],
    "attention_decode": [{"batch": MANY, "heads": MANY, "groups": MANY, "queries": 16}],
    "cache_append": [{"batch": MANY, "groups": MANY}, {"groups": MANY, "queries": MANY}],
}


@pytest.mark.parametrize(("function", "sizes"), [(name, x) for name, all_ in PRODUCTS.items() for x in all_])
def test_sizes_whose_product_overflows_are_refused(device: EmulatedDevice, function: str,
                                                   sizes: dict[str, int]) -> None:
    """Each of them alone would do."""
    call = make(device, function, dtype="bfloat16", width=16)
    for i, name in enumerate(call.names):
        if name in sizes:
            call.arguments[i] = sizes[name]
    for struct in (x for x in call.arguments if isinstance(x, Structure)):
        for name in sizes.keys() & {field[0] for field in struct._fields_}:
            setattr(struct, name, sizes[name])
    device.configure(fail_launch=1)
    try:
        with pytest.raises(DeviceArgumentError, match=r"batch|groups"):
            call.launch()
    finally:
        device.configure()


TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}                           # of the largest number


@pytest.mark.parametrize(("function", "sizes"), cases())
def test_arrays_may_begin_at_any_element(device: EmulatedDevice, function: str,
                                         sizes: dict[str, Any]) -> None:
    """Checked accesses, and what the aligned arrays give; sums may be formed in another order."""
    expected = make(device, function, **sizes).run()
    found = make(device, function, place=at_odd_element, **sizes).run()
    tolerance = TOLERANCE[sizes.get("dtype", "float32")]
    for result, right in zip(found, expected, strict=True):
        if right.dtype.kind in "iu":
            np.testing.assert_array_equal(result, right)
        else:
            error = np.abs(result.astype(np.float64) - right)
            assert error.max() <= tolerance * np.abs(right.astype(np.float64)).max()


# ---- functions that launch nothing -------------------------------------------------------------------------

OTHERS = sorted({name.removeprefix("nn_") for name in prototypes()} - launching())


@pytest.mark.parametrize("function", OTHERS)
def test_what_launches_nothing_crashes_on_nothing(device: EmulatedDevice, function: str) -> None:
    """Null pointers beside numbers of any size: an answer, or an exception."""
    words, _ = split(prototypes()[f"nn_{function}"])
    for number in (0, 1, -1, (1 << 31) - 1, HUGE):
        fitting = [None if word.endswith("*") else
                   max(-1, min(number, (1 << 31) - 1)) if word.endswith(":i32") else
                   float(number) if ":f" in word else number for word in words]
        with suppress(DeviceError):
            getattr(device.library, f"nn_{function}")(*fitting)
