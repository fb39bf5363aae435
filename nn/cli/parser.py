"""A verb's options, made from configuration classes (nn/config.py): one per setting, its comment the help.

    parser = Parser("train", __doc__, TrainConfig)
    parser.given(["--lr", "1e-2", "--model.top_k=1"])       # {"lr": 0.01, "model.top_k": 1}: what was given

`--batch-size` and `--batch_size` are one option; `--flag`, `--no-flag` and `--flag=false` set a boolean.  An
entry of a setting that is a mapping has an option, too: `--model.options.moe.top-k 2`."""

import argparse
import logging
import re
import shutil
import textwrap
import typing
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from nn.cli.aliases import Moot
from nn.config import REQUIRED, Setting, build, convert, settings
from nn.errors import InputError
from nn.names import nearest

COLUMN = 30         # where help texts begin
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
ENTRY = object()    # the type of a mapping's entry, which is not known here
log = logging.getLogger("nn.cli")


class Parser(argparse.ArgumentParser):
    """`about` is a verb's docstring: what it does, then "Examples:".  `aliases`: other names of settings
    (aliases.py).  `changes`: one more class, of which `parse` gives what was given, as a dict, not built."""

    def __init__(self, verb: str, about: str | None, *classes: type, aliases: dict[str, str] | None = None,
                 changes: type | None = None) -> None:
        super().__init__(prog=f"cuda-nn {verb}", allow_abbrev=False)
        self.about, self.classes, self.changes = (about or "").strip(), classes, changes
        self.known = {flag(s.key): s for cls in [*classes, *filter(None, [changes])] for s in settings(cls)}
        names = (aliases or {}).items()
        self.aliases = {flag(a): flag(b) for a, b in names if not isinstance(b, Moot)}
        self.moot = {flag(a): b for a, b in names if isinstance(b, Moot)}
        for name, setting in self.known.items():
            bare: dict[str, Any] = {"nargs": "?", "const": True} if _takes_bool(setting.hint) else {}
            self.add_argument(name, dest=setting.key, default=argparse.SUPPRESS, **bare)
        self.add_argument("--help-all", action="store_true", default=argparse.SUPPRESS)

    def parse(self, argv: Sequence[str]) -> list[Any]:
        """One configuration of each class, what was not given at its default; then the changes."""
        given = self.given(argv)
        mine = [{s.key: given[s.key] for s in settings(cls) if s.key in given} for cls in self.classes]
        built: list[Any] = [build(cls, values) for cls, values in zip(self.classes, mine, strict=True)]
        left = {key: value for key, value in given.items() if not any(key in values for values in mine)}
        return [*built, left] if self.changes else built

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """The settings on the command line, converted to their types."""
        words = [self._spelling(word) for word in argv]
        for word in words:
            self._learn_entry(word.partition("=")[0])
        found, left = self.parse_known_args([word for word in words if not self._says_nothing(word)])
        if hasattr(found, "help_all"):
            self.exit(0, self.describe(everything=True))
        if left:
            raise InputError(self._unknown(left[0]))
        values, used = vars(found), [(name, s) for name, s in self.known.items() if hasattr(found, s.key)]
        return {s.key: _value(name, values[s.key], s) for name, s in used}

    def _spelling(self, word: str) -> str:
        """A word of the command line, options in the one spelling argparse knows."""
        name, equals, value = word.partition("=")
        if not re.fullmatch(r"--[\w.-]+", name):                  # a value, such as the prompt "-- a_b"
            return word
        name = flag(name[2:])
        name = self.aliases.get(name, name)
        positive = self.known.get("--" + name.removeprefix("--no-"))
        if name not in self.known and positive and positive.hint is bool and not equals:
            return flag(positive.key) + "=false"
        return name + equals + value

    def _learn_entry(self, name: str) -> None:
        """An option for one entry of a mapping"""
        whole = next((s for s in self.known.values() if typing.get_origin(s.hint) is dict
                      and name.startswith(flag(s.key) + ".")), None)
        if whole and name not in self.known:
            key, inner = name[2:].replace("-", "_"), typing.get_args(whole.hint)[1]
            hint = ENTRY if inner is Any or "." in key[len(whole.key) + 1:] else inner
            self.known[name] = Setting(key, hint, None, "", "")
            self.add_argument(name, dest=key, default=argparse.SUPPRESS)

    def _says_nothing(self, word: str) -> bool:
        if word in self.moot:
            log.warning("%s: %s", word, self.moot[word])
        return word in self.moot

    def _unknown(self, word: str) -> str:
        name = word.split("=")[0]
        if not name.startswith("-"):
            return f"{name!r}: unexpected; options begin with -- ({self.prog} --help lists them)"
        guess = nearest(name.lstrip("-"), [known[2:] for known in self.known])
        hint = f"Did you mean --{guess}?" if guess else f"{self.prog} --help lists them"
        return f"{name}: unknown option. {hint}"

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        print(message or "", end="")
        raise SystemExit(status)

    def format_help(self) -> str:
        return self.describe(everything=False)

    def describe(self, everything: bool) -> str:
        """The help: what the verb does, its options by section, examples.  Options of a part (the model) are
        many and shown only with `everything`."""
        about, _, examples = self.about.partition("Examples:")
        own = [s for s in self.known.values() if "." not in s.key]
        parts = [s for s in self.known.values() if "." in s.key]
        text = [f"usage: {self.prog} [options]", textwrap.fill(about, _width()), *_sections(own)]
        if parts and everything:
            text += _sections(parts)
        elif parts:
            part, example = parts[0].key.split(".")[0], flag(parts[1].key)
            more = f"{len(parts)} options of the {part}, such as {example}: {self.prog} --help-all"
            text.append(textwrap.fill(more, _width(), break_on_hyphens=False))
        also = ", ".join(f"{other} for {name}" for other, name in self.aliases.items())
        text += [textwrap.fill(f"Also: {also}", _width(), break_on_hyphens=False)] if also else []
        return "\n\n".join([*text, "Examples:" + examples.rstrip()]) + "\n"


def flag(key: str) -> str:
    """The option of a setting: `model.hidden_size` -> `--model.hidden-size`."""
    return "--" + key.replace("_", "-")


def _value(name: str, text: Any, setting: Setting) -> Any:
    """What an option says, in its type; an entry of a mapping is read as a file's would be, and 1e-3, which
    is text to YAML, as a number."""
    if setting.hint is not ENTRY:
        return convert(name, text, setting.hint)
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"{name}: {text!r} is not a value as YAML writes it") from None
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _takes_bool(hint: Any) -> bool:
    """True for a boolean, and for `bool | str`: an option whose value may be left out."""
    return hint is bool or bool in typing.get_args(hint)


def _sections(listed: list[Setting]) -> list[str]:
    """The options, one line each, under the titles of their sections."""
    sections: dict[str, list[str]] = {}
    for setting in listed:
        sections.setdefault(setting.section or "Options", []).append(_line(setting))
    return ["\n".join([f"{title[:1].upper()}{title[1:]}:", *lines]) for title, lines in sections.items()]


def _line(setting: Setting) -> str:
    """An option in the help: name, value, text and default."""
    name = f"  {flag(setting.key)} {_metavar(setting.hint)}".rstrip()
    gap = "\n" + " " * COLUMN if len(name) > COLUMN - 2 else " " * (COLUMN - len(name))
    text = textwrap.wrap(setting.help + _default(setting), max(_width() - COLUMN, 30),
                         break_long_words=False, break_on_hyphens=False)
    return name + gap + ("\n" + " " * COLUMN).join(text)


def _metavar(hint: Any) -> str:
    inner = [a for a in typing.get_args(hint) if a is not type(None)]
    if hint is bool:
        return ""
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, inner))
    if typing.get_origin(hint) is dict:
        return "YAML"
    if typing.get_origin(hint) in (tuple, list):
        return _metavar(inner[0]) + ",..."
    if bool in inner:
        return f"[{_metavar(next(a for a in inner if a is not bool))}]"
    return _metavar(inner[0]) if inner else METAVARS.get(hint, "VALUE")


def _default(setting: Setting) -> str:
    """What the help says of the default; nothing where that is off, empty, or missing."""
    if setting.default is True:
        return f" (on; --no-{flag(setting.key)[2:]} turns it off)"
    off = any(setting.default is nothing for nothing in (REQUIRED, None, False))
    if off or setting.default in ("", (), {}):
        return ""
    return f" (default {_shown(setting.default)})"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value if value.isprintable() and not any(c.isspace() for c in value) else repr(value)
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 110)
