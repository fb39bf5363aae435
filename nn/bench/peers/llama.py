"""llama.cpp at the same models, by the packages llama-cpp-python and gguf: random weights, written once as a
float32 GGUF file in the temp directory (NN_BENCH_CACHE moves it), quantized by llama.cpp itself."""

import ctypes
import os
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from nn.bench.decoding import prompt_ids
from nn.bench.models import DECODED, cache, factors, prefill_flops
from nn.bench.peers import library
from nn.bench.task import Task, Tasks
from nn.models.config import MoETransformerConfig

TYPES = {"f32": "F32", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


def tasks(model: str, dtype: str, prompt: int, new: int, prefill: int) -> Tasks:
    """As ours."""
    made: list[LlamaModel] = []

    def opened() -> "LlamaModel":
        if not made:
            room = max(prompt + new, prefill) + 8
            made.append(LlamaModel(model, dtype, room, max(prompt, prefill)))
        return made[0]

    return {"decode": lambda: opened().decoding(prompt, new), "prefill": lambda: opened().reading(prefill)}


class LlamaModel:
    """A model that llama.cpp has loaded, with room for so many tokens, read at most `batch` at a time."""

    def __init__(self, name: str, dtype: str, room: int, batch: int) -> None:
        self.name, self.dtype, path = name, dtype, gguf_file(name, dtype)
        lc = self.lc = library("llama_cpp")
        self._silence = lc.llama_log_callback(lambda *_: None)
        lc.llama_log_set(self._silence, None)
        lc.llama_backend_init()
        self.path = path
        self._model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
        settings = lc.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = max(room, 768), batch, batch
        settings.n_threads = settings.n_threads_batch = int(os.environ["NN_THREADS"])
        settings.no_perf = True
        self._context = lc.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp did not open {path}")
        self._memory = lc.llama_get_memory(self._context)
        self._vocab = _read(path)["vocab"]
        self.facts = {"versions": {"llama-cpp-python": metadata.version("llama-cpp-python")},
                      "weight_mb": active_bytes(path) / 1e6}

    def feed(self, ids: list[int]) -> int:
        """The likeliest next token."""
        lc, tokens = self.lc, (self.lc.llama_token * len(ids))(*ids)
        if lc.llama_decode(self._context, lc.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        logits = lc.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())

    def decoding(self, prompt: int, new: int) -> Task:
        ids = prompt_ids(prompt, self._vocab)

        def decode() -> float:
            self.lc.llama_memory_clear(self._memory, True)
            token = self.feed(ids)
            start = time.perf_counter()
            for _ in range(new):
                token = self.feed([token])
            return time.perf_counter() - start

        return Task(decode, tokens=new, bytes=new * active_bytes(self.path), facts=self.facts)

    def reading(self, length: int) -> Task:
        ids = prompt_ids(length, self._vocab)

        def read() -> float:
            self.lc.llama_memory_clear(self._memory, True)
            start = time.perf_counter()
            self.feed(ids)
            return time.perf_counter() - start

        return Task(read, tokens=length, flops=prefill_flops(DECODED[self.name], length),
                    dtype=factors(self.dtype), facts=self.facts)


# ---- files ----

def gguf_file(model: str, dtype: str) -> Path:
    """The model's file of that type, made if it is not there."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    first, wanted = folder / f"{model}-f32.gguf", folder / f"{model}-{dtype}.gguf"
    if not first.exists():
        _write(DECODED[model], first)
    if not wanted.exists():
        _quantize(first, wanted, TYPES[dtype])
    return wanted


def _quantize(source: Path, target: Path, kind: str) -> None:
    lc = library("llama_cpp")
    settings = lc.llama_model_quantize_default_params()
    settings.nthread = int(os.environ["NN_THREADS"])
    settings.ftype = getattr(lc, f"LLAMA_FTYPE_MOSTLY_{kind}")
    part = f"{target}.part"
    if lc.llama_model_quantize(str(source).encode(), part.encode(), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp could not quantize {source} to {kind}")
    os.rename(part, target)


def _write(config: MoETransformerConfig, path: Path) -> None:
    """A random float32 model in llama.cpp's names"""
    gguf, c = library("gguf"), config
    writer = gguf.GGUFWriter(f"{path}.part", "qwen3moe" if c.num_experts else "llama", use_temp_file=True)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(c.max_seq_len)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    if c.num_experts:
        writer.add_expert_feed_forward_length(c.intermediate_size)
        writer.add_expert_count(c.num_experts)
        writer.add_expert_used_count(c.top_k)
    writer.add_file_type(0)
    for name, array in _tensors(c):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.rename(f"{path}.part", path)


def _tensors(c: MoETransformerConfig) -> Iterator[tuple[str, np.ndarray]]:
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    heads, groups, width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.hidden_size
    yield "token_embd.weight", drawn(c.vocab_size, width)
    yield "output_norm.weight", np.ones(width, np.float32)
    if not c.tie_embeddings:
        yield "output.weight", drawn(c.vocab_size, width)
    for layer in range(c.num_layers):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q": (heads, width), "attn_k": (groups, width), "attn_v": (groups, width),
            "attn_output": (width, heads)}
        inner, experts = c.intermediate_size, (c.num_experts,)
        if c.num_experts:
            shapes |= {"ffn_gate_inp": (c.num_experts, width), "ffn_gate_exps": (*experts, inner, width),
                       "ffn_up_exps": (*experts, inner, width), "ffn_down_exps": (*experts, width, inner)}
        else:
            shapes |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
        norms = {"attn_norm": width, "ffn_norm": width}
        norms |= {"attn_q_norm": c.head_dim, "attn_k_norm": c.head_dim} if c.qk_norm else {}
        for name, shape in shapes.items():
            yield f"blk.{layer}.{name}.weight", drawn(*shape)
        for name, size in norms.items():
            yield f"blk.{layer}.{name}.weight", np.ones(size, np.float32)


def _read(path: Path) -> dict[str, Any]:
    """Of a file: its vocabulary, experts that a token visits and has, and the bytes of its tensors"""
    reader = library("gguf").GGUFReader(str(path))
    sizes = {tensor.name: (int(tensor.n_bytes), [int(n) for n in tensor.shape]) for tensor in reader.tensors}
    fields = {name.split(".", 1)[-1]: field for name, field in reader.fields.items()}
    count = [fields[key].contents() if key in fields else 1 for key in ("expert_used_count", "expert_count")]
    return {"vocab": sizes["token_embd.weight"][1][1], "share": count[0] / count[1], "sizes": sizes}


def active_bytes(path: Path) -> float:
    """That one token reads: experts by their share, an embedding that is not the head not at all."""
    found = _read(path)
    sizes = {name: size for name, (size, _) in found["sizes"].items()}
    if "output.weight" in sizes:
        sizes.pop("token_embd.weight")
    return float(sum(size * (found["share"] if "_exps." in name else 1.0) for name, size in sizes.items()))
