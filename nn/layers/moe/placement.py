"""Which layers have experts, as a pattern for StackSettings.feed_forward.

    feed_forwards(61, first_k_dense=3)                       # DeepSeek-V3
    feed_forwards(24, sparse_step=2, mlp_only_layers=[5])    # Qwen2-MoE's decoder_sparse_step"""

from collections.abc import Collection

from nn.errors import InputError
from nn.layers import pattern


def feed_forwards(num_layers: int, *, first_k_dense: int = 0, sparse_step: int = 1,
                  mlp_only_layers: Collection[int] = (), dense: str = "swiglu",
                  experts: str = "moe") -> tuple[str, ...]:
    """One name per layer: `experts` in every layer i with (i + 1) mod sparse_step = 0, but not in the first
    `first_k_dense`, and not in those of mlp_only_layers; `dense` in the others."""
    if not 0 <= first_k_dense <= num_layers:
        raise InputError(f"first_k_dense: {first_k_dense} is not between 0 and num_layers = {num_layers}")
    if sparse_step < 1:
        raise InputError(f"sparse_step: {sparse_step} is not positive; 1 puts experts into every layer")
    strange = [i for i in mlp_only_layers if not 0 <= i < num_layers]
    if strange:
        raise InputError(f"mlp_only_layers: {strange[0]} is not one of the layers 0 ... {num_layers - 1}")
    sparse = pattern.every_n_global(sparse_step, num_layers, dense, experts)
    late = pattern.from_layer(first_k_dense, num_layers, dense, experts)
    return tuple(dense if dense in (a, b) or i in mlp_only_layers else experts
                 for i, (a, b) in enumerate(zip(sparse, late, strict=True)))
