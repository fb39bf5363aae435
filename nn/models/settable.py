"""Configurations that may be changed after they were made: every change is checked as it is made; and copies
of those that may not.

    @dataclass
    class Shape(Settable):
        other_names = {"num_rows": "rows"}
        rows: int = 1
    shape = Shape(num_rows=2);  shape.rows = 3;  shape.num_rows == 3;  Shape.from_dict(shape.to_dict())"""

import dataclasses
import numbers
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args, get_type_hints

from nn.config import describe
from nn.errors import InputError
from nn.names import hint

if TYPE_CHECKING:
    from typing import Self


class _Spelling(type):
    """Constructors take fields by their other spelling, too."""

    other_names: Mapping[str, str]

    def __call__(cls, *args: Any, **given: Any) -> Any:
        for name in given:
            _check_known(cls, name)
        spelt = {cls.other_names.get(name, name): value for name, value in given.items()}
        if len(spelt) < len(given):
            raise InputError(f"{cls.__name__}: {', '.join(sorted(given))} give one setting twice")
        return super().__call__(*args, **spelt)


class Settable(metaclass=_Spelling):
    """Base of such dataclasses.  InputError for a field that is none, with the nearest, and for a value of
    another type; whole numbers are taken for real ones, and mappings for the dataclass they describe."""

    other_names: ClassVar[Mapping[str, str]] = {}       # {another spelling: the field}

    def __setattr__(self, name: str, value: Any) -> None:
        _check_known(type(self), name)
        name = self.other_names.get(name, name)
        super().__setattr__(name, _typed(f"{type(self).__name__}.{name}", value, _hints(type(self))[name]))

    def __getattr__(self, name: str) -> Any:
        if name in type(self).other_names:
            return getattr(self, self.other_names[name])
        raise AttributeError(f"{type(self).__name__} has no setting {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts of plain values."""
        return dataclasses.asdict(self)                 # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Self":
        """What to_dict gave; what is left out has its default."""
        return cls(**values)


C = TypeVar("C")


def replaced(config: C, changes: Mapping[str, Any]) -> C:
    """A copy of a frozen configuration with some fields changed.  InputError for a field that is none."""
    known = [each.name for each in dataclasses.fields(config) if each.init]     # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            raise InputError(f"{type(config).__name__}.{name}: unknown setting{hint(name, known)}")
    return dataclasses.replace(config, **changes)                               # type: ignore[type-var]


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _check_known(cls: Any, name: str) -> None:
    known = [each.name for each in dataclasses.fields(cls)]
    if name not in known and name not in cls.other_names:
        raise InputError(f"{cls.__name__}.{name}: unknown setting{hint(name, known)}")


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value as the field's type has it"""
    if value is None and type(None) in get_args(kind):
        return None
    kinds = [each for each in get_args(kind) or (kind,) if each is not type(None)]
    for each in kinds:
        if dataclasses.is_dataclass(each) and isinstance(value, Mapping):
            return each(**value)                        # type: ignore[operator]
        if each is bool and isinstance(value, bool):
            return value
        if each is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
        if each is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
            return float(value)
        if each not in (int, float, bool) and isinstance(value, each):
            return value
    raise InputError(f"{name}: expected {describe(kind)}, got {value!r}")
