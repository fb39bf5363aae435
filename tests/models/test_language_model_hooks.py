"""Hooks see and change a model's values; constraints and emitted losses add to its loss."""

from typing import Any

import numpy as np
import pytest

from nn import no_grad
from nn.errors import InputError
from nn.layers import registry
from nn.layers.auxiliary import emit_loss
from nn.layers.feed_forward import SwiGLU
from nn.models import Hook, LanguageModel
from nn.tensor import Tensor
from nn.train.constraints import CONSTRAINTS, create_constraints
from tests.models import tiny
from tests.models.mixed import ids, model

MODELS = {"language model": lambda: model(("retention", "full_attention")), "experts": tiny.model}


def loss_and_gradients(made: Any) -> tuple[float, dict[str, Any], dict[str, np.ndarray]]:
    made.zero_grad()
    total, figures = made.loss(ids(), ids(seed=3))
    total.backward()
    return total.item(), figures, {name: p.grad for name, p in made.named_parameters().items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", MODELS)
def test_no_hook_and_a_null_hook_give_the_same_bits(name: str) -> None:
    made = MODELS[name]()
    with no_grad():
        logits = made(ids()).data
    plain = loss_and_gradients(made)
    made.hooks.append(Hook())
    made.constraints = create_constraints({"activation": {"weight": 0.0}})
    with no_grad():
        assert np.array_equal(made(ids()).data, logits)
    hooked = loss_and_gradients(made)
    assert plain[0] == hooked[0]
    assert plain[1].keys() == hooked[1].keys()
    assert same(plain[2], hooked[2])


class Halved(Hook):
    """What a head of half the weights gives"""

    def on_logits(self, logits: Tensor) -> Tensor:
        return logits * 0.5


class Scaled(Hook):
    """What a norm of half the weights gives"""

    def on_hidden(self, hidden: Tensor) -> Tensor:
        return hidden * 0.5


@pytest.mark.parametrize("hook", [Halved, Scaled])
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_logits_can_be_changed(name: str, hook: type[Hook]) -> None:
    """With logits computed from halved ones, the gradient of the head is half of the halved head's"""
    made, twin = MODELS[name](), MODELS[name]()
    made.hooks.append(hook())
    twin.lm_head.weight.data = twin.lm_head.weight.data * 0.5
    with no_grad():
        np.testing.assert_allclose(made(ids()).data, twin(ids()).data, rtol=1e-12)
    (found, figures, own), (right, _, theirs) = loss_and_gradients(made), loss_and_gradients(twin)
    assert found == pytest.approx(right, rel=1e-12)
    assert figures["loss"] < 10
    for parameter in own:
        factor = 0.5 if parameter == "lm_head.weight" else 1.0
        np.testing.assert_allclose(own[parameter], theirs[parameter] * factor, rtol=1e-9, atol=1e-13)


class Penalty(Hook):
    """3 ‖w‖² of the head, and nothing of the experts' balance"""

    def __init__(self, made: Any) -> None:
        self.made = made

    def on_loss(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        weight = self.made.lm_head.weight
        return {"loss": terms["loss"], "penalty": (weight * weight).sum() * 3.0}


def test_the_loss_can_be_changed() -> None:
    made = tiny.model()
    plain, figures, before = loss_and_gradients(made)
    made.hooks.append(Penalty(made))
    weight = made.lm_head.weight.data
    total, changed, after = loss_and_gradients(made)
    assert changed["penalty"] == pytest.approx(3.0 * (weight**2).sum(), rel=1e-12)
    assert "moe/load_balance" in figures
    assert "moe/load_balance" not in changed
    assert total == pytest.approx(figures["loss"] + changed["penalty"], rel=1e-12)
    assert plain == pytest.approx(sum(value for name, value in figures.items()
                                      if name in ("loss", "moe/load_balance", "moe/router_z")), rel=1e-12)
    np.testing.assert_allclose(after["lm_head.weight"], before["lm_head.weight"] + 6.0 * weight, rtol=1e-9)


def test_hooks_follow_each_other() -> None:
    made = model()
    with no_grad():
        logits = made(ids()).data
        made.hooks += [Halved(), Halved()]
        np.testing.assert_allclose(made(ids()).data, logits / 4, rtol=1e-12)


# ---- what else adds to the loss ----


class Mean:
    """The mean of the hidden states to some power, at every step"""

    def __init__(self, power: int = 1) -> None:
        self.power = power

    def compute(self, model: Any, batch: Any, outputs: Any, step: int) -> dict[str, Tensor]:
        assert batch[0].shape == batch[1].shape == (2, 9)
        assert outputs["loss"].shape == ()
        assert step == 7
        return {"constraint/mean": outputs["hidden"].mean() ** self.power}


@pytest.mark.parametrize("name", MODELS)
def test_a_registered_constraint_is_in_the_loss_with_its_weight(name: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(CONSTRAINTS, "mean", Mean)
    made = MODELS[name]()
    made.set_noise(0, 7)
    plain, figures, before = loss_and_gradients(made)
    with no_grad():
        value = made.hidden(ids()).data.mean() ** 2
    made.constraints = create_constraints({"mean": {"weight": 0.25, "power": 2}})
    total, held, after = loss_and_gradients(made)
    assert held["constraint/mean"] == pytest.approx(0.25 * value, rel=1e-10)
    assert held["loss"] == figures["loss"]
    assert total == pytest.approx(plain + 0.25 * value, rel=1e-12)
    assert not np.array_equal(before["embed_tokens.weight"], after["embed_tokens.weight"])
    half, _ = made.loss(ids(), ids(seed=3), aux_scale=0.5)                 # one of two micro-batches
    assert half.item() == pytest.approx(figures["loss"] + 0.5 * (total - figures["loss"]), rel=1e-12)


@pytest.mark.parametrize("kind", ["activation", "smoothness"])
def test_the_constraints_there_are(kind: str) -> None:
    made = model()
    with no_grad():
        h = made.hidden(ids()).data
    made.constraints = create_constraints({kind: {"weight": 2.0}})
    expected = (h**2).mean() if kind == "activation" else ((h[:, 1:] - h[:, :-1]) ** 2).mean()
    assert made.loss(ids(), ids())[1][f"constraint/{kind}"] == pytest.approx(2.0 * expected, rel=1e-10)
    assert np.isfinite(made.loss(ids(1, 1), ids(1, 1))[0].item())


class Sparse(SwiGLU):
    """A feed-forward with an auxiliary loss of its own"""

    def forward(self, x: Tensor, **options: Any) -> tuple[Tensor, None]:
        y, state = super().forward(x, **options)
        emit_loss("mine/sparse", (y * y).mean() * 0.1)
        return y, state


def test_a_registered_layers_own_auxiliary_loss(monkeypatch: Any) -> None:
    """Of both layers, added up; found wherever the model collects"""
    monkeypatch.setitem(registry.FEED_FORWARDS, "sparse", f"{__name__}.Sparse")
    made = model("retention", feed_forward="sparse", options={"sparse": {"intermediate_size": 6}})
    total, figures, _ = loss_and_gradients(made)
    assert total == pytest.approx(figures["loss"] + figures["mine/sparse"], rel=1e-12)
    _, aux = made(ids(), return_aux=True, mode="chunk")
    assert aux["mine/sparse"].item() == pytest.approx(figures["mine/sparse"], rel=1e-12)
    with no_grad():
        plain = model("retention", feed_forward="swiglu", options={"swiglu": {"intermediate_size": 6}})
        plain.load_state_dict(made.state_dict())
        assert np.array_equal(plain(ids()).data, made(ids()).data)
    assert isinstance(made, LanguageModel)
    with pytest.raises(InputError, match="constraints: 'mien'"):
        create_constraints({"mien": {"weight": 1.0}})
