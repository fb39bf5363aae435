"""The block "moe" against Transformers' layers: results, and the gradients of the input and all weights."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.olmoe import modeling_olmoe as olmoe
from transformers.models.qwen2_moe import modeling_qwen2_moe as qwen2
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3
from transformers.models.qwen3_next import modeling_qwen3_next as qwen_next

from nn.layers import auxiliary
from nn.layers.moe.block import Mixture, MixtureSettings
from nn.tensor import Tensor
from tests.oracle import hugging_face
from tests.oracle.compare import error

D, F, E = 12, 7, 8
SIZES = {"hidden_size": D, "intermediate_size": F, "num_experts": E}
THEIRS = {"hidden_size": D, "moe_intermediate_size": F, "num_experts": E, "hidden_act": "silu",
          "norm_topk_prob": True}
SHARED = {"shared_expert_intermediate_size": 5}


def deepseek_layer(**options: Any) -> Any:
    config = deepseek.DeepseekV3Config(**{
        "hidden_size": D, "moe_intermediate_size": F, "n_routed_experts": E, "num_local_experts": E,
        "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
        "norm_topk_prob": True, "n_shared_experts": 2} | options)
    config._experts_implementation = "eager"
    return deepseek.DeepseekV3MoE(config)


def layer(config: Any, block: Any, **options: Any) -> Any:
    made = config(**THEIRS | options)
    made._experts_implementation = "eager"
    return block(made)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen3": (lambda: layer(qwen3.Qwen3MoeConfig, qwen3.Qwen3MoeSparseMoeBlock, num_experts_per_tok=3),
              {"top_k": 3}),
    "qwen3, raw": (lambda: layer(qwen3.Qwen3MoeConfig, qwen3.Qwen3MoeSparseMoeBlock, num_experts_per_tok=1,
                                 norm_topk_prob=False), {"top_k": 1, "renormalize": False}),
    "qwen2": (lambda: layer(qwen2.Qwen2MoeConfig, qwen2.Qwen2MoeSparseMoeBlock, num_experts_per_tok=2,
                            norm_topk_prob=False, **SHARED),
              {"top_k": 2, "renormalize": False, "shared_intermediate_size": 5, "shared_gate": True}),
    "qwen3-next": (lambda: layer(qwen_next.Qwen3NextConfig, qwen_next.Qwen3NextSparseMoeBlock,
                                 num_experts_per_tok=4, **SHARED),
                   {"top_k": 4, "shared_intermediate_size": 5, "shared_gate": True}),
    "olmoe": (lambda: layer(olmoe.OlmoeConfig, olmoe.OlmoeSparseMoeBlock, intermediate_size=F,
                            num_experts_per_tok=2, norm_topk_prob=False), {"top_k": 2, "renormalize": False}),
    "deepseek": (deepseek_layer, {"top_k": 3, "score": "sigmoid", "routed_scale": 2.5, "n_group": 4,
                                  "topk_group": 2, "selection_bias": True, "num_shared_experts": 2}),
    "deepseek, raw": (lambda: deepseek_layer(n_group=1, topk_group=1, norm_topk_prob=False,
                                             num_experts_per_tok=2, routed_scaling_factor=1.0),
                      {"top_k": 2, "score": "sigmoid", "renormalize": False, "selection_bias": True,
                       "num_shared_experts": 2}),
}


def name_there(name: str) -> str:
    """A weight of ours as they call it"""
    for ours, theirs in (("moe.router.", "gate."), ("moe.experts.", "experts.")):
        name = name.replace(ours, theirs)
    return name


def pair(name: str) -> tuple[Any, Mixture]:
    """Theirs and ours with the same random weights, in float64"""
    make, options = CASES[name]
    there, here = make().double(), Mixture(MixtureSettings.create(**SIZES | options), dtype="float64")
    shared_name = "shared_expert." if hasattr(there, "shared_expert") else "shared_experts."
    found = dict(there.named_parameters()) | dict(there.named_buffers())
    random, used = np.random.default_rng(0), set()
    for ours, parameter in here.named_parameters().items():
        key = name_there(ours).replace("shared_experts.", shared_name)
        parameter.data = random.normal(scale=0.4, size=parameter.shape)
        assert tuple(found[key].shape) == parameter.shape, key
        with torch.no_grad():
            found[key].copy_(torch.tensor(parameter.data))
        used.add(key)
    assert used == set(found)
    return there, here


@pytest.mark.parametrize("name", CASES)
def test_result_and_gradients(name: str) -> None:
    there, here = pair(name)
    x, weight = np.random.default_rng(1).standard_normal((2, 3, 11, D))
    with hugging_face.in_full("float64"):
        x_there = torch.tensor(x, requires_grad=True)
        y_there = there(x_there)
        (y_there * torch.tensor(weight)).sum().backward()
    x_here = Tensor(x, requires_grad=True)
    y_here, _ = here(x_here)
    (y_here * Tensor(weight)).sum().backward()
    assert error(y_here.data, y_there.detach()) < 1e-12
    assert error(x_here.grad, x_there.grad) < 1e-12
    expected = {key: p.grad.numpy() for key, p in there.named_parameters()}
    for ours, parameter in here.named_parameters().items():
        if not ours.endswith("e_score_correction_bias"):
            key = name_there(ours)
            key = key if key in expected else key.replace("shared_experts.", "shared_expert.")
            assert error(parameter.grad, expected[key]) < 1e-12, ours
    assert here.moe.router.settings.has_bias == (name in ("deepseek", "deepseek, raw"))


def test_groups_and_bias_matter_to_the_comparison() -> None:
    """Without them other experts are chosen."""
    for options in ({"n_group": 1, "topk_group": 1}, {"selection_bias": False}):
        _, here = pair("deepseek")
        other = Mixture(MixtureSettings.create(**SIZES | CASES["deepseek"][1] | options), dtype="float64")
        weights = here.state_dict()
        other.load_state_dict({name: weights[name] for name in other.named_parameters()})
        x = Tensor(np.random.default_rng(1).standard_normal((3, 11, D)))
        assert error(other(x)[0].data, here(x)[0].data) > 1e-3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_switch_loss_is_theirs_divided_by_k(k: int, masked: bool) -> None:
    """and its gradient; padding is in neither"""
    here = Mixture(MixtureSettings.create(**SIZES, top_k=k, balance={"switch": 0.3}, router_z_coef=0.0),
                   dtype="float64")
    here.initialize(0)
    here.moe.router.weight.data = np.random.default_rng(0).standard_normal((E, D))
    x, mask = np.random.default_rng(1).standard_normal((3, 9, D)), np.ones((3, 9), bool)
    if masked:
        mask[0, :5], mask[2, :8] = False, False
    x_here = Tensor(x, requires_grad=True)
    with auxiliary.collect() as emitted:
        here(x_here, mask=mask if masked else None)
    ((_, loss),) = emitted.losses
    loss.backward()
    with hugging_face.in_full("float64"):
        x_there = torch.tensor(x, requires_grad=True)
        logits = x_there.reshape(-1, D) @ torch.tensor(here.moe.router.weight.data).T
        theirs = load_balancing_loss_func((logits,), E, k, torch.tensor(mask) if masked else None)
        (theirs * (0.3 / k)).backward()
    assert error(loss.item(), 0.3 / k * theirs.item()) < 1e-12
    assert error(x_here.grad, x_there.grad) < 1e-12
