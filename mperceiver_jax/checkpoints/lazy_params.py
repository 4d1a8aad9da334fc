"""The weights that can be exported: a whole model on disk, each parameter read when it is asked for."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.checkpoints.initial_params import Which
from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory, is_pretrained_directory
from mperceiver_jax.checkpoints.trained_run import TrainedStage, trained_stages, uses_ema
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.convert.model_config import model_of
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.mperceiver.parts import unused_by_model
from mperceiver_jax.models.restorers.registry import RegressionModel

Reader = Callable[[], np.ndarray]


class LazyMapping(Mapping[str, Any]):
    """{path: array}, where every array is read anew each time and kept by nobody here."""

    def __init__(self, readers: Mapping[str, Callable[[], Any]]):
        self._readers = readers

    def __getitem__(self, path: str) -> Any:
        return self._readers[path]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


class Weights(NamedTuple):
    """Attributes:
    model: built abstractly.
    values: its parameters; a directory of pretrained weights may lack those that no published model has.
    origin: where they are from, for people.
    notes: what a reader should know, one sentence each.
    averaged: whether moving averages are among them.
    placeholders: paths of initial values that nothing gave and no model runs: there so that all are.
    """

    model: MPerceiver | RegressionModel
    values: Mapping[str, np.ndarray]
    origin: str
    notes: tuple[str, ...]
    averaged: bool = False
    placeholders: frozenset[str] = frozenset()

    @property
    def given(self) -> Mapping[str, np.ndarray]:
        """The values without the placeholders."""
        paths = (path for path in self.values if path not in self.placeholders)
        return LazyMapping({path: partial(self.values.__getitem__, path) for path in paths})


def open_weights(
    source: Path,
    which: Which | None = None,
    pretrained: Path | None = None,
    config: str | None = None,
    overrides: Sequence[str] = (),
) -> Weights:
    """The weights at a path: those of a training run's workdir, or of a directory of pretrained weights.

    Args:
        which, pretrained: for a workdir, see `of_workdir`.
        config, overrides: for a directory of pretrained weights, the experiment whose model it holds, see `model_of`.

    Raises:
        FileNotFoundError, ValueError, CheckpointError: there is nothing of the kind, or it cannot be read.
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
    hint = next((f"; name the run's workdir, {folder}" for folder in source.absolute().parents
                 if (folder / "checkpoints").is_dir() and (folder / "config.json").is_file()), "")  # fmt: skip
    raise ValueError(f"{source}: neither a training run's workdir nor a directory of pretrained weights{hint}")


def of_pretrained(directory: Path, model: MPerceiver) -> Weights:
    """What a directory of pretrained weights holds.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or is of another model.
    """
    found = PretrainedDirectory(directory)
    shapes = {path: variable.get_value().shape for path, variable in parameters.declared(model).items()}
    if wrong := [path for path, shape in found.shapes.items() if shapes.get(path) != shape]:
        raise ValueError(
            f"{directory}: its parameters are not those of the model, {', '.join(wrong[:5])} ({len(wrong)} in all) "
            "are unknown or of another shape; say which model it is with --config=FILE:VARIANT"
        )
    readers = {path: partial(found.read, path) for path in found.shapes}
    return Weights(model, LazyMapping(readers), f"the pretrained weights {directory}", ())


def of_workdir(workdir: Path, which: Which | None = None, pretrained: Path | None = None) -> Weights:
    """The model that a training run left: what it started from, and on top what every stage trained.

    Args:
        which: `ema`, the moving averages, or `trained`, the last parameters themselves. None takes what
            restoring uses: the averages of the stages that keep one.
        pretrained: the published weights that the run started from, where they have moved since.

    Raises:
        FileNotFoundError: there is no run in that directory.
        ValueError: no checkpoint of a stage, no moving average, a configuration or pretrained that cannot be used.
        CheckpointError: a checkpoint that cannot be read or does not fit.
    """
    experiment = initial_params.read_experiment(workdir)
    if pretrained is not None:
        experiment = replace(experiment, pretrained=str(pretrained))
    stages = trained_stages(workdir, experiment)
    averaged = uses_ema(workdir, stages, which)
    model = experiment.build()
    initial, published = _start(experiment, model)
    used, given = initial | published, set(published)
    shapes = {path: variable.get_value().shape for path, variable in parameters.declared(model).items()}
    chosen = dict(used)
    for stage in stages:
        values = initial_params.trained_values(workdir, stage.name, stage.step) or {}
        stage.check(workdir, shapes, values, _frozen(used, values, experiment.compute_dtype))
        used |= _held(values)
        if which == "last" and stage.averaged:
            values = initial_params.trained_values(workdir, stage.name, stage.step, averaged=False) or {}
        chosen |= _held(values)
        given |= values.keys()
    idle = re.compile("|".join(unused_by_model(model)) if isinstance(model, MPerceiver) else "(?!)")
    placeholders = frozenset(path for path in initial.keys() - given if idle.match(path))
    notes = tuple(_told(stage, which) for stage in stages)
    return Weights(model, LazyMapping(chosen), f"the training run {workdir}", notes, averaged, placeholders)


def _start(
    experiment: Experiment, model: MPerceiver | RegressionModel
) -> tuple[initial_params.Readers, initial_params.Readers]:
    """What the run started from, see `lazy_init_params`."""
    try:
        return initial_params.lazy_init_params(experiment, model)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; if the pretrained weights have moved, say where they are now: --pretrained=PATH"
        ) from error


def _held(values: Mapping[str, np.ndarray]) -> dict[str, Reader]:
    return {path: partial(np.asarray, value) for path, value in values.items()}


def _frozen(used: Mapping[str, Reader], trained: Mapping[str, np.ndarray], dtype: str) -> LazyMapping:
    """What was beside a stage's own parameters, in the dtype in which the run held it."""
    as_held = lambda read: jnp.asarray(read(), jnp.dtype(dtype))
    return LazyMapping({path: partial(as_held, read) for path, read in used.items() if path not in trained})


def _told(stage: TrainedStage, which: Which | None) -> str:
    what = "moving average" if stage.averaged and which != "last" else "last parameters"
    return f"{stage.name}: {what} as of update {stage.step}" + (
        f" of {stage.planned}; the stage is unfinished" if stage.unfinished else ""
    )
