"""Devices by name: a GPU, or the emulated one, which runs the same library on the CPU.

    device = open_device("auto")          # the GPU, or None: the CPU
    model.to(device)"""

import logging
import os
from functools import cache
from typing import Any

from nn.errors import InputError
from nn.names import check_name

DEVICES = ("auto", "cpu", "cuda", "emulated")
log = logging.getLogger("nn.backends")
OPTIONS: dict[str, dict[str, Any]] = {"cuda": {}, "emulated": {}}      # with which each is first opened


def open_device(name: str) -> Any:
    """The device of that name, the same object every time; None for "cpu", and for "auto" without a GPU
    (unless NN_BACKEND names a device).
    InputError says what is missing and how to get it."""
    check_name("device", name, DEVICES)
    wanted = os.environ.get("NN_BACKEND")
    if name == "auto" and wanted in ("cuda", "emulated"):
        name = wanted
    if name == "cpu":
        return None
    if name == "auto" and (reason := missing("cuda")):
        if fault("cuda"):
            log.warning("the GPU is not used: %s", reason)
        return None
    name = "cuda" if name == "auto" else name
    if reason := missing(name):
        raise InputError(f"device: {name}: {reason}")
    from cuda.nn.device import device

    return device(name, **OPTIONS[name])


def missing(name: str) -> str | None:
    """Why a device cannot be used here and how that is changed; None if it can."""
    return None if (error := _error(name)) is None else str(error)


def fault(name: str) -> bool:
    """Whether it fails for another reason than that there is no device, or no library for it."""
    from cuda.nn.errors import NoDeviceError

    return not isinstance(_error(name), NoDeviceError | None)


@cache
def _error(name: str) -> Exception | None:
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
        return error.with_traceback(None)            # it is kept, and its frames are not
    return None
