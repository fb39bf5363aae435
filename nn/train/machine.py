"""What a run's manifest says about where it ran: versions, processor, threads, source revision.

    facts()["machine"]["cpu"]"""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NN_BACKEND", "NN_THREADS",
             "NN_NATIVE_LEVEL")
PACKAGES = ("cuda-nn", "numpy", "ml_dtypes", "safetensors", "tokenizers")


def facts() -> dict[str, Any]:
    """What may matter when a result is to be reproduced.  Nothing personal: no host or user name, and of the
    environment only the variables that choose threads and backend."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"date": now, "command": sys.argv, "versions": versions(), "machine": machine(),
            "git_commit": git_commit()}


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def machine() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return {"system": platform.platform(), "cpu": cpu_model(), "cores": os.cpu_count(),
            "usable_cores": usable, "environment": environment}


def cpu_model() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def git_commit() -> str | None:
    """The commit this package's source is at, "+changes" behind it if files differ; None outside a
    repository."""
    package = Path(__file__).resolve().parent.parent
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None or _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None                     # installed somewhere below another project's repository
    return commit + ("+changes" if _git(package, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *command: str) -> str | None:
    words = ["git", "-C", str(folder), *command]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str:
    from importlib import metadata
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
