"""Choosing tokens and turning them into text: sampling, the generation loop, and streaming.

Try: python -m nn generate --help"""

from nn.generate.config import SamplingConfig
from nn.generate.loop import generate, generate_batch, stream_text
from nn.generate.sampling import sample
from nn.generate.stream import TextStream

__all__ = ["SamplingConfig", "TextStream", "generate", "generate_batch", "sample", "stream_text"]
