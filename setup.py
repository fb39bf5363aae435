"""Entry point of the build.  Everything declarative is in pyproject.toml.

cuda-nn installs without a compiler or a CUDA toolkit.  The native CPU kernels (csrc/native) are compiled
where a C++20 compiler is found; where none is, the reference serves, and `cuda-nn info` says so.
CUDA_NN_BUILD_NATIVE=1 makes it an error when they cannot be built, =0 leaves them out.

The other C++ and the CUDA sources travel within the package, and what needs them is compiled at first use.
With

    CUDA_NN_BUILD_CUDA=1 pip install .

the kernel library is compiled now and put into the package, which then fits this kind of machine only.  It
takes nvcc and some minutes; ninja comes by itself.  (A variable, because pip hands no commands to setup.py.)
CUDA_PATH="" leaves the library for GPUs out whatever else is said."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
COPIED = {                              # from csrc, to where the package looks
    "emulator": Path("cuda", "nn", "emulator", "csrc"),             # cuda/nn/emulator/build.py
    **{name: Path("cuda", "nn", "csrc", name) for name in ("include", "device", "library", "kernels")},
}
LIBRARIES = Path("cuda", "nn", "lib")                               # cuda/nn/build.py
WITH_CUDA = os.environ.get("CUDA_NN_BUILD_CUDA", "0") not in ("", "0") and os.environ.get("CUDA_PATH") != ""


def native_build() -> ModuleType:
    """csrc/native/build.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("native_build", ROOT / "csrc" / "native" / "build.py")
    if spec is None or spec.loader is None:
        raise SystemExit("csrc/native/build.py is missing: these are not the whole sources")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module                 # dataclasses look there
    spec.loader.exec_module(module)
    return module


def native_wanted() -> bool:
    if NATIVE == "0":
        return False
    build = native_build()
    try:
        build.compiler()
        build.python_includes()
        build.ninja()
    except build.BuildError as reason:
        if NATIVE == "1":
            raise SystemExit(f"CUDA_NN_BUILD_NATIVE=1: {reason}") from None
        print(f"cuda-nn: without native CPU kernels, the reference serves: {reason}", file=sys.stderr)
        return False
    return True


MODULE = "nn.backends.native.nn_native"
NATIVE = os.environ.get("CUDA_NN_BUILD_NATIVE", "")
WITH_NATIVE = native_wanted()


class BuildNative(build_ext):
    """The native kernels through their own build, for its place: the wheel's, or the checkout's."""

    def build_extension(self, ext: Extension) -> None:
        build = native_build()
        output = Path(self.get_ext_fullpath(ext.name)).absolute()
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            build.build(build.Options(build.default_folder(), output), quiet=True)
        except build.BuildError as reason:
            if NATIVE == "1":
                raise
            print(f"cuda-nn: without native CPU kernels, the reference serves: {reason}", file=sys.stderr)


class BuildWithSources(build_py):
    """Copies csrc into the package, and compiles it if that is asked for."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, copy in copies(Path(self.build_lib)):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy)
        if WITH_CUDA:
            libraries = build_libraries()
            if not self.editable_mode:
                place = Path(self.build_lib) / LIBRARIES
                place.mkdir(parents=True, exist_ok=True)
                for library in libraries:
                    shutil.copy2(library, place)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        made = [] if self.editable_mode else [str(copy) for _, copy in copies(Path(self.build_lib))]
        libraries = [] if self.editable_mode else sorted((Path(self.build_lib) / LIBRARIES).glob("*.so"))
        return [*super().get_outputs(include_bytecode), *made, *map(str, libraries)]


class WheelForOneKindOfMachine(bdist_wheel):
    """A wheel with a CUDA library fits any Python, but not any machine; with native kernels, one Python."""

    def get_tag(self) -> tuple[str, str, str]:
        any_python = WITH_CUDA and not WITH_NATIVE
        return ("py3", "none", super().get_tag()[2]) if any_python else super().get_tag()


class Project(Distribution):
    def has_ext_modules(self) -> bool:
        return WITH_CUDA or super().has_ext_modules()


def copies(place: Path) -> list[tuple[Path, Path]]:
    """Every source file, and where it goes."""
    return [
        (source, place / to / source.relative_to(ROOT / "csrc" / name))
        for name, to in COPIED.items()
        for source in sorted((ROOT / "csrc" / name).rglob("*.*"))
        if source.is_file()
    ]


def build_libraries() -> list[Path]:
    sys.path.insert(0, str(ROOT))
    from cuda.nn import build

    folder = build.build(build.Options(ROOT / "build" / "cuda"), progress=True)
    return [folder / build.LIBRARY, folder / build.EMULATED]


setup(
    distclass=Project,
    cmdclass={"build_py": BuildWithSources, "build_ext": BuildNative,
              "bdist_wheel": WheelForOneKindOfMachine},
    ext_modules=[Extension(MODULE, [], optional=NATIVE != "1")] if WITH_NATIVE else [],
    setup_requires=["ninja"] if WITH_CUDA else [],
)
