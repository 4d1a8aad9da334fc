"""PIP, prompt in prompt: learned prompts of a known degradation, put into the skip connections of a backbone.

Per skip connection, a *degradation-aware* prompt (one vector per class of degradations) picks what the
features say about that degradation; a *basic* prompt, the same for all, is refined by it
(prompt-to-prompt interaction); the features then take from the result what they select
(prompt-to-feature interaction). The classes are given: by a label, or by a predictor.

Any backbone whose forward pass hands its skip connections to a function can be used, see `Backbone`.
Sources: the paper and its release, which has Restormer only; the interface and NAFNet are our own.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv
from mperceiver_jax.models.parameters import normal, parameter
from mperceiver_jax.models.resampling import resize_bilinear
from mperceiver_jax.models.restorers.nafnet import NAFNet, NAFNetConfig
from mperceiver_jax.models.restorers.pip_interactions import (
    INTERACTIONS,
    CrossAttention,
    Interaction,
    fit_channels,
)
from mperceiver_jax.models.restorers.restormer import FeedForward, LayerNorm, Restormer, RestormerConfig, Skip
from mperceiver_jax.models.sizes import require_positive


@runtime_checkable
class Backbone(Protocol):
    """What PIP needs of a network.

    Attributes:
        skip_channels: channels of the skip connections that shall be prompted, finest first.
    """

    skip_channels: tuple[int, ...]

    def __call__(self, x: Float[Array, "b h w 3"], *, skip: Skip) -> Float[Array, "b h w 3"]:
        """The restored image. Every `skip(level, features)` replaces what a skip connection carries;
        `level` counts from 0, the finest."""
        ...


@dataclass(frozen=True)
class PIPConfig:
    """Sizes of the prompts, and the network they are put into.

    Attributes:
        backbone: sizes of a Restormer, whose latent is narrowed as the release does, or of a NAFNet.
        classes: number of degradations that it distinguishes.
        widths, sides: channels and size of the prompts per skip connection, finest first.
        interaction: how features take from the prompt: `top_m` (attention that keeps the largest entries),
            `cross` (plain attention), `convgate` (scale and shift) or `gate` (a joint transformer block).
        expansion: of the feed-forward parts.
    """

    backbone: RestormerConfig | NAFNetConfig = field(default_factory=lambda: RestormerConfig(narrow_latent=True))
    classes: int = 5
    widths: tuple[int, ...] = (64, 128, 256)
    sides: tuple[int, ...] = (64, 32, 16)
    interaction: Interaction = "top_m"
    expansion: float = 2.66

    def __post_init__(self) -> None:
        require_positive(self)
        if len(self.widths) != len(self.sides):
            raise ValueError(f"PIPConfig: widths {self.widths} and sides {self.sides} differ in number")
        if self.interaction not in INTERACTIONS:
            raise ValueError(f"interaction: {self.interaction!r} given, one of {sorted(INTERACTIONS)} expected")

    @classmethod
    def release(cls, interaction: Interaction = "top_m") -> "PIPConfig":
        """The release's on Restormer: 27,316,614 parameters, and 112,896 dead ones in its files."""
        return cls(interaction=interaction)

    @classmethod
    def nafnet(cls) -> "PIPConfig":
        """The same prompts on NAFNet, which has one skip connection more."""
        return cls(backbone=NAFNetConfig.full(), widths=(64, 128, 256, 256), sides=(64, 32, 16, 8))

    @classmethod
    def small(cls) -> "PIPConfig":
        """Return sizes that train in minutes on a CPU."""
        backbone = RestormerConfig(
            dim=16, blocks=(1, 1, 1, 2), refinement_blocks=1, narrow_latent=True, heads=(1, 2, 4, 8)
        )
        return cls(backbone=backbone, widths=(16, 32, 64), sides=(32, 16, 8))


class PromptToPrompt(nnx.Module):
    """Update the basic prompt by cross-attention to the semantic prompt and a feed-forward layer (PIP)."""

    def __init__(self, width: int, heads: int, expansion: float):
        self.norm11 = LayerNorm(width)
        self.norm12 = LayerNorm(width)
        self.attn = CrossAttention(width, heads)
        self.norm2 = LayerNorm(width)
        self.ffn = FeedForward(width, expansion)

    def __call__(self, basic: Float[Array, "1 s s c"], semantic: Float[Array, "b s s c"]) -> Float[Array, "b s s c"]:
        h = basic + self.attn(self.norm11(basic), self.norm12(semantic))
        return h + self.ffn(self.norm2(h))


class PromptModule(nnx.Module):
    """The prompts of one skip connection."""

    def __init__(self, classes: int, width: int, side: int, expansion: float):
        self.detask_prompt_param = parameter((1, classes, width, 1, 1), normal(1.0))
        self.low_prompt_param = parameter((1, width, side, side), normal(1.0))
        self.LGM = PromptToPrompt(width, 2, expansion)
        self.outconv = Conv(width, width, bias=False)

    def __call__(
        self, features: Float[Array, "b h w c"], weights: Float[Array, "b classes"]
    ) -> Float[Array, "b h w width"]:
        """The prompt for these features, at their size."""
        basic = jnp.moveaxis(self.low_prompt_param[...].astype(features.dtype), 1, -1)
        vectors = self.detask_prompt_param[...][0, :, :, 0, 0]
        # A mean over all classes, as released: the vector chosen counts 1 / classes.
        aware = (weights.astype(jnp.float32) @ vectors / vectors.shape[0]).astype(features.dtype)
        small = resize_bilinear(features, *basic.shape[1:3])
        semantic = fit_channels(small, basic.shape[-1]) * aware[:, None, None]
        return self.outconv(resize_bilinear(self.LGM(basic, semantic), *features.shape[1:3]))

    def angle_penalty(self) -> Float[Array, ""]:
        """Sum over pairs of classes of max(0, cosine of their vectors)."""
        vectors = self.detask_prompt_param[...][0, :, :, 0, 0].astype(jnp.float32)
        vectors = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)
        return jnp.triu(jax.nn.relu(vectors @ vectors.T), 1).sum()


class NarrowRestormer(Restormer):
    """Restormer with half the channels behind its latent, as PIP's release has it."""

    def __init__(self, config: RestormerConfig):
        if not config.narrow_latent:
            raise ValueError("PIPConfig: its Restormer needs narrow_latent=True")
        super().__init__(config)
        self.skip_channels = tuple(config.dim << level for level in range(3))
        self.chnl_reduce3 = Conv(8 * config.dim, 4 * config.dim, 1, bias=False)

    def __call__(  # type: ignore[override]  # what comes after its stages is its own business
        self, x: Float[Array, "b h w 3"], *, skip: Skip
    ) -> Float[Array, "b h w 3"]:
        after = lambda stage, features: self.chnl_reduce3(features) if stage == "latent" else features
        return super().__call__(x, after=after, skip=skip)


class PIP(nnx.Module):
    """A backbone with prompts in its skip connections.

    Args:
        backbone: takes the place of the one that `config.backbone` describes.

    Raises:
        ValueError: the backbone has another number of skip connections than there are widths.
    """

    def __init__(self, config: PIPConfig, backbone: Backbone | None = None):
        if backbone is None:
            sizes = config.backbone
            backbone = NAFNet(sizes) if isinstance(sizes, NAFNetConfig) else NarrowRestormer(sizes)
        if len(backbone.skip_channels) != len(config.widths):
            raise ValueError(
                f"PIPConfig: {len(config.widths)} widths for the {len(backbone.skip_channels)} skip connections "
                f"of {type(backbone).__name__}"
            )
        self.backbone = backbone
        interaction = INTERACTIONS[config.interaction]
        for level, channels in enumerate(backbone.skip_channels):
            width, side = config.widths[level], config.sides[level]
            prompt = PromptModule(config.classes, width, side, config.expansion)
            setattr(self, f"prompt{level + 1}", prompt)
            setattr(self, f"low_prompt_interaction_level{level + 1}", interaction(channels, width, config.expansion))
        self.config = config

    def __call__(self, x: Float[Array, "b h w 3"], weights: Float[Array, "b classes"]) -> Float[Array, "b h w 3"]:
        """Restored images of the same size, nominally in [0, 1]; not clipped.

        Args:
            weights: of the classes, see `conditions`.

        Raises:
            ValueError: weights of another shape.
        """
        if weights.shape != (x.shape[0], self.config.classes):
            expected = (x.shape[0], self.config.classes)
            raise ValueError(f"PIP: weights of the classes are {tuple(weights.shape)}, expected {expected}")

        def skip(level: int, features: Array) -> Array:
            prompt = getattr(self, f"prompt{level + 1}")(features, weights)
            return getattr(self, f"low_prompt_interaction_level{level + 1}")(features, prompt)

        return self.backbone(x, skip=skip)

    def angle_penalty(self) -> Float[Array, ""]:
        """The release's regulariser: 0.01 times the sum over levels, in its loss multiplied by 0.002."""
        levels = range(1, len(self.config.widths) + 1)
        return 0.01 * sum(getattr(self, f"prompt{level}").angle_penalty() for level in levels)
