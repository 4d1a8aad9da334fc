"""The program of a training step without a single array: for counting, and for compiling it on devices elsewhere."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mperceiver_jax.config.experiment import Experiment
from mperceiver_jax.distributed import sharding
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restoration_model import RestorationModel
from mperceiver_jax.optim.optimizer import make_optimizer
from mperceiver_jax.training.stages.registry import build_stage
from mperceiver_jax.training.step import initial_state, make_step

AbstractArguments = tuple[Any, Any, Any, Any]
"""State, frozen parameters, batch and random key of a step, as `jax.ShapeDtypeStruct`."""


def abstract_arguments(
    experiment: Experiment, model: RestorationModel, name: str, mesh: Mesh | None = None
) -> AbstractArguments:
    """The arguments of the step of a stage, for one micro-batch.

    Args:
        mesh: they carry the shardings of training on it; None for one device.
    """
    config, stage = experiment.stages[name], build_stage(name, experiment, model)
    _, declared = parameters.split(model)
    extras = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in stage.extras().items()}
    storage = jnp.dtype(experiment.compute_dtype)
    trained: dict[str, Any] = {}
    frozen: dict[str, Any] = {}
    for path, leaf in {**declared, **extras}.items():
        part, dtype = (trained, leaf.dtype) if stage.is_trained(path) else (frozen, storage)
        part[path] = jax.ShapeDtypeStruct(leaf.shape, dtype)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = jax.eval_shape(lambda values: initial_state(values, optimizer, config.ema_decay > 0), trained)
    batch: Any = stage.batch_spec(config.batch_size // config.accumulation)
    if mesh is not None:
        layout, spread = sharding.ParameterLayout(mesh, experiment.mesh.rules), sharding.batch_sharding(mesh)
        state, frozen = layout.abstract(state), layout.abstract(frozen)
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread), batch)
    return state, frozen, batch, jax.eval_shape(lambda: jax.random.key(0))


def lower_step(
    experiment: Experiment, model: RestorationModel, name: str, mesh: Mesh | None = None
) -> jax.stages.Lowered:
    """Lowers the step of a stage for one micro-batch; nothing is allocated or compiled.

    Args:
        mesh: of devices that need not be in this machine; None for one device.
    """
    config, stage = experiment.stages[name], build_stage(name, experiment, model)
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = make_step(stage.loss, optimizer, ema_decay=config.ema_decay, mesh=mesh)
    arguments = abstract_arguments(experiment, model, name, mesh)
    if mesh is None:
        return jax.jit(step, donate_argnums=0).lower(*arguments)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, arguments[0])
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    return compiled.lower(*arguments)
