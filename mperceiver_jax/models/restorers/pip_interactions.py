"""How the features of a skip connection take from a prompt: PIP's four ways.

All are called with features (batch, height, width, channels) and a prompt of the same size with `width`
channels, and return features. Source: the release; names inside `Gate` and `ConvGate` are our own.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, gelu
from mperceiver_jax.models.parameters import Init, parameter
from mperceiver_jax.models.restorers.restormer import (
    FeedForward,
    LayerNorm,
    TransformerBlock,
    channel_logits,
    mix_channels,
)

Interaction = Literal["top_m", "cross", "convgate", "gate"]

HEADS = 4
SHARES = ((1, 2), (2, 3), (3, 4), (4, 5))
"""Top-m: which shares of the entries of a row are kept, each in a softmax of its own."""


def fit_channels(x: Float[Array, "b h w c"], channels: int) -> Float[Array, "b h w channels"]:
    """Zeros behind the channels there are, or the first ones alone."""
    return jnp.pad(x[..., :channels], ((0, 0), (0, 0), (0, 0), (0, max(channels - x.shape[-1], 0))))


class CrossAttention(nnx.Module):
    """Transposed attention whose queries come from `x` and whose keys and values come from `context`."""

    def __init__(self, width: int, heads: int):
        if width % heads:
            raise ValueError(f"PIP: prompts of {width} channels do not divide into {heads} heads")
        self.temperature = parameter((heads, 1, 1), Init("constant", 1.0))
        self.q = Conv(width, width, 1, bias=False)
        self.q_dwconv = Conv(width, width, groups=width, bias=False)
        self.kv = Conv(width, 2 * width, 1, bias=False)
        self.kv_dwconv = Conv(2 * width, 2 * width, groups=2 * width, bias=False)
        self.project_out = Conv(width, width, 1, bias=False)

    def __call__(self, x: Float[Array, "#b h w c"], context: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """`x` may be one for the whole batch."""
        k, v = jnp.split(self.kv_dwconv(self.kv(context)), 2, -1)
        q = jnp.broadcast_to(self.q_dwconv(self.q(x)), k.shape)
        weights = self.weights(channel_logits(q, k, self.temperature[...]))
        return self.project_out(mix_channels(weights, v))

    def weights(self, logits: Float[Array, "b heads i j"]) -> Float[Array, "b heads i j"]:
        return jax.nn.softmax(logits, -1)


class TopMAttention(CrossAttention):
    """Four softmaxes over the largest entries of each row, added with learned factors."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        if width // heads < 2:
            raise ValueError(f"PIP: of {width} channels in {heads} heads the largest half is none; widen the prompts")
        for number in range(1, len(SHARES) + 1):
            setattr(self, f"attn{number}", parameter((1,), Init("constant", 0.2)))

    def weights(self, logits: Float[Array, "b heads i j"]) -> Float[Array, "b heads i j"]:
        # An entry's rank is the number of larger ones; of equal entries the first ones are kept, never more
        # than the share. Rows are short: counting is less work than sorting, on every kind of device.
        entry, other = logits[..., :, None], logits[..., None, :]
        first = np.tri(logits.shape[-1], k=-1, dtype=bool)
        ranks = ((other > entry) | ((other == entry) & first)).sum(-1)
        total = jnp.zeros_like(logits)
        for number, (part, whole) in enumerate(SHARES, 1):
            kept = jnp.where(ranks < logits.shape[-1] * part // whole, logits, -jnp.inf)
            factor = jnp.asarray(getattr(self, f"attn{number}")[...]).astype(logits.dtype)
            total = total + factor * jax.nn.softmax(kept, -1)
        return total


class DualFeedForward(FeedForward):
    """Gated feed-forward in which either half gates the other."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        first, second = jnp.split(self.dwconv(self.project_in(x)), 2, -1)
        return self.project_out(gelu(second) * first + gelu(first) * second)


class CrossBlock(nnx.Module):
    """Attention from the normalised features, widened to the prompt, to the prompt; then feed-forward."""

    def __init__(self, channels: int, width: int, expansion: float, attention: Callable[[int, int], CrossAttention]):
        self.norm11 = LayerNorm(channels)
        self.norm12 = LayerNorm(width)
        self.attn = attention(width, HEADS)
        self.reduce_channel = Conv(width, channels, 1, bias=False)
        self.norm2 = LayerNorm(channels)
        self.ffn = DualFeedForward(channels, expansion)
        self.width = width

    def __call__(self, features: Float[Array, "b h w c"], prompt: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        # The normalised features are what goes on: there is no way around the norm.
        h = fit_channels(self.norm11(features), self.width)
        h = self.reduce_channel(h + self.attn(h, self.norm12(prompt)))
        return h + self.ffn(self.norm2(h))


class Cross(nnx.Module):
    """`CrossBlock` with plain attention, under the name it has in checkpoints."""

    attention: type[CrossAttention] = CrossAttention

    def __init__(self, channels: int, width: int, expansion: float):
        self.prompt_transformer_cross = CrossBlock(channels, width, expansion, self.attention)

    def __call__(self, features: Float[Array, "b h w c"], prompt: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        return self.prompt_transformer_cross(features, prompt)


class TopM(Cross):
    """The same with top-m attention: the release's default."""

    attention = TopMAttention


class ConvGate(nnx.Module):
    """features * sigmoid(scale) + shift, both by convolutions of the prompt."""

    def __init__(self, channels: int, width: int, expansion: float):
        self.conv1 = Conv(width, width, bias=False)
        self.conv2 = Conv(width, channels, bias=False)
        self.conv3 = Conv(width, channels, bias=False)

    def __call__(self, features: Float[Array, "b h w c"], prompt: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        h = self.conv1(prompt)
        return features * jax.nn.sigmoid(self.conv2(h)) + self.conv3(h)


class Gate(nnx.Module):
    """The same, by a transformer block on features and prompt together."""

    def __init__(self, channels: int, width: int, expansion: float):
        both = channels + width
        if both % HEADS:
            raise ValueError(f"PIP: {channels} + {width} channels do not divide into {HEADS} heads")
        self.transformer = TransformerBlock(both, HEADS, expansion=expansion)
        self.scale = Conv(both, channels, bias=False)
        self.shift = Conv(both, channels, 1, bias=False)

    def __call__(self, features: Float[Array, "b h w c"], prompt: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        h = self.transformer(jnp.concatenate([features, prompt], -1))
        return features * jax.nn.sigmoid(self.scale(h)) + self.shift(h)


INTERACTIONS: dict[Interaction, Callable[[int, int, float], nnx.Module]] = {
    "top_m": TopM,
    "cross": Cross,
    "convgate": ConvGate,
    "gate": Gate,
}
"""Name -> (channels of the features, channels of the prompt, expansion) -> module."""
