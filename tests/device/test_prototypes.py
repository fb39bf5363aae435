"""The bindings know what csrc/include/nn.h declares, and the library exports just that."""

import ctypes
import json
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cuda.nn import build
from cuda.nn.dtypes import CODES
from cuda.nn.emulator import toolchain
from cuda.nn.library import ABI_VERSION, Library
from cuda.nn.prototypes import prototypes, structures

INCLUDE = build.source_folder() / "include"
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
INCLUDED = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
FUNCTION = re.compile(r"\bNN_API\s+([\w\s]+?[\s*]+)(\w+)\s*\(([^)]*)\)\s*;")
STRUCT = re.compile(r"typedef\s+struct\s+(\w+)\s*\{([^}]*)\}\s*(\w+)\s*;")
ENUM = re.compile(r"typedef\s+enum\s+(\w+)\s*\{([^}]*)\}")
HANDLE = re.compile(r"typedef\s+void\s*\*\s*(\w+)\s*;")
CONSTANT = re.compile(r"#\s*define\s+(\w+)\s+(\d+)\s*$", re.MULTILINE)
LENGTH = re.compile(r"\[(\w+)\]")
DECLARED = re.compile(r"^(?P<type>[\w\s]+?[\s*]+)(?P<name>\w+)(?P<lengths>(?:\[\w+\])*)$")
WORDS = {"int32_t": "i32", "int64_t": "i64", "uint64_t": "u64", "float": "f32", "double": "f64"}
FIELDS: dict[str, Any] = {
    "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float, "double": ctypes.c_double, "char": ctypes.c_char,
}


@dataclass(frozen=True)
class Header:
    """What nn.h and the headers that it includes declare, without comments."""

    text: str

    @property
    def constants(self) -> dict[str, str]:
        return dict(CONSTANT.findall(self.text))

    @property
    def handles(self) -> set[str]:
        return set(HANDLE.findall(self.text))

    @property
    def functions(self) -> dict[str, str]:
        """As cuda.nn.prototypes writes them."""
        found = {}
        for result, name, arguments in FUNCTION.findall(self.text):
            assert name not in found, f"{name} is declared twice"
            words = [self._word(a.strip()) for a in arguments.split(",") if a.strip() not in ("", "void")]
            found[name] = " ".join([*words, *self._result(result)])
        return found

    def _word(self, argument: str) -> str:
        kind, name, lengths = self._split(argument)
        return f"{name}*" if "*" in kind or lengths or kind in self.handles else f"{name}:{WORDS[kind]}"

    def _result(self, text: str) -> list[str]:
        kind = self._plain(text)
        return [] if kind == "int" else ["->", "text" if kind == "char*" else WORDS[kind]]

    @property
    def structures(self) -> dict[str, list[tuple[str, Any]]]:
        found: dict[str, list[tuple[str, Any]]] = {}
        for name, body, again in STRUCT.findall(self.text):
            assert name == again
            found[name] = [field for line in body.split(";") if line.strip() for field in self._fields(line)]
        return found

    def _fields(self, line: str) -> list[tuple[str, Any]]:
        first, *more = line.split(",")
        kind, name, lengths = self._split(first.strip())
        names = [(name, lengths), *((n.strip(" *").partition("[")[0], LENGTH.findall(n)) for n in more)]
        return [(name, self._ctype(kind, lengths)) for name, lengths in names]

    def _ctype(self, kind: str, lengths: list[str]) -> Any:
        pointer = "*" in kind or kind in self.handles
        found = ctypes.c_void_p if pointer else FIELDS[kind] if kind in FIELDS else structures()[kind]
        for length in reversed(lengths):
            found = found * int(self.constants.get(length, length))
        return found

    def _split(self, declared: str) -> tuple[str, str, list[str]]:
        found = DECLARED.match(" ".join(declared.split()))
        assert found, f"not understood: {declared}"
        return self._plain(found["type"]), found["name"], LENGTH.findall(found["lengths"])

    @staticmethod
    def _plain(kind: str) -> str:
        return kind.replace("const", "").replace("struct ", "").replace(" ", "").replace("\n", "")

    def enumeration(self, name: str) -> dict[str, int]:
        body = dict(ENUM.findall(self.text))[name]
        return {key: int(value) for key, value in re.findall(r"(\w+)\s*=\s*(\d+)", body)}


@cache
def header() -> Header:
    files = [INCLUDE / "nn.h", *sorted((INCLUDE / "nn").glob("*.h"))]
    return Header("\n".join(COMMENT.sub("", path.read_text()) for path in files))


@cache
def library() -> Path:
    return build.emulated_library()


def is_complete(path: Path) -> bool:
    """Whether it was built with every family."""
    options = path.parent / "options.json"
    return not options.is_file() or not json.loads(options.read_text())["only"]


def exported(path: Path) -> set[str]:
    done = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines()}


def test_every_header_is_included_by_nn_h() -> None:
    here = {f"nn/{path.name}" for path in (INCLUDE / "nn").glob("*.h")}
    assert set(INCLUDED.findall((INCLUDE / "nn.h").read_text())) == here


def test_every_function_has_a_prototype_and_the_other_way_round() -> None:
    assert header().functions.keys() == prototypes().keys()


@pytest.mark.parametrize("name", sorted(prototypes()))
def test_the_prototype_says_what_the_header_declares(name: str) -> None:
    assert prototypes()[name] == header().functions[name]


def test_every_struct_is_known() -> None:
    assert header().structures.keys() == structures().keys()


@pytest.mark.parametrize("name", sorted(structures()))
def test_a_structure_has_the_fields_of_the_struct(name: str) -> None:
    assert [(field[0], field[1]) for field in structures()[name]._fields_] == header().structures[name]


def test_a_struct_that_a_function_takes_begins_with_its_size() -> None:
    for name in set(re.findall(r"\b(nn_\w+)\s*\*\s*\w+[,)]", header().text)) & structures().keys():
        assert structures()[name]._fields_[0] == ("size", ctypes.c_int64), name


def test_a_function_that_queues_work_takes_its_stream_last() -> None:
    for name, text in prototypes().items():
        if "stream*" in text.split() and not name.startswith(("nn_stream_", "nn_event_", "nn_graph_")):
            assert text.split()[-1] == "stream*", f"{name}({text})"


def test_versions_agree() -> None:
    assert int(header().constants["NN_ABI_VERSION"]) == ABI_VERSION == Library(library()).nn_abi_version()


def test_types_have_the_codes_of_the_header() -> None:
    named = {f"NN_{dtype.name.upper()}": code for dtype, code in CODES.items()}
    assert named == header().enumeration("nn_dtype")


@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_header_is_c_and_cpp(language: str, tmp_path: Path) -> None:
    source = tmp_path / "use"
    source.write_text('#include "nn.h"\n')
    flags = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-I", str(INCLUDE)]
    command = [*toolchain.host_compiler().split(), "-x", language, *flags, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [build.LIBRARY, build.EMULATED])
def test_the_library_exports_the_declared_functions_and_nothing_else(name: str) -> None:
    path = library().parent / name
    if not path.is_file():
        path = library()
    declared = set(header().functions)
    assert exported(path) <= declared
    if is_complete(path):
        assert exported(path) == declared
