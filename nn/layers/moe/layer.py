"""The mixture-of-experts feed-forward: a router and its experts."""

from nn.backends.array_api import on_device
from nn.layers.module import Module
from nn.layers.moe.experts import Experts
from nn.layers.moe.router import Router
from nn.tensor import Tensor


class MoELayer(Module):
    """y_t = Σ_{e selected for t} w_{t,e} expert_e(x_t)   (Shazeer et al. 2017; Jiang et al. 2024, Mixtral)"""

    def __init__(self, router: Router, experts: Experts) -> None:
        self.router, self.experts = router, experts

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]"""
        batch, length, width = x.shape
        if on_device(x.data) and not self.router.minds_places:        # rows are computed each by itself there
            tokens = x.reshape(batch * length, width)
            return self.experts(tokens, self.router(tokens)).reshape(batch, length, width)
        tokens = x.permute(1, 0, 2).reshape(length * batch, width)    # later tokens come later in every group
        y = self.experts(tokens, self.router(tokens), batch_invariant=length > 1)
        return y.reshape(length, batch, width).permute(1, 0, 2)
