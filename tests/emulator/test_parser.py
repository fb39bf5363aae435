"""PTX text -> dataclasses: what is understood, where each token stands, and that broken text gives one clear
line."""

import struct

import pytest

from cuda.nn.emulator.ptx import PtxError, parse
from cuda.nn.emulator.ptx.syntax import (
    Address,
    Declaration,
    Group,
    Immediate,
    Instruction,
    LabelDefinition,
    Location,
    Name,
    Negated,
    Pair,
    Prototype,
    Scope,
    Sink,
    SymbolOffset,
    TargetList,
    Vector,
)
from cuda.nn.emulator.ptx.tokens import tokenize

HEADER = ".version 9.0\n.target sm_90a, debug\n.address_size 64\n"


def body(text, parameters=""):
    """The statements of one entry."""
    module = parse(f"{HEADER}.visible .entry k({parameters})\n{{\n{text}\n}}\n")
    return module.functions[0].body.statements


def one(text):
    (statement,) = body(text)
    return statement


def operand(text):
    return one(f"mov.b32 %r1, {text};").operands[1]


# ---- tokens ------------------------------------------------------------------------------------------------


def test_tokens_know_their_line_and_column():
    tokens = tokenize("// first\nadd.s32 %r1,\t/* a\n b */ %r2 ;\n  @!%p1 bra $L__1;\n")
    assert [(t.text, t.line, t.column) for t in tokens] == [
        ("add.s32", 2, 1),
        ("%r1", 2, 9),
        (",", 2, 12),
        ("%r2", 3, 7),
        (";", 3, 11),
        ("@", 4, 3),
        ("!", 4, 4),
        ("%p1", 4, 5),
        ("bra", 4, 9),
        ("$L__1", 4, 13),
        (";", 4, 18),
        ("end of the text", 4, 20),
    ]


def test_comment_marks_in_strings_and_strings_in_comments():
    tokens = tokenize('.file 1 "a//b/*c.cu" // "unclosed\n.pragma "x\\"y";')
    assert [t.text for t in tokens if t.kind == "string"] == ['"a//b/*c.cu"', '"x\\"y"']


def test_names_take_their_dots_along_and_directives_stand_alone():
    texts = [
        t.text
        for t in tokenize(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes %tid.x .reg.b32 .shared::cta"
        )
    ]
    assert texts[:-1] == [
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes",
        "%tid.x",
        ".reg",
        ".b32",
        ".shared::cta",
    ]


# ---- operands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%r2", Name("%r2")),
        ("%tid.x", Name("%tid", "x")),
        ("_", Sink()),
        ("-1", Immediate(-1)),
        ("0x1F", Immediate(31)),
        ("017", Immediate(15)),
        ("0b101", Immediate(5)),
        ("12U", Immediate(12, unsigned=True)),
        ("WARP_SZ", Immediate(32)),
        ("0f3F800000", Immediate(0x3F800000, "f32")),
        ("-0f3F800000", Immediate(0xBF800000, "f32")),
        ("0dBFF0000000000000", Immediate(0xBFF0000000000000, "f64")),
        ("1.5e3", Immediate(struct.unpack("<Q", struct.pack("<d", 1500.0))[0], "f64")),
        ("sym+4", SymbolOffset("sym", 4)),
        ("sym-4", SymbolOffset("sym", -4)),
        ("{%h1, _}", Vector((Name("%h1"), Sink()))),
        ("!%p3", Negated(Name("%p3"))),
        ("-%r4", Negated(Name("%r4"), minus=True)),
        ("%r1|%p1", Pair(Name("%r1"), Name("%p1"))),
        ("[%rd1]", Address(Name("%rd1"))),
        ("[%rd1+16]", Address(Name("%rd1"), 16)),
        ("[%rd1+-16]", Address(Name("%rd1"), -16)),
        ("[%rd1-16]", Address(Name("%rd1"), -16)),
        ("[sym+(3*4)]", Address(Name("sym"), 12)),
        ("[64]", Address(Immediate(64))),
        ("[%rd1, {%r1, 5}]", Address(Name("%rd1"), 0, (Vector((Name("%r1"), Immediate(5))),))),
    ],
)
def test_operand(text, expected):
    assert operand(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+2*3", 7),
        ("(1+2)*3", 9),
        ("1<<4|3", 19),
        ("~0", -1),
        ("-7/2", -3),
        ("-7 % 2", -1),
        ("3>2 ? 7 : 9", 7),
        ("2==3 ? 7 : 9", 9),
        ("(!5)", 0),
        ("0xFF & ~0xF", 0xF0),
        ("6 ^ 3", 5),
        ("1 && 0 || 1", 1),
        ("(.u64)-1", (1 << 64) - 1),
        ("(.s64)5", 5),
        ("- -3", 3),
        ("7 >> 1", 3),
        ("0x8000000000000000", 1 << 63),
        ("2 <= 2", 1),
        ("3 != 3", 0),
    ],
)
def test_constant_expressions_are_those_of_c(text, value):
    assert operand(text).value == value


# ---- statements --------------------------------------------------------------------------------------------


def test_instruction_with_guard():
    assert one("@!%p1 ld.global.v2.f32 {%f1, %f2}, [%rd1+8];") == Instruction(
        "ld",
        ("global", "v2", "f32"),
        (Vector((Name("%f1"), Name("%f2"))), Address(Name("%rd1"), 8)),
        6,
        "%p1",
        True,
    )
    assert one("ret;").operands == ()
    assert one("add .u32 %r1, %r2, %r3;").modifiers == ("u32",)
    assert one("cp.async.cg.shared.global [%r1], [%rd1], 16;").spelling == "cp.async.cg.shared.global"


def test_scopes_labels_and_lists_of_targets():
    label, scope, targets = body("L_1: { .reg .b32 t; L_1: bra L_1; } list: .branchtargets L_1, L_2;")
    assert label == LabelDefinition("L_1", 6)
    assert isinstance(scope, Scope)
    assert [type(s) for s in scope.statements] == [Declaration, LabelDefinition, Instruction]
    assert targets == TargetList("list", "branchtargets", ("L_1", "L_2"), 6)


def test_brace_of_a_vector_is_no_scope():
    (move,) = body("mov.b64\n{%r1,\n%r2}, %rd1;")
    assert move.operands[0] == Vector((Name("%r1"), Name("%r2")))
    assert move.line == 6


def test_calls():
    direct = one("call.uni (ret), f, (a, b);")
    assert direct.operands == (Group((Name("ret"),)), Name("f"), Group((Name("a"), Name("b"))))
    assert one("call f;").operands == (Group(()), Name("f"), Group(()))
    assert one("call f, (3);").operands == (Group(()), Name("f"), Group((Immediate(3),)))
    indirect = one("call (r), %rd1, (a), proto;")
    assert indirect.operands[3] == Name("proto")
    assert one("call %rd1, proto;").operands == (Group(()), Name("%rd1"), Group(()), Name("proto"))


def test_prototype():
    (prototype,) = body("p: .callprototype (.param .align 8 .b8 _[16]) _ (.param .b64 _, .param .f32 _);")
    assert isinstance(prototype, Prototype)
    assert [(d.type, d.count, d.alignment) for d in prototype.results] == [("b8", 16, 8)]
    assert [d.type for d in prototype.parameters] == ["b64", "f32"]


def test_locations():
    statements = body(
        ".loc 1 22 0\n.loc 2 107 3, function_name $L__info_string0, inlined_at 1 26 30\n"
        ".loc 3 1 2, function_name $L__s + 12, inlined_at 2 107 3\nret;"
    )
    assert statements[:3] == [
        Location(1, 22, 0),
        Location(2, 107, 3, (1, 26, 30)),
        Location(3, 1, 2, (2, 107, 3)),
    ]


def test_declarations_in_a_function():
    found = body(
        ".reg .b32 %r<5>;\n.reg .pred p, q;\n.reg .v4 .f32 v;\n.local .align 16 .b8 depot[32];\n.param .b64 "
        "a;\n"
        ".extern .shared .align 128 .b8 dyn[];\n.shared .f32 tile[4][8];"
    )
    assert [(d.space, d.type, d.name, d.range, d.vector, d.count, d.alignment) for d in found] == [
        ("reg", "b32", "%r", 5, 1, 1, 0),
        ("reg", "pred", "p", 0, 1, 1, 0),
        ("reg", "pred", "q", 0, 1, 1, 0),
        ("reg", "f32", "v", 0, 4, 1, 0),
        ("local", "b8", "depot", 0, 1, 32, 16),
        ("param", "b64", "a", 0, 1, 1, 0),
        ("shared", "b8", "dyn", 0, 1, None, 128),
        ("shared", "f32", "tile", 0, 1, 32, 0),
    ]
    assert found[6].linkage == "extern"


# ---- modules -----------------------------------------------------------------------------------------------


def test_module():
    module = parse(
        HEADER
        + """
.file 1 "a \\"b\\".cu", 123, 456
.file 2 "/x/c.h"
.extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);
.func (.param .b32 r) f(.param .b32 a);
.visible .const .align 4 .b8 table[8] = {1, 2, 3};
.weak .global .attribute(.managed) .u32 counter = 7;
.visible .entry k(.param .u64 .ptr .global .align 16 p, .param .align 8 .b8 s[24])
.maxntid 128, 2, 1
.minnctapersm 2
.reqnctapercluster 2, 1, 1
.explicitcluster
.pragma "nounroll";
{ ret; }
.func (.param .b32 r) .noreturn f(.param .b32 a) { trap; }
.alias g, f;
.section .debug_str { $L__s: .b8 1, 2 { } .b64 $L__s }
""".replace("(.param .b32 r) .noreturn f", ".noreturn (.param .b32 r) f")
    )
    assert (module.version, module.target) == ((9, 0), "sm_90a")
    assert module.files == {1: 'a "b".cu', 2: "/x/c.h"}
    assert [(f.name, f.is_entry, f.body is not None) for f in module.functions] == [
        ("vprintf", False, False),
        ("f", False, True),
        ("k", True, True),
    ]
    kernel = module.functions[2]
    assert kernel.directives == {
        "maxntid": (128, 2, 1),
        "minnctapersm": (2,),
        "reqnctapercluster": (2, 1, 1),
        "explicitcluster": (),
    }
    assert [(p.name, p.type, p.count, p.alignment) for p in kernel.parameters] == [
        ("p", "u64", 1, 0),
        ("s", "b8", 24, 8),
    ]
    table, counter = module.variables
    assert (table.linkage, table.count, table.initializer) == (
        "visible",
        8,
        (Immediate(1), Immediate(2), Immediate(3)),
    )
    assert (counter.linkage, counter.attributes, counter.initializer) == (
        "weak",
        ("managed",),
        (Immediate(7),),
    )
    assert module.aliases == {"g": "f"}


@pytest.mark.parametrize(
    ("declaration", "values"),
    [
        (".global .u32 a[] = {1,2,3};", [1, 2, 3]),
        (".global .u32 a[2][2] = {{1},{3,4}};", [1, 0, 3, 4]),
        (".global .v2 .u32 a[2] = {{1,2},{3}};", [1, 2, 3, 0]),
        (".global .u32 a = 1+2*3;", [7]),
    ],
)
def test_initialisers(declaration, values):
    (variable,) = parse(HEADER + declaration).variables
    assert [value.value for value in variable.initializer] == values


def test_addresses_in_initialisers():
    first, second, third, fourth = (
        parse(HEADER + ".global .u64 a[4] = {g, g+4, generic(g), 0xFF00(g)};").variables[0].initializer
    )
    assert (first, second) == (Name("g"), SymbolOffset("g", 4))
    assert (third, fourth) == (SymbolOffset("g", generic=True), SymbolOffset("g", mask=0xFF00))


def test_text_may_end_in_zeros_as_in_a_fatbin():
    assert parse(HEADER + ".global .u32 a;\n\0\0\0").variables[0].name == "a"


# ---- broken text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a PTX module"),
        ("hello", "line 1, column 1: expected a directive of a PTX module, found 'hello'"),
        (
            HEADER + ".visible .entry k() {\n add.s32 %r1, %r2\n ret;\n}",
            "line 6, column 2: expected ',' or ';', found 'ret'",
        ),
        (
            HEADER + ".entry k() {\n ret;\n",
            "line 5, column 7: expected an instruction, found 'end of the text'",
        ),
        (
            HEADER + ".entry k() {\n ld.global.u32 %r1, [%rd1;\n}",
            "line 5, column 26: expected ']', found ';'",
        ),
        (HEADER + ".entry k() {\n mov.u32 %r1, ;\n}", "line 5, column 15: expected an operand, found ';'"),
        (HEADER + ".entry k() {\n mov.u32 %r1, 1/0;\n}", "divides by zero"),
        (HEADER + ".entry k() {\n mov.u32 %r1, (1+;\n}", "expected a constant, found ';'"),
        (HEADER + ".entry k() {\n .frob 3;\n}", "unknown directive '.frob'"),
        (HEADER + ".entry k() .frob 3 { ret; }", "unknown directive '.frob'"),
        (HEADER + ".entry k() { ret; }\n.entry k() { ret; }", "line 5: function k is defined twice"),
        (HEADER + ".global .u33 a;", "unknown type or attribute '.u33'"),
        (HEADER + ".global .u32 a[2] = {1,2,3};", "a has 2 elements, its initialiser 3"),
        (HEADER + ".global .align 3 .u32 a;", "3 is not a power of two"),
        (HEADER + ".global a;", "a declaration without a type"),
        (HEADER + '.file 1 "a', "a string is opened and not closed"),
        (HEADER + "/* ...", "a comment is opened with /* and never closed"),
        (HEADER + "\n  `", "line 5, column 3: unexpected character '`'"),
        (HEADER + "\n.entry k() { \x80 }", "unexpected character"),
        (".version 9.0\n.target sm_80\n.address_size 32", "line 3, column 15: only .address_size 64"),
        (".version nine", "expected a version"),
    ],
)
def test_broken_text_names_the_place(text, message):
    with pytest.raises(PtxError) as error:
        parse(text)
    assert message in str(error.value)


def test_every_prefix_of_a_module_is_an_error_or_a_module():
    """No prefix crashes the parser: a cut file gives a PtxError or, at a boundary, a smaller module."""
    text = (
        HEADER
        + '.file 1 "a.cu"\n.global .u32 g[2] = {1, 2};\n.entry k(.param .u64 p)\n.maxntid 3\n{\n'
        ".reg .b32 %r<3>;\n"
        ".loc 1 2 3\n@%p1 add.s32 %r1, %r2, -1;\n{ mov.b64 {%r1, _}, %rd1; }\nL: bra L;\ncall (r), f, "
        "(a);\nret;\n}\n"
    )
    for end in range(len(text)):
        try:
            parse(text[:end])
        except PtxError as broken:
            message = str(broken)
            assert "\n" not in message
