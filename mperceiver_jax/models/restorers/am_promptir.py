"""AM-PromptIR: a U-shape of convolutional attention whose prompts are visual and textual.

At three decoder levels a learned visual prompt, weighted by the features, is refined by
what is known of the degradation in words, and mixed into the features. Attribute names
follow the release. Source: the paper and its release; where they disagree, see `TextPath`.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, Linear
from mperceiver_jax.models.parameters import ONES, ZEROS, parameter
from mperceiver_jax.models.restorers.am_blocks import AMBlock, FeatureFusion, FrequencyRefinement, in_turn
from mperceiver_jax.models.restorers.promptir import PROMPTED, PromptComponents
from mperceiver_jax.models.restorers.restormer import RestormerConfig, Stage, UShape

TextPath = Literal["clip", "release"]
"""How words become a map. `clip`: a linear of a frozen CLIP embedding, per image, as the paper says.
`release`: what the released code computes, for its weights: token ids are taken for numbers, only the signs
of their linear function count, and images of a batch share one map that mixes their classes row by row.
"""

Text = Float[Array, "b e"] | Int[Array, "b n"]


@dataclass(frozen=True)
class AMPromptIRConfig(RestormerConfig):
    """Sizes of AM-PromptIR. What is not listed is the U-shape's; `heads` has no meaning here.

    Attributes:
        components: visual prompts to weight, at each of the three levels.
        prompt_sides: size of the visual prompts, finest level first; they have the features' channels.
        fusion_reductions: how much narrower the gates of the two fusions are inside, finer level first.
        text_path: see `TextPath`.
        text_width: width of the text embeddings of `clip`.
    """

    dim: int = 24
    blocks: tuple[int, int, int, int] = (2, 4, 4, 8)
    refinement_blocks: int = 2
    heads: tuple[int, int, int, int] = (1, 1, 1, 1)
    components: int = 5
    prompt_sides: tuple[int, int, int] = (64, 32, 16)
    fusion_reductions: tuple[int, int] = (4, 8)
    text_path: TextPath = "clip"
    text_width: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_path not in ("clip", "release"):
            raise ValueError(f"text_path: {self.text_path!r} given, 'clip' or 'release' expected")
        if self.dim % 8:
            raise ValueError(
                f"dim={self.dim}: the gates are up to 16 times narrower than 2 * dim, give a multiple of 8"
            )

    @classmethod
    def full(cls) -> "AMPromptIRConfig":
        """As published, but for the text path: 52,826,575 parameters with CLIP ViT-H's embeddings."""
        return cls()

    @classmethod
    def release(cls) -> "AMPromptIRConfig":
        """As published: 52,506,703 parameters."""
        return cls(text_path="release")

    @classmethod
    def small(cls) -> "AMPromptIRConfig":
        """Trains in minutes on any machine."""
        return cls(dim=8, blocks=(1, 1, 1, 2), refinement_blocks=1, prompt_sides=(32, 16, 8), text_width=64)


class AdaptivePrompt(PromptComponents):
    """A visual prompt for the features, refined by text ("AMPG"); as many channels as the features."""

    def __init__(self, channels: int, side: int, config: AMPromptIRConfig):
        super().__init__(config.components, channels, side, channels)
        # The release reads half as many token ids as there are channels.
        self.linear_text = Linear(config.text_width if config.text_path == "clip" else channels // 2, channels)
        self.rate_conv = nnx.List([Conv(channels, channels // 8, 1), jax.nn.relu, Conv(channels // 8, channels, 1)])
        self.frequency_refine = FrequencyRefinement(channels)
        self.para1 = parameter((channels, 1, 1), ZEROS)
        self.para2 = parameter((channels, 1, 1), ONES)
        self.text_path = config.text_path

    def __call__(self, features: Float[Array, "b h w c"], text: Text) -> Float[Array, "b h w c"]:
        low = self.weighted(features)
        high = in_turn(self.rate_conv, self._text_map(text, *features.shape[1:3]).astype(low.dtype))
        kept, refined = (scale[...][:, 0, 0].astype(low.dtype) for scale in (self.para1, self.para2))
        return refined * self.frequency_refine(low, high) + kept * features

    def _text_map(self, text: Text, height: int, width: int) -> Float[Array, "#b h w c"]:
        """The text as a map of unit vectors, float32."""
        if self.text_path == "clip":
            words = self.linear_text(text.astype(jnp.float32))
            norm = jnp.maximum(jnp.linalg.norm(words, axis=-1, keepdims=True), 1e-12)
            return jnp.broadcast_to((words / norm)[:, None, None], (len(text), height, width, words.shape[-1]))
        length, channels = self.linear_text.weight.shape
        ids = text[:, :length].astype(jnp.float32)
        ids = jnp.pad(ids, ((0, 0), (0, length - ids.shape[1])))
        # Only signs count: they must not hang on a product in reduced precision.
        with jax.default_matmul_precision("highest"):
            signs = jnp.sign(self.linear_text(ids)) / jnp.sqrt(jnp.float32(channels))
        rows = signs[jnp.arange(height) % len(text)]
        rows = rows[:, jnp.arange(width) % channels]
        return jnp.broadcast_to(rows[None, ..., None], (1, height, width, channels))


class AMPromptIR(UShape):
    """AM-PromptIR."""

    config: AMPromptIRConfig

    def __init__(self, config: AMPromptIRConfig):
        super().__init__(config)
        c = config.dim
        # Channels of the features that meet the prompts, and of what the next stage expects.
        for level, (features, out) in enumerate([(2 * c, 2 * c), (4 * c, 4 * c), (8 * c, 8 * c)]):
            mix = AMBlock(2 * features, expansion=config.expansion, norm=config.norm)
            setattr(self, f"prompt{level + 1}", AdaptivePrompt(features, config.prompt_sides[level], config))
            setattr(self, f"noise_level{level + 1}", mix)
            setattr(self, f"reduce_noise_level{level + 1}", Conv(2 * features, out, 1, bias=False))
        self.Feature_Refinement2 = FeatureFusion(4 * c, 2 * c, config.fusion_reductions[0])
        self.Feature_Refinement3 = FeatureFusion(8 * c, 4 * c, config.fusion_reductions[1])

    def block(self, config: RestormerConfig, level: int, channels: int) -> AMBlock:
        return AMBlock(channels, expansion=config.expansion, norm=config.norm)

    def merge(self, level: int, both: Float[Array, "b h w both"]) -> Float[Array, "b h w c"]:
        return (self.Feature_Refinement3 if level == 2 else self.Feature_Refinement2)(both)

    def __call__(self, x: Float[Array, "b h w 3"], text: Text) -> Float[Array, "b h w 3"]:  # type: ignore[override]
        """Restored images, as of `UShape`.

        Args:
            text: the degradation of each image. For `clip` a text embedding (`text_prompts.caption_vectors`),
                for `release` token ids (`degradation_names.release_ids`).

        Raises:
            ValueError: the text does not fit the text path or the images.
        """
        embedded = jnp.issubdtype(text.dtype, jnp.floating) and text.shape[1:] == (self.config.text_width,)
        if self.config.text_path == "clip" and not embedded:
            wanted = f"float embeddings (batch, {self.config.text_width})"
            raise ValueError(f"AMPromptIR: text {text.dtype} {text.shape} given, {wanted} expected")
        if self.config.text_path == "release" and (text.ndim != 2 or not jnp.issubdtype(text.dtype, jnp.integer)):
            raise ValueError(f"AMPromptIR: text {text.dtype} {text.shape} given, token ids (batch, n) expected")
        if len(text) != len(x):
            raise ValueError(f"AMPromptIR: {len(text)} texts for {len(x)} images")

        def prompted(stage: Stage, features: Array) -> Array:
            number = PROMPTED.get(stage)
            if number is None:
                return features
            prompt = getattr(self, f"prompt{number}")(features, text)
            mixed = getattr(self, f"noise_level{number}")(jnp.concatenate([features, prompt], -1))
            return getattr(self, f"reduce_noise_level{number}")(mixed)

        return super().__call__(x, after=prompted)
