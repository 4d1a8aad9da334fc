"""How far a stage is: a bar on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Shows steps, loss, images per second and the time that remains.

    Speed counts from the end of this run's first step, so that neither compiling nor the steps done
    before a resume are in it.

    Args:
        label: name of the stage.
        total: steps of the whole stage.
        start: steps done before this run.
        images_per_step: the global batch size.
        stream: where to; standard error by default. A terminal gets a bar.
        every_seconds: plain lines come at most this often, besides the first and the last step.
        enabled: False shows nothing: in all processes but the first.
        clock: seconds, rising.
    """

    def __init__(
        self,
        label: str,
        total: int,
        start: int = 0,
        *,
        images_per_step: int,
        stream: TextIO | None = None,
        every_seconds: float = 10.0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._label = label
        self._total = total
        self._images = images_per_step
        self._stream = stream or sys.stderr
        self._every = every_seconds
        self._enabled = enabled
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._last_line = -float("inf")
        self._speed: float | None = None
        self._bar: tqdm | None = None
        if enabled and self._stream.isatty():
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

    def update(self, step: int, loss: float | None = None) -> None:
        """To be called when a step is done.

        Args:
            step: steps done in the whole stage.
            loss: shown if given.
        """
        if not self._enabled:
            return
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        parts = [] if loss is None else [f"loss {loss:.4g}"]
        rate = self._rate(step, now)
        if rate is not None:
            parts.append(f"{rate * self._images:.1f} images/s")
            parts.append(f"ETA {duration((self._total - step) / rate)}")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update(step - self._bar.n)
        elif step == self._first[0] or step >= self._total or now - self._last_line >= self._every:
            self._last_line = now
            self._print(", ".join([f"{self._label} {step}/{self._total}", *parts]))

    def message(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._print(text)

    def images_per_second(self) -> float | None:
        """The speed as of the last update; None before the second step."""
        return self._speed

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _rate(self, step: int, now: float) -> float | None:
        """Steps per second."""
        assert self._first is not None
        first_step, first_time = self._first
        if step <= first_step or now <= first_time:
            return None
        rate = (step - first_step) / (now - first_time)
        self._speed = rate * self._images
        return rate

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
