"""nn.config: dataclasses to and from YAML, and what it says of a wrong file."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from nn.config import build, convert, describe, dump, keys, load, read, save, settings, update
from nn.errors import InputError
from nn.names import nearest


@dataclass(frozen=True)
class Shape:
    width: int = 64  # channels
    deep: bool = False  # more layers

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"width: {self.width} is not positive")


# fmt: off
@dataclass(frozen=True)
class Run:
    # The text
    data: str = "stdlib"                        # where from,
                                                # or what
    mode: Literal["fast", "slow"] = "fast"      # how
    # The optimizer
    lr: float = 1e-3                            # peak rate
    betas: tuple[float, float] = (0.9, 0.95)    # decays
    stop: tuple[str, ...] = ()                  # ends
    limit: float | None = None                  # most
    out: Path = Path("runs")                    # where to
    shape: Shape = field(default_factory=Shape)   # the shape
    # a comment that belongs to nothing

    seed: int = 0
# fmt: on


@dataclass(frozen=True)
class Small(Run):
    lr: float = 5e-4  # another rate
    extra: int = 1  # more


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_settings_read_the_comments() -> None:
    found = {s.key: s for s in settings(Run)}
    assert list(found) == [
        "data",
        "mode",
        "lr",
        "betas",
        "stop",
        "limit",
        "out",
        "shape.width",
        "shape.deep",
        "seed",
    ]
    assert found["data"].help == "where from, or what"
    assert found["seed"].help == ""
    assert [found[k].section for k in ("data", "mode", "lr", "limit")] == ["The text"] * 2 + [
        "The optimizer"
    ] * 2
    assert found["shape.width"].section == "the shape"
    assert found["shape.width"].default == 64


def test_settings_of_a_subclass() -> None:
    found = {s.key: s for s in settings(Small)}
    assert found["lr"].help == "another rate"
    assert found["lr"].default == 5e-4
    assert found["lr"].section == "The optimizer"
    assert found["data"].help == "where from, or what"
    assert found["extra"].help == "more"


def test_settings_of_a_class_without_source() -> None:
    namespace: dict = {}
    exec(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Made:\n    a: int = 1  # lost",
        namespace,
    )
    assert [(s.key, s.help) for s in settings(namespace["Made"])] == [("a", "")]


AWKWARD = Run(
    data="a: b # c",
    mode="slow",
    lr=1e-8,
    betas=(0.0, 1.0),
    stop=("a,b", "]", "null", "é\n", " "),
    limit=2.5,
    out=Path("x y"),
    shape=Shape(1, True),
    seed=-3,
)


@pytest.mark.parametrize(
    "config", [Run(), AWKWARD, Run(data="", stop=("1e-3",)), Run(data="x" * 500), Run(data="1")]
)
def test_round_trip(tmp_path: Path, config: Run) -> None:
    path = tmp_path / "run.yaml"
    save(config, path)
    assert load(path, Run) == config
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_file_shows_every_value_its_help_and_the_sections() -> None:
    lines = dump(Run()).splitlines()
    assert lines[0] == "# The text"
    assert lines[1].split("  # ") == ["data: stdlib                    ", "where from, or what"]
    assert "\n# The optimizer\n" in dump(Run())
    assert "\n  width: 64 " in dump(Run())
    assert lines[-1] == "seed: 0"


def test_load_keeps_defaults_and_reads_what_is_there(tmp_path: Path) -> None:
    text = "lr: 1e-2\nbetas: [0, 1]\nshape:\n  width: 8\nlimit: null\nout: elsewhere\n"
    expected = Run(lr=0.01, betas=(0.0, 1.0), shape=Shape(8), out=Path("elsewhere"))
    assert load(write(tmp_path, text), Run) == expected
    assert load(write(tmp_path, ""), Run) == Run()
    assert load(write(tmp_path, "shape:\n"), Run) == Run()
    assert load(write(tmp_path, '{"lr": 0.5, "shape": {"deep": true}}'), Run) == Run(
        lr=0.5, shape=Shape(deep=True)
    )


def test_read_gives_only_what_the_file_says(tmp_path: Path) -> None:
    assert read(write(tmp_path, "shape:\n  width: 8\nlr: 1\n"), Run) == {"shape.width": 8, "lr": 1.0}
    assert keys(write(tmp_path, "shape:\n  width: 8\nlr: 1\n")) == ["shape", "lr"]


def test_anchors_and_merges(tmp_path: Path) -> None:
    text = "shape: &s\n  width: 3\n"
    assert load(write(tmp_path, text), Run).shape == Shape(3)
    assert load(write(tmp_path, "<<: {lr: 2.0}\nseed: 4\n"), Run) == Run(lr=2.0, seed=4)


WRONG = {
    "seed: 1\nlr_max: 3": "lr_max: unknown key. Did you mean lr? (FILE line 2)",
    "width: 3": "width: unknown key. Did you mean shape.width? (FILE line 1)",
    "shape:\n  depe: true": "shape.depe: unknown key. Did you mean shape.deep? (FILE line 2)",
    "zzzzzz: 1": "zzzzzz: unknown key (FILE line 1)",
    "lr: fast": "lr: expected a number (float), got 'fast' (FILE line 1)",
    "lr: true": "lr: expected a number (float), got True (FILE line 1)",
    "lr: null": "lr: expected a number (float), got null (FILE line 1)",
    "lr: [1]": "lr: expected a number (float), got [1] (FILE line 1)",
    "seed: 1.5": "seed: expected a whole number (int), got 1.5 (FILE line 1)",
    "seed: true": "seed: expected a whole number (int), got True (FILE line 1)",
    "data: 12": "data: expected text (str), got 12 (FILE line 1)",
    "mode: medium": "mode: expected one of fast, slow, got 'medium' (FILE line 1)",
    "limit: x": "limit: expected a number (float) or null, got 'x' (FILE line 1)",
    "betas: [1, 2, 3]": "betas: expected a list of 2, each a number (float), got [1, 2, 3] (FILE line 1)",
    "shape:\n  deep: 3": "shape.deep: expected true or false (bool), got 3 (FILE line 2)",
    "shape: 3": "shape: expected lines like 'key: value' (FILE line 1)",
    "- a": "the file: expected lines like 'key: value' (FILE line 1)",
    "seed: 1\nlr: 1\nseed: 2": "seed: given twice, first on line 1 (FILE line 3)",
    "shape:\n  width: 0": "width: 0 is not positive",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_files_are_named_with_their_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load(path, Run)
    assert str(caught.value) == WRONG[text].replace("FILE", str(path))


@pytest.mark.parametrize(
    "content", [b"a: [", b"a: b: c", b"\xff\xfe\x00", b"a: !!python/object:os.system {}"]
)
def test_what_is_not_yaml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(path, Run)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError):
        load("/nowhere/run.yaml", Run)


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    save(Run(), path)
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        save(Run(seed=5), path)
    assert load(path, Run) == Run()
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_update_changes_nested_settings_and_checks_them() -> None:
    assert update(Run(), {"shape.width": 8, "seed": 1}) == Run(shape=Shape(8), seed=1)
    assert update(Run(), {}) == Run()
    with pytest.raises(InputError, match="width: 0"):
        update(Run(), {"shape.width": 0})


@dataclass(frozen=True)
class Derived:
    a: int = 2
    double: int = 4

    def replace(self, **changes: int) -> "Derived":
        return replace(self, **{"double": 2 * changes.get("a", self.a), **changes})


def test_update_asks_the_class_what_follows() -> None:
    assert update(Derived(), {"a": 5}) == Derived(5, 10)
    assert update(Derived(), {"a": 5, "double": 1}) == Derived(5, 1)


@dataclass(frozen=True)
class Needs:
    name: str
    shape: Shape
    size: int = 1


def test_build_names_what_is_missing(tmp_path: Path) -> None:
    assert build(Needs, {"name": "x", "shape.width": 2}) == Needs("x", Shape(2))
    with pytest.raises(InputError, match=r"name: missing; expected text \(str\) \(.*run.yaml\)"):
        load(write(tmp_path, "size: 3"), Needs)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("1e-3", float, 1e-3),
        ("12", str, "12"),
        ("null", str, "null"),
        ("0.1,0.2", tuple[float, float], (0.1, 0.2)),
        ("[0.1, 0.2]", tuple[float, float], (0.1, 0.2)),
        ("none", float | None, None),
        ("None", float | None, None),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("3", int | None, 3),
        ("true", bool | Path, True),
        ("runs/a", bool | Path, Path("runs/a")),
        ("true", bool, True),
        ("b", Literal["a", "b"], "b"),
        ("1,2", list[int], [1, 2]),
        ("4", tuple[int, ...] | None, (4,)),
    ],
)
def test_text_becomes_what_the_type_asks_for(value: str, hint: object, expected: object) -> None:
    found = convert("--x", value, hint)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number (int)"),
        (float | None, "a number (float) or null"),
        (tuple[str, ...], "a list of text (str)"),
        (Literal["a", "b"], "one of a, b"),
        (dict, "dict"),
    ],
)
def test_types_in_words(hint: object, words: str) -> None:
    assert describe(hint) == words


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lr_max", "train.lr"),
        ("train.lr_max", "train.lr"),
        ("hidden_size", "model.hidden_size"),
        ("hiden-size", "model.hidden_size"),
        ("qqqq", None),
    ],
)
def test_nearest(name: str, expected: str | None) -> None:
    assert nearest(name, ["train.lr", "model.hidden_size", "model.top_k"]) == expected
