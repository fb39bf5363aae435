"""A whole training run from a configuration, and reading back what it made.

    result = train(preset("smoke"));  print(result.final_line())
    train(resume=newest_run())
    model, tokenizer = load_trained(result.run)"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nn.backends import open_device
from nn.errors import InputError
from nn.models import from_config
from nn.models.decoder import Decoder
from nn.threads import computing_threads
from nn.train.callbacks import Callback
from nn.train.checkpoint import Checkpoint, find_checkpoint, latest_valid, load_checkpoint
from nn.train.config import TrainConfig
from nn.train.corpus import prepare
from nn.train.plot import draw_loss
from nn.train.run_folder import RunFolder, load_config
from nn.train.trainer import Trainer, TrainResult

log = logging.getLogger("nn.train")


def train(config: TrainConfig | None = None, *, resume: str | Path | None = None,
          callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Start the run that `config` describes, or continue the one in the folder `resume`, as its config.yaml
    says."""
    with (RunFolder.open(resume) if resume else RunFolder.create(config or TrainConfig())) as run:
        try:
            trainer = _prepared(run, callbacks)
        except BaseException:
            if not resume:
                run.discard()           # else the next --resume would find a run that cannot begin
            raise
        with computing_threads(run.config.threads):
            result = trainer.fit()
        _draw(run.path)
        return result


def _prepared(run: RunFolder, callbacks: Sequence[Callback]) -> Trainer:
    """The trainer of a run, its text read and its newest checkpoint loaded."""
    corpus = prepare(run.config, run.path)
    device = open_device(run.config.device)
    resolved = replace(run.config.with_vocab(corpus.tokenizer.vocab_size).in_steps(len(corpus.train)),
                       device=device.name if device else "cpu")
    if resolved != run.config:
        run.save_config(resolved)
    trainer = Trainer(run, build_model(resolved).to(device), corpus, callbacks)
    run.record_start(trainer.resume(), corpus.info["data_hash"])
    return trainer


def build_model(config: TrainConfig) -> Decoder:
    """The untrained model of a run, on the host."""
    return from_config(config.model, seed=config.seed, dtype=config.dtype)


def load_trained(path: str | Path) -> tuple[Decoder, Any]:
    """Model, in evaluation mode, and tokenizer: of a run folder (its newest checkpoint), or of one
    checkpoint."""
    from nn.data import load_tokenizer
    path = find_checkpoint(path)
    is_checkpoint = (path / "state.json").exists()
    run = path.parent.parent if is_checkpoint else path
    config = load_config(run)
    model = build_model(config)
    model.load_state_dict((load_checkpoint(path) if is_checkpoint else _newest(run)).tensors["model"])
    model.eval()
    return model, load_tokenizer(run / "tokenizer.json")


def _newest(run: Path) -> Checkpoint:
    found = latest_valid(run / "checkpoints")
    if found is None:
        raise InputError(f"run: {run} has no checkpoint yet; train it, or resume it, first")
    return found


def _draw(run: Path) -> None:
    """The picture is a by-product: without matplotlib, or before the first step, the run is complete
    without."""
    try:
        draw_loss(run)
    except (InputError, OSError) as error:
        log.warning("%s", error)
