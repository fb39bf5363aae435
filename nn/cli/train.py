"""Train a language model on text: a mixture of experts, or any blocks that a configuration file names; every
setting has a default that works: without options, minutes on two cores and Python's own source.

Examples:
  cuda-nn train --data book.txt --steps 2000 --lr 1e-3     # your text: a file, a folder or JSONL
  cuda-nn train --model mamba-small --download-shakespeare --epochs 1
  cuda-nn train --resume                                   # go on with the newest run, to the same bits
"""

from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nn.backends import describe, native
from nn.cli.aliases import ALIASES
from nn.cli.parser import Parser, flag
from nn.cli.sources import model_preset, model_presets, run_settings
from nn.cli.terminal import facts, stream
from nn.config import build, load, update
from nn.errors import InputError
from nn.generate import SamplingConfig, stream_text
from nn.models import LanguageModelConfig
from nn.models.parts import blocks_of
from nn.threads import described
from nn.train import (
    Callback,
    TrainConfig,
    Trainer,
    TrainResult,
    load_trained,
    newest_run,
    preset,
    progress,
    train,
)
from nn.train.recorded import refusals


@dataclass(frozen=True)
class Options:
    """What only this verb has; everything else is TrainConfig."""

    # Where to begin
    preset: str = "stdlib"              # ready-made settings: stdlib (minutes) or smoke (seconds)
    model: str | None = None            # a ready-made model instead of the preset's: gpt-small, mamba-small,
                                        # qwen3-0.6b, neoformer-125m, ...; wider ones learn at a lower rate
    download_shakespeare: bool = False  # learn from Shakespeare: a file that is here (shakespeare.txt), else
                                        # one from the network, else a few pages that come with cuda-nn
    config: Path | None = None          # YAML file with settings of the run or its model; over the preset
    train_config: Path | None = None    # a second such file; over the first
    resume: bool | Path = False         # go on with a run: its folder, or without a value the newest


def run(argv: list[str]) -> int:
    given = Parser("train", __doc__, Options, TrainConfig, aliases=ALIASES["train"]).given(argv)
    own = {field.name: given.pop(field.name) for field in fields(Options) if field.name in given}
    options = build(Options, own)
    if options.resume:
        return _end(_resume(options.resume, [*own, *given], given.get("runs", "runs")))
    if "epochs" in given and "steps" in given:
        raise InputError("--epochs: --steps also says how long to train; give one of them")
    files = [run_settings(path) for path in (options.config, options.train_config) if path]
    changes = {key: value for source in [*files, given] for key, value in source.items()}
    config = update(_base(options), _shakespeare(changes, given) if options.download_shakespeare else changes)
    return _end(train(config, callbacks=[Announcement(), progress(config.log_every)]))


def _base(options: Options) -> TrainConfig:
    """The settings that files and options change."""
    if options.preset in model_presets():
        raise InputError(f"--preset: {options.preset} is a model, not a run; give it by --model")
    base = preset(options.preset)
    if options.model is None:
        return base
    model = model_preset(options.model, {})
    return replace(base, model=model, lr=base.lr * min(1.0, base.model.hidden_size / model.hidden_size))


def _shakespeare(changes: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings with Shakespeare for a text, wherever it comes from."""
    from nn.data.shakespeare import find_shakespeare

    if "data" in given:
        raise InputError(f"--data: {given['data']}; with --download-shakespeare the text is Shakespeare's")
    return {**changes, "data": str(find_shakespeare(download=True))}


def _resume(which: bool | Path, given: list[str], runs: str) -> TrainResult:
    for key in given:
        if key not in ("resume", "runs"):
            raise InputError(f"{flag(key)}: a resumed run keeps its settings: leave it out or start anew")
    folder = newest_run(runs) if isinstance(which, bool) else which
    log_every = load(folder / "config.yaml", TrainConfig).log_every
    return train(resume=folder, callbacks=[Announcement(), progress(log_every)])


def _end(result: TrainResult) -> int:
    """A sample of what was learned, then the line that sums up the run."""
    if result.interrupted:
        print(f"stopped after step {result.steps}; go on with: cuda-nn train --resume {result.run}")
        return 128 + result.interrupted
    config = load(result.run / "config.yaml", TrainConfig)
    if config.sample_tokens:
        model, tokenizer = load_trained(result.run)
        sampling = SamplingConfig(max_tokens=config.sample_tokens, seed=config.seed)
        print("\nwhat it writes:\n")
        stream([config.sample_prompt, *stream_text(model, tokenizer, config.sample_prompt, sampling)])
    if (result.run / "loss.png").exists():
        print(f"\nloss curve: {result.run / 'loss.png'}")
    if fallen := native.fallen_back():
        print(f"\nthe reference ran instead of a native kernel: {fallen}")
    for why in dict.fromkeys(refusals()):
        print(f"\nsteps ran kernel by kernel, they cannot be recorded: {why}")
    print(result.final_line())
    return 0


class Announcement(Callback):
    """Says, before the first step, what was derived from the text and the settings."""

    def on_start(self, trainer: Trainer) -> None:
        corpus, config = trainer.corpus, trainer.config
        facts([
            ("text", _text(config.data, corpus.info)),
            ("tokenizer", _tokenizer(config, corpus)),
            ("model", _model(trainer.model, config)),
            ("training", _amount(config, len(trainer.loader.tokens))),
            ("backend", _backend(trainer.model.device, config.threads)),
            ("run", f"{trainer.run.path} (Ctrl-C saves; cuda-nn train --resume goes on)"),
        ])


def _backend(device: Any, threads: int) -> str:
    served = Counter(describe()["device kernels" if device else "kernels"].values())
    kernels = ", ".join(f"{name} runs {count} kernels" for name, count in served.items())
    place = f"on the device {device.name}" if device else described(threads)
    return f"{kernels} (cuda-nn info lists them), {place}"


def _text(data: str, info: dict[str, Any]) -> str:
    learn, held_out = info["train"], info["held_out"]
    return (f"{data}: {learn['documents']:,} documents, {learn['bytes'] / 1e6:.1f} MB to learn from; "
            f"{held_out['documents']:,}, {held_out['bytes'] / 1e6:.2f} MB, held out by a hash of their names")


def _tokenizer(config: TrainConfig, corpus: Any) -> str:
    kind = "plain bytes" if config.tokenizer == "bytes" else "byte pairs learned from this text"
    return f"{corpus.tokenizer.vocab_size:,} tokens ({kind}), {corpus.bytes_per_token:.2f} bytes per token"


def _model(model: Any, config: TrainConfig) -> str:
    shape, active = config.model, model.num_parameters(active=True)
    if isinstance(shape, LanguageModelConfig):
        kinds = f" ({', '.join(sorted(blocks_of(shape.body_settings())))})"
    else:
        kinds = f", {shape.top_k} of {shape.num_experts} experts per token" if shape.num_experts else ""
    return (f"{shape.num_layers} layers of width {shape.hidden_size}{kinds}; "
            f"{model.num_parameters():,} parameters, {active:,} active, {config.dtype}")


def _amount(config: TrainConfig, available: int) -> str:
    tokens = config.accumulate * config.batch_size * config.seq_len
    passes = config.steps * tokens / max(1, available)
    return f"{config.steps:,} steps of {tokens:,} tokens, {passes:.2f} passes over the text"
