"""cuda-nn info and bench: they say what is there."""

import numpy as np
import pytest

from nn.backends import describe
from nn.cli.info import blas


def test_info_names_versions_backends_and_every_kernel(cuda_nn) -> None:
    status, out, err = cuda_nn("info")
    assert (status, err) == (0, "")
    words = out.split()
    assert np.__version__ in words
    assert "processor" in words
    assert set(describe()["kernels"]) <= set(words)
    assert set(describe()["backends"]) <= set(words)


def test_info_says_what_is_forced(cuda_nn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NN_BACKEND", "reference")
    assert "backends, reference forced:" in cuda_nn("info")[1]
    monkeypatch.setenv("NN_BACKEND", "cdua")
    status, _, err = cuda_nn("info")
    assert status == 2
    assert "NN_BACKEND=cdua" in err


def test_blas_is_named() -> None:
    built = np.show_config("dicts")["Build Dependencies"]["blas"]
    assert blas().startswith(f"{built['name']} {built['version']}")


def test_bench_measures_training_prefill_and_decoding(cuda_nn) -> None:
    status, out, err = cuda_nn("bench", "--batch-size", 1, "--seq-len", 8, "--repeat", 1)
    assert (status, err) == (0, "")
    for name in (
        "matrix product 1024³, float32",
        "training step 1 × 8",
        "prefill 1 × 8",
        "decoding after 8 tokens",
    ):
        (row,) = (line for line in out.splitlines() if line.startswith(name))
        assert float(row.removeprefix(name).split()[0]) >= 0
