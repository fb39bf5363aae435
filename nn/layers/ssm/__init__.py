"""State space models: a state of fixed size that each token decays, writes to and reads from."""

from nn.layers.ssm.block import MambaBlock
from nn.layers.ssm.mamba import Mamba, MambaSettings, selective_scan_ref
from nn.layers.ssm.mamba2 import Mamba2, Mamba2Settings
from nn.layers.ssm.reference import (
    MambaKernelInputs,
    MambaKernelParams,
    MambaKernelState,
    MambaReferenceKernel,
)
from nn.layers.ssm.state import ConvState, MambaState, RecurrentState

__all__ = ["ConvState", "Mamba", "Mamba2", "Mamba2Settings", "MambaBlock", "MambaKernelInputs",
           "MambaKernelParams", "MambaKernelState", "MambaReferenceKernel", "MambaSettings", "MambaState",
           "RecurrentState", "selective_scan_ref"]
