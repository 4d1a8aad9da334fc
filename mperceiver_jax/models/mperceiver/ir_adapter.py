"""The IR-Adapter: from the degraded latent to one feature map per scale for the UNet's modulators.

A half UNet runs over the latent; at every scale the pixels then attend to learned visual
prompts, a set per degradation class, mixed by the class probabilities. Architecture and
attribute names follow the release (MPerceiver, arXiv 2312.02918).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.attention import attention
from mperceiver_jax.models.layers import (
    Conv,
    CrossAttention,
    Downsample,
    GroupNorm,
    LayerNorm,
    Linear,
    ResnetBlock,
    TimeEmbedding,
    apply_block,
)
from mperceiver_jax.models.parameters import normal, parameter
from mperceiver_jax.models.sizes import require_positive

Prompts = Sequence[tuple[Float[Array, "classes tokens _"], Float[Array, "classes tokens _"]]]
"""Keys and values of the visual prompts, one pair per scale, finest first."""


@dataclass(frozen=True)
class IRAdapterConfig:
    """Sizes of the adapter.

    Attributes:
        latent_channels: channels of the degraded latent.
        model_channels: width of the finest scale.
        channel_mult: width of each scale over `model_channels`, finest first.
        num_res_blocks: residual blocks per scale.
        attention_levels: scales with self-attention; the middle always has it.
        heads: self-attention heads, at every scale.
        out_channels: width of every map that comes out.
        classes: degradation classes.
        prompt_tokens: visual prompt tokens per class and scale.
        prompt_width: width of a prompt token.
        prompt_heads: heads of the prompt attention.
        prompt_head_width: channels per head of the prompt attention.
        groups: of every group norm.
        remat: recompute each residual and attention block in the backward pass.

    Raises:
        ValueError: widths that groups or heads do not divide, or attention at a scale that does not exist.
    """

    latent_channels: int = 4
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    heads: int = 4
    out_channels: int = 512
    classes: int = 9
    prompt_tokens: int = 24
    prompt_width: int = 512
    prompt_heads: int = 8
    prompt_head_width: int = 64
    groups: int = 32
    remat: bool = False

    @classmethod
    def release(cls) -> "IRAdapterConfig":
        """The release's adapter for Stable Diffusion 2.1: 54 M parameters."""
        return cls()

    @classmethod
    def small(cls) -> "IRAdapterConfig":
        """Fits `UNetConfig.small` (our own design)."""
        return cls(
            classes=10,
            latent_channels=8,
            model_channels=32,
            channel_mult=(1, 2, 2),
            num_res_blocks=1,
            attention_levels=(1, 2),
            out_channels=64,
            prompt_tokens=8,
            prompt_width=64,
            prompt_heads=4,
            prompt_head_width=16,
            groups=8,
        )

    def __post_init__(self) -> None:
        require_positive(self, zero=("attention_levels",))
        if not set(self.attention_levels) <= set(range(self.scales)):
            raise ValueError(f"IRAdapterConfig.attention_levels {self.attention_levels}: {self.scales} scales exist")
        for width in (*self.widths, self.out_channels):
            if width % self.groups:
                raise ValueError(f"IRAdapterConfig: width {width} does not divide into {self.groups} groups")
        for width in {self.widths[-1], *(self.widths[level] for level in self.attention_levels)}:
            if width % self.heads:
                raise ValueError(f"IRAdapterConfig: width {width} does not divide into {self.heads} heads")

    @property
    def scales(self) -> int:
        return len(self.channel_mult)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(mult * self.model_channels for mult in self.channel_mult)

    @property
    def time_width(self) -> int:
        return 4 * self.model_channels


class AttentionBlock(nnx.Module):
    """Self-attention of the pixels, with a residual; the output projection starts at zero.

    The `qkv` channels are in the older order of guided diffusion: split into heads first,
    into q, k and v within a head.
    """

    def __init__(self, channels: int, *, heads: int, groups: int):
        self.norm = GroupNorm(channels, groups=groups)
        self.qkv = Linear(channels, 3 * channels)
        self.proj_out = Linear(channels, channels, zero=True)
        self.heads = heads

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, h * w, self.heads, 3, c // self.heads)
        q, k, v = (qkv[:, :, :, i].reshape(b, h * w, c) for i in range(3))
        return x + self.proj_out(attention(q, k, v, self.heads)).reshape(x.shape)


def prompt_attention(
    attend: CrossAttention,
    x: Float[Array, "b n c"],
    keys: Float[Array, "classes m i"],
    values: Float[Array, "classes m i"],
    p: Float[Array, "b classes"],
) -> Float[Array, "b n c"]:
    """`sum_j p_j attend(x, prompts of class j)` in one pass.

    Each class has its own softmax, over its own tokens. The queries are common to the classes,
    and as the p_j sum to 1, one output projection of the weighted sum equals the sum of projections.
    """
    heads = attend.heads
    classes, m, inner = keys.shape

    def by_head(tokens: Array) -> Array:
        return tokens.astype(x.dtype).reshape(classes * m, heads, inner // heads)

    q = attend.to_q(x).reshape(*x.shape[:2], heads, inner // heads)
    scores = jnp.einsum("bnhc,mhc->bhnm", q, by_head(keys), preferred_element_type=jnp.float32)
    scores = (scores * (inner // heads) ** -0.5).reshape(*scores.shape[:3], classes, m)
    weights = jax.nn.softmax(scores, -1) * p.astype(jnp.float32)[:, None, None, :, None]
    weights = weights.reshape(*scores.shape[:3], classes * m).astype(x.dtype)
    mixed = jnp.einsum("bhnm,mhc->bnhc", weights, by_head(values))
    return attend.to_out[0](mixed.reshape(*x.shape[:2], inner))


class IRAdapter(nnx.Module):
    """One feature map per scale from the degraded latent, the timestep and the degradation logits."""

    def __init__(self, config: IRAdapterConfig):
        self.config = config
        widths, levels = config.widths, range(config.scales)

        def resnet(width_in: int, width: int) -> ResnetBlock:
            return ResnetBlock(width_in, width, time_width=config.time_width, groups=config.groups, zero_out=True)

        def self_attention(width: int) -> AttentionBlock:
            return AttentionBlock(width, heads=config.heads, groups=config.groups)

        self.time_embedding = TimeEmbedding(config.model_channels, config.time_width)
        blocks: list[list[nnx.Module]] = [[Conv(config.latent_channels, config.model_channels)]]
        current = config.model_channels
        for level in levels:
            for _ in range(config.num_res_blocks):
                attend = [self_attention(widths[level])] if level in config.attention_levels else []
                blocks.append([resnet(current, widths[level]), *attend])
                current = widths[level]
            if level < config.scales - 1:
                blocks.append([Downsample(current)])
        self.input_blocks = nnx.List(nnx.List(block) for block in blocks)
        self.middle_block = nnx.List([resnet(current, current), self_attention(current), resnet(current, current)])
        self.visual_prompt = parameter(
            (config.scales, config.classes, 1, config.prompt_tokens, config.prompt_width), normal(0.02)
        )
        self.prompt_attns = nnx.List(
            CrossAttention(width, config.prompt_width, config.prompt_heads, config.prompt_head_width)
            for width in widths
        )
        self.norm1 = nnx.List(LayerNorm(width) for width in widths)
        self.norm2 = nnx.List(LayerNorm(config.prompt_width) for _ in levels)
        self.fea_tran = nnx.List(resnet(width, config.out_channels) for width in widths)

    def __call__(
        self,
        z_lq: Float[Array, "b h w c"],
        t: Int[Array, "b"] | Float[Array, "b"],
        logits: Float[Array, "b classes"],
        prompts: Prompts | None = None,
    ) -> tuple[Float[Array, "b _ _ f"], ...]:
        """The maps, finest first, sides halving from the latent's, in the latent's dtype.

        Args:
            z_lq: the degraded latent, scaled.
            t: timesteps, 0..999.
            logits: of the degradation classes, before the softmax.
            prompts: `self.prompts()`, where it is at hand; the result is the same.
        """
        temb = self.time_embedding(t, z_lq.dtype)
        p = jax.nn.softmax(logits.astype(jnp.float32))
        prompts = self.prompts(z_lq.dtype) if prompts is None else prompts
        maps = self.trunk(z_lq, temb)
        attended = [self.attend(scale, x, prompts[scale], p) for scale, x in enumerate(maps)]
        return tuple(
            apply_block(resnet, x, temb, remat=self.config.remat)
            for resnet, x in zip(self.fea_tran, attended, strict=True)
        )

    def trunk(self, z_lq: Float[Array, "b h w c"], temb: Float[Array, "b t"]) -> tuple[Float[Array, "b _ _ _"], ...]:
        """The half UNet: the map before each downsampling, and the middle's output."""
        maps, x = [], z_lq
        for block in [*self.input_blocks, self.middle_block]:
            for layer in block:
                if isinstance(layer, Downsample):
                    maps.append(x)
                inputs = (x, temb) if isinstance(layer, ResnetBlock) else (x,)
                x = apply_block(layer, *inputs, remat=self.config.remat)
        return (*maps, x)

    def prompts(self, dtype: jax.typing.DTypeLike = jnp.float32) -> Prompts:
        """Keys and values of the visual prompts, which depend neither on the image nor on the timestep."""
        tokens = self.visual_prompt[...].astype(dtype)[:, :, 0]
        normed = [norm(tokens[scale]) for scale, norm in enumerate(self.norm2)]
        return tuple((attend.to_k(x), attend.to_v(x)) for attend, x in zip(self.prompt_attns, normed, strict=True))

    def attend(
        self,
        scale: int,
        x: Float[Array, "b h w c"],
        prompts: tuple[Float[Array, "classes m i"], Float[Array, "classes m i"]],
        p: Float[Array, "b classes"],
    ) -> Float[Array, "b h w c"]:
        """A map plus what its pixels find in the prompts of this scale, classes weighted by `p`."""
        pixels = self.norm1[scale](x.reshape(x.shape[0], -1, x.shape[-1]))
        return x + prompt_attention(self.prompt_attns[scale], pixels, *prompts, p).reshape(x.shape)
