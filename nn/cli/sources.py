"""Where a verb's configuration and model come from: files, run folders, checkpoints, Hugging Face folders."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from nn.config import build, keys, read, settings, update, variant
from nn.errors import InputError
from nn.models import PRESETS
from nn.models.architectures import ModelConfig, from_config
from nn.models.presets import SMALL
from nn.names import by_name
from nn.train import TrainConfig, find_checkpoint, load_trained, newest_run

KINDS = get_args(ModelConfig)       # of a model's configuration


@dataclass(frozen=True)
class Changes:
    """Options that change a ready-made model, of verbs that train none: --model.num-layers 2."""

    model: ModelConfig = SMALL      # model


def run_settings(path: Path) -> dict[str, Any]:
    """The settings of a run that a file gives: those of a run, of some of it, or of a model by itself."""
    names = keys(path)
    if _is_model(names):
        return {f"model.{key}": value for key, value in read(path, variant(KINDS, names)).items()}
    return read(path, TrainConfig)


def model_config(path: Path) -> ModelConfig:
    """The model's configuration that a file gives, by itself or as part of a run's."""
    own = of_model(run_settings(path))
    return build(variant(KINDS, own), own)


def of_model(given: dict[str, Any]) -> dict[str, Any]:
    """Of a run's settings those of its model, in the model's own names."""
    prefix = "model."
    return {key[len(prefix):]: value for key, value in given.items() if key.startswith(prefix)}


def model_preset(name: str, changes: dict[str, Any]) -> ModelConfig:
    """A ready-made model by name, with such changes as a command line gives; InputError suggests the nearest
    name."""
    return update(by_name("model", name, model_presets()), of_model(changes))


def model_presets() -> dict[str, ModelConfig]:
    """Every ready-made configuration of a model by name, those of the other front ends in this library's
    names."""
    from nn.models import lm_config, neoformer_config, qwen3

    own = {"qwen3-0.6b": qwen3.QWEN3_0_6B, "qwen3-moe-a0.6b": qwen3.QWEN3_MOE_A0_6B}
    others = {name: config.core for name, config in lm_config.PRESETS.items()}
    others |= {f"neoformer-{name.lower()}": config.core for name, config in neoformer_config.PRESETS.items()}
    return {**PRESETS, **own, **others}


def untrained(name: str, changes: dict[str, Any]) -> tuple[Any, Any]:
    """(model, tokenizer): a ready-made model that has learned nothing, on plain bytes."""
    from nn.data import ByteTokenizer

    tokenizer = ByteTokenizer()
    return from_config(model_preset(name, changes).replace(vocab_size=tokenizer.vocab_size)).eval(), tokenizer


def open_model(path: Path | None) -> tuple[Any, Any, Path]:
    """Model, tokenizer, folder: of a run, one of its checkpoints, a Hugging Face folder or the newest run."""
    folder = newest_run(trained=True) if path is None else _found(path)
    if (folder / "config.yaml").is_file() or (folder / "state.json").is_file():
        return (*load_trained(folder), folder)
    if (folder / "config.json").is_file():
        from nn.data import load_tokenizer
        from nn.interop.pretrained import from_pretrained

        return from_pretrained(folder).eval(), load_tokenizer(folder / "tokenizer.json"), folder
    raise InputError(f"checkpoint: {folder} holds no model (no config.yaml, state.json or config.json); "
                     "give a run, a checkpoint or a Hugging Face folder")


def _found(path: Path) -> Path:
    """The folder that is meant: `checkpoints/step_100` is the newest run's where there is none here."""
    found = find_checkpoint(path)
    if not found.exists() and path.parts[:1] == ("checkpoints",):
        with suppress(InputError):
            return find_checkpoint(newest_run(trained=True) / path)
    return found


def _is_model(names: list[str]) -> bool:
    """A file without a `model:` section, most of whose keys are a model's."""
    model = {s.key.split(".")[0] for kind in KINDS for s in settings(kind)}
    run = {s.key.split(".")[0] for s in settings(TrainConfig)}
    return "model" not in names and sum(n in model for n in names) > sum(n in run for n in names)
