"""Fat binaries as nvcc writes them, whole and damaged; the choice of PTX; what an ELF file says of how it was
built."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from cuda.nn.emulator import build, elf, fatbin, toolchain
from cuda.nn.emulator.errors import EmulatorError

SOURCE = Path(__file__).parent / "programs" / "stencil.cu"


def nvcc(*words: object) -> None:
    subprocess.run([str(word) for word in (toolchain.nvcc(), *words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One file's fat binary by --compress-mode."""
    folder = tmp_path_factory.mktemp("fatbin")
    code = [
        "-gencode=arch=compute_75,code=[sm_75,compute_75]",
        "-gencode=arch=compute_86,code=[sm_86,compute_86]",
    ]
    images = {}
    for mode in ("default", "speed", "none"):
        nvcc("-fatbin", *code, f"--compress-mode={mode}", SOURCE, "-o", folder / mode)
        images[mode] = (folder / mode).read_bytes()
    return images


@pytest.mark.parametrize(
    ("mode", "compression"), [("default", fatbin.ZSTD), ("speed", fatbin.LZ4), ("none", 0)]
)
def test_every_compression_gives_the_same_ptx(container: dict, mode: str, compression: int) -> None:
    images = fatbin.entries(container[mode])
    assert sorted((one.kind, one.arch) for one in images) == [(1, 75), (1, 86), (2, 75), (2, 86)]
    assert {one.compression for one in images if one.kind == fatbin.PTX} == {compression}
    plain = fatbin.choose(fatbin.entries(container["none"]), "sm_86")
    assert ".entry _Z7stencil" in plain
    assert fatbin.choose(images, "sm_86") == plain


@pytest.mark.parametrize(
    ("arch", "chosen"), [("sm_75", 75), ("sm_80", 75), ("sm_86", 86), ("sm_90", 86), ("sm_90a", 86)]
)
def test_the_newest_ptx_that_the_device_runs_is_chosen(container: dict, arch: str, chosen: int) -> None:
    assert f".target sm_{chosen}\n" in fatbin.choose(fatbin.entries(container["default"]), arch)


def ptx(target: str) -> fatbin.Entry:
    text = f".version 9.0\n.target {target}\n.address_size 64\n".encode()
    return fatbin.Entry(fatbin.PTX, int(target[3:5]), text, 0, 0)


def test_ptx_of_one_architecture_alone_runs_there_alone() -> None:
    assert ".target sm_90a" in fatbin.choose([ptx("sm_90"), ptx("sm_90a"), ptx("sm_80")], "sm_90")
    with pytest.raises(fatbin.NoPtxError):
        fatbin.choose([ptx("sm_80a")], "sm_90")


def test_without_ptx_the_message_says_how_to_build_it_in() -> None:
    with pytest.raises(
        fatbin.NoPtxError, match=r"PTX is for sm_90 and newer, and sm_80 was asked for; take --arch sm_90, or"
    ):
        fatbin.choose([ptx("sm_90")], "sm_80")
    with pytest.raises(
        fatbin.NoPtxError,
        match=r"machine code for sm_80 but no PTX.*-gencode=arch=compute_80,code=compute_80",
    ):
        fatbin.choose([fatbin.Entry(fatbin.ELF, 80, b"", 0, 0)], "sm_80")


def test_damaged_containers_are_refused(container: dict) -> None:
    data = container["default"]
    for damaged in (b"", b"\0" * 64, b"not a fat binary at all", data[:20], data[:200], data[:-40]):
        with pytest.raises(EmulatorError, match="fat binary"):
            fatbin.entries(damaged)


@pytest.mark.parametrize("mode", ["default", "speed"])
def test_damaged_compression_is_refused(container: dict, mode: str) -> None:
    image = next(one for one in fatbin.entries(container[mode]) if one.kind == fatbin.PTX)
    for payload in (image.payload[:40], b"\x0f" * 60):
        with pytest.raises(EmulatorError, match="fat binary"):
            fatbin.Entry(image.kind, image.arch, payload, image.compression, image.size).text()


def test_lz4_copies_that_overlap_their_source_repeat_it() -> None:
    # 1 literal 'a'; copy of 4+15+1 = 20 from 1 back; 5 literals, as a block must end
    assert fatbin.unpack_lz4(bytes([0x1F, ord("a"), 1, 0, 1, 0x50]) + b"hello", 26) == b"a" * 21 + b"hello"


def test_zstd_without_the_package_uses_the_system_s_library(
    container: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = next(one for one in fatbin.entries(container["default"]) if one.kind == fatbin.PTX)
    expected = image.text()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    try:
        ctypes.CDLL("libzstd.so.1")
    except OSError:
        with pytest.raises(EmulatorError, match=r"pip install 'cuda-nn\[emulator\]'"):
            image.text()
    else:
        assert image.text() == expected


def test_the_command_prints_the_module(
    container: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "image").write_bytes(container["default"])
    assert build.main(["--fatbin", str(tmp_path / "image"), "--arch", "sm_80", "--mode", "fast"]) == 0
    assert Path(capsys.readouterr().out.strip()).name == "module.so"
    (tmp_path / "image").write_bytes(b"nothing")
    assert build.main(["--fatbin", str(tmp_path / "image")]) == 2
    assert "fat binary" in capsys.readouterr().err


def test_an_elf_file_says_how_it_was_built(tmp_path: Path) -> None:
    source = tmp_path / "program.cu"
    source.write_text(
        "__global__ void k() {}\nint main() { k<<<1, 1>>>(); return cudaDeviceSynchronize(); }\n"
    )
    for linked in ("shared", "static"):
        nvcc("-cudart", linked, source, "-o", tmp_path / linked)
        found = elf.read(tmp_path / linked)
        assert found is not None
        assert found.has_cuda
        assert found.cuda_runtime == ("libcudart.so.13" if linked == "shared" else None)
    assert elf.read(source) is None
    (tmp_path / "cut").write_bytes((tmp_path / "shared").read_bytes()[:1000])
    assert elf.read(tmp_path / "cut") is None
