"""A model with packed weights, made of one without: the large matrices of attention, feed-forward, experts
and head are packed, everything else is shared with the model it was made of: which must not change any more,
or is packed again when it has.

Queries, keys and values become one product, gate and up another.  Layers that are not known here keep their
weights as they are, as do rows that a quantized format has no blocks for."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.layers.attention.cross import CrossAttention
from nn.layers.attention.grouped import GroupedAttention
from nn.layers.feed_forward import FeedForward
from nn.layers.linear import Linear
from nn.layers.module import Module, Parameter
from nn.layers.moe.experts import Experts
from nn.layers.packed.layers import PackedExperts, PackedFeedForward, PackedLinear
from nn.packed.layout import BLOCK, Format
from nn.packed.weight import PackedWeight

Parts = list[Parameter]                                       # one above the other
Make = Callable[[str, Parts, bool], PackedWeight]             # (name, parts, gated)


def packed(model: Any, form: Format | str, make: Make | None = None, *, share: bool = True) -> Any:
    """Another model of that format; `make` gives the weights, by default packed from the model's own.

    share: what is not packed is the model's own parameters, and changes with them while what is packed does
    not; else others of their shapes, to be loaded."""
    form = Format.of(form)
    if model.device is not None:
        raise InputError("pack: the model is on a device, packed weights are the CPU's; model.to(None) first")
    build = _Build(form, make or (lambda name, parts, gated: from_parts(parts, form, gated)), share)
    twin = build.twin(model, "")
    if (twin.lm_head is None or type(twin.lm_head) is Linear) and build.fits(twin._head()):
        twin.packed_head = PackedLinear(build.weight("head", [twin._head()]),
                                        twin.lm_head.bias if twin.lm_head else None)
        twin.packed_head.name = "packed_head"
        twin.__dict__["lm_head"] = None
    twin.packed_format = form
    return twin.eval()


def from_parts(parts: Parts, form: Format, gated: bool) -> PackedWeight:
    """Packed from the parameters' values; those that nothing had drawn yet are forgotten again."""
    drawn = [part.allocated for part in parts]
    values = [part.data for part in parts]
    weight = values[0] if len(parts) == 1 else np.concatenate(values)
    result = PackedWeight.pack(weight, form, gated=gated)
    for part, before in zip(parts, drawn, strict=True):
        if not before:
            part._array = None
    return result


def shape_of(parts: Parts) -> tuple[int, ...]:
    """Of the parts one above the other"""
    if len(parts) == 1:
        return tuple(parts[0].shape)
    return (sum(part.shape[0] for part in parts), parts[0].shape[1])


def _plain(*layers: Any) -> bool:
    """Whether they are their weights and nothing more: no bias, no adapter"""
    return all(type(layer) is Linear and layer.bias is None for layer in layers)


class _Build:
    def __init__(self, form: Format, make: Make, share: bool) -> None:
        self.form, self.make, self.share = form, make, share
        self.others: dict[int, Parameter] = {}               # by the id of the model's; one for a shared one
        self.rules = {FeedForward: self._feed_forward, Experts: self._experts}

    def weight(self, name: str, parts: Parts, gated: bool = False) -> PackedWeight:
        return self.make(name, parts, gated)

    def fits(self, *weights: Any) -> bool:
        return not self.form.quantized or all(weight.shape[-1] % BLOCK == 0 for weight in weights)

    def twin(self, module: Module, path: str) -> Any:
        """A module with the same attributes, its modules twins, or packed"""
        made = object.__new__(type(module))
        for name, value in vars(module).items():
            if isinstance(value, list):
                made.__dict__[name] = [self._value(item, f"{path}{name}.{i}") for i, item in enumerate(value)]
            else:
                made.__dict__[name] = self._value(value, path + name)
        if isinstance(made, GroupedAttention) and not isinstance(made, CrossAttention):
            self._attention(made, path)
        return made

    def _value(self, value: Any, path: str) -> Any:
        if isinstance(value, Module):
            return self._child(value, path)
        if isinstance(value, Parameter) and not self.share:
            other = Parameter(value.shape, dtype=value.dtype, decay=value.decay)
            return self.others.setdefault(id(value), other)
        return value

    def _child(self, module: Module, path: str) -> Any:
        rule = self.rules.get(type(module))
        made = rule(module, path) if rule else None
        if made is None:
            made = self.twin(module, f"{path}.")
        made.__dict__["name"] = module.name
        return made

    def _attention(self, made: Any, path: str) -> None:
        three = [made.q_proj, made.k_proj, made.v_proj]
        if _plain(*three) and self.fits(three[0].weight):
            made.qkv_proj = PackedLinear(self.weight(f"{path}qkv_proj", [one.weight for one in three]))
            for name in ("q_proj", "k_proj", "v_proj"):
                made.__dict__[name] = None
        if type(made.o_proj) is Linear and self.fits(made.o_proj.weight):
            made.o_proj = PackedLinear(self.weight(f"{path}o_proj", [made.o_proj.weight]), made.o_proj.bias)

    def _feed_forward(self, ffn: Any, path: str) -> Any:
        if ffn.kind != "swiglu" or not _plain(ffn.gate_proj, ffn.up_proj, ffn.down_proj):
            return None
        if not self.fits(ffn.up_proj.weight, ffn.down_proj.weight):
            return None
        gate_up = self.weight(f"{path}.gate_up", [ffn.gate_proj.weight, ffn.up_proj.weight], True)
        return PackedFeedForward(gate_up, self.weight(f"{path}.down", [ffn.down_proj.weight]))

    def _experts(self, experts: Any, path: str) -> Any:
        if experts.kind != "swiglu" or not self.fits(experts.gate_up_proj, experts.down_proj):
            return None
        return PackedExperts(self.weight(f"{path}.gate_up", [experts.gate_up_proj], True),
                             self.weight(f"{path}.down", [experts.down_proj]))
