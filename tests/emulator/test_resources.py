"""ptxas's figures, occupancy against NVIDIA's own table and formula, the roofline's bound, and machine
code."""

import re
import subprocess
from pathlib import Path

import pytest

from cuda.nn import emulator
from cuda.nn.emulator import EmulatorError, resources, roofline, sass, toolchain
from cuda.nn.emulator.check import KernelFacts, Outcome
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
    assert module.resources("spread").threads == 128  # __launch_bounds__
    assert module.resources("scale", block=96).threads == 96


def test_spills_are_told(tmp_path: Path) -> None:
    source = tmp_path / "spill.cu"
    sums = " ".join(f"float a{i} = x[{i} * n];" for i in range(80))
    uses = " + ".join(f"a{i} * a{(i * 7) % 80}" for i in range(80))
    source.write_text(
        f"__global__ void __maxnreg__(24) k(float* y, const float* x, int n) "
        f"{{ {sums} __syncthreads(); *y = {uses}; }}\n"
    )
    found = emulator.compile(source, mode="fast").resources("k")
    assert found.registers == 24
    assert found.spills > 0


def test_what_ptxas_says_is_read_whatever_is_left_out() -> None:
    said = (
        "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function '_Z1kv' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z1kv\n    16 bytes stack frame, 8 bytes spill stores, 4 "
        "bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 2 barriers, 16 bytes cumulative stack size, 49152 bytes "
        "smem\n"
    )
    ptx = ".visible .entry _Z1kv()\n.maxntid 64, 2, 1\n.minnctapersm 1\n{\n}\n"
    (found,) = resources.parse(said, ptx).values()
    assert (found.registers, found.spills, found.stack_bytes, found.shared_bytes) == (255, 12, 16, 49152)
    assert (found.barriers, found.threads) == (2, 128)
    assert resources.parse("nothing of use") == {}


def test_ptxas_s_refusal_is_passed_on() -> None:
    with pytest.raises(EmulatorError, match="ptxas refuses it for sm_80"):
        resources.read_resources(
            ".version 9.0\n.target sm_80\n.address_size 64\n.entry k() { nonsense; }\n", "sm_80"
        )


# NVIDIA's calculator is a header of the toolkit.
CALCULATOR = r"""
#include <climits>
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
    int major, minor, per_sm, registers, threads;
    size_t sm_shared, reserved, shared;
    while (std::scanf("%d %d %d %zu %zu %d %d %zu", &major, &minor, &per_sm, &sm_shared, &reserved, &threads,
                      &registers, &shared) == 8) {
        cudaOccDeviceProp device;
        device.computeMajor = major; device.computeMinor = minor;
        device.maxThreadsPerBlock = 1024; device.maxThreadsPerMultiprocessor = per_sm;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32; device.numSms = 1;
        device.sharedMemPerBlock = 48 << 10; device.sharedMemPerMultiprocessor = sm_shared;
        device.sharedMemPerBlockOptin = sm_shared - reserved; device.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = INT_MAX; kernel.numRegs = registers; kernel.sharedSizeBytes = 0;
        kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = sm_shared - reserved;
        kernel.numBlockBarriers = 1;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult result;
        int error =
            cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
        std::printf("%d\n", error ? -1 : result.activeBlocksPerMultiprocessor);
    }
}
"""


def test_occupancy_agrees_with_nvidia_s_calculator(tmp_path: Path) -> None:
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    include = ["-I", str(toolchain.cuda_include())]
    command = [
        toolchain.host_compiler(),
        "-w",
        *include,
        str(tmp_path / "calculator.cpp"),
        "-o",
        str(tmp_path / "calculator"),
    ]
    subprocess.run(command, check=True)
    cases = [
        (profile, threads, registers, shared)
        for profile in PROFILES.values()
        for threads in (1, 32, 64, 96, 128, 160, 256, 384, 512, 640, 1024)
        for registers in (16, 24, 32, 40, 63, 64, 80, 96, 128, 168, 255)
        for shared in (0, 1, 1024, 10_000, 16 * 1024, 40_000, 48 * 1024, 64 * 1024, 99 * 1024, 227 * 1024)
    ]
    lines = [
        f"{p.name[3]} {p.name[4]} {p.threads} {p.shared_bytes} {p.shared_reserved} {threads} {registers} "
        f"{shared}"
        for p, threads, registers, shared in cases
    ]
    done = subprocess.run(
        [tmp_path / "calculator"], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    theirs = list(map(int, done.stdout.split()))
    ours = [occupancy(*case).blocks for case in cases]
    assert len(theirs) == len(cases)
    assert [
        (case, own, their) for case, own, their in zip(cases, ours, theirs, strict=True) if own != their
    ] == []


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "limit"),
    [
        ("sm_80", 256, 32, 0, "threads"),
        ("sm_80", 256, 64, 0, "registers"),
        ("sm_80", 32, 16, 0, "blocks"),
        ("sm_80", 128, 32, 48 * 1024, "shared memory"),
    ],
)
def test_what_limits_occupancy(arch: str, threads: int, registers: int, shared: int, limit: str) -> None:
    assert occupancy(PROFILES[arch], threads, registers, shared).limit == limit
    assert occupancy(PROFILES["sm_80"], 256, 64, 0).share == 0.5


def test_the_profiles_agree_with_the_runtime_s() -> None:
    """The runtime's table has a row of numbers for each: 64 * K, K, 0."""
    found = {}
    for row in re.findall(r'\{("sm_\d+",[^}]*)\}', (CSRC / "profiles.cpp").read_text()):
        name, _, *words = (word.strip() for word in row.split(","))
        numbers = [eval(word, {"K": 1024, "M": 0, "G": 0}) for word in words if word not in ("true", "false")]
        found[name.strip('"')] = (numbers[3], numbers[4], numbers[5], numbers[7], numbers[8])
    assert found == {
        p.name: (p.threads, p.blocks, p.shared_bytes, p.shared_reserved, p.shared_unit)
        for p in PROFILES.values()
    }


def test_suffixes_belong_to_their_profile() -> None:
    assert profile_of("sm_90a") is PROFILES["sm_90"]
    with pytest.raises(EmulatorError, match="known are sm_75"):
        profile_of("sm_100")


# ---- roofline ----------------------------------------------------------------------------------------------


def counted(**changes: object) -> KernelCounters:
    return KernelCounters(
        launches=2, distinct_bytes_read=3_000_000, distinct_bytes_written=1_078_000, **changes
    )  # type: ignore[arg-type]


def test_a_bound_is_the_larger_of_memory_and_work() -> None:
    gpu = roofline.gpu_of("A100")
    found = roofline.bound(counted(flops={"f32": 2_000_000}), gpu)
    assert found.limit == "memory"
    assert found.seconds == pytest.approx(4_078_000 / 2 / 2039e9)  # 1.0 us a launch
    assert found.flops_per_byte == pytest.approx(2_000_000 / 4_078_000)
    assert str(found).startswith(
        "on A100 at least 1 us, bound by memory: 2.04 MB at 2,039 GB/s; 1 MFLOP f32; 0.49 FLOP/byte"
    )
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


# ---- machine code ------------------------------------------------------------------------------------------

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


def test_loops_are_shown_beside_the_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = sass.parse(LISTING).values()
    facts = KernelFacts("gemm", resources=None, loops=code.loops)
    outcome = Outcome(Path("gemm.cu"), "sm_80", [facts])
    outcome.print()
    assert "loop of 4 machine instructions: 24 issue cycles a pass at least" in capsys.readouterr().out
    assert outcome.as_dict()["kernels"][0]["loops"][0]["issue_cycles"] == 24


def test_machine_code_of_a_module(module: emulator.Module) -> None:
    found = module.sass("scale")
    if found is None:
        pytest.skip("cuobjdump and nvdisasm are not installed")
    assert found.mix["EXIT"] >= 1
