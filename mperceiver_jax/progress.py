"""The progress of a stage: a bar on a terminal, plain lines elsewhere. Only process 0 shows anything."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

import jax
from tqdm import tqdm


class Progress:
    """Shows steps, loss, images per second and the time that remains.

    Speed counts from the end of this run's second step and is shown from the third on. It excludes compilation and
    the steps before a resume; the first step is reported so late that the second may follow at once.

    Args:
        label: name of the stage.
        total: steps of the whole stage.
        start: steps done before this run.
        images_per_step: the global batch size.
        every_steps: plain lines are printed at multiples of this, at the first step and at the last,
        every_seconds: and when this much time has passed since the previous line.
        stream: the output; standard error by default. A terminal gets a bar.
        clock: returns seconds, monotonically.
    """

    def __init__(
        self,
        label: str,
        total: int,
        start: int = 0,
        images_per_step: int = 1,
        every_steps: int = 100,
        *,
        every_seconds: float = 60.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._label = label
        self._total = total
        self._images = images_per_step
        self._stream = stream or sys.stderr
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._enabled = jax.process_index() == 0
        self._clock = clock
        self._first: int | None = None
        self._second: tuple[int, float] | None = None
        self._last_line = -float("inf")
        self._bar: tqdm | None = None
        if self._enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=start,
                desc=label,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a step; call it when the step is done.

        Args:
            step: steps done in the whole stage.
            metrics: `loss` is shown, if present.
        """
        if not self._enabled:
            return
        now = self._clock()
        if self._first is None:
            self._first = step
        elif self._second is None:
            self._second = (step, now)
        parts = [f"loss {metrics['loss']:.4g}"] if "loss" in metrics else []
        rate = self._rate(step, now)
        if rate is not None:
            parts.append(f"{rate * self._images:.1f} images/s")
            parts.append(f"ETA {duration((self._total - step) / rate)}")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update(step - self._bar.n)
        elif (
            step == self._first
            or step >= self._total
            or step % self._every_steps == 0
            or now - self._last_line >= self._every_seconds
        ):
            self._last_line = now
            self._print(", ".join([f"{self._label} {step}/{self._total}", *parts]))

    def message(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _rate(self, step: int, now: float) -> float | None:
        """Steps per second."""
        if self._second is None or step == self._second[0] or now <= self._second[1]:
            return None
        return (step - self._second[0]) / (now - self._second[1])

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """'7 s', '3:05 min', '2:07 h' or '3 d 4 h'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 86400:
        return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


@contextmanager
def progress_bar(label: str, total: int, start: int = 0, stream: TextIO | None = None) -> Iterator[tqdm]:
    """A bar for work between or after the training steps; call `update(n)` when n more items are done.

    It is shown only in process 0 and on a terminal. `write` prints lines above it.

    Args:
        start: number of items that are done already.
        stream: the output; standard error by default.
    """
    stream = stream or sys.stderr
    hidden = jax.process_index() != 0 or not stream.isatty()
    with tqdm(
        total=total, initial=start, desc=label, file=stream, dynamic_ncols=True, leave=False, disable=hidden
    ) as bar:
        yield bar
