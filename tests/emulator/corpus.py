"""Ordinary CUDA programs, each with a NumPy answer: what the emulator must run right, and keep silent about.

A Program's `run` launches its kernels through the function that it is given and returns pairs
(computed, expected); programs/ has the sources, faults.py plants errors in them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

SOURCES = Path(__file__).parent / "programs"
Launch = Callable[..., None]              # launch(kernel, grid=, block=, args=, shared_bytes=0)
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Program:
    """One source file and how to use it."""

    file: str
    run: Callable[[Launch], Iterable[Pair]]
    arch: str = "sm_80"

    @property
    def source(self) -> str:
        """The text of the file."""
        return (SOURCES / self.file).read_text(encoding="utf-8")


PROGRAMS: dict[str, Program] = {}


def program(file: str, arch: str = "sm_80") -> Callable[[Callable[[Launch], Iterable[Pair]]], Program]:
    """Enter a program, under the name of its file."""

    def enter(run: Callable[[Launch], Iterable[Pair]]) -> Program:
        PROGRAMS[file.removesuffix(".cu")] = Program(file, run, arch)
        return PROGRAMS[file.removesuffix(".cu")]

    return enter


def normal(*shape: int) -> np.ndarray:
    """The same float32 numbers for the same shape every time."""
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def integers(shape: int | tuple[int, ...], below: int, dtype: Any = np.int32) -> np.ndarray:
    """The same integers in [0, below) for the same arguments every time."""
    return np.random.default_rng(below).integers(0, below, shape).astype(dtype)


@program("reduce.cu")
def reduce(launch: Launch) -> Iterable[Pair]:
    x, partial = normal(3000), np.zeros(4, np.float32)
    launch("block_sum", grid=4, block=256, args=[partial, x, np.int32(x.size)])
    padded = np.append(x, np.zeros(3072 - x.size)).reshape(-1, 4, 256)
    yield partial, padded.sum((0, 2))


@program("scan.cu")
def scan(launch: Launch) -> Iterable[Pair]:
    x, out = integers((3, 128), 100), np.zeros((3, 128), np.int32)
    launch("block_scan", grid=3, block=128, args=[x, out, np.int32(3)])
    yield out, x.cumsum(1)


@program("histogram.cu")
def histogram(launch: Launch) -> Iterable[Pair]:
    data, bins = integers(5000, 200, np.uint8), np.zeros(256, np.uint32)
    launch("histogram", grid=3, block=128, args=[bins, data, np.int32(data.size)])
    yield bins, np.bincount(data, minlength=256)


@program("transpose.cu")
def transpose(launch: Launch) -> Iterable[Pair]:
    x, out = normal(70, 45), np.zeros((45, 70), np.float32)
    launch("transpose", grid=(2, 3), block=(32, 8), args=[out, x, np.int32(70), np.int32(45)])
    yield out, x.T


@program("gemm.cu")
def gemm(launch: Launch) -> Iterable[Pair]:
    a, b, c = normal(35, 41), normal(41, 50), np.zeros((35, 50), np.float32)
    launch("gemm", grid=(4, 3), block=(16, 16), args=[c, a, b, np.int32(35), np.int32(50), np.int32(41)])
    yield c, a @ b


@program("softmax.cu")
def softmax(launch: Launch) -> Iterable[Pair]:
    x, y = normal(5, 300), np.zeros((5, 300), np.float32)
    launch("softmax", grid=5, block=128, args=[y, x, np.int32(300)])
    weight = np.exp(x.astype(np.float64))
    yield y, weight / weight.sum(1, keepdims=True)


@program("flash_attention.cu")
def flash_attention(launch: Launch) -> Iterable[Pair]:
    t, d = 100, 32
    q, k, v, o = (*normal(3, t, d), np.zeros((t, d), np.float32))
    scale = np.float32(d**-0.5)
    launch("flash_attention", grid=2, block=64, args=[o, q, k, v, np.int32(t), scale])
    score = np.where(np.tri(t, dtype=bool), (q.astype(np.float64) @ k.T) * scale, -np.inf)
    weight = np.exp(score - score.max(1, keepdims=True))
    yield o, weight / weight.sum(1, keepdims=True) @ v


@program("ticket.cu")
def ticket(launch: Launch) -> Iterable[Pair]:
    x, out = normal(1000), np.zeros(1, np.float32)
    partial, tickets = np.zeros(6, np.float32), np.zeros(1, np.uint32)
    launch("ticket_sum", grid=6, block=64, args=[out, partial, tickets, x, np.int32(x.size)])
    yield out, x.astype(np.float64).sum(keepdims=True)
    yield tickets, np.zeros(1)


@program("producer_consumer.cu")
def producer_consumer(launch: Launch) -> Iterable[Pair]:
    x, y = normal(7, 32), np.zeros((7, 32), np.float32)
    launch("square", grid=1, block=64, args=[y, x, np.int32(7)])
    yield y, x * x


@program("double_buffer.cu")
def double_buffer(launch: Launch) -> Iterable[Pair]:
    x, y = normal(5, 256), np.zeros((5, 256), np.float32)
    launch("average", grid=1, block=64, args=[y, x, np.int32(5)])
    padded = np.pad(x, ((0, 0), (1, 1)), mode="edge")
    yield y, (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3


@program("bitonic_sort.cu")
def bitonic_sort(launch: Launch) -> Iterable[Pair]:
    rows = integers((2, 256), 1000)
    expected = np.sort(rows, axis=1)
    launch("bitonic_sort", grid=2, block=64, args=[rows, np.int32(256)], shared_bytes=1024)
    yield rows, expected


@program("stencil.cu")
def stencil(launch: Launch) -> Iterable[Pair]:
    x, y = normal(500), np.zeros(500, np.float32)
    launch("stencil", grid=4, block=128, args=[y, x, np.int32(x.size)])
    yield y, np.convolve(x, [0.1, 0.2, 0.4, 0.2, 0.1], mode="same")


@program("warps.cu")
def warps(launch: Launch) -> Iterable[Pair]:
    x = integers(256, 1000) - 500
    y = np.zeros_like(x)
    launch("transpose_in_warp", grid=2, block=128, args=[y, x])
    yield y, x.reshape(8, 8, 4).transpose(0, 2, 1).reshape(-1)
    kept, count = np.zeros((8, 32), np.int32), np.zeros(8, np.int32)
    launch("keep_positive", grid=8, block=32, args=[kept, count, x])
    rows = [row[row > 0] for row in x.reshape(8, 32)]
    yield count, np.array([row.size for row in rows])
    yield kept, np.array([np.pad(row, (0, 32 - row.size)) for row in rows])
    keys, bins = integers(150, 7, np.uint32), np.zeros(7, np.uint32)
    launch("count_keys", grid=3, block=64, args=[bins, keys, np.int32(keys.size)])
    yield bins, np.bincount(keys, minlength=7)
    sums = np.zeros(2, np.int32)
    launch("half_warp_sum", grid=1, block=64, args=[sums, x[:64].copy()])
    yield sums, x[:64].reshape(2, 32)[:, :16].sum(1)


@program("gather.cu")
def gather(launch: Launch) -> Iterable[Pair]:
    table, index = normal(20, 12), integers((3, 5), 20)
    out = np.zeros((3, 12), np.float32)
    launch("gather", grid=3, block=32, args=[out, table, index, np.int32(5), np.int32(3)])
    yield out, 2 * table[index].sum(1)


def halves(*shape: int, dtype: Any = np.float16) -> np.ndarray:
    """Small integers, so that every sum of products is exact in whatever order."""
    return integers(shape, 9).astype(dtype) - dtype(4)


@program("mma_gemm.cu")
def mma_gemm(launch: Launch) -> Iterable[Pair]:
    a, b, c = halves(128, 96, dtype=bfloat16), halves(96, 64, dtype=bfloat16), np.zeros((128, 64), np.float32)
    launch("mma_gemm", grid=(1, 2), block=128, args=[c, a, b, np.int32(64), np.int32(96)])
    yield c, a.astype(np.float32) @ b.astype(np.float32)


@program("wmma_gemm.cu")
def wmma_gemm(launch: Launch) -> Iterable[Pair]:
    a, b, c = halves(32, 48), halves(48, 64), halves(32, 64, dtype=np.float32)
    expected = a.astype(np.float32) @ b.astype(np.float32) + c
    launch("wmma_gemm", grid=(4, 2), block=32, args=[c, a, b, np.int32(64), np.int32(48)])
    yield c, expected


@program("wgmma_gemm.cu", arch="sm_90a")
def wgmma_gemm(launch: Launch) -> Iterable[Pair]:
    a, b = halves(128, 256, dtype=bfloat16), halves(64, 256, dtype=bfloat16)
    c = np.zeros((128, 64), np.float32)
    launch("wgmma_gemm", grid=(1, 2), block=128, args=[c, a, b, np.int32(64), np.int32(256)])
    yield c, a.astype(np.float32) @ b.T.astype(np.float32)
