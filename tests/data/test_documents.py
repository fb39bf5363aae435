"""Sources become the same documents everywhere; what cannot be read is named; a split gives two parts."""

import json
import os
import sysconfig
from pathlib import Path

import pytest

from nn.data.documents import PIECE, Document, data_hash, pieces, read_documents, split
from nn.errors import InputError


def fail_on_note(message: str) -> None:
    raise AssertionError(message)


def text_of(documents: list[Document]) -> str:
    return "".join(text for _, text in documents)


# --- the standard library

def test_stdlib_is_library_source_ordered_by_name():
    documents = read_documents("stdlib", note=fail_on_note)
    names = [name for name, _ in documents]
    assert names == sorted(set(names))
    assert {"ast.py", "asyncio/base_events.py", "json/decoder.py"} <= set(names)
    left_out = {"test", "tests", "site-packages", "dist-packages", "encodings", "idlelib"}
    assert not any(left_out & set(Path(name).parts) or "sysconfigdata" in name for name in names)
    assert all(name.endswith(".py") for name in names)
    assert sum(len(text) for _, text in documents) > 5e6


def test_stdlib_split_holds_out_about_a_twentieth():
    documents = read_documents("stdlib")
    train, held_out = split(documents)
    assert sorted(train + held_out) == sorted(documents)
    assert 0.02 < len(held_out) / len(documents) < 0.09
    assert "ast.py" in dict(held_out)       # by SHA-256 of the name: the same on every machine and for ever
    assert "os.py" in dict(train)


def test_python_files_are_read_in_the_encoding_they_declare(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\n# é\n".encode("latin-1"))
    (tmp_path / "plain.py").write_bytes(b"\xef\xbb\xbfx = 'a'\r\n")
    (tmp_path / "unknown.py").write_bytes(b"# coding: no-such-code\n")
    (tmp_path / "broken.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "_sysconfigdata_here.py").write_text("built = '/home/somebody'\n")
    (tmp_path / "data.txt").write_text("not Python")
    for folder in ("test", "site-packages", "pkg/tests", "config-3.11"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "left_out.py").write_text("x = 1\n")
    notes: list[str] = []
    assert read_documents("stdlib", note=notes.append) == [
        ("latin.py", "# -*- coding: latin-1 -*-\n# é\n"), ("plain.py", "x = 'a'\n")]
    assert notes == ["data: stdlib: skipped 2 in an unknown encoding"]


def test_a_folder_called_stdlib_is_read_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "stdlib").mkdir()
    (tmp_path / "stdlib" / "a.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert read_documents("./stdlib") == [("a.txt", "mine")]


# --- folders

def test_folder_takes_every_text_file_and_counts_the_rest(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "deep" / "b.txt").write_bytes(b"two\r\nlines\r\n")
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbfone \xc3\xa9")
    (tmp_path / "rows.jsonl").write_text('{"text": "r1"}\n\n{"text": "r2"}\n')
    (tmp_path / "empty.txt").touch()
    (tmp_path / "image.png").write_bytes(b"\x89PNG\x00\x00")
    (tmp_path / "late.bin").write_bytes(b"a" * 10_000 + b"\x00")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("secret")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_bytes(b"\x00")
    notes: list[str] = []
    assert read_documents(tmp_path, note=notes.append) == [
        ("a.md", "one é"), ("rows.jsonl:1", "r1"), ("rows.jsonl:3", "r2"),
        ("sub/deep/b.txt", "two\r\nlines\r\n")]
    assert notes == [f"data: {tmp_path}: skipped 2 hidden, 3 not UTF-8 text"]


def test_skipped_files_are_logged_unless_somebody_listens(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / ".b").write_text("text")
    read_documents(tmp_path)
    assert caplog.messages == [f"data: {tmp_path}: skipped 1 hidden"]


def test_order_is_by_name_whatever_the_file_system_says(tmp_path, monkeypatch):
    names = ["B.txt", "a.txt", "a/z.txt", "a_.txt", "b/a.txt", "é.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    walk = os.walk

    def backwards(*args, **options):
        for folder, folders, files in walk(*args, **options):
            folders.sort(reverse=True)
            yield folder, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert [name for name, _ in read_documents(tmp_path)] == sorted(names, key=str.encode)


def test_links_are_followed_and_loops_end(tmp_path):
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "data" / "inner" / "a.txt").write_text("text")
    (tmp_path / "data" / "top.txt").write_text("top")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("more")
    (tmp_path / "data" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "out").symlink_to(tmp_path / "elsewhere")
    assert read_documents(tmp_path / "data") == [
        ("inner/a.txt", "text"), ("out/b.txt", "more"), ("top.txt", "top")]


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.txt").write_text("text")
    notes: list[str] = []
    assert read_documents(tmp_path, note=notes.append) == [("a.txt", "text")]
    assert notes == [f"data: {tmp_path}: skipped 1 not UTF-8 text"]


# --- one text file

def test_text_file_becomes_pieces_that_add_up(tmp_path):
    lines = [f"line {i} {'x' * (i % 90)}\n" + "\n" * (i % 7 == 0) for i in range(4000)]
    path = tmp_path / "book.txt"
    path.write_text("".join(lines))
    documents = read_documents(path)
    assert text_of(documents) == "".join(lines)
    assert [name for name, _ in documents[:2]] == ["book.txt#0000", "book.txt#0001"]
    assert len({name for name, _ in documents}) == len(documents) > 10
    assert all(PIECE // 2 < len(text) <= PIECE for _, text in documents[:-1])
    assert all(text.endswith("\n\n") for _, text in documents[:-1])
    train, held_out = split(documents)
    assert train
    assert held_out


@pytest.mark.parametrize(("text", "parts"), [
    ("a\n\nb\ncde\nfgh", ["a\n\n", "b\n", "cde\n", "fgh"]),     # after a blank line, else after a line
    ("abcdefghij", ["abcde", "fghij"]),             # a line that is too long, anywhere
    ("ab\nc\r\nd", ["ab\n", "c\r\nd"]),
    ("abcde", ["abcde"]),
    ("", []),
])
def test_where_pieces_are_cut(text, parts):
    assert [part for _, part in pieces(Document("n", text), size=5)] == parts


# --- JSONL

def test_jsonl_takes_the_key_it_is_told(tmp_path):
    path = tmp_path / "rows.JSONL"
    path.write_text('\ufeff{"body": "a\\n\\u00e9", "text": "b"}\n \n{"body": "c", "text": "d"}', "utf-8")
    assert read_documents(path) == [("rows.JSONL:1", "b"), ("rows.JSONL:3", "d")]
    assert read_documents(path, key="body") == [("rows.JSONL:1", "a\né"), ("rows.JSONL:3", "c")]


@pytest.mark.parametrize(("line", "reason"), [
    (b'{"text": "a"', "not JSON"),
    (b'{"text": "\xff"}', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'["text"]', "a JSON list"),
    (b"null", "a JSON NoneType"),
    (b'{"body": "a", "n": 1}', r"the keys with text are \['body'\]"),
    (b'{"text": 3}', 'no text under the key "text"'),
    (b'{"text": "a\\ud800"}', "character 1 is half of a surrogate pair"),
])
def test_jsonl_errors_name_file_and_line(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=reason) as error:
        read_documents(path)
    assert f"{path}:3: " in str(error.value)
    assert "\n" not in str(error.value)


# --- what cannot be read

def test_unreadable_sources_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "zero.txt").write_bytes(b"text\x00")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "none").mkdir()
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    for name, reason in {"missing.txt": "no such file", "loop.txt": "symbolic links", "none": "no text in it",
                         "latin.txt": "byte 0xe9 at offset 3", "zero.txt": "a zero byte at offset 4",
                         "empty.txt": "no text in it", "empty.jsonl": "no text in it"}.items():
        with pytest.raises(InputError, match=reason) as error:
            read_documents(tmp_path / name)
        assert str(error.value).startswith(f"data: {tmp_path / name}: ")
        assert "\n" not in str(error.value)


def test_a_file_in_a_folder_that_cannot_be_read_stops_with_its_name(tmp_path, monkeypatch):
    (tmp_path / "locked.txt").write_text("text")
    real = open

    def refuse(path, *args, **options):
        if Path(path).name == "locked.txt":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **options)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match=r"locked\.txt: permission denied"):
        read_documents(tmp_path)


# --- splitting

def many(count: int) -> list[Document]:
    return [Document(f"d{i}", f"text {i}\n" * 3) for i in range(count)]


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 0.5, 0.95])
def test_split_holds_out_the_share_it_is_told(fraction):
    train, held_out = split(many(4000), fraction)
    assert len(train) + len(held_out) == 4000
    sigma = (fraction * (1 - fraction) / 4000) ** 0.5
    assert abs(len(held_out) / 4000 - fraction) < 4 * sigma


def test_a_document_stays_on_its_side_as_others_come_and_go():
    documents = many(400)
    held_out = split(documents)[1]
    assert [d for d in held_out if d in documents[:300]] == split(documents[:300])[1]
    assert split(documents[::-1])[1] == held_out[::-1]
    assert set(held_out) < set(split(documents, 0.1)[1])


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
def test_few_documents_still_give_both_parts(count, fraction):
    lines = "".join(f"line {i}\n" for i in range(100))
    documents = [Document(f"d{i}", lines) for i in range(count)]
    train, held_out = split(documents, fraction)
    assert train
    assert held_out
    assert len(text_of(train)) + len(text_of(held_out)) == count * len(lines)
    assert all(text.endswith("\n") and text.startswith("line") for _, text in train + held_out)
    names = [name for name, _ in train + held_out]
    assert len(set(names)) == len(names)


def test_one_document_is_cut_in_proportion():
    train, held_out = split([Document("d", "0123456789\n" * 100)], 0.05)
    assert train == [("d#head", "0123456789\n" * 95)]
    assert held_out == [("d#tail", "0123456789\n" * 5)]


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
def test_two_characters_are_enough(fraction):
    for name in map(str, range(100)):       # on either side of the border
        assert split([Document(name, "ab")], fraction) == ([(f"{name}#head", "a")], [(f"{name}#tail", "b")])


def test_a_short_document_moves_as_a_whole():
    long, short = Document("d0", "x" * 10_000), Document("d1", "y" * 10)
    documents = [long, short] if split([long, short])[1][0].name.startswith("d1") else [
        Document("d0", short.text), Document("d1", long.text)]
    train, held_out = split(documents)
    assert len(train) == len(held_out) == 1
    assert len(held_out[0].text) == 10


def test_all_documents_held_out_gives_training_text_back():
    short = split(many(200))[1]
    assert len(short) > 2
    train, held_out = split(short)              # 19 twentieths of the text are more than one document
    assert len(train) == 1
    assert len(held_out) == len(short) - 1
    long = [Document(name, "0123456789\n" * 100) for name, _ in short]
    train, held_out = split(long, 0.99)         # a hundredth of the text is a part of one
    assert len(text_of(train)) == 11 * len(long)
    assert len(held_out) == len(long)


def test_what_cannot_be_split_says_so():
    with pytest.raises(InputError, match="d: one character cannot be split"):
        split([Document("d", "a")])
    with pytest.raises(InputError, match="none to split"):
        split([])
    for fraction in (0, 1, -0.1, 5, float("nan")):
        with pytest.raises(InputError, match="held_out_fraction"):
            split(many(3), fraction)


def test_data_hash_sees_names_texts_and_borders_but_not_the_order():
    base = [Document("a", "bc"), Document("d", "e")]
    variants = [base, [Document("ab", "c"), base[1]], [Document("a", "bd"), base[1]], base[:1],
                [Document("a", "bcd"), Document("", "e")]]
    assert len({data_hash(v) for v in variants}) == len(variants)
    assert data_hash(base) == data_hash(base[::-1])
    assert len(data_hash(base)) == 64


def test_file_names_that_are_not_utf8_can_be_hashed_and_sorted(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff.txt")).write_text("text")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    (tmp_path / "a.txt").write_text("text\ntext")
    documents = read_documents(tmp_path)
    assert len(documents) == 2
    assert len(data_hash(documents)) == 64
    assert all(split(documents))


def test_jsonl_split_is_stable(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(200)))
    train, held_out = split(read_documents(path))
    assert 1 <= len(held_out) <= 25
    assert len(train) + len(held_out) == 200
