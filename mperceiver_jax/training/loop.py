"""The training loop: the stages in order, each resumable at any step.

Metrics of an update are read after the next one was dispatched, so that the host never
waits for the device. Whatever happens between two updates happens in one fixed order:
preemption? -> evaluate -> save -> next batch. Asked to stop while it evaluates, a run saves
without the scores, and evaluates before its next update when it is continued.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.pipeline import PipelineConfig, TrainBatches, train_batches
from data_pipelines.stored.examples import stored_batches
from data_pipelines.stored.features import feature_batches
from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.checkpoints.manager import CheckpointError, Checkpoints
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.phases import carry_over, phase_number
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted, Preemption
from mperceiver_jax.errors import reraise
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restorers.registry import RegressionModel
from mperceiver_jax.optim.optimizer import make_optimizer
from mperceiver_jax.progress import Progress
from mperceiver_jax.training.deferred_metrics import DeferredMetrics, StageStats
from mperceiver_jax.training.metric_log import create_writer
from mperceiver_jax.training.stages import drm_latents, feature_cache
from mperceiver_jax.training.stages.registry import STAGES, Stage, base, build_stage
from mperceiver_jax.training.step import TrainState, initial_state, make_step


class Evaluator(Protocol):
    """Measures what a stage has learned (`evaluate.heldout.HeldoutEvaluator`)."""

    def __call__(self, stage: str, params: Params, step: int) -> Mapping[str, float]:
        """Scalars within a stage. `score`, if there, decides which checkpoint is best.

        Raises Preempted where the run was asked to stop meanwhile.
        """

    def evaluate(self, stage: str, params: Params, final: bool = False) -> dict[str, Any]:
        """Everything for the report, after a stage (`final`): at least `scalars`. Raises as the call."""


@dataclass(frozen=True)
class Run:
    """What the stages of one run share.

    Attributes:
        evaluator: called within a stage where the configuration asks for it, and after each.
        say: prints a line, in process 0 only.
    """

    experiment: Experiment
    workdir: Path
    mesh: jax.sharding.Mesh
    model: MPerceiver | RegressionModel
    evaluator: Evaluator
    say: Callable[[str], None]
    preemption: Preemption

    def place(self, path: str, value: np.ndarray) -> jax.Array:
        """A parameter on the mesh, in the dtype frozen parameters are stored in."""
        dtype = jnp.dtype(self.experiment.compute_dtype)
        where = sharding.parameter_sharding(self.mesh, path, value.shape, dtype.itemsize)
        return sharding.place(value, where, dtype)


def stages_of(experiment: Experiment) -> list[str]:
    """The stages that will run, in order.

    Raises:
        ValueError: a stage that does not exist.
    """
    unknown = sorted(name for name in experiment.stages if base(name) not in STAGES)
    if unknown:
        raise ValueError(f"config.stages.{unknown[0]}: no such stage; the stages are {', '.join(STAGES)}")
    planned = [name for name, config in experiment.stages.items() if config.steps]
    return sorted(planned, key=lambda name: (STAGES.index(base(name)), phase_number(name)))


def data_config(experiment: Experiment, name: str) -> PipelineConfig:
    """The data of a stage: its own batch size, crop, tasks and seed, all else as configured."""
    stage, data = experiment.stages[name], experiment.data
    crop = stage.crop or data.crop
    seed = experiment.seed + 1000 * STAGES.index(base(name)) + phase_number(name)
    if stage.tasks:
        weights = {task: data.weights.get(task, 1.0) for task in stage.tasks}
        data = replace(data, weights=weights, pairs={k: v for k, v in data.pairs.items() if k in weights})
    return replace(data, batch_size=stage.batch_size, crop=crop, seed=seed)


def train_stage(run: Run, name: str, params: Params) -> tuple[Params, dict[str, Any]]:
    """Trains one stage from its last checkpoint, or from the beginning.

    Args:
        params: every parameter of the model, as the stages before left them.

    Returns:
        (parameters with those of this stage in place, a summary for the report).

    Raises:
        Preempted, NonFiniteLoss: see there.
        CheckpointError: a checkpoint does not fit, or could not be written.
        OSError, ValueError: a file that cannot be written, data that cannot be read; says after which update.
    """
    experiment, config = run.experiment, run.experiment.stages[name]
    stage = build_stage(name, experiment, run.model)
    trained, frozen = _split(run, stage, params)
    identity = fingerprint({path: value for path, value in frozen.items() if path in params})
    optimizer = make_optimizer(config.optimizer, config.steps)
    begin = lambda values: initial_state(values, optimizer, config.ema_decay > 0)
    abstract = sharding.abstract(run.mesh, jax.eval_shape(begin, trained))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step_function = jax.jit(
        make_step(
            stage.loss,
            optimizer,
            accumulation=config.accumulation,
            ema_decay=config.ema_decay,
            mesh=run.mesh,
            limits_spikes=config.optimizer.spike_limit > 0,
        ),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(run.mesh)),
    )
    root_key = jax.random.key(experiment.seed + STAGES.index(base(name)) + 100 * phase_number(name))
    started = time.monotonic()
    with (
        Checkpoints(
            initial_params.checkpoint_folder(run.workdir, name),
            keep=experiment.checkpoint.keep,
            keep_best=experiment.checkpoint.keep_best,
            best_metric="score" if experiment.evaluation.every else None,
        ) as checkpoints,
        closing(_batches(run, name, params)) as batches,
    ):
        latest = checkpoints.latest()
        if latest is None:
            state = jax.jit(begin, out_shardings=shardings)(trained)
            state, history = carry_over(run.workdir, name, state), StageStats()
        else:
            restored = checkpoints.restore(latest, abstract._asdict(), batches)
            _refuse_other_frozen(identity, restored.metadata, checkpoints.directory / str(latest))
            state, history = TrainState(**restored.state), StageStats(**restored.metadata["history"])
            run.say(f"{name}: continuing at update {latest} of {config.steps}")
            if restored.note:
                run.say(f"{name}: {restored.note}")
        del trained

        def save(metrics: Mapping[str, float] | None = None) -> None:
            step = int(state.step)
            metadata = {
                "stage": name,
                "frozen_fingerprint": identity,
                "ema": config.ema_decay > 0,
                "losses": asdict(experiment.losses),
                **experiment.form,
                "history": history.updated(time.monotonic() - started),
            }
            # Only where a stop came into the evaluation is there one of this step, without its scores.
            checkpoints.save(step, state._asdict(), batches, metadata, metrics, force=metrics is not None)

        first = latest or 0
        with (
            reraise(lambda error: f"after update {int(state.step)} of {config.steps}: {error}"),
            closing(Progress(name, config.steps, first, config.batch_size, experiment.log_every)) as progress,
            create_writer(run.workdir, name, first) as writer,
        ):
            reader = DeferredMetrics(run.experiment, name, run.say, progress, writer, history, checkpoints)

            def keep() -> None:
                reader.flush()
                save()
                checkpoints.wait()

            def stopped(step: int) -> Preempted:
                keep()
                return Preempted(
                    f"{name}: stopped at update {step} of {config.steps}, saved in {checkpoints.directory}"
                )

            def next_batch() -> Any:
                try:
                    return next(batches)
                except Exception:
                    # Hours of updates are not lost over one image that cannot be read. Not so in several
                    # processes: perhaps only this one has met it, and saving takes all of them.
                    if jax.process_count() == 1:
                        keep()
                    raise

            for step in range(first, config.steps):
                if run.preemption.requested():
                    raise stopped(step)
                due = experiment.evaluation.every and step > 0 and step % experiment.evaluation.every == 0
                # Where this run began, it may have been done before; the checkpoint then has the scores.
                if due and (step > first or checkpoints.metrics(step) is None):
                    reader.flush()
                    try:
                        scores = run.evaluator(name, _with(params, state), step)
                    except Preempted:
                        raise stopped(step) from None
                    writer.write_scalars(step, {f"heldout_{key}": value for key, value in scores.items()})
                    save(scores)
                elif step > first and step % experiment.checkpoint.every == 0:
                    reader.flush()
                    save()
                batch = sharding.to_global(run.mesh, next_batch())
                state, metrics = step_function(state, frozen, batch, root_key)
                reader.push(step + 1, metrics)
            reader.flush()
        save()
        checkpoints.wait()
        params = _with(params, state)
    summary = {
        "name": name,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "trained_parameters": sum(v.size for p, v in state.trainable.items() if p in params),
        **history.updated(time.monotonic() - started),
    }
    return {path: _stored(run, path, value) for path, value in params.items()}, summary


def reload_stage(run: Run, name: str, params: Params) -> Params:
    """The parameters with those of a stage that was finished before in their place.

    Args:
        params: as the stages before left them.

    Raises:
        CheckpointError: the stage's checkpoint is gone, or was trained with other frozen parameters.
    """
    stage = build_stage(name, run.experiment, run.model)
    folder = initial_params.checkpoint_folder(run.workdir, name)
    values = initial_params.trained_values(run.workdir, name)
    if values is None:
        raise CheckpointError(
            f"{name} is recorded as done, but {folder} holds no complete checkpoint. Bring it back, or delete "
            f"{run.workdir / 'stages'} and {run.workdir / 'checkpoints'} to train anew"
        )
    with Checkpoints(folder, read_only=True) as checkpoints:
        latest = checkpoints.steps()[-1]
        identity = fingerprint({path: value for path, value in params.items() if not stage.is_trained(path)})
        _refuse_other_frozen(identity, checkpoints.metadata(latest), folder / str(latest))
    return params | {path: run.place(path, value) for path, value in values.items()}


def _split(run: Run, stage: Stage, params: Params) -> tuple[Params, Params]:
    """(trained, float32; frozen) among the model's parameters and the stage's helpers."""
    trained, frozen = {}, {}
    for path, value in (params | stage.extras()).items():
        if stage.is_trained(path):
            where = sharding.parameter_sharding(run.mesh, path, value.shape)
            trained[path] = sharding.place(value, where, jnp.float32)
        else:
            frozen[path] = value if isinstance(value, jax.Array) else run.place(path, value)
    if not trained:
        raise ValueError(f"stage {stage.name}: no parameter matches {stage.trainable!r}")
    return trained, frozen


def _with(params: Params, state: TrainState) -> Params:
    """The model's parameters, those being trained as of `state` (their average where there is one)."""
    current = state.ema or state.trainable
    return {path: current.get(path, value) for path, value in params.items()}


def _stored(run: Run, path: str, value: jax.Array) -> jax.Array:
    """In the dtype of frozen parameters, sharded for it. Copied: the state's buffers belong to the step."""
    dtype = jnp.dtype(run.experiment.compute_dtype)
    if value.dtype == dtype:
        return value
    return sharding.place(value, sharding.parameter_sharding(run.mesh, path, value.shape, dtype.itemsize), dtype)


def _batches(run: Run, name: str, params: Params) -> TrainBatches:
    config = data_config(run.experiment, name)
    index, count = sharding.data_share(run.mesh)
    if base(name) == "dual_branch" and run.experiment.cache:
        return feature_batches(str(feature_cache.fill_cache(run, params, config)), config, index, count)
    if base(name) == "drm" and run.experiment.losses.drm_latents == "sampled":
        folder = drm_latents.sample_latents(run, params, config)
        return stored_batches(str(folder), run.experiment.losses.drm_examples, config, index, count)
    return train_batches(config, index, count, run.experiment.tasks)


def _refuse_other_frozen(identity: str, metadata: Mapping[str, Any], where: Any) -> None:
    if metadata["frozen_fingerprint"] != identity:
        raise CheckpointError(
            f"{where} was trained with other frozen parameters than those given now (fingerprint "
            f"{metadata['frozen_fingerprint'][:12]}, now {identity[:12]}). Give the pretrained weights it was trained "
            "with (config.pretrained), or another --workdir"
        )
