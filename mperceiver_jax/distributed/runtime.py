"""Start JAX on one or several hosts, run actions in agreement of all processes, and notice requests to stop."""

import glob
import importlib.util
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

_OWN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_MESSAGE_BYTES = 4096
_PATIENCE = 6 * 3600  # seconds
_START_SECONDS = 300.0
# After so long without a heartbeat of a process, JAX takes it for dead and ends the others.
_HEARTBEAT_SECONDS = 40
_MEETINGS = itertools.count()

Result = TypeVar("Result")


def cluster(environment: Mapping[str, str]) -> str | None:
    """The multi-process set-up that the environment variables describe; None for a single process.

    'explicit' (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), 'tpu' (a pod or several
    slices), 'slurm' (inside srun with several tasks) or 'mpi' (Open MPI with several ranks).
    """

    def several(name: str) -> bool:
        value = environment.get(name, "1")
        return value.isdigit() and int(value) > 1

    if any(name in environment for name in _OWN):
        return "explicit"
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "MEGASCALE_COORDINATOR_ADDRESS" in environment or "," in hosts:
        return "tpu"
    if "SLURM_STEP_NODELIST" in environment and several("SLURM_NTASKS"):
        return "slurm"
    if "OMPI_MCA_orte_hnp_uri" in environment and several("OMPI_COMM_WORLD_SIZE"):
        return "mpi"
    return None


def accelerator() -> bool:
    """Whether JAX would find a GPU or a TPU, determined without starting a backend, which must wait for other hosts."""
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return False
    found = lambda module: importlib.util.find_spec(module) is not None
    gpu = glob.glob("/dev/nvidia[0-9]*") and (found("jax_cuda13_plugin") or found("jax_cuda12_plugin"))
    tpu = (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")) and found("libtpu")
    return bool(gpu or tpu)


def start_runtime(compilation_cache: str | None = None, distributed: bool | None = None) -> bool:
    """Joins the other processes of the run, if there are any. Call it before any device is used.

    A second call changes only the compilation cache. Without other processes no backend
    is started.

    Args:
        compilation_cache: directory of XLA's persistent cache; None leaves JAX's own setting
            (JAX_COMPILATION_CACHE_DIR). Anyone who can write there can run code in this process.
        distributed: True or False overrides what `cluster` finds in the environment. True is for TPU
            pods whose hosts do not have such variables: JAX then asks the metadata server.

    Returns:
        Whether this process is part of a distributed run.

    Raises:
        ValueError: some of the JAX_* variables are missing or have no meaning, or nobody answers at the address.
    """
    if compilation_cache is not None:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(os.path.expanduser(compilation_cache)))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if jax.distributed.is_initialized():
        return True
    kind = cluster(os.environ)
    if distributed is False or (distributed is None and kind is None):
        return False
    limits: dict[str, Any] = {
        "heartbeat_timeout_seconds": _HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": _HEARTBEAT_SECONDS,
    }
    if kind == "explicit":
        missing = [name for name in _OWN if not os.environ.get(name)]
        if missing:
            raise ValueError(f"for several processes set {', '.join(_OWN)}; missing: {', '.join(missing)}")
        try:
            processes, process = int(os.environ[_OWN[1]]), int(os.environ[_OWN[2]])
        except ValueError:
            given = ", ".join(f"{name}={os.environ[name]!r}" for name in _OWN[1:])
            raise ValueError(f"{given}: both must be whole numbers") from None
        if not 0 <= process < processes:
            raise ValueError(f"{_OWN[2]}={process}: from 0 to {processes - 1}, as {_OWN[1]} is {processes}")
        _check_address(os.environ[_OWN[0]], wait=process > 0)
        jax.distributed.initialize(os.environ[_OWN[0]], processes, process, **limits)
    else:
        jax.distributed.initialize(**limits)
    return True


def _check_address(address: str, wait: bool, seconds: float = _START_SECONDS) -> None:
    """Checks the address of the coordinator; with `wait`, until process 0 answers there.

    Raises:
        ValueError: it is not HOST:PORT, or nobody has answered for so many seconds.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{_OWN[0]}={address!r}: give HOST:PORT, as in 10.0.0.1:8476")
    began, shown = time.monotonic(), 0.0
    while wait:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            passed = time.monotonic() - began
            if passed > seconds:
                raise ValueError(
                    f"{_OWN[0]}: nobody has answered at {address} for {seconds:.0f} s ({error}); start process 0, or "
                    "correct the address"
                ) from None
            if not shown or passed - shown >= 10:
                shown = max(passed, 0.001)
                print(f"waiting for {address} ({passed:.0f} s of {seconds:.0f})", file=sys.stderr, flush=True)
            time.sleep(0.5)


def on_first_process(action: Callable[[], None]) -> None:
    """Runs `action` in process 0 while the others wait, for up to six hours; if it fails, all of them fail with its
    message.

    Raises:
        Exception: the action's own in process 0; ValueError with the same text in the others.
    """
    if jax.process_count() == 1:
        action()
        return
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            action()
        except Exception as error:
            failure = error
    _meet()
    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    if failure is not None:
        text = (str(failure) or type(failure).__name__).encode()[:_MESSAGE_BYTES]
        message[: len(text)] = np.frombuffer(text, np.uint8)
    received = bytes(np.asarray(multihost_utils.broadcast_one_to_all(message))).rstrip(b"\0")
    if failure is not None:
        raise failure
    if received:
        raise ValueError(received.decode(errors="replace"))


def on_every_process(action: Callable[[], Result]) -> Result:
    """Runs `action` in every process; if it fails in one, all fail, so that none waits for the others forever.

    Raises:
        Exception: the action's own where it failed; ValueError in the others.
    """
    if jax.process_count() == 1:
        return action()
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:
        failure = error
    _meet()
    failed = multihost_utils.process_allgather(np.int32(failure is not None))
    if failure is not None:
        raise failure
    if failed.any():
        raise ValueError(f"failed in process {int(np.argmax(failed))}; its own message says why")
    return result


def smallest_of_processes(value: int) -> int:
    """The smallest of the values that the processes give; every process must call this."""
    if jax.process_count() == 1:
        return value
    return int(np.min(multihost_utils.process_allgather(np.asarray(value))))


def _meet() -> None:
    """Returns when every process has called this. A collective would give up after half a minute."""
    # Imported here: starting the runtime does not need Orbax.
    from orbax.checkpoint import multihost

    everyone = set(range(jax.process_count()))
    multihost.sync_global_processes(f"meeting {next(_MEETINGS)}", timeout=_PATIENCE, processes=everyone)


def end_interrupted(message: str) -> NoReturn:
    """Ends this process with a message and exit code 130, as after an interrupt by the user.

    In a distributed run an ordinary exit would wait for the other processes, which wait for this one. This one exits
    at once instead; JAX ends the others when its heartbeats stop.
    """
    print(message, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(130)
    sys.exit(130)


class Preempted(Exception):
    """The run was asked to stop, has saved, and can be continued by the same command."""


class Preemption:
    """Notices that the run should stop, so that the loop can save and end.

    In a single process: SIGTERM, or the first Ctrl-C (a second one interrupts at once). In a
    distributed run JAX's own service catches SIGTERM in any process and agrees on one step, so that
    all processes save the same one; the first Ctrl-C in one of them is passed on as SIGTERM.
    Signals are seen when `requested` is called, hence only between steps: call it after every
    step, and inside long evaluations `noticed`.

    Use as a context manager, in the main thread.
    """

    def __init__(self) -> None:
        self._distributed = jax.distributed.is_initialized()
        self._noticed = False
        self._calls = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        for number in (signal.SIGINT,) if self._distributed else (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _notice(self, number: int, frame: FrameType | None) -> None:
        # Not print: a signal may arrive while something else is being printed.
        os.write(2, b"Asked to stop: saving after the current update.\n")
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._distributed:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._noticed = True

    @property
    def noticed(self) -> bool:
        """Whether a signal has reached this single process; always False in a distributed run."""
        return self._noticed

    def requested(self) -> bool:
        """Whether to save and stop now. Every process must ask equally often, once per step.

        JAX's service agrees on a call in the future by a count that must never decrease; steps do when a stage
        ends, so the calls are counted here. One object serves a whole run.
        """
        if self._distributed:
            self._calls += 1
            return multihost_utils.reached_preemption_sync_point(self._calls)
        return self._noticed
