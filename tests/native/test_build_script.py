"""csrc/native/build.py on sources of a few lines: links in the way, a build that was killed, and that a build
after a build compiles nothing.

`pybind11` is a package of two headers here, found by PYTHONPATH as pip's build environment is."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "csrc" / "native" / "build.py"
HEADERS = Path(sysconfig.get_path("include"), "Python.h")
pytestmark = pytest.mark.skipif(
    not HEADERS.is_file() or not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="no C++ compiler, or none of Python's headers")
SOURCES = {
    "core/sum.h": "int sum(int a, int b);\n",
    "core/sum.cpp": '#include "core/sum.h"\nint sum(int a, int b) { return a + b; }\n',
    "kernels/kernel.h": '#include "core/sum.h"\n',
    "kernels/twice.cpp": '#include "kernels/kernel.h"\nint twice(int a) { return sum(a, a); }\n',
    "module/module.cpp": '#include <Python.h>\n#include <pybind11/pybind11.h>\n',
}
PYBIND11 = {
    "__init__.py": "__version__ = '1.2'\ndef get_include():\n    return __path__[0] + '/..'\n",
    "pybind11.h": '#include "detail/common.h"\n',
    "detail/common.h": "#pragma once\n",
}
MODULE = Path("nn", "backends", "native", "nn_native" + sysconfig.get_config_var("EXT_SUFFIX"))
OBJECTS = Path("build", f"native-{sysconfig.get_config_var('SOABI')}")
KILLED = """
import os, runpy, shutil, signal, sys
shutil.copystat = lambda *of, **how: os.kill(os.getpid(), signal.SIGKILL)        # the first file is copied
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CROSS_COMPILER = """#!/bin/sh
# says that it is another, and compiles what it can
for one do
    shift
    case $one in -dumpmachine) echo aarch64-linux-gnu; exit;; -march=*) ;; *) set -- "$@" "$one";; esac
done
exec "$REAL" "$@"
"""


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """far/away/project: the build script and its sources; environment/: pybind11"""
    folder = written(tmp_path / "far" / "away" / "project" / "csrc" / "native", SOURCES).parents[1]
    shutil.copy(SCRIPT, folder / "csrc" / "native")
    written(tmp_path / "environment" / "pybind11", PYBIND11)
    return folder


def run(project: Path, *arguments: str, how: tuple[str, ...] = (), environment: str = "environment",
        **variables: str) -> subprocess.CompletedProcess[str]:
    """The script of a project, by the path given, with a pybind11 beside `far`"""
    found = next(path / environment for path in project.parents if (path / environment).is_dir())
    script = str(project / "csrc" / "native" / "build.py")
    command = [sys.executable, *how, script, "--levels", "generic", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(found)} | variables, cwd=found,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                          timeout=300)


def built(project: Path, *arguments: str, environment: str = "environment") -> bool:
    """Whether there was something to do"""
    done = run(project, *arguments, environment=environment)
    assert done.returncode == 0, done.stdout
    return "no work to do" not in done.stdout


def times(project: Path) -> dict[str, int]:
    """When each of what was built was written"""
    files = [path for path in (project / OBJECTS / "objects").rglob("*") if path.is_file()]
    return {str(path.relative_to(project)): path.stat().st_mtime_ns for path in [*files, project / MODULE]}


def the_project(project: Path, place: Path) -> Path:
    (place / "link").symlink_to(project)
    return place / "link"


def a_folder_above(project: Path, place: Path) -> Path:
    (place / "link").symlink_to(project.parent)
    return place / "link" / project.name


def moved_to(project: Path, name: str, place: Path) -> Path:
    """Its folder `name` is a link to a deeper place"""
    deep = place / "deep" / "and" / "deeper" / "and" / "deeper"
    deep.mkdir(parents=True)
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    if (project / name).exists():
        shutil.move(project / name, deep / "it")
    else:
        (deep / "it").mkdir()
    (project / name).symlink_to(deep / "it")
    return project


def build(project: Path, place: Path) -> Path:
    return moved_to(project, "build", place)


def objects(project: Path, place: Path) -> Path:
    return moved_to(project, str(OBJECTS), place)


def package(project: Path, place: Path) -> Path:
    return moved_to(project, "nn/backends", place)


def kernels(project: Path, place: Path) -> Path:
    return moved_to(project, "csrc/native/kernels", place)


def all_of_them(project: Path, place: Path) -> Path:
    return a_folder_above(build(project, place / "1"), place)


@pytest.mark.parametrize("link", [the_project, a_folder_above, build, objects, package, kernels, all_of_them])
def test_links_in_the_way_are_followed(link: Callable[[Path, Path], Path], project: Path) -> None:
    place = project.parents[2]
    reached = link(project, place)
    assert built(reached)
    assert (project / MODULE).is_file()
    assert not built(reached)
    assert not built(project)                   # by another path, it is the same


def test_a_module_may_go_where_a_link_leads(project: Path) -> None:
    place = project.parents[2]
    (place / "modules" / "here").mkdir(parents=True)
    link = the_project(place / "modules", place)
    assert built(project, "--folder", str(link / "here"))
    assert (place / "modules" / "here" / MODULE.name).is_file()
    assert not built(project, "--folder", str(place / "modules" / "here"))


def test_a_build_after_a_build_compiles_nothing(project: Path) -> None:
    assert built(project)
    before = times(project)
    assert {Path(name).stem for name in before} >= {"sum", "twice", "module"}
    assert not built(project)
    assert times(project) == before


def test_a_project_that_was_moved_is_still_built(project: Path) -> None:
    assert built(project)
    before, elsewhere = times(project), project.parents[2] / "elsewhere"
    project.rename(elsewhere)
    assert not built(elsewhere)
    assert times(elsewhere) == before


def test_headers_of_another_environment_compile_nothing(project: Path) -> None:
    """pip builds in an environment whose path is another each time, and whose headers are as new"""
    assert built(project)
    written(project.parents[2] / "another" / "pybind11", PYBIND11)
    shutil.rmtree(project.parents[2] / "environment")
    assert not built(project, environment="another")


def test_another_version_of_the_headers_compiles_the_module(project: Path) -> None:
    assert built(project)
    files = PYBIND11 | {"__init__.py": PYBIND11["__init__.py"].replace("1.2", "1.3")}
    written(project.parents[2] / "another" / "pybind11", files)
    before = times(project)
    assert built(project, environment="another")
    changed = {Path(name).stem for name, time in times(project).items() if before.get(name) != time}
    assert "module" in changed
    assert not changed & {"sum", "twice", "precompiled.h"}


def test_headers_whose_copying_was_killed_are_copied_anew(project: Path) -> None:
    killed = run(project, how=("-c", KILLED))
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert 0 < len(list((project / OBJECTS).rglob("pybind11/**/*.*"))) < len(PYBIND11)
    assert built(project)
    copy = project / OBJECTS / "pybind11-1.2" / "pybind11"
    for name, text in PYBIND11.items():
        assert (copy / name).read_text() == text, name


def test_a_cross_compiler_gets_the_levels_of_its_machine(project: Path) -> None:
    compiler = project / "aarch64-linux-gnu-g++"
    compiler.write_text(CROSS_COMPILER)
    compiler.chmod(0o755)
    real = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    written(project / "csrc" / "native", {"tests/main.cpp": "int main() {}\n"})
    done = run(project, "--tests", "--folder", str(project / "there"), "--levels", "neon_bf16",
               CXX=str(compiler), REAL=real)
    assert done.returncode == 0, done.stdout
    rules = (project / "there" / "build.ninja").read_text()
    assert "-march=armv8.2-a+bf16+i8mm+dotprod -DNN_LEVEL=neon_bf16" in rules
    assert (project / "there" / "objects" / "neon_bf16" / "kernels" / "twice.o").is_file()


def test_a_level_of_no_machine_is_refused(project: Path) -> None:
    done = run(project, "--levels", "avx1024")
    assert done.returncode == 1
    assert "cuda-nn: avx1024 is not a level of" in done.stdout
    assert "which has generic" in done.stdout
