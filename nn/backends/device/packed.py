"""Products with packed weights on a device: unpacked by the host for every call, then array operations.  Packed
weights are for the CPU; this is for the sake of completeness."""

from nn.backends.reference.packed import packed_experts, packed_linear, packed_swiglu

__all__ = ["packed_experts", "packed_linear", "packed_swiglu"]
