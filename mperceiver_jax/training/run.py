"""A whole run: stage after stage, each trained, evaluated and recorded, resumable anywhere."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
from etils import epath

from data_pipelines.messages import print_line
from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.checkpoints.directory import complete_steps
from mperceiver_jax.checkpoints.lease import Lease
from mperceiver_jax.checkpoints.pretrained import PretrainedDirectory
from mperceiver_jax.checkpoints.workdir import bind_workdir, check_workdir
from mperceiver_jax.config.experiment import Experiment, from_mapping, to_mapping
from mperceiver_jax.config.phases import expand_curricula, stages_of
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted, Preemption, on_first_process
from mperceiver_jax.errors import ConfigError, reraise
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.training import adaptation
from mperceiver_jax.training.announcement import announce, write_overview
from mperceiver_jax.training.checks import check_stages, without_missing_lpips
from mperceiver_jax.training.extension import grown_fields
from mperceiver_jax.training.loop import StageTrainer, reload_stage
from mperceiver_jax.training.records import read_record, scalars_text, write_record
from mperceiver_jax.training.run_context import Evaluator, RunContext

# Fields that a resumed run may change without becoming another run.
MAY_CHANGE = (
    "variant_reason",
    "pretrained",  # The path; fingerprints show whether the weights are the same.
    "mesh",
    "log_every",
    "checkpoint",
    "evaluation",
    "restore",
    "on_nonfinite",
    "max_skipped",
    "data.threads",
    "data.prefetch",
    "data.workers",
    "data.cache_megabytes",
)

MakeEvaluator = Callable[[Experiment, RestorationModel, jax.sharding.Mesh, Path, Preemption], Evaluator]
FindPretrained = Callable[[str, MPerceiver], PretrainedDirectory]


def run_experiment(
    experiment: Experiment,
    workdir: str | Path,
    make_evaluator: MakeEvaluator,
    find_pretrained: FindPretrained = lambda path, _: PretrainedDirectory(path),
    extend: bool = False,
) -> list[dict[str, Any]] | None:
    """Runs or continues an experiment.

    Args:
        make_evaluator: called once with the experiment, the abstract model, the mesh, the workdir and the object
            that notices requests to stop.
        find_pretrained: returns the directory of pretrained weights that `config.pretrained` means for a model;
            it may convert published weights first. Called after all checks. By default the field must name such
            a directory.
        extend: stages of the run in the workdir may get more updates although their learning rate depends on the
            number, see `training.extension`.

    Returns:
        the record of every stage (`summary` and the results of the evaluator), or None if the run was asked to
        stop; it can then be continued.

    Raises:
        ConfigError, ValueError: a configuration that cannot be used, or the workdir of another run.
        NonFiniteLoss, CheckpointError: see there.
        OSError: a file that cannot be written, for example because the disk is full; names the file, the stage,
            the update and the last complete checkpoint.
    """
    workdir, given = Path(workdir), experiment
    # The workdir is created only after every check has passed: a mistake leaves nothing behind.
    experiment.check_pretrained()
    may_change = (*MAY_CHANGE, *grown_fields(workdir, given, extend))
    check_workdir(workdir, to_mapping(given), may_change, _completed)
    experiment, warning = without_missing_lpips(expand_curricula(experiment), workdir)
    names = stages_of(experiment)
    with reraise(lambda error: f"config.{error}"):
        mesh = sharding.make_mesh(experiment.mesh)
    layout = sharding.ParameterLayout(mesh, experiment.mesh.rules)
    model, preemption = experiment.build(), Preemption()
    check_stages(experiment, model, names, sharding.data_share(mesh), mesh.shape["data"] * mesh.shape["fsdp"])
    evaluator = make_evaluator(experiment, model, mesh, workdir, preemption)
    on_first_process(lambda: announce(experiment, model, names, workdir, warning))
    context = RunContext(experiment, workdir, layout, model, evaluator, _log, preemption)
    with preemption, Lease(workdir):
        params = _start(context, given, may_change, find_pretrained)
        try:
            records = _run_stages(context, names, params)
            _check_complete(workdir, names)
            return records
        except Preempted as stop:
            _log(str(stop))
            return None


def _start(
    context: RunContext, given: Experiment, may_change: Sequence[str], find_pretrained: FindPretrained
) -> Params:
    """Makes the parameters that the run starts from, and binds the workdir to the configuration `given`."""
    experiment, workdir = context.experiment, context.workdir
    if experiment.source:
        # An adaptation starts from parameters in its own workdir, which is bound before they are written.
        bind_workdir(workdir, to_mapping(given), may_change, _completed)
        on_first_process(lambda: adaptation.write_start(experiment))
    if experiment.pretrained:
        directory = _pretrained_path(experiment, find_pretrained)
        # What reads the run later needs no conversion.
        experiment, given = (replace(one, pretrained=directory) for one in (experiment, given))
    params = initial_params.init_params(experiment, context.model, context.place)
    bind_workdir(workdir, to_mapping(given), may_change, _completed)
    on_first_process(lambda: write_overview(context.model, workdir))
    return params


def _pretrained_path(experiment: Experiment, find_pretrained: FindPretrained) -> str:
    try:
        return str(find_pretrained(experiment.pretrained, experiment.mperceiver.build()).path)
    except (ValueError, OSError) as error:
        raise ConfigError(f"config.pretrained: {error}") from error


def _run_stages(context: RunContext, names: list[str], params: Params) -> list[dict[str, Any]]:
    """Trains, evaluates and records the stages in order; those that are done are only read."""
    records = [_zero_shot(context, params)] if context.experiment.source else []
    for name in names:
        with reraise(functools.partial(_with_stage, context.workdir, name)):
            record = read_record(context.workdir, name)
            if record is not None and record["summary"]["steps"] >= context.experiment.stages[name].steps:
                _log(f"{name}: done before")
                params = reload_stage(context, name, params)
            else:
                params, summary = StageTrainer(context, name, params).run()
                found = context.evaluator.evaluate(name, params, final=True)
                # The losses as they were computed here, which may be less than was configured.
                record = {**found, "summary": summary, "losses": asdict(context.experiment.losses)}
                _record(context, name, record, name)
        records.append(record)
    return records


def _check_complete(workdir: Path, names: list[str]) -> None:
    """Raises ConfigError where files that the finished run wrote, and that its users need, are gone."""
    needed = [workdir / "config.json", *(initial_params.checkpoint_folder(workdir, name) for name in names)]
    if gone := [str(path) for path in needed if not path.exists()]:
        raise ConfigError(f"workdir {workdir} was changed during the run: {', '.join(gone)} is missing")


def _zero_shot(context: RunContext, params: Params) -> dict[str, Any]:
    """The record of the model before it is adapted, made once."""
    record = read_record(context.workdir, adaptation.RECORD)
    if record is None:
        record = adaptation.zero_shot(context, params)
        _record(context, adaptation.RECORD, record, "zero-shot")
    return record


def _record(context: RunContext, name: str, record: Mapping[str, Any], title: str) -> None:
    _log(f"{title}: {scalars_text(record)}")
    on_first_process(lambda: write_record(context.workdir, name, record))


def _completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the defaults of fields that were added since."""
    return to_mapping(from_mapping(Experiment, stored))


def _with_stage(workdir: Path, name: str, error: Exception) -> str:
    """The message of an error with the stage, and the checkpoint from which the run can continue."""
    folder = initial_params.checkpoint_folder(workdir, name)
    steps = complete_steps(epath.Path(folder))
    kept = f"the last complete checkpoint is {folder / str(steps[-1])}" if steps else "there is no checkpoint yet"
    return f"{name}: {error}; {kept}"


def _log(text: str) -> None:
    if jax.process_index() == 0:
        print_line(text, error=True)
