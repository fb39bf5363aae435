"""On the emulated device: packed rows, softcap, dropout, caches of fixed size with sinks and first tokens."""

from typing import Any

import numpy as np
import pytest

from nn.cache import StaticKVCache
from nn.layers import registry
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import cases_of, close, inputs, shaken
from tests.device.test_blocks import RTOL, both, there

SHAPE: dict[str, Any] = {"hidden_size": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}


def pair(name: str, device: Any, **options: Any) -> tuple[Any, Any]:
    """The same block here and there"""
    blocks = [shaken(registry.create("mixer", name, **SHAPE, **options), 1) for _ in range(2)]
    return blocks[0], blocks[1].to(device)


@pytest.mark.parametrize("name", ["full_attention", "mamba", "delta_net"])
def test_packed_rows(name: str, fast: Any) -> None:
    case, ids = cases_of("mixer", name)[0], np.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3]])
    here, block, given = case.build("float32"), case.build("float32").to(fast), inputs(case.settings, 2, 6)
    given = given.cast("float32")
    with no_grad():
        y, _ = block(Tensor(there(fast, given).x), segment_ids=ids)
        close(y.numpy()[ids > 0], here(Tensor(given.x), segment_ids=ids)[0].numpy()[ids > 0], RTOL)


@pytest.mark.parametrize(("name", "options"), [
    ("full_attention", {"softcap": 0.7, "sinks": True}),
    ("sliding_attention", {"window": 3, "sink_tokens": 1, "softcap": 0.7, "attn_dropout": 0.4})], ids=str)
def test_softcap_and_dropout(name: str, options: dict[str, Any], fast: Any) -> None:
    here, block = pair(name, fast, **options)
    given = inputs(here.settings, 2, 6, dtype="float32")
    for one in (here, block):
        one.train()
    for found, expected in zip(both(block, there(fast, given), "chunk"), both(here, given, "chunk"),
                               strict=True):
        close(found, expected, RTOL)


@pytest.mark.parametrize("options", [{"window": 3, "sink_tokens": 2}, {"window": 3, "sinks": True}], ids=str)
def test_caches_of_fixed_size(options: dict[str, Any], fast: Any) -> None:
    here, block = pair("sliding_attention", fast, **options)
    given = inputs(here.settings, 2, 7, dtype="float32")
    cache = StaticKVCache(1, 2, 8, like=block.q_proj.weight.data)
    with no_grad():
        whole = here(Tensor(given.x))[0].numpy()
        for start, end in ((0, 4), (4, 5), (5, 7)):
            y, _ = block(Tensor(there(fast, given.cut(start, end)).x), state=cache.layers[0])
            cache.advance(end - start)
            close(y.numpy(), whole[:, start:end], RTOL)
