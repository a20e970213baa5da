"""Progress in plain lines: rate, ETA, and silence for what is quickly done."""

import logging

import pytest

from hpdm_cli.progress import LogLines, Rate, TerminalProgress, duration_text, rate_text


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _work(clock: Clock, *, units: int, seconds: float) -> None:
    progress = TerminalProgress(clock=clock)
    progress.start("train", units)
    for step in range(units):
        clock.now += seconds
        progress.advance(1, loss=f"{1 / (step + 1):.2f}")
    progress.stop()


def test_quick_work_is_silent(clock, capsys):
    _work(clock, units=10, seconds=0.1)
    assert capsys.readouterr().err == ""


def test_long_work_prints_lines_with_figures_rate_and_eta(clock, capsys):
    _work(clock, units=40, seconds=1.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 2/40  loss 0.50  1/s  ETA 0:38"
    assert lines[-1] == "train: 40/40  loss 0.03  1/s"
    assert len(lines) == 4  # after 2 s, each 15 s, and at the end


def test_a_last_line_is_not_repeated(clock, capsys):
    _work(clock, units=1, seconds=3.0)
    assert capsys.readouterr().err.splitlines() == ["train: 1/1  loss 1.00  3 s each"]


def test_a_count_without_an_end_has_no_eta(clock, capsys):
    progress = TerminalProgress(clock=clock)
    progress.start("read", None)
    clock.now += 4
    progress.advance(2)
    progress.stop()
    assert capsys.readouterr().err.splitlines()[0] == "read: 2  2 s each"


def test_what_was_done_before_counts_for_the_bar_and_not_for_the_rate(clock, capsys):
    progress = TerminalProgress(clock=clock)
    progress.start("train", 100, done=90)
    clock.now += 4
    progress.advance(2)
    assert capsys.readouterr().err == "train: 92/100  2 s each  ETA 0:16\n"


def test_written_lines_come_at_once_and_to_stderr(clock, capsys):
    TerminalProgress(clock=clock).write("skipped [1] video")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "skipped [1] video\n")


def test_rate_follows_the_last_minute():
    rate = Rate(0.0, 0)
    for second in range(1, 101):
        rate.update(float(second), 10 * second)
    for second in range(101, 301):
        found = rate.update(float(second), 1000 + (second - 100))
    assert found == pytest.approx(1.0)


def test_rate_is_unknown_before_anything_is_done():
    assert Rate(0.0, 3).update(5.0, 3) is None


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (754, "12:34"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(12.34, "12.3/s"), (0.25, "4 s each")])
def test_rates(rate, text):
    assert rate_text(rate) == text


def test_a_terminal_gets_a_bar_and_lines_above_it(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    progress = TerminalProgress(clock=clock)
    progress.start("train", 4)
    clock.now += 2
    progress.advance(2, loss="0.5")
    record = logging.LogRecord("hpdm", logging.INFO, "", 1, "saved [step %d]", (2,), None)
    LogLines(progress).emit(record)
    progress.stop()
    text = capsys.readouterr().err
    assert "saved [step 2]" in text
    assert "2/4" in text
    assert "loss 0.5  1/s  ETA 0:02" in text
