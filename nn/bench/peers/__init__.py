"""Other libraries at the same work, measured where they are installed: each module is loaded by a worker, in
a process of its own, and by nothing else.  The programs are plain and written for speed, as their users would
write them."""

import importlib
from typing import Any

from nn.errors import InputError


def library(name: str) -> Any:
    """The module of another library; InputError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name}: not installed ({error}); pip install it, or leave its rows out") from None
