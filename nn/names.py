"""Names a user may misspell: the nearest known one, and tables that refuse an unknown name with it."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from nn.errors import InputError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant: the same last part, else a similar spelling, else None."""
    whole = {key: key for key in known}
    last = {key.rpartition(".")[2]: key for key in reversed(whole)}
    part = name.rpartition(".")[2]
    if part in last:
        return last[part]
    for wanted, names in ((name, whole), (part, last)):
        if close := difflib.get_close_matches(wanted, names, 1, cutoff=0.5):
            return names[close[0]]
    return None


def hint(name: str, known: Iterable[str]) -> str:
    """'; did you mean lr? (known: lr, steps)', the first half only if a known name is near."""
    known = list(known)
    near = nearest(name, known)
    return (f"; did you mean {near!r}?" if near else "") + f" (known: {', '.join(known)})"


def by_name(argument: str, name: str, table: Mapping[str, T]) -> T:
    """The table's entry; InputError refuses an unknown name and suggests the nearest known one."""
    check_name(argument, name, table)
    return table[name]


def check_name(argument: str, name: str, known: Iterable[str]) -> None:
    """InputError unless `name` is one of the known ones."""
    known = list(known)
    if name not in known:
        raise InputError(f"{argument}: {name!r} is not known{hint(name, known)}")
