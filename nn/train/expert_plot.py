"""experts.png: who got the tokens during a run, and how evenly each layer's experts were used.

    draw_experts(run.path)      # needs matplotlib; nn/train/plot.py draws it with loss.png"""

from pathlib import Path
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.files import replacing
from nn.train.metrics import read_metrics

COLUMNS = 400       # of the picture of the load: longer runs are averaged down to so many
LINES = {"usage_evenness": "evenness H(f) / ln E", "max_violation": "max f / mean f − 1",
         "overflow": "dropped assignments"}


def draw_experts(folder: str | Path) -> Path:
    """Write experts.png into a run folder, return its path; InputError without matplotlib, or if the run has
    no experts."""
    folder = Path(folder)
    records = [record for record in read_metrics(folder / "metrics.jsonl") if "moe/layers" in record]
    if not any("moe/load" in record for record in records):
        raise InputError(f"run: {folder} has no step with experts to draw")
    figure = _figure([record for record in records if "moe/load" in record], folder.name)
    with replacing(folder / "experts.png") as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    return folder / "experts.png"


def averaged(values: np.ndarray, columns: int = COLUMNS) -> np.ndarray:
    """values[steps,...] -> [at most columns,...]: means of neighbours"""
    parts = np.array_split(values, min(columns, len(values)))
    return np.stack([part.mean(axis=0) for part in parts])


def _figure(records: list[dict[str, Any]], title: str) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("experts.png: drawing it needs matplotlib; pip install matplotlib") from None
    names = [name for name in LINES if name in records[-1]["moe/layers"]]
    figure = Figure(figsize=(8.0, 2.6 + 1.7 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    first, *others = np.atleast_1d(figure.subplots(1 + len(names), 1, sharex=True))
    steps = [record["step"] for record in records]
    _load(figure, first, steps, np.array([record["moe/load"] for record in records]))
    for axes, name in zip(others, names, strict=True):
        _lines(axes, steps, [record["moe/layers"].get(name) for record in records], LINES[name])
    first.set_title(title, loc="left", fontweight="bold")
    others[0].set_title("one line per layer, the first is darkest", loc="right", fontsize=8)
    others[-1].set_xlabel("optimizer step")
    return figure


def _load(figure: Any, axes: Any, steps: list[int], load: np.ndarray) -> None:
    """Shares of the experts over the even share: 1 is even"""
    relative = averaged(load).T * load.shape[1]
    image = axes.imshow(relative, aspect="auto", cmap="RdBu_r", vmin=0.0, vmax=2.0, interpolation="nearest",
                        extent=(steps[0] - 0.5, steps[-1] + 0.5, load.shape[1] - 0.5, -0.5))
    axes.set_ylabel("expert")
    figure.colorbar(image, ax=axes, label="load / even load")


def _lines(axes: Any, steps: list[int], values: list[Any], label: str) -> None:
    """One line per layer"""
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    at, layers = averaged(np.array([step for step, _ in known])), averaged(np.array([v for _, v in known]))
    for i, line in enumerate(layers.T):
        axes.plot(at, line, linewidth=1.0, color=(0.23, 0.44, 0.71, 1.0 - 0.7 * i / layers.shape[1]))
    axes.set_ylabel(label, fontsize=8)
    axes.grid(True, color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
