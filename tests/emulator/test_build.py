"""The cache, which processes and threads share, and the tools that are looked for."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from cuda.nn.emulator import build, cache, nvcc, toolchain
from cuda.nn.emulator.errors import EmulatorError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUDA_NN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_slowly(place: Path) -> None:
    """Leaves a trace of each time that it runs."""
    with open(place.parents[2] / "made", "a") as file:
        file.write(f"{os.getpid()}\n")
    (place / "first").write_text("1")
    time.sleep(0.2)
    (place / "second").write_text("2")


def ask(_: int = 0) -> str:
    place = cache.entry("things", "ab", make_slowly)
    return (place / "first").read_text() + (place / "second").read_text()


def test_an_entry_is_made_once_by_many_processes(folder: Path) -> None:
    folder.mkdir()
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(ask, range(8)) == ["12"] * 8
    assert len((folder / "made").read_text().split()) == 1


def test_an_entry_is_made_once_by_many_threads(folder: Path) -> None:
    folder.mkdir()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(ask())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["12"] * 4
    assert len((folder / "made").read_text().split()) == 1


def test_what_fails_leaves_nothing(folder: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half").write_text("")
        raise EmulatorError("no")

    with pytest.raises(EmulatorError, match="no"):
        cache.entry("things", "ab", fail)
    assert [path.name for path in (folder / "things").iterdir()] == []
    assert cache.entry("things", "ab", lambda place: None).is_dir()


def test_what_nobody_used_for_long_goes(folder: Path) -> None:
    old, new = (cache.entry("things", key, lambda place: None) for key in ("01", "02"))
    long_ago = time.time() - (cache.KEPT_DAYS + 1) * 86400
    os.utime(old, (long_ago, long_ago))
    cache.tidy("things")
    assert (old.exists(), new.exists()) == (False, True)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUDA_NN_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(EmulatorError, match="cannot be made.*CUDA_NN_CACHE"):
        cache.entry("things", "ab", lambda place: None)
    monkeypatch.setenv("CUDA_NN_CACHE", "/proc/self")          # nobody makes files there
    with pytest.raises(EmulatorError, match="cannot be made or written to.*CUDA_NN_CACHE"):
        cache.entry("things", "ab", lambda place: None)


def test_parts_of_a_key_do_not_run_together() -> None:
    assert cache.digest(["ab", "c"]) != cache.digest(["a", "bc"])


def test_the_key_of_a_source_changes_with_a_header_of_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text('#include "b.h"\n')
    (tmp_path / "b.h").write_text('  #  include "deep/c.h"\n')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.h").write_text("int x;\n")
    before = build._source_key(tmp_path / "a.cpp", ["-O1"])
    assert build._source_key(tmp_path / "a.cpp", ["-O1"]) == before
    assert build._source_key(tmp_path / "a.cpp", ["-O2"]) != before
    (tmp_path / "deep" / "c.h").write_text("int y;\n")
    build._contents.cache_clear()                 # a process reads each file once
    assert build._source_key(tmp_path / "a.cpp", ["-O1"]) != before


def test_a_string_where_a_list_is_meant_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text("")
    with pytest.raises(EmulatorError, match="include_dirs: '/x' is one string; give a list"):
        nvcc.compile_to_ptx(tmp_path / "a.cu", arch="sm_80", include_dirs="/x")


def test_defines() -> None:
    given: dict[str, nvcc.Define] = {
        "N": 64,
        "NAME": "x",
        "ON": True,
        "BARE": None,
        "OFF": False,
        "ZERO": 0,
        "HALF": 0.5,
    }
    assert nvcc.define_flags(given) == ["-DN=64", "-DNAME=x", "-DON", "-DBARE", "-DZERO=0", "-DHALF=0.5"]
    assert nvcc.define_flags(None) == []


def tool(folder: Path, name: str = "nvcc") -> Path:
    folder.mkdir(parents=True)
    (folder / name).write_text("#!/bin/sh\nexit 1\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_tools_are_found_in_the_order_that_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tool(tmp_path / "home" / "bin")
    path = tool(tmp_path / "path")
    package = tool(tmp_path / "site" / "nvidia" / "cu13" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr("sys.path", [str(tmp_path / "site")])
    assert toolchain.find("nvcc") == home
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert toolchain.find("nvcc") == path
    monkeypatch.setenv("PATH", str(tmp_path))
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        assert toolchain.find("nvcc") == package
    assert toolchain.find("no-such-tool") is None


def test_without_a_host_compiler_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EmulatorError, match=r"no C\+\+ compiler found.*apt install g\+\+"):
        toolchain.host_compiler()


def test_a_tool_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="--version failed with status 1"):
        toolchain.version(tool(tmp_path / "bin"))
