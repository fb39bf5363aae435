"""Configurations: frozen dataclasses that read from YAML, write to YAML, and become command-line options.

A field's type says what is accepted; the comment on its line is its help text; a comment on a line of its
own above a field opens a section.  A nested dataclass gives dotted keys; of a union of dataclasses the one is
meant that knows all keys given, the one that is there if it does.  Whatever the source (a preset, a
file, the command line), settings are flat dicts `{"model.hidden_size": 64}` that `update` applies.

    config = load("run.yaml", TrainConfig);  save(config, "copy.yaml");  update(config, {"model.top_k": 2})
"""

import ast
import dataclasses
import inspect
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from io import StringIO
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeVar

from nn.errors import InputError
from nn.files import replacing
from nn.names import nearest

if typing.TYPE_CHECKING:
    from yaml import MappingNode, Node

    Field = dataclasses.Field[Any]

Config = TypeVar("Config")
REQUIRED = dataclasses.MISSING      # the default of a field that has none


@dataclass(frozen=True)
class Setting:
    """One leaf of a configuration."""

    key: str          # dotted path, as in files: model.hidden_size
    hint: Any         # the type it takes
    default: Any      # REQUIRED where there is none
    help: str         # the comment on its line
    section: str      # title of the section it belongs to


# ---- what a configuration class says ----

def settings(cls: type) -> Iterator[Setting]:
    """Every leaf of a configuration class, in the order of the fields; a nested class is a section."""
    return _settings(cls, "", "", _default)


def _settings(cls: type, prefix: str, section: str, default: Callable[["Field"], Any]) -> Iterator[Setting]:
    for field, hint, comment, title in _fields(cls):
        section, key, value = title or section, prefix + field.name, default(field)
        if not _classes(hint):
            yield Setting(key, hint, value, comment, section)
        seen = set()
        for kind in sorted(_classes(hint), key=lambda kind: not isinstance(value, kind)):
            inner = partial(_value, value) if isinstance(value, kind) else _default
            for setting in _settings(kind, key + ".", comment or key, inner):
                if setting.key not in seen:
                    seen.add(setting.key)
                    yield setting


def _classes(hint: Any) -> list[type]:
    """The dataclasses that a type allows: one, several, or none where it is a leaf's."""
    kinds = list(_members(hint) or (hint,))
    return kinds if all(dataclasses.is_dataclass(kind) for kind in kinds) else []


def variant(classes: Iterable[type], names: Iterable[str], current: Any = None) -> type:
    """The class that knows all these names (or paths): that of `current` if it does, else the first, else
    the one that knows most of them."""
    names = {name.partition(".")[0] for name in names}
    listed = sorted(classes, key=lambda kind: type(current) is not kind)
    known = [len(names & {field.name for field in dataclasses.fields(kind)}) for kind in listed]
    return listed[known.index(max(known))]


def _inside(hint: Any, current: Any, inner: dict[str, Any]) -> Any:
    """The configuration within another, with some settings changed: what is there, or one of the class that
    they belong to.  Of a mapping, the entries given."""
    if isinstance(current, Mapping):
        return _merged(current, inner)
    kind = variant(_classes(hint), inner, current)
    known = {field.name for field in dataclasses.fields(kind)}
    if alien := sorted(name for name in inner if name.partition(".")[0] not in known):
        raise InputError(f"{', '.join(alien)}: unknown to {kind.__name__}, which the other settings "
                         "describe; leave out one or the other")
    return update(current, inner) if isinstance(current, kind) else build(kind, inner)


def _merged(mapping: Mapping[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """{"moe": {"top_k": 2}} and {"moe.top_k": 1} -> {"moe": {"top_k": 1}}"""
    made, nested = _by_level(changes)
    for name, inner in nested.items():
        current = mapping.get(name) or {}
        if not isinstance(current, Mapping):
            raise InputError(f"{name}: {current!r} has no {', '.join(inner)} in it")
        made[name] = _merged(current, inner)
    return {**mapping, **made}


def _fields(cls: type) -> Iterator[tuple["Field", Any, str, str]]:
    """(field, type, comment, title of the section that opens there or "") of each field that can be given."""
    hints, (comments, titles) = typing.get_type_hints(cls), _comments(cls)
    for field in dataclasses.fields(cls):
        if field.init:
            yield field, hints[field.name], comments.get(field.name, ""), titles.get(field.name, "")


def _value(config: Any, field: "Field") -> Any:
    return getattr(config, field.name)


def _default(field: "Field") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _comments(cls: type) -> tuple[dict[str, str], dict[str, str]]:
    """Field name → the comment on its line, and → the section title above it; base classes included."""
    helps: dict[str, str] = {}
    titles: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            own = _source_comments(base)
            helps.update(own[0])
            titles.update(own[1])
    return helps, titles


@cache
def _source_comments(cls: type) -> tuple[dict[str, str], dict[str, str]]:
    """`_comments` of one class.  A program without sources (frozen, say) has options without help texts."""
    try:
        source = dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}, {}
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    notes = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {line: token.start[1] for line, token in notes.items() if token.line.lstrip().startswith("#")}
    text = {line: token.string.lstrip("# ") for line, token in notes.items()}
    helps, titles = {}, {}
    for node in typing.cast(ast.ClassDef, ast.parse(source).body[0]).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, above, last = node.target.id, node.lineno - 1, node.end_lineno or node.lineno
            if alone.get(above) == node.col_offset:
                titles[name] = text[above]
            end = last + 1
            while alone.get(end, 0) > node.col_offset:      # indented further: the comment goes on
                end += 1
            helps[name] = " ".join(text[line] for line in range(last, end) if line in text)
    return helps, titles


# ---- values ----

def convert(name: str, value: Any, hint: Any, where: str = "") -> Any:
    """A value from YAML or the command line as its type asks for; InputError names it, the type and where it
    stands."""
    from jsonargparse import ArgumentError, ArgumentParser

    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        if allows_none(hint):
            return None
    elif isinstance(value, str) and _is_sequence(hint) and not value.startswith("["):
        value = value.split(",")
    try:
        if value is None:      # jsonargparse takes it for "not given" and lets it pass
            raise ArgumentError(None, "null")
        reader = ArgumentParser(exit_on_error=False)
        reader.add_argument("--value", type=hint)
        return reader.parse_object({"value": value}, defaults=False)["value"]
    except ArgumentError:
        got = "null" if value is None else repr(value)
        raise InputError(f"{name}: expected {describe(hint)}, got {got}{where}") from None


def allows_none(hint: Any) -> bool:
    """Whether None is a value of the type."""
    return hint is type(None) or hint is Any or any(allows_none(h) for h in _members(hint))


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; nothing for another type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()


def _is_sequence(hint: Any) -> bool:
    return typing.get_origin(hint) in (tuple, list) or any(_is_sequence(h) for h in _members(hint))


NAMES = {int: "a whole number (int)", float: "a number (float)", bool: "true or false (bool)",
         str: "text (str)", Path: "a path", type(None): "null"}


def describe(hint: Any) -> str:
    """A type in words: `a number (float) or null`, `one of bpe, bytes`."""
    if members := _members(hint):
        return " or ".join(describe(member) for member in members)
    arguments, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (tuple, list):
        exact = origin is tuple and Ellipsis not in arguments
        return f"a list of {f'{len(arguments)}, each ' if exact else ''}{describe(arguments[0])}"
    return NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def update(config: Config, changes: dict[str, Any]) -> Config:
    """The configuration with some settings changed, checked as if it had been built that way.

    A class with a method `replace` of its own decides there which values follow from the changed ones."""
    direct, nested = _by_level(changes)
    hints = typing.get_type_hints(type(config)) if nested else {}
    for name, inner in nested.items():
        direct[name] = _inside(hints[name], direct.get(name, getattr(config, name)), inner)
    replace = getattr(config, "replace", partial(dataclasses.replace, typing.cast(Any, config)))
    return replace(**direct) if direct else config


def build(cls: type[Config], given: dict[str, Any], where: str = "") -> Config:
    """A configuration from settings; those not given have their defaults, InputError names one without."""
    for setting in settings(cls):
        if setting.default is REQUIRED and setting.key not in given:
            raise InputError(f"{setting.key}: missing; expected {describe(setting.hint)}{where}")
    direct, nested = _by_level(given)
    for field, hint, _, _ in _fields(cls):
        if field.name in nested:
            direct[field.name] = _inside(hint, direct.get(field.name, _default(field)), nested[field.name])
    return cls(**direct)


def _by_level(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings of the configuration itself, and those of each configuration inside it."""
    direct: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        head, dot, rest = key.partition(".")
        if dot:
            nested.setdefault(head, {})[rest] = value
        else:
            direct[key] = value
    return direct, nested


# ---- files ----

def load(path: str | Path, cls: type[Config]) -> Config:
    """A configuration from a YAML (or JSON) file; what the file leaves out keeps its default."""
    return build(cls, read(path, cls), f" ({path})")


def read(path: str | Path, cls: type) -> dict[str, Any]:
    """The settings that a file gives; a key the class does not have, or a wrong type, is an InputError."""
    file, known, found = _File(path), {setting.key: setting for setting in settings(cls)}, {}
    for key, value, node in file.leaves(file.root, "", known):
        found[key] = convert(key, value, known[key].hint, file.at(node))
    return found


def keys(path: str | Path) -> list[str]:
    """The top-level keys of a file."""
    file = _File(path)
    return [name for name, _, _ in file.entries(file.root)]


class _File:
    """A YAML file whose every value knows its line."""

    def __init__(self, path: str | Path) -> None:
        import yaml

        self.path = path
        try:
            self.loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
            self.root = self.loader.get_single_node()
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f" line {mark.line + 1}" if mark else ""
            raise InputError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from None

    def leaves(
        self, node: "Node | None", prefix: str, known: Iterable[str]
    ) -> Iterator[tuple[str, Any, "Node"]]:
        """(key, plain value, where) of each setting under a mapping."""
        for name, value, where in self.entries(node, prefix):
            key = prefix + name
            if key in known:
                yield key, self.loader.construct_object(value, deep=True), where
            elif any(k.startswith(key + ".") for k in known):
                yield from self.leaves(value, key + ".", known)
            else:
                guess = nearest(key, known)
                hint = f". Did you mean {guess}?" if guess else ""
                raise InputError(f"{key}: unknown key{hint}{self.at(where)}")

    def entries(self, node: "Node | None", prefix: str = "") -> list[tuple[str, "Node", "Node"]]:
        """(name, value, where) of each entry of a mapping; an empty one has none, no name may come twice."""
        import yaml

        if node is None or (isinstance(node, yaml.ScalarNode) and node.value == ""):
            return []
        if not isinstance(node, yaml.MappingNode):
            name = prefix.rstrip(".") or "the file"
            raise InputError(f"{name}: expected lines like 'key: value'{self.at(node)}")
        self._refuse_twice(node)
        self.loader.flatten_mapping(node)
        return [(str(self.loader.construct_object(name)), value, name) for name, value in node.value]

    def _refuse_twice(self, node: "MappingNode") -> None:
        """YAML would silently take the last."""
        first: dict[str, int] = {}
        for name, _ in node.value:
            line = name.start_mark.line + 1
            if first.setdefault(name.value, line) != line:
                before = f"first on line {first[name.value]}"
                raise InputError(f"{name.value}: given twice, {before}{self.at(name)}")

    def at(self, node: "Node") -> str:
        return f" ({self.path} line {node.start_mark.line + 1})"


def save(config: Any, path: str | Path) -> None:
    """Every setting as YAML, its help text beside it; the file appears whole or not at all."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(dump(config), encoding="utf-8")


def dump(config: Any) -> str:
    """A configuration as YAML with its help texts as comments."""
    return "\n".join(_lines(config)).lstrip("\n") + "\n"


def _lines(config: Any, indent: str = "") -> Iterator[str]:
    for field, hint, comment, title in _fields(type(config)):
        value = getattr(config, field.name)
        if title:
            yield f"\n{indent}# {title}"
        nested = bool(_classes(hint))
        text = f"{indent}{field.name}:" if nested else f"{indent}{field.name}: {_scalar(value)}"
        yield f"{text:<32}  # {comment}" if comment else text
        if nested:
            yield from _lines(value, indent + "  ")


def _scalar(value: Any) -> str:
    """One value on one line of YAML."""
    import yaml

    def plain(v: Any) -> Any:
        return [plain(x) for x in v] if isinstance(v, list | tuple) else str(v) if isinstance(v, Path) else v

    text = yaml.safe_dump(plain(value), default_flow_style=True, width=2**20, allow_unicode=True)
    return text.removesuffix("...\n").strip()
