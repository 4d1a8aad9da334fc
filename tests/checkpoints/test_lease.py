"""The lease of a workdir: held, refused, taken over, given back."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from mperceiver_jax.checkpoints.lease import EXPIRES_SECONDS, Lease
from mperceiver_jax.checkpoints.workdir import LEASE
from mperceiver_jax.errors import ConfigError


def held_by(folder, host, process):
    folder.mkdir(exist_ok=True)
    (folder / LEASE).write_text(json.dumps({"host": host, "process": process, "since": "2026-01-01 00:00:00 UTC"}))


def test_a_workdir_in_use_is_refused_and_its_user_is_named(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        held_by(tmp_path, socket.gethostname(), other.pid)
        with pytest.raises(ConfigError, match=rf"process {other.pid} has been using it since 2026-01-01"):
            Lease(tmp_path).__enter__()
    finally:
        other.communicate(b"\n")
    # Its process has ended without giving it back.
    with Lease(tmp_path):
        assert json.loads((tmp_path / LEASE).read_text())["process"] == os.getpid()


def test_a_lease_of_another_machine_expires(tmp_path):
    held_by(tmp_path, "elsewhere", 1)
    with pytest.raises(ConfigError, match="host elsewhere, process 1"):
        Lease(tmp_path).__enter__()
    old = time.time() - EXPIRES_SECONDS - 5
    os.utime(tmp_path / LEASE, (old, old))
    with Lease(tmp_path):
        pass
    (tmp_path / LEASE.replace(".json", ".txt")).write_text("kept")


def test_it_is_kept_alive_and_given_back_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("mperceiver_jax.checkpoints.lease.BEAT_SECONDS", 0.01)
    folder = tmp_path / "run"
    with Lease(folder):
        os.utime(folder / LEASE, (1, 1))
        while (folder / LEASE).stat().st_mtime < 2:
            time.sleep(0.01)
    assert not folder.exists()
    with Lease(folder):
        (folder / "config.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
