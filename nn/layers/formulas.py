"""Counts that formulas of blocks are made of; a multiply-add is 2 operations."""

from nn.ops.count import visible_pairs

__all__ = ["TRAINING", "attention_core", "ceil_to", "projection", "total", "visible_pairs"]

TRAINING = 3      # forward and backward: a product y = x W has two in its backward, dx = dy W and dW = dyᵀ x


def projection(tokens: int, *shapes: tuple[int, int]) -> int:
    """Linear maps of (in, out) features."""
    return sum(2 * tokens * rows * columns for rows, columns in shapes)


def attention_core(rows: int, pairs: int, key_width: int, value_width: int) -> int:
    """softmax(q kᵀ) v with `rows` = batch · query heads and `pairs` visible (query, key) pairs in each."""
    return 2 * rows * pairs * (key_width + value_width)


def ceil_to(length: int, multiple: int) -> int:
    """length filled up to whole chunks"""
    return -(-length // multiple) * multiple


def total(counts: dict[str, int]) -> int:
    return sum(counts.values())
