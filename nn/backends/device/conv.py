"""Causal convolution on the device, by what its arrays can do themselves."""

from nn.backends.reference.conv import causal_conv, causal_conv_backward

__all__ = ["causal_conv", "causal_conv_backward"]
