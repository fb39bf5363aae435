"""The tables of docs/4-emulator.md name what there is."""

import re

from cuda.nn.emulator import KINDS
from tests.docs.pages import rows


def test_table_of_findings_names_every_kind() -> None:
    cells = [cell for cell, *_ in rows("4-emulator.md", "kinds")]
    assert sorted(word for cell in cells for word in re.findall(r"[a-z_]+", cell)) == sorted(KINDS)
