"""Every field refuses what is outside its range, by name, with its value and the range."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from nn.errors import InputError
from nn.generate import SamplingConfig

BAD = [
    ("temperature", [-0.1, 101, float("nan"), float("inf"), "0.8", None, True]),
    ("top_k", [-1, 2.0, "50", None, True]),
    ("top_p", [0, -0.5, 1.01, float("nan"), "1"]),
    ("min_p", [-0.01, 1.01, float("nan"), "0"]),
    ("repetition_penalty", [0, -1, 1e9, float("nan"), "1"]),
    ("max_tokens", [0, -1, 1.5, "9"]),
    ("seed", [-1, 2**64, 0.5, "0"]),
    ("eos_ids", [(-1,), ("a",), 1.5, "x"]),
    ("stop", [("",), (1,), None, 3]),
]


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD for value in values])
def test_bad_values_are_named(field, value):
    with pytest.raises(InputError) as error:
        SamplingConfig(**{field: value})
    message = str(error.value)
    assert message.startswith(f"{field}: ")
    assert " is not a" in message or " is not null or a list" in message
    assert "\n" not in message


def test_edges_are_allowed():
    SamplingConfig(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1, max_tokens=1, seed=0)
    SamplingConfig(temperature=100, top_p=1e-9, min_p=1, seed=2**64 - 1, top_k=10**9)
    SamplingConfig(temperature=np.float32(0.5), top_k=np.int64(3))


def test_lists_and_lone_values_become_tuples():
    config = SamplingConfig(eos_ids=[1, 2], stop="\n\n")
    assert (config.eos_ids, config.stop) == ((1, 2), ("\n\n",))
    assert SamplingConfig(eos_ids=0).eos_ids == (0,)
    assert hash(config) == hash(SamplingConfig(eos_ids=(1, 2), stop=("\n\n",)))


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        SamplingConfig().seed = 1
