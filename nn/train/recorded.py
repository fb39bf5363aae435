"""A training step, recorded once: forward and backward become a list of kernel calls that is replayed without
Python between them, on buffers planned by lifetime (csrc/native/core/record.h); in the same call the norm of
all gradients and the optimizer's step follow (nn/optim/together.py).

    gradients = RecordedGradients(model)
    metrics, _ = gradients(batches, seed=0, step=1)   # what nn.train.gradients.accumulate gives, bit by bit
    metrics, norm = gradients(batches, seed=0, step=2, run=lambda done: done.run(optimizer, 1.0, lr))

The second step of one shape is recorded.  Gradients lie where those of the step before lay, which are written
over; so the list of the optimizer's calls stays, too, until its state or a parameter gets another array.
What cannot be recorded runs kernel by kernel, and the log says once why, as does refusals(): layers
that draw random numbers or look at values (KNOWN lists those that do neither), hooks, constraints, several
micro-batches."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nn import tape
from nn.backends import forced, native, use_backend
from nn.backends.native.recording import AlreadyRecording, DeclinedError
from nn.errors import InputError
from nn.layers.auxiliary import Stacked, figures_later
from nn.optim import AdamW
from nn.optim.together import NotTakenError, Together
from nn.train.gradients import Batch, accumulate, scored_tokens

log = logging.getLogger("nn.train")
MOST = 4        # recordings of one training: each costs two steps; where shapes change, or how many targets
                # count, none pays
# Modules of this package whose Python does the same at every step, whatever the values are.
KNOWN = frozenset((
    "CausalSelfAttention", "DecoderBlock", "Embedding", "Ends", "Experts", "FeedForward", "GroupedAttention",
    "LanguageModel", "Layer", "LayerNorm", "Linear", "MLP", "MoELayer", "MoETransformer", "PreNorm",
    "RMSNorm", "Router", "Stack", "Transformer"))


_refused: list[str] = []


def refusals() -> list[str]:
    """Of this process so far: why training steps ran kernel by kernel that should have been recorded."""
    return list(_refused)


@dataclass
class Recorded:
    """A step and what it leaves to be read."""

    step: Any                                    # nn.backends.native.recording.Step
    inputs: np.ndarray                           # int64 [B,T], and targets: the next batch goes there
    targets: np.ndarray
    valid: int                                   # targets that count
    total: np.ndarray                            # the loss with what is added to it []
    figures: dict[str, Any]                      # arrays [], or Stacked
    weights: Any                                 # nn.backends.native.recording.Places of all parameters
    gradients: list[tuple[Any, np.ndarray]]
    together: Together | None = None             # the optimizer's step of these gradients
    apart: Any = None                            # an optimizer whose step is not made together

    def serves(self, batch: Batch, valid: int) -> bool:
        """Whether it is of this shape, and weights lie where they lay"""
        shapes = (np.shape(batch[0]), np.shape(batch[1]))
        return ((self.inputs.shape, self.targets.shape) == shapes and self.valid == valid
                and self.weights.unchanged())

    def run(self, optimizer: AdamW | None = None, clip: float | None = None,
            lr: float | None = None) -> float | None:
        """Replay, and make the optimizer's step behind it unless the loss or the norm is not finite.  Returns
        the gradients' norm; None: only they were computed.  DeclinedError for ids or targets out of range."""
        following = optimizer and self._together(optimizer)
        if not optimizer or not following:
            self.step.replay()
            return None
        return optimizer.take(following, clip, lr, run=lambda: self.step.replay(
            lambda recording: following.run(clip, self.total, recording)))

    def _together(self, optimizer: AdamW) -> Together | None:
        if self.apart is not optimizer and not (self.together and self.together.serves(optimizer)):
            try:
                self.together = optimizer.together(self.gradients)
            except NotTakenError as why:
                self.together, self.apart = None, optimizer
                log.info("the optimizer's step is not part of the recorded one: %s", why)
        return self.together

    def metrics(self) -> dict[str, Any]:
        """As Decoder.loss has them"""
        return {name: _host(value) for name, value in self.figures.items()}


Run = Callable[[Recorded], float | None]


class RecordedGradients:
    """Called as nn.train.gradients.accumulate is, without the model.  Returns its metrics, and what `run`
    gave (None where nothing was replayed).

    run: replays what was recorded, the batch being in its place, and may do more behind it.

    recorded: the step, once there is one.  why: what stands in the way of recording, if something does."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.recorded: Recorded | None = None
        self.why = ""
        self._last: Any = None                   # the shape of the step before
        self._made = 0                           # recordings
        self._norm: float | None = None          # what run() gave

    def __call__(self, batches: Sequence[Batch], *, seed: int, step: int,
                 run: Run = Recorded.run) -> tuple[dict[str, Any], float | None]:
        why = "several micro-batches" if len(batches) > 1 else unrecordable(self.model)
        if why:
            self._say(why)
            return accumulate(self.model, batches, seed=seed, step=step), None
        self._norm = None
        with use_backend("native"):              # small arrays, too, as in a recording: the same bits
            begun = any(p.grad is not None for p in self.model.parameters())
            if begun or self.why or not self._ready(batches[0], run):
                return accumulate(self.model, batches, seed=seed, step=step), None
        return self._replayed(), self._norm

    def _ready(self, batch: Batch, run: Run) -> bool:
        """Whether the batch has been computed by a recorded step"""
        if any(np.asarray(each).dtype.kind not in "iu" for each in batch):
            return False                         # eagerly it is refused
        valid = scored_tokens([batch])
        shape = (np.shape(batch[0]), np.shape(batch[1]), valid)
        seen, self._last = self._last == shape, shape
        if self.recorded is not None and self.recorded.serves(batch, valid):
            try:
                self.recorded.inputs[...], self.recorded.targets[...] = batch
                self._norm = run(self.recorded)
            except DeclinedError:                # eagerly it says which id it is
                return False
            return True
        return seen and self._record(batch, valid)

    def _record(self, batch: Batch, valid: int) -> bool:
        self.recorded = None                     # its memory first
        if self._made == MOST:
            self._say("the batches' shapes change too often")
            return False
        self._made += 1
        try:
            self.recorded = recorded(self.model, batch, valid)
        except AlreadyRecording:                 # another thread is: at the next step, then
            pass
        except (InputError, MemoryError) as problem:
            self._say(str(problem) or "out of memory")
        if self.recorded is None:
            self.model.zero_grad()
        return self.recorded is not None

    def _replayed(self) -> dict[str, Any]:
        done = self.recorded
        assert done is not None
        metrics = done.metrics()
        if not math.isfinite(float(done.total)):
            return metrics | {"loss": math.nan}
        for parameter, gradient in done.gradients:
            parameter.grad = gradient
        return metrics

    def _say(self, why: str) -> None:
        if why and why != self.why:
            self.why = why
            if forced() in (None, "native") and not native.missing():
                _refused.append(why)
            log.info("training steps run kernel by kernel, they cannot be recorded (%s)", why)


def recorded(model: Any, batch: Batch, valid: int) -> Recorded:
    """Record the step of a batch, whose gradients the model has then.  InputError if that cannot be."""
    from nn.backends.native.recording import Places, record
    inputs, targets = (np.array(each, np.int64, order="C") for each in batch)
    one = np.ones((), np.float32)
    named = model.named_parameters()
    with record(everything=True) as step, figures_later():
        total, figures = model.loss_terms(inputs, targets, valid_tokens=valid)
        total.backward(one)
        step.result(total.data, "the loss")
        for name, value in figures.items():
            for array in value.arrays if isinstance(value, Stacked) else [value]:
                step.result(array, name)
        gradients = [(p, step.result(p.grad, f"the gradient of {name}"))
                     for name, p in named.items() if p.grad is not None]
    return Recorded(step, inputs, targets, valid, total.data, figures, Places(named.values()), gradients)


def unrecordable(model: Any) -> str:
    """Why steps of a model cannot be recorded; empty if nothing is known against it."""
    if forced() not in (None, "native") or native.missing():
        return "native kernels are not in use"
    if tape.state.path is not None or tape.state.count is not None:
        return "every operation is looked at"
    for module in model.modules():
        if type(module).__name__ not in KNOWN or not type(module).__module__.startswith("nn."):
            return f"{type(module).__name__} may look at values"
        if module.training and hasattr(module, "noise") and getattr(module, "draws", True):
            return f"{type(module).__name__} draws random numbers"
        if any(getattr(module, name, None) for name in ("hooks", "constraints", "mtp")):
            return "hooks, constraints or further predictions look at the step"
        if getattr(module, "gradient_checkpointing", False):
            return "layers are run again in backward"
    strange = {str(p.dtype) for p in model.parameters()
               if not isinstance(p.data, np.ndarray) or p.data.dtype not in native.DTYPES}
    return f"weights in {', '.join(sorted(strange))}" if strange else ""


def _host(value: Any) -> Any:
    """A number, or an array that stays as it is"""
    host = value.now() if isinstance(value, Stacked) else np.asarray(value)
    return float(host) if host.ndim == 0 else np.array(host)
