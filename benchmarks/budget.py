"""Training a recipe for about so many seconds: all of it, shortened or lengthened by one factor."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.systems import System
from benchmarks.timing import Candidate, measure
from mperceiver_jax.config.experiment import Experiment, StageConfig
from mperceiver_jax.evaluate.heldout import HeldoutEvaluator
from mperceiver_jax.models.perceptual import lpips
from mperceiver_jax.training.run import run_experiment


def trained(experiment: Experiment, seconds: float) -> dict[str, Any]:
    """Trains for about `seconds` from nothing: what was learned, on the held-out images of the experiment.

    Only the updates are counted in, and the sampling of latents; reading data at the same time, compiling
    and evaluation come on top.

    Returns:
        columns of a row: updates of all stages, seconds that they took with compiling, PSNR in dB and SSIM after
        the last stage (means over the tasks' means), number of tasks.

    Raises:
        ValueError, NonFiniteLoss: see `run_experiment`. ValueError also for a run that was asked to stop.
    """
    if experiment.losses.lpips_weight and not lpips.available():
        # As the training itself does, and says.
        experiment = replace(experiment, losses=replace(experiment.losses, lpips_weight=0.0))
    short = scaled(experiment, seconds / seconds_of(experiment))
    with tempfile.TemporaryDirectory() as folder:
        records = run_experiment(short, Path(folder) / "run", HeldoutEvaluator)
    if not records:
        raise ValueError("stopped")
    last = records[-1]
    return {
        "updates": sum(stage.steps for stage in short.stages.values()),
        "s, with compiling": sum(record["summary"]["seconds"] for record in records),
        "PSNR, degraded": last["scalars"]["degraded_psnr"],
        "PSNR, restored": last["scalars"]["restored_psnr"],
        "SSIM, degraded": last["scalars"]["degraded_ssim"],
        "SSIM, restored": last["scalars"]["restored_ssim"],
        "tasks": len(last["tasks"]),
    }


def scaled(experiment: Experiment, factor: float) -> Experiment:
    """The recipe with everything that is counted in updates times `factor`.

    Schedules keep their form, and moving averages reach back over the same share of the training. At least
    one update stays of what had one.
    """
    return replace(
        experiment,
        stages={name: _scaled(stage, factor) for name, stage in experiment.stages.items()},
        evaluation=replace(experiment.evaluation, every=0),
    )


def seconds_of(experiment: Experiment) -> float:
    """How long the updates of the whole recipe would take here, from a few of each stage."""
    system, total = System(experiment), 0.0
    for name, stage in experiment.stages.items():
        if not stage.steps:
            continue
        total += stage.steps * _median(system.training_step(name))
    return total


def _median(candidate: Candidate) -> float:
    return measure({"": candidate}, repeats=3, warm_up=1)[""]["seconds"]


def _scaled(stage: StageConfig, factor: float) -> StageConfig:
    optimizer, phases = stage.optimizer, stage.curriculum
    phases = tuple(
        replace(phase, steps=_times(phase.steps, factor), period=_times(phase.period, factor)) for phase in phases
    )
    steps = sum(phase.steps for phase in phases) if phases and stage.steps else _times(stage.steps, factor)
    optimizer = replace(
        optimizer,
        warmup_steps=_times(optimizer.warmup_steps, factor),
        period=_times(optimizer.period, factor),
        horizon=_times(optimizer.horizon, factor),
    )
    return replace(
        stage,
        steps=steps,
        curriculum=phases,
        optimizer=optimizer,
        ema_decay=stage.ema_decay ** (1 / factor),
    )


def _times(count: int, factor: float) -> int:
    return max(int(count * factor), 1) if count else 0
