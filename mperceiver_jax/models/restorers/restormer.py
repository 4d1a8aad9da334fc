"""Restormer: a U-shaped transformer whose attention mixes channels, at a cost linear in the pixels.

The blocks and the U-shape also carry PromptIR, AM-PromptIR and PIP, which change the
features between its parts or at its skip connections. Attribute names follow the
published checkpoints. Source: the paper (multi-Dconv transposed attention, gated-Dconv
feed-forward) and the sizes of the released weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models import layers
from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, apply_block, gelu
from mperceiver_jax.models.parameters import ONES, parameter
from mperceiver_jax.models.resampling import pad_to_multiple, pixel_shuffle, pixel_unshuffle
from mperceiver_jax.models.sizes import require_positive

Stage = Literal["latent", "decoder_level3", "decoder_level2", "decoder_level1", "refinement", "output"]
After = Callable[[Stage, Array], Array]
Skip = Callable[[int, Array], Array]


@dataclass(frozen=True)
class RestormerConfig:
    """Sizes of the U-shape.

    Attributes:
        dim: channels at full size; they double whenever the sides halve, three times.
        blocks: blocks per encoder level, the last at the coarsest size; the decoder mirrors the first three.
        refinement_blocks: blocks behind the decoder, at full size and 2 * dim channels.
        heads: attention heads per level, finest first.
        expansion: width inside the feed-forward part, as a multiple of the channels.
        norm: `with_bias`, or `bias_free`: neither mean nor bias.
        narrow_latent: 4 * dim instead of 8 * dim channels reach the first upsampling; what is called after
            the stage `latent` sees to it.
        pad_to: sides are padded to multiples of this, itself a multiple of 8.
        remat: recompute each block in the backward pass.
    """

    dim: int = 48
    blocks: tuple[int, int, int, int] = (4, 6, 6, 8)
    refinement_blocks: int = 4
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    expansion: float = 2.66
    norm: Literal["with_bias", "bias_free"] = "with_bias"
    narrow_latent: bool = False
    pad_to: int = 8
    remat: bool = False

    def __post_init__(self) -> None:
        require_positive(self, zero=("blocks", "refinement_blocks"))
        if self.pad_to % 8 or self.pad_to <= 0:
            raise ValueError(f"pad_to={self.pad_to}: sides are halved three times, give a multiple of 8")
        for level, heads in enumerate(self.heads):
            if self.dim * 2**level % heads:
                channels = self.dim * 2**level
                raise ValueError(f"heads={self.heads}: {channels} channels do not divide into {heads} heads")

    @classmethod
    def full(cls) -> "RestormerConfig":
        """As published: 26,126,644 parameters."""
        return cls()

    @classmethod
    def small(cls) -> "RestormerConfig":
        """Trains in minutes on any machine."""
        return cls(dim=16, blocks=(1, 1, 1, 2), refinement_blocks=1)


class LayerNorm(nnx.Module):
    """Normalisation of each pixel over its channels; the parameters stand under `body`."""

    def __init__(self, channels: int, norm: str = "with_bias"):
        self.body = layers.LayerNorm(channels) if norm == "with_bias" else BiasFreeNorm(channels)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.body(x)


class BiasFreeNorm(nnx.Module):
    """x / sqrt(variance + 1e-5) * weight over the last axis: the mean stays in."""

    def __init__(self, channels: int):
        self.weight = parameter((channels,), ONES)

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(wide.var(-1, keepdims=True) + 1e-5)
        return (wide * scale * self.weight[...].astype(jnp.float32)).astype(x.dtype)


def channel_logits(
    q: Float[Array, "b h w c"], k: Float[Array, "b h w c"], temperature: Float[Array, "heads 1 1"]
) -> Float[Array, "b heads i j"]:
    """Cosines between the channels of q and of k over all pixels, within heads, times `temperature`.

    Heads are contiguous runs of channels. float32. The products are divided by the norms afterwards, so
    that no normalised copy of q or k is made.
    """
    heads = temperature.shape[0]

    def split(x: Array) -> tuple[Array, Array]:
        apart = x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads)
        squares = jnp.square(apart.astype(jnp.float32)).sum(1)
        return apart, jnp.maximum(jnp.sqrt(squares), 1e-12)

    (queries, q_norm), (keys, k_norm) = split(q), split(k)
    products = jnp.einsum("bnhi,bnhj->bhij", queries, keys, preferred_element_type=jnp.float32)
    return products / q_norm[..., :, None] / k_norm[..., None, :] * temperature.astype(jnp.float32)


def mix_channels(weights: Float[Array, "b heads i j"], v: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Every channel of each head as a weighted sum of that head's channels of v."""
    b, heads, width, _ = weights.shape
    values = v.reshape(b, -1, heads, width)
    return jnp.einsum("bhij,bnhj->bnhi", weights.astype(v.dtype), values).reshape(v.shape)


class Attention(nnx.Module):
    """Multi-Dconv head transposed attention (MDTA): softmax over channels, not over pixels."""

    def __init__(self, channels: int, heads: int):
        self.temperature = parameter((heads, 1, 1), ONES)
        self.qkv = Conv(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = Conv(3 * channels, 3 * channels, 3, groups=3 * channels, bias=False)
        self.project_out = Conv(channels, channels, 1, bias=False)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        q, k, v = jnp.split(self.qkv_dwconv(self.qkv(x)), 3, -1)
        weights = jax.nn.softmax(channel_logits(q, k, self.temperature[...]), -1)
        return self.project_out(mix_channels(weights, v))


class FeedForward(nnx.Module):
    """Gated-Dconv feed-forward (GDFN): GELU of one half times the other."""

    def __init__(self, channels: int, expansion: float):
        inner = int(channels * expansion)
        self.project_in = Conv(channels, 2 * inner, 1, bias=False)
        self.dwconv = Conv(2 * inner, 2 * inner, 3, groups=2 * inner, bias=False)
        self.project_out = Conv(inner, channels, 1, bias=False)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        gate, value = jnp.split(self.dwconv(self.project_in(x)), 2, -1)
        return self.project_out(gelu(gate) * value)


class TransformerBlock(nnx.Module):
    """x += attention(norm x); x += feed-forward(norm x)."""

    def __init__(self, channels: int, heads: int, *, expansion: float = 2.66, norm: str = "with_bias"):
        self.norm1 = LayerNorm(channels, norm)
        self.attn = Attention(channels, heads)
        self.norm2 = LayerNorm(channels, norm)
        self.ffn = FeedForward(channels, expansion)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class PatchEmbed(nnx.Module):
    """Overlapping patches of one pixel: a 3x3 convolution."""

    def __init__(self, channels: int):
        self.proj = Conv(3, channels, bias=False)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h w c"]:
        return self.proj(x)


class Downsample(nnx.Module):
    """Half the sides, twice the channels."""

    def __init__(self, channels: int):
        self.body = nnx.List([Conv(channels, channels // 2, bias=False)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c2"]:
        return pixel_unshuffle(self.body[0](x))


class Upsample(nnx.Module):
    """Twice the sides, half the channels."""

    def __init__(self, channels: int):
        self.body = nnx.List([Conv(channels, 2 * channels, bias=False)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c2"]:
        return pixel_shuffle(self.body[0](x))


class UShape(nnx.Module):
    """Three levels down, a latent, three levels up, refinement, and the image added at the end.

    Which blocks it is made of and how a skip connection is merged is for the subclass to say.
    """

    def __init__(self, config: RestormerConfig):
        c, (first, second, third, last) = config.dim, config.blocks
        self.patch_embed = PatchEmbed(c)
        self.encoder_level1 = self._blocks(config, 0, c, first)
        self.down1_2 = Downsample(c)
        self.encoder_level2 = self._blocks(config, 1, 2 * c, second)
        self.down2_3 = Downsample(2 * c)
        self.encoder_level3 = self._blocks(config, 2, 4 * c, third)
        self.down3_4 = Downsample(4 * c)
        self.latent = self._blocks(config, 3, 8 * c, last)
        self.up4_3 = Upsample(4 * c if config.narrow_latent else 8 * c)
        self.decoder_level3 = self._blocks(config, 2, 4 * c, third)
        self.up3_2 = Upsample(4 * c)
        self.decoder_level2 = self._blocks(config, 1, 2 * c, second)
        self.up2_1 = Upsample(2 * c)
        self.decoder_level1 = self._blocks(config, 0, 2 * c, first)
        self.refinement = self._blocks(config, 0, 2 * c, config.refinement_blocks)
        self.output = Conv(2 * c, 3, bias=False)
        self.config = config

    def _blocks(self, config: RestormerConfig, level: int, channels: int, count: int) -> nnx.List:
        return nnx.List([self.block(config, level, channels) for _ in range(count)])

    def block(self, config: RestormerConfig, level: int, channels: int) -> nnx.Module:
        """A new block for features of `level` (0 is full size) with `channels` channels."""
        raise NotImplementedError

    def merge(self, level: int, both: Float[Array, "b h w both"]) -> Float[Array, "b h w c"]:
        """Decoder and skip features, concatenated in this order, to the channels of a level (2 or 1)."""
        raise NotImplementedError

    def __call__(
        self,
        x: Float[Array, "b h w 3"],
        *,
        after: After = lambda stage, features: features,
        skip: Skip = lambda level, features: features,
    ) -> Float[Array, "b h w 3"]:
        """Restored images in the range of the input, nominally [0, 1]; not clipped.

        Args:
            x: degraded images of any size; padded inside, and cropped again.
            after: `after(stage, features)` replaces what a stage hands on; called in the order of `Stage`.
                `output` is what is added to the image.
            skip: `skip(level, features)` replaces encoder features on their way to the decoder; called for
                level 2, 1 and 0 (full size), each just before the decoder needs it.
        """
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.config.pad_to)
        one = self._run(self.encoder_level1, self.patch_embed(x))
        two = self._run(self.encoder_level2, self.down1_2(one))
        three = self._run(self.encoder_level3, self.down2_3(two))
        h = after("latent", self._run(self.latent, self.down3_4(three)))
        h = self.merge(2, jnp.concatenate([self.up4_3(h), skip(2, three)], -1))
        h = after("decoder_level3", self._run(self.decoder_level3, h))
        h = self.merge(1, jnp.concatenate([self.up3_2(h), skip(1, two)], -1))
        h = after("decoder_level2", self._run(self.decoder_level2, h))
        h = jnp.concatenate([self.up2_1(h), skip(0, one)], -1)
        h = after("decoder_level1", self._run(self.decoder_level1, h))
        h = after("refinement", self._run(self.refinement, h))
        return (after("output", self.output(h)) + x)[:, :height, :width]

    def _run(self, blocks: nnx.List, x: Array) -> Array:
        for block in blocks:
            x = apply_block(block, x, remat=self.config.remat)
        return x


class Restormer(UShape):
    """The U-shape with transformer blocks; skip connections are merged by 1x1 convolutions."""

    def __init__(self, config: RestormerConfig):
        super().__init__(config)
        c = config.dim
        self.reduce_chan_level3 = Conv((6 if config.narrow_latent else 8) * c, 4 * c, 1, bias=False)
        self.reduce_chan_level2 = Conv(4 * c, 2 * c, 1, bias=False)

    def block(self, config: RestormerConfig, level: int, channels: int) -> TransformerBlock:
        return TransformerBlock(channels, config.heads[level], expansion=config.expansion, norm=config.norm)

    def merge(self, level: int, both: Float[Array, "b h w both"]) -> Float[Array, "b h w c"]:
        return (self.reduce_chan_level3 if level == 2 else self.reduce_chan_level2)(both)
