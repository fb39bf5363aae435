"""Multi-token prediction: what is predicted from what, how it counts, and that nothing else changes."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from nn import ops
from nn.errors import InputError
from nn.models.language_model import LanguageModel, LanguageModelConfig
from nn.models.mtp import further_logits
from nn.ops.count import count_flops
from nn.optim import AdamW
from tests.gradients import check

PLAIN = LanguageModelConfig(vocab_size=23, hidden_size=8, num_layers=2, max_seq_len=16,
                            mixer=("retention", "full_attention"), feed_forward=("moe", "swiglu"), options={
                                "full_attention": {"num_heads": 2}, "retention": {"num_heads": 2},
                                "moe": {"intermediate_size": 6, "num_experts": 3},
                                "swiglu": {"intermediate_size": 10}})
TWO = PLAIN.replace(mtp_depth=2, mtp_weight=0.4)
DENSE = TWO.replace(num_layers=1, mixer="full_attention", feed_forward="swiglu",      # no losses of experts
                    options={name: TWO.options[name] for name in ("full_attention", "swiglu")})
STREAMS = TWO.replace(residual="mhc", mixer="full_attention", feed_forward="moe", tie_embeddings=True,
                      options={"full_attention": {"num_heads": 2}, "mhc": {"n_streams": 2},
                               "moe": {"intermediate_size": 6, "num_experts": 3}})


def batch(config: LanguageModelConfig, rows: int = 2, length: int = 7) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (rows, length + 1))
    return ids[:, :-1], ids[:, 1:].copy()


def log_probability(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(wide, ids[..., None], axis=-1)[..., 0]
    return chosen - np.log(np.exp(wide).sum(axis=-1))


def expected(model: LanguageModel, inputs: np.ndarray, targets: np.ndarray) -> list[float]:
    """Σ cross-entropy of each depth by its definition, position by position."""
    sums = []
    for k, logits in enumerate(further_logits(model, inputs), start=1):
        found = 0.0
        for b in range(len(inputs)):
            for i in range(inputs.shape[1] - k):
                if (targets[b, i : i + k + 1] != -100).all():         # x_{i+1} ... x_{i+k+1}
                    found -= log_probability(logits.numpy()[b, i], targets[b, i + k])
        sums.append(found)
    return sums


@pytest.mark.parametrize("config", [TWO, STREAMS], ids=["two depths", "several streams, experts, tied"])
@pytest.mark.parametrize("ignored", [[], [(0, 3), (1, 0), (1, 6)]], ids=["all count", "some ignored"])
def test_the_loss_by_its_definition(config: LanguageModelConfig, ignored: list[tuple[int, int]]) -> None:
    model = LanguageModel(config, seed=1, dtype="float64")
    inputs, targets = batch(config)
    for place in ignored:
        targets[place] = -100
    valid = (targets != -100).sum()
    total, figures = model.loss(inputs, targets)
    sums = expected(model, inputs, targets)
    np.testing.assert_allclose(figures["mtp/loss"], np.array(sums) / valid, rtol=1e-12)
    assert figures["mtp"] == pytest.approx(0.4 / 2 * sum(sums) / valid, rel=1e-12)
    other = sum(figures[name] for name in ("loss", "mtp", "moe/load_balance", "moe/router_z"))
    assert total.item() == pytest.approx(other, rel=1e-12)
    main = -log_probability(model(inputs).numpy(), np.where(targets < 0, 0, targets))[targets != -100].mean()
    assert figures["loss"] == pytest.approx(main, rel=1e-12)


def test_depth_one_by_hand() -> None:
    """From the parameters, with NumPy: norms, the embedding first, the layer, the shared head."""
    model = LanguageModel(TWO, seed=1, dtype="float64")
    inputs, _ = batch(TWO)
    module = model.mtp.depths[0]

    def rms(x: np.ndarray, norm: Any) -> np.ndarray:
        weight = norm.weight.numpy() * 1.5
        norm.weight.data = weight
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * weight

    h = model.trunk(inputs, None, None, None).total().numpy()[:, :-1]
    embedded = model.embed_tokens.weight.numpy()[inputs][:, 1:]
    joined = np.concatenate([rms(embedded, module.enorm), rms(h, module.hnorm)], axis=-1)
    stream, _ = module.layer(ops.linear(ops.add(joined, 0.0), module.eh_proj.weight))
    logits = rms(stream.numpy(), module.norm) @ model.lm_head.weight.numpy().T
    np.testing.assert_allclose(further_logits(model, inputs)[0].numpy(), logits, rtol=1e-12)


@pytest.mark.parametrize("config", [TWO, STREAMS], ids=["two depths", "several streams"])
def test_sees_k_tokens_ahead_and_no_further(config: LanguageModelConfig) -> None:
    """Row i of depth k depends on x_0 ... x_{i+k}, exactly."""
    model = LanguageModel(config, dtype="float64")
    inputs, _ = batch(config)
    before = further_logits(model, inputs)
    assert [logits.shape for logits in before] == [(2, 6, 23), (2, 5, 23)]
    for place in range(7):
        changed = inputs.copy()
        changed[:, place] = (changed[:, place] + 1) % 23
        for k, (one, other) in enumerate(zip(before, further_logits(model, changed), strict=True), start=1):
            same = (one.numpy() == other.numpy()).all(axis=(0, 2))
            assert list(same) == [i + k < place for i in range(7 - k)], f"depth {k}, token {place} changed"


def test_gradients() -> None:
    """Of every parameter, the shared embedding and head too."""
    model = LanguageModel(DENSE.replace(init_std=0.3), dtype="float64")
    inputs, targets = batch(DENSE, length=5)
    targets[0, 2] = -100
    check(lambda: model.loss(inputs, targets)[0], parameters=model.parameters(), entries=0)


def test_the_shared_weights_get_both_gradients() -> None:
    """With weight 0 the main loss alone is left, and every other parameter's gradient is that of the plain
    model."""
    plain, none, some = (LanguageModel(config, dtype="float64")
                         for config in (PLAIN, TWO.replace(mtp_weight=0.0), TWO))
    inputs, targets = batch(PLAIN)
    for model in (plain, none, some):
        model.loss(inputs, targets)[0].backward()
    for name, p in plain.named_parameters().items():
        np.testing.assert_allclose(none.named_parameters()[name].grad, p.grad, atol=1e-15)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        assert np.abs(some.named_parameters()[name].grad - plain.named_parameters()[name].grad).max() > 1e-4


def test_off_by_default_and_unused_in_inference() -> None:
    plain, model = LanguageModel(PLAIN), LanguageModel(TWO)
    inputs, _ = batch(PLAIN)
    assert plain.mtp is None
    assert not any(name.startswith("mtp") for name in plain.named_parameters())
    np.testing.assert_array_equal(plain(inputs).numpy(), model(inputs).numpy())
    state, other = plain.init_state(2), model.init_state(2)
    np.testing.assert_array_equal(plain(inputs, cache=state).numpy(), model(inputs, cache=other).numpy())
    assert not any(p.allocated for name, p in model.named_parameters().items() if name.startswith("mtp"))


def test_accumulated_micro_batches_are_one_batch() -> None:
    whole, parts = LanguageModel(DENSE, dtype="float64"), LanguageModel(DENSE, dtype="float64")
    inputs, targets = batch(DENSE, rows=4)
    targets[0, :5] = -100
    valid = int((targets != -100).sum())
    total, figures = whole.loss(inputs, targets)
    total.backward()
    found = []
    for rows in (slice(0, 1), slice(1, 4)):
        loss, each = parts.loss(inputs[rows], targets[rows], valid_tokens=valid, aux_scale=0.5)
        loss.backward()
        found.append(each["mtp"])
    assert np.mean(found) == pytest.approx(figures["mtp"], rel=1e-12)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad, atol=1e-14)


def test_padding_changes_nothing() -> None:
    model = LanguageModel(DENSE, dtype="float64")
    inputs, targets = batch(DENSE, rows=1)
    padded = np.concatenate([[[5, 9]], inputs], axis=1)
    labels = np.concatenate([[[-100, -100]], targets], axis=1)
    mask = np.arange(9)[None] >= 2
    assert model.loss(padded, labels, mask=mask)[0].item() == pytest.approx(
        model.loss(inputs, targets)[0].item(), rel=1e-12)


def test_packed_rows_are_their_documents() -> None:
    """Nothing is predicted from one document into the next; a document of two tokens has no second depth."""
    one, packed = LanguageModel(DENSE, dtype="float64"), LanguageModel(DENSE, dtype="float64")
    inputs, targets = batch(DENSE, rows=1, length=9)
    borders, valid = (0, 4, 6, 9), 9
    segments = np.repeat([1, 2, 3], np.diff(borders))[None]
    total, figures = packed.loss(inputs, targets, segment_ids=segments)
    total.backward()
    found = []
    for start, end in pairwise(borders):
        loss, each = one.loss(inputs[:, start:end], targets[:, start:end], valid_tokens=valid)
        loss.backward()
        found.append(each["mtp"])
    assert figures["mtp"] == pytest.approx(sum(found), rel=1e-12)
    for p, q in zip(one.parameters(), packed.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad, atol=1e-13)
    assert packed.loss(inputs, targets, segment_ids=segments.tolist())[1]["mtp"] == figures["mtp"]


def test_sequences_shorter_than_the_depth() -> None:
    model = LanguageModel(TWO)
    inputs, targets = batch(TWO, length=2)
    assert [logits.shape for logits in further_logits(model, inputs)] == [(2, 1, 23)]
    assert model.loss(inputs, targets)[1]["mtp/loss"].shape == (1,)
    assert "mtp" not in model.loss(inputs[:, :1], targets[:, :1])[1]


@pytest.mark.parametrize("config", [TWO, STREAMS], ids=["two depths", "several streams"])
def test_counts(config: LanguageModelConfig) -> None:
    model, plain = LanguageModel(config), LanguageModel(config.replace(mtp_depth=0))
    counts = config.parameters()
    assert sum(counts.values()) == model.num_parameters() == sum(p.size for p in model.parameters())
    own = sum(count for name, count in counts.items() if name.startswith("mtp."))
    assert own == model.num_parameters() - plain.num_parameters() > 0
    assert model.num_parameters(active=True) == plain.num_parameters(active=True)
    inputs, targets = batch(config)
    with count_flops() as with_them:
        model.loss(inputs, targets)
    with count_flops() as without:
        plain.loss(inputs, targets)
    assert with_them.flops - without.flops == sum(config.mtp.flops(2, 7, 23).values())


def test_learns_what_comes_next_but_one() -> None:
    """Counting: x_{t+1} = x_t + 1, so that depth 1 has to predict x + 2."""
    config = LanguageModelConfig(vocab_size=11, hidden_size=16, num_layers=1, max_seq_len=16, mtp_depth=1,
                                 options=DENSE.options)
    model = LanguageModel(config)
    optimizer = AdamW(model.named_parameters(), lr=0.02)
    ids = (np.arange(9)[None] + np.arange(11)[:, None]) % 11
    for _ in range(60):
        loss, figures = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert figures["mtp/loss"][0] < 0.1
    (logits,) = further_logits(model, ids[:1, :5])
    assert list(logits.numpy()[0].argmax(axis=-1)) == [2, 3, 4, 5]


@pytest.mark.parametrize(("changes", "message"), [({"mtp_depth": -1}, "mtp_depth: -1"),
                                                  ({"mtp_weight": -0.1}, "mtp_weight")])
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PLAIN.replace(**changes)


def test_a_model_without_modules_predicts_no_further() -> None:
    with pytest.raises(InputError, match="set mtp_depth"):
        further_logits(LanguageModel(PLAIN), np.array([[1, 2, 3]]))
