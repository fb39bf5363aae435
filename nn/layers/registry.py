"""Every block by name: what a configuration may ask for.  A new block is its file and one line here.

    block = create("mixer", "retention", hidden_size=64, num_heads=4)
    find("mixer", "retention").Settings.create(hidden_size=64).flops(batch=1, length=128)

Blocks are imported when first asked for.  A program may enter its own, from a module of its own:
registry.MIXERS["mine"] = "my_module.MyBlock".  docs/adding_new_blocks.md builds one."""

import importlib
from typing import Any

from nn.names import by_name, check_name

# Mix information between tokens: attention, recurrences.
MIXERS = {
    "full_attention": "nn.layers.attention.causal.CausalSelfAttention",
    "sliding_attention": "nn.layers.attention.window.SlidingWindowAttention",
    "retention": "nn.layers.attention.linear.retention.Retention",
    "linear_attention": "nn.layers.attention.linear.kernelized.LinearAttention",
    "gla": "nn.layers.attention.linear.gla.GLA",
    "delta_net": "nn.layers.attention.linear.delta.DeltaNet",
    "gated_delta_net": "nn.layers.attention.linear.gated_delta.GatedDeltaNet",
    "gated_attention": "nn.layers.attention.gated.GatedAttention",
    "mla": "nn.layers.attention.mla.MLA",
    "mamba": "nn.layers.ssm.mamba.Mamba",
    "mamba2": "nn.layers.ssm.mamba2.Mamba2",
    "block_sparse": "nn.layers.attention.sparse.block.BlockSparseAttention",
    "nsa": "nn.layers.attention.sparse.nsa.NativeSparseAttention",
}

# Work on each token by itself.
FEED_FORWARDS = {
    "swiglu": "nn.layers.feed_forward.SwiGLU",
    "mlp": "nn.layers.feed_forward.MLP",
    "moe": "nn.layers.moe.block.Mixture",
    "moe_expert_choice": "nn.layers.moe.expert_choice.ExpertChoice",
}

# Add what was stored elsewhere: tables, banks, summaries.
MEMORIES: dict[str, str] = {
    "cross_attention": "nn.layers.attention.cross.CrossAttention",
    "engram": "nn.layers.memory.engram.Engram",
    "rmc": "nn.layers.memory.rmc.RMC",
    "nsb": "nn.layers.memory.nsb.NSB",
}

# How branches read from the residual stream and write to it.
RESIDUALS = {
    "pre_norm": "nn.layers.residual.connection.PreNorm",
    "post_norm": "nn.layers.residual.connection.PostNorm",
    "sandwich": "nn.layers.residual.connection.Sandwich",
    "parallel": "nn.layers.residual.connection.Parallel",
    "hc": "nn.layers.residual.hyper.HyperConnection",
    "mhc": "nn.layers.residual.manifold.ManifoldConnection",
}

# Put blocks together, and are blocks themselves.
STACKS = {
    "stack": "nn.layers.stack.Stack",
    "recursion": "nn.layers.recursion.engine.RecursionEngine",
}

# Mixers that have a letter in patterns like "RRRA".
LETTERS = {
    "A": "full_attention",
    "S": "sliding_attention",
    "R": "retention",
    "M": "mamba",
    "N": "mamba2",
    "L": "linear_attention",
    "G": "gla",
    "D": "delta_net",
    "Q": "gated_delta_net",
}

ROLES = {"mixer": MIXERS, "feed_forward": FEED_FORWARDS, "memory": MEMORIES, "residual": RESIDUALS,
         "stack": STACKS}


def names(role: str) -> list[str]:
    """The blocks of a role."""
    return list(by_name("role", role, ROLES))


def find(role: str, name: str) -> Any:
    """The class of a block; its `Settings` class has the formulas.  InputError suggests the nearest name."""
    known = by_name("role", role, ROLES)
    check_name(role, name, known)
    module, _, attribute = known[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def create(role: str, name: str, *, dtype: Any = "float32", **options: Any) -> Any:
    """A block of its name's Settings with these options."""
    block = find(role, name)
    return block(block.Settings.create(**options), dtype=dtype)
