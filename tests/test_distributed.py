"""The helper that runs several processes tells why one failed, without waiting for the others."""

import pytest

from tests.distributed import run_processes


def test_a_failing_process_is_shown_and_ends_the_others():
    code = """
        import sys, time
        import jax
        if jax.process_index() == 1:
            raise ValueError(f"no {sys.argv[1]}")
        time.sleep(1000)
    """
    told = r"(?s)process 0, exit code None.*process 1, exit code 1.*ValueError: no luck"
    with pytest.raises(AssertionError, match=told):
        run_processes(code, devices=1, args=["luck"])
