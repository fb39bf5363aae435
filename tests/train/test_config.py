"""The training configuration: its presets, its limits, and its way through a file."""

from dataclasses import fields, replace

import pytest

from nn.config import load, save, settings
from nn.errors import InputError
from nn.models import MoETransformerConfig
from nn.train import PRESETS, TrainConfig, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_a_file(tmp_path, name):
    save(preset(name), tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml", TrainConfig) == preset(name)


@pytest.mark.parametrize(("epochs", "most", "steps"), [
    (1, 0, 2),          # 130 tokens are 16 windows of 8 tokens, 5 · 2 of them in a step
    (1, 81, 1), (1, 82, 1), (1, 89, 2), (2.5, 81, 3), (0.01, 0, 1), (1, 1000, 2)])
def test_epochs_are_steps_of_the_text(epochs, most, steps):
    config = TrainConfig(seq_len=8, batch_size=5, accumulate=2, epochs=epochs, max_tokens=most, warmup=30)
    found = config.in_steps(130)
    assert (found.steps, found.epochs, found.warmup) == (steps, 0, 0)
    assert found.in_steps(999) == found
    assert replace(config, batch_size=1, accumulate=1, epochs=20, max_tokens=0).in_steps(130).warmup == 30


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'smoke'"):
        preset("smok")


def test_every_setting_explains_itself():
    unexplained = [setting.key for setting in settings(TrainConfig) if not setting.help]
    assert not unexplained


@pytest.mark.parametrize(("name", "value"), [
    ("steps", 0), ("batch_size", 0), ("accumulate", -1), ("lr", 0.0), ("clip", 0.0), ("warmup", -1),
    ("seed", -1),
    ("held_out_fraction", 1.0), ("lr_floor", 1.5), ("eval_every", 0), ("keep_last", 0), ("eval_tokens", -1),
])
def test_a_value_out_of_range_is_refused_by_name(name, value):
    assert name in {field.name for field in fields(TrainConfig)}
    with pytest.raises(InputError, match=f"^{name}: {value}"):
        replace(TrainConfig(), **{name: value})


@pytest.mark.parametrize(("name", "value", "nearest"), [
    ("schedule", "cosin", "cosine"), ("optimizer", "adam", "adamw")])
def test_an_unknown_name_is_refused_before_anything_is_prepared(name, value, nearest):
    with pytest.raises(InputError, match=f"^{name}: '{value}' is not known; did you mean '{nearest}'"):
        TrainConfig(**{name: value})


def test_a_sequence_longer_than_the_context_is_refused():
    with pytest.raises(InputError, match="seq_len: 65 is longer than the model's context; lower it to 64"):
        TrainConfig(seq_len=65, model=MoETransformerConfig(max_seq_len=64))


def test_the_model_follows_the_tokenizer():
    config = TrainConfig().with_vocab(321)
    assert config.model.vocab_size == 321
    assert replace(config, model=TrainConfig().model) == TrainConfig()
