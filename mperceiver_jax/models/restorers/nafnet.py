"""NAFNet: a U-shaped network without nonlinear activations; gates are products of two halves.

Sources: the paper (simple gate, simplified channel attention, layer norm, learned residual scales).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, LayerNorm, apply_block
from mperceiver_jax.models.parameters import ZEROS, parameter
from mperceiver_jax.models.resampling import pad_to_multiple, pixel_shuffle
from mperceiver_jax.models.restorers.restormer import Skip
from mperceiver_jax.models.shared_statistics import share
from mperceiver_jax.models.sizes import require_positive


@dataclass(frozen=True)
class NAFNetConfig:
    """Sizes of the network.

    Attributes:
        width: channels at full size; they double whenever the sides halve.
        encoder: blocks per level, finest first; decoder: likewise, finest first; middle: blocks between.
        remat: recompute each block in the backward pass.
    """

    width: int = 32
    encoder: tuple[int, ...] = (1, 1, 1, 28)
    middle: int = 1
    decoder: tuple[int, ...] = (1, 1, 1, 1)
    remat: bool = False

    def __post_init__(self) -> None:
        require_positive(self, zero=("encoder", "middle", "decoder"))
        if len(self.encoder) != len(self.decoder):
            raise ValueError(f"NAFNetConfig: encoder {self.encoder} and decoder {self.decoder} differ in levels")

    @classmethod
    def full(cls) -> "NAFNetConfig":
        """The paper's for deblurring at width 32: 17.1 million parameters."""
        return cls()

    @classmethod
    def small(cls) -> "NAFNetConfig":
        """Trains in minutes on any machine."""
        return cls(width=16, encoder=(1, 1, 2), middle=2, decoder=(1, 1, 1))


def gate(x: Float[Array, "*batch c2"]) -> Float[Array, "*batch c"]:
    """The product of the two halves of the channels."""
    first, second = jnp.split(x, 2, -1)
    return first * second


class NAFBlock(nnx.Module):
    """x += beta * (convolutions, gate, channel attention); x += gamma * (gated feed-forward)."""

    def __init__(self, channels: int):
        self.norm1 = LayerNorm(channels, eps=1e-6)
        self.conv1 = Conv(channels, 2 * channels, 1)
        self.conv2 = Conv(2 * channels, 2 * channels, 3, groups=2 * channels)
        self.attention = Conv(channels, channels, 1)
        self.conv3 = Conv(channels, channels, 1)
        self.norm2 = LayerNorm(channels, eps=1e-6)
        self.conv4 = Conv(channels, 2 * channels, 1)
        self.conv5 = Conv(channels, channels, 1)
        self.beta = parameter((channels,), ZEROS)
        self.gamma = parameter((channels,), ZEROS)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        h = gate(self.conv2(self.conv1(self.norm1(x))))
        wide = h.astype(jnp.float32)
        mean = share(lambda first_axis: wide.mean(tuple(range(first_axis, 3)), keepdims=True)).astype(h.dtype)
        x = x + self.conv3(h * self.attention(mean)) * self.beta[...].astype(x.dtype)
        return x + self.conv5(gate(self.conv4(self.norm2(x)))) * self.gamma[...].astype(x.dtype)


class NAFNet(nnx.Module):
    """Encoder, middle and decoder; skips are added, and so is the image.

    Attributes:
        skip_channels: channels of the skip connections, finest first.
    """

    def __init__(self, config: NAFNetConfig):
        levels = len(config.encoder)
        self.skip_channels = tuple(config.width << level for level in range(levels))
        self.intro = Conv(3, config.width)
        self.encoders = nnx.List([_blocks(c, n) for c, n in zip(self.skip_channels, config.encoder, strict=True)])
        self.downs = nnx.List([Conv(c, 2 * c, 2, stride=2, padding=0) for c in self.skip_channels])
        self.middle = _blocks(config.width << levels, config.middle)
        self.ups = nnx.List([Conv(2 * c, 4 * c, 1, bias=False) for c in self.skip_channels])
        self.decoders = nnx.List([_blocks(c, n) for c, n in zip(self.skip_channels, config.decoder, strict=True)])
        self.ending = Conv(config.width, 3)
        self.config = config

    def __call__(
        self, x: Float[Array, "b h w 3"], *, skip: Skip = lambda level, features: features
    ) -> Float[Array, "b h w 3"]:
        """Restored images in the range of the input, nominally [0, 1]; not clipped.

        Args:
            x: degraded images of any size; padded inside, and cropped again.
            skip: as in `restormer.UShape`.
        """
        height, width = x.shape[1:3]
        levels = range(len(self.skip_channels))
        x = pad_to_multiple(x, 2 ** len(levels))
        h, kept = self.intro(x), []
        for level in levels:
            kept.append(self._run(self.encoders[level], h))
            h = self.downs[level](kept[-1])
        h = self._run(self.middle, h)
        for level in reversed(levels):
            h = pixel_shuffle(self.ups[level](h)) + skip(level, kept[level])
            h = self._run(self.decoders[level], h)
        return (self.ending(h) + x)[:, :height, :width]

    def _run(self, blocks: nnx.List, x: Array) -> Array:
        for block in blocks:
            x = apply_block(block, x, remat=self.config.remat)
        return x


def _blocks(channels: int, count: int) -> nnx.List:
    return nnx.List([NAFBlock(channels) for _ in range(count)])
