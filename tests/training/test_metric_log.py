"""Metric files: what stands in them, also after a crash and a resume."""

import importlib.util
import json
import struct
import sys
import threading
import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from mperceiver_jax.training import metric_log
from mperceiver_jax.training.metric_log import JsonlWriter, TensorboardXWriter, create_writer, read_metrics
from tests.support.full_disk import disk_of


def _events(folder):
    """Events of TensorBoard files: records of (length, checksum, bytes, checksum)."""
    events = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_both_files_hold_the_scalars(tmp_path):
    with create_writer(tmp_path, "drm") as writer:
        writer.write_scalars(5, {"loss": np.float32(0.5), "psnr": 30})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert {**rows[0], "time": 0} == {"stage": "drm", "step": 5, "time": 0, "loss": 0.5, "psnr": 30}
    events = _events(tmp_path / "tensorboard" / "drm")
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    assert values["loss"][0] == 5 and values["loss"][1].simple_value == 0.5
    assert values["psnr"][1].simple_value == 30


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl", "drm")
    writer.write_scalars(1, {"a": float("nan"), "b": float("-inf")})
    line = (tmp_path / "m.jsonl").read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (row["a"], row["b"]) == ("nan", "-inf")
    with pytest.raises(ValueError, match="cannot be named"):
        writer.write_scalars(2, {"step": 1})
    writer.close()


def test_a_resumed_stage_drops_what_it_will_repeat(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for stage in ("predictor", "drm"):
        writer = JsonlWriter(path, stage)
        for step in range(1, 6):
            writer.write_scalars(step, {"loss": step})
        writer.close()
    path.write_text(path.read_text() + '{"stage": "drm", "st')
    writer = JsonlWriter(path, "drm", resume_step=3)
    writer.write_scalars(4, {"loss": 40})
    writer.close()
    assert [row["step"] for row in read_metrics(path, "predictor")] == [1, 2, 3, 4, 5]
    losses = [(row["step"], row["loss"]) for row in read_metrics(path, "drm")]
    assert losses == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_tensorboard_learns_what_is_superseded(tmp_path):
    for resumed in (0, 3):
        with create_writer(tmp_path, "drm", resumed) as writer:
            writer.write_scalars(resumed + 1, {"loss": 1.0})
    events = _events(tmp_path / "tensorboard" / "drm")
    assert [event.step for event in events if event.session_log.status == 1] == [4]


@pytest.mark.parametrize("writer", [JsonlWriter, TensorboardXWriter])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, writer):
    threads = threading.active_count()
    log = writer(tmp_path / "log", *(["drm"] if writer is JsonlWriter else []))
    assert threading.active_count() == threads  # A thread would fail unseen, and its queue fill for ever.
    log.write_scalars(1, {"loss": 1.0})
    with disk_of(300), pytest.raises(OSError, match=rf"File too large: '{tmp_path}/log"):
        for step in range(2, 20):
            log.write_scalars(step, {"loss": 1.0})
    log.close()


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with create_writer(tmp_path, "drm") as writer:
        writer.write_scalars(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_clu_writes_the_events_where_tensorflow_is_installed(tmp_path, monkeypatch):
    made = []
    fake = types.SimpleNamespace(SummaryWriter=lambda logdir: made.append(logdir) or "clu")
    found = importlib.util.find_spec
    there = ("tensorflow", "tensorboard")
    monkeypatch.setattr(metric_log.importlib.util, "find_spec", lambda name: name in there or found(name))
    monkeypatch.setitem(sys.modules, "clu.metric_writers", fake)
    monkeypatch.setattr("clu.metric_writers", fake, raising=False)
    assert metric_log.event_writer(tmp_path) == "clu"
    assert made == [str(tmp_path)]
