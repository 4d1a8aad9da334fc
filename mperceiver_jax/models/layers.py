"""Layers that several models share, numerically equal to their PyTorch forms.

Arrays are NHWC. Every layer computes in the dtype of its input (weights are cast on
use), except that norms and softmax go through float32. Norm statistics are two-pass
with biased variance; GELU is the exact erf form; explicit paddings are PyTorch's.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.attention import KeysValues, attention
from mperceiver_jax.models.parameters import ONES, ZEROS, fan_in_uniform, normal, parameter
from mperceiver_jax.models.shared_statistics import is_active, share

Sides = tuple[tuple[int, int], tuple[int, int]]
Padding = int | Sides


def gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def apply_block(block: Callable[..., Any], *inputs: Any, remat: bool) -> Any:
    """`block(*inputs)`; with `remat` its inside is computed again in the backward pass instead of kept."""
    if not remat or is_active():
        return block(*inputs)
    # A fresh function each time: jax.checkpoint remembers the traces of the functions it has seen,
    # and a module seen again may hold other parameters.
    return jax.checkpoint(lambda *given: block(*given))(*inputs)


class Linear(nnx.Module):
    """`x @ weight + bias`; PyTorch's default initial values unless `zero`."""

    def __init__(self, features_in: int, features_out: int, *, bias: bool = True, zero: bool = False):
        init = ZEROS if zero else fan_in_uniform(features_in)
        self.weight = parameter((features_in, features_out), init, "linear")
        self.bias = parameter((features_out,), init) if bias else None

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        y = x @ self.weight[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Conv(nnx.Module):
    """2-D convolution. `kernel` is one side or (rows, columns).

    `padding` is one number for all sides or ((top, bottom), (left, right)), by default what keeps the size.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        kernel: int | tuple[int, int] = 3,
        *,
        stride: int = 1,
        padding: Padding | None = None,
        groups: int = 1,
        bias: bool = True,
        zero: bool = False,
    ):
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        shape = (rows, columns, features_in // groups, features_out)
        init = ZEROS if zero else fan_in_uniform(rows * columns * shape[2])
        self.weight = parameter(shape, init, "conv")
        self.bias = parameter((features_out,), init) if bias else None
        self.stride = stride
        self.groups = groups
        if padding is None:
            padding = ((rows // 2, rows // 2), (columns // 2, columns // 2))
        self.padding = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b hh ww o"]:
        weight = jnp.asarray(self.weight[...]).astype(x.dtype)
        if weight.shape[:2] == (1, 1) == (self.stride, self.groups) and self.padding == ((0, 0), (0, 0)):
            # XLA:CPU computes the same as a matrix product in a third to two thirds of the time, forward and backward.
            y = x @ weight[0, 0]
        elif 1 < self.groups == weight.shape[-1] and self.stride == 1:
            y = _depthwise(x, weight, self.padding)
        else:
            y = jax.lax.conv_general_dilated(
                x,
                weight,
                window_strides=(self.stride, self.stride),
                padding=self.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )
        return y if self.bias is None else y + jnp.asarray(self.bias[...]).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: Array, weight: Array, padding: Sides) -> Array:
    """One output per group of channels, as a sum of shifted products: elementwise work, which XLA fuses.

    As a grouped convolution the same takes XLA:CPU five times as long, forward and backward together.
    """
    members = weight.shape[2]
    taps = _taps(x, weight, padding)
    terms = [tap[..., member::members] * weight[i, j, member] for i, j, tap in taps for member in range(members)]
    return sum(terms[1:], terms[0])


def _depthwise_forward(x: Array, weight: Array, padding: Sides) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, weight, padding), (x, weight)


def _depthwise_backward(padding: Sides, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """The gradients by `x`, which is a depthwise convolution with the rotated kernel, and by the weight.

    The barrier keeps XLA from computing what leads to these two inputs again for each tap of the kernel: a block of
    NAFNet, forward and backward, takes about half the time on a CPU.
    """
    x, gradient = jax.lax.optimization_barrier((kept[0], gradient))
    weight = kept[1]
    rows, columns, members = weight.shape[:3]
    turned = tuple(
        (side - 1 - before, side - 1 - after) for side, (before, after) in zip((rows, columns), padding, strict=True)
    )
    rotated = weight[::-1, ::-1]
    by_x = [_depthwise(gradient, rotated[:, :, k : k + 1], turned) for k in range(members)]
    by_weight = [
        (tap.reshape(*gradient.shape, members) * gradient[..., None]).sum((0, 1, 2)).T
        for _, _, tap in _taps(x, weight, padding)
    ]
    return jnp.stack(by_x, -1).reshape(x.shape), jnp.stack(by_weight).reshape(weight.shape)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _taps(x: Array, weight: Array, padding: Sides) -> list[tuple[int, int, Array]]:
    """(row, column, the part of the padded `x` that this tap of the kernel is multiplied with)."""
    rows, columns = weight.shape[:2]
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    return [(i, j, padded[:, i : i + height, j : j + width]) for i in range(rows) for j in range(columns)]


class GroupNorm(nnx.Module):
    """Group normalisation over (height, width, channels of a group)."""

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-5):
        if channels % groups:
            raise ValueError(f"GroupNorm: {channels} channels do not divide into {groups} groups")
        self.weight = parameter((channels,), ONES)
        self.bias = parameter((channels,), ZEROS)
        self.groups = groups
        self.eps = eps

    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        # Channel means first, then groups of them: the large array keeps its shape, which XLA:CPU
        # runs seven times faster than a reduction over split channels.
        wide = x.astype(jnp.float32)
        mean, variance = share(partial(self._statistics, wide))
        centred = wide - mean
        scale = jax.lax.rsqrt(variance + self.eps) * jnp.asarray(self.weight[...]).astype(jnp.float32)
        return (centred * scale + jnp.asarray(self.bias[...]).astype(jnp.float32)).astype(x.dtype)

    def _statistics(self, x: Float[Array, "b *space c"], first_axis: int) -> tuple[Array, Array]:
        axes = tuple(range(first_axis, x.ndim - 1))
        mean = self._per_group(x.mean(axes), x.ndim)
        return mean, self._per_group(jnp.square(x - mean).mean(axes), x.ndim)

    def _per_group(self, means: Float[Array, "*b c"], axes: int) -> Float[Array, "n *ones c"]:
        """Every channel's value replaced by the mean over its group, ready to broadcast over space."""
        c = means.shape[-1]
        grouped = means.reshape(-1, self.groups, c // self.groups).mean(-1)
        return jnp.repeat(grouped, c // self.groups, -1).reshape(-1, *[1] * (axes - 2), c)


class LayerNorm(nnx.Module):
    """Normalisation over the last axis."""

    def __init__(self, channels: int, *, eps: float = 1e-5):
        self.weight = parameter((channels,), ONES)
        self.bias = parameter((channels,), ZEROS)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.weight[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class Embedding(nnx.Module):
    """A table of vectors, looked up by integer."""

    def __init__(self, entries: int, features: int, *, std: float = 0.02):
        self.weight = parameter((entries, features), normal(std))

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch c"]:
        return jnp.asarray(self.weight[...])[ids]


class CrossAttention(nnx.Module):
    """Attention from `x` to `context` (to itself without one); keys as in the latent-diffusion family.

    No bias in q, k, v; a bias in the output projection.
    """

    def __init__(self, query_width: int, context_width: int, heads: int, head_width: int):
        inner = heads * head_width
        self.to_q = Linear(query_width, inner, bias=False)
        self.to_k = Linear(context_width, inner, bias=False)
        self.to_v = Linear(context_width, inner, bias=False)
        self.to_out = nnx.List([Linear(inner, query_width)])
        self.heads = heads

    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b m d"] | KeysValues | None = None
    ) -> Float[Array, "b n c"]:
        """`context` may be what `read` made of it before; the result is the same."""
        if not isinstance(context, KeysValues):
            context = self.read(x if context is None else context)
        return self.to_out[0](attention(self.to_q(x), context.keys, context.values, self.heads))

    def read(self, context: Float[Array, "b m d"]) -> KeysValues:
        """What attending to `context` needs of it."""
        return KeysValues(self.to_k(context), self.to_v(context))


def timestep_embedding(t: Int[Array, "b"] | Float[Array, "b"], width: int) -> Float[Array, "b width"]:
    """Sinusoids of the timestep, [cos | sin], frequency i = exp(-ln(10000) i / (width // 2)).

    float32; an odd width gets a last column of zeros.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    out = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
    return jnp.pad(out, ((0, 0), (0, width % 2)))


class TimeEmbedding(nnx.Module):
    """Linear, SiLU, Linear on the sinusoids."""

    def __init__(self, width: int, features: int):
        self.linear_1 = Linear(width, features)
        self.linear_2 = Linear(features, features)
        self.width = width

    def __call__(self, t: Int[Array, "b"] | Float[Array, "b"], dtype: jax.typing.DTypeLike) -> Float[Array, "b f"]:
        return self.linear_2(jax.nn.silu(self.linear_1(timestep_embedding(t, self.width).astype(dtype))))


class ResnetBlock(nnx.Module):
    """Norm, SiLU, conv, (+ time term), norm, SiLU, conv, (modulator), + skip.

    Serves the UNet, the IR-Adapter (`zero_out`) and the VAE (no time term).

    Args:
        time_width: width of the time embedding; None leaves the time term out.
        modulator: a module called as `modulator(h, features)` on the residual branch; kept
            under the name `spade`, as in the published checkpoints.
        zero_out: the last convolution starts at zero.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        time_width: int | None,
        groups: int = 32,
        eps: float = 1e-5,
        modulator: nnx.Module | None = None,
        zero_out: bool = False,
    ):
        self.norm1 = GroupNorm(channels_in, groups=groups, eps=eps)
        self.conv1 = Conv(channels_in, channels_out)
        self.time_emb_proj = None if time_width is None else Linear(time_width, channels_out)
        self.norm2 = GroupNorm(channels_out, groups=groups, eps=eps)
        self.conv2 = Conv(channels_out, channels_out, zero=zero_out)
        self.conv_shortcut = None if channels_in == channels_out else Conv(channels_in, channels_out, 1)
        self.spade = modulator

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        temb: Float[Array, "b t"] | None = None,
        features: Float[Array, "b h w f"] | None = None,
    ) -> Float[Array, "b h w o"]:
        """`features` feed the modulator; without them the block is the plain one of the prior."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            if temb is None:
                raise ValueError("ResnetBlock: a block with a time term needs the time embedding")
            h = h + self.time_emb_proj(jax.nn.silu(temb))[:, None, None, :]
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        if self.spade is not None and features is not None:
            h = self.spade(h, features)
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Downsample(nnx.Module):
    """3x3 convolution with stride 2. The UNets pad one pixel on every side, the VAE only right and bottom."""

    def __init__(self, channels: int, *, padding: Padding = 1):
        self.conv = Conv(channels, channels, stride=2, padding=padding)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int):
        self.conv = Conv(channels, channels)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww c"]:
        b, h, w, c = x.shape
        doubled = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return self.conv(doubled)
