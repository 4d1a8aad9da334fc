"""One run at a time in a workdir: a lease in a file, which all machines that share the disk see."""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from data_pipelines.files import write_atomically
from mperceiver_jax.checkpoints.workdir import LEASE
from mperceiver_jax.distributed.runtime import on_first_process
from mperceiver_jax.errors import ConfigError

BEAT_SECONDS = 20.0
EXPIRES_SECONDS = 120.0


class Lease:
    """Holds a workdir while the block runs; every process of a run enters, process 0 writes the file.

    The file is touched every 20 seconds. A lease that was not touched for two minutes, or whose process on this
    machine is gone, was left behind by a run that was killed, and is taken over.

    Raises:
        ConfigError: on entry, another run is using the workdir; names its host and process.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / LEASE
        self._over = threading.Event()
        self._created = not workdir.exists()

    def __enter__(self) -> "Lease":
        on_first_process(self._take)
        if jax.process_index() == 0:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
                # A run that failed before it wrote anything leaves nothing behind.
                if self._created:
                    self._path.parent.rmdir()

    def _take(self) -> None:
        holder = _holder(self._path)
        if holder is not None:
            raise ConfigError(
                f"workdir {self._path.parent}: host {holder['host']}, process {holder['process']} has been using it "
                f"since {holder['since']}. Wait until it ends, or give another workdir"
            )
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        content = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
        write_atomically(self._path, (json.dumps(content) + "\n").encode())

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _holder(path: Path) -> dict[str, Any] | None:
    """Whoever holds the lease; None where nobody does."""
    try:
        age = time.time() - path.stat().st_mtime
        content = json.loads(path.read_text())
        host, process = str(content["host"]), int(content["process"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if age > EXPIRES_SECONDS or (host == socket.gethostname() and not _alive(process)):
        return None
    return content


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False  # Of an earlier process with this number, or of an earlier run in this process.
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
