"""What the device path raises."""


class DeviceError(RuntimeError):
    """A call of the kernel library failed; the message says which one, and why."""


class DeviceArgumentError(DeviceError, ValueError):
    """An argument is wrong; the message names it and its value."""


class UnsupportedError(DeviceError):
    """Right, but not on this device, or not in this kernel."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The device has not enough memory left."""


class NoDeviceError(DeviceError):
    """No library, no driver or no device; the message says how to get one."""
