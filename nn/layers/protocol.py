"""The block protocol: what attention, recurrences, feed-forwards, experts and memories have in common.

    y, state = block(x, state=None, mask=None, mode=None)          x, y [B,T,D]

x      T tokens, which follow those that the state has seen.
y      what the block adds to the residual stream; adding it is the layer's business (nn/layers/residual).
state  None: a sequence from its beginning, nothing kept.  A state of init_state(batch_size), or one that came
       back: the tokens continue what it holds, and the state that comes back has seen them too.  For every
       cut, block(x) = block(x[:, :t]) followed by block(x[:, t:], state).  See nn/state.py.  A cache of keys
       and values refuses to be extended while gradients are recorded: use no_grad().
mask   booleans [B,S], True for tokens, False for padding; its last column belongs to the newest token, so the
       last T columns are x's.  Attention looks further back and needs columns for all keys it still holds;
       a recurrence reads the last T.  None: no padding.  Padding stands left of a row's first token; then
       what the tokens get, and the state, are those of the row without it.  What stands in y at padding is
       undefined but finite.  Padding to the right changes nothing either, but a state that has seen it is
       not to be continued.
mode   "chunk" (tokens together), "recurrent" (one by one) or None: select_mode decides.  One result, up to
       rounding.

segment_ids   integers [B,T], of which document of its row a token is, 0: none (padding).  The tokens of a
       document get what they get in a row of their own (nn/layers/packing.py).  Such rows are not continued:
       no state.  A block that cannot take them refuses.

A block is built from a frozen dataclass that knows its parameters and operations without building anything.
What a block needs besides x it names in `needs`, what it can also do without in `takes`, and takes it as a
keyword: see INPUTS."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nn.backends.array_api import namespace
from nn.cache import StaticLayerCache
from nn.dtypes import widen
from nn.errors import InputError
from nn.layers.mode import check_mode
from nn.layers.module import Module
from nn.layers.packing import Documents, by_document
from nn.names import hint
from nn.state import State
from nn.tensor import Array, Tensor

if TYPE_CHECKING:
    from typing import Self


INPUTS = {
    "ids": "integers [B,T], the tokens' ids",
    "context": "[B,S,D], what attention looks at instead of x: an encoder's output",
    "context_mask": "booleans [B,S], False at the padding of the context",
    "segment_ids": "integers [B,T], of which document of its row a token is, 0: none",
}

PACKINGS = ("documents",      # each is computed as a row of its own
            "tokens",         # no token sees another: rows are computed as they are
            "handed on",      # the blocks it is made of take care
            "none")           # refused


@dataclass(frozen=True)
class BlockSettings:
    """Base of the settings of blocks.  A subclass adds fields with defaults; comments are help texts."""

    hidden_size: int = 64      # width of the residual stream
    init_std: float = 0.02     # weights start as Normal(0, init_std)
    out_std: float = 0.0       # those of the projection into the residual stream; 0 = init_std

    def parameters(self, active: bool = False) -> dict[str, int]:
        """Parameters by component; active: only those that one token meets."""
        raise TypeError(f"{type(self).__name__} does not say how many parameters there are")

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        """Forward operations by component for `batch` rows of `length` tokens behind `past` that a state
        holds, a multiply-add counted 2, as nn.ops.count counts them.  Elementwise work and norms: 0.
        Training costs three times as much (nn.layers.formulas.TRAINING)."""
        raise TypeError(f"{type(self).__name__} does not say how many operations there are")

    def cache_size(self, tokens: int) -> int | None:
        """Numbers, of the parameters' type, that a row's state holds behind that many tokens.  None: as much
        as init_state gives, however many tokens there were."""
        return None

    @classmethod
    def examples(cls) -> dict[str, Any]:
        """Tiny settings by name, one per variant that computes differently: what the tests run."""
        raise TypeError(f"{cls.__name__} gives no examples")

    @classmethod
    def create(cls, **options: Any) -> "Self":
        """Settings from options; InputError for one that is not known, with the nearest."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise InputError(f"{cls.__name__}.{name}: unknown setting{hint(name, known)}")
        return cls(**options)

    @property
    def is_causal(self) -> bool:
        """Whether no token sees a later one; a block that leaves the choice has a field `causal`."""
        return getattr(self, "causal", True)

    @property
    def down_std(self) -> float:
        """Of the projection into the residual stream."""
        return self.out_std or self.init_std

    def _positive(self, *names: str) -> None:
        """InputError unless these fields are 1 or more."""
        for name in names:
            if getattr(self, name) < 1:
                raise InputError(f"{type(self).__name__}.{name}: {getattr(self, name)} is not positive")


class Block(Module):
    """Base of blocks: the protocol is at the top of this file."""

    Settings: ClassVar[type[BlockSettings]]     # what it is built from
    needs: ClassVar[tuple[str, ...]] = ()       # names of INPUTS without which it cannot be called
    takes: ClassVar[tuple[str, ...]] = ("segment_ids",)     # names of INPUTS that it can do without
    static_cache: ClassVar[bool] = False        # whether its state may be a nn.cache.StaticLayerCache
    packing: ClassVar[str] = "documents"        # what is done about segment_ids: one of PACKINGS
    prenorm: ClassVar[bool] = True              # whether it wants x normalised; else it does that itself
    detached: ClassVar[tuple[str, ...]] = ()    # last names of parameters that no gradient reaches
    settings: Any

    def __call__(self, *args: Any, segment_ids: Any = None, **options: Any) -> Any:
        check_mode(options.get("mode"))
        if not self.static_cache and isinstance(options.get("state"), StaticLayerCache):
            raise InputError(f"state: {type(self).__name__} takes no cache of fixed size; use init_state()")
        if segment_ids is None:
            return super().__call__(*args, **options)
        return self._packed(*args, segment_ids=segment_ids, **options)

    def _packed(self, x: Tensor, *, segment_ids: Any, state: Any = None, mask: Array | None = None,
                mode: str | None = None, **given: Any) -> tuple[Tensor, Any]:
        """The call on packed rows"""
        where = segment_ids if isinstance(segment_ids, Documents) else Documents(segment_ids)
        if state is not None:
            raise InputError(f"segment_ids: {type(self).__name__} is given a state, but packed rows are not "
                             "continued; give each document a row of its own")
        if self.packing == "handed on":
            return super().__call__(x, segment_ids=where, mask=mask, mode=mode, **given)
        if self.packing == "tokens":
            return super().__call__(x, mask=where.mask(mask), mode=mode, **given)
        if self.packing == "none" or given.keys() - {"ids"}:
            what = "".join(f", {name}=" for name in given if name != "ids")
            raise InputError(f"segment_ids: {type(self).__name__} does not take packed rows{what and ' with'}"
                             f"{what[1:]}; give each document a row of its own")
        return by_document(self, super().__call__, x, where, mask=mask, mode=mode, **given), None

    def forward(self, x: Tensor, *, state: Any = None, mask: Array | None = None,
                mode: str | None = None) -> tuple[Tensor, Any]:
        raise TypeError(f"{type(self).__name__} defines no forward")

    def init_state(self, batch_size: int) -> State | None:
        """The state before the first token; None for a block that keeps nothing."""
        return None

    def flops(self, batch: int, length: int, past: int = 0, mode: str | None = None) -> dict[str, int]:
        """Forward operations by component; see BlockSettings.flops."""
        return self.settings.flops(batch, length, past, mode)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs besides x that it is to be called with."""
        return self.needs

    def zeros(self, *shape: int) -> Array:
        """Zeros for a state, where the parameters are, in the type sums are formed in."""
        like = self.parameters()[0].data
        return namespace(like).zeros(shape, dtype=widen(like[:0, ...]).dtype)
