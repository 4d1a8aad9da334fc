"""Between pixel grids: shuffling pixels into channels and back, bilinear resizing, padding.

Arrays are NHWC; channel orders and pixel centres are PyTorch's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array


def pixel_shuffle(x: Float[Array, "b h w c4"]) -> Float[Array, "b hh ww c"]:
    """Doubles both sides: channel 4c + 2i + j at (y, x) becomes channel c at (2y + i, 2x + j)."""
    b, h, w, c = x.shape
    apart = x.reshape(b, h, w, c // 4, 2, 2)
    return apart.transpose(0, 1, 4, 2, 5, 3).reshape(b, 2 * h, 2 * w, c // 4)


def pixel_unshuffle(x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c4"]:
    """Halves both (even) sides; the inverse of `pixel_shuffle`."""
    b, h, w, c = x.shape
    apart = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return apart.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // 2, w // 2, 4 * c)


def resize_bilinear(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b height width c"]:
    """Bilinear with half-pixel centres and without antialiasing, as PyTorch's `interpolate`."""
    if x.shape[1:3] == (height, width):
        return x
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "bilinear", antialias=False)


def pad_to_multiple(x: Float[Array, "b h w c"], multiple: int) -> Float[Array, "b hh ww c"]:
    """Sides extended at the bottom and right, by reflection, to multiples of `multiple`.

    An image smaller than its padding is reflected back and forth. What a network returns for it is
    cropped with `[:, :h, :w]`.
    """
    return _extend(x, *(-side % multiple for side in x.shape[1:3]))


def pad_to_least(x: Float[Array, "b h w c"], least: int) -> Float[Array, "b hh ww c"]:
    """The same up to `least` pixels a side; larger sides stay."""
    return _extend(x, *(max(least - side, 0) for side in x.shape[1:3]))


def _extend(x: Float[Array, "b h w c"], bottom: int, right: int) -> Float[Array, "b hh ww c"]:
    if not bottom and not right:
        return x
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="reflect")
