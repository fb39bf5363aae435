"""Transformer as decoder, encoder and both: what it computes, who sees whom, padding, what it refuses."""

from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.models import Hook, Transformer
from nn.ops.count import count_flops
from nn.tensor import Tensor

from .transformers import Plain, config, ids, model

RIGHT = np.array([[True] * 7, [True] * 4 + [False] * 3])
LEFT = RIGHT[:, ::-1]


def plain_of(seq2seq: Transformer) -> Plain:
    weights = {name: p.numpy() for name, p in seq2seq.named_parameters().items()}
    return Plain(weights, heads=2, layers=2, eps=1e-5)


@pytest.mark.parametrize("keep", [np.ones((2, 7), bool), RIGHT])
@pytest.mark.parametrize("backend", ["auto", "manual", "sdpa"])
def test_seq2seq_by_its_formulas(keep: np.ndarray, backend: str) -> None:
    """Encoder and decoder against NumPy: three norms per decoder layer, an encoder norm of its own"""
    m = model(mode="seq2seq", norm="layernorm", positional="none", bias=True, attn_backend=backend)
    plain, src, tgt = plain_of(m), ids(), ids(length=5, seed=1)
    source = plain.encoded(src, keep)
    np.testing.assert_allclose(m.encode(src, keep).numpy()[keep], source[keep], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(m(src, tgt, mask=keep).numpy(), plain.decoded(tgt, source, keep),
                               rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_and_dtypes(dtype: str) -> None:
    assert model(dtype)(ids()).shape == (2, 7, 13)
    assert model(dtype, mode="encoder")(ids()).shape == (2, 7, 8)
    logits = model(dtype, mode="seq2seq")(ids(), ids(length=3))
    assert (logits.shape, str(logits.dtype)) == ((2, 3, 13), dtype)
    assert model(dtype)(ids(), last_only=True).shape == (2, 1, 13)


def moved(before: np.ndarray, after: np.ndarray) -> list[bool]:
    """[T] whether anything at a position changed"""
    return [bool((before[:, t] != after[:, t]).any()) for t in range(before.shape[1])]


def test_causal_only_where_it_should_be() -> None:
    x, changed = ids(), ids()
    changed[:, 4] = (changed[:, 4] + 1) % 13
    later = [False] * 4 + [True] * 3
    decoder, encoder, both = (model(mode=mode) for mode in ("decoder", "encoder", "seq2seq"))
    assert moved(decoder(x).numpy(), decoder(changed).numpy()) == later
    assert moved(encoder(x).numpy(), encoder(changed).numpy()) == [True] * 7
    assert moved(both(x, x).numpy(), both(x, changed).numpy()) == later
    assert moved(both(x, x).numpy(), both(changed, x).numpy()) == [True] * 7


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
def test_windows_to_one_side_and_to_both(backend: str) -> None:
    """One layer that looks 2 tokens far: backwards in a decoder, either way in an encoder"""
    x, changed = ids(), ids()
    changed[:, 4] = (changed[:, 4] + 1) % 13
    near = {"decoder": [False] * 4 + [True] * 3, "encoder": [False] * 2 + [True] * 5}
    for mode, seen in near.items():
        m = model(mode=mode, n_layers=1, window=3, attn_backend=backend)
        assert moved(m(x).numpy(), m(changed).numpy()) == seen
    decoder = model(n_layers=1, window=2, attn_backend=backend)
    assert moved(decoder(x).numpy(), decoder(changed).numpy()) == [False] * 4 + [True] * 2 + [False]


@pytest.mark.parametrize("positional", ["rope", "none", "learned", "sinusoidal"])
def test_positions(positional: str) -> None:
    """Swapping two tokens of a source without positions swaps their states, and changes nothing else."""
    m, x = model(mode="encoder", positional=positional), np.array([[3, 1, 4, 2]])
    h, swapped = m(x).numpy(), m(x[:, [1, 0, 2, 3]]).numpy()
    same = np.allclose(h[:, [1, 0, 2, 3]], swapped, rtol=1e-12, atol=1e-12)
    assert same == (positional == "none")


def test_cross_attention_knows_no_positions() -> None:
    """A source's states in another order are the same source: rotary positions stay out of it."""
    m = model(mode="seq2seq", positional="rope")
    assert m.decoder is not None
    context = m.encode(ids())
    first = m.decoder.hidden(ids(length=4), context=context).numpy()
    other = Tensor(context.numpy()[:, [6, 2, 0, 1, 5, 4, 3]])
    second = m.decoder.hidden(ids(length=4), context=other).numpy()
    np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("positional", ["rope", "learned"])
@pytest.mark.parametrize("keep", [RIGHT, LEFT], ids=["right", "left"])
def test_padding_of_a_source_changes_nothing(keep: np.ndarray, positional: str) -> None:
    m, src, tgt = model(mode="seq2seq", positional=positional), ids(), ids(length=3, seed=2)
    other = np.where(keep, src, (src + 1) % 13)
    assert np.array_equal(m(src, tgt, mask=keep).numpy(), m(other, tgt, mask=keep).numpy())
    alone = src[1:][:, keep[1]]
    np.testing.assert_allclose(m(src, tgt, mask=keep).numpy()[1:], m(alone, tgt[1:]).numpy(), atol=1e-12)
    np.testing.assert_allclose(m.encode(src, keep).numpy()[1:, keep[1]], m.encode(alone).numpy(), atol=1e-12)


def test_padding_of_a_target_changes_nothing() -> None:
    m, src, tgt = model(mode="seq2seq"), ids(), ids(seed=2)
    for keep in (RIGHT, LEFT):
        y = m(src, tgt, tgt_mask=keep).numpy()
        np.testing.assert_allclose(y[1:, keep[1]], m(src[1:], tgt[1:][:, keep[1]]).numpy(), atol=1e-12)
    decoder = model()
    y = decoder(tgt, mask=LEFT).numpy()
    np.testing.assert_allclose(y[1:, LEFT[1]], decoder(tgt[1:][:, LEFT[1]]).numpy(), atol=1e-12)


def test_one_embedding_for_both_sides_and_the_head() -> None:
    m = model(mode="seq2seq")
    assert m.encoder is not None
    assert m.decoder is not None
    names = list(m.named_parameters())
    assert [name for name in names if "embed" in name or "head" in name] == ["decoder.embed_tokens.weight"]
    assert m.encoder.embed_tokens is m.decoder.embed_tokens
    own = {name: p.numpy() for name, p in m.named_parameters().items() if "layers.0.mixer.q_proj" in name}
    first, second = own.values()
    assert not np.array_equal(first, second)            # encoder and decoder are drawn from their own streams
    untied = model(mode="seq2seq", tie_embeddings=False).named_parameters()
    assert [name for name in untied if "head" in name] == ["decoder.lm_head.weight"]


def test_layers_of_either_side() -> None:
    m = model(mode="seq2seq", n_layers=1, n_encoder_layers=3)
    names = list(m.named_parameters())
    assert max(int(name.split(".")[3]) for name in names if name.startswith("encoder.body")) == 2
    assert max(int(name.split(".")[3]) for name in names if name.startswith("decoder.body")) == 0


VARIANTS: dict[str, dict[str, Any]] = {
    "layernorm": {"norm": "layernorm"}, "post": {"norm_position": "post"}, "swiglu": {"ffn_type": "swiglu"},
    "multi-query": {"n_kv_heads": 1}, "head_dim": {"head_dim": 6}, "qk-norm": {"qk_norm": "head"},
    "untied": {"tie_embeddings": False}, "experts": {"ffn_type": "moe"}, "biases": {"bias": True},
    "recursive": {"recursive": True, "recurrence_steps": 2, "recursive_blocks": 2},
    "seq2seq": {"mode": "seq2seq"}}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_the_configuration(variant: str) -> None:
    m = Transformer(config(**VARIANTS[variant]))
    parts = [part.config.parameters() for part in (m.decoder, m.encoder) if part]
    shared = parts[1]["embedding"] if len(parts) > 1 else 0
    assert m.num_parameters() == sum(sum(counts.values()) for counts in parts) - shared
    assert m.num_parameters(active=True) <= m.num_parameters()


@pytest.mark.parametrize("mode", ["decoder", "seq2seq"])
def test_weights_start_as_told(mode: str) -> None:
    """Normal(0, init_std), those into the residual stream / √(2 layers), norms 1; no two alike"""
    m = Transformer(config(mode=mode, d_model=64, d_ff=128, n_layers=3, vocab_size=300, init_std=0.02))
    found = {name: p.numpy() for name, p in m.named_parameters().items()}
    for name, values in found.items():
        if "norm" in name:
            assert (values == 1.0).all(), name
            continue
        std = 0.02 / np.sqrt(6.0) if "o_proj" in name or "down_proj" in name else 0.02
        assert abs(values.std() / std - 1.0) < 5.0 / np.sqrt(2 * values.size), name
        assert abs(values.mean()) < 5.0 * std / np.sqrt(values.size), name
    drawn = [values.tobytes() for name, values in found.items() if "norm" not in name]
    assert len(set(drawn)) == len(drawn)


def test_norm_and_epsilon() -> None:
    assert Transformer(config()).main.config.norm_eps == 1e-6
    assert Transformer(config(norm="layernorm")).main.config.norm_eps == 1e-5
    assert Transformer(config(norm_eps=1e-3)).main.config.norm_eps == 1e-3


@pytest.mark.parametrize(("backend", "operation"), [("auto", "Attention"), ("sdpa", "Attention"),
                                                    ("manual", "DenseAttention")])
def test_the_backend_that_was_asked_for_runs(backend: str, operation: str) -> None:
    """In the layers' own attention and in that to the source"""
    with count_flops() as count:
        model(mode="seq2seq", attn_backend=backend)(ids(), ids(length=3))
    assert {name for name in count.by_operation if "Attention" in name} == {operation}


def test_a_config_is_wanted() -> None:
    with pytest.raises(InputError, match="cfg: dict; give a TransformerConfig"):
        Transformer({"vocab_size": 5})                                  # type: ignore[arg-type]


class Doubled(Hook):
    """Twice the logits."""

    def on_logits(self, logits: Tensor) -> Tensor:
        return logits * 2.0


def test_hooks() -> None:
    m = model()
    before = m(ids()).numpy()
    m.hooks.append(Hook())
    assert np.array_equal(m(ids()).numpy(), before)
    m.hooks.append(Doubled())
    assert np.array_equal(m(ids()).numpy(), 2.0 * before)


class Foreign:
    """An array of another library: all that is known is that NumPy can read it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype)


def test_takes_whatever_has_the_array_interface() -> None:
    m, both, keep = model(), model(mode="seq2seq"), LEFT
    expected = m(ids(), mask=keep).numpy()
    for kind in (Foreign, np.ndarray.tolist, lambda x: x.astype(np.int32)):
        assert np.array_equal(np.asarray(m(kind(ids()), mask=kind(keep))), expected)
        assert np.array_equal(both(kind(ids()), kind(ids(length=3))), both(ids(), ids(length=3)))


REFUSED: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], str]] = {
    "rank": ("decoder", (np.zeros(3, int),), {}, "ids: shape [3]; expected [B,T]"),
    "numbers": ("decoder", (np.zeros((1, 3)),), {}, "ids: float64 of shape [1, 3]; expected integers [B,T]"),
    "vocabulary": ("decoder", ([[0, 13]],), {}, "ids: 13 at [0, 1] is not in the vocabulary, 0 ... 12"),
    "negative": ("encoder", ([[0, -1]],), {}, "ids: -1 at [0, 1] is not in the vocabulary"),
    "rows": ("decoder", ([[0, 1], [2]],), {}, "ids: rows of different lengths"),
    "too long": ("decoder", (np.zeros((1, 33), int),), {}, "exceed the context of 32"),
    "mask": ("decoder", (ids(),), {"mask": np.ones((2, 6))[..., None]}, "mask: float64 values"),
    "mask's shape": ("decoder", (ids(),), {"mask": np.ones((2, 6), bool)},
                     "mask: shape [2, 6]; expected [B,T] with T = 7 (as in ids)"),
    "mask's rows": ("encoder", (ids(),), {"mask": np.ones((3, 7), bool)},
                    "mask: shape [3, 7]; expected [B,S] with B = 2 (as in ids)"),
    "batches": ("seq2seq", (ids(), ids(batch=3)), {}, "tgt_ids: shape [3, 7]; expected [B,T] with B = 2"),
    "no target": ("seq2seq", (ids(),), {}, "is called as model(src_ids, tgt_ids)"),
    "a target": ("decoder", (ids(), ids()), {}, "is called as model(ids)"),
    "target's mask": ("seq2seq", (ids(), ids(length=3)), {"tgt_mask": np.ones((2, 7), bool)},
                      "tgt_mask: shape [2, 7]; expected [B,T] with T = 3 (as in tgt_ids)"),
    "depth": ("decoder", (ids(),), {"recurrence_steps": 2},
              "recurrence_steps: 2, but the model is not recursive"),
    "no cache": ("decoder", (ids(),), {"is_decode": True}, "give kv_cache="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    mode, given, options, message = REFUSED[case]
    with pytest.raises(InputError) as caught:
        model(mode=mode)(*given, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("changes", [{"ffn_type": "moe", "moe": {"jitter": 0.3}}, {"dropout": 0.5}])
def test_train_and_eval(changes: dict[str, Any]) -> None:
    """Jitter and dropout are off while evaluating, and drawn where set_noise says while training."""
    m = model(mode="seq2seq", **changes)
    first = m(ids(), ids()).numpy()
    assert np.array_equal(m(ids(), ids()).numpy(), first)
    m.train()
    m.set_noise(0, 1)
    noisy = m(ids(), ids()).numpy()
    m.set_noise(0, 2)
    assert not np.array_equal(m(ids(), ids()).numpy(), noisy)
    m.set_noise(0, 1)
    assert np.array_equal(m(ids(), ids()).numpy(), noisy)
    m.eval()
    assert np.array_equal(m(ids(), ids()).numpy(), first)
