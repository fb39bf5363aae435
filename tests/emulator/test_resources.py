"""ptxas's figures, occupancy against NVIDIA's own table and formula, the roofline's bound, and machine code."""

import re
from pathlib import Path

import pytest

from cuda.nn import emulator
from cuda.nn.emulator import EmulatorError, resources, roofline, sass
from cuda.nn.emulator.counters import KernelCounters
from cuda.nn.emulator.profiles import PROFILES, occupancy, profile_of

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc" / "emulator"


@pytest.fixture(scope="module")
def module() -> emulator.Module:
    return emulator.compile(HERE / "interface.cu", arch="sm_80", mode="fast")


def test_ptxas_s_figures(module: emulator.Module) -> None:
    found = module.resources("neighbour")
    assert (found.shared_bytes, found.spills, found.stack_bytes, found.barriers) == (256, 0, 0, 1)
    assert 4 <= found.registers <= 64
    assert module.resources("spread").threads == 128                    # __launch_bounds__
    assert module.resources("scale", block=96).threads == 96


def test_spills_are_told(tmp_path: Path) -> None:
    source = tmp_path / "spill.cu"
    sums = " ".join(f"float a{i} = x[{i} * n];" for i in range(80))
    uses = " + ".join(f"a{i} * a{(i * 7) % 80}" for i in range(80))
    source.write_text(f"__global__ void __maxnreg__(24) k(float* y, const float* x, int n) {{ {sums} __syncthreads(); *y = {uses}; }}\n")
    found = emulator.compile(source, mode="fast").resources("k")
    assert found.registers == 24
    assert found.spills > 0


def test_what_ptxas_says_is_read_whatever_is_left_out() -> None:
    said = ("ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function '_Z1kv' for 'sm_90'\n"
            "ptxas info    : Function properties for _Z1kv\n    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
            "ptxas info    : Used 255 registers, used 2 barriers, 16 bytes cumulative stack size, 49152 bytes smem\n")
    ptx = ".visible .entry _Z1kv()\n.maxntid 64, 2, 1\n.minnctapersm 1\n{\n}\n"
    (found,) = resources.parse(said, ptx).values()
    assert (found.registers, found.spills, found.stack_bytes, found.shared_bytes) == (255, 12, 16, 49152)
    assert (found.barriers, found.threads) == (2, 128)
    assert resources.parse("nothing of use") == {}


def test_ptxas_s_refusal_is_passed_on() -> None:
    with pytest.raises(EmulatorError, match="ptxas refuses it for sm_80"):
        resources.read_resources(".version 9.0\n.target sm_80\n.address_size 64\n.entry k() { nonsense; }\n", "sm_80")


# Worked out with the occupancy calculator of NVIDIA's profiler: arch, threads, registers, shared bytes -> blocks, what limits.
CASES = [
    ("sm_80", 256, 32, 0, 8, "threads"),
    ("sm_80", 256, 64, 0, 4, "registers"),
    ("sm_80", 256, 255, 0, 1, "registers"),
    ("sm_80", 32, 16, 0, 32, "blocks"),
    ("sm_80", 128, 32, 48 * 1024, 3, "shared memory"),          # 164 KiB / (48 + 1) KiB
    ("sm_80", 1024, 40, 0, 1, "registers"),
    ("sm_86", 256, 32, 0, 6, "threads"),
    ("sm_86", 1024, 32, 0, 1, "threads"),
    ("sm_89", 64, 32, 0, 24, "threads"),
    ("sm_90", 384, 168, 200 * 1024, 1, "registers"),
    ("sm_75", 128, 32, 32 * 1024, 2, "shared memory"),          # nothing reserved
    ("sm_75", 256, 32, 0, 4, "threads"),
]


@pytest.mark.parametrize(("arch", "threads", "registers", "shared", "blocks", "limit"), CASES)
def test_occupancy(arch: str, threads: int, registers: int, shared: int, blocks: int, limit: str) -> None:
    found = occupancy(PROFILES[arch], threads, registers, shared)
    assert (found.blocks, found.limit) == (blocks, limit)
    assert found.share == blocks * threads / PROFILES[arch].threads


def test_the_profiles_agree_with_the_runtime_s() -> None:
    text = (CSRC / "profiles.cpp").read_text()
    units = {"K": 1024, "": 1}
    found = {}
    for line in re.findall(r'^\s*\{("sm_\d+".*)\},?$', text, re.MULTILINE):
        words = [word.strip() for word in line.split(",")]
        size = [int(number) * units[unit] for number, unit in re.findall(r"(\d+) ?\*? ?(K?)$", words[7].strip())]
        reserved = 1024 if words[9] == "K" else 0
        found[words[0].strip('"')] = (int(words[5]), int(words[6]), size[0], reserved, int(words[10]))
    assert found == {p.name: (p.threads, p.blocks, p.shared_bytes, p.shared_reserved, p.shared_unit) for p in PROFILES.values()}


def test_suffixes_belong_to_their_profile() -> None:
    assert profile_of("sm_90a") is PROFILES["sm_90"]
    with pytest.raises(EmulatorError, match="known are sm_75"):
        profile_of("sm_100")


# ---- roofline ----------------------------------------------------------------------------------------------------------


def counted(**changes: object) -> KernelCounters:
    return KernelCounters(launches=2, distinct_bytes_read=3_000_000, distinct_bytes_written=1_078_000, **changes)     # type: ignore[arg-type]


def test_a_bound_is_the_larger_of_memory_and_work() -> None:
    gpu = roofline.gpu_of("A100")
    found = roofline.bound(counted(flops={"f32": 2_000_000}), gpu)
    assert found.limit == "memory"
    assert found.seconds == pytest.approx(4_078_000 / 2 / 2039e9)                     # 1.0 us a launch
    assert found.flops_per_byte == pytest.approx(2_000_000 / 4_078_000)
    assert str(found).startswith("on A100 at least 1 us, bound by memory: 2.04 MB at 2,039 GB/s; 1 MFLOP f32; 0.49 FLOP/byte")
    heavy = roofline.bound(counted(flops={"f32": 2 * 10**9, "tensor_bf16": 10**9}), gpu)
    assert (heavy.limit, heavy.seconds) == ("f32", pytest.approx(1e9 / 19.5e12))


def test_a_part_without_such_instructions_is_refused() -> None:
    with pytest.raises(EmulatorError, match="T4 has no tensor_bf16 instructions"):
        roofline.bound(counted(flops={"tensor_bf16": 1}), roofline.gpu_of("sm_75"))
    with pytest.raises(EmulatorError, match="GPU 'Voodoo' is not in the table"):
        roofline.gpu_of("Voodoo")


def test_every_profile_has_its_part() -> None:
    for arch, name in roofline.DEFAULTS.items():
        assert roofline.gpu_of(arch) is roofline.gpu_of(arch + "a") is roofline.GPUS[name]
        assert roofline.GPUS[name].arch == arch
    assert set(roofline.DEFAULTS) == set(PROFILES)


# ---- machine code --------------------------------------------------------------------------------------------------------

LISTING = """
\t\tFunction : _Z4gemmPf
\t.headerflags\t@"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;                   /* 0x00000a0000017a02 */
                                                                            /* 0x000fe40000000f00 */
        /*0010*/                   LDS.128 R4, [R2] ;                       /* 0x0000000002047984 */
                                                                            /* 0x000e280000000c00 */
        /*0020*/                   FFMA R8, R4, R5, R8 ;                    /* 0x0000000504087223 */
                                                                            /* 0x001fc40000000008 */
        /*0030*/                   ISETP.GE.AND P0, PT, R0, R3, PT ;        /* 0x000000030000720c */
                                                                            /* 0x000fda0003f06270 */
        /*0040*/              @!P0 BRA 0x10 ;                               /* 0xffffffc000008947 */
                                                                            /* 0x000fea000383ffff */
        /*0050*/                   EXIT ;                                   /* 0x000000000000794d */
                                                                            /* 0x000fea0003800000 */
"""


def test_control_codes_and_loops_are_read() -> None:
    (found,) = sass.parse(LISTING).values()
    assert [one.stall for one in found.instructions] == [2, 4, 2, 13, 5, 5]
    assert [one.waits for one in found.instructions] == [False, False, True, False, False, False]
    (loop,) = found.loops
    assert (loop.begin, loop.end, loop.instructions, loop.issue_cycles, loop.waits) == (0x10, 0x40, 4, 24, 1)
    assert loop.mix == {"LDS.128": 1, "FFMA": 1, "ISETP.GE.AND": 1, "BRA": 1}
    assert found.mix["LDS"] == 1


def test_machine_code_of_a_module(module: emulator.Module) -> None:
    found = module.sass("scale")
    if found is None:
        pytest.skip("cuobjdump and nvdisasm are not installed")
    assert found.mix["EXIT"] >= 1
