"""Whole models: the loss's gradient by every parameter against finite differences; checkpointing,
tying and accumulation."""

from typing import Any

import numpy as np
import pytest

from nn import MoETransformer, ops
from nn.tensor import Tensor
from tests.gradients import check
from tests.layers.test_gradients import choices, scattered
from tests.models.tiny import VARIANTS, ids, model

SMALL = {"vocab_size": 11, "hidden_size": 8, "head_dim": 2, "intermediate_size": 5, "norm_eps": 1e-2,
         "balance_coef": 0.3, "router_z_coef": 0.1}
MORE: dict[str, dict[str, Any]] = {
    "jitter": {"router_jitter": 0.1}, "capacity": {"capacity_factor": 0.6, "drop_policy": "position"},
    "everything": {"qk_norm": True, "attention_bias": True, "norm": "layernorm", "tie_embeddings": True,
                   "sliding_window": 3, "rope_interleaved": True, "router_jitter": 0.1}}


def steady(batch: np.ndarray, **changes: Any) -> MoETransformer:
    """A model whose routing no finite difference can change on this batch"""
    for seed in range(100):
        made = scattered(model(**(SMALL | changes)), seed)
        with choices() as margins:
            made.loss(batch[:, :-1], batch[:, 1:])
        if min(margins, default=1.0) > 0.05:
            return made
    raise AssertionError("no seed keeps the routing away from ties")


@pytest.mark.parametrize("name", [*VARIANTS, *MORE])
def test_finite_differences(name: str) -> None:
    batch = ids(2, 5, vocabulary=11)
    targets = batch[:, 1:].copy()
    targets[0, 1] = -100
    made = steady(batch, **(VARIANTS | MORE)[name])
    check(lambda: made.loss(batch[:, :-1], targets)[0], parameters=made.parameters(), entries=0)


def gradients(made: MoETransformer, batch: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    made.zero_grad()
    made.loss(batch[:, :-1], batch[:, 1:], **options)[0].backward()
    return {name: p.grad for name, p in made.named_parameters().items()}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", ["as it is", "dense", "tied", "jitter", "capacity", "everything"])
def test_checkpointing_changes_no_bit(name: str, dtype: str) -> None:
    """Not the loss, not the figures, not a gradient:
    auxiliary losses and jitter inside the recomputed blocks included."""
    made, batch = model(dtype, **(VARIANTS | MORE)[name]), ids(2, 7)
    made.set_noise(1, 2, 3)
    plain_loss, plain_figures = made.loss(batch[:, :-1], batch[:, 1:])
    plain = gradients(made, batch)
    made.gradient_checkpointing = True
    loss, figures = made.loss(batch[:, :-1], batch[:, 1:])
    assert loss.item() == plain_loss.item()
    assert figures.keys() == plain_figures.keys()
    for key in figures:
        np.testing.assert_array_equal(figures[key], plain_figures[key])
    for key, gradient in gradients(made, batch).items():
        np.testing.assert_array_equal(gradient, plain[key], err_msg=key)


def test_checkpointing_keeps_less() -> None:
    import tracemalloc
    made, batch = model("float32", hidden_size=32, num_layers=6), ids(4, 65)
    peaks = []
    for made.gradient_checkpointing in (False, True):
        gradients(made, batch)
        tracemalloc.start()
        loss, _ = made.loss(batch[:, :-1], batch[:, 1:])
        peaks.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        loss.backward()
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_tied_gradient_is_the_sum_of_both_uses(recomputed: bool) -> None:
    tied, untied, batch = model(tie_embeddings=True), model(), ids()
    values = tied.state_dict()
    untied.load_state_dict(values | {"lm_head.weight": values["embed_tokens.weight"]})
    tied.gradient_checkpointing = untied.gradient_checkpointing = recomputed
    one, two = gradients(tied, batch), gradients(untied, batch)
    np.testing.assert_allclose(one["embed_tokens.weight"], two["embed_tokens.weight"] + two["lm_head.weight"],
                               rtol=1e-12, atol=1e-15)
    for name in one.keys() - {"embed_tokens.weight"}:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-12, atol=1e-15)
    assert "lm_head.weight" not in one


def test_the_loss_is_that_of_the_logits() -> None:
    """Fused head and loss against logits first, with ignored targets."""
    made, batch = model(), ids()
    targets = batch[:, 1:].copy()
    targets[1, 2:5] = -100
    total, figures = made.loss(batch[:, :-1], targets)
    total.backward()
    fused = {name: p.grad for name, p in made.named_parameters().items()}
    made.zero_grad()
    logits, extra = made(batch[:, :-1], return_aux=True)
    losses = ops.cross_entropy(logits.reshape(-1, 31), targets.reshape(-1))
    loss = ops.sum(losses) * (1.0 / (targets != -100).sum())
    for term in extra.values():
        loss = loss + term
    loss.backward()
    assert total.item() == pytest.approx(loss.item(), rel=1e-14)
    parts = figures["loss"] + sum(term.item() for term in extra.values())
    assert parts == pytest.approx(total.item(), rel=1e-14)
    for name, parameter in made.named_parameters().items():
        np.testing.assert_allclose(parameter.grad, fused[name], rtol=1e-10, atol=1e-14, err_msg=name)


def test_micro_batches_equal_one_batch() -> None:
    """Cross-entropy over unequal numbers of targets; auxiliary losses off,
    as they are means over their own batch."""
    made, batch = model(balance_coef=0.0, router_z_coef=0.0), ids(4, 9)
    targets = batch[:, 1:].copy()
    targets[0, :5] = -100
    targets[3, 2] = -100
    valid = int((targets != -100).sum())
    made.loss(batch[:, :-1], targets)[0].backward()
    whole = {name: p.grad for name, p in made.named_parameters().items()}
    made.zero_grad()
    total = 0.0
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        loss, _ = made.loss(batch[rows, :-1], targets[rows], valid_tokens=valid)
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(made.loss(batch[:, :-1], targets)[0].item(), rel=1e-13)
    for name, parameter in made.named_parameters().items():
        np.testing.assert_allclose(parameter.grad, whole[name], rtol=1e-11, atol=1e-14, err_msg=name)


def test_auxiliary_losses_are_scaled_by_the_caller() -> None:
    made, batch = model(), ids()
    plain, figures = made.loss(batch[:, :-1], batch[:, 1:], aux_scale=0.0)
    half, _ = made.loss(batch[:, :-1], batch[:, 1:], aux_scale=0.5)
    assert plain.item() == figures["loss"]
    auxiliary = figures["moe/load_balance"] + figures["moe/router_z"]
    assert half.item() == pytest.approx(figures["loss"] + 0.5 * auxiliary, rel=1e-14)
    assert figures["moe/load"].shape == (2, 4)
    np.testing.assert_allclose(figures["moe/load"].sum(axis=1), 1.0)


def test_the_router_learns() -> None:
    """Its gradient comes from the main loss too, not from the balance losses alone."""
    made = model(balance_coef=0.0, router_z_coef=0.0)
    found = gradients(made, ids())
    assert all(np.abs(found[f"layers.{i}.mlp.router.weight"]).max() > 1e-4 for i in range(2))


@pytest.mark.parametrize("name", ["as it is", "dense", "layernorm", "tied", "qk-norm"])
def test_bfloat16_is_finite_and_close(name: str) -> None:
    half, full = model("bfloat16", init_std=0.1, **VARIANTS[name]), model(init_std=0.1, **VARIANTS[name])
    batch = ids(2, 33)
    full.load_state_dict({key: values.astype(np.float64) for key, values in half.state_dict().items()})
    loss, right = half.loss(batch[:, :-1], batch[:, 1:])[0], full.loss(batch[:, :-1], batch[:, 1:])[0]
    assert loss.dtype == np.float32
    assert loss.item() == pytest.approx(right.item(), rel=5e-3)
    found, exact = gradients(half, batch), gradients(full, batch)
    for key, gradient in found.items():
        assert gradient.dtype == np.float32
        assert np.isfinite(gradient).all()
        lengths = float(np.linalg.norm(gradient) * np.linalg.norm(exact[key]))
        assert float(np.sum(gradient * exact[key])) > 0.97 * lengths, key    # near ties of a router may turn


def test_float32_is_close_to_float64() -> None:
    single, double, batch = model("float32"), model(), ids(2, 33)
    double.load_state_dict({key: values.astype(np.float64) for key, values in single.state_dict().items()})
    found, exact = gradients(single, batch), gradients(double, batch)
    for key, gradient in found.items():
        np.testing.assert_allclose(gradient, exact[key], rtol=1e-3, atol=2e-5 * np.abs(exact[key]).max(),
                                   err_msg=key)


def test_a_repeated_batch_is_learned() -> None:
    made, batch = model("float32", init_std=0.1), ids(2, 9)
    for _ in range(60):
        for name, gradient in gradients(made, batch).items():
            made.named_parameters()[name].data -= 0.3 * gradient
    assert made.loss(batch[:, :-1], batch[:, 1:])[1]["loss"] < 0.2


def test_find_nonfinite_names_the_layer() -> None:
    from nn.errors import NonFiniteError
    from nn.tensor import find_nonfinite
    made, batch = model(), ids()
    made.layers[1].mlp.experts.down_proj.data[2, 0, 0] = np.nan
    assert np.isnan(made.loss(batch[:, :-1], batch[:, 1:])[0].item())
    with find_nonfinite(), np.errstate(all="ignore"), pytest.raises(
            NonFiniteError,
            match=r"^GroupedLinear in layers\.1\.mlp\.experts: first non-finite result \(input shapes "):
        made.loss(batch[:, :-1], batch[:, 1:])
    with find_nonfinite(), np.errstate(all="ignore"), pytest.raises(
            NonFiniteError,
            match=r"^GroupedLinear in MoETransformer\.layers\.1\.mlp\.experts: first non-finite result"):
        made(batch)


def test_gradients_reach_an_embedding_used_by_hand() -> None:
    made = model()
    x = Tensor(made.embed_tokens.weight.data[ids()], requires_grad=True)
    made.layers[0](x)[0].sum().backward()
    assert x.grad.shape == (2, 9, 16)
