"""The same training on every mesh: one device, data parallel, FSDP, and two processes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.models.mperceiver.model import MPerceiver
from mperceiver_jax.optim.optimizer import OptimizerConfig, make_optimizer
from mperceiver_jax.training.stages.base import timesteps_and_noise
from mperceiver_jax.training.stages.registry import build_stage
from mperceiver_jax.training.step import initial_state, make_step
from tests.support.processes import run_processes
from tests.support.tiny_model import single_scale_config, tiny_batch, tiny_experiment, tiny_values

THRESHOLD = 256  # bytes, so that tensors of the tiny model are divided over `fsdp` too
NAMED = "ir_adapter.fea_tran.0.conv1.weight"


def train(mesh, steps=3):
    """(losses and gradient norms, state after them, program text) of the dual branch, from the same start."""
    model = MPerceiver(single_scale_config())
    stage = build_stage("dual_branch", tiny_experiment(model.config), model)
    parts = ({}, {})
    for path, value in tiny_values(model).items():
        parts[not stage.is_trained(path)][path] = value
    layout = sharding.ParameterLayout(mesh, threshold=THRESHOLD)
    trained, frozen = (layout.place_all(part) for part in parts)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, clip_norm=1.0), steps)
    begin = lambda values: initial_state(values, optimizer, ema=True)
    shardings = layout.tree(jax.eval_shape(begin, trained))
    state = jax.jit(begin, out_shardings=shardings)(trained)
    step = jax.jit(
        make_step(stage.loss, optimizer, ema_decay=0.9, mesh=mesh),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    index, count = sharding.data_share(mesh)
    batch = {name: np.split(value, count)[index] for name, value in tiny_batch(8).items()}
    inputs = (frozen, sharding.to_global(mesh, batch), jax.random.key(0))
    compiled = step.lower(state, *inputs).compile()
    losses = []
    for _ in range(steps):
        state, metrics = compiled(state, *inputs)
        losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.asarray(losses), state, compiled.as_text()


@pytest.fixture(scope="module")
def one_device():
    losses, state, _ = train(sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    assert np.isfinite(losses).all() and len(np.unique(losses[:, 0])) == 3
    return losses, state


def test_data_parallel_equals_one_device(one_device):
    losses, state, text = train(sharding.make_mesh(MeshConfig(data=8)))
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    _same(state, one_device[1])
    assert state.trainable[NAMED].sharding.spec == P()
    assert " all-reduce(" in text and " all-gather(" not in text


def test_fsdp_equals_one_device_and_really_divides(one_device):
    losses, state, text = train(sharding.make_mesh(MeshConfig(data=1, fsdp=8)))
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    _same(state, one_device[1])
    moments = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if NAMED in str(path)]
    assert len(moments) == 2
    for value in (state.trainable[NAMED], state.ema[NAMED], *moments):
        assert value.sharding.spec == P(None, None, "fsdp")
        assert {shard.data.shape for shard in value.addressable_shards} == {(3, 3, 2, 16)}
    assert " all-gather(" in text


def test_two_processes_equal_one_device(one_device):
    outputs = run_processes(
        """
        import json
        import jax
        from mperceiver_jax.distributed import sharding
        from mperceiver_jax.distributed.sharding import MeshConfig
        from tests.training.test_meshes import NAMED, train

        assert jax.process_count() == 2 and jax.device_count() == 8
        mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
        assert sharding.data_share(mesh) == (jax.process_index(), 2)
        losses, state, _ = train(mesh)
        assert "fsdp" in state.trainable[NAMED].sharding.spec
        print(json.dumps(losses.tolist()))
        """
    )
    first, second = (np.asarray(json.loads(output.splitlines()[-1])) for output in outputs)
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first, one_device[0], rtol=1e-5)


def _draws(mesh):
    """(timesteps, noise) of two updates of four micro-batches, as the dual branch draws them on a mesh."""

    def loss(params, batch, key, step):
        key_t, key_n = jax.random.split(key)
        t, noise = timesteps_and_noise(key_t, key_n, batch["z"])
        # Where the scan averages the micro-batches' metrics, each fills its own row of them.
        row = (jnp.arange(4) == batch["micro"][0]).astype(jnp.float32)
        return (params["w"] * 0).sum(), {
            "t": 4 * row[:, None] * t,
            "noise": 4 * row[:, None, None] * noise[None],
        }

    optimizer = make_optimizer(OptimizerConfig(), 2)
    step = jax.jit(make_step(loss, optimizer, accumulation=4, mesh=mesh))
    state = initial_state({"w": jnp.ones(2)}, optimizer, ema=False)
    batch = {"z": np.zeros((32, 5), np.float32), "micro": np.arange(32, dtype=np.int32) % 4}
    found = []
    for _ in range(2):
        state, metrics = step(state, {}, sharding.to_global(mesh, batch), jax.random.key(3))
        found.append([np.asarray(metrics[name]).reshape(32, -1) for name in ("t", "noise")])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def test_no_two_examples_share_a_draw_and_meshes_agree():
    t, noise = _draws(sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    assert noise.shape == (64, 5) and len(np.unique(noise)) == noise.size
    assert len(np.unique(t)) > 50 and t.min() >= 0 and t.max() <= 999
    for config in (MeshConfig(data=8), MeshConfig(data=2, fsdp=4)):
        elsewhere = _draws(sharding.make_mesh(config))
        assert np.array_equal(elsewhere[0], t) and np.array_equal(elsewhere[1], noise)


def _same(state, expected):
    # Adam divides by the root of the second moment, so a gradient near zero magnifies rounding: compare
    # against the length of a step, three of them.
    for path, value in expected.trainable.items():
        np.testing.assert_allclose(state.trainable[path], value, atol=3e-5, rtol=1e-5, err_msg=path)
