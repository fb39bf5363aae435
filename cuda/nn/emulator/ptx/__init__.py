"""Reading PTX: text -> tokens (tokens.py) -> dataclasses (parser.py, syntax.py).  Knows no instruction:
translate/ does."""

from cuda.nn.emulator.ptx.parser import parse
from cuda.nn.emulator.ptx.tokens import PtxError

__all__ = ["parse", "PtxError"]
