"""Packed weights: GGUF's blocks bit by bit, nothing lost on the way into panels and back."""

import gguf
import ml_dtypes
import numpy as np
import pytest

from nn.errors import InputError
from nn.packed import Format, PackedWeight
from nn.packed.blocks import quantize_q4_0, quantize_q8_0

FORMATS = [form.name for form in Format]


def draw(*shape: int) -> np.ndarray:
    values = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    values.reshape(-1)[:40] *= 1e-3
    values.reshape(-1)[64:96] = 0.0
    return values


@pytest.mark.parametrize(("name", "quantize"), [("Q8_0", quantize_q8_0), ("Q4_0", quantize_q4_0)])
def test_blocks_are_ggufs(name: str, quantize: object) -> None:
    for scale in (1.0, 1e-8, 1e-30, 3e4):
        rows = draw(50, 96) * np.float32(scale)
        with np.errstate(all="ignore"):
            expected = gguf.quantize(rows, gguf.GGMLQuantizationType[name])
        assert np.array_equal(quantize(rows).reshape(50, -1), expected)           # type: ignore[operator]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [(1, 32), (16, 64), (50, 96), (0, 32), (3, 40, 64)])
@pytest.mark.parametrize("gated", [False, True])
def test_nothing_is_lost(form: str, shape: tuple[int, ...], gated: bool) -> None:
    if gated and shape[-2] % 2:
        return
    weight = draw(*shape)
    packed = PackedWeight.pack(weight, form, gated=gated)
    again = PackedWeight.from_rows(packed.rows(), form, shape[-1], gated=gated)
    assert np.array_equal(again.data, packed.data)
    exact = {"f32": weight, "bf16": weight.astype(ml_dtypes.bfloat16).astype(np.float32)}
    if form in exact:
        assert np.array_equal(packed.unpack(), exact[form])
    else:
        steps = {"q8_0": 127, "q4_0": 8}[form]
        blocks = weight.reshape(-1, 32)
        error = np.abs(packed.unpack().reshape(-1, 32) - blocks)
        assert np.all(error <= np.abs(blocks).max(axis=1, keepdims=True) * (1.01 / steps) + 1e-7)


def test_one_value_is_where_the_layout_says() -> None:
    weight = np.zeros((33, 160), np.float32)
    weight[17, 37] = 127.0                                   # panel 1, row 1, block 1, element 5
    weight[18, 67] = 254.0                                   # block 2, element 3
    weight[19, 130] = -127.0                                 # block 4, which has no neighbour, element 2
    packed = PackedWeight.pack(weight, "q8_0")
    panel = packed.data.reshape(3, -1)[1]
    pairs, last = panel[: 2 * 1088].reshape(2, 1088), panel[2 * 1088 :]
    quants, scales = pairs[:, :1024].view(np.int8), pairs[:, 1024:].copy().view(np.float16)
    assert quants.reshape(2, 2, 8, 16, 4)[0, 1, 1, 1, 1] == 127
    assert quants.reshape(2, 2, 8, 16, 4)[1, 0, 0, 2, 3] == 127
    assert np.count_nonzero(quants) == 2
    assert scales.reshape(2, 2, 16)[0, 1, 1] == 1.0
    assert scales.reshape(2, 2, 16)[1, 0, 2] == 2.0
    assert np.count_nonzero(scales) == 2
    assert len(last) == 576
    assert last[:512].view(np.int8).reshape(8, 16, 4)[0, 3, 2] == -127
    assert last[512:544].view(np.float16)[3] == 1.0
    assert np.count_nonzero(last[:512]) == np.count_nonzero(last[512:544].view(np.float16)) == 1


@pytest.mark.parametrize("form", ["q8_0", "q4_0"])
def test_rows_that_are_no_blocks_are_refused(form: str) -> None:
    with pytest.raises(InputError, match="blocks of 32"):
        PackedWeight.pack(draw(4, 33), form)
    with pytest.raises(InputError, match="q8_0"):
        Format.of("q5_1")
    with pytest.raises(InputError, match="bytes"):
        PackedWeight(np.zeros(7, np.uint8), Format.of(form), (4, 32))
