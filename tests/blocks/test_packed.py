"""Packed rows: documents behind one another in a row get what each gets in a row of its own.

One block alone: pytest tests/blocks/test_packed.py -k mamba"""

from typing import Any

import numpy as np
import pytest

from nn.errors import InputError
from nn.layers import auxiliary, registry
from nn.layers.memory.engram import Engram, EngramSettings
from nn.layers.packing import Documents, segment_ids_of
from nn.layers.padding import compute_unpadded_indices, pad, unpad
from nn.layers.stack import Stack, StackSettings
from nn.models.language_config import LanguageModelConfig
from nn.models.language_model import LanguageModel
from nn.random import drawn_from
from nn.tensor import Tensor, no_grad
from tests.blocks import harness
from tests.blocks.harness import Case, close, inputs, run, shaken
from tests.blocks.test_every_block import BOTH, reached

CASES = harness.cases()
PACKED = [case for case in CASES if case.name != "cross_attention"]
IDS = np.array([[1, 1, 1, 1, 2, 3, 3, 3, 0, 0], [0, 7, 7, 7, 7, 7, 7, 7, 7, 7],
                [4, 9, 9, 9, 9, 9, 1, 1, 1, 1]])
PARTS = [(row, slice(*np.flatnonzero(IDS[row] == number)[[0, -1]] + [0, 1]))
         for row, number in ((0, 1), (0, 2), (0, 3), (1, 7), (2, 4), (2, 9), (2, 1))]

every = pytest.mark.parametrize("case", PACKED, ids=str)


def alone(given: harness.Inputs, row: int, part: slice) -> harness.Inputs:
    return given.rows([row]).cut(part.start, part.stop)


@every
@pytest.mark.parametrize("mode", BOTH)
def test_a_packed_row_is_its_documents_alone(case: Case, mode: str) -> None:
    block, given = case.build(), inputs(case.settings, length=10)
    y, state = run(block, given, segment_ids=IDS, mode=mode)
    assert state is None
    assert y.shape == given.x.shape
    assert np.isfinite(y).all()
    for row, part in PARTS:
        close(y[row, part], run(block, alone(given, row, part), mode=mode)[0][0])


@every
def test_gradients_are_those_of_the_documents(case: Case) -> None:
    block, given = case.build(), inputs(case.settings, length=10)
    weights = np.random.default_rng(3).standard_normal(given.x.shape) * (IDS > 0)[..., None]

    def gradient(part: harness.Inputs, weight: np.ndarray, **options: Any) -> list[np.ndarray]:
        block.zero_grad()
        x = Tensor(part.x, requires_grad=True)
        y, _ = block(x, **part.given(block), mode="chunk", **options)
        (y * Tensor(weight)).sum().backward()
        found = (x, *reached(block).values())
        return [np.zeros(z.shape) if z.grad is None else np.array(z.grad) for z in found]

    whole = gradient(given, weights, segment_ids=IDS)
    found = [gradient(alone(given, row, part), weights[row : row + 1, part]) for row, part in PARTS]
    assert not whole[0][IDS == 0].any(), "padding gets a gradient"
    for (row, part), each in zip(PARTS, found, strict=True):
        close(whole[0][row, part], each[0][0])
    for together, *each in zip(whole[1:], *(f[1:] for f in found), strict=True):
        close(together, np.sum(each, axis=0))


@pytest.mark.parametrize("case", [case for case in PACKED if case.role == "mixer"], ids=str)
def test_padding_within_documents_is_left_out(case: Case) -> None:
    """A mask beside the numbers: rows that begin with padding that has a number"""
    block, given = case.build(), inputs(case.settings, length=10)
    mask = np.ones(IDS.shape, bool)
    mask[0, :2] = mask[2, 1] = False
    given.x[~mask] *= 5.0
    y, _ = run(block, given, segment_ids=IDS, mask=mask)
    for row, part in ((0, slice(2, 4)), (0, slice(5, 8)), (2, slice(2, 6)), (2, slice(6, 10))):
        close(y[row, part], run(block, alone(given, row, part))[0][0])


def test_rows_of_one_document_are_computed_as_they_are() -> None:
    case = harness.cases_of("mixer", "full_attention")[0]
    block, given = case.build(), inputs(case.settings, length=10)
    y, _ = run(block, given, segment_ids=np.full((3, 10), 5))
    assert np.array_equal(y, run(block, given)[0])


def test_attention_within_documents_is_attention_under_a_document_mask() -> None:
    """Against the formula: softmax over the keys j ≤ i with the same number"""
    block = shaken(registry.create("mixer", "full_attention", hidden_size=8, num_heads=2, rope_theta=0.0,
                                   dtype="float64"), 1)
    given = inputs(block.settings, length=10)
    weight = block.state_dict()
    q, k, v = (np.reshape(given.x @ weight[f"{name}_proj.weight"].T, (3, 10, 2, 4)) for name in "qkv")
    scores = np.einsum("bihd,bjhd->bhij", q, k) / 2.0
    seen = (IDS[:, :, None] == IDS[:, None, :]) & np.tri(10, dtype=bool)
    p = np.exp(np.where(seen[:, None], scores, -np.inf))
    o = np.einsum("bhij,bjhd->bihd", p / p.sum(-1, keepdims=True), v).reshape(3, 10, 8)
    y, _ = run(block, given, segment_ids=IDS)
    close(y[IDS > 0], (o @ weight["o_proj.weight"].T)[IDS > 0])


def test_positions_begin_anew() -> None:
    mask = np.ones(IDS.shape, bool)
    mask[2, 1:3] = False
    assert Documents(IDS).positions().tolist() == [
        [0, 1, 2, 3, 0, 0, 1, 2, 0, 0], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert Documents(IDS).positions(mask)[2].tolist() == [0, 0, 0, 0, 1, 2, 0, 1, 2, 3]


@pytest.mark.parametrize("name", ["full_attention", "gla"])
def test_unpadded_tokens_are_one_packed_row(name: str) -> None:
    """Padded rows, one without a token, taken together and computed as one row: cu_seqlens says where they
    are"""
    case, keep = harness.cases_of("mixer", name)[0], np.zeros((3, 4), bool)
    keep[0, 1:] = keep[2, :2] = True
    block, given = case.build(), inputs(case.settings, length=4)
    indices, edges = compute_unpadded_indices(keep)
    flat = harness.Inputs(unpad(given.x, indices)[None], given.ids, given.context)
    y, _ = run(block, flat, segment_ids=segment_ids_of(edges))
    close(pad(y[0], indices, 3, 4)[keep], run(block, given, mask=keep)[0][keep])
    assert segment_ids_of([0, 2, 2, 3]).tolist() == [[1, 1, 3]]
    with pytest.raises(InputError, match="cu_seqlens"):
        segment_ids_of([0, 3, 2])


def test_nothing_but_padding_gives_zeros() -> None:
    case = harness.cases_of("mixer", "mamba")[0]
    y, _ = run(case.build(), inputs(case.settings, length=4), segment_ids=np.zeros((3, 4), int))
    assert not y.any()


def test_penalties_are_means_over_all_documents() -> None:
    """An Engram's mean gate: of two documents in a row as of the two in rows of their own"""
    settings = EngramSettings.create(hidden_size=8, vocab_size=11, engram_vocab_size=(11, 13), gate_coef=1.0,
                                     n_head_per_ngram=2, n_embed_per_ngram=4)
    engram = shaken(Engram(settings, dtype="float64"), 1)
    given, ids = inputs(settings, 1, 7), np.array([[1, 1, 2, 2, 2, 2, 2]])
    with no_grad(), auxiliary.collect() as packed:
        engram(Tensor(given.x), ids=given.ids, segment_ids=ids)
    penalties = []
    for part in (slice(0, 2), slice(2, 7)):
        with no_grad(), auxiliary.collect() as one:
            engram(Tensor(given.x[:, part]), ids=given.ids[:, part])
        penalties.append(one.totals()["engram/gate"].item())
    assert len(packed.losses) == 1
    assert packed.totals()["engram/gate"].item() == pytest.approx((2 * penalties[0] + 5 * penalties[1]) / 7)


def test_documents_of_different_lengths_are_dropped_from_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their groups (1, and 3 ... 4 tokens) draw at places of their own, the same again when run again"""
    settings = registry.find("mixer", "full_attention").Settings.create(hidden_size=8, num_heads=2,
                                                                        attn_dropout=0.5)
    block = shaken(registry.find("mixer", "full_attention")(settings, dtype="float64"), 1).train()
    given, place = inputs(settings, 1, 8), block.noise.copy()
    ids = np.array([[1, 1, 1, 1, 2, 3, 3, 3]])
    drawn, over = list[list[float]](), type(block).over

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        drawn.append(drawn_from(self.noise, (4,)).tolist())
        return over(self, *args, **options)

    monkeypatch.setattr(type(block), "over", noted)
    first, again = (run(block, given, segment_ids=ids)[0] for _ in range(2))
    assert np.array_equal(first, again)
    assert np.array_equal(block.noise, place)
    assert drawn[:2] == drawn[2:]
    assert len({tuple(each) for each in drawn}) == 2


def test_blocks_that_cannot_refuse_by_name() -> None:
    settings = harness.cases_of("memory", "cross_attention")[0].settings
    block = registry.find("memory", "cross_attention")(settings)
    given = inputs(settings, length=10, dtype="float32")
    with pytest.raises(InputError, match="CrossAttention does not take packed rows"):
        run(block, given, segment_ids=IDS)
    stack = Stack(StackSettings.create(hidden_size=settings.hidden_size, memory="cross_attention",
                                       options=harness.SMALL | {"cross_attention": {"num_heads": 2}}))
    with pytest.raises(InputError, match="CrossAttention does not take packed rows"):
        run(stack, given, segment_ids=IDS)
    case = harness.cases_of("memory", "rmc")[0]
    with pytest.raises(InputError, match="RMC does not take packed rows with update="):
        run(case.build(), inputs(case.settings, length=10), segment_ids=IDS, update=True)


@every
def test_a_state_beside_packed_rows_is_refused(case: Case) -> None:
    block, given = case.build(), inputs(case.settings, length=10)
    state = block.init_state(3)
    if state is not None:
        with pytest.raises(InputError, match="not continued"):
            run(block, given, segment_ids=IDS, state=state)


@pytest.mark.parametrize(("ids", "message"), [
    ([[1, 2, 1]], "row 0 comes back to document 1"), ([[1, -1, 1]], "give integers"),
    ([1, 2], "give integers"), ([[0.5, 1.0]], "segment_ids")])
def test_numbers_that_make_no_documents_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Documents(np.array(ids))
    case = harness.cases_of("mixer", "retention")[0]
    with pytest.raises(InputError, match=r"expected \[B,T\] = \[3, 9\]"):
        run(case.build(), inputs(case.settings), segment_ids=np.ones((3, 8), int))


# ---- a model ----


@pytest.mark.parametrize("options", [
    {"mixer": "MA", "memory": ("none", "engram"), "feed_forward": ("swiglu", "moe")},
    {"positions": "learned"}, {"positions": "sinusoidal"},
    {"body": "recursion", "prelude": ("rmc", "nsb")}], ids=str)
def test_a_packed_loss_is_the_sum_of_the_documents_losses(options: dict[str, Any]) -> None:
    """and its gradient the sum of theirs; the last token of a document is not scored"""
    blocks = {"full_attention": {"num_heads": 2}, "mamba": {"state_size": 4},
              "swiglu": {"intermediate_size": 6},
              "engram": {"vocab_size": 20, "engram_vocab_size": (11, 13), "n_head_per_ngram": 2,
                         "n_embed_per_ngram": 4},
              "moe": {"intermediate_size": 4, "num_experts": 3, "balance_coef": 0.0, "router_z_coef": 0.0}}
    used = {"full_attention", "swiglu"} if "mixer" not in options else set(blocks)
    config = LanguageModelConfig(vocab_size=20, hidden_size=8, num_layers=2, max_seq_len=16,
                                 options={name: blocks[name] for name in used}, **options)
    model = shaken(LanguageModel(config, dtype="float64"), 1)
    ids = np.random.default_rng(2).integers(0, 20, IDS.shape)
    targets = np.full(IDS.shape, -100)
    for row, part in PARTS:
        targets[row, part][:-1] = ids[row, part][1:]

    def gradient(*batch: np.ndarray, **more: Any) -> list[np.ndarray]:
        model.zero_grad()
        loss, _ = model.loss(*batch, valid_tokens=10, **more)
        loss.backward()
        found = (p.grad if p.grad is not None else np.zeros(p.shape) for p in reached(model).values())
        return [np.array(loss.data), *map(np.array, found)]

    whole = gradient(ids, targets, segment_ids=IDS)
    parts = [gradient(ids[row : row + 1, part], targets[row : row + 1, part]) for row, part in PARTS]
    for together, *each in zip(whole, *parts, strict=True):
        close(together, np.sum(each, axis=0))
