"""Rotary position embedding (Su et al. 2021): pairs of channels turned by the angle position · frequency.

The gradient of a rotation is the rotation back: dx = Rot(−φ) dy, the same kernel with `inverse=True`."""

from typing import Any

from nn.backends.array_api import namespace
from nn.dtypes import narrow, widen

Array = Any


def rope(x: Array, cos: Array, sin: Array, *, interleaved: bool = False, inverse: bool = False) -> Array:
    """Rotate the first r channels of x[B,H,T,Dh] by cos, sin [T,r/2] or [B,1,T,r/2]; the rest pass through.

    Half-split pairs (i, i + r/2) as Hugging Face's Llama and Mixtral;
    interleaved pairs (2i, 2i + 1) as GPT-J and GGUF."""
    xp = namespace(x)
    half = cos.shape[-1]
    z = widen(x)
    if inverse:
        sin = -sin
    if interleaved:
        a, b = z[..., 0 : 2 * half : 2], z[..., 1 : 2 * half : 2]
        turned = xp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
        turned = xp.reshape(turned, (*z.shape[:-1], 2 * half))
    else:
        a, b = z[..., :half], z[..., half : 2 * half]
        turned = xp.concat([a * cos - b * sin, b * cos + a * sin], axis=-1)
    if 2 * half < z.shape[-1]:
        turned = xp.concat([turned, z[..., 2 * half :]], axis=-1)
    return narrow(turned, x.dtype)


def rope_at(x: Array, cos: Array, sin: Array, positions: Array, *, interleaved: bool = False) -> Array:
    """rope of x[B,H,T,Dh], row b standing at positions[b] ... of the tables cos, sin [P,r/2]."""
    xp = namespace(x)
    rows = xp.reshape(positions[:, None] + xp.arange(x.shape[2])[None, :], (-1,))
    shape = (x.shape[0], 1, x.shape[2], cos.shape[1])
    cos, sin = (xp.reshape(xp.take(table, rows, axis=0), shape) for table in (cos, sin))
    return rope(x, cos, sin, interleaved=interleaved)
