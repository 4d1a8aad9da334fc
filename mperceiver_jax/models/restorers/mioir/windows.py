"""Self-attention inside square windows, as SwinIR and Uformer share it.

Images stay (batch, height, width, channels) between blocks; `partition` and `merge` go to windows
and back. The tables of relative positions are looked up by an index that PyTorch checkpoints carry as
a buffer, as they do the masks of shifted windows; both are functions of sizes alone here.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num

from mperceiver_jax.models.arrays import Array


@lru_cache
def relative_position_index(window: int) -> Int[np.ndarray, "n n"]:
    """Which row of a table of (2 window - 1)^2 entries belongs to (query, key); n = window^2."""
    at = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    offset = at[:, :, None] - at[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


@lru_cache
def shift_mask(height: int, width: int, window: int, shift: int) -> Num[np.ndarray, "windows n n"]:
    """0 where two pixels of a shifted window are neighbours in the image, -100 where they are not."""

    def bands(size: int) -> np.ndarray:
        # After the roll the last `shift` rows are the image's first ones.
        return np.repeat([0, 1, 2], [size - window, window - shift, shift])

    region = bands(height)[:, None] * 3 + bands(width)[None]
    region = region.reshape(height // window, window, width // window, window)
    region = region.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return np.where(region[:, :, None] == region[:, None, :], 0.0, -100.0).astype(np.float32)


def partition(x: Num[Array, "b h w c"], window: int) -> Num[Array, "b windows n c"]:
    """The windows of an image, row by row. Its sides must be multiples of `window`."""
    b, h, w, c = x.shape
    if h % window or w % window:
        raise ValueError(f"windows of {window} pixels do not divide {h} x {w}; pad the image first")
    x = x.reshape(b, h // window, window, w // window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, -1, window * window, c)


def merge(windows: Num[Array, "b windows n c"], height: int, width: int) -> Num[Array, "b h w c"]:
    """The image whose windows these are."""
    b, _, n, c = windows.shape
    side = round(n**0.5)
    x = windows.reshape(b, height // side, width // side, side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height, width, c)


def window_attention(
    q: Num[Array, "b windows n c"],
    k: Num[Array, "b windows n c"],
    v: Num[Array, "b windows n c"],
    table: Num[Array, "entries heads"],
    mask: Num[np.ndarray, "windows n n"] | None,
) -> Num[Array, "b windows n c"]:
    """softmax(q k^T / sqrt(head width) + relative positions + mask) v per window, softmax in float32.

    Heads are contiguous runs of channels.
    """
    b, count, n, c = q.shape
    heads = table.shape[-1]
    q, k, v = (x.reshape(b, count, n, heads, c // heads) for x in (q, k, v))
    logits = jnp.einsum("bwqhd,bwkhd->bwhqk", q * (c // heads) ** -0.5, k).astype(jnp.float32)
    index = relative_position_index(round(n**0.5))
    logits = logits + jnp.moveaxis(table.astype(jnp.float32)[index], -1, 0)
    if mask is not None:
        logits = logits + mask[:, None]
    weights = jax.nn.softmax(logits, -1).astype(v.dtype)
    return jnp.einsum("bwhqk,bwkhd->bwqhd", weights, v).reshape(b, count, n, c)


def roll(x: Num[Array, "b h w c"], by: int) -> Num[Array, "b h w c"]:
    """The image moved down and right by `by` pixels, around its borders."""
    return jnp.roll(x, (by, by), (1, 2)) if by else x


def drop_path(branch: Num[Array, "b *rest"], rate: float, key: Array | None) -> Num[Array, "b *rest"]:
    """Stochastic depth: the branch of each example is dropped with probability `rate`, else scaled up.

    Without a key the branch stays as it is (evaluation).
    """
    if key is None or rate == 0:
        return branch
    keep = jax.random.bernoulli(key, 1 - rate, (branch.shape[0],) + (1,) * (branch.ndim - 1))
    return jnp.where(keep, branch / (1 - rate), 0).astype(branch.dtype)


def split_key(key: Array | None, count: int) -> list[Array | None]:
    """`count` keys out of one; nothing out of nothing."""
    return [None] * count if key is None else list(jax.random.split(key, count))
