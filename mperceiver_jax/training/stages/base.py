"""The interface of a stage of training, and what all stages have in common."""

import re
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.pipeline import TrainBatches, train_batches
from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.config.phases import data_config
from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.distributed import sharding
from mperceiver_jax.models import parameters
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.training.run_context import HeldoutTools, Results, RunContext
from mperceiver_jax.training.step import Metrics, SplitLoss

Batch = dict[str, jax.Array]
BatchSpec = dict[str, jax.ShapeDtypeStruct]
SCHEDULE = Schedule()
DISCRIMINATOR = "discriminator."
PERCEPTUAL = "lpips."
HELPERS = (DISCRIMINATOR, PERCEPTUAL)
"""Prefixes of the paths of parameters that are not part of the model."""


class Stage(Protocol):
    """One stage of training.

    Attributes:
        name: `drm`, or `drm.2` for a phase of a curriculum.
        title: for messages and reports.
        trainable: regular expression of the parameter paths that it trains.
        size_multiple: the sides of its crops must be multiples of this.
    """

    name: str
    title: str
    trainable: str
    size_multiple: int

    def is_trained(self, path: str) -> bool:
        """Whether the stage trains the parameter of this path."""

    def extras(self) -> dict[str, np.ndarray]:
        """Parameters that are not part of the model: `discriminator.*`, which are trained, and `lpips.*`."""

    def batch_spec(self, size: int) -> BatchSpec:
        """Shapes and types of a batch of `size` examples. Images are in [0, 1]."""

    def batches(self, context: RunContext, params: Params) -> TrainBatches:
        """This host's part of the batches, checkpointable.

        Args:
            params: every parameter of the model, as the stages before left them.

        Raises:
            Preempted: the run was asked to stop while the batches were prepared.
        """

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array | SplitLoss, Metrics]:
        """(mean loss over the batch, metrics). Pure.

        Args:
            params: the parameters of the model and the extras.
            step: number of updates made.
        """

    def evaluate(self, tools: HeldoutTools, params: Params, final: bool) -> Results:
        """Measures the stage on held-out examples. `final`: after the stage, with images."""


class StageBase:
    """A stage that trains on batches of degraded and clean images.

    Args:
        trainable: regular expression of the paths that the stage can train; `config.stages.*.trainable` narrows it.
    """

    def __init__(self, name: str, experiment: Experiment, model: RestorationModel, *, title: str, trainable: str):
        self.name, self.title, self.trainable = name, title, trainable
        self.size_multiple = 1
        self._experiment = experiment
        self._dtype = jnp.dtype(experiment.compute_dtype)
        self._structure, _ = parameters.split(model)
        narrowed = experiment.stages[name].trainable if name in experiment.stages else ""
        if narrowed:
            self.trainable = rf"(?={trainable})(?:{narrowed}|{re.escape(DISCRIMINATOR)})"
            self.title = f"{title}; of these only {narrowed}"

    def is_trained(self, path: str) -> bool:
        return re.match(self.trainable, path) is not None

    def extras(self) -> dict[str, np.ndarray]:
        return {}

    def batch_spec(self, size: int) -> BatchSpec:
        data = self._experiment.data
        image = jax.ShapeDtypeStruct((size, self._crop, self._crop, 3), np.float32)
        spec = {"lq": image, "gt": image, "task": jax.ShapeDtypeStruct((size,), np.int32)}
        if data.clip_size:
            squares = (data.clip_views,) if data.clip_view == "native" else ()
            view = (size, *squares, data.clip_size, data.clip_size, 3)
            spec["lq_clip"] = jax.ShapeDtypeStruct(view, np.float32)
        return spec

    def batches(self, context: RunContext, params: Params) -> TrainBatches:
        config = data_config(context.experiment, self.name)
        index, count = sharding.data_share(context.mesh)
        return train_batches(config, index, count, context.experiment.tasks)

    @property
    def _crop(self) -> int:
        return self._experiment.stages[self.name].crop or self._experiment.data.crop

    def _assembled(self, params: Params) -> Any:
        """The model with these parameters; extras are left out."""
        own = {path: value for path, value in params.items() if not path.startswith(HELPERS)}
        return parameters.merge(self._structure, own)


def timesteps_and_noise(key_t: jax.Array, key_n: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A timestep for every example and noise like `z`, drawn at the (global) batch shape."""
    t = jax.random.randint(key_t, (z.shape[0],), 0, SCHEDULE.steps)
    return t, jax.random.normal(key_n, z.shape, z.dtype)


def diffusion_target(prediction: str, z: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """The target of the UNet for a noised latent: the noise (`epsilon`), or the velocity."""
    return noise if prediction == "epsilon" else SCHEDULE.velocity(z, noise, t)


def to_unit_range(out: jax.Array) -> jax.Array:
    """Images in [-1, 1] in any dtype -> [0, 1] in float32, clipped."""
    return jnp.clip((out.astype(jnp.float32) + 1) / 2, 0, 1)
