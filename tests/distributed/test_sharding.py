"""Meshes, the rules that place arrays on them, and batches."""

import math
import re
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1)),
        (MeshConfig(fsdp=2, model=2), (2, 2, 2)),
    ],
)
def test_minus_one_takes_the_devices_that_remain(config, shape):
    mesh = sharding.make_mesh(config)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "model"), shape, strict=True))
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=3), "multiply to 3, but there are 8"),
        (MeshConfig(data=-1, fsdp=3), "8 devices do not divide by 3"),
        (MeshConfig(data=-1, fsdp=-1), "at most one is -1"),
        (MeshConfig(data=0), "sizes are positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(config)


def _slices(slices, each):
    return [
        SimpleNamespace(slice_index=s, id=s * each + i, process_index=s, platform="cpu", device_kind="cpu")
        for s in range(slices)
        for i in range(each)
    ]


def test_only_data_crosses_slices():
    grid = sharding.device_grid(MeshConfig(data=4, fsdp=2), _slices(2, 4))
    assert grid.shape == (4, 2, 1)
    slices = [[device.slice_index for device in row] for row in grid[:, :, 0]]
    assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(ValueError, match="data=1 does not divide by the 2 slices"):
        sharding.device_grid(MeshConfig(data=1, fsdp=8), _slices(2, 4))


def _spec(mesh, path, shape, dtype_size=4, **layout):
    return sharding.ParameterLayout(mesh, **layout).sharding(path, shape, dtype_size).spec


def test_large_tensors_are_divided_over_fsdp_along_their_largest_dimension_that_divides():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
    assert _spec(mesh, "conv.weight", (3, 3, 512, 1024)) == P(None, None, None, "fsdp")
    assert _spec(mesh, "conv.weight", (3, 3, 1026, 512)) == P(None, None, None, "fsdp")
    assert _spec(mesh, "odd.weight", (1025, 1027)) == P()
    assert _spec(mesh, "at.weight", (1024, 1024)) == P()
    assert _spec(mesh, "above.weight", (1024, 1028)) == P(None, "fsdp")
    assert _spec(mesh, "above.weight", (1024, 1028), dtype_size=2) == P()
    assert _spec(mesh, "small.weight", (8, 4), threshold=0) == P("fsdp")
    assert _spec(mesh, "b.attn1.to_q.weight", (8, 4), threshold=64) == P("fsdp")


def test_tensor_parallelism_divides_attention_and_feed_forward():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, model=2))
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    assert _spec(mesh, f"{block}.attn1.to_q.weight", (32, 32)) == P(None, "model")
    assert _spec(mesh, f"{block}.attn1.to_out.0.weight", (32, 32)) == P("model")
    assert _spec(mesh, f"{block}.attn1.to_out.0.bias", (32,)) == P()
    assert _spec(mesh, f"{block}.ff.net.0.proj.weight", (32, 256)) == P(None, "model")
    assert _spec(mesh, f"{block}.ff.net.2.weight", (128, 32)) == P("model")
    assert _spec(mesh, f"{block}.attn1.to_q.weight", (32, 33)) == P()
    assert _spec(mesh, f"{block}.ff.net.0.proj.weight", (32, 256), threshold=0) == P("fsdp", "model")


def test_optimizer_state_lies_with_its_parameters():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
    params = {"a.weight": jnp.zeros((16, 8)), "a.bias": jnp.zeros((3,))}
    state = jax.eval_shape(optax.adamw(1e-3).init, params)
    placed = sharding.ParameterLayout(mesh, threshold=0).abstract(state)
    assert placed[0].mu["a.weight"].sharding.spec == P("fsdp")
    assert placed[0].mu["a.bias"].sharding.spec == P()
    assert placed[0].count.sharding.spec == P()
    assert placed[0].nu["a.weight"].shape == (16, 8)


def test_placing_parameters_puts_a_part_on_each_device():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
    value = np.arange(128, dtype=np.float32).reshape(16, 8)
    for given in (value, jnp.asarray(value)):
        placed = sharding.ParameterLayout(mesh, threshold=0).place("a.weight", given, dtype=jnp.bfloat16)
        assert placed.dtype == jnp.bfloat16
        assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 8)}
        np.testing.assert_array_equal(np.asarray(placed, np.float32), value)


def test_batches_are_divided_over_data_and_fsdp():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    assert sharding.data_share(mesh) == (0, 1)
    batch = {"lq": np.arange(24, dtype=np.float32).reshape(8, 3), "task": np.arange(8, dtype=np.int32)}
    placed = sharding.to_global(mesh, batch)
    assert placed["lq"].sharding.spec == P(("data", "fsdp"))
    assert {shard.data.shape for shard in placed["lq"].addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(placed["lq"], batch["lq"])
    with pytest.raises(ValueError, match="'task' has 6 examples, which do not divide over data x fsdp = 4"):
        sharding.to_global(mesh, {"task": np.arange(6)})


def test_the_model_axis_divides_attention_and_feed_forward_of_every_part():
    """Counted on the published sizes, without an array; the layers are found by type, not by the rules."""
    declared = parameters.declared(MPerceiver(MPerceiverConfig.sd21()))
    layers = "|".join(
        (
            r"\.attns?\d*\.",
            r"\.attentions\.\d+\.to_",
            r"prompt_attns",
            r"\.qkv\.|(input_blocks\.\d+|middle_block)\.\d+\.proj_out\.",
            r"\.mlp\.|\.ff\.",
        )
    )
    sizes = {path: variable.get_value().shape for path, variable in declared.items() if re.search(layers, path)}
    mesh = sharding.make_mesh(MeshConfig(data=1, model=8))
    layout = sharding.ParameterLayout(mesh, MeshConfig().rules)
    total, divided = Counter(), Counter()
    for path, shape in sizes.items():
        part = path.split(".")[0]
        total[part] += math.prod(shape)
        divided[part] += math.prod(shape) * ("model" in layout.sharding(path, shape).spec)
    assert set(total) == {"unet", "vae", "text_encoder", "predictor", "cm_inv", "ir_adapter"}
    assert {part for part in total if divided[part] < 0.95 * total[part]} == set()
    # Both CLIP towers consist of little else.
    assert divided["predictor"] > 600e6 and divided["text_encoder"] > 290e6


@pytest.mark.parametrize(("rule", "message"), [(("(", 0), "not a regular expression"), (("x", -1), "counts from 0")])
def test_rules_that_cannot_be_used_are_named(rule, message):
    with pytest.raises(ValueError, match=f"^rules: .*{message}"):
        MeshConfig(rules=(rule,))


def test_own_rows_of_a_divided_array():
    mesh = sharding.make_mesh()
    value = np.arange(32.0).reshape(16, 2)
    divided = jax.device_put(value, sharding.batch_sharding(mesh))
    np.testing.assert_array_equal(sharding.local_rows(divided, 4, 8), value[4:12])
