"""Ordinary programs give NumPy's answers in every mode; the checker is silent about them under every
schedule, and finds every error planted in them on its line."""

from pathlib import Path

import numpy as np
import pytest

from cuda.nn import emulator
from tests.emulator.corpus import PROGRAMS, SOURCES
from tests.emulator.faults import FAULTS
from tests.emulator.variants import Variants, compile_variants

SCHEDULES = ({"schedule": "forward"}, {"schedule": "reverse"}, {"schedule": "random", "seed": 7})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variants]:
    """Modules by program, filled as tests ask for them."""
    return {}


def variants(name: str, compiled: dict[str, Variants], folder: Path) -> Variants:
    """The program and all its faults, compiled once."""
    if name not in compiled:
        program = PROGRAMS[name]
        planted = [fault.plant(program.source) for fault in FAULTS if fault.program == name]
        compiled[name] = compile_variants(program, [program.source, *planted], folder)
    return compiled[name]


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_is_right_in_fast_mode(name: str) -> None:
    module = emulator.compile(SOURCES / PROGRAMS[name].file, arch=PROGRAMS[name].arch, mode="fast")
    for computed, expected in PROGRAMS[name].run(module.launch):
        np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_checker_is_silent_about_a_correct_program(name: str, compiled: dict, tmp_path: Path) -> None:
    program = variants(name, compiled, tmp_path)
    for schedule in SCHEDULES:
        program.module.clear()
        for computed, expected in PROGRAMS[name].run(program.launch(0, **schedule)):
            np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=1e-5)
        assert program.module.reports == [], schedule


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_fault_is_found_on_its_line(fault, compiled: dict, tmp_path: Path) -> None:
    program = variants(fault.program, compiled, tmp_path)
    number = [other for other in FAULTS if other.program == fault.program].index(fault) + 1
    program.module.clear()
    pairs = list(PROGRAMS[fault.program].run(program.launch(number)))
    if "numbers" in fault.kind and not all(np.allclose(*pair, rtol=1e-5, atol=1e-5) for pair in pairs):
        return
    found = program.module.reports
    named = [report for report in found if report.kind in fault.kind.split("|")]
    assert named, f"expected {fault.kind}, found {found}"
    places = program.lines(number, "|".join(filter(None, (fault.at, fault.other))))
    assert any(report.line in places for report in named), f"expected line {sorted(places)}, found {named}"
    if fault.other:
        sides = (program.lines(number, fault.at), program.lines(number, fault.other))
        pairs_of_lines = [(report.line, report.other_line) for report in named]
        assert any(
            (one in sides[0] and two in sides[1]) or (one in sides[1] and two in sides[0])
            for one, two in pairs_of_lines
        ), f"expected {sides}, found {pairs_of_lines}"


def test_dynamic_parallelism_is_refused_by_name(tmp_path: Path) -> None:
    source = tmp_path / "parent.cu"
    source.write_text("__global__ void child(int* x) { *x = 1; }\n"
                      "__global__ void parent(int* x) { child<<<1, 1>>>(x); }\n")
    with pytest.raises(emulator.EmulatorError, match=r"parent\.cu:2: .*dynamic parallelism"):
        emulator.compile(source, flags=["-rdc=true"])
