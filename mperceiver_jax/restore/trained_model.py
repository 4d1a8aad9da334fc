"""The whole model of a training run: what it started from, and on top what each stage trained."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mperceiver_jax.config import ConfigError, Experiment
from mperceiver_jax.models.mperceiver import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.training import weights
from mperceiver_jax.training.checkpoints import CheckpointError, Checkpoints
from mperceiver_jax.training.fingerprint import fingerprint
from mperceiver_jax.training.stages import ORDER


class TrainedModel(NamedTuple):
    """Attributes:
    params: every parameter, on the default device, in the run's compute dtype.
    refined: whether the detail refinement module was trained.
    notes: stages that are unfinished, one sentence each.
    """

    params: Params
    refined: bool
    notes: tuple[str, ...]


def read_trained_model(workdir: str | Path, experiment: Experiment, model: MPerceiver) -> TrainedModel:
    """Reads the last checkpoint of every stage, in the order in which they were trained.

    Args:
        model: built abstractly.

    Raises:
        ValueError: a stage that restoring needs has no checkpoint; names all of them.
        ConfigError: the priors that the run started from cannot be read.
        CheckpointError: a checkpoint cannot be read, is of another model, or was trained on other priors.
    """
    latest = {stage: _latest(workdir, stage) for stage in ORDER}
    planned = {stage: config.steps for stage, config in experiment.stages.items() if config.steps}
    needed = [stage for stage in ORDER if stage == "dual_branch" or (stage in planned and stage != "drm")]
    if missing := [stage for stage in needed if latest[stage] is None]:
        there = [stage for stage in ORDER if latest[stage] is not None]
        raise ValueError(
            f"{workdir}: nothing to restore with yet; no checkpoint of {', '.join(missing)} "
            f"(there are: {', '.join(there) or 'none'}). Let the training finish: the same command goes on "
            "where it stopped"
        )

    dtype = jnp.dtype(experiment.compute_dtype)
    try:
        params = weights.starting_values(experiment, model, lambda path, value: jnp.asarray(value, dtype))
    except ConfigError as error:
        hint = "if the priors have moved, say where they are now: --priors=PATH"
        raise ConfigError(f"{error}; {hint}") from error
    notes = []
    for stage in ORDER:
        found = latest[stage]
        if found is None:
            continue
        step, priors = found
        values = weights.trained_values(workdir, stage, step) or {}
        where = f"checkpoint {step} of {stage} in {workdir}"
        _check(where, params, values, priors)
        params |= {path: jnp.asarray(value, dtype) for path, value in values.items()}
        if step < planned.get(stage, 0):
            notes.append(f"the stage {stage} is unfinished, at update {step} of {planned[stage]}")
    return TrainedModel(params, latest["drm"] is not None, tuple(notes))


def _latest(workdir: str | Path, stage: str) -> tuple[int, str | None] | None:
    """(updates, fingerprint of the parameters beside which it was trained) of the last checkpoint."""
    folder = weights.checkpoint_folder(workdir, stage)
    if not folder.is_dir():
        return None
    with Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest()
        return None if step is None else (step, checkpoints.metadata(step).get("priors"))


def _check(where: str, params: Params, values: Params, priors: str | None) -> None:
    """That what a stage trained belongs to this model and to the frozen parameters at hand."""
    shapes = {path: value.shape for path, value in params.items()}
    wrong = [path for path, value in sorted(values.items()) if shapes.get(path) != value.shape]
    if wrong:
        raise CheckpointError(
            f"{where} does not fit this model: {', '.join(wrong[:5])} ({len(wrong)} in all) are unknown or "
            "of another shape; was it written by another version?"
        )
    if priors is None:
        return
    frozen: dict[str, jax.Array] = {path: value for path, value in params.items() if path not in values}
    if (identity := fingerprint(frozen)) != priors:
        raise CheckpointError(
            f"{where} was trained beside other frozen parameters than those at hand (fingerprint "
            f"{priors[:12]}, here {identity[:12]}): give the priors it was trained with"
        )
