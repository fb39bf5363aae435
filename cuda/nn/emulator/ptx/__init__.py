"""Reading PTX: text -> tokens (tokens.py) -> dataclasses (parser.py, syntax.py).  Knows no instruction:
translate/ does."""

from .parser import parse
from .tokens import PtxError

__all__ = ["parse", "PtxError"]
