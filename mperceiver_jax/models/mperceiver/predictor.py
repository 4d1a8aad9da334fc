"""The degradation predictor: which of the known degradations does an image have?

A small head on the frozen CLIP image tower. Source: the release.
"""

from dataclasses import dataclass, field
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Linear
from mperceiver_jax.models.mperceiver.clip import VisionConfig, VisionTower
from mperceiver_jax.models.sizes import require_positive


@dataclass(frozen=True)
class PredictorConfig:
    """The image tower, the head's hidden width and the number of degradations.

    Attributes:
        view: what the tower sees of a degraded image: all of it, resized (`full`, as released), or squares at its
            native resolution (`native`), in which fine streaks, noise and blur stay visible.
        views: number of squares when restoring, a square number; their embeddings are averaged.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    hidden: int = 512
    classes: int = 9
    view: Literal["full", "native"] = "full"
    views: int = 16

    def __post_init__(self) -> None:
        require_positive(self)

    @classmethod
    def release(cls) -> "PredictorConfig":
        """The release's: 529,417 parameters on top of the tower."""
        return cls()

    @classmethod
    def small(cls) -> "PredictorConfig":
        return cls(vision=VisionConfig.small(), hidden=64, classes=10, view="native")

    @classmethod
    def base(cls) -> "PredictorConfig":
        """In place of `small` in the same model: embeddings of the same width, the same classes and views."""
        return cls(vision=VisionConfig.base(), hidden=128, classes=10, view="native")


class DegradationPredictor(nnx.Module):
    """Image tower, linear, ReLU, linear."""

    def __init__(self, config: PredictorConfig):
        self.model = VisionTower(config.vision)
        self.fc1 = Linear(config.vision.embed_width, config.hidden)
        self.fc2 = Linear(config.hidden, config.classes)

    def __call__(
        self, images: Float[Array, "b s s 3"] | Float[Array, "b n s s 3"]
    ) -> tuple[Float[Array, "b e"], Float[Array, "b classes"]]:
        """(embedding, logits of the degradations) of CLIP-normalised images, or of n squares of each image, whose
        embeddings are averaged."""
        squares = images.reshape(-1, *images.shape[-3:])
        e = self.model(squares)
        if images.ndim == 5:
            e = e.reshape(*images.shape[:2], -1).mean(1)
        return e, self.head(e)

    def head(self, e: Float[Array, "b e"]) -> Float[Array, "b classes"]:
        """Logits of the degradations from the tower's embedding."""
        return self.fc2(jax.nn.relu(self.fc1(e)))
