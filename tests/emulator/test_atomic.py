"""atom, red and fences: every operation on every type against formulas on Python integers and float64,
contended counters, refusals."""

import ml_dtypes
import numpy as np
import pytest

from tests.emulator.snippets import Snippet, refusal, run_all

BITS = {"u32": 32, "s32": 32, "b32": 32, "u64": 64, "s64": 64, "b64": 64}
INTEGERS = {
    "add": ("u32", "s32", "u64"),
    "min": ("u32", "s32", "u64", "s64"),
    "max": ("u32", "s32", "u64", "s64"),
    "and": ("b32", "b64"),
    "or": ("b32", "b64"),
    "xor": ("b32", "b64"),
    "inc": ("u32",),
    "dec": ("u32",),
    "exch": ("b32", "b64"),
}
EDGES = (0, 1, 2, 5, 7, -1, -2, -(2**31), 2**31 - 1, 2**31, -(2**63), 2**63 - 1, 0x0123456789ABCDEF)
PAIRS = [(a, b) for a in EDGES for b in EDGES]


def _formula(operation: str, type: str, old: int, value: int) -> int:
    """What the manual says stands in memory afterwards, as an unsigned number."""
    bits = BITS[type]
    mask = (1 << bits) - 1
    old, value = old & mask, value & mask

    def number(x: int) -> int:
        return x - (1 << bits) if type[0] == "s" and x >> (bits - 1) else x

    after = {
        "add": lambda: old + value,
        "min": lambda: min(number(old), number(value)),
        "max": lambda: max(number(old), number(value)),
        "and": lambda: old & value,
        "or": lambda: old | value,
        "xor": lambda: old ^ value,
        "inc": lambda: 0 if old >= value else old + 1,
        "dec": lambda: value if old == 0 or old > value else old - 1,
        "exch": lambda: value,
    }
    return after[operation]() & mask


def _unsigned(numbers: list[int], bits: int) -> np.ndarray:
    return np.array([n & ((1 << bits) - 1) for n in numbers], f"u{bits // 8}")


def _on_memory(code: str, size: int, space: str) -> str:
    """A body that sets a word to %old, runs `code` on it (its address stands for @), and stores what is there
    then and what came back."""
    place = (
        "mov.u64 %at, %rd_out;"
        if space in ("global", "generic")
        else (
            f".shared .align 16 .b8 word[4096]; .reg .b32 %at32; mov.u32 %at32, word; mad.lo.u32 %at32, "
            f"%tid32, {size}, %at32;"
        )
    )
    at = "%at" if space in ("global", "generic") else "%at32"
    named = "" if space == "generic" else f".{space}"
    return (
        f".reg .b64 %at; .reg .b{8 * size} %old, %value, %back, %now; ld.global.b{8 * size} %old, [%rd_old];"
        f"ld.global.b{8 * size} %value, [%rd_value]; {place} st{named}.b{8 * size} [{at}], %old;"
        f"mov.b{8 * size} %back, %old; {code.replace('@', at)}"
        f"ld{named}.b{8 * size} %now, [{at}]; st.global.b{8 * size} [%rd_out], %now; "
        f"st.global.b{8 * size} [%rd_out+{size}], %back;"
    )


def _integer_cases() -> list[Snippet]:
    cases = []
    for operation, types in INTEGERS.items():
        for type in types:
            bits = BITS[type]
            inputs = {
                "old": _unsigned([a for a, _ in PAIRS], bits),
                "value": _unsigned([b for _, b in PAIRS], bits),
            }
            for opcode, space in (
                ("atom", "global"),
                ("atom", "shared"),
                ("atom", "generic"),
                ("red", "global"),
                ("red", "shared"),
            ):
                if operation == "exch" and opcode == "red":
                    continue
                named = "" if space == "generic" else f".{space}"
                back = "%back, " if opcode == "atom" else ""
                code = f"{opcode}{named}.{operation}.{type} {back}[@], %value;"
                cases.append(
                    Snippet(
                        f"{opcode}_{space}_{operation}_{type}",
                        _on_memory(code, bits // 8, space),
                        inputs=inputs,
                        output=((len(PAIRS), 2), inputs["old"].dtype),
                    )
                )
    return cases


def test_integers() -> None:
    cases = _integer_cases()
    results = run_all(cases)
    for case in cases:
        _, _, operation, type = case.name.split("_")
        expected = _unsigned([_formula(operation, type, a, b) for a, b in PAIRS], BITS[type])
        np.testing.assert_array_equal(results[case.name][:, 0], expected, err_msg=case.name)
        np.testing.assert_array_equal(results[case.name][:, 1], case.inputs["old"], err_msg=case.name)


FLOATS = np.array(
    [
        0,
        -0.0,
        1,
        -1,
        0.1,
        3.5,
        65504,
        1e-40,
        -1e-40,
        1.2e-38,
        6e-8,
        -6e-8,
        np.inf,
        -np.inf,
        np.nan,
        3e38,
        2**-149,
    ]
)
FLOAT_PAIRS = np.array([(a, b) for a in FLOATS for b in FLOATS])
HALVES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}


def _flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def _combined(operation: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In float64; NaN loses against a number in min and max, and -0 is below +0."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if operation == "add":
        return a + b
    equal, a_is_less = a == b, np.signbit(a)
    if operation == "min":
        return np.where(equal, np.where(a_is_less, a, b), np.fmin(a, b))
    return np.where(equal, np.where(a_is_less, b, a), np.fmax(a, b))


def _same(got: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Equal to the bit, all NaNs alike."""
    nan = np.isnan(expected.astype(np.float64))
    np.testing.assert_array_equal(np.isnan(got.astype(np.float64)), nan, err_msg=name)
    whole = f"u{got.dtype.itemsize}"
    np.testing.assert_array_equal(got[~nan].view(whole), expected[~nan].view(whole), err_msg=name)


def _float_cases() -> list[Snippet]:
    cases = []
    for type, dtype in (("f32", np.float32), ("f64", np.float64), *HALVES.items()):
        with np.errstate(over="ignore"):
            old, value = FLOAT_PAIRS[:, 0].astype(dtype), FLOAT_PAIRS[:, 1].astype(dtype)
        noftz, register = (".noftz", f"b{8 * np.dtype(dtype).itemsize}") if type in HALVES else ("", type)
        for space in ("global", "shared", "generic"):
            named = "" if space == "generic" else f".{space}"
            code = (
                f".reg .{register} %x, %y; mov.{'b16' if type in HALVES else register} %x, %value;"
                f"atom{named}.add{noftz}.{type} %y, [@], %x; "
                f"mov.{'b16' if type in HALVES else register} %back, %y;"
            )
            size = np.dtype(dtype).itemsize
            unsigned = {"old": old.view(f"u{size}"), "value": value.view(f"u{size}")}
            cases.append(
                Snippet(
                    f"{type}_{space}",
                    _on_memory(code, size, space),
                    inputs=unsigned,
                    output=((len(old), 2), f"u{size}"),
                )
            )
    return cases


def test_floats() -> None:
    """add.f32 flushes subnormals in global memory only; the halves keep them."""
    cases = _float_cases()
    results = run_all(cases)
    for case in cases:
        type, space = case.name.split("_")
        dtype = {"f32": np.float32, "f64": np.float64, **HALVES}[type]
        old, value = case.inputs["old"].view(dtype), case.inputs["value"].view(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            if type == "f32" and space != "shared":
                expected = _flushed(_combined("add", _flushed(old), _flushed(value)).astype(dtype))
            else:
                expected = _combined("add", old, value).astype(dtype)
        _same(results[case.name][:, 0].view(dtype), expected, case.name)
        np.testing.assert_array_equal(results[case.name][:, 1], case.inputs["old"])


def _packed_case(type: str) -> Snippet:
    """Two elements per 32-bit word: x2 forms, global and shared."""
    dtype = HALVES[type]
    with np.errstate(over="ignore"):
        old, value = FLOAT_PAIRS[:-1, 0].astype(dtype), FLOAT_PAIRS[:-1, 1].astype(dtype)
    code = f"atom.global.add.noftz.{type}x2 %back, [@], %value;"
    return Snippet(
        f"atom_add_{type}",
        _on_memory(code, 4, "global"),
        inputs={"old": old.view("u4"), "value": value.view("u4")},
        output=((len(old) // 2, 2), np.uint32),
    )


def _vector_case(opcode: str, operation: str, type: str, count: int) -> Snippet:
    """Vectors of sm_90: the old values come back in the second row."""
    register, dtype, noftz = ("f32", np.float32, "") if type == "f32" else ("b16", HALVES[type], ".noftz")
    size = np.dtype(dtype).itemsize
    with np.errstate(over="ignore"):
        pairs = FLOAT_PAIRS[: len(FLOAT_PAIRS) // count * count].astype(dtype)
    old, value = pairs[:, 0].reshape(-1, count), pairs[:, 1].reshape(-1, count)
    names = [f"{{{', '.join(f'%{n}{i}' for i in range(count))}}}" for n in "xy"]
    loads = " ".join(
        f"ld.global.{register} %x{i}, [%rd_value+{i * size}]; ld.global.{register} %y{i}, "
        f"[%rd_old+{i * size}];"
        f"st.global.{register} [%rd_out+{i * size}], %y{i};"
        for i in range(count)
    )
    stores = " ".join(f"st.global.{register} [%rd_out+{(count + i) * size}], %y{i};" for i in range(count))
    back = f"{names[1]}, " if opcode == "atom" else ""
    return Snippet(
        f"{opcode}_{operation}_{type}_{count}",
        f"{loads} {opcode}.relaxed.gpu.global.{operation}{noftz}.v{count}.{type} {back}[%rd_out], "
        f"{names[0]}; {stores}",
        registers=f".reg .{register} %x<{count}>; .reg .{register} %y<{count}>;",
        inputs={"old": old.view(f"u{size}"), "value": value.view(f"u{size}")},
        output=((len(old), 2, count), f"u{size}"),
    )


def test_packed_and_vectors() -> None:
    packed = [_packed_case(type) for type in HALVES]
    vectors = [_vector_case(opcode, "add", "f32", count) for opcode in ("atom", "red") for count in (2, 4)]
    vectors += [
        _vector_case(opcode, operation, type, count)
        for opcode, count in (("atom", 2), ("atom", 8), ("red", 4))
        for operation in ("add", "min", "max")
        for type in HALVES
    ]
    results = run_all(packed + vectors)
    for case in packed + vectors:
        _, operation, type, *_ = case.name.split("_")
        dtype = HALVES.get(type, np.float32)
        old, value = (np.ascontiguousarray(case.inputs[n]).view(dtype) for n in ("old", "value"))
        with np.errstate(over="ignore", invalid="ignore"):
            if type == "f32":
                expected = _flushed((_flushed(old) + _flushed(value)).astype(dtype))
            else:
                expected = _combined(operation, old, value).astype(dtype)
        got = np.ascontiguousarray(results[case.name][:, 0]).view(dtype)
        _same(got.reshape(expected.shape), expected, case.name)
        np.testing.assert_array_equal(
            results[case.name][:, 1].reshape(case.inputs["old"].shape), case.inputs["old"]
        )


def test_compare_and_swap() -> None:
    cases = []
    for bits in (16, 32, 64):
        old = np.arange(8, dtype=f"u{bits // 8}")
        code = (
            f".reg .b{bits} %e; ld.global.b{bits} %e, [%rd_expected]; atom.global.cas.b{bits} "
            f"%back, [@], %e, %value;"
        )
        inputs = {
            "old": old,
            "value": old + 100,
            "expected": np.where(old % 2, old, old + 1).astype(old.dtype),
        }
        cases.append(
            Snippet(
                f"cas{bits}", _on_memory(code, bits // 8, "global"), inputs=inputs, output=((8, 2), old.dtype)
            )
        )
    results = run_all(cases)
    for case in cases:
        old = case.inputs["old"]
        np.testing.assert_array_equal(results[case.name][:, 0], np.where(old % 2, old + 100, old))
        np.testing.assert_array_equal(results[case.name][:, 1], old)


WIDE = """
    ld.global.v2.u64 {%a, %b}, [%rd_old]; st.global.v2.u64 [%rd_out], {%a, %b};
    ld.global.v2.u64 {%a, %b}, [%rd_expected]; mov.b128 %e, {%a, %b};
    ld.global.v2.u64 {%a, %b}, [%rd_value]; mov.b128 %v, {%a, %b};
    CODE
    mov.b128 {%a, %b}, %back; st.global.v2.u64 [%rd_out+16], {%a, %b};
"""


def test_128_bits() -> None:
    """A compare-and-swap that differs only in the upper half must fail."""
    old = np.array([[1, 2], [1, 2], [1, 2], [2**64 - 1, 2**63]], np.uint64)
    expected = np.array([[1, 2], [1, 3], [0, 2], [2**64 - 1, 2**63]], np.uint64)
    value = old + np.uint64(7)
    codes = {
        "cas": "atom.global.cas.b128 %back, [%rd_out], %e, %v;",
        "exch": "atom.relaxed.gpu.global.exch.b128 %back, [%rd_out], %v;",
    }
    registers = ".reg .u64 %a, %b; .reg .b128 %e, %v, %back;"
    inputs = {"old": old, "expected": expected, "value": value}
    cases = [
        Snippet(
            name,
            WIDE.replace("CODE", code),
            registers=registers,
            inputs=inputs,
            output=((4, 2, 2), np.uint64),
        )
        for name, code in codes.items()
    ]
    results = run_all(cases)
    hit = (old == expected).all(axis=1)[:, None]
    np.testing.assert_array_equal(results["cas"][:, 0], np.where(hit, value, old))
    np.testing.assert_array_equal(results["exch"][:, 0], value)
    for name in codes:
        np.testing.assert_array_equal(results[name][:, 1], old)


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_contended(mode: str) -> None:
    """Counters that all threads of all blocks hit: exact, and every ticket is given once."""
    tickets = "atom.global.add.u32 %r, [%base_counter], 1; st.global.u32 [%rd_out], %r;"
    spin = (
        # A lock in shared memory: taken with cas, given back with exch.  The count behind it is plain.
        ".shared .b32 lock; .shared .b32 count; .reg .pred %p; setp.eq.u32 %p, %tid32, 0;"
        "@%p st.shared.u32 [lock], 0; @%p st.shared.u32 [count], 0; bar.sync 0;"
        "again: atom.acquire.cta.shared.cas.b32 %r, [lock], 0, 1; setp.ne.u32 %p, %r, 0; @%p bra again;"
        "ld.shared.u32 %r, [count]; add.u32 %r, %r, 1; st.shared.u32 [count], %r;"
        "atom.release.cta.shared.exch.b32 %r, [lock], 0; bar.sync 0; ld.shared.u32 %r, [count]; "
        "st.global.u32 [%rd_out], %r;"
    )
    declared = ".visible .global .align 4 .u32 counter = 0;"
    cases = [
        Snippet(
            "tickets",
            ".reg .u64 %base_counter; mov.u64 %base_counter, counter; cvta.global.u64 %base_counter, "
            "%base_counter;" + tickets,
            registers=".reg .u32 %r;",
            declarations=declared,
            output=((3000,), np.uint32),
            block=256,
        ),
        Snippet("lock", spin, registers=".reg .u32 %r;", output=((64,), np.uint32)),
    ]
    results = run_all(cases, mode=mode)
    np.testing.assert_array_equal(np.sort(results["tickets"]), np.arange(3000))
    np.testing.assert_array_equal(results["lock"], 64)


FENCES = [
    *(
        f"fence{sem}.{scope};"
        for sem in ("", ".sc", ".acq_rel", ".acquire", ".release")
        for scope in ("cta", "cluster", "gpu", "sys")
    ),
    "membar.cta;",
    "membar.gl;",
    "membar.sys;",
    "fence.proxy.alias;",
    "fence.proxy.async;",
    "fence.proxy.async.global;",
    "fence.proxy.async.shared::cta;",
    "fence.proxy.async.shared::cluster;",
    "fence.mbarrier_init.release.cluster;",
    "fence.acquire.sync_restrict::shared::cluster.cluster;",
    "fence.release.sync_restrict::shared::cta.cluster;",
    "fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster;",
    "fence.proxy.async::generic.release.sync_restrict::shared::cta.cluster;",
    "fence.proxy.tensormap::generic.release.gpu;",
    "fence.proxy.tensormap::generic.acquire.sys [%rd_out], 128;",
]
HINTS = [
    "createpolicy.fractional.L2::evict_last.b64 %p, 0f3F800000;",
    "createpolicy.fractional.L2::evict_first.L2::evict_unchanged.b64 %p;",
    "createpolicy.range.global.L2::evict_last.b64 %p, [%rd_out], 128, 256;",
    "createpolicy.cvt.L2.b64 %p, 1;",
    "applypriority.global.L2::evict_normal [%rd_out], 128;",
    "atom.global.add.L2::cache_hint.u32 %r, [%rd_out], 1, %p;",
    "red.global.add.L2::cache_hint.u32 [%rd_out], 1, %p;",
]


def test_fences_and_hints_run() -> None:
    body = " ".join(
        [f".reg .b64 %p; .reg .u32 %r; st.global.u32 [%rd_out], 0; mov.b64 %p, 0; {' '.join(HINTS)}", *FENCES]
    )
    assert run_all([Snippet("all", body)], mode="check")["all"] == 2


def test_discarded_bytes_are_lost() -> None:
    body = "st.global.u32 [%rd_out], 7; discard.global.L2 [%base_out], 128;"
    assert (run_all([Snippet("discard", body, output=((1, 32), np.uint32))])["discard"] == 0xFFFFFFFF).all()


REFUSED = {
    "atom.global.add.f16 %h, [%rd_out], %h;": "no such type",
    "atom.global.add.s64 %rd, [%rd_out], %rd;": "no such type",
    "atom.global.inc.u64 %rd, [%rd_out], %rd;": "no such type",
    "atom.global.and.u32 %r, [%rd_out], %r;": "no such type",
    "atom.shared.add.v2.f32 {%f, %f}, [%r], {%f, %f};": "global memory only",
    "atom.global.add.v8.f32 {%f, %f}, [%rd_out], {%f, %f};": "no such type",
    "atom.global.sub.u32 %r, [%rd_out], %r;": "'.sub'",
    "atom.acq_rel.global.add.u32 %r, [%rd_out], %r;": "no scope",
    "red.global.exch.b32 [%rd_out], %r;": "'.exch'",
    "red.global.add.u32.wide [%rd_out], %r;": "'.wide'",
    "fence.gl;": "'.gl'",
    "membar.proxy.async;": "'.async'",
    "multimem.red.relaxed.sys.global.add.u32 [%rd_out], %r;": "'multimem'",
}


@pytest.mark.parametrize("body", REFUSED)
def test_refused(body: str) -> None:
    registers = ".reg .u32 %r; .reg .u64 %rd; .reg .f32 %f; .reg .b16 %h;"
    assert REFUSED[body] in refusal(body, registers=registers)


def test_older_targets_refuse_what_came_later() -> None:
    assert "sm_90" in refusal(
        "red.global.add.v2.f32 [%rd_out], {%f, %f};", registers=".reg .f32 %f;", arch="sm_80"
    )
