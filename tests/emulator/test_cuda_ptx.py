"""Every spelling of cuda::ptx (CCCL's headers, which come with nvcc) in the asynchronous families has a row,
or is refused on purpose."""

import re

import pytest

from cuda.nn.emulator import toolchain
from cuda.nn.emulator.errors import EmulatorError
from cuda.nn.emulator.translate.table import Unsupported, find

FAMILIES = (
    "cp_async*.h",
    "cp_reduce*.h",
    "fence*.h",
    "getctarank.h",
    "mbarrier*.h",
    "red_async.h",
    "st_async.h",
    "st_bulk.h",
    "tensormap*.h",
    "multimem*.h",
)
# Not for sm_70 to sm_90a, or not emulated; each is refused by the name of its modifier or instruction.
REFUSED = re.compile(r"multimem\.|st\.bulk|cta_group::|tile::(gather|scatter)4")


def _spellings() -> list[str]:
    """`cp.async.bulk.commit_group` and so on, out of the asm statements, whose strings are joined."""
    try:
        folder = toolchain.cuda_include() / "cccl" / "cuda" / "__ptx" / "instructions" / "generated"
    except EmulatorError:
        return []
    found = set()
    for pattern in FAMILIES:
        for header in folder.glob(pattern):
            for statement in re.findall(r"asm(?: volatile)?\s*\((.*?)\n\s*:", header.read_text(), re.DOTALL):
                text = "".join(re.findall(r'"([^"]*)"', statement))
                found |= set(
                    re.findall(
                        r"(?<![\w.%])((?:cp|fence|getctarank|mbarrier|red|st|tensormap|multimem)\.[\w:.]+)",
                        text,
                    )
                )
    return sorted(found)


def test_every_spelling_has_a_row_or_a_reason() -> None:
    spellings = _spellings()
    if not spellings:
        pytest.skip("CCCL's headers are not installed")
    assert len(spellings) > 300
    wrong = []
    for spelling in spellings:
        opcode, *modifiers = spelling.split(".")
        try:
            find(opcode, modifiers)
            accepted = True
        except Unsupported:
            accepted = False
        if accepted == bool(REFUSED.search(spelling)):
            wrong.append(spelling)
    assert not wrong, wrong
