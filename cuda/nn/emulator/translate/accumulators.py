"""Finds uses of wgmma's results before a wait covers them: until then wgmma.mma_async may still write them.

    wgmma.mma_async ... {%f1, ...};  wgmma.commit_group;
    st.global.f32 [%rd1], %f1;                              # too early
    wgmma.wait_group 0;

early_uses() walks the function's control flow with the set of registers that are surely still being
written: on every path that leads there.  A register copied by mov is as unfinished as its source, and the
copy itself is no use: nvcc moves accumulators from register to register around loops.  Arithmetic whose
wait stands later in the same basic block is let pass as well, since nvcc may have moved it there from
behind the wait; not so when a store or the like, which stays where it was written, takes its result
before the wait."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from cuda.nn.emulator.ptx.syntax import (
    Address,
    Function,
    Group,
    Immediate,
    Instruction,
    LabelDefinition,
    Name,
    Negated,
    Operand,
    Pair,
    Scope,
    TargetList,
    Vector,
)

# Of these the first operand is read; of all others it is the destination.
_STORES = frozenset({"st", "red", "stmatrix", "cp", "bra", "brx", "call", "multimem"})
_EFFECTS = frozenset({"st", "red", "atom", "stmatrix", "shfl", "call", "multimem"})
_LEAVES = frozenset({"ret", "exit", "trap"})
_OLDEST = 9  # wait_group goes up to 7


@dataclass(frozen=True)
class Pending:
    """A register that a wgmma may still write to."""

    product: Instruction
    age: int  # commit_groups since; 0: not committed


State = dict[str, Pending]  # by register


@dataclass
class Block:
    """A basic block."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    falls_through: bool = True
    targets: list[str] = field(default_factory=list)
    entry: State | None = None  # None: not reached yet


def early_uses(function: Function) -> dict[int, Instruction]:
    """By id() of an instruction that uses a result too early: the wgmma whose result.  One use for each."""
    if function.body is None or not any(map(_is_product, _instructions(function.body))):
        return {}
    blocks = _blocks(function.body)
    _flow(blocks)
    found: dict[int, Instruction] = {}
    told: set[int] = set()
    for block in blocks:
        for use, pending in _uses(block):
            if id(pending.product) not in told:
                told.add(id(pending.product))
                found[id(use)] = pending.product
    return found


def _is_product(instruction: Instruction) -> bool:
    return instruction.opcode == "wgmma" and instruction.modifiers[:1] == ("mma_async",)


# ---- control flow ------------------------------------------------------------------------------------------


def _instructions(scope: Scope) -> Iterator[Instruction]:
    for statement in scope.statements:
        if isinstance(statement, Instruction):
            yield statement
        elif isinstance(statement, Scope):
            yield from _instructions(statement)


def _blocks(body: Scope) -> list[Block]:
    blocks = [Block()]
    lists: dict[str, tuple[str, ...]] = {}
    for statement in _flattened(body):
        if isinstance(statement, TargetList):
            lists[statement.name] = statement.targets
        elif isinstance(statement, LabelDefinition):
            if blocks[-1].instructions:
                blocks.append(Block())
            blocks[-1].labels.append(statement.name)
        else:
            blocks[-1].instructions.append(statement)
            if statement.opcode in _LEAVES or statement.opcode in ("bra", "brx"):
                blocks[-1].falls_through = bool(statement.guard)
                blocks[-1].targets = [o.name for o in statement.operands if isinstance(o, Name)]
                blocks.append(Block())
    for block in blocks:
        block.targets = [label for target in block.targets for label in lists.get(target, (target,))]
    return blocks


def _flattened(scope: Scope) -> Iterator[Instruction | LabelDefinition | TargetList]:
    for statement in scope.statements:
        if isinstance(statement, Scope):
            yield from _flattened(statement)
        elif isinstance(statement, Instruction | LabelDefinition | TargetList):
            yield statement


def _flow(blocks: list[Block]) -> None:
    """Set the entry state of every block that can be reached: what holds on all paths."""
    numbers = {label: number for number, block in enumerate(blocks) for label in block.labels}
    blocks[0].entry = {}
    waiting = [0]
    while waiting:
        number = waiting.pop()
        block = blocks[number]
        state = dict(block.entry or {})
        for instruction in block.instructions:
            _step(state, instruction)
        after = [numbers[target] for target in block.targets if target in numbers]
        if block.falls_through and number + 1 < len(blocks):
            after.append(number + 1)
        for successor in after:
            if _meet(blocks[successor], state):
                waiting.append(successor)


def _meet(block: Block, state: State) -> bool:
    """Let a path with this state enter a block.  True: the block must be looked at again."""
    if block.entry is None:
        block.entry = dict(state)
        return True
    met = {
        register: Pending(pending.product, max(pending.age, state[register].age))
        for register, pending in block.entry.items()
        if register in state
    }
    changed = met != block.entry
    block.entry = met
    return changed


# ---- one instruction ---------------------------------------------------------------------------------------


def _step(state: State, instruction: Instruction) -> None:
    """What an instruction changes."""
    if instruction.opcode == "wgmma":
        _step_wgmma(state, instruction)
        return
    written = _written(instruction)
    if instruction.opcode == "mov" and not instruction.guard and len(written) == 1:
        source = instruction.operands[1]
        pending = state.get(_spelled(source)) if isinstance(source, Name) else None
        if pending:
            state[written[0]] = pending
            return
    for register in written:
        state.pop(register, None)


def _step_wgmma(state: State, instruction: Instruction) -> None:
    kind = instruction.modifiers[0]
    if kind == "mma_async":
        for register in _names(instruction.operands[0]):
            state[register] = Pending(instruction, 0)
    elif kind == "commit_group":
        for register, pending in state.items():
            state[register] = Pending(pending.product, min(pending.age + 1, _OLDEST))
    elif kind == "wait_group":
        for register in _completed(state, instruction):
            del state[register]


def _completed(state: State, wait: Instruction) -> list[str]:
    """Registers that a wait_group makes usable: of all groups but the youngest."""
    operand = wait.operands[0]
    left = operand.value if isinstance(operand, Immediate) else 0
    return [register for register, pending in state.items() if pending.age > left]


def _uses(block: Block) -> Iterator[tuple[Instruction, Pending]]:
    """Uses of unfinished registers that have an effect, or that no wait of the same block makes good."""
    if block.entry is None:
        return
    state = dict(block.entry)
    derived: State = {}  # results of arithmetic on unfinished registers
    doubtful: list[tuple[Instruction, Pending]] = []
    for instruction in block.instructions:
        if instruction.opcode == "wgmma":
            if instruction.modifiers[0] == "wait_group":
                finished = {id(state[register].product) for register in _completed(state, instruction)}
                derived = {register: p for register, p in derived.items() if id(p.product) not in finished}
                doubtful = [use for use in doubtful if id(use[1].product) not in finished]
        elif instruction.opcode != "mov":
            read = [pending for r in _read(instruction) if (pending := state.get(r) or derived.get(r))]
            if instruction.opcode in _EFFECTS:
                yield from ((instruction, pending) for pending in read)
            else:
                doubtful += [(instruction, pending) for pending in read]
                for register in _written(instruction):
                    derived.pop(register, None)
                    if read:
                        derived[register] = read[0]
        _step(state, instruction)
    yield from doubtful


def _written(instruction: Instruction) -> list[str]:
    if instruction.opcode in _STORES or not instruction.operands:
        return []
    return list(_names(instruction.operands[0]))


def _read(instruction: Instruction) -> Iterator[str]:
    first = 0 if instruction.opcode in _STORES else 1
    for operand in instruction.operands[first:]:
        yield from _names(operand)


def _spelled(name: Name) -> str:
    return f"{name.name}.{name.component}" if name.component else name.name


def _names(operand: Operand) -> Iterator[str]:
    if isinstance(operand, Name):
        yield _spelled(operand)
    elif isinstance(operand, Vector | Group):
        for element in operand.elements:
            yield from _names(element)
    elif isinstance(operand, Pair):
        yield from _names(operand.first)
        yield from _names(operand.second)
    elif isinstance(operand, Negated):
        yield from _names(operand.operand)
    elif isinstance(operand, Address):
        yield from _names(operand.base)
