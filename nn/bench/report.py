"""Rows of results: as JSON objects, and as a table.

Every row has name, library, dtype, threads, tokens_per_second or seconds (the median), low and high (the
least and the most of the samples, in the same unit), samples, disturbed (how many more were thrown away),
noisy (whether such had to be kept), peak_rss_mb, percent_of_ceiling, date and machine.  What is not known is
None.  A row of what failed has these, and error.  What was measured has more: ours the kernels that ran, and
what fell back on the reference; training and decoding whether the step was recorded, and not_recorded: why
not.

Where there is a ceiling, a row says which, has the rate of the work done and its unit, shares (of how many
samples percent_of_ceiling is the median), ceiling_rate (the median of the ceilings beside these) and
ceiling_range (the least and the most of these).  A ceiling that samples were compared with has a row: its
highest rate in the run, and the range of its readings."""

import os
import statistics
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nn.bench import ceilings
from nn.bench.ceilings import Ceilings
from nn.bench.models import DTYPES
from nn.bench.runs import Result
from nn.bench.task import READ
from nn.bench.timing import Sample
from nn.train.machine import cpu_model

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
OURS = "cuda-nn"
SHORT = {long: short for short, long in DTYPES.items()} | {READ: ""}      # float32 -> f32, as rows say
UNKNOWN = ("seconds", "low", "high", "samples", "disturbed", "noisy", "peak_rss_mb", "percent_of_ceiling")


def row(name: str, dtype: str, result: Result, threads: int) -> dict[str, Any]:
    """One result as a JSON object."""
    where = {"name": name, "library": result.contender, "dtype": dtype, "threads": threads}
    if result.error:
        return where | _failed(result.error) | _here()
    details, spread = result.details, (min(result.samples), max(result.samples))
    if tokens := details["tokens"]:
        speed = {"tokens_per_second": tokens / result.seconds, "low": tokens / spread[1],
                 "high": tokens / spread[0]}
    else:
        speed = {"seconds": result.seconds, "low": spread[0], "high": spread[1]}
    return (where | speed | {"samples": len(result.samples), "disturbed": result.disturbed,
                             "noisy": result.noisy, "peak_rss_mb": details["peak_rss_mb"]}
            | _limits(result) | details["facts"] | _here())


def _limits(result: Result) -> dict[str, Any]:
    """What of its ceiling was reached, and what that was meanwhile"""
    if result.share is None:
        return {"percent_of_ceiling": None}
    known = [rate for rate in result.ceilings if rate]
    return {"percent_of_ceiling": 100 * result.share, "rate": result.details["work"] / result.seconds,
            "shares": len(known), "ceiling_rate": statistics.median(known),
            "ceiling_range": [min(known), max(known)]} | _named(result.details["ceiling"])


def _named(kind: str) -> dict[str, str]:
    """Of nn/bench/ceilings.py, for a person"""
    return {"ceiling": READ, "unit": "B/s"} if kind == READ else {"ceiling": f"{kind} multiply-adds",
                                                                  "unit": "FLOP/s"}


def _failed(error: str) -> dict[str, Any]:
    return dict.fromkeys(UNKNOWN) | {"error": error}


def ceiling_rows(limits: Ceilings, threads: int) -> list[dict[str, Any]]:
    """What each ceiling was in this run; if it could not be measured any more, why."""
    where = {"library": ceilings.NAME, "threads": threads}
    made = [where | {"name": limits.how[kind], "dtype": SHORT.get(kind, kind)}
            | _reached(limits, kind, readings) | _named(kind) | _here()
            for kind, readings in limits.seen.items() if readings]
    if error := limits.worker.error:
        made.append(where | {"name": "ceilings", "dtype": ""} | _failed(error) | _here())
    return made


def _reached(limits: Ceilings, kind: str, readings: Sequence[Sample]) -> dict[str, Any]:
    """By the quiet readings; by all where none was.  `seconds`: of the loop once, at the highest rate"""
    quiet = [each.seconds for each in readings if not each.disturbed]
    seconds = quiet or [each.seconds for each in readings]
    low, high, work = min(seconds), max(seconds), limits.work[kind]
    return {"seconds": low, "low": low, "high": high, "samples": len(seconds),
            "disturbed": len(readings) - len(seconds), "noisy": not quiet, "peak_rss_mb": limits.peak_rss_mb,
            "percent_of_ceiling": None, "rate": work / low, "ceiling_range": [work / high, work / low]}


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

HEAD = ("", "library", "dtype", "speed", "fastest to slowest", "of ceiling", "of highest",
        "of the best other", "peak MB")
LEGEND = """
of ceiling  reading memory (B/s) or multiply-adds in registers (FLOP/s) took turns with the samples: each
            sample is a share of the mean of the readings before and after it; the median share, of the
            median of these means
of highest  the median speed beside the highest reading of the whole run"""


def table_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One line per row; ours beside the best of the others with the same name and dtype."""
    highest = {each["ceiling"]: each["rate"] for each in rows if _is_ceiling(each)}
    return [HEAD, *(_cells(each, highest, _best_other(each, rows)) for each in rows)]


def _is_ceiling(row: dict[str, Any]) -> bool:
    return row["library"] == ceilings.NAME and "error" not in row


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


def _cells(row: dict[str, Any], highest: dict[str, float], ratio: float | None) -> tuple[str, ...]:
    first = (row["name"], row["library"], row["dtype"])
    if "error" in row:
        return (*first, f"not measured: {row['error'][:60]}", *[""] * 5)
    peak = "" if row["peak_rss_mb"] is None else f"{row['peak_rss_mb']:,.0f}"
    if _is_ceiling(row):
        low, high = row["ceiling_range"]
        spread = f"{_short(high / 1e9)} - {_short(low / 1e9)}" + _noisy(row)
        return (*first, _rate(high, row["unit"]), spread, *[""] * 3, peak)
    per_second = "tokens_per_second" in row
    factor, unit = (1.0, "tokens/s") if per_second else (1e3, "ms")
    value, *ends = (row[key] * factor for key in ("tokens_per_second" if per_second else "seconds",
                                                  *(("high", "low") if per_second else ("low", "high"))))
    return (*first, f"{_short(value)} {unit}", " - ".join(map(_short, ends)) + _noisy(row),
            *_shares(row, highest), "" if ratio is None else f"{ratio:.2f} x", peak)


def _noisy(row: dict[str, Any]) -> str:
    return " (noisy)" if row["noisy"] else ""


def _shares(row: dict[str, Any], highest: dict[str, float]) -> tuple[str, str]:
    if row["percent_of_ceiling"] is None:
        return "", ""
    return (f"{row['percent_of_ceiling']:.0f} % of {_rate(row['ceiling_rate'], row['unit'])}",
            f"{100 * row['rate'] / highest[row['ceiling']]:.0f} %")


def _rate(value: float, unit: str) -> str:
    return f"{_short(value / 1e9)} G{unit}"


def _short(value: float) -> str:
    """Three digits"""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
