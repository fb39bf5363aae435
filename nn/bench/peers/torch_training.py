"""PyTorch's training step of the same models: eager, compiled, bf16 by autocast; AdamW fused.

moe-bench: tokens sorted by expert, one SwiGLU per expert's slice ("eager", "compile"), or every expert a
fixed number of tokens, so that shapes are static ("capacity compile")."""

import os
from collections.abc import Callable
from typing import Any

from nn.bench.models import DTYPES, GPT_TINY, TRAINED
from nn.bench.peers import library
from nn.bench.task import Task, Tasks
from nn.flops import training

CAPACITY = 1.25            # tokens an expert takes, over the mean


def tasks(model: str, dtype: str, batch: int, seq: int, way: str) -> Tasks:
    """{"train": one step}; way: eager, compile or capacity compile."""
    return {"train": lambda: step_task(model, dtype, batch, seq, way)}


def step_task(model: str, dtype: str, batch: int, seq: int, way: str) -> Task:
    torch = library("torch")
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["NN_THREADS"]))
    config = TRAINED[model]
    built, loss_of = _gpt(torch, config) if model.startswith("gpt") else _moe(
        torch, config, batch * seq, seq, "capacity" in way)
    call = torch.compile(loss_of) if "compile" in way else loss_of
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    ids, labels = (torch.randint(0, config.vocab_size, (batch, seq)) for _ in range(2))
    losses: list[float] = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = call(ids, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    step()
    return Task(step, tokens=batch * seq, flops=batch * seq * _flops(config, seq), dtype=DTYPES[dtype],
                facts={"parameters": sum(p.numel() for p in built.parameters()), "first_loss": losses[0],
                       "versions": {"torch": torch.__version__}})


def _flops(config: Any, seq: int) -> float:
    """The same count as ours"""
    if hasattr(config, "block"):
        from nn.models.transformer_parts import part_config

        config = part_config(config, False)
    return sum(training(config, seq).values())


def _drawn(torch: Any, module: Any) -> Any:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.02)
    return module


# ---- GPT-2 ----

def _gpt(torch: Any, config: Any = GPT_TINY) -> tuple[Any, Callable[..., Any]]:
    """(module, loss of ids and labels)"""
    nn, function = torch.nn, torch.nn.functional
    width, heads, layers = config.d_model, config.block.attn.n_heads, config.n_layers

    class Block(nn.Module):           # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            split = self.qkv(self.ln1(x)).split(width, 2)
            q, k, v = (z.view(b, t, heads, width // heads).transpose(1, 2) for z in split)
            y = function.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(b, t, width))
            return x + self.down(function.gelu(self.up(self.ln2(x)), approximate="tanh"))

    class GPT(nn.Module):             # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.wte = nn.Embedding(config.vocab_size, width)
            self.wpe = nn.Embedding(config.max_seq_len, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(width)

        def forward(self, ids: Any, labels: Any) -> Any:
            x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            logits = self.norm(x) @ self.wte.weight.t()
            return function.cross_entropy(logits.view(-1, config.vocab_size), labels.view(-1))

    model = _drawn(torch, GPT())
    return model, model


# ---- mixture of experts ----

def _moe(torch: Any, config: Any, tokens: int, seq: int, capacity: bool) -> tuple[Any, Callable[..., Any]]:
    """(module, loss of ids and labels), with the load-balance loss"""
    nn, function, c = torch.nn, torch.nn.functional, config
    taken = int(tokens * c.top_k / c.num_experts * CAPACITY) if capacity else None
    Block = _moe_block(torch, c, _rope(torch, c, seq), _experts(torch, c, taken))

    class Model(nn.Module):           # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(c.vocab_size, c.hidden_size)
            self.blocks = nn.ModuleList(Block() for _ in range(c.num_layers))
            self.norm = nn.RMSNorm(c.hidden_size, eps=c.norm_eps)
            self.head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

        def forward(self, ids: Any, labels: Any) -> Any:
            x, balance = self.embed(ids), 0.0
            for block in self.blocks:
                x, more = block(x)
                balance = balance + more
            logits = self.head(self.norm(x)).view(-1, c.vocab_size).float()
            return function.cross_entropy(logits, labels.view(-1)) + c.balance_coef * balance / c.num_layers

    model = _drawn(torch, Model())
    return model, model


def _rope(torch: Any, c: Any, seq: int) -> Callable[[Any], Any]:
    steps = torch.arange(seq).float()[:, None]
    angle = steps * (c.rope_theta ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim))[None]
    cos, sin = angle.cos(), angle.sin()

    def rope(x: Any) -> Any:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    return rope


def _moe_block(torch: Any, c: Any, rope: Callable[[Any], Any], experts: Callable[[], Any]) -> Any:
    """Its class: attention, then `experts()`"""
    nn, function = torch.nn, torch.nn.functional

    class Block(nn.Module):           # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.n1, self.n2 = (nn.RMSNorm(c.hidden_size, eps=c.norm_eps) for _ in range(2))
            self.qkv = nn.Linear(c.hidden_size, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim, bias=False)
            self.o = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=False)
            self.experts = experts()

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            heads = self.qkv(self.n1(x)).view(b, t, -1, c.head_dim).transpose(1, 2)
            q, k, v = heads.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], 1)
            a = function.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True, enable_gqa=True)
            x = x + self.o(a.transpose(1, 2).reshape(b, t, -1))
            y, balance = self.experts(self.n2(x))
            return x + y, balance

    return Block


def _experts(torch: Any, c: Any, taken: int | None) -> Any:
    """Their class, each expert taking so many tokens; None: those that chose it"""
    nn, function = torch.nn, torch.nn.functional

    class Experts(nn.Module):         # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            up, down = (2 * c.intermediate_size, c.hidden_size), (c.hidden_size, c.intermediate_size)
            if taken is not None:      # as bmm wants them
                up, down = up[::-1], down[::-1]
            self.router = nn.Linear(c.hidden_size, c.num_experts, bias=False)
            self.w13 = nn.Parameter(torch.empty(c.num_experts, *up))
            self.w2 = nn.Parameter(torch.empty(c.num_experts, *down))

        def forward(self, x: Any) -> Any:
            flat = x.reshape(-1, c.hidden_size)
            probs = self.router(flat).float().softmax(-1)
            weights, experts = probs.topk(c.top_k, -1)
            weights = weights / weights.sum(-1, keepdim=True)
            y, share = (self.limited if taken is not None else self.sorted)(flat, probs, weights, experts)
            return y.view(x.shape), c.num_experts * (probs.mean(0) * share).sum()

        def sorted(self, x: Any, probs: Any, weights: Any, experts: Any) -> Any:
            flat = experts.reshape(-1)
            order, count = flat.argsort(), torch.bincount(flat, minlength=c.num_experts)
            token, y, first = order // c.top_k, torch.zeros_like(x), 0
            rows, scale = x[token], weights.reshape(-1)[order]
            for j, n in enumerate(count.tolist()):
                mine = slice(first, first + n)
                gate, up = function.linear(rows[mine], self.w13[j]).chunk(2, -1)
                out = function.linear(function.silu(gate) * up, self.w2[j]) * scale[mine, None]
                y, first = y.index_add(0, token[mine], out.to(y.dtype)), first + n
            return y, count / flat.numel()

        def limited(self, x: Any, probs: Any, weights: Any, experts: Any) -> Any:
            gate = torch.zeros_like(probs).scatter(1, experts, weights)
            scale, token = gate.t().topk(taken, 1)
            rows = x[token.reshape(-1)].view(c.num_experts, taken, c.hidden_size)
            first, second = torch.bmm(rows, self.w13).chunk(2, -1)
            out = torch.bmm(function.silu(first) * second, self.w2) * scale[..., None]
            flat = out.reshape(-1, c.hidden_size).to(x.dtype)
            y = torch.zeros_like(x).index_add(0, token.reshape(-1), flat)
            return y, (gate > 0).float().mean(0) / c.top_k

    return Experts
