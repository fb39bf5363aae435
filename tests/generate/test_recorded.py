"""The recorded step on the CPU: the bits of the step that runs kernel by kernel, or a word on why not."""

import logging
import threading
from typing import Any

import numpy as np
import pytest

from nn import MoETransformer
from nn.backends import native, use_backend
from nn.errors import NonFiniteError
from nn.generate import SamplingConfig, generate, generate_batch
from nn.generate.recorded import RecordedTexts, refusals, servable
from nn.models import Hook
from nn.models.presets import TINY
from nn.ops.count import count_flops
from nn.tape import find_nonfinite, no_grad

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
SAMPLED = SamplingConfig(max_tokens=24, top_k=50, repetition_penalty=1.2, seed=5)


def made(dtype: str = "float32", **changes: Any) -> MoETransformer:
    model = MoETransformer(TINY.replace(init_std=0.3, **changes), dtype=dtype)
    model.eval()
    return model


def watched(model: Any, prompts: np.ndarray, *, eager: bool) -> tuple[list[bytes], Any]:
    """The logits' bits of every step that is to come, and the texts."""
    texts = RecordedTexts(model, prompts, SAMPLED, np.arange(len(prompts)))
    texts._eager = eager
    bits, logits = [], texts.logits

    def noted() -> np.ndarray:
        found = logits()
        bits.append(found.tobytes())
        return found

    texts.logits = noted                                                      # type: ignore[method-assign]
    return bits, texts


def followed(model: Any, prompts: np.ndarray, *, eager: bool, steps: int = 24) -> tuple[list[bytes], Any]:
    bits, texts = watched(model, prompts, eager=eager)
    follow(texts, steps)
    return bits, texts


def follow(texts: Any, steps: int) -> None:
    with no_grad():
        for _ in range(steps):
            texts.next()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, {"num_experts": 0, "tie_embeddings": True}, {"qk_norm": True},
                                     {"sliding_window": 5}, {"rope_interleaved": True}, {"max_seq_len": 12}],
                         ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_bits_of_the_eager_step(changes: dict[str, Any], dtype: str, batch: int) -> None:
    model, prompts = made(dtype, **changes), np.arange(4 * batch).reshape(batch, 4)
    recorded, texts = followed(model, prompts, eager=False)
    eager, others = followed(model, prompts, eager=True)
    assert texts.step is not None
    assert others.step is None
    assert recorded == eager
    assert texts.cache.length == others.cache.length
    assert len(set(recorded)) == len(recorded)


def test_generate_uses_it() -> None:
    model, prompts = made(), [[1, 2, 3], [4, 5, 6], [7]]
    before = native.fallbacks()
    alone = [list(generate(model, prompt, SAMPLED, row=i)) for i, prompt in enumerate(prompts)]
    assert generate_batch(model, prompts, SAMPLED) == alone
    assert native.fallbacks() == before
    with use_backend("reference"):
        assert not servable(model)
        greedy = SamplingConfig(temperature=0, max_tokens=24)
        expected = list(generate(model, [1, 2, 3], greedy))
    assert list(generate(model, [1, 2, 3], greedy)) == expected


def test_what_cannot_be_recorded_is_said_once(caplog: pytest.LogCaptureFixture,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(num_experts=0)
    monkeypatch.setattr("nn.generate.recorded._refused", [])
    model.logit_softcap = 30.0                                     # NumPy's tanh, behind the head
    expected = followed(model, np.array([[1, 2, 3]]), eager=True)[1]._history[0, 3:].tolist()
    with caplog.at_level(logging.INFO):
        found = [list(generate(model, [1, 2, 3], SAMPLED)) for _ in range(2)]
    assert found == [expected, expected]
    assert caplog.text.count("its step cannot be recorded") == 1
    assert len(refusals()) == 2
    assert len(set(refusals())) == 1


def test_weights_loaded_meanwhile_are_seen() -> None:
    """load() and load_state_dict() give parameters other arrays: a replay would go on with the old ones."""
    found = []
    for eager in (False, True):
        model, other = made(num_experts=0), made(num_experts=0)
        for p in other.parameters():
            p.data *= 1.5
        bits, texts = watched(model, np.array([[1, 2, 3]]), eager=eager)
        follow(texts, 4)
        first = texts.step
        model.layers[0].parameters()[0].load(other.layers[0].parameters()[0].data)
        follow(texts, 3)
        second = texts.step
        model.load_state_dict(other.state_dict())
        follow(texts, 4)
        assert eager or len({id(each) for each in (first, second, texts.step)}) == 3
        found.append(bits)
    assert found[0] == found[1]
    assert len(set(found[0])) == 11


def test_without_memory_for_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(**_: Any) -> Any:
        raise MemoryError

    model = made()
    expected = list(generate(model, [1, 2, 3], SAMPLED))
    monkeypatch.setattr("nn.backends.native.recording.record", record)
    assert list(generate(model, [1, 2, 3], SAMPLED)) == expected


@pytest.mark.parametrize("method", ["on_hidden", "on_logits"])
def test_hooks_see_every_token(method: str) -> None:
    seen = []

    def noted(self: Hook, x: Any) -> Any:
        seen.append(x.shape)
        return x * 0.5

    model = made()
    model.hooks.append(type("Noting", (Hook,), {method: noted})())
    assert len(list(generate(model, [1, 2, 3], SAMPLED))) == len(seen) == SAMPLED.max_tokens


def test_what_counts_operations_sees_every_token() -> None:
    model, counts = made(), []
    for tokens in (4, 8, 12):
        with count_flops() as count:
            list(generate(model, [1, 2, 3], SamplingConfig(max_tokens=tokens)))
        counts.append(count.flops)
    assert counts[2] - counts[1] >= counts[1] - counts[0] > 0


def test_nonfinite_is_found_after_any_token() -> None:
    model = made()
    with find_nonfinite():
        tokens = generate(model, [1, 2, 3], SAMPLED)
        for _ in range(5):
            next(tokens)
        model.embed_tokens.weight.data[:, 3] = np.nan
        with pytest.raises(NonFiniteError, match="non-finite"):
            next(tokens)


def test_two_at_a_time() -> None:
    model = made()
    expected = [list(generate(model, [i + 1], SAMPLED)) for i in range(4)]
    found: list[list[int]] = [[] for _ in expected]

    def follow(i: int) -> None:
        found[i] = list(generate(model, [i + 1], SAMPLED))

    followers = [threading.Thread(target=follow, args=(i,)) for i in range(4)]
    for one in followers:
        one.start()
    for one in followers:
        one.join()
    assert found == expected
