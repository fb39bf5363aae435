"""LoRA: nothing changes at the start, only adapters train, merging means the same, counts are exact."""

import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from nn import MoETransformer, MoETransformerConfig, Tensor, no_grad
from nn.backends import kernels
from nn.errors import InputError
from nn.layers.linear import Linear
from nn.layers.lora import Adapter, LoRA, LoRAExperts, LoRALinear, LoRASettings
from nn.layers.module import Module
from nn.layers.moe import Experts
from nn.models.language_model import LanguageModel, LanguageModelConfig
from nn.ops.count import count_flops
from nn.optim import AdamW
from nn.random import drawn_from
from tests.gradients import check

CONFIG = MoETransformerConfig(vocab_size=31, hidden_size=16, num_heads=2, intermediate_size=12, num_experts=3,
                              max_seq_len=16)
MIXED = LanguageModelConfig(vocab_size=31, hidden_size=8, num_layers=3, max_seq_len=16, tie_embeddings=True,
                            mixer=("mla", "mamba", "gated_attention"), feed_forward=("swiglu", "moe"),
                            prelude=("rmc",), options={
                                "mla": {"num_heads": 2}, "gated_attention": {"num_heads": 2},
                                "moe": {"intermediate_size": 6, "num_experts": 3}, "rmc": {"mem_size": 3}})
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
EVERYTHING = LoRASettings(r=3, targets=("*",))


class Holder(Module):
    """A linear layer by itself"""

    def __init__(self, inputs: int = 5, outputs: int = 7, dtype: str = "float64", bias: bool = True) -> None:
        self.proj = Linear(inputs, outputs, bias=bias, std=0.5, dtype=dtype)
        self.initialize(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def tokens(batch: int = 2, length: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 31, (batch, length + 1))


def disturbed(lora: LoRA, scale: float = 0.3) -> LoRA:
    """Adapters that correct something."""
    for i, found in enumerate(lora.adapted().values()):
        b = found.adapter.lora_B
        b.data = (scale * normal(*b.shape, seed=i)).astype(b.dtype)
    return lora


def weights(model: Module) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in model.state_dict().items() if "adapter" not in name}


@pytest.mark.parametrize(("alpha", "rslora", "factor"), [(16.0, False, 8.0), (6.0, True, 6.0 / math.sqrt(2))])
def test_the_formula(alpha: float, rslora: bool, factor: float) -> None:
    holder = Holder()
    w, bias = holder.proj.weight.numpy(), holder.proj.bias.numpy()
    bias[...] = normal(7)
    lora = disturbed(LoRA(holder, LoRASettings(r=2, alpha=alpha, rslora=rslora, targets=("proj",))))
    (found,) = lora.adapted().values()
    a, b = found.adapter.lora_A.numpy(), found.adapter.lora_B.numpy()
    assert (a.shape, b.shape) == ((2, 5), (7, 2))
    x = normal(3, 4, 5)
    expected = x @ w.T + bias + factor * (x @ a.T) @ b.T
    np.testing.assert_allclose(holder(Tensor(x)).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(holder.proj.weight.numpy(), w + factor * b @ a, atol=1e-12)


def test_a_starts_uniform_or_normal() -> None:
    """Kaiming's uniform with a = √5 is U(±1 / √in): PEFT's."""
    for gaussian, deviation in ((False, 1 / math.sqrt(3 * 400)), (True, 1 / 50)):
        holder = Holder(400, 30)
        settings = LoRASettings(r=50, targets=("proj",), gaussian=gaussian)
        (found,) = LoRA(holder, settings, seed=1).adapted().values()
        a = found.adapter.lora_A.numpy()
        assert a.std() == pytest.approx(deviation, rel=0.03)
        assert (np.abs(a).max() <= 1 / math.sqrt(400)) == (not gaussian)
        assert not found.adapter.lora_B.numpy().any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["MoETransformer", "mixed blocks"])
def test_at_the_start_nothing_changes(config: Any, dtype: str) -> None:
    """Every linear layer and expert, those too whose weight is read by their block."""
    make = MoETransformer if config is CONFIG else LanguageModel
    plain, model = make(config, seed=3, dtype=dtype).eval(), make(config, seed=3, dtype=dtype).eval()
    lora = LoRA(model, EVERYTHING, seed=7)
    assert sum(type(m) is Linear or type(m) is Experts for m in model.modules()) == 0
    assert len(lora.adapted()) > 10
    ids = tokens()
    np.testing.assert_array_equal(model(ids).numpy(), plain(ids).numpy())
    assert weights(model) == weights(plain)
    names = [name for name in model.named_parameters() if "adapter" not in name]
    assert names == list(plain.named_parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_a_linear_layer(bias: bool) -> None:
    holder = Holder(bias=bias)
    lora = disturbed(LoRA(holder, LoRASettings(r=2, targets=("proj",))))
    check(holder, normal(3, 4, 5), parameters=list(lora.named_parameters().values()))
    assert holder.proj.frozen_weight.grad is None
    assert not bias or holder.proj.bias.grad is None


@pytest.mark.parametrize("config", [CONFIG.replace(balance_coef=0.0, router_z_coef=0.0), MIXED],
                         ids=["MoETransformer", "mixed blocks"])
def test_gradients_of_every_adapter_of_a_model(config: Any) -> None:
    make = MoETransformer if config is CONFIG else LanguageModel
    make = MoETransformer if isinstance(config, MoETransformerConfig) else make
    model = make(config, dtype="float64").eval()
    lora = disturbed(LoRA(model, EVERYTHING), 0.02)
    parameters = lora.named_parameters()
    assert all("adapter" in name for name in parameters)
    ids = tokens(1, 4)
    check(lambda: model(ids), parameters=list(parameters.values()), entries=0, tolerance=1e-5)
    with_gradient = [name for name, p in model.named_parameters().items() if p.grad is not None]
    assert with_gradient == list(parameters)


def test_at_the_start_only_b_has_a_gradient() -> None:
    model = MoETransformer(CONFIG)
    lora, ids = LoRA(model, LoRASettings(targets=("q_proj", *EXPERTS))), tokens()
    model.loss(ids[:, :-1], ids[:, 1:])[0].backward()
    for name, p in lora.named_parameters().items():
        assert np.any(p.grad) == ("lora_B" in name), name


def step(model: Any, optimizer: AdamW, ids: np.ndarray) -> float:
    loss, _ = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@pytest.mark.parametrize("all_parameters", [True, False])
def test_only_adapters_train(all_parameters: bool) -> None:
    """Whether the optimizer is given them or all parameters: the others have no gradient and do not decay."""
    model, ids = MoETransformer(CONFIG.replace(init_std=0.2)), tokens()
    before = weights(model)
    lora = LoRA(model, LoRASettings(targets=("*_proj", *EXPERTS), train_also=("norm.weight",)))
    owner = model if all_parameters else lora
    optimizer = AdamW(owner.named_parameters(), lr=0.02)
    losses = [step(model, optimizer, ids) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    after = weights(model)
    assert [name for name in before if before[name] != after[name]] == ["norm.weight"]


def test_merged_and_back() -> None:
    for dtype, near in (("float32", 1e-5), ("float64", 1e-13)):
        model, ids = MoETransformer(CONFIG, dtype=dtype).eval(), tokens()
        lora = disturbed(LoRA(model, LoRASettings(targets=("q_proj", "lm_head", *EXPERTS))))
        before, adapted = {k: v.copy() for k, v in model.state_dict().items()}, model(ids).numpy()
        lora.merge()
        np.testing.assert_allclose(model(ids).numpy(), adapted, atol=near * np.abs(adapted).max())
        with count_flops() as merged:
            model(ids)
        with count_flops() as plain:
            MoETransformer(CONFIG, dtype=dtype)(ids)
        assert merged.flops == plain.flops                  # as fast as without
        with pytest.raises(InputError, match="merged already"):
            lora.merge()
        with pytest.raises(InputError, match="unmerge"), lora.disabled():
            pass
        changed = model.state_dict()
        lora.unmerge()
        for name, values in model.state_dict().items():
            ulp = np.finfo(dtype).eps * np.maximum(np.abs(values), np.abs(changed.get(name, values)))
            assert (np.abs(values - before[name]) <= ulp).all(), name
        np.testing.assert_allclose(model(ids).numpy(), adapted, atol=near * np.abs(adapted).max())


def test_weights_saved_while_merged_hold_the_correction_once() -> None:
    """They are those of a plain model; one with adapters does not take them for its own."""
    model, ids = MoETransformer(CONFIG).train(), tokens()
    names = list(model.state_dict())
    lora = disturbed(LoRA(model, LoRASettings(targets=("v_proj", *EXPERTS))))
    expected = model.eval()(ids).numpy()
    model.train()
    lora.merge()
    saved = {name: values.copy() for name, values in model.state_dict().items()}
    assert list(saved) == names
    plain, other = MoETransformer(CONFIG).eval(), MoETransformer(CONFIG)
    plain.load_state_dict(saved)
    np.testing.assert_allclose(plain(ids).numpy(), expected, atol=1e-5 * np.abs(expected).max())
    LoRA(other, LoRASettings(targets=("v_proj", *EXPERTS)))
    with pytest.raises(InputError, match="lora_A: missing"):
        other.load_state_dict(saved)
    model.eval()                                             # the adapters come back in the model's mode
    lora.unmerge()
    assert not any(module.training for module in model.modules())
    assert len(model.state_dict()) > len(names)


class Twice(Module):
    """One layer in two places"""

    def __init__(self) -> None:
        self.first = Linear(5, 5)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_a_layer_that_stands_twice_has_one_adapter() -> None:
    model, x = Twice(), Tensor(normal(3, 5).astype(np.float32))
    model.initialize(0)
    lora = disturbed(LoRA(model, LoRASettings(r=2, targets=("second",))))
    assert lora.num_parameters() == 2 * 10 == sum(p.size for p in lora.named_parameters().values())
    before = model(x).numpy()
    lora.merge()
    np.testing.assert_allclose(model(x).numpy(), before, atol=1e-6)


def test_merging_in_half_precision_rounds_once() -> None:
    holder = Holder(dtype="bfloat16")
    w = holder.proj.weight.numpy().astype(np.float64)
    lora = disturbed(LoRA(holder, LoRASettings(r=2, targets=("proj",))))
    (found,) = lora.adapted().values()
    a, b = (p.numpy().astype(np.float64) for p in (found.adapter.lora_A, found.adapter.lora_B))
    lora.merge()
    exact = w + 8.0 * b @ a
    assert (np.abs(holder.proj.weight.numpy().astype(np.float64) - exact) <= np.abs(exact) * 2.0**-8).all()


def test_a_merged_model_cannot_be_trained_by_mistake() -> None:
    model, ids = MoETransformer(CONFIG), tokens()
    lora = LoRA(model)
    lora.merge()
    with pytest.raises(RuntimeError, match="nothing here requires a gradient"):
        model.loss(ids[:, :-1], ids[:, 1:])[0].backward()


def test_disabled_is_the_model_as_it_was() -> None:
    model, ids = MoETransformer(CONFIG), tokens()
    before = model(ids).numpy()
    lora = disturbed(LoRA(model, LoRASettings(targets=("v_proj", *EXPERTS))))
    adapted = model(ids).numpy()
    with lora.disabled():
        np.testing.assert_array_equal(model(ids).numpy(), before)
    assert np.abs(adapted - before).max() > 1e-3
    np.testing.assert_array_equal(model(ids).numpy(), adapted)


def test_removed_leaves_a_plain_model() -> None:
    model, ids = MoETransformer(CONFIG), tokens()
    names, before = list(model.named_parameters()), model(ids).numpy()
    lora = disturbed(LoRA(model, LoRASettings(targets=("v_proj", *EXPERTS))))
    lora.remove()
    np.testing.assert_array_equal(model(ids).numpy(), before)
    assert list(model.named_parameters()) == names
    assert not any(isinstance(m, Adapter | LoRALinear | LoRAExperts) for m in model.modules())
    assert [m.name for m in model.layers[0].self_attn.modules()][1:4] == ["q_proj", "k_proj", "v_proj"]
    model.loss(ids[:, :-1], ids[:, 1:])[0].backward()
    assert all(p.grad is not None for p in model.parameters())
    LoRA(model)                                              # and there is room for others


def test_dropout_hides_inputs_in_training_only() -> None:
    holder = Holder(20, 4)
    settings = LoRASettings(r=2, dropout=0.25, targets=("proj",))
    lora = disturbed(LoRA(holder, settings))
    (found,) = lora.adapted().values()
    w = found.weight.numpy()
    a, b = found.adapter.lora_A.numpy(), found.adapter.lora_B.numpy()
    x = normal(50, 20)
    kept = drawn_from(found.adapter.dropout.noise, (50, 20)) >= 0.25
    assert 0.7 < kept.mean() < 0.8
    expected = x @ w.T + 8.0 * (x * kept / 0.75 @ a.T) @ b.T
    np.testing.assert_allclose(holder(Tensor(x)).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(holder.eval()(Tensor(x)).numpy(), x @ w.T + 8.0 * (x @ a.T) @ b.T, atol=1e-12)
    holder.train()
    check(holder, normal(3, 20), parameters=list(lora.named_parameters().values()))
    with pytest.raises(InputError, match="reads the weight itself"):
        _ = holder.proj.weight


def test_adapters_of_a_model_in_evaluation_are_in_evaluation() -> None:
    model, ids = MoETransformer(CONFIG).eval(), tokens()
    disturbed(LoRA(model, LoRASettings(dropout=0.5)))
    first = model(ids).numpy()
    model.set_noise(0, 1, 0)
    np.testing.assert_array_equal(model(ids).numpy(), first)
    assert not any(module.training for module in model.modules())


def test_dropout_follows_the_step_and_differs_between_layers() -> None:
    model, ids = MoETransformer(CONFIG), tokens()
    lora = disturbed(LoRA(model, LoRASettings(dropout=0.5)))

    def at(step: int) -> np.ndarray:
        model.set_noise(0, step, 0)
        return model(ids).numpy()

    first = at(1)
    assert np.abs(at(2) - first).max() > 1e-4
    np.testing.assert_array_equal(at(1), first)
    places = [tuple(found.adapter.dropout.noise) for found in lora.adapted().values()]
    assert len(set(places)) == len(places) == 6


def test_recomputing_layers_gives_the_same_gradients() -> None:
    """Their input needs none when the embedding is frozen; the adapters below do."""
    found = []
    for checkpointing in (False, True):
        model, ids = MoETransformer(CONFIG), tokens()
        lora = disturbed(LoRA(model, LoRASettings(dropout=0.5)))
        model.gradient_checkpointing = checkpointing
        model.loss(ids[:, :-1], ids[:, 1:])[0].backward()
        found.append([p.grad for p in lora.named_parameters().values()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_frozen_weights_cost_no_gradient_work() -> None:
    """Of q, k and v only the adapters' two products have a gradient by their weight."""
    model, ids = MoETransformer(CONFIG), tokens()
    LoRA(model, LoRASettings(r=2, targets=("q_proj",)))
    loss, _ = model.loss(ids[:, :-1], ids[:, 1:])
    with patch.object(kernels, "linear_backward", wraps=kernels.linear_backward) as both:
        loss.backward()
    assert sorted(call.args[2].shape for call in both.call_args_list) == [(2, 16)] * 2 + [(16, 2)] * 2


@pytest.mark.parametrize("targets", [("q_proj", "k_proj"), ("lm_head",), EXPERTS, ("layers.0.*",)])
def test_counts(targets: tuple[str, ...]) -> None:
    plain, model, ids = MoETransformer(CONFIG), MoETransformer(CONFIG), tokens()
    lora = LoRA(model, LoRASettings(r=3, targets=targets))
    assert lora.num_parameters() == sum(p.size for p in lora.named_parameters().values())
    assert lora.num_parameters() == model.num_parameters() - plain.num_parameters()
    with no_grad(), count_flops() as before:
        plain(ids)
    with no_grad(), count_flops() as after:
        model(ids)
    expected = 2 * 3 * 31 * 16 if targets == ("lm_head",) else lora.flops(ids.size)     # it reads its weight
    assert after.flops - before.flops == expected


def test_counts_of_a_large_model_allocate_nothing() -> None:
    model = MoETransformer.moe_6_9b()
    lora = LoRA(model, LoRASettings(r=8))
    assert lora.num_parameters() == 30 * 8 * ((768 + 768) + 2 * (768 + 64))
    assert not any(p.allocated for p in model.parameters())


def test_adapters_of_the_same_seed_are_the_same_and_go_into_files() -> None:
    one, two = MoETransformer(CONFIG), MoETransformer(CONFIG)
    first, second = LoRA(one, seed=1), LoRA(two, seed=1)
    for a, b in zip(first.named_parameters().values(), second.named_parameters().values(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    disturbed(first)
    two.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(two(tokens()).numpy(), one(tokens()).numpy())


@pytest.mark.parametrize(("settings", "message"), [
    ({"r": 0}, "r: 0"), ({"dropout": 1.0}, "dropout"), ({"targets": ()}, "targets: empty"),
    ({"targets": ("q_prj",)}, r"targets: 'q_prj'.*q_proj"), ({"train_also": ("*nrm*",)}, "train_also"),
    ({"targets": EXPERTS, "dropout": 0.1}, "dropout: experts")])
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    model = MoETransformer(CONFIG)
    with pytest.raises(InputError, match=message):
        LoRA(model, LoRASettings(**settings))
    assert all(p.requires_grad for p in model.parameters())            # nothing was changed
    assert not any(isinstance(m, LoRALinear) for m in model.modules())


def test_adapters_are_not_put_on_adapters() -> None:
    model = MoETransformer(CONFIG)
    LoRA(model)
    with pytest.raises(InputError, match="has adapters already"):
        LoRA(model)
