"""Barriers of a block, of a cluster and of a cooperative grid: what they do, and their misuse."""

from pathlib import Path

import numpy as np
import pytest

from cuda.nn import emulator
from cuda.nn.emulator import Module
from tests.emulator.snippets import Snippet, refusal, run_all, run_module

THREADS = 100  # the last warp has 4 threads
SCHEDULES = ("forward", "reverse", "random")
VALUES = np.random.default_rng(3).integers(0, 1000, THREADS).astype(np.uint32)
REGISTERS = ".reg .b32 %a, %b, %c, %at; .reg .pred %p, %q;"
# Every thread writes its value to shared memory and, behind the barrier, reads that of the thread opposite.
EXCHANGE = (
    ".shared .align 4 .b8 word[400]; ld.global.u32 %a, [%rd_a]; mov.u32 %at, word;"
    " mad.lo.u32 %at, %tid32, 4, %at;"
    " st.shared.u32 [%at], %a; {barrier} mov.u32 %at, word; sub.u32 %b, 99, %tid32;"
    " mad.lo.u32 %at, %b, 4, %at;"
    " ld.shared.u32 %b, [%at]; st.global.u32 [%rd_out], %b;"
)
SYNCS = (
    "bar.sync 0;",
    "bar.cta.sync 3;",
    "barrier.sync 15;",
    "barrier.cta.sync.aligned 0;",
    "bar.sync 1, 128;",
    "mov.u32 %c, 7; barrier.sync %c, 128;",
    "bar.red.popc.u32 %c, 0, %p;",
)


def _case(name: str, body: str, threads: int = THREADS) -> Snippet:
    return Snippet(
        name, body, inputs={"a": VALUES[:threads]}, output=((threads,), np.uint32), registers=REGISTERS
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_exchange_through_shared_memory(schedule: str) -> None:
    cases = [
        _case(f"sync_{i}", EXCHANGE.format(barrier=f"setp.eq.u32 %p, %a, 0; {sync}"))
        for i, sync in enumerate(SYNCS)
    ]
    for result in run_all(cases, schedule=schedule).values():
        np.testing.assert_array_equal(result, VALUES[::-1])


def test_reductions() -> None:
    predicates = {
        "odd": "and.b32 %b, %a, 1; setp.eq.u32 %p, %b, 1;",
        "all": "setp.lt.u32 %p, %a, 1000;",
        "none": "setp.gt.u32 %p, %a, 999;",
    }
    truth = {"odd": VALUES % 2 == 1, "all": np.ones(THREADS, bool), "none": np.zeros(THREADS, bool)}
    reductions = {
        "popc": (".u32 %c, {};", np.sum),
        "and": (".pred %q, {}; selp.u32 %c, 1, 0, %q;", np.all),
        "or": (".pred %q, {}; selp.u32 %c, 1, 0, %q;", np.any),
    }
    cases, expected = [], {}
    for name, predicate in predicates.items():
        for reduction, (form, formula) in reductions.items():
            for spelling, operands in (("bar", "0, %p"), ("barrier", "2, 128, %p"), ("bar.cta", "1, !%p")):
                key = f"{name}_{reduction}_{spelling.replace('.', '_')}"
                instruction = f"{spelling}.red.{reduction}" + form.format(operands)
                cases.append(
                    _case(
                        key,
                        f"ld.global.u32 %a, [%rd_a]; {predicate} {instruction} st.global.u32 [%rd_out], %c;",
                    )
                )
                expected[key] = formula(~truth[name] if "!" in operands else truth[name])
    found = run_all(cases)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], np.full(THREADS, value, np.uint32), key)


def test_consecutive_reductions_of_different_warps() -> None:
    """Each warp reduces by itself on the same barrier number: results must not be mixed up."""
    body = (
        "ld.global.u32 %a, [%rd_a]; and.b32 %b, %a, 1; setp.eq.u32 %p, %b, 1; bar.red.popc.u32 %c, 4, 32, %p;"
        " st.global.u32 [%rd_out], %c;"
    )
    found = run_all([_case("by_warp", body, threads=96)])["by_warp"]
    np.testing.assert_array_equal(found, np.repeat((VALUES[:96] % 2).reshape(3, 32).sum(1), 32))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_producer_and_consumer(schedule: str) -> None:
    """Warp 0 fills, warp 1 empties, over two named barriers; neither waits where it need not."""
    body = (
        ".shared .align 4 .b8 word[128]; .reg .b32 %i; ld.global.u32 %a, [%rd_a]; mov.u32 %at, %laneid;"
        " mul.lo.u32 %at, %at, 4; mov.u32 %b, word; add.u32 %at, %at, %b; mov.u32 %i, 0; mov.u32 %c, 0;"
        " setp.ge.u32 %p, %tid32, 32; @%p bra consumer;"
        " producer: bar.sync 2, 64; add.u32 %b, %a, %i; st.shared.u32 [%at], %b; bar.arrive 1, 64;"
        "   add.u32 %i, %i, 1; setp.lt.u32 %q, %i, 10; @%q bra producer; bra done;"
        " consumer: bar.arrive 2, 64; bar.sync 1, 64; ld.shared.u32 %b, [%at]; mad.lo.u32 %c, %c, 3, %b;"
        "   add.u32 %i, %i, 1; setp.lt.u32 %q, %i, 10; @%q bra consumer;"
        " done: st.global.u32 [%rd_out], %c;"
    )
    found = run_all([_case("pipeline", body, threads=64)], schedule=schedule)["pipeline"]
    expected = sum(3 ** (9 - i) * (VALUES[:32].astype(np.int64) + i) for i in range(10))
    np.testing.assert_array_equal(found, np.concatenate([np.zeros(32, np.int64), expected]))


def test_exited_threads_are_not_waited_for() -> None:
    body = (
        "setp.ge.u32 %p, %tid32, 40; mov.u32 %b, 1; st.global.u32 [%rd_out], %b; @%p exit; bar.sync 0;"
        " st.global.u32 [%rd_out], %tid32;"
    )
    found = run_all([_case("early", body)])["early"]
    np.testing.assert_array_equal(found, np.where(np.arange(THREADS) < 40, np.arange(THREADS), 1))


# ---- clusters and grids ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Module:
    source = tmp_path_factory.mktemp("barriers") / "groups.cu"
    source.write_text(PROGRAMS)
    return emulator.compile(source, arch="sm_90")


PROGRAMS = """\
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

__global__ void __cluster_dims__(4, 1, 1) ring(const int* in, int* out) {
    __shared__ int mine;
    auto cluster = cg::this_cluster();
    if (threadIdx.x == 0) mine = in[blockIdx.x];
    cluster.sync();
    int next = *cluster.map_shared_rank(&mine, (cluster.block_rank() + 1) % 4);
    auto token = cluster.barrier_arrive();
    if (threadIdx.x == 0) out[blockIdx.x] = next;
    cluster.barrier_wait(std::move(token));
}

__global__ void steps(int* data, int n, int rounds) {
    auto grid = cg::this_grid();
    int i = grid.thread_rank();
    for (int round = 0; round < rounds; ++round) {
        int left = data[(i + n - 1) % n];
        grid.sync();
        data[i] += left;
        grid.sync();
    }
}

__global__ void coalesced(int* out) {
    auto all = cg::this_thread_block();
    int i = all.thread_rank();
    if (i % 3 == 1) {
        auto group = cg::coalesced_threads();
        out[i] = 1000 * group.size() + group.thread_rank();
        group.sync();
        out[i] += 100 * group.shfl(i, 0);
    } else {
        auto tile = cg::tiled_partition<8>(all);
        out[i] = -int(tile.meta_group_rank());
    }
}

__global__ void twice() {
    asm volatile("barrier.cluster.arrive;");
    asm volatile("barrier.cluster.arrive;");
    asm volatile("barrier.cluster.wait;");
}

__global__ void never_arrived() { asm volatile("barrier.cluster.wait;"); }
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cluster(programs: Module, schedule: str) -> None:
    given, out = np.arange(100, 112, dtype=np.int32), np.zeros(12, np.int32)
    programs.launch("ring", grid=12, block=48, args=[given, out], schedule=schedule)
    np.testing.assert_array_equal(out, np.roll(given.reshape(3, 4), -1, 1).reshape(-1))
    assert not programs.reports


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cooperative_grid(programs: Module, schedule: str) -> None:
    data = np.arange(5 * 64, dtype=np.int32)
    expected = data.copy()
    for _ in range(4):
        expected = expected + np.roll(expected, 1)
    programs.launch(
        "steps",
        grid=5,
        block=64,
        args=[data, np.int32(data.size), np.int32(4)],
        schedule=schedule,
        cooperative=True,
    )
    np.testing.assert_array_equal(data, expected)
    assert not programs.reports


def test_grid_that_cannot_be_resident(programs: Module) -> None:
    data = np.zeros(1, np.int32)
    programs.launch("steps", grid=100_000, block=64, args=[data, np.int32(1), np.int32(1)], cooperative=True)
    report = programs.reports[-1]
    assert report.kind == "invalid_launch"
    assert "cooperative" in report.message


def test_grid_barrier_needs_a_cooperative_launch(programs: Module) -> None:
    programs.launch("steps", grid=1, block=32, args=[np.zeros(32, np.int32), np.int32(32), np.int32(1)])
    assert programs.reports[-1].kind == "trap"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_coalesced_threads(programs: Module, schedule: str) -> None:
    out = np.zeros(64, np.int32)
    programs.launch("coalesced", grid=1, block=64, args=[out], schedule=schedule)
    expected = -(np.arange(64) // 8)
    for warp in range(2):
        members = [i for i in range(32 * warp, 32 * warp + 32) if i % 3 == 1]
        expected[members] = [1000 * len(members) + rank + 100 * members[0] for rank in range(len(members))]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [("twice", "arrive twice"), ("never_arrived", "wait without a barrier.cluster.arrive")],
)
def test_misused_cluster_barrier(programs: Module, kernel: str, message: str) -> None:
    programs.launch(kernel, grid=1, block=32)
    found = [report for report in programs.reports if report.kernel == kernel]
    assert found[0].kind == "divergence"
    assert message in found[0].message


# ---- misuse ------------------------------------------------------------------------------------------------


MISUSE = {
    "number": ("bar.sync 16;", "barrier 16 does not exist"),
    "count": ("bar.sync 1, 33;", "33 threads, which is not a multiple of 32"),
    "too_many": ("bar.sync 1, 256;", "waits for 256 threads, but the block has only 100"),
    "mixture": (
        "setp.lt.u32 %p, %tid32, 32; @%p bar.sync 0, 96; @!%p bar.sync 0, 128;",
        "with 128 threads here and with 96",
    ),
    "kinds": (
        "setp.lt.u32 %p, %tid32, 32; @%p bar.sync 0; @!%p bar.red.popc.u32 %a, 0, %p;",
        "by a reduction and by a plain barrier",
    ),
}


def test_misuse_is_reported() -> None:
    module, _ = run_module([_case(name, body) for name, (body, _) in MISUSE.items()], mode="check")
    for name, (_, message) in MISUSE.items():
        found = [report for report in module.reports if report.kernel == name]
        assert any(report.kind == "divergence" and message in report.message for report in found), (
            name,
            found,
        )


def test_threads_at_different_barriers(tmp_path: Path) -> None:
    source = tmp_path / "branches.cu"
    source.write_text("""\
__global__ void branches(int* out) {
    if (threadIdx.x < 32) {
        out[threadIdx.x] = 1;
        __syncthreads();
    } else {
        __syncthreads();
        out[threadIdx.x] = 2;
    }
}
""")
    module = emulator.compile(source, arch="sm_80")
    module.launch("branches", block=64, args=[np.zeros(64, np.int32)])
    (report,) = module.reports
    assert (report.kind, {report.line, report.other_line}) == ("divergence", {4, 6})


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("bar.red.add.u32 %a, 0, %p;", "'.add'"),
        ("bar.cluster.sync 0;", "'.cluster'"),
        ("barrier.cluster.arrive.acquire;", "'.acquire'"),
        ("barrier.sync.unaligned 0;", "'.unaligned'"),
    ],
)
def test_refused_by_name(body: str, why: str) -> None:
    assert why in refusal(body, registers=REGISTERS)
