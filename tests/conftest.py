"""Options and marks of the test suite.

`oracle` tests compare with PyTorch, Transformers and ONNX's evaluator.  Where those are not installed they
are skipped; with --require-oracle nothing may be skipped: a comparison that did not run is a failure."""

from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from cuda.nn.device import EmulatedDevice

ORACLES = ("torch", "transformers", "peft", "onnx")
ORACLE_TESTS = Path(__file__).parent / "oracle"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-oracle", action="store_true", help=f"fail without {', '.join(ORACLES)}")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-oracle") and missing():
        raise pytest.UsageError(f"--require-oracle: {missing()} not installed: pip install -e '.[oracle]'")


def missing() -> str:
    return ", ".join(name for name in ORACLES if find_spec(name) is None)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The folder's modules import the oracles at their top."""
    return True if missing() and collection_path == ORACLE_TESTS else None


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    if missing():
        how = "pip install -e '.[oracle]'"
        terminalreporter.write_line(f"tests/oracle was left out: {missing()} not installed ({how})")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ORACLE_TESTS):
            item.add_marker(pytest.mark.oracle)
        elif missing() and item.get_closest_marker("oracle"):
            item.add_marker(pytest.mark.skip(reason=f"{missing()} not installed"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _no_skips((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _no_skips((yield), collector.config)


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _no_skips(report: Report, config: pytest.Config) -> Report:
    """Under --require-oracle a skipped test or module is a failed one."""
    if report.skipped and config.getoption("--require-oracle"):
        report.outcome, report.longrepr = "failed", f"skipped under --require-oracle: {report.longrepr}"
    return report


@pytest.fixture
def fast() -> "EmulatedDevice":
    """The emulated device that checks nothing and counts nothing: for whole models and many steps."""
    from cuda.nn.device import EmulatedDevice, device

    found = device("emulated", mode="fast")
    assert isinstance(found, EmulatedDevice)
    found.configure()
    return found
