"""Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2): in training, modules behind the model
predict tokens further ahead, each from what the one before it made.

    h'ᵏ_i = W_k [norm(Emb(x_{i+k})) ; norm(hᵏ⁻¹_i)],   hᵏ = block_k(h'ᵏ),   logits head(norm(hᵏ)), k = 1 ... m

h⁰ is the model's stream before its final norm; embedding and head are the model's own.  Position i at depth k
has seen x_0 ... x_{i+k} and predicts x_{i+k+1}.  The loss is λ/m Σ_k CE_k, each sum over the positions
divided as the main loss is.  Generating knows nothing of it; `further_logits` asks for what it predicts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nn import ops
from nn.backends.array_api import namespace
from nn.errors import InputError
from nn.layers import auxiliary
from nn.layers.formulas import projection
from nn.layers.linear import Linear
from nn.layers.module import Module
from nn.layers.norm import create_norm
from nn.layers.pattern import NONE
from nn.layers.residual import Residual
from nn.layers.stack import BLOCK_ROLES, Stack, StackSettings
from nn.ops.gather import as_integers
from nn.tensor import Array, Tensor, no_grad


@dataclass(frozen=True)
class MTPSettings:
    """Modules that predict further ahead."""

    layer: StackSettings      # the block of each: one layer
    depth: int = 1            # modules: tokens further ahead
    weight: float = 0.3       # of their losses' mean

    @classmethod
    def behind(cls, stack: StackSettings, depth: int, weight: float) -> "MTPSettings":
        """With blocks like the stack's last layer, but without its memory."""
        names: dict[str, Any] = {role: stack.expanded(role)[-1] for role in BLOCK_ROLES} | {"memory": NONE}
        used = {*names.values(), stack.residual}
        options = {name: own for name, own in stack.options.items() if name in used}
        out_std = stack.layers()[-1].connection.out_std
        layer = replace(stack, num_layers=1, memory_at="pre_attn", options=options, out_std=out_std, **names)
        return cls(layer, depth, weight)

    def parameters(self, active: bool = False) -> dict[str, int]:
        """By component; active: 0, as no token meets them outside training."""
        width = self.layer.hidden_size
        own = {"norms": 3 * width * (2 if self.layer.norm == "layernorm" else 1), "eh_proj": 2 * width**2}
        counts = own | self.layer.parameters()
        return {f"mtp.{name}": 0 if active else self.depth * count for name, count in counts.items()}

    def flops(self, batch: int, length: int, vocab_size: int) -> dict[str, int]:
        """Forward operations that a training step has besides the model's, by component."""
        sums: dict[str, int] = {}
        width = self.layer.hidden_size
        for left in range(length - 1, max(0, length - 1 - self.depth), -1):
            tokens = batch * left
            counts = {"eh_proj": projection(tokens, (2 * width, width)),
                      "head": projection(tokens, (width, vocab_size))}
            for name, count in (counts | self.layer.flops(batch, left, mode="chunk")).items():
                sums[f"mtp.{name}"] = sums.get(f"mtp.{name}", 0) + count
        return sums


class MTPModule(Module):
    """One depth: enorm, hnorm, eh_proj [D,2D], layer, norm."""

    def __init__(self, settings: StackSettings, dtype: Any = "float32") -> None:
        s = settings
        self.enorm, self.hnorm, norm = (create_norm(s.norm, s.hidden_size, s.norm_eps, dtype) for _ in "ehn")
        self.eh_proj = Linear(2 * s.hidden_size, s.hidden_size, std=s.init_std, dtype=dtype)
        self.layer = Stack(s, dtype)
        self.norm = norm

    def forward(self, embedded: Tensor, h: Tensor, *, mask: Array | None = None, mode: str | None = None,
                **packed: Array) -> tuple[Tensor, Tensor]:
        """Embeddings of the tokens k ahead and the stream [B,T,D] -> (normalised for the head, the stream)"""
        x = self.eh_proj(ops.concat([self.enorm(embedded), self.hnorm(h)], axis=-1))
        h, _ = self.layer(x, mask=mask, mode=mode, **packed)
        return self.norm(Residual(h))


class MultiTokenPrediction(Module):
    """The modules of all depths."""

    def __init__(self, settings: MTPSettings, dtype: Any = "float32") -> None:
        self.settings = settings
        self.depths = [MTPModule(settings.layer, dtype) for _ in range(settings.depth)]

    def forward(self, h: Tensor, embedded: Tensor, *, mask: Array | None = None, mode: str | None = None,
                segment_ids: Array | None = None) -> Iterator[Tensor]:
        """The model's stream and embeddings [B,T,D] -> for each depth k < T, [B,T-k,D] ready for the head"""
        for k, module in enumerate(self.depths[: h.shape[1] - 1], start=1):
            keep = None if mask is None else mask[:, :-k]        # padding, which stands left, is as far ahead
            packed = {} if segment_ids is None else {"segment_ids": segment_ids[:, :-k]}
            normalised, h = module(embedded[:, k:], h[:, :-1], mask=keep, mode=mode, **packed)
            yield normalised

    def emit(self, model: Any, ids: Array, labels: Array, h: Tensor, *, scale: Any, ignore_index: int,
             mask: Array | None = None, mode: str | None = None, segment_ids: Array | None = None) -> None:
        """Emit the loss "mtp", λ/m Σ_k CE_k, and the figure "mtp/loss", each CE_k.

        h: the model's stream [B,T,D].  labels[B,T]: of the main loss; nothing is predicted across one that is
        ignored, as it stands at a document's end, nor from one segment into another.  scale: what sums of
        cross-entropies are multiplied by."""
        losses, wanted, xp = [], labels, namespace(labels)
        segment_ids = None if segment_ids is None else as_integers("segment_ids", segment_ids)
        further = self(h, model.embed_tokens(ids), mask=mask, mode=mode, segment_ids=segment_ids)
        for k, hidden in enumerate(further, start=1):
            ended = wanted[:, :-1] == ignore_index
            if segment_ids is not None:
                ended = ended | (segment_ids[:, :-k] != segment_ids[:, k:])
            wanted = xp.where(ended, xp.full_like(labels[:, k:], ignore_index), labels[:, k:])
            losses.append(model.cross_entropy(hidden, wanted.reshape(-1), scale, ignore_index))
        for loss in losses:
            auxiliary.emit_figure("mtp/loss", loss.data)
        if losses:
            total = sum(losses[1:], start=losses[0])
            auxiliary.emit_loss("mtp", total * (self.settings.weight / self.settings.depth))


def further_logits(model: Any, ids: Any, *, mask: Any = None) -> list[Tensor]:
    """For k = 1 ... m logits [B,T-k,V] of integers [B,T]: row i predicts token i + k + 1.  No gradients.
    InputError for a model without such modules."""
    if model.mtp is None:
        raise InputError("model: it has no modules that predict further; set mtp_depth in its configuration")
    with no_grad():
        h = model.trunk(ids, None, mask, None).total()
        return [model.logits(hidden) for hidden in model.mtp(h, model.embed_tokens(ids), mask=mask)]
