"""Runs of mma.sync: neighbouring products that do not need each other's results become one collective.

A collective costs a switch of threads per lane, several times what the product itself costs; kernels issue
mma.sync in runs of 4 to 64.  A row returns a ProductCode, a statement that knows how to be one of several:

    merge_products(["x = 1;", product, product, "y = 2;"])  # ["x = 1;", "{ ... Mma m[2] = ...}", "y = 2;"]"""

from collections.abc import Iterable, Sequence

MOST = 16                # per collective: 768 bytes of a thread's stack


class ProductCode(str):
    """The C++ statement of one mma.sync."""

    shape: str                       # initialiser of its MmaShape
    operands: str                    # initialisers of the other fields of its Mma
    results: tuple[str, ...]         # statements that take the results from {m}.c
    site: str
    reads: frozenset[str]            # C++ names of registers
    writes: frozenset[str]


def product_code(
    shape: str, operands: str, results: Sequence[str], site: str, reads: Iterable[str], writes: Iterable[str]
) -> ProductCode:
    """The statement; see the fields of ProductCode."""
    code = ProductCode(_statement(shape, [operands], [results], site))
    code.shape, code.operands, code.results, code.site = shape, operands, tuple(results), site
    code.reads, code.writes = frozenset(reads), frozenset(writes)
    return code


def merge_products(lines: Iterable[str]) -> list[str]:
    """The lines of a function, with the runs in them merged."""
    merged: list[str] = []
    run: list[ProductCode] = []
    for line in lines:
        if not isinstance(line, ProductCode):
            _close(run, merged)
            merged.append(line)
            continue
        if run and not _joins(run, line):
            _close(run, merged)
        run.append(line)
    _close(run, merged)
    return merged


def _joins(run: Sequence[ProductCode], line: ProductCode) -> bool:
    """All operands are read before any result is written: right unless the run writes one of them."""
    fits = line.shape == run[0].shape and len(run) < MOST
    return fits and not any(before.writes & line.reads for before in run)


def _close(run: list[ProductCode], merged: list[str]) -> None:
    if len(run) == 1:
        merged.append(run[0])
    elif run:
        operands, results = [p.operands for p in run], [p.results for p in run]
        merged.append(_statement(run[0].shape, operands, results, run[0].site))
    run.clear()


def _statement(shape: str, operands: Sequence[str], results: Sequence[Sequence[str]], site: str) -> str:
    count = len(operands)
    products = ", ".join(f"{{&s, {one}}}" for one in operands)
    taken = " ".join(line.format(m=f"m[{number}]") for number, lines in enumerate(results) for line in lines)
    return (
        f"{{ static const MmaShape s = {{{shape}, {count}}}; Mma m[{count}] = {{{products}}}; "
        f"mma(t, *m, {site}); {taken} }}"
    )
