"""The selective scan on the device, by what its arrays can do themselves."""

from nn.backends.reference.scan import selective_scan, selective_scan_backward

__all__ = ["selective_scan", "selective_scan_backward"]
