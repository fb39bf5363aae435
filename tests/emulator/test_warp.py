"""Warp collectives against the PTX manual's pseudo-code, lane by lane; and every way to misuse them."""

from collections.abc import Iterator

import numpy as np
import pytest

from cuda.nn.emulator import Module
from tests.emulator.snippets import Snippet, refusal, run_all, run_module

FULL = 0xFFFFFFFF
THREADS = 64
WARPS = THREADS // 32
RNG = np.random.default_rng(5)
WORDS = RNG.integers(0, 2**32, THREADS, dtype=np.uint32)
FEW = RNG.integers(0, 4, THREADS).astype(np.uint32)  # so that lanes agree
FLOATS = np.array([1.5, -2.0, 0.0, -0.0, np.inf, -np.inf, 3e-40, 7.0] * 8, np.float32)
LOAD = "ld.global.u32 %a, [%rd_a];"
REGISTERS = ".reg .b32 %a, %b, %c, %d; .reg .b64 %wide; .reg .pred %p, %q;"


def _by_warp(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).reshape(-1, 32)


def _case(
    name: str, body: str, a: np.ndarray = WORDS, shape: tuple[int, ...] = (THREADS,), **more: object
) -> Snippet:
    return Snippet(
        name, f"{LOAD} {body}", inputs={"a": a}, output=(shape, np.uint32), registers=REGISTERS, **more
    )


# ---- shfl --------------------------------------------------------------------------------------------------


def _source(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The lane that is read and the predicate, as in the manual's description of shfl.sync."""
    bval, cval, segment = b & 31, c & 31, c >> 8 & 31
    max_lane = (lane & segment) | (cval & ~segment & 31)
    min_lane = lane & segment
    if mode == "up":
        j, inside = lane - bval, lane - bval >= max_lane
    elif mode == "down":
        j, inside = lane + bval, lane + bval <= max_lane
    elif mode == "bfly":
        j, inside = lane ^ bval, (lane ^ bval) <= max_lane
    else:
        j = min_lane | (bval & ~segment & 31)
        inside = j <= max_lane
    return (j if inside else lane), inside


def _clamp(mode: str, width: int) -> int:
    """What nvcc passes for `width` lanes."""
    return ((32 - width) << 8) | (0 if mode == "up" else 31)


# Clamps in the middle of the warp, and segments, are not what CUDA C++ can express.
SHUFFLES = [
    (mode, b, c)
    for mode in ("up", "down", "bfly", "idx")
    for b in (0, 1, 5, 16, 31, 37)
    for c in (_clamp(mode, 32), _clamp(mode, 8), 20, 0x0C07)
]


def _shuffle_case(mode: str, b: int, c: int) -> Snippet:
    return _case(
        f"shfl_{mode}_{b}_{c}",
        f"shfl.sync.{mode}.b32 %b|%p, %a, {b}, {c}, -1; selp.u32 %c, 1, 0, %p;"
        " st.global.v2.u32 [%rd_out], {%b, %c};",
        shape=(THREADS, 2),
    )


def test_shuffle() -> None:
    found = run_all([_shuffle_case(*shuffle) for shuffle in SHUFFLES])
    for mode, b, c in SHUFFLES:
        expected = []
        for thread in range(THREADS):
            source, inside = _source(mode, thread % 32, b, c)
            expected.append((WORDS[thread // 32 * 32 + source], inside))
        np.testing.assert_array_equal(
            found[f"shfl_{mode}_{b}_{c}"], np.array(expected, np.uint32), f"{mode} {b} {c:#x}"
        )


# ---- everything else ---------------------------------------------------------------------------------------


def _votes(predicate: np.ndarray) -> np.ndarray:
    return (_by_warp(predicate).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)


def _matching(values: np.ndarray, mask: int = FULL) -> np.ndarray:
    warps = _by_warp(values)
    equal = (warps[:, :, None] == warps[:, None, :]).astype(np.uint64) << np.arange(32, dtype=np.uint64)
    return (equal.sum(2) & mask).astype(np.uint32).reshape(-1)


def _spread(values: np.ndarray) -> np.ndarray:
    """One value for each warp, as every thread sees it."""
    return np.repeat(np.asarray(values, np.uint32), 32)


Case = tuple[Snippet, np.ndarray]      # and what %b is to be, by thread
LANES = np.arange(THREADS) % 32


def _compared(name: str, body: str, expected: np.ndarray, a: np.ndarray = WORDS) -> Case:
    snippet = _case(name, body + " st.global.u32 [%rd_out], %b;", a)
    return snippet, np.asarray(expected).astype(np.uint32)


def _vote_cases() -> Iterator[Case]:
    """Ballots and votes of the whole warp."""
    odd = (WORDS & 1).astype(bool)
    odd_predicate = "and.b32 %c, %a, 1; setp.ne.u32 %p, %c, 0;"
    yield _compared("ballot", f"{odd_predicate} vote.sync.ballot.b32 %b, %p, -1;", _spread(_votes(odd)))
    yield _compared("ballot_not", f"{odd_predicate} vote.sync.ballot.b32 %b, !%p, -1;", _spread(_votes(~odd)))
    patterns = {
        "none": np.zeros(THREADS, bool),
        "all": np.ones(THREADS, bool),
        "some": odd,
        "by_warp": np.arange(THREADS) >= 32,
    }
    for name, predicate in patterns.items():
        warps = _by_warp(predicate)
        outcomes = {"all": warps.all(1), "any": warps.any(1), "uni": warps.all(1) | ~warps.any(1)}
        for mode, expected in outcomes.items():
            body = f"setp.ne.u32 %p, %a, 0; vote.sync.{mode}.pred %q, %p, -1; selp.u32 %b, 1, 0, %q;"
            yield _compared(f"vote_{mode}_{name}", body, _spread(expected), predicate.astype(np.uint32))


def _match_cases() -> Iterator[Case]:
    """Equal values, among all lanes."""
    yield _compared("match_any", "match.any.sync.b32 %b, %a, -1;", _matching(FEW), FEW)
    wide = "cvt.u64.u32 %wide, %a; shl.b64 %wide, %wide, 32;"  # equal in the low half
    yield _compared("match_any_64", f"{wide} match.any.sync.b64 %b, %wide, -1;", _matching(FEW), FEW)
    for name, values in {
        "equal": np.full(THREADS, 9, np.uint32),
        "few": FEW,
        "by_warp": (np.arange(THREADS) // 32).astype(np.uint32),
    }.items():
        agree = (_by_warp(values) == _by_warp(values)[:, :1]).all(1)
        body = (
            "match.all.sync.b32 %b|%p, %a, -1; selp.u32 %c, 0x10, 0, %p;"
            " and.b32 %b, %b, 0x7; add.u32 %b, %b, %c;"
        )
        yield _compared(f"match_all_{name}", body, _spread(agree * 0x17), values)


def _redux_cases() -> Iterator[Case]:
    """Reductions of the whole warp."""
    signed = WORDS.view(np.int32)
    for operation, expected in {
        "add.u32": _by_warp(WORDS).sum(1, dtype=np.uint32),
        "add.s32": _by_warp(WORDS).sum(1, dtype=np.uint32),
        "min.u32": _by_warp(WORDS).min(1),
        "max.u32": _by_warp(WORDS).max(1),
        "min.s32": _by_warp(signed).min(1).view(np.uint32),
        "max.s32": _by_warp(signed).max(1).view(np.uint32),
        "and.b32": np.bitwise_and.reduce(_by_warp(WORDS | 0x80000001), 1),
        "or.b32": np.bitwise_or.reduce(_by_warp(WORDS & 0xFFF), 1),
        "xor.b32": np.bitwise_xor.reduce(_by_warp(WORDS), 1),
    }.items():
        a = (
            WORDS | np.uint32(0x80000001)
            if operation == "and.b32"
            else WORDS & np.uint32(0xFFF)
            if operation == "or.b32"
            else WORDS
        )
        yield _compared(
            f"redux_{operation.replace('.', '_')}",
            f"redux.sync.{operation} %b, %a, -1;",
            _spread(expected),
            a,
        )


def _other_cases() -> Iterator[Case]:
    """What has no operands to combine."""
    yield _compared(
        "elect",
        "elect.sync %b|%p, -1; selp.u32 %c, 0x100, 0, %p; add.u32 %b, %b, %c;",
        np.where(LANES == 0, 0x100, 0),
    )
    yield _compared("activemask", "activemask.b32 %b;", np.full(THREADS, FULL))
    yield _compared("bar_warp", "bar.warp.sync -1; mov.u32 %b, 5;", np.full(THREADS, 5))
    yield _compared("nanosleep", "nanosleep.u32 20; mov.u32 %b, 6;", np.full(THREADS, 6))


def _partial_cases() -> Iterator[Case]:
    """Half of the lanes each, in two branches: the two groups meet by themselves."""
    branch = (
        "mov.u32 %c, %laneid; and.b32 %c, %c, 1; setp.eq.u32 %p, %c, 0; @%p bra even;"
        " {0} bra join; even: {1} join:"
    )
    even, rest = 0x55555555, 0xAAAAAAAA
    sums = [
        np.where(parity == LANES % 2, _by_warp(WORDS)[:, parity::2].sum(1, dtype=np.uint32).repeat(32), 0)
        for parity in (0, 1)
    ]
    yield _compared(
        "partial_redux",
        branch.format(f"redux.sync.add.u32 %b, %a, {rest};", f"redux.sync.add.u32 %b, %a, {even};"),
        sums[0] + sums[1],
    )
    yield _compared(
        "partial_match",
        branch.format(f"match.any.sync.b32 %b, %a, {rest};", f"match.any.sync.b32 %b, %a, {even};"),
        np.where(LANES % 2, _matching(FEW, rest), _matching(FEW, even)),
        FEW,
    )
    elected = branch.format(f"elect.sync %b|%p, {rest};", f"elect.sync %b|%p, {even};")
    yield _compared("partial_elect", elected, LANES % 2)
    yield _compared(
        "partial_activemask",
        branch.format("activemask.b32 %b;", "activemask.b32 %b;"),
        np.where(LANES % 2, rest, even),
    )


def _late_cases() -> Iterator[Case]:
    """Lanes that come late: two small groups meet before all do."""
    nested = (
        "mov.u32 %c, %laneid; setp.lt.u32 %p, %c, 2; @!%p bra together; redux.sync.add.u32 %a, %a, 3;"
        " together: redux.sync.xor.b32 %b, %a, -1;"
    )
    pair = _by_warp(WORDS)[:, :2].sum(1, dtype=np.uint32)
    yield _compared("nested", nested, _spread(np.bitwise_xor.reduce(_by_warp(WORDS)[:, 2:], 1) ^ pair ^ pair))


def _exited_cases() -> Iterator[Case]:
    """Exited lanes are not waited for, and have no vote."""
    leave = (
        "mov.u32 %c, %laneid; setp.ge.u32 %p, %c, 8; mov.u32 %b, 77;"
        " @%p st.global.u32 [%rd_out], %b; @%p exit;"
    )
    first = _by_warp(WORDS)[:, :8]
    short = np.where(LANES < 8, 0, 77)
    unanimous = "setp.eq.u32 %q, %a, %a; vote.sync.all.pred %q, %q, -1; selp.u32 %b, 1, 0, %q;"
    yield _compared(
        "exited_redux",
        f"{leave} redux.sync.add.u32 %b, %a, -1;",
        np.where(LANES < 8, _spread(first.sum(1, dtype=np.uint32)), short),
    )
    yield _compared("exited_vote", f"{leave} {unanimous}", np.where(LANES < 8, 1, short))
    yield _compared("exited_activemask", f"{leave} activemask.b32 %b;", np.where(LANES < 8, 0xFF, short))


FAMILIES = (_vote_cases, _match_cases, _redux_cases, _other_cases, _partial_cases, _late_cases, _exited_cases)


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_collectives(schedule: str) -> None:
    cases = [case for family in FAMILIES for case in family()]
    found = run_all([case for case, _ in cases], schedule=schedule, seed=3)
    for case, expected in cases:
        np.testing.assert_array_equal(found[case.name], expected, case.name)


def _extreme(values: np.ndarray, largest: bool, nan: bool) -> np.float32:
    """By the manual: NaN wins with .NaN and is ignored without; +0 is above -0."""
    if (np.isnan(values).any() and nan) or np.isnan(values).all():
        return np.uint32(0x7FFFFFFF).view(np.float32)
    numbers = sorted(values[~np.isnan(values)], key=lambda x: (x, not np.signbit(x)))
    return np.float32(numbers[-1] if largest else numbers[0])


def test_redux_of_floats() -> None:
    inputs = {
        "numbers": FLOATS,
        "zeros": np.array([0.0, -0.0] * 32, np.float32),
        "nan": np.where(np.arange(THREADS) % 32 == 7, np.float32(np.nan), FLOATS).astype(np.float32),
        "only_nan": np.full(THREADS, -np.nan, np.float32),
    }
    kinds = [
        (operation, absolute, nan)
        for operation in ("min", "max")
        for absolute in ("", ".abs")
        for nan in ("", ".NaN")
    ]
    cases = [
        _case(
            f"redux_{name}_{op}{absolute[1:]}{nan[1:]}",
            f"redux.sync.{op}{absolute}{nan}.f32 %b, %a, -1; st.global.u32 [%rd_out], %b;",
            values.view(np.uint32),
        )
        for name, values in inputs.items()
        for op, absolute, nan in kinds
    ]
    found = run_all(cases, arch="sm_100a")
    for name, values in inputs.items():
        for op, absolute, nan in kinds:
            warps = _by_warp(np.abs(values) if absolute else values)
            expected = [_extreme(warp, op == "max", bool(nan)) for warp in warps]
            key = f"redux_{name}_{op}{absolute[1:]}{nan[1:]}"
            np.testing.assert_array_equal(
                found[key], _spread(np.array(expected, np.float32).view(np.uint32)), key
            )


# ---- misuse ------------------------------------------------------------------------------------------------


HALF = "mov.u32 %c, %laneid; setp.lt.u32 %p, %c, 16;"
MISUSE = {
    "own_lane": (
        "redux.sync.add.u32 %b, %a, 0xfffffffe;",
        "lane 0 executes redux.sync.add.u32 with mask 0xfffffffe",
    ),
    "outside": (
        f"{HALF} @%p shfl.sync.down.b32 %b, %a, 1, 31, 0xffff;",
        "lane 15 reads from lane 16, which is not in the mask",
    ),
    "exited": (
        "mov.u32 %c, %laneid; setp.ge.u32 %p, %c, 31; @%p exit; shfl.sync.down.b32 %b, %a, 1, 31, -1;",
        "lane 30 reads from lane 31, which has exited",
    ),
    "operations": (
        f"{HALF} @%p redux.sync.add.u32 %b, %a, -1; @!%p redux.sync.max.u32 %b, %a, -1;",
        "in different collectives: redux.sync.max.u32 here, lane 0 in redux.sync.add.u32",
    ),
    "masks": (
        f"{HALF} selp.b32 %c, -1, 0xfffffff0, %p; redux.sync.add.u32 %b, %a, %c;",
        "lanes of a warp wait for each other with different masks",
    ),
    "matrix": (
        "mov.u32 %c, %laneid; setp.eq.u32 %p, %c, 3; @%p exit; movmatrix.sync.aligned.m8n8.trans.b16 %b, %a;",
        "needs all lanes of mask 0xffffffff, but lanes 3 have exited",
    ),
}


@pytest.fixture(scope="module")
def misused() -> Module:
    cases = [
        Snippet(
            name, f"{LOAD} {body}", inputs={"a": WORDS[:32]}, output=((32,), np.uint32), registers=REGISTERS
        )
        for name, (body, _) in MISUSE.items()
    ]
    return run_module(cases, mode="check")[0]


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_reported(misused: Module, name: str) -> None:
    messages = [
        report.message for report in misused.reports if report.kernel == name and report.kind == "collective"
    ]
    assert any(MISUSE[name][1] in message for message in messages), misused.reports


def test_undefined_shuffle_gives_a_poison() -> None:
    body = f"{LOAD} shfl.sync.idx.b32 %b, %a, 20, 31, 0xffff; st.global.u32 [%rd_out], %b;"
    module, found = run_module(
        [Snippet("poison", body, inputs={"a": WORDS[:16]}, output=((16,), np.uint32), registers=REGISTERS)]
    )
    assert np.isnan(found["poison"].view(np.float32)).all()
    assert "lane 0 reads from lane 20, which does not exist" in module.reports[0].message


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("shfl.up.b32 %a, %a, 1, 0;", "'.up'"),
        ("vote.all.pred %p, %p;", "'.all'"),
        ("shfl.sync.up.b64 %a, %a, 1, 0, -1;", "'.b64'"),
        ("redux.sync.add.f32 %a, %a, -1;", "'.f32'"),
        ("redux.sync.min.f32 %a, %a, -1;", "sm_100a"),
        ("match.any.sync.b16 %a, %a, -1;", "'.b16'"),
        ("setmaxnreg.inc.sync.aligned.u32 20;", "multiple of 8 from 24 to 256"),
    ],
)
def test_refused_by_name(body: str, why: str) -> None:
    assert why in refusal(body, registers=REGISTERS)
