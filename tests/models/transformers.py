"""Small Transformers with weights wide enough to matter, and the same model in plain NumPy."""

from typing import Any

import numpy as np

from nn.models import AttentionConfig, BlockConfig, MoEConfig, Transformer, TransformerConfig

BLOCK = ("norm", "norm_eps", "norm_position", "positional", "attn_backend", "ffn_type", "d_ff", "activation",
         "bias", "dropout")
ATTENTION = ("n_heads", "n_kv_heads", "head_dim", "qk_norm", "window")
EXPERTS = {"num_experts": 4, "expert_hidden": 6}


def config(**changes: Any) -> TransformerConfig:
    """Width 8, two layers of two heads; changes may name a field of the block or of its attention, too"""
    attn = {"n_heads": 2} | {name: changes.pop(name) for name in ATTENTION if name in changes}
    block = {"d_ff": 12} | {name: changes.pop(name) for name in BLOCK if name in changes}
    moe = EXPERTS | changes.pop("moe", {})
    sizes = {"vocab_size": 13, "d_model": 8, "n_layers": 2, "max_seq_len": 32, "init_std": 0.4, "start_id": 1}
    both = {name: block[name] for name in ("bias", "dropout") if name in block}
    return TransformerConfig(**sizes | changes, block=BlockConfig(
        attn=AttentionConfig(**attn, **both), moe=MoEConfig(**moe), **block))


def model(dtype: str = "float64", seed: int = 0, **changes: Any) -> Transformer:
    """Evaluating; norms and biases away from 1 and 0"""
    made = Transformer(config(**changes), seed=seed, dtype=dtype)
    random = np.random.default_rng(seed)
    for name, parameter in made.named_parameters().items():
        if "norm" in name or "bias" in name:
            noise = 0.3 * random.standard_normal(parameter.shape)
            parameter.data = (parameter.data + noise).astype(parameter.dtype)
    return made.eval()


def ids(batch: int = 2, length: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 13, (batch, length))


# ---- in NumPy, float64: layernorm, no positions, biases, a gelu MLP ----


class Plain:
    """A seq2seq model's weights by name, and its forward pass."""

    def __init__(self, weights: dict[str, np.ndarray], heads: int, layers: int, eps: float) -> None:
        self.w, self.heads, self.layers, self.eps = weights, heads, layers, eps

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return unit * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def attention(self, name: str, x: np.ndarray, keys: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """visible [B,T,S]"""
        q, k, v = (self.linear(f"{name}.{part}_proj", given) for part, given in
                   (("q", x), ("k", keys), ("v", keys)))
        width, found = q.shape[-1] // self.heads, []
        for head in range(self.heads):
            own = slice(head * width, (head + 1) * width)
            scores = q[..., own] @ k[..., own].swapaxes(1, 2) / np.sqrt(width)
            scores = np.where(visible, scores, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            found.append(p / p.sum(-1, keepdims=True) @ v[..., own])
        return self.linear(f"{name}.o_proj", np.concatenate(found, -1))

    def mlp(self, name: str, x: np.ndarray) -> np.ndarray:
        from math import erf
        up = self.linear(f"{name}.up_proj", x)
        return self.linear(f"{name}.down_proj", up * 0.5 * (1.0 + np.vectorize(erf)(up / np.sqrt(2.0))))

    def encoded(self, src: np.ndarray, keep: np.ndarray) -> np.ndarray:
        x = self.w["decoder.embed_tokens.weight"][src]
        for i in range(self.layers):
            at = f"encoder.body.layers.{i}"
            n = self.norm(f"{at}.connection.norms.0", x)
            x = x + self.attention(f"{at}.mixer", n, n, keep[:, None, :])
            x = x + self.mlp(f"{at}.feed_forward.ffn", self.norm(f"{at}.connection.norms.1", x))
        return self.norm("encoder.norm", x)

    def decoded(self, tgt: np.ndarray, source: np.ndarray, keep: np.ndarray) -> np.ndarray:
        x = self.w["decoder.embed_tokens.weight"][tgt]
        past = np.tril(np.ones((1, tgt.shape[1], tgt.shape[1]), bool))
        for i in range(self.layers):
            at = f"decoder.body.layers.{i}"
            n = self.norm(f"{at}.connection.norms.0", x)
            x = x + self.attention(f"{at}.mixer", n, n, past)
            n = self.norm(f"{at}.connection.norms.1", x)
            x = x + self.attention(f"{at}.memory", n, source, keep[:, None, :])
            x = x + self.mlp(f"{at}.feed_forward.ffn", self.norm(f"{at}.connection.norms.2", x))
        return self.norm("decoder.norm", x) @ self.w["decoder.embed_tokens.weight"].T
