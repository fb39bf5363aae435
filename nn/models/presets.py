"""Named configurations."""

from nn.layers.rotary import RopeScaling
from nn.models.config import MoETransformerConfig
from nn.names import by_name

TINY = MoETransformerConfig()          # 542,528 parameters, 345,920 of them active: for tests and first steps

# 3,035,008 parameters, 1,265,536 active: what two cores train in minutes.  At this width weights of
# std 0.06 learn faster than 0.02.
SMALL = MoETransformerConfig(
    vocab_size=2048, hidden_size=128, num_layers=3, num_heads=2, num_kv_heads=1,
    intermediate_size=256, num_experts=8, top_k=2, max_seq_len=128, init_std=0.06)

# 6,882,678,528 parameters, 1,786,599,168 active.
# Trained to 32,768 positions, stretched to 262,144 by NTK with factor 8.
MOE_6_9B = MoETransformerConfig(
    vocab_size=32000, hidden_size=768, num_layers=30, num_heads=12, num_kv_heads=1, head_dim=64,
    intermediate_size=6144, num_experts=16, top_k=4, max_seq_len=262144,
    rope_scaling=RopeScaling("ntk", factor=8.0, original_max_position_embeddings=32768))

PRESETS = {"tiny": TINY, "small": SMALL, "moe-6.9b": MOE_6_9B}


def preset(name: str) -> MoETransformerConfig:
    """The configuration called `name`; InputError suggests the nearest name otherwise."""
    return by_name("preset", name, PRESETS)
