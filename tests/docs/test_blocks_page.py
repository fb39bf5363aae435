"""The tables of docs/6-blocks.md name every block that is registered, by its letter, and what it keeps."""

import pytest

from nn.config import dump
from nn.layers import registry
from nn.models import LanguageModelConfig
from tests.blocks import harness
from tests.docs.pages import marked, rows

PAGE = "6-blocks.md"


@pytest.mark.parametrize("role", registry.ROLES)
def test_every_block_is_in_the_table_of_its_role(role: str) -> None:
    assert [name for name, *_ in rows(PAGE, role)] == registry.names(role)


def test_letters_are_those_of_patterns() -> None:
    found = {letter: name for name, letter, *_ in rows(PAGE, "mixer") if letter}
    assert found == registry.LETTERS


@pytest.mark.parametrize("role", ["mixer", "feed_forward", "memory"])
def test_states_are_those_that_blocks_begin_with(role: str) -> None:
    for name, *_, state in rows(PAGE, role):
        keeps = harness.cases_of(role, name)[0].build().init_state(1) is not None
        assert keeps == (state != "none"), name


def test_every_option_of_a_language_model() -> None:
    assert marked(PAGE, "table: model") == f"```yaml\n{dump(LanguageModelConfig())}```"
