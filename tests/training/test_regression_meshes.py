"""A restorer by regression trains the same on one device and on a mesh."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.models import parameters
from mperceiver_jax.models.restorers.mioir.srresnet import SRResNetConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig, make_optimizer
from mperceiver_jax.training.stages.registry import build_stage
from mperceiver_jax.training.step import initial_state, make_step
from tests.support.tiny_restorer_run import experiment_of

THRESHOLD = 256  # bytes, so that tensors of the tiny network are divided over `fsdp` too
STEPS = 3


def train(config: MeshConfig, devices: int):
    mesh = sharding.make_mesh(config, jax.devices()[:devices])
    experiment = experiment_of("mioir_srresnet", SRResNetConfig(8, 1, prompts="explicit"), "mioir")
    model = experiment.build()
    # Plain descent: Adam would make rounding as large as any step.
    descent = OptimizerConfig(learning_rate=1e-3, eps=1.0, spike_limit=5.0)
    stages = {"regression": replace(experiment.stages["regression"], optimizer=descent)}
    stage = build_stage("regression", replace(experiment, stages=stages), model)
    optimizer = make_optimizer(descent, STEPS)
    start = parameters.initial_values(model, 0, lambda path, value: value)
    values = sharding.ParameterLayout(mesh, threshold=THRESHOLD).place_all(start)
    state = initial_state(values, optimizer, ema=True)
    rng = np.random.default_rng(0)
    batch = {name: rng.random((8, 16, 16, 3), np.float32) for name in ("lq", "gt")}
    batch |= {"task": np.arange(8, dtype=np.int32) % 7}
    step = jax.jit(make_step(stage.loss, optimizer, ema_decay=0.5, mesh=mesh))
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, {}, sharding.to_global(mesh, batch), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.trainable), values


@pytest.fixture(scope="module")
def alone():
    losses, values, before = train(MeshConfig(data=1), 1)
    moved = [path for path in values if not np.allclose(values[path], before[path], atol=1e-7)]
    assert len(set(losses)) == STEPS and len(moved) > len(values) / 2
    return losses, values


def test_a_mesh_trains_as_one_device_does(alone):
    losses, values, placed = train(MeshConfig(data=4, fsdp=2), 8)
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for path, value in values.items():
        np.testing.assert_allclose(value, alone[1][path], rtol=1e-4, atol=1e-6)
    divided = [path for path, value in placed.items() if not value.sharding.is_fully_replicated]
    assert "network.body1.0.conv1.weight" in divided
