"""Flash attention on TPUs: JAX's splash kernel (Pallas), for batches that are divided over a mesh.

A Pallas kernel is opaque to the partitioner of XLA, so the division is written out: `shard_map` over the ambient mesh
(`jax.sharding.use_abstract_mesh`) runs the kernel on each device's own examples and heads. Without an ambient mesh
the kernel runs on one device.
"""

import math

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array

LANES = 128
BLOCKS = (512, 256, LANES)
HEADS_AXIS = "model"
"""The axis of a mesh that divides heads; all other axes divide examples."""


def takes(queries: int, keys: int, head_width: int) -> bool:
    """Whether the kernel takes these numbers of tokens and this width of a head."""
    return queries % LANES == 0 and keys % LANES == 0 and head_width % 8 == 0 and head_width <= 256


def attend(
    q: Float[Array, "b n h w"], k: Float[Array, "b m h w"], v: Float[Array, "b m h w"], *, interpret: bool = False
) -> Float[Array, "b n h w"]:
    """softmax(q k^T / sqrt(w)) v, without a mask.

    Args:
        interpret: emulate the kernel on any device (for tests; slow).
    """
    leaves, structure = _kernel(q.shape[1], k.shape[1], interpret)

    def on_each_device(q: Array, k: Array, v: Array, *leaves: Array) -> Array:
        kernel = jax.vmap(jax.tree.unflatten(structure, leaves))
        by_head = lambda x: x.swapaxes(1, 2)
        return by_head(kernel(by_head(q * q.shape[-1] ** -0.5), by_head(k), by_head(v)))

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return on_each_device(q, k, v, *leaves)
    spec = _division(mesh, q.shape[0], q.shape[2])
    divided = jax.shard_map(
        on_each_device,
        in_specs=(spec, spec, spec, *[PartitionSpec()] * len(leaves)),
        out_specs=spec,
        check_vma=False,  # Pallas kernels do not say how their outputs vary over the mesh.
    )
    return divided(q, k, v, *leaves)


def _division(mesh: jax.sharding.AbstractMesh, examples: int, heads: int) -> PartitionSpec:
    """How arrays (examples, tokens, heads, width) are divided over a mesh.

    An axis whose size does not divide the number of examples, or heads, is left out: its devices compute the same.
    """
    chosen: list[str] = []
    for axis in mesh.axis_names:
        size = math.prod(mesh.shape[one] for one in (*chosen, axis))
        if axis != HEADS_AXIS and mesh.shape[axis] > 1 and examples % size == 0:
            chosen.append(axis)
    divides_heads = HEADS_AXIS in mesh.axis_names and heads % mesh.shape[HEADS_AXIS] == 0
    return PartitionSpec(tuple(chosen), None, HEADS_AXIS if divides_heads else None)


def _kernel(queries: int, keys: int, interpret: bool):
    """(tables of blocks, structure): together the kernel, for any number of heads."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    rows, columns = (next(block for block in BLOCKS if n % block == 0) for n in (queries, keys))
    with jax.ensure_compile_time_eval():
        kernel = kernels.make_splash_mha(
            masks.MultiHeadMask([masks.FullMask((queries, keys))]),
            block_sizes=kernels.BlockSizes(
                block_q=rows,
                block_kv=columns,
                block_kv_compute=columns,
                block_q_dkv=rows,
                block_kv_dkv=columns,
                block_kv_dkv_compute=columns,
                block_q_dq=rows,
                block_kv_dq=columns,
            ),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
    leaves, structure = jax.tree.flatten(kernel)
    return [np.asarray(leaf) for leaf in leaves], structure
