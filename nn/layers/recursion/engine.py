"""The recursion engine: one stack of layers applied n times, n chosen at the call (universal transformers,
Dehghani et al. 2019; recurrent depth, Geiping et al. 2025).

    e = prelude(x);  h_0 = e;   u = core(h_s + step_s),  h_(s+1) = rule(h_s, u);   y = coda(h_n)
    with inject, h_s ← W_h h_s + W_e e before each step;   W_e e is formed once

    y, state = engine(x, state=engine.init_state(2), n_steps=8)

Tokens leave the recursion by an exit router (exits.py), or halt by learned weights ω_s, y = Σ_s ω_s h_(s+1)
(halting.py).  The loop ends early when no token is left; not with a state, as caches at every step need every
token: those that have left are then seen with what they were when they left."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nn.backends.array_api import beside, namespace
from nn.cache import StepCache
from nn.errors import InputError
from nn.layers.formulas import projection
from nn.layers.linear import Linear
from nn.layers.module import Parameter
from nn.layers.noise import drawing, drawn_apart
from nn.layers.precision import cast_to, widened
from nn.layers.protocol import Block, BlockSettings
from nn.layers.recursion.exits import THRESHOLDS, ExitRouter
from nn.layers.recursion.loop import Loop
from nn.layers.recursion.rules import RULES, UpdateRule, rule_flops, rule_parameters
from nn.layers.stack import Stack, StackSettings, StackState
from nn.names import check_name
from nn.random import counter, drawn_from
from nn.state import State
from nn.tensor import Array, Tensor, no_grad

EMBEDDINGS = ("none", "learned", "sinusoidal")
HALTING = ("none", "act", "ponder")
READINGS = ("mean", "median", "sample")
PARTS = ("prelude", "core", "coda")


@dataclass(frozen=True)
class RecursionSettings(BlockSettings):
    """A stack of layers applied several times."""

    recurrence_steps: int = 1           # times that the core is applied, unless a call says otherwise
    core: Mapping[str, Any] = field(default_factory=dict)    # settings of the stack that is repeated
    prelude: Mapping[str, Any] | None = None                 # of one in front, or none
    coda: Mapping[str, Any] | None = None                    # of one behind, or none
    rule: str = "replace"               # what a step's result does: replace, residual, gated, ema or norm
    ema: float = 0.5                    # what rule ema keeps of the state
    start: str = "input"                # what the recursion starts from: input or zeros
    inject_input: bool = False          # give the input to every step
    step_embedding: str = "none"        # tell the steps apart: none, learned or sinusoidal
    max_steps: int = 16                 # steps that a learned embedding has vectors for
    bptt_steps: int = 0                 # newest steps that gradients go through; 0 = all
    exit: str = "never"                 # when a token leaves: never, latent, learned, ...; see exits.py
    exit_threshold: float | None = None # of that criterion; none = its own
    halting: str = "none"               # learned weights of the steps: none, act or ponder
    act_eps: float = 0.01               # a token halts when its weights have reached 1 - act_eps
    act_output: str = "accumulated"     # accumulated, or basic: out = w h + (1 - w) out at each step
    halt_coef: float = 0.01             # penalty on steps (act), or on the distance from the prior (ponder)
    ponder_prior: float = 0.2           # probability to halt at a step that the prior has
    ponder_read: str = "mean"           # what ponder gives out: mean, median or sample
    fill_deeper: bool = False           # whether steps that a state lacks begin as its last one
    norm_eps: float = 1e-6              # of rule norm

    def __post_init__(self) -> None:
        self._positive("hidden_size", "max_steps")
        for name, known in (("rule", RULES), ("exit", THRESHOLDS), ("step_embedding", EMBEDDINGS),
                            ("halting", HALTING), ("ponder_read", READINGS), ("start", ("input", "zeros")),
                            ("act_output", ("accumulated", "basic"))):
            check_name(name, getattr(self, name), known)
        if self.recurrence_steps < 0 or self.bptt_steps < 0:
            raise InputError(f"recurrence_steps: {self.recurrence_steps}, bptt_steps: {self.bptt_steps}; "
                             "neither is negative")
        for name in ("ponder_prior", "act_eps", "ema"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise InputError(f"{name}: {getattr(self, name)} is not between 0 and 1")
        if self.exit != "never" and self.halting != "none":
            raise InputError(f"exit: {self.exit!r} with halting {self.halting!r}; choose one of them")
        if self.halts and self.bptt_steps:
            raise InputError(f"bptt_steps: {self.bptt_steps} with halting {self.halting!r}, which learns "
                             "from every step; set bptt_steps to 0")
        self.stacks()

    def stacks(self) -> dict[str, StackSettings]:
        """Of the parts that there are."""
        common = {"hidden_size": self.hidden_size, "init_std": self.init_std, "out_std": self.out_std}
        given = {name: getattr(self, name) for name in PARTS}
        return {name: StackSettings.create(**common | dict(each)) for name, each in given.items()
                if each is not None}

    @property
    def halts(self) -> bool:
        """Whether steps have learned weights."""
        return self.halting != "none"

    def parameters(self, active: bool = False) -> dict[str, int]:
        width = self.hidden_size
        own = {"rule": rule_parameters(self.rule, width), "inject": 2 * width * width * self.inject_input,
               "step_embedding": self.max_steps * width * (self.step_embedding == "learned"),
               "halting": (width + 1) * (self.halts + (self.exit == "learned"))}
        return _prefixed(self.stacks(), lambda stack: stack.parameters(active)) | own

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None,
              n_steps: int | None = None) -> dict[str, int]:
        """As elsewhere; every token takes all n_steps (none: recurrence_steps)."""
        tokens, square = batch * length, (self.hidden_size, self.hidden_size)
        steps = self.recurrence_steps if n_steps is None else n_steps
        counts = _prefixed(self.stacks(), lambda stack: stack.flops(batch, length, past, mode))
        counts = {name: count * (steps if name.startswith("core.") else 1) for name, count in counts.items()}
        looks = max(0, steps - 1) * self.halts + steps * (self.exit == "learned")
        return counts | {
            "rule": steps * rule_flops(self.rule, tokens, self.hidden_size),
            "inject": projection(tokens, *[square] * (steps + 1)) * (self.inject_input and steps > 0),
            "halting": 2 * tokens * self.hidden_size * looks}

    @classmethod
    def examples(cls) -> dict[str, Any]:
        attention = {"num_layers": 1, "options": {"full_attention": {"num_heads": 2},
                                                  "swiglu": {"intermediate_size": 4}}}
        retention = {"num_layers": 1, "mixer": "retention", "feed_forward": "none",
                     "options": {"retention": {"num_heads": 2, "chunk_size": 4}}}

        def of(core: Mapping[str, Any], **more: Any) -> RecursionSettings:
            return cls.create(hidden_size=8, recurrence_steps=2, core=core, **more)

        return {"": of(attention),
                "injected": of(retention, inject_input=True, start="zeros", rule="gated", prelude=retention,
                               coda=retention, step_embedding="learned", max_steps=3),
                "norm": of(retention, rule="norm", step_embedding="sinusoidal"),
                "exit": of(attention, exit="learned", rule="ema"),
                "act": of(attention, halting="act"),
                "act basic": of(retention, halting="act", act_output="basic", rule="residual"),
                "ponder": of(retention, halting="ponder")}


def _prefixed(stacks: Mapping[str, StackSettings],
              of: Callable[[StackSettings], dict[str, int]]) -> dict[str, int]:
    return {f"{part}.{name}": count for part, stack in stacks.items() for name, count in of(stack).items()}


@dataclass
class RecursionState(State):
    """What each part has seen; the core once for every step."""

    steps: list[StackState]
    prelude: StackState | None = None
    coda: StackState | None = None


class RecursionEngine(Block):
    """core, prelude, coda: stacks; rule; inject_h, inject_e [D,D]; step_embedding [max_steps,D]; halt [1,D] +
    b, 1 at the start"""

    Settings = RecursionSettings
    packing = "handed on"
    core: Stack
    noise_name = "ponder"

    def __init__(self, settings: RecursionSettings, dtype: Any = "float32") -> None:
        s = self.settings = settings
        width, options = s.hidden_size, {"std": s.init_std, "dtype": dtype}
        for name, stack in s.stacks().items():
            setattr(self, name, Stack(stack, dtype=dtype))
        self.rule = UpdateRule(s.rule, width, decay=s.ema, eps=s.norm_eps, **options)
        self.exit_router: Callable[[Tensor, int, StepCache], Array] = ExitRouter(
            s.exit, width, s.exit_threshold, **options)
        if s.inject_input:
            self.inject_h, self.inject_e = (Linear(width, width, **options) for _ in range(2))
        if s.step_embedding == "learned":
            self.step_embedding = Parameter((s.max_steps, width), decay=False, **options)
        if s.halts:
            self.halt = Linear(width, 1, **options)
            self.halt.bias = Parameter((1,), fill=1.0, dtype=dtype, decay=False)
        self.noise: Array = counter(0, "ponder")      # where halting is drawn if ponder_read is sample

    @property
    def inputs(self) -> tuple[str, ...]:
        """What its blocks need besides x, each name once."""
        return tuple(dict.fromkeys(name for part in self._parts().values() for name in part.inputs))

    def _parts(self) -> dict[str, Stack]:
        return {name: getattr(self, name) for name in PARTS if isinstance(vars(self).get(name), Stack)}

    def init_state(self, batch_size: int, n_steps: int | None = None) -> RecursionState:
        parts, steps = self._parts(), self.settings.recurrence_steps if n_steps is None else n_steps
        ends = {name: part.init_state(batch_size) for name, part in parts.items() if name != "core"}
        return RecursionState([parts["core"].init_state(batch_size) for _ in range(steps)], **ends)

    def forward(self, x: Tensor, *, state: RecursionState | None = None, mask: Array | None = None,
                mode: str | None = None, n_steps: int | None = None,
                **given: Any) -> tuple[Tensor, RecursionState | None]:
        """x[B,T,D] -> y[B,T,D], the whole stream as a stack's; n_steps: none = recurrence_steps, 0 = none"""
        readings, weights, state = self.unrolled(x, state=state, mask=mask, mode=mode, n_steps=n_steps,
                                                 **given)
        y = readings[-1] if not weights else self._read(readings[1:], weights)
        y, _ = self._run("coda", y, state, mask=mask, mode=mode, **given)
        return y, state

    def unrolled(self, x: Tensor, *, state: RecursionState | None = None, mask: Array | None = None,
                 mode: str | None = None, n_steps: int | None = None,
                 **given: Any) -> tuple[list[Tensor], list[Tensor], RecursionState | None]:
        """([h_0, h_1, ..., h_n], the weights ω of h_1 ... h_n if there is halting, the state), before the
        coda: what a loss on every step's reading is formed from (halting.ponder_loss)"""
        steps = self.settings.recurrence_steps if n_steps is None else n_steps
        self._check_steps(steps)
        given |= {"mask": mask, "mode": mode}
        e, _ = self._run("prelude", x, state, **given)
        self._deepen(state, steps)
        loop, drawn = Loop(self, e, steps, mask, stops=state is None), drawing(self.core)
        while not loop.done:
            with nullcontext() if loop.recorded else no_grad(), drawn_apart(drawn, loop.at):
                loop.advance(lambda h, s: self._run("core", h, state, s, **given)[0])
        loop.report()
        return loop.readings, loop.weights, state

    def _run(self, name: str, x: Tensor, state: RecursionState | None, step: int = 0,
             **given: Any) -> tuple[Tensor, Any]:
        part = self._parts().get(name)
        if part is None:
            return x, None
        held = None if state is None else state.steps[step] if name == "core" else getattr(state, name)
        return part(x, state=held, **given)

    def _check_steps(self, steps: int) -> None:
        most = self.settings.max_steps if self.settings.step_embedding == "learned" else steps
        if not 0 <= steps <= most:
            raise InputError(f"n_steps: {steps} is not between 0 and {most}")

    def _deepen(self, state: RecursionState | None, steps: int) -> None:
        """As many states as steps.  Those of deeper steps are dropped, as they miss these tokens; new ones
        begin as copies of the last, an approximation that has to be asked for."""
        if state is None:
            return
        if steps > len(state.steps) and not (self.settings.fill_deeper and state.steps):
            raise InputError(f"n_steps: {steps}, but the state has seen {len(state.steps)} steps; begin with "
                             f"init_state(batch, n_steps={steps}), or set fill_deeper for an approximation")
        del state.steps[steps:]
        while len(state.steps) < steps:
            state.steps.append(state.steps[-1].copy())

    def _read(self, readings: list[Tensor], weights: list[Tensor]) -> Tensor:
        """y[B,T,D] from h_1 ... h_n and their weights [B,T]"""
        s = self.settings
        if s.halting == "ponder" and s.ponder_read != "mean":
            weights = self._picked(weights)
        y: Tensor | None = None
        for h, weight in zip(readings, weights, strict=True):
            w = weight.reshape(*weight.shape, 1)
            part = widened(h) * w
            if y is None:
                y = part
            elif s.act_output == "basic" and s.halting == "act":
                y = part + y * (1.0 - w)
            else:
                y = y + part
        assert y is not None
        return cast_to(y, readings[0].dtype)

    def _picked(self, weights: list[Tensor]) -> list[Tensor]:
        """1 for the step at which a token halts: the median of p, or one drawn from it; else 0"""
        xp, like = namespace(weights[0].data), weights[0].data
        level: Any = 0.5
        if self.settings.ponder_read == "sample":
            level = beside(drawn_from(self.noise, like.shape), like)
        picked, reached, so_far = [], xp.zeros(like.shape, dtype="bool"), xp.zeros_like(like)
        for s, weight in enumerate(weights):
            so_far = so_far + weight.data
            now = so_far > level if s < len(weights) - 1 else ~xp.zeros(like.shape, dtype="bool")
            picked.append(Tensor(xp.astype(now & ~reached, like.dtype)))
            reached = reached | now
        return picked

    def embedded(self, h: Tensor, step: int) -> Tensor:
        """h + what tells this step from the others"""
        kind = self.settings.step_embedding
        if kind == "learned":
            return h + self.step_embedding[step]
        if kind == "sinusoidal":
            return h + Tensor(beside(sinusoid(step, h.shape[-1]).astype(h.dtype), h.data))
        return h


def sinusoid(step: int, width: int) -> np.ndarray:
    """[D]: sin and cos of the step at falling frequencies (Vaswani et al. 2017)"""
    angles = step * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=1).reshape(-1)[:width]
