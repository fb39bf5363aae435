"""How decays and step sizes of recurrences start, and in which type they are kept."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nn.dtypes import DType, Shape, is_half
from nn.errors import InputError

Draw = Callable[[np.random.Generator, Shape], np.ndarray]


def step_bias(low: float, high: float, floor: float) -> Draw:
    """softplus⁻¹ of step sizes that are e^Uniform(ln low, ln high), `floor` or more:  y + ln(1 − e^−y)"""

    def draw(random: np.random.Generator, shape: Shape) -> np.ndarray:
        steps = np.maximum(np.exp(random.uniform(math.log(low), math.log(high), shape)), floor)
        return np.asarray(steps + np.log(-np.expm1(-steps)))

    return draw


def counting(random: np.random.Generator, shape: Shape) -> np.ndarray:
    """ln(1), ln(2), ..., ln(N) along the last axis: S4D-real (Gu et al. 2022)"""
    return np.log(np.arange(1.0, shape[-1] + 1.0))


def log_uniform(low: float, high: float, floor: float = 0.0) -> Draw:
    """ln Uniform(low, high), of numbers `floor` or more"""
    return lambda random, shape: np.log(np.maximum(random.uniform(low, high, shape), floor))


def uniform(bound: float) -> Draw:
    """Uniform(−bound, bound)"""
    return lambda random, shape: random.uniform(-bound, bound, shape)


def wide(dtype: Any) -> DType:
    """The type that decays and step sizes are kept in: float32 for half precision, else the same"""
    kind = DType.of(dtype)
    return DType.float32 if is_half(kind.numpy) else kind


def check_steps(low: float, high: float, floor: float) -> None:
    """InputError unless the step sizes are positive and in order"""
    if not (0.0 < low <= high and floor > 0.0):
        raise InputError(f"time_step_min {low}, time_step_max {high}, time_step_floor {floor}: "
                         "positive numbers, the first not above the second")
