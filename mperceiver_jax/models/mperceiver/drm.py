"""The detail refinement module: encoder features of the degraded image, handed to the decoder.

A diffusion model restores in a latent that has lost the finest detail. At three sizes
the decoder's features are corrected by what the encoder saw, filtered by two NAF
blocks that know the degradation. What is added starts at zero, so that an untrained
module leaves the frozen decoder exactly as it was.

The published release names such a module but does not contain it. This is our own
design, from blocks of the NAFNet kind.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mperceiver_jax.models.layers import Conv, LayerNorm, Linear
from mperceiver_jax.models.parameters import ONES, Init, parameter, variance_preserving_init


@dataclass(frozen=True)
class DRMConfig:
    """Sizes of the refinement.

    Attributes:
        channels: channels of the autoencoder's taps, finest first (`VAEConfig.tap_channels`).
        classes: number of degradations.
        sca_pool: what the channel attention averages over: the whole map, or a window as large as the
            training crop around each pixel, so that large images meet the statistics of training.
        sca_window: side of that window in image pixels; tap i sees 1 / 2**i of it.
        gain: where the gains beta and gamma of every NAF block start. At 0 the blocks grow out of nothing, which is
            gentle and slow; above 0 they act from the first step, with weights that keep the variance of their
            input, for trainings of a few hundred updates. The decoder is left as it was either way.
    """

    channels: tuple[int, ...] = (128, 256, 512)
    classes: int = 9
    sca_pool: Literal["global", "local"] = "global"
    sca_window: int = 512
    gain: float = 0.0

    def __post_init__(self):
        if self.sca_pool not in ("global", "local"):
            raise ValueError(f"DRMConfig: sca_pool is {self.sca_pool!r}; known: 'global', 'local'")

    @classmethod
    def sd(cls) -> "DRMConfig":
        """For the autoencoder of Stable Diffusion: 5,945,856 parameters."""
        return cls()

    @classmethod
    def small(cls) -> "DRMConfig":
        """For `VAEConfig.small()`."""
        return cls(channels=(16, 32), sca_window=64, gain=0.5)


class DetailRefinement(nnx.Module):
    """One `TapRefinement` per tap of the autoencoder."""

    def __init__(self, config: DRMConfig):
        windows = [
            max(config.sca_window >> tap, 1) if config.sca_pool == "local" else None
            for tap in range(len(config.channels))
        ]
        self.taps = nnx.List(
            TapRefinement(channels, config.classes, window, config.gain)
            for channels, window in zip(config.channels, windows, strict=True)
        )
        if config.gain:
            variance_preserving_init(self, zero=r"\.out\.|\.degradation\.|\.sca\.")

    def __call__(
        self,
        i: int,
        d: Float[Array, "b h w c"],
        e: Float[Array, "b h w c"],
        p: Float[Array, "b classes"],
    ) -> Float[Array, "b h w c"]:
        """The decoder's features d of tap i, corrected.

        Args:
            e: the encoder's features of the degraded image at the same tap.
            p: how probable each degradation is, summing to one; uniform where nothing is known.
        """
        return self.taps[i](d, e, p)


class TapRefinement(nnx.Module):
    """Fuses decoder and encoder features, filters them twice, and adds the result to the decoder's."""

    def __init__(self, channels: int, classes: int, window: int | None, gain: float):
        self.fuse = Conv(2 * channels, channels, 1)
        self.blocks = nnx.List([NAFBlock(channels, classes, window, gain) for _ in range(2)])
        self.out = Conv(channels, channels, 1, zero=True)

    def __call__(
        self, d: Float[Array, "b h w c"], e: Float[Array, "b h w c"], p: Float[Array, "b classes"]
    ) -> Float[Array, "b h w c"]:
        u = self.fuse(jnp.concatenate([d, e.astype(d.dtype)], -1))
        for block in self.blocks:
            u = block(u, p)
        return d + self.out(u)


class NAFBlock(nnx.Module):
    """Gated depthwise convolution with channel attention, then a gated pointwise layer.

    Args:
        window: side in pixels over which the channel attention averages; None: the whole map.
        gain: see `DRMConfig`.
    """

    def __init__(self, channels: int, classes: int, window: int | None, gain: float = 0.0):
        self.norm1 = LayerNorm(channels, eps=1e-6)
        self.degradation = Linear(classes, 2 * channels, zero=True)
        self.conv1 = Conv(channels, 2 * channels, 1)
        self.depthwise = Conv(2 * channels, 2 * channels, 3, groups=2 * channels)
        self.sca = Conv(channels, channels, 1)
        if gain and self.sca.bias is not None:
            self.sca.bias.set_metadata(init=ONES)  # with its weights at zero, an attention of one
        self.conv2 = Conv(channels, channels, 1)
        self.beta = parameter((channels,), Init("constant", gain))
        self.norm2 = LayerNorm(channels, eps=1e-6)
        self.conv3 = Conv(channels, 2 * channels, 1)
        self.conv4 = Conv(channels, channels, 1)
        self.gamma = parameter((channels,), Init("constant", gain))
        self.window = window

    def __call__(self, x: Float[Array, "b h w c"], p: Float[Array, "b classes"]) -> Float[Array, "b h w c"]:
        scale, shift = jnp.split(self.degradation(p.astype(x.dtype))[:, None, None, :], 2, axis=-1)
        y = self.norm1(x) * (1 + scale) + shift
        y = gate(self.depthwise(self.conv1(y)))
        y = y * self.sca(spatial_mean(y, self.window))
        x = x + self.beta[...].astype(x.dtype) * self.conv2(y)
        y = gate(self.conv3(self.norm2(x)))
        return x + self.gamma[...].astype(x.dtype) * self.conv4(y)


def gate(x: Float[Array, "b h w c2"]) -> Float[Array, "b h w c"]:
    """The product of the two halves of the channels."""
    first, second = jnp.split(x, 2, axis=-1)
    return first * second


def spatial_mean(x: Float[Array, "b h w c"], window: int | None = None) -> Float[Array, "b hh ww c"]:
    """The mean over height and width: one value, or one per pixel over the window around it.

    Near the border the window is shifted inwards rather than cut, so every mean is over
    window x window pixels; along a side no longer than the window it is the whole side.
    """
    y = x.astype(jnp.float32)
    for axis in (1, 2):
        if window is None or x.shape[axis] <= window:
            y = y.mean(axis, keepdims=True)
        else:
            y = _moving_mean(y, window, axis)
    return y.astype(x.dtype)


def _moving_mean(x: Float[Array, "b h w c"], window: int, axis: int) -> Float[Array, "b h w c"]:
    length = x.shape[axis]

    def pad(before: int, after: int) -> list[tuple[int, int]]:
        return [(before, after) if a == axis else (0, 0) for a in range(x.ndim)]

    sums = jnp.pad(jnp.cumsum(x, axis), pad(1, 0))
    upper = jax.lax.slice_in_dim(sums, window, length + 1, axis=axis)
    lower = jax.lax.slice_in_dim(sums, 0, length + 1 - window, axis=axis)
    before = window // 2
    return jnp.pad((upper - lower) / window, pad(before, window - 1 - before), mode="edge")
