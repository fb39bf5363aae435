"""Options from configuration classes: spellings, values, errors, help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from nn.cli.aliases import ALIASES, Moot
from nn.cli.main import main
from nn.cli.parser import Parser, flag
from nn.errors import InputError

ABOUT = """Do something.

Examples:
  cuda-nn try --lr 1
"""


@dataclass(frozen=True)
class Part:
    hidden_size: int = 64  # width
    tied: bool = True  # one matrix


@dataclass(frozen=True)
class Options:
    # Training
    lr: float = 1e-3  # peak rate
    batch_size: int = 8  # sequences
    mode: Literal["a", "b"] = "a"  # how
    fast: bool = False  # hurry
    stop: tuple[str, ...] = ()  # ends
    resume: bool | Path = False  # go on
    prompt: str = "def "  # start
    limit: int = 0  # most; 0 = none
    part: Part = field(default_factory=Part)  # the part
    more: dict[str, Any] = field(default_factory=dict)  # others


@dataclass(frozen=True)
class Other:
    seed: int = 0  # of chance


def parser() -> Parser:
    return Parser("try", ABOUT, Options, Other, aliases={"batch": "batch_size", "do_it": Moot("it is done")})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("--lr 1e-2", {"lr": 0.01}),
        ("--lr=1e-2 --lr 3", {"lr": 3.0}),
        ("--batch-size 4", {"batch_size": 4}),
        ("--batch_size 4", {"batch_size": 4}),
        ("--batch=4", {"batch_size": 4}),
        ("--part.hidden-size 4", {"part.hidden_size": 4}),
        ("--part.hidden_size=4 --no-part.tied", {"part.hidden_size": 4, "part.tied": False}),
        ("--fast", {"fast": True}),
        ("--fast --no-fast", {"fast": False}),
        ("--fast=false", {"fast": False}),
        ("--fast --lr 1", {"fast": True, "lr": 1.0}),
        ("--resume", {"resume": True}),
        ("--resume runs/a", {"resume": Path("runs/a")}),
        ("--stop a,b", {"stop": ("a", "b")}),
        ("--prompt a=b", {"prompt": "a=b"}),
        ("--prompt=--x", {"prompt": "--x"}),
        ("--limit -1", {"limit": -1}),
        ("--seed 3 --mode b", {"seed": 3, "mode": "b"}),
        ("--more.moe.top-k 2", {"more.moe.top_k": 2}),
        ("--more.moe.kind=none --more.a [1,2]", {"more.moe.kind": "none", "more.a": [1, 2]}),
        ("--more.moe.coef 1e-3", {"more.moe.coef": 1e-3}),
        ("--do-it --lr 1", {"lr": 1.0}),
    ],
)
def test_given(line: str, expected: dict) -> None:
    found = parser().given(line.split())
    assert found == expected
    assert [type(v) for v in found.values()] == [type(found[k]) for k in found]


def test_values_keep_their_spaces() -> None:
    assert parser().given(["--prompt", "  a  b "]) == {"prompt": "  a  b "}


def test_parse_builds_one_configuration_of_each_class() -> None:
    options, other = parser().parse(["--part.hidden-size", "2", "--seed", "5"])
    assert options == Options(part=Part(2))
    assert other == Other(5)


def test_changes_are_what_was_given() -> None:
    found = Parser("try", ABOUT, Other, changes=Options).parse(["--no-part.tied", "--more.a.b", "1"])
    assert found == [Other(), {"part.tied": False, "more.a.b": 1}]


def test_an_option_that_changes_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert parser().given(["--do_it"]) == {}
    assert caplog.messages == ["--do-it: it is done"]


@pytest.mark.parametrize("verb", ALIASES)
def test_aliases_mean_something_that_is_there(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    known = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    for other, name in ALIASES[verb].items():
        assert flag(other) not in known
        assert isinstance(name, Moot) or flag(name) in known


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--lr_max 3", "--lr-max: unknown option. Did you mean --lr?"),
        ("--hidden-size=3", "--hidden-size: unknown option. Did you mean --part.hidden-size?"),
        ("--part.hiden-size 3", "--part.hiden-size: unknown option. Did you mean --part.hidden-size?"),
        ("--zzzzzzz", "--zzzzzzz: unknown option. cuda-nn try --help lists them"),
        ("-x", "-x: unknown option. cuda-nn try --help lists them"),
        ("word", "'word': unexpected; options begin with -- (cuda-nn try --help lists them)"),
        ("--lr", "--lr: expected one argument"),
        ("--lr fast", "--lr: expected a number (float), got 'fast'"),
        ("--batch-size 1.5", "--batch-size: expected a whole number (int), got '1.5'"),
        ("--more.a [1", "--more.a: '[1' is not a value as YAML writes it"),
        ("--mode c", "--mode: expected one of a, b, got 'c'"),
        ("--fast maybe", "--fast: expected true or false (bool), got 'maybe'"),
        ("--lr none", "--lr: expected a number (float), got 'none'"),
        ("--no-lr", "--no-lr: unknown option. Did you mean --lr?"),
        ("--batc 3", "--batc: unknown option. Did you mean --batch-size?"),
    ],
)
def test_errors(line: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parser().parse(line.split())
    assert str(caught.value) == message


HELP = """usage: cuda-nn try [options]

Do something.

Training:
  --lr X                      peak rate (default 0.001)
  --batch-size N              sequences (default 8)
  --mode a|b                  how (default a)
  --fast                      hurry
  --stop TEXT,...             ends
  --resume [PATH]             go on
  --prompt TEXT               start (default 'def ')
  --limit N                   most; 0 = none (default 0)
  --more YAML                 others

Options:
  --seed N                    of chance (default 0)

2 options of the part, such as --part.tied: cuda-nn try --help-all

Also: --batch for --batch-size

Examples:
  cuda-nn try --lr 1
"""


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse(["--lr", "1", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == HELP


def test_help_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse(["--help-all"])
    assert stop.value.code == 0
    part = (
        "The part:\n  --part.hidden-size N        width (default 64)\n"
        "  --part.tied                 one matrix (on; --no-part.tied turns it off)\n"
    )
    assert part in capsys.readouterr().out


def test_help_wraps_where_the_terminal_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = Parser("try", ABOUT, Long).format_help().splitlines()
    assert lines[5:8] == [
        "  --a-rather-long-name-of-an-option N",
        " " * 30 + "one two three four five six",
        " " * 30 + "seven eight (default 1)",
    ]


@dataclass(frozen=True)
class Long:
    a_rather_long_name_of_an_option: int = 1  # one two three four five six seven eight
