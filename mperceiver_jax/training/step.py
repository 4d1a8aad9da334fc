"""The training step: one pure function, jitted once per stage, the same on every mesh.

Trained and frozen parameters are separate arguments, so that gradients, optimizer state and checkpoints exist for
the trained ones only. Random numbers come from the root key folded with the step and the micro-batch, and are
drawn at the global batch shape: every process agrees, no two examples share a timestep or noise, and results do
not depend on how the batch is spread.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mperceiver_jax.distributed.sharding import traced_over
from mperceiver_jax.models.parameters import Params

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class SplitLoss(NamedTuple):
    """A loss of two scalars whose sum is minimised.

    Transformations of the optimizer that take extra arguments receive the first as `value` and the gradient of
    the second as `aux_grads`, so that they can treat the two differently.
    """

    main: jax.Array
    auxiliary: jax.Array


Loss = Callable[[Params, Batch, jax.Array, jax.Array], tuple[jax.Array | SplitLoss, Metrics]]


class TrainState(NamedTuple):
    """The state that a step changes.

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


class Gradients(NamedTuple):
    """The gradient of the whole loss and, of a split one, that of its auxiliary part."""

    total: Params
    auxiliary: Params | None


Step = Callable[[TrainState, Params, Batch, jax.Array], tuple[TrainState, Metrics]]


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
) -> Step:
    """Builds `step(state, frozen, batch, root_key) -> (state, metrics)`.

    A step whose loss or gradient is not finite leaves parameters, optimizer and average as they were;
    `metrics['finite']` is then 0 and the step still counts.

    Args:
        loss: `loss(all parameters, micro-batch, key, step) -> (loss, metrics)`, a mean over the micro-batch.
        accumulation: micro-batches per update, run one after another by a scan inside the step.
        ema_decay: 0 switches the moving average off.
        mesh: where the batch is spread; None on one device.
    """
    # Passes the loss to transformations that accept extra arguments.
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, frozen: Params, batch: Batch, root_key: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(root_key, state.step)
        gradients = lambda part, part_key: _gradients(loss, state, frozen, part, part_key)
        grads, metrics = _accumulated(gradients, batch, key, accumulation, mesh)
        norm = optax.global_norm(grads.total)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updated = _updated(state, grads, metrics.pop("value"), optimizer, ema_decay)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        metrics = {**metrics, "grad_norm": norm, "finite": finite.astype(jnp.float32)}
        return kept._replace(step=state.step + 1), metrics

    return step if mesh is None else traced_over(mesh, step)


def _gradients(
    loss: Loss, state: TrainState, frozen: Params, batch: Batch, key: jax.Array
) -> tuple[Gradients, Metrics]:
    """Gradients with respect to the trained parameters, and the metrics with `loss` and `value`."""
    scalars = lambda trained: loss({**frozen, **trained}, batch, key, state.step)
    value, pull_back, metrics = jax.vjp(scalars, state.trainable, has_aux=True)
    if not isinstance(value, SplitLoss):
        (total,) = pull_back(jnp.ones_like(value))
        return Gradients(total, None), {"loss": value, "value": value, **metrics}
    one, zero = jnp.ones_like(value.main), jnp.zeros_like(value.main)
    (main,) = pull_back(SplitLoss(one, zero))
    (auxiliary,) = pull_back(SplitLoss(zero, one))
    total = jax.tree.map(jnp.add, main, auxiliary)
    return Gradients(total, auxiliary), {"loss": value.main + value.auxiliary, "value": value.main, **metrics}


def _accumulated(
    gradients: Callable[[Batch, jax.Array], tuple[Gradients, Metrics]],
    batch: Batch,
    key: jax.Array,
    accumulation: int,
    mesh: Mesh | None,
) -> tuple[Gradients, Metrics]:
    """Means of gradients and metrics over the micro-batches, each with a key of its own."""
    if accumulation == 1:
        return gradients(batch, jax.random.fold_in(key, 0))
    micro = jax.tree.map(lambda x: _micro_batches(x, accumulation, mesh), batch)

    def body(total: Gradients, indexed: tuple[jax.Array, Batch]) -> tuple[Gradients, Metrics]:
        index, part = indexed
        grads, metrics = gradients(part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, grads), metrics

    first = jax.tree.map(lambda x: x[0], micro)
    shapes, _ = jax.eval_shape(gradients, first, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, metrics = jax.lax.scan(body, zeros, (jnp.arange(accumulation), micro))
    return jax.tree.map(lambda g: g / accumulation, total), jax.tree.map(lambda m: m.mean(0), metrics)


def _updated(
    state: TrainState,
    grads: Gradients,
    value: jax.Array,
    optimizer: optax.GradientTransformationExtraArgs,
    decay: float,
) -> TrainState:
    updates, opt_state = optimizer.update(
        grads.total, state.opt_state, state.trainable, value=value, aux_grads=grads.auxiliary
    )
    trainable = optax.apply_updates(state.trainable, updates)
    ema = {path: decay * average + (1 - decay) * trainable[path] for path, average in state.ema.items()}
    return TrainState(state.step, trainable, opt_state, ema)


def _micro_batches(x: jax.Array, accumulation: int, mesh: Mesh | None) -> jax.Array:
    """(batch, ...) -> (accumulation, batch / accumulation, ...), each micro-batch spread over the mesh."""
    x = x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1)
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, ("data", "fsdp"))))
