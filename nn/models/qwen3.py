"""Qwen3's architecture (Yang et al. 2025, arXiv 2505.09388): grouped-query attention with an RMSNorm of every
query and key head, rotary positions, SwiGLU or a mixture of experts, norms in front, no biases.

    model = Qwen3(QWEN3_0_6B)                     # 596,049,920 parameters, none of them drawn yet
    model = Qwen3.from_pretrained("folder")       # config.json and model.safetensors of Qwen3 or Qwen3-MoE
    model.save_pretrained("folder")

It is a LanguageModel like any other: another attention, feed-forward, residual or memory is another word in
the configuration (configs/model/*.yaml), as long as nobody asks for it in Hugging Face's layout."""

from pathlib import Path
from typing import Any

from nn.models.language_model import LanguageModel, LanguageModelConfig

ATTENTION = {"num_heads": 16, "num_kv_heads": 8, "head_dim": 128, "qk_norm": "head", "rope_theta": 1e6}

# 596,049,920 parameters, 440,467,456 without the embedding, which is the head too; 1.427 GFLOP per token
# forward at 2,048 tokens.  Initial weights are Normal(0, 0.02), all alike, as Qwen3's configuration has them.
QWEN3_0_6B = LanguageModelConfig(
    vocab_size=151936, hidden_size=1024, num_layers=28, max_seq_len=40960, tie_embeddings=True,
    init_scheme="normal", options={"full_attention": ATTENTION, "swiglu": {"intermediate_size": 3072}})

# The same with 8 of 64 experts of 384 = 3072 / 8 channels in every layer: 2,447,572,992 parameters,
# 597,884,928 active, so that a token costs what it costs above, but for the router.
QWEN3_MOE_A0_6B = QWEN3_0_6B.replace(feed_forward="moe", options={
    "full_attention": ATTENTION, "moe": {"intermediate_size": 384, "num_experts": 64, "top_k": 8}})


class Qwen3(LanguageModel):
    """A LanguageModel that reads and writes the Hugging Face folders of Qwen3 and Qwen3-MoE."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors.  InputError names what Qwen3 does not have."""
        from nn.interop import qwen3
        qwen3.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: Any = None) -> "Qwen3":
        """Read a folder; dtype defaults to that of the file."""
        from nn.interop import qwen3
        config, weights = qwen3.load(Path(folder))
        model = cls(config, dtype=dtype or weights["embed_tokens.weight"].dtype)
        model.load_state_dict(weights)
        return model
