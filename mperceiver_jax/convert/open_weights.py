"""The weights that can be exported: those of a training run, or of a directory of pretrained weights."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.messages import shorten_list
from mperceiver_jax.checkpoints.initial_params import Which
from mperceiver_jax.checkpoints.lazy import LazyMapping
from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory, is_pretrained_directory
from mperceiver_jax.checkpoints.run_params import run_params
from mperceiver_jax.convert.model_config import model_of
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.restoration_model import RestorationModel


class Weights(NamedTuple):
    """The weights of a whole model.

    Attributes:
        model: built abstractly.
        values: its parameters, read when asked for; a directory of pretrained weights may lack those that no
            published model has.
        origin: where they are from, for display.
        notes: what the user should know, one sentence each.
        averaged: whether moving averages are among them.
        placeholders: paths of initial values that nothing replaced and that the model does not use.
    """

    model: RestorationModel
    values: LazyMapping
    origin: str
    notes: tuple[str, ...]
    averaged: bool = False
    placeholders: frozenset[str] = frozenset()

    @property
    def given(self) -> Mapping[str, np.ndarray]:
        """The values without the placeholders."""
        return self.values.without(self.placeholders)


def open_weights(
    source: Path,
    which: Which | None = None,
    pretrained: Path | None = None,
    config: str | None = None,
    overrides: Sequence[str] = (),
) -> Weights:
    """Opens the weights at a path: the workdir of a training run, or a directory of pretrained weights.

    Args:
        which, pretrained: for a workdir, see `run_params`.
        config, overrides: for a directory of pretrained weights, the experiment whose model it holds, see `model_of`.

    Raises:
        FileNotFoundError, ValueError, CheckpointError: there are no weights, or they cannot be read.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such directory")
    if is_pretrained_directory(source):
        if which or pretrained:
            raise ValueError(
                f"{source}: --weights and --pretrained are for training runs; this is a directory of pretrained weights"
            )
        return of_pretrained(source, model_of(config, overrides))
    if (source / "config.json").is_file():
        if config or overrides:
            raise ValueError(f"{source}: --config is for directories of pretrained weights; a training run has its own")
        return of_workdir(source, which, pretrained)
    workdirs = (
        folder
        for folder in source.absolute().parents
        if (folder / "checkpoints").is_dir() and (folder / "config.json").is_file()
    )
    hint = next((f"; name the run's workdir, {folder}" for folder in workdirs), "")
    raise ValueError(f"{source}: neither a training run's workdir nor a directory of pretrained weights{hint}")


def of_pretrained(directory: Path, model: MPerceiver) -> Weights:
    """The weights of a directory of pretrained weights.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or is of another model.
    """
    found = PretrainedDirectory(directory)
    shapes = {path: variable.get_value().shape for path, variable in parameters.declared(model).items()}
    if wrong := [path for path, shape in found.shapes.items() if shapes.get(path) != shape]:
        raise ValueError(
            f"{directory}: its parameters are not those of the model, {shorten_list(wrong)} "
            "are unknown or of another shape; say which model it is with --config=FILE:VARIANT"
        )
    readers = {path: partial(found.read, path) for path in found.shapes}
    return Weights(model, LazyMapping(readers), f"the pretrained weights {directory}", ())


def of_workdir(workdir: Path, which: Which | None = None, pretrained: Path | None = None) -> Weights:
    """The weights that a training run left; arguments and exceptions as of `run_params`."""
    run = run_params(workdir, which, pretrained)
    return Weights(run.model, run.values, f"the training run {workdir}", run.origins, run.averaged, run.placeholders)
