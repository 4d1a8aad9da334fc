"""From a degraded picture to a restored one: condition once, sample a latent, decode."""

import jax
from jaxtyping import Array, Float

from mperceiver_jax.diffusion.samplers import DDIM, sample
from mperceiver_jax.models.mperceiver import MPerceiver


def sample_latent(
    model: MPerceiver,
    sampler: DDIM,
    lq: Float[Array, "b h w 3"],
    lq_clip: Float[Array, "b s s 3"],
    key: jax.Array,
):
    """(restored latent, scaled; the condition it was sampled under)."""
    shape = model.latent_shape(lq.shape)
    key_z, key_x, key_s = jax.random.split(key, 3)
    condition = model.condition(lq, lq_clip, jax.random.normal(key_z, shape, lq.dtype))
    prompts = model.ir_adapter.prompts()
    x_T = jax.random.normal(key_x, shape, lq.dtype)
    latent = sample(sampler, lambda x, t: model.predict_noise(x, t, condition, prompts), x_T, key_s)
    return latent, condition


def restore_batch(
    model: MPerceiver,
    sampler: DDIM,
    lq: Float[Array, "b h w 3"],
    lq_clip: Float[Array, "b s s 3"],
    key: jax.Array,
    *,
    refine: bool = True,
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b classes"]]:
    """Restores a batch of pictures in [-1, 1] whose sides fit `model.config.multiple`.

    Args:
        refine: decode with the detail refinement module.

    Returns:
        (pictures in [-1, 1], not clipped; degradation logits).
    """
    latent, condition = sample_latent(model, sampler, lq, lq_clip, key)
    taps = condition.taps if refine else None
    return model.decode(latent, taps, condition.logits), condition.logits
