"""Models as ONNX graphs, for what runs those.  Needs the package onnx.

    from nn.interop.onnx import export
    export(model, "model.onnx", batch=1, length=128)        # input ids int64 [1,128], output logits [1,128,V]

The operations that one forward pass executes become the graph (trace.py), each by its entry in a table
(nodes.py).  Shapes are those of the trace: fill shorter texts up behind their end; a causal model computes
the same before it.  What the table does not have is refused by name: scans, experts, streams, and of
attention sinks, softcap and sparse patterns, so far.

TorchScript is a program of PyTorch's own; nothing here could run it, or write it."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.files import replacing
from nn.interop.onnx.nodes import Graph
from nn.interop.onnx.trace import trace
from nn.models import Transformer

__all__ = ["OPSET", "export"]

OPSET = 17          # LayerNormalization is in it


def export(model: Any, path: str | Path, *, batch: int = 1, length: int | None = None) -> None:
    """Write the model's forward pass, ids [batch,length] -> logits [batch,length,V], to a file that appears
    whole or not at all.  length: by default the model's context.

    A Transformer is exported as the decoder it is.  InputError for an encoder or a seq2seq model,
    without the package onnx, for an operation that has no counterpart, and for a model in which
    the ids decide other than by operations (hashed n-grams)."""
    onnx, model = _package(), _predicting(model)
    shape = (batch, model.max_seq_len if length is None else length)
    if min(shape) < 1:
        raise InputError(f"batch, length: {list(shape)}; 1 or more rows and tokens")
    if (kind := np.dtype(model.embed_tokens.weight.dtype).name) not in ("float32", "float64"):
        raise InputError(f"model: its weights are {kind}; export one of float32")
    first, second = (trace(model, _ids(shape, model.vocab_size, seed)) for seed in (0, 1))
    first.check_against(second)
    graph = Graph(onnx, first)
    for step in first.steps:
        graph.add(step)
    made = onnx.helper.make_model(
        graph.finished("logits"), opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=8,
        producer_name="cuda-nn")
    onnx.checker.check_model(made)
    with replacing(Path(path)) as temporary:
        onnx.save(made, str(temporary))


def _predicting(model: Any) -> Any:
    """What gives logits of ids alone"""
    if not isinstance(model, Transformer):
        return model
    if model.cfg.mode != "decoder":
        raise InputError(f"model: mode {model.cfg.mode!r}; export a decoder, which gives logits of ids alone")
    return model.main


def _package() -> Any:
    try:
        for part in ("helper", "numpy_helper", "checker"):
            importlib.import_module(f"onnx.{part}")
        return importlib.import_module("onnx")
    except ModuleNotFoundError:
        raise InputError("onnx: the package is not installed; pip install onnx") from None


def _ids(shape: tuple[int, int], vocab_size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, shape)
