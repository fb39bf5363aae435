"""Module: what layers and models have in common.  Parameter: a tensor that the optimizer owns.

A module is any object whose attributes are parameters, modules, or lists of modules; their names are the
paths to them, in the order of definition."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nn.dtypes import DType, Shape
from nn.errors import InputError
from nn.random import generator
from nn.tape import state
from nn.tensor import Array, Tensor

if TYPE_CHECKING:
    from typing import Self


class Parameter(Tensor):
    """Normal(0, std), a constant, or what `draw(generator, shape)` gives, allocated when its values are first
    asked for: a 6.9B model can be described, counted and loaded into without ever being drawn."""

    __slots__ = ("_array", "_dtype", "_shape", "borrows_grad", "decay", "device", "draw", "fill", "key",
                 "std")

    def __init__(self, shape: Shape, *, std: float = 0.0, fill: float = 0.0, dtype: Any = "float32",
                 decay: bool = True, draw: Callable[[np.random.Generator, Shape], Any] | None = None) -> None:
        self._array: Array | None = None
        self._shape, self._dtype = tuple(shape), DType.of(dtype).numpy
        self.std, self.fill, self.draw = std, fill, draw
        self.key = (0, "parameter")        # (seed, name) of its random numbers; Module.initialize sets it
        self.decay = decay                 # whether weight decay applies to it
        self.device: Any = None            # whose memory holds the values; None = the host's
        self.borrows_grad = False          # its gradient may be an array that others see: nobody changes it
        self.grad = None
        self.requires_grad, self.op, self.slot = True, None, 0

    @property
    def data(self) -> Array:
        if self._array is None:
            values = np.full(self._shape, self.fill, np.float32)
            if self.draw:
                values = np.broadcast_to(self.draw(generator(*self.key), self._shape), self._shape)
            elif self.std:
                values += generator(*self.key).standard_normal(self._shape, np.float32) * np.float32(self.std)
            self.load(values.astype(self._dtype, order="C"))
        return self._array

    @data.setter
    def data(self, array: Array) -> None:
        if tuple(array.shape) != self._shape:
            raise ValueError(f"parameter: shape {list(array.shape)} given, {list(self._shape)} expected")
        self._array, self._dtype = array, array.dtype

    value = data                           # the name Flax's users know

    def load(self, values: np.ndarray) -> None:
        """Take over values from the host, to where the parameter is."""
        self.data = self.device.asarray(values) if self.device else values

    def to(self, device: Any) -> None:
        """Move to a device's memory, or to the host's (None).  The gradient is dropped."""
        values = self.numpy() if self.allocated else None
        self.device, self.grad, self.borrows_grad = device, None, False
        if values is not None:
            self.load(values)

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def dtype(self) -> Any:
        return self._dtype

    @property
    def allocated(self) -> bool:
        return self._array is not None


class Module:
    """Base of layers and models: `forward` computes, calling the module runs it."""

    training = True
    name = ""                              # its attribute name in the module that holds it

    def __call__(self, *args: Any, **options: Any) -> Any:
        if state.path is None:
            return self.forward(*args, **options)
        state.path.append(self.name or type(self).__name__)
        try:
            return self.forward(*args, **options)
        finally:
            state.path.pop()

    def forward(self, *args: Any, **options: Any) -> Any:
        raise TypeError(f"{type(self).__name__} defines no forward")

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Module):
            value.name = name
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, Module):
                    item.name = f"{name}.{i}"
        elif isinstance(value, tuple | dict):
            items = value.values() if isinstance(value, dict) else value
            if any(isinstance(item, Module | Parameter) for item in items):
                raise TypeError(f"{type(self).__name__}.{name}: a {type(value).__name__} would hide "
                                "its parameters; keep them in a list")
        super().__setattr__(name, value)

    def _children(self) -> Iterator[tuple[str, "Module | Parameter"]]:
        for name, value in vars(self).items():
            if isinstance(value, Module | Parameter):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value)
                            if isinstance(item, Module | Parameter))

    def modules(self) -> Iterator["Module"]:
        """This module and every module below it."""
        yield self
        for _, child in self._children():
            if isinstance(child, Module):
                yield from child.modules()

    def named_parameters(self) -> dict[str, Parameter]:
        """{"layers.0.mlp.router.weight": parameter, ...}; a shared one stands once, under its first name."""
        found: dict[int, tuple[str, Parameter]] = {}
        for name, parameter in self._all_parameters(""):
            found.setdefault(id(parameter), (name, parameter))
        return dict(found.values())

    def _all_parameters(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        for name, child in self._children():
            if isinstance(child, Module):
                yield from child._all_parameters(f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", child

    def parameters(self) -> list[Parameter]:
        return list(self.named_parameters().values())

    def num_parameters(self) -> int:
        """Counted from the shapes; allocates nothing."""
        return sum(p.size for p in self.parameters())

    def initialize(self, seed: int) -> "Module":
        """Give every parameter its own random stream, derived from the seed and its name."""
        for name, parameter in self.named_parameters().items():
            parameter.key = (seed, f"parameter/{name}")
        return self

    def to(self, device: Any) -> "Self":
        """Keep every parameter in the memory of a device (nn.backends.open_device), or of the host (None)."""
        for parameter in self.parameters():
            parameter.to(device)
        return self

    @property
    def device(self) -> Any:
        """Where the parameters are; None on the host."""
        return next((parameter.device for parameter in self.parameters()), None)

    def train(self, on: bool = True) -> "Module":
        """Training mode: router noise and whatever else is random is on.  eval() turns it off."""
        for module in self.modules():
            module.training = on
        return self

    def eval(self) -> "Module":
        return self.train(False)

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """{name: values}: the arrays themselves where they are on the host, copies of a device's."""
        return {name: parameter.numpy() for name, parameter in self.named_parameters().items()}

    def load_state_dict(self, values: dict[str, np.ndarray]) -> None:
        """Replace every parameter's values, cast to its dtype.  InputError names what is missing, unexpected
        or mis-shaped, before anything is replaced."""
        parameters = self.named_parameters()
        problems = [f"{name}: missing" for name in parameters if name not in values]
        problems += [f"{name}: unexpected" for name in values if name not in parameters]
        problems += [f"{name}: shape {list(values[name].shape)}, expected {list(p.shape)}"
                     for name, p in parameters.items()
                     if name in values and tuple(values[name].shape) != p.shape]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise InputError(f"weights do not fit the model: {'; '.join(problems[:3])}{more}")
        for name, parameter in parameters.items():
            parameter.load(np.array(values[name], dtype=parameter.dtype))
