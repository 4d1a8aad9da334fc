"""The size of a stage, and a rough estimate of how long it takes, before it begins."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.progress import duration
from mperceiver_jax.training.lowering import lower_step
from mperceiver_jax.training.stages.registry import build_stage

# Training steps reach this share of the rate of one large convolution, give or take a factor of two.
TYPICAL_SHARE = 0.4


@dataclass(frozen=True)
class StagePlan:
    """Size and cost of a stage. `flop` is XLA's count of operations for one update on all devices together; None
    where the backend gives none (CUDA counts compiled programs only)."""

    name: str
    title: str
    steps: int
    batch_size: int
    trained: int
    flop: float | None


def plan_stage(experiment: Experiment, model: RestorationModel, name: str) -> StagePlan:
    """Counts a stage by lowering its step abstractly; nothing is allocated or compiled."""
    config, stage = experiment.stages[name], build_stage(name, experiment, model)
    declared = parameters.split(model)[1].items()
    size = sum(int(np.prod(leaf.shape)) for path, leaf in declared if stage.is_trained(path))
    # One micro-batch stands for all: XLA counts the body of a scan once.
    cost = lower_step(experiment, model, name).cost_analysis() or {}
    flop = float(cost.get("flops", 0.0)) * config.accumulation
    return StagePlan(name, stage.title, config.steps, config.batch_size, size, flop or None)


def convolution_rate(dtype: jnp.dtype, seconds: float = 0.5) -> float:
    """FLOP per second that one device reaches on a 3x3 convolution in this dtype, measured for `seconds`."""
    side, channels = (32, 64) if jax.default_backend() == "cpu" else (128, 512)
    batch = 8
    x = jnp.ones((batch, side, side, channels), dtype)
    w = jnp.full((3, 3, channels, channels), 0.01, dtype)
    convolve = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    jax.block_until_ready(convolve(x, w))
    began, runs = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        jax.block_until_ready(convolve(x, w))
        runs += 1
    return 2 * 9 * batch * side**2 * channels**2 * runs / (time.perf_counter() - began)


def describe(plans: list[StagePlan], rate: float, devices: int) -> list[str]:
    """One line per stage, and one with the estimate for all of them."""
    lines, total = [], 0.0
    for plan in plans:
        size = f"{plan.steps:>7} updates of {plan.batch_size:>4}, trains {plan.trained / 1e6:8.2f} M parameters"
        expected = ""
        if plan.flop is not None:
            seconds = plan.steps * plan.flop / (rate * TYPICAL_SHARE * devices)
            total += seconds
            expected = f", about {duration(seconds)}"
        lines.append(f"  {plan.name:<12} {size}{expected}: {plan.title}")
    if any(plan.flop is None for plan in plans):
        return [*lines, "  expected: unknown, this device does not count the operations of an update beforehand"]
    lines.append(
        f"  expected: about {duration(total)} of updates, within a factor of two (their FLOP over this device's "
        f"measured {rate / 1e9:.0f} GFLOP/s); compiling and evaluation come on top"
    )
    return lines
