"""Optimizers and schedules by name, as a configuration file gives them.

    create_optimizer("adamw", model.named_parameters(), lr=1e-3)
    create_schedule("cosine", lr=1e-3, steps=1000, warmup=50)(0)      # 2e-05: the rate of the first update"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from nn.errors import InputError
from nn.names import by_name, hint
from nn.optim.adamw import AdamW
from nn.optim.device_adamw import DeviceAdamW
from nn.optim.device_muon import DeviceMuon
from nn.optim.muon import Muon
from nn.optim.schedules import SCHEDULES

OPTIMIZERS: dict[str, Callable[..., AdamW]] = {"adamw": AdamW, "muon": Muon}


def create_optimizer(name: str, named_parameters: Mapping[str, Any], **settings: Any) -> AdamW:
    """The named optimizer over `named_parameters`; the settings are its own keyword arguments."""
    make = by_name("optimizer", name, OPTIMIZERS)
    _check_settings(name, make, settings)
    return make(named_parameters, **settings)


def create_device_optimizer(name: str, named_parameters: Mapping[str, Any], **settings: Any) -> Any:
    """As create_optimizer, for parameters on a device; `max_norm` clips the gradients."""
    make = by_name("optimizer", name, {"adamw": DeviceAdamW, "muon": DeviceMuon})
    _check_settings(name, make, settings)
    return make(named_parameters, **settings)


def create_schedule(name: str, *, lr: float, **settings: Any) -> Callable[[int], float]:
    """step → learning rate, where step counts the updates already made and `lr` is the peak.  Settings that
    the named schedule has no use for (a constant rate has no floor) are left out: one configuration can
    switch between them."""
    multiplier = by_name("schedule", name, SCHEDULES)
    known = {name for make in SCHEDULES.values() for name in inspect.signature(make).parameters} - {"step"}
    for key in settings.keys() - known:
        raise InputError(f"schedule: unknown setting {key!r}{hint(key, known)}")
    accepted = inspect.signature(multiplier).parameters
    rule = functools.partial(multiplier, **{key: value for key, value in settings.items() if key in accepted})
    rule(0)                              # a bad setting is reported here, not in the first step
    return lambda step: lr * rule(step)


def _check_settings(name: str, make: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    known = list(inspect.signature(make).parameters)[1:]
    for key in settings.keys() - set(known):
        raise InputError(f"{name}: unknown setting {key!r}{hint(key, known)}")
