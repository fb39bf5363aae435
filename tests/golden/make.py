"""Makes the golden files beside it, in seconds, with the oracle extra:  python -m tests.golden.make

Two tiny Mixtral checkpoints as Transformers writes them, each with what Transformers computes from it:
logits, loss and every gradient for fixed tokens.  tests/golden/test_golden.py holds us to them without
Transformers, and tests/oracle/test_golden_files.py makes them afresh and compares."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from nn import MoETransformerConfig
from nn.layers.rotary import RopeScaling
from tests.oracle import hugging_face, plain_mixtral
from tests.oracle.compare import Arrays, error, random_model, tokens

TINY = MoETransformerConfig(vocab_size=13, hidden_size=8, num_heads=4, intermediate_size=5, num_experts=3,
                            max_seq_len=32)
MODELS = {
    # one choice and one layer: the only case in which their auxiliary loss and ours are one number
    "float32": TINY.replace(num_layers=1, top_k=1, tie_embeddings=True, sliding_window=3, router_z_coef=0.0),
    "float64": TINY.replace(num_kv_heads=2, head_dim=6, balance_coef=0.3, router_z_coef=0.1,
                            rope_scaling=RopeScaling("yarn", 4.0, beta_fast=2.0)),
}


def make(folder: Path) -> None:
    """folder/float32 and folder/float64"""
    for dtype, config in MODELS.items():
        target = folder / dtype
        ids, targets = tokens(config.vocab_size, length=9)
        with hugging_face.in_full(dtype), TemporaryDirectory() as ours:
            random_model(config, dtype).save_pretrained(ours)
            model = hugging_face.load(Path(ours), dtype)
            model.save_pretrained(target)
            result = hugging_face.cross_entropy(model, ids, targets, output_router_logits=dtype == "float32")
            result.loss.backward()
        logits, loss = result.logits.detach().numpy(), result.loss.detach().numpy()
        gradients = hugging_face.gradients(model)
        if dtype == "float64":
            loss, gradients = with_auxiliary_losses(target, config, ids, targets, logits)
        expected = {"ids": ids, "targets": targets, "logits": logits, "loss": loss}
        expected |= {f"gradient.{name}": np.ascontiguousarray(array) for name, array in gradients.items()}
        save_file(expected, target / "expected.safetensors")
        (target / "generation_config.json").unlink()


def with_auxiliary_losses(folder: Path, config: MoETransformerConfig, ids: np.ndarray, targets: np.ndarray,
                          logits: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """(loss, gradients) with both, which only the plain model has.  Its logits must be those of the other."""
    weights = {name: w.requires_grad_() for name, w in load_file(folder / "model.safetensors").items()}
    theirs = json.loads((folder / "config.json").read_text())
    rope = theirs["rope_parameters"]
    theirs |= {"rope_scaling": rope, "rope_theta": rope["rope_theta"]}
    assert error(plain_mixtral.forward(theirs, weights, torch.tensor(ids))[0].detach(), logits) < 1e-12
    loss = plain_mixtral.loss(theirs, weights, torch.tensor(ids), torch.tensor(targets), config.router_z_coef)
    loss.backward()
    return loss.detach().numpy(), {name: w.grad.numpy() for name, w in weights.items()}


if __name__ == "__main__":
    make(Path(__file__).parent)
