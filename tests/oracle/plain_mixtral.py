"""Mixtral in plain PyTorch: slow, obvious, written from the papers, sharing no code with nn/.

It takes a config.json and weights by their names in a checkpoint, computes in the weights' number type
(float64 here, which Transformers does not do throughout), and leaves the gradients to autograd.

    logits, router_logits = forward(config, weights, ids)"""

import math
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def forward(config: dict[str, Any], weights: Weights, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [B,T,V] of integers ids [B,T], and each layer's router logits [B*T,E]."""
    eps, x = config["rms_norm_eps"], weights["model.embed_tokens.weight"][ids]
    router_logits = []
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        layer = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        x = x + attention(config, layer, rms_norm(x, layer["input_layernorm.weight"], eps))
        y, logits = experts(config, layer, rms_norm(x, layer["post_attention_layernorm.weight"], eps))
        x = x + y
        router_logits.append(logits)
    tied = config["tie_word_embeddings"]
    head = weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
    return rms_norm(x, weights["model.norm.weight"], eps) @ head.T, router_logits


def loss(config: dict[str, Any], weights: Weights, ids: Tensor, targets: Tensor, z_coef: float) -> Tensor:
    """Mean cross-entropy of the targets that are not −100, plus each layer's balance loss and z-loss."""
    logits, router_logits = forward(config, weights, ids)
    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    for z in router_logits:
        total = total + config["router_aux_loss_coef"] * balance_loss(z, config["num_experts_per_tok"])
        total = total + z_coef * (z.logsumexp(-1) ** 2).mean()                # Zoph et al. 2022, equation 5
    return total


def balance_loss(router_logits: Tensor, k: int) -> Tensor:
    """E Σ f P, f the share of all assignments, P the mean probability: 1 if both are even (Fedus et al. 2021,
    equation 4, with k choices instead of one)."""
    probabilities = router_logits.softmax(-1)
    tokens, num_experts = probabilities.shape
    chosen = probabilities.topk(k, dim=-1).indices
    share = torch.bincount(chosen.flatten(), minlength=num_experts).to(probabilities) / (tokens * k)
    return num_experts * (share * probabilities.mean(0)).sum()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def attention(config: dict[str, Any], layer: Weights, x: Tensor) -> Tensor:
    """Head by head; query head h reads key/value head h // (H / G).  A window counts the query itself."""
    heads, groups, length = config["num_attention_heads"], config["num_key_value_heads"], x.shape[1]
    q, k, v = ((x @ layer[f"self_attn.{name}_proj.weight"].T).split(config["head_dim"], -1) for name in "qkv")
    ago = torch.arange(length)[:, None] - torch.arange(length)[None, :]                        # [T,T]
    hidden = (ago < 0) | (ago >= (config["sliding_window"] or length))
    out = []
    for h in range(heads):
        g = h // (heads // groups)
        scores = rotate(config, q[h]) @ rotate(config, k[g]).transpose(1, 2) / math.sqrt(config["head_dim"])
        out.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[g])
    return torch.cat(out, -1) @ layer["self_attn.o_proj.weight"].T


def rotate(config: dict[str, Any], x: Tensor) -> Tensor:
    """Channels i and i + d/2 of x[B,T,d] are a complex number, turned by position · frequency_i (RoPE)."""
    frequencies, factor = rope(config)
    positions = torch.arange(x.shape[1], dtype=x.dtype)
    angle = positions[:, None] * torch.tensor(frequencies, dtype=x.dtype)                      # [T,d/2]
    a, b = x.chunk(2, -1)
    cos, sin = factor * angle.cos(), factor * angle.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def rope(config: dict[str, Any]) -> tuple[list[float], float]:
    """(d/2 frequencies, factor of cos and sin)"""
    d, theta = config["head_dim"], config["rope_theta"]
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    plain = [theta ** (-2 * i / d) for i in range(d // 2)]
    if scaling["rope_type"] == "yarn":
        return yarn(plain, theta, scaling)
    # "dynamic" begins where the context ends
    divisor = {"default": 1.0, "linear": scaling.get("factor"), "dynamic": 1.0}
    return [f / divisor[scaling["rope_type"]] for f in plain], 1.0


def yarn(plain: list[float], theta: float, scaling: dict[str, Any]) -> tuple[list[float], float]:
    """Peng et al. 2023, section 3.2: channels that turn often within the trained context keep their
    frequency, those that turn seldom are slowed by the factor, a ramp over the channels between."""
    d, s, trained = 2 * len(plain), scaling["factor"], scaling["original_max_position_embeddings"]

    def channel(turns: float) -> float:
        """where θ^(−2i/d) · trained = 2π · turns"""
        return d / 2 * math.log(trained / (2 * math.pi * turns)) / math.log(theta)

    low = max(math.floor(channel(scaling["beta_fast"])), 0)
    high = min(math.ceil(channel(scaling["beta_slow"])), d - 1)
    slowed = [min(max((i - low) / max(high - low, 0.001), 0.0), 1.0) for i in range(d // 2)]
    frequencies = [f * (1 - r) + f / s * r for f, r in zip(plain, slowed, strict=True)]
    return frequencies, scaling.get("attention_factor") or 0.1 * math.log(s) + 1.0


def experts(config: dict[str, Any], layer: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token: the k likeliest experts' outputs, weighted by their share of the k probabilities."""
    tokens = x.flatten(0, 1)
    logits = tokens @ layer["block_sparse_moe.gate.weight"].T
    out = []
    for token, probabilities in zip(tokens, logits.softmax(-1), strict=True):
        weights, chosen = probabilities.topk(config["num_experts_per_tok"])
        outputs = [expert(layer, f"block_sparse_moe.experts.{e}.", token) for e in chosen.tolist()]
        out.append(sum(w * y for w, y in zip(weights / weights.sum(), outputs, strict=True)))
    return torch.stack(out).reshape(x.shape), logits


def expert(layer: Weights, name: str, x: Tensor) -> Tensor:
    """SwiGLU (Shazeer 2020): w2 (silu(w1 x) ⊙ w3 x)"""
    gate, up = layer[f"{name}w1.weight"] @ x, layer[f"{name}w3.weight"] @ x
    return layer[f"{name}w2.weight"] @ (gate * torch.sigmoid(gate) * up)
