"""The stage `drm`: the detail refinement module; encoder and decoder are frozen.

The loss is L1 + LPIPS (+ a hinge GAN) between the refined image and the ground truth. The latents to decode are those
that the finished dual branch restores, sampled within the update (`online`), or those of the ground truth, perturbed.
The condition is the predictor's own, soft and with its errors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.diffusion.restoration import sample_latent, sampler_of, to_model_range
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.perceptual.lpips import load_lpips, lpips
from mperceiver_jax.models.perceptual.patchgan import PatchGAN, PatchGANConfig
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.training import losses
from mperceiver_jax.training.run_context import HeldoutTools, Results
from mperceiver_jax.training.stages.base import DISCRIMINATOR, PERCEPTUAL, Batch, StageBase
from mperceiver_jax.training.stages.restoration import evaluate_restoration
from mperceiver_jax.training.step import Metrics

LAST_KERNEL = "drm.residual.weight"
"""The last trained kernel before the image."""
# Autoencoders with fewer channels are tests and demonstrations; their discriminator is small, too.
FULL_SIZE_CHANNELS = 64


class Inputs(NamedTuple):
    """What is decoded and refined: latents, degraded images, encoder features, degradation logits; and the ground
    truth. Images are in [-1, 1]."""

    z: jax.Array
    lq: jax.Array
    taps: tuple[jax.Array, ...]
    logits: jax.Array
    gt: jax.Array


class DrmStage(StageBase):
    """The detail refinement module against clean images."""

    def __init__(self, name: str, experiment: Experiment, model: RestorationModel):
        title, trainable = "detail refinement module", r"drm\.|discriminator\."
        super().__init__(name, experiment, model, title=title, trainable=trainable)
        self.size_multiple = experiment.mperceiver.multiple
        full_size = experiment.mperceiver.vae.base_channels >= FULL_SIZE_CHANNELS
        self._critic = PatchGAN(PatchGANConfig() if full_size else PatchGANConfig.small())
        self._critic_structure, _ = parameters.split(self._critic)

    def extras(self) -> dict[str, np.ndarray]:
        choice = self._experiment.losses
        found: dict[str, np.ndarray] = {}
        if choice.lpips_weight:
            found |= {PERCEPTUAL + path: value for path, value in load_lpips(choice.lpips_net).items()}
        if choice.gan_weight:
            initial = parameters.initial_values(self._critic, self._experiment.seed, lambda path, value: value)
            found |= {DISCRIMINATOR + path: value for path, value in initial.items()}
        return found

    def loss(self, params: Params, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        choice = self._experiment.losses
        inputs = self._inputs(self._assembled(params), batch, key)
        perceptual = _part(params, PERCEPTUAL)

        def decode(kernel: jax.Array) -> jax.Array:
            model = self._assembled({**params, LAST_KERNEL: kernel})
            return model.decode(inputs.z, inputs.lq, inputs.taps, inputs.logits)

        def reconstruction(out: jax.Array) -> tuple[jax.Array, Metrics]:
            return reconstruction_loss(out, inputs.gt, perceptual, choice.lpips_weight)

        if not choice.gan_weight:
            return reconstruction(decode(params[LAST_KERNEL]))
        critic = parameters.merge(self._critic_structure, _part(params, DISCRIMINATOR))
        started = jnp.asarray(step >= choice.gan_start, jnp.float32)
        return adversarial_loss(
            decode, params[LAST_KERNEL], reconstruction, critic, inputs.gt, choice.gan_weight, started
        )

    def _inputs(self, model: MPerceiver, batch: Batch, key: jax.Array) -> Inputs:
        key_z, key_s, key_n = jax.random.split(key, 3)
        lq, gt = (to_model_range(batch[name], self._dtype) for name in ("lq", "gt"))
        view = batch["lq_clip"].astype(self._dtype)
        if self._experiment.losses.drm_latents == "online":
            z, condition = sample_latent(model, sampler_of(self._experiment.sampler), lq, view, key_z)
            return Inputs(z, lq, condition.taps, condition.logits, gt)
        _, logits = model.perceive(view)
        (_, _, taps), clean = model.vae.encode_pair(lq, gt)
        z = model.latent(clean.moments, jax.random.normal(key_z, clean.mean.shape, self._dtype))
        spread = jax.random.uniform(key_s, (z.shape[0], 1, 1, 1)) * self._experiment.losses.drm_noise_std
        z = z + spread.astype(self._dtype) * jax.random.normal(key_n, z.shape, self._dtype)
        return Inputs(z, lq, taps, logits, gt)

    def evaluate(self, tools: HeldoutTools, params: Params, final: bool) -> Results:
        return evaluate_restoration(self.name, self._experiment, tools, params, final, refine=True)


def reconstruction_loss(
    out: jax.Array, gt: jax.Array, perceptual: Params, lpips_weight: float
) -> tuple[jax.Array, Metrics]:
    """(L1 + weighted LPIPS between images in [-1, 1], the terms).

    Args:
        perceptual: the parameters of the LPIPS network; empty leaves the term out.
    """
    terms = {"l1": losses.l1(out, gt)}
    if not perceptual:
        return terms["l1"], terms
    terms["lpips"] = lpips(perceptual, out, gt).mean()
    return terms["l1"] + lpips_weight * terms["lpips"], terms


def adversarial_loss(
    decode: Callable[[jax.Array], jax.Array],
    kernel: jax.Array,
    reconstruction: Callable[[jax.Array], tuple[jax.Array, Metrics]],
    critic: PatchGAN,
    gt: jax.Array,
    gan_weight: float,
    started: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """(reconstruction, generator and discriminator losses together, the terms).

    The gradients for generator and discriminator are disjoint by stop_gradient, so that one optimizer step serves
    both. The generator's weight balances its gradient at the last kernel against that of the reconstruction.

    Args:
        decode: last kernel -> images in [-1, 1].
        kernel: the last kernel.
        started: 1.0 from `losses.gan_start` on, 0.0 before.
    """
    fixed_critic = jax.tree.map(jax.lax.stop_gradient, critic)
    generator = lambda images: losses.hinge_generator_loss(fixed_critic(images))
    out, pull_back = jax.vjp(decode, kernel)
    kernel_gradient = lambda objective: pull_back(jax.grad(objective)(out))[0]
    balance = losses.adaptive_gan_weight(
        kernel_gradient(lambda images: reconstruction(images)[0]), kernel_gradient(generator)
    )
    weight = balance * gan_weight * started
    total, terms = reconstruction(out)
    discriminator = losses.hinge_discriminator_loss(critic(gt), critic(jax.lax.stop_gradient(out)))
    terms |= {"generator": generator(out), "discriminator": discriminator, "gan_weight": weight}
    return total + weight * terms["generator"] + discriminator * started, terms


def _part(params: Params, prefix: str) -> Params:
    return {path.removeprefix(prefix): value for path, value in params.items() if path.startswith(prefix)}
