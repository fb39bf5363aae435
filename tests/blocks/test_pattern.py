"""Which block stands in which layer, modes, and names in the registry."""

from pathlib import Path
from typing import Any

import pytest

from nn import config
from nn.errors import InputError
from nn.layers import registry
from nn.layers.mode import KernelMode, select_mode
from nn.layers.pattern import every_n_global, expand, from_layer
from nn.layers.stack import StackSettings

KNOWN = ("mamba", "full_attention", "none")
LETTERS = {"M": "mamba", "A": "full_attention"}

PATTERNS: list[tuple[Any, int, list[str]]] = [
    ("mamba", 3, ["mamba"] * 3),
    ("MMMA", 4, ["mamba", "mamba", "mamba", "full_attention"]),
    ("MA", 5, ["mamba", "full_attention", "mamba", "full_attention", "mamba"]),
    ("A", 1, ["full_attention"]),
    (["mamba", "none"], 3, ["mamba", "none", "mamba"]),
    (("M", "full_attention"), 2, ["mamba", "full_attention"]),
    (["MMA"], 3, ["mamba", "mamba", "full_attention"])]


@pytest.mark.parametrize(("pattern", "layers", "expected"), PATTERNS)
def test_patterns_are_repeated(pattern: Any, layers: int, expected: list[str]) -> None:
    assert expand("mixer", pattern, layers, KNOWN, LETTERS) == tuple(expected)


BAD: list[tuple[Any, str]] = [
    ("MMX", "mixer: 'MMX' is not known nor made of the letters MA"),
    ("manba", "did you mean 'mamba'"), ("", "'' is not known"), ([], "a pattern of 0 layers"),
    ("MMMM", "a pattern of 4 layers does not fit 3 layers"),
    (["mamba", "ful_attention"], "did you mean 'full_attention'")]


@pytest.mark.parametrize(("pattern", "message"), BAD)
def test_what_is_not_a_pattern_is_refused(pattern: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        expand("mixer", pattern, 3, KNOWN, LETTERS)
    assert message in str(error.value)


def test_every_n_global() -> None:
    kinds = every_n_global(4, 9, "local", "global")
    assert [i for i, kind in enumerate(kinds) if kind == "global"] == [3, 7]
    assert every_n_global(1, 2, "local", "global") == ("global", "global")
    with pytest.raises(InputError, match="n = 0"):
        every_n_global(0, 2, "local", "global")


def test_from_layer() -> None:
    assert from_layer(2, 4, "full", "window") == ("full", "full", "window", "window")


def test_mode_follows_the_length_up_to_the_threshold() -> None:
    assert select_mode(64) is KernelMode.RECURRENT
    assert select_mode(65) is KernelMode.CHUNK
    assert select_mode(5, threshold=4) is KernelMode.CHUNK
    assert select_mode(1, mode="chunk") is KernelMode.CHUNK
    assert select_mode(1000, mode=KernelMode.RECURRENT) == "recurrent"
    with pytest.raises(InputError, match="'chunky' is not known; did you mean 'chunk'"):
        select_mode(1, mode="chunky")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="mixer: 'retension' is not known; did you mean 'retention'"):
        registry.find("mixer", "retension")
    with pytest.raises(InputError, match="role: 'mixr' is not known; did you mean 'mixer'"):
        registry.names("mixr")
    with pytest.raises(InputError, match="RetentionSettings.num_head: unknown .* did you mean 'num_heads'"):
        registry.create("mixer", "retention", num_head=2)


def test_names_and_letters_are_unique_and_lead_somewhere() -> None:
    names = [name for table in registry.ROLES.values() for name in table]
    assert len(set(names)) == len(names)
    assert set(registry.LETTERS.values()) <= set(registry.MIXERS)
    assert not set(registry.LETTERS) & set(names)
    for role in registry.ROLES:
        for name in registry.names(role):
            found = registry.find(role, name)
            assert found.__doc__
            assert found.Settings.__doc__


def test_layers_of_a_stack() -> None:
    settings = StackSettings(num_layers=5, mixer="RRA", feed_forward=("swiglu", "none"))
    assert [layer.names for layer in settings.layers()] == [
        {"mixer": "retention", "feed_forward": "swiglu"}, {"mixer": "retention"},
        {"mixer": "full_attention", "feed_forward": "swiglu"}, {"mixer": "retention"},
        {"mixer": "retention", "feed_forward": "swiglu"}]
    assert [layer.connection.layer for layer in settings.layers()] == list(range(5))
    assert [len(layer.connection.branches) for layer in settings.layers()] == [2, 1, 2, 1, 2]


def test_a_stack_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "in.yaml").write_text("mixer: RRA\nnum_layers: 3\nfeed_forward: [swiglu, moe]\n"
                                      "options: {moe: {num_experts: 4}, retention: {num_heads: 4}}\n")
    settings = config.load(tmp_path / "in.yaml", StackSettings)
    assert settings == StackSettings(mixer=("RRA",), num_layers=3, feed_forward=("swiglu", "moe"),
                                     options={"moe": {"num_experts": 4}, "retention": {"num_heads": 4}})
    config.save(settings, tmp_path / "out.yaml")
    assert config.load(tmp_path / "out.yaml", StackSettings) == settings


@pytest.mark.parametrize(("changes", "message"), [
    ({"residual": "prenorm"}, "residual: 'prenorm' is not known; did you mean 'pre_norm'"),
    ({"memory_at": "attn"}, "memory_at: 'attn' is not known"),
    ({"options": {"retention": {}}}, "options: 'retention' is not known"),
    ({"options": {"swiglu": {"width": 3}}}, "SwiGLUSettings.width: unknown setting"),
    ({"mixer": "none", "feed_forward": "none"}, "a layer has no block"),
    ({"num_layers": 0}, "num_layers: 0 is not positive"),
    ({"norm": "rms"}, "norm: 'rms' is not known; did you mean 'rmsnorm'")])
def test_a_stack_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        StackSettings(**changes)
    assert message in str(error.value)
