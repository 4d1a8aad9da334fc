"""The blocks of AM-PromptIR: spatial attention by rows and columns, two-scale feed-forward, feature fusion.

Attribute names follow the release, whose parts that are never used are left out.
Source: the paper and its release.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv
from mperceiver_jax.models.restorers.restormer import LayerNorm


class AxialGate(nnx.Module):
    """x times a mask in (0, 1), made from the means of its rows and the means of its columns ("GSA")."""

    def __init__(self, channels: int):
        inner = 3 * channels
        self.conv_1_h = Conv(channels, inner, (3, 1))
        self.conv_1_w = Conv(channels, inner, (1, 3))
        self.fuse_conv = Conv(inner, inner, 1)
        self.conv_final = Conv(inner, channels, 1)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        rows = self.conv_1_h(x.mean(2, keepdims=True))
        columns = self.conv_1_w(x.mean(1, keepdims=True))
        # The release adds the two over the whole map and fuses then. The 1x1 convolution is linear: it
        # comes before the sum, where it has h + w positions to work on instead of h * w.
        bias = self.fuse_conv.bias
        assert bias is not None
        fused = self.fuse_conv(rows) + (self.fuse_conv(columns) - bias[...].astype(x.dtype))
        return x * jax.nn.sigmoid(self.conv_final(jax.nn.relu(fused)))


class SpatialMixing(nnx.Module):
    """Two convolutions in parallel with the axial gate, concatenated ("SMAM")."""

    def __init__(self, channels: int):
        self.conv2 = Conv(channels, 2 * channels, 1)
        self.conv3 = Conv(2 * channels, 2 * channels)
        self.GSA = AxialGate(channels)
        self.project_out = Conv(3 * channels, channels, 1, bias=False)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        mixed = self.conv3(jax.nn.relu(self.conv2(x)))
        return self.project_out(jnp.concatenate([mixed, self.GSA(x)], -1))


class TwoScaleFeedForward(nnx.Module):
    """Depthwise 3x3 and 5x5 convolutions side by side, halves exchanged, and again."""

    def __init__(self, channels: int, expansion: float):
        inner = int(channels * expansion)
        self.project_in = Conv(channels, 2 * inner, 1, bias=False)
        self.dwconv3x3 = Conv(2 * inner, 2 * inner, 3, groups=2 * inner, bias=False)
        self.dwconv5x5 = Conv(2 * inner, 2 * inner, 5, groups=2 * inner, bias=False)
        self.dwconv3x3_1 = Conv(2 * inner, inner, 3, groups=inner, bias=False)
        self.dwconv5x5_1 = Conv(2 * inner, inner, 5, groups=inner, bias=False)
        self.project_out = Conv(2 * inner, channels, 1, bias=False)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = self.project_in(x)
        small_u, small_v = jnp.split(jax.nn.relu(self.dwconv3x3(x)), 2, -1)
        large_u, large_v = jnp.split(jax.nn.relu(self.dwconv5x5(x)), 2, -1)
        u = jax.nn.relu(self.dwconv3x3_1(jnp.concatenate([small_u, large_u], -1)))
        v = jax.nn.relu(self.dwconv5x5_1(jnp.concatenate([small_v, large_v], -1)))
        return self.project_out(jnp.concatenate([u, v], -1))


class AMBlock(nnx.Module):
    """x += spatial mixing(norm x); x += feed-forward(norm x)."""

    def __init__(self, channels: int, *, expansion: float = 2.66, norm: str = "with_bias"):
        self.norm1 = LayerNorm(channels, norm)
        self.attn = SpatialMixing(channels)
        self.norm2 = LayerNorm(channels, norm)
        self.ffn = TwoScaleFeedForward(channels, expansion)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class FeatureFusion(nnx.Module):
    """Decoder and skip features to fewer channels: per pixel between them and their summary ("FEFM").

    Args:
        reduction: how much narrower the two gates are inside.
    """

    def __init__(self, channels_in: int, channels_out: int, reduction: int):
        self.conv1 = Conv(channels_in, channels_out, 1)
        # Places in the lists are those of the release's sequences.
        self.ca = nnx.List(
            [
                _mean,
                Conv(channels_in, channels_in // reduction, 1, bias=False),
                jax.nn.relu,
                Conv(channels_in // reduction, channels_out, 1, bias=False),
            ]
        )
        self.sa = nnx.List(
            [
                Conv(channels_out, channels_out // reduction),
                jax.nn.relu,
                Conv(channels_out // reduction, channels_out),
            ]
        )

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        reduced = self.conv1(x)
        summary = in_turn(self.ca, x)
        gate = jax.nn.sigmoid(in_turn(self.sa, reduced))
        return (1 - gate) * summary + gate * reduced


class FrequencyRefinement(nnx.Module):
    """Two maps gate each other: `high` says where, `low` says which channels ("FIM")."""

    def __init__(self, channels: int):
        self.SpatialGate = SpatialGate()
        self.ChannelGate = ChannelGate(channels)
        self.proj = Conv(channels, channels, 1)

    def __call__(self, low: Float[Array, "b h w c"], high: Float[Array, "#b h w c"]) -> Float[Array, "b h w c"]:
        return self.proj(low * self.SpatialGate(high) + high * self.ChannelGate(low))


class SpatialGate(nnx.Module):
    """A weight in (0, 1) per pixel, from the largest and the mean channel around it."""

    def __init__(self) -> None:
        self.spatial = Conv(2, 1, 7, bias=False)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
        pooled = jnp.stack([x.max(-1), x.mean(-1)], -1)
        return jax.nn.sigmoid(self.spatial(pooled))


class ChannelGate(nnx.Module):
    """A weight in (0, 1) per channel, from its mean and its largest value."""

    def __init__(self, channels: int):
        inner = channels // 16
        self.mlp = nnx.List([Conv(channels, inner, 1, bias=False), jax.nn.relu, Conv(inner, channels, 1, bias=False)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
        largest = x.max((1, 2), keepdims=True)
        return jax.nn.sigmoid(in_turn(self.mlp, _mean(x)) + in_turn(self.mlp, largest))


def in_turn(layers: nnx.List, x: Array) -> Array:
    """One layer after the other."""
    for layer in layers:
        x = layer(x)
    return x


def _mean(x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
    return x.mean((1, 2), keepdims=True)
