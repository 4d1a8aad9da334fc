"""The compiler for TPUs, for tests that compile programs for chips which are not in this machine."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

LIBTPU = Path(sys.prefix) / "libtpu"
"""Where `make test` installs it."""


def run_for_tpus(*arguments: str) -> str:
    """Runs Python with the compiler at hand and JAX on the CPU; returns stdout. Skips where there is none."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the compiler for TPUs (libtpu) exists for Linux on x86_64 only")
    assert importlib.util.find_spec("libtpu") or LIBTPU.is_dir(), "libtpu is not installed; `make test` installs it"
    paths = [str(LIBTPU), os.getcwd(), os.environ.get("PYTHONPATH", "")]
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
