"""Experts that specialise: two kinds of tokens, each with a map of its own, and two experts."""

import numpy as np

from nn.layers import auxiliary
from nn.layers.moe.block import Mixture, MixtureSettings
from nn.layers.moe.metrics import usage
from nn.optim import AdamW
from nn.tensor import Tensor


def test_two_experts_share_two_tasks() -> None:
    """The router's entropy falls, both experts stay in use, and each gets one kind of token."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, 2, 128)
    x = random.standard_normal((128, 6)).astype(np.float32)
    x[:, 0] = 2.0 * kinds - 1.0
    maps = random.standard_normal((2, 6, 6)).astype(np.float32)
    target = Tensor(np.einsum("nd,ndo->no", x, maps[kinds]))
    block = Mixture(MixtureSettings.create(hidden_size=6, intermediate_size=12, num_experts=2, top_k=1,
                                           activation="relu", renormalize=False, init_std=0.3))
    block.initialize(1)
    optimizer, records = AdamW(block.named_parameters(), lr=0.02, weight_decay=0.0), []
    for _ in range(300):
        with auxiliary.collect() as emitted:
            y, _ = block(Tensor(x[None]))
        loss = ((y[0] - target) * (y[0] - target)).mean()
        sum(emitted.totals().values(), start=loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        records.append(dict(emitted.figures) | {"loss": loss.item()})
    first, last = records[0], records[-1]
    assert last["loss"] < 0.01 * first["loss"]
    assert last["moe/router_entropy"] < 0.4 * first["moe/router_entropy"]
    assert usage(last["moe/load"])["usage_evenness"] > 0.8
    chosen = block.eval().moe.router(Tensor(x)).experts[:, 0]
    assert max((chosen == kinds).mean(), (chosen != kinds).mean()) > 0.95
