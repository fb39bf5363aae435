"""Checkpoints: `checkpoints/step_000100/` with `model.safetensors`, `optimizer.safetensors` and `state.json`.

A checkpoint is written to a temporary sibling, every file and the folder are flushed to the disk, then it is
renamed: it is there complete, or not at all.  `state.json` lists the size and SHA-256 of each file and of
itself, so that a damaged one is recognised; `latest_valid` then takes the one before.  Older ones go only
after a newer one is safe.  Nothing is unpickled.

    save_checkpoint(folder, 100, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, {})
    latest_valid(folder).tensors["model"]"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.files import remove, remove_leftovers, replacing

FORMAT = 1
CHUNK = 1 << 20
DTYPES = {                        # NumPy's name: the one safetensors uses
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "uint32": "U32", "uint16": "U16", "uint8": "U8", "int8": "I8", "bool": "BOOL",
}
log = logging.getLogger("nn.train")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read."""

    path: Path
    step: int
    state: dict[str, Any]                          # what was given to save_checkpoint
    tensors: dict[str, dict[str, np.ndarray]]      # per file ("model", "optimizer"), per name


def save_checkpoint(folder: str | Path, step: int, tensors: Mapping[str, Mapping[str, np.ndarray]],
                    state: Mapping[str, Any], *, keep_last: int = 2, best: int | None = None) -> Path:
    """Write step `step`, then delete all but the `keep_last` newest and step `best`.  If the disk fills up,
    the earlier checkpoints are as they were and an OSError says so."""
    folder = Path(folder)
    path = folder / f"step_{step:06d}"
    aside = _aside(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with replacing(path) as temporary:
            temporary.mkdir()
            _write(temporary, step, tensors, state)
            if path.exists():
                os.rename(path, aside)
    except OSError as error:
        if aside.exists():
            os.rename(aside, path)
        what = f"checkpoint of step {step} not written ({error.strerror}); earlier ones are intact"
        raise OSError(error.errno, f"{what}: make room, then resume", str(folder)) from error
    remove(aside)
    _prune(folder, step, keep_last, best)
    return path


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify one checkpoint; InputError names the file that is missing, truncated or changed."""
    from safetensors.numpy import load_file
    path = Path(path)
    state = _read_state(path)
    tensors = {}
    for name, expected in state["files"].items():
        _verify(path / name, expected)
        tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    return Checkpoint(path, state["step"], state["state"], tensors)


def latest_valid(folder: str | Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; each newer one that does not is reported as a warning.  None if
    the folder holds no checkpoint; an InputError if it holds some and all are damaged."""
    found = sorted(checkpoints(folder).items(), reverse=True)
    for _, path in found:
        try:
            return load_checkpoint(path)
        except InputError as error:
            log.warning("%s; trying the checkpoint before it", error)
    if found:
        raise InputError(f"resume: {folder} holds {len(found)} checkpoints, all damaged; start a new run")
    return None


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path means, which may write the step with fewer zeros: .../step_100.  A path that
    means none is given back as it is."""
    path = Path(path)
    step = re.fullmatch(r"step_(\d+)", path.name)
    return path if path.exists() or not step else checkpoints(path.parent).get(int(step[1]), path)


def checkpoints(folder: str | Path) -> dict[int, Path]:
    """Step → path, unverified."""
    folder = Path(folder)
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return {int(name[5:]): folder / name for name in names if re.fullmatch(r"step_\d{6,}", name)}


def _write(folder: Path, step: int, tensors: Mapping[str, Mapping[str, np.ndarray]],
           state: Mapping[str, Any]) -> None:
    files = {f"{name}.safetensors": arrays for name, arrays in tensors.items()}
    files = {name: _write_tensors(folder / name, arrays) for name, arrays in files.items()}
    body = {"format": FORMAT, "step": step, "files": files, "state": dict(state)}
    with open(folder / "state.json", "w", encoding="utf-8") as file:
        json.dump(body | {"sha256": _digest(body)}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _write_tensors(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A safetensors file, streamed: no second copy of the arrays in memory.  Returns its size and SHA-256."""
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        data = (_raw(arrays[name]) for name in order)
        blocks: Iterator[bytes | memoryview] = chain([_header(arrays, order)], data)
        for block in blocks:
            for i in range(0, len(block), CHUNK):
                digest.update(block[i:i + CHUNK])
                file.write(block[i:i + CHUNK])
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _header(arrays: Mapping[str, np.ndarray], order: list[str]) -> bytes:
    """Eight bytes of length, then JSON padded with spaces so that the data begins at a multiple of 8."""
    header, offset = {}, 0
    for name in order:
        array = arrays[name]
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _raw(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / "state.json").read_bytes())
        stored = state.pop("sha256")
    except FileNotFoundError:
        raise InputError(f"checkpoint {path}: state.json is missing") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"checkpoint {path}: state.json is truncated or not JSON") from None
    if stored != _digest(state):
        raise InputError(f"checkpoint {path}: state.json was changed (its SHA-256 does not match)")
    if state["format"] != FORMAT:
        found = state["format"]
        raise InputError(f"checkpoint {path}: format {found} is not {FORMAT}; use another version of cuda-nn")
    return state


def _verify(path: Path, expected: Mapping[str, Any]) -> None:
    where = f"checkpoint {path.parent}: {path.name}"
    if not path.is_file():
        raise InputError(f"{where} is missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise InputError(f"{where} is truncated or grown ({size} bytes, {expected['bytes']} were written)")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected["sha256"]:
        raise InputError(f"{where} is corrupted (its SHA-256 does not match)")


def _prune(folder: Path, step: int, keep_last: int, best: int | None) -> None:
    """Steps newer than the one just written go too: they were refused on resuming, their future did not
    happen."""
    present = checkpoints(folder)
    keep = {*sorted(s for s in present if s <= step)[-keep_last:], best}
    for old in present.keys() - keep:       # renamed first: a kill must not leave one that lacks files
        os.rename(present[old], _aside(present[old]))
        remove(_aside(present[old]))


def _aside(path: Path) -> Path:
    return path.with_name(f".tmp-{os.getpid()}-old-{path.name}")
