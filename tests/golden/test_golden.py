"""The model against stored results of Transformers: what every machine can check without it.  See make.py."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from nn import KVCache, MoETransformer
from tests.oracle.compare import Arrays, assert_close, error, gradients

GOLDEN = Path(__file__).parent
LIMIT = {"float32": 1e-5, "float64": 1e-12}


def stored(dtype: str) -> tuple[MoETransformer, Arrays]:
    """The model, and what Transformers made of it."""
    folder = GOLDEN / dtype
    return MoETransformer.from_pretrained(folder), load_file(folder / "expected.safetensors")


@pytest.mark.parametrize("dtype", LIMIT)
def test_logits_loss_and_every_gradient(dtype: str) -> None:
    model, expected = stored(dtype)
    loss, _ = model.loss(expected["ids"], expected["targets"])
    loss.backward()
    assert model.embed_tokens.weight.dtype.name == dtype
    assert error(model(expected["ids"]).numpy(), expected["logits"]) < LIMIT[dtype]
    assert error(loss.item(), expected["loss"]) < LIMIT[dtype]
    found = {f"gradient.{name}": array for name, array in gradients(model).items()}
    assert_close(found, {name: x for name, x in expected.items() if name in found}, LIMIT[dtype])
    assert len(expected) == len(found) + 4


@pytest.mark.parametrize("dtype", LIMIT)
def test_logits_token_by_token(dtype: str) -> None:
    model, expected = stored(dtype)
    cache = KVCache(num_layers=model.config.num_layers)
    for t in range(expected["ids"].shape[1]):
        step = model(expected["ids"][:, t : t + 1], cache=cache).numpy()
        assert error(step[:, 0], expected["logits"][:, t]) < LIMIT[dtype]


def test_the_files_stay_small() -> None:
    """They are in the repository for good."""
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 200_000
