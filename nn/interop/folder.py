"""A Hugging Face folder: config.json beside model.safetensors, or beside shards and their index.

Weights are read one tensor at a time from memory-mapped files, and written to files that are whole or absent.
Nothing is ever unpickled.        with open_tensors(folder) as stored: stored["lm_head.weight"].read()"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nn import files
from nn.dtypes import Shape
from nn.errors import InputError
from nn.files import replacing

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: described by the file's header, read when asked for."""

    name: str
    shape: Shape
    file: Any

    def read(self) -> np.ndarray:
        return self.file.get_tensor(self.name)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError if there is none."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a Hugging Face folder ({CONFIG}, {WEIGHTS})") from None


@contextmanager
def open_tensors(folder: Path, file: str = "") -> Iterator[dict[str, Stored]]:
    """{name: tensor} of all weight files, or of the one named, open inside the block.  InputError names a
    missing or damaged file, and a tensor in a number type that is not read (quantised ones)."""
    with ExitStack() as files:
        stored: dict[str, Stored] = {}
        for path in [folder / file] if file else _weight_files(folder):
            stored |= _describe(path, files)
        yield stored


def _weight_files(folder: Path) -> list[Path]:
    """One file if it is there, else the index's shards: Transformers' order too."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
        raise InputError(f"{folder / INDEX}: weight_map does not name a file for each tensor")
    return [folder / file for file in sorted(set(shards.values()))]


def _describe(path: Path, files: ExitStack) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        file = files.enter_context(safe_open(path, framework="np"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; convert other formats to safetensors first") from None
    except SafetensorError as error:
        raise InputError(f"{path}: damaged or not safetensors ({error})") from None
    stored = {}
    for name in file.keys():  # noqa: SIM118 (not a dictionary: it cannot be iterated over)
        tensor = file.get_slice(name)
        if tensor.get_dtype() not in DTYPES:
            kind = tensor.get_dtype()
            raise InputError(f"{path}: {name} is stored as {kind}; only {', '.join(DTYPES)} are read")
        stored[name] = Stored(name, tuple(tensor.get_shape()), file)
    return stored


def write(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray],
          files: tuple[str, str] = (CONFIG, WEIGHTS)) -> None:
    """Both files take their places only when both are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / files[0]) as text, replacing(folder / files[1]) as weights:
        text.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _save(tensors, weights)


def _save(tensors: dict[str, np.ndarray], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})      # without the mark, Transformers 4 refuses it
    except SafetensorError as error:                             # a full disk, among others
        raise OSError(f"{path.parent}: weights not written ({error})") from error
