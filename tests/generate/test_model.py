"""Generation with the real model and the real tokenizers."""

from dataclasses import replace

import numpy as np
import pytest

from nn import MoETransformer, MoETransformerConfig
from nn.backends import use_backend
from nn.data import ByteTokenizer, train_bpe
from nn.errors import InputError
from nn.generate import SamplingConfig, generate, generate_batch, stream_text

GREEDY = SamplingConfig(temperature=0, max_tokens=40)


def small(dtype="float32", **options):
    """Weights wide enough that the greedy text is not one token over and over."""
    sizes = {"vocab_size": 259, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
             "head_dim": 8, "intermediate_size": 48, "num_experts": 4, "top_k": 2, "max_seq_len": 24,
             "init_std": 0.3}
    return MoETransformer(MoETransformerConfig(**(sizes | options)), seed=0, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_and_recomputed_tokens_are_equal_within_the_context(dtype):
    model = small(dtype, max_seq_len=64)
    cached = list(generate(model, [72, 105, 32], GREEDY))
    assert cached == list(generate(model, [72, 105, 32], GREEDY, use_cache=False))
    assert len(set(cached)) > 5


def test_one_layer_sees_the_same_past_the_context_whether_cached_or_not():
    """With one layer, keys and values depend on their own token only, so what was dropped leaves no trace.
    The cache holds absolute positions, recomputing counts from 0: attention only sees their differences."""
    model = small(num_layers=1)
    config = SamplingConfig(temperature=0, max_tokens=60)
    cached = list(generate(model, [72, 105], config))
    assert cached == list(generate(model, [72, 105], config, use_cache=False))
    assert len(set(cached)) > 5


def test_runs_past_the_context_with_absolute_positions(monkeypatch):
    model = small()
    cache = model.init_state(1)
    monkeypatch.setattr(model, "init_state", lambda batch_size: cache)
    with use_backend("reference"):                        # where the step is not recorded the cache grows
        assert len(list(generate(model, [72], SamplingConfig(max_tokens=60)))) == 60
    assert cache.offset == 60
    assert cache.length <= 24


def test_a_batch_is_its_rows_one_by_one():
    model = small()
    prompts = [[1, 2, 3], [9], [4, 5, 6], [1, 2, 3]]
    config = SamplingConfig(max_tokens=20, seed=3)
    alone = [list(generate(model, prompt, config, row=i)) for i, prompt in enumerate(prompts)]
    assert generate_batch(model, prompts, config) == alone
    assert alone[0] != alone[3]


def test_training_goes_on_as_before():
    model = small()
    for _ in generate(model, [1], SamplingConfig(max_tokens=2)):
        assert all(module.training for module in model.modules())
        loss, _ = model.loss(np.array([[1, 2, 3]]), np.array([[2, 3, 4]]))
        loss.backward()  # the tape records between tokens
        assert model.parameters()[0].grad is not None
        model.zero_grad()
    list(generate(model, [1], SamplingConfig(max_tokens=2)))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_ids_are_the_models_error():
    with pytest.raises(InputError, match="259"):
        next(generate(small(), [1, 259]))


TOKENIZERS = {"bytes": ByteTokenizer, "bpe": lambda: train_bpe(["naïve café 🦊🦊 déjà vu, 你好\n" * 20], 300)}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_streamed_text_is_the_decoded_text(kind):
    tokenizer = TOKENIZERS[kind]()
    model = small(vocab_size=tokenizer.vocab_size + 5)  # as where embeddings are padded
    config = SamplingConfig(temperature=1.5, max_tokens=60)
    for prompt in ("déjà ", ""):
        ids = tokenizer.encode(prompt)
        end, known = tokenizer.eos_id, tokenizer.vocab_size
        tokens = list(generate(model, ids, replace(config, eos_ids=end), start_id=end, vocab_size=known))
        pieces = list(stream_text(model, tokenizer, prompt, config))
        assert "".join(pieces) == tokenizer.decode(tokens)
        assert len(pieces) > 20


def test_a_stop_string_across_tokens():
    model, tokenizer = small(), ByteTokenizer()
    config = SamplingConfig(temperature=1.5, max_tokens=40, seed=1)
    whole = "".join(stream_text(model, tokenizer, "x", config))
    stop = whole[20:23]
    cut = "".join(stream_text(model, tokenizer, "x", replace(config, stop=stop)))
    assert cut == whole[: whole.index(stop)]
