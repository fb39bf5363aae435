"""The tables, formulas, names and numbers of docs/1-model.md, and the constants that pages quote, recomputed.

Every number with a thousands separator on a page must be one of NUMBERS.   Try: pytest tests/docs"""

import inspect
import math
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn import MoETransformer, MoETransformerConfig, flops, ops
from nn.bench.models import DECODED, GPT2_124M, MOE_BENCH
from nn.config import dump
from nn.data.documents import PIECE
from nn.interop import mixtral
from nn.layers.moe.capacity import MIN_CAPACITY
from nn.layers.rotary import RopeScaling, inverse_frequencies
from nn.models import TransformerConfig, preset
from nn.optim import AdamW
from nn.train import TrainConfig
from tests.docs.pages import DOCS, ROOT, blocks, marked, one_line, prose, rows

MODEL, LEARN = "1-model.md", "2-learn.md"
TINY, BIG = preset("tiny"), preset("moe-6.9b")
# No two lengths are the same, so that no formula is right by chance.
UNEVEN = MoETransformerConfig(vocab_size=11, hidden_size=12, num_layers=3, num_heads=6, num_kv_heads=2,
                              head_dim=4, intermediate_size=5, num_experts=7, top_k=3)


# ---- tables ----


def letters(c: MoETransformerConfig, seq_len: int = 0, active: bool = False) -> dict[str, int]:
    """What the letters of the formulas stand for."""
    return {"V": c.vocab_size, "D": c.hidden_size, "L": c.num_layers, "H": c.num_heads, "G": c.num_kv_heads,
            "Dh": c.head_dim, "F": c.intermediate_size, "K": c.top_k, "T": seq_len,
            "E": c.top_k if active else c.num_experts}


def formula(text: str, c: MoETransformerConfig, seq_len: int = 0, active: bool = False) -> float:
    return float(eval(text.split(" (active")[0].replace("·", "*"), {}, letters(c, seq_len, active)))


def counts(cells: list[str]) -> list[int]:
    return [int(cell.replace(",", "")) for cell in cells]


def test_table_of_shapes() -> None:
    sigma = UNEVEN.init_std
    smaller = sigma / math.sqrt(2 * UNEVEN.num_layers)
    starts = {"1": (0.0, 1.0), "Normal(0, σ)": (sigma, 0.0),
              "Normal(0, σ/√(2·num_layers))": (smaller, 0.0)}
    stated: dict[str, Any] = {}
    for name, shape, start in rows(MODEL, "shapes"):
        lengths = tuple(eval(shape, {}, letters(UNEVEN)))
        for i in range(UNEVEN.num_layers):
            stated[name.replace("layers.i", f"layers.{i}")] = (lengths, starts[start])
    found = MoETransformer(UNEVEN).named_parameters()
    assert stated == {name: (p.shape, (p.std, p.fill)) for name, p in found.items()}


def test_table_of_parameters() -> None:
    *parts, total = rows(MODEL, "parameters")
    columns = [flops.parameters(TINY), flops.parameters(BIG), flops.parameters(BIG, active=True)]
    assert [part for part, *_ in parts] == list(columns[0])
    for part, text, *cells in parts:
        assert counts(cells) == [column[part] for column in columns]
        assert counts(cells) == [formula(text, TINY), formula(text, BIG), formula_active(part, text)]
        assert formula(text, UNEVEN) == flops.parameters(UNEVEN)[part]
    assert counts(total[2:]) == [sum(column.values()) for column in columns]
    assert counts(total[2:3]) == [MoETransformer(TINY).num_parameters()]


def formula_active(part: str, text: str) -> float:
    """Of one token: all of it, except where the formula says that K experts count."""
    return formula(text, BIG, active="(active: K for E)" in text)


def test_table_of_operations() -> None:
    *parts, total = rows(MODEL, "flops")
    columns = [flops.breakdown(TINY, 512), flops.breakdown(BIG, 2048)]
    assert [part for part, *_ in parts] == list(columns[0])
    for part, text, *cells in parts:
        assert counts(cells) == [column[part] for column in columns]
        assert counts(cells) == [formula(text, TINY, 512), formula(text, BIG, 2048)]
        assert formula(text, UNEVEN, 9) == flops.breakdown(UNEVEN, 9)[part]
    assert counts(total[2:]) == [sum(column.values()) for column in columns]


def test_table_of_mixtral_names() -> None:
    stated: dict[str, Any] = {}
    for ours, theirs in rows(MODEL, "mixtral names"):
        for i in range(UNEVEN.num_layers):
            here, there = (text.replace("layers.i.", f"layers.{i}.") for text in (ours, theirs))
            stated[here.removesuffix("[e]")] = per_expert(there) if here.endswith("[e]") else there
    assert stated == mixtral.names(UNEVEN) | mixtral.expert_names(UNEVEN)


def per_expert(pattern: str) -> list[list[str]]:
    """`experts.e.{w1,w3}.weight`: every part of it for every expert."""
    braces = re.search(r"\{(.*)\}", pattern)
    parts = [pattern.replace(braces[0], part) for part in braces[1].split(",")] if braces else [pattern]
    return [[part.replace(".e.", f".{e}.") for part in parts] for e in range(UNEVEN.num_experts)]


def test_table_of_mixtral_fields() -> None:
    stated = [tuple(row) for row in rows(MODEL, "mixtral fields")]
    assert stated == [(ours, theirs) for ours, (theirs, _) in mixtral.FIELDS.items()]


def test_table_of_options() -> None:
    assert marked(MODEL, "table: options") == f"```yaml\n{dump(MoETransformerConfig())}```"


# ---- the diagram ----


def test_the_diagram_has_the_names_of_the_code() -> None:
    (diagram,) = (block.text for block in blocks(MODEL) if block.language == "mermaid")
    drawn = dict(re.findall(r'"([\w.]+): (\w+)', diagram))
    model, layer = MoETransformer(TINY), MoETransformer(TINY).layers[0]
    kinds = {"layers.i": type(layer).__name__}
    kinds |= {name: type(getattr(model, name)).__name__ for name in ("embed_tokens", "norm", "lm_head")}
    for module, path in walk(layer):
        kinds[path] = type(module).__name__
    assert drawn == kinds
    assert all(hasattr(ops, name) for name in re.findall(r'"ops\.(\w+)"', diagram))


def walk(module: Any, path: str = "") -> list[tuple[Any, str]]:
    """Every module below, with its path."""
    found = []
    for child in list(module.modules())[1:]:
        if any(value is child for value in vars(module).values()):
            found += [(child, path + child.name), *walk(child, f"{path}{child.name}.")]
    return found


# ---- numbers ----


def reference(name: str) -> Any:
    return import_module(f"nn.backends.reference.{name}")


QUOTED = [
    (MODEL, f"in tiles of {reference('moe').TILE} rows"),
    (MODEL, f"Queries are taken {reference('attention').BLOCK} at a time"),
    (MODEL, f"at least {MIN_CAPACITY} and at most N"),
    (MODEL, f"σ is `init_std`, {TINY.init_std}"),
    (MODEL, f"ε = norm_eps = {TINY.norm_eps:.0e}".replace("e-0", "e-")),
    (MODEL, f"α = balance_coef = {TINY.balance_coef}"),
    (MODEL, f"β = router_z_coef = {TINY.router_z_coef}"),
    (LEARN, f"as give 2²² logits ({reference('loss').LOGITS_AT_ONCE * 4 >> 20} MiB in float32)"),
    (LEARN, f"at most {PIECE:,} characters"),
    (LEARN, f"`held_out_fraction`, {100 * TrainConfig().held_out_fraction:.0f} %"),
]


@pytest.mark.parametrize(("page", "text"), QUOTED)
def test_constants_are_those_of_the_code(page: str, text: str) -> None:
    assert text in one_line(page)


def test_the_tape_is_as_short_as_the_page_says() -> None:
    assert "(`nn/tensor.py`, under 200 lines)" in one_line(LEARN)
    assert len((ROOT / "nn" / "tensor.py").read_text(encoding="utf-8").splitlines()) < 200


def test_defaults_of_the_optimizer() -> None:
    default = {name: p.default for name, p in inspect.signature(AdamW).parameters.items()}
    beta, decay, eps = default["betas"], default["weight_decay"], f"{default['eps']:.0e}".replace("e-0", "e-")
    assert f"with β = {beta}, ε = {eps}, wd = {decay}" in one_line(LEARN)
    assert (TrainConfig().beta1, TrainConfig().beta2, TrainConfig().weight_decay) == (*beta, decay)


def wavelength(scaling: RopeScaling, length: int) -> int:
    """The longest one of a head of 64 channels, in positions."""
    return round(2.0 * math.pi / inverse_frequencies(64, 10000.0, scaling, length)[0][-1])


def gpt2_parameters(c: TransformerConfig) -> int:
    """Embeddings, 12 D² + 13 D a layer with its biases, the last norm"""
    layer = (12 * c.d_model + 13) * c.d_model
    return (c.vocab_size + c.max_seq_len + 2) * c.d_model + c.n_layers * layer


TABLES: list[dict[str, Any]] = [
    flops.parameters(TINY), flops.parameters(TINY, active=True), flops.parameters(BIG),
    flops.parameters(BIG, active=True), flops.breakdown(TINY, 512), flops.breakdown(BIG, 2048),
]
NUMBERS = {
    *(round(number) for table in TABLES for number in (*table.values(), sum(table.values()))),
    round(3 * sum(flops.breakdown(BIG, 2048).values())),           # training
    2 * BIG.num_layers * BIG.num_kv_heads * BIG.head_dim * 2,      # bytes of cache per token
    wavelength(RopeScaling(), 32768), wavelength(BIG.rope_scaling, BIG.max_seq_len),
    *(sum(flops.parameters(config).values()) for config in (*DECODED.values(), MOE_BENCH, preset("small"))),
    gpt2_parameters(GPT2_124M),
    BIG.max_seq_len, BIG.rope_scaling.original_max_position_embeddings, BIG.vocab_size, PIECE, 2048,
}
MEASURED = {4128, 1032}      # trials, and in how many of them bits changed: see docs/diary.md


@pytest.mark.parametrize("path", [p for p in DOCS if p.name != "diary.md"], ids=lambda path: path.name)
def test_large_numbers_are_recomputed(path: Path) -> None:
    written = re.findall(r"(?<![\w,.])\d{1,3}(?:,\d{3})+(?![\w,])", prose(path))
    assert {*counts(written)} - NUMBERS - MEASURED == set()


def test_float32_angles_are_off_by_what_the_page_says() -> None:
    inverse = inverse_frequencies(64, 10000.0, RopeScaling(), 32768)[0][:4]       # the fast ones are worst
    positions = np.arange(BIG.max_seq_len)[:, None]
    worst = np.abs(positions.astype(np.float32) * inverse.astype(np.float32) - positions * inverse).max()
    assert f"off by up to {worst:.4f} rad" in one_line(MODEL)
