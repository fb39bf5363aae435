"""Every function that launches kernels can be captured: it allocates nothing, waits for nothing, reads no
device memory on the host, and a replay does what the call would have done with the memory as it is then."""

from typing import Any

import numpy as np
import pytest

from cuda.nn.device import Counts, EmulatedDevice
from cuda.nn.graph import Graph
from tests.device.calls import cases, make


@pytest.mark.parametrize(("function", "sizes"), cases())
def test_a_replay_gives_the_bits_of_a_call(device: EmulatedDevice, function: str,
                                           sizes: dict[str, Any]) -> None:
    call, other = make(device, function, **sizes), make(device, function, seed=1, **sizes)
    expected = other.run()
    before = device.counts()
    with Graph.capture(device) as graph:
        call.launch()
    assert device.counts() - before == Counts(*(0,) * 11), "the call did something besides launching"
    call.take(other)                             # what the capture was made with is gone
    graph.replay()
    for found, right in zip(call.results(), expected, strict=True):
        np.testing.assert_array_equal(found.view(np.uint8), right.view(np.uint8))
