"""What holds for every model: it does not see the future, rows of a batch are strangers,
a seed is a model."""

import math
from typing import Any

import numpy as np
import pytest

from nn import MoETransformer, MoETransformerConfig, no_grad
from tests.models.tiny import VARIANTS, ids, model

SMALL_EXPERTS = {"experts of 4": {"intermediate_size": 4}, "16 experts": {"num_experts": 16, "top_k": 4},
                 "experts of 65": {"intermediate_size": 65, "hidden_size": 33, "num_experts": 3}}


def logits(made: MoETransformer, tokens: np.ndarray, **options: Any) -> np.ndarray:
    with no_grad():
        return made(tokens, **options).data


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [4, 17, 64])
@pytest.mark.parametrize("name", [*VARIANTS, *SMALL_EXPERTS])
def test_a_change_leaves_every_bit_before_it(name: str, length: int, dtype: str) -> None:
    made, tokens = model(dtype, **(VARIANTS | SMALL_EXPERTS)[name]), ids(2, length)
    before = logits(made, tokens)
    for t in sorted({1, length // 3, length // 2, length - 1}):
        for rows in (slice(None), slice(0, 1)):
            changed = tokens.copy()
            changed[rows, t] = (changed[rows, t] + 13) % 31
            after = logits(made, changed)
            np.testing.assert_array_equal(after[:, :t], before[:, :t])
            assert np.any(after[0, t] != before[0, t])


def test_a_longer_text_leaves_the_bits_of_its_beginning_close() -> None:
    made, tokens = model(), ids(2, 40)
    whole = logits(made, tokens)
    for length in (1, 2, 13, 39):
        np.testing.assert_allclose(logits(made, tokens[:, :length]), whole[:, :length],
                                   rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_permuting_a_batch_permutes_the_result(name: str) -> None:
    made, tokens, order = model(**VARIANTS[name]), ids(5, 9), [3, 0, 4, 1, 2]
    np.testing.assert_allclose(logits(made, tokens[order]), logits(made, tokens)[order],
                               rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_of_a_batch_are_strangers(name: str) -> None:
    made, tokens = model(**VARIANTS[name]), ids(3, 9)
    whole = logits(made, tokens)
    for row in range(3):
        np.testing.assert_allclose(logits(made, tokens[row : row + 1])[0], whole[row], rtol=1e-12, atol=1e-12)


def padded(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) of rows of unequal length, filled up on the left with a token that occurs elsewhere too"""
    length = max(len(row) for row in rows)
    tokens = np.array([[7] * (length - len(row)) + row.tolist() for row in rows])
    return tokens, np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])


@pytest.mark.parametrize("name", VARIANTS)
def test_left_padding_changes_nothing(name: str) -> None:
    made = model(**VARIANTS[name])
    rows = [ids(1, n, seed=n)[0] for n in (9, 4, 1, 7)]
    tokens, mask = padded(rows)
    found = logits(made, tokens, mask=mask)
    for row, values in zip(rows, found, strict=True):
        np.testing.assert_allclose(values[-len(row):], logits(made, row[None])[0], rtol=1e-11, atol=1e-12)
    other = np.where(mask, tokens, 3)
    np.testing.assert_allclose(logits(made, other, mask=mask)[mask], found[mask], rtol=1e-12, atol=1e-12)


def test_a_full_mask_is_no_mask() -> None:
    made, tokens = model(), ids()
    np.testing.assert_allclose(logits(made, tokens, mask=np.ones((2, 9), bool)), logits(made, tokens),
                               rtol=1e-13, atol=1e-13)


def test_mixture_of_one_expert_equals_the_dense_model() -> None:
    mixture, dense = model(num_experts=1, top_k=1), model(num_experts=0)
    values = {name: array for name, array in mixture.state_dict().items() if "mlp" not in name}
    for i in range(2):
        gate, up = np.split(mixture.state_dict()[f"layers.{i}.mlp.experts.gate_up_proj"][0], 2)
        down = mixture.state_dict()[f"layers.{i}.mlp.experts.down_proj"][0]
        values |= {f"layers.{i}.mlp.gate_proj.weight": gate, f"layers.{i}.mlp.up_proj.weight": up,
                   f"layers.{i}.mlp.down_proj.weight": down}
    dense.load_state_dict(values)
    np.testing.assert_allclose(logits(mixture, ids()), logits(dense, ids()), rtol=1e-12, atol=1e-12)


def test_permuting_the_experts_of_every_layer() -> None:
    made, other, order = model(), model(), np.array([2, 0, 3, 1])
    values = {name: array[order] if ".mlp." in name else array for name, array in made.state_dict().items()}
    other.load_state_dict(values)
    np.testing.assert_allclose(logits(other, ids()), logits(made, ids()), rtol=1e-12, atol=1e-12)


class TestSeeds:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
    def test_the_same_seed_is_the_same_model(self, dtype: str) -> None:
        a, b = model(dtype, seed=5), model(dtype, seed=5)
        for parameter in reversed(b.parameters()):                 # allocated in the other order
            assert parameter.data is parameter.data
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
        np.testing.assert_array_equal(logits(a, ids()), logits(b, ids()))

    def test_another_seed_is_another_model(self) -> None:
        a, b = model(seed=5).state_dict(), model(seed=6).state_dict()
        assert all(not np.array_equal(a[name], b[name]) for name in a if "norm" not in name)

    def test_types_hold_the_same_numbers(self) -> None:
        single, double = model("float32").state_dict(), model("float64").state_dict()
        for name, values in single.items():
            np.testing.assert_array_equal(values, double[name], err_msg=name)

    def test_deeper_models_begin_alike(self) -> None:
        """Parameters are drawn by name; only residual projections know the depth."""
        two, three = model(num_layers=2).state_dict(), model(num_layers=3).state_dict()
        same = [name for name in two if "o_proj" not in name and "down_proj" not in name]
        assert len(same) > 10
        assert all(np.array_equal(two[name], three[name]) for name in same)

    def test_jitter_depends_on_seed_step_micro_batch_and_layer(self) -> None:
        made = model(router_jitter=0.3)
        seen = []
        for noise in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
            made.set_noise(*noise)
            seen.append(logits(made, ids()).tobytes())
        assert seen[0] == seen[4]
        assert len(set(seen)) == 4
        assert len({layer.mlp.router.noise.tobytes() for layer in made.layers}) == 2
        made.eval()
        assert np.array_equal(logits(made, ids()), logits(model(), ids()))


class TestInitialisation:
    def test_loss_begins_at_that_of_guessing(self) -> None:
        made = MoETransformer.tiny()
        tokens = ids(4, 65, vocabulary=1000)
        assert made.loss(tokens[:, :-1], tokens[:, 1:])[1]["loss"] == pytest.approx(math.log(1000), abs=0.1)

    def test_spread(self) -> None:
        config = MoETransformerConfig(num_layers=8, init_std=0.03)
        values = MoETransformer(config).state_dict()
        for name, array in values.items():
            if "norm" in name:
                assert np.all(array == 1.0)
            else:
                expected = 0.03 / math.sqrt(16) if "o_proj" in name or "down_proj" in name else 0.03
                assert array.std() == pytest.approx(expected, rel=4 / math.sqrt(array.size))

    def test_biases_are_zero(self) -> None:
        values = model(attention_bias=True, norm="layernorm").state_dict()
        biases = [array for name, array in values.items() if name.endswith("bias")]
        assert len(biases) == 2 * 4 + 2 * 2 + 1
        assert not any(array.any() for array in biases)

    def test_no_decay_for_norms_biases_and_embeddings(self) -> None:
        parameters = model(attention_bias=True, qk_norm=True).named_parameters()
        kept = {name for name, p in parameters.items() if p.decay}
        assert {name.split(".", 2)[-1] for name in kept} == {
            "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
            "self_attn.o_proj.weight", "mlp.router.weight",
            "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_types_and_shapes_of_the_results(dtype: str) -> None:
    made = model(dtype)
    assert made(ids()).shape == (2, 9, 31)
    assert made(ids()).dtype.name == dtype
    assert made(ids(), last_only=True).shape == (2, 1, 31)
    np.testing.assert_allclose(logits(made, ids(), last_only=True).astype(float),
                               logits(made, ids())[:, -1:].astype(float), rtol=2e-2, atol=2e-2)
    assert made(np.zeros((0, 4), np.int64)).shape == (0, 4, 31)
    assert made(np.zeros((2, 0), np.int64)).shape == (2, 0, 31)
    assert made.loss(ids(), np.full((2, 9), -100))[1]["loss"] == 0.0
    assert made(ids().astype(np.uint16)).shape == made(ids().tolist()).shape == (2, 9, 31)


def test_auxiliary_losses_only_on_request() -> None:
    made = model()
    assert set(made(ids(), return_aux=True)[1]) == {"moe/load_balance", "moe/router_z"}
    assert model(num_experts=0)(ids(), return_aux=True)[1] == {}
    from nn.layers import auxiliary
    with auxiliary.collect() as outer:
        made(ids(), return_aux=True)
        assert outer.losses == []
        made(ids())
        assert len(outer.losses) == 4


def test_forward_ids() -> None:
    made = MoETransformer.tiny()
    assert made.forward_ids([1, 2, 3, 4], batch=1, seq_len=4).shape == (1, 4, 1000)
    np.testing.assert_array_equal(made.forward_ids([1, 2, 3, 4, 5, 6], batch=2).data,
                                  made([[1, 2, 3], [4, 5, 6]]).data)
    assert made.forward_ids([1, 2, 3, 4]).shape == (1, 4, 1000)
