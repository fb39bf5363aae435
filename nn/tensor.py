"""Tensor: an array, its gradient, and the tape that links the operations between them.

An operation (`Op`) is a class with a `forward` on arrays and a hand-written `backward`; the tape only chains
the backwards, newest first.  Saved arrays are freed as soon as their backward has run.

    x = Tensor([1.0, 2.0], requires_grad=True);  (x * x).sum().backward();  x.grad      # [2., 4.]
"""

from typing import Any

import numpy as np

from nn.arithmetic import total
from nn.backends.array_api import namespace
from nn.dtypes import Shape, accumulated, is_floating, narrow
from nn.operators import Operators
from nn.tape import check_finite, check_floating, check_shapes, enable_grad, find_nonfinite, no_grad, state

__all__ = ["Op", "Tensor", "enable_grad", "find_nonfinite", "no_grad"]

Array = Any      # whatever the backend's array module makes: numpy.ndarray, DeviceArray, ...


class Tensor(Operators):
    """An n-dimensional array that remembers how it was made: `data` is an array of the backend's module,
    `grad` an array of the same shape or None."""

    __slots__ = ("data", "grad", "requires_grad", "op", "slot")
    __array_ufunc__ = None            # numpy_array * tensor asks the tensor; np.exp(tensor) is refused

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        data = data.data if isinstance(data, Tensor) else data
        is_array = hasattr(data, "__array_namespace__") and not isinstance(data, np.generic)
        self.data: Array = data if is_array else np.asarray(data)
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.op: Op | None = None     # the operation this is a result of; None for a leaf
        self.slot = 0                 # which of its results
        if requires_grad and not is_floating(self.data):
            raise TypeError(f"requires_grad: {self.dtype} has no gradient; make it a floating-point array")

    @property
    def shape(self) -> Shape:
        return tuple(self.data.shape)

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array (no copy on the CPU)."""
        return self.data if isinstance(self.data, np.ndarray) else self.data.numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def item(self) -> float:
        if self.size != 1:
            raise ValueError(f"item: needs a tensor of one element, this one has shape {list(self.shape)}")
        return float(self.numpy().reshape(()))

    def detach(self) -> "Tensor":
        """The same array, cut off from the tape."""
        return Tensor(self.data)

    def __repr__(self) -> str:
        made = f", op={self.op.name}" if self.op else ""
        return f"Tensor(shape={list(self.shape)}, dtype={self.dtype}{made})"

    def backward(self, gradient: Array | None = None) -> None:
        """Add d(self)/d(leaf) to every leaf's `grad`; one element needs no `gradient` (of the same shape)."""
        if not self.requires_grad:
            raise RuntimeError("backward: nothing here requires a gradient "
                               "(made under no_grad, or from constants)")
        shape, gradient = list(self.shape), None if gradient is None else Tensor(gradient).data
        if gradient is None:
            if self.size != 1:
                raise ValueError(f"backward: shape {shape} is not one element; pass gradient= of that shape")
            gradient = namespace(self.data).ones_like(self.data)
        elif tuple(gradient.shape) != self.shape:
            raise ValueError(f"backward: gradient has shape {list(gradient.shape)}, the tensor {shape}")
        if self.op is None:
            self.grad = accumulated(self, gradient)
        else:
            run_backward(self.op, {self.slot: gradient})


class Op:
    """One application of an operation.  A subclass writes

    forward(*arrays, **options) -> array or tuple of arrays, keeping on `self` what its backward needs, and
    backward(*gradients) -> one gradient (or None) per positional input; `gradients` has one entry per result,
    None where it was not used.  `self.needs[i]` says whether input i's gradient is wanted."""

    edges: "list[Tensor | tuple[Op, int] | None] | None" = None    # None: not recorded, or already freed
    needs: tuple[bool, ...] = ()
    dtypes: tuple[Any, ...] = ()                                   # of the results and of their gradients
    shapes: tuple[Shape, ...] = ()                                 # of the inputs and of their gradients
    where = ""                                                     # layer path, inside find_nonfinite() only
    integers = False                                               # whether it also works on integers
    new_gradients = False                                          # what backward returns is nobody else's

    @property
    def name(self) -> str:
        return type(self).__name__

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Any:
        """Run forward on the inputs' arrays; record the operation if any input requires a gradient.
        Inputs are tensors, arrays or Python numbers; only tensors get gradients."""
        op, given = cls(), [x.data if isinstance(x, Tensor) else x for x in inputs]
        if not cls.integers:
            check_floating(op.name, given)
        op.needs = tuple(state.recording and isinstance(x, Tensor) and x.requires_grad for x in inputs)
        results = op.forward(*given, **options)
        arrays = results if isinstance(results, tuple) else (results,)
        if state.path is not None:
            op.where = ".".join(state.path)
            check_finite(op.name, op.where, "result", arrays, [list(np.shape(x)) for x in inputs])
        if state.count is not None:
            state.count.add(op, given, arrays, options)
        outputs = tuple(Tensor(array) for array in arrays)
        if any(op.needs):
            op.dtypes = tuple(array.dtype for array in arrays)
            op.shapes = tuple(tuple(getattr(x, "shape", ())) for x in inputs)
            op.edges = [((x.op, x.slot) if x.op else x) if need else None
                        for x, need in zip(inputs, op.needs, strict=True)]
            for slot, output in enumerate(outputs):
                output.requires_grad, output.op, output.slot = True, op, slot
        return outputs if isinstance(results, tuple) else outputs[0]

    def forward(self, *arrays: Any, **options: Any) -> Any:
        raise TypeError(f"{self.name} defines no forward")

    def backward(self, *gradients: Any) -> Any:
        raise TypeError(f"{self.name} defines no backward: its result cannot be differentiated")

    def flops(self, inputs: list[Any], results: tuple[Any, ...], options: dict[str, Any]) -> int:
        """Multiply-adds of the forward, 2 each; 0 for what is no product, convolution or scan."""
        return 0

    def release(self) -> None:
        """Forget everything saved, edges included: the arrays are free, and a second backward is refused."""
        vars(self).clear()


def run_backward(root: Op, gradients: dict[int, Array]) -> None:
    """Chain the backwards of all that `root` was computed from; `gradients`: {root's result slot: array}."""
    pending: dict[Op, dict[int, Array]] = {root: gradients}
    for op in _newest_first(root):
        incoming = pending.pop(op, None)
        if incoming:                                    # else: all its gradients were None
            for edge, grad in _gradients(op, incoming):
                if isinstance(edge, Tensor):
                    edge.grad = accumulated(edge, grad, new=op.new_gradients)
                else:
                    slots = pending.setdefault(edge[0], {})
                    slots[edge[1]] = total(slots[edge[1]], grad) if edge[1] in slots else grad
        op.release()


def _gradients(op: Op, incoming: dict[int, Array]) -> "list[tuple[Tensor | tuple[Op, int], Array]]":
    """op.backward, checked: the recorded edges, each with its gradient."""
    arrived = (narrow(incoming[i], dtype) if i in incoming else None for i, dtype in enumerate(op.dtypes))
    grads = op.backward(*arrived)
    grads = grads if isinstance(grads, tuple) else (grads,)
    if state.path is not None:
        check_finite(op.name, op.where, "gradient", grads, [list(np.shape(g)) for g in incoming.values()])
    check_shapes(op.name, op.edges or [], grads, op.shapes)
    pairs = zip(op.edges or (), grads, strict=True)
    return [(edge, grad) for edge, grad in pairs if edge is not None and grad is not None]


def _newest_first(root: Op) -> list[Op]:
    """Every recorded operation that root depends on, each before those it was computed from."""
    order: list[Op] = []
    seen: set[Op] = set()
    stack: list[tuple[Op, bool]] = [(root, False)]
    while stack:
        op, expanded = stack.pop()
        if expanded:
            order.append(op)
        elif op not in seen:
            if op.edges is None:
                raise RuntimeError(f"backward: what {op.name} saved is already freed, because backward "
                                   "ran through it once; run the forward pass again")
            seen.add(op)
            stack.append((op, True))
            stack.extend((edge[0], False) for edge in op.edges if isinstance(edge, tuple))
    return order[::-1]
