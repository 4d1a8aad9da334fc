"""The training step: one pure function, jitted once per stage, the same on every mesh.

Trained and frozen parameters are separate arguments, so that gradients, optimizer
state and checkpoints exist for the trained ones only. Random numbers come from the
root key folded with the step and the micro-batch, and are drawn at the global batch
shape: every process agrees, no two examples share a timestep or noise, and results do
not depend on how the batch is spread.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mperceiver_jax.models.parameters import Params

Metrics = dict[str, jax.Array]
Loss = Callable[[Params, dict[str, jax.Array], jax.Array, jax.Array], tuple[jax.Array, Metrics]]


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        step: number of updates made, int32 scalar.
        trainable: float32 parameters being trained, by path.
        opt_state: the optimizer's state.
        ema: exponential moving average of `trainable`; empty when it is off.
    """

    step: jax.Array
    trainable: Params
    opt_state: Any
    ema: Params


def initial_state(trainable: Params, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """The state before the first step. Pure, so that it can be evaluated abstractly or under jit."""
    # The average must not share buffers with the parameters: both are donated.
    average = jax.tree.map(lambda x: x + 0, trainable) if ema else {}
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), average)


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    ema_decay: float = 0.0,
    mesh: Mesh | None = None,
    limits_spikes: bool = False,
) -> Callable[[TrainState, Params, dict[str, jax.Array], jax.Array], tuple[TrainState, Metrics]]:
    """Builds `step(state, frozen, batch, root_key) -> (state, metrics)`.

    Args:
        loss: `loss(all parameters, micro-batch, key, step) -> (scalar, metrics)`, a mean over the micro-batch.
        accumulation: micro-batches per update, run one after another by a scan inside the step.
        ema_decay: 0 switches the moving average off.
        mesh: where the batch is spread; None on one device.
        limits_spikes: the optimizer scales the gradient of loss spikes. The loss's metrics divide it into a `distance`
            and an auxiliary loss `beside`; the optimizer receives the distance and the gradient of the other.

    A step whose loss or gradient is not finite leaves parameters, optimizer and average as
    they were; `metrics['finite']` is then 0 and the step still counts.
    """

    def gradients(trainable, frozen, batch, key, step):
        scalar = lambda trained: loss({**frozen, **trained}, batch, key, step)
        (value, metrics), grads = jax.value_and_grad(scalar, has_aux=True)(trainable)
        more = lambda trained: jnp.asarray(scalar(trained)[1].get("beside", 0.0))
        beside = jax.grad(more)(trainable) if limits_spikes else None
        return (grads, beside), {"loss": value, **metrics}

    def accumulated(trainable, frozen, batch, key, step):
        if accumulation == 1:
            return gradients(trainable, frozen, batch, jax.random.fold_in(key, 0), step)
        micro = jax.tree.map(lambda x: _micro_batches(x, accumulation, mesh), batch)

        def body(total, indexed):
            index, part = indexed
            grads, metrics = gradients(trainable, frozen, part, jax.random.fold_in(key, index), step)
            return jax.tree.map(jnp.add, total, grads), metrics

        zeros = jax.tree.map(jnp.zeros_like, (trainable, trainable if limits_spikes else None))
        total, metrics = jax.lax.scan(body, zeros, (jnp.arange(accumulation), micro))
        return jax.tree.map(lambda g: g / accumulation, total), jax.tree.map(lambda m: m.mean(0), metrics)

    # Transformations that look at the loss get it; others take no notice.
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state, frozen, batch, root_key):
        key = jax.random.fold_in(root_key, state.step)
        (grads, beside), metrics = accumulated(state.trainable, frozen, batch, key, state.step)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        judged = metrics["distance" if "beside" in metrics else "loss"]
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable, value=judged, beside=beside)
        trainable = optax.apply_updates(state.trainable, updates)
        decay = ema_decay
        ema = {k: decay * v + (1 - decay) * trainable[k] for k, v in state.ema.items()}
        new = TrainState(state.step, trainable, opt_state, ema)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        metrics = {**metrics, "grad_norm": norm, "finite": finite.astype(jnp.float32)}
        return kept._replace(step=state.step + 1), metrics

    return step


def _micro_batches(x: jax.Array, accumulation: int, mesh: Mesh | None) -> jax.Array:
    """(batch, ...) -> (accumulation, batch / accumulation, ...), each micro-batch spread over the mesh."""
    x = x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1)
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, ("data", "fsdp"))))
