"""Compiled programs are kept for the next process."""

import subprocess
import sys

PROGRAM = """
import jax
from mperceiver_jax.compile_cache import use_compile_cache
print(use_compile_cache())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: x * 2 + 1)(3.0))
"""


def run(**environment):
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.split()


def test_programs_are_kept_in_the_users_cache_directory(tmp_path):
    first, _ = run(XDG_CACHE_HOME=str(tmp_path), JAX_PLATFORMS="cpu")
    assert first.startswith(str(tmp_path / "mperceiver_jax" / "programs"))
    kept = {path.name for path in tmp_path.rglob("*-cache")}
    assert kept
    assert run(XDG_CACHE_HOME=str(tmp_path), JAX_PLATFORMS="cpu") == [first, "7.0"]
    assert {path.name for path in tmp_path.rglob("*-cache")} == kept


def test_the_environment_can_name_another_directory_or_none(tmp_path):
    shared = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    assert run(**shared, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[0] == "None"
    assert run(**shared, JAX_ENABLE_COMPILATION_CACHE="false")[0] == "None"
    (tmp_path / "mperceiver_jax").write_text("a file is in the way")
    assert run(**shared) == ["None", "7.0"]
