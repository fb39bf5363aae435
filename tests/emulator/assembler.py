"""ptxas as a check that a test's PTX is PTX: what it refuses, the tests must not rely on."""

import subprocess
import tempfile
from pathlib import Path

from cuda.nn.emulator import toolchain


def assert_ptxas_accepts(ptx: str, arch: str = "sm_90a") -> None:
    """Fails with ptxas's own message."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snippets.ptx"
        path.write_text(ptx, encoding="utf-8")
        command = [str(toolchain.ptxas()), f"-arch={arch}", "-O0", "-o", "/dev/null", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line]
    assert done.returncode == 0, "\n".join(errors[:10])
