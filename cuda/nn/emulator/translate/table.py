"""The table of PTX instructions: which spellings exist, and the C++ statement that each becomes.

A row is a function under @instruction with the spelling it serves, written as the PTX manual does:

    @instruction("shfl", "sync mode:up|down|bfly|idx b32")
    def shfl(e, m, destination, value, lane, clamp, mask): ...

The pattern lists the modifiers in their order: a bare word is required, `name:a|b` chooses one of several
(m.name tells which), a trailing `?` makes either optional (m.name is then None; a bare optional word sets
m.word).  Characters that a Python name cannot hold become `_`: `shared::cta?` is m.shared__cta; `global` is
m.global_.  Several rows may serve one opcode; the first that fits is taken.

A modifier that no row knows is refused by name: an ignored modifier would be a wrong answer."""

import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

# What never changes places with its like: cvt.f32.s32 is not cvt.s32.f32, cp.async from global to shared is
# not from shared to global.
_TYPE = re.compile(r"(pred|[bus]\d+|t?f\d+|bf\d+|u?e\dm\d)(x\d)?")
_SPACE = re.compile(r"(global|local|const|param|shared)(::\w+)?")


class Unsupported(Exception):
    """The opcode, or one of its modifiers, is not in the table.  The caller adds the PTX and the .cu line."""


@dataclass(frozen=True)
class Slot:
    """One place in a pattern."""

    name: str
    words: tuple[str, ...]
    optional: bool


@dataclass(frozen=True)
class Row:
    """One spelling of one opcode and the function that translates it."""

    opcode: str
    pattern: str
    slots: tuple[Slot, ...]
    translate: Callable[..., str]

    def match(self, modifiers: Sequence[str]) -> tuple[SimpleNamespace | None, int]:
        """The chosen modifiers by name, or None; and how many modifiers were understood."""
        found: dict[str, str | None] = {slot.name: None for slot in self.slots}
        at = 0
        for slot in self.slots:
            if at < len(modifiers) and modifiers[at] in slot.words:
                found[slot.name] = modifiers[at]
                at += 1
            elif not slot.optional:
                return None, at
        return (SimpleNamespace(**found) if at == len(modifiers) else None), at

    def match_shuffled(self, modifiers: Sequence[str]) -> SimpleNamespace | None:
        """The chosen modifiers where they come in another order: ptxas takes `add.f32.rn` for `add.rn.f32`.

        Each slot takes the first modifier that fits it; types and spaces keep their own order."""
        found: dict[str, str | None] = {slot.name: None for slot in self.slots}
        left = dict(enumerate(modifiers))
        last = {_TYPE: -1, _SPACE: -1}
        for slot in self.slots:
            at = next((i for i, modifier in left.items() if modifier in slot.words), None)
            if at is None:
                if slot.optional:
                    continue
                return None
            found[slot.name] = left.pop(at)
            for kind in last:
                if kind.fullmatch(modifiers[at]):
                    if at < last[kind]:
                        return None
                    last[kind] = at
        return None if left else SimpleNamespace(**found)


ROWS: dict[str, list[Row]] = {}


def instruction(opcode: str, pattern: str = "") -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Enter a row: the decorated function gets (emitter, modifiers, *operands), and returns C++."""

    def enter(translate: Callable[..., str]) -> Callable[..., str]:
        slots = tuple(_slot(word) for word in pattern.split())
        ROWS.setdefault(opcode, []).append(Row(opcode, pattern, slots, translate))
        return translate

    return enter


def find(opcode: str, modifiers: Sequence[str]) -> tuple[Row, SimpleNamespace]:
    """The row that serves a spelling.  Raises Unsupported naming the opcode or modifier it lacks."""
    rows = ROWS.get(opcode)
    if not rows:
        raise Unsupported(f"instruction {opcode!r} is not supported")
    furthest = 0
    for row in rows:
        chosen, understood = row.match(modifiers)
        if chosen is not None:
            return row, chosen
        furthest = max(furthest, understood)
    for row in rows:
        chosen = row.match_shuffled(modifiers)
        if chosen is not None:
            return row, chosen
    spelling = ".".join((opcode, *modifiers))
    if furthest < len(modifiers):
        raise Unsupported(f"modifier '.{modifiers[furthest]}' of {spelling!r} is not supported")
    raise Unsupported(f"{spelling!r} is not supported: a modifier is missing")


def _slot(word: str) -> Slot:
    optional = word.endswith("?")
    word = word.rstrip("?")
    named = re.match(r"(\w+):(?!:)(.+)", word)      # `mode:up|down` has a name; `shared::cta` has none
    name, words = named.groups() if named else (word, word)
    name = re.sub(r"\W", "_", name)
    return Slot(name + "_" * keyword.iskeyword(name), tuple(words.split("|")), optional)
