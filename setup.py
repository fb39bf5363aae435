"""Entry point of the build.  Everything declarative is in pyproject.toml.  There is nothing to compile:
cuda-nn installs without a compiler or a CUDA toolkit.  The C++ sources of the emulator travel within the
package, where they are compiled at first use."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SOURCES = Path(__file__).parent / "csrc" / "emulator"
PLACE = Path("cuda", "nn", "emulator", "csrc")  # where cuda/nn/emulator/build.py looks


class BuildWithSources(build_py):
    """Copies csrc/emulator into the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(SOURCES, Path(self.build_lib) / PLACE, dirs_exist_ok=True)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        copies = [] if self.editable_mode else sorted(SOURCES.rglob("*.*"))
        return super().get_outputs(include_bytecode) + [
            str(Path(self.build_lib) / PLACE / path.relative_to(SOURCES)) for path in copies
        ]


setup(cmdclass={"build_py": BuildWithSources})
