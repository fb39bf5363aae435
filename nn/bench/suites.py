"""Who is measured at what: the contenders of each kind of benchmark, and the rows that come out.

    for row in train(TrainSpec("gpt2-124m", "f32", 4, 256), Run(threads=2)): ..."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nn.bench import ceilings, models
from nn.bench.ceilings import Ceilings
from nn.bench.report import OURS, ceiling_rows, row
from nn.bench.runs import Contender, Policy, in_turns, workers
from nn.errors import InputError
from nn.names import by_name, check_name

PEERS = {"torch": "torch", "llama.cpp": "llama_cpp"}       # library -> the package that has it
# Of rows "torch eager +tuned": glibc keeps freed memory, PyTorch asks for huge pages for large tensors.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30), "MALLOC_TOP_PAD_": str(64 << 20),
         "THP_MEM_ALLOC_ENABLE": "1"}
TORCH_TRAINING, TORCH_OPERATIONS = "nn.bench.peers.torch_training", "nn.bench.peers.torch_operations"
TORCH_DECODING, LLAMA = "nn.bench.peers.torch_decoding", "nn.bench.peers.llama"


@dataclass(frozen=True)
class Run:
    """How it is measured."""

    threads: int = 2
    policy: Policy = field(default_factory=Policy)
    peers: tuple[str, ...] = ("all",)  # libraries by name, all that are installed, or none
    ceiling_bytes: int = ceilings.BUFFER

    def others(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Of the contenders those that are wanted and installed."""
        names = [contender.name for contender in contenders]
        if self.peers in (("all",), ("none",)):
            return [each for each in contenders if self.peers == ("all",) and _installed(each)]
        found = []
        for wanted in self.peers:
            check_name("peers", wanted, ["all", "none", *PEERS, *names])
            found += [each for each in contenders if wanted in (each.name, _library(each))]
        for each in found:
            if not _installed(each):
                raise InputError(f"peers: {each.name} is not installed; pip install it, or leave it out")
        return found


def _library(contender: Contender) -> str:
    return contender.name.split()[0]


def _installed(contender: Contender) -> bool:
    return importlib.util.find_spec(PEERS[_library(contender)]) is not None


def train(model: str, dtype: str, batch: int, seq: int, run: Run) -> Iterator[dict[str, Any]]:
    """Rows of training steps of batch x seq tokens."""
    by_name("model", model, models.TRAINED)
    by_name("dtype", dtype, models.DTYPES)
    options = {"model": model, "dtype": dtype, "batch": batch, "seq": seq}
    ways = {"gpt2-124m": ("eager", "compile"), "gpt-tiny": ("eager",),
            "moe-bench": ("eager", "compile", "capacity compile")}.get(model, ())
    others = [Contender(f"torch {way}", TORCH_TRAINING, options | {"way": way}) for way in ways]
    contenders = [Contender(OURS, "nn.bench.training", options), *run.others(others)]
    yield from _rows(contenders, {"train": f"train {model} {batch} x {seq}"}, dtype, run)


def decode(model: str, dtype: str, prompt: int, new: int, prefill: int, run: Run) -> Iterator[dict[str, Any]]:
    """Rows of decoding and of prefill, batch 1."""
    by_name("model", model, models.DECODED)
    by_name("dtype", dtype, models.WEIGHTS)
    options = {"model": model, "dtype": dtype, "prompt": prompt, "new": new, "prefill": prefill}
    others = [Contender("llama.cpp", LLAMA, options)] if model in ("smol-135m", "moe-768x12") else []
    if others and dtype in models.DTYPES:
        others.append(Contender("torch eager", TORCH_DECODING, options))
    contenders = [Contender(OURS, "nn.bench.decoding", options),
                  *run.others(others)]
    names = {"decode": f"decode {model} {prompt} + {new}"} if new else {}
    names |= {"prefill": f"prefill {model} {prefill}"} if prefill else {}
    yield from _rows(contenders, names, dtype, run)


def operations(names: Sequence[str], run: Run, small: bool = False,
               dtype: str = "f32") -> Iterator[dict[str, Any]]:
    """Rows of single operations, forward and forward + backward."""
    from nn.bench.operations import NAMES

    for name in names:
        check_name("op", name, NAMES)
    by_name("dtype", dtype, models.DTYPES)
    options = {"small": small, "dtype": dtype}
    compiled = options | {"compiled": True}
    others = [Contender("torch eager", TORCH_OPERATIONS, options),
              Contender("torch eager +tuned", TORCH_OPERATIONS, options, TUNED),
              Contender("torch compile", TORCH_OPERATIONS, compiled),
              Contender("torch compile +tuned", TORCH_OPERATIONS, compiled, TUNED)]
    contenders = [Contender(OURS, "nn.bench.operations", options), *run.others(others)]
    yield from _rows(contenders, {name: name for name in names or NAMES}, dtype, run)


def _rows(contenders: Sequence[Contender], names: dict[str, str], dtype: str,
          run: Run) -> Iterator[dict[str, Any]]:
    """Every task by everyone, then what the ceilings were; a library that fails has rows that say so"""
    options = {"size": run.ceiling_bytes, "least": min(ceilings.LEAST, run.policy.least)}
    first = Contender(ceilings.NAME, "nn.bench.ceilings", options)
    with workers([first, *contenders], run.threads) as (limiting, *running):
        limits = Ceilings(limiting)
        for task, name in names.items():
            for result in in_turns(running, task, run.policy, limits.read):
                yield row(name, dtype, result, run.threads)
        yield from ceiling_rows(limits, run.threads)
