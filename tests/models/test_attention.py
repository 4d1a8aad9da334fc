"""The attention kernels: which is chosen, and each that can run here against float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mperceiver_jax.distributed import sharding
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.models import attention, splash


@pytest.mark.parametrize(
    ("given", "kernel"),
    [
        # The self-attentions of Stable Diffusion 2.1 at 512 pixels, finest first, and its cross-attention.
        (("gpu", jnp.bfloat16, 4096, 4096, 64, False), "cudnn"),
        (("gpu", jnp.bfloat16, 256, 256, 64, False), "cudnn"),
        (("gpu", jnp.bfloat16, 64, 64, 64, False), "xla"),
        (("gpu", jnp.bfloat16, 4096, 77, 64, False), "xla"),
        (("gpu", jnp.float32, 4096, 4096, 64, False), "xla"),
        (("gpu", jnp.bfloat16, 4096, 4096, 512, False), "xla"),  # the autoencoder's only head
        (("gpu", jnp.float16, 4096, 4096, 60, False), "xla"),
        (("gpu", jnp.bfloat16, 257, 257, 80, False), "cudnn"),  # the image tower
        (("tpu", jnp.bfloat16, 4096, 4096, 64, False), "splash"),
        (("tpu", jnp.float32, 1024, 1024, 64, False), "splash"),
        (("tpu", jnp.bfloat16, 256, 256, 64, False), "xla"),
        (("tpu", jnp.bfloat16, 1100, 1100, 64, False), "xla"),  # no whole number of blocks
        (("tpu", jnp.bfloat16, 4096, 77, 64, False), "xla"),
        (("tpu", jnp.bfloat16, 4096, 4096, 512, False), "xla"),
        (("tpu", jnp.bfloat16, 4096, 4096, 64, True), "xla"),
        (("gpu", jnp.bfloat16, 4096, 4096, 64, True), "xla"),
        (("cpu", jnp.bfloat16, 4096, 4096, 64, False), "xla"),
    ],
)
def test_the_kernel_for_a_device_and_shapes(given, kernel):
    assert attention.kernel_for(*given) == kernel


def inputs(queries, keys, heads=2, width=8, batch=8):
    rng = np.random.default_rng(0)
    shapes = ((batch, queries, heads, width), (batch, keys, heads, width), (batch, keys, heads, width))
    return tuple(rng.standard_normal(shape, np.float32) for shape in shapes)


def exact(q, k, v):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    logits = np.einsum("bnhw,bmhw->bhnm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhnm,bmhw->bnhw", weights / weights.sum(-1, keepdims=True), v)


def test_xla_equals_float64(monkeypatch):
    q, k, v = inputs(13, 40)
    flat = tuple(x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    for at_once in (attention.LOGITS_AT_ONCE, 4 * 40 * 2):
        monkeypatch.setattr(attention, "LOGITS_AT_ONCE", at_once)
        np.testing.assert_allclose(attention.attention(*flat, heads=2).reshape(q.shape), exact(q, k, v), atol=2e-6)


def test_splash_equals_float64_and_each_device_does_its_own_part():
    q, k, v = inputs(128, 256)
    mesh = sharding.make_mesh(MeshConfig(data=4, model=2))
    spread = [jax.device_put(x, sharding.batch_sharding(mesh)) for x in (q, k, v)]

    def gradients(attend):
        return jax.grad(lambda *given: jnp.sin(attend(*given)).sum(), argnums=(0, 1, 2))

    flash = sharding.traced_over(mesh, lambda q, k, v: splash.attend(q, k, v, interpret=True))
    both = jax.jit(lambda *given: (flash(*given), *gradients(flash)(*given))).lower(*spread).compile()
    moved = re.findall(r"= .* (?:all-gather|all-reduce|all-to-all|collective-permute)\(.*", both.as_text())
    # Sums over an axis of one device move nothing. JAX 0.10 writes the devices of each group, 0.11 the mesh's axis.
    of_one_device = r"replica_groups=(\{(\{\d+\},?)+\}|mesh\[[^]]*\] \{'fsdp'\})"
    assert mesh.shape["fsdp"] == 1 and all(re.search(of_one_device, line) for line in moved)
    out, *slopes = both(*spread)
    assert out.sharding.shard_shape(out.shape)[0] == 2
    np.testing.assert_allclose(out, exact(q, k, v), atol=2e-6)
    plain = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="xla")
    for slope, expected in zip(slopes, jax.jit(gradients(plain))(q, k, v), strict=True):
        np.testing.assert_allclose(slope, expected, atol=5e-6)


def test_splash_lowers_for_a_tpu_and_is_chosen_there(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    tokens = jax.ShapeDtypeStruct((2, 4096, 320), jnp.bfloat16)
    slope = jax.grad(lambda q, k, v: attention.attention(q, k, v, heads=5).astype(jnp.float32).sum())
    lowered = jax.jit(slope).trace(tokens, tokens, tokens).lower(lowering_platforms=("tpu",)).as_text()
    assert lowered.count("tpu_custom_call") >= 3  # forward, and backward to the queries and to keys and values
