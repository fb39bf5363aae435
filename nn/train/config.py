"""What one training run is told.  The comment on a field is its help text; config.yaml in the run folder
holds all.

    TrainConfig(steps=100, model=MoETransformerConfig(hidden_size=64));  preset("smoke")"""

import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nn.data.loader import num_windows
from nn.errors import InputError
from nn.models import LanguageModelConfig, MoETransformerConfig
from nn.models.presets import SMALL
from nn.names import by_name, check_name
from nn.optim.factory import OPTIMIZERS
from nn.optim.schedules import SCHEDULES
from nn.train.constraints import create_constraints


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    # Data
    data: str = "stdlib"                 # "stdlib" (Python's own source), a text file, a folder or JSONL
    held_out_fraction: float = 0.05      # share of the documents kept for evaluation
    tokenizer: Literal["bpe", "bytes"] = "bpe"   # byte-level BPE trained on the data, or plain bytes
    vocab_size: int = 2048               # size of the BPE vocabulary (model.vocab_size follows it)
    # Model
    model: MoETransformerConfig | LanguageModelConfig = SMALL     # the model's shape
    # Batch and length of the run
    seq_len: int = 128                   # tokens per training sequence
    batch_size: int = 16                 # sequences per micro-batch
    accumulate: int = 1                  # micro-batches per step; one large batch but for the balance loss
    steps: int = 350                     # optimizer steps
    epochs: float = 0.0                  # passes over the text, instead of steps (0: as many steps as above)
    max_tokens: int = 0                  # tokens of the text to learn from, from its beginning (0: all)
    # Optimizer
    optimizer: str = "adamw"             # optimizer by name
    optimizer_options: dict[str, Any] = field(default_factory=dict)   # its further settings, such as
                                         # {momentum: 0.9, scale: original} of muon
    lr: float = 5e-3                     # peak learning rate
    schedule: str = "cosine"             # course of the learning rate: cosine, linear, wsd or constant
    warmup: int = 30                     # steps over which the learning rate rises to its peak
    lr_floor: float = 0.05               # learning rate at the end, as a share of the peak
    beta1: float = 0.9                   # AdamW: decay of the mean gradient
    beta2: float = 0.95                  # AdamW: decay of the mean squared gradient
    weight_decay: float = 0.1            # decoupled weight decay of matrices
    clip: float = 1.0                    # largest global gradient norm; larger ones are scaled down
    constraints: dict[str, dict[str, Any]] = field(default_factory=dict)   # what else the loss holds, such as
                                         # {activation: {weight: 0.01}}; see nn/train/constraints.py
    # Numbers
    seed: int = 0                        # of the initial weights, the data's order and the router's noise
    dtype: Literal["float32", "bfloat16"] = "float32"   # storage of the weights (masters are float32)
    device: Literal["auto", "cpu", "cuda", "emulated"] = "auto"   # auto: a GPU if there is one, or the CPU
    threads: int = 0                     # to compute with; 0 = NN_THREADS, else all usable cores.  Native
                                         # kernels give the same bits with any number, NumPy's BLAS may not
    gradient_checkpointing: bool = False   # recompute blocks in the backward pass: less memory, more time
    # Evaluation, checkpoints, output
    eval_every: int = 100                # steps between evaluations on held-out text
    eval_tokens: int = 16384             # held-out tokens per evaluation (0: all); the last one uses all
    checkpoint_every: int = 100          # steps between checkpoints
    keep_last: int = 2                   # newest checkpoints to keep; the best one is kept besides
    log_every: int = 10                  # steps between printed lines where there is no terminal
    runs: str = "runs"                   # folder that holds the run folders
    run: str = ""                        # this run's folder (empty: a new one, named after data and time)
    sample_prompt: str = "def "          # text the trained model continues at the end
    sample_tokens: int = 120             # tokens to write after the prompt (0: none)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "seq_len", "batch_size", "accumulate", "steps", "eval_every",
                     "checkpoint_every", "keep_last", "log_every"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("lr", "clip"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "greater than 0")
        for name in ("warmup", "weight_decay", "eval_tokens", "sample_tokens", "seed", "max_tokens",
                     "threads"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("beta1", "beta2"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        _check("epochs", self.epochs, 0 <= self.epochs < math.inf, "0 or more")
        _check("seed", self.seed, self.seed < 2**64, "below 2**64")
        _check("data", repr(self.data), bool(self.data), "a file, a folder or stdlib")
        _check("held_out_fraction", self.held_out_fraction, 0 < self.held_out_fraction < 1, "between 0 and 1")
        _check("lr_floor", self.lr_floor, 0 <= self.lr_floor <= 1, "between 0 and 1")
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        check_name("schedule", self.schedule, SCHEDULES)
        create_constraints(self.constraints)
        if self.seq_len > self.model.max_seq_len:
            raise InputError(f"seq_len: {self.seq_len} is longer than the model's context; "
                             f"lower it to {self.model.max_seq_len} or raise model.max_seq_len")

    def with_vocab(self, vocab_size: int) -> "TrainConfig":
        """The same run with a model for a tokenizer of that many tokens."""
        return replace(self, model=replace(self.model, vocab_size=vocab_size))

    def in_steps(self, tokens: int) -> "TrainConfig":
        """The same run on a text of that many tokens, its epochs as steps, of which warmup takes at most a
        tenth; the last step may begin another epoch."""
        if not self.epochs:
            return self
        windows = num_windows(min(tokens, self.max_tokens or tokens), self.seq_len)
        steps = max(1, math.ceil(self.epochs * windows / (self.batch_size * self.accumulate)))
        return replace(self, epochs=0.0, steps=steps, warmup=min(self.warmup, steps // 10))


def smoke() -> TrainConfig:
    """Seconds: shows that everything works and that the loss falls.  Reads one package of the standard
    library."""
    model = MoETransformerConfig(vocab_size=259, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1,
                                 head_dim=16, intermediate_size=64, num_experts=4, top_k=2, max_seq_len=64)
    return TrainConfig(data=str(Path(sysconfig.get_path("stdlib"), "email")), tokenizer="bytes", model=model,
                       seq_len=64, batch_size=8, steps=60, warmup=5, lr=1e-2, eval_every=20, eval_tokens=4096,
                       checkpoint_every=20, held_out_fraction=0.1, sample_tokens=40)


PRESETS: dict[str, Callable[[], TrainConfig]] = {"stdlib": TrainConfig, "smoke": smoke}


def preset(name: str) -> TrainConfig:
    """A ready-made run: "stdlib" (minutes; the main one) or "smoke" (seconds)."""
    return by_name("preset", name, PRESETS)()


def _check(name: str, value: object, good: bool, limits: str) -> None:
    if not good:
        raise InputError(f"{name}: {value} must be {limits}")
