"""The whole model of a training run: what it started from, and on top what each stage trained."""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.checkpoints.initial_params import Which
from mperceiver_jax.checkpoints.trained_run import trained_stages, uses_ema
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restorers.registry import RegressionModel


class TrainedModel(NamedTuple):
    """Attributes:
    params: every parameter, on the default device, in the run's compute dtype.
    refined: whether the detail refinement module was trained.
    notes: stages that are unfinished, one sentence each.
    weight_kind: which of a stage's parameters these are, for people.
    """

    params: Params
    refined: bool
    notes: tuple[str, ...]
    weight_kind: str


def read_trained_model(
    workdir: str | Path, experiment: Experiment, model: MPerceiver | RegressionModel, which: Which | None = None
) -> TrainedModel:
    """Reads the last checkpoint of every stage, in the order in which they were trained.

    Args:
        model: built abstractly.
        which: see `trained_stages.uses_ema`.

    Raises:
        ValueError: a stage that restoring needs has no checkpoint; names all of them. No moving average.
        ConfigError: the pretrained weights that the run started from cannot be read.
        CheckpointError: a checkpoint cannot be read, is of another model, or was trained on other pretrained weights.
    """
    stages = trained_stages(workdir, experiment)
    averaged = uses_ema(workdir, stages, which)
    dtype = jnp.dtype(experiment.compute_dtype)
    try:
        params = initial_params.init_params(experiment, model, lambda path, value: jnp.asarray(value, dtype))
    except ConfigError as error:
        hint = "if the pretrained weights have moved, say where they are now: --pretrained=PATH"
        raise ConfigError(f"{error}; {hint}") from error
    shapes = {path: value.shape for path, value in params.items()}
    # Later stages were trained beside the averages of earlier ones, whichever are wanted now.
    chosen = dict(params)
    for stage in stages:
        values = initial_params.trained_values(workdir, stage.name, stage.step) or {}
        stage.check(workdir, shapes, values, {path: params[path] for path in params if path not in values})
        held = {path: jnp.asarray(value, dtype) for path, value in values.items()}
        params |= held
        if which == "last" and stage.averaged:
            last = initial_params.trained_values(workdir, stage.name, stage.step, averaged=False) or {}
            held = {path: jnp.asarray(value, dtype) for path, value in last.items()}
        chosen |= held
    notes = tuple(stage.unfinished for stage in stages if stage.unfinished)
    kind = "moving averages" if averaged else "last parameters"
    return TrainedModel(chosen, any(stage.name == "drm" for stage in stages), notes, kind)
