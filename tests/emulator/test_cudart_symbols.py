"""Every function of the runtime's interface is there, under the version that nvcc-built programs ask for."""

import re
import shutil
import subprocess

import pytest

from cuda.nn.emulator import build, toolchain

DECLARATION = re.compile(r"CUDARTAPI\s+(cuda\w+)\s*\(")


@pytest.fixture(scope="module")
def exported() -> dict[str, str]:
    """Function -> version node."""
    if not shutil.which("readelf"):
        pytest.skip("readelf is not installed")
    library = build.runtime_library()
    command = ["readelf", "-W", "--dyn-syms", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in text.splitlines())
    named = (row[7] for row in rows if len(row) >= 8 and row[3] == "FUNC" and row[6] != "UND")
    return {name: version for name, _, version in (entry.partition("@@") for entry in named)}


def test_every_declared_function_is_there(exported: dict[str, str]) -> None:
    header = (toolchain.cuda_include() / "cuda_runtime_api.h").read_text(encoding="utf-8", errors="replace")
    declared = set(DECLARATION.findall(header))
    assert len(declared) > 250
    assert sorted(declared - set(exported)) == []


BEHIND_THE_SCENES = (
    "__cudaRegisterFatBinary", "__cudaRegisterFatBinaryEnd", "__cudaUnregisterFatBinary",
    "__cudaRegisterFunction", "__cudaRegisterVar", "__cudaRegisterManagedVar", "__cudaInitModule",
    "__cudaPushCallConfiguration", "__cudaPopCallConfiguration", "__cudaGetKernel", "__cudaLaunchKernel",
    "__cudaLaunchKernel_ptsz", "cudaMemcpyAsync_ptsz", "cudaMemcpy_ptds", "cudaProfilerStart",
)


def test_what_host_code_calls_behind_the_scenes(exported: dict[str, str]) -> None:
    versions = {name: exported.get(name) for name in BEHIND_THE_SCENES}
    assert versions == dict.fromkeys(BEHIND_THE_SCENES, "libcudart.so.13")
