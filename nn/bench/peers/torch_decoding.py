"""A bare PyTorch decoder of the same models, written for speed: joined projections, a fixed cache, no
modules.  Random weights, batch 1."""

import os
import time
from typing import Any

from nn.bench.decoding import prompt_ids
from nn.bench.models import DECODED, DTYPES, prefill_flops, weight_bytes
from nn.bench.peers import library
from nn.bench.task import Task, Tasks


def tasks(model: str, dtype: str, prompt: int, new: int, prefill: int) -> Tasks:
    """As ours, in f32 and bf16."""
    made: list[TorchModel] = []

    def built() -> "TorchModel":
        if not made:
            made.append(TorchModel(model, dtype, max(prompt + new, prefill)))
        return made[0]

    return {"decode": lambda: built().decoding(prompt, new), "prefill": lambda: built().reading(prefill)}


class TorchModel:
    """Weights, a cache of `room` positions, and the pass over new tokens."""

    def __init__(self, name: str, dtype: str, room: int) -> None:
        torch = self.torch = library("torch")
        torch.manual_seed(0)
        torch.set_num_threads(int(os.environ["NN_THREADS"]))
        torch.set_grad_enabled(False)
        self.name, self.dtype, c = name, dtype, DECODED[name]
        self.config, self.type = c, getattr(torch, DTYPES[dtype])
        self.embed = self._drawn(c.vocab_size, c.hidden_size)
        self.head = self.embed if c.tie_embeddings else self._drawn(c.vocab_size, c.hidden_size)
        self.norm = torch.ones(c.hidden_size, dtype=self.type)
        self.layers = [self._layer() for _ in range(c.num_layers)]
        half = torch.arange(0, c.head_dim, 2).float() / c.head_dim
        angle = torch.arange(room).float()[:, None] * (c.rope_theta**-half)[None]
        self.cos, self.sin = (torch.cat([f(angle)] * 2, -1).to(self.type) for f in (torch.cos, torch.sin))
        size = (c.num_layers, c.num_kv_heads, room, c.head_dim)
        self.keys, self.values = (torch.zeros(size, dtype=self.type) for _ in range(2))
        self.facts = {"versions": {"torch": torch.__version__}, "weight_mb": weight_bytes(name, dtype) / 1e6}

    def _drawn(self, *shape: int) -> Any:
        return (self.torch.randn(*shape) * 0.02).to(self.type)

    def _layer(self) -> dict[str, Any]:
        c, ones = self.config, self.torch.ones
        heads = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        made = {"qkv": self._drawn(heads, c.hidden_size),
                "o": self._drawn(c.hidden_size, c.num_heads * c.head_dim),
                "n1": ones(c.hidden_size, dtype=self.type), "n2": ones(c.hidden_size, dtype=self.type),
                "qk": ones(c.head_dim, dtype=self.type)}
        inner, experts = c.intermediate_size, max(1, c.num_experts)
        made["w13"] = self.torch.stack([self._drawn(2 * inner, c.hidden_size) for _ in range(experts)])
        made["w2"] = self.torch.stack([self._drawn(c.hidden_size, inner) for _ in range(experts)])
        return made | ({"router": self._drawn(c.num_experts, c.hidden_size)} if c.num_experts else {})

    def __call__(self, ids: Any, first: int) -> Any:
        """The likeliest token behind ids [T] at positions first, ..."""
        f, c, count = self.torch.nn.functional, self.config, len(ids)
        x, end = self.embed[ids], first + count
        cos, sin = self.cos[first:end], self.sin[first:end]
        for keys, values, w in zip(self.keys, self.values, self.layers, strict=True):
            heads = f.linear(self._rms(x, w["n1"]), w["qkv"]).view(count, -1, c.head_dim).transpose(0, 1)
            q, k, v = heads.split([c.num_heads, c.num_kv_heads, c.num_kv_heads])
            if c.qk_norm:
                q, k = self._rms(q, w["qk"]), self._rms(k, w["qk"])
            keys[:, first:end], values[:, first:end] = self._rope(k, cos, sin), v
            o = f.scaled_dot_product_attention(self._rope(q, cos, sin)[None], keys[None, :, :end],
                                               values[None, :, :end], is_causal=count > 1, enable_gqa=True)
            x = x + f.linear(o[0].transpose(0, 1).reshape(count, -1), w["o"])
            x = x + self._feed_forward(w, self._rms(x, w["n2"]))
        return f.linear(self._rms(x[-1:], self.norm), self.head).argmax(-1)

    def _rms(self, x: Any, weight: Any) -> Any:
        return self.torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, self.config.norm_eps)

    def _rope(self, x: Any, cos: Any, sin: Any) -> Any:
        a, b = x.chunk(2, -1)
        return x * cos + self.torch.cat([-b, a], -1) * sin

    def _feed_forward(self, w: dict[str, Any], x: Any) -> Any:
        if not self.config.num_experts:
            return self._expert(w, 0, x)
        scores = self.torch.nn.functional.linear(x, w["router"]).float()
        chosen = scores.softmax(-1).topk(self.config.top_k, -1)
        weights = (chosen.values / chosen.values.sum(-1, keepdim=True)).to(x.dtype)
        y = self.torch.zeros_like(x)
        if len(x) == 1:
            for slot, expert in enumerate(chosen.indices[0].tolist()):
                y = y + self._expert(w, expert, x) * weights[0, slot]
            return y
        for expert in range(self.config.num_experts):
            token, slot = (chosen.indices == expert).nonzero(as_tuple=True)
            if len(token):
                y.index_add_(0, token, self._expert(w, expert, x[token]) * weights[token, slot, None])
        return y

    def _expert(self, w: dict[str, Any], expert: int, x: Any) -> Any:
        f = self.torch.nn.functional
        gate, up = f.linear(x, w["w13"][expert]).chunk(2, -1)
        return f.linear(f.silu(gate) * up, w["w2"][expert])

    def decoding(self, prompt: int, new: int) -> Task:
        ids = self.torch.tensor(prompt_ids(prompt, self.config.vocab_size))

        def decode() -> float:
            token = self(ids, 0)
            start = time.perf_counter()
            for i in range(new):
                token = self(token, prompt + i)
            return time.perf_counter() - start

        return Task(decode, tokens=new, bytes=new * weight_bytes(self.name, self.dtype), facts=self.facts)

    def reading(self, length: int) -> Task:
        ids = self.torch.tensor(prompt_ids(length, self.config.vocab_size))

        def read() -> None:
            self(ids, 0)

        return Task(read, tokens=length, flops=prefill_flops(self.config, length),
                    dtype=DTYPES[self.dtype], facts=self.facts)
