"""The requirement document "nn-core": decoding with a key/value cache, as far as there are models for it."""

import numpy as np

from nn import MoETransformer
from nn.cache import KVCache


def test_decode_time_kv_cache() -> None:
    model = MoETransformer.tiny()
    rng = np.random.default_rng(0)

    model.eval()
    cache = KVCache(num_layers=model.config.num_layers)

    # prefill
    prefix = rng.integers(0, model.config.vocab_size, (1, 16))
    logits = model(prefix, cache=cache)

    # decode 1 token at a time
    next_tok = rng.integers(0, model.config.vocab_size, (1, 1))
    logits_step = model(next_tok, cache=cache)

    whole = model(np.concatenate([prefix, next_tok], axis=1)).numpy()
    assert (logits.shape, logits_step.shape) == ((1, 16, 1000), (1, 1, 1000))
    assert (cache.length, cache.offset) == (17, 17)
    np.testing.assert_allclose(logits.numpy(), whole[:, :16], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits_step.numpy(), whole[:, 16:], rtol=0, atol=1e-5)
