"""The adapters of a model: where they go, what is trained, merging them into the weights and back."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from nn.dtypes import narrow, widen
from nn.errors import InputError
from nn.layers.formulas import projection
from nn.layers.linear import Linear
from nn.layers.lora.adapter import Adapter, LoRASettings
from nn.layers.lora.layers import EXPERT_WEIGHTS, LoRAExperts, LoRALinear
from nn.layers.module import Module, Parameter
from nn.layers.moe import Experts
from nn.names import hint, nearest


@dataclass(frozen=True)
class Adapted:
    """A weight of the model that has an adapter: [out,in], or [E,out,in] of experts."""

    adapter: Adapter
    weight: Parameter

    def num_parameters(self) -> int:
        """r (in + out), for each expert"""
        *lead, outputs, inputs = self.weight.shape
        return math.prod(lead) * self.adapter.settings.r * (inputs + outputs)

    def flops(self, tokens: int) -> int:
        """Forward operations of the adapter: of a linear layer x Aᵀ and its product with Bᵀ for every token;
        of experts B A, whatever the tokens."""
        *experts, outputs, inputs = self.weight.shape
        r = self.adapter.settings.r
        if experts:
            return projection(math.prod(experts) * outputs, (r, inputs))
        return projection(tokens, (inputs, r), (r, outputs))


class LoRA:
    """The adapters of a model.  Made, they are in it, and everything else is frozen until remove().

    seed: of A; the model's own parameters are drawn as without."""

    def __init__(self, model: Module, settings: LoRASettings | None = None, seed: int = 0) -> None:
        self.model, self.settings = model, settings or LoRASettings()
        if any(isinstance(module, LoRALinear | LoRAExperts) for module in model.modules()):
            raise InputError("model: it has adapters already; merge() and remove() those first")
        chosen = _chosen(model, self.settings.targets)
        kept = _also_trained(model, self.settings.train_also)
        made = {id(layer): self._adapted_layer(layer, weights) for layer, weights in chosen}
        self._frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
        for parameter in self._frozen:
            parameter.requires_grad = False
        _replace(model, made)
        for name, parameter in self._adapter_parameters().items():
            parameter.key = (seed, f"parameter/{name}")
            parameter.to(model.device)

    def _adapted_layer(self, layer: Module, weights: list[str]) -> Module:
        if isinstance(layer, Experts):
            return LoRAExperts(layer, weights, self.settings).train(layer.training)
        assert isinstance(layer, Linear)
        return LoRALinear(layer, self.settings).train(layer.training)

    def adapted(self) -> dict[str, Adapted]:
        """{path of the layer, or of the experts' weight: ...}, in the order of the model; a layer that stands
        in several places once, under its first path"""
        found: dict[int, tuple[str, Adapted]] = {}
        for path, module in _walk(self.model):
            for name, adapter, weight in _adapters(module):
                own = ".".join(filter(None, (path, name)))
                found.setdefault(id(adapter), (own, Adapted(adapter, weight)))
        return dict(found.values())

    def named_parameters(self) -> dict[str, Parameter]:
        """What is trained: the adapters, and what `train_also` names."""
        return {name: p for name, p in self.model.named_parameters().items() if p.requires_grad}

    def _adapter_parameters(self) -> dict[str, Parameter]:
        return {f"{path}.{part}": getattr(found.adapter, part)
                for path, found in self.adapted().items() for part in ("lora_A", "lora_B")}

    def num_parameters(self) -> int:
        """Of the adapters, without what `train_also` names."""
        return sum(found.num_parameters() for found in self.adapted().values())

    def flops(self, tokens: int) -> int:
        """Forward operations of the adapters for so many tokens, a multiply-add counted 2.  (A layer that
        reads its weight itself costs 2·r·in·out instead.)  Backward costs them twice more, and of the frozen
        weights only once: training costs about twice the forward, not three times."""
        return sum(found.flops(tokens) for found in self.adapted().values())

    def merge(self) -> None:
        """W ← W + γ B A, summed in float32 or wider and rounded once to W's type.  Until unmerge() the
        adapters stand aside: they are not among the model's parameters, and nothing can be trained."""
        self._add(merged=True)

    def unmerge(self) -> None:
        """W ← W − γ B A: back to W up to the rounding of W's type (bfloat16: keep a copy if that is too
        coarse)."""
        self._add(merged=False)

    def _add(self, merged: bool) -> None:
        for found in self.adapted().values():
            adapter, weight = found.adapter, found.weight
            if adapter.merged == merged:
                raise InputError(f"adapters: they are {'' if merged else 'not '}merged already")
            values = widen(weight.numpy())
            a, b = (widen(p.numpy()) for p in (adapter.lora_A, adapter.lora_B))
            delta = np.matmul(b, a) * values.dtype.type(adapter.settings.scaling)
            weight.load(narrow(values + delta if merged else values - delta, weight.dtype))
            adapter.merged = merged
            if not merged:                  # where the weights have been moved to meanwhile, in their mode
                adapter.to(weight.device)
                adapter.train(adapter.training)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model without its adapters, as long as they are not merged."""
        adapters = [found.adapter for found in self.adapted().values()]
        if any(adapter.merged for adapter in adapters):
            raise InputError("adapters: they are merged into the weights; unmerge() first")
        for adapter in adapters:
            adapter.enabled = False
        try:
            yield
        finally:
            for adapter in adapters:
                adapter.enabled = True

    def remove(self) -> None:
        """Take the adapters out; the weights stay as they are, merged or not, and can be trained again."""
        layers = [module for module in self.model.modules() if isinstance(module, LoRALinear | LoRAExperts)]
        _replace(self.model, {id(layer): _plain(layer) for layer in layers})
        for parameter in self._frozen:
            parameter.requires_grad = True


def _adapters(module: Module) -> list[tuple[str, Adapter, Parameter]]:
    return module.adapters() if isinstance(module, LoRALinear | LoRAExperts) else []


def _plain(layer: Module) -> Module:
    plain = object.__new__(Linear if isinstance(layer, Linear) else Experts)
    own = vars(layer).items()
    vars(plain).update({name: value for name, value in own if not isinstance(value, Adapter)})
    return plain


def _walk(module: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """(path, module) of every module below"""
    for name, child in module._children():
        if isinstance(child, Module):
            yield prefix + name, child
            yield from _walk(child, f"{prefix}{name}.")


def _chosen(model: Module, patterns: tuple[str, ...]) -> list[tuple[Module, list[str]]]:
    """(layer, names of its weights that are meant), each layer once.  InputError for a pattern without."""
    weights: dict[str, tuple[Module, str]] = {}                      # by path
    for path, module in _walk(model):
        if type(module) is Linear:
            weights[path] = (module, "weight")
        elif type(module) is Experts:
            weights |= {f"{path}.{name}": (module, name) for name in EXPERT_WEIGHTS if name in vars(module)}
    chosen: dict[int, tuple[Module, list[str]]] = {}
    for pattern in patterns:
        found = [path for path in weights if fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")]
        if not found:
            names = sorted({path.rpartition(".")[2] for path in weights})
            raise InputError(f"targets: {pattern!r} is no linear layer of this model{hint(pattern, names)}")
        for path in found:
            layer, name = weights[path]
            names = chosen.setdefault(id(layer), (layer, []))[1]
            names.extend([name] * (name not in names))
    return list(chosen.values())


def _also_trained(model: Module, patterns: tuple[str, ...]) -> set[int]:
    parameters, kept = model.named_parameters(), set[int]()
    for pattern in patterns:
        found = [p for name, p in parameters.items() if fnmatchcase(name, pattern)]
        if not found:
            near = nearest(pattern.strip("*"), parameters)
            raise InputError(f"train_also: {pattern!r} matches no parameter; the nearest is {near}")
        kept |= set(map(id, found))
    return kept


def _replace(model: Module, layers: dict[int, Module]) -> None:
    """Put other modules where those with these ids are, in every place where the model holds them."""
    for module in list(model.modules()):
        for name, value in list(vars(module).items()):
            if isinstance(value, list):
                for i, item in enumerate(value):
                    if id(item) in layers:
                        value[i] = layers[id(item)]
                        value[i].name = f"{name}.{i}"
            elif id(value) in layers:
                setattr(module, name, layers[id(value)])
