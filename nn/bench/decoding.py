"""This library's generation, batch 1: new tokens behind a prompt, and prompts read at once.  A worker's
module."""

import time
from typing import Any

import numpy as np

from nn.backends import native
from nn.bench.models import decoded, factors, prefill_flops, weight_bytes
from nn.bench.task import Task, Tasks
from nn.generate import SamplingConfig, generate
from nn.generate.recorded import refusals, servable
from nn.tensor import no_grad

PREFILL = 512


def tasks(model: str, dtype: str, prompt: int, new: int, prefill: int = PREFILL) -> Tasks:
    """{"decode": `new` tokens behind `prompt` others, greedily; "prefill": a prompt of `prefill` tokens}."""
    made: list[Any] = []

    def built() -> Any:
        if not made:
            made.append(decoded(model, dtype))
        return made[0]

    return {"decode": lambda: decode_task(built(), model, dtype, prompt, new),
            "prefill": lambda: prefill_task(built(), dtype, prefill)}


def decode_task(built: Any, model: str, dtype: str, prompt: int, new: int) -> Task:
    """nn.generate's own loop; the seconds from the first token, with which the prompt has been read, to the
    last."""
    ids = prompt_ids(prompt, built.vocab_size)
    config = SamplingConfig(temperature=0.0, max_tokens=new + 1, eos_ids=())
    facts: dict[str, Any] = {"weight_mb": weight_bytes(model, dtype) / 1e6}

    def decode() -> float:
        known = len(refusals())
        tokens = generate(built, ids, config)
        next(tokens)
        start = time.perf_counter()
        for _ in tokens:
            pass
        took = time.perf_counter() - start
        why = unserved(built, prompt + new + 1) or "; ".join(refusals()[known:])
        facts.update(recorded=not why, not_recorded=why)
        return took

    return Task(decode, tokens=new, bytes=new * weight_bytes(model, dtype), dtype=factors(dtype),
                facts=facts)


def unserved(built: Any, positions: int) -> str:
    """Why no step of the model's decoding is tried to be recorded; empty if it is."""
    return native.missing() or getattr(built, "static_problem", "") or (
        "" if servable(built, positions) else "its weights are not the native kernels'")


def prefill_task(built: Any, dtype: str, length: int) -> Task:
    """Logits behind a prompt of so many tokens."""
    ids = np.array([prompt_ids(length, built.vocab_size)])

    def prefill() -> None:
        with no_grad():
            built(ids, cache=built.init_state(1), last_only=True)

    return Task(prefill, tokens=length, flops=prefill_flops(built.config, length), dtype=factors(dtype))


def prompt_ids(count: int, vocab_size: int) -> list[int]:
    """The same ids for every library."""
    return [(i * 7919 + 13) % min(31000, vocab_size - 500) + 500 if vocab_size > 1000 else
            (i * 7919 + 13) % vocab_size for i in range(count)]
