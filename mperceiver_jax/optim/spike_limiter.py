"""Updates of a batch whose loss is far above the usual count less (PIP's release)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

MEMORY = 100
"""Losses that are remembered."""


class SpikeLimiterState(NamedTuple):
    """The last losses, infinite where there are none yet, and the number of updates."""

    losses: jax.Array
    updates: jax.Array


def limit_spikes(factor: float) -> optax.GradientTransformationExtraArgs:
    """Where a loss is more than `factor` times the least of the last hundred, the gradient is scaled as if it had
    been half of that. Its `update` needs the loss as `value`; in a distributed run that is the global one.

    Where more than that loss is minimised, `beside` is the gradient of what more, which stays as it is.
    """

    def init(params: Any) -> SpikeLimiterState:
        return SpikeLimiterState(jnp.full((MEMORY,), jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: SpikeLimiterState,
        params: Any = None,
        *,
        value: jax.Array,
        beside: Any = None,
        **extra: Any,
    ) -> tuple[Any, SpikeLimiterState]:
        value = jnp.asarray(value, jnp.float32)
        losses = state.losses.at[state.updates % MEMORY].set(value)
        least = losses.min()
        scale = jnp.where(value > factor * least, 0.5 * factor * least / value, 1.0)
        rest = jax.tree.map(jnp.zeros_like, updates) if beside is None else beside
        updates = jax.tree.map(lambda g, r: g * scale + r * (1 - scale), updates, rest)
        return updates, SpikeLimiterState(losses, state.updates + 1)

    return optax.GradientTransformationExtraArgs(init, update)
