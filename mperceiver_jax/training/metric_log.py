"""Write metrics to files: `metrics.jsonl` and TensorBoard events.

The writers have the method names of clu's `MetricWriter`: where TensorFlow is installed, clu's own writer is used;
elsewhere the same events are written without it. Only process 0 writes.
"""

import importlib.util
import json
import math
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from data_pipelines.files import naming, write_atomically

_OWN_FIELDS = ("stage", "step", "time")


class MetricWriter(Protocol):
    """The part of clu's writer interface that is used; scalars are values that float() accepts."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """Writes one JSON object per line: stage, step, time (Unix seconds), and the scalars.

    Every line is passed to the operating system at once, so a killed run loses none and leaves at most its last
    line incomplete. Numbers that are not finite are written as 'nan', 'inf', '-inf', which float() reads and JSON
    allows.

    A resumed run repeats the steps after its checkpoint. Opening the file therefore removes this stage's lines of
    later steps, and an incomplete last line, so that the file has every step once.

    Args:
        path: the file; lines of other stages in it are kept.
        stage: written into every line.
        resume_step: the step after which this run starts; 0 for a stage that starts.
    """

    def __init__(self, path: str | os.PathLike[str], stage: str, resume_step: int = 0):
        self._stage = stage
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _rewind(path, stage, resume_step)
        self._file = _Appended(path)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Raises ValueError for a metric named like one of the line's own fields."""
        taken = sorted(set(scalars) & set(_OWN_FIELDS))
        if taken:
            raise ValueError(f"metrics cannot be named {taken}: every line has these fields")
        content = {name: _number(value) for name, value in scalars.items()}
        line = {"stage": self._stage, "step": int(step), "time": round(time.time(), 3), **content}
        self._file.write((json.dumps(line) + "\n").encode())

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter:
    """TensorBoard events without TensorFlow.

    tensorboardX's own writer passes them to a thread that a full disk ends; the loop would then wait for it forever.
    Only its messages and checksums are used here.

    Args:
        resume_step: steps after this one in earlier files are marked as superseded.
    """

    def __init__(self, logdir: str | os.PathLike[str], resume_step: int = 0):
        from tensorboardX.proto.event_pb2 import SessionLog

        os.makedirs(logdir, exist_ok=True)
        # TensorBoard recognises and orders files by this name.
        self._file = _Appended(Path(logdir) / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}")
        self._event(file_version="brain.Event:2")
        if resume_step:
            self._event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
        self._event(step=int(step), summary=Summary(value=values))

    def close(self) -> None:
        self._file.close()

    def _event(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        data = Event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._file.write(length + checksums[0] + data + checksums[1])


class _Appended:
    """A file without a buffer: `write` raises every error itself, and closing the file cannot fail."""

    def __init__(self, path: Path):
        self._path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def write(self, piece: bytes) -> None:
        with naming(self._path):
            while piece:
                piece = piece[self._file.write(piece) :]

    def close(self) -> None:
        self._file.close()


class MultiWriter:
    """Writes to several writers; to none, it writes nothing."""

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
    """A writer of TensorBoard events in `logdir`: clu's where TensorFlow and TensorBoard are installed, otherwise
    `TensorboardXWriter`."""
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
        from clu import metric_writers

        return metric_writers.SummaryWriter(os.fspath(logdir))
    return TensorboardXWriter(logdir, resume_step)


def create_writer(workdir: str | os.PathLike[str], stage: str, resume_step: int = 0) -> MultiWriter:
    """The writers of one stage: `metrics.jsonl` and `tensorboard/<stage>/` in the workdir.

    In processes other than the first they write nothing.

    Args:
        resume_step: the step after which this run starts.
    """
    if jax.process_index() != 0:
        return MultiWriter(())
    path = Path(workdir)
    jsonl = JsonlWriter(path / "metrics.jsonl", stage, resume_step)
    return MultiWriter((jsonl, event_writer(path / "tensorboard" / stage, resume_step)))


def read_metrics(path: str | os.PathLike[str], stage: str | None = None) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, of one stage or all, without an incomplete last line."""
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
        write_atomically(path, "".join(kept).encode())


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"stage", "step"} <= row.keys() else None


def _number(value: Any) -> float | int | str:
    number = value if isinstance(value, bool | int) else float(value)
    return number if math.isfinite(number) else str(number)
