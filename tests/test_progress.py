"""The progress display: what it says, and when."""

import io

import pytest

from mperceiver_jax.progress import Progress, duration


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_at_intervals_count_from_the_first_step_of_this_run():
    clock, stream = Clock(), io.StringIO()
    with Progress("drm", 100, 40, 8, 50, every_seconds=10, stream=stream, clock=clock) as progress:
        clock.now += 60  # Compiling.
        for step in range(41, 101):
            progress.update(step, {"loss": 0.125})
            clock.now += 0.5
    lines = stream.getvalue().splitlines()
    assert lines[0] == "drm 41/100, loss 0.125"
    assert lines[1] == "drm 50/100, loss 0.125, 16.0 images/s, ETA 25 s"
    assert [line.split(",")[0] for line in lines[2:]] == ["drm 70/100", "drm 90/100", "drm 100/100"]


def test_there_is_no_speed_before_there_is_an_interval():
    # A save after the second step reports it as soon as the first.
    clock, stream = Clock(), io.StringIO()
    with Progress("drm", 9, 0, 8, 1, stream=stream, clock=clock) as progress:
        for step, seconds in enumerate((60, 0.001, 0.5), 1):
            clock.now += seconds
            progress.update(step, {})
    assert stream.getvalue().splitlines() == ["drm 1/9", "drm 2/9", "drm 3/9, 16.0 images/s, ETA 3 s"]


def test_a_terminal_gets_a_bar_that_starts_where_the_run_was_resumed():
    clock, stream = Clock(), Terminal()
    with Progress("drm", 100, 40, 8, stream=stream, clock=clock) as progress:
        assert " 40%" in stream.getvalue() and "40/100" in stream.getvalue()
        for step in range(41, 101):
            clock.now += 0.5
            progress.update(step, {"loss": 1.5})
        progress.message("evaluating")
    shown = stream.getvalue()
    assert "100/100" in shown and "loss 1.5, 16.0 images/s, ETA 0 s" in shown
    assert "evaluating\n" in shown


def test_only_the_first_process_shows_anything(monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    stream = Terminal()
    with Progress("drm", 2, stream=stream) as progress:
        progress.update(1, {"loss": 0.5})
        progress.message("text")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.4, "7 s"), (185, "3:05 min"), (7650, "2:07 h"), (3 * 86400 + 4 * 3600, "3 d 4 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
