"""cuda-nn generate: where the model comes from, and what arrives at the terminal."""

from pathlib import Path

import pytest

from nn.backends import native
from nn.cli.terminal import stream
from nn.errors import InputError
from nn.train import find_checkpoint, load_trained


def test_continues_the_prompt_with_the_same_text_for_the_same_seed(cuda_nn, trained: Path) -> None:
    words = ["generate", "--run", trained, "--prompt", "verse", "--max-tokens", 20, "--temperature", 2]
    status, out, err = cuda_nn(*words)
    assert (status, err) == (0, "")
    assert out.startswith("verse")
    assert out.endswith("\n")
    assert cuda_nn(*words)[1] == out
    assert cuda_nn(*words, "--threads", 1)[1:] == (out, "")
    assert cuda_nn(*words, "--seed", 1)[1] != out


def test_the_newest_run_is_the_default(
    cuda_nn, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = cuda_nn("generate", "--run", trained, "--max-tokens", 5)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "only").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    assert cuda_nn("generate", "--max-tokens", 5) == expected


def test_a_checkpoint_of_a_run(cuda_nn, trained: Path) -> None:
    first, last = (trained / "checkpoints" / f"step_{step:06d}" for step in (3, 6))
    words = ["--max-tokens", 8, "--temperature", 0.5, "--prompt", "verse"]
    newest = cuda_nn("generate", "--run", trained, *words)
    assert cuda_nn("generate", "--checkpoint", last, *words) == newest
    assert cuda_nn("generate", "--ckpt", first, *words) != newest


def test_a_hugging_face_folder(cuda_nn, trained: Path, tmp_path: Path) -> None:
    model, tokenizer = load_trained(trained)
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    words = ["--max-tokens", 8, "--prompt", "a"]
    assert cuda_nn("generate", "--checkpoint", tmp_path, *words) == cuda_nn(
        "generate", "--run", trained, *words
    )


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
def test_a_step_that_is_not_recorded_is_said(cuda_nn, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(**_: object) -> object:
        raise InputError("too large a cache")

    words = ["generate", "--run", trained, "--prompt", "verse", "--max-tokens", 5]
    text = cuda_nn(*words)
    monkeypatch.setattr("nn.backends.native.recording.record", record)
    status, out, err = cuda_nn(*words)
    assert (status, out) == text[:2]
    assert err == "(decoding went on kernel by kernel, its step cannot be recorded: too large a cache)\n"
    monkeypatch.undo()
    assert cuda_nn(*words) == text


def test_packed_weights(cuda_nn, trained: Path) -> None:
    words = ["generate", "--run", trained, "--prompt", "verse", "--max-tokens", 20, "--temperature", 0]
    text = cuda_nn(*words)
    assert cuda_nn(*words, "--pack", "f32") == text
    for form in ("bf16", "q8_0", "q4_0"):
        status, out, err = cuda_nn(*words, "--pack", form)
        assert (status, out[:5], err) == (0, "verse", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "/nowhere"], "checkpoint: /nowhere holds no model"),
        (["--run", "RUN", "--pack", "q3"], "format: 'q3'"),
        (["--temperature", "-1", "--run", "RUN"], "temperature: -1"),
        (["--prompt", "x" * 100, "--run", "RUN"], "max_seq_len"),
        ([], "no run in runs"),
    ],
)
def test_wrong_input(
    cuda_nn, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = cuda_nn("generate", *[str(trained) if word == "RUN" else word for word in words])
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_long_prompt_may_be_truncated(cuda_nn, trained: Path) -> None:
    words = ["generate", "--run", trained, "--prompt", "x" * 100, "--truncate-prompt", "--max-tokens", 2]
    assert cuda_nn(*words)[0] == 0


def test_text_arrives_piece_by_piece(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def pieces():
        for piece in ("a", "é", "\x1b[31m"):
            yield piece
            seen.append(capsys.readouterr().out)

    stream(pieces())
    assert seen == ["a", "é", "\x1b[31m"]


def test_a_terminal_gets_no_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    stream(["a\tb\n", "\x1b[2J\x07\r\x9b"])
    assert capsys.readouterr().out == "a\tb\n\ufffd[2J\ufffd\ufffd\ufffd\n"


def test_a_prompt_that_looks_like_an_option_is_kept(cuda_nn, trained: Path) -> None:
    prompt = "-- hello_world the_name = a_b"
    status, out, _ = cuda_nn("generate", "--run", trained, "--prompt", prompt, "--max-tokens", 1)
    assert status == 0
    assert prompt in out


def test_a_checkpoint_is_found_however_its_step_is_written(
    cuda_nn, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The fixture's run ended at step 6; step 3 was kept, too"""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "only").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    words = ["--max-tokens", 9, "--prompt", "verse"]
    third, sixth = (cuda_nn("generate", "--run", trained / "checkpoints" / f"step_00000{i}", *words)[1]
                    for i in (3, 6))
    assert third != sixth
    for path in ("checkpoints/step_3", "checkpoints/step_000003", trained / "checkpoints" / "step_03"):
        assert cuda_nn("generate", "--checkpoint", path, *words) == (0, third, "")
    (tmp_path / "checkpoints").symlink_to(trained / "checkpoints")      # what is here goes first
    (tmp_path / "runs" / "only").unlink()
    assert find_checkpoint("checkpoints/step_6") == Path("checkpoints/step_000006")
    status, _, err = cuda_nn("generate", "--checkpoint", "checkpoints/step_5")
    assert status == 2
    assert "checkpoints/step_5 holds no model" in err


def test_a_model_that_has_learned_nothing(cuda_nn) -> None:
    words = ["generate", "--model", "gpt-tiny", "--prompt", "ab", "--max-tokens", 3]
    status, out, err = cuda_nn(*words)
    assert (status, err, out[:2]) == (0, "", "ab")
    assert cuda_nn(*words)[1] == out
    assert cuda_nn(*words, "--model.hidden-size", 32)[1] != out


@pytest.mark.parametrize(("words", "message"), [
    (["--model", "gpt-tny"], "did you mean 'gpt-tiny'"),
    (["--model", "gpt-tiny", "--checkpoint", "x"], "--checkpoint already names a model"),
    (["--model.hidden-size", "32"], "changes are for --model NAME")])
def test_either_trained_or_by_name(cuda_nn, words: list[str], message: str) -> None:
    status, _, err = cuda_nn("generate", *words)
    assert status == 2
    assert message in err
