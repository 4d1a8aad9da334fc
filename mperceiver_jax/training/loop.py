"""The training loop of one stage, resumable at any step.

Whatever happens between two updates happens in one fixed order: preemption? -> evaluate -> save -> next batch.
A run that is asked to stop during an evaluation saves without the scores, and evaluates before its next update
when it is continued. Metrics of an update are read after the next one was dispatched, so that the host never
waits for the device.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from data_pipelines.messages import shorten_list
from data_pipelines.pipeline import TrainBatches
from mperceiver_jax.checkpoints import initial_params
from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.checkpoints.manager import CheckpointError, Checkpoints, DamagedCheckpoint
from mperceiver_jax.config.phases import phase_before
from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.runtime import Preempted
from mperceiver_jax.errors import reraise
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.optim.optimizer import make_optimizer
from mperceiver_jax.progress import Progress
from mperceiver_jax.training.deferred_metrics import DeferredMetrics, StageStats
from mperceiver_jax.training.metric_log import MultiWriter, create_writer
from mperceiver_jax.training.run_context import RunContext
from mperceiver_jax.training.stages.base import Stage
from mperceiver_jax.training.stages.registry import build_stage
from mperceiver_jax.training.step import Step, TrainState, initial_state, make_step


class StageTrainer:
    """Trains one stage from its last checkpoint, or from the beginning.

    Args:
        name: of the stage, or of a phase of one.
        params: every parameter of the model, as the stages before left them.
    """

    _checkpoints: Checkpoints
    _batches: TrainBatches
    _state: TrainState
    _stats: StageStats
    _metrics: DeferredMetrics
    _writer: MultiWriter

    def __init__(self, context: RunContext, name: str, params: Params):
        self._context, self._name, self._params = context, name, params
        self._experiment, self._config = context.experiment, context.experiment.stages[name]
        self._stage = build_stage(name, self._experiment, context.model)
        self._trained, self._frozen = _split(context, self._stage, params)
        self._fingerprint = fingerprint({path: value for path, value in self._frozen.items() if path in params})
        self._optimizer = make_optimizer(self._config.optimizer, self._config.steps)
        self._abstract = context.layout.abstract(jax.eval_shape(self._fresh_state, self._trained))
        self._shardings = jax.tree.map(lambda leaf: leaf.sharding, self._abstract)
        self._root_key = context.streams.key(f"stage/{name}")
        self._first = 0
        self._started = time.monotonic()

    def run(self) -> tuple[Params, dict[str, Any]]:
        """Trains the stage to its end.

        Returns:
            (parameters with those of this stage in place, a summary for the report).

        Raises:
            Preempted, NonFiniteLoss: see there.
            CheckpointError: a checkpoint does not fit, or could not be written.
            OSError, ValueError: a file that cannot be written, data that cannot be read; says after which update.
        """
        step_function = self._compiled_step()
        with self._opened():
            self.restore_or_init()
            with self._logging():
                for step in range(self._first, self._config.steps):
                    self._stop_if_requested(step)
                    self._evaluate_or_save(step)
                    batch = sharding.to_global(self._context.mesh, self._next_batch())
                    self._state, metrics = step_function(self._state, self._frozen, batch, self._root_key)
                    self._metrics.add(step + 1, metrics)
                self._metrics.flush()
            self.save()
            self._checkpoints.wait()
        return self._result()

    def restore_or_init(self) -> None:
        """Takes the state of the last checkpoint that can be read and moves the data to its position, or starts."""
        latest = self._checkpoints.latest()
        try:
            self._restore(latest)
        except DamagedCheckpoint as error:
            # Several processes would have to agree on what all of them can read.
            if latest is None or jax.process_count() > 1 or len(self._checkpoints.steps()) < 2:
                raise
            aside = self._checkpoints.set_aside(latest)
            self._context.log(f"{self._name}: warning: {error}: done, it is now {aside}")
            self.restore_or_init()

    def _restore(self, latest: int | None) -> None:
        if latest is None:
            state = jax.jit(self._fresh_state, out_shardings=self._shardings)(self._trained)
            self._state, self._stats = carry_over(self._context, self._name, state), StageStats()
        else:
            restored = self._checkpoints.restore(latest, self._abstract._asdict(), self._batches)
            _refuse_other_frozen(self._fingerprint, restored.metadata, self._checkpoints.directory / str(latest))
            self._state = TrainState(**restored.state)
            self._stats = StageStats(**restored.metadata["history"])
            self._first = latest
            self._context.log(f"{self._name}: continuing at update {latest} of {self._config.steps}")
            if restored.note:
                self._context.log(f"{self._name}: {restored.note}")
        self._trained = {}  # Frees the memory: the state holds its own copies.

    def save(self, metrics: Mapping[str, float] | None = None) -> None:
        """Saves the state and the data position.

        Args:
            metrics: scores of an evaluation at this step.
        """
        metadata = {
            "stage": self._name,
            "frozen_fingerprint": self._fingerprint,
            "ema": self._config.ema_decay > 0,
            "losses": asdict(self._experiment.losses),
            **self._experiment.checkpoint_metadata,
            "history": self._stats.updated(time.monotonic() - self._started),
        }
        # A checkpoint of this step exists only where a stop interrupted the evaluation; it has no scores.
        force = metrics is not None
        self._checkpoints.save(int(self._state.step), self._state._asdict(), self._batches, metadata, metrics, force)

    def _fresh_state(self, trained: Params) -> TrainState:
        return initial_state(trained, self._optimizer, self._config.ema_decay > 0)

    def _compiled_step(self) -> Step:
        step = make_step(
            self._stage.loss,
            self._optimizer,
            accumulation=self._config.accumulation,
            ema_decay=self._config.ema_decay,
            mesh=self._context.mesh,
        )
        replicated = sharding.replicated(self._context.mesh)
        return jax.jit(step, donate_argnums=0, out_shardings=(self._shardings, replicated))

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Opens checkpoints and data for the time of the block."""
        settings = self._experiment.checkpoint
        with (
            Checkpoints(
                initial_params.checkpoint_folder(self._context.workdir, self._name),
                keep=settings.keep,
                keep_best=settings.keep_best,
                best_metric="score" if self._experiment.evaluation.every else None,
            ) as self._checkpoints,
            closing(self._stage.batches(self._context, self._params)) as self._batches,
        ):
            yield

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Shows progress and writes metrics for the time of the block; errors name the update."""
        name, steps, first = self._name, self._config.steps, self._first
        progress = Progress(name, steps, first, self._config.batch_size, self._experiment.log_every)
        with (
            reraise(lambda error: f"after update {int(self._state.step)} of {steps}: {error}"),
            closing(progress),
            create_writer(self._context.workdir, name, first) as self._writer,
        ):
            self._metrics = DeferredMetrics(
                self._experiment, name, self._context.log, progress, self._writer, self._stats, self._checkpoints
            )
            yield

    def _stop_if_requested(self, step: int) -> None:
        if self._context.preemption.requested():
            raise self._stopped(step)

    def _stopped(self, step: int) -> Preempted:
        """Saves, and returns the exception that ends the run."""
        self._save_now()
        return Preempted(
            f"{self._name}: stopped at update {step} of {self._config.steps}, saved in {self._checkpoints.directory}"
        )

    def _save_now(self) -> None:
        self._metrics.flush()
        self.save()
        self._checkpoints.wait()

    def _evaluate_or_save(self, step: int) -> None:
        """The evaluation, with a checkpoint that has its scores, or the checkpoint that is due at this step."""
        every = self._experiment.evaluation.every
        due = every and step > 0 and step % every == 0
        # Where this run began, the evaluation may have been done before; the checkpoint then has the scores.
        if due and (step > self._first or self._checkpoints.metrics(step) is None):
            self._metrics.flush()
            try:
                scores = self._context.evaluator(self._name, self._current(), step)
            except Preempted:
                raise self._stopped(step) from None
            self._writer.write_scalars(step, {f"heldout_{key}": value for key, value in scores.items()})
            self.save(scores)
        elif step > self._first and step % self._experiment.checkpoint.every == 0:
            self._metrics.flush()
            self.save()

    def _next_batch(self) -> dict[str, np.ndarray]:
        try:
            return next(self._batches)
        except Exception:
            # Hours of updates are not lost because of one image that cannot be read. With several processes perhaps
            # only this one has met it, and saving takes all of them.
            if jax.process_count() == 1:
                self._save_now()
            raise

    def _current(self) -> Params:
        """The model's parameters, those being trained as of now (their average where there is one)."""
        current = self._state.ema or self._state.trainable
        return {path: current.get(path, value) for path, value in self._params.items()}

    def _result(self) -> tuple[Params, dict[str, Any]]:
        trained = sum(value.size for path, value in self._state.trainable.items() if path in self._params)
        summary = {
            "name": self._name,
            "steps": self._config.steps,
            "batch_size": self._config.batch_size,
            "trained_parameters": trained,
            **self._stats.updated(time.monotonic() - self._started),
        }
        return {path: _stored(self._context, path, value) for path, value in self._current().items()}, summary


def reload_stage(context: RunContext, name: str, params: Params) -> Params:
    """The parameters with those of a stage that was finished before in their place.

    Args:
        params: as the stages before left them.

    Raises:
        CheckpointError: the stage's checkpoint is gone, or was trained with other frozen parameters.
    """
    stage = build_stage(name, context.experiment, context.model)
    folder = initial_params.checkpoint_folder(context.workdir, name)
    values = initial_params.trained_values(context.workdir, name)
    if values is None:
        raise CheckpointError(
            f"{name} is recorded as done, but {folder} holds no complete checkpoint. Restore it, or delete "
            f"{context.workdir / 'stages'} and {context.workdir / 'checkpoints'} to train again from the beginning"
        )
    with Checkpoints(folder, read_only=True) as checkpoints:
        latest = checkpoints.steps()[-1]
        identity = fingerprint({path: value for path, value in params.items() if not stage.is_trained(path)})
        _refuse_other_frozen(identity, checkpoints.metadata(latest), epath.Path(folder) / str(latest))
    return params | {path: context.place(path, value) for path, value in values.items()}


def carry_over(context: RunContext, name: str, state: TrainState) -> TrainState:
    """The state to start from: of a later phase, the last parameters that the phase before left and its moving
    average, both in float32; otherwise `state`.

    Raises:
        CheckpointError: the phase before left no checkpoint, or it lacks parameters.
    """
    before = phase_before(name)
    if before is None:
        return state

    def left(like: Params, averaged: bool) -> Params:
        values = initial_params.trained_values(context.workdir, before, averaged=averaged) or {}
        if missing := sorted(set(like) - set(values)):
            raise CheckpointError(f"{name} starts from {before}, whose checkpoint lacks {shorten_list(missing)}")
        return {path: sharding.place(values[path], leaf.sharding, leaf.dtype) for path, leaf in like.items()}

    return state._replace(trainable=left(state.trainable, False), ema=left(state.ema, True) if state.ema else {})


def _split(context: RunContext, stage: Stage, params: Params) -> tuple[Params, Params]:
    """(trained, float32; frozen) among the model's parameters and the stage's extras."""
    trained, frozen = {}, {}
    for path, value in (params | stage.extras()).items():
        if stage.is_trained(path):
            trained[path] = context.layout.place(path, value, jnp.float32)
        else:
            frozen[path] = value if isinstance(value, jax.Array) else context.place(path, value)
    if not trained:
        raise ValueError(f"stage {stage.name}: no parameter matches {stage.trainable!r}")
    return trained, frozen


def _stored(context: RunContext, path: str, value: jax.Array) -> jax.Array:
    """The parameter in the dtype of frozen ones, sharded for it, copied: the state's buffers belong to the step."""
    dtype = jnp.dtype(context.experiment.compute_dtype)
    return value if value.dtype == dtype else context.layout.place(path, value, dtype)


def _refuse_other_frozen(identity: str, metadata: Mapping[str, Any], where: epath.Path) -> None:
    if metadata["frozen_fingerprint"] != identity:
        raise CheckpointError(
            f"{where} was trained with other frozen parameters than those given now (fingerprint "
            f"{metadata['frozen_fingerprint'][:12]}, now {identity[:12]}). Give the pretrained weights it was trained "
            "with (config.pretrained), or another --workdir"
        )
