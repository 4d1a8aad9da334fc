"""From a degraded image to a restored one: condition once, sample a latent, decode."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

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


class Noise(NamedTuple):
    """What a restoration draws before it starts, of the latent's shape.

    Attributes:
        posterior: of the degraded image's latent.
        start: the latent that sampling starts from.
    """

    posterior: Float[Array, "b hh ww c"]
    start: Float[Array, "b hh ww c"]


def draw_noise(shape: tuple[int, ...], key: jax.Array, dtype: jax.typing.DTypeLike = "float32") -> Noise:
    """The noise of a batch of latents of that shape."""
    key_z, key_x, _ = jax.random.split(key, 3)
    return Noise(jax.random.normal(key_z, shape, dtype), jax.random.normal(key_x, shape))


def sample_latent(
    model: MPerceiver,
    sampler: Sampler,
    lq: Float[Array, "b h w 3"],
    lq_clip: Float[Array, "b *view 3"],
    key: jax.Array,
    logits: Float[Array, "b classes"] | None = None,
    noise: Noise | None = None,
) -> tuple[Float[Array, "b hh ww c"], Condition]:
    """(restored latent, scaled; the condition it was sampled under).

    `logits` take the place of the prediction, `noise` that of what is drawn.
    """
    noise = noise or draw_noise(model.config.latent_shape(lq.shape), key, lq.dtype)
    condition = model.condition(lq, lq_clip, noise.posterior, logits)
    # What no step changes is computed before the first: keys and values of the text and of the visual prompts.
    prompts = model.ir_adapter.prompts(lq.dtype)
    ready = condition._replace(context=model.unet.read(condition.context))

    def denoise(x, t):
        out = model.predict(x.astype(lq.dtype), t, ready, prompts)
        return out if model.config.prediction == "epsilon" else sampler.schedule.noise_of_velocity(x, out, t)

    latent = sampler(denoise, noise.start, jax.random.split(key, 3)[2])
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
    noise: Noise | None = None,
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b classes"]]:
    """Restores a batch of images in [-1, 1] whose sides fit `model.config.multiple`.

    Args:
        refine: decode with the detail refinement module.
        detail: share of the decoded image, before the refinement, in the result.
        logits: of the degradations, in place of the prediction.
        noise: in place of what is drawn by the key.

    Returns:
        (images in [-1, 1], not clipped; degradation logits).
    """
    latent, condition = sample_latent(model, sampler, lq, lq_clip, key, logits, noise)
    if not refine:
        return model.decode(latent), condition.logits
    refined = model.decode(latent, lq, condition.taps, condition.logits)
    if detail:
        # The same decoder on the same latent, which XLA computes once.
        refined = refined + detail * (model.decode(latent) - refined)
    return refined, condition.logits
