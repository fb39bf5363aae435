"""Muon against singular value decompositions, hand-computed values and its own invariants."""

from typing import Any

import numpy as np
import pytest

from nn import MoETransformer, MoETransformerConfig
from nn.errors import InputError
from nn.layers.module import Parameter
from nn.optim import AdamW, Muon, ParamGroup, clip_scale, create_optimizer, grad_norm
from nn.optim.muon import COEFFICIENTS, SCALES, orthogonalized
from nn.train.config import TrainConfig
from nn.train.update import create_update

SHAPES = [(6, 6), (5, 9), (9, 5), (1, 4), (4, 1), (1, 1)]


def parameter(values: Any, dtype: str = "float64", decay: bool = True) -> Parameter:
    array = np.asarray(values, dtype=np.float64)
    made = Parameter(array.shape, dtype=dtype, decay=decay)
    made.data = array.astype(made.dtype)
    return made


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def by_svd(u: np.ndarray, steps: int = 5, table: Any = ((3.4445, -4.7750, 2.0315),)) -> np.ndarray:
    """Independent of matrix products: a polynomial of x xᵀ acts on each singular value by itself."""
    left, values, right = np.linalg.svd(u, full_matrices=False)
    values = values / (np.sqrt((values**2).sum(axis=-1, keepdims=True)) + 1e-7)
    for step in range(steps):
        a, b, c = table[min(step, len(table) - 1)]
        values = a * values + b * values**3 + c * values**5
    return (left * values[..., None, :]) @ right


def test_golden_values() -> None:
    """Computed apart from this program."""
    np.testing.assert_allclose(orthogonalized(np.diag([3.0, 1.0])), np.diag([0.75303345, 1.13370622]),
                               atol=1e-8)
    expected = [[-0.46751857, 0.57347331], [0.07243229, 0.40945262], [0.61238314, 0.24543194]]
    tall = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_allclose(orthogonalized(tall), expected, atol=1e-8)


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 4, 7), (2, 3, 7, 4)], ids=str)
def test_acts_on_singular_values(shape: tuple[int, ...], coefficients: str) -> None:
    u = normal(*shape)
    for steps in (1, 5, 7):
        expected = by_svd(u, steps, COEFFICIENTS[coefficients])
        np.testing.assert_allclose(orthogonalized(u, steps, coefficients), expected, atol=1e-11)


@pytest.mark.parametrize(("coefficients", "low", "high"),
                         [("quintic", 0.6, 1.2), ("polar_express", 0.85, 1.15)])
def test_comes_near_to_a_semi_orthogonal_matrix(coefficients: str, low: float, high: float) -> None:
    values = np.linalg.svd(orthogonalized(normal(64, 96), coefficients=coefficients), compute_uv=False)
    assert low < values.min() < values.max() < high


def test_float32_stays_float32() -> None:
    u = normal(5, 9).astype(np.float32)
    found = orthogonalized(u)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_svd(u.astype(np.float64)), atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(4, 7), (7, 4)], ids=str)
def test_many_steps_of_the_equations(shape: tuple[int, int], nesterov: bool, scale: str) -> None:
    p = parameter(normal(*shape))
    optimizer = Muon({"p": p}, lr=0.05, weight_decay=0.3, momentum=0.9, nesterov=nesterov, scale=scale)
    rows, columns = shape
    size = {"moonlight": 0.2 * 7**0.5, "original": max(1.0, rows / columns) ** 0.5,
            "spectral": (rows / columns) ** 0.5}[scale]
    expected, m = p.data.copy(), np.zeros(shape)
    for step in range(6):
        p.grad = normal(*shape, seed=step + 1)
        g = 0.5 * p.grad
        m = 0.9 * m + g
        u = g + 0.9 * m if nesterov else m
        expected = expected * (1 - 0.05 * 0.3) - 0.05 * size * by_svd(u)
        optimizer.step(grad_scale=0.5)
    np.testing.assert_allclose(p.data, expected, atol=1e-11)


def test_moonlight_moves_entries_as_far_as_adamw() -> None:
    """0.2 · lr, root mean square, whatever the shape."""
    for shape in [(64, 64), (32, 128), (128, 32)]:
        p = parameter(np.zeros(shape))
        p.grad = normal(*shape)
        Muon({"p": p}, lr=1.0, coefficients="polar_express").step()
        assert np.sqrt(np.mean(p.data**2)) == pytest.approx(0.2, rel=0.1)


def moved(gradient: np.ndarray, **settings: Any) -> np.ndarray:
    p = parameter(np.zeros(gradient.shape))
    p.grad = gradient
    Muon({"p": p}, lr=1.0, **settings).step()
    return p.data


def test_the_size_of_the_gradient_does_not_matter() -> None:
    g = normal(5, 8)
    np.testing.assert_allclose(moved(1e3 * g), moved(g), atol=1e-6)


def test_turns_with_its_gradient() -> None:
    g, left, right = normal(5, 8), np.linalg.qr(normal(5, 5))[0], np.linalg.qr(normal(8, 8))[0]
    np.testing.assert_allclose(moved(left @ g @ right), left @ moved(g) @ right, atol=1e-10)


def test_a_gradient_of_zero_only_decays() -> None:
    p = parameter(np.ones((3, 4)))
    p.grad = np.zeros((3, 4))
    Muon({"p": p}, lr=0.1, weight_decay=0.5).step()
    np.testing.assert_array_equal(p.data, np.full((3, 4), 1 - 0.1 * 0.5))


def test_experts_and_fused_matrices_are_each_by_themselves() -> None:
    gradients, start = normal(3, 8, 5), normal(3, 8, 5, seed=1)
    fused = parameter(start)
    fused.grad = gradients
    Muon({"mlp.experts.gate_up_proj": fused}, lr=0.1).step()
    for e in range(3):
        for half in (slice(0, 4), slice(4, 8)):
            alone = parameter(start[e, half])
            alone.grad = gradients[e, half]
            Muon({"alone": alone}, lr=0.1).step()
            np.testing.assert_allclose(fused.data[e, half], alone.data, atol=1e-14)


def test_fused_matrices_are_named_by_patterns() -> None:
    whole, thirds = parameter(normal(6, 4)), parameter(normal(6, 4))
    whole.grad = thirds.grad = normal(6, 4, seed=1)
    optimizer = Muon({"a.qkv": thirds, "a.out": whole}, lr=0.1, weight_decay=0.0, fused={"*qkv": 3})
    before = thirds.data.copy()
    optimizer.step()
    expected = before - 0.1 * 0.2 * 2.0 * by_svd(whole.grad.reshape(3, 2, 4)).reshape(6, 4)
    np.testing.assert_allclose(thirds.data, expected, atol=1e-12)
    with pytest.raises(InputError, match=r"a\.qkv has 6 rows, which are not 4 equal parts"):
        Muon({"a.qkv": thirds}, lr=0.1, fused={"*qkv": 4})


def test_weights_stored_column_by_column() -> None:
    """A step in place must reach them whatever their memory looks like."""
    plain, other = parameter(normal(3, 8, 5)), parameter(normal(3, 8, 5))
    other.data = np.asfortranarray(other.data)
    plain.grad = other.grad = normal(3, 8, 5, seed=1)
    for p in (plain, other):
        Muon({"gate_up_proj": p}, lr=0.1).step()
    np.testing.assert_allclose(other.data, plain.data, atol=1e-14)


MODEL = MoETransformerConfig(vocab_size=31, hidden_size=16, num_heads=2, intermediate_size=12, num_experts=3,
                             max_seq_len=16)


def test_hidden_matrices_of_a_model_and_nothing_else() -> None:
    model = MoETransformer(MODEL)
    found = Muon(model.named_parameters(), lr=0.1).matrices
    layer = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
             "self_attn.o_proj.weight", "mlp.router.weight", "mlp.experts.gate_up_proj",
             "mlp.experts.down_proj"]
    assert found == [f"layers.{i}.{name}" for i in range(2) for name in layer]
    fewer = Muon(model.named_parameters(), lr=0.1, adamw=("*router*", "layers.1.*")).matrices
    assert fewer == [f"layers.0.{name}" for name in layer if "router" not in name]


def test_the_rest_is_adamw_to_the_bit() -> None:
    names = {"norm.weight": (5,), "embed_tokens.weight": (7, 5)}
    ours = {name: parameter(normal(*shape), decay=False) for name, shape in names.items()}
    theirs = {name: parameter(normal(*shape), decay=False) for name, shape in names.items()}
    muon = Muon(ours, lr=0.1, betas=(0.8, 0.9), eps=1e-6, adamw_lr_scale=0.25)
    adamw = AdamW(theirs, lr=0.025, betas=(0.8, 0.9), eps=1e-6)
    for step in range(3):
        for name, shape in names.items():
            ours[name].grad = theirs[name].grad = normal(*shape, seed=step)
        muon.step(grad_scale=0.3)
        adamw.step(grad_scale=0.3)
    for name in names:
        np.testing.assert_array_equal(ours[name].data, theirs[name].data)


def test_groups_scale_rate_and_decay_of_matrices() -> None:
    p = parameter(np.ones((3, 3)))
    p.grad = np.eye(3)
    groups = [ParamGroup("p", lr_scale=0.5, weight_decay=0.2)]
    Muon({"p": p}, lr=0.1, scale="original", groups=groups).step()
    np.testing.assert_allclose(p.data, np.ones((3, 3)) * (1 - 0.05 * 0.2) - 0.05 * by_svd(np.eye(3)))


def test_bfloat16_has_masters_and_one_moment() -> None:
    p, precise = parameter(normal(4, 6), "bfloat16"), parameter(np.zeros((4, 6)), "float32")
    precise.data = p.data.astype(np.float32)
    for step in range(30):
        p.grad = precise.grad = normal(4, 6, seed=step).astype(np.float32)
        if step == 0:
            first, second = Muon({"p": p}, lr=1e-4), Muon({"p": precise}, lr=1e-4)
        first.step()
        second.step()
    state = first.state_dict()
    assert sorted(state) == ["p.m", "p.master", "p.steps", "steps"]
    np.testing.assert_array_equal(state["p.master"], precise.data)
    np.testing.assert_array_equal(p.data, precise.data.astype(p.dtype))


def trained(model: MoETransformer, optimizer: Muon, steps: int) -> float:
    ids = np.random.default_rng(0).integers(0, 31, (4, 13))
    for _ in range(steps):
        loss, _ = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        norm = grad_norm(model.parameters())
        optimizer.step(grad_scale=clip_scale(norm, 1.0))
        optimizer.zero_grad()
    return loss.item()


def test_a_model_learns_and_goes_on_from_a_saved_state() -> None:
    model = MoETransformer(MODEL)
    optimizer = create_optimizer("muon", model.named_parameters(), lr=0.02)
    start = trained(model, optimizer, 1)
    assert trained(model, optimizer, 25) < 0.3 * start
    weights = {name: values.copy() for name, values in model.state_dict().items()}
    saved = {name: values.copy() for name, values in optimizer.state_dict().items()}
    trained(model, optimizer, 3)

    other = MoETransformer(MODEL, seed=1)
    other.load_state_dict(weights)
    again = Muon(other.named_parameters(), lr=0.02)
    again.load_state_dict(saved)
    trained(other, again, 3)
    for name, values in model.state_dict().items():
        np.testing.assert_array_equal(values, other.state_dict()[name])
    with pytest.raises(InputError, match="is missing|belongs to no parameter"):
        AdamW(other.named_parameters(), lr=0.02).load_state_dict(saved)


def test_a_run_chooses_it_with_its_settings() -> None:
    config = TrainConfig(model=MODEL, seq_len=16, optimizer="muon", lr=0.5, weight_decay=0.2, beta1=0.7,
                         optimizer_options={"momentum": 0.8, "scale": "original"})
    optimizer = create_update(MoETransformer(MODEL), config).optimizer
    assert isinstance(optimizer, Muon)
    assert (optimizer.lr, optimizer.rule.momentum, optimizer.betas) == (0.5, 0.8, (0.7, 0.95))


@pytest.mark.parametrize(("settings", "message"), [
    ({"momentum": 1.0}, r"momentum: 1\.0"), ({"ns_steps": 0}, "ns_steps: 0"), ({"lr": -1.0}, "lr"),
    ({"scale": "moonligt"}, "moonlight"), ({"coefficients": "cubic"}, "quintic"),
    ({"adamw_lr_scale": -1.0}, "adamw_lr_scale"), ({"nesterof": True}, "nesterov")])
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_optimizer("muon", {"p": parameter(np.ones((2, 2)))}, **{"lr": 0.1} | settings)
