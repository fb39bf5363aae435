"""Training: configuration, run folder, loop, checkpoints, progress."""

from nn.train.callbacks import Callback
from nn.train.checkpoint import Checkpoint, find_checkpoint, latest_valid, load_checkpoint, save_checkpoint
from nn.train.config import PRESETS, TrainConfig, preset
from nn.train.job import build_model, load_trained, train
from nn.train.plot import draw_loss
from nn.train.progress import progress
from nn.train.run_folder import RunFolder, newest_run
from nn.train.trainer import Trainer, TrainResult

__all__ = [
    "PRESETS", "Callback", "Checkpoint", "RunFolder", "TrainConfig", "TrainResult", "Trainer", "build_model",
    "draw_loss", "find_checkpoint", "latest_valid", "load_checkpoint", "load_trained", "newest_run", "preset",
    "progress", "save_checkpoint", "train",
]
