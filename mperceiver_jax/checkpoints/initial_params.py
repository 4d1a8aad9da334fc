"""Parameters of a run: initial values, pretrained weights, and those of the stages already trained."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath

from data_pipelines.messages import shorten_list
from mperceiver_jax.checkpoints import directory
from mperceiver_jax.checkpoints.manager import Checkpoints
from mperceiver_jax.checkpoints.model_parts import missing_parts
from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory
from mperceiver_jax.checkpoints.workdir import read_config
from mperceiver_jax.config.experiment import Experiment, from_mapping
from mperceiver_jax.distributed.runtime import on_every_process
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.models import parameters
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel

Place = Callable[[str, np.ndarray], Any]
Readers = dict[str, Callable[[], np.ndarray]]
Which = Literal["last", "ema"]
"""Which parameters of a trained stage: the last ones, or their moving average."""
TASK_MAPS = "task_maps.npy"
"""The file with the maps of the tasks in the workdir of an imported run; see `models.restorers.mioir.prompting`."""


def read_experiment(workdir: str | Path) -> Experiment:
    """The configuration of the run in `workdir`, with the task maps of that folder if it holds some.

    Raises:
        FileNotFoundError, ValueError: there is no configuration, or it cannot be used.
    """
    mapping = read_config(workdir)
    network, own = mapping.get("model", {}).get("network", {}), Path(workdir) / TASK_MAPS
    # Those next to the configuration, so that the run can be moved.
    if network.get("task_maps") and own.is_file():
        network["task_maps"] = str(own)
    return from_mapping(Experiment, mapping, f"{Path(workdir) / 'config.json'}")


def checkpoint_folder(workdir: str | Path, stage: str) -> Path:
    return Path(workdir) / "checkpoints" / stage


def init_params(experiment: Experiment, model: RestorationModel, place: Place) -> Params:
    """Initial values of all parameters, replaced by the pretrained weights where the experiment names some.

    In a distributed run every process must call this.

    Args:
        experiment: its `pretrained` is empty or a directory of pretrained weights.
        place: puts each array on its devices, one at a time.

    Raises:
        ConfigError: the pretrained weights cannot be used; says why.
    """
    given: Params = {}
    if (directory := _pretrained(experiment, model)) is not None:
        try:
            given = {path: place(path, value) for path, value in directory.values()}
        except ValueError as error:
            raise ConfigError(f"config.pretrained: {error}") from error
    return parameters.initial_values(model, experiment.seed, place, given)


def lazy_init_params(experiment: Experiment, model: RestorationModel) -> tuple[Readers, Readers]:
    """Functions that make the values of `init_params` one by one, for one process.

    Returns:
        (for every path the function that makes its initial value; for every path that the pretrained weights
        hold the function that reads it).
    """
    initial: Readers = {
        path: partial(parameters.initial_value, path, variable, experiment.seed)
        for path, variable in parameters.declared(model).items()
    }
    directory = _pretrained(experiment, model)
    return initial, {} if directory is None else {path: partial(directory.read, path) for path in directory.shapes}


def _pretrained(experiment: Experiment, model: RestorationModel) -> PretrainedDirectory | None:
    if not experiment.pretrained:
        return None
    try:
        return _fitting(on_every_process(lambda: PretrainedDirectory(experiment.pretrained)), model)
    except (ValueError, OSError) as error:
        raise ConfigError(f"config.pretrained: {error}") from error


def _fitting(directory: PretrainedDirectory, model: RestorationModel) -> PretrainedDirectory:
    """The directory, if it holds this model with everything that training needs."""
    declared = {path: tuple(v.get_value().shape) for path, v in parameters.declared(model).items()}
    wrong = [
        f"{path} {shape} (expected: {declared.get(path, 'nothing of that name')})"
        for path, shape in directory.shapes.items()
        if declared.get(path) != shape
    ]
    if wrong:
        raise ValueError(f"{directory.path}: weights of another model: {shorten_list(sorted(wrong), 5)}")
    if problems := missing_parts(model, directory.shapes):
        raise ValueError(f"{directory.path}: " + "; ".join(problems))
    return directory


def trained_values(
    workdir: str | Path, stage: str, step: int | None = None, averaged: bool = True
) -> dict[str, np.ndarray] | None:
    """The parameters that a stage trained, from its last checkpoint; None without a checkpoint.

    Parameters that are not part of the model (a discriminator) are left out.

    Args:
        step: of another checkpoint than the last.
        averaged: take the moving average where there is one, otherwise the last parameters.
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


def last_metadata(workdir: str | Path, stage: str) -> dict[str, Any]:
    """The metadata of a stage's last complete checkpoint; empty without one."""
    folder = epath.Path(checkpoint_folder(workdir, stage))
    steps = directory.complete_steps(folder)
    record = directory.read_record(folder, steps[-1]) if steps else None
    return record["metadata"] if record else {}
