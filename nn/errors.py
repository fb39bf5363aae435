"""The errors a user is meant to read."""


class InputError(ValueError):
    """The user's input is at fault.  The message, one line, names the argument, its value and the way out."""


class NonFiniteError(ArithmeticError):
    """A NaN or an infinity appeared; the message names the operation that produced it first."""
