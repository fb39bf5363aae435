"""The requirement document "cuda-nn": its Python, its table of the model, its components and its files."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nn
from nn import MoETransformer, ops
from nn.layers import DecoderBlock, Embedding, Linear, MoELayer, RMSNorm, Router
from nn.layers.rotary import inverse_frequencies
from nn.optim import AdamW, clip_grad_norm, create_schedule

ROOT = Path(__file__).parents[2]

USAGE = """
from nn import MoETransformer

# Create tiny model for testing
model = MoETransformer.tiny()

# Forward pass
token_ids = [1, 2, 3, 4]
logits = model.forward_ids(token_ids, batch=1, seq_len=4)
# → [1, 4, vocab_size] logits
"""

SPECS = """
| Parameter | Value |
|-----------|-------|
| Hidden dim | 768 |
| Layers | 30 |
| Attention | MQA (12 Q heads, 1 KV head) |
| Experts | 16 total, top-4 active |
| FFN dim | 6144 |
| Vocab size | 32,000 |
| Context | 32K train → 256K inference (NTK) |
| **Total params** | **~6.9B** |
| **Active params** | **~1.8B** |
"""


def test_usage() -> None:
    names: dict[str, Any] = {}
    exec(USAGE, names)
    logits, model = names["logits"], names["model"]
    assert logits.shape == (1, 4, model.config.vocab_size)
    assert np.isfinite(logits.numpy()).all()
    # the document's Go and Rust calls: the same arguments by position
    assert np.array_equal(model.forward_ids([1, 2, 3, 4], 1, 4).numpy(), logits.numpy())


def specs() -> dict[str, str]:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", SPECS.replace("*", ""), re.MULTILINE)
    return dict(rows[1:])


def test_specs() -> None:
    """Each row of the table, from the model that is described but never allocated."""
    model, table = MoETransformer.moe_6_9b(), specs()
    c = model.config
    scaling = c.rope_scaling
    kind = {1: "MQA", c.num_heads: "MHA"}.get(c.num_kv_heads, "GQA")
    trained, stretched = scaling.original_max_position_embeddings // 1024, c.max_seq_len // 1024
    described = {
        "Hidden dim": f"{c.hidden_size}",
        "Layers": f"{c.num_layers}",
        "Attention": f"{kind} ({c.num_heads} Q heads, {c.num_kv_heads} KV head)",
        "Experts": f"{c.num_experts} total, top-{c.top_k} active",
        "FFN dim": f"{c.intermediate_size}",
        "Vocab size": f"{c.vocab_size:,}",
        "Context": f"{trained}K train → {stretched}K inference ({scaling.type.upper()})",
        "Total params": f"~{model.num_parameters() / 1e9:.1f}B",
        "Active params": f"~{model.num_parameters(active=True) / 1e9:.1f}B",
    }
    assert described == table
    assert not any(parameter.allocated for parameter in model.parameters())


def test_parameters_to_the_last_one() -> None:
    assert MoETransformer.moe_6_9b().num_parameters() == 6_882_678_528
    assert MoETransformer.moe_6_9b().num_parameters(active=True) == 1_786_599_168
    assert MoETransformer.tiny().num_parameters() == 542_528


def test_ntk_stretches_32k_to_256k() -> None:
    """The fastest channel keeps its frequency, the slowest turns over 256K as far as it did over 32K."""
    c = MoETransformer.moe_6_9b().config
    inv, factor = inverse_frequencies(c.head_dim, c.rope_theta, c.rope_scaling, c.max_seq_len)
    plain = c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim)
    assert (inv[0], factor) == (plain[0], 1.0)
    assert inv[-1] * 262144 == pytest.approx(plain[-1] * 32768, rel=1e-12)


def test_the_block_is_the_one_that_is_drawn() -> None:
    """RMSNorm → attention → residual → RMSNorm → mixture of experts → residual."""
    model = MoETransformer.tiny()
    assert [type(layer) for layer in model.layers] == [DecoderBlock] * model.config.num_layers
    block, x = model.layers[0], nn.Tensor(np.random.default_rng(0).normal(size=(2, 5, 64)).astype(np.float32))
    attended, _ = block.self_attn(block.input_layernorm(x))
    middle = x + attended
    expected = middle + block.mlp(block.post_attention_layernorm(middle))
    assert np.array_equal(block(x)[0].numpy(), expected.numpy())
    parts = (model.embed_tokens, model.lm_head, model.norm, block.mlp, block.mlp.router)
    assert [type(part) for part in parts] == [Embedding, Linear, RMSNorm, MoELayer, Router]


def test_training_parts() -> None:
    """AdamW, a schedule with warm-up, clipping and the two losses of its kernels: one step that helps."""
    model, ids = MoETransformer.tiny(), np.arange(1, 18)[None]
    optimizer = AdamW(model.named_parameters(), lr=1e-2)
    schedule = create_schedule("cosine", lr=1e-2, steps=10, warmup=2)
    losses = []
    for step in range(4):
        model.zero_grad()
        loss, figures = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        assert clip_grad_norm(model.parameters(), 1.0) > 0
        optimizer.step(lr=schedule(step))
        losses.append(figures["loss"])
        assert figures["moe/load_balance"] > 0
    assert losses[-1] < losses[0] - 0.1
    assert ops.swiglu(nn.Tensor([0.0]), nn.Tensor([1.0])).item() == 0.0


@pytest.mark.parametrize("path", ["LICENSE", "docs/00-index.md", "docs/1-model.md", "docs/2-learn.md"])
def test_files(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8").strip()


def test_licence_is_mit() -> None:
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_installs_with_its_development_tools() -> None:
    """pip install -e ".[dev]", then pytest."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^dev = \[\s*"pytest', text, re.MULTILINE)
