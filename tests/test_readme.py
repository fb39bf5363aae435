"""What the README and the verbs' help tell people to type: every command exists, with those options, and the
README's Python runs."""

import importlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from nn.cli.main import VERBS, main
from nn.cli.parser import Parser
from nn.cli.words import Words

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ELSEWHERE = {"git", "cd", "pip", "python"}      # commands of a README that are not ours


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(lines: Sequence[str]) -> list[list[str]]:
    """The words of each command line, without comments, prompts and environment variables."""
    found = []
    for line in lines:
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        while words and re.match(r"^\w+=", words[0]):
            words.pop(0)
        if words:
            found.append(words)
    return found


IN_README = commands([line for block in blocks("(?:bash|sh|console)") for line in block.splitlines()])
PAGES = [importlib.import_module(f"nn.cli.{verb}").__doc__ or "" for verb in VERBS]
IN_HELP = commands([line for page in PAGES for line in page.partition("Examples:")[2].splitlines()])


class AcceptedError(Exception):
    """The options were understood; nothing needs to run."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Parser.given

    def stop(self: Parser, argv: Sequence[str]) -> None:
        given(self, argv)
        raise AcceptedError

    monkeypatch.setattr(Parser, "given", stop)
    parse = Words.parse_args

    def stop_words(self: Words, argv: Sequence[str]) -> None:
        parse(self, argv)
        raise AcceptedError

    monkeypatch.setattr(Words, "parse_args", stop_words)


@pytest.mark.usefixtures("only_parse")
@pytest.mark.parametrize("words", IN_README + IN_HELP, ids=" ".join)
def test_command(words: list[str]) -> None:
    program, *rest = words
    if words[:3] == ["python", "-m", "nn"]:
        program, rest = "cuda-nn", words[3:]
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets
    elif program == "cuda-nn" and rest[0].startswith("-"):
        assert main(rest) == 0
    elif program == "cuda-nn":
        with pytest.raises(AcceptedError):
            main(rest)
    else:
        assert program in ELSEWHERE


def test_the_two_commands_are_there() -> None:
    assert ["make", "train"] in IN_README
    assert ["make", "test"] in IN_README


def test_python_runs_in_the_order_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, namespace = blocks("python"), {}
    assert found
    for block in found:
        exec(compile(block, "README.md", "exec"), namespace)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)[^):]*\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
