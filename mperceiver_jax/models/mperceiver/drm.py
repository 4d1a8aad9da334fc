"""The detail refinement module: a multi-scale residual U-Net that repairs the decoded image with pixels.

A diffusion model restores a latent that has lost the finest detail. This network sees what the latent cannot
hold: the degraded image itself, next to the decoded one, and the features of the autoencoder's encoder. Its
result is the decoded image, moved towards the degraded image by a mask, plus a residual:

    refined = decoded + mask * (degraded - decoded) + residual

A mask of one and a residual of zero leave the degraded image exactly as it is. Every convolution is a dense 3x3
convolution without normalisation over space, so that the cost grows with the area of the image, and the features
of every residual block are scaled and shifted according to the probabilities of the degradations.

The published release names such a module but does not contain it. This is our own design.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, Linear
from mperceiver_jax.models.parameters import ONES, variance_preserving_init
from mperceiver_jax.models.sizes import require_positive

UNSHUFFLE = 2
"""The finest level works at half the image's resolution, on blocks of 2x2 pixels."""


@dataclass(frozen=True)
class DRMConfig:
    """Sizes of the detail refinement.

    Attributes:
        channels: channels of the autoencoder's taps, finest first (`VAEConfig.tap_channels`).
        classes: number of degradations.
        width: channels of the finest level; every coarser level has twice as many.
        blocks: residual blocks of each level on the way down, finest first; the way up has as many at every level
            but the coarsest. The image's sides are multiples of 2 ** len(blocks).
        initial_output: the image that an untrained module returns. `decoded` is the output of the frozen decoder,
            unchanged to the last bit; `degraded` starts from the degraded image, which is the better start where the
            autoencoder is small.

    Raises:
        ValueError: no level, or more taps than levels and one.
    """

    channels: tuple[int, ...] = (128, 256, 512)
    classes: int = 9
    width: int = 128
    blocks: tuple[int, ...] = (2, 2, 3)
    initial_output: Literal["decoded", "degraded"] = "decoded"

    def __post_init__(self) -> None:
        require_positive(self)
        if not self.blocks or len(self.channels) > len(self.blocks) + 1:
            raise ValueError(f"DRMConfig: {len(self.channels)} taps do not fit {len(self.blocks)} levels")
        if self.initial_output not in ("decoded", "degraded"):
            raise ValueError(f"DRMConfig.initial_output: 'decoded' or 'degraded', not {self.initial_output!r}")

    @classmethod
    def sd(cls) -> "DRMConfig":
        """For the autoencoder of Stable Diffusion: 21,710,736 parameters."""
        return cls()

    @classmethod
    def base(cls) -> "DRMConfig":
        """For `VAEConfig.small()`, with a class for clean images."""
        return cls(channels=(16, 32), classes=10, width=40, initial_output="degraded")

    @classmethod
    def small(cls) -> "DRMConfig":
        """For `VAEConfig.small()`: 1,369,008 parameters."""
        return cls(channels=(16, 32), classes=10, width=32, initial_output="degraded")

    @property
    def multiple(self) -> int:
        """Sides of an image must be multiples of this many pixels."""
        return UNSHUFFLE * 2 ** (len(self.blocks) - 1)


class DetailRefinement(nnx.Module):
    """The U-Net; levels from the finest to the coarsest and back."""

    def __init__(self, config: DRMConfig):
        widths = [config.width << level for level in range(len(config.blocks))]
        patch = UNSHUFFLE**2
        self.conv_in = Conv(2 * 3 * patch, widths[0])
        # Tap 0 has the image's resolution and enters unshuffled; tap i fits level i - 1.
        self.taps = nnx.List(
            Conv(tap * (patch if index == 0 else 1), widths[max(index - 1, 0)], 1)
            for index, tap in enumerate(config.channels)
        )
        self.down_blocks = nnx.List(
            Level(width, count, config.classes) for width, count in zip(widths, config.blocks, strict=True)
        )
        self.down = nnx.List(Conv(a, b, 2, stride=2, padding=0) for a, b in pairwise(widths))
        self.up = nnx.List(Conv(b, 4 * a, 1) for a, b in pairwise(widths))
        self.up_blocks = nnx.List(
            Level(width, count, config.classes) for width, count in zip(widths[:-1], config.blocks[:-1], strict=True)
        )
        variance_preserving_init(self, zero=r"\.degradation\.", keep=r"\.conv2\.")
        self.residual = Conv(widths[0], 3 * patch, zero=True)
        self.mask = Conv(widths[0], patch, zero=True)
        if config.initial_output == "degraded":
            assert self.mask.bias is not None
            self.mask.bias.set_metadata(init=ONES)

    def __call__(
        self,
        decoded: Float[Array, "b h w 3"],
        degraded: Float[Array, "b h w 3"],
        taps: tuple[Array, ...],
        probabilities: Float[Array, "b classes"],
    ) -> Float[Array, "b h w 3"]:
        """The refined image, in the range of its inputs ([-1, 1]) but not clipped.

        Args:
            decoded: the image of the restored latent, as the frozen decoder gives it.
            degraded: the image to be restored.
            taps: features of the encoder on the degraded image, (b, h / 2**i, w / 2**i, channels[i]).
            probabilities: of the degradations; they sum to one, and are uniform where nothing is known.
        """
        p = probabilities.astype(decoded.dtype)
        h = self.conv_in(unshuffle(jnp.concatenate([degraded, decoded], -1)))
        skips = []
        for level, blocks in enumerate(self.down_blocks):
            h = blocks(self._with_taps(h, level, taps), p)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](h)
        for level in reversed(range(len(self.up))):
            h = self.up_blocks[level](shuffle(self.up[level](h)) + skips[level], p)
        mask, residual = shuffle(self.mask(h)), shuffle(self.residual(h))
        return decoded + mask * (degraded - decoded) + residual

    def _with_taps(self, h: Array, level: int, taps: tuple[Array, ...]) -> Array:
        """The features of a level plus what the encoder saw at its resolution."""
        if level == 0 and taps:
            h = h + self.taps[0](unshuffle(taps[0].astype(h.dtype)))
        if level + 1 < len(taps):
            h = h + self.taps[level + 1](taps[level + 1].astype(h.dtype))
        return h


class Level(nnx.Module):
    """Residual blocks in a row."""

    def __init__(self, channels: int, count: int, classes: int):
        self.blocks = nnx.List(ResidualBlock(channels, classes) for _ in range(count))

    def __call__(self, x: Float[Array, "b h w c"], p: Float[Array, "b classes"]) -> Float[Array, "b h w c"]:
        for block in self.blocks:
            x = block(x, p)
        return x


class ResidualBlock(nnx.Module):
    """Convolution, ReLU, scale and shift by the degradation, convolution, plus the input."""

    def __init__(self, channels: int, classes: int):
        self.conv1 = Conv(channels, channels)
        self.degradation = Linear(classes, 2 * channels, zero=True)
        self.conv2 = Conv(channels, channels)

    def __call__(self, x: Float[Array, "b h w c"], p: Float[Array, "b classes"]) -> Float[Array, "b h w c"]:
        scale, shift = jnp.split(self.degradation(p)[:, None, None, :], 2, axis=-1)
        return x + self.conv2(jax.nn.relu(self.conv1(x)) * (1 + scale) + shift)


def unshuffle(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c4"]:
    """Blocks of 2x2 pixels become channels, at half the size."""
    b, h, w, c = x.shape
    blocks = x.reshape(b, h // UNSHUFFLE, UNSHUFFLE, w // UNSHUFFLE, UNSHUFFLE, c)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // UNSHUFFLE, w // UNSHUFFLE, UNSHUFFLE**2 * c)


def shuffle(x: Float[Array, "b h w c4"]) -> Float[Array, "b h2 w2 c"]:
    """The inverse of `unshuffle`: channels become blocks of 2x2 pixels, at twice the size."""
    b, h, w, c = x.shape
    blocks = x.reshape(b, h, w, UNSHUFFLE, UNSHUFFLE, c // UNSHUFFLE**2)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, UNSHUFFLE * h, UNSHUFFLE * w, c // UNSHUFFLE**2)
