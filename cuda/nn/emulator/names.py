"""Kernels' names: mangled in PTX, plain for people.

plain_name("_Z4scanILi128EEvPiS0_")      # "scan<128>"
resolve("scan", mangled_names)           # the one that is meant; EmulatorError lists candidates otherwise"""

import ctypes
import difflib
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from cuda.nn.emulator.errors import EmulatorError

# Literals as the demangler writes them in template arguments: (bool)1, 3u, (char)97.
CASTS = re.compile(
    r"\((?:bool|char|signed char|unsigned char|short|unsigned short|int|long|long long)\)(?=-?\d)"
)


@lru_cache(maxsize=4096)
def demangle(name: str) -> str:
    """The C++ signature of a mangled name; other names as they are."""
    if not name.startswith("_Z"):
        return name
    library = _standard_library()
    status = ctypes.c_int()
    text = library.__cxa_demangle(name.encode(), None, None, ctypes.byref(status)) if library else None
    if not text:
        return name
    result = ctypes.string_at(text).decode(errors="replace")
    ctypes.CDLL(None).free(ctypes.c_void_p(text))
    return result


@lru_cache(maxsize=4096)
def plain_name(mangled: str) -> str:
    """As one writes it in the source: without return type and parameters, with template arguments."""
    signature = _outside(demangle(mangled), "(")
    return _last(signature, " ")


def resolve(name: str, mangled: Iterable[str]) -> str:
    """The mangled name that is meant: given mangled, as a signature, plain, without namespaces, or without
    template arguments.

    EmulatorError where several fit (it lists them) or none (it names the nearest)."""
    known = list(mangled)
    if name in known:
        return name
    wanted = _normal(name)
    for form in (demangle, plain_name, _without_namespace, _without_arguments, _bare):
        if fits := [one for one in known if _normal(form(one)) == wanted]:
            if len(fits) == 1:
                return fits[0]
            raise EmulatorError(
                f"kernel {name!r} could be any of: {', '.join(map(_told_apart(fits), fits))}; write which"
            )
    raise EmulatorError(_unknown(name, known))


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return f"kernel {name!r}: there are no kernels in it; a template needs an explicit instantiation"
    plain = [plain_name(one) for one in known]
    near = difflib.get_close_matches(name, {_bare(one): None for one in known} | dict.fromkeys(plain), 1, 0.5)
    listed = ", ".join(plain[:20]) + (", ..." if len(plain) > 20 else "")
    return (
        f"kernel {name!r} is not in it"
        + (f"; did you mean {near[0]!r}?" if near else "")
        + f" (kernels: {listed})"
    )


def _told_apart(mangled: list[str]) -> Callable[[str], str]:
    """How to write candidates: plain if that differs, else the whole signature."""
    return plain_name if len({plain_name(one) for one in mangled}) == len(mangled) else demangle


def _without_namespace(mangled: str) -> str:
    return _last(plain_name(mangled), ":")


def _without_arguments(mangled: str) -> str:
    return _outside(plain_name(mangled), "<")


def _bare(mangled: str) -> str:
    return _last(_without_arguments(mangled), ":")


def _normal(name: str) -> str:
    """Without what may be written in several ways: spaces, casts of literals, suffixes, true and false."""
    name = CASTS.sub("", name)
    name = re.sub(r"\b(\d+)[uUlL]+\b", r"\1", name)
    name = re.sub(r"\btrue\b", "1", re.sub(r"\bfalse\b", "0", name))
    return re.sub(r"\s+", "", name)


def _outside(text: str, bracket: str) -> str:
    """The text before a bracket that opens outside all others; `(anonymous namespace)` and operators'
    brackets do not count."""
    text = text.replace("(anonymous namespace)", "\0")
    depth = 0
    for at, letter in enumerate(text):
        if letter == bracket and depth == 0 and at:
            text = text[:at]
            break
        depth += (letter in "<(") - (letter in ">)")
    return text.replace("\0", "(anonymous namespace)")


def _last(text: str, separator: str) -> str:
    """What follows the last separator that is outside brackets."""
    text = text.replace("(anonymous namespace)", "\0")
    depth, start = 0, 0
    for at, letter in enumerate(text):
        if letter == separator and depth == 0:
            start = at + 1
        depth += (letter in "<(") - (letter in ">)")
    return text[start:].replace("\0", "(anonymous namespace)")


@lru_cache(maxsize=1)
def _standard_library() -> ctypes.CDLL | None:
    """libstdc++, whose demangler every C++ program has."""
    for name in ("libstdc++.so.6", "libc++abi.so.1", "libc++.1.dylib"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        function = library.__cxa_demangle
        function.restype = ctypes.c_void_p
        function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
        return library
    return None
