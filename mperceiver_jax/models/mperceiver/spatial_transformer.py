"""The spatial transformer of Stable Diffusion 2: pixels attend to each other and to the context.

Attribute names are diffusers' and, inside this block, also the original ones.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.attention import KeysValues
from mperceiver_jax.models.layers import CrossAttention, GroupNorm, LayerNorm, Linear, gelu


class GatedLinear(nnx.Module):
    """GEGLU: the first half of one projection, times the GELU of the second half."""

    def __init__(self, features_in: int, features_out: int):
        self.proj = Linear(features_in, 2 * features_out)

    def __call__(self, x: Float[Array, "b n i"]) -> Float[Array, "b n o"]:
        value, gate = jnp.split(self.proj(x), 2, -1)
        return value * gelu(gate)


class FeedForward(nnx.Module):
    """GEGLU to four times the width, then back."""

    def __init__(self, width: int):
        # PyTorch keeps a dropout, of rate 0 here, at index 1.
        self.net: nnx.List = nnx.List([GatedLinear(width, 4 * width), None, Linear(4 * width, width)])

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.net[2](self.net[0](x))


class TransformerBlock(nnx.Module):
    """Self-attention (if any), cross-attention and feed-forward, each behind a layer norm and with a residual."""

    def __init__(self, width: int, context_width: int, heads: int, head_width: int, self_attention: bool = True):
        self.norm1 = LayerNorm(width) if self_attention else None
        self.attn1 = CrossAttention(width, width, heads, head_width) if self_attention else None
        self.norm2 = LayerNorm(width)
        self.attn2 = CrossAttention(width, context_width, heads, head_width)
        self.norm3 = LayerNorm(width)
        self.ff = FeedForward(width)

    def __call__(self, x: Float[Array, "b n c"], context: KeysValues) -> Float[Array, "b n c"]:
        if self.norm1 is not None and self.attn1 is not None:
            x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nnx.Module):
    """Norm, linear, one transformer block over the pixels in row-major order, linear, plus the input.

    Args:
        channels: width of the map; it has `channels // head_width` heads.
        context_width: width of the context tokens.
        head_width: channels per head.
        groups: of the opening group norm, whose eps is 1e-6.
        self_attention: whether pixels attend to each other.
    """

    def __init__(
        self,
        channels: int,
        context_width: int,
        *,
        head_width: int = 64,
        groups: int = 32,
        self_attention: bool = True,
    ):
        self.norm = GroupNorm(channels, groups=groups, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.transformer_blocks = nnx.List(
            [TransformerBlock(channels, context_width, channels // head_width, head_width, self_attention)]
        )
        self.proj_out = Linear(channels, channels)

    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "b m d"] | tuple[KeysValues, ...]
    ) -> Float[Array, "b h w c"]:
        """`context`: the tokens, or what `read` made of them."""
        read = context if isinstance(context, tuple) else self.read(context.astype(x.dtype))
        tokens = self.proj_in(self.norm(x).reshape(x.shape[0], -1, x.shape[-1]))
        for block, seen in zip(self.transformer_blocks, read, strict=True):
            tokens = block(tokens, seen)
        return x + self.proj_out(tokens).reshape(x.shape)

    def read(self, context: Float[Array, "b m d"]) -> tuple[KeysValues, ...]:
        """Keys and values of the context for every block; they do not depend on the map."""
        return tuple(block.attn2.read(context) for block in self.transformer_blocks)
