"""Devices by name: a GPU, or the emulated one, which runs the same library on the CPU.

    device = open_device("auto")          # the GPU, or None: the CPU
    model.to(device)"""

import os
from functools import cache
from typing import Any

from nn.errors import InputError
from nn.names import check_name

DEVICES = ("auto", "cpu", "cuda", "emulated")
OPTIONS: dict[str, dict[str, Any]] = {"cuda": {}, "emulated": {}}      # with which each is first opened


def open_device(name: str) -> Any:
    """The device of that name, the same object every time; None for "cpu", and for "auto" without a GPU
    (unless NN_BACKEND names a device).
    InputError says what is missing and how to get it."""
    check_name("device", name, DEVICES)
    wanted = os.environ.get("NN_BACKEND")
    if name == "auto" and wanted in ("cuda", "emulated"):
        name = wanted
    if name == "cpu" or (name == "auto" and missing("cuda")):
        return None
    name = "cuda" if name == "auto" else name
    if reason := missing(name):
        raise InputError(f"device: {name}: {reason}")
    from cuda.nn.device import device

    return device(name, **OPTIONS[name])


@cache
def missing(name: str) -> str | None:
    """Why a device cannot be used here and how that is changed; None if it can."""
    from cuda.nn.emulator.errors import EmulatorError
    from cuda.nn.errors import DeviceError

    try:
        if name == "cuda":
            from cuda.nn.device import device

            device(name)
        else:
            from cuda.nn.emulator import toolchain

            toolchain.nvcc()
            toolchain.host_compiler()
    except (DeviceError, EmulatorError, OSError) as error:
        return str(error)
    return None
