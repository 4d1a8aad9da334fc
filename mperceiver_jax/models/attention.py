"""Attention: the one place where its kernel is chosen.

    cudnn    NVIDIA GPUs: half precision, long sequences, no mask, head widths it takes
    splash   TPUs: the Pallas flash kernel, long sequences in whole blocks, no mask
    xla      everything else: all logits in memory, large images piece by piece

All three compute the same sum; the tests hold each that can run there against float64.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from mperceiver_jax.models import splash
from mperceiver_jax.models.arrays import Array

Kernel = Literal["cudnn", "splash", "xla"]

# Logits of one example that the plain kernel may hold at once: 512 MB in float32. Images of 512 pixels at
# the scale of Stable Diffusion stay below it.
LOGITS_AT_ONCE = 2**27


class KeysValues(NamedTuple):
    """Keys and values of some tokens, (sequences, tokens, heads * head width) each, ready to be attended to."""

    keys: Array
    values: Array


def attention(
    q: Float[Array, "b n c"],
    k: Float[Array, "b m c"],
    v: Float[Array, "b m c"],
    heads: int,
    mask: Bool[Array, "#b #heads #n #m"] | None = None,
) -> Float[Array, "b n c"]:
    """Multi-head attention with scale 1/sqrt(head width); heads are contiguous runs of channels.

    Args:
        mask: true where a query may look at a key.
    """

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], heads, x.shape[-1] // heads)

    queries, keys, values = split(q), split(k), split(v)
    chosen = kernel_for(platform(), q.dtype, q.shape[1], k.shape[1], q.shape[-1] // heads, mask is not None)
    rows = max(LOGITS_AT_ONCE // (k.shape[1] * heads), 1)
    if chosen == "splash":
        out = splash.attend(queries, keys, values)
    elif chosen == "cudnn" or mask is not None or rows >= q.shape[1]:
        out = jax.nn.dot_product_attention(queries, keys, values, mask=mask, implementation=chosen)
    else:
        out = _by_pieces(
            lambda piece: jax.nn.dot_product_attention(piece, keys, values, implementation="xla"),
            queries,
            rows,
        )
    return out.reshape(q.shape)


def platform() -> str:
    """The kind of device that a program is traced for: that of the ambient mesh, which may belong to devices that are
    not in this machine, else the default one. Named as `jax.default_backend()` names it."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def kernel_for(
    platform: str, dtype: jax.typing.DTypeLike, queries: int, keys: int, head_width: int, masked: bool
) -> Kernel:
    """The kernel for a device and shapes.

    Args:
        platform: as `jax.default_backend()` names it.
        queries, keys: tokens. Short sequences (text, coarse maps) are faster as plain products.
    """
    if masked:
        return "xla"
    shortest, half = min(queries, keys), jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if platform == "gpu" and half and shortest >= 256 and head_width % 8 == 0 and head_width <= 128:
        return "cudnn"
    if platform == "tpu" and shortest >= 1024 and splash.takes(queries, keys, head_width):
        return "splash"
    return "xla"


def _by_pieces(attend: Callable[[Array], Array], queries: Float[Array, "b n h w"], rows: int) -> Array:
    """`attend(queries)`, at most `rows` queries at a time, one piece after the other."""
    b, n, *rest = queries.shape
    count = -(-n // rows)
    rows = -(-n // count)
    padded = jnp.pad(queries, ((0, 0), (0, count * rows - n), (0, 0), (0, 0)))
    pieces = jnp.moveaxis(padded.reshape(b, count, rows, *rest), 1, 0)
    out = jnp.moveaxis(jax.lax.map(attend, pieces), 0, 1)
    return out.reshape(b, count * rows, *rest)[:, :n]
