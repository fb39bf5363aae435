"""loss.png: how a run's bits per byte fell, beside what gzip and xz need for the same held-out text.

    draw_loss(run.path)      # needs matplotlib (pip install cuda-nn[plot]); no display, no global state"""

import math
from pathlib import Path
from typing import Any

from nn.errors import InputError
from nn.files import read_json, replacing
from nn.train.expert_plot import draw_experts
from nn.train.metrics import read_metrics

BLUE, RED, GREY = "#3b6fb6", "#c8443c", "#6b7280"


def draw_loss(folder: str | Path) -> Path:
    """Write loss.png (and experts.png, if there are any) into a run folder, return its path; InputError
    without matplotlib or before the first step."""
    folder = Path(folder)
    records = read_metrics(folder / "metrics.jsonl")
    if not records:
        raise InputError(f"run: {folder} has no finished step to draw yet")
    info = read_json(folder / "tokens" / "info.json")
    figure = _figure(records, {name: info[name] for name in ("gzip", "xz")}, folder.name)
    with replacing(folder / "loss.png") as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    if "moe/load" in records[-1]:
        draw_experts(folder)
    return folder / "loss.png"


def smooth(values: list[float], half_width: int) -> list[float]:
    """The mean of each value and its neighbours on both sides (no lag), fewer at the steep beginning."""
    out = []
    for i in range(len(values)):
        width = min(half_width, i)
        near = values[i - width:i + width + 1]
        out.append(sum(near) / len(near))
    return out


def _figure(records: list[dict[str, Any]], marks: dict[str, float], title: str) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("loss.png: drawing it needs matplotlib; pip install matplotlib") from None
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _curves(axes, records)
    _marks(axes, marks)
    _dress(axes, records, marks, title)
    return figure


def _curves(axes: Any, records: list[dict[str, Any]]) -> None:
    steps, bits = [r["step"] for r in records], [r["bits_per_byte"] for r in records]
    axes.plot(steps, bits, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(bits, len(bits) // 50), color=BLUE, linewidth=1.8, label="training (smoothed)")
    held = [(r["step"], r["held_out_bits_per_byte"]) for r in records if "held_out_bits_per_byte" in r]
    if held:
        axes.plot(*zip(*held, strict=True), color=RED, marker="o", linewidth=1.2, label="held out")
        axes.annotate(f"{held[-1][1]:.3f}", held[-1], textcoords="offset points", xytext=(0, 9), ha="center",
                      color=RED, fontweight="bold")


def _marks(axes: Any, marks: dict[str, float]) -> None:
    """Horizontal lines, named at the left edge: the highest above its line, the others below theirs."""
    for name, value in marks.items():
        above = value == max(marks.values())
        axes.axhline(value, color=GREY, linewidth=1.0, linestyle="--", zorder=1)
        axes.annotate(f"{name} -9: {value:.2f}", (0.01, value), xycoords=("axes fraction", "data"),
                      xytext=(0, 3 if above else -3), textcoords="offset points",
                      va="bottom" if above else "top", color=GREY, fontsize=9)


def _dress(axes: Any, records: list[dict[str, Any]], marks: dict[str, float], title: str) -> None:
    finite = [r["bits_per_byte"] for r in records if math.isfinite(r["bits_per_byte"])]
    held = [r["held_out_bits_per_byte"] for r in records if "held_out_bits_per_byte" in r]
    low = min([*finite, *held, *marks.values()])
    axes.set_ylim(max(0.0, low - 0.4), max([*finite, *marks.values()]) + 0.2)
    axes.set_xlim(left=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("bits per byte")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(True, color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
