"""A Transformer on the emulated device computes, decodes and learns what it does on the host."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn.cache import KVCache
from nn.generate import SamplingConfig, generate
from tests.models.transformers import ids, model

GREEDY = SamplingConfig(max_tokens=3, temperature=0.0)


@pytest.mark.parametrize("changes", [{"mode": "seq2seq"}, {"recursive": True, "recurrence_steps": 2}],
                         ids=str)
def test_as_on_the_host(changes: dict[str, Any], fast: EmulatedDevice) -> None:
    here, there = (model("float32", d_model=16, ffn_type="moe", **changes) for _ in range(2))
    there.to(fast)
    rest = (ids(length=4, seed=1),) if here.encoder else ()
    caches = [KVCache(num_layers=2) for _ in range(2)]
    for given, is_decode in (((ids(), *rest), False), ((None, rest[0]) if rest else (ids(length=1),), True)):
        expected, found = (m(*given, kv_cache=cache, is_decode=is_decode).numpy()
                           for m, cache in zip((here, there), caches, strict=True))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    targets = ids(length=4 if rest else 7, seed=2)
    for m in (here, there):
        m.loss(ids(), targets)[0].backward()
    for name, parameter in there.named_parameters().items():
        np.testing.assert_allclose(parameter.grad.numpy(), here.named_parameters()[name].grad,
                                   rtol=1e-3, atol=2e-5, err_msg=name)
    written = [m.generate(ids(), GREEDY) if rest else list(generate(m, [1, 2], GREEDY))
               for m in (here, there)]
    assert written[0] == written[1]
