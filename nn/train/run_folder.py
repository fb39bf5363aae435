"""The folder of one run, and the lock that keeps a second trainer out of it.

    config.yaml  manifest.json  tokenizer.json  tokens/  metrics.jsonl  checkpoints/  loss.png  experts.png

    with RunFolder.create(config) as run: ...       # or RunFolder.open(newest_run("runs"))"""

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nn.errors import InputError
from nn.files import read_json, remove, remove_leftovers, write_json
from nn.train.config import TrainConfig
from nn.train.machine import facts

LOCK = ".lock"


class RunFolder:
    """A locked run folder.  `config` is what config.yaml holds.  Use it as a context manager, or call
    `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.picture = path / "loss.png"
        self._lock: int | None = _lock(path)
        self.config: TrainConfig
        remove_leftovers(path)

    @classmethod
    def create(cls, config: TrainConfig) -> "RunFolder":
        """A new run: in config.run, or in a new folder below config.runs."""
        path = Path(config.run) if config.run else _fresh(config)
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        try:
            if (path / "config.yaml").exists():
                raise InputError(f"run: {path} already holds a run; continue it with --resume {path}, or "
                                 "choose another folder")
            run.save_config(replace(config, run=str(path)))
            write_json(path / "manifest.json", {"seed": config.seed, "data_hash": None, "starts": []})
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run, to be continued."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise InputError(f"run: {path} holds no run (it has no config.yaml); give a run folder, or "
                             "leave the value out to continue the newest one")
        run = cls(path)
        try:
            run.config = replace(load_config(path), run=str(path))
        except BaseException:
            run.close()
            raise
        return run

    def save_config(self, config: TrainConfig) -> None:
        """Write config.yaml, every value resolved."""
        from nn.config import save
        save(config, self.path / "config.yaml")
        self.config = config

    def record_start(self, step: int, data_hash: str) -> None:
        """Add this process to the manifest: the run's history, and what it was run with."""
        path = self.path / "manifest.json"
        manifest: dict[str, Any] = {"starts": []}
        if path.exists():
            manifest = read_json(path)
        manifest |= {"seed": self.config.seed, "data_hash": data_hash}
        manifest["starts"].append({"step": step} | facts())
        write_json(path, manifest)

    def discard(self) -> None:
        """Delete what `create` made: for a run that could not begin.  Files of others stay, and so does their
        folder."""
        for name in ("config.yaml", "manifest.json", "tokenizer.json", "tokens", LOCK):
            remove(self.path / name)
        remove_leftovers(self.path)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def close(self) -> None:
        """Let others in; twice does no harm."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def newest_run(runs: str | Path = "runs", *, trained: bool = False) -> Path:
    """The run that was started or resumed last; its lock file's time says which.  `trained`: of those with a
    checkpoint."""
    locks = [lock for lock in Path(runs).glob(f"*/{LOCK}") if (lock.parent / "config.yaml").is_file()
             and (not trained or any(lock.parent.glob("checkpoints/step_*")))]
    if not locks:
        raise InputError(f"run: there is no run in {runs}/; train one first, or give the run's folder")
    return max(locks, key=lambda lock: lock.stat().st_mtime_ns).parent


def load_config(path: str | Path) -> TrainConfig:
    """The configuration of a run folder, without taking its lock."""
    from nn.config import load
    return load(Path(path) / "config.yaml", TrainConfig)


def _fresh(config: TrainConfig) -> Path:
    """runs/stdlib-20260131-175959, with a number behind it if two start within a second."""
    name = f"{Path(config.data).stem or 'run'}-{datetime.now():%Y%m%d-%H%M%S}"
    candidates = (Path(config.runs, name + suffix) for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    for path in candidates:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise InputError(f"runs: {config.runs}/{name} and a thousand like it exist; give a folder with run=")


def _lock(path: Path) -> int:
    """Take the lock, or say who has it.  The kernel drops it when the process ends, however it ends."""
    import fcntl
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise InputError(f"run: {path} is being trained by process {owner or '?'}; wait for it, or choose "
                         "another folder") from None
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
