"""What a run says of its experts: every step's line, the printed fields, experts.png."""

import json
import math

import numpy as np
import pytest

from nn.errors import InputError
from nn.train import train
from nn.train.expert_plot import averaged, draw_experts
from nn.train.progress import _summary
from nn.train.trainer import _plain


def test_figures_of_a_step_by_hand():
    """Two layers: all experts alike, and one for everything."""
    found = _plain({"loss": 1.0, "moe/load": np.array([[0.25] * 4, [1.0, 0, 0, 0]]),
                    "moe/overflow": np.array([0.0, 0.5]), "moe/load_balance": 0.5})
    assert found["loss"] == 1.0
    assert found["moe/load"] == [0.625, 0.125, 0.125, 0.125]
    assert found["moe/usage_entropy"] == pytest.approx(math.log(4) / 2)
    assert found["moe/usage_evenness"] == pytest.approx(0.5)
    assert found["moe/overflow"] == 0.25
    assert found["moe/layers"] == {
        "overflow": [0.0, 0.5], "usage_entropy": [1.3863, 0.0], "usage_evenness": [1.0, 0.0],
        "load_cv": [0.0, 1.7321], "max_violation": [0.0, 3.0], "min_load": [1.0, 0.0], "dead_experts": [0, 3]}
    assert "moe/layers" not in _plain({"loss": 1.0})


def test_every_step_of_a_run_says_so(make_config, monkeypatch):
    monkeypatch.setattr("nn.train.job.draw_loss", lambda folder: None)
    result = train(make_config(model={"num_layers": 2}))
    lines = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    for line in lines:
        layers = line["moe/layers"]
        assert {len(figures) for figures in layers.values()} == {2}
        assert set(layers) >= {"router_entropy", "top1_probability", "usage_entropy", "usage_evenness",
                               "load_cv", "max_violation", "min_load", "dead_experts"}
        assert line["moe/usage_entropy"] == pytest.approx(sum(layers["usage_entropy"]) / 2, abs=1e-4)
    printed = _summary(lines[-1])
    assert float(printed["usage_evenness"]) == pytest.approx(lines[-1]["moe/usage_evenness"], abs=1e-3)
    assert {"max_violation", "dead_experts"} <= printed.keys()


def test_picture(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    lines = [{"step": step, "moe/load": [0.7, 0.3], "moe/layers": {
        "usage_evenness": [0.9, 1.0], "max_violation": [0.4, 0.0], "overflow": [0.0, 0.1]}}
        for step in range(1, 900)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pixels = image.imread(draw_experts(tmp_path))
    assert pixels.shape[1] == 1200
    reddish = (pixels[..., 0] - pixels[..., 2] > 0.3).sum()            # the busy expert's half of the map
    bluish = (pixels[..., 2] - pixels[..., 0] > 0.3).sum()
    assert min(reddish, bluish) > 10_000
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match="no step with experts"):
        draw_experts(tmp_path)


def test_averaged():
    assert averaged(np.arange(6.0), 3).tolist() == [0.5, 2.5, 4.5]
    assert averaged(np.arange(2.0), 3).tolist() == [0.0, 1.0]
