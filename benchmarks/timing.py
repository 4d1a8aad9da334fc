"""Timing several things in one run: in turns, so that a change of the machine's mood meets them all alike."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PEAK = "matrix product"


@dataclass(frozen=True)
class Candidate:
    """Something to time.

    Attributes:
        run: does it once and returns when it is done (JAX arrays may be returned unfinished).
        flop: its arithmetic.
        images: images it handles.
        memory: bytes its program needs at once (arguments, results and intermediates), where known.
    """

    run: Callable[[], Any]
    flop: float = 0.0
    images: int = 1
    memory: int | None = None


def compiled(function: Callable[..., Any], *arguments: Any, flop: float, images: int, **options: Any) -> Candidate:
    """A jitted function of fixed arguments, compiled now."""
    program = jax.jit(function, **options).lower(*arguments).compile()
    return Candidate(lambda: program(*arguments), flop, images, program_memory(program))


def program_memory(program: Any) -> int | None:
    """Bytes that a compiled program needs at once, as its compiler says; None where it does not."""
    found = program.memory_analysis()
    if found is None:
        return None
    sizes = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return int(sizes - found.alias_size_in_bytes)


def matrix_product(dtype: jnp.dtype) -> Candidate:
    """One large square product: what a device reaches at best, the measure of everything else."""
    n = 1536 if jax.default_backend() == "cpu" else 8192
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((n, n), np.float32), dtype) for _ in range(2))
    return compiled(jnp.matmul, a, b, flop=2.0 * n**3, images=0)


def measure(candidates: Mapping[str, Candidate], *, repeats: int, warm_up: int = 2) -> dict[str, dict[str, Any]]:
    """Median seconds of each, and what follows from them.

    Every round runs each candidate once. `matrix product` among them is the peak that shares refer to.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_up + repeats):
        for name, candidate in candidates.items():
            began = time.perf_counter()
            jax.block_until_ready(candidate.run())
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peak = candidates[PEAK].flop / medians[PEAK] if PEAK in candidates else None
    results = {}
    for name, candidate in candidates.items():
        rate = candidate.flop / medians[name]
        found: dict[str, Any] = {"seconds": medians[name], "seconds_all": seconds[name]}
        if candidate.images:
            found |= {"images": candidate.images, "images_per_second": candidate.images / medians[name]}
        if candidate.flop:
            found |= {"flop": candidate.flop, "flop_per_second": rate}
            if peak and name != PEAK:
                found["share_of_peak"] = rate / peak
        if candidate.memory is not None:
            found["program_bytes"] = candidate.memory
        results[name] = found
    return results


def peak_memory() -> dict[str, int]:
    """Most bytes in use so far: on the device, where it keeps count, and of this process."""
    found = {"process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    statistics_ = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics_:
        found["device_bytes"] = int(statistics_["peak_bytes_in_use"])
    return found
