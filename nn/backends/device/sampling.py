"""Choosing the next tokens on the device: the tokens of nn.generate.sampling, and no logit is read back.

    key = sampling_key(device, config.seed)                      # once
    tokens = sample(logits, history, lengths, config, key, step)         # int64[B] on the device, -1: none
"""

from ctypes import byref, sizeof
from types import SimpleNamespace
from typing import Any

import numpy as np

from cuda.nn.array import DeviceArray
from cuda.nn.device import Device
from cuda.nn.errors import DeviceArgumentError
from cuda.nn.prototypes.sampling import Sample
from nn import random
from nn.backends.device.arrays import expect_device, scratch
from nn.backends.reference.sampling import top_k

__all__ = ["next_token", "random_bits", "sample", "sampling_key", "top_k"]

INT64 = np.dtype(np.int64)


def sampling_key(device: Device, seed: int | list[int]) -> DeviceArray:
    """int64[1], or [B] of a seed per row: the keys of the random numbers, as `sample` takes them."""
    seeds = [seed] if isinstance(seed, int) else seed
    return device.asarray(np.array([random.derive(s, "sampling") for s in seeds], np.uint64).view(np.int64))


def sample(logits: DeviceArray, history: DeviceArray | None, lengths: DeviceArray | None, config: Any,
           keys: DeviceArray, steps: DeviceArray, *, rows: DeviceArray | None = None,
           flags: DeviceArray | None = None, out: DeviceArray | None = None) -> DeviceArray:
    """tokens[B] int64 from logits[B,V]; config is a nn.generate.SamplingConfig.

    history[B,L] int64 with lengths[B] int64 (None: all L) is what the repetition penalty is for; steps[1] or
    [B] int64 and rows[B] int64 (None: 0 ... B - 1) are the words of the random numbers, keys[1] or [B] their
    keys.  All are read on the device.  A row of NaN, +inf or nothing above -inf gives -1, and 1 in flags[B]
    int32."""
    if logits.ndim != 2:
        raise DeviceArgumentError(f"logits: shape {logits.shape} is not [batch, vocabulary]")
    if logits.strides[1] != 1 or logits.strides[0] < logits.shape[1]:
        logits = logits.contiguous()
    expect_device(logits, history=history, lengths=lengths, keys=keys, steps=steps, rows=rows, flags=flags,
                  out=out)
    device, (batch, vocabulary) = logits.device, logits.shape
    tokens = device.empty((batch,), np.int64) if out is None else out
    _expect("out", tokens, INT64, (batch,))
    _expect("lengths", lengths, INT64, (batch,))
    _expect("rows", rows, INT64, (batch,))
    _expect("flags", flags, np.dtype(np.int32), (batch,))
    for name, words in (("keys", keys), ("steps", steps)):
        _expect(name, words, INT64, (batch,) if words.size != 1 else words.shape)
    call = Sample(size=sizeof(Sample), tokens=tokens.pointer, logits=logits.pointer, keys=keys.pointer,
                  steps=steps.pointer, batch=batch, vocabulary=vocabulary, stride=logits.strides[0],
                  key_stride=int(keys.size > 1), step_stride=int(steps.size > 1), top_k=config.top_k,
                  temperature=config.temperature, top_p=config.top_p, min_p=config.min_p,
                  repetition_penalty=config.repetition_penalty, dtype=logits.code)
    if history is not None:
        if history.ndim != 2:
            raise DeviceArgumentError(f"history: shape {history.shape} is not [batch, length]")
        _expect("history", history, INT64, (batch, history.shape[1]))
        call.history, call.history_stride = history.pointer, history.shape[1]
    for name, array in (("lengths", lengths), ("rows", rows), ("flags", flags)):
        if array is not None:
            setattr(call, name, array.pointer)
    workspace, size = scratch(logits, device.library.nn_sample_workspace_size(batch, vocabulary,
                                                                              config.temperature))
    device.call("sample_forward", byref(call), workspace, size)
    return tokens


def next_token(z: DeviceArray, counters: DeviceArray, *, temperature: float = 1.0, top_k: int = 0,
               top_p: float = 1.0, min_p: float = 0.0) -> DeviceArray:
    """ids[B] of logits z[B,V] at counters[B,3]: (key, row, step) of each row; `sample` without penalty."""
    config = SimpleNamespace(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                             repetition_penalty=1.0)
    keys, rows, steps = (counters[:, word].contiguous() for word in range(3))
    return sample(z, None, None, config, keys, steps, rows=rows)


def random_bits(key: DeviceArray, words: DeviceArray, count: int) -> DeviceArray:
    """uint32[count]: nn.random.bits(key, *words, shape=(count,)) for key[1], words[3] int64 on the device."""
    _expect("key", key, INT64, (1,))
    _expect("words", words, INT64, (3,))
    out = key.device.empty((count,), np.uint32)
    key.device.call("random_bits", out, key, words, count)
    return out


def _expect(name: str, array: DeviceArray | None, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if array is not None and (array.dtype != dtype or array.shape != shape or not array.is_contiguous):
        raise DeviceArgumentError(f"{name}: {array.dtype} {array.shape}; expected dense {dtype} {shape}")
