"""Weights packed once, for inference: float32, bfloat16, or quantized to 8 or 4 bits.

    weight = PackedWeight.pack(array, "q4_0");  weight.unpack()
    packed = model.pack("q8_0")        # another model (nn/layers/packed): generates, cannot be trained

layout.py has the bytes, blocks.py the quantization, weight.py the class.  The kernels that read them are
packed_linear, packed_swiglu and packed_experts of nn/backends/protocol.py."""

from nn.packed.layout import Format
from nn.packed.weight import PackedWeight

__all__ = ["Format", "PackedWeight"]
