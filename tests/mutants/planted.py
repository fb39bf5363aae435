"""Bugs planted one at a time: each changes one line of a kernel, an operation or the tape, and names the
checks that must find it.

A check that does not fail on its mutant checks nothing.  The line is replaced in the source, the module
compiled anew, and the code of its functions exchanged for as long as the mutant lives: who imported a
function before gets the bug too."""

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
    found_by: str           # "kernel NAME", "op NAME" or "property NAME", any number: each of them must fail
    story: str              # what a person got wrong
    line: str               # text that stands once in the module's source
    instead: str


MUTANTS = [
    Mutant("backends.reference.activation", "kernel silu op silu",
           "forgot the factor x",
           "return narrow(z * sigmoid(z), x.dtype)",
           "return narrow(sigmoid(z), x.dtype)"),
    Mutant("backends.reference.activation", "kernel silu_backward op silu",
           "σ instead of 1 − σ",
           "(s * (1.0 + z * (1.0 - s)))",
           "(s * (1.0 + z * s))"),
    Mutant("backends.reference.activation", "kernel swiglu_backward op swiglu",
           "dropped σ from SiLU'",
           "silu_a += s ",
           "silu_a += 0.0 "),
    Mutant("backends.reference.activation", "kernel swiglu_backward op swiglu",
           "gate's gradient without up",
           "    silu_a *= widen(up)",
           "    silu_a *= 1.0"),
    Mutant("backends.reference.activation", "kernel gelu_backward op gelu",
           "x φ(x) without x",
           "(0.5 * (1.0 + erf(z * math.sqrt(0.5))) + z * density)",
           "(0.5 * (1.0 + erf(z * math.sqrt(0.5))) + density)"),
    Mutant("backends.reference.activation", "kernel gelu_tanh_backward op gelu",
           "inner derivative without the 3",
           "(1.0 + 0.134145 * z * z)",
           "(1.0 + 0.044715 * z * z)"),
    Mutant("backends.reference.softmax", "kernel softmax_backward op softmax",
           "row mean not weighted by y",
           "p * (g - xp.sum(g * p,",
           "p * (g - xp.sum(g,"),
    Mutant("backends.reference.softmax", "kernel softmax",
           "maximum not subtracted: overflows",
           "    y = xp.exp(z - row_max(z))",
           "    y = xp.exp(z)"),
    Mutant("backends.reference.softmax", "kernel softmax",
           "0/0 in a fully masked row",
           "y /= xp.where(total == 0.0, xp.ones_like(total), total)",
           "y /= total"),
    Mutant("backends.reference.softmax", "kernel log_softmax_backward op log_softmax",
           "log-probabilities for probabilities",
           "g - xp.exp(widen(y)) * xp.sum(g,",
           "g - widen(y) * xp.sum(g,"),
    Mutant("backends.reference.norm", "kernel rms_norm_backward op rms_norm",
           "statistics taken for constants",
           "    normed *= _mean(a * normed)",
           "    normed *= 0.0"),
    Mutant("backends.reference.norm", "kernel rms_norm",
           "ε outside the root",
           "    rstd = 1.0 / xp.sqrt(_mean(z * z) + eps)\n    return narrow(narrow(",
           "    rstd = 1.0 / (xp.sqrt(_mean(z * z)) + eps)\n    return narrow(narrow("),
    Mutant("backends.reference.norm", "kernel layer_norm_backward op layer_norm",
           "the mean taken for a constant",
           "(a - _mean(a) - normed * _mean(a * normed))",
           "(a - normed * _mean(a * normed))"),
    Mutant("backends.reference.norm", "kernel layer_norm",
           "half the mean",
           "    z = z - mean\n",
           "    mean = mean * 0.5\n    z = z - mean\n"),
    Mutant("backends.reference.rotary", "kernel rope op rope",
           "gradient turned the same way",
           "        sin = -sin",
           "        sin = sin"),
    Mutant("backends.reference.rotary", "kernel rope",
           "turned the other way",
           "xp.concat([a * cos - b * sin, b * cos + a * sin], axis=-1)",
           "xp.concat([a * cos + b * sin, b * cos - a * sin], axis=-1)"),
    Mutant("backends.reference.attention", "kernel attention property causal",
           "sees one token ahead",
           "visible = (key <= position)",
           "visible = (key <= position + 1)"),
    Mutant("backends.reference.attention", "kernel attention",
           "does not see itself",
           "visible = (key <= position)",
           "visible = (key < position)"),
    Mutant("backends.reference.attention", "kernel attention property cached",
           "top-left alignment of the causal mask",
           "keys - length + i0",
           "i0"),
    Mutant("backends.reference.attention", "kernel attention property windowed",
           "window one key too wide",
           "(key > position - window)",
           "(key >= position - window)"),
    Mutant("backends.reference.attention", "kernel attention_backward op attention",
           "Δ left out of dS",
           "        ds -= _fold(delta, k, block)\n",
           ""),
    Mutant("backends.reference.attention", "kernel attention_backward op attention",
           "dq without scale",
           "return narrow(dq * scale, q.dtype), ",
           "return narrow(dq, q.dtype), "),
    Mutant("backends.reference.attention", "kernel attention_backward op attention",
           "later blocks of queries overwrite dk",
           "        dk[:, :, near, :] += xp.matmul(",
           "        dk[:, :, near, :] = xp.matmul("),
    Mutant("backends.reference.attention", "kernel attention",
           "log-sum-exp of a blind query is 0",
           "lse = xp.where(empty, xp.full_like(m, -xp.inf), m + xp.log(safe))",
           "lse = m + xp.log(safe)"),
    Mutant("backends.reference.loss", "kernel cross_entropy_backward op cross_entropy",
           "the label's part not scaled by dloss",
           "(label_smoothing - 1.0) * upstream",
           "(label_smoothing - 1.0) + 0.0 * upstream"),
    Mutant("backends.reference.loss", "kernel cross_entropy_backward op cross_entropy",
           "ignored rows get a gradient",
           "upstream = xp.where(counted, widen(dloss), xp.zeros_like(lse))",
           "upstream = widen(dloss)"),
    Mutant("backends.reference.loss", "kernel cross_entropy_backward op cross_entropy",
           "z-loss without its 2",
           "1.0 + 2.0 * z_loss * lse[:, None]",
           "1.0 + z_loss * lse[:, None]"),
    Mutant("backends.reference.loss", "property chunks",
           "only the last chunk's weight gradient",
           "            dweight += xp.matmul(",
           "            dweight = xp.matmul("),
    Mutant("backends.reference.moe", "kernel router_topk",
           "ties go to the highest index",
           "    experts = xp.argsort(-widen(logits), axis=-1, stable=True)[:, :k]",
           "    experts = xp.flip(xp.argsort(widen(logits), axis=-1, stable=True), axis=-1)[:, :k]"),
    Mutant("backends.reference.moe", "kernel router_topk_backward op router_topk",
           "gradient through the renormalisation left out",
           "values = weights * (dweights - mean) if renormalize",
           "values = weights * dweights if renormalize"),
    Mutant("backends.reference.moe", "kernel router_topk_backward op router_topk",
           "other experts' share of softmax left out",
           "dlogits - probs * mean",
           "dlogits"),
    Mutant("backends.reference.moe", "kernel expert_order",
           "every expert begins one expert late",
           "xp.searchsorted(flat[order], xp.arange(num_experts + 1))",
           "xp.searchsorted(flat[order], xp.arange(num_experts + 1), side='right')"),
    Mutant("backends.reference.attention", "kernel decode_attention",
           "the last token does not see itself",
           "visible = key <= position[:, :, None]",
           "visible = key < position[:, :, None]"),
    Mutant("backends.reference.attention", "kernel cache_append",
           "every row written at the first one's length",
           "start = int(lengths[b])",
           "start = int(lengths[0])"),
    Mutant("backends.reference.rotary", "kernel rope_at",
           "all tokens at the first one's position",
           "xp.arange(x.shape[2])[None, :], (-1,))",
           "0 * xp.arange(x.shape[2])[None, :], (-1,))"),
    Mutant("backends.reference.moe", "kernel expert_order",
           "the inverse is the order itself",
           "return order, xp.argsort(order), offsets",
           "return order, order, offsets"),
    Mutant("backends.reference.moe", "kernel moe_dispatch",
           "rows of the wrong token",
           "take(x, order // choices, axis=0)",
           "take(x, order % x.shape[0], axis=0)"),
    Mutant("backends.reference.moe", "kernel moe_dispatch_backward",
           "only a token's largest row",
           "sum(pairs, axis=1, dtype=pairs.dtype)",
           "max(pairs, axis=1)"),
    Mutant("backends.reference.moe", "kernel moe_combine",
           "unweighted",
           "namespace(ys).sum(pairs * weights[:, :, None], axis=1)",
           "namespace(ys).sum(pairs, axis=1)"),
    Mutant("backends.reference.moe", "kernel moe_combine_backward",
           "weights by row instead of by pair",
           "weight_of_row = xp.take(xp.reshape(weights, (-1,)), order)",
           "weight_of_row = xp.reshape(weights, (-1,))"),
    Mutant("backends.reference.activation", "kernel swiglu_packed",
           "up before gate",
           "return swiglu(x[:, :half], x[:, half:])",
           "return swiglu(x[:, half:], x[:, :half])"),
    Mutant("backends.reference.activation", "kernel swiglu_packed_backward",
           "dup before dgate",
           "concat(list(swiglu_backward(dy, x[:, :half], x[:, half:])), axis=-1)",
           "concat(list(swiglu_backward(dy, x[:, :half], x[:, half:]))[::-1], axis=-1)"),
    Mutant("backends.reference.matmul", "kernel linear",
           "bias left out",
           "        y += widen(bias)",
           "        pass"),
    Mutant("backends.reference.matmul", "kernel linear_backward",
           "gradient through the transpose",
           "xp.matmul(g.T, widen(x))",
           "xp.matmul(widen(x).T, g)"),
    Mutant("backends.reference.moe", "kernel grouped_linear",
           "dropped rows are not zero",
           "    y[int(offsets[-1]) :, :] = 0.0",
           "    y[int(offsets[-1]) :, :] = 1.0"),
    Mutant("backends.reference.moe", "kernel grouped_linear_backward op grouped_linear",
           "all weight gradients to expert 0",
           "dweight[e, ...] = xp.matmul(g.T, widen(x[rows, :]))",
           "dweight[0, ...] = xp.matmul(g.T, widen(x[rows, :]))"),
    Mutant("backends.reference.moe", "property same_bits",
           "a row's bits depend on its group",
           "if batch_invariant else xp.matmul(group, matrix.T)",
           "if not batch_invariant else xp.matmul(group, matrix.T)"),
    Mutant("backends.reference.optimizer", "kernel adamw",
           "decay coupled to the gradient",
           "    param *= 1.0 - lr * weight_decay",
           "    g += weight_decay * param"),
    Mutant("backends.reference.optimizer", "kernel adamw",
           "step counted from 2",
           "(1.0 - beta2**step) ** 0.5",
           "(1.0 - beta2 ** (step + 1)) ** 0.5"),
    Mutant("backends.reference.optimizer", "kernel sum_of_squares",
           "squares overflow in the type",
           "z = xp.astype(x, xp.float64)",
           "z = x + 0.0"),
    Mutant("backends.array_api", "kernel scatter_add op take",
           "forgot to sort",
           'order = np.argsort(index, kind="stable")',
           "order = np.arange(index.size)"),
    Mutant("backends.array_api", "kernel cross_entropy_backward",
           "subtracts every label from every row",
           "        x[np.arange(x.shape[0]), columns] += values",
           "        x[:, columns] += values"),
    Mutant("ops.elementwise", "op sub",
           "lost sign",
           "unbroadcast(-dy, self.b)",
           "unbroadcast(dy, self.b)"),
    Mutant("ops.elementwise", "op add",
           "stretched axes not summed",
           "if n == 1 and gradient.shape[extra + i] != 1)",
           "if n == 1 and gradient.shape[extra + i] == 1)"),
    Mutant("ops.elementwise", "property long_sums",
           "adds up in half precision",
           "    wide = widen(gradient)",
           "    wide = gradient"),
    Mutant("ops.elementwise", "op tanh",
           "forgot the square",
           "dy * (1.0 - self.y * self.y)",
           "dy * (1.0 - self.y)"),
    Mutant("ops.conv", "op causal_conv",
           "gradient of a tap without its dilation",
           "            dx[:, j * self.dilation : j * self.dilation + self.length, :] += g * taps[:, j]",
           "            dx[:, j : j + self.length, :] += g * taps[:, j]"),
    Mutant("ops.conv", "op causal_conv",
           "every tap's gradient meets the first inputs",
           "xp.sum(g * self._at(wide, j), axis=(0, 1), dtype=g.dtype)",
           "xp.sum(g * self._at(wide, 0), axis=(0, 1), dtype=g.dtype)"),
    Mutant("ops.gates", "op softplus op log_sigmoid",
           "σ(−x) for σ(x)",
           "sigmoid(widen(self.x))",
           "sigmoid(-widen(self.x))"),
    Mutant("ops.reduce", "property ties",
           "every tied maximum gets the whole gradient",
           "* hits / ties",
           "* hits"),
    Mutant("ops.reduce", "op cumsum",
           "summed from the wrong end",
           "xp.flip(widen(dy), axis=self.axis)",
           "widen(dy)"),
    Mutant("ops.views", "op permute",
           "permutation for its inverse",
           "tuple(self.axes.index(i) for i in range(len(self.axes)))",
           "self.axes"),
    Mutant("backends.reference.moe", "op combine",
           "expert outputs' gradient without the weight",
           "* weight_of_row[:, None]",
           "* 1.0"),
    Mutant("ops.moe", "op dispatch",
           "the gradient's rows are looked for where the forward pass put them from",
           "kernels.moe_dispatch_backward(dxs, self.plan.inverse,",
           "kernels.moe_dispatch_backward(dxs, self.plan.order,"),
    Mutant("ops.moe", "op router_topk",
           "balance loss does not reach the router",
           "else routed + dlogits",
           "else routed"),
    Mutant("tensor", "property accumulation",
           "the last use of a parameter wins",
           "        leaf.grad += gradient",
           "        leaf.grad = gradient"),
    Mutant("tensor", "property diamond",
           "the last use of a result wins",
           "widen(slots[edge[1]]) + widen(grad) if edge[1] in slots else grad",
           "grad"),
    Mutant("tensor", "property freed",
           "saved arrays live until the graph dies",
           "        op.release()",
           "        pass"),
    Mutant("cache", "property trimmed",
           "positions start again after trimming",
           "self.length, self.offset = end, self.offset + k.shape[2]",
           "self.length, self.offset = end, end"),
    Mutant("layers.attention.grouped", "property padded",
           "padding counted as text",
           "first = state.offset - state.padding if",
           "first = state.offset if"),
    Mutant("layers.moe.capacity", "property capacity",
           "room for one more",
           "    return min(tokens, max(",
           "    return min(tokens, 1 + max("),
    Mutant("layers.rotary", "property scaled",
           "the base itself stretched",
           "theta *= s ** (dim / (dim - 2))",
           "theta *= s"),
]


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The bug is in place inside the block."""
    module = importlib.import_module(f"nn.{mutant.module}")
    path = Path(str(module.__file__))
    source = path.read_text()
    times = source.count(mutant.line)
    assert times == 1, f"{path}: {mutant.line!r} stands there {times} times; adapt the mutant"
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
    exec(code, namespace)
    pairs: list[tuple[FunctionType, CodeType]] = []
    for name, mutated in namespace.items():
        pairs += differing(vars(module).get(name), mutated, module.__name__)
    return pairs


def differing(healthy: Any, mutated: Any, home: str) -> list[tuple[FunctionType, CodeType]]:
    if getattr(healthy, "__module__", None) != home:
        return []
    if isinstance(healthy, FunctionType):
        return [(healthy, mutated.__code__)] if healthy.__code__ != mutated.__code__ else []
    if isinstance(healthy, type):
        members = ((plain(vars(healthy).get(name)), plain(member)) for name, member in vars(mutated).items())
        return [pair for old, new in members for pair in differing(old, new, home)]
    return []


def plain(member: Any) -> Any:
    """The function in a class attribute"""
    return getattr(member, "fget", None) or getattr(member, "__func__", member)
