"""A configuration as something to measure: its model with random weights, restoring images and being trained.

MPerceiver and the restorers by regression are measured by the same few lines: `restore.backends` hides how
they restore, `training.stages` what a stage trains.
"""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.flop import flop
from benchmarks.subject import random_values
from benchmarks.timing import Candidate, compiled, program_memory
from mperceiver_jax.config.experiment import Experiment, from_mapping
from mperceiver_jax.diffusion.restoration import sampler_of
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.optim.optimizer import make_optimizer
from mperceiver_jax.restore.backends import Backend, Diffusion, Regression
from mperceiver_jax.training.stages.registry import build_stage
from mperceiver_jax.training.step import initial_state, make_step


def load_experiment(name: str) -> Experiment:
    """The experiment of a config file and one of its variants: `FILE` or `FILE:VARIANT`.

    Raises:
        FileNotFoundError, ValueError: no such file, no such variant, or fields that are wrong.
    """
    file, _, variant = name.partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such configuration")
    config = runpy.run_path(file)["get_config"]
    return from_mapping(Experiment, (config(variant) if variant else config()).to_dict())


def main_stage(experiment: Experiment) -> str:
    """The stage that teaches the model to restore.

    Raises:
        ValueError: the configuration leaves it out.
    """
    name = experiment.model.main_stage
    if name not in experiment.stages:
        raise ValueError(f"stages: {experiment.title} is measured in its stage {name}, which is not configured")
    return name


def sized(experiment: Experiment, size: int, batch: int) -> Experiment:
    """The experiment whose main stage takes `batch` crops of `size` pixels, fresh ones and all at once."""
    name = main_stage(experiment)
    stage = replace(experiment.stages[name], crop=size, batch_size=batch, accumulation=1, curriculum=())
    return replace(experiment, stages={**experiment.stages, name: stage}, cache="")


class System:
    """The model of an experiment, with weights of which none is at zero, on one device.

    Attributes:
        values: the weights by path, in the compute dtype.
    """

    def __init__(self, experiment: Experiment):
        self.experiment, self.model = experiment, experiment.build()
        self.values = random_values(self.model, jnp.dtype(experiment.compute_dtype))
        rng = np.random.default_rng(1)
        # Off where they start, many of them at zero, so that each counts when outputs are compared.
        for path, leaf in parameters.declared(self.model).items():
            if leaf.kind == "plain":
                value = self.values[path]
                self.values[path] = value + (0.1 * rng.standard_normal(value.shape, np.float32)).astype(value.dtype)

    def restoration(self, size: int, batch: int) -> Candidate:
        """All that the device does to restore a batch of images.

        Raises:
            ValueError: MPerceiver cannot take images of this size.
        """
        backend = self._backend()
        if isinstance(self.model, MPerceiver) and size % self.model.config.multiple:
            raise ValueError(f"--size: MPerceiver needs a multiple of {self.model.config.multiple}, not {size}")
        images = random_images(size, batch)
        views = np.concatenate([backend.condition_input(image, image) for image in images])

        def restored(values: Any, lq: jax.Array, views: jax.Array, key: jax.Array) -> jax.Array:
            return backend.restore(values, lq, backend.condition(values, views), key)[0]

        arguments = (self.values, jnp.asarray(images), jnp.asarray(views), jax.random.key(0))
        return compiled(restored, *arguments, flop=flop(restored, *arguments), images=batch)

    def training_step(self, name: str) -> Candidate:
        """One update of a stage as configured; the state goes on from update to update, as in training."""
        config, stage = self.experiment.stages[name], build_stage(name, self.experiment, self.model)
        optimizer = make_optimizer(config.optimizer, config.steps)
        trained, frozen = {}, {}
        for path, value in (self.values | stage.extras()).items():
            if stage.is_trained(path):
                # Copied: the step overwrites its state.
                trained[path] = jnp.array(value, jnp.float32)
            else:
                frozen[path] = jnp.asarray(value)
        state = jax.jit(lambda values: initial_state(values, optimizer, config.ema_decay > 0))(trained)
        step = make_step(stage.loss, optimizer, accumulation=config.accumulation, ema_decay=config.ema_decay)
        others = (frozen, self._batch(name), jax.random.key(0))
        program = jax.jit(step, donate_argnums=0).lower(state, *others).compile()
        current = [state]
        del state, trained

        def update() -> Any:
            current[0], metrics = program(current[0], *others)
            return current[0].step, metrics

        return Candidate(update, images=config.batch_size, memory=program_memory(program))

    def _backend(self) -> Backend:
        experiment, model = self.experiment, self.model
        if isinstance(model, MPerceiver):
            return Diffusion(model, sampler_of(experiment.sampler), experiment.compute_dtype, refine=True)
        # The task that is given to a network does not change the cost.
        label = 0 if model.config.is_conditional and model.config.condition_source == "label" else None
        return Regression(model, experiment.compute_dtype, label)

    def _batch(self, name: str) -> dict[str, jax.Array]:
        """Random images in the shapes of a stage's batch."""
        rng, tasks = np.random.default_rng(0), len(self.experiment.tasks)
        batch = build_stage(name, self.experiment, self.model).batch_spec(self.experiment.stages[name].batch_size)
        return {
            part: jnp.arange(leaf.shape[0], dtype=leaf.dtype) % tasks
            if jnp.issubdtype(leaf.dtype, jnp.integer)
            else jnp.asarray(rng.random(leaf.shape, np.float32), leaf.dtype)
            for part, leaf in batch.items()
        }


def random_images(size: int, batch: int) -> np.ndarray:
    """(batch, size, size, 3) float32 in [0, 1)."""
    return np.random.default_rng(0).random((batch, size, size, 3), np.float32)
