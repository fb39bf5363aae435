"""Branches, calls, returns, and memory taken from the stack.

A call collects its arguments in one buffer, laid out as the callee's parameters are, and passes a buffer for
the result; a call through a pointer takes the layout from the prototype.  Calls and backward branches count
against the step budget."""

from types import SimpleNamespace

from cuda.nn.emulator.ptx.syntax import Declaration, Group, Name, Operand, Prototype, TargetList
from cuda.nn.emulator.ptx.types import SCALARS
from cuda.nn.emulator.translate.emitter import Emitter, function_cpp
from cuda.nn.emulator.translate.names import (
    FunctionName,
    Label,
    ParameterPlace,
    lay_out,
    natural_alignment,
    scalar_bytes,
)
from cuda.nn.emulator.translate.table import Unsupported, instruction

# Functions of NVIDIA's device runtime that launch kernels from kernels.
_DEVICE_LAUNCH = (
    "cudaLaunchDevice",
    "cudaGetParameterBuffer",
    "cudaCreateStreamWithFlags",
    "cudaDeviceSynchronize",
    "__cudaCDP",
)


@instruction("bra", "uni?")
def bra(e: Emitter, m: SimpleNamespace, target: Operand) -> str:
    return _jump(e, e.label(target))


def _jump(e: Emitter, label: Label) -> str:
    if label.position > e.position:
        return f"goto {label.cpp};"
    return f"step(t, {e.site()}); goto {label.cpp};"


@instruction("brx", "idx uni?")
def brx(e: Emitter, m: SimpleNamespace, index: Operand, targets: Operand) -> str:
    """A jump table; an index outside it is undefined on the hardware, and a trap here."""
    found = e.names.find(targets.name) if isinstance(targets, Name) else None
    if not isinstance(found, TargetList) or found.kind != "branchtargets":
        raise Unsupported(f"{e.text(targets)} is not a list of .branchtargets")
    cases = [f"case {i}: {_jump(e, e.label(Name(name)))}" for i, name in enumerate(found.targets)]
    return f"switch ({e.value(index, 'u32')}) {{ {' '.join(cases)} default: trap(t, {e.site()}); }}"


@instruction("ret", "uni?")
def ret(e: Emitter, m: SimpleNamespace) -> str:
    stores = [
        f"store<{SCALARS[result.type].cpp}>(result, {e.value(Name(result.name), result.type)});"
        for result in e.function.results
        if result.space == "reg"
    ]
    return " ".join([*stores, "return;"])


@instruction("exit")
def exit_(e: Emitter, m: SimpleNamespace) -> str:
    """Ends the thread, from whatever depth of calls."""
    return "return;" if e.function.is_entry else "exit_thread(t);"


# ---- calls -------------------------------------------------------------------------------------------------


@instruction("call", "uni?")
def call(
    e: Emitter,
    m: SimpleNamespace,
    results: Group,
    target: Operand,
    arguments: Group,
    prototype: Operand | None = None,
) -> str:
    found = e.names.find(target.name) if isinstance(target, Name) else None
    if not isinstance(found, FunctionName):
        return _call_indirect(e, results, target, arguments, prototype)
    function = e.functions.get(found.name)
    if function is not None and function.body is not None:
        e.usage.calls.add(found.name)
        return _call(e, function_cpp(found.name), function.results, function.parameters, results, arguments)
    if found.name in _RUNTIME:
        return _RUNTIME[found.name](e, results, arguments)
    if found.name.startswith(_DEVICE_LAUNCH):
        raise Unsupported(
            f"{found.name}: launching kernels from kernels (dynamic parallelism) is not supported"
        )
    raise Unsupported(
        f"function {found.name} is defined in another file; modules that must be linked (-rdc=true) are not "
        f"supported"
    )


def _call_indirect(
    e: Emitter, results: Group, target: Operand, arguments: Group, prototype: Operand | None
) -> str:
    known = e.names.find(prototype.name) if isinstance(prototype, Name) else None
    if isinstance(known, TargetList) and known.kind == "calltargets":
        function = e.functions.get(known.targets[0])
        if function is None:
            raise Unsupported(f"call target {known.targets[0]!r} is not declared")
        formal_results, formal_parameters = function.results, function.parameters
    elif isinstance(known, Prototype):
        formal_results, formal_parameters = known.results, known.parameters
    elif prototype is None and isinstance(target, Name) and e.names.find(target.name) is None:
        raise Unsupported(f"function {target.name!r} is called but not declared")
    else:
        raise Unsupported(f"a call through {e.text(target)} needs a .callprototype")
    e.usage.calls_indirectly = True
    pointer = f"called({e.value(target, 'u64')})"
    return _call(e, pointer, formal_results, formal_parameters, results, arguments)


def _call(
    e: Emitter,
    function: str,
    formal_results: list[Declaration],
    formal_parameters: list[Declaration],
    results: Group,
    arguments: Group,
) -> str:
    if len(formal_parameters) != len(arguments.elements) or len(formal_results) != len(results.elements):
        raise Unsupported(
            f"a call with {len(arguments.elements)} arguments and {len(results.elements)} results of a "
            f"function that takes "
            f"{len(formal_parameters)} and returns {len(formal_results)}"
        )
    offsets, total = lay_out(formal_parameters)
    statements = [f"step(t, {e.site()});"]
    if total:
        statements.append(f"alignas({_alignment(formal_parameters)}) char arguments[{total}];")
    for formal, offset, argument in zip(formal_parameters, offsets, arguments.elements, strict=True):
        statements.append(_pass(e, formal, f"arguments + {offset}", argument))
    output, after = _receive(e, formal_results, results)
    statements += output
    passed = "arguments" if total else "nullptr"
    statements.append(f"{function}(t, {passed}, {'returned' if results.elements else 'nullptr'});")
    e.usage.call_bytes += total + sum(map(scalar_bytes, formal_results))
    return f"{{ {' '.join(statements + after)} }}"


def _alignment(parameters: list[Declaration]) -> int:
    return max(8, *(natural_alignment(parameter) for parameter in parameters))


def _place(e: Emitter, operand: Operand) -> ParameterPlace | None:
    found = e.names.find(operand.name) if isinstance(operand, Name) else None
    return found if isinstance(found, ParameterPlace) else None


def _pass(e: Emitter, formal: Declaration, to: str, argument: Operand) -> str:
    """Copy one argument into the buffer: from the bytes of a .param, or from a register."""
    place = _place(e, argument)
    if place is None:
        return f"store<{SCALARS[formal.type].cpp}>({to}, {e.value(argument, formal.type)});"
    size = scalar_bytes(formal)
    if place.bytes < size:
        raise Unsupported(
            f"argument {e.text(argument)} has {place.bytes} bytes where the function takes {size}"
        )
    return f"std::memcpy({to}, {place.buffer} + {place.offset}, {size});" if size else ""


def _receive(e: Emitter, formals: list[Declaration], results: Group) -> tuple[list[str], list[str]]:
    """Statements before and after the call that give it a buffer named `returned`."""
    if not results.elements:
        return [], []
    formal, operand = formals[0], results.elements[0]
    place = _place(e, operand)
    size = scalar_bytes(formal)
    if place is not None:
        if place.bytes < size:
            raise Unsupported(
                f"result {e.text(operand)} has {place.bytes} bytes where the function returns {size}"
            )
        return [f"char* const returned = (char*){place.buffer} + {place.offset};"], []
    cpp = SCALARS[formal.type].cpp
    return [f"alignas(16) char returned[{max(1, size)}];"], [
        e.assign(operand, formal.type, f"load<{cpp}>(returned)")
    ]


# ---- functions of the runtime ------------------------------------------------------------------------------


def _argument(e: Emitter, arguments: Group, index: int, type: str) -> str:
    place = _place(e, arguments.elements[index])
    if place is None:
        return e.value(arguments.elements[index], type)
    return f"load<{SCALARS[type].cpp}>({place.buffer} + {place.offset})"


def _give(e: Emitter, results: Group, type: str, expression: str) -> str:
    if not results.elements:
        return f"(void)({expression});"
    place = _place(e, results.elements[0])
    if place is None:
        return e.assign(results.elements[0], type, expression)
    return f"store<{SCALARS[type].cpp}>((char*){place.buffer} + {place.offset}, {expression});"


def _vprintf(e: Emitter, results: Group, arguments: Group) -> str:
    text, values = (f"(const char*){_argument(e, arguments, i, 'u64')}" for i in range(2))
    return _give(e, results, "u32", f"print(t, {text}, {values}, {e.site()})")


def _assert_fail(e: Emitter, results: Group, arguments: Group) -> str:
    message, file, function = (f"(const char*){_argument(e, arguments, i, 'u64')}" for i in (0, 1, 3))
    return f"assert_fail(t, {message}, {file}, {_argument(e, arguments, 2, 'u32')}, {function}, {e.site()});"


def _malloc(e: Emitter, results: Group, arguments: Group) -> str:
    return _give(
        e, results, "u64", f"(uint64_t)device_malloc(t, {_argument(e, arguments, 0, 'u64')}, {e.site()})"
    )


def _free(e: Emitter, results: Group, arguments: Group) -> str:
    return f"device_free(t, (void*){_argument(e, arguments, 0, 'u64')}, {e.site()});"


_RUNTIME = {"vprintf": _vprintf, "__assertfail": _assert_fail, "malloc": _malloc, "free": _free}


# ---- memory from the stack ---------------------------------------------------------------------------------


@instruction("alloca", "type:u64|b64?")
def alloca(
    e: Emitter, m: SimpleNamespace, pointer: Operand, size: Operand, alignment: Operand | None = None
) -> str:
    """Local memory until the function returns.  Each piece is a frame of its own, for bounds."""
    boundary = e.immediate(alignment) if alignment is not None else 8
    e.usage.flags.add("alloca")
    room = f"__builtin_alloca(bytes + sizeof(LocalFrame) + {boundary})"
    piece = e.assign(pointer, "u64", f"local_piece(t, {room}, bytes, {boundary})")
    return f"{{ const uint64_t bytes = {e.value(size, 'u64')}; {piece} }}"


@instruction("stacksave", "type:u32|u64")
def stacksave(e: Emitter, m: SimpleNamespace, destination: Operand) -> str:
    """Restoring would only give memory back earlier than the function's end does."""
    return e.assign(destination, m.type, "0")


@instruction("stackrestore", "type:u32|u64")
def stackrestore(e: Emitter, m: SimpleNamespace, source: Operand) -> str:
    return f"(void)({e.value(source, m.type)});"


@instruction("pmevent", "mask?")
def pmevent(e: Emitter, m: SimpleNamespace, mask: Operand) -> str:
    """Triggers performance monitor events: nothing to see here."""
    return f"(void){e.immediate(mask)};"
