"""Named configurations."""

from nn.layers.rotary import RopeScaling
from nn.models.config import MoETransformerConfig
from nn.names import by_name

TINY = MoETransformerConfig()          # 542,528 parameters, 345,920 of them active: for tests and first steps

# 6,882,678,528 parameters, 1,786,599,168 active.  Trained to 32,768 positions, stretched to 262,144 by NTK with factor 8.
MOE_6_9B = MoETransformerConfig(
    vocab_size=32000, hidden_size=768, num_layers=30, num_heads=12, num_kv_heads=1, head_dim=64, intermediate_size=6144,
    num_experts=16, top_k=4, max_seq_len=262144,
    rope_scaling=RopeScaling("ntk", factor=8.0, original_max_position_embeddings=32768))

PRESETS = {"tiny": TINY, "moe-6.9b": MOE_6_9B}


def preset(name: str) -> MoETransformerConfig:
    """The configuration called `name`; InputError suggests the nearest name otherwise."""
    return by_name("preset", name, PRESETS)
