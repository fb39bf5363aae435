"""Bugs planted one at a time: each changes one line of a kernel, an operation or the tape, and names the checks that must find it.

A check that does not fail on its mutant checks nothing.  The line is replaced in the source, the module compiled anew, and the
code of its functions exchanged for as long as the mutant lives: who imported a function before gets the bug too."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any


@dataclass(frozen=True)
class Mutant:
    module: str             # below nn
    line: str               # text that stands once in its source
    instead: str
    found_by: str           # "kernel NAME ...", "op NAME ..." or "property NAME ...", each of which must fail
    story: str              # what a person got wrong


_KERNELS = [
    ("activation", "return narrow(z * sigmoid(z), x.dtype)", "return narrow(sigmoid(z), x.dtype)", "kernel silu op silu", "forgot the factor x"),
    ("activation", "(s * (1.0 + z * (1.0 - s)))", "(s * (1.0 + z * s))", "kernel silu_backward op silu", "σ instead of 1 − σ"),
    ("activation", "silu_a += s ", "silu_a += 0.0 ", "kernel swiglu_backward op swiglu", "dropped σ from SiLU'"),
    ("activation", "    silu_a *= widen(up)", "    silu_a *= 1.0", "kernel swiglu_backward op swiglu", "gate's gradient without up"),
    ("activation", "(0.5 * (1.0 + erf(z * math.sqrt(0.5))) + z * density)", "(0.5 * (1.0 + erf(z * math.sqrt(0.5))) + density)",
     "kernel gelu_backward op gelu", "x φ(x) without x"),
    ("activation", "(1.0 + 0.134145 * z * z)", "(1.0 + 0.044715 * z * z)", "kernel gelu_tanh_backward op gelu", "inner derivative without the 3"),
    ("softmax", "p * (g - xp.sum(g * p,", "p * (g - xp.sum(g,", "kernel softmax_backward op softmax", "row mean not weighted by y"),
    ("softmax", "    y = xp.exp(z - row_max(z))", "    y = xp.exp(z)", "kernel softmax", "maximum not subtracted: overflows"),
    ("softmax", "y /= xp.where(total == 0.0, xp.ones_like(total), total)", "y /= total", "kernel softmax", "0/0 in a fully masked row"),
    ("softmax", "g - xp.exp(widen(y)) * xp.sum(g,", "g - xp.exp(widen(y)) * xp.max(g,", "kernel log_softmax_backward op log_softmax",
     "maximum for sum"),
    ("norm", "    normed *= _mean(a * normed)", "    normed *= 0.0", "kernel rms_norm_backward op rms_norm", "statistics taken for constants"),
    ("norm", "    rstd = 1.0 / xp.sqrt(_mean(z * z) + eps)\n    return narrow(narrow(", "    rstd = 1.0 / (xp.sqrt(_mean(z * z)) + eps)\n    return narrow(narrow(",
     "kernel rms_norm", "ε outside the root"),
    ("norm", "(a - _mean(a) - normed * _mean(a * normed))", "(a - normed * _mean(a * normed))", "kernel layer_norm_backward op layer_norm",
     "the mean taken for a constant"),
    ("norm", "    z = z - mean\n", "    mean = mean * 0.5\n    z = z - mean\n", "kernel layer_norm", "half the mean"),
    ("rotary", "        sin = -sin", "        sin = sin", "kernel rope op rope", "gradient turned the same way"),
    ("rotary", "xp.concat([a * cos - b * sin, b * cos + a * sin], axis=-1)", "xp.concat([a * cos + b * sin, b * cos - a * sin], axis=-1)",
     "kernel rope", "turned the other way"),
    ("attention", "visible = (key <= position)", "visible = (key <= position + 1)", "kernel attention property causal", "sees one token ahead"),
    ("attention", "visible = (key <= position)", "visible = (key < position)", "kernel attention", "does not see itself"),
    ("attention", "keys - length + i0", "i0", "kernel attention op attention property cached", "top-left alignment of the causal mask"),
    ("attention", "(key > position - window)", "(key >= position - window)", "kernel attention property windowed", "window one key too wide"),
    ("attention", "        ds -= _fold(delta, k, block)\n", "", "kernel attention_backward op attention", "Δ left out of dS"),
    ("attention", "return narrow(dq * scale, q.dtype), ", "return narrow(dq, q.dtype), ", "kernel attention_backward op attention", "dq without scale"),
    ("attention", "        dk[:, :, near, :] += xp.matmul(", "        dk[:, :, near, :] = xp.matmul(", "kernel attention_backward op attention",
     "later blocks of queries overwrite dk"),
    ("attention", "lse = xp.where(empty, xp.full_like(m, -xp.inf), m + xp.log(safe))", "lse = m + xp.log(safe)", "kernel attention",
     "log-sum-exp of a blind query is 0"),
    ("loss", "(label_smoothing - 1.0) * upstream", "(label_smoothing - 1.0) + 0.0 * upstream", "kernel cross_entropy_backward op cross_entropy",
     "the label's part not scaled by dloss"),
    ("loss", "upstream = xp.where(counted, widen(dloss), xp.zeros_like(lse))", "upstream = widen(dloss)", "kernel cross_entropy_backward op cross_entropy",
     "ignored rows get a gradient"),
    ("loss", "1.0 + 2.0 * z_loss * lse[:, None]", "1.0 + z_loss * lse[:, None]", "kernel cross_entropy_backward op cross_entropy", "z-loss without its 2"),
    ("loss", "            dweight += xp.matmul(", "            dweight = xp.matmul(", "property chunks", "only the last chunk's weight gradient"),
    ("moe", "    experts = xp.argsort(-widen(logits), axis=-1, stable=True)[:, :k]",
     "    experts = xp.flip(xp.argsort(widen(logits), axis=-1, stable=True), axis=-1)[:, :k]", "kernel router_topk", "ties go to the highest index"),
    ("moe", "values = weights * (dweights - mean) if renormalize", "values = weights * dweights if renormalize",
     "kernel router_topk_backward op router_topk", "gradient through the renormalisation left out"),
    ("moe", "dlogits - probs * mean", "dlogits", "kernel router_topk_backward op router_topk", "other experts' share of softmax left out"),
    ("moe", "xp.searchsorted(flat[order], xp.arange(num_experts + 1))", "xp.searchsorted(flat[order], xp.arange(num_experts + 1), side='right')",
     "kernel expert_order", "every expert begins one expert late"),
    ("moe", "    y[int(offsets[-1]) :, :] = 0.0", "    y[int(offsets[-1]) :, :] = 1.0", "kernel grouped_linear", "dropped rows are not zero"),
    ("moe", "dweight[e, ...] = xp.matmul(g.T, widen(x[rows, :]))", "dweight[0, ...] = xp.matmul(g.T, widen(x[rows, :]))",
     "kernel grouped_linear_backward op grouped_linear", "all weight gradients to expert 0"),
    ("moe", "if batch_invariant else xp.matmul(group, matrix.T)", "if not batch_invariant else xp.matmul(group, matrix.T)", "property same_bits",
     "a row's bits depend on its group"),
    ("optimizer", "    param *= 1.0 - lr * weight_decay", "    g += weight_decay * param", "kernel adamw", "decay coupled to the gradient"),
    ("optimizer", "(1.0 - beta2**step) ** 0.5", "(1.0 - beta2 ** (step + 1)) ** 0.5", "kernel adamw", "step counted from 2"),
    ("optimizer", "z = xp.astype(x, xp.float64)", "z = x + 0.0", "kernel sum_of_squares", "squares overflow in the type"),
]

MUTANTS = [Mutant(f"backends.reference.{module}", *rest) for module, *rest in _KERNELS] + [
    Mutant("backends.array_api", "order = np.argsort(index, kind=\"stable\")", "order = np.arange(index.size)", "kernel scatter_add op take",
           "forgot to sort"),
    Mutant("backends.array_api", "        x[np.arange(x.shape[0]), columns] += values", "        x[:, columns] += values", "kernel cross_entropy_backward",
           "subtracts every label from every row"),
    Mutant("ops.elementwise", "unbroadcast(-dy, self.b)", "unbroadcast(dy, self.b)", "op sub", "lost sign"),
    Mutant("ops.elementwise", "if n == 1 and gradient.shape[extra + i] != 1)", "if n == 1 and gradient.shape[extra + i] == 1)", "op add",
           "stretched axes not summed"),
    Mutant("ops.elementwise", "    wide = widen(gradient)", "    wide = gradient", "property long_sums", "adds up in half precision"),
    Mutant("ops.elementwise", "dy * (1.0 - self.y * self.y)", "dy * (1.0 - self.y)", "op tanh", "forgot the square"),
    Mutant("ops.reduce", "* hits / ties", "* hits", "property ties", "every tied maximum gets the whole gradient"),
    Mutant("ops.reduce", "xp.flip(widen(dy), axis=self.axis)", "widen(dy)", "op cumsum", "summed from the wrong end"),
    Mutant("ops.views", "tuple(self.axes.index(i) for i in range(len(self.axes)))", "self.axes", "op permute", "permutation for its inverse"),
    Mutant("ops.moe", "* weight_of_row[:, None]", "* 1.0", "op combine", "expert outputs' gradient without the weight"),
    Mutant("ops.moe", "narrow(xp.sum(pairs, axis=1, dtype=pairs.dtype), dxs.dtype)", "narrow(pairs[:, 0, :], dxs.dtype)", "op dispatch",
           "only the first choice's gradient"),
    Mutant("ops.moe", "else routed + dlogits", "else routed", "op router_topk", "balance loss does not reach the router"),
    Mutant("tensor", "        leaf.grad += gradient", "        leaf.grad = gradient", "property accumulation", "the last use of a parameter wins"),
    Mutant("tensor", "widen(slots[edge[1]]) + widen(grad) if edge[1] in slots else grad", "grad", "property diamond", "the last use of a result wins"),
    Mutant("tensor", "        op.release()", "        pass", "property freed", "saved arrays live until the graph dies"),
    Mutant("cache", "self.length, self.offset = end, self.offset + k.shape[2]", "self.length, self.offset = end, end", "property trimmed",
           "positions start again after trimming"),
    Mutant("layers.attention.grouped", "np.cumsum(keep, axis=1) - 1", "np.cumsum(keep, axis=1)", "property padded", "padded rows one position late"),
    Mutant("layers.moe.capacity", "    return min(tokens, max(", "    return min(tokens, 1 + max(", "property capacity", "room for one more"),
    Mutant("layers.rotary", "theta *= s ** (dim / (dim - 2))", "theta *= s", "property scaled", "the base itself stretched"),
]


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The bug is in place inside the block."""
    module = importlib.import_module(f"nn.{mutant.module}")
    path = Path(str(module.__file__))
    source = path.read_text()
    assert source.count(mutant.line) == 1, f"{path}: {mutant.line!r} stands there {source.count(mutant.line)} times; adapt the mutant"
    changed = functions(compile(source.replace(mutant.line, mutant.instead), str(path), "exec"), module)
    healthy = {function: function.__code__ for function, _ in changed}
    assert healthy, "the change touches no function"
    try:
        for function, code in changed:
            function.__code__ = code
        yield
    finally:
        for function, code in healthy.items():
            function.__code__ = code


def functions(code: CodeType, module: ModuleType) -> list[tuple[FunctionType, CodeType]]:
    """Every function of the module that compiled differently, and its new code"""
    namespace: dict[str, Any] = {"__name__": module.__name__, "__file__": module.__file__}
    exec(code, namespace)       # noqa: S102
    pairs: list[tuple[FunctionType, CodeType]] = []
    for name, mutated in namespace.items():
        pairs += differing(vars(module).get(name), mutated, module.__name__)
    return pairs


def differing(healthy: Any, mutated: Any, home: str) -> list[tuple[FunctionType, CodeType]]:
    if getattr(healthy, "__module__", None) != home:
        return []
    if isinstance(healthy, FunctionType):
        inner = healthy.__code__
        return [(healthy, mutated.__code__)] if same_place(inner) and inner != mutated.__code__ else []
    if isinstance(healthy, type):
        return [pair for name, member in vars(mutated).items() for pair in differing(plain(vars(healthy).get(name)), plain(member), home)]
    return []


def same_place(code: CodeType) -> bool:
    return not code.co_freevars


def plain(member: Any) -> Any:
    """The function in a class attribute"""
    return getattr(member, "fget", None) or getattr(member, "__func__", member)
