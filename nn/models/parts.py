"""What the body of a language model is made of: its stacks, their blocks, the bytes of a block's state."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nn.dtypes import DType
from nn.layers import pattern, registry
from nn.layers.protocol import BlockSettings
from nn.layers.recursion.engine import RecursionSettings
from nn.layers.stack import StackSettings


def plain(value: Any) -> Any:
    """As a file holds it: mappings and dataclasses as dicts, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def named_stacks(settings: BlockSettings) -> dict[str, StackSettings]:
    """By their part of a recursion; a body that is a stack has no parts"""
    if isinstance(settings, RecursionSettings):
        return settings.stacks()
    return {"": settings} if isinstance(settings, StackSettings) else {}


class Same:
    """Settings, told apart by what they say: they may hold mappings, which have no hash"""

    def __init__(self, settings: BlockSettings) -> None:
        self.settings, self.text = settings, repr(settings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def bytes_held(role: str, name: str, same: Same, tokens: int, dtype: Any) -> int:
    """Bytes of a block's state behind so many tokens; one of fixed size is made, which draws little"""
    count = same.settings.cache_size(tokens)
    if count is not None:
        return count * DType.of(dtype).numpy.itemsize
    state = registry.find(role, name)(same.settings, dtype=dtype).init_state(1)
    return state.nbytes if state is not None else 0


def blocks_of(settings: BlockSettings) -> set[str]:
    """Names of the blocks and connections in a body."""
    return {name for stack in named_stacks(settings).values() for layer in stack.layers()
            for name in (*layer.names.values(), layer.residual) if name != pattern.NONE}


def block_settings(settings: BlockSettings) -> list[BlockSettings]:
    """Of every block in a body, or of a block by itself."""
    if not isinstance(settings, StackSettings | RecursionSettings):
        return [settings]
    return [own for stack in named_stacks(settings).values() for layer in stack.layers()
            for own in layer.blocks.values()]
