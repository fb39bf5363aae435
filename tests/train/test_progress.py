"""Progress: parseable lines for a pipe, a live bar for a terminal."""

import io
import re
from types import SimpleNamespace

import pytest

from nn.train.progress import Bar, Lines, clock, load_bars, progress


def record(step, **extra):
    return {"step": step, "loss": 2.5, "bits_per_byte": 3.6067, "lr": 1e-3, "grad_norm": 0.75,
            "tokens": 64 * step, "tokens_per_second": 1234.5, "moe/load": [0.5, 0.25, 0.25, 0.0],
            "moe/load_min": 0.0, "moe/load_max": 0.5, **extra}


def trainer(steps=10, done=0, evaluation=None):
    return SimpleNamespace(step=done, config=SimpleNamespace(steps=steps), evaluation=evaluation)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(report, steps=10, done=0, evaluated=(), evaluation=None):
    report.on_start(trainer(steps, done, evaluation))
    for step in range(done + 1, steps + 1):
        extra = {"held_out_bits_per_byte": 3.21} if step in evaluated else {}
        if extra:
            report.on_eval(step, 3.21)
        report.on_step(record(step, **extra))
    report.on_stop(None)


def lines(**options):
    stream = io.StringIO()
    run(Lines(stream, 4), **options)
    return [dict(part.split("=") for part in line.split()) for line in stream.getvalue().splitlines()]


def test_the_stream_decides():
    assert isinstance(progress(5, io.StringIO()), Lines)
    assert isinstance(progress(5, Terminal()), Bar)


def test_lines_come_at_their_interval_at_evaluations_and_at_the_end():
    assert [int(line["step"]) for line in lines(evaluated=(5,))] == [4, 5, 8, 10]


def test_every_line_parses_and_holds_the_figures():
    line = lines(evaluated=(4,))[0]
    assert float(line["loss"]) == 2.5
    assert float(line["bits_per_byte"]) == pytest.approx(3.6067)
    assert float(line["held_out_bits_per_byte"]) == 3.21
    assert float(line["lr"]) == 1e-3
    assert int(line["tokens"]) == 256
    assert float(line["load_max"]) == 0.5
    assert re.fullmatch(r"\d+s", line["eta"])


def test_a_resumed_run_says_where_it_continues():
    assert lines(done=6)[0] == {"resumed_after_step": "6"}


def test_a_dense_model_has_no_expert_load():
    stream = io.StringIO()
    report = Lines(stream, 1)
    report.on_start(trainer())
    dense = {name: value for name, value in record(1).items() if not name.startswith("moe/")}
    report.on_step(dense)
    assert "load" not in stream.getvalue()


def test_the_bar_shows_how_far_and_how_well():
    stream = Terminal()
    run(Bar(stream), evaluated=(10,))
    screen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())       # without colours
    for text in ("step 10/10", "100%", "eta 0:00", "loss 2.500", "bits/byte 3.607", "held out 3.210",
                 "tokens/s", "experts █▅▅▁"):
        assert text in screen, text


def test_a_bar_of_a_resumed_run_knows_the_last_evaluation():
    stream = Terminal()
    run(Bar(stream), steps=7, done=6, evaluation={"step": 5, "bits_per_byte": 1.875})
    assert "1.875" in stream.getvalue()


def test_a_bar_is_redrawn_rarely_but_always_at_the_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    stream = Terminal()
    report = Bar(stream)
    report.on_start(trainer(1000))
    drawn = []
    monkeypatch.setattr(report, "_table", lambda r: drawn.append(r["step"]) or str(r["step"]))
    for step in range(1, 1001):
        now[0] += 0.001
        report.on_step(record(step))
    report.on_stop(None)
    assert 9 <= len(drawn) <= 11
    assert drawn[-1] == 1000


def test_the_bar_gives_the_terminal_back_after_an_error():
    stream = Terminal()
    report = Bar(stream)
    report.on_start(trainer())
    report.on_step(record(1))
    report.on_stop(None)
    assert stream.getvalue().endswith("\x1b[?25h")          # the cursor is shown again


@pytest.mark.parametrize(("load", "bars"), [
    ([0.25] * 4, "▅▅▅▅"), ([0.5, 0.25, 0.25, 0.0], "█▅▅▁"), ([1.0], "▅"), ([], "")])
def test_expert_load_as_bars(load, bars):
    assert load_bars(load) == bars


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0:00"), (75.4, "1:15"), (3599.6, "1:00:00"), (4000, "1:06:40")])
def test_clock(seconds, text):
    assert clock(seconds) == text
