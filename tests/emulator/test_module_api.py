"""emulator.compile and Module: how kernels are named, what arguments may be, what is kept between launches,
what is refused."""

import ctypes
import gc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from cuda.nn import emulator
from cuda.nn.emulator import EmulatorError, LaunchError, Module

SOURCE = Path(__file__).parent / "interface.cu"


@pytest.fixture(scope="module")
def compiled() -> Module:
    return emulator.compile(SOURCE, mode="check")


@pytest.fixture
def module(compiled: Module) -> Module:
    compiled.clear()
    return compiled


def numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32)


# ---- compiling ---------------------------------------------------------------------------------------------


def test_defines_reach_the_source() -> None:
    out = np.zeros(8, np.float32)
    scaled = emulator.compile(SOURCE, defines={"SCALE": 5, "UNUSED": None}, mode="fast")
    scaled.launch("scale", 1, 8, [out, numbers(8), np.int32(8)])
    assert out.tolist() == (5 * numbers(8)).tolist()


def test_nvcc_s_own_lines_are_passed_on(tmp_path: Path) -> None:
    broken = tmp_path / "broken.cu"
    broken.write_text("__global__ void k(float* x) { x[0] = undeclared; }\n")
    with pytest.raises(EmulatorError, match=r'broken.cu\(1\): error: identifier "undeclared" is undefined'):
        emulator.compile(broken)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "missing.cu"}, "missing.cu: no such file"),
        ({"source": "."}, "a folder; give one .cu file"),
        ({"mode": "quick"}, "mode: 'quick' is not one of fast, check, count"),
        ({"arch": "sm_70"}, "'sm_70' is not a device that can be emulated"),
    ],
    ids=str,
)
def test_bad_input_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        emulator.compile(**({"source": SOURCE} | arguments))


def test_without_nvcc_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuda.nn.emulator.toolchain.find", lambda tool: None)
    with pytest.raises(EmulatorError, match=r"nvcc not found.*pip install 'cuda-nn\[toolchain\]'"):
        emulator.compile(SOURCE)


def test_broken_ptx_is_refused() -> None:
    with pytest.raises(EmulatorError):
        emulator.compile_ptx(
            ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k( { what }", mode="fast"
        )


def test_an_unknown_instruction_is_refused_by_name_and_line(tmp_path: Path) -> None:
    odd = tmp_path / "odd.cu"
    fetch = "{ .reg .f32 a; tex.1d.v4.f32.s32 {a, a, a, a}, [%0, {0}]; }"
    odd.write_text(f'__global__ void k(long x) {{\n  asm volatile("{fetch}" :: "l"(x));\n}}\n')
    with pytest.raises(EmulatorError, match=r"odd.cu:2.*tex"):
        emulator.compile(odd)


def test_a_ptx_text_compiles_for_its_own_target() -> None:
    again = emulator.compile_ptx(emulator.compile(SOURCE, arch="sm_86", mode="fast").ptx, mode="fast")
    out = np.zeros(4, np.float32)
    again.launch("scale", 1, 4, [out, numbers(4), np.int32(4)])
    assert again.arch == "sm_86"
    assert out.tolist() == [0, 2, 4, 6]


def test_ptx_is_kept_until_a_header_changes(tmp_path: Path) -> None:
    (tmp_path / "value.h").write_text("constexpr int VALUE = 1;\n")
    (tmp_path / "k.cu").write_text('#include "value.h"\n__global__ void k(int* x) { *x = VALUE; }\n')
    for value in (1, 2):
        (tmp_path / "value.h").write_text(f"constexpr int VALUE = {value};\n")
        out = np.zeros(1, np.int32)
        emulator.compile(tmp_path / "k.cu", mode="fast").launch("k", 1, 1, [out])
        assert out[0] == value


# ---- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["fill<3, int>", "fill<3,int>", "void fill<3, int>(int*)", "_Z4fillILi3EiEvPT0_"]
)
def test_a_kernel_goes_by_several_names(module: Module, name: str) -> None:
    out = np.zeros(4, np.int32)
    module.launch(name, 1, 4, [out])
    assert out.tolist() == [3, 3, 3, 0]


def test_a_name_that_fits_several_kernels_lists_them(module: Module) -> None:
    with pytest.raises(
        EmulatorError, match="'fill' could be any of: fill<2, float>, fill<3, float>, fill<3, int>"
    ):
        module.launch("fill")
    with pytest.raises(EmulatorError, match="'twin' could be any of: first::twin, second::twin"):
        module.launch("twin")
    out = np.zeros(1, np.int32)
    module.launch("second::twin", args=[out])
    assert out[0] == 2


def test_an_unknown_name_suggests_the_nearest(module: Module) -> None:
    with pytest.raises(EmulatorError, match="kernel 'scael' is not in it; did you mean 'scale'"):
        module.launch("scael")


# ---- arguments ---------------------------------------------------------------------------------------------


def test_arrays_of_any_layout_are_copied_in_and_back(module: Module) -> None:
    wide = np.zeros((4, 10), np.float32)
    every_third = wide[:, ::3]  # [4,4], not contiguous
    transposed = np.arange(16, dtype=np.float32).reshape(4, 4).T
    module.launch("scale", 1, 16, [every_third, transposed, np.int32(16)])
    np.testing.assert_array_equal(every_third, 2 * transposed)
    assert not wide[:, 1].any()


def test_a_read_only_array_is_not_written_back(module: Module) -> None:
    out = numbers(4)
    out.flags.writeable = False
    module.launch("scale", 1, 4, [out, numbers(4) + 1, np.int32(4)])
    assert out.tolist() == [0, 1, 2, 3]


def test_one_array_given_twice_is_one_piece_of_memory(module: Module) -> None:
    x = numbers(8)
    module.launch("scale", 1, 8, [x, x, np.int32(8)])
    assert x.tolist() == (2 * numbers(8)).tolist()


def test_arrays_that_overlap_are_refused(module: Module) -> None:
    x = numbers(16)
    with pytest.raises(EmulatorError, match="arguments 0 and 1 of scale overlap"):
        module.launch("scale", 1, 8, [x[4:12], x[:8], np.int32(8)])
    module.launch("scale", 1, 8, [x[::2], x[1::2], np.int32(8)])  # interleaved, but no element is shared
    assert x[::2].tolist() == (2 * numbers(16)[1::2]).tolist()


def test_an_empty_array_is_a_null_pointer(module: Module) -> None:
    module.launch("scale", 1, 1, [np.zeros(0, np.float32), np.zeros((0, 3), np.float32), np.int32(0)])
    assert module.reports == []


class Pair(ctypes.Structure):
    _fields_ = (("factor", ctypes.c_float), ("offset", ctypes.c_int))


PAIR = np.dtype([("factor", np.float32), ("offset", np.int32)])


@pytest.mark.parametrize(
    "pair",
    [np.array((0.5, 10), PAIR)[()], Pair(0.5, 10), bytes(Pair(0.5, 10))],
    ids=["numpy", "ctypes", "bytes"],
)
def test_scalars_and_structures_go_by_value(module: Module, pair: object) -> None:
    out = np.zeros(4, np.float32)
    module.launch("affine", 1, 4, [out, pair, np.uint8(1), np.float64(0.25), np.int64(-1)])
    assert out.tolist() == [10.25, 10.75, 11.25, 11.75]


def test_number_types_beyond_numpy_s_are_bytes_like_any(tmp_path: Path) -> None:
    source = tmp_path / "half.cu"
    source.write_text(
        "#include <cuda_bf16.h>\n__global__ void k(__nv_bfloat16* y, __nv_bfloat16 a) "
        "{ y[threadIdx.x] = y[threadIdx.x] * a; }\n"
    )
    y = np.arange(4).astype(ml_dtypes.bfloat16)
    emulator.compile(source, mode="fast").launch("k", 1, 4, [y, ml_dtypes.bfloat16(3)])
    assert y.astype(np.float32).tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("kernel", "args", "message"),
    [
        ("scale", [1], "scale takes 3 arguments, 1 were given"),
        (
            "scale",
            [np.zeros(1), np.zeros(1), 7],
            r"argument 2 of scale: a Python int has no size; write np.int32\(7\)",
        ),
        (
            "affine",
            [np.zeros(1), bytes(8), np.uint8(0), 0.5, np.int64(0)],
            r"argument 3 of affine: a Python float .* np.float64\(0.5\)",
        ),
        (
            "scale",
            [np.zeros(1), np.zeros(1), np.int64(7)],
            "argument 2 of scale: int64 has 8 bytes, the kernel takes 4",
        ),
        (
            "scale",
            [np.zeros(1), np.zeros(1), np.zeros(1)],
            "argument 2 of scale: an array is passed by pointer",
        ),
        (
            "affine",
            [np.zeros(1), np.int32(1), np.uint8(0), np.float64(0), np.int64(0)],
            "argument 1 of affine: int32 has 4 bytes, the kernel takes 8",
        ),
        (
            "scale",
            [np.array(["a"], object), np.zeros(1), np.int32(1)],
            "argument 0 of scale: an array of object",
        ),
        ("scale", [np.zeros(1, ">f4"), np.zeros(1), np.int32(1)], "argument 0 of scale: an array of >f4"),
        ("scale", ["text", np.zeros(1), np.int32(1)], "argument 0 of scale: str cannot be passed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(module: Module, kernel: str, args: list, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        module.launch(kernel, 1, 1, args)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"grid": (1, 2, 3, 4)}, "grid: .* is not a size"),
        ({"block": 1.5}, "block: 1.5 is not a size"),
        ({"block": -1}, "block: -1 is not a size"),
        ({"schedule": "sideways"}, "schedule: 'sideways' is not one of forward, reverse, random"),
        ({"seed": -1}, "seed: -1 is not a number from 0"),
        ({"shared_bytes": "many"}, "shared_bytes: 'many' is not a number from 0"),
        ({"cp_async": "never"}, "cp_async: 'never' is neither lazy nor eager"),
    ],
    ids=str,
)
def test_a_launch_that_makes_no_sense_is_refused(module: Module, how: dict, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        module.launch("scale", args=[numbers(1), numbers(1), np.int32(1)], **how)


# ---- running -----------------------------------------------------------------------------------------------


def test_grid_and_block_may_be_numbers_tuples_or_numpy_s(module: Module) -> None:
    for grid, block in ((2, 4), ((2,), (4, 1)), (np.int64(2), np.array([2, 2])), ((1, 2), (2, 1, 2))):
        out, following = np.full(8, -1, np.int32), np.zeros(1, np.int32)
        module.launch("order", grid, block, [out, following])
        assert following[0] == 8
        assert (out >= 0).all()


def test_a_schedule_changes_the_order_and_a_seed_repeats_it(module: Module) -> None:
    def ran(**how: object) -> list[int]:
        out, following = np.zeros(64, np.int32), np.zeros(1, np.int32)
        module.launch("order", 2, 32, [out, following], **how)
        return out.tolist()

    assert ran(schedule="forward") != ran(schedule="reverse")
    assert ran(schedule="random", seed=7) == ran(schedule="random", seed=7) != ran(schedule="random", seed=8)
    module.schedule = "reverse"
    try:
        assert ran() == ran(schedule="reverse")
    finally:
        module.schedule = "forward"


def test_dynamic_shared_memory(module: Module) -> None:
    out = np.zeros(32, np.int32)
    module.launch("dynamic", 1, 32, [out], shared_bytes=128)
    assert out.tolist() == list(range(31, -1, -1))
    assert module.reports == []
    module.launch("dynamic", 1, 32, [out], shared_bytes=64)
    assert {report.kind for report in module.reports} == {"out_of_bounds"}


def test_a_device_variable_is_set_and_read(module: Module) -> None:
    module.variable("bias", np.float32).copy_from(numbers(4))
    out = np.ones(4, np.float32)
    module.launch("add_bias", 1, 4, [out])
    assert out.tolist() == [1, 2, 3, 4]
    assert module.variable("bias", np.float32).numpy().tolist() == [0, 1, 2, 3]
    with pytest.raises(EmulatorError, match="variable 'bais' is not in the module"):
        module.variable("bais")


# ---- device memory that stays ------------------------------------------------------------------------------


def test_buffers_stay_on_the_device(module: Module) -> None:
    x, y = module.array(numbers(8)), module.empty(8)
    module.launch("scale", 1, 8, [y, x, np.int32(8)])
    module.launch("scale", 1, 8, [x, y, np.int32(8)])
    assert x.numpy().tolist() == (4 * numbers(8)).tolist()
    assert x.fill(0).numpy().tolist() == [0] * 8
    with pytest.raises(EmulatorError, match="does not fit a buffer"):
        x.copy_from(np.zeros(3))


def test_reading_a_buffer_that_nobody_wrote_is_found(module: Module) -> None:
    out = np.zeros(8, np.float32)
    module.launch("scale", 1, 8, [out, module.empty(8), np.int32(8)])
    assert [report.kind for report in module.reports] == ["uninitialized"]


def test_using_a_buffer_after_free_is_found(module: Module) -> None:
    x = module.array(numbers(8))
    x.free()
    with pytest.raises(EmulatorError, match="was freed"):
        x.numpy()
    module.launch("scale", 1, 8, [np.zeros(8, np.float32), x, np.int32(8)])
    assert {report.kind for report in module.reports} == {"use_after_free"}


def test_device_memory_is_given_back() -> None:
    module = emulator.compile(SOURCE, mode="fast")
    library = module._library

    def live() -> int:
        return library.statistics()["live_bytes"]

    gc.collect()
    before = live()
    buffer = module.empty(1 << 20, np.uint8)
    module.launch("scale", 1, 1, [np.zeros(1 << 18, np.float32), numbers(1), np.int32(1)])
    assert live() >= before + (2 << 20)
    del buffer, module
    gc.collect()
    assert live() == before


# ---- findings ----------------------------------------------------------------------------------------------


def test_findings_do_not_raise_in_check_mode_and_clear_forgets_them(module: Module) -> None:
    for _ in range(2):
        module.launch("neighbour", 1, 64, [np.zeros(64, np.int32)])
    (report,) = module.reports
    lines = SOURCE.read_text().splitlines()
    assert (report.kind, report.kernel, Path(report.file).name) == ("race", "neighbour", "interface.cu")
    sides = {lines[line - 1].partition("//")[0].strip() for line in (report.line, report.other_line or 0)}
    assert sides == {"int next = words[(threadIdx.x + 1) % 64];", "words[threadIdx.x] = next;"}
    assert report.count >= 2
    assert report.fix
    module.clear()
    assert module.reports == []


def test_findings_belong_to_the_module_that_caused_them(module: Module) -> None:
    other = emulator.compile(SOURCE, mode="check", defines={"SCALE": 3})
    other.launch("neighbour", 1, 64, [np.zeros(64, np.int32)])
    module.launch("scale", 1, 8, [numbers(8), numbers(8), np.int32(8)])
    assert module.reports == []
    assert [report.kind for report in other.reports] == ["race"]


def test_a_fault_in_fast_mode_raises_and_the_next_launch_runs() -> None:
    fast = emulator.compile(SOURCE, mode="fast")
    with pytest.raises(LaunchError, match=r"scale stopped: illegal address") as caught:
        fast.launch("scale", 64, 1024, [numbers(8), numbers(8), np.int32(1 << 16)])
    assert caught.value.code == 700
    out = np.zeros(8, np.float32)
    fast.launch("scale", 1, 8, [out, numbers(8), np.int32(8)])
    assert out.tolist() == (2 * numbers(8)).tolist()


def test_a_kernel_that_never_ends_is_stopped(module: Module) -> None:
    module.launch("endless", 1, 1, [np.zeros(1, np.int32)], steps=10_000)
    assert [report.kind for report in module.reports] == ["step_budget"]


def test_a_gigantic_launch_is_refused(module: Module) -> None:
    module.launch("scale", (1 << 31) - 1 + 1, 8, [numbers(8), numbers(8), np.int32(8)])
    module.launch("scale", 1, 2048, [numbers(8), numbers(8), np.int32(8)])
    assert [report.kind for report in module.reports] == ["invalid_launch"] * 2
    with pytest.raises(EmulatorError, match="grid: .* is not a size"):
        module.launch("scale", 1 << 32)


# ---- counters ----------------------------------------------------------------------------------------------


def test_counters_add_up_and_name_lines() -> None:
    module = emulator.compile(SOURCE, mode="count")
    for _ in range(2):
        module.launch("scale", 1, 64, [numbers(64), numbers(64), np.int32(64)])
    counts = module.counters["scale"]
    assert (counts.launches, counts.threads, counts.bytes_read, counts.bytes_written) == (2, 128, 512, 512)
    assert (counts.sectors, counts.ideal_sectors) == (32, 32)
    assert counts.flops == {"f32": 128}
    line = SOURCE.read_text().splitlines().index("    if (i < n) out[i] = SCALE * x[i];") + 1
    assert counts.by_line[line].bytes_read == 512
    assert counts.barriers == 0
    with pytest.raises(KeyError, match="launched"):
        module.counters["affine"]
    module.clear()
    assert len(module.counters) == 0


def test_counters_need_their_mode(module: Module) -> None:
    with pytest.raises(EmulatorError, match='counters need mode="count"'):
        _ = module.counters
