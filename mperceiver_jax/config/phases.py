"""Sequential learning: a stage trained in phases, each on its own tasks, with a fresh optimizer and schedule.

Source: MiOIR, whose phases add one task at a time; here for any stage of any model. A phase goes on from
the last parameters *and* the moving average of the one before. To the rest of the program phases are stages
named `regression.1`, `regression.2` and so on, each with its own checkpoints.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.checkpoints.manager import CheckpointError
from mperceiver_jax.config.experiment import Experiment, StageConfig
from mperceiver_jax.distributed import sharding
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.training.step import TrainState


def expanded(experiment: Experiment) -> Experiment:
    """The experiment with every curriculum's phases in the place of its stage; changes nothing the second time."""
    stages: dict[str, StageConfig] = {}
    for name, stage in experiment.stages.items():
        if not stage.curriculum:
            stages[name] = stage
            continue
        for number, phase in enumerate(stage.curriculum, 1):
            optimizer = replace(stage.optimizer, period=phase.period or stage.optimizer.period)
            steps = phase.steps if stage.steps else 0
            stages[f"{name}.{number}"] = replace(
                stage, steps=steps, tasks=phase.tasks, curriculum=(), optimizer=optimizer
            )
    return replace(experiment, stages=stages)


def phase_number(name: str) -> int:
    """2 for `regression.2`; 0 for a stage without phases."""
    _, dot, number = name.partition(".")
    return int(number) if dot else 0


def phase_before(name: str) -> str | None:
    """The phase that another one goes on from; None for the first, and for stages without phases."""
    number = phase_number(name)
    return f"{name.partition('.')[0]}.{number - 1}" if number > 1 else None


def carry_over(workdir: Path, name: str, state: TrainState) -> TrainState:
    """A fresh state; of a later phase with the last parameters that the phase before left, and its moving average
    beside them, both in float32.

    Raises:
        CheckpointError: the phase before left no checkpoint, or it lacks parameters.
    """
    before = phase_before(name)
    if before is None:
        return state

    def left(like: Params, averaged: bool) -> Params:
        values = initial_params.trained_values(workdir, before, averaged=averaged) or {}
        if missing := sorted(set(like) - set(values)):
            raise CheckpointError(f"{name} goes on from {before}, whose checkpoint lacks {', '.join(missing[:5])}")
        return {path: sharding.place(values[path], leaf.sharding, leaf.dtype) for path, leaf in like.items()}

    return state._replace(trainable=left(state.trainable, False), ema=left(state.ema, True) if state.ema else {})


def cumulative(order: Sequence[str], steps: int, last_steps: int) -> list[dict[str, Any]]:
    """Phases of which each adds the next task of `order`, as fields of a configuration.

    Args:
        steps: updates of every phase but the last.
        last_steps: of the last, which has all tasks.
    """
    return [
        {"tasks": tuple(order[:number]), "steps": last_steps if number == len(order) else steps}
        for number in range(1, len(order) + 1)
    ]
