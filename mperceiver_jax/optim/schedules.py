"""Learning-rate schedules of other published systems: tables by epoch, and cosines with restarts.

All are functions of the number of updates made, from 0, and return float32 scalars.
"""

import jax
import jax.numpy as jnp
import optax


def by_epoch(
    peak: float, epoch: int, warmup: int, horizon: int, start_fraction: float = 0.0, lag: int = 0
) -> optax.Schedule:
    """Linear warm-up, then cosine to zero; constant within an epoch (PromptIR, AM-PromptIR, PIP).

    Args:
        epoch: updates in an epoch.
        warmup, horizon: updates until the peak, and until the cosine reaches zero. Beyond the horizon it rises
            again, as published.
        start_fraction: of the peak, in the first epoch.
        lag: epochs with a rate of zero before the schedule starts; the release of PromptIR has one.
    """
    rising, end = warmup // epoch, horizon // epoch

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        k = jnp.asarray(step) // epoch - lag
        rise = start_fraction + (1 - start_fraction) * k / max(rising - 1, 1)
        fall = 0.5 * (1 + jnp.cos(jnp.pi * (k - rising) / max(end - rising, 1)))
        return jnp.where(k < 0, 0.0, peak * jnp.where(k < rising, rise, fall))

    return rate


def with_restarts(peak: float, period: int, final_fraction: float = 0.0) -> optax.Schedule:
    """Cosine from the peak down to `final_fraction` of it, restarted every `period` updates (MiOIR).

    The update after a whole cycle still has the lowest rate, as in the release.
    """

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        k = jnp.asarray(step)
        cycle = jnp.maximum((k + period - 1) // period - 1, 0)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * (k - cycle * period) / period))
        return peak * (final_fraction + (1 - final_fraction) * cosine)

    return rate
