"""Learning-rate schedules: the multiplier of the peak rate for the update after `step` others (the first has
step 0).

Every one warms up linearly, by (step+1)/warmup: the first update already moves.  With p the progress from the
end of the warm-up to `steps`, and r the floor:
    cosine   r + (1−r)·½(1 + cos πp)                        (Loshchilov & Hutter, arXiv 1608.03983)
    linear   1 − (1−r)·p
    wsd      1, then r + (1−r)·f(q), q the progress in the last `decay` steps  (Hu et al., arXiv 2404.06395)

    warmup_cosine(60, warmup=10, steps=110, floor=0.1)      # 0.55"""

import math
from collections.abc import Callable

from nn.errors import InputError

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda q: 1.0 - q,
    "cosine": lambda q: 0.5 * (1.0 + math.cos(math.pi * q)),
    "sqrt": lambda q: 1.0 - math.sqrt(q),                    # Hägele et al., arXiv 2405.18392
}


def constant(step: int, *, warmup: int = 0) -> float:
    return _warmup(step, warmup)


def warmup_cosine(step: int, *, steps: int, warmup: int = 0, floor: float = 0.1) -> float:
    return _warmup(step, warmup) * (floor + (1.0 - floor) * DECAYS["cosine"](_progress(step, warmup, steps)))


def warmup_linear(step: int, *, steps: int, warmup: int = 0, floor: float = 0.1) -> float:
    return _warmup(step, warmup) * (1.0 - (1.0 - floor) * _progress(step, warmup, steps))


def warmup_stable_decay(step: int, *, steps: int, warmup: int = 0, floor: float = 0.1,
                        decay: int | None = None, shape: str = "linear") -> float:
    """`decay` defaults to the last fifth of the steps."""
    decay = steps // 5 if decay is None else decay
    if shape not in DECAYS:
        raise InputError(f"shape: {shape!r} is not a decay; choose one of {', '.join(DECAYS)}")
    q = _progress(step, max(warmup, steps - decay), steps)
    return _warmup(step, warmup) * (floor + (1.0 - floor) * DECAYS[shape](q))


SCHEDULES: dict[str, Callable[..., float]] = {
    "cosine": warmup_cosine, "linear": warmup_linear, "constant": constant, "wsd": warmup_stable_decay,
}


def _warmup(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0


def _progress(step: int, begin: int, end: int) -> float:
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
