"""A Transformer whose layers are applied several times."""

from typing import Any

import numpy as np
import pytest

from nn.cache import StepCache
from nn.layers.recursion.engine import RecursionEngine
from nn.models import Transformer
from nn.tensor import Tensor

from .transformers import config, ids, model


def tied(deep: Transformer, shared: Transformer, blocks: int) -> None:
    """The layers of `deep` get the weights of those that `shared` repeats."""
    weights = shared.state_dict()
    deep.load_state_dict({name: weights[name if ".layers." not in name else _core(name, blocks)]
                          for name in deep.named_parameters()})


def _core(name: str, blocks: int) -> str:
    head, _, rest = name.partition(".body.layers.")
    layer, _, rest = rest.partition(".")
    return f"{head}.body.core.layers.{int(layer) % blocks}.{rest}"


@pytest.mark.parametrize("mode", ["decoder", "encoder", "seq2seq"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_steps_are_tied_layers(mode: str, blocks: int) -> None:
    """Values, and the shared block's gradient is the sum over the tied layers'"""
    shared = model(mode=mode, recursive=True, recurrence_steps=3, recursive_blocks=blocks)
    deep = model(mode=mode, n_layers=3 * blocks)
    tied(deep, shared, blocks)
    given = (ids(), ids(length=5)) if mode == "seq2seq" else (ids(),)
    np.testing.assert_allclose(shared(*given).numpy(), deep(*given).numpy(), rtol=1e-12, atol=1e-12)
    targets = ids(length=5 if mode == "seq2seq" else 7, seed=3)
    for m in (shared, deep):
        m.loss(ids(), targets)[0].backward()
    sums: dict[str, Any] = {}
    for name, parameter in deep.named_parameters().items():
        name = _core(name, blocks) if ".layers." in name else name
        sums[name] = sums.get(name, 0.0) + parameter.grad
    for name, parameter in shared.named_parameters().items():
        np.testing.assert_allclose(parameter.grad, sums[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_parameters_of_one_block() -> None:
    plain, one = Transformer(config(n_layers=1)), Transformer(config(recursive=True, recurrence_steps=9))
    assert one.num_parameters() == plain.num_parameters()


def test_depth_of_a_call() -> None:
    """Another depth without another model; 0 leaves the embedding to the head"""
    x, m = ids(), model(recursive=True, recurrence_steps=4)
    for steps in (1, 2, 6):
        other = model(recursive=True, recurrence_steps=steps)
        assert np.array_equal(m(x, recurrence_steps=steps).numpy(), other(x).numpy())
        assert np.array_equal(m.loss(x, x, recurrence_steps=steps)[0].numpy(), other.loss(x, x)[0].numpy())
    assert np.array_equal(m(x).numpy(), m(x, recurrence_steps=4).numpy())
    h = m.main.embed_tokens.weight.numpy()[x]
    h = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * m.main.norm.weight.numpy()
    np.testing.assert_allclose(m(x, recurrence_steps=0).numpy(), h @ m.main.embed_tokens.weight.numpy().T,
                               rtol=1e-12, atol=1e-12)


def test_rules() -> None:
    """What the layers add is added once, by replace and by residual; the other rules do something else."""
    def of(rule: str) -> np.ndarray:
        return model(recursive=True, recurrence_steps=3, update_rule=rule)(ids()).numpy()

    assert np.array_equal(of("replace"), of("residual"))
    for rule in ("gated", "ema", "norm"):
        assert not np.allclose(of("replace"), of(rule), atol=1e-3), rule


def exits_at(step_of: np.ndarray) -> Any:
    """A router of one's own: token [b,t] leaves at its step"""
    def router(h: Tensor, step: int, cache: StepCache) -> np.ndarray:
        assert h.shape[:2] == step_of.shape
        cache[0, "asked"] = cache.get((0, "asked"), 0) + 1              # kept from step to step
        assert cache[0, "asked"] == step + 1
        return np.asarray(step_of <= step)
    return router


def test_exit_router_of_ones_own() -> None:
    """A token that left keeps its state to the last bit; those that stay see it as it was."""
    m = model(recursive=True, recurrence_steps=4)
    engine = m.main.body
    assert isinstance(engine, RecursionEngine)
    at = np.array([[0, 1, 2, 3, 9, 9, 9], [9] * 7])
    engine.exit_router = exits_at(at)
    x = m.main.embed_tokens(ids())
    states = [each.numpy() for each in engine.unrolled(x)[0]]
    for t in range(7):
        left = min(int(at[0, t]), 4)
        for step in range(left, 5):
            assert np.array_equal(states[step][0, t], states[left][0, t])
        assert left == 0 or not np.array_equal(states[left][0, t], states[left - 1][0, t])
    aux = m(ids(), return_aux=True)[1]
    assert aux["recurrence/exit_frac"].item() == pytest.approx(4 / 14)
    engine.exit_router = exits_at(np.full((2, 7), 9))
    plain = model(recursive=True, recurrence_steps=4)
    assert np.array_equal(m(ids()).numpy(), plain(ids()).numpy())


@pytest.mark.parametrize("criterion", ["never", "latent", "max_prob", "kl", "argmax"])
def test_exit_criteria(criterion: str) -> None:
    """They read out by the model's own norm and head; nobody leaves at a threshold out of reach."""
    reach = {"max_prob": 2.0, "argmax": 99.0}.get(criterion, -1.0)
    plain = model(recursive=True, recurrence_steps=3)(ids()).numpy()
    m = model(recursive=True, recurrence_steps=3, exit_router=criterion, exit_threshold=reach)
    assert np.array_equal(m(ids()).numpy(), plain)
    early = model(recursive=True, recurrence_steps=3, exit_router="max_prob", exit_threshold=0.0)
    assert np.array_equal(early(ids()).numpy(), m(ids(), recurrence_steps=0).numpy())


def test_step_cache() -> None:
    """Values by (layer, name), kept between steps, fresh in every pass; the input of an injected recursion is
    projected once for all steps."""
    cache = StepCache()
    cache[0, "kv"] = 1
    assert (cache.get((0, "kv")), cache.get((1, "kv"))) == (1, None)
    assert [cache.once((1, "kv"), lambda: 2), cache.once((1, "kv"), lambda: 3)] == [2, 2]
    assert [cache.exchange("h", 1), cache.exchange("h", 2), cache["h"]] == [None, 1, 2]
    cache.clear()
    assert cache.get((0, "kv")) is None

    m = model(recursive=True, recurrence_steps=5, inject_input=True)
    calls: list[int] = []
    inner = m.main.body.inject_e.forward
    m.main.body.inject_e.forward = lambda x: calls.append(1) or inner(x)
    m(ids())
    assert len(calls) == 1
    m(ids())
    assert len(calls) == 2
