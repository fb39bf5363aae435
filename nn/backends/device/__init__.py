"""The kernel library as a backend: protocol functions on DeviceArrays, on a GPU and on the emulated device."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    globals().update({k: v for k, v in vars(importlib.import_module(f"{__name__}.{_module.name}")).items() if not k.startswith("_")})
