"""The pages about kernels: every function that launches is on the page of families, and the numbers of
functions and of planted bugs are those of the code.            Try: pytest tests/docs"""

import re

from tests.device.calls import launching
from tests.docs.pages import one_line, read
from tests.mutants.device.test_device_mutants import EVERY

LIBRARY, FAMILIES = "3-kernels.md", "3-kernel-families.md"
DIRECTIONS = re.compile(r"_(forward|backward)(_input|_weight)?$")


def test_every_function_that_launches_is_described() -> None:
    """By its name, or by what it computes: silu, of silu_forward and silu_backward."""
    words = set(re.findall(r"\w+", read(FAMILIES).lower()))
    missing = {name for name in launching() if name not in words and DIRECTIONS.sub("", name) not in words}
    assert not missing


def test_numbers_of_functions_and_of_planted_bugs() -> None:
    page = one_line(LIBRARY)
    assert f"each of the {len(launching())} functions that launch" in page
    assert "plants over 150 bugs" in page
    assert len(EVERY) > 150


def test_no_table_of_families_has_lost_a_cell() -> None:
    tables = re.findall(r"(?:^\|.*\|\n)+", read(FAMILIES), re.MULTILINE)
    assert len(tables) > 12
    for table in tables:
        assert len({row.count("|") for row in table.splitlines()}) == 1, table
