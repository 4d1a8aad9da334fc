"""The stage `prior`: the latent diffusion prior on clean images, trained only where none is published."""

import jax
import jax.numpy as jnp
import numpy as np

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.diffusion.restoration import to_model_range
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.training import losses
from mperceiver_jax.training.run_context import HeldoutTools, Results
from mperceiver_jax.training.stages.base import SCHEDULE, Batch, StageBase, diffusion_target, timesteps_and_noise
from mperceiver_jax.training.step import Metrics

# The outermost timesteps of the evaluation are this far from the ends, where the error says little.
EVALUATION_MARGIN = 50


class PriorStage(StageBase):
    """Prediction of the noise (or velocity) of clean latents under the empty caption, without modulators."""

    def __init__(self, name: str, experiment: Experiment, model: RestorationModel):
        trainable = r"unet\.(?!.*\.spade\.)|text_encoder\."
        super().__init__(name, experiment, model, title="latent diffusion prior, from scratch", trainable=trainable)
        self.size_multiple = experiment.mperceiver.multiple

    def loss(self, params: Params, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        model = self._assembled(params)
        key_z, key_t, key_n = jax.random.split(key, 3)
        gt = to_model_range(batch["gt"], self._dtype)
        z, _ = model.encode(gt, jax.random.normal(key_z, model.config.latent_shape(gt.shape), self._dtype))
        z = jax.lax.stop_gradient(z)
        t, noise = timesteps_and_noise(key_t, key_n, z)
        out, target = self._predicted(model, z, t, noise)
        return losses.mean_squared_error(out, target), {}

    def evaluate(self, tools: HeldoutTools, params: Params, final: bool) -> Results:
        """Mean squared error of the prediction at fixed timesteps and noise; predicting zero gives about 1."""

        def error(model: MPerceiver, batch: Batch, key: jax.Array) -> jax.Array:
            z, _ = model.encode(to_model_range(batch["gt"], self._dtype))
            t = jnp.linspace(EVALUATION_MARGIN, SCHEDULE.steps - EVALUATION_MARGIN, z.shape[0]).astype(jnp.int32)
            out, target = self._predicted(model, z, t, jax.random.normal(key, z.shape, z.dtype))
            return jax.vmap(losses.mean_squared_error)(out, target)

        errors = tools.run("prior", tools.compiled("prior", error), params, tools.examples(clean=True))
        value = float(np.mean(errors))
        return {"scalars": {"score": -value, "prediction_error": value}}

    def _predicted(
        self, model: MPerceiver, z: jax.Array, t: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(the UNet's prediction for noised latents under the empty caption, its target)."""
        config = self._experiment.mperceiver
        caption = model.text_encoder.encode(jnp.asarray(config.text.empty_caption()[None]))
        context = jnp.broadcast_to(caption, (z.shape[0], *caption.shape[1:])).astype(z.dtype)
        out = model.unet(SCHEDULE.add_noise(z, noise, t), t, context, None)
        return out, diffusion_target(config.prediction, z, noise, t)
