"""The stand-in runtime without a kernel: memory, streams, events, graphs, deferred work, properties."""

import pytest

from tests.emulator.cudart_programs import check, host_program, run

# From the CUDA C++ programming guide, table "Technical Specifications per Compute Capability".
DEVICES = {
    "sm_75": "7.5 40 65536 65536 1024",
    "sm_80": "8.0 108 166912 167936 2048",
    "sm_86": "8.6 84 101376 102400 1536",
    "sm_89": "8.9 58 101376 102400 1536",
    "sm_90": "9.0 132 232448 233472 2048",
}


def test_memory() -> None:
    check(run(host_program("memory")), least=100)


def test_internals() -> None:
    check(run(host_program("internals")), least=35)


def test_memory_where_address_space_is_limited() -> None:
    limit = ["/bin/sh", "-c", 'ulimit -v 2000000; exec "$0" "$@"']
    check(run(host_program("memory"), "limited", before=limit), least=90)


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_streams(mode: str) -> None:
    outcome = run(host_program("streams"), mode=mode)
    check(outcome, least=70)
    last = outcome.report["reports"][-1]
    assert last["kind"] == "unsynchronized"
    assert "the program ended before a memset of 16 bytes" in last["message"]


def test_graphs() -> None:
    check(run(host_program("graphs")), least=90)


@pytest.mark.parametrize("arch", DEVICES)
def test_properties(arch: str) -> None:
    lines = run(host_program("streams"), arch=arch).output.splitlines()
    assert f"device {DEVICES[arch]}" in lines
