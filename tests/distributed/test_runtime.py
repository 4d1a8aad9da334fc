"""Start-up of one and several processes, and stopping on a signal."""

import signal
import socket
import subprocess
import sys
import textwrap

import jax
import pytest

from mperceiver_jax.distributed import runtime
from mperceiver_jax.distributed.runtime import Preemption, cluster, start_runtime
from tests.support.processes import environment, run_processes


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, None),
        ({"JAX_COORDINATOR_ADDRESS": "host:1"}, "explicit"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "tpu"),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, "tpu"),
        ({"SLURM_NTASKS": "4"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, "slurm"),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, None),
        ({"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": "2"}, "mpi"),
    ],
)
def test_what_the_environment_says(variables, kind):
    assert cluster(variables) == kind


def test_incomplete_variables_are_named(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match="missing: JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        start_runtime()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID=2: from 0 to 1, as JAX_NUM_PROCESSES is 2"):
        start_runtime()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES='two'"):
        start_runtime()
    assert start_runtime(distributed=False) is False


def test_one_process_starts_no_backend_and_caches_what_it_compiles(tmp_path):
    code = """
        import sys, jax
        from jax._src import xla_bridge
        from mperceiver_jax.distributed.runtime import Preemption, start_runtime
        assert start_runtime(sys.argv[1]) is False
        assert not xla_bridge.backends_are_initialized()
        jax.jit(lambda x: x + 1)(1.0)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "cache")]
    run = subprocess.run(command, env=environment(1), capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert any((tmp_path / "cache").iterdir())


def test_sigterm_and_the_first_interrupt_ask_to_stop():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        with Preemption() as preemption:
            assert not preemption.requested()
            signal.raise_signal(number)
            assert preemption.noticed and preemption.requested()
            if number == signal.SIGINT:
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(number)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_action_of_the_first_process_runs_here():
    ran = []
    runtime.on_first_process(lambda: ran.append(jax.process_index()))
    assert ran == [0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_stop_after_the_same_step(number):
    code = """
        import os, signal, sys, time
        import jax
        from mperceiver_jax.distributed.runtime import Preemption, on_first_process, start_runtime
        assert start_runtime() and jax.process_count() == 2
        def fail():
            raise OSError("no such thing")
        try:
            on_first_process(fail)
        except (OSError, ValueError) as error:
            print(type(error).__name__, error)
        stopped = None
        with Preemption() as preemption:
            for step in range(1, 2000):
                if jax.process_index() == 1 and step == 5:
                    os.kill(os.getpid(), int(sys.argv[1]))
                time.sleep(0.01)
                if preemption.requested():
                    stopped = step
                    break
        print(stopped)
    """
    first, second = (output.splitlines() for output in run_processes(code, devices=1, args=[int(number)]))
    assert (first[0], second[0]) == ("OSError no such thing", "ValueError no such thing")
    assert first[1] == second[1] and first[1] != "None"
    assert int(first[1]) >= 5


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:", ":80", "host:port", "host:70000"])
def test_an_address_without_a_port_is_refused_before_it_is_used(monkeypatch, address):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ValueError, match=r"JAX_COORDINATOR_ADDRESS=.*: give HOST:PORT"):
        start_runtime()


def test_waiting_for_a_coordinator_is_said_and_ends(capsys):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"nobody has answered at {address} for 0 s .*; start process 0"):
            runtime._check_address(address, wait=True, seconds=0.2)
        assert f"waiting for {address} (0 s of 0)" in capsys.readouterr().err
        server.listen()
        runtime._check_address(address, wait=True)
