"""NeoFormerX: a decoder with a memory and a bank of rules between its embedding and its blocks.

    H = E[ids];   H ← RMC(H);   H ← H + NSB(H);   pre-norm blocks (grouped attention, feed-forward);
    logits = norm(H) Eᵀ

    model = NeoFormerX(preset("125M", vocab_size=256))
    logits, past, delta = model(ids)                               # [B,T,V]; past: a list of (K, V)
    logits, past, delta = model(ids[:, -1:], past=past)
    out = model.generate(ids, max_new=64, temp=0.8, top_k=50)      # [B,T+64]

A training step that writes into the memory:

    logits, _, delta = model(x, update=True)
    loss = ops.cross_entropy(logits.reshape(-1, V), y.reshape(-1)).mean()
    loss.backward();  optimizer.step();  optimizer.zero_grad()
    model.rmc.apply_update(delta.mean(0), lr=0.01)

`past` holds, per block, keys (turned by their positions) and values of the key/value heads, [B,Hkv,L,Dh], and
behind the blocks one more pair, what else there is to know of the tokens seen: (their sum, [B,1,1,D], the
RMC's; their number and the next position, [B,1,1,2]).  Its third axis is 1, so that

    past = [(k[:, :, -keep:, :], v[:, :, -keep:, :]) for k, v in past]

forgets the oldest keys and nothing else: positions go on, and the RMC's mean is that of all tokens.

Weights start as in nn/models/language_config.py: Normal(0, init_std), projections into the stream of the
blocks / √(2 layers), norms 1, biases 0, the memory Normal(0, 0.01)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from nn.backends.array_api import namespace
from nn.errors import InputError
from nn.generate import SamplingConfig, generate, generate_batch
from nn.layers.attention import KVCache
from nn.layers.memory.rmc import RMCState
from nn.models.language_model import LanguageModel, ModelState
from nn.models.neoformer_config import PRESETS, NeoFormerXConfig, preset, sizes
from nn.names import check_name
from nn.tape import no_grad
from nn.tape import state as tape
from nn.tensor import Array

__all__ = ["PRESETS", "NeoFormerX", "NeoFormerXConfig", "preset", "sizes"]

Pair = tuple[Array, Array]
TRIMS = ("cache", "recompute")


class NeoFormerX(LanguageModel):
    """ids [B,T] -> (logits [B,T,V], past, ΔM [B,m,D] or None)"""

    def __init__(self, config: NeoFormerXConfig, seed: int = 0, dtype: Any = "float32") -> None:
        super().__init__(config.core, seed, dtype)
        self.model_config = config

    @property
    def rmc(self) -> Any:
        """The memory (nn/layers/memory/rmc.py), or None."""
        return self._before_blocks("rmc")

    @property
    def nsb(self) -> Any:
        """The bank of rules (nn/layers/memory/nsb.py), or None."""
        return self._before_blocks("nsb")

    def _before_blocks(self, name: str) -> Any:
        prelude = self.config.prelude
        return self.prelude[prelude.index(name)] if name in prelude else None

    def forward(self, x: Any, past: Sequence[Pair] | None = None, update: bool = False,    # type: ignore[override]
                use_cache: bool = True, *, mask: Any = None, mode: str | None = None, **given: Any) -> Any:
        """(logits[B,T,V], new_past, delta) of integers x[B,T].

        past: what an earlier call gave, or a part of its keys (see the top of this file); it stays as it is.
        The tokens behind it have no gradients.
        update: delta is what the memory would be moved by, ΔM[B,m,D]; it is not moved.  Otherwise None.
        use_cache: new_past is what continues the text; False, rmc_pool="global" or packed rows: None.
        mask: keep-mask [B,S] over the keys held and the new tokens; False is padding, left of a row's text.
        given: further inputs, such as segment_ids of packed rows.  With cache=, last_only= or return_aux= it
        is called as any decoder, and gives logits alone."""
        if {"cache", "last_only", "return_aux"} & given.keys():
            return super().forward(x, mask=mask, mode=mode, **given)
        packed = given.get("segment_ids") is not None
        if packed and update:
            raise InputError("update: packed rows have no summary to write; give each document its own row")
        wanted, recorded = use_cache and self.config.causal and not packed, past is None and tape.recording
        x = self._checked(x, None)
        state = self._state(past, x.shape, wanted, recorded)
        with self._writing(update), self._keeping(recorded and wanted) as kept, (
                nullcontext() if recorded else no_grad()):
            logits = self.logits(self.hidden(x, state=state, mask=mask, mode=mode, **given))
        delta = self.rmc.delta if update and self.rmc else None
        return logits, self._past(state, kept) if wanted and state is not None else None, delta

    def _state(self, past: Sequence[Pair] | None, shape: tuple[int, ...], wanted: bool,
               recorded: bool) -> ModelState | None:
        """What new tokens of this shape continue, or fill"""
        if past is not None:
            return self._continued(past, shape)
        if not wanted:
            return None
        state = self.init_state(shape[0])
        if recorded:
            state.body = None                             # caches take no gradients: blocks leave k and v
        return state

    @contextmanager
    def _writing(self, update: bool) -> Iterator[None]:
        """The memory forms its write, or not."""
        if self.rmc:
            self.rmc.update = update
        try:
            yield
        finally:
            if self.rmc:
                self.rmc.update = False

    @contextmanager
    def _keeping(self, wanted: bool) -> Iterator[list[Pair]]:
        """Where the blocks leave their keys and values, one after the other."""
        kept: list[Pair] = []
        layers = self.body.layers if wanted else []
        try:
            for layer in layers:
                layer.mixer.kept = kept
            yield kept
        finally:
            for layer in layers:
                layer.mixer.kept = None

    # ---- past ----

    def _past(self, state: ModelState, kept: list[Pair]) -> list[Pair]:
        pairs = kept if state.body is None else [layer.mixer.get() for layer in state.body.layers]
        tokens = state.offset - state.padding
        seen = np.stack([tokens, np.full_like(tokens, state.offset)], axis=1)[:, None, None, :]
        return [*pairs, (self._sums(state), seen)]

    def _sums(self, state: ModelState) -> Array:
        """[B,1,1,D] of the RMC's state, with the rows' own memories behind it if there are any; [B,1,1,0]
        without an RMC"""
        if not self.rmc:
            return np.zeros((len(state.padding), 1, 1, 0), np.float32)
        own = state.prelude[self.config.prelude.index("rmc")]
        xp = namespace(own.total)
        parts = [own.total] + ([] if own.memory is None else [own.memory.reshape(len(own.memory), -1)])
        return xp.concat(parts, axis=1)[:, None, None, :]

    def _continued(self, past: Sequence[Pair], shape: tuple[int, ...]) -> ModelState:
        """The state that a past describes, for new tokens of this shape"""
        pairs, rest = past[: self.config.num_layers], past[self.config.num_layers :]
        self._check_past(past, shape[0])
        held = pairs[0][0].shape[2]
        seen = rest[0][1] if rest else np.full((shape[0], 1, 1, 2), held)
        tokens, places = np.asarray(seen)[:, 0, 0, 0], np.asarray(seen)[:, 0, 0, 1]
        state, padding = self.init_state(shape[0]), places - tokens
        state.length, state.offset, state.padding = held, int(places.max(initial=0)), padding
        for layer, (k, v) in zip(state.body.layers, pairs, strict=True):
            layer.mixer = KVCache.holding(k, v, state.offset, padding if padding.any() else 0)
        if self.rmc:
            state.prelude[self.config.prelude.index("rmc")] = self._summed(rest[0][0], tokens)
        return state

    def _summed(self, sums: Array, tokens: np.ndarray) -> RMCState:
        """The RMC's state of what `_sums` made of it"""
        width, memory = self.config.hidden_size, None
        xp, flat = namespace(sums), sums[:, 0, 0, :]
        if flat.shape[1] > width:
            memory = flat[:, width:].reshape(len(flat), -1, width)
        return RMCState(flat[:, :width], xp.asarray(tokens.astype(np.float64), dtype=flat.dtype), memory)

    def _check_past(self, past: Sequence[Pair], batch: int) -> None:
        layers = self.config.num_layers
        if len(past) not in ((layers + 1,) if self.rmc else (layers, layers + 1)):
            raise InputError(f"past: {len(past)} entries; expected (K, V) of each of the {layers} blocks and "
                             "the last entry that forward gave, which has the RMC's sums and the positions")
        kind = self.model_config
        wanted = [batch, kind.kv_heads, past[0][0].shape[2], kind.d_model // kind.nhead]
        for i, pair in enumerate(past[:layers]):
            for name, array in zip("KV", pair, strict=True):
                if list(array.shape) != wanted:
                    raise InputError(f"past[{i}]: {name} has shape {list(array.shape)}; expected [B, Hkv, L, "
                                     f"Dh] = {wanted}")
        for sums, seen in past[layers:]:
            width, memory = self.config.hidden_size, kind.mem_size * self.config.hidden_size
            widths = (width, width + memory) if self.rmc else (0,)
            fits = list(sums.shape[:3]) == [batch, 1, 1] and sums.ndim == 4 and sums.shape[3] in widths
            if not fits or list(seen.shape) != [batch, 1, 1, 2]:
                raise InputError(f"past[{layers}]: shapes {list(sums.shape)} and {list(seen.shape)}; "
                                 f"expected [{batch}, 1, 1, {widths[0]}] and [{batch}, 1, 1, 2], as this "
                                 "model gave them for these rows")

    # ---- generation ----

    def generate(self, x: Any, max_new: int = 64, temp: float = 0.8, top_k: int | None = 50,
                 top_p: float | None = None, repetition_penalty: float = 1.0, seed: int | None = None,
                 eos: int | Sequence[int] | None = None, *, trim: str = "cache") -> np.ndarray:
        """x[B,T] and what follows, int64 [B,T+n], n = max_new, or less if every row has met eos; a row that
        has is filled up with it, with the first of several.  The order of the filters: penalty, temperature,
        top-k, top-p.

        seed: the same seed gives the same text; None: another one every time.  temp=0: the likeliest token.
        trim: when the context is full its older half is dropped: "cache": from the caches, positions and the
        RMC's mean go on; "recompute": the half that stays is read anew, from position 0 (each token then
        costs a pass over the context, as it always does with rmc_pool="global")."""
        check_name("trim", trim, TRIMS)
        prompts, ends = _prompts(x), () if eos is None else tuple(np.atleast_1d(eos).tolist())
        drawn = int(np.random.default_rng().integers(2**63)) if seed is None else seed
        config = SamplingConfig(temperature=temp, top_k=top_k or 0, top_p=1.0 if top_p is None else top_p,
                                repetition_penalty=repetition_penalty, max_tokens=max_new, seed=drawn,
                                eos_ids=ends or None)
        if trim == "cache" and self.config.causal:
            new = generate_batch(self, prompts.tolist(), config, truncate_prompt=True)
        else:
            new = [list(generate(self, row, config, row=i, truncate_prompt=True, use_cache=False))
                   for i, row in enumerate(prompts.tolist())]
        length = max((len(row) + (len(row) < max_new) for row in new), default=0)
        filled = [row + list(ends[:1]) * (length - len(row)) for row in new]
        return np.concatenate([prompts, np.array(filled, np.int64).reshape(len(prompts), length)], axis=1)


def _prompts(x: Any) -> np.ndarray:
    ids = np.asarray(x)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise InputError(f"x: shape {list(ids.shape)} of {ids.dtype}; expected integers [batch, length]")
    return ids.astype(np.int64)
