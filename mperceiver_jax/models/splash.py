"""Flash attention on TPUs: JAX's splash kernel (Pallas), for batches that are spread over a mesh.

A Pallas kernel is opaque to the partitioner of XLA. `custom_partitioning` declares that examples and heads
are independent, so that each device runs the kernel on its own. The backward pass runs the forward
kernel again instead of keeping its statistics, as rematerialisation would.
"""

import functools

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array

LANES = 128
BLOCKS = (512, 256, LANES)


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
    return _differentiable(q.shape[1], k.shape[1], interpret)(q, k, v)


@functools.cache
def _differentiable(queries: int, keys: int, interpret: bool):
    leaves, structure = _kernel(queries, keys, interpret)

    def forward(q, k, v, *leaves):
        kernel = jax.vmap(jax.tree.unflatten(structure, leaves))
        by_head = lambda x: x.swapaxes(1, 2)
        return by_head(kernel(by_head(q * q.shape[-1] ** -0.5), by_head(k), by_head(v)))

    def backward(q, k, v, slope, *leaves):
        return jax.vjp(lambda q, k, v: forward(q, k, v, *leaves), q, k, v)[1](slope)

    one, other = "b n h w", "b m h w"
    spread_forward = _spread(forward, [one, other, other], [one], len(leaves))
    spread_backward = _spread(backward, [one, other, other, one], [one, other, other], len(leaves))

    @jax.custom_vjp
    def run(q, k, v):
        return spread_forward(q, k, v, *leaves)

    run.defvjp(lambda *given: (run(*given), given), lambda given, slope: spread_backward(*given, slope, *leaves))
    return run


def _spread(function, arguments: list[str], results: list[str], tables: int):
    """The function on every device's own examples and heads; all else stays whole.

    Args:
        arguments, results: the names of their dimensions.
        tables: further arguments of three dimensions, the same on every device.
    """
    whole = [f"{axis}{i}" for i in range(tables) for axis in "xyz"]
    rule = ", ".join([*arguments, *(" ".join(whole[i : i + 3]) for i in range(0, len(whole), 3))])
    spread = custom_partitioning(function)

    def partition(mesh, given, made):
        sharding = lambda tree: jax.tree.map(lambda leaf: leaf.sharding, tree)
        return mesh, function, sharding(made), sharding(given)

    spread.def_partition(
        partition,
        sharding_rule=f"{rule} -> {', '.join(results)}",
        # In the order in which they appear in the rule.
        need_replication_factors=("n", "w", "m", *whole),
    )
    return spread


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
