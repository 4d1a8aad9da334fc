"""The losses of the stages. All compute in float32 and return a float32 scalar."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "b c"], labels: Int[Array, "b"]) -> Float[Array, ""]:
    """Return the mean over the batch of -log softmax(logits)[label]."""
    return _cross_entropies(logits, labels).mean()


def focal_loss(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    gamma: float = 2.0,
    alpha: Float[Array, "c"] | Sequence[float] | None = None,
) -> Float[Array, ""]:
    """Focal loss (Lin et al., 2017): mean over the batch of alpha_y (1 - p_y)^gamma (-log p_y).

    The mean divides by the number of examples, not by the sum of alpha.

    Args:
        gamma: exponent that reduces the weight of confident examples; 0 gives cross-entropy.
        alpha: weight per class; 1 for all when None.
    """
    loss = entropies = _cross_entropies(logits, labels)
    if gamma:
        # 1 - p without cancellation; the floor keeps the power's gradient finite at p = 1 for gamma < 1.
        loss = loss * jnp.maximum(-jnp.expm1(-entropies), jnp.finfo(jnp.float32).tiny) ** gamma
    if alpha is not None:
        loss = loss * jnp.asarray(alpha, jnp.float32)[labels]
    return loss.mean()


def mean_squared_error(prediction: Array, target: Array) -> Float[Array, ""]:
    """Return the mean squared difference over all elements; between predicted and true noise, the diffusion loss."""
    return optax.squared_error(prediction.astype(jnp.float32), target.astype(jnp.float32)).mean()


def l1(prediction: Array, target: Array) -> Float[Array, ""]:
    """Return the mean absolute difference over all elements."""
    return jnp.abs(prediction.astype(jnp.float32) - target.astype(jnp.float32)).mean()


def charbonnier(prediction: Array, target: Array, eps: float = 1e-3) -> Float[Array, ""]:
    """Return the mean of sqrt(difference^2 + eps^2), an L1 distance that is smooth at zero."""
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.sqrt(jnp.square(difference) + eps**2).mean()


def smooth_l1(prediction: Array, target: Array) -> Float[Array, ""]:
    """Return the mean of d^2 / 2 where d = |difference| is below 1 and of d - 1/2 elsewhere (Girshick, 2015)."""
    return optax.huber_loss(prediction.astype(jnp.float32), target.astype(jnp.float32), delta=1.0).mean()


def spectral_distance(prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Return the mean modulus of the difference of the unnormalised 2-D spectra per channel (AM-PromptIR)."""
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    spectrum = jnp.fft.fft2(difference, axes=(1, 2))
    # The modulus with a finite gradient at zero.
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.where(power > 0, jnp.sqrt(jnp.where(power > 0, power, 1.0)), 0.0).mean()


def accuracy(logits: Float[Array, "b c"], labels: Int[Array, "b"]) -> Float[Array, ""]:
    """Return the share of examples whose largest logit is that of their label. It is logged, not trained on."""
    return (logits.argmax(-1) == labels).astype(jnp.float32).mean()


def mean_psnr(prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Return the mean PSNR in dB of images in [0, 1], predictions clipped. It is logged, not trained on."""
    difference = jnp.clip(prediction.astype(jnp.float32), 0, 1) - target.astype(jnp.float32)
    return (-10 * jnp.log10(jnp.maximum(jnp.square(difference).mean((1, 2, 3)), 1e-10))).mean()


def kl_to_standard_normal(mean: Float[Array, "b *rest"], logvar: Float[Array, "b *rest"]) -> Float[Array, ""]:
    """Return the KL divergence of a diagonal Gaussian from N(0, I), in nats: sum per example, mean over the batch."""
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    terms = jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar
    return 0.5 * terms.sum(tuple(range(1, mean.ndim))).mean()


def hinge_discriminator_loss(real: Array, fake: Array) -> Float[Array, ""]:
    """Return (mean relu(1 - real) + mean relu(1 + fake)) / 2 of the discriminator's outputs."""
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return 0.5 * (jax.nn.relu(1.0 - real).mean() + jax.nn.relu(1.0 + fake).mean())


def hinge_generator_loss(fake: Array) -> Float[Array, ""]:
    """Return the negative mean of the discriminator's output for generated images."""
    return -fake.astype(jnp.float32).mean()


def adaptive_gan_weight(reconstruction_gradient: Array, gan_gradient: Array) -> Float[Array, ""]:
    """Balance the adversarial loss against the reconstruction loss (Esser et al., 2021).

    clip(|g_rec| / (|g_gan| + 1e-4), 0, 1e4), where both gradients are with respect to the
    same, last trained kernel. The weight is a constant in differentiation.
    """
    of_reconstruction = jnp.linalg.norm(reconstruction_gradient.astype(jnp.float32).ravel())
    of_gan = jnp.linalg.norm(gan_gradient.astype(jnp.float32).ravel())
    weight = of_reconstruction / (of_gan + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(weight, 0.0, 1e4))


def _cross_entropies(logits: Float[Array, "b c"], labels: Int[Array, "b"]) -> Float[Array, "b"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
