"""SwinIR at the size of its input, as MiOIR trains it: shifted windows at full resolution, plain or prompted."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, LayerNorm, Linear, gelu
from mperceiver_jax.models.parameters import normal, parameter, start_weights
from mperceiver_jax.models.restorers.mioir import prompting, windows
from mperceiver_jax.models.restorers.mioir.prompting import (
    GUIDE_CHANNELS,
    Prompted,
    PromptedConfig,
    PromptExtractor,
    Prompts,
)
from mperceiver_jax.models.sizes import require_divisible, require_positive

MEAN = (0.4488, 0.4371, 0.4040)
"""Mean of the images, taken off and put back."""


@dataclass(frozen=True)
class SwinIRConfig(PromptedConfig):
    """Sizes of the network.

    Attributes:
        width: channels of the tokens; heads of the attention must divide it.
        depths: transformer blocks of each residual group, every second one with shifted windows.
        window: side of a window; sides of images are padded to multiples of it.
        mlp_ratio: hidden width of the MLP / width; tail: channels before the last convolution.
        image_size: images in training. Only the masks that checkpoints carry are of that size.
        drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
    """

    width: int = 180
    heads: int = 6
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    window: int = 8
    mlp_ratio: int = 2
    tail: int = 64
    image_size: int = 128
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        require_positive(self, zero=("drop_path", "depths"))
        require_divisible(self, "width", "heads")

    @classmethod
    def release(cls, prompts: Prompts = "plain") -> "SwinIRConfig":
        """The release's: 11,604,775 parameters; 11,854,341 with explicit, 11,860,613 with adaptive prompts."""
        return cls(prompts=prompts)

    @classmethod
    def small(cls, prompts: Prompts = "plain") -> "SwinIRConfig":
        """For a CPU."""
        return cls(width=24, heads=3, depths=(2, 2), tail=16, drop_path=0.0, prompts=prompts)


class Mlp(nnx.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int):
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        return self.fc2(gelu(self.fc1(x)))


class WindowAttention(nnx.Module):
    """Self-attention inside windows, with a table of relative positions."""

    def __init__(self, width: int, heads: int, window: int):
        self.relative_position_bias_table = parameter(((2 * window - 1) ** 2, heads), normal(0.02))
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def __call__(
        self, x: Float[Array, "b windows n c"], mask: Float[np.ndarray, "windows n n"] | None
    ) -> Float[Array, "b windows n c"]:
        q, k, v = jnp.split(self.qkv(x), 3, -1)
        table = jnp.asarray(self.relative_position_bias_table[...])
        return self.proj(windows.window_attention(q, k, v, table, mask))


class SwinBlock(nnx.Module):
    """x + attention(norm x) in windows shifted by `shift`, then x + mlp(norm x)."""

    def __init__(self, config: SwinIRConfig, shift: int, drop_path: float):
        self.norm1 = LayerNorm(config.width)
        self.attn = WindowAttention(config.width, config.heads, config.window)
        self.norm2 = LayerNorm(config.width)
        self.mlp = Mlp(config.width, config.mlp_ratio * config.width)
        self.window, self.shift, self.drop_path = config.window, shift, drop_path

    def __call__(self, x: Float[Array, "b h w c"], key: Array | None) -> Float[Array, "b h w c"]:
        height, width = x.shape[1:3]
        first, second = windows.split_key(key, 2)
        mask = windows.shift_mask(height, width, self.window, self.shift) if self.shift else None
        h = windows.partition(windows.roll(self.norm1(x), -self.shift), self.window)
        h = windows.roll(windows.merge(self.attn(h, mask), height, width), self.shift)
        x = x + windows.drop_path(h, self.drop_path, first)
        return x + windows.drop_path(self.mlp(self.norm2(x)), self.drop_path, second)


class ResidualGroup(nnx.Module):
    """The blocks of a group, under the name they have in checkpoints."""

    def __init__(self, config: SwinIRConfig, rates: list[float]):
        self.blocks = nnx.List(
            SwinBlock(config, config.window // 2 if i % 2 else 0, rate) for i, rate in enumerate(rates)
        )


class RSTB(nnx.Module):
    """Residual Swin transformer block: x + conv(blocks(x)), and where prompted its modulation."""

    def __init__(self, config: SwinIRConfig, rates: list[float]):
        self.residual_group = ResidualGroup(config, rates)
        self.conv = Conv(config.width, config.width)
        if config.prompts != "plain":
            prompting.declare(self, {"": config.width}, normal(0.02))

    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"] | None, key: Array | None
    ) -> Float[Array, "b h w c"]:
        blocks, h = self.residual_group.blocks, x
        for block, own in zip(blocks, windows.split_key(key, len(blocks)), strict=True):
            h = block(h, own)
        return prompting.modulate(self, "", self.conv(h) + x, embedding)


class PatchEmbed(nnx.Module):
    """Patches of one pixel: nothing but a norm."""

    def __init__(self, width: int):
        self.norm = LayerNorm(width)


class SwinIR(Prompted):
    """Shallow convolution, residual groups with a long skip, reconstruction. No skip from the image itself."""

    def __init__(self, config: SwinIRConfig):
        if config.width % config.heads:
            raise ValueError(f"SwinIRConfig: width {config.width} does not divide into {config.heads} heads")
        super().__init__(config.prompts, config.task_maps, config.window)
        rates = np.linspace(0, config.drop_path, sum(config.depths)).tolist()
        ends = np.cumsum(config.depths).tolist()
        self.conv_first = Conv(3, config.width)
        self.patch_embed = PatchEmbed(config.width)
        self.layers = nnx.List(
            RSTB(config, rates[end - depth : end]) for depth, end in zip(config.depths, ends, strict=True)
        )
        self.norm = LayerNorm(config.width)
        self.conv_after_body = Conv(config.width, config.width)
        self.conv_before_upsample = nnx.List([Conv(config.width, config.tail)])
        self.conv_last = Conv(config.tail, 3)
        if config.prompts != "plain":
            self.F_ext_net = PromptExtractor(GUIDE_CHANNELS[config.prompts])
            points = {"_after_body": config.width, "_before_upsample": config.tail, "_last": 3}
            prompting.declare(self, points)
        start_weights(self, "linear", lambda shape: normal(0.02))
        self.config = config

    def restore(
        self,
        image: Float[Array, "b h w 3"],
        guide: Float[Array, "b hh ww g"] | None = None,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b h w 3"]:
        """See `Prompted.restore`; sides are multiples of the window."""
        embedding = None if guide is None else self.F_ext_net(guide)
        mean = jnp.asarray(MEAN, image.dtype)
        first = self.conv_first(image - mean)
        h = self.patch_embed.norm(first)
        for layer, own in zip(self.layers, windows.split_key(key, len(self.layers)), strict=True):
            h = layer(h, embedding, own)
        h = prompting.modulate(self, "_after_body", self.conv_after_body(self.norm(h)) + first, embedding)
        h = jax.nn.leaky_relu(self.conv_before_upsample[0](h))
        h = prompting.modulate(self, "_before_upsample", h, embedding)
        return prompting.modulate(self, "_last", self.conv_last(h), embedding) + mean
