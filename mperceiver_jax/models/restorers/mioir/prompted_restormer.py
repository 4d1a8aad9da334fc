"""Restormer and PromptIR as MiOIR trains them: plain, or prompted at their latent, their decoder and their output.

The points of PromptIR are our own, the same as Restormer's: the release has prompts for Restormer only.
"""

from dataclasses import dataclass, field

from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.restorers.mioir import prompting
from mperceiver_jax.models.restorers.mioir.prompting import (
    GUIDE_CHANNELS,
    Prompted,
    PromptedConfig,
    PromptExtractor,
    Prompts,
)
from mperceiver_jax.models.restorers.promptir import PromptIR, PromptIRConfig
from mperceiver_jax.models.restorers.restormer import After, Restormer, RestormerConfig, Stage, UShape

# Stage -> (name of its point, number of its extractor, channels in multiples of `dim`).
_POINTS: dict[Stage, tuple[str, int, int]] = {
    "latent": ("1", 1, 8),
    "decoder_level3": ("2", 2, 4),
    "decoder_level2": ("3", 3, 2),
    "decoder_level1": ("4", 3, 2),
    "refinement": ("5", 3, 2),
}
_OUTPUT = ("out", 4)


@dataclass(frozen=True)
class PromptedRestormerConfig(PromptedConfig):
    """Restormer with prompts. The release pads to multiples of 64."""

    network: RestormerConfig = field(default_factory=lambda: RestormerConfig(pad_to=64))

    @classmethod
    def release(cls, prompts: Prompts = "plain") -> "PromptedRestormerConfig":
        """The release's: 26,126,644 parameters; 26,547,578 with explicit, 26,572,666 with adaptive prompts."""
        return cls(prompts=prompts)

    @classmethod
    def small(cls, prompts: Prompts = "plain") -> "PromptedRestormerConfig":
        """For a CPU."""
        return cls(network=RestormerConfig.small(), prompts=prompts)


@dataclass(frozen=True)
class PromptedPromptIRConfig(PromptedConfig):
    """PromptIR with prompts."""

    network: PromptIRConfig = field(default_factory=lambda: PromptIRConfig(pad_to=64))

    @classmethod
    def release(cls, prompts: Prompts = "plain") -> "PromptedPromptIRConfig":
        """The release's, which has no prompts of MiOIR's: 35,376,967 parameters."""
        return cls(prompts=prompts)

    @classmethod
    def small(cls, prompts: Prompts = "plain") -> "PromptedPromptIRConfig":
        """For a CPU."""
        return cls(network=PromptIRConfig.small(), prompts=prompts)


class _PromptedStages(Prompted):
    """Extractors and modulations of a U-shape's stages."""

    def _declare(self, dim: int) -> None:
        if self.kind == "plain":
            return
        for number in range(1, _OUTPUT[1] + 1):
            setattr(self, f"F_ext_net{number}", PromptExtractor(GUIDE_CHANNELS[self.kind]))
        widths = {name: multiple * dim for name, _, multiple in _POINTS.values()}
        prompting.declare(self, widths | {_OUTPUT[0]: 3})

    def _modulated(self, guide: Float[Array, "b h w g"] | None) -> After:
        """What `UShape` calls after each stage."""
        if guide is None:
            return lambda stage, features: features
        embeddings = [getattr(self, f"F_ext_net{number}")(guide) for number in range(1, _OUTPUT[1] + 1)]

        def after(stage: Stage, features: Array) -> Array:
            name, number, *_ = _POINTS.get(stage, _OUTPUT)
            return prompting.modulate(self, name, features, embeddings[number - 1])

        return after


class PromptedRestormer(_PromptedStages, Restormer):  # type: ignore[misc]  # called as all of MiOIR's are
    """Restormer whose stages are modulated by prompts."""

    def __init__(self, config: PromptedRestormerConfig):
        Prompted.__init__(self, config.prompts, config.task_maps, config.network.pad_to)
        Restormer.__init__(self, config.network)
        self._declare(config.network.dim)

    def restore(
        self,
        image: Float[Array, "b h w 3"],
        guide: Float[Array, "b hh ww g"] | None = None,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b h w 3"]:
        """See `Prompted.restore`; there is no stochastic depth here."""
        return UShape.__call__(self, image, after=self._modulated(guide))


class PromptedPromptIR(_PromptedStages, PromptIR):  # type: ignore[misc]
    """PromptIR whose stages are modulated before they meet its own prompts."""

    def __init__(self, config: PromptedPromptIRConfig):
        Prompted.__init__(self, config.prompts, config.task_maps, config.network.pad_to)
        PromptIR.__init__(self, config.network)
        self._declare(config.network.dim)

    def restore(
        self,
        image: Float[Array, "b h w 3"],
        guide: Float[Array, "b hh ww g"] | None = None,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b h w 3"]:
        """See `Prompted.restore`; there is no stochastic depth here."""
        modulated = self._modulated(guide)
        return UShape.__call__(self, image, after=lambda stage, y: self._prompted(stage, modulated(stage, y)))
