"""MoETransformer against transformers.MixtralForCausalLM and a plain PyTorch Mixtral: logits, losses and
every parameter's gradient, the weights handed over as a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from nn import KVCache, MoETransformer, MoETransformerConfig
from nn.layers.rotary import RopeScaling
from tests.oracle import hugging_face, plain_mixtral
from tests.oracle.compare import assert_close, error, gradients, random_model, tokens

BASE = MoETransformerConfig(vocab_size=61, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
                            intermediate_size=24, num_experts=4, top_k=2, max_seq_len=64)
CONFIGS = {
    "grouped queries": BASE,
    "multi-query": BASE.replace(num_kv_heads=1),
    "multi-head": BASE.replace(num_kv_heads=4),
    "one expert per token": BASE.replace(top_k=1),
    "every expert": BASE.replace(top_k=4),
    "one expert in all": BASE.replace(num_experts=1, top_k=1),
    "tied": BASE.replace(tie_embeddings=True),
    "window": BASE.replace(sliding_window=5),
    "window of 1": BASE.replace(sliding_window=1),
    "wide heads": BASE.replace(head_dim=20),
    "theta, eps": BASE.replace(rope_theta=1e6, norm_eps=1e-2),
} | {
    name: BASE.replace(rope_scaling=scaling) for name, scaling in {
        "linear": RopeScaling("linear", 4.0),
        "ntk": RopeScaling("ntk", 8.0),
        "dynamic": RopeScaling("dynamic", 4.0, original_max_position_embeddings=24),
        "dynamic, unstretched": RopeScaling("dynamic", 4.0, original_max_position_embeddings=64),
        "yarn": RopeScaling("yarn", 4.0, beta_fast=4.0),
        "yarn with a factor": RopeScaling("yarn", 4.0, beta_fast=4.0, attention_factor=1.5),
    }.items()
}
LIMIT = {"float32": 1e-5, "float64": 1e-9}


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(name: str, dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model(CONFIGS[name], dtype)
    model.save_pretrained(tmp_path)
    ids, targets = tokens(61)
    with hugging_face.in_full(dtype):
        theirs = hugging_face.load(tmp_path, dtype)
        result = hugging_face.cross_entropy(theirs, ids, targets)
        result.loss.backward()
    loss, figures = model.loss(ids, targets, aux_scale=0.0)
    loss.backward()
    assert theirs.dtype == getattr(torch, dtype)
    assert error(model(ids).numpy(), result.logits.detach()) < LIMIT[dtype]
    assert error(figures["loss"], result.loss.item()) < LIMIT[dtype]
    assert_close(gradients(model), hugging_face.gradients(theirs), LIMIT[dtype])
    assert not [r.message for r in caplog.records if r.levelname == "WARNING"], "of our config.json"


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_plain_pytorch(name: str, tmp_path: Path) -> None:
    """With both auxiliary losses, whose gradients only the router and what is below it see."""
    config = CONFIGS[name].replace(balance_coef=0.3, router_z_coef=0.1)
    model = random_model(config, "float64")
    model.save_pretrained(tmp_path)
    ids, targets = tokens(61)
    weights = {name: w.requires_grad_() for name, w in load_file(tmp_path / "model.safetensors").items()}
    theirs = json.loads((tmp_path / "config.json").read_text())
    labels = torch.tensor(targets)
    expected = plain_mixtral.loss(theirs, weights, torch.tensor(ids), labels, config.router_z_coef)
    expected.backward()
    loss, _ = model.loss(ids, targets)
    loss.backward()
    logits, _ = plain_mixtral.forward(theirs, weights, torch.tensor(ids))
    assert error(model(ids).numpy(), logits.detach()) < 1e-12
    assert error(loss.item(), expected.item()) < 1e-12
    assert_close(gradients(model), {name: w.grad.numpy() for name, w in weights.items()}, 1e-12)


def test_gradient_of_the_router_is_not_small() -> None:
    """What makes the comparisons above say something: it is of the size of the others, in every layer."""
    model = random_model(BASE, "float64")
    model.loss(*tokens(61), aux_scale=0.0)[0].backward()
    found = {name: np.abs(g).max() for name, g in gradients(model).items()}
    assert min(size for name, size in found.items() if "gate" in name) > 0.1 * np.median(list(found.values()))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_balance_loss_is_theirs_divided_by_k(k: int, tmp_path: Path) -> None:
    """Their shares are counted over all k choices of a token and add up to k, ours to 1.  Of several layers
    they form one product of the means, we add up the layers."""
    coef = 0.3
    config = BASE.replace(top_k=k, num_layers=1, balance_coef=coef * k, router_z_coef=0.0)
    model = random_model(config, "float32")
    model.save_pretrained(tmp_path)
    ids, targets = tokens(61)
    theirs = hugging_face.load(tmp_path, "float32")
    theirs.router_aux_loss_coef = coef
    result = hugging_face.cross_entropy(theirs, ids, targets, output_router_logits=True)
    result.loss.backward()
    loss, figures = model.loss(ids, targets)
    loss.backward()
    assert error(loss.item(), result.loss.item()) < 1e-6
    assert error(figures["moe/load_balance"], coef * result.aux_loss.item()) < 1e-6
    assert_close(gradients(model), hugging_face.gradients(theirs), 1e-5)


def test_balance_loss_of_each_layer(tmp_path: Path) -> None:
    model = random_model(BASE, "float32")
    model.save_pretrained(tmp_path)
    ids, targets = tokens(61)
    with torch.no_grad():
        result = hugging_face.load(tmp_path, "float32")(torch.tensor(ids), output_router_logits=True)
    theirs = sum(load_balancing_loss_func((z,), BASE.num_experts, BASE.top_k) for z in result.router_logits)
    _, figures = model.loss(ids, targets)
    assert error(figures["moe/load_balance"], BASE.balance_coef / BASE.top_k * theirs) < 1e-6


@pytest.mark.parametrize("name", ["grouped queries", "window", "yarn"])
def test_decoding_equals_transformers(name: str, tmp_path: Path) -> None:
    """Pieces of 6, 1 and 4 tokens through both key/value caches."""
    model = random_model(CONFIGS[name], "float32")
    model.save_pretrained(tmp_path)
    theirs, (ids, _) = hugging_face.load(tmp_path, "float32"), tokens(61, length=11)
    ours, past = KVCache(num_layers=2), None
    for start, end in ((0, 6), (6, 7), (7, 11)):
        piece = ids[:, start:end]
        with torch.no_grad():
            result = theirs(torch.tensor(piece), past_key_values=past, use_cache=True)
        past = result.past_key_values
        assert error(model(piece, cache=ours).numpy(), result.logits) < 1e-5


def test_padding_mask_equals_transformers(tmp_path: Path) -> None:
    """Left padding: positions count from the first token that is kept."""
    model = random_model(BASE, "float32")
    model.save_pretrained(tmp_path)
    ids, _ = tokens(61, length=9)
    mask = np.arange(9) >= np.array([[3], [0]])
    positions = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
    with torch.no_grad():
        attend = torch.tensor(mask.astype(int))
        theirs = hugging_face.load(tmp_path, "float32")(torch.tensor(ids), attend, positions).logits.numpy()
    assert error(model(ids, mask=mask).numpy()[mask], theirs[mask]) < 1e-5


def test_tiny_as_it_comes(tmp_path: Path) -> None:
    """The model of the README, unaltered, and a context that fills its window."""
    model = MoETransformer.tiny()
    model.save_pretrained(tmp_path)
    ids, _ = tokens(1000, batch=1, length=512)
    with torch.no_grad():
        theirs = hugging_face.load(tmp_path, "float32")(torch.tensor(ids)).logits
    assert error(model(ids).numpy(), theirs) < 1e-5
