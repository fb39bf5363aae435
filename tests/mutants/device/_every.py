"""Every bug planted in a kernel is to be found by emulation, and the healthy kernels pass the same check.

    python -m pytest tests/mutants/device/_every.py

Not among the tests that run by themselves: half a minute of two cores per bug, and most have not been run."""

from pathlib import Path

import pytest

from tests.mutants.device.workshop import Mutant, Workshop, by_file, families, family

EVERY = [(name, mutant) for name in families() for mutant in by_file(family(name).MUTANTS)]


@pytest.fixture(scope="module")
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(request.param, tmp_path_factory.mktemp(request.param))
    assert not made.finding(), "the healthy kernels fail their own check"
    return made


@pytest.mark.parametrize(("shop", "mutant"), EVERY, indirect=["shop"],
                         ids=lambda x: getattr(x, "story", None))
def test_is_found(shop: Workshop, mutant: Mutant) -> None:
    with shop.planted(mutant):
        assert shop.finding(), f"{Path(mutant.file).name}: nothing found"
