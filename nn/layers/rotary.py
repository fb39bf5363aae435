"""Rotary positions: frequencies, their scalings to longer contexts, and the tables of cosines and sines.

inv_i = θ^(−2i/d), angle = position · inv_i, formed in float64: float32 is 0.01 rad off at position 262,143.

    linear   inv / s                                                                      (Chen et al. 2023)
    ntk      θ → θ s^(d/(d−2)): fastest frequency kept, slowest divided by exactly s      (bloc97 2023)
    dynamic  ntk with s' = s ℓ/L₀ − (s − 1) for a planned length ℓ > L₀; plain up to L₀   (emozilla 2023)
    yarn     slow inv / s, fast kept, a ramp between; cos and sin times 0.1 ln s + 1      (Peng et al. 2023)
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nn.errors import InputError
from nn.names import check_name

Array = Any

KINDS = ("none", "linear", "ntk", "dynamic", "yarn")
KEPT = 8         # lengths of whole texts
FAR = 2**20      # positions that tables are kept of; later ones, of states without end, are formed anew


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to contexts longer than the trained one."""

    type: str = "none"                            # none, linear, ntk, dynamic or yarn
    factor: float = 1.0                           # s: new context / trained context
    original_max_position_embeddings: int = 0     # L0, the trained context; 0 = max_seq_len / factor
    beta_fast: float = 32.0                       # yarn: turns within L0 above which a frequency is kept
    beta_slow: float = 1.0                        # yarn: turns within L0 below which it is divided by s
    attention_factor: float = 0.0                 # yarn: multiplies cos and sin; 0 = 0.1 ln s + 1

    def __post_init__(self) -> None:
        check_name("rope_scaling.type", self.type, KINDS)
        if self.factor < 1.0:
            raise InputError(f"rope_scaling.factor: {self.factor} is below 1; "
                             "it is new context / trained context")


def inverse_frequencies(dim: int, theta: float, scaling: RopeScaling,
                        length: int) -> tuple[np.ndarray, float]:
    """([dim/2] float64 radians per position, factor for cos and sin) for up to `length` positions."""
    if dim < 2 or dim % 2:
        raise InputError(f"rotary width: {dim} is not an even number of channels; choose another head_dim")
    if not 0.0 < theta < math.inf:
        raise InputError(f"rope_theta: {theta} is not a positive number")
    s, trained = scaling.factor, scaling.original_max_position_embeddings or round(length / scaling.factor)
    if scaling.type == "dynamic":
        s = max(1.0, s * length / trained - (s - 1.0))
    if scaling.type in ("ntk", "dynamic"):
        if dim == 2:
            raise InputError(f"rope_scaling.type: {scaling.type} needs a rotary width above 2; choose linear")
        theta *= s ** (dim / (dim - 2))
    inv = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling.type == "linear":
        return inv / s, 1.0
    if scaling.type == "yarn":
        keep = _yarn_keep(dim, theta, scaling, trained)
        return inv * keep + inv / s * (1.0 - keep), scaling.attention_factor or (0.1 * math.log(s) + 1.0)
    return inv, 1.0


def _yarn_keep(dim: int, theta: float, scaling: RopeScaling, trained: int) -> np.ndarray:
    """[dim/2] 1 where a frequency turns over beta_fast times within L0, 0 below beta_slow, linear between."""

    def channel(turns: float) -> float:
        return dim * math.log(trained / (turns * 2.0 * math.pi)) / (2.0 * math.log(theta))

    low = max(math.floor(channel(scaling.beta_fast)), 0)
    high = min(math.ceil(channel(scaling.beta_slow)), dim - 1)
    ramp = (np.arange(dim // 2) - low) / max(high - low, 0.001)
    return 1.0 - np.clip(ramp, 0.0, 1.0)


class Rotary:
    """Tables of cos and sin, grown on demand.  One serves all layers of a model; it holds no parameters.

    `length` is the planned context: dynamic scaling is fixed for it, so that cached keys never disagree."""

    def __init__(self, dim: int, theta: float = 10000.0, scaling: RopeScaling | None = None,
                 length: int = 2048, interleaved: bool = False) -> None:
        self.inv, self.factor = inverse_frequencies(dim, theta, scaling or RopeScaling(), length)
        self.interleaved = interleaved
        self._tables = (np.zeros((0, dim // 2)), np.zeros((0, dim // 2)))    # cos and sin, replaced together
        self._whole: dict[tuple[int, Any], tuple[np.ndarray, np.ndarray]] = {}   # see __call__
        self._placed: dict[Any, list[tuple[Array, Array]]] = {}      # on each device, the largest last

    def __call__(self, start: int, count: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """cos, sin [count, dim/2] of positions start ... start + count − 1, float64 rounded to `dtype`.

        Those of whole texts, from 0 on, are kept, so that each step of a training finds the same arrays;
        they are read-only."""
        kept = self._whole.get((count, dtype)) if start == 0 else None      # another thread may clear it
        if kept is not None:
            return kept
        if start + count > FAR:
            cos, sin = self._angles(np.arange(start, start + count))
            return cos.astype(dtype), sin.astype(dtype)
        cos, sin = self._tables
        if start + count > len(cos):
            cos, sin = self._tables = self._angles(np.arange(min(FAR, max(start + count, 2 * len(cos), 256))))
        rows = slice(start, start + count)
        made = cos[rows].astype(dtype), sin[rows].astype(dtype)
        if start == 0:
            for table in made:
                table.flags.writeable = False
            if len(self._whole) >= KEPT:
                self._whole.clear()
            self._whole[count, dtype] = made
        return made

    def placed(self, device: Any, count: int) -> tuple[Array, Array]:
        """cos, sin [P, dim/2] in float32 in a device's memory, of positions 0 ... P − 1, P at least `count`.
        Outgrown tables stay: a recorded step may still read them."""
        tables = self._placed.setdefault(device, [])
        if not tables or tables[-1][0].shape[0] < count:
            room = max(count, 2 * tables[-1][0].shape[0] if tables else 256)
            cos, sin = self(0, room, np.float32)
            tables.append((device.asarray(cos), device.asarray(sin)))
        return tables[-1]

    def at(self, positions: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """cos, sin [B,1,T,dim/2] of integer positions [B,T]."""
        count = int(positions.max(initial=0)) + 1
        if count > FAR:
            cos, sin = (x.astype(dtype) for x in self._angles(positions))
        else:
            cos, sin = (x[positions] for x in self(0, count, dtype))
        return cos[:, None], sin[:, None]

    def _angles(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angles = positions[..., None].astype(np.float64) * self.inv
        return np.cos(angles) * self.factor, np.sin(angles) * self.factor
