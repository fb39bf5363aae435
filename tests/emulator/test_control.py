"""Branches, jump tables, calls of all kinds, returns, stack memory, special registers; and kernels that never
end."""

import math
from pathlib import Path

import numpy as np
import pytest

from cuda.nn import emulator
from cuda.nn.emulator.errors import LaunchError
from tests.emulator.snippets import Snippet, refusal, run_all, run_module

N = 40
IDS = np.arange(N, dtype=np.uint32)


def out(name, body, expected, registers="", declarations="", **more):
    expected = np.asarray(expected)
    return Snippet(
        name, body, {}, (expected.shape, expected.dtype), registers, declarations, **more
    ), expected


FUNCTIONS = """
.visible .func (.param .b32 r) triple(.param .b32 a)
{ .reg .b32 %r<3>;  ld.param.u32 %r1, [a];  mul.lo.u32 %r2, %r1, 3;  st.param.b32 [r+0], %r2;  ret; }
.visible .func (.param .b32 r) plus_seven(.param .b32 a)
{ .reg .b32 %r<3>;  ld.param.u32 %r1, [a];  add.u32 %r2, %r1, 7;  st.param.b32 [r+0], %r2;  ret; }
.func (.reg .u32 r) in_registers(.reg .u32 a, .reg .u64 b, .reg .f32 c)
{ .reg .u32 %t;  cvt.u32.u64 %t, b;  sub.u32 r, %t, a;  cvt.rzi.u32.f32 %t, c;  add.u32 r, r, %t;  ret; }
.func (.param .align 8 .b8 r[24]) swap_struct(.param .align 8 .b8 s[24], .param .b8 k)
{ .reg .b64 %a, %b; .reg .b16 %k;  ld.param.u64 %a, [s+8];  ld.param.u64 %b, [s+16];  ld.param.s8 %k, [k];
  st.param.b64 [r], %b;  st.param.b64 [r+16], %a;  cvt.s64.s16 %a, %k;  st.param.b64 [r+8], %a;  ret; }
.func (.param .b32 r) fibonacci(.param .b32 n)
{ .reg .b32 %r<8>; .reg .pred %p;  ld.param.u32 %r1, [n];  setp.gt.u32 %p, %r1, 1;  @%p bra deeper;
        st.param.b32 [r], %r1;  ret;
deeper: sub.u32 %r2, %r1, 1;  sub.u32 %r3, %r1, 2;
  { .param .b32 x; .param .b32 y;  st.param.b32 [x], %r2;  call.uni (y), fibonacci, (x);
        ld.param.b32 %r4, [y]; }
  { .param .b32 x; .param .b32 y;  st.param.b32 [x], %r3;  call.uni (y), fibonacci, (x);
        ld.param.b32 %r5, [y]; }
  add.u32 %r6, %r4, %r5;  st.param.b32 [r], %r6;  ret; }
.func leave_if_odd(.param .b32 a)
{ .reg .b32 %r; .reg .pred %p;  ld.param.u32 %r, [a];  and.b32 %r, %r, 1;  setp.ne.u32 %p, %r, 0;
        @%p exit;  ret; }
.func nothing() { ret; }
.global .align 8 .u64 table[2] = {triple, plus_seven};
"""
R = ".reg .b32 %v, %w, %i; .reg .b64 %q, %s; .reg .pred %p, %o; .reg .f32 %f; .reg .b16 %h;"
STORE = "st.global.u32 [%rd_out], %v;"


def call_pointer(load, prototype):
    return f"""{{ .param .b32 x; .param .b32 y;  st.param.b32 [x], %tid32;  {load}
        proto: {prototype}
        call (y), %q, (x), proto;  ld.param.b32 %v, [y]; }} {STORE}"""


PAIRS = [
    out(
        "loop",
        f"mov.u32 %v, 0;  mov.u32 %i, 0;  again: add.u32 %v, %v, %i;  add.u32 %i, %i, 1;  setp.le.u32 %p, "
        f"%i, %tid32;  @%p bra again;  {STORE}",
        IDS * (IDS + 1) // 2,
        R,
        FUNCTIONS,
    ),
    out(
        "forward",
        f"mov.u32 %v, 1;  setp.lt.u32 %p, %tid32, 5;  @!%p bra skip;  mov.u32 %v, 2;  bra.uni done;  skip: "
        f"mov.u32 %v, 3;  done: {STORE}",
        np.where(IDS < 5, 2, 3).astype(np.uint32),
        R,
    ),
    out(
        "same_labels_and_registers_in_scopes",
        f"""mov.u32 %v, %tid32;
        {{ .reg .b32 t; .reg .pred p;  mov.b32 t, 3;  LAB: add.u32 %v, %v, 1;  sub.u32 t, t, 1;
        setp.ne.u32 p, t, 0;  @p bra LAB; }}
        {{ .reg .b32 t; .reg .pred p;  mov.b32 t, 2;  LAB: {{ .reg .b32 t;  mov.b32 t, 10;
        add.u32 %v, %v, t; }}  sub.u32 t, t, 1;  setp.ne.u32 p, t, 0;
           @p bra LAB;  @!p bra END;  mov.u32 %v, 0;  END: }} {STORE}""",
        IDS + 23,
        R,
    ),
    out(
        "jump_table",
        f"""and.b32 %i, %tid32, 3;  cases: .branchtargets one, two, three, one;  mov.u32 %v, 0;
        back: brx.idx %i, cases;
        one: mov.u32 %v, 100;  bra done;  two: mov.u32 %i, 2;  bra back;  three: mov.u32 %v, 300;
        done: {STORE}""",
        np.array([100, 300, 300, 100] * (N // 4), np.uint32),
        R,
    ),
    out(
        "return_early",
        f"mov.u32 %v, 5;  setp.lt.u32 %p, %tid32, 3;  @%p ret;  {STORE}  ret;  mov.u32 %v, 9;  {STORE}",
        np.where(IDS < 3, 0xFFFFFFFF, 5).astype(np.uint32),
        R,
    ),
    out(
        "exit_early",
        f"mov.u32 %v, 5;  setp.lt.u32 %p, %tid32, 3;  @%p exit;  {STORE}",
        np.where(IDS < 3, 0xFFFFFFFF, 5).astype(np.uint32),
        R,
    ),
    out(
        "exit_in_function",
        f"mov.u32 %v, 5;  {{ .param .b32 x;  st.param.b32 [x], %tid32;  call leave_if_odd, (x); }} {STORE}",
        np.where(IDS % 2, 0xFFFFFFFF, 5).astype(np.uint32),
        R,
    ),
    out(
        "call",
        f"{{ .param .b32 x; .param .b32 y;  st.param.b32 [x+0], %tid32;  call.uni (y), triple, (x);"
        f"ld.param.b32 %v, [y+0]; }} {STORE}",
        IDS * 3,
        R,
    ),
    out(
        "call_guarded",
        f"mov.u32 %v, 1;  setp.gt.u32 %p, %tid32, 9;  "
        f"{{ .param .b32 x; .param .b32 y;  st.param.b32 [x], %tid32;  st.param.b32 [y], 4;"
        f"  @%p call (y), triple, (x);  ld.param.b32 %v, [y]; }} {STORE}",
        np.where(IDS > 9, IDS * 3, 4).astype(np.uint32),
        R,
    ),
    out(
        "call_registers",
        f"mov.f32 %f, 0f41200000;  cvt.u64.u32 %q, %tid32;  call (%v), in_registers, (3, %q, %f);  {STORE}",
        IDS - 3 + np.uint32(10),
        R,
    ),
    out(
        "call_nothing",
        f"call nothing;  call.uni nothing, ();  mov.u32 %v, 8;  {STORE}",
        np.full(N, 8, np.uint32),
        R,
    ),
    out(
        "call_struct",
        """{ .param .align 8 .b8 x[24]; .param .b8 k; .param .align 8 .b8 y[24];  cvt.u64.u32 %q, %tid32;
        st.param.b64 [x], 1;
        st.param.b64 [x+8], %q;  st.param.b64 [x+16], 77;  st.param.b8 [k], -5;  call (y), swap_struct, (x,
        k);
        ld.param.b64 %q, [y];  st.global.b64 [%rd_out], %q;  ld.param.v2.b64 {%q, %s}, [y+8];  st.global.b64
        [%rd_out+8], %q;  st.global.b64 [%rd_out+16], %s; }""",
        np.stack([np.full(N, 77), np.full(N, -5), np.arange(N)], 1).astype(np.int64),
        R,
    ),
    out(
        "recursion",
        f"{{ .param .b32 x; .param .b32 y;  and.b32 %v, %tid32, 15;  st.param.b32 [x], %v;"
        f"call (y), fibonacci, (x);  ld.param.b32 %v, [y]; }} {STORE}",
        np.array([round(((1 + 5**0.5) / 2) ** (i % 16) / 5**0.5) for i in range(N)], np.uint32),
        R,
    ),
    out(
        "call_table",
        "and.b32 %i, %tid32, 1;  mul.wide.u32 %s, %i, 8;  mov.u64 %q, table;  add.u64 %s, %s, %q;  "
        "ld.global.u64 %q, [%s];"
        + call_pointer("", ".callprototype (.param .b32 _) _ (.param .b32 _);"),
        np.where(IDS % 2, IDS + 7, IDS * 3),
        R,
    ),
    out(
        "call_address",
        call_pointer("mov.u64 %q, plus_seven;", ".callprototype (.param .b32 _) _ (.param .b32 _);"),
        IDS + 7,
        R,
    ),
    out("call_targets", call_pointer("mov.u64 %q, triple;", ".calltargets triple, plus_seven;"), IDS * 3, R),
    out(
        "stack_memory",
        f"""stacksave.u64 %s;  alloca.u64 %q, 64;  st.local.u32 [%q+60], %tid32;  cvt.u64.u32 %s, %tid32;
        add.u64 %s, %s, 4;  alloca.u64 %s, %s, 32;
        and.b64 %s, %s, 31;  cvt.u32.u64 %w, %s;  stackrestore.u64 %s;  ld.local.u32 %v, [%q+60];
        add.u32 %v, %v, %w;  {STORE}""",
        IDS,
        R,
    ),
]


@pytest.mark.parametrize("mode", ["fast", "count"])
def test_control(mode):
    results = run_all([case for case, _ in PAIRS], mode=mode)
    for case, expected in PAIRS:
        np.testing.assert_array_equal(results[case.name], expected, err_msg=case.name)


# ---- special registers -------------------------------------------------------------------------------------


def specials(*names):
    """Body that stores the 32-bit special registers side by side."""
    return "".join(
        f"mov.u32 %v, {name};  st.global.u32 [%rd_out+{4 * i}], %v;" for i, name in enumerate(names)
    )


@pytest.fixture(scope="module")
def shapes():
    """Kernels that write special registers at blockIdx/threadIdx in three dimensions: (module, names)."""
    names = [
        "%tid.x",
        "%tid.y",
        "%tid.z",
        "%ntid.x",
        "%ntid.y",
        "%ntid.z",
        "%ctaid.x",
        "%ctaid.y",
        "%ctaid.z",
        "%nctaid.x",
        "%nctaid.y",
        "%nctaid.z",
        "%laneid",
        "%warpid",
        "%tid.w",
        "%clusterid.x",
        "%nclusterid.y",
        "%cluster_ctaid.x",
        "%cluster_nctaid.x",
        "%cluster_ctarank",
        "%cluster_nctarank",
    ]
    ptx = f""".version 9.0\n.target sm_90a\n.address_size 64
    .visible .entry shapes(.param .u64 out) {{ .reg .b32 %v, %a, %b; .reg .b64 %rd_out, %o;
    mov.u32 %a, %tid.z;  mov.u32 %b, %ntid.y;  mul.lo.u32 %a, %a, %b;  mov.u32 %b, %tid.y;
        add.u32 %a, %a, %b;  mov.u32 %b, %ntid.x;  mul.lo.u32 %a, %a, %b;
    mov.u32 %b, %tid.x;  add.u32 %a, %a, %b;
    mov.u32 %v, %ctaid.z;  mov.u32 %b, %nctaid.y;  mul.lo.u32 %v, %v, %b;  mov.u32 %b, %ctaid.y;
        add.u32 %v, %v, %b;  mov.u32 %b, %nctaid.x;
    mul.lo.u32 %v, %v, %b;  mov.u32 %b, %ctaid.x;  add.u32 %v, %v, %b;  mad.lo.u32 %a, %v, 60, %a;
    ld.param.u64 %rd_out, [out];  mul.wide.u32 %o, %a, {4 * len(names)};  add.u64 %rd_out, %rd_out, %o;
        {specials(*names)}  ret; }}"""
    return emulator.compile_ptx(ptx, mode="fast"), names


def test_indices(shapes):
    module, names = shapes
    found = np.zeros((3, 2, 2, 5, 4, 3, len(names)), np.uint32)  # blocks z y x, threads z y x
    module.launch("shapes", (2, 2, 3), (3, 4, 5), [found])
    at = {name: i for i, name in enumerate(names)}
    bz, by, bx, z, y, x = np.indices(found.shape[:-1])
    linear = x + 3 * (y + 4 * z)
    expected = {
        "%tid.x": x,
        "%tid.y": y,
        "%tid.z": z,
        "%ctaid.x": bx,
        "%ctaid.y": by,
        "%ctaid.z": bz,
        "%laneid": linear % 32,
        "%warpid": linear // 32,
        "%ntid.x": 3,
        "%ntid.y": 4,
        "%ntid.z": 5,
        "%nctaid.x": 2,
        "%nctaid.y": 2,
        "%nctaid.z": 3,
        "%tid.w": 0,
        "%clusterid.x": bx,
        "%nclusterid.y": 2,
        "%cluster_ctaid.x": 0,
        "%cluster_nctaid.x": 1,
        "%cluster_ctarank": 0,
        "%cluster_nctarank": 1,
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(
            found[..., at[name]], np.broadcast_to(values, found.shape[:-1]), err_msg=name
        )


def test_lane_masks_and_vector_of_indices():
    body = (
        specials(*(f"%lanemask_{c}" for c in ("eq", "lt", "le", "gt", "ge")))
        + """
        mov.v4.u32 {%v, %w, %i, %j}, %tid;  st.global.u32 [%rd_out+20], %v;  st.global.u32 [%rd_out+24], %w;
        st.global.u32 [%rd_out+28], %i;  st.global.u32 [%rd_out+32], %j;
        mov.u16 %h, %tid.x;  cvt.u32.u16 %v, %h;  st.global.u32 [%rd_out+36], %v;"""
    )
    case = Snippet("masks", body, {}, ((64, 10), np.uint32), ".reg .b32 %v, %w, %i, %j; .reg .b16 %h;")
    found = run_all([case])["masks"]
    for thread in range(64):
        lane = thread % 32
        bits = {
            "eq": 1 << lane,
            "lt": (1 << lane) - 1,
            "gt": 0xFFFFFFFF & -(2 << lane),
            "le": (2 << lane) - 1,
            "ge": 0xFFFFFFFF & -(1 << lane),
        }
        assert found[thread].tolist() == [bits[c] for c in ("eq", "lt", "le", "gt", "ge")] + [
            thread,
            0,
            0,
            0,
            thread,
        ]


def test_clocks_go_forward_and_a_kernel_may_wait_for_them():
    body = """mov.u64 %q, %clock64;  mov.u64 %g, %globaltimer;  wait: mov.u64 %s, %clock64;
        sub.u64 %s, %s, %q;  setp.lt.u64 %p, %s, 20000;  @%p bra wait;
        mov.u64 %q, %globaltimer;  sub.u64 %q, %q, %g;  st.global.v2.u64 [%rd_out], {%s, %q};
        mov.u32 %v, %clock;  mov.u32 %w, %clock_hi;
        mov.u64 %q, %gridid;  st.global.u64 [%rd_out+16], %q;  mov.u32 %v, %smid;  mov.u32 %w, %nsmid;
        setp.lt.u32 %p, %v, %w;  selp.u64 %q, 1, 0, %p;
        st.global.u64 [%rd_out+24], %q;  mov.u32 %v, %warpid;  mov.u32 %w, %nwarpid;
        setp.lt.u32 %p, %v, %w;  selp.u64 %q, 1, 0, %p;
        st.global.u64 [%rd_out+32], %q;"""
    case = Snippet(
        "clocks", body, {}, ((3, 5), np.uint64), ".reg .b64 %q, %s, %g; .reg .b32 %v, %w; .reg .pred %p;"
    )
    found = run_all([case])["clocks"]
    assert (found[:, 0] >= 20000).all()
    assert (found[:, 1] > 0).all()
    assert (found[:, 2] == found[0, 2]).all()
    assert (found[:, 2] >= 1).all()
    assert (found[:, 3:] == 1).all()


# ---- functions of the runtime ------------------------------------------------------------------------------

PRINT = """
.extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);
.extern .func (.param .b64 r) malloc(.param .b64 n);
.extern .func free(.param .b64 p);
.extern .func __assertfail(.param .b64 m, .param .b64 f, .param .b32 l, .param .b64 n, .param .b64 s);
.global .align 1 .b8 format[20] = {60, 37, 100, 32, 37, 46, 50, 102, 62, 10, 0};
.global .align 1 .b8 text[3] = {120, 62, 48};
"""


def test_vprintf(capfd):
    body = """mov.u64 %q, values;  st.local.u32 [%q], 42;  st.local.f64 [%q+8], 0d400921FB54442D18;
        cvta.local.u64 %q, %q;  mov.u64 %s, format;
        cvta.global.u64 %s, %s;  { .param .b64 a; .param .b64 b; .param .b32 c;  st.param.b64 [a], %s;
        st.param.b64 [b], %q;  call.uni (c), vprintf, (a, b);
        ld.param.b32 %v, [c]; }  st.global.u32 [%rd_out], %v;"""
    case = Snippet("prints", body, {}, ((1,), np.uint32), R + ".local .align 8 .b8 values[16];", PRINT)
    assert run_all([case])["prints"][0] == 2  # how many values were printed
    assert "<42 3.14>\n" in capfd.readouterr().out


def test_malloc_and_free():
    body = """{ .param .b64 a; .param .b64 b;  st.param.b64 [a], 64;  call.uni (b), malloc, (a);
        ld.param.b64 %q, [b]; }
        st.u32 [%q+60], %tid32;  ld.u32 %v, [%q+60];  st.global.u32 [%rd_out], %v;  { .param .b64 a;
        st.param.b64 [a], %q;  call free, (a); }"""
    case = Snippet("heap", body, {}, ((8,), np.uint32), R, PRINT)
    np.testing.assert_array_equal(run_all([case], mode="check")["heap"], np.arange(8))


def test_assert_is_reported_with_its_text():
    body = """mov.u64 %q, text;
        { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e;  st.param.b64 [a], %q;
        st.param.b64 [b], %q;
        st.param.b32 [c], 17;  st.param.b64 [d], %q;  st.param.b64 [e], 1;
        call.uni __assertfail, (a, b, c, d, e); }"""
    module, _ = run_module([Snippet("asserts", body, registers=R, declarations=PRINT)], mode="check")
    (report,) = module.reports
    assert report.kind == "assert"
    assert "x>0" in report.message


# ---- what never ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "check"])
@pytest.mark.parametrize("body", ["again: bra again;", "call forever;"])
def test_a_kernel_that_never_ends_is_stopped(mode, body):
    forever = ".func forever() { call forever; ret; }"
    case = Snippet("endless", body, registers=R, declarations=forever)
    if mode == "fast":
        with pytest.raises(LaunchError):
            run_module([case], mode=mode, steps=10_000)
    else:
        module, _ = run_module([case], mode=mode, steps=10_000)
        assert module.reports[0].kind in ("step_budget", "stack_overflow")


# ---- ordinary CUDA C++ -------------------------------------------------------------------------------------

SOURCE = r"""
struct Shape { __device__ virtual float area() const = 0; float scale = 1; };
struct Square : Shape { float a; __device__ Square(float a) : a(a) {} __device__ float area() const override {
        return scale * a * a; } };
struct Circle : Shape { float r; __device__ Circle(float r) : r(r) {} __device__ float area() const override {
        return scale * 3.0f * r * r; } };
typedef float (*Function)(float);
__device__ float twice(float x) { return 2 * x; }
__device__ float next(float x) { return x + 1; }
__device__ Function table[2] = {twice, next};
__constant__ int weights[4] = {1, 10, 100, 1000};
struct Pair { double d; short s; char c[3]; };
__device__ __noinline__ Pair change(Pair p, int k) { p.d *= k; p.s -= k; p.c[1] = k; return p; }
__device__ __noinline__ int ackermann(int m, int n) { return m == 0 ? n + 1 : ackermann(m - 1, n == 0 ? 1 :
        ackermann(m, n - 1)); }
template <int N> __device__ int digits(int x) { int s = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) { s += x % 10 * weights[3 - (i & 3)]; x /= 10; } return s; }
extern "C" __global__ void areas(float* out) { Square s(threadIdx.x); Circle c(2); Shape* shape = threadIdx.x
        & 1 ? (Shape*)&s : (Shape*)&c; out[threadIdx.x] = shape->area(); }
extern "C" __global__ void pointers(float* out, int which) { out[threadIdx.x] = table[(which + threadIdx.x) &
        1](threadIdx.x); }
extern "C" __global__ void pairs(Pair* out, Pair given) { out[threadIdx.x] = change(given, threadIdx.x); }
extern "C" __global__ void deep(int* out) { out[threadIdx.x] = ackermann(2, threadIdx.x); }
extern "C" __global__ void numbers(int* out) { out[threadIdx.x] = digits<4>(1234 + threadIdx.x); }
extern "C" __global__ void switches(int* out, int n) {
    int local[16]; for (int i = 0; i < 16; ++i) local[i] = i * n;
    int v = 0;
    switch (threadIdx.x) { case 0: v = local[n]; break; case 1: v = local[n + 1] * 3; break; case 2: v =
        __popc(n); break; case 3: v = -n; break;
        case 4: for (int i = 0; i < n; ++i) v += local[i]; break; case 5: v = n << 5; break; case 6: v = n /
        3; break; default: v = 99; }
    out[threadIdx.x] = v; }
"""


@pytest.fixture(scope="module", params=["-O3", "-G"])
def ordinary(request, tmp_path_factory):
    """The same source optimised and, as PTX of a quite different kind, for debugging."""
    path = Path(tmp_path_factory.mktemp("ordinary")) / "ordinary.cu"
    path.write_text(SOURCE)
    return emulator.compile(path, arch="sm_80", mode="check", flags=["-G"] if request.param == "-G" else [])


def test_ordinary_control(ordinary):
    areas = np.zeros(6, np.float32)
    ordinary.launch("areas", 1, 6, [areas])
    np.testing.assert_array_equal(areas, [12, 1, 12, 9, 12, 25])
    pointers = np.zeros(4, np.float32)
    ordinary.launch("pointers", 1, 4, [pointers, np.int32(1)])
    np.testing.assert_array_equal(pointers, [1, 2, 3, 6])
    deep = np.zeros(5, np.int32)
    ordinary.launch("deep", 1, 5, [deep])
    np.testing.assert_array_equal(deep, [2 * n + 3 for n in range(5)])
    numbers = np.zeros(3, np.int32)
    ordinary.launch("numbers", 1, 3, [numbers])
    np.testing.assert_array_equal(numbers, [4321, 5321, 6321])
    switches = np.zeros(8, np.int32)
    ordinary.launch("switches", 1, 8, [switches, np.int32(7)])
    np.testing.assert_array_equal(switches, [49, 168, 3, -7, 147, 224, 2, 99])
    assert not ordinary.reports


def test_ordinary_structures(ordinary):
    kind = np.dtype([("d", np.float64), ("s", np.int16), ("c", np.int8, 3)], align=True)
    given = np.zeros(1, kind)
    given["d"], given["s"], given["c"] = math.pi, 100, [7, 8, 9]
    found = np.zeros(4, kind)
    ordinary.launch("pairs", 1, 4, [found, given[0]])
    np.testing.assert_array_equal(found["d"], [math.pi * k for k in range(4)])
    np.testing.assert_array_equal(found["s"], [100 - k for k in range(4)])
    np.testing.assert_array_equal(found["c"], [[7, k, 9] for k in range(4)])
    assert not ordinary.reports


# ---- refused by name ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("bra nowhere;", "nowhere is not a label"),
        ("bra.frob again;", "'.frob' of 'bra.frob'"),
        ("brx.idx %v, again;", "again is not a list of .branchtargets"),
        ("call unknown;", "function 'unknown' is called but not declared"),
        ("call elsewhere;", "function elsewhere is defined in another file"),
        ("call cudaLaunchDeviceV2;", "dynamic parallelism"),
        (
            "call (%v), triple, (%v, %v);",
            "2 arguments and 1 results of a function that takes 1 and returns 1",
        ),
        ("call (%v), %q, (%v);", "needs a .callprototype"),
        ("{ .param .b8 x;  call (%v), triple, (x); }", "argument x has 1 bytes where the function takes 4"),
        ("mov.u64 %q, again;", "the address of a label"),
        ("alloca.u64 %q, 16, %v;", "needs a constant"),
        ("@%v bra again;", "cannot be read as .pred"),
    ],
)
def test_refused_by_name(body, part):
    declared = FUNCTIONS + ".extern .func elsewhere(); .extern .func cudaLaunchDeviceV2();"
    assert part in refusal(f"again: {body}", registers=R, declarations=declared)


GROUPS = r"""
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
namespace cg = cooperative_groups;
extern "C" __global__ void pairs_of_warps(const int* x, int* sums) {
    auto tile = cg::tiled_partition<64>(cg::this_thread_block());
    sums[threadIdx.x] = cg::reduce(tile, x[threadIdx.x], cg::plus<int>()); }
"""


def test_groups_of_several_warps_use_the_systems_shared_memory(tmp_path):
    """Cooperative groups keep their state in shared memory that no program declares; it begins as zeros."""
    path = tmp_path / "groups.cu"
    path.write_text(GROUPS)
    module = emulator.compile(path, arch="sm_80", mode="check", flags=["-std=c++17"])
    x, sums = np.arange(256, dtype=np.int32), np.zeros(256, np.int32)
    module.launch("pairs_of_warps", 1, 256, [x, sums])
    np.testing.assert_array_equal(sums, x.reshape(4, 64).sum(1).repeat(64))
    assert not module.reports
