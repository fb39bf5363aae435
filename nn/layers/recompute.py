"""Running layers one behind the other, each remembered in full or recomputed in backward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nn import ops
from nn.layers import auxiliary
from nn.layers.module import Module
from nn.layers.residual import Residual
from nn.tape import defer
from nn.tape import state as tape
from nn.tensor import Tensor


def run_layers(layers: Sequence[Any], stream: Any, states: Sequence[Any] | None = None, *,
               recompute: bool = False, **options: Any) -> Any:
    """The stream behind all layers, each called with its state and the options; states may be written into.

    recompute: keep only each layer's input and run the layer again in backward; not where a state is given
    or nothing is recorded."""
    recompute = recompute and states is None and tape.recording
    for i, layer in enumerate(layers):
        if recompute:
            stream = checkpointed(layer, stream, options)
        else:
            stream, _ = layer(stream, state=None if states is None else states[i], **options)
    return stream


def checkpointed(layer: Module, stream: Any, options: dict[str, Any]) -> Any:
    """The layer, recomputed in backward; what it emits is emitted once, its losses keep their gradients.
    stream: a tensor, or a Residual, of which one array is kept, not two."""
    emitted, first = auxiliary.Auxiliary(), True
    then, pending = _switches(layer), isinstance(stream, Residual)
    given = {name: value for name, value in options.items() if isinstance(value, Tensor)}

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        nonlocal emitted, first
        more = options | dict(zip(given, tensors, strict=True))
        with defer() if first else _switched(then), auxiliary.collect() as emitted:
            y, _ = layer(Residual(x) if pending else x, state=None, **more)
        first = False
        return (y.total() if pending else y, *(loss for _, loss in emitted.losses))

    y, *losses = ops.checkpoint(run, stream.total() if pending else stream, *given.values())
    for (name, _), loss in zip(emitted.losses, losses, strict=True):
        auxiliary.emit_loss(name, loss)
    for name, value in emitted.figures:
        auxiliary.emit_figure(name, value)
    return Residual(y) if pending else y


def _switches(layer: Module) -> list[tuple[Module, dict[str, Any]]]:
    """The modules of a layer, each with its mode, where it draws random numbers, and a copy of what it has
    counted: the second run counts into that, and it is forgotten."""
    found = []
    for module in layer.modules():
        own = {name: getattr(module, name) for name in ("training", "noise") if hasattr(module, name)}
        if hasattr(module, "counts"):
            own["counts"] = None if module.counts is None else module.counts.copy()
        found.append((module, own))
    return found


@contextmanager
def _switched(switches: list[tuple[Module, dict[str, Any]]]) -> Iterator[None]:
    """Modules with the switches they had then, which may have moved on before backward."""
    now = [(module, {name: getattr(module, name) for name in then}) for module, then in switches]
    try:
        _set(switches)
        yield
    finally:
        _set(now)


def _set(switches: list[tuple[Module, dict[str, Any]]]) -> None:
    for module, attributes in switches:
        vars(module).update(attributes)
