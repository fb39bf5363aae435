"""Products with packed weights on a device: unpacked by the host for every call, then array operations.  They
are made for the CPU; a device gets the same results, slowly."""

from nn.backends.reference.packed import packed_experts, packed_linear, packed_swiglu

__all__ = ["packed_experts", "packed_linear", "packed_swiglu"]
