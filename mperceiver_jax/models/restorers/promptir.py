"""PromptIR: Restormer whose decoder asks a small set of learned prompts what degradation it is looking at.

At three decoder levels the features weight a few prompt components; their sum is joined
to the features and mixed in by a transformer block. Blind: the image is the only
input. Attribute names follow the published checkpoint. Source: the paper and its release.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, Linear
from mperceiver_jax.models.parameters import Init, parameter
from mperceiver_jax.models.resampling import resize_bilinear
from mperceiver_jax.models.restorers.restormer import (
    After,
    Restormer,
    RestormerConfig,
    Skip,
    Stage,
    TransformerBlock,
)

PROMPTED: dict[Stage, int] = {"latent": 3, "decoder_level3": 2, "decoder_level2": 1}
"""The stages whose features meet prompts -> the number in the names of the prompts' parts."""


@dataclass(frozen=True)
class PromptIRConfig(RestormerConfig):
    """Sizes of PromptIR. What is not listed is the U-shape's.

    Attributes:
        components: prompts to weight, at each of the three levels.
        prompt_widths, prompt_sides: channels and size of the prompts, finest level first.
        prompt_heads: heads of the block that mixes a prompt in.
    """

    narrow_latent: bool = True
    components: int = 5
    prompt_widths: tuple[int, int, int] = (64, 128, 320)
    prompt_sides: tuple[int, int, int] = (64, 32, 16)
    prompt_heads: int = 4

    @classmethod
    def full(cls) -> "PromptIRConfig":
        """As published: 35,376,967 parameters."""
        return cls()

    @classmethod
    def small(cls) -> "PromptIRConfig":
        """Trains in minutes on any machine."""
        return cls(
            dim=16,
            blocks=(1, 1, 1, 2),
            refinement_blocks=1,
            prompt_widths=(16, 32, 64),
            prompt_sides=(32, 16, 8),
        )


class PromptComponents(nnx.Module):
    """Learned prompts, and what weights them: a softmax of a linear function of the features' mean."""

    def __init__(self, components: int, width: int, side: int, features: int):
        self.prompt_param = parameter((1, components, width, side, side), Init("positive", 1.0))
        self.linear_layer = Linear(features, components)

    def weighted(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w width"]:
        """The prompt for these features, at their size."""
        logits = self.linear_layer(features.mean((1, 2))).astype(jnp.float32)
        weights = jax.nn.softmax(logits, -1).astype(features.dtype)
        prompts = self.prompt_param[...][0].astype(features.dtype)
        return resize_bilinear(jnp.einsum("bn,nchw->bhwc", weights, prompts), *features.shape[1:3])


class PromptGeneration(PromptComponents):
    """The weighted prompt, behind a 3x3 convolution."""

    def __init__(self, components: int, width: int, side: int, features: int):
        super().__init__(components, width, side, features)
        self.conv3x3 = Conv(width, width, bias=False)

    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w width"]:
        return self.conv3x3(self.weighted(features))


class PromptIR(Restormer):
    """PromptIR. Images in and out as of `UShape`."""

    config: PromptIRConfig

    def __init__(self, config: PromptIRConfig):
        super().__init__(config)
        c = config.dim
        # Channels of the features that meet the prompts, and of what the next stage expects.
        for level, (features, out) in enumerate([(2 * c, 2 * c), (4 * c, 4 * c), (8 * c, 4 * c)]):
            width, side = config.prompt_widths[level], config.prompt_sides[level]
            prompt = PromptGeneration(config.components, width, side, features)
            both = features + width
            mix = TransformerBlock(both, config.prompt_heads, expansion=config.expansion, norm=config.norm)
            setattr(self, f"prompt{level + 1}", prompt)
            setattr(self, f"noise_level{level + 1}", mix)
            setattr(self, f"reduce_noise_level{level + 1}", Conv(both, out, 1, bias=False))

    def __call__(
        self,
        x: Float[Array, "b h w 3"],
        *,
        after: After = lambda stage, features: features,
        skip: Skip = lambda level, features: features,
    ) -> Float[Array, "b h w 3"]:
        """As `UShape`; `after` sees features before they meet their prompt."""
        return super().__call__(x, after=lambda stage, h: self._prompted(stage, after(stage, h)), skip=skip)

    def _prompted(self, stage: Stage, features: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        number = PROMPTED.get(stage)
        if number is None:
            return features
        prompt = getattr(self, f"prompt{number}")(features)
        mixed = getattr(self, f"noise_level{number}")(jnp.concatenate([features, prompt], -1))
        return getattr(self, f"reduce_noise_level{number}")(mixed)
