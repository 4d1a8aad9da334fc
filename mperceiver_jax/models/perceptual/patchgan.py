"""PatchGAN discriminator (Isola et al., 2017): one real/fake score for every overlapping patch.

The usual batch norms are replaced by group norms. Batch norm has running state, which a
pure step function would have to carry around, couples the images of a batch and needs
synchronising between devices. Instance norm has none of that but hides each channel's
contrast and brightness, and wrong contrast is one of the faults this network should see.
"""

from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, GroupNorm


@dataclass(frozen=True)
class PatchGANConfig:
    """Sizes of the discriminator.

    Args:
        image_channels: channels of the images judged.
        base_channels: width after the first convolution; doubles per layer up to 8 times.
        layers: number of stride-2 convolutions; 3 gives patches of 70 pixels.
        groups: groups of the norms; must divide 2 * base_channels.
    """

    image_channels: int = 3
    base_channels: int = 64
    layers: int = 3
    groups: int = 32

    @classmethod
    def small(cls) -> "PatchGANConfig":
        """For a CPU."""
        return cls(base_channels=16, groups=8)


class PatchGAN(nnx.Module):
    """4x4 convolutions: `layers` with stride 2, one with stride 1, and one to a single channel."""

    def __init__(self, config: PatchGANConfig):
        widths = [config.base_channels * min(2**i, 8) for i in range(config.layers + 1)]
        self.first = Conv(config.image_channels, widths[0], 4, stride=2, padding=1)
        self.convs = nnx.List(
            [
                Conv(widths[i], widths[i + 1], 4, stride=2 if i + 1 < config.layers else 1, padding=1)
                for i in range(config.layers)
            ]
        )
        self.norms = nnx.List([GroupNorm(width, groups=config.groups) for width in widths[1:]])
        self.last = Conv(widths[-1], 1, 4, padding=1)
        self.smallest = 3 * 2**config.layers

    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b hh ww 1"]:
        """Scores of the patches of images in [-1, 1]: positive for real, negative for generated.

        For three layers, sides shrink from n to n / 8 - 2.

        Raises:
            ValueError: a side too short to hold one patch.
        """
        if min(image.shape[1:3]) < self.smallest:
            raise ValueError(f"PatchGAN: sides must be {self.smallest} or more, got {image.shape[1:3]}")
        h = jax.nn.leaky_relu(self.first(image), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = jax.nn.leaky_relu(norm(conv(h)), 0.2)
        return self.last(h)
