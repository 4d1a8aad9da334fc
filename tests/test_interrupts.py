"""Ctrl-C where Python would drop it or show a traceback."""

import subprocess
import sys
import textwrap

import pytest

from tests.support.processes import ROOT


@pytest.mark.parametrize("dropped", [False, True], ids=["raised", "dropped in a finaliser"])
def test_an_interrupt_ends_the_process_without_a_traceback(dropped):
    # Where the tests run in the background of a shell, the signal is ignored, and child processes inherit that.
    code = f"""
        import signal
        import time
        import mperceiver_jax.interrupts
        signal.signal(signal.SIGINT, signal.default_int_handler)
        class Dropping:
            def __del__(self):
                raise KeyboardInterrupt
        if {dropped}:
            Dropping()
            time.sleep(60)
        raise KeyboardInterrupt
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert run.returncode != 0
    assert run.stderr == "Interrupted.\n"
