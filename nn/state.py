"""What a block keeps of the tokens it has seen: a few arrays with the batch as their first axis.

    @dataclass
    class RecurrentState(State):
        s: Array                    # [B,H,Dk,Dv]
        offset: int = 0             # tokens seen

A state that was passed in is given up: the block may write into it, and the one that comes back goes on.  Who
needs it twice (speculative decoding, a shared prompt) takes copy() first.  States hold arrays, not tensors:
gradients end where a state begins."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from nn.backends.array_api import beside, namespace
from nn.errors import InputError

Array = Any
S = TypeVar("S", bound="State")


class State:
    """Base of states.  A dataclass whose fields are arrays [B,...], numbers common to all rows, None, states,
    or lists of states needs nothing but its fields; any other kind writes the four methods itself."""

    def reorder(self, rows: Array) -> None:
        """Row b becomes what row rows[b] was (beam search); rows may be more or fewer than there were."""
        for name, value in self._fields():
            if isinstance(value, State):
                value.reorder(rows)
            elif isinstance(value, list):
                for part in _states(value):
                    part.reorder(rows)
            elif _is_array(value):
                index = beside(rows, value)
                setattr(self, name, namespace(value).take(value, index, axis=0))

    def copy(self: S) -> S:
        """A state that goes its own way."""
        twin = object.__new__(type(self))
        for name, value in vars(self).items():
            setattr(twin, name, _copied(value))
        return twin

    def state_dict(self) -> dict[str, np.ndarray]:
        """{name: values}, numbers as arrays without axes: what a file of arrays can hold."""
        found: dict[str, np.ndarray] = {}
        for name, value in self._fields():
            for key, part in _parts(name, value):
                found |= {f"{key}.{inner}": array for inner, array in part.state_dict().items()}
            if _is_array(value) or isinstance(value, int | float):
                found[name] = np.array(value.numpy() if hasattr(value, "numpy") else value)
        return found

    def load_state_dict(self, values: dict[str, np.ndarray]) -> None:
        """Continue where another state was: this one, fresh from init_state(), takes over its values.
        InputError names a value that has no place here, or one that is missing."""
        used, missing = set[str](), list[str]()
        for name, value in self._fields():
            for key, part in _parts(name, value):
                inner = {k[len(key) + 1 :]: v for k, v in values.items() if k.startswith(f"{key}.")}
                part.load_state_dict(inner)
                used |= {f"{key}.{k}" for k in inner}
            if name in values:
                setattr(self, name, _loaded(values[name], value))
                used.add(name)
            elif _is_array(value) or isinstance(value, int | float):
                missing.append(name)
        if extra := sorted(values.keys() - used):
            raise InputError(f"state: {type(self).__name__} has no place for {', '.join(extra[:3])}")
        if missing:
            raise InputError(f"state: {type(self).__name__} is given no {', '.join(missing)}")

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        parts = [part for name, value in self._fields() for _, part in _parts(name, value)]
        return (sum(part.nbytes for part in parts)
                + sum(int(value.nbytes) for _, value in self._fields() if _is_array(value)))

    def _fields(self) -> Iterator[tuple[str, Any]]:
        for field in dataclasses.fields(self):                  # type: ignore[arg-type]
            yield field.name, getattr(self, field.name)


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array_namespace__") and value.ndim > 0


def _states(values: list[Any]) -> Iterator[State]:
    return (value for value in values if isinstance(value, State))


def _parts(name: str, value: Any) -> Iterator[tuple[str, State]]:
    """The states within a field, with the names of their values."""
    if isinstance(value, State):
        yield name, value
    elif isinstance(value, list):
        yield from ((f"{name}.{i}", part) for i, part in enumerate(value) if isinstance(part, State))


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [_copied(item) for item in value]
    copy: Callable[[], Any] | None = getattr(value, "copy", None)
    return copy() if copy and (isinstance(value, State) or _is_array(value)) else value


def _loaded(values: np.ndarray, before: Any) -> Any:
    """As what the field held: a number, or an array where that was."""
    if isinstance(before, int | float):
        return type(before)(values)
    return np.array(values) if before is None or not _is_array(before) else beside(np.array(values), before)
