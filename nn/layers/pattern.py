"""Which block stands in which layer.

    "full_attention"               the same everywhere
    "MMMA"                         by letters (registry.LETTERS), repeated to the number of layers
    ["mamba", "full_attention"]    by name (or letters), repeated
    every_n_global(4, ...)         every fourth layer is another kind (Qwen3-Next)
    from_layer(8, ...)             another kind from some layer on (Qwen's max_window_layers)"""

from collections.abc import Iterable, Mapping, Sequence

from nn.errors import InputError
from nn.names import hint

NONE = "none"      # no block of this role in the layer


def expand(what: str, pattern: str | Sequence[str], num_layers: int, known: Iterable[str],
           letters: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """One known name per layer.  InputError, which begins with `what`, names an unknown block or letter,
    and refuses an empty pattern or one longer than the layers."""
    names = _names(what, pattern, known, letters or {})
    if not names or len(names) > num_layers:
        raise InputError(f"{what}: a pattern of {len(names)} layers does not fit {num_layers} layers; "
                         f"give 1 to {num_layers}")
    return tuple(names[i % len(names)] for i in range(num_layers))


def shortest(names: Sequence[str]) -> tuple[str, ...]:
    """The pattern that, repeated, gives these names."""
    lengths = (n for n in range(1, len(names)) if all(a == b for a, b in zip(names, names[n:], strict=False)))
    return tuple(names[:next(lengths, len(names))])


def _names(what: str, pattern: str | Sequence[str], known: Iterable[str],
           letters: Mapping[str, str]) -> list[str]:
    known, names = list(known), []
    for part in [pattern] if isinstance(pattern, str) else pattern:
        if part in known:
            names.append(part)
        elif part and set(part) <= letters.keys():
            names += [letters[letter] for letter in part]
        else:
            spelt = f" nor made of the letters {''.join(letters)}" if letters else ""
            raise InputError(f"{what}: {part!r} is not known{spelt}{hint(part, known)}")
    return names


def every_n_global(n: int, num_layers: int, local: str, global_: str) -> tuple[str, ...]:
    """Layer i is `global_` if (i + 1) mod n = 0, else `local`."""
    if n < 1:
        raise InputError(f"every_n_global: n = {n} is not positive")
    return tuple(global_ if (i + 1) % n == 0 else local for i in range(num_layers))


def from_layer(first: int, num_layers: int, before: str, after: str) -> tuple[str, ...]:
    """Layer i is `after` if i ≥ first, else `before`."""
    return tuple(after if i >= first else before for i in range(num_layers))
