"""The autoencoder of Stable Diffusion: images to latents and back.

Attribute names follow diffusers' `AutoencoderKL`. The encoder also returns the
features that the detail refinement (`drm.py`) reads. Source: spec of the published
autoencoder; the taps are our own design.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.attention import attention
from mperceiver_jax.models.layers import Conv, Downsample, GroupNorm, Linear, ResnetBlock, Upsample
from mperceiver_jax.models.parameters import Init, variance_preserving_init
from mperceiver_jax.models.sizes import require_positive

EPS = 1e-6


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder.

    Attributes:
        image_channels, latent_channels: channels outside and in the latent.
        base_channels, channel_mult: level l has base * mult[l] channels; all but the last halve the size.
        stem_channels: channels after the encoder's first convolution; 0 for those of the finest level, as diffusers has
            it. The original code has `base_channels` there, which differs where channel_mult starts with another
            number than 1.
        num_res_blocks: residual blocks per encoder level (the decoder has one more).
        groups: groups of every norm.
        mid_attention: self-attention between all positions in the middle, as Stable Diffusion has it. Its cost grows
            with the square of the area; the sizes of our own leave it out.
        scaling_factor: what the diffusion multiplies latents by; `encode` and `decode` do not.
    """

    image_channels: int = 3
    latent_channels: int = 4
    base_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    stem_channels: int = 0
    num_res_blocks: int = 2
    groups: int = 32
    mid_attention: bool = True
    scaling_factor: float = 0.18215

    def __post_init__(self) -> None:
        require_positive(self, zero=("stem_channels", "num_res_blocks"))

    @classmethod
    def sd(cls) -> "VAEConfig":
        """Stable Diffusion 1 and 2: factor 8, 83,653,863 parameters."""
        return cls()

    @classmethod
    def small(cls) -> "VAEConfig":
        """Factor 4 and eight latent channels: trains in minutes on any machine."""
        return cls(
            latent_channels=8,
            base_channels=16,
            channel_mult=(1, 2, 2),
            num_res_blocks=1,
            groups=2,
            mid_attention=False,
            scaling_factor=1.0,
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.base_channels * mult for mult in self.channel_mult)

    @property
    def tap_channels(self) -> tuple[int, ...]:
        """Channels of each encoder tap, finest first; tap i has 1 / 2**i of the image's size."""
        return self.channels[:-1]

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, along one side."""
        return 2 ** (len(self.channel_mult) - 1)


class Posterior(NamedTuple):
    """What the encoder knows of an image: a Gaussian per latent value, and its own features.

    Attributes:
        mean, logvar: (b, h / factor, w / factor, latent channels), unscaled; logvar within [-30, 20].
        taps: one map per level that halves the size, taken before it does, finest first.
    """

    mean: Array
    logvar: Array
    taps: tuple[Array, ...]

    @property
    def moments(self) -> Float[Array, "b h w c2"]:
        """Mean and log-variance side by side; `posterior` takes them apart."""
        return jnp.concatenate([self.mean, self.logvar], -1)

    def sample(self, noise: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """mean + std * noise, for standard normal noise; in the dtype of the mean."""
        std = jnp.exp(0.5 * self.logvar.astype(jnp.float32))
        return (self.mean.astype(jnp.float32) + std * noise.astype(jnp.float32)).astype(self.mean.dtype)


def posterior(moments: Float[Array, "b h w c2"], taps: tuple[Array, ...] = ()) -> Posterior:
    """Splits moments into mean and log-variance, and clamps the latter."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return Posterior(mean, jnp.clip(logvar, -30.0, 20.0), taps)


class AutoencoderKL(nnx.Module):
    """Encoder, decoder and the two 1x1 convolutions around the latent."""

    def __init__(self, config: VAEConfig):
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv(2 * latent, 2 * latent, 1)
        self.post_quant_conv = Conv(latent, latent, 1)
        self.config = config
        variance_preserving_init(self, zero=r"\.conv2\.|\.to_out\.")
        # From nothing, a posterior of unit variance would drown the latent in noise for long.
        assert self.quant_conv.bias is not None
        self.quant_conv.bias.set_metadata(init=Init("second_half", -6.0))

    def encode(self, x: Float[Array, "b h w c"]) -> Posterior:
        """The posterior of images in [-1, 1].

        Raises:
            ValueError: height or width is no multiple of `config.factor`.
        """
        height, width, factor = *x.shape[1:3], self.config.factor
        if height % factor or width % factor:
            raise ValueError(f"AutoencoderKL: images of {height}x{width}; pad sides to multiples of {factor}")
        raw, taps = self.encoder(x)
        return posterior(self.quant_conv(raw), taps)

    def encode_pair(self, one: Float[Array, "b h w c"], other: Float[Array, "b h w c"]) -> tuple[Posterior, Posterior]:
        """The posteriors of both, encoded as one batch, in which they alternate: rows that lie on different
        devices stay there."""
        b = one.shape[0]
        both = self.encode(jnp.stack([one, other], 1).reshape(2 * b, *one.shape[1:]))
        apart = jax.tree.map(lambda x: x.reshape(b, 2, *x.shape[1:]), both)
        return jax.tree.map(lambda x: x[:, 0], apart), jax.tree.map(lambda x: x[:, 1], apart)

    def decode(self, z: Float[Array, "b h w c"]) -> Float[Array, "b hh ww 3"]:
        """Images, nominally in [-1, 1] but not clipped, from unscaled latents."""
        return self.decoder(self.post_quant_conv(z))


class Encoder(nnx.Module):
    """Image to moments (before the 1x1 convolution) and taps."""

    def __init__(self, config: VAEConfig):
        channels, groups = config.channels, config.groups
        incoming = (config.stem_channels or channels[0], *channels)
        levels = []
        for level, out in enumerate(channels):
            widths = [incoming[level]] + [out] * config.num_res_blocks
            down = Downsample(out, padding=((0, 1), (0, 1))) if level < len(channels) - 1 else None
            levels.append(DownBlock(widths, groups, down))
        self.conv_in = Conv(config.image_channels, incoming[0])
        self.down_blocks = nnx.List(levels)
        self.mid_block = MidBlock(channels[-1], groups, config.mid_attention)
        self.conv_norm_out = GroupNorm(channels[-1], groups=groups, eps=EPS)
        self.conv_out = Conv(channels[-1], 2 * config.latent_channels)

    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b hh ww m"], tuple[Array, ...]]:
        h, taps = self.conv_in(x), []
        for block in self.down_blocks:
            for resnet in block.resnets:
                h = resnet(h)
            for down in block.downsamplers:
                taps.append(h)
                h = down(h)
        h = self.mid_block(h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h))), tuple(taps)


class Decoder(nnx.Module):
    """Latent (after the 1x1 convolution) to image. `up_blocks` run from the coarsest to the finest."""

    def __init__(self, config: VAEConfig):
        channels, groups = config.channels[::-1], config.groups
        levels = []
        for index, out in enumerate(channels):
            widths = [channels[max(index - 1, 0)]] + [out] * (config.num_res_blocks + 1)
            levels.append(UpBlock(widths, groups, Upsample(out) if index < len(channels) - 1 else None))
        self.conv_in = Conv(config.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], groups, config.mid_attention)
        self.up_blocks = nnx.List(levels)
        self.conv_norm_out = GroupNorm(channels[-1], groups=groups, eps=EPS)
        self.conv_out = Conv(channels[-1], config.image_channels)

    def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b hh ww 3"]:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            for resnet in block.resnets:
                h = resnet(h)
            for up in block.upsamplers:
                h = up(h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))


class DownBlock(nnx.Module):
    """The residual blocks of one encoder level and, except at the coarsest, what halves the size."""

    def __init__(self, widths: list[int], groups: int, down: Downsample | None):
        self.resnets = resnets(widths, groups)
        self.downsamplers = nnx.List([] if down is None else [down])


class UpBlock(nnx.Module):
    """The residual blocks of one decoder level and, except at the finest, what doubles the size."""

    def __init__(self, widths: list[int], groups: int, up: Upsample | None):
        self.resnets = resnets(widths, groups)
        self.upsamplers = nnx.List([] if up is None else [up])


class MidBlock(nnx.Module):
    """Residual block, attention (if any), residual block at the coarsest size."""

    def __init__(self, channels: int, groups: int, attention: bool):
        self.resnets = resnets([channels] * 3, groups)
        self.attentions = nnx.List([SpatialAttention(channels, groups)] if attention else [])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = self.resnets[0](x)
        for attend in self.attentions:
            x = attend(x)
        return self.resnets[1](x)


class SpatialAttention(nnx.Module):
    """Self-attention over all positions with one head as wide as the map, plus its input."""

    def __init__(self, channels: int, groups: int):
        self.group_norm = GroupNorm(channels, groups=groups, eps=EPS)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = nnx.List([Linear(channels, channels)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        tokens = self.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])
        mixed = attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), heads=1)
        return x + self.to_out[0](mixed).reshape(x.shape)


def resnets(widths: list[int], groups: int) -> nnx.List:
    """Residual blocks without a time term, from widths[0] to widths[1], and so on."""
    return nnx.List(ResnetBlock(i, o, time_width=None, groups=groups, eps=EPS) for i, o in pairwise(widths))
