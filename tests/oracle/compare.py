"""What the comparisons share, without PyTorch: models of random parameters, Mixtral's names, errors."""

from typing import Any

import numpy as np

from nn import MoETransformer, MoETransformerConfig

Arrays = dict[str, np.ndarray]


def random_model(config: MoETransformerConfig, dtype: str, seed: int = 0) -> MoETransformer:
    """Weights far from their initial ones: norms differ per channel, routers prefer, attention looks."""
    model, rng = MoETransformer(config, dtype=dtype), np.random.default_rng(seed)
    for name, parameter in model.named_parameters().items():
        noise = rng.normal(scale=0.2, size=parameter.shape)
        parameter.data = (1.0 + noise if "norm" in name else noise).astype(parameter.dtype)
    return model


def tokens(vocab_size: int, batch: int = 2, length: int = 17, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(ids, targets), some of the targets without a label."""
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, vocab_size, (2, batch, length))
    targets[rng.random(targets.shape) < 0.2] = -100
    return ids, targets


def gradients(model: MoETransformer) -> Arrays:
    return their_names({name: parameter.grad for name, parameter in model.named_parameters().items()})


def their_names(ours: Arrays) -> Arrays:
    """Our arrays by the names of a Mixtral checkpoint, experts taken apart; independent of nn/interop."""
    theirs: Arrays = {}
    for name, array in ours.items():
        layer, _, rest = name.rpartition(".mlp.")
        if rest == "experts.gate_up_proj":
            for e, both in enumerate(array):
                half = len(both) // 2
                theirs[f"model.{layer}.block_sparse_moe.experts.{e}.w1.weight"] = both[:half]
                theirs[f"model.{layer}.block_sparse_moe.experts.{e}.w3.weight"] = both[half:]
        elif rest == "experts.down_proj":
            for e, down in enumerate(array):
                theirs[f"model.{layer}.block_sparse_moe.experts.{e}.w2.weight"] = down
        elif rest == "router.weight":
            theirs[f"model.{layer}.block_sparse_moe.gate.weight"] = array
        else:
            theirs[name if name == "lm_head.weight" else f"model.{name}"] = array
    return theirs


def error(ours: Any, theirs: Any) -> float:
    """Largest difference, in units of the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    scale = size(theirs)
    return size(ours - theirs) / scale if scale else size(ours)


def size(array: Any) -> float:
    return float(np.abs(array).max(initial=0.0))


def assert_close(ours: Arrays, theirs: Arrays, limit: float) -> None:
    """Every array, by name.  Where a gradient cancels (a router whose only weight is always 1, a query with a
    single key) both sides hold noise instead of 0: below `limit` in units of the largest of all."""
    assert ours.keys() == theirs.keys()
    noise = limit * max(map(size, theirs.values()))
    counting = [name for name in theirs if not max(size(ours[name]), size(theirs[name])) <= noise]
    errors = {name: error(ours[name], theirs[name]) for name in counting}
    wrong = [f"{name}: {e:.1e}" for name, e in errors.items() if not e < limit]
    assert not wrong, f"beyond {limit}: {', '.join(wrong)}"
