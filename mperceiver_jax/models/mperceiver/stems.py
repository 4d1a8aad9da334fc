"""Stems of an image tower: from pixels to one vector for each patch.

The published towers embed a patch by one linear map. A tower that learns from nothing what noise, streaks and blur
look like starts with convolutions instead. Both stems here are our own.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv
from mperceiver_jax.models.parameters import variance_preserving_init

DETAIL_GAIN = 4.0
"""Factor on the detail of `DetailStem`: fine noise and blur change it by a few hundredths of an image's contrast."""
FIRST_WIDTH = 24


class ConvStem(nnx.Module):
    """3x3 convolutions with stride 2 and ReLU between them, until one position is left of every patch."""

    def __init__(self, width: int, patch_size: int):
        halvings = patch_size.bit_length() - 1
        widths = [3] + [max(width >> (halvings - 1 - level), 16) for level in range(halvings)]
        self.halving = nnx.List(Conv(a, b, stride=2, padding=1) for a, b in pairwise(widths))
        variance_preserving_init(self, zero="(?!)")

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b hh ww c"]:
        x = self.halving[0](images)
        for halve in list(self.halving)[1:]:
            x = halve(jax.nn.relu(x))
        return x


class DetailStem(nnx.Module):
    """Halvings as in `ConvStem`, a residual block after all but the first, on the image together with its detail.

    The detail is each pixel less the mean of its 3x3 neighbourhood, amplified. Residual branches start at zero.
    """

    def __init__(self, width: int, patch_size: int):
        halvings = patch_size.bit_length() - 1
        widths = [FIRST_WIDTH << level for level in range(halvings - 1)] + [width]
        self.first = Conv(6, widths[0], stride=2, padding=1)
        self.halving = nnx.List(Conv(a, b, stride=2, padding=1) for a, b in pairwise(widths))
        self.inner = nnx.List(Conv(c, c) for c in widths[1:])
        self.outer = nnx.List(Conv(c, c) for c in widths[1:])
        variance_preserving_init(self, zero=r"^outer\.\d+\.weight")

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b hh ww c"]:
        x = self.first(jnp.concatenate([images, DETAIL_GAIN * detail(images)], -1))
        for halve, inner, outer in zip(self.halving, self.inner, self.outer, strict=True):
            x = halve(jax.nn.relu(x))
            x = x + outer(jax.nn.relu(inner(jax.nn.relu(x))))
        return x


def detail(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Each pixel less the mean of its 3x3 neighbourhood; border pixels are repeated."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    total = jax.lax.reduce_window(padded, np.zeros((), images.dtype), jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID")
    return images - total / 9
