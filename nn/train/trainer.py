"""The training loop.  It owns the order of things: update, evaluate, log, checkpoint.  All it does is a
function of the configuration, the data and the step, so that a run stopped or killed anywhere continues bit
for bit.

    with RunFolder.create(config) as run:
        corpus = prepare(config, run.path)
        Trainer(run, MoETransformer(config.model), corpus).fit()     # nn.train.train(config) does all this"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nn.data import Loader
from nn.errors import NonFiniteError
from nn.eval.bits_per_byte import Window, negative_log_likelihood, spread, windows
from nn.layers.moe.metrics import usage
from nn.optim import create_schedule
from nn.train.callbacks import Callback
from nn.train.checkpoint import checkpoints, latest_valid, save_checkpoint
from nn.train.constraints import create_constraints
from nn.train.corpus import Corpus
from nn.train.gradients import broken_weights, explain_nonfinite, scored_tokens
from nn.train.metrics import MetricsLog
from nn.train.run_folder import RunFolder
from nn.train.signals import StopSignal
from nn.train.update import create_update


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    bits_per_byte: float             # on held-out text, at the last evaluation; NaN if there was none
    gzip: float                      # bits per byte of gzip -9 for the same text
    xz: float                        # and of xz -9
    tokens: int                      # trained on
    seconds: float                   # spent in the loop, all lives of the run together
    run: Path
    steps: int                       # done
    interrupted: int | None = None   # the signal that stopped it

    def final_line(self) -> str:
        """The line a finished training ends with."""
        return (f"final: bits_per_byte={self.bits_per_byte:.4f} gzip={self.gzip:.4f} xz={self.xz:.4f} "
                f"tokens={self.tokens} seconds={self.seconds:.1f} run={self.run}")


class Trainer:
    """One run in one process.  `resume` continues from the newest valid checkpoint, `fit` trains to the last
    step."""

    def __init__(self, run: RunFolder, model: Any, corpus: Corpus,
                 callbacks: Sequence[Callback] = ()) -> None:
        config = run.config
        self.run, self.config, self.corpus, self.callbacks, self.model = run, config, corpus, callbacks, model
        model.gradient_checkpointing = config.gradient_checkpointing
        model.constraints = create_constraints(config.constraints)
        tokens = corpus.train.tokens[:config.max_tokens or None]
        self.loader = Loader(tokens, config.batch_size, config.seq_len, seed=config.seed)
        self.update = create_update(model, config)
        self.schedule = create_schedule(
            config.schedule, lr=config.lr, steps=config.steps, warmup=config.warmup, floor=config.lr_floor)
        self.step = 0                                   # optimizer steps done
        self.tokens = 0                                 # tokens trained on
        self.seconds = 0.0                              # spent in the loop by earlier lives and this one
        self.evaluation: dict[str, Any] | None = None   # the last one: {"step", "bits_per_byte"}
        self.best: dict[str, Any] | None = None
        self._saved_at = 0                              # step of the newest checkpoint

    def resume(self) -> int:
        """Take over the newest valid checkpoint, if there is one.  Returns the step to continue after."""
        found = latest_valid(self.run.checkpoints)
        self.model.zero_grad()              # what a step that failed has left would be added to
        if found:
            self.model.load_state_dict(found.tensors["model"])
            self.update.optimizer.load_state_dict(found.tensors["optimizer"])
            self.loader.load_state(found.state["loader"])
            self.step = self._saved_at = found.step
            self.tokens, self.seconds = found.state["tokens"], found.state["seconds"]
            self.evaluation, self.best = found.state["evaluation"], found.state["best"]
        return self.step

    def fit(self) -> TrainResult:
        """Train until config.steps, or until SIGINT or SIGTERM: then the running step is finished and
        saved."""
        result = None
        self._tell("on_start", self)
        try:
            with StopSignal() as stop, MetricsLog(self.run.metrics, after_step=self.step) as log:
                while self.step < self.config.steps and not stop.number:
                    self._one_step(log)
                if self._saved_at != self.step:
                    self._save(log)
            result = self._result(stop.number if self.step < self.config.steps else None)
        finally:
            self._tell("on_stop", result)
        return result

    def _one_step(self, log: MetricsLog) -> None:
        began = time.perf_counter()
        record = self._update()
        record["tokens_per_second"] = (record["tokens"] - self.tokens) / (time.perf_counter() - began)
        self.step, self.tokens = record["step"], record["tokens"]
        is_best = self._due(self.config.eval_every) and self._evaluate(record)
        self.seconds += time.perf_counter() - began
        log.write(record)
        self._tell("on_step", record)
        if is_best or self._due(self.config.checkpoint_every):
            self._save(log)

    def _update(self) -> dict[str, Any]:
        """One optimizer step; the line that metrics.jsonl gets for it."""
        config, step = self.config, self.step + 1
        batches = [self.loader.next() for _ in range(config.accumulate)]
        lr = self.schedule(self.step)
        metrics, norm = self.update(batches, step=step, lr=lr)
        if not math.isfinite(norm):
            self._stop_nonfinite(batches, "loss" if math.isnan(metrics["loss"]) else "gradient norm")
        if self.model.device is None and (broken := broken_weights(self.model)):
            raise NonFiniteError(f"step {step}: the update made {broken[0]} (and {len(broken) - 1} more) not "
                                 f"finite; lower lr, which was {lr:g}; {self._last_good()}")
        bits = metrics["loss"] / math.log(2.0) / self.corpus.bytes_per_token
        return {"step": step, "loss": metrics.pop("loss"), "bits_per_byte": bits, "lr": lr, "grad_norm": norm,
                "tokens": self.tokens + scored_tokens(batches)} | _plain(metrics)

    def _stop_nonfinite(self, batches: list[Any], what: str) -> None:
        """The weights are still those of the step before: no update is made of such a gradient."""
        step = self.step + 1
        cause = explain_nonfinite(self.model, batches, seed=self.config.seed, step=step)
        raise NonFiniteError(f"step {step}: the {what} is not finite; {cause}; {self._last_good()}")

    def _last_good(self) -> str:
        saved = checkpoints(self.run.checkpoints)
        return f"last good checkpoint: {saved[max(saved)]}" if saved else "no checkpoint was written yet"

    def _evaluate(self, record: dict[str, Any]) -> bool:
        """Measure held-out text (all of it after the last step); whether it is the best so far."""
        found = windows(len(self.corpus.held_out), self.config.seq_len)
        sample = spread(found, self.config.eval_tokens)
        bits = sampled = self._bits_per_byte(sample)
        if self.step == self.config.steps and len(sample) < len(found):
            bits = self._bits_per_byte(found)
        self.evaluation = {"step": self.step, "bits_per_byte": bits}
        record["held_out_bits_per_byte"] = bits
        self._tell("on_eval", self.step, bits)
        is_best = self.best is None or sampled < self.best["bits_per_byte"]       # always on the same text
        if is_best:
            self.best = {"step": self.step, "bits_per_byte": sampled}
        return is_best

    def _bits_per_byte(self, chosen: list[Window]) -> float:
        tokens = self.corpus.held_out.tokens
        nats = negative_log_likelihood(
            self.model, tokens, seq_len=self.config.seq_len, batch_size=self.config.batch_size,
            prefix_id=self.corpus.tokenizer.eos_id, chosen=chosen)
        num_bytes = sum(self.corpus.num_bytes(tokens[w.score:w.end]) for w in chosen)
        return nats / math.log(2.0) / num_bytes

    def _save(self, log: MetricsLog) -> None:
        log.sync()
        state = {"loader": self.loader.state(), "noise": {"seed": self.config.seed, "step": self.step},
                 "tokens": self.tokens, "seconds": self.seconds, "evaluation": self.evaluation,
                 "best": self.best}
        tensors = {"model": self.model.state_dict(), "optimizer": self.update.optimizer.state_dict()}
        best = self.best["step"] if self.best else None
        path = save_checkpoint(self.run.checkpoints, self.step, tensors, state,
                               keep_last=self.config.keep_last, best=best)
        self._saved_at = self.step
        self._tell("on_checkpoint", self.step, path)

    def _result(self, interrupted: int | None) -> TrainResult:
        info, bits = self.corpus.info, self.evaluation["bits_per_byte"] if self.evaluation else math.nan
        return TrainResult(bits, info["gzip"], info["xz"], self.tokens, self.seconds,
                           self.run.path, self.step, interrupted)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _tell(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*details)


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics as JSON takes them: the experts' load [layers, experts] becomes its mean per expert and its
    extremes, any other array its mean; what experts report is under "moe/layers" layer by layer, too."""
    load = metrics.get("moe/load")
    plain: dict[str, Any] = {name: float(np.mean(value)) for name, value in metrics.items()
                             if name != "moe/load"}
    layers = {name: value for name, value in metrics.items()
              if name.startswith("moe/") and np.ndim(value) == 1}
    if load is not None:
        even = {f"moe/{name}": value for name, value in usage(load).items()}
        plain |= {name: float(np.mean(value)) for name, value in even.items()}
        plain["moe/load"] = [round(float(share), 4) for share in load.mean(axis=0)]
        plain |= {"moe/load_min": float(load.min()), "moe/load_max": float(load.max())}
        layers |= even
    if layers:
        plain["moe/layers"] = {name.removeprefix("moe/"): [round(float(figure), 4) for figure in value]
                               for name, value in layers.items()}
    return plain
