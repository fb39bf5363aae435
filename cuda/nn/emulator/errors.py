"""What can go wrong by a user's doing.  The message names the thing, the line of the .cu file, and the way
out."""


class EmulatorError(ValueError):
    """The input is at fault: a file, an argument, a kernel that nvcc or the translator refuses.

    `details`: lines of another program (nvcc, ptxas, g++), kept as it wrote them; shown after the message."""

    def __init__(self, message: str, details: str = "") -> None:
        self.message, self.details = message, details.rstrip()
        super().__init__(f"{message}\n{self.details}" if self.details else message)


class LaunchError(EmulatorError):
    """A kernel stopped on a fault.  `code` is the cudaError that a GPU's runtime would give."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
