"""loss.png: drawn by every run that has matplotlib, done without by every other."""

import sys

import numpy as np
import pytest

from nn.errors import InputError
from nn.train import draw_loss, train
from nn.train.plot import smooth


def test_a_run_leaves_its_picture(make_config):
    image = pytest.importorskip("matplotlib.image")
    result = train(make_config())
    pixels = image.imread(result.run / "loss.png")
    assert pixels.shape[:2] == (720, 1200)
    blue, red = [np.array(rgb) / 255 for rgb in ((0x3b, 0x6f, 0xb6), (0xc8, 0x44, 0x3c))]
    for colour in (blue, red):      # both curves are there
        assert (np.abs(pixels[..., :3] - colour).max(-1) < 0.02).sum() > 100


def test_drawing_leaves_matplotlibs_global_state_alone(make_config):
    pytest.importorskip("matplotlib")
    before = "matplotlib.pyplot" in sys.modules
    train(make_config())
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_without_matplotlib_the_run_is_complete_and_says_how_to_get_it(make_config, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = train(make_config())
    assert result.steps == 12
    assert not (result.run / "loss.png").exists()
    assert "pip install matplotlib" in caplog.text


def test_before_the_first_step_there_is_nothing_to_draw(make_config, make_trainer):
    trainer = make_trainer(make_config())
    trainer.run.metrics.touch()
    with pytest.raises(InputError, match="no finished step"):
        draw_loss(trainer.run.path)


def test_smoothing_has_no_lag_and_keeps_constants():
    assert smooth([2.0] * 7, 2) == [2.0] * 7
    assert smooth([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 1)[:5] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert smooth([5.0], 3) == [5.0]
