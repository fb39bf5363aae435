"""Tensor maps: loads, stores and reductions of boxes, element by element against formulas, with swizzles,
strides, edges and fills."""

import ctypes
from collections.abc import Iterator
from itertools import product

import ml_dtypes
import numpy as np
import pytest

from cuda.nn.emulator.native import library
from tests.emulator.snippets import Snippet, run_all, run_module
from tests.emulator.test_bulk import BEGIN, WAIT, copy_out, reduced

RANDOM = np.random.default_rng(4)

# numbered as CUtensorMapDataType; bf16 is 9, tf32 11
TYPES = ("u1", "u2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")


def encode(
    type: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    *,
    steps: tuple[int, ...] = (),
    swizzle: int = 0,
    fill: int = 0,
    address: int = 0,
    interleave: int = 0,
) -> tuple[int, np.ndarray]:
    """cuTensorMapEncodeTiled: its code and the map.  Dimensions are given innermost first."""
    rank = len(shape)
    opaque = np.zeros(128, np.uint8)
    code = library()._c.tensor_map_encode_tiled(
        opaque.ctypes.data_as(ctypes.c_void_p),
        type,
        rank,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 5)(*shape),
        (ctypes.c_uint64 * 5)(*strides),
        (ctypes.c_uint32 * 5)(*box),
        (ctypes.c_uint32 * 5)(*(steps or (1,) * rank)),
        interleave,
        swizzle,
        0,
        fill,
    )
    return code, opaque


def _strides(shape: tuple[int, ...], itemsize: int, pad: int) -> tuple[int, ...]:
    """Bytes between neighbours along dimensions 1.., rows padded to multiples of 16 and by `pad` bytes."""
    strides, extent = [], shape[0] * itemsize
    for size in shape[1:]:
        extent = -(-extent // 16) * 16 + pad
        strides.append(extent)
        extent *= size
    return tuple(strides)


def swizzled(offset: np.ndarray, span: int) -> np.ndarray:
    """Where byte `offset` of a tile lies: the 16-byte chunk's number XOR that of the 128-byte line."""
    if not span:
        return offset
    chunk = offset // 16 % (span // 16)
    return offset // span * span + (chunk ^ (offset // 128 % (span // 16))) * 16 + offset % 16


def _indices(box: tuple[int, ...], steps: tuple[int, ...], at: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Coordinates of the box's elements in the tile's order: innermost fastest, where steps do not count."""
    ranges = [range(-(-size // step)) for size, step in zip(box[1:], steps[1:], strict=True)]
    for outer in product(*reversed(ranges)):
        rest = tuple(
            start + i * step for start, i, step in zip(at[1:], reversed(outer), steps[1:], strict=True)
        )
        for x in range(box[0]):
            yield (at[0] + x, *rest)


class Tensor:
    """A tensor in memory, a box of it, and what a load of the box must give."""

    def __init__(
        self,
        name: str,
        type: int,
        shape: tuple[int, ...],
        box: tuple[int, ...],
        at: tuple[int, ...],
        steps: tuple[int, ...] = (),
        swizzle: int = 0,
        fill: int = 0,
        pad: int = 16,
    ) -> None:
        self.name, self.type, self.shape, self.box, self.at = name, type, shape, box, at
        self.steps, self.swizzle, self.fill = steps or (1,) * len(shape), swizzle, fill
        self.dtype = np.dtype(ml_dtypes.bfloat16 if type == 9 else "f4" if type == 11 else TYPES[type])
        self.strides = _strides(shape, self.dtype.itemsize, pad)
        size = (self.strides[-1] * shape[-1] if self.strides else shape[0] * self.dtype.itemsize) + 64
        self.memory = RANDOM.integers(0, 256, size, np.uint8)

    @property
    def map(self) -> np.ndarray:
        code, opaque = encode(
            self.type,
            self.shape,
            self.strides,
            self.box,
            steps=self.steps,
            swizzle=self.swizzle,
            fill=self.fill,
        )
        assert code == 0
        return opaque

    def places(self) -> "list[int | None]":
        """Byte offset in memory of each element of the tile; None outside the tensor."""
        all_strides = (self.dtype.itemsize, *self.strides)
        return [
            sum(i * stride for i, stride in zip(index, all_strides, strict=True))
            if all(0 <= i < size for i, size in zip(index, self.shape, strict=True))
            else None
            for index in _indices(self.box, self.steps, self.at)
        ]

    @property
    def bytes(self) -> int:
        return len(self.places()) * self.dtype.itemsize

    def offsets(self) -> np.ndarray:
        """Where each byte of the tile lies in shared memory."""
        return swizzled(np.arange(self.bytes), 16 << self.swizzle if self.swizzle else 0)

    def loaded(self) -> np.ndarray:
        """The tile's bytes as they lie in shared memory; NaN fill as 0xFF..., compared as NaN."""
        item = self.dtype.itemsize
        outside = np.zeros(item, np.uint8) if not self.fill else np.array([np.nan], self.dtype).view(np.uint8)
        dense = np.concatenate(
            [outside if place is None else self.memory[place : place + item] for place in self.places()]
        )
        tile = np.empty_like(dense)
        tile[self.offsets()] = dense
        return tile

    @property
    def coordinates(self) -> str:
        return "{" + ", ".join(map(str, self.at)) + "}"


TENSORS = [
    Tensor("plain_1d", 2, (100,), (32,), (40,)),
    Tensor("edge_1d", 2, (100,), (32,), (-5,)),
    Tensor("plain_2d", 9, (64, 40), (64, 8), (0, 16)),
    Tensor("swizzle_128", 9, (128, 40), (64, 32), (64, 4), swizzle=3),
    Tensor("swizzle_64", 7, (48, 40), (16, 24), (16, 8), swizzle=2),
    Tensor("swizzle_32", 0, (96, 20), (32, 17), (32, 2), swizzle=1),
    Tensor("corner_2d", 7, (20, 10), (16, 16), (12, 3)),
    Tensor("before_2d", 7, (20, 10), (16, 8), (-3, -2)),
    Tensor("far_outside", 7, (20, 10), (16, 4), (500, -100)),
    Tensor("nan_2d", 7, (20, 10), (16, 16), (12, 3), fill=1),
    Tensor("nan_bf16", 9, (20, 10), (16, 4), (10, -2), fill=1, swizzle=1),
    Tensor("nan_f64", 8, (20, 10), (4, 4), (18, 8), fill=1),
    Tensor("int8_3d", 0, (48, 7, 5), (16, 4, 3), (16, 5, 3)),
    Tensor("steps_3d", 2, (40, 30, 9), (8, 12, 5), (4, 1, 2), steps=(3, 4, 2)),
    Tensor("u64_4d", 4, (6, 5, 4, 3), (2, 3, 2, 2), (4, 3, 1, 2)),
    Tensor("f16_5d", 6, (16, 3, 4, 3, 3), (8, 2, 2, 2, 2), (8, 2, 1, -1, 2), pad=0),
    Tensor("swizzled_3d", 9, (64, 9, 5), (64, 5, 3), (0, 6, 1), swizzle=3),
]
# The map's global address is known in the kernel only: tensormap.replace puts it in.
ADDRESS = (
    "@%one tensormap.replace.tile.global_address.global.b1024.b64 [%base_map], %base_a; "
    "fence.proxy.tensormap::generic.acquire.gpu [%base_map], 128;"
)


def _tensor_load(tensor: Tensor, extra: str = "") -> Snippet:
    rank = len(tensor.shape)
    words = -(-tensor.bytes // 4)
    copy = (
        f"@%one mbarrier.arrive.expect_tx.shared.b64 %s, [bar], {tensor.bytes}; @%one "
        f"cp.async.bulk.tensor.{rank}d.shared::cluster.global"
        f".tile.mbarrier::complete_tx::bytes [tile], [%base_map, {tensor.coordinates}], [bar];"
    )
    body = f"{BEGIN} {extra} {ADDRESS} {copy} {WAIT} {copy_out(words)}"
    inputs = {"a": tensor.memory[None].repeat(32, 0), "map": tensor.map[None].repeat(32, 0)}
    return Snippet(tensor.name, body, inputs=inputs, output=((32, -(-words // 32)), np.uint32))


@pytest.mark.parametrize("completion", ["lazy", "eager"])
@pytest.mark.parametrize("mode", ["fast", "check"])
def test_tensor_loads(completion: str, mode: str) -> None:
    results = run_all([_tensor_load(tensor) for tensor in TENSORS], mode=mode, cp_async=completion)
    for tensor in TENSORS:
        got, expected = results[tensor.name].view(np.uint8).ravel()[: tensor.bytes], tensor.loaded()
        if tensor.fill:
            values, wanted = (
                got.view(tensor.dtype).astype(np.float64),
                expected.view(tensor.dtype).astype(np.float64),
            )
            np.testing.assert_array_equal(values, wanted, err_msg=tensor.name)
        else:
            np.testing.assert_array_equal(got, expected, err_msg=tensor.name)


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_loads_round_to_tf32(mode: str) -> None:
    """To nearest, ties to even; a carry goes into the exponent, and what is no number stays."""
    bits = {0x3F801000: 0x3F800000, 0x3F803000: 0x3F804000, 0x3F801001: 0x3F802000, 0x3F800FFF: 0x3F800000,
            0xBFFFF800: 0xC0000000, 0x7F7FFFFF: 0x7F800000, 0xFF800000: 0xFF800000, 0x7F800001: 0x7F800001,
            0x80000001: 0x80000000}
    tensor = Tensor("tf32", 11, (32, 4), (32, 4), (0, 0), swizzle=3)
    words = np.resize(np.array(list(bits), np.uint32), 32 * 4)
    tensor.memory[: 4 * tensor.strides[0]].reshape(4, -1)[:, :128] = words.view(np.uint8).reshape(4, 128)
    got = run_all([_tensor_load(tensor)], mode=mode)["tf32"].view(np.uint8).ravel()[: tensor.bytes]
    rounded = np.array([bits[int(word)] for word in words], np.uint32)
    np.testing.assert_array_equal(got[tensor.offsets()].view(np.uint32), rounded)


def test_stores_through_a_map_of_tf32_are_refused() -> None:
    module, _ = run_module([_tensor_store(Tensor("tf32", 11, (32, 4), (32, 4), (0, 0)))], mode="check")
    assert "tf32, which is not emulated" in module.reports[0].message


def _tensor_store(tensor: Tensor, operation: str = "") -> Snippet:
    """The tile's bytes come from an input; the output, copied from `before` first, is the tensor."""
    rank, size = len(tensor.shape), -(-len(tensor.memory) // 128) * 128
    before, tile = np.zeros(size, np.uint8), np.zeros(33792, np.uint8)
    before[: len(tensor.memory)], tile[: tensor.bytes] = tensor.memory, tensor.loaded()
    reduce = "reduce." if operation else ""
    loops = (
        ".reg .b64 %at, %to; mov.u32 %i, %tid32; filling: mul.wide.u32 %at, %i, 4; add.u64 %to, "
        "%base_before, %at; ld.global.u32 %v, [%to];"
        f"add.u64 %to, %base_out, %at; st.global.u32 [%to], %v; add.u32 %i, %i, 32; setp.lt.u32 %p, %i, "
        f"{size // 4}; @%p bra filling;"
        "mov.u32 %i, %tid32; tiling: mul.wide.u32 %at, %i, 4; add.u64 %to, %base_tile, %at; "
        "ld.global.u32 %v, [%to];"
        f"mov.u32 %t, tile; mad.lo.u32 %t, %i, 4, %t; st.shared.u32 [%t], %v; add.u32 %i, %i, 32; "
        f"setp.lt.u32 %p, %i, {-(-tensor.bytes // 4)};"
        "@%p bra tiling; fence.proxy.async; bar.sync 0;"
    )
    send = (
        f"@%one bra send; bra sent; send: "
        f"cp.{reduce}async.bulk.tensor.{rank}d.global.shared::cta{operation}.tile.bulk_group"
        f" [%base_map, {tensor.coordinates}], [tile]; cp.async.bulk.commit_group; "
        f"cp.async.bulk.wait_group.read 0; sent:"
    )
    inputs = {
        "before": before[None].repeat(32, 0),
        "tile": tile[None].repeat(32, 0),
        "map": tensor.map[None].repeat(32, 0),
    }
    body = f"{BEGIN} {loops} {ADDRESS.replace('%base_a', '%base_out')} {send}"
    return Snippet(tensor.name, body, inputs=inputs, output=((32, size // 128), np.uint32))


def _stored(tensor: Tensor, operation: str = "") -> np.ndarray:
    """The memory after the tile of tensor.loaded() came back to its place: only elements inside change."""
    item = tensor.dtype.itemsize
    memory, dense = tensor.memory.copy(), tensor.loaded()[tensor.offsets()]
    for number, place in enumerate(tensor.places()):
        if place is not None:
            value, old = (
                x.view(tensor.dtype)
                for x in (dense[number * item : (number + 1) * item], memory[place : place + item])
            )
            memory[place : place + item] = (reduced(operation, old, value) if operation else value).view(
                np.uint8
            )
    return memory


def test_tensor_stores() -> None:
    """A loaded box, changed, goes back to where it was; what lies outside the tensor is skipped."""
    for tensor in TENSORS:
        original = tensor.memory
        tensor.memory = RANDOM.permutation(original)
    results = run_all([_tensor_store(tensor) for tensor in TENSORS], mode="check")
    for tensor in TENSORS:
        got = results[tensor.name].view(np.uint8).ravel()[: len(tensor.memory)]
        np.testing.assert_array_equal(got, _stored(tensor), err_msg=tensor.name)


def test_tensor_reductions() -> None:
    chosen = [
        ("add", 2),
        ("add", 3),
        ("min", 3),
        ("max", 2),
        ("inc", 2),
        ("dec", 2),
        ("and", 2),
        ("or", 4),
        ("xor", 5),
        ("add", 6),
        ("add", 9),
    ]
    tensors = [
        Tensor(f"{operation}_{type}", type, (40, 6), (16, 4), (32, 3), swizzle=0)
        for operation, type in chosen
    ]
    for tensor in tensors:
        if tensor.dtype.kind not in "iu":
            tensor.memory = (
                RANDOM.standard_normal(len(tensor.memory) // 2).astype(tensor.dtype).view(np.uint8)
            )
    cases = [_tensor_store(tensor, f".{tensor.name.split('_')[0]}") for tensor in tensors]
    results = run_all(cases, mode="check")
    for tensor in tensors:
        got = results[tensor.name].view(np.uint8).ravel()[: len(tensor.memory)]
        np.testing.assert_array_equal(got, _stored(tensor, tensor.name.split("_")[0]), err_msg=tensor.name)


def test_replaced_fields() -> None:
    """A map with all fields replaced in the kernel loads like one encoded so.  The rank counts from 0."""
    wanted = Tensor("replaced", 9, (64, 9, 5), (64, 5, 3), (0, 6, 1), swizzle=3, fill=1)
    fields = [
        ("rank", "", 2),
        ("elemtype", "", 10),
        ("swizzle_mode", "", 3),
        ("fill_mode", "", 1),
        ("interleave_layout", "", 0),
    ]
    fields += [("swizzle_atomicity", "", 0)]
    fields += [("box_dim", f"{i}, ", size) for i, size in enumerate(wanted.box)]
    fields += [("global_dim", f"{i}, ", size) for i, size in enumerate(wanted.shape)]
    fields += [("element_stride", f"{i}, ", 1) for i in range(3)]
    code = " ".join(
        f"@%one tensormap.replace.tile.{field}.global.b1024.b32 [%base_map], {number}{value};"
        for field, number, value in fields
    )
    code += " ".join(
        f"@%one tensormap.replace.tile.global_stride.global.b1024.b64 [%base_map], {i}, {stride};"
        for i, stride in enumerate(wanted.strides)
    )
    case = _tensor_load(wanted, code)
    first = Tensor("other", 2, (100,), (32,), (40,)).map
    case.inputs["map"][...] = first
    got = run_all([case], mode="check")["replaced"].view(np.uint8).ravel()[: wanted.bytes]
    expected = wanted.loaded()
    np.testing.assert_array_equal(
        got.view(wanted.dtype).astype(float), expected.view(wanted.dtype).astype(float)
    )


ENCODINGS = {
    "rank": (1, {"shape": (), "box": ()}),
    "misaligned address": (1, {"address": 8}),
    "stride": (1, {"strides": (100,)}),
    "box": (1, {"box": (32, 257)}),
    "row of 12 bytes": (1, {"box": (3, 4)}),
    "wider than the swizzle": (1, {"swizzle": 1}),
    "empty dimension": (1, {"shape": (32, 0)}),
    "step": (1, {"steps": (1, 9)}),
    "NaN of integers": (1, {"fill": 1}),
    "no such swizzle": (1, {"swizzle": 7}),
    "interleave": (801, {"interleave": 1}),
    "flushing": (801, {"type": 10}),
    "tf32": (0, {"type": 11}),
    "tf32 that flushes": (801, {"type": 12}),
    "atoms of 32 bytes": (801, {"swizzle": 4}),
    "narrower than the swizzle": (801, {"box": (16, 4), "swizzle": 3}),
    "fine": (0, {"swizzle": 3}),
}


@pytest.mark.parametrize("case", ENCODINGS)
def test_encoding(case: str) -> None:
    code, changed = ENCODINGS[case]
    chosen = {"type": 2, "shape": (64, 64), "strides": (256,), "box": (32, 4), **changed}
    assert encode(**chosen)[0] == code
    library()._c.emu_clear()


def test_tensor_map_without_an_encoder() -> None:
    tensor = TENSORS[0]
    case = _tensor_load(tensor)
    body = case.body.replace(ADDRESS, "")
    broken = Snippet(
        "broken", body, inputs={**case.inputs, "map": np.zeros((32, 128), np.uint8)}, output=case.output
    )
    module, _ = run_module([broken], mode="check")
    assert "cuTensorMapEncodeTiled" in module.reports[0].message
