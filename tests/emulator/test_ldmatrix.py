"""ldmatrix, stmatrix and movmatrix: element by element against the figures of the PTX manual."""

import numpy as np
import pytest

from tests.emulator.assembler import assert_ptxas_accepts
from tests.emulator.snippets import Snippet, ptx_of, refusal, run_all, run_module

GENERATOR = np.random.default_rng(5)
TILE = GENERATOR.integers(0, 1 << 16, (64, 8)).astype(np.uint16)  # 64 rows of 16 bytes
ROWS = GENERATOR.permutation(64)[:32].astype(np.uint32)  # which row each lane points to
REGISTERS = ".reg .b32 %v<5>, %row, %base, %at; .shared .align 16 .b8 tile[1024];"
FILL = """
    mov.u32 %base, tile;  shl.b32 %at, %tid32, 5;  add.u32 %at, %base, %at;
    ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%rd_tile];     st.shared.v4.b32 [%at], {%v0, %v1, %v2, %v3};
    ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%rd_tile+16];  st.shared.v4.b32 [%at+16], {%v0, %v1, %v2, %v3};
    bar.sync 0;
    ld.global.u32 %row, [%rd_rows];  shl.b32 %row, %row, 4;  add.u32 %row, %base, %row;
"""
ORDERS = {  # spellings in use
    "plain": "m8n8.x{n}.shared.b16",
    "trans": "m8n8.x{n}.trans.shared.b16",
    "cta": "m8n8.x{n}.shared::cta.b16",
    "old": "x{n}.m8n8.shared.b16",
    "late_trans": "m8n8.x{n}.shared.trans.b16",
    "early_trans": "m8n8.trans.shared.x{n}.b16",
    "generic": "m8n8.x{n}.b16",
}


def vector(count: int) -> str:
    return "{" + ", ".join(f"%v{i}" for i in range(count)) + "}"


def address(order: str) -> str:
    """Statements after which [..] may be used, and what stands in it."""
    if order != "generic":
        return "%row"
    return "%generic"


GENERIC = ".reg .u64 %generic;  cvt.u64.u32 %generic, %row;  cvta.shared.u64 %generic, %generic;"


def load_case(order: str, count: int) -> Snippet:
    # The addresses of lanes that give no row are far outside: they must not be looked at.
    beyond = (
        f".reg .pred %q;  setp.ge.u32 %q, %tid32, {8 * count};  @%q mov.u32 %row, 0x3fff0;"
        if count < 4
        else ""
    )
    spelled = ORDERS[order].format(n=count)
    stores = " ".join(f"st.global.b32 [%rd_out+{4 * i}], %v{i};" for i in range(count))
    return Snippet(
        f"ldmatrix_{order}_x{count}",
        f"{FILL} {beyond} {GENERIC}"
        f"ldmatrix.sync.aligned.{spelled} {vector(count)}, [{address(order)}]; {stores}",
        {"tile": TILE.reshape(32, 16), "rows": ROWS},
        ((32, count), np.uint32),
        REGISTERS,
    )


def store_case(order: str, count: int) -> Snippet:
    values = GENERATOR.integers(0, 1 << 32, (32, 4)).astype(np.uint32)
    spelled = ORDERS[order].format(n=count)
    return Snippet(
        f"stmatrix_{order}_x{count}",
        f"""{FILL} {GENERIC} ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%rd_values];
        stmatrix.sync.aligned.{spelled} [{address(order)}], {vector(count)};
        bar.sync 0;
        ld.shared.v4.b32 {vector(4)}, [%at];     st.global.v4.b32 [%rd_out], {vector(4)};
        ld.shared.v4.b32 {vector(4)}, [%at+16];  st.global.v4.b32 [%rd_out+16], {vector(4)};""",
        {"tile": TILE.reshape(32, 16), "rows": ROWS, "values": values},
        ((32, 16), np.uint16),
        REGISTERS,
    )


LOADS = {(order, n): load_case(order, n) for order in ORDERS for n in (1, 2, 4)}
STORES = {(order, n): store_case(order, n) for order in ORDERS if order != "early_trans" for n in (1, 2, 4)}
MOVED = GENERATOR.integers(0, 1 << 32, 32).astype(np.uint32)
MOVE = Snippet(
    "movmatrix",
    "ld.global.b32 %v0, [%rd_a];  movmatrix.sync.aligned.m8n8.trans.b16 %v1, %v0;"
    "st.global.b32 [%rd_out], %v1;",
    {"a": MOVED},
    ((32,), np.uint32),
    ".reg .b32 %v<2>;",
)
ALL = [*LOADS.values(), *STORES.values(), MOVE]


@pytest.fixture(scope="module", params=["fast", "check"])
def results(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    return run_all(ALL, mode=request.param)


def test_spellings_are_ptx() -> None:
    assert_ptxas_accepts(ptx_of(ALL))


def test_ldmatrix(results: dict[str, np.ndarray]) -> None:
    for (order, count), case in LOADS.items():
        got = results[case.name].view(np.uint16).reshape(32, count, 2)
        for lane in range(32):
            for i in range(count):
                matrix = TILE[ROWS[8 * i : 8 * i + 8]]  # lane 8i + r has the address of row r of matrix i
                if "trans" in order:
                    matrix = matrix.T
                wanted = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
                assert (got[lane, i] == wanted).all(), (case.name, lane, i)


def test_stmatrix(results: dict[str, np.ndarray]) -> None:
    for (order, count), case in STORES.items():
        wanted = TILE.copy()
        registers = np.asarray(case.inputs["values"]).view(np.uint16).reshape(32, 4, 2)
        for i in range(count):
            matrix = np.empty((8, 8), np.uint16)
            for lane in range(32):
                matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2] = registers[lane, i]
            wanted[ROWS[8 * i : 8 * i + 8]] = matrix.T if "trans" in order else matrix
        assert (results[case.name].reshape(64, 8) == wanted).all(), case.name


def test_movmatrix(results: dict[str, np.ndarray]) -> None:
    matrix = MOVED.view(np.uint16).reshape(8, 8)  # lane 4r + c holds elements (r, 2c) and (r, 2c + 1)
    assert (results["movmatrix"].view(np.uint16).reshape(8, 8) == matrix.T).all()


def test_row_that_is_not_aligned_is_reported() -> None:
    body = f"{FILL} add.u32 %row, %row, 8;  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {vector(4)}, [%row];"
    case = Snippet(
        "crooked", body, {"tile": TILE.reshape(32, 16), "rows": ROWS % 63}, ((32,), np.uint32), REGISTERS
    )
    module, _ = run_module([case], mode="check")
    assert {report.kind for report in module.reports} == {"misaligned"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%v0, %v1}, [%v2];", "'.m16n16'"),
        ("ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%v0}, [%v2];", "'.x3'"),
        ("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%v0}, [%v2];", "takes 2 registers here, not 1"),
        ("stmatrix.sync.aligned.m16n8.x1.trans.shared.b8 [%v2], {%v0};", "'.m16n8'"),
        ("movmatrix.sync.aligned.m8n8.b16 %v0, %v1;", "'.b16'"),
    ],
)
def test_refused_by_name(body: str, message: str) -> None:
    assert message in refusal(body, registers=".reg .b32 %v<3>;")
