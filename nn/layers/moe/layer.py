"""The mixture-of-experts feed-forward: a router and its experts."""

from nn import ops
from nn.backends.array_api import on_device
from nn.layers.module import Module
from nn.layers.moe.decision import Rows
from nn.layers.moe.experts import Experts
from nn.layers.moe.router import Router
from nn.tensor import Array, Tensor


class MoELayer(Module):
    """y_t = Σ_{e selected for t} w_{t,e} expert_e(x_t)   (Shazeer et al. 2017; Jiang et al. 2024, Mixtral)"""

    def __init__(self, router: Router, experts: Experts) -> None:
        self.router, self.experts = router, experts

    def forward(self, x: Tensor, mask: Array | None = None) -> Tensor:
        """[B,T,D] -> [B,T,D].  mask: see nn/layers/protocol.py; padding is in no loss and no figure, and
        takes no expert's capacity."""
        batch, length, width = x.shape
        mask = mask if self.router.minds_padding else None
        if on_device(x.data) and not self.router.minds_places:        # rows are computed each by itself there
            tokens, rows = x.reshape(batch * length, width), Rows.of(x, mask, by_time=False)
            return self.experts(tokens, self.router(tokens, rows)).reshape(batch, length, width)
        tokens = x.permute(1, 0, 2).reshape(length * batch, width)    # later tokens come later in every group
        if self.router.jitter_affects_experts and self.router.training and self.router.jitter:
            tokens = ops.jitter(tokens, self.router.noise, self.router.jitter)
        routing = self.router(tokens, Rows.of(x, mask, by_time=True))
        y = self.experts(tokens, routing, batch_invariant=length > 1)
        return y.reshape(length, batch, width).permute(1, 0, 2)
