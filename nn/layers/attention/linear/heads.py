"""What the linear attention layers have in common: widths, heads, projections, gates neutral at padding."""

from dataclasses import dataclass
from typing import Any

from nn import ops
from nn.backends.array_api import namespace
from nn.errors import InputError
from nn.layers.chunks import CHUNK
from nn.layers.conv import ShortConv
from nn.layers.linear import Linear
from nn.layers.masks import masked
from nn.layers.precision import cast_to
from nn.layers.protocol import Block, BlockSettings
from nn.state import State
from nn.tensor import Array, Tensor


@dataclass(frozen=True)
class HeadSettings(BlockSettings):
    """Heads whose keys and values have widths of their own."""

    num_heads: int = 4             # heads, each with a state of its own
    expand_k: float = 1.0          # width of all keys / hidden_size
    expand_v: float = 1.0          # width of all values / hidden_size
    norm_eps: float = 1e-5         # of the norm on each head's result
    chunk_size: int = CHUNK        # tokens handled together in chunk mode

    def __post_init__(self) -> None:
        self._positive("hidden_size", "num_heads", "chunk_size")
        for name, width in (("expand_k", self.key_width), ("expand_v", self.value_width)):
            exact = self.hidden_size * getattr(self, name)
            if width < 1 or width % self.num_heads or abs(width - exact) > 1e-6 * width:
                raise InputError(f"{name}: {getattr(self, name)} x hidden_size = {exact:g} is not a multiple "
                                 f"of num_heads = {self.num_heads}")

    @property
    def key_width(self) -> int:
        """Of all heads together."""
        return round(self.hidden_size * self.expand_k)

    @property
    def value_width(self) -> int:
        """Of all heads together."""
        return round(self.hidden_size * self.expand_v)

    @property
    def head_widths(self) -> tuple[int, int]:
        """(Dk, Dv) of one head"""
        return self.key_width // self.num_heads, self.value_width // self.num_heads


def check_sizes(settings: Any) -> None:
    """InputError unless chunk_size is a power of two, as chunks are handled by halves, and conv_size is not
    negative."""
    size = settings.chunk_size
    if size < 1 or size & (size - 1):
        raise InputError(f"{type(settings).__name__}.chunk_size: {size} is not a power of two")
    if settings.conv_size < 0:
        raise InputError(f"{type(settings).__name__}.conv_size: {settings.conv_size} taps; 0 leaves the "
                         "convolution out")


@dataclass
class LinearState(State):
    """What is left of the tokens seen."""

    s: Array                       # [B,H,Dk,Dv]
    tail: Array | None = None      # [B,K−1,C], the newest inputs of the short convolution, where there is one


class HeadBlock(Block):
    """A mixer with q_proj, k_proj [H·Dk,D], v_proj [H·Dv,D], o_proj [D,H·Dv] and, if a kernel size is given,
    one depthwise convolution conv1d [2 H·Dk + H·Dv, K] over queries, keys and values beside each other."""

    settings: Any

    def _create_projections(self, conv_size: int = 0, dtype: Any = "float32") -> None:
        s = self.settings
        options: dict[str, Any] = {"std": s.init_std, "dtype": dtype}
        self.q_proj = Linear(s.hidden_size, s.key_width, **options)
        self.k_proj = Linear(s.hidden_size, s.key_width, **options)
        self.v_proj = Linear(s.hidden_size, s.value_width, **options)
        channels = 2 * s.key_width + s.value_width
        self.conv1d = ShortConv(channels, conv_size, dtype=dtype) if conv_size else None
        self.o_proj = Linear(s.value_width, s.hidden_size, **options | {"std": s.down_std})

    def init_state(self, batch_size: int) -> Any:
        s = self.settings
        return LinearState(self.zeros(batch_size, s.num_heads, *s.head_widths),
                           empty_tail(self, self.conv1d, batch_size))

    def _queries_keys_values(self, x: Tensor, tail: Array | None = None) -> tuple[list[Tensor], Array | None]:
        """(q, k [B,H,T,Dk] and v[B,H,T,Dv], the convolution's new tail) from x[B,T,D], 0 at padding"""
        s, parts = self.settings, [self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        if self.conv1d is not None:
            mixed, tail = self.conv1d(ops.concat(parts, axis=-1), tail)
            parts = list(ops.split(mixed, s.key_width, s.key_width, s.value_width))
        return [split_heads(part, s.num_heads) for part in parts], tail


def empty_tail(block: Block, conv: ShortConv | None, batch_size: int) -> Array | None:
    """What a convolution has seen before the first token: zeros, in the type of its inputs."""
    if conv is None:
        return None
    like = block.parameters()[0].data
    return namespace(like).zeros((batch_size, conv.reach, conv.weight.shape[0]), dtype=like.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B,T,H·d] -> [B,H,T,d]"""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).permute(0, 2, 1, 3)


def tokens_first(o: Tensor, dtype: Any = None) -> Tensor:
    """[B,H,T,d] -> [B,T,H,d], in the type of the layer's inputs if that is given"""
    return (o if dtype is None else cast_to(o, dtype)).permute(0, 2, 1, 3)


def per_head(gate: Tensor, mask: Array | None) -> Tensor:
    """[B,T,H] -> [B,H,T], 0 at padding"""
    return masked(gate, mask).permute(0, 2, 1)
