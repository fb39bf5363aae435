"""What models are made of."""

from nn.layers.attention import GroupedAttention
from nn.layers.block import DecoderBlock
from nn.layers.feed_forward import FeedForward
from nn.layers.linear import Embedding, Linear
from nn.layers.module import Module, Parameter
from nn.layers.moe import Experts, MoELayer, Router
from nn.layers.norm import LayerNorm, RMSNorm
from nn.layers.protocol import Block, BlockSettings
from nn.layers.rotary import RopeScaling, Rotary
from nn.layers.stack import Stack, StackSettings

__all__ = ["Block", "BlockSettings", "DecoderBlock", "Embedding", "Experts", "FeedForward",
           "GroupedAttention", "LayerNorm", "Linear", "Module", "MoELayer", "Parameter", "RMSNorm",
           "RopeScaling", "Rotary", "Router", "Stack", "StackSettings"]
