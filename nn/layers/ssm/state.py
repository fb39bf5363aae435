"""What state space models keep of the tokens seen: the convolution's newest inputs, and the state."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn.dtypes import DType
from nn.state import State
from nn.tensor import Array


@dataclass
class ConvState(State):
    """The newest inputs of a causal convolution of K taps."""

    value: Array         # [B,K-1,C]

    @classmethod
    def zeros(cls, batch_size: int, kernel_size: int, channels: int, dtype: Any = "float32") -> "ConvState":
        """Before the first token"""
        return cls(np.zeros((batch_size, kernel_size - 1, channels), DType.of(dtype).numpy))


@dataclass
class RecurrentState(State):
    """The state of a recurrence."""

    value: Array         # [B,C,N] of Mamba, [B,H,P,N] of Mamba-2

    @classmethod
    def zeros(cls, batch_size: int, *shape: int, dtype: Any = "float32") -> "RecurrentState":
        """Before the first token"""
        return cls(np.zeros((batch_size, *shape), DType.of(dtype).numpy))


@dataclass
class MambaState(State):
    """What Mamba and Mamba-2 keep."""

    conv_state: ConvState
    ssm_state: RecurrentState
    position: int = 0    # tokens seen

    @classmethod
    def zeros(cls, batch_size: int, intermediate_size: int, state_size: int, conv_kernel: int,
              dtype: Any = "float32") -> "MambaState":
        """Of a Mamba layer before the first token"""
        return cls(ConvState.zeros(batch_size, conv_kernel, intermediate_size, dtype),
                   RecurrentState.zeros(batch_size, intermediate_size, state_size, dtype=dtype))
