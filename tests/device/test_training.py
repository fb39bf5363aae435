"""Whole training steps of a model on the emulated device, beside the same steps on the CPU."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from nn import MoETransformer
from nn.errors import InputError
from nn.models.presets import TINY
from nn.optim import AdamW
from nn.train.gpu_trainer import GpuTrainer
from nn.train.update import HostUpdate

BATCH = (2, 16)


def text(steps: int, shape: tuple[int, int] = BATCH, vocabulary: int = 1000) -> np.ndarray:
    """[steps,B,T+1] ids with something to learn: every token follows from the one before"""
    rng = np.random.default_rng(0)
    ids = np.empty((steps, shape[0], shape[1] + 1), np.int64)
    ids[:, :, 0] = rng.integers(vocabulary, size=ids.shape[:2])
    for t in range(shape[1]):
        ids[:, :, t + 1] = (ids[:, :, t] * 7 + 3) % 50
    return ids


def on_the_cpu(model: MoETransformer, lr: float = 3e-3) -> HostUpdate:
    return HostUpdate(model, AdamW(model.named_parameters(), lr=lr), clip=1.0, seed=0)


def losses(update: Any, ids: np.ndarray, lr: float = 3e-3) -> list[float]:
    return [update([(x[:, :-1], x[:, 1:])], step=i + 1, lr=lr)[0]["loss"] for i, x in enumerate(ids)]


def parameters(model: Any) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in model.state_dict().items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.mark.slow
def test_200_steps_follow_the_cpu_and_repeat_bit_for_bit(fast: EmulatedDevice) -> None:
    ids = text(200)
    right = losses(on_the_cpu(MoETransformer.tiny()), ids, lr=1e-3)
    runs = []
    for _ in range(2):
        model = MoETransformer.tiny()
        runs.append((losses(GpuTrainer(model, device=fast), ids, lr=1e-3), parameters(model)))
    np.testing.assert_allclose(runs[0][0], right, rtol=1e-3)
    assert right[-1] < 0.5 * right[0]
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


def test_no_kernel_of_a_step_does_anything_wrong(device: EmulatedDevice) -> None:
    """Queued, recorded and replayed, under full checks: the fixture fails on any finding."""
    ids = text(3)
    model = MoETransformer.tiny()
    found = losses(GpuTrainer(model, device=device), ids)
    np.testing.assert_allclose(found, losses(on_the_cpu(MoETransformer.tiny()), ids), rtol=1e-5)


def test_a_replayed_step_gives_the_queued_steps_bits(fast: EmulatedDevice) -> None:
    ids = text(5)
    queued, recorded = MoETransformer.tiny(), MoETransformer.tiny()
    right = losses(GpuTrainer(queued, device=fast, graph=False), ids)
    assert losses(GpuTrainer(recorded, device=fast), ids) == right
    assert same(parameters(queued), parameters(recorded))


def test_only_the_figures_come_back(fast: EmulatedDevice) -> None:
    ids = text(5)
    trainer = GpuTrainer(MoETransformer.tiny(), device=fast)
    losses(trainer, ids[:3])
    before = fast.counts()
    losses(trainer, ids[3:4])
    after = fast.counts()
    assert after.downloads - before.downloads == 1
    # loss, two auxiliary losses, load of 4 experts and entropy in 2 layers, gradient norm: float32
    assert after.downloaded_bytes - before.downloaded_bytes == 4 * (1 + 2 + 2 * (4 + 1) + 1)
    assert after.uploaded_bytes - before.uploaded_bytes == 2 * 8 * 2 * 16 + 4      # tokens, their number
    assert after.graph_launches - before.graph_launches == 1
    assert after.synchronizations - before.synchronizations == 1
    assert after.allocations == before.allocations


def test_a_step_uses_the_fused_kernels(fast: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums with norms, gathered rows with products and SwiGLU, each auxiliary loss in a kernel of its own; no
    gradient is copied, and few launches are left (165 of 268 before layers used any of these)."""
    trainer, ids = GpuTrainer(MoETransformer.tiny(), device=fast, graph=False), text(2)
    losses(trainer, ids[:1])
    called: Counter[str] = Counter()

    def counting(name: str, *arguments: Any) -> None:
        called[name] += 1
        type(fast).call(fast, name, *arguments)

    monkeypatch.setattr(fast, "call", counting)
    losses(trainer, ids[1:])
    layers = trainer.model.config.num_layers
    assert called["rms_norm_residual_forward"] == 2 * layers
    assert called["grouped_swiglu_forward"] == called["moe_z_loss_forward"] == layers
    assert called["moe_balance_loss_backward"] == called["grouped_linear_forward"] == layers
    assert called["moe_dispatch_forward"] == called["swiglu_packed_forward"] == 0
    assert called.total() <= 155


def test_bfloat16(fast: EmulatedDevice) -> None:
    ids = text(12)
    model = MoETransformer.tiny(dtype="bfloat16")
    found = losses(GpuTrainer(model, device=fast), ids)
    right = losses(on_the_cpu(MoETransformer.tiny(dtype="bfloat16")), ids)
    np.testing.assert_allclose(found, right, rtol=0.02)
    assert {array.dtype.name for array in parameters(model).values()} == {"bfloat16"}


VARIANTS = {"dense": {"num_experts": 0}, "layer norm": {"norm": "layernorm"}, "QK norm": {"qk_norm": True},
            "window": {"sliding_window": 5}, "tied": {"tie_embeddings": True},
            "biases": {"attention_bias": True},
            "interleaved": {"rope_interleaved": True}, "raw weights": {"renormalize": False},
            "capacity": {"capacity_factor": 1.0}, "jitter": {"router_jitter": 0.1},
            "gelu": {"num_experts": 0, "ffn": "gelu"}, "relu": {"num_experts": 0, "ffn": "relu"},
            "multi-head": {"num_kv_heads": 4},
            "odd widths": {"hidden_size": 36, "num_heads": 3, "intermediate_size": 50}}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(fast: EmulatedDevice, name: str) -> None:
    small = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48}
    config = TINY.replace(**small | VARIANTS[name])
    ids = text(4, (2, 9), vocabulary=101)
    found = losses(GpuTrainer(MoETransformer(config), device=fast), ids)
    np.testing.assert_allclose(found, losses(on_the_cpu(MoETransformer(config)), ids), rtol=2e-5)


class TestJitter:
    """Random numbers of a recorded step: those of the CPU, fresh at every replay."""

    CONFIG = TINY.replace(router_jitter=0.3, vocab_size=101, hidden_size=32, intermediate_size=48)

    def model(self) -> MoETransformer:
        return MoETransformer(self.CONFIG)

    def batches(self, count: int = 6) -> np.ndarray:
        return text(count, (2, 9), vocabulary=101)

    def test_a_replay_gives_the_queued_steps_bits(self, fast: EmulatedDevice) -> None:
        queued, recorded = self.model(), self.model()
        right = losses(GpuTrainer(queued, device=fast, graph=False), self.batches())
        before = fast.counts().graph_launches
        assert losses(GpuTrainer(recorded, device=fast), self.batches()) == right
        assert fast.counts().graph_launches - before == 5
        assert same(parameters(queued), parameters(recorded))

    def test_every_replay_draws_fresh_numbers(self, fast: EmulatedDevice) -> None:
        trainer, x = GpuTrainer(self.model(), device=fast, lr=0.0), self.batches(1)[0]
        batch = [(x[:, :-1], x[:, 1:])]
        found = [trainer(batch, step=step, lr=0.0)[0]["loss"] for step in (1, 2, 3, 4, 3, 2)]
        assert len(set(found[:4])) == 4                      # nothing else differs between the steps
        assert found[4:] == [found[2], found[1]]

    def test_micro_batches_draw_numbers_of_their_own(self, fast: EmulatedDevice) -> None:
        x = self.batches(1)[0]
        batches = [(x[:, :-1], x[:, 1:])] * 2
        here, there = on_the_cpu(self.model()), GpuTrainer(self.model(), device=fast)
        for step in (1, 2, 3):
            right = here(batches, step=step, lr=1e-3)[0]
            found = there(batches, step=step, lr=1e-3)[0]
            assert found["loss"] == pytest.approx(right["loss"], rel=1e-5)
        routers = [layer.mlp.router for layer in there.model.layers]
        noise = next(iter(there._steps.values())).noise.numpy()
        assert len(np.unique(noise.reshape(-1, 4), axis=0)) == 2 * len(routers)

    def test_the_sequence_goes_on_where_a_state_is_taken_over(self, fast: EmulatedDevice) -> None:
        ids, model = self.batches(), self.model()
        trainer = GpuTrainer(model, device=fast)
        losses(trainer, ids[:3])
        other = self.model()
        other.load_state_dict(parameters(model))
        second = GpuTrainer(other, device=fast)
        second.optimizer.load_state_dict(trainer.optimizer.state_dict())
        rest = [(i + 4, [(x[:, :-1], x[:, 1:])]) for i, x in enumerate(ids[3:])]
        right = [trainer(batch, step=step, lr=3e-3)[0]["loss"] for step, batch in rest]
        assert [second(batch, step=step, lr=3e-3)[0]["loss"] for step, batch in rest] == right

    def test_checkpointed_blocks_draw_the_same_again(self, fast: EmulatedDevice) -> None:
        plain, model = self.model(), self.model()
        model.gradient_checkpointing = True
        right = losses(GpuTrainer(plain, device=fast), self.batches(3))
        assert losses(GpuTrainer(model, device=fast), self.batches(3)) == right

    def test_what_is_uploaded(self, fast: EmulatedDevice) -> None:
        trainer = GpuTrainer(self.model(), device=fast)
        losses(trainer, self.batches(3))
        before = fast.counts()
        losses(trainer, self.batches(1))
        after = fast.counts()
        assert after.uploads - before.uploads == 3
        assert after.uploaded_bytes - before.uploaded_bytes == 2 * 8 * 2 * 9 + 4 + 2 * 4 * 8
        assert after.downloads - before.downloads == 1


def test_micro_batches(fast: EmulatedDevice) -> None:
    ids = text(4)
    batches = [(x[:, :-1], np.where(x[:, 1:] % 5 == 0, -100, x[:, 1:])) for x in ids]
    here, there = on_the_cpu(MoETransformer.tiny()), GpuTrainer(MoETransformer.tiny(), device=fast)
    for step in (1, 2, 3):
        right, norm = here(batches, step=step, lr=1e-3)
        found, their_norm = there(batches, step=step, lr=1e-3)
        assert found["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert found["moe/load_balance"] == pytest.approx(right["moe/load_balance"], rel=1e-5)
        assert their_norm == pytest.approx(norm, rel=1e-4)
        np.testing.assert_allclose(found["moe/load"], right["moe/load"], atol=1e-6)


def test_gradient_checkpointing(fast: EmulatedDevice) -> None:
    model = MoETransformer.tiny()
    model.gradient_checkpointing = True
    ids = text(3)
    right = losses(GpuTrainer(MoETransformer.tiny(), device=fast), ids)
    assert losses(GpuTrainer(model, device=fast), ids) == right


def test_the_learning_rate_is_read_at_every_replay(fast: EmulatedDevice) -> None:
    ids = text(4)
    trainer = GpuTrainer(MoETransformer.tiny(), device=fast, lr=1e-3)
    for x in ids[:3]:
        trainer.step(x[:, :-1], x[:, 1:])
    before = parameters(trainer.model)
    trainer.set_learning_rate(0.0)
    metrics = trainer.step(ids[3][:, :-1], ids[3][:, 1:])
    assert same(parameters(trainer.model), before)
    assert min(metrics["loss"], metrics["aux_loss"], metrics["grad_norm"]) > 0
    with pytest.raises(InputError, match="lr: -1"):
        trainer.set_learning_rate(-1.0)


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_step_that_is_not_finite_changes_nothing(fast: EmulatedDevice, steps_before: int) -> None:
    ids = text(5)
    trainer = GpuTrainer(MoETransformer.tiny(), device=fast)
    losses(trainer, ids[:steps_before])
    weight = trainer.model.norm.weight
    good = weight.numpy().copy()
    weight.data.upload(np.full_like(good, np.inf))
    before = parameters(trainer.model)
    _, norm = trainer([(ids[4][:, :-1], ids[4][:, 1:])], step=steps_before + 1, lr=1e-3)
    assert not np.isfinite(norm)
    assert same(parameters(trainer.model), before)
    assert trainer.optimizer.steps == steps_before
    weight.data.upload(good)
    assert np.isfinite(losses(trainer, ids[3:4])[0])
    assert trainer.optimizer.steps == steps_before + 1


def test_a_loss_that_is_not_finite_changes_nothing(fast: EmulatedDevice,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Although its gradient is: queued, recorded and replayed."""
    ids, trainer = text(4), GpuTrainer(MoETransformer.tiny(), device=fast)
    before, terms = parameters(trainer.model), trainer.model.loss_terms

    def infinite(*arguments: Any, **options: Any) -> Any:
        total, figures = terms(*arguments, **options)
        return total + float("inf"), figures

    with monkeypatch.context() as patched:
        patched.setattr(trainer.model, "loss_terms", infinite)
        for x in ids[:3]:
            _, norm = trainer([(x[:, :-1], x[:, 1:])], step=1, lr=1e-3)
            assert np.isnan(norm)
    assert same(parameters(trainer.model), before)
    assert trainer.optimizer.steps == int(trainer.optimizer._step.numpy()[0]) == 0


def continued(make: Callable[[Any], Any], first: Any, model: MoETransformer, ids: np.ndarray) -> list[float]:
    """Losses of another trainer that takes over parameters and optimizer state."""
    other = MoETransformer.tiny()
    other.load_state_dict(parameters(model))
    second = make(other)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    return losses(second, ids)


def test_a_state_is_taken_over_to_the_same_bits(fast: EmulatedDevice) -> None:
    ids = text(7)
    model = MoETransformer.tiny()
    trainer = GpuTrainer(model, device=fast)
    losses(trainer, ids[:4])
    found = continued(lambda other: GpuTrainer(other, device=fast), trainer, model, ids[4:])
    assert found == losses(trainer, ids[4:])


def test_a_state_moves_between_cpu_and_device(fast: EmulatedDevice) -> None:
    ids = text(6)
    cpu, model = MoETransformer.tiny(), MoETransformer.tiny()
    here, there = on_the_cpu(cpu), GpuTrainer(model, device=fast)
    losses(here, ids[:3]), losses(there, ids[:3])
    there_then = continued(lambda other: GpuTrainer(other, device=fast), here, cpu, ids[3:])
    here_then = continued(on_the_cpu, there, model, ids[3:])
    right = losses(here, ids[3:])
    np.testing.assert_allclose(there_then, right, rtol=1e-5)
    np.testing.assert_allclose(here_then, right, rtol=1e-5)


def test_refusals(fast: EmulatedDevice) -> None:
    trainer = GpuTrainer(MoETransformer.tiny(), device=fast)
    good = np.zeros((2, 4), np.int64)
    with pytest.raises(InputError, match="inputs: 1000 is outside 0 ... 999"):
        trainer.step(good + 1000, good)
    with pytest.raises(InputError, match="targets: -1 is outside"):
        trainer.step(good, good - 1)
    with pytest.raises(InputError, match=r"targets: shape \[2, 3\]"):
        trainer.step(good, good[:, :3])
    with pytest.raises(InputError, match="inputs: float64; a step takes integers"):
        trainer.step(good + 0.5, good)
    with pytest.raises(InputError, match="model: it is on the host"):
        GpuTrainer(MoETransformer.tiny())
    with pytest.raises(InputError, match="there is no GPU here"):
        GpuTrainer(MoETransformer.tiny(), device="cpu")
