"""The whole model of a training run: what it started from, and on top what each stage trained; or released weights."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mperceiver_jax.checkpoints import released
from mperceiver_jax.checkpoints.initial_params import Which, lazy_init_params, read_experiment, trained_values
from mperceiver_jax.checkpoints.lazy import LazyMapping
from mperceiver_jax.checkpoints.trained_run import TrainedStage, trained_stages, uses_ema
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.phases import base
from mperceiver_jax.errors import ConfigError
from mperceiver_jax.models import parameters
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel

Readers = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class RunParams:
    """The parameters that a training run left, or that were released, each read when it is asked for.

    Attributes:
        experiment: the run's configuration.
        model: built abstractly.
        values: every parameter of the model, by path.
        stages: the stages that have a checkpoint, in the order in which they were trained.
        which: see `run_params`.
        averaged: whether moving averages are among the values.
        placeholders: paths of initial values that nothing replaced and that the model does not use.
        notes: of released weights for their user, one sentence each.
    """

    experiment: Experiment
    model: RestorationModel
    values: LazyMapping
    stages: tuple[TrainedStage, ...]
    which: Which | None
    averaged: bool
    placeholders: frozenset[str]
    notes: tuple[str, ...] = ()

    def on_device(self) -> Params:
        """All values on the default device, in the run's compute dtype."""
        dtype = jnp.dtype(self.experiment.compute_dtype)
        return {path: jnp.asarray(value, dtype) for path, value in self.values.items()}

    @property
    def without_placeholders(self) -> Mapping[str, Any]:
        """The values without the placeholders."""
        return self.values.without(self.placeholders)

    @property
    def refined(self) -> bool:
        """Whether the detail refinement module was trained."""
        return any(base(stage.name) == "drm" for stage in self.stages)

    @property
    def unfinished(self) -> tuple[str, ...]:
        """One sentence for each stage that is unfinished."""
        return tuple(stage.unfinished for stage in self.stages if stage.unfinished)

    @property
    def weight_kind(self) -> str:
        """The kind of parameters that were taken from the stages, for display."""
        return "moving averages" if self.averaged else "last parameters"

    @property
    def origins(self) -> tuple[str, ...]:
        """One sentence for each stage: which of its parameters these are, and of which update."""
        return tuple(_origin(stage, self.which) for stage in self.stages)


def run_params(
    workdir: str | Path, which: Which | None = None, pretrained: str | Path | None = None, in_memory: bool = False
) -> RunParams:
    """Opens the model of a training run: the last checkpoint of every stage over what the run started from.

    Args:
        workdir: of the run, or a folder of released weights, which hold one set of parameters.
        which: `ema`, the moving averages, or `last`, the last parameters. None takes the averages of the stages
            that keep one.
        pretrained: the directory of pretrained weights that the run started from, where it has moved since.
        in_memory: hold the values that the run started from on the default device, in the run's compute dtype,
            instead of reading them at every access. Faster where the whole model is needed at once.

    Raises:
        FileNotFoundError: there is no run in that directory.
        ValueError: a stage that restoring needs has no checkpoint (names all of them), there is no moving average,
            or the configuration or the pretrained weights cannot be used (`ConfigError`).
        CheckpointError: a checkpoint cannot be read, is of another model, or was trained with other frozen
            parameters.
    """
    experiment = read_experiment(workdir)
    if released.is_released(workdir):
        return _released_params(Path(workdir), experiment, which, pretrained)
    if pretrained is not None:
        experiment = replace(experiment, pretrained=str(pretrained))
    stages = trained_stages(workdir, experiment)
    averaged = uses_ema(workdir, stages, which)
    model = experiment.build()
    dtype = jnp.dtype(experiment.compute_dtype)
    initial, published = _start(experiment, model)
    used: Readers = {**initial, **published}
    if in_memory:
        used = {path: partial(_same, jnp.asarray(read(), dtype)) for path, read in used.items()}
    shapes = {path: variable.get_value().shape for path, variable in parameters.declared(model).items()}
    # Later stages were trained next to the averages of earlier ones, whichever are wanted now.
    chosen, replaced = dict(used), set(published)
    for stage in stages:
        values = trained_values(workdir, stage.name, stage.step) or {}
        stage.check(workdir, shapes, values, _frozen(used, values, dtype))
        used |= _readers(values)
        if which == "last" and stage.averaged:
            values = trained_values(workdir, stage.name, stage.step, averaged=False) or {}
        chosen |= _readers(values)
        replaced |= values.keys()
    placeholders = _unused(model, initial.keys() - replaced)
    return RunParams(experiment, model, LazyMapping(chosen), tuple(stages), which, averaged, placeholders)


def _released_params(
    folder: Path, experiment: Experiment, which: Which | None, pretrained: str | Path | None
) -> RunParams:
    """The model of a folder of released weights; exceptions as of `run_params`."""
    if pretrained is not None:
        raise ValueError(f"{folder}: released weights are complete; leave --pretrained out")
    found_stages, notes = released.read_record(folder)
    stages = tuple(TrainedStage(**stage, frozen_fingerprint=None) for stage in found_stages)
    averaged = any(stage.averaged for stage in stages)
    if which is not None and which != ("ema" if averaged else "last"):
        kind = "moving averages" if averaged else "last parameters"
        raise ValueError(f"{folder}: these released weights hold the {kind} alone; leave --weights out")
    # They are complete, and the directory that the training started from is not here.
    experiment = replace(experiment, pretrained="")
    model = experiment.build()
    shapes = {path: variable.get_value().shape for path, variable in parameters.declared(model).items()}
    unused = _unused(model, shapes)
    found = released.readers(folder, shapes, unused)
    initial, _ = lazy_init_params(experiment, model)
    values = LazyMapping({**initial, **found})
    return RunParams(experiment, model, values, stages, which, averaged, unused - found.keys(), notes)


def _unused(model: RestorationModel, paths: Iterable[str]) -> frozenset[str]:
    """Those of the paths that the model does not use."""
    unused = re.compile("|".join(model.config.unused_parameters) or "(?!)")
    return frozenset(path for path in paths if unused.match(path))


def _start(experiment: Experiment, model: RestorationModel) -> tuple[Readers, Readers]:
    """The values that the run started from, see `lazy_init_params`."""
    try:
        return lazy_init_params(experiment, model)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; if the pretrained weights have moved, say where they are now: --pretrained=PATH"
        ) from error


def _readers(values: Mapping[str, np.ndarray]) -> Readers:
    return {path: partial(_same, value) for path, value in values.items()}


def _same(value: Any) -> Any:
    return value


def _frozen(used: Readers, trained: Mapping[str, np.ndarray], dtype: Any) -> LazyMapping:
    """The parameters that a stage did not train, in the dtype in which the run held them."""
    as_held = lambda read: jnp.asarray(read(), dtype)
    return LazyMapping({path: partial(as_held, read) for path, read in used.items() if path not in trained})


def _origin(stage: TrainedStage, which: Which | None) -> str:
    kind = "moving average" if stage.averaged and which != "last" else "last parameters"
    return f"{stage.name}: {kind} as of update {stage.step}" + (
        f" of {stage.planned}; the stage is unfinished" if stage.unfinished else ""
    )
