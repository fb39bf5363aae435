"""Every registered block learns something that it is for: models, bounds, the table of what came out.

    python -m tests.blocks.learning                 # trains them all, prints the table of docs/6-blocks.md
    python -m tests.blocks.learning mamba moe       # some of them

A bound lies far below the task's blind loss (tests/blocks/tasks.py), and below what the same model reaches
without the block: only a block that does its work gets under it.  Losses are nats per scored token, on
batches that training has not seen."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from nn import ops
from nn.layers import auxiliary, registry
from nn.layers.linear import Embedding, Linear
from nn.layers.module import Module
from nn.layers.norm import RMSNorm
from nn.optim import AdamW
from nn.tensor import Tensor, no_grad
from tests.blocks.tasks import (
    IGNORED,
    Batch,
    Task,
    bigrams,
    copy,
    first_token,
    induction,
    modular_sum,
    recall,
)

STEPS = 300
WIDTH = 16


# ---- models ----


class Learner(Module):
    """ids [B,T] -> logits [B,T,V]: embedding, the block under test, norm, head"""

    def __init__(self, task: Task, body: Any, embed_std: float) -> None:
        width = body.settings.hidden_size
        self.embed_tokens = Embedding(task.vocab_size, width, std=embed_std)
        self.body, self.norm = body, RMSNorm(width)
        self.lm_head = Linear(width, task.vocab_size)

    def forward(self, batch: Batch) -> Tensor:
        given: dict[str, Any] = {"ids": batch.ids} if "ids" in self.body.inputs else {}
        if batch.context is not None and "context" in self.body.inputs:
            given["context"] = self.embed_tokens(batch.context)
        h, _ = self.body(self.embed_tokens(batch.ids), mode="chunk", **given)
        return self.lm_head(self.norm(h))

    def loss(self, batch: Batch) -> Tensor:
        """Nats per scored token"""
        asked = batch.targets != IGNORED
        logits = self(batch)
        each = ops.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.targets.reshape(-1))
        return each.sum() * (1.0 / asked.sum())


@dataclass(frozen=True)
class Model:
    """What is trained."""

    settings: Mapping[str, Any]            # of the stack, or of what stands for one
    stack: str = "stack"                   # its name
    lr: float = 1e-2
    rows: int = 16                         # of a batch
    embed_std: float = 0.1                 # the embedding starts as Normal(0, embed_std)

    def build(self, task: Task, seed: int) -> Learner:
        body = registry.find("stack", self.stack)
        settings = body.Settings.create(**{"hidden_size": WIDTH, **self.settings})
        learner = Learner(task, body(settings), self.embed_std)
        learner.initialize(seed)
        return learner


@dataclass(frozen=True)
class Trial:
    """A block, what it is to learn, and the loss it must get under."""

    role: str
    name: str
    task: Task
    bound: float
    model: Model
    control: str                           # name of the model without it, in CONTROLS


@dataclass(frozen=True)
class Outcome:
    """Losses on batches that were not trained on."""

    start: float
    end: float


def learn(task: Task, model: Model, seed: int = 0, steps: int = STEPS) -> Outcome:
    """Train with AdamW, every batch new, the rate falling to nothing in the second half"""
    learner = model.build(task, seed)
    optimizer = AdamW(learner.named_parameters(), lr=model.lr, weight_decay=0.0)
    random, unseen = np.random.default_rng(2 * seed), task.draw(np.random.default_rng(2 * seed + 1), 512)
    start = evaluated(learner, unseen)
    for step in range(steps):
        with auxiliary.collect() as aux:
            total = learner.loss(task.draw(random, model.rows))
        for term in aux.totals().values():
            total = total + term
        total.backward()
        optimizer.step(model.lr * min(1.0, 2.0 * (1.0 - step / steps)))
        optimizer.zero_grad()
    return Outcome(start, evaluated(learner, unseen))


def evaluated(learner: Learner, batch: Batch) -> float:
    learner.eval()
    with no_grad():
        loss = learner.loss(batch).item()
    learner.train()
    return loss


# ---- who learns what ----


COPY, INDUCTION, RECALL, SUM = copy(), induction(), recall(), modular_sum()
CONTEXT, BIGRAMS, FIRST = recall(in_context=True), bigrams(), first_token()
HEADS = {"num_heads": 2}
ATTENTION = {"full_attention": HEADS}
WINDOW: dict[str, Any] = {"sliding_attention": HEADS | {"window": 1}}
ITSELF: dict[str, Any] = {"mixer": "sliding_attention", "options": WINDOW}
LOOPED = {"num_layers": 1, "feed_forward": "none", "options": ATTENTION}


def stack(layers: int = 1, **settings: Any) -> Model:
    """A stack of attention alone, but for what is given"""
    return Model({"num_layers": layers, "feed_forward": "none", "options": ATTENTION} | settings)


def for_sums(model: Model) -> Model:
    return replace(model, rows=32, embed_std=0.02)


def for_induction(model: Model) -> Model:
    return replace(model, rows=8, embed_std=0.5)


def mixer(name: str, task: Task, bound: float, lr: float = 1e-2, **options: Any) -> Trial:
    model = replace(stack(mixer=name, options={name: options}), lr=lr)
    return Trial("mixer", name, task, bound, model, "a mixer that sees the token itself alone")


def summing(role: str, name: str, layers: int = 1, **settings: Any) -> Trial:
    """Behind attention, which alone cannot add modulo anything"""
    options = ATTENTION | settings.pop("options", {})
    return Trial(role, name, SUM, 0.7, for_sums(stack(layers, options=options, **settings)),
                 "attention without a feed-forward")


def feed_forward(name: str, **options: Any) -> Trial:
    return summing("feed_forward", name, feed_forward=name, options={name: options})


def memory(name: str, task: Task, bound: float, lr: float = 1e-2, **options: Any) -> Trial:
    """Beside a mixer that sees the token itself alone"""
    model = replace(stack(memory=name, **{**ITSELF, "options": WINDOW | {name: options}}), lr=lr)
    return Trial("memory", name, task, bound, model, "a mixer that sees the token itself alone")


def inducing(role: str, name: str, **settings: Any) -> Trial:
    """Two layers, which induction needs one after the other"""
    return Trial(role, name, INDUCTION, 0.3, for_induction(stack(2, **settings)), "one layer of attention")


def residual(name: str, **options: Any) -> Trial:
    own = {name: options} if options else {}
    return inducing("residual", name, residual=name, options={**ATTENTION, **own})


CONTROLS = {
    "a mixer that sees the token itself alone": stack(**ITSELF),
    "attention without a feed-forward": for_sums(stack()),
    "one layer of attention": for_induction(stack()),
    "one step": for_induction(Model({"recurrence_steps": 1, "core": LOOPED}, "recursion")),
}

CHUNKS = {"chunk_size": 8}
WIDE = {"intermediate_size": 32}

TRIALS = [
    mixer("full_attention", COPY, 0.1, **HEADS),
    mixer("sliding_attention", COPY, 0.1, **HEADS, window=5),
    mixer("retention", RECALL, 0.1, **HEADS, **CHUNKS),
    mixer("linear_attention", RECALL, 0.1, **HEADS, **CHUNKS),
    mixer("gla", RECALL, 0.1, **HEADS, **CHUNKS),
    mixer("delta_net", RECALL, 0.1, **HEADS, **CHUNKS),
    mixer("gated_delta_net", RECALL, 0.1, **HEADS, **CHUNKS, head_dim=8),
    inducing("mixer", "gated_attention", mixer="gated_attention", options={"gated_attention": HEADS}),
    mixer("mla", COPY, 0.1, **HEADS, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8),
    mixer("mamba", RECALL, 0.2, 3e-2, **CHUNKS, state_size=8),
    mixer("mamba2", RECALL, 0.2, **CHUNKS, state_size=8, head_dim=8),
    mixer("block_sparse", COPY, 0.1, **HEADS, block_size=4, local_blocks=2),
    mixer("nsa", RECALL, 0.2, **HEADS, compress_size=2, compress_stride=1, block_size=2, selected_blocks=4,
          window=2, local_blocks=1, compressor="mean", separate_kv=False),
    feed_forward("swiglu", **WIDE),
    feed_forward("mlp", **WIDE),
    feed_forward("moe", intermediate_size=16, num_experts=4),
    feed_forward("moe_expert_choice", intermediate_size=16, num_experts=4),
    memory("cross_attention", CONTEXT, 0.2, **HEADS),
    memory("engram", BIGRAMS, 0.2, vocab_size=8, engram_vocab_size=(61,), max_ngram=2, n_embed_per_ngram=16,
           n_head_per_ngram=2),
    memory("rmc", FIRST, 0.2, 2e-2, mem_size=8),
    summing("memory", "nsb", memory="nsb", memory_at="post_attn", options={"nsb": {"rules": 8, "rdim": 8}}),
    residual("pre_norm"),
    residual("post_norm"),
    summing("residual", "sandwich", feed_forward="swiglu", residual="sandwich", options={"swiglu": WIDE}),
    summing("residual", "parallel", 2, feed_forward="swiglu", residual="parallel", options={"swiglu": WIDE}),
    residual("hc", n_streams=2),
    residual("mhc", n_streams=2, sinkhorn_iters=5),
    inducing("stack", "stack", mixer="RA", options=ATTENTION | {"retention": HEADS | {"chunk_size": 16}}),
    Trial("stack", "recursion", INDUCTION, 0.3,
          for_induction(Model({"recurrence_steps": 2, "core": LOOPED}, "recursion")), "one step"),
]


@lru_cache
def without(control: str, task: str) -> float:
    """The loss that a control reaches"""
    return learn(next(trial.task for trial in TRIALS if trial.task.name == task), CONTROLS[control]).end


# ---- the table ----

HEAD = "| block | task | at the start | blind | without | bound | reached |\n|---|---|---|---|---|---|---|"


def row(trial: Trial, outcome: Outcome) -> str:
    control = without(trial.control, trial.task.name)
    losses = " | ".join(f"{loss:.2f}" for loss in (outcome.start, trial.task.blind, control, trial.bound))
    return f"| `{trial.name}` | {trial.task.name} | {losses} | {outcome.end:.4f} |"


def main(names: list[str]) -> None:
    print(HEAD)
    for trial in TRIALS:
        if not names or trial.name in names:
            print(row(trial, learn(trial.task, trial.model)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
