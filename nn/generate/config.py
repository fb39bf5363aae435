"""What decides how the next token is chosen and when a text ends.  A field's comment is its help text.

Try: python -c "from nn.generate import SamplingConfig; SamplingConfig(top_p=2)" """

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from nn.errors import InputError


@dataclass(frozen=True)
class SamplingConfig:
    """Checked when built: a value outside its range is an InputError naming field, value and range."""

    temperature: float = 0.8  # divides the logits: below 1 safer, above 1 wilder; 0 takes the likeliest token
    top_k: int = 0  # draw only from the k likeliest tokens; 0 is off
    top_p: float = 1.0  # draw only from the fewest tokens that hold this share of the probability; 1 is off
    min_p: float = 0.0  # draw only from tokens at least this fraction as likely as the likeliest; 0 is off
    repetition_penalty: float = 1.0  # above 1 makes tokens that already occurred less likely; 1 is off
    max_tokens: int = 256  # tokens to generate at most
    seed: int = 0  # the same seed gives the same text
    eos_ids: tuple[int, ...] | None = None  # token ids that end the text; null takes the tokenizer's
    stop: tuple[str, ...] = ()  # strings that end the text; they are cut from it

    def __post_init__(self) -> None:
        for name in ("eos_ids", "stop"):
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))
        for name, (kind, allowed, words) in _ALLOWED.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not allowed(value):
                raise InputError(f"{name}: {value!r} is not {words}")


def _as_tuple(value: Any) -> Any:
    """Lists (from YAML) become tuples, a lone string or id a tuple of one; the rest is left to the check."""
    if isinstance(value, (str, int)):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


# field: its type, what is allowed, and how an error says that
_ALLOWED: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "temperature": (Real, lambda x: 0 <= x <= 100, "a number from 0 to 100"),
    "top_k": (Integral, lambda x: x >= 0, "an integer >= 0"),
    "top_p": (Real, lambda x: 0 < x <= 1, "a number > 0 and <= 1 (temperature 0 takes the likeliest token)"),
    "min_p": (Real, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "repetition_penalty": (Real, lambda x: 0.01 <= x <= 100, "a number from 0.01 to 100"),
    "max_tokens": (Integral, lambda x: x >= 1, "an integer >= 1"),
    "seed": (Integral, lambda x: 0 <= x < 2**64, "an integer from 0 to 2**64 - 1"),
    "eos_ids": (tuple | None, lambda x: all(isinstance(i, Integral) and int(i) >= 0 for i in x or ()),
                "null or a list of token ids >= 0"),
    "stop": (tuple, lambda x: all(isinstance(s, str) and s for s in x), "a list of non-empty strings"),
}
