"""The tokens drawn on the device are those of nn.generate.sampling."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.device import EmulatedDevice
from cuda.nn.errors import DeviceArgumentError, UnsupportedError
from nn import random
from nn.backends.device import sampling
from nn.generate import SamplingConfig
from nn.generate.sampling import sample
from tests.device.conftest import opened

RANDOM = np.random.default_rng(5)
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0}, "plain": {"temperature": 1.0}, "cold": {"temperature": 1e-3},
    "hot": {"temperature": 100.0}, "coldest": {"temperature": 1e-45}, "top-1": {"top_k": 1},
    "top-5": {"top_k": 5},
    "top-300": {"top_k": 300,
                "temperature": 3.0}, "nucleus": {"top_p": 0.9}, "small nucleus": {"top_p": 1e-6},
    "large nucleus": {"top_p": 0.9999,
                      "temperature": 5.0}, "min-p": {"min_p": 0.1}, "min-p 1": {"min_p": 1.0},
    "penalty": {"repetition_penalty": 1.3, "temperature": 0.0}, "reward": {"repetition_penalty": 0.5},
    "all": {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2, "temperature": 1.5},
}
KINDS = ("normal", "wide", "ties", "equal", "holes")


def draw(kind: str, rows: int, size: int) -> np.ndarray:
    z = RANDOM.standard_normal((rows, size)).astype(np.float32)
    if kind == "wide":
        z *= np.float32(30)
    if kind == "ties":
        z = np.round(z * 2) / np.float32(2)
    if kind == "equal":
        z[:] = -3.25
    if kind == "holes":
        z[:, 1:][RANDOM.random((rows, size - 1)) < 0.5] = -np.inf
    return z


def on_device(device: EmulatedDevice, logits: np.ndarray, config: SamplingConfig, step: int,
              history: Any = None,
              **options: Any) -> np.ndarray:
    """Like nn.generate.sampling.sample, history a list of lists."""
    length = max(map(len, history), default=0) if history else 0
    padded = np.full((len(logits), length), -7)
    for row, ids in zip(padded, history or (), strict=False):
        row[: len(ids)] = ids
    lengths = device.asarray(np.array([len(ids) for ids in history])) if history else None
    tokens = sampling.sample(device.asarray(logits), device.asarray(padded) if length else None, lengths,
                             config,
                             sampling.sampling_key(device,
                                                   config.seed), device.asarray(np.array([step])), **options)
    return tokens.numpy()


def histories(rows: int, size: int) -> list[list[int]]:
    return [RANDOM.integers(0, size, RANDOM.integers(0, 9)).tolist() for _ in range(rows)]


def judge(device: EmulatedDevice, logits: np.ndarray, strategy: str, step: int = 3) -> None:
    config, history = SamplingConfig(seed=17, **STRATEGIES[strategy]), histories(*logits.shape)
    expect = sample(logits, history, config, step)
    found = on_device(device, logits, config, step, history)
    assert found.tolist() == expect.tolist(), strategy


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_tokens_of_the_cpu(device: EmulatedDevice, strategy: str, size: int) -> None:
    rows = 2 if size == 1000 else 6
    logits = np.concatenate([draw(kind, rows, size) for kind in KINDS])
    for step in (0, 1):
        judge(device, logits, strategy, step)


@pytest.mark.parametrize("strategy", ["plain", "top-300", "large nucleus", "all"])
def test_a_vocabulary_of_32000(device: EmulatedDevice, strategy: str) -> None:
    device.configure(check=0)
    judge(device, np.concatenate([draw(kind, 1, 32000) for kind in ("normal", "equal")]), strategy)


def test_a_vocabulary_of_151936(device: EmulatedDevice) -> None:
    """All filters, a bit per token for the penalty, within 48 KiB of shared memory."""
    device.configure(check=0)
    judge(device, draw("normal", 1, 151936), "all")


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_other_architectures(device: EmulatedDevice) -> None:
    judge(device, draw("normal", 4, 100), "all")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_logits(device: EmulatedDevice, dtype: Any) -> None:
    logits = draw("normal", 5, 333).astype(dtype)
    for strategy in ("greedy", "plain", "all"):
        judge(device, logits, strategy)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
def test_the_largest_vocabulary(arch: str) -> None:
    """262,144 tokens without asking for more than the 48 KiB of shared memory that every device gives."""
    device = opened(arch, "fast")
    device.configure()
    for strategy in ("greedy", "all"):
        judge(device, draw("normal", 1, 262_144), strategy)


def test_cuts_between_almost_equal_logits(device: EmulatedDevice) -> None:
    """Top-k by logits of equal weight, weights of 2^32 - 1 and 2^32, ties across all digits."""
    base = np.zeros((1, 64), np.float32)
    base[0, 5:40] = -np.arange(35, dtype=np.float32) * np.float32(2**-36)
    base[0, 40:] = -22.5 - np.arange(24) * np.float32(2**-19)
    for k in (1, 3, 20, 45, 63):
        for step in range(4):
            config = SamplingConfig(temperature=1.0, top_p=0.999999, top_k=k)
            assert on_device(device, base, config, step).tolist() == sample(base, [[]], config, step).tolist()


def test_draws_follow_the_probabilities(device: EmulatedDevice) -> None:
    """Chi-square of 4000 rows over 12 tokens: below the 0.1 % point of 11 degrees of freedom."""
    row = RANDOM.standard_normal(12).astype(np.float32)
    tokens = on_device(device, np.tile(row, (4000, 1)), SamplingConfig(temperature=1.0, seed=2), 5)
    expect = 4000 * np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum()
    assert (((np.bincount(tokens, minlength=12) - expect) ** 2) / expect).sum() < 31.3


def test_rows_without_a_token(device: EmulatedDevice) -> None:
    logits = np.zeros((6, 40), np.float32)
    logits[1, 39], logits[2, 0], logits[3], logits[4, 3] = np.nan, np.inf, -np.inf, -np.inf
    for strategy in ("greedy", "plain", "all"):
        flags = device.asarray(np.full(6, 9, np.int32))
        tokens = on_device(device, logits, SamplingConfig(**STRATEGIES[strategy]), 0, flags=flags)
        assert (tokens == -1).tolist() == [False, True, True, True, False, False]
        assert flags.numpy().tolist() == [0, 1, 1, 1, 0, 0]


def test_step_rows_and_keys_are_read_on_the_device(device: EmulatedDevice) -> None:
    logits, config = draw("normal", 4, 50), SamplingConfig(temperature=2.0)
    given, step = device.asarray(logits), device.asarray(np.array([0]))
    rows = device.asarray(np.array([7, 0, 9, 1]))
    keys = sampling.sampling_key(device, [1, 2, 3, 2**64 - 1])
    for now in (0, 1, 2**32 - 1):
        value = np.array([now])
        device.call("memory_upload", step, value.ctypes.data, 8)
        device.synchronize()
        found = sampling.sample(given, None, None, config, keys, step, rows=rows).numpy()
        expect = [sample(logits[i : i + 1], [[]], SamplingConfig(temperature=2.0, seed=seed), now,
                         rows=[row])[0]
                  for i, (seed, row) in enumerate(zip((1, 2, 3, 2**64 - 1), (7, 0, 9, 1), strict=True))]
        assert found.tolist() == expect
    steps = device.asarray(np.array([0, 1, 2, 3]))
    found = sampling.sample(given, None, None, config, keys, steps, rows=rows).numpy()
    assert found[0] == sample(logits[:1], [[]], SamplingConfig(temperature=2.0, seed=1), 0, rows=[7])[0]


def test_history_outside_the_vocabulary_and_lengths(device: EmulatedDevice) -> None:
    logits, config = np.array([[1.0, 2.0, 3.0]] * 3, np.float32), SamplingConfig(temperature=0,
                                                                                 repetition_penalty=10)
    history = device.asarray(np.array([[2, 1, 5], [-1, 3, 2], [2, 2, 2]]))
    for lengths, expect in (([2, 2, 0], [0, 2, 2]), ([1, 3, 9], [1, 1, 1]), (None, [0, 1, 1])):
        given = None if lengths is None else device.asarray(np.array(lengths))
        tokens = sampling.sample(device.asarray(logits), history, given, config,
                                 sampling.sampling_key(device, 0),
                                 device.asarray(np.array([0])))
        assert tokens.numpy().tolist() == expect


def test_random_bits(device: EmulatedDevice) -> None:
    key = random.derive(12345, "demo")
    for count in (0, 1, 4, 4101):
        for words in ((0, 0, 0), (2**32 - 1, 5, 0), (1, 2, 3)):
            given = device.asarray(np.array([key], np.uint64).view(np.int64)), device.asarray(np.array(words))
            found = sampling.random_bits(*given, count).numpy()
            assert np.array_equal(found, random.bits(key, *words, shape=(count,)))


def test_a_row_draws_the_same_in_any_batch(device: EmulatedDevice) -> None:
    logits, config = draw("normal", 5, 70), SamplingConfig(top_p=0.9)
    alone = [on_device(device, logits[i : i + 1], config, 2,
                       rows=device.asarray(np.array([i])))[0] for i in range(5)]
    assert on_device(device, logits, config, 2).tolist() == alone


def test_empty_and_wrong_arguments(device: EmulatedDevice) -> None:
    assert on_device(device, np.zeros((0, 5), np.float32), SamplingConfig(), 0).shape == (0,)
    key, step, x = sampling.sampling_key(device, 0), device.asarray(np.array([0])), device.zeros((2, 5),
                                                                                                 np.float32)
    config = SamplingConfig()
    with pytest.raises(DeviceArgumentError, match="steps"):
        sampling.sample(x, None, None, config, key, device.asarray(np.array([0], np.int32)))
    with pytest.raises(DeviceArgumentError, match="logits"):
        sampling.sample(device.zeros((5,), np.float32), None, None, config, key, step)
    with pytest.raises(DeviceArgumentError, match="history"):
        sampling.sample(x, device.zeros((3, 2), np.int64), None, config, key, step)
    with pytest.raises(DeviceArgumentError, match="lengths"):
        sampling.sample(x, device.zeros((2, 2), np.int64), device.zeros((3,), np.int64), config, key, step)
    with pytest.raises(DeviceArgumentError, match="vocabulary: 0"):
        sampling.sample(device.zeros((2, 0), np.float32), None, None, config, key, step)
    with pytest.raises(UnsupportedError, match="262144"):
        sampling.sample(device.empty((1, 262145), np.float32), None, None, config, key, step)
    for field, value in (("top_k", -1), ("top_p", 0.0), ("min_p", 2.0), ("temperature", -1.0),
                         ("repetition_penalty", 0.0)):
        wrong = SamplingConfig()
        object.__setattr__(wrong, field, value)
        with pytest.raises(DeviceArgumentError, match=field):
            sampling.sample(x, None, None, wrong, key, step)
