"""How a block goes through a sequence: in chunks, whose tokens are handled together, or token by token.

Both compute the same.  Chunks suit training and reading a prompt, the recurrence suits writing."""

from enum import Enum

from nn.names import check_name

THRESHOLD = 64      # tokens up to which the recurrence is chosen


class KernelMode(str, Enum):
    """Members are strings: `KernelMode.CHUNK == "chunk"`."""

    CHUNK = "chunk"
    RECURRENT = "recurrent"


def select_mode(seq_len: int, *, mode: str | None = None, threshold: int = THRESHOLD) -> KernelMode:
    """The mode asked for; without one RECURRENT up to `threshold` tokens, else CHUNK.
    InputError for another name."""
    check_mode(mode)
    if mode is not None:
        return KernelMode(mode)
    return KernelMode.RECURRENT if seq_len <= threshold else KernelMode.CHUNK


def check_mode(mode: str | None) -> None:
    """InputError, with the nearest name, for one that is none; also where both modes are one computation."""
    if mode is not None:
        check_name("mode", mode, [member.value for member in KernelMode])
