"""The translation as a whole: source lines of sites, layouts, counts of basic blocks, what is refused and how
it is told."""

import re
from pathlib import Path

import numpy as np
import pytest

from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.translate import translate
from cuda.nn.emulator.translate.sites import is_foreign
from cuda.nn.emulator.translate.table import ROWS, Unsupported, find
from tests.emulator.snippets import Snippet, run_all, run_module

HEADER = ".version 9.0\n.target sm_90a\n.address_size 64\n"


def sites(translation):
    """(file, line, PTX line, basic block, opcode) of each site, read from the C++."""
    rows = re.findall(
        r'^\{(\d+), (\d+), (\d+), (\d+), "([^"]+)", FlopKind::\w+, \d+\},$', translation.cpp, re.MULTILINE
    )
    return [(int(f), int(line), int(p), int(b), opcode) for f, line, p, b, opcode in rows]


def kernels(translation):
    """{name: fields of the kernel's descriptor} read from the C++."""
    rows = re.findall(
        r'^\{"([^"]+)", &\w+, (\d+), \w+, \w+, (\d+), (\d+), (\d+), \w+, (\d+), (\d+), '
        r"\{(.*?)\}, \{(.*?)\}, \{(.*?)\}, (\d+)\},$",
        translation.cpp,
        re.MULTILINE,
    )
    names = (
        "parameters",
        "parameter_bytes",
        "static_shared",
        "dynamic_offset",
        "shared",
        "stack",
        "maxntid",
        "reqntid",
        "cluster",
        "blocks",
    )
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}


# ---- sites -------------------------------------------------------------------------------------------------


def test_sites_name_the_users_line():
    """Inlined from a header of CUDA: the line of the user's call.  Inlined from the user's own header: that
    header's line."""
    found = translate(
        HEADER
        + """.visible .entry k() {
.reg .b32 %r<9>;
.loc 1 10 0
mov.u32 %r1, 1;
.loc 2 107 3, function_name $L__info_string0, inlined_at 1 26 30
mov.u32 %r2, 1;
.loc 4 7 9, function_name $L__info_string0, inlined_at 1 28 2
mov.u32 %r3, 1;
.loc 3 50 1, function_name $L__info_string0, inlined_at 4 7 9
mov.u32 %r4, 1;
.loc 2 60 1, function_name $L__info_string0, inlined_at 3 50 1
mov.u32 %r5, 1;
.loc 1 0 5
mov.u32 %r6, 1;
.loc 2 9 9
mov.u32 %r7, 1;
ret; }
.file 1 "/home/me/k.cu"
.file 2 "/usr/local/cuda-13.0/bin/../targets/x86_64-linux/include/sm_20_atomic_functions.hpp"
.file 3 "/venv/lib/python3/site-packages/nvidia/cu13/include/cccl/cub/block.cuh"
.file 4 "/home/me/tile.cuh"
"""
    )
    lines = [(["", *found.files][file], line) for file, line, *_ in sites(found)]
    me, tile = "/home/me/k.cu", "/home/me/tile.cuh"
    assert lines[:6] == [(me, 10), (me, 26), (tile, 7), (tile, 7), (tile, 7), (tile, 7)]
    assert lines[6] == (
        "/usr/local/cuda-13.0/bin/../targets/x86_64-linux/include/sm_20_atomic_functions.hpp",
        9,
    )


def test_sites_without_line_information():
    found = translate(HEADER + ".visible .entry k() {\n.reg .b32 %r;\nmov.u32 %r, 1;\nret;\n}")
    assert sites(found) == [(0, 0, 6, 0, "mov.u32"), (0, 0, 7, 0, "ret")]
    assert found.files == []


def test_basic_blocks_begin_at_labels_and_after_branches_and_guards():
    found = translate(
        HEADER
        + """.visible .entry k() { .reg .b32 %r; .reg .pred %p;
mov.u32 %r, 1;
@%p bra L;
mov.u32 %r, 2;
@%p mov.u32 %r, 3;
mov.u32 %r, 4;
L:
mov.u32 %r, 5;
ret;
}"""
    )
    assert [block for *_, block, _ in sites(found)] == [0, 0, 1, 2, 3, 4, 4]
    assert kernels(found)["k"]["blocks"] == "5"


def test_instructions_are_counted_as_often_as_they_ran():
    """Loops, branches not taken and guards: the counts of instructions, by hand."""
    case = Snippet(
        "counted",
        """mov.u32 %i, 0;
again: add.u32 %i, %i, 1;  setp.lt.u32 %p, %i, 10;  setp.eq.u32 %q, %i, 3;  @%q add.f32 %f, %f, 0f3F800000;
@%p bra again;
setp.eq.u32 %p, %tid32, 0;  @%p bra skip;  add.f32 %f, %f, 0f3F800000;  skip: st.global.u32 [%rd_out], %i;""",
        {},
        ((4,), np.uint32),
        ".reg .b32 %i; .reg .pred %p, %q; .reg .f32 %f;",
    )
    module, _ = run_module([case], mode="count")
    counters = module.counters["counted"]
    assert (
        counters.flops["f32"] == 4 * 1 + 3
    )  # the guarded one once per thread, the branch skipped by thread 0
    prologue = 3 + 3  # indices; pointer of the output
    per_thread = (
        prologue + 1 + 10 * 4 + 1 + 2 + 1 + 1
    )  # mov, loop without the guarded add, add, setp + bra, st, ret
    total = (
        counters.instructions
        if isinstance(counters.instructions, int)
        else sum(counters.instructions.values())
    )
    assert total == 4 * per_thread + 3


# ---- descriptors -------------------------------------------------------------------------------------------


def test_kernel_descriptors():
    found = kernels(
        translate(
            HEADER
            + """
.visible .entry plain() { ret; }
.visible .entry limits(.param .u8 a, .param .u64 b, .param .align 16 .b8 c[20], .param .u16 d)
.maxntid 128
.reqntid 8, 4
.reqnctapercluster 2, 1, 1
{ ret; }"""
        )
    )
    assert found["plain"]["parameters"] == "0"
    assert (found["plain"]["maxntid"], found["plain"]["cluster"]) == ("0, 0, 0", "0, 0, 0")
    limits = found["limits"]
    assert (limits["parameters"], limits["parameter_bytes"]) == ("4", "38")  # 0, 8, 16, 36
    assert (limits["maxntid"], limits["reqntid"], limits["cluster"]) == ("128, 1, 1", "8, 4, 1", "2, 1, 1")


SHARED = (
    HEADER
    + """
.shared .align 4 .b8 common[100];
.shared .align 4 .b8 only_a[40000];
.shared .align 4 .b8 only_b[40000];
.shared .align 4 .b8 unused[40000];
.extern .shared .align 128 .b8 dynamic[];
.func helper() { .reg .b32 %r; .shared .b8 of_helper[10];  mov.u32 %r, common;  mov.u32 %r, of_helper;  ret; }
.visible .entry a() { .reg .b32 %r; .shared .align 1024 .b8 own[8];  mov.u32 %r, only_a;  mov.u32 %r, own;
        call helper;  ret; }
.visible .entry b() { .reg .b32 %r;  mov.u32 %r, only_b;  mov.u32 %r, dynamic;  call helper;  ret; }
.visible .entry c() { ret; }
"""
)


def test_kernels_pay_only_for_the_shared_memory_they_reach():
    found = kernels(translate(SHARED))
    assert int(found["a"]["static_shared"]) == 100 + 40000 + 10 + 8 + (-40110 % 1024)
    assert int(found["b"]["static_shared"]) == 100 + 40000 + 10
    assert found["c"]["static_shared"] == "0"
    assert found["c"]["dynamic_offset"] == "0"
    assert int(found["b"]["dynamic_offset"]) % 128 == 0
    assert int(found["b"]["dynamic_offset"]) < 41_000  # a's variables lie in the same place


def test_stack_grows_with_local_memory_calls_and_recursion():
    body = ".local .b8 l{n}[{n}]; .reg .b64 %q;  mov.u64 %q, l{n};"
    found = kernels(
        translate(
            HEADER
            + f"""
.func leaf() {{ {body.format(n=4000)} ret; }}
.func again() {{ {body.format(n=1000)} call again; ret; }}
.visible .entry small() {{ ret; }}
.visible .entry own() {{ {body.format(n=2000)} ret; }}
.visible .entry deep() {{ {body.format(n=2000)} call leaf; ret; }}
.visible .entry recursive() {{ call again; ret; }}""".replace(
                ".func again() {", ".func again();\n.func again() {"
            )
        )
    )
    small, own, deep, recursive = (
        int(found[name]["stack"]) for name in ("small", "own", "deep", "recursive")
    )
    assert small < 1000 < 2000 <= own < 4000
    assert deep >= own + 4000
    assert recursive > 16 * 1000


# ---- what is refused ---------------------------------------------------------------------------------------


BAD = (
    HEADER
    + """.visible .entry good(.param .u64 p) { .reg .b64 %q; ld.param.u64 %q, [p];
        st.global.u32 [%q], 5; ret; }
.func helper() { .reg .b32 %r;
.loc 1 20 1
frob.u32 %r, %r; ret; }
.visible .entry bad() { .reg .b32 %r;
.loc 1 30 1
add.weird.u32 %r, %r, %r;
add.weird.u32 %r, %r, %r;
.loc 1 31 1
mov.u32 %r, %pm3;
ret; }
.visible .entry caller() { call helper; ret; }
.file 1 "k.cu"
"""
)


def test_everything_unsupported_is_told_at_once():
    with pytest.raises(EmulatorError) as error:
        translate(BAD)
    lines = str(error.value).split("\n")
    assert (
        lines[0]
        == "3 things in these kernels are not supported; the first: k.cu:20: instruction 'frob' is not "
            "supported (PTX line 8, in helper)"
    )
    assert lines[1].startswith(
        "k.cu:30: modifier '.weird' of 'add.weird.u32' is not supported (PTX line 11, in bad)"
    )
    assert lines[2].startswith(
        "k.cu:31: register %pm3 is neither declared nor a special register that is supported (PTX line 14, "
        "in bad)"
    )


def test_partial_leaves_out_only_the_kernels_that_reach_something_unsupported():
    found = translate(BAD, partial=True)
    assert found.kernels == ["good"]
    assert sorted(found.refused) == ["bad", "caller"]
    assert found.refused["caller"] == ["k.cu:20: instruction 'frob' is not supported (PTX line 8, in helper)"]
    assert (found.target, found.files) == ("sm_90a", ["k.cu"])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (".version 9.0\n.target frob_80\n", ".target frob_80 is not one"),
        (HEADER + ".global .texref t;", "'.texref'"),
        (HEADER + ".tex .u32 t;", ".tex variables are not supported"),
        (HEADER + ".func (.param .b32 r, .param .b32 s) f() { ret; }", "returns several values"),
        (HEADER + ".func f(.param .b8 a[]) { ret; }", "variadic"),
        (HEADER + ".global .u64 a = b;", "the address of b cannot stand in an initialiser"),
        (HEADER + ".global .u32 b; .global .u32 a = b;", "an address does not fit an element of type .u32"),
        (HEADER + ".global .u32 a = 1.5;", "a floating-point constant in an array of .u32"),
        (HEADER + ".global .u32 a; .global .u32 b = %r1;", "initialiser"),
    ],
)
def test_modules_that_are_refused(text, part):
    with pytest.raises(EmulatorError) as error:
        translate(text)
    assert part in str(error.value)


# ---- the table ---------------------------------------------------------------------------------------------


def test_modifiers_may_come_in_any_order_but_types_keep_theirs():
    """ptxas takes add.f32.rn for add.rn.f32; cvt.f16.f32 and cvt.f32.f16 stay what they are."""
    assert find("ld", ["u32", "global", "relaxed", "gpu"])[1].scope == "gpu"
    with pytest.raises(Unsupported, match=r"modifier '.frob' of 'ld.frob.u32'"):
        find("ld", ["frob", "u32"])
    case = Snippet(
        "orders",
        "add.f32.rn %f, 0f3F800000, 0f40000000;  st.volatile.global.f32 [%rd_out], %f;",
        output=((1,), np.float32),
        registers=".reg .f32 %f;",
    )
    assert run_all([case])["orders"][0] == 3


def test_the_families_of_the_manual_are_there():
    """An import that silently lost a family would make its instructions 'not supported'."""
    for opcode in (
        "add",
        "mad",
        "fma",
        "cvt",
        "setp",
        "selp",
        "lop3",
        "shfl",
        "vote",
        "bar",
        "barrier",
        "atom",
        "red",
        "ld",
        "st",
        "cp",
        "mbarrier",
        "mma",
        "wgmma",
        "ldmatrix",
        "stmatrix",
        "fence",
        "membar",
        "mapa",
        "redux",
        "match",
        "activemask",
        "elect",
        "trap",
        "nanosleep",
    ):
        assert opcode in ROWS, opcode


def test_names_do_not_collide_with_those_of_the_generated_code():
    registers = (
        ".reg .b32 t, parameters, result, frame, %G0, %S, %f16, carry, a, int, whole, emu, load, %sites; "
        ".reg .pred bool;"
    )
    body = """mov.u32 t, 1;  mov.u32 parameters, 2;  mov.u32 result, t;  mov.u32 frame, 3;  mov.u32 %G0, 4;
        mov.u32 %S, 5;  mov.u32 %f16, 6;
        mov.u32 carry, 7;  ld.global.u32 a, [G0];  add.cc.u32 int, carry, 0xFFFFFFFF;
        addc.u32 whole, int, a;  mov.u32 emu, 1;  mov.u32 load, emu;
        mov.u32 %sites, load;  add.u32 whole, whole, %sites;  setp.eq.u32 bool, t, 1;
        @bool st.global.u32 [%rd_out], whole;"""
    case = Snippet("main", body, registers=registers, declarations=".global .u32 G0 = 100;")
    assert run_all([case])["main"][0] == 6 + 1 + 100 + 1


def test_no_spelling_has_two_rows() -> None:
    for opcode, rows in ROWS.items():
        spelled = [tuple((slot.words, slot.optional) for slot in row.slots) for row in rows]
        assert len(set(spelled)) == len(spelled), opcode


@pytest.mark.parametrize(
    ("path", "foreign"),
    [
        ("/usr/local/cuda-13.0/bin/../targets/x86_64-linux/include/sm_30_intrinsics.hpp", True),
        ("/home/u/.venv/lib/python3.11/site-packages/nvidia/cu13/bin/..//include/cuda_pipeline.h", True),
        ("/usr/include/c++/12/cmath", True),
        ("/home/u/libraries/cccl/cub/block/block_scan.cuh", True),
        ("/home/u/kernels/scan.cu", False),
        ("/home/u/cuda/include/scan.cuh", False),
        ("scan.cu", False),
    ],
)
def test_a_line_in_a_header_of_cuda_is_told_from_a_line_of_ones_own(path: str, foreign: bool) -> None:
    assert is_foreign(path) == foreign


def test_a_toolkit_anywhere_is_known_by_its_headers(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime_api.h").touch()
    assert is_foreign(f"{tmp_path}/bin/../include/crt/sm_80_rt.hpp")
    assert not is_foreign(f"{tmp_path}/scan.cu")
