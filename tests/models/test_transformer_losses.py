"""The losses of a Transformer in each mode, their gradients, and what it reports besides."""

from typing import Any

import numpy as np
import pytest

from nn.data.objectives import masked_lm, shift_right
from nn.models import Hook, Transformer
from nn.optim import AdamW
from nn.tensor import Tensor

from .transformers import config, ids, model

MASK = 12


def cross_entropy(logits: Any, labels: np.ndarray) -> float:
    """Mean over the labels that count, in float64"""
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]
    return float(-picked[labels != -100].mean())


def masked() -> tuple[np.ndarray, np.ndarray]:
    return masked_lm(ids(batch=3), mask_id=MASK, vocab_size=13, rate=0.4, seed=1)


def answers() -> np.ndarray:
    labels = ids(batch=3, length=5, seed=4)
    labels[1, 3:] = -100                        # a shorter one
    labels[2, 1] = -100                         # one place that is not scored
    return labels


def batch_of(mode: str) -> tuple[np.ndarray, np.ndarray]:
    if mode == "encoder":
        return masked()
    row = ids(batch=3, length=8)
    return (row[:, :-1], row[:, 1:]) if mode == "decoder" else (ids(batch=3), answers())


def test_masked_lm_loss() -> None:
    """Scored where tokens were masked, each by the state at its own place"""
    m, (inputs, labels) = model(mode="encoder"), masked()
    assert 0 < (labels != -100).sum() < labels.size
    logits = m(inputs).numpy() @ m.main.embed_tokens.weight.numpy().T
    total, figures = m.loss(inputs, labels)
    assert total.item() == pytest.approx(cross_entropy(logits, labels), rel=1e-12)
    assert figures["loss"] == pytest.approx(total.item())


def test_seq2seq_loss() -> None:
    """The decoder is given the answer shifted right; padding at its end is nothing to it."""
    m, src, labels = model(mode="seq2seq"), ids(batch=3), answers()
    keep = np.array([[True] * 7, [True] * 3 + [False] * 4, [True] * 7])
    given = np.array([[m.cfg.start_id, *row[:-1]] for row in np.where(labels == -100, m.cfg.pad_id, labels)])
    total, _ = m.loss(src, labels, mask=keep)
    assert total.item() == pytest.approx(cross_entropy(m(src, given, mask=keep), labels), rel=1e-12)


def test_decoder_loss() -> None:
    m, (inputs, targets) = model(), batch_of("decoder")
    assert m.loss(inputs, targets)[0].item() == pytest.approx(cross_entropy(m(inputs), targets), rel=1e-12)


@pytest.mark.parametrize("mode", ["decoder", "encoder", "seq2seq"])
@pytest.mark.parametrize("kind", ["plain", "experts", "recursive"])
def test_gradients(mode: str, kind: str) -> None:
    """Of all parameters at once, along random directions, against finite differences; those of the source
    reach the encoder through every layer of the decoder."""
    changes: dict[str, Any] = {
        "plain": {"norm": "layernorm", "bias": True, "n_kv_heads": 1, "positional": "learned"},
        "experts": {"ffn_type": "moe", "moe": {"num_experts": 3, "top_k": 3, "router_entropy_coef": 0.02}},
        "recursive": {"recursive": True, "recurrence_steps": 2, "update_rule": "gated"}}[kind]
    m, (inputs, targets) = model(mode=mode, d_model=4, d_ff=5, max_seq_len=8, **changes), batch_of(mode)
    m.loss(inputs, targets)[0].backward()
    random, parameters = np.random.default_rng(0), m.parameters()
    before = [parameter.numpy().copy() for parameter in parameters]
    for _ in range(2):
        along = [random.standard_normal(x.shape) for x in before]

        def at(step: float, along: list[np.ndarray] = along) -> float:
            for parameter, x, direction in zip(parameters, before, along, strict=True):
                parameter.data = x + step * direction
            return float(m.loss(inputs, targets)[0].item())

        slope = (8.0 * (at(1e-4) - at(-1e-4)) - (at(2e-4) - at(-2e-4))) / 12e-4
        claimed = sum((parameter.grad * direction).sum()
                      for parameter, direction in zip(parameters, along, strict=True))
        assert claimed == pytest.approx(slope, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("mode", ["decoder", "seq2seq"])
def test_checkpointed_gradients_are_the_same(mode: str) -> None:
    """Layers run again in backward; the source's gradient is summed over the layers in another order."""
    found = []
    for on in (False, True):
        m = model(mode=mode, ffn_type="moe")
        m.gradient_checkpointing = on
        m.loss(*batch_of(mode))[0].backward()
        found.append([parameter.grad for parameter in m.parameters()])
    for plain, again in zip(*found, strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-10, atol=1e-13)


def test_both_sides_of_a_tied_embedding_get_gradients() -> None:
    m, (inputs, targets) = model(mode="seq2seq"), batch_of("seq2seq")
    m.loss(inputs, targets)[0].backward()
    assert all(parameter.grad is not None for parameter in m.parameters())


# ---- what return_aux gives ----

MOE = {"ffn_type": "moe",
       "moe": {"load_balance_coef": 0.02, "router_z_coef": 0.003, "router_entropy_coef": 0.05}}
KEYS = ["moe/load_balance", "moe/router_z", "moe/router_entropy"]


def test_aux_keys() -> None:
    assert model()(ids(), return_aux=True)[1] == {}
    assert list(model(**MOE)(ids(), return_aux=True)[1]) == KEYS
    assert list(model(ffn_type="moe")(ids(), return_aux=True)[1]) == KEYS
    assert model(ffn_type="moe", moe={"aux_loss": False})(ids(), return_aux=True)[1] == {}
    assert model(recursive=True, recurrence_steps=2)(ids(), return_aux=True)[1] == {}
    exits = model(recursive=True, recurrence_steps=2, exit_router="max_prob", ffn_type="moe")
    assert list(exits(ids(), return_aux=True)[1]) == [*KEYS, "recurrence/exit_frac"]
    assert list(model(mode="encoder", **MOE)(ids(), return_aux=True)[1]) == KEYS
    assert list(model(mode="seq2seq", **MOE)(ids(), ids(), return_aux=True)[1]) == KEYS


def test_aux_values_by_hand() -> None:
    """One layer whose router's input is known: the embedding, normalised twice over"""
    m = model(n_layers=1, positional="none", **MOE)
    layer = m.main.body.layers[0]
    layer.mixer.o_proj.weight.data[...] = 0.0                           # attention adds nothing
    x = m.main.embed_tokens.weight.numpy()[ids()].reshape(-1, 8)
    n = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer.connection.norms[1].weight.numpy()
    z = n @ layer.feed_forward.moe.router.weight.numpy().T
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    chosen = np.argsort(-z, axis=-1)[:, :2]
    load = np.bincount(chosen.reshape(-1), minlength=4) / chosen.size
    expected = {"moe/load_balance": 0.02 * 4 * (load * p.mean(0)).sum(),
                "moe/router_z": 0.003 * (np.log(np.exp(z).sum(-1)) ** 2).mean(),
                "moe/router_entropy": -0.05 * -(p * np.log(p)).sum(-1).mean()}
    aux = m(ids(), return_aux=True)[1]
    for name, value in expected.items():
        assert aux[name].item() == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("mode", ["decoder", "encoder", "seq2seq"])
def test_the_loss_is_cross_entropy_and_aux(mode: str) -> None:
    m, (inputs, targets) = model(mode=mode, **MOE), batch_of(mode)
    if mode == "seq2seq":
        targets = np.where(targets == -100, 0, targets)                 # so that both see the same tokens
    total, figures = m.loss(inputs, targets)
    given = (inputs, shift_right(targets, 1, 0)) if mode == "seq2seq" else (inputs,)
    aux = m(*given, return_aux=True)[1]
    extra = sum(each.item() for each in aux.values())
    assert total.item() == pytest.approx(figures["loss"] + extra, rel=1e-10)
    half, _ = m.loss(inputs, targets, aux_scale=0.5)
    assert half.item() == pytest.approx(figures["loss"] + 0.5 * extra, rel=1e-10)


class Small:
    """A constraint: the mean square of the last states."""

    def terms(self, model: Any, batch: Any, outputs: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {"constraint/small": (outputs["hidden"] * outputs["hidden"]).mean() * 0.5}


@pytest.mark.parametrize("mode", ["decoder", "encoder", "seq2seq"])
def test_a_constraint_is_added(mode: str) -> None:
    m, batch = model(mode=mode), batch_of(mode)
    before, _ = m.loss(*batch)
    m.constraints.append(Small())
    total, figures = m.loss(*batch)
    assert figures["constraint/small"] > 0.0
    assert total.item() == pytest.approx(before.item() + figures["constraint/small"], rel=1e-12)


class TextAlone(Hook):
    """Nothing but the cross-entropy, and a record of what else there was"""

    def on_loss(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen = sorted(terms)
        return {"loss": terms["loss"]}


@pytest.mark.parametrize("mode", ["decoder", "encoder", "seq2seq"])
def test_hooks_see_every_term_of_the_loss(mode: str) -> None:
    """What they leave is what is minimised: nothing of the encoder's experts behind their back."""
    m, batch, hook = model(mode=mode, **MOE), batch_of(mode), TextAlone()
    _, before = m.loss(*batch)
    m.hooks.append(hook)
    total, figures = m.loss(*batch)
    assert total.item() == figures["loss"] == before["loss"]
    encoders = [f"encoder/{name}" for name in before if name.startswith("encoder/")]
    assert len(encoders) == (3 if mode == "seq2seq" else 0)
    assert len(hook.seen) == 1 + 3 * (2 if mode == "seq2seq" else 1)
    assert m.constraints == []


def test_padding_is_in_no_loss() -> None:
    """Experts, encoder's and decoder's, are balanced over tokens alone."""
    m, src, labels = model(mode="seq2seq", **MOE), ids(batch=1), ids(batch=1, length=4, seed=4)
    alone, _ = m.loss(src, labels)
    keep = np.array([[True] * 7 + [False] * 2])
    padded, _ = m.loss(np.pad(src, ((0, 0), (0, 2))), np.pad(labels, ((0, 0), (0, 3)), constant_values=-100),
                       mask=keep)
    assert padded.item() == pytest.approx(alone.item(), rel=1e-12)


def test_aux_has_gradients() -> None:
    m = model(**MOE)
    aux: dict[str, Tensor] = m(ids(), return_aux=True)[1]
    for name in KEYS:
        m.zero_grad()
        aux[name].backward()
        router = m.main.body.layers[0].feed_forward.moe.router.weight
        assert np.abs(router.grad).max() > 0.0, name
        aux = m(ids(), return_aux=True)[1]


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_routers_learn_from_the_text(top_k: int) -> None:
    """Without auxiliary losses, too; a single weight that is always 1 would have no slope."""
    m = model(ffn_type="moe", moe={"top_k": top_k, "aux_loss": False})
    m.loss(*batch_of("decoder"))[0].backward()
    for layer in m.main.body.layers:
        assert np.abs(layer.feed_forward.moe.router.weight.grad).max() > 1e-6


def test_share_of_tokens_that_left() -> None:
    def fraction(threshold: float, keep: Any = None) -> float:
        m = model(recursive=True, recurrence_steps=3, exit_router="max_prob", exit_threshold=threshold)
        return float(m(ids(), mask=keep, return_aux=True)[1]["recurrence/exit_frac"].item())

    assert fraction(2.0) == 0.0
    assert fraction(0.0) == 1.0
    assert 0.0 < fraction(0.5) < 1.0


# ---- learning ----


def learned(m: Transformer, batch: Any, steps: int) -> list[float]:
    optimizer, losses = AdamW(m.named_parameters(), lr=2e-2), []
    for step in range(steps):
        m.zero_grad()
        total, figures = m.loss(*batch(step))
        total.backward()
        optimizer.step()
        losses.append(figures["loss"])
    return losses


def test_seq2seq_learns_to_reverse() -> None:
    m = Transformer(config(mode="seq2seq", d_model=24, d_ff=48, n_layers=1, init_std=0.1,
                           positional="learned"))

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        src = np.random.default_rng(step).integers(2, 13, (16, 4))
        return src, src[:, ::-1].copy()

    losses = learned(m.train(), batch, 150)
    assert losses[0] > 2.0
    assert np.mean(losses[-10:]) < 0.5


def test_encoder_learns_from_both_sides() -> None:
    """A masked token is the sum of its neighbours, left and right: a causal model could not know it."""
    m = Transformer(config(mode="encoder", d_model=24, d_ff=48, init_std=0.1, positional="learned"))

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        ends = np.random.default_rng(step).integers(0, 4, (32, 2))
        row = np.stack([ends[:, 0], np.full(32, MASK), ends[:, 1]], axis=1)
        labels = np.full_like(row, -100)
        labels[:, 1] = ends.sum(axis=1)
        return row, labels

    losses = learned(m.train(), batch, 150)
    assert np.mean(losses[-10:]) < 0.3
