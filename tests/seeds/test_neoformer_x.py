"""The requirement document "neoformer-x": its Python, its interface, its tables and its advice.

The snippets stand here as they stand there; tests/models/test_neoformer_x.py has the equations."""

import inspect
import re
from itertools import islice
from typing import Any

import numpy as np
import pytest

from nn import Tensor
from nn.layers.lora import LoRA, LoRASettings
from nn.layers.memory.nsb import NSBSettings
from nn.layers.memory.rmc import RMC, RMCSettings
from nn.layers.norm import LayerNorm, RMSNorm
from nn.models.neoformer_config import NeoFormerXConfig, preset
from nn.models.neoformer_x import NeoFormerX
from nn.optim import AdamW, clip_grad_norm, create_schedule
from nn.tensor import no_grad
from tests.blocks.harness import close

GENERATION = """
out = model.generate(input_ids, max_new=64, temp=0.8, top_k=50)
"""
LOOP = """
for batch in loader:
    x,y = batch
    logits, _, delta = model(x, update=True)
    loss = F.cross_entropy(logits.view(-1, V), y.view(-1))
    loss.backward(); opt.step(); opt.zero_grad()
    if delta is not None:
        model.rmc.apply_update(delta.mean(0), lr=0.01)
"""
INTERFACE = """
* `NeoFormerX.forward(x, past=None, update=False) → (logits, new_past, delta)`
* `NeoFormerX.generate(x, max_new=64, temp=0.8, top_k=50)`
* `RMC.apply_update(delta, lr=0.01)`
"""
SIZES = """
  * `125M`: `(d_model=768, nhead=12, kv_heads=3, layers=12)`
  * `350M`: `(1024, 16, 4, 24)`
  * `760M`: `(1536, 16, 4, 32)`
"""
TINY: dict[str, Any] = {"vocab_size": 29, "d_model": 16, "nhead": 4, "kv_heads": 1, "layers": 2,
                        "mem_size": 4, "rules": 4, "rdim": 4, "max_seq_len": 16}


def tiny(**changes: Any) -> NeoFormerX:
    return NeoFormerX(NeoFormerXConfig(**TINY | changes), seed=1)


def text(batch: int = 2, length: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 29, (batch, length))


# ---- its snippets ----


def test_pseudo_api() -> None:
    """64 tokens behind the prompt, beyond a context of 16"""
    names: dict[str, Any] = {"model": tiny(), "input_ids": text()}
    exec(GENERATION, names)
    assert names["out"].shape == (2, 9 + 64)
    assert np.array_equal(names["out"][:, :9], text())
    assert 0 <= names["out"].min() <= names["out"].max() < 29


def loop(model: NeoFormerX, steps: int) -> tuple[list[float], dict[str, Any]]:
    """The losses of the document's loop, step by step, and its names"""
    ids = np.random.default_rng(4).permutation(29)[:13][None]
    batch = Tensor(ids[:, :-1]), Tensor(ids[:, 1:])
    names: dict[str, Any] = {"model": model, "V": model.vocab_size, "loader": [batch],
                             "opt": AdamW(model.named_parameters(), lr=2e-2)}
    exec("from nn.ops import functional as F", names)
    losses = []
    for _ in range(steps):
        exec(LOOP, names)
        losses.append(names["loss"].item())
    return losses, names


def test_minimal_training_loop() -> None:
    losses, names = loop(tiny(), 40)
    assert losses[0] == pytest.approx(np.log(29), abs=0.1)
    assert losses[-1] < 0.3 * losses[0]
    assert names["delta"].shape == (1, 4, 16)
    assert names["delta"].mean(0).shape == names["model"].rmc.memory.shape


def test_the_loop_without_a_memory() -> None:
    """delta is None, and nothing is applied"""
    _, names = loop(tiny(rmc=False), 2)
    assert names["delta"] is None


def test_api_summary() -> None:
    """Arguments, their order and their defaults, as they are summed up; what is more stands behind them."""
    for name, given in re.findall(r"`(?:\w+)\.(\w+)\((.*?)\)", INTERFACE):
        owner: Any = RMC if name == "apply_update" else NeoFormerX
        ours = inspect.signature(getattr(owner, name)).parameters.values()
        for written, parameter in zip(given.split(", "), islice(ours, 1, None), strict=False):
            argument, _, default = written.partition("=")
            assert parameter.name == argument
            assert parameter.default is parameter.empty if not default else repr(parameter.default) == default
    result = tiny()(text())
    assert isinstance(result, tuple)
    assert len(result) == 3


def test_model_sizes() -> None:
    for name, numbers in re.findall(r"`(\w+)`: `\((.*?)\)`", SIZES):
        c = preset(name)
        expected = [int(number) for number in re.findall(r"(?:^|=| )(\d+)", numbers)]
        assert [c.d_model, c.nhead, c.kv_heads, c.layers] == expected


# ---- its components ----


def test_the_diagram() -> None:
    """Token embedding → RMC → NSB → blocks → norm → head, which is the embedding"""
    model = tiny()
    assert model.config.prelude == ("rmc", "nsb")
    assert (model.prelude[0], model.prelude[1]) == (model.rmc, model.nsb)
    assert model.lm_head is None
    assert [layer.settings.names for layer in model.body.layers] == [
        {"mixer": "full_attention", "feed_forward": "mlp"}] * 2
    assert isinstance(model.norm, LayerNorm)
    with no_grad():
        h = model.embed_tokens(text())
        h, _ = model.rmc(h)
        h = h + model.nsb(h)[0]
        h, _ = model.body(h)
        logits = model.norm(h) @ Tensor(model.embed_tokens.weight.data.T)
        close(model(text())[0].data, logits.data, 1e-5)


def test_memory_and_rules_have_the_sizes_of_the_document() -> None:
    model = NeoFormerX(preset("125M"))
    assert model.rmc.memory.shape == (32, 768)
    assert model.nsb.rules.shape == (32, 32)
    assert not model.rmc.memory.allocated


def test_no_absolute_positions_beside_rope() -> None:
    assert preset("125M").core.positions == "none"


def test_cache_is_a_tuple_per_block() -> None:
    """[B, H, L, Dh]; after the first pass only x[:, -1:]; trimmed as the document slices"""
    model, x, keep = tiny(), text(), 4
    with no_grad():
        whole, _, _ = model(x)
        _, past, _ = model(x[:, :-1])
        logits, past, _ = model(x[:, -1:], past=past)
    close(logits.data[:, 0], whole.data[:, -1], 1e-4)
    for k, v in past[:2]:
        assert k.shape == v.shape == (2, 1, 9, 4)
    with no_grad():
        past = [(k[:, :, -keep:, :], v[:, :, -keep:, :]) for k, v in past]
        logits, past, delta = model(x[:, -1:], past=past)
    assert past[0][0].shape == (2, 1, 5, 4)
    assert past[-1][1][0, 0, 0].tolist() == [10, 10], "positions go on"
    assert delta is None


# ---- its advice ----


@pytest.mark.parametrize("kv_heads", [1, 8 // 4, 8])
@pytest.mark.parametrize("changes", [{}, {"nsb": False}, {"rope_base": 500000.0}])
def test_ablations(kv_heads: int, changes: dict[str, Any]) -> None:
    """No NSB; kv_heads 1, nhead / 4, nhead; another base: all of them train and write."""
    model = tiny(nhead=8, kv_heads=kv_heads, **changes)
    losses, _ = loop(model, 15)
    assert losses[-1] < 0.8 * losses[0]
    assert model.generate(text(), max_new=3, seed=0).shape == (2, 12)
    assert (model.nsb is None) == (changes == {"nsb": False})


def test_enhancements_are_switches() -> None:
    """RMSNorm, SwiGLU with Linear(d, 4d · 2), top-p and repetition penalty, gradient checkpointing"""
    base, plus = preset("125M"), preset("125M-plus")
    assert (base.norm, base.ffn) == ("layernorm", "silu")
    model = NeoFormerX(plus)
    ffn = model.body.layers[0].feed_forward.ffn
    assert isinstance(model.norm, RMSNorm)
    assert ffn.gate_proj.weight.shape == ffn.up_proj.weight.shape == (4 * 768, 768)
    small = tiny(norm="rmsnorm", ffn="swiglu")
    expected, _ = loop(tiny(norm="rmsnorm", ffn="swiglu"), 3)
    small.gradient_checkpointing = True
    assert loop(small, 3)[0] == pytest.approx(expected, rel=1e-5)
    assert small.generate(text(), 3, top_p=0.9, repetition_penalty=1.1, seed=0).shape == (2, 12)


def test_recommended_knobs() -> None:
    """AdamW, clipping at 1.0, cosine with warm-up"""
    model, x = tiny(), text()
    optimizer, schedule = AdamW(model.named_parameters(), lr=1e-2), create_schedule(
        "cosine", lr=1e-2, steps=10, warmup=2)
    for step in range(2):
        total, _ = model.loss(x[:, :-1], x[:, 1:])
        total.backward()
        assert clip_grad_norm(model.parameters(), 1.0) > 0
        optimizer.step(lr=schedule(step))
        optimizer.zero_grad()


def test_lora_hooks() -> None:
    """Adapters on {q_proj, k_proj, v_proj}: nothing changes at first, and only they train."""
    model, x = tiny(), text()
    before, _, _ = model(x)
    frozen = {name: p.data.copy() for name, p in model.named_parameters().items()}
    lora = LoRA(model, LoRASettings(r=2, targets=("q_proj", "k_proj", "v_proj")))
    assert np.array_equal(model(x)[0].data, before.data)
    trained = lora.named_parameters()
    assert len(trained) == 2 * 3 * 2
    optimizer = AdamW(trained, lr=1e-1)
    logits, _, _ = model(x, update=True)
    logits.sum().backward()
    optimizer.step()
    assert all(np.array_equal(model.named_parameters()[name].data, value) for name, value in frozen.items())
    after, _, _ = model(x)
    assert np.abs(after.data - before.data).max() > 1e-6
    lora.merge()
    close(model(x)[0].data, after.data, 1e-4)


def test_guard_rails() -> None:
    """Writes are annealed and can be undone; the choice of rules starts soft and sharpens."""
    model = tiny(rmc_anneal=1.0, options={"nsb": {"tau_start": 4.0, "tau_steps": 10}})
    before = model.rmc.memory.data.copy()
    _, _, delta = model(text(), update=True)
    model.rmc.apply_update(delta.mean(0), lr=0.01, step=3)
    assert model.rmc.rate(0.01, step=3) == 0.0025
    assert not np.array_equal(model.rmc.memory.data, before)
    model.rmc.reset()
    assert np.array_equal(model.rmc.memory.data, before)
    rules: NSBSettings = model.nsb.settings
    assert [rules.temperature_at(step) for step in (0, 5, 10, 99)] == [4.0, 2.5, 1.0, 1.0]
    assert RMCSettings().summary == "causal"
