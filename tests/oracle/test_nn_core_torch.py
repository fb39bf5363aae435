"""Transformer beside PyTorch: the snippets of "nn-core" with PyTorch's tensors, and torch.nn.Transformer, an
independent encoder and decoder, with the same weights: values, masks, gradients."""

from typing import Any

import numpy as np
import pytest
import torch

from nn.models import AttentionConfig, BlockConfig, Transformer, TransformerConfig
from nn.tensor import Tensor
from tests.seeds.test_nn_core import DECODING, MOE, QUICKSTART, RECURRENCE, run

pytestmark = pytest.mark.oracle
D, H, F, V, LAYERS = 12, 3, 20, 17, 2


def test_the_snippets_with_torch() -> None:
    """As the document has them: tensors of PyTorch go in, and what comes out is as of NumPy's integers."""
    names = run(QUICKSTART, DECODING, MOE, RECURRENCE, framework="torch")
    assert isinstance(names["prefix"], torch.Tensor)
    model, cache = names["model"], names["cache"]
    text = torch.cat([names["prefix"], names["next_tok"]], dim=1)
    whole = model(text.numpy()).numpy()
    assert np.array_equal(model(text).numpy(), whole)
    np.testing.assert_allclose(names["logits_step"].numpy(), whole[:, 16:], rtol=0, atol=1e-5)
    assert cache.length == 17
    back = torch.from_numpy(np.asarray(model(text)))
    assert back.shape == (1, 17, 256)
    keep = torch.ones((1, 17), dtype=torch.bool)
    assert np.array_equal(model(text, mask=keep).numpy(), whole)
    assert model.loss(text[:, :-1], text[:, 1:])[0].item() == pytest.approx(
        torch.nn.functional.cross_entropy(back[0, :-1], text[0, 1:]).item(), rel=1e-5)


def ours(mode: str, norm_position: str = "pre") -> Transformer:
    block = BlockConfig(attn=AttentionConfig(n_heads=H, bias=True), norm="layernorm", bias=True, d_ff=F,
                        norm_position=norm_position, positional="none")
    cfg = TransformerConfig(vocab_size=V, d_model=D, n_layers=LAYERS, mode=mode, init_std=0.3, block=block)
    model, random = Transformer(cfg, dtype="float64"), np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data = parameter.numpy() + 0.1 * random.standard_normal(parameter.shape)
    return model


def theirs(model: Transformer, pre: bool = True) -> tuple[Any, Any]:
    """torch's encoder and decoder with the model's weights"""
    options: dict[str, Any] = {"dim_feedforward": F, "dropout": 0.0, "activation": "gelu",
                               "batch_first": True, "norm_first": pre, "dtype": torch.float64}
    weights = {name: torch.tensor(p.numpy()) for name, p in model.named_parameters().items()}
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(D, H, **options), LAYERS,
                                          _norm() if pre else None, enable_nested_tensor=False)
    encoder.load_state_dict(_named(weights, "encoder", pre))
    if model.decoder is None:
        return encoder, None
    decoder = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(D, H, **options), LAYERS, _norm())
    decoder.load_state_dict(_named(weights, "decoder", pre))
    return encoder, decoder


def _norm() -> Any:
    return torch.nn.LayerNorm(D, dtype=torch.float64)


ATTENTIONS = {"encoder": {"mixer": "self_attn"},
              "decoder": {"mixer": "self_attn", "memory": "multihead_attn"}}


def _named(w: dict[str, Any], part: str, final: bool) -> dict[str, Any]:
    """The weights of one part by torch's names"""
    attentions = ATTENTIONS[part]
    found = {f"norm.{kind}": w[f"{part}.norm.{kind}"] for kind in ("weight", "bias")} if final else {}
    for i in range(LAYERS):
        at, to = f"{part}.body.layers.{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            for mine, other in attentions.items():
                qkv = [w[f"{at}.{mine}.{each}_proj.{kind}"] for each in "qkv"]
                found[f"{to}.{other}.in_proj_{kind}"] = torch.cat(qkv)
                found[f"{to}.{other}.out_proj.{kind}"] = w[f"{at}.{mine}.o_proj.{kind}"]
            for n in range(len(attentions) + 1):
                found[f"{to}.norm{n + 1}.{kind}"] = w[f"{at}.connection.norms.{n}.{kind}"]
            for mine, other in (("up", "linear1"), ("down", "linear2")):
                found[f"{to}.{other}.{kind}"] = w[f"{at}.feed_forward.ffn.{mine}_proj.{kind}"]
    return found


def drawn(batch: int, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (batch, length))


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_encoder(norm_position: str) -> None:
    model, src = ours("encoder", norm_position), drawn(3, 9, 0)
    keep = np.arange(9) < np.array([9, 5, 1])[:, None]
    encoder, _ = theirs(model, norm_position == "pre")
    x = torch.tensor(model.main.embed_tokens.weight.numpy()[src])
    expected = encoder(x, src_key_padding_mask=torch.tensor(~keep)).detach().numpy()
    np.testing.assert_allclose(model(src, mask=keep).numpy()[keep], expected[keep], rtol=1e-9, atol=1e-10)


def test_seq2seq_forward_and_gradients() -> None:
    model, src, labels = ours("seq2seq"), drawn(3, 9, 0), drawn(3, 6, 1)
    keep = np.arange(9) < np.array([9, 5, 2])[:, None]
    labels[1, 4:] = -100
    encoder, decoder = theirs(model)
    embedding = torch.tensor(model.main.embed_tokens.weight.numpy(), requires_grad=True)
    given = np.concatenate([np.zeros((3, 1), int), np.where(labels < 0, 0, labels)[:, :-1]], axis=1)
    hidden = ~torch.tensor(keep)
    context = encoder(embedding[torch.tensor(src)], src_key_padding_mask=hidden)
    causal = torch.triu(torch.ones(6, 6, dtype=torch.bool), diagonal=1)
    states = decoder(embedding[torch.tensor(given)], context, tgt_mask=causal, memory_key_padding_mask=hidden)
    logits = states @ embedding.T
    np.testing.assert_allclose(model(src, given, mask=keep).numpy(), logits.detach(), rtol=1e-9, atol=1e-10)

    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, V), torch.tensor(labels).reshape(-1))
    loss.backward()
    total, _ = model.loss(src, labels, mask=keep)
    total.backward()
    assert total.item() == pytest.approx(loss.item(), rel=1e-12)
    gradients = {name: torch.tensor(p.grad) for name, p in model.named_parameters().items()}
    close = {"rtol": 1e-8, "atol": 1e-11}
    np.testing.assert_allclose(gradients["decoder.embed_tokens.weight"], embedding.grad, **close)
    for part, module in (("encoder", encoder), ("decoder", decoder)):
        mine = _named(gradients, part, True)
        for name, parameter in module.named_parameters():
            np.testing.assert_allclose(mine[name], parameter.grad, **close, err_msg=name)


def test_results_are_tensors_with_the_array_interface() -> None:
    hidden = ours("encoder")(drawn(1, 4, 0))
    assert isinstance(hidden, Tensor)
    assert torch.as_tensor(np.asarray(hidden)).shape == (1, 4, D)
