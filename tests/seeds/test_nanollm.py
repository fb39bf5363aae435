"""The requirement document "nanoLLM": its five configurations, as they are and made small enough to run, its
commands, and components exchanged by name."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nn import InputError
from nn.config import load, read, update
from nn.models.language_model import LanguageModel, LanguageModelConfig
from nn.models.qwen3 import QWEN3_0_6B, QWEN3_MOE_A0_6B
from nn.optim import Muon, create_optimizer
from nn.train.config import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = ("baseline_0_6B", "moe_a0_6B", "experimental_mhc")

HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "qk_norm": "head", "rope_theta": 1e6}
SMALLER = {"full_attention": HEADS, "swiglu": {"intermediate_size": 24}, "mhc": {"n_streams": 4},
           "moe": {"num_experts": 8, "top_k": 2, "intermediate_size": 12}}


def small(name: str) -> LanguageModelConfig:
    """A configuration of the document with every size reduced, and nothing else."""
    config = load(CONFIGS / "model" / f"{name}.yaml", LanguageModelConfig)
    options = {block: own | SMALLER[block] for block, own in config.options.items()}
    return config.replace(vocab_size=31, hidden_size=16, num_layers=2, max_seq_len=32, options=options)


def count(config: LanguageModelConfig, active: bool = False) -> int:
    return sum(config.parameters(active).values())


def tokens(length: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 31, (2, length + 1))


# ---- the configurations as they are ----

@pytest.mark.parametrize(("name", "total", "active"), [
    ("baseline_0_6B", 596_049_920, 596_049_920), ("moe_a0_6B", 2_447_572_992, 597_884_928),
    ("experimental_mhc", 601_556_456, 601_556_456)])
def test_models_are_counted_without_being_drawn(name: str, total: int, active: int) -> None:
    config = load(CONFIGS / "model" / f"{name}.yaml", LanguageModelConfig)
    model = LanguageModel(config)
    assert (count(config), count(config, active=True)) == (total, active)
    assert sum(p.size for p in model.parameters()) == total
    assert not any(p.allocated for p in model.parameters())


def test_the_files_say_what_the_presets_say() -> None:
    assert load(CONFIGS / "model" / "baseline_0_6B.yaml", LanguageModelConfig) == QWEN3_0_6B
    moe = load(CONFIGS / "model" / "moe_a0_6B.yaml", LanguageModelConfig)
    assert moe.stack.layers() == QWEN3_MOE_A0_6B.stack.layers()       # the file also names some defaults


@pytest.mark.parametrize("name", ["pretrain_adamw", "pretrain_muon"])
def test_training_files(name: str) -> None:
    settings = read(CONFIGS / "train" / f"{name}.yaml", TrainConfig)
    config = update(TrainConfig(model=QWEN3_0_6B), settings)
    assert config.optimizer == name.removeprefix("pretrain_")
    model = LanguageModel(small("baseline_0_6B"))
    optimizer = create_optimizer(config.optimizer, model.named_parameters(), lr=config.lr,
                                 **config.optimizer_options)
    assert isinstance(optimizer, Muon) == (name == "pretrain_muon")


@pytest.mark.parametrize(("line", "message"), [
    ("hiden_size: 64", r"hiden_size: unknown key\. Did you mean hidden_size\? .*line 1"),
    ("options: {full_attention: {head_dims: 8}}", "head_dims: unknown setting.*head_dim"),
    ("options: {gla: {num_heads: 2}}", "options: 'gla'"), ("mixer: full_atention", "full_attention"),
    ("num_layers: many", "num_layers: expected a whole number")])
def test_unknown_keys_are_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(f"{line}\n")
    with pytest.raises(InputError, match=message):
        load(tmp_path / "model.yaml", LanguageModelConfig)


# ---- made small ----

@pytest.mark.parametrize("name", MODELS)
def test_small_versions_train(name: str) -> None:
    model, ids = LanguageModel(small(name)), tokens()
    optimizer = create_optimizer("muon", model.named_parameters(), lr=0.02)
    losses = []
    for step in range(25):
        model.set_noise(0, step)
        total, figures = model.loss(ids[:, :-1], ids[:, 1:])
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(figures["loss"])
    assert losses[0] == pytest.approx(np.log(31), abs=0.1)
    assert losses[-1] < 0.5 * losses[0]


def test_streams_start_as_the_baseline() -> None:
    """mHC's mixing leaves equal streams equal, and its gates start at one."""
    baseline, streams, ids = (LanguageModel(small("baseline_0_6B")), LanguageModel(small("experimental_mhc")),
                              tokens())
    shared = {name: values for name, values in baseline.state_dict().items() if "connection" not in name}
    for name, parameter in streams.named_parameters().items():
        if name in shared:
            parameter.load(shared[name])
    np.testing.assert_allclose(streams(ids).numpy(), baseline(ids).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["baseline_0_6B", "moe_a0_6B"])
def test_initial_weights_are_all_alike(name: str) -> None:
    """Normal(0, 0.02), projections into the residual stream too; norms are 1."""
    config = small(name).replace(hidden_size=64, vocab_size=500)
    for parameter_name, parameter in LanguageModel(config).named_parameters().items():
        values = parameter.numpy()
        if "norm" in parameter_name:
            assert (values == 1.0).all()
        else:
            assert values.std() == pytest.approx(0.02, rel=5.0 / np.sqrt(values.size))


# ---- pluggable components ----

ATTENTION = ("full_attention", "mla", "gated_attention", "linear_attention", "block_sparse",
             "sliding_attention", "nsa", "[gated_delta_net, full_attention]")
FEED_FORWARD = ("swiglu", "moe", "[mlp, moe]")
RESIDUAL = ("pre_norm", "mhc", "hc", "post_norm", "parallel")
MEMORY = ("none", "engram")
# Each attention with some of the others, so that each value of one meets each value of the next.
GRID = [(mixer, FEED_FORWARD[i % 3], RESIDUAL[(i + shift) % 5], MEMORY[(i + shift) % 2])
        for i, mixer in enumerate(ATTENTION) for shift in (0, 2, 3)]
COMPONENTS = """
vocab_size: 31
hidden_size: 16
num_layers: 2
max_seq_len: 32
mixer: {mixer}
feed_forward: {feed_forward}
residual: {residual}
memory: {memory}
memory_at: {place}
"""


def test_the_grid_holds_every_component() -> None:
    every = (ATTENTION, FEED_FORWARD, RESIDUAL, MEMORY)
    assert [set(column) for column in zip(*GRID, strict=True)] == [set(names) for names in every]


@pytest.mark.parametrize("case", GRID, ids=" ".join)
def test_components_by_name(case: tuple[str, str, str, str], tmp_path: Path) -> None:
    """From a file: it builds, counts, learns something in a step, and decodes as it reads."""
    mixer, feed_forward, residual, memory = case
    place = ("pre_attn", "post_attn", "ffn")[GRID.index(case) % 3]
    path = tmp_path / "model.yaml"
    path.write_text(COMPONENTS.format(mixer=mixer, feed_forward=feed_forward, residual=residual,
                                      memory=memory, place=place))
    config = load(path, LanguageModelConfig)
    model, ids = LanguageModel(config), tokens()
    assert model.num_parameters() == count(config)
    before, _ = model.loss(ids[:, :-1], ids[:, 1:])
    before.backward()
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.any():
            parameter.data = parameter.data - (0.02 * np.sign(parameter.grad)).astype(parameter.dtype)
    model.zero_grad()
    assert model.loss(ids[:, :-1], ids[:, 1:])[0].item() < before.item()
    model.eval()
    state, pieces = model.init_state(2), []
    for start, end in pairwise((0, 7, 8, 13)):
        pieces.append(model(ids[:, start:end], cache=state).numpy())
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), model(ids).numpy(), atol=2e-4)


