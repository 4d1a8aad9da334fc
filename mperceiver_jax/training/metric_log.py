"""Metrics to files: `metrics.jsonl` and TensorBoard events.

The writers have the method names of clu's `MetricWriter`, so that clu's own serve where
TensorFlow is installed; tensorboardX writes the same events elsewhere. Only process 0
writes.
"""

import importlib.util
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

_OWN_FIELDS = ("stage", "step", "time")


class MetricWriter(Protocol):
    """The part of clu's writer interface in use; scalars are anything float() takes."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """One JSON object a line: stage, step, time (Unix seconds), and the scalars.

    Lines are appended whole and handed to the system at once, so a killed run loses none and leaves
    at most its last line torn. Numbers that are not finite are written as 'nan', 'inf', '-inf',
    which float() reads and JSON allows.

    A resumed run repeats the steps after its checkpoint. Opening the file therefore removes this
    stage's lines of later steps (and a torn last line): every step stands there once, as the run
    that counts made it.

    Args:
        path: the file; other stages' lines in it stay.
        stage: written into every line.
        resume_step: the step this run starts after; 0 for a stage that starts.
    """

    def __init__(self, path: str | os.PathLike[str], stage: str, resume_step: int = 0):
        self._stage = stage
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _rewind(path, stage, resume_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Raises ValueError for a metric named like one of the line's own fields."""
        taken = sorted(set(scalars) & set(_OWN_FIELDS))
        if taken:
            raise ValueError(f"metrics cannot be named {taken}: every line has these fields already")
        content = {name: _number(value) for name, value in scalars.items()}
        line = {"stage": self._stage, "step": int(step), "time": round(time.time(), 3), **content}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter:
    """TensorBoard events without TensorFlow.

    Args:
        resume_step: later steps that an earlier run wrote are marked as superseded.
    """

    def __init__(self, logdir: str | os.PathLike[str], resume_step: int = 0):
        from tensorboardX import SummaryWriter

        purge = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(os.fspath(logdir), purge_step=purge)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        self._writer.close()


class MultiWriter:
    """Passes everything on to several writers; without any it writes nothing."""

    def __init__(self, writers: Sequence[MetricWriter]):
        self.writers = tuple(writers)

    def __enter__(self) -> "MultiWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for writer in self.writers:
            writer.write_scalars(step, scalars)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def event_writer(logdir: str | os.PathLike[str], resume_step: int = 0) -> MetricWriter:
    """TensorBoard events in `logdir`: clu's writer where TensorFlow and TensorBoard are installed,
    tensorboardX otherwise."""
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
        from clu import metric_writers

        return metric_writers.SummaryWriter(os.fspath(logdir))
    return TensorboardXWriter(logdir, resume_step)


def create_writer(workdir: str | os.PathLike[str], stage: str, resume_step: int = 0) -> MultiWriter:
    """The writers of one stage: `metrics.jsonl` and `tensorboard/<stage>/` in the workdir.

    In other processes than the first it writes nothing.

    Args:
        resume_step: the step this run starts after.
    """
    if jax.process_index() != 0:
        return MultiWriter(())
    path = Path(workdir)
    jsonl = JsonlWriter(path / "metrics.jsonl", stage, resume_step)
    return MultiWriter((jsonl, event_writer(path / "tensorboard" / stage, resume_step)))


def read_metrics(path: str | os.PathLike[str], stage: str | None = None) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, of one stage or all, without a torn last one."""
    rows = [row for line in Path(path).read_text(encoding="utf-8").splitlines() if (row := _parse(line))]
    return [row for row in rows if stage in (None, row["stage"])]


def _rewind(path: Path, stage: str, step: int) -> None:
    text = path.read_text(encoding="utf-8")
    kept = []
    for line in text.splitlines():
        row = _parse(line)
        if row is not None and (row["stage"] != stage or row["step"] <= step):
            kept.append(line + "\n")
    if "".join(kept) != text:
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, path)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"stage", "step"} <= row.keys() else None


def _number(value: Any) -> float | int | str:
    number = value if isinstance(value, bool | int) else float(value)
    return number if math.isfinite(number) else str(number)
