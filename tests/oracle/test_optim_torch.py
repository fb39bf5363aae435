"""AdamW, clipping and schedules against torch.optim and Transformers; then all of training at once."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.optimization import (
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from nn import MoETransformerConfig
from nn.layers.module import Parameter
from nn.optim import AdamW, clip_grad_norm, create_schedule
from tests.oracle import hugging_face
from tests.oracle.compare import assert_close, error, random_model, their_names, tokens

LIMIT = {"float64": 1e-12, "float32": 1e-5}
SHAPES = {"matrix": (7, 5), "bias": (7,), "idle": (3,)}


def parameters(dtype: str, seed: int = 0) -> dict[str, Parameter]:
    """The matrix decays, the others do not."""
    rng, made = np.random.default_rng(seed), {}
    for name, shape in SHAPES.items():
        made[name] = Parameter(shape, dtype=dtype, decay=name == "matrix")
        made[name].data = rng.normal(size=shape).astype(made[name].dtype)
    return made


def torch_adamw(ours: dict[str, Parameter], dtype: torch.dtype, **options: Any) -> tuple[dict[str, Any], Any]:
    values = {name: torch.tensor(parameter.data.astype(np.float64)) for name, parameter in ours.items()}
    theirs = {name: value.to(dtype).requires_grad_() for name, value in values.items()}
    groups = [{"params": [p], "weight_decay": 0.1 if ours[name].decay else 0.0} for name, p in theirs.items()]
    return theirs, torch.optim.AdamW(groups, **options)


def steep(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Gradients of very different sizes."""
    return rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 2, size=shape)


@pytest.mark.parametrize("dtype", LIMIT)
def test_adamw_for_100_steps(dtype: str) -> None:
    """With a learning rate that changes and a parameter that has a gradient in every third step only."""
    ours, rng = parameters(dtype), np.random.default_rng(1)
    options: dict[str, Any] = {"lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-8}
    theirs, reference = torch_adamw(ours, getattr(torch, dtype), **options)
    optimizer = AdamW(ours, weight_decay=0.1, **options)
    for step in range(100):
        for name, parameter in ours.items():
            gradient = None if name == "idle" and step % 3 else steep(rng, parameter.shape).astype(dtype)
            parameter.grad, theirs[name].grad = gradient, None if gradient is None else torch.tensor(gradient)
        rate = 0.03 / (1 + step % 5)
        for group in reference.param_groups:
            group["lr"] = rate
        optimizer.step(lr=rate)
        reference.step()
    expected = {name: p.detach().numpy() for name, p in theirs.items()}
    assert_close({name: p.data for name, p in ours.items()}, expected, LIMIT[dtype])


def test_adamw_with_master_weights_is_float32_rounded_once() -> None:
    ours, rng = parameters("bfloat16"), np.random.default_rng(1)
    theirs, reference = torch_adamw(ours, torch.float32, lr=1e-4)
    optimizer = AdamW(ours, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1)
    for _ in range(100):
        for name, parameter in ours.items():
            parameter.grad = steep(rng, parameter.shape).astype(np.float32)
            theirs[name].grad = torch.tensor(parameter.grad)
        optimizer.step()
        reference.step()
    for name, parameter in ours.items():
        exact = theirs[name].detach().double().numpy()
        half_a_step = np.abs(exact) * 2.0**-8
        assert (np.abs(parameter.data.astype(np.float64) - exact) <= half_a_step).all()


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clip_grad_norm(max_norm: float) -> None:
    """A limit below the norm and one above."""
    ours, rng = parameters("float64"), np.random.default_rng(2)
    for parameter in ours.values():
        parameter.grad = rng.normal(size=parameter.shape)
    theirs = [torch.zeros(p.shape, dtype=torch.float64, requires_grad=True) for p in ours.values()]
    for reference, parameter in zip(theirs, ours.values(), strict=True):
        reference.grad = torch.tensor(parameter.grad)
    norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert error(clip_grad_norm(ours.values(), max_norm), norm) < 1e-14
    for reference, parameter in zip(theirs, ours.values(), strict=True):
        assert error(parameter.grad, reference.grad) < 1e-14


def rates(schedule: Any, steps: int) -> list[float]:
    """The rate of each step of one of Transformers' schedules."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler, found = schedule(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


SCHEDULES = {
    "cosine": (partial(get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate=0.1), {"floor": 0.1}),
    "linear": (get_linear_schedule_with_warmup, {"floor": 0.0}),
    "wsd": (partial(get_wsd_schedule, num_decay_steps=15, decay_type="1-sqrt"),
            {"floor": 0.0, "decay": 15, "shape": "sqrt"}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    """After the warm-up the same; in it, ours is one step ahead: their first update has rate 0."""
    theirs, options = SCHEDULES[name]
    expected = rates(partial(theirs, num_warmup_steps=10, num_training_steps=50), 51)
    schedule = create_schedule(name, lr=0.5, steps=50, warmup=10, **options)
    found = [schedule(step) for step in range(51)]
    assert error(found[:9], expected[1:10]) < 1e-14
    assert error(found[10:], expected[10:]) < 1e-14


def test_warmup_cosine_equals_torchs_own_schedulers() -> None:
    def schedule(optimizer: Any) -> Any:
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.05)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[10])

    ours = create_schedule("cosine", lr=0.5, steps=50, warmup=10, floor=0.1)
    assert error([ours(step) for step in range(50)], rates(schedule, 50)) < 1e-12


def test_training_equals_transformers_with_torchs_optimizer(tmp_path: Path) -> None:
    """Ten steps in float64, each on other tokens: losses, gradient norms and the weights at the end."""
    config = MoETransformerConfig(vocab_size=61, hidden_size=32, num_kv_heads=2, intermediate_size=24)
    model = random_model(config, "float64")
    model.save_pretrained(tmp_path)
    schedule = create_schedule("cosine", lr=0.02, steps=10, warmup=3)
    ours = AdamW(model.named_parameters(), lr=0.02, weight_decay=0.1)
    with hugging_face.in_full("float64"):
        theirs = hugging_face.load(tmp_path, "float64")
        kept = {True: [], False: []}
        for name, parameter in theirs.named_parameters():
            kept["norm" in name or "embed" in name or "lm_head" in name].append(parameter)
        groups = [{"params": kept[False], "weight_decay": 0.1}, {"params": kept[True], "weight_decay": 0.0}]
        reference = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95))
        scheduler = torch.optim.lr_scheduler.LambdaLR(reference, lambda step: schedule(step) / 0.02)
        for step in range(10):
            ids, targets = tokens(61, seed=step)
            loss = hugging_face.cross_entropy(theirs, ids, targets).loss
            reference.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            reference.step()
            scheduler.step()
            model.zero_grad()
            total, _ = model.loss(ids, targets, aux_scale=0.0)
            total.backward()
            assert error(total.item(), loss.item()) < 1e-9
            assert error(clip_grad_norm(model.parameters(), 0.5), norm) < 1e-9
            ours.step(lr=schedule(step))
    theirs.save_pretrained(tmp_path / "trained")
    from safetensors.numpy import load_file

    assert_close(their_names(model.state_dict()), load_file(tmp_path / "trained" / "model.safetensors"), 1e-9)
