"""Rows of results: as JSON objects, and as a table.

A row has name, library, dtype, threads, tokens_per_second or seconds, low and high (the fastest and the
slowest sample, in the same unit), samples, disturbed, peak_rss_mb, percent_of_ceiling and which ceiling, date
and machine; ours also the kernels that ran, and what fell back on the reference; those of training and
decoding whether the step was recorded, and not_recorded: why not."""

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nn.bench.ceilings import Ceilings
from nn.bench.runs import Result
from nn.train.machine import cpu_model

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
OURS = "cuda-nn"


def row(name: str, dtype: str, result: Result, limits: Ceilings) -> dict[str, Any]:
    """One result as a JSON object."""
    where = {"name": name, "library": result.contender, "dtype": dtype, "threads": limits.threads}
    if result.error:
        return where | {"error": result.error} | _here()
    details = dict(result.details)
    tokens, flops, size = (details.pop(key) for key in ("tokens", "flops", "bytes"))
    ceiling, least = limits.seconds(flops, size, details.pop("dtype"))
    spread = (min(result.samples), max(result.samples))
    if tokens:
        speed = {"tokens_per_second": tokens / result.seconds, "low": tokens / spread[1],
                 "high": tokens / spread[0]}
    else:
        speed = {"seconds": result.seconds, "low": spread[0], "high": spread[1]}
    percent = {"percent_of_ceiling": 100 * least / result.seconds, "ceiling": ceiling} if least else {}
    return (where | speed | {"samples": len(result.samples), "disturbed": result.disturbed,
                             "noisy": result.noisy, "peak_rss_mb": details.pop("peak_rss_mb")}
            | percent | details.pop("facts") | _here())


def ceiling_row(found: dict[str, Any], limits: Ceilings) -> dict[str, Any]:
    """One ceiling as a JSON object."""
    return {"name": found["name"], "library": "ceiling", "dtype": found["dtype"], "threads": limits.threads,
            "rate": found["rate"], "unit": found["unit"]} | _here()


def _here() -> dict[str, Any]:
    return {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"), "machine": machine()}


def machine() -> str:
    """Processor, cores, caches, and which instructions it has of those that matter here."""
    parts = [cpu_model(), f"{os.cpu_count()} cores", *_caches()]
    if flags := _flags():
        parts.append(" ".join(flags))
    return ", ".join(parts)


def _caches() -> list[str]:
    """Largest sizes by level, as Linux gives them"""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            found[(index / "level").read_text().strip()] = (index / "size").read_text().strip()
    return [f"L{level} {size}" for level, size in found.items()]


def _flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [flag for flag in FLAGS if flag in words]


# ---- the table ----

HEAD = ("", "library", "dtype", "speed", "fastest to slowest", "of ceiling", "of the best other", "peak MB")


def table_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One line per row; ours beside the best of the others with the same name and dtype."""
    return [HEAD, *(_cells(each, _best_other(each, rows)) for each in rows)]


def _best_other(own: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    """How many times as fast this is, if it is ours, as the fastest other library"""
    if own["library"] != OURS or "error" in own:
        return None
    alike = [each for each in rows if (each["name"], each["dtype"]) == (own["name"], own["dtype"])
             and each["library"] != OURS and "error" not in each]
    ratios = [_speed(own) / _speed(each) for each in alike]
    return min(ratios, default=None)


def _speed(row: dict[str, Any]) -> float:
    return float(row["tokens_per_second"]) if "tokens_per_second" in row else 1.0 / row["seconds"]


def _cells(row: dict[str, Any], ratio: float | None) -> tuple[str, ...]:
    first = (row["name"], row["library"], row["dtype"])
    if "error" in row:
        return (*first, f"not measured: {row['error'][:60]}", "", "", "", "")
    if "rate" in row:
        return (*first, f"{row['rate'] / 1e9:,.0f} G{row['unit']}", "", "", "", "")
    per_second = "tokens_per_second" in row
    factor, unit = (1.0, "tokens/s") if per_second else (1e3, "ms")
    value, *ends = (row[key] * factor for key in ("tokens_per_second" if per_second else "seconds",
                                                  *(("high", "low") if per_second else ("low", "high"))))
    note = " (noisy)" if row["noisy"] else ""
    percent = f"{row['percent_of_ceiling']:.0f} % {row['ceiling']}" if "ceiling" in row else ""
    return (*first, f"{_short(value)} {unit}", " - ".join(map(_short, ends)) + note, percent,
            "" if ratio is None else f"{ratio:.2f} x", f"{row['peak_rss_mb']:,.0f}")


def _short(value: float) -> str:
    """Three digits"""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
