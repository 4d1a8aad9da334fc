"""Where parameters come from: initial values, published priors, and the stages already trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mperceiver_jax import convert
from mperceiver_jax.config import ConfigError, Experiment
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.training.checkpoints import Checkpoints

Place = Callable[[str, np.ndarray], Any]

# What MPerceiver adds to the published models: a file of priors may lack it.
ADDED = r"unet\..*\.spade\.|ir_adapter\.|cm_inv\.|tp$|drm\.|predictor\.fc[12]\."


def checkpoint_folder(workdir: str | Path, stage: str) -> Path:
    return Path(workdir) / "checkpoints" / stage


def starting_values(experiment: Experiment, model: MPerceiver, place: Place) -> Params:
    """Initial values, with the published priors in their place where the experiment names some.

    Args:
        place: puts each float32 array where it belongs, one at a time.

    Raises:
        ConfigError: the priors cannot be used; says why.
    """
    priors: Params = {}
    if experiment.priors:
        try:
            tensors = convert.read_torch(experiment.priors)
            priors = convert.from_torch(model, tensors, layout="release", optional=ADDED)
        except (ValueError, OSError) as error:
            raise ConfigError(f"config.priors: {error}") from error
    return parameters.initial_values(model, experiment.seed, place, priors)


def trained_values(
    workdir: str | Path, stage: str, step: int | None = None, averaged: bool = True
) -> dict[str, np.ndarray] | None:
    """What a stage trained, as of its last checkpoint (or that of `step`): the average where there is one.

    Helpers that are no part of the model (a discriminator) are left out. None without a checkpoint.

    Args:
        averaged: false takes the last parameters themselves.
    """
    folder = checkpoint_folder(workdir, stage)
    if not folder.is_dir():
        return None
    with Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest() if step is None else step
        if step is None:
            return None
        name = "ema" if averaged and checkpoints.metadata(step).get("ema") else "trainable"
        values = checkpoints.restore_params_only(step, name)
    return {path: value for path, value in values.items() if not path.startswith("discriminator.")}


def finished_steps(workdir: str | Path, stage: str) -> int:
    """Updates made by a stage as of its last complete checkpoint."""
    folder = checkpoint_folder(workdir, stage)
    if not folder.is_dir():
        return 0
    with Checkpoints(folder, read_only=True) as checkpoints:
        return checkpoints.latest() or 0
