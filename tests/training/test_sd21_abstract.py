"""The stages at the paper's scale, traced and lowered for eight devices without a single array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig, make_optimizer
from mperceiver_jax.training.stages.registry import build_stage
from mperceiver_jax.training.step import initial_state, make_step
from tests.support.tiny_model import tiny_experiment

WHOLE = 2_126_060_613  # the sum of the specification's table: every part, whether a stage trains it or not


def _abstract(stage_name: str, mesh: jax.sharding.Mesh):
    """(jitted step, its arguments), all abstract: trained float32, frozen bfloat16, 8 images of 512 px."""
    config = MPerceiverConfig.sd21()
    model = MPerceiver(config)
    stage = build_stage(stage_name, tiny_experiment(config, dtype="bfloat16"), model)
    trained, frozen = {}, {}
    for path, value in parameters.split(model)[1].items():
        own = stage.is_trained(path)
        part, dtype = (trained, jnp.float32) if own else (frozen, jnp.bfloat16)
        part[path] = jax.ShapeDtypeStruct(value.shape, dtype)
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=10, clip_norm=1.0), 1000)
    begin = lambda values: initial_state(values, optimizer, ema=True)
    state = sharding.ParameterLayout(mesh).abstract(jax.eval_shape(begin, trained))
    spread = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((8, *shape), dtype, sharding=spread)
        for name, shape, dtype in (
            ("lq", (512, 512, 3), jnp.float32),
            ("gt", (512, 512, 3), jnp.float32),
            ("lq_clip", (224, 224, 3), jnp.float32),
            ("task", (), jnp.int32),
        )
    }
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(
        make_step(stage.loss, optimizer, ema_decay=0.999, mesh=mesh),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step, (state, sharding.ParameterLayout(mesh).abstract(frozen), batch, key)


def _count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_the_dual_branch_lowers_for_a_mesh_and_takes_no_memory():
    before = {id(array) for array in jax.live_arrays()}
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
    step, (state, frozen, batch, key) = _abstract("dual_branch", mesh)
    assert (_count(state.trainable), len(state.trainable)) == (168_146_432, 469)
    assert _count(state.opt_state) == 2 * 168_146_432 + 2  # both moments, Adam's count and the schedule's
    assert _count(frozen) == WHOLE - 168_146_432
    assert not state.trainable.keys() & frozen.keys()
    assert frozen["text_encoder.token_embedding.weight"].sharding.spec == P("fsdp")
    gamma = "unet.mid_block.resnets.0.spade.mlp_gamma.weight"
    adam = next(
        part for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    for kept in (state.trainable, state.ema, adam.mu, adam.nu):
        assert kept[gamma].sharding.spec == P(None, None, None, "fsdp")
        assert kept[gamma].dtype == jnp.float32

    lowered = step.lower(state, frozen, batch, key)
    after, metrics = lowered.out_info
    assert metrics.keys() == {"loss", "grad_norm", "finite"}
    assert all(metric.shape == () and metric.dtype == jnp.float32 for metric in metrics.values())
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, after, state)
    assert all(jax.tree.leaves(same))
    text = lowered.as_text()
    # Nothing large became a constant of the program, and the trained state is donated, nothing else.
    assert len(text) < 20e6
    donated = [info.donated for info in jax.tree.leaves(lowered.args_info)]
    leaves = len(jax.tree.leaves(state))
    assert all(donated[:leaves]) and not any(donated[leaves:])
    assert [array for array in jax.live_arrays() if id(array) not in before] == []


@pytest.mark.parametrize(("stage", "trained"), [("predictor", 529_417), ("drm", 21_710_736)])
def test_the_other_stages_trace(stage, trained):
    step, inputs = _abstract(stage, sharding.make_mesh(MeshConfig(data=8)))
    after, metrics = jax.eval_shape(step, *inputs)
    assert _count(after.trainable) == trained and _count(inputs[1]) == WHOLE - trained
    assert metrics["loss"].dtype == jnp.float32
