"""Limit the effect of batches whose loss is far above the usual (the release of PIP)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

MEMORY = 100
"""Number of losses that are remembered."""


class SpikeLimiterState(NamedTuple):
    """The last losses, infinite where there are none yet, and the number of updates."""

    losses: jax.Array
    updates: jax.Array


def limit_spikes(factor: float) -> optax.GradientTransformationExtraArgs:
    """Scales the gradient of a loss spike down.

    Where a loss is more than `factor` times the smallest of the last hundred, the gradient is scaled as if the
    loss had been half of that. `update` needs the loss as `value`; in a distributed run that is the global one.
    `aux_grads` are the gradients of auxiliary losses, a part of the gradients, and are left unscaled.
    """

    def init(params: Any) -> SpikeLimiterState:
        return SpikeLimiterState(jnp.full((MEMORY,), jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: SpikeLimiterState,
        params: Any = None,
        *,
        value: jax.Array,
        aux_grads: Any = None,
        **extra: Any,
    ) -> tuple[Any, SpikeLimiterState]:
        value = jnp.asarray(value, jnp.float32)
        losses = state.losses.at[state.updates % MEMORY].set(value)
        least = losses.min()
        scale = jnp.where(value > factor * least, 0.5 * factor * least / value, 1.0)
        rest = jax.tree.map(jnp.zeros_like, updates) if aux_grads is None else aux_grads
        updates = jax.tree.map(lambda g, r: g * scale + r * (1 - scale), updates, rest)
        return updates, SpikeLimiterState(losses, state.updates + 1)

    return optax.GradientTransformationExtraArgs(init, update)
