"""The adaptive modulator: spatially varying scale and shift of a UNet's residual branch."""

from typing import Literal, get_args

import jax
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, GroupNorm

Form = Literal["release", "residual"]
Start = Literal["zero", "reference"]


class Modulator(nnx.Module):
    """Scale and shift, per position and channel, computed from a feature map of the IR-Adapter.

    `a = ReLU(conv(features))`, `gamma = conv(a)`, `beta = conv(a)`, all 3x3. Attribute names are
    the release's; its `param_free_norm` does have a learned scale and bias.

    Args:
        channels: width of the modulated map.
        feature_channels: width of the feature map.
        hidden: width of `a`.
        groups: of the group norm.
        form: `release` gives `norm(h) * (1 + gamma) + beta`, which re-normalises the branch even
            where gamma = beta = 0; `residual` gives `h + norm(h) * gamma + beta`, which then
            leaves it as it is (our own design; same tensors, same names).
        init: `zero` starts weights and biases of both last convolutions at zero, the paper
            figure's "Zero Conv"; `reference` starts them like any convolution, as the released
            code does. The shared convolution never starts at zero: behind its ReLU it could not learn.

    Raises:
        ValueError: an unknown `form` or `init`.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        hidden: int = 128,
        groups: int = 32,
        form: Form = "release",
        init: Start = "zero",
    ):
        if form not in get_args(Form) or init not in get_args(Start):
            raise ValueError(
                f"Modulator: form {form!r} and init {init!r} given, "
                f"one of {get_args(Form)} and one of {get_args(Start)} expected"
            )
        self.param_free_norm = GroupNorm(channels, groups=groups)
        self.mlp_shared = nnx.List([Conv(feature_channels, hidden)])
        self.mlp_gamma = Conv(hidden, channels, zero=init == "zero")
        self.mlp_beta = Conv(hidden, channels, zero=init == "zero")
        self.form = form

    def scale_and_shift(
        self, features: Float[Array, "b h w f"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """(gamma, beta) for a feature map."""
        a = jax.nn.relu(self.mlp_shared[0](features))
        return self.mlp_gamma(a), self.mlp_beta(a)

    def __call__(self, h: Float[Array, "b h w c"], features: Float[Array, "b h w f"]) -> Float[Array, "b h w c"]:
        """The modulated `h`, in its dtype."""
        gamma, beta = self.scale_and_shift(features.astype(h.dtype))
        norm = self.param_free_norm(h)
        if self.form == "residual":
            return h + norm * gamma + beta
        return norm * (1 + gamma) + beta
