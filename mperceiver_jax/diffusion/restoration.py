"""From a degraded image to a restored one: condition once, sample a latent, decode."""

from typing import Literal, Protocol, runtime_checkable

import jax
from jaxtyping import Float

from mperceiver_jax.diffusion.dpm_solver import DPMSolver
from mperceiver_jax.diffusion.samplers import DDIM
from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.mperceiver.model import Condition, MPerceiver

Sampler = DDIM | DPMSolver
SamplerName = Literal["ddim", "reference", "dpmpp_2m"]


def to_model_range(image: Array, dtype: jax.typing.DTypeLike) -> Array:
    """Images in [0, 1] -> [-1, 1], the range of MPerceiver, in the compute dtype."""
    return (image * 2 - 1).astype(dtype)


@runtime_checkable
class SamplerChoice(Protocol):
    """What a configuration says of a sampler: its name, number of steps, eta (of `ddim` and `reference`)."""

    @property
    def name(self) -> SamplerName: ...

    @property
    def steps(self) -> int: ...

    @property
    def eta(self) -> float: ...


def sampler_of(choice: SamplerChoice, schedule: Schedule | None = None) -> Sampler:
    """The sampler that a configuration names.

    Raises:
        ValueError: a number of steps or an eta that it does not take.
    """
    schedule = schedule or Schedule()
    if choice.name != "dpmpp_2m":
        return DDIM(schedule, steps=choice.steps, eta=choice.eta, mode=choice.name)
    if choice.eta:
        raise ValueError(f"eta: the sampler 'dpmpp_2m' draws no noise and needs eta 0, not {choice.eta}")
    return DPMSolver(schedule, steps=choice.steps)


def sample_latent(
    model: MPerceiver,
    sampler: Sampler,
    lq: Float[Array, "b h w 3"],
    lq_clip: Float[Array, "b *view 3"],
    key: jax.Array,
    logits: Float[Array, "b classes"] | None = None,
) -> tuple[Float[Array, "b hh ww c"], Condition]:
    """(restored latent, scaled; the condition it was sampled under). `logits` take the place of the prediction."""
    shape = model.latent_shape(lq.shape)
    key_z, key_x, key_s = jax.random.split(key, 3)
    condition = model.condition(lq, lq_clip, jax.random.normal(key_z, shape, lq.dtype), logits)
    # What no step changes is computed before the first: keys and values of the text and of the visual prompts.
    prompts = model.ir_adapter.prompts(lq.dtype)
    ready = condition._replace(context=model.unet.read(condition.context))

    def denoise(x, t):
        out = model.predict(x.astype(lq.dtype), t, ready, prompts)
        return out if model.config.prediction == "epsilon" else sampler.schedule.noise_of_velocity(x, out, t)

    latent = sampler(denoise, jax.random.normal(key_x, shape), key_s)
    return latent.astype(lq.dtype), condition


def restore_batch(
    model: MPerceiver,
    sampler: Sampler,
    lq: Float[Array, "b h w 3"],
    lq_clip: Float[Array, "b *view 3"],
    key: jax.Array,
    *,
    refine: bool = True,
    detail: float = 0.0,
    logits: Float[Array, "b classes"] | None = None,
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b classes"]]:
    """Restores a batch of images in [-1, 1] whose sides fit `model.config.multiple`.

    Args:
        refine: decode with the detail refinement module.
        detail: share of the decoded image, before the refinement, in the result.
        logits: of the degradations, in place of the prediction.

    Returns:
        (images in [-1, 1], not clipped; degradation logits).
    """
    latent, condition = sample_latent(model, sampler, lq, lq_clip, key, logits)
    if not refine:
        return model.decode(latent), condition.logits
    refined = model.decode(latent, lq, condition.taps, condition.logits)
    if detail:
        # The same decoder on the same latent, which XLA computes once.
        refined = refined + detail * (model.decode(latent) - refined)
    return refined, condition.logits
