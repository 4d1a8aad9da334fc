"""The stage `vae`: the autoencoder, trained only where none is published at that size."""

from typing import Any

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
from mperceiver_jax.training.stages.base import Batch, StageBase, to_unit_range
from mperceiver_jax.training.step import Metrics

MOMENT_WEIGHT = 0.01


class VaeStage(StageBase):
    """L1 and a light KL term, and a pull of the latent's second moment to one.

    The pull makes `scaling_factor = 1` right for an autoencoder trained here; the factor of the published one was
    measured after its training.
    """

    def __init__(self, name: str, experiment: Experiment, model: RestorationModel):
        super().__init__(name, experiment, model, title="autoencoder, from scratch", trainable=r"vae\.")
        self.size_multiple = experiment.mperceiver.downscale

    def loss(self, params: Params, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        model = self._assembled(params)
        image = to_model_range(batch["gt"], self._dtype)
        posterior = model.vae.encode(image)
        noise = jax.random.normal(key, posterior.mean.shape, self._dtype)
        out = model.vae.decode(posterior.sample(noise))
        reconstruction = losses.l1(out, image)
        kl = losses.kl_to_standard_normal(posterior.mean, posterior.logvar) / posterior.mean[0].size
        moment = jnp.square(jnp.square(posterior.mean.astype(jnp.float32)).mean() - 1)
        total = reconstruction + self._experiment.losses.kl_weight * kl + MOMENT_WEIGHT * moment
        return total, {"l1": reconstruction, "kl": kl, "latent_moment_error": moment}

    def evaluate(self, tools: HeldoutTools, params: Params, final: bool) -> Results:
        """PSNR of clean images through encoder (mean) and decoder: the upper bound without refinement."""

        def reconstruct(model: MPerceiver, batch: Batch, key: jax.Array) -> Any:
            z, _ = model.encode(to_model_range(batch["gt"], self._dtype))
            return to_unit_range(model.decode(z)), z.astype(jnp.float32)

        out = tools.run("vae", tools.compiled("vae", reconstruct), params, tools.examples(clean=True))
        quality = tools.reconstructions("vae", [image for image, _ in out], final)
        spread = float(np.std([z for _, z in out]))
        return {"scalars": {"score": quality, "psnr": quality, "latent_std": spread}}
