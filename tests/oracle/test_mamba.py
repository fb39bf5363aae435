"""Mamba and Mamba-2 against Transformers' mixers: results, all gradients, states, padding, one token more."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Mamba2Config, MambaConfig
from transformers.cache_utils import DynamicCache
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from nn.layers.ssm import Mamba, Mamba2, Mamba2Settings, MambaSettings
from nn.tensor import Tensor, no_grad
from tests.blocks.harness import shaken
from tests.oracle.compare import assert_close, error

LIMIT = {"float64": 1e-11, "float32": 2e-5}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", {}),
    "mamba, biases": ("mamba", {"use_bias": True, "use_conv_bias": False, "time_step_rank": 3}),
    "mamba, short": ("mamba", {"expand": 1, "conv_kernel": 2, "state_size": 3}),
    "mamba2": ("mamba2", {}),
    "mamba2, groups": ("mamba2", {"num_groups": 2, "use_bias": True}),
    "mamba2, limits": ("mamba2", {"time_step_limit": (0.2, 0.9), "use_conv_bias": False, "head_dim": 8}),
}


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers computes decays, steps and norms with .float(): leave float64 as it is."""
    rounded, to = torch.Tensor.float, torch.Tensor.to

    def kept(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if x.dtype == torch.float64 and torch.float32 in (*args, *options.values()):
            return x
        return to(x, *args, **options)

    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else rounded(x))
    monkeypatch.setattr(torch.Tensor, "to", kept)


def pair(name: str, dtype: str = "float64") -> tuple[Any, Any]:
    """Our layer and theirs, with the same weights"""
    kind, options = CASES[name]
    own: dict[str, Any] = {"hidden_size": 16, "chunk_size": 4, "state_size": 4} | options
    theirs = {key: own[key] for key in own if key not in ("num_groups", "chunk_size", "time_step_rank")}
    if kind == "mamba":
        rank = own.get("time_step_rank", 1)
        config = MambaConfig(**theirs, time_step_rank=rank, num_hidden_layers=1)
        layer, mixer = shaken(Mamba(MambaSettings(**own), dtype), 0), MambaMixer(config, 0)
    else:
        own["head_dim"] = theirs["head_dim"] = own.get("head_dim", 4)
        config = Mamba2Config(**theirs, num_heads=32 // own["head_dim"], n_groups=own.get("num_groups", 1),
                              chunk_size=4, num_hidden_layers=1)
        layer, mixer = shaken(Mamba2(Mamba2Settings(**own, norm_groups=1), dtype), 0), Mamba2Mixer(config, 0)
    weights = {key: torch.tensor(shaped(key, value)) for key, value in layer.state_dict().items()}
    mixer = mixer.to(getattr(torch, dtype)).eval()
    mixer.load_state_dict(weights)
    return layer, mixer


def shaped(name: str, array: np.ndarray) -> np.ndarray:
    """The convolution's weight is [C,1,K] there"""
    return array[:, None] if name == "conv1d.weight" else array


def inputs(dtype: str, length: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, length, 16)).astype(dtype)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("length", [1, 3, 13])
@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients(name: str, length: int, dtype: str) -> None:
    layer, mixer = pair(name, dtype)
    for mode in ("chunk", "recurrent"):
        layer.zero_grad()
        mixer.zero_grad()
        x = inputs(dtype, length)
        ours, theirs = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, _ = layer(ours, mode=mode)
        expected = mixer(theirs)
        assert error(y.data, expected.detach()) < LIMIT[dtype]
        weight = np.random.default_rng(1).standard_normal(x.shape).astype(dtype)
        y.backward(weight)
        expected.backward(torch.tensor(weight))
        found = {key: shaped(key, p.grad) for key, p in layer.named_parameters().items()} | {"x": ours.grad}
        right = {key: p.grad.numpy() for key, p in mixer.named_parameters()} | {"x": theirs.grad.numpy()}
        assert_close(found, right, LIMIT[dtype])


@pytest.mark.parametrize("name", [name for name, (_, given) in CASES.items() if "use_bias" not in given])
def test_padding(name: str) -> None:
    """Left padding: what the tokens get.  With a bias in in_proj, theirs sends it through the convolution at
    padding, too, so that a padded row is not the row alone."""
    layer, mixer = pair(name)
    x, mask = inputs("float64", 9), np.arange(9)[None] >= np.array([[0], [4]])
    with no_grad(), torch.no_grad():
        y, _ = layer(Tensor(x), mask=mask, mode="chunk")
        expected = mixer(torch.tensor(x), attention_mask=torch.tensor(mask).long())
    assert error(y.data[mask], expected.numpy()[mask]) < LIMIT["float64"]


@pytest.mark.parametrize("name", [name for name in CASES if "limits" not in name])
def test_a_prompt_and_a_token_behind_it(name: str) -> None:
    """Results and the recurrent state, theirs kept in a cache.  Their single step forgets time_step_limit."""
    layer, mixer = pair(name)
    x = inputs("float64", 8)
    cache = DynamicCache(config=mixer_config(mixer))
    with no_grad(), torch.no_grad():
        first, state = layer(Tensor(x[:, :7]), state=layer.init_state(2), mode="chunk")
        second, state = layer(Tensor(x[:, 7:]), state=state, mode="recurrent")
        theirs = [mixer(torch.tensor(x[:, :7]), cache_params=cache),
                  mixer(torch.tensor(x[:, 7:]), cache_params=cache)]
    for found, expected in zip((first, second), theirs, strict=True):
        assert error(found.data, expected) < LIMIT["float64"]
    assert error(state.ssm_state.value, cache.layers[0].recurrent_states[0]) < LIMIT["float64"]


def mixer_config(mixer: Any) -> Any:
    """A configuration from which a cache for one such layer can be made"""
    kind = MambaConfig if isinstance(mixer, MambaMixer) else Mamba2Config
    return getattr(mixer, "config", None) or kind(
        hidden_size=16, num_hidden_layers=1, head_dim=mixer.head_dim, num_heads=mixer.num_heads)
