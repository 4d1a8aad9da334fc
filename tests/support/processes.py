"""Runs a script in several processes that form one JAX run, on virtual CPU devices of this machine."""

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What the script prints goes to a file of its own: the CPU's communication library writes to the standard output
# from several threads, within the lines of others. A process that fails must end at once: an ordinary exit would
# wait for the others to shut down, too. A thread notes the processor time that the process has used, so that one
# that computes or compiles without output is distinguished from one that waits forever.
_DRIVER = """
import os, runpy, sys, threading, time, traceback
OUTPUT = sys.argv[1]
sys.stdout = open(OUTPUT, "w", buffering=1)

def note_progress():
    used = 0.0
    while True:
        time.sleep(1)
        if time.process_time() > used + 0.2:
            used = time.process_time()
            os.utime(OUTPUT)

threading.Thread(target=note_progress, args=(), daemon=True).start()
from mperceiver_jax.distributed.runtime import start_runtime
start_runtime()
sys.argv = sys.argv[2:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except BaseException as error:
    if not isinstance(error, SystemExit) or error.code:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)
"""


def environment(devices: int, **more: str) -> dict[str, str]:
    """Environment variables of a child with this many virtual CPU devices."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "JAX_PLATFORMS": "cpu",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        **more,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _last_sign(output: Path) -> float:
    """When a process last wrote something or used the processor, in seconds since the epoch."""
    return max(path.stat().st_mtime for path in (output, output.with_suffix(".log")))


def run_processes(
    code: str, processes: int = 2, devices: int = 4, args: Sequence[str] = (), silence: float = 120
) -> list[str]:
    """Runs Python code in `processes` processes of `devices` devices each; returns what each printed.

    `jax.distributed` is started, over 127.0.0.1, before the code runs (also for one process);
    `args` are its `sys.argv[1:]`, and the repository is importable.

    Args:
        code: source, indented or not.
        silence: all processes are ended when none of them has written or computed anything for this many seconds.
            There is no limit on the whole: a busy machine only takes longer.

    Raises:
        AssertionError: a process failed, or all were silent; shows the end of every process's output. When one
            fails, the others are ended, since they would wait for it.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(textwrap.dedent(code))
        outputs = [Path(folder) / f"output_{i}.txt" for i in range(processes)]
        children = []
        for i, output in enumerate(outputs):
            variables = environment(
                devices,
                JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
                JAX_NUM_PROCESSES=str(processes),
                JAX_PROCESS_ID=str(i),
            )
            output.touch()
            with open(output.with_suffix(".log"), "wb") as log:
                command = [sys.executable, "-u", "-c", _DRIVER, str(output), str(script), *map(str, args)]
                child = subprocess.Popen(command, env=variables, cwd=ROOT, stdout=log, stderr=log)
                children.append(child)
        try:
            while None in (codes := [child.poll() for child in children]) and not any(codes):
                if time.time() - max(_last_sign(output) for output in outputs) > silence:
                    break
                time.sleep(0.05)
            if any(codes):
                time.sleep(1)  # The others may report errors, too.
                codes = [child.poll() for child in children]
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()
        texts = [output.read_text(errors="replace") for output in outputs]
        if any(code != 0 for code in codes):
            raise AssertionError(
                "\n".join(
                    f"--- process {i}, exit code {code} (None: was silent for {silence} s)\n"
                    + (text + output.with_suffix(".log").read_text(errors="replace"))[-3000:]
                    for i, (code, text, output) in enumerate(zip(codes, texts, outputs, strict=True))
                )
            )
    return texts
