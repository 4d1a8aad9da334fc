"""The helper that runs several processes reports why one failed, without waiting for the others."""

import pytest

from tests.support.processes import run_processes


def test_a_failing_process_is_shown_and_ends_the_others():
    code = """
        import sys, time
        import jax
        if jax.process_index() == 1:
            raise ValueError(f"no {sys.argv[1]}")
        time.sleep(1000)
    """
    message = r"(?s)process 0, exit code None.*process 1, exit code 1.*ValueError: no luck"
    with pytest.raises(AssertionError, match=message):
        run_processes(code, devices=1, args=["luck"])


def test_what_a_library_writes_to_the_standard_output_stays_out_of_the_returned_text():
    code = """
        import os
        os.write(1, b"[Gloo] Rank 0 ")
        print("mine", flush=True)
        os.write(1, b"is connected to 7 peer ranks.")
    """
    assert run_processes(code, devices=1) == ["mine\n", "mine\n"]


def test_processes_that_wait_forever_are_ended_and_those_that_compute_are_not():
    code = """
        import sys, time
        if sys.argv[1] == "compute":
            end = time.process_time() + 6
            while time.process_time() < end:
                pass
            print("done")
        else:
            time.sleep(1000)
    """
    assert run_processes(code, processes=1, devices=1, args=["compute"], silence=4) == ["done\n"]
    with pytest.raises(AssertionError, match=r"process 0, exit code None \(None: was silent for 4 s\)"):
        run_processes(code, processes=1, devices=1, args=["wait"], silence=4)
