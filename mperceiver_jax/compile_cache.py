"""XLA's persistent compilation cache in the user's cache directory, so that a second call starts in seconds."""

import hashlib
import platform
from pathlib import Path

import jax

from data_pipelines.files import cache_root


def use_compile_cache() -> Path | None:
    """Keeps compiled programs for the next process, unless the environment says otherwise.

    JAX_COMPILATION_CACHE_DIR names another directory, JAX_ENABLE_COMPILATION_CACHE=0 switches the cache off.

    Programs for a CPU use its instructions, so each kind of CPU has a directory of its own; a home directory may be
    shared between machines.

    Returns:
        the directory, or None where the environment decides or the directory cannot be written.
    """
    settings = jax.config.values
    if not settings["jax_enable_compilation_cache"] or settings["jax_compilation_cache_dir"] is not None:
        return None
    kind = hashlib.sha256(f"{jax.__version__} {_processor()}".encode()).hexdigest()[:12]
    directory = cache_root() / "programs" / kind
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # Compiling again costs time, no result.
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory


def _processor() -> str:
    """The instructions that this machine's CPU has, or what else names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    described = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return "\n".join(described) or platform.processor() or platform.machine()
