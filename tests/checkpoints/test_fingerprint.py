"""The fingerprint of parameters depends on every bit, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mperceiver_jax.checkpoints.fingerprint import fingerprint
from mperceiver_jax.distributed.sharding import MeshConfig, make_mesh

WEIGHT = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
REFERENCE = fingerprint({"a.weight": WEIGHT, "b.bias": np.ones(3, np.float32)})


def test_is_the_same_on_any_mesh():
    meshes = {MeshConfig(data=1, fsdp=8): P("fsdp"), MeshConfig(data=2, fsdp=4): P("data", "fsdp")}
    for config, spec in meshes.items():
        placed = jax.device_put(WEIGHT, NamedSharding(make_mesh(config), spec))
        assert fingerprint({"b.bias": jnp.ones(3), "a.weight": placed}) == REFERENCE


def _flip_one_bit(weight):
    weight.view(np.uint32)[7, 3] ^= 1


def _swap(weight):
    weight[2, 1], weight[5, 6] = weight[5, 6], weight[2, 1]


@pytest.mark.parametrize("change", [_flip_one_bit, _swap])
def test_sees_a_bit_and_an_exchange(change):
    weight = WEIGHT.copy()
    change(weight)
    assert fingerprint({"a.weight": weight, "b.bias": np.ones(3, np.float32)}) != REFERENCE


def test_sees_elements_of_opposite_sign_change_places():
    first, second = np.asarray([1.5, -1.5], np.float32), np.asarray([-1.5, 1.5], np.float32)
    assert fingerprint({"w": first}) != fingerprint({"w": second})


def test_sees_names_shapes_and_dtypes():
    ones = np.ones(3, np.float32)
    others = [
        {"a.weights": WEIGHT, "b.bias": ones},
        {"a.weight": WEIGHT.reshape(8, 16), "b.bias": ones},
        {"a.weight": WEIGHT.view(np.int32), "b.bias": ones},
        {"a.weight": WEIGHT},
    ]
    assert len({REFERENCE, *map(fingerprint, others)}) == 5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.int8, np.bool_, np.int32])
def test_takes_every_width(dtype):
    values = jnp.asarray([0, 1, 1, 0], dtype)
    assert fingerprint({"a": values}) == fingerprint({"a": np.asarray(values)})
    assert fingerprint({"a": values}) != fingerprint({"a": values[::-1].at[0].set(values[1])})
