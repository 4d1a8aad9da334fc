"""The stages: what each trains, and the loss that trains it.

    vae          the autoencoder (only where none is published at that size)
    prior        the latent-diffusion prior on clean images (likewise)
    predictor    which degradation is it?
    dual_branch  modulators, IR-Adapter, textual prompts and CM inversion; all else frozen
    drm          the detail refinement module; encoder and decoder frozen
    regression   the only stage of models that map the degraded image straight to the restored one

A stage with a curriculum is trained in phases, `dual_branch.1`, `dual_branch.2` and so on; `base` is the
name without the phase.

A loss is `loss(parameters, batch, key, step) -> (scalar, metrics)`, pure, a mean over
the batch. Images in a batch are in [0, 1]; MPerceiver sees [-1, 1].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import Condition, MPerceiver, Observation
from mperceiver_jax.models.parameters import Params
from mperceiver_jax.models.perceptual.lpips import load_lpips, lpips
from mperceiver_jax.models.perceptual.patchgan import PatchGAN, PatchGANConfig
from mperceiver_jax.models.restorers.registry import RegressionModel
from mperceiver_jax.training import losses
from mperceiver_jax.training.step import Loss

if TYPE_CHECKING:
    # Not at run time: the losses need neither grain nor ml_collections, the configuration does.
    from mperceiver_jax.config.experiment import Experiment

ORDER = ("vae", "prior", "predictor", "dual_branch", "drm")
"""MPerceiver's stages."""
STAGES = (*ORDER, "regression")
SCHEDULE = Schedule()
PERCEPTUAL = "lpips."
DISCRIMINATOR = "discriminator."


@dataclass(frozen=True)
class Stage:
    """One stage, ready to be stepped.

    Attributes:
        trainable: regular expression of the parameter paths it trains.
        loss: see the module's docstring.
        extras: parameters of helpers that are no part of the model (discriminator, perceptual
            network), as numpy arrays; `discriminator.*` are trained, the others frozen.
    """

    name: str
    title: str
    trainable: str
    loss: Loss
    extras: Callable[[], dict[str, np.ndarray]] = field(default=dict)

    def is_trained(self, path: str) -> bool:
        return re.match(self.trainable, path) is not None


def base(name: str) -> str:
    """The stage that a phase belongs to; a stage without phases is its own."""
    return name.split(".")[0]


def build_stage(name: str, experiment: Experiment, model: MPerceiver | RegressionModel) -> Stage:
    """The stage, or phase of one, for a model (built abstractly).

    Raises:
        ValueError: no such stage.
    """
    builders = {
        "vae": _vae,
        "prior": _prior,
        "predictor": _predictor,
        "dual_branch": _dual_branch,
        "drm": _drm,
        "regression": _regression,
    }
    if base(name) not in builders:
        raise ValueError(f"stages.{name}: no such stage; the stages are {', '.join(STAGES)}")
    structure, _ = parameters.split(model)
    dtype = jnp.dtype(experiment.compute_dtype)

    def assembled(params: Params) -> Any:
        own = {k: v for k, v in params.items() if not k.startswith((PERCEPTUAL, DISCRIMINATOR))}
        return parameters.merge(structure, own)

    stage = builders[base(name)](experiment, assembled, dtype)
    narrowed = experiment.stages[name].trainable if name in experiment.stages else ""
    if not narrowed:
        return stage
    trainable = rf"(?={stage.trainable})(?:{narrowed}|{re.escape(DISCRIMINATOR)})"
    return replace(stage, trainable=trainable, title=f"{stage.title}; of these only {narrowed}")


def to_model_range(image: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """[0, 1] -> [-1, 1] in the compute dtype."""
    return (image * 2 - 1).astype(dtype)


def diffusion_target(experiment: Experiment, z: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """What the UNet is trained to predict of a noised latent: the noise, or the velocity."""
    return noise if experiment.mperceiver.prediction == "epsilon" else SCHEDULE.velocity(z, noise, t)


def _vae(experiment: Experiment, assembled, dtype) -> Stage:
    """L1 and a light KL term, and a pull of the latent's second moment to one.

    The pull makes `scaling_factor = 1` right for an autoencoder trained here, where the
    published one has measured its factor afterwards.
    """
    weight = experiment.losses.kl_weight

    def loss(params, batch, key, step):
        model = assembled(params)
        image = to_model_range(batch["gt"], dtype)
        posterior = model.vae.encode(image)
        noise = jax.random.normal(key, posterior.mean.shape, dtype)
        out = model.vae.decode(posterior.sample(noise))
        reconstruction = losses.l1(out, image)
        kl = losses.kl_to_standard_normal(posterior.mean, posterior.logvar) / posterior.mean[0].size
        moment = jnp.square(jnp.square(posterior.mean.astype(jnp.float32)).mean() - 1)
        total = reconstruction + weight * kl + 0.01 * moment
        return total, {"l1": reconstruction, "kl": kl, "latent_moment_error": moment}

    return Stage("vae", "autoencoder, from scratch", r"vae\.", loss)


def _prior(experiment: Experiment, assembled, dtype) -> Stage:
    """Noise prediction on clean latents under the empty caption, without modulators."""

    def loss(params, batch, key, step):
        model = assembled(params)
        key_z, key_t, key_n = jax.random.split(key, 3)
        gt = to_model_range(batch["gt"], dtype)
        z, _ = model.encode(gt, jax.random.normal(key_z, model.latent_shape(gt.shape), dtype))
        z = jax.lax.stop_gradient(z)
        t, noise = _timesteps_and_noise(key_t, key_n, z)
        caption = model.text_encoder.encode(experiment.mperceiver.text.empty_caption()[None])
        context = jnp.broadcast_to(caption, (z.shape[0], *caption.shape[1:])).astype(dtype)
        out = model.unet(SCHEDULE.add_noise(z, noise, t), t, context, None)
        return losses.mean_squared_error(out, diffusion_target(experiment, z, noise, t)), {}

    return Stage("prior", "latent-diffusion prior, from scratch", r"unet\.(?!.*\.spade\.)|text_encoder\.", loss)


def _predictor(experiment: Experiment, assembled, dtype) -> Stage:
    choice = experiment.losses

    def loss(params, batch, key, step):
        model = assembled(params)
        _, logits = model.predictor(batch["lq_clip"].astype(dtype))
        if choice.predictor == "focal":
            value = losses.focal_loss(logits, batch["task"], choice.focal_gamma)
        else:
            value = losses.cross_entropy(logits, batch["task"])
        accuracy = (logits.argmax(-1) == batch["task"]).astype(jnp.float32).mean()
        return value, {"accuracy": accuracy}

    trainable = r"predictor\." if choice.train_tower else r"predictor\.fc[12]\."
    what = "with its image tower" if choice.train_tower else "head"
    return Stage("predictor", f"degradation predictor {what}", trainable, loss)


def observation(model: MPerceiver, batch: Mapping[str, jax.Array], dtype: jnp.dtype) -> Observation:
    """What the frozen towers make of a batch of images; taken from the batch where it was stored before."""
    if "embedding" in batch:
        return Observation(**{name: batch[name].astype(dtype) for name in Observation._fields})
    lq, gt = (to_model_range(batch[name], dtype) for name in ("lq", "gt"))
    return model.observe(lq, gt, batch["lq_clip"].astype(dtype))


def _dual_branch(experiment: Experiment, assembled, dtype) -> Stage:
    """Noise prediction under both branches: text context and adapter features of the degraded image."""

    def loss(params, batch, key, step):
        model = assembled(params)
        key_gt, key_lq, key_t, key_n = jax.random.split(key, 4)
        seen = observation(model, batch, dtype)
        shape = (*seen.gt.shape[:-1], seen.gt.shape[-1] // 2)
        z = model.latent(seen.gt, jax.random.normal(key_gt, shape, dtype))
        z_lq = model.latent(seen.lq, jax.random.normal(key_lq, shape, dtype))
        logits = model.predictor.head(seen.embedding)
        condition = Condition(z_lq, (), logits, model.context(seen.embedding, logits))
        t, noise = _timesteps_and_noise(key_t, key_n, z)
        out = model.predict(SCHEDULE.add_noise(z, noise, t), t, condition)
        return losses.mean_squared_error(out, diffusion_target(experiment, z, noise, t)), {}

    trainable = r"unet\..*\.spade\.|ir_adapter\.|tp$"
    if experiment.losses.train_cm_inv:
        trainable += r"|cm_inv\."
    return Stage("dual_branch", "modulators, IR-Adapter, textual prompts, CM inversion", trainable, loss)


def _drm(experiment: Experiment, assembled, dtype) -> Stage:
    """L1 + LPIPS (+ hinge GAN) between the refined decoding and the clean image.

    Latents come with the batch (`latent`, sampled by the dual branch) or are the clean ones,
    perturbed. The GAN's gradients for generator and discriminator are disjoint by
    stop_gradient, so that one optimizer step serves both.
    """
    choice = experiment.losses
    critic = PatchGAN(PatchGANConfig() if experiment.mperceiver.vae.base_channels >= 64 else PatchGANConfig.small())
    critic_structure, _ = parameters.split(critic)
    # The last trained kernel before the image: the output convolution of the finest tap.
    last_kernel = "drm.taps.0.out.weight"

    def extras():
        found: dict[str, np.ndarray] = {}
        if choice.lpips_weight:
            found |= {PERCEPTUAL + k: v for k, v in load_lpips(choice.lpips_net).items()}
        if choice.gan_weight:
            initial = parameters.initial_values(critic, experiment.seed, lambda path, value: value)
            found |= {DISCRIMINATOR + k: v for k, v in initial.items()}
        return found

    def loss(params, batch, key, step):
        model = assembled(params)
        key_z, key_s, key_n = jax.random.split(key, 3)
        lq, gt = (to_model_range(batch[name], dtype) for name in ("lq", "gt"))
        _, logits = model.perceive(batch["lq_clip"].astype(dtype))
        if choice.drm_latents == "sampled":
            _, taps = model.encode(lq)
            z = batch["latent"].astype(dtype)
        else:
            (_, _, taps), clean = model.vae.encode_pair(lq, gt)
            z = model.latent(clean.moments, jax.random.normal(key_z, clean.mean.shape, dtype))
            spread = jax.random.uniform(key_s, (z.shape[0], 1, 1, 1)) * choice.drm_noise_std
            z = z + spread.astype(dtype) * jax.random.normal(key_n, z.shape, dtype)
        perceptual = {k[len(PERCEPTUAL) :]: v for k, v in params.items() if k.startswith(PERCEPTUAL)}

        def refined(kernel):
            return assembled({**params, last_kernel: kernel}).decode(z, taps, logits)

        def reconstruction(out):
            terms = {"l1": losses.l1(out, gt)}
            if perceptual:
                terms["lpips"] = lpips(perceptual, out, gt).mean()
            return terms["l1"] + choice.lpips_weight * terms.get("lpips", 0.0), terms

        if not choice.gan_weight:
            return reconstruction(refined(params[last_kernel]))

        judge = parameters.merge(
            critic_structure,
            {k[len(DISCRIMINATOR) :]: v for k, v in params.items() if k.startswith(DISCRIMINATOR)},
        )
        fixed_judge = jax.tree.map(jax.lax.stop_gradient, judge)
        generator = lambda out: losses.hinge_generator_loss(fixed_judge(out))
        out, pull_back = jax.vjp(refined, params[last_kernel])
        kernel_gradient = lambda objective: pull_back(jax.grad(objective)(out))[0]
        weight = losses.adaptive_gan_weight(kernel_gradient(lambda x: reconstruction(x)[0]), kernel_gradient(generator))
        weight = weight * choice.gan_weight * (step >= choice.gan_start)
        total, terms = reconstruction(out)
        discriminator = losses.hinge_discriminator_loss(judge(gt), judge(jax.lax.stop_gradient(out)))
        terms |= {"generator": generator(out), "discriminator": discriminator, "gan_weight": weight}
        return total + weight * terms["generator"] + discriminator * (step >= choice.gan_start), terms

    return Stage("drm", "detail refinement module", r"drm\.|discriminator\.", loss, extras)


def _regression(experiment: Experiment, assembled, dtype) -> Stage:
    """The restored image against the clean one. Where the network is told anything, it is the true task
    of every image, or what its classifier says (`losses.condition_source`), which learns beside it."""
    choice = experiment.losses

    def distance(out, gt):
        if choice.regression == "charbonnier_fft":
            return losses.charbonnier(out, gt) + choice.fft_weight * losses.spectral_distance(out, gt)
        return {"l1": losses.l1, "smooth_l1": losses.smooth_l1}[choice.regression](out, gt)

    def loss(params, batch, key, step):
        model: RegressionModel = assembled(params)
        lq = batch["lq"].astype(dtype)
        logits = model.logits(lq)
        heard = logits if choice.condition_source == "classifier" else None
        out = model(lq, model.weights(heard, batch["task"]), key=key)
        value = distance(out, batch["gt"])
        metrics = {"distance": value, "psnr": losses.mean_psnr(out, batch["gt"])}
        beside = choice.regularizer_weight * model.penalty()
        if logits is not None:
            said = jax.nn.softmax(logits.astype(jnp.float32)) if choice.double_softmax else logits
            beside = beside + losses.cross_entropy(said, batch["task"])
            metrics["accuracy"] = (logits.argmax(-1) == batch["task"]).astype(jnp.float32).mean()
        # A plain number where there is nothing but images to learn.
        return value + beside, metrics if isinstance(beside, float) else metrics | {"beside": beside}

    return Stage("regression", f"{experiment.title}, from degraded to restored", r"network\.|classifier\.", loss)


def _timesteps_and_noise(key_t: jax.Array, key_n: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A timestep for every example and noise like `z`, drawn at the (global) batch shape."""
    t = jax.random.randint(key_t, (z.shape[0],), 0, SCHEDULE.steps)
    return t, jax.random.normal(key_n, z.shape, z.dtype)
