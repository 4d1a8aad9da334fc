"""The compiler for TPUs, for tests that compile programs for chips which are not in this machine."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

BESIDE_THE_ENVIRONMENT = Path(sys.prefix) / "libtpu"
"""Where `make test` installs it."""


def run_for_tpus(*arguments: str) -> str:
    """Runs Python with the compiler at hand and JAX on the CPU; returns stdout. Skips where it is not installed."""
    if importlib.util.find_spec("libtpu") is None and not BESIDE_THE_ENVIRONMENT.is_dir():
        pytest.skip("the compiler for TPUs (libtpu) is not installed; `make test` installs it")
    paths = [str(BESIDE_THE_ENVIRONMENT), os.getcwd(), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # The flash kernel has no products of bfloat16 at full precision.
        "JAX_DEFAULT_MATMUL_PRECISION": "default",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
