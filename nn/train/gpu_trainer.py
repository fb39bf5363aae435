"""GpuTrainer: whole training steps on a device.

Parameters, gradients, moments and activations stay there.  A step uploads its tokens and two numbers (and,
for router jitter, where random numbers are drawn), queues its work (recorded once as a graph, then replayed
by one call) and copies back one small vector: the loss, the auxiliary losses, what the layers report, and the
gradient's norm.

    trainer = GpuTrainer(MoETransformer.tiny(), device="emulated", lr=1e-3)
    trainer.step(inputs, targets)                      # {"loss": 6.93, "grad_norm": 0.61, ...}
    trainer.decode([1, 2, 3], "top_p", top_p=0.9)      # ids"""

import functools
import logging
import math
import operator
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np

from cuda.nn.errors import DeviceError
from nn.backends import open_device
from nn.backends.array_api import NotRepeatable, Uploads
from nn.errors import InputError
from nn.generate import SamplingConfig, generate
from nn.layers.moe import finish_step
from nn.layers.noise import noise_counters
from nn.names import check_name
from nn.optim.factory import create_device_optimizer
from nn.train.gradients import Batch, scored_tokens

IGNORED = -100
log = logging.getLogger("nn.train")
STRATEGIES: dict[str, dict[str, Any]] = {         # what each one sets, unless the caller does
    "greedy": {"temperature": 0.0},
    "sample": {"temperature": 1.0},
    "top_k": {"temperature": 1.0, "top_k": 40},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "min_p": {"temperature": 1.0, "min_p": 0.05},
}


class GpuTrainer:
    """graph: record the step and replay it; False queues every kernel of every step, to find a fault.
    optimizer: "adamw" or "muon", optimizer_options: its further settings."""

    def __init__(self, model: Any, *, device: Any = None, lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
                 clip: float | None = 1.0, seed: int = 0, graph: bool = True, optimizer: str = "adamw",
                 optimizer_options: Mapping[str, Any] | None = None) -> None:
        if device is not None:
            device = open_device(device) if isinstance(device, str) else device
            if device is None:
                raise InputError("device: there is no GPU here; choose 'emulated', or train on the CPU "
                                 "(nn.train)")
            model.to(device)
        if model.device is None:
            raise InputError("model: it is on the host; give device='cuda' or 'emulated'")
        self.model, self.device, self.seed = model, model.device, seed
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_norm": clip}
        self.optimizer = create_device_optimizer(optimizer, model.named_parameters(),
                                                 **settings | dict(optimizer_options or {}))
        self.metrics: dict[str, Any] = {}              # of the last step
        self._graph = graph
        self._steps: dict[tuple[int, ...], _Step] = {}     # by [micro-batches, B, T]

    def step(self, inputs: Any, targets: Any) -> dict[str, Any]:
        """One optimizer step on integers [B,T] (targets of −100 do not count): "loss", "aux_loss",
        "grad_norm" and what the layers report."""
        batch = np.asarray(inputs), np.asarray(targets)
        metrics, norm = self([batch], step=self.optimizer.steps + 1, lr=self.optimizer.lr)
        auxiliary = sum(value for name, value in metrics.items() if name != "loss" and np.ndim(value) == 0)
        return metrics | {"grad_norm": norm, "aux_loss": auxiliary}

    def set_learning_rate(self, lr: float) -> None:
        """For the next steps; nothing is recorded anew."""
        if not 0 <= lr < math.inf:
            raise InputError(f"lr: {lr} must be 0 or more")
        self.optimizer.lr = lr

    def decode(self, prompt: Sequence[int], strategy: str = "greedy", **options: Any) -> list[int]:
        """Ids that follow the prompt; options as in SamplingConfig."""
        check_name("strategy", strategy, STRATEGIES)
        config = SamplingConfig(**STRATEGIES[strategy] | options)
        return list(generate(self.model, prompt, config))

    def __call__(self, batches: Sequence[Batch], *, step: int, lr: float) -> tuple[dict[str, Any], float]:
        """As nn.train.update.Update; unless loss and norm are finite, no parameter was changed."""
        shape = (len(batches), *np.shape(batches[0][0]))
        _check(batches, shape, self.model.vocab_size)
        if shape not in self._steps:
            self._steps[shape] = _Step(self, shape, self._graph)
        self.optimizer.lr = lr
        found = self._steps[shape].run(batches, step)
        norm = float(found.pop("grad_norm"))
        if math.isfinite(norm):
            self.optimizer.taken()
        finish_step(self.model, taken=math.isfinite(norm))
        self.metrics = found
        return found, norm


class _Step:
    """The step for one shape of batches: where its tokens go, its recording, what it leaves to be read."""

    def __init__(self, trainer: GpuTrainer, shape: tuple[int, ...], graph: bool) -> None:
        self.trainer, self.graph_wanted = trainer, graph
        device = trainer.device
        self.tokens = device.zeros((2, *shape), np.int64)          # inputs and targets [2,micro-batches,B,T]
        self.valid = device.zeros((), np.float32)                  # targets that count, of all micro-batches
        self.routers = [router for router, _ in _drawing(trainer.model, 0, 0, 0)]
        self.noise = device.zeros((shape[0], len(self.routers), 4), np.int64)     # where they draw
        self.layout: list[tuple[str, tuple[int, ...]]] = []        # of `figures`
        self.figures: Any = None                                   # one vector, read back after the step
        self.graph: Any = None
        self.warm = False
        self.step = 0
        self.uploads = Uploads()                                   # constants of the layers

    def run(self, batches: Sequence[Batch], step: int) -> dict[str, Any]:
        self.step = step
        self.tokens.upload(np.stack([[x for x, _ in batches], [y for _, y in batches]]).astype(np.int64))
        self.valid.upload(np.float32(scored_tokens(batches)))
        if self.routers:
            self.noise.upload(np.array([self._noise(step, micro) for micro in range(len(batches))]))
        try:
            self._launch()
        except BaseException:
            if self.graph is None:                   # else replays write there
                self.figures = None
            self.trainer.optimizer.failed()          # what it has left is no part of the next
            with suppress(Exception):                # the first error tells more
                finish_step(self.trainer.model, taken=False)
            raise
        return self._read()

    def _launch(self) -> None:
        if self.graph is None and self.warm and self.graph_wanted:
            self._try_to_record()
        if self.graph is not None:
            self.graph.replay()
            return
        with self.uploads.keeping() if self.graph_wanted else nullcontext():
            self._queue()               # the first time: buffers are made, and every table finds its place
        self.warm = True

    def _noise(self, step: int, micro: int) -> list[np.ndarray]:
        return [place for _, place in _drawing(self.trainer.model, self.trainer.seed, step, micro)]

    def _try_to_record(self) -> None:
        """Layers that read something back, or draw on the host, are queued kernel by kernel in every step."""
        try:
            self._record()
        except (NotRepeatable, DeviceError) as error:
            if isinstance(error, DeviceError) and "while a graph is captured" not in str(error):
                raise
            log.warning("steps are queued kernel by kernel, as they cannot be recorded: %s", error)
            self.graph_wanted, self.uploads = False, Uploads()
            self.trainer.optimizer.failed()
            finish_step(self.trainer.model, taken=False)

    def _record(self) -> None:
        from cuda.nn.graph import Graph
        with self.uploads.reusing(), Graph.capture(self.trainer.device) as graph:
            self._queue()
        self.trainer.optimizer.recorded()
        self.graph = graph

    def _queue(self) -> None:
        """Everything between the tokens and the figures; nothing is read back."""
        model, optimizer = self.trainer.model, self.trainer.optimizer
        micro_batches = self.tokens.shape[1]
        parts, totals = list[dict[str, Any]](), list[Any]()
        for micro in range(micro_batches):
            model.set_noise(self.trainer.seed, self.step, micro)
            for i, router in enumerate(self.routers):
                router.noise = self.noise[micro, i]
            total, figures = model.loss_terms(self.tokens[0, micro], self.tokens[1, micro],
                                              valid_tokens=self.valid, aux_scale=1.0 / micro_batches)
            total.backward()
            parts.append(figures)
            totals.append(total.data)
        self.layout = [(name, tuple(value.shape)) for name, value in parts[0].items()] + [("grad_norm", ())]
        xp = self.tokens.device.namespace
        vectors = [xp.reshape(part[name], (-1,)) for part in parts for name in part]
        self.figures = xp.concat([xp.astype(vector, xp.float32, copy=False) for vector in vectors]
                                 + [xp.reshape(self.valid, (-1,))])          # the norm's place
        optimizer.measure(functools.reduce(operator.add, totals))
        self.figures[-1:] = optimizer.norm
        optimizer.update()                   # in one launch, the last: it is made wholly, or not at all
        optimizer.zero_grad()

    def _read(self) -> dict[str, Any]:
        """The one download: means over the micro-batches, of the loss the sum."""
        host, at = self.figures.numpy(), 0
        micro_batches = self.tokens.shape[1]
        found: dict[str, Any] = {}
        for _ in range(micro_batches):
            for name, shape in self.layout[:-1]:
                count = math.prod(shape)
                value = host[at : at + count].reshape(shape).astype(np.float64)
                share = 1.0 if name == "loss" else 1.0 / micro_batches
                found[name] = found.get(name, 0.0) + share * value
                at += count
        found["grad_norm"] = host[-1]
        return {name: float(value) if np.ndim(value) == 0 else value for name, value in found.items()}


def _drawing(model: Any, seed: int, step: int, micro: int) -> list[tuple[Any, np.ndarray]]:
    """Routers that draw random numbers, each with its counter"""
    return [(module, place) for module, place in noise_counters(model, seed, step, micro)
            if getattr(module, "draws", False)]


def _check(batches: Sequence[Batch], shape: tuple[int, ...], vocab_size: int) -> None:
    """InputError unless all are integers of one shape [B,T], within the vocabulary."""
    for inputs, targets in batches:
        for name, ids, ignored in (("inputs", inputs, None), ("targets", targets, IGNORED)):
            if ids.dtype.kind not in "iu":
                raise InputError(f"{name}: {ids.dtype}; a step takes integers")
            if np.shape(ids) != shape[1:] or len(shape) != 3:
                raise InputError(f"{name}: shape {list(np.shape(ids))}; a step takes integers [B,T], "
                                 "of one shape")
            bad = (ids < 0) | (ids >= vocab_size)
            if bad.any() and not (ids[bad] == ignored).all():
                wrong = ids[bad][ids[bad] != ignored][0]
                raise InputError(f"{name}: {wrong} is outside 0 ... {vocab_size - 1}")
