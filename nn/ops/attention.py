"""Rotary embedding and softmax attention for grouped query heads."""

from typing import Any

from nn.backends import kernels
from nn.backends.array_api import namespace
from nn.ops.count import visible_pairs
from nn.tensor import Array, Op, Tensor


class Rope(Op):
    """y = Rot(φ) x, channel pairs turned by φ = position · frequency (Su et al. 2021):  dx = Rot(−φ) dy"""

    def forward(self, x: Array, *, cos: Array, sin: Array, interleaved: bool) -> Array:
        self.cos, self.sin, self.interleaved = cos, sin, interleaved
        return kernels.rope(x, cos, sin, interleaved=interleaved)

    def backward(self, dy: Array) -> Array:
        return kernels.rope(dy, self.cos, self.sin, interleaved=self.interleaved, inverse=True)


class Attention(Op):
    """O = P V,  P = softmax(scale Q Kᵀ) over visible keys, rebuilt in backward from L = log Σ exp (Dao 2023):

    Δ = Σ dO ⊙ O,  dV = Pᵀ dO,  dS = P ⊙ (dO Vᵀ − Δ),  dQ = scale dS K,  dK = scale dSᵀ Q;
    dK and dV sum over the query heads of their group."""

    new_gradients = True

    def forward(self, q: Array, k: Array, v: Array, **options: Any) -> Array:
        self.q, self.k, self.v, self.options = q, k, v, options
        self.o, self.lse = kernels.attention(q, k, v, **options)
        return self.o

    def flops(self, inputs: list[Array], results: tuple[Array, ...], options: dict[str, Any]) -> int:
        """Of the pairs that the order and the window leave visible, whatever a mask hides besides."""
        q, k, v = (x.shape for x in inputs)
        pairs = visible_pairs(q[2], k[2], options["window"], options["causal"])
        return 2 * q[0] * q[1] * pairs * (q[3] + v[3])

    def backward(self, do: Array) -> Any:
        return kernels.attention_backward(do, self.q, self.k, self.v, self.o, self.lse, **self.options)


def rope(x: Tensor, cos: Array, sin: Array, interleaved: bool = False) -> Tensor:
    """x[B,H,T,D] turned by the tables cos, sin [T,r/2] (or [B,1,T,r/2]); channels beyond r pass through."""
    return Rope.apply(x, cos=cos, sin=sin, interleaved=interleaved)


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, causal: bool = True,
              window: int = 0, mask: Array | None = None) -> Tensor:
    """q[B,H,T,D], k[B,G,S,D], v[B,G,S,Dv] -> [B,H,T,Dv]; query head h reads key/value head h // (H/G).

    Query i stands at position S − T + i; one that sees nothing gives zeros.  scale: D^−½ unless given.
    window W > 0: key j is visible to position p only if p − W < j.
    mask: boolean, broadcastable to [B,H,T,S], True keeps."""
    _check(q, k, v)
    if mask is not None and mask.dtype != namespace(mask).bool:
        raise TypeError(f"attention: the mask holds {mask.dtype}; give booleans, True keeps "
                        "(of an additive mask: mask == 0)")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return Attention.apply(q, k, v, scale=scale, causal=causal, window=window, mask=mask)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"q [B,H,T,D] = {list(q.shape)}, k [B,G,S,D] = {list(k.shape)}, v [B,G,S,Dv] = {list(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"attention: four axes each are needed: {shapes}")
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention: B, G, S or D disagree: {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"attention: H = {q.shape[1]} is not a multiple of G = {k.shape[1]}: {shapes}")
