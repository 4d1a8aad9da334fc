"""The denoising UNet of Stable Diffusion 2, with an adaptive modulator in every residual block.

Attribute names are those of diffusers' `UNet2DConditionModel`; a modulator is the `spade`
of its residual block. Level 0 is the finest; a level's modulators read the feature map
of the same index.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.attention import KeysValues
from mperceiver_jax.models.layers import Conv, Downsample, GroupNorm, ResnetBlock, TimeEmbedding, Upsample, apply_block
from mperceiver_jax.models.mperceiver.modulator import Form, Modulator, Start
from mperceiver_jax.models.mperceiver.spatial_transformer import SpatialTransformer
from mperceiver_jax.models.parameters import variance_preserving_init
from mperceiver_jax.models.sizes import require_positive

Read = tuple[tuple[KeysValues, ...], ...]
"""Keys and values of a context: for every transformer of a stage, for every block in it."""


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet.

    Attributes:
        latent_channels: channels of the latent, and of the predicted noise.
        model_channels: width of the finest level.
        channel_mult: width of each level over `model_channels`, finest first.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        attention_levels: levels with spatial transformers; the middle always has one.
        self_attention: whether the pixels of a map attend to each other, as in Stable Diffusion. The cost grows with
            the square of the area; without it transformers attend to the context alone.
        head_width: channels per attention head.
        context_width: width of the context tokens.
        groups: of every group norm.
        modulated: whether residual blocks have modulators; without them this is the plain
            UNet of the prior, whose parameters are a subset with the same paths.
        feature_channels: width of the feature maps that the modulators read.
        modulator_hidden: hidden width of a modulator.
        modulator_form: formula of a modulator, see `Modulator`.
        modulator_init: where its last convolutions start, see `Modulator`.
        remat: recompute each residual block and transformer in the backward pass.

    Raises:
        ValueError: widths that groups or heads do not divide, or attention at a level that does not exist.
    """

    latent_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    self_attention: bool = True
    head_width: int = 64
    context_width: int = 1024
    groups: int = 32
    modulated: bool = True
    feature_channels: int = 512
    modulator_hidden: int = 128
    modulator_form: Form = "release"
    modulator_init: Start = "zero"
    remat: bool = False

    @classmethod
    def sd21(cls) -> "UNetConfig":
        """Stable Diffusion 2.1 (866 M parameters) with the release's modulators (60 M)."""
        return cls()

    @classmethod
    def small(cls) -> "UNetConfig":
        """For laptops and tests of the whole system (our own design)."""
        return cls(
            latent_channels=8,
            model_channels=32,
            channel_mult=(1, 2, 2),
            num_res_blocks=1,
            attention_levels=(1, 2),
            self_attention=False,
            head_width=16,
            context_width=64,
            groups=2,
            feature_channels=64,
            modulator_hidden=32,
            modulator_form="residual",
        )

    def __post_init__(self) -> None:
        require_positive(self, zero=("attention_levels",))
        if not set(self.attention_levels) <= set(range(self.levels)):
            raise ValueError(f"UNetConfig.attention_levels {self.attention_levels}: {self.levels} levels exist")
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"UNetConfig: width {width} does not divide into {self.groups} groups")
        for width in {self.widths[-1], *(self.widths[level] for level in self.attention_levels)}:
            if width % self.head_width:
                raise ValueError(f"UNetConfig: width {width} does not divide into heads of {self.head_width}")

    @property
    def levels(self) -> int:
        return len(self.channel_mult)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(mult * self.model_channels for mult in self.channel_mult)

    @property
    def time_width(self) -> int:
        return 4 * self.model_channels

    def modulator(self, width: int) -> Modulator:
        """A modulator for maps of this width."""
        return Modulator(
            width,
            self.feature_channels,
            hidden=self.modulator_hidden,
            groups=self.groups,
            form=self.modulator_form,
            init=self.modulator_init,
        )


class Stage(nnx.Module):
    """Residual blocks in a row, the first `transformers` of them followed by a spatial transformer each."""

    def __init__(self, config: UNetConfig, widths_in: Sequence[int], width: int, transformers: int):
        self.resnets = nnx.List(
            ResnetBlock(
                width_in,
                width,
                time_width=config.time_width,
                groups=config.groups,
                modulator=config.modulator(width) if config.modulated else None,
            )
            for width_in in widths_in
        )
        self.attentions = nnx.List(
            SpatialTransformer(
                width,
                config.context_width,
                head_width=config.head_width,
                groups=config.groups,
                self_attention=config.self_attention,
            )
            for _ in range(transformers)
        )
        self.remat = config.remat

    def layer(self, index: int, h: Array, temb: Array, context: Read, features: Array | None) -> Array:
        """One residual block and its transformer, if it has one."""
        h = apply_block(self.resnets[index], h, temb, features, remat=self.remat)
        if index < len(self.attentions):
            h = apply_block(self.attentions[index], h, context[index], remat=self.remat)
        return h

    def read(self, context: Float[Array, "b n d"]) -> Read:
        """Keys and values of the context for every transformer of this stage."""
        return tuple(transformer.read(context) for transformer in self.attentions)


class DownBlock(Stage):
    """A level on the way down; halves the map at its end, except the coarsest."""

    def __init__(self, config: UNetConfig, level: int):
        width = config.widths[level]
        before = config.widths[level - 1] if level else config.model_channels
        n = config.num_res_blocks
        transformers = n if level in config.attention_levels else 0
        super().__init__(config, [before] + [width] * (n - 1), width, transformers)
        self.downsamplers = nnx.List([Downsample(width)] if level < config.levels - 1 else [])

    def __call__(self, h: Array, temb: Array, context: Read, features: Array | None) -> list[Array]:
        """Every map it makes, in order: each goes on the stack of skips, the last one also onwards."""
        made = []
        for index in range(len(self.resnets)):
            h = self.layer(index, h, temb, context, features)
            made.append(h)
        return made + [down(h) for down in self.downsamplers]


class MidBlock(Stage):
    """Residual block, transformer, residual block at the coarsest level."""

    def __init__(self, config: UNetConfig):
        width = config.widths[-1]
        super().__init__(config, [width, width], width, 1)

    def __call__(self, h: Array, temb: Array, context: Read, features: Array | None) -> Array:
        return self.layer(1, self.layer(0, h, temb, context, features), temb, context, features)


class UpBlock(Stage):
    """A level on the way up; doubles the map at its end, except the finest."""

    def __init__(self, config: UNetConfig, level: int):
        width, n = config.widths[level], config.num_res_blocks
        below = config.widths[min(level + 1, config.levels - 1)]
        # What is popped: the level's own maps, then the one that entered it on the way down.
        skips = [width] * n + [config.widths[level - 1] if level else config.model_channels]
        widths_in = [current + skip for current, skip in zip([below] + [width] * n, skips, strict=True)]
        transformers = n + 1 if level in config.attention_levels else 0
        super().__init__(config, widths_in, width, transformers)
        self.upsamplers = nnx.List([Upsample(width)] if level else [])

    def __call__(self, h: Array, skips: Sequence[Array], temb: Array, context: Read, features: Array | None) -> Array:
        """`skips`: one map for each residual block, in the order of their use."""
        for index, skip in enumerate(skips):
            h = self.layer(index, jnp.concatenate([h, skip], -1), temb, context, features)
        for up in self.upsamplers:
            h = up(h)
        return h


class UNet(nnx.Module):
    """Predicts the noise in a latent."""

    def __init__(self, config: UNetConfig):
        self.config = config
        self.conv_in = Conv(config.latent_channels, config.model_channels)
        self.time_embedding = TimeEmbedding(config.model_channels, config.time_width)
        self.down_blocks = nnx.List(DownBlock(config, level) for level in range(config.levels))
        self.mid_block = MidBlock(config)
        self.up_blocks = nnx.List(UpBlock(config, level) for level in reversed(range(config.levels)))
        self.conv_norm_out = GroupNorm(config.widths[0], groups=config.groups)
        self.conv_out = Conv(config.widths[0], config.latent_channels)
        variance_preserving_init(self, zero=r"\.conv2\.|\.proj_out\.|^conv_out\.", keep=r"\.spade\.")

    def __call__(
        self,
        latent: Float[Array, "b h w c"],
        t: Int[Array, "b"] | Float[Array, "b"],
        context: Float[Array, "b n d"] | tuple[Read, ...],
        features: Sequence[Float[Array, "b _ _ f"]] | None = None,
    ) -> Float[Array, "b h w c"]:
        """The predicted noise, in the dtype of the latent.

        Args:
            latent: the noisy latent, scaled; sides are multiples of 2 ** (levels - 1).
            t: timesteps, 0..999.
            context: text tokens, all of which are attended to, or what `read` made of them.
            features: one map per level, finest first, sides halving from the latent's; without
                them the UNet is the plain one of the prior.

        Raises:
            ValueError: sides that do not halve, or features that do not fit the levels.
        """
        self._check(latent, features)
        maps: list[Array | None] = [None] * self.config.levels if features is None else list(features)
        read = context if isinstance(context, tuple) else self.read(context.astype(latent.dtype))
        seen = iter(read)
        temb = self.time_embedding(t, latent.dtype)
        skips = [self.conv_in(latent)]
        for down, features_here in zip(self.down_blocks, maps, strict=True):
            skips += down(skips[-1], temb, next(seen), features_here)
        h = self.mid_block(skips[-1], temb, next(seen), maps[-1])
        for up, features_here in zip(self.up_blocks, reversed(maps), strict=True):
            taken = [skips.pop() for _ in up.resnets]
            h = up(h, taken, temb, next(seen), features_here)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))

    def read(self, context: Float[Array, "b n d"]) -> tuple[Read, ...]:
        """Keys and values of the context for every stage in order: they depend neither on the latent nor on
        the timestep, so that sampling computes them once."""
        return tuple(stage.read(context) for stage in [*self.down_blocks, self.mid_block, *self.up_blocks])

    def _check(self, latent: Array, features: Sequence[Array] | None) -> None:
        levels, (height, width) = self.config.levels, latent.shape[1:3]
        if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
            raise ValueError(
                f"UNet: a latent of {height}x{width} cannot be halved {levels - 1} times; "
                f"pad it to multiples of {2 ** (levels - 1)}"
            )
        if features is None:
            return
        if not self.config.modulated:
            raise ValueError("UNet: features were given, but config.modulated is false")
        channels = self.config.feature_channels
        expected = [(height >> level, width >> level, channels) for level in range(levels)]
        given = [tuple(features_here.shape[1:]) for features_here in features]
        if given != expected:
            raise ValueError(f"UNet: features of (height, width, channels) {given}, expected {expected}")
