"""SRResNet without up-sampling, as MiOIR trains it: residual blocks at full resolution, plain or prompted."""

from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv
from mperceiver_jax.models.parameters import normal, start_weights
from mperceiver_jax.models.restorers.mioir import prompting
from mperceiver_jax.models.restorers.mioir.prompting import (
    GUIDE_CHANNELS,
    Prompted,
    PromptedConfig,
    PromptExtractor,
    Prompts,
)
from mperceiver_jax.models.sizes import require_positive


@dataclass(frozen=True)
class SRResNetConfig(PromptedConfig):
    """Sizes of the network.

    Attributes:
        width: channels inside; blocks: number of residual blocks.
    """

    width: int = 64
    blocks: int = 16

    def __post_init__(self) -> None:
        require_positive(self, zero=("blocks",))

    @classmethod
    def release(cls, prompts: Prompts = "plain") -> "SRResNetConfig":
        """The release's: 1,222,147 parameters; 1,441,033 with explicit, 1,447,305 with adaptive prompts."""
        return cls(prompts=prompts)

    @classmethod
    def small(cls, prompts: Prompts = "plain") -> "SRResNetConfig":
        """For a CPU."""
        return cls(width=24, blocks=5, prompts=prompts)


def _kaiming(shape: tuple[int, ...]):
    """Kaiming's normal distribution for ReLU with a tenth of its standard deviation."""
    fan_in = shape[0] * shape[1] * shape[2]
    return normal(0.1 * (2 / fan_in) ** 0.5)


class ResidualBlock(nnx.Module):
    """x + conv(ReLU(conv(x)))."""

    def __init__(self, width: int):
        self.conv1 = Conv(width, width)
        self.conv2 = Conv(width, width)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.conv2(jax.nn.relu(self.conv1(x)))


class SRResNet(Prompted):
    """First convolution, residual blocks, two last ones, plus the image; all with LeakyReLU(0.1) between."""

    def __init__(self, config: SRResNetConfig):
        super().__init__(config.prompts, config.task_maps)
        width = config.width
        self.conv_first = Conv(3, width)
        blocks = [ResidualBlock(width) for _ in range(config.blocks)]
        self.conv_hr = Conv(width, width)
        self.conv_last = Conv(width, 3)
        if config.prompts == "plain":
            self.body = nnx.List(blocks)
            start_weights(self, "conv", _kaiming)
        else:
            # The release counts the blocks of its prompted networks by name, from 1.
            for i, block in enumerate(blocks, 1):
                start_weights(block, "conv", _kaiming)
                setattr(self, f"body{i}", nnx.List([block]))
            self.F_ext_net = PromptExtractor(GUIDE_CHANNELS[config.prompts])
            prompting.declare(self, {str(i + 1): width for i in range(config.blocks)} | {"hr": width, "out": 3})
        self.config = config

    def restore(
        self,
        image: Float[Array, "b h w 3"],
        guide: Float[Array, "b hh ww g"] | None = None,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b h w 3"]:
        """See `Prompted.restore`; there is no stochastic depth here."""
        embedding = None if guide is None else self.F_ext_net(guide)
        plain = self.kind == "plain"
        h = jax.nn.leaky_relu(self.conv_first(image), 0.1)
        for i in range(self.config.blocks):
            block = self.body[i] if plain else getattr(self, f"body{i + 1}")[0]
            h = prompting.modulate(self, str(i + 1), block(h), embedding)
        h = prompting.modulate(self, "hr", jax.nn.leaky_relu(self.conv_hr(h), 0.1), embedding)
        return prompting.modulate(self, "out", self.conv_last(h), embedding) + image
