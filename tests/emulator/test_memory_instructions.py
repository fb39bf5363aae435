"""ld, st, mov, cvta, isspacep and what variables hold, against NumPy views of the same bytes."""

import numpy as np
import pytest

from tests.emulator.snippets import Snippet, refusal, run_all, run_module

RNG = np.random.default_rng(3)
N = 37  # threads: more than a warp, not a multiple
BYTES = RNG.integers(0, 256, (N, 32), dtype=np.uint8)
BYTES[0], BYTES[1], BYTES[2] = 0, 0xFF, 0x80
INTEGERS = {
    f"{sign}{bits}": np.dtype(f"{kind}{bits // 8}")
    for sign, kind in (("u", "u"), ("s", "i"), ("b", "u"))
    for bits in (8, 16, 32, 64)
}
FLOATS = {"f32": np.dtype("f4"), "f64": np.dtype("f8")}
TYPES = INTEGERS | FLOATS
LETTER = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}  # declared type of a register that holds so many bytes


def column(dtype, at=0):
    """What a load of that type reads from each row."""
    return BYTES[:, at : at + dtype.itemsize].copy().view(dtype)[:, 0]


def load_wide(type_, dtype):
    """A load into a 64-bit register: sign-extended for .sN, zero-extended for the others (manual, section
    9.4.1)."""
    bits = column(dtype) if type_ not in FLOATS else column(np.dtype(f"u{dtype.itemsize}"))
    expected = bits.astype(np.int64).view(np.uint64) if type_[0] == "s" else bits.astype(np.uint64)
    body = f"ld.global.{type_} %v, [%rd_a];  st.global.u64 [%rd_out], %v;"
    return Snippet(f"load_wide_{type_}", body, {"a": BYTES}, ((N,), np.uint64), ".reg .b64 %v;"), expected


def store_low(type_, dtype):
    """A store of a 64-bit register: its low bits."""
    source = column(np.dtype("u8"))
    body = f"ld.global.u64 %v, [%rd_a];  st.global.{type_} [%rd_out], %v;"
    unsigned = np.dtype(f"u{dtype.itemsize}")
    expected = (source & np.uint64(2 ** (8 * dtype.itemsize) - 1)).astype(unsigned)
    return Snippet(f"store_low_{type_}", body, {"a": BYTES}, ((N,), unsigned), ".reg .b64 %v;"), expected


def vector(count, type_, dtype, space):
    """A vector through a space and back: the elements in their order, written reversed."""
    register = (FLOATS.get(type_) is not None and type_) or LETTER[dtype.itemsize]
    names = [f"%v{i}" for i in range(count)]
    forward, backward = ", ".join(names), ", ".join(reversed(names))
    size = dtype.itemsize * count
    through = (
        ""
        if space == "global"
        else (
            f"mul.lo.u32 %at, %tid32, {size};  mov.u32 %base, room;  add.u32 %at, %at, %base;"
            f"st.shared.v{count}.{type_} [%at], {{{forward}}};  ld.shared.v{count}.{type_} {{{forward}}}, "
            f"[%at];"
        )
    )
    body = (
        f"ld.global.v{count}.{type_} {{{forward}}}, [%rd_a];  {through} st.global.v{count}.{type_} "
        f"[%rd_out], {{{backward}}};"
    )
    registers = f".reg .{register} %v<{count}>; .reg .b32 %at, %base; .shared .align 16 .b8 room[{N * 32}];"
    raw = BYTES[:, :size].copy().view(np.dtype(f"u{dtype.itemsize}"))
    return Snippet(
        f"vector_{space}_v{count}_{type_}", body, {"a": BYTES}, (raw.shape, raw.dtype), registers
    ), raw[:, ::-1]


VECTORS = [
    vector(count, type_, dtype, space)
    for count in (2, 4)
    for type_, dtype in TYPES.items()
    for space in ("global", "shared")
    if count * dtype.itemsize <= 16
]
PAIRS = [load_wide(*item) for item in TYPES.items()] + [store_low(*item) for item in TYPES.items()] + VECTORS
U32 = column(np.dtype("u4"))
U64 = column(np.dtype("u8"))


def simple(name, body, expected, registers="", inputs=None, declarations="", **more):
    expected = np.asarray(expected)
    return Snippet(
        name,
        body,
        {"a": BYTES} if inputs is None else inputs,
        (expected.shape, expected.dtype),
        registers,
        declarations,
        **more,
    ), expected


def through(name, load, store, registers=".reg .b32 %v; "):
    """One 32-bit value from a to out with the given spellings of ld and st."""
    return simple(name, f"ld{load}.b32 %v, [%rd_a];  st{store}.b32 [%rd_out], %v;", U32, registers)


LOADS = [
    "",
    ".global",
    ".weak",
    ".weak.global",
    ".global.ca",
    ".global.cg",
    ".global.cs",
    ".global.lu",
    ".global.cv",
    ".cg",
    ".volatile",
    ".volatile.global",
    ".global.volatile",
    ".relaxed.cta",
    ".relaxed.cluster.global",
    ".relaxed.gpu.global",
    ".relaxed.sys",
    ".acquire.cta.global",
    ".acquire.gpu",
    ".acquire.sys.global",
    ".mmio.relaxed.sys.global",
    ".global.nc",
    ".global.ca.nc",
    ".global.nc.L1::no_allocate",
    ".global.nc.L1::evict_last.L2::128B",
    ".global.L1::no_allocate.L2::256B",
    ".global.cg.L2::64B",
]
STORES = [
    "",
    ".global",
    ".weak.global",
    ".global.wb",
    ".global.cg",
    ".global.cs",
    ".global.wt",
    ".cs",
    ".volatile",
    ".volatile.global",
    ".relaxed.cta",
    ".relaxed.gpu.global",
    ".relaxed.sys.global",
    ".release.cta.global",
    ".release.gpu",
    ".release.sys",
    ".mmio.relaxed.sys.global",
    ".global.L1::no_allocate",
    ".global.L1::evict_first",
]
PAIRS += [through(f"load_spelling_{i}", load, ".global") for i, load in enumerate(LOADS)]
PAIRS += [through(f"store_spelling_{i}", ".global", store) for i, store in enumerate(STORES)]
PAIRS += [
    simple(
        "cache_policy",
        """createpolicy.fractional.L2::evict_last.b64 %p, 0f3F000000;
        ld.global.L2::cache_hint.b32 %v, [%rd_a], %p;  st.global.L2::cache_hint.b32 [%rd_out], %v, %p;""",
        U32,
        ".reg .b32 %v; .reg .b64 %p;",
    ),
    simple(
        "ldu",
        "ldu.global.v2.u32 {%v, %w}, [%rd_a];  st.global.u32 [%rd_out], %w;",
        column(np.dtype("u4"), 4),
        ".reg .b32 %v, %w;",
    ),
    simple(
        "prefetches",
        """prefetch.global.L2 [%rd_a];  prefetch.L1 [%rd_a];  prefetchu.L1 [%rd_a];
        prefetch.global.L2::evict_last [%rd_a];  applypriority.global.L2::evict_normal [%rd_a], 128;
        ld.global.u32 %v, [%rd_a];  st.global.u32 [%rd_out], %v;""",
        U32,
        ".reg .b32 %v;",
    ),
    simple(
        "offsets",
        "ld.global.u32 %v, [%rd_a+4];  add.u64 %q, %rd_a, 12;  ld.global.u32 %w, [%q+-4];  ld.global.u32 %x, "
        "[%q-12];"
        "st.global.v4.u32 [%rd_out], {%v, %w, %x, 7};",
        np.stack(
            [
                BYTES.view(np.uint32)[:, 1],
                BYTES.view(np.uint32)[:, 2],
                BYTES.view(np.uint32)[:, 0],
                np.full(N, 7, np.uint32),
            ],
            1,
        ),
        ".reg .b32 %v, %w, %x; .reg .b64 %q;",
    ),
    simple(
        "overwritten_base",
        "mov.b64 %q, %rd_a;  ld.global.v2.u64 {%q, %w}, [%q];  xor.b64 %q, %q, %w;  st.global.u64 [%rd_out], "
        "%q;",
        BYTES.view(np.uint64)[:, 0] ^ BYTES.view(np.uint64)[:, 1],
        ".reg .b64 %q, %w;",
    ),
    simple(
        "sink",
        "ld.global.v4.u32 {_, %v, _, %w}, [%rd_a];  st.global.v2.u32 [%rd_out], {%w, %v};",
        BYTES.view(np.uint32)[:, [3, 1]],
        ".reg .b32 %v, %w;",
    ),
    simple(
        "b128",
        "ld.global.b128 %q, [%rd_a];  mov.b128 {%v, %w}, %q;  mov.b128 %q, {%w, %v};  st.global.b128 "
        "[%rd_out], %q;",
        BYTES.view(np.uint64)[:, [1, 0]],
        ".reg .b128 %q; .reg .b64 %v, %w;",
    ),
    simple(
        "b128_words",
        "ld.global.b128 %q, [%rd_a];  mov.b128 {%v0, %v1, %v2, %v3}, %q;  mov.b128 %q, {%v3, %v2, %v1, %v0};"
        "st.global.b128 [%rd_out], %q;",
        BYTES.view(np.uint32)[:, [3, 2, 1, 0]],
        ".reg .b128 %q; .reg .b32 %v<4>;",
    ),
    simple(
        "vector_register",
        "ld.global.v4.f32 %q, [%rd_a];  mov.f32 %s, %q.x;  mov.f32 %q.x, %q.w;  mov.f32 %q.w, %s;  "
        "st.global.v4.f32 [%rd_out], %q;",
        BYTES.view(np.uint32)[:, [3, 1, 2, 0]],
        ".reg .v4 .f32 %q; .reg .f32 %s;",
    ),
    simple(
        "param_bytes",
        """{ .param .align 8 .b8 box[16];  ld.global.v2.u64 {%v, %w}, [%rd_a];
        st.param.b64 [box+0], %w;  st.param.v2.b32 [box+8], {1, 2};  ld.param.u8 %h, [box+1];  ld.param.v2.u16
        {%i, %j}, [box+8];
        ld.param.b64 %v, [box]; }  st.global.u64 [%rd_out], %v;  cvt.u64.u16 %w, %h;  st.global.u64
        [%rd_out+8], %w;
        cvt.u64.u16 %w, %i;  st.global.u64 [%rd_out+16], %w;""",
        np.stack([BYTES.view(np.uint64)[:, 1], BYTES[:, 9].astype(np.uint64), np.ones(N, np.uint64)], 1),
        ".reg .b64 %v, %w; .reg .b16 %h, %i, %j;",
    ),
    simple(
        "local",
        """ld.global.u64 %v, [%rd_a];  mov.u64 %l, depot;  st.local.u64 [%l+8], %v;  st.local.u16 [depot+10],
        7;
        cvta.local.u64 %g, %l;  ld.u64 %v, [%g+8];  cvta.to.local.u64 %g, %g;  ld.local.u16 %h, [%g+8];
        st.global.u64 [%rd_out], %v;""",
        (U64 & np.uint64(0xFFFFFFFF0000FFFF)) | np.uint64(7 << 16),
        ".reg .b64 %v, %l, %g; .reg .b16 %h; .local .align 8 .b8 depot[16];",
    ),
    simple(
        "generic_shared",
        """mov.u64 %s, room;  cvta.shared.u64 %g, %s;  mul.wide.u32 %i, %tid32, 4;  add.u64 %g, %g, %i;
        ld.global.u32 %v, [%rd_a];
        st.u32 [%g], %v;  cvta.to.shared.u64 %s, %g;  cvt.u32.u64 %r, %s;  ld.shared.u32 %v, [%r];  not.b32
        %v, %v;  st.shared::cta.u32 [%s], %v;
        ld.volatile.u32 %v, [%g];  st.global.u32 [%rd_out], %v;""",
        ~U32,
        ".reg .b64 %s, %g, %i; .reg .b32 %v, %r; .shared .u32 room[64];",
    ),
    simple(
        "discard",
        "ld.global.v4.u32 {%v0, %v1, %v2, %v3}, [%rd_a];  st.global.v4.u32 [%rd_out], {%v0, %v1, %v2, %v3};",
        BYTES.view(np.uint32)[:, :4],
        ".reg .b32 %v<4>;",
    ),
]

# ---- mov: packing, registers of other types ----------------------------------------------------------------

PAIRS += [
    simple(
        "pack_b32_b16",
        "ld.global.v2.b16 {%h, %i}, [%rd_a];  mov.b32 %v, {%i, %h};  st.global.b32 [%rd_out], %v;",
        BYTES.view(np.uint16)[:, 1].astype(np.uint32) | BYTES.view(np.uint16)[:, 0].astype(np.uint32) << 16,
        ".reg .b16 %h, %i; .reg .b32 %v;",
    ),
    simple(
        "unpack_b32_b16",
        "ld.global.b32 %v, [%rd_a];  mov.b32 {%h, %i}, %v;  st.global.v2.b16 [%rd_out], {%i, %h};",
        BYTES.view(np.uint16)[:, [1, 0]],
        ".reg .b16 %h, %i; .reg .b32 %v;",
    ),
    simple(
        "pack_b64_f32",
        "ld.global.v2.f32 {%f, %g}, [%rd_a];  mov.b64 %v, {%g, %f};  st.global.b64 [%rd_out], %v;",
        BYTES.view(np.uint32)[:, 1].astype(np.uint64)
        | BYTES.view(np.uint32)[:, 0].astype(np.uint64) << np.uint64(32),
        ".reg .f32 %f, %g; .reg .b64 %v;",
    ),
    simple(
        "unpack_b64_sink",
        "ld.global.b64 %v, [%rd_a];  mov.b64 {_, %f}, %v;  st.global.f32 [%rd_out], %f;",
        BYTES.view(np.uint32)[:, 1],
        ".reg .f32 %f; .reg .b64 %v;",
    ),
    simple(
        "pack_b64_b16",
        "ld.global.v4.b16 {%h0, %h1, %h2, %h3}, [%rd_a];  mov.b64 %v, {%h3, %h2, %h1, %h0};  mov.b64 {%h0, "
        "%h1, %h2, %h3}, %v;"
        "st.global.v4.b16 [%rd_out], {%h0, %h1, %h2, %h3};",
        BYTES.view(np.uint16)[:, [3, 2, 1, 0]],
        ".reg .b16 %h<4>; .reg .b64 %v;",
    ),
    simple(
        "pack_b32_b8",
        "ld.global.v4.b8 {%h0, %h1, %h2, %h3}, [%rd_a];  mov.b32 %v, {%h3, %h2, %h1, %h0};  st.global.b32 "
        "[%rd_out], %v;",
        U32.byteswap(),
        ".reg .b8 %h<4>; .reg .b32 %v;",
    ),
    simple(
        "bits_f32_b32",
        "ld.global.f32 %f, [%rd_a];  mov.b32 %v, %f;  xor.b32 %v, %v, 1;  mov.b32 %f, %v;  st.global.f32 "
        "[%rd_out], %f;",
        U32 ^ 1,
        ".reg .f32 %f; .reg .b32 %v;",
    ),
    simple(
        "bits_f64_b64",
        "ld.global.f64 %f, [%rd_a];  mov.b64 %v, %f;  not.b64 %v, %v;  mov.b64 %f, %v;  st.global.f64 "
        "[%rd_out], %f;",
        ~U64,
        ".reg .f64 %f; .reg .b64 %v;",
    ),
    simple(
        "constants",
        "mov.u32 %v, -1;  mov.f32 %f, 0fFF800001;  mov.b64 %q, 0x123456789abcdef0;  st.global.v2.u32 "
        "[%rd_out], {%v, 017};"
        "st.global.f32 [%rd_out+8], %f;  st.global.u32 [%rd_out+12], WARP_SZ;  st.global.u64 [%rd_out+16], "
        "%q;  mov.f64 %d, 0dC000000000000000;"
        "st.global.f64 [%rd_out+24], %d;  mov.f32 %f, 1.5;  st.global.f32 [%rd_out+32], %f;  mov.f64 %d, "
        "0f40400000;  st.global.f64 [%rd_out+40], %d;"
        "mov.s32 %v, -2147483648;  st.global.s32 [%rd_out+36], %v;  mov.f32 %f, 0f80000000;  st.global.f32 "
        "[%rd_out+48], %f; st.global.u32 [%rd_out+52], 0;",
        np.tile(
            np.array(
                [
                    0xFFFFFFFF,
                    15,
                    0xFF800001,
                    32,
                    0x9ABCDEF0,
                    0x12345678,
                    0,
                    0xC0000000,
                    0x3FC00000,
                    0x80000000,
                    0,
                    0x40080000,
                    0x80000000,
                    0,
                ],
                np.uint32,
            ),
            (N, 1),
        ),
        ".reg .b32 %v; .reg .f32 %f; .reg .f64 %d; .reg .b64 %q;",
    ),
    simple(
        "predicates",
        "ld.global.u32 %v, [%rd_a];  setp.lt.u32 %p, %v, 0x80000000;  mov.pred %q, %p;  mov.pred %p, 0;  "
        "selp.u32 %v, 1, 0, %q;"
        "@!%p add.u32 %v, %v, 2;  @%p add.u32 %v, %v, 4;  st.global.u32 [%rd_out], %v;",
        (U32 < 0x80000000) + np.uint32(2),
        ".reg .b32 %v; .reg .pred %p, %q;",
    ),
]

# ---- variables ---------------------------------------------------------------------------------------------

VARIABLES = """
.global .align 4 .u32 words[3] = {1, 0xFFFFFFFF, -2};
.const .align 8 .b8 bytes[16] = {1, 2, 3, 4, 5, 6, 7, 8};
.global .align 8 .f64 doubles[2] = {1.5, 0dC000000000000000};
.global .f32 single = 0f40490FDB;
.global .align 2 .u16 halves[2][3] = {{1}, {2, 3}};
.global .u32 zeros[1000];
.global .align 8 .u64 pointers[4] = {words, words+4, generic(doubles), 5};
.global .align 1 .b8 split[8] = {0xFF(words), 0xFF00(words), 0xFF0000(words), 0xFF000000(words),
        0xFF00000000(words), 0xFF0000000000(words),
    0xFF000000000000(words), 0xFF00000000000000(words)};
.global .v2 .u32 twos[2] = {{1, 2}, {3, 4}};
"""
PAIRS += [
    simple(
        "variables",
        """ld.global.u32 %v, [words+4];  st.global.u32 [%rd_out], %v;  ld.const.u32 %v, [bytes+4];
        st.global.u32 [%rd_out+4], %v;
        mov.u64 %q, bytes;  ld.const.u8 %v, [%q+2];  st.global.u32 [%rd_out+8], %v;  ld.global.f64 %d,
        [doubles+8];  st.global.f64 [%rd_out+16], %d;
        ld.global.f32 %f, [single];  st.global.f32 [%rd_out+12], %f;  ld.global.u16 %v, [halves+6];
        st.global.u32 [%rd_out+24], %v;
        ld.global.u16 %v, [halves+2];  st.global.u32 [%rd_out+28], %v;  ld.global.u32 %v, [zeros+3996];
        st.global.u32 [%rd_out+32], %v;
        ld.global.u64 %q, [pointers+8];  ld.u32 %v, [%q];  st.global.u32 [%rd_out+36], %v;  ld.global.u64 %q,
        [pointers+16];  ld.global.f64 %d, [%q];
        st.global.f64 [%rd_out+40], %d;  ld.global.u64 %q, [split];  mov.u64 %r, words;  sub.u64 %q, %q, %r;
        st.global.u64 [%rd_out+48], %q;
        cvta.const.u64 %q, bytes;  ld.u8 %v, [%q+7];  st.global.u32 [%rd_out+56], %v;  mov.u64 %q, words+8;
        ld.global.u32 %v, [%q];  st.global.u32 [%rd_out+60], %v;
        ld.global.v2.u32 {%v, %w}, [twos+8];  st.global.u32 [%rd_out+64], %w;""",
        np.array(
            [
                [
                    0xFFFFFFFF,
                    0x08070605,
                    3,
                    0x40490FDB,
                    0,
                    0xC0000000,
                    2,
                    0,
                    0,
                    0xFFFFFFFF,
                    0,
                    0x3FF80000,
                    0,
                    0,
                    8,
                    0xFFFFFFFE,
                    4,
                ]
            ],
            np.uint32,
        ),
        ".reg .b32 %v, %w; .reg .b64 %q, %r; .reg .f64 %d; .reg .f32 %f;",
        inputs={},
        declarations=VARIABLES,
    )
]


@pytest.mark.parametrize("mode", ["fast", "count"])
def test_memory(mode):
    results = run_all([case for case, _ in PAIRS], mode=mode)
    for case, expected in PAIRS:
        unsigned = np.dtype(f"u{expected.dtype.itemsize}")
        np.testing.assert_array_equal(
            results[case.name].view(unsigned), expected.view(unsigned), err_msg=case.name
        )


def test_address_spaces():
    """Each address belongs to the spaces it should (shared::cta is part of shared::cluster), and to no
    other."""
    places = {
        "global": "mov.u64 %q, g;",
        "const": "cvta.const.u64 %q, c;",
        "shared": "cvta.shared.u64 %q, s;",
        "local": "cvta.local.u64 %q, l;",
        "param": "mov.b64 %q, p_out;  cvta.param.u64 %q, %q;",
    }
    spaces = ["global", "const", "shared", "shared::cta", "shared::cluster", "local", "param", "param::entry"]
    tests = "".join(
        f"isspacep.{space} %p, %q;  selp.u32 %v, 1, 0, %p;  st.global.u32 [%rd_out+{4 * i}], %v;"
        for i, space in enumerate(spaces)
    )
    cases = [
        Snippet(
            f"is_{name}",
            f"{place} {tests}",
            {},
            ((1, len(spaces)), np.uint32),
            ".reg .b64 %q; .reg .b32 %v; .reg .pred %p; .shared .align 8 .b8 s[8]; .local .align 8 .b8 l[8];",
            ".global .u32 g; .const .u32 c;" if name == "global" else "",
        )
        for name, place in places.items()
    ]
    for case, found in zip(cases, run_all(cases).values(), strict=True):
        expected = [space.startswith(case.name[3:]) for space in spaces]
        np.testing.assert_array_equal(found[0], expected, err_msg=case.name)


def test_dynamic_shared_memory_begins_after_the_statics():
    case = Snippet(
        "dynamic",
        """mov.u32 %v, dynamic_memory;  mov.u32 %w, tile;  st.global.v2.u32 [%rd_out], {%v, %w};
        st.shared.u32 [dynamic_memory+28], 5;  ld.shared.u32 %v, [%v+28];  st.global.u32 [%rd_out+8], %v;
        mov.u32 %v, %dynamic_smem_size;  st.global.u32 [%rd_out+12], %v;  mov.u32 %v, %total_smem_size;
        st.global.u32 [%rd_out+16], %v;""",
        {},
        ((1, 5), np.uint32),
        ".reg .b32 %v, %w; .shared .align 4 .b8 tile[20];",
        ".extern .shared .align 256 .b8 dynamic_memory[];",
        shared_bytes=32,
    )
    begin, tile, value, dynamic, total = (int(v) for v in run_all([case], mode="check")["dynamic"][0])
    assert begin % 256 == 0
    assert begin >= tile + 20 + 64  # a red zone lies between
    assert (value, dynamic, total) == (5, 32, 52)


def test_shared_variables_have_red_zones_and_alignment():
    registers = ".reg .b32 %v, %w; .shared .b8 one[1]; .shared .align 16 .b8 two[100];"
    case = Snippet(
        "places",
        "mov.u32 %v, one;  mov.u32 %w, two;  st.global.v2.u32 [%rd_out], {%v, %w};",
        {},
        ((1, 2), np.uint32),
        registers,
    )
    one, two = (int(v) for v in run_all([case])["places"][0])
    assert two % 16 == 0
    assert two >= one + 1 + 64


def test_reading_past_a_variable_is_found():
    module, _ = run_module(
        [
            Snippet(
                "past",
                "ld.global.u32 %v, [small+8];  st.global.u32 [%rd_out], %v;",
                registers=".reg .b32 %v;",
                declarations=".global .u32 small[2]; .global .u32 other[2];",
            )
        ],
        mode="check",
    )
    assert [report.kind for report in module.reports] == ["out_of_bounds"]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("ld.global.frob.u32 %v, [%rd_out];", "'.frob' of 'ld.global.frob.u32'"),
        ("ld.global.u32.unknown %v, [%rd_out];", "'.unknown'"),
        ("ld.global.v4.f64 {%d0, %d1, %d2, %d3}, [%rd_out];", "needs .target sm_100"),
        ("ld.shared.v8.b32 {%v, %v, %v, %v, %v, %v, %v, %v}, [%v];", "32 bytes"),
        ("ld.global.v2.u32 %v, [%rd_out];", "needs 2 elements and has 1"),
        ("ld.global.u32 %v, [tile];", "'tile' is not in .global memory"),
        ("ld.shared.u32 %v, [g];", "'g' is not in shared memory"),
        ("ld.const.u32 %v, [g];", "'g' is not in .const memory"),
        ("st.const.u32 [%rd_out], %v;", "a store to .const memory"),
        ("ld.global.L2::cache_hint.u32 %v, [%rd_out];", "cache policy"),
        ("ld.global.u32 %v, [%rd_out], %rd_out;", "cache policy"),
        ("ld.global.u32 %v;", "with 1 operands is not supported (it takes 2 to 3)"),
        ("mov.u32 %v, %nothing;", "%nothing is neither declared nor a special register"),
        ("mov.u32 %v, %pm0;", "%pm0 is neither declared nor a special register"),
        ("mov.u32 %v, %envreg7;", "%envreg7 is neither"),
        ("mov.u32 %v, nothing;", "'nothing' is used but not declared"),
        ("mov.u32 %undeclared, 1;", "'%undeclared' is not a register"),
        ("mov.f32 %f, 3;", "integer constant 3 cannot be read as .f32"),
        ("mov.u32 %v, 1.5;", "a constant of type .f64 cannot be read as .u32"),
        ("mov.pred %p, %v;", "cannot be read as .pred"),
        ("mov.f32 %f, %d0;", "cannot be read as .f32"),
        ("mov.u64 %rd_out, external;", "variable external is defined in another file"),
        ("tex.2d.v4.f32.f32 {%f, %f, %f, %f}, [g, {%f, %f}];", "instruction 'tex' is not supported"),
        ("isspacep.tex %p, %rd_out;", "'.tex' of 'isspacep.tex'"),
    ],
)
def test_refused_by_name(body, part):
    message = refusal(
        body,
        registers=".reg .b32 %v; .reg .f32 %f; .reg .f64 %d<4>; .reg .pred %p; .shared .b8 tile[4];",
        declarations=".global .u32 g; .extern .global .u32 external;",
    )
    assert part in message
    assert "PTX line" in message
