"""Where a verb's configuration and model come from: files, run folders, checkpoints, Hugging Face folders."""

from pathlib import Path
from typing import Any

from nn import MoETransformer, MoETransformerConfig
from nn.config import build, keys, read, settings
from nn.errors import InputError
from nn.train import TrainConfig, load_trained, newest_run


def run_settings(path: Path) -> dict[str, Any]:
    """The settings of a run that a file gives: those of a run, of some of it, or of a model by itself."""
    if _is_model(keys(path)):
        return {f"model.{key}": value for key, value in read(path, MoETransformerConfig).items()}
    return read(path, TrainConfig)


def model_config(path: Path) -> MoETransformerConfig:
    """The model's configuration that a file gives, by itself or as part of a run's."""
    prefix, given = "model.", run_settings(path)
    own = {key[len(prefix):]: value for key, value in given.items() if key.startswith(prefix)}
    return build(MoETransformerConfig, own)


def open_model(path: Path | None) -> tuple[Any, Any, Path]:
    """Model, tokenizer, folder: of a run, one of its checkpoints, a Hugging Face folder or the newest run."""
    folder = newest_run(trained=True) if path is None else path
    if (folder / "config.yaml").is_file() or (folder / "state.json").is_file():
        return (*load_trained(folder), folder)
    if (folder / "config.json").is_file():
        from nn.data import load_tokenizer

        tokenizer = load_tokenizer(folder / "tokenizer.json")
        return MoETransformer.from_pretrained(folder).eval(), tokenizer, folder
    raise InputError(f"checkpoint: {folder} holds no model (no config.yaml, state.json or config.json); "
                     "give a run, a checkpoint or a Hugging Face folder")


def _is_model(names: list[str]) -> bool:
    """A file without a `model:` section, most of whose keys are a model's."""
    model, run = ({s.key.split(".")[0] for s in settings(cls)} for cls in (MoETransformerConfig, TrainConfig))
    return "model" not in names and sum(n in model for n in names) > sum(n in run for n in names)
