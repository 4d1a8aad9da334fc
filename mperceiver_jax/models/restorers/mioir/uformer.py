"""Uformer, as MiOIR trains it: a U-shaped network of windowed transformer blocks, plain or prompted."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.layers import Conv, Embedding, LayerNorm, Linear, gelu
from mperceiver_jax.models.parameters import fan_in_uniform, normal, parameter, start_weights
from mperceiver_jax.models.restorers.mioir import prompting, windows
from mperceiver_jax.models.restorers.mioir.prompting import (
    GUIDE_CHANNELS,
    Prompted,
    PromptedConfig,
    PromptExtractor,
    Prompts,
)
from mperceiver_jax.models.sizes import require_divisible, require_positive


@dataclass(frozen=True)
class UformerConfig(PromptedConfig):
    """Sizes of the network.

    Attributes:
        width: channels at full resolution; doubled at each of the coarser scales.
        depths: blocks of the encoder's scales, of the bottleneck and of the decoder's scales.
        head_width: channels of one attention head; must divide `width`.
        window: side of a window at every scale.
        mlp_ratio: hidden width of the feed-forward part / width.
        square: images are padded further, to squares, as the release does when it tests. One of 3:2 then costs
            1.5 times as much; the crops of a training are squares as they are.
        drop_path: stochastic depth of the bottleneck; it rises towards it and falls after it.
    """

    width: int = 32
    depths: tuple[int, ...] = (1, 2, 8, 8, 2, 8, 8, 2, 1)
    head_width: int = 32
    window: int = 8
    mlp_ratio: int = 4
    square: bool = False
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        require_positive(self, zero=("drop_path", "depths"))
        require_divisible(self, "width", "head_width")

    @property
    def scales(self) -> int:
        return len(self.depths) // 2

    @classmethod
    def release(cls, prompts: Prompts = "plain") -> "UformerConfig":
        """The release's: 50,880,946 parameters; 51,457,976 with explicit, 51,489,336 with adaptive prompts."""
        return cls(prompts=prompts, square=True)

    @classmethod
    def small(cls, prompts: Prompts = "plain") -> "UformerConfig":
        """For a CPU: two scales, images padded to multiples of 16."""
        return cls(width=16, head_width=16, depths=(1, 1, 2, 1, 1), window=4, drop_path=0.0, prompts=prompts)


class Projections(nnx.Module):
    """Queries; keys and values together."""

    def __init__(self, width: int):
        self.to_q = Linear(width, width)
        self.to_kv = Linear(width, 2 * width)


class WindowAttention(nnx.Module):
    """Self-attention inside windows, with a table of relative positions."""

    def __init__(self, width: int, heads: int, window: int):
        self.relative_position_bias_table = parameter(((2 * window - 1) ** 2, heads), normal(0.02))
        self.qkv = Projections(width)
        self.proj = Linear(width, width)

    def __call__(
        self, x: Float[Array, "b windows n c"], mask: Float[np.ndarray, "windows n n"] | None
    ) -> Float[Array, "b windows n c"]:
        k, v = jnp.split(self.qkv.to_kv(x), 2, -1)
        table = jnp.asarray(self.relative_position_bias_table[...])
        return self.proj(windows.window_attention(self.qkv.to_q(x), k, v, table, mask))


class LeFF(nnx.Module):
    """Locally enhanced feed-forward: linear, GELU, depthwise 3x3, GELU, linear."""

    def __init__(self, width: int, hidden: int):
        self.linear1 = nnx.List([Linear(width, hidden)])
        self.dwconv = nnx.List([Conv(hidden, hidden, groups=hidden)])
        self.linear2 = nnx.List([Linear(hidden, width)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.linear2[0](gelu(self.dwconv[0](gelu(self.linear1[0](x)))))


class LeWinBlock(nnx.Module):
    """x + attention(norm x) in windows shifted by `shift`, then x + LeFF(norm x).

    Args:
        modulated: a learned image of one window is added to every window before attention (decoder).
    """

    def __init__(self, width: int, config: UformerConfig, shift: int, drop_path: float, modulated: bool):
        if modulated:
            self.modulator = Embedding(config.window**2, width, std=1.0)
        self.norm1 = LayerNorm(width)
        self.attn = WindowAttention(width, width // config.head_width, config.window)
        self.norm2 = LayerNorm(width)
        self.mlp = LeFF(width, config.mlp_ratio * width)
        self.window, self.shift, self.drop_path, self.modulated = config.window, shift, drop_path, modulated

    def __call__(self, x: Float[Array, "b h w c"], key: Array | None) -> Float[Array, "b h w c"]:
        height, width = x.shape[1:3]
        first, second = windows.split_key(key, 2)
        mask = windows.shift_mask(height, width, self.window, self.shift) if self.shift else None
        h = windows.partition(windows.roll(self.norm1(x), -self.shift), self.window)
        if self.modulated:
            h = h + jnp.asarray(self.modulator.weight[...]).astype(h.dtype)
        h = windows.roll(windows.merge(self.attn(h, mask), height, width), self.shift)
        x = x + windows.drop_path(h, self.drop_path, first)
        return x + windows.drop_path(self.mlp(self.norm2(x)), self.drop_path, second)


class Stage(nnx.Module):
    """The blocks of one scale, every second one with shifted windows."""

    def __init__(self, width: int, config: UformerConfig, rates: list[float], *, modulated: bool = False):
        shift = config.window // 2
        self.blocks = nnx.List(
            LeWinBlock(width, config, shift if i % 2 else 0, rate, modulated) for i, rate in enumerate(rates)
        )

    def __call__(self, x: Float[Array, "b h w c"], key: Array | None) -> Float[Array, "b h w c"]:
        for block, own in zip(self.blocks, windows.split_key(key, len(self.blocks)), strict=True):
            x = block(x, own)
        return x


class TransposedConv(nnx.Module):
    """ConvTranspose2d with kernel 2 and stride 2: every pixel becomes a square of 2 x 2."""

    def __init__(self, features_in: int, features_out: int):
        # PyTorch holds (in, out, h, w) here; in our order of axes that is (h, w, out, in).
        init = fan_in_uniform(4 * features_out)
        self.weight = parameter((2, 2, features_out, features_in), init, "conv")
        self.bias = parameter((features_out,), init)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b hh ww o"]:
        b, h, w, _ = x.shape
        y = jnp.einsum("bhwi,jkoi->bhjwko", x, jnp.asarray(self.weight[...]).astype(x.dtype))
        return y.reshape(b, 2 * h, 2 * w, -1) + jnp.asarray(self.bias[...]).astype(x.dtype)


class Named(nnx.Module):
    """One layer, under the name and number that it has in checkpoints."""

    def __init__(self, name: str, layer: nnx.Module):
        setattr(self, name, nnx.List([layer]))
        self.name = name

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b hh ww o"]:
        return getattr(self, self.name)[0](x)


class Uformer(Prompted):
    """Encoder, bottleneck and decoder with skips by concatenation, plus the image."""

    def __init__(self, config: UformerConfig):
        scales, width = config.scales, config.width
        if len(config.depths) != 2 * scales + 1:
            raise ValueError(f"UformerConfig: depths must be an odd number of counts, {config.depths} given")
        if width % config.head_width:
            raise ValueError(f"UformerConfig: heads of {config.head_width} do not divide width {width}")
        super().__init__(config.prompts, config.task_maps, config.window << scales)
        encoder = config.depths[:scales]
        rising = np.linspace(0, config.drop_path, sum(encoder)).tolist()
        falling = np.linspace(config.drop_path, 0, sum(config.depths[scales + 1 :])).tolist()
        self.input_proj = Named("proj", Conv(3, width))
        for i, depth in enumerate(encoder):
            rates, rising = rising[:depth], rising[depth:]
            setattr(self, f"encoderlayer_{i}", Stage(width << i, config, rates))
            down = Conv(width << i, width << (i + 1), 4, stride=2, padding=1)
            # The release's spelling.
            setattr(self, f"dowsample_{i}", Named("conv", down))
        deepest = [config.drop_path] * config.depths[scales]
        self.conv = Stage(width << scales, config, deepest)
        for i, depth in enumerate(config.depths[scales + 1 :]):
            rates, falling = falling[:depth], falling[depth:]
            out = width << (scales - 1 - i)
            coming = width << scales if i == 0 else 4 * out
            setattr(self, f"upsample_{i}", Named("deconv", TransposedConv(coming, out)))
            setattr(self, f"decoderlayer_{i}", Stage(2 * out, config, rates, modulated=True))
        self.output_proj = Named("proj", Conv(2 * width, 3))
        start_weights(self, "linear", lambda shape: normal(0.02))
        if config.prompts != "plain":
            for i in range(1, scales + 2):
                setattr(self, f"F_ext_net{i}", PromptExtractor(GUIDE_CHANNELS[config.prompts]))
            # Points 0 and 1 share the first extractor.
            widths = [width << scales, *(width << (scales - i) for i in range(scales)), 3]
            prompting.declare(self, {str(i): c for i, c in enumerate(widths)}, normal(0.02))
        self.config = config

    def padded(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b hh ww 3"]:
        image = super().padded(image)
        if not self.config.square:
            return image
        bottom, right = (max(image.shape[1:3]) - side for side in image.shape[1:3])
        return jnp.pad(image, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="symmetric")

    def restore(
        self,
        image: Float[Array, "b h w 3"],
        guide: Float[Array, "b hh ww g"] | None = None,
        *,
        key: Array | None = None,
    ) -> Float[Array, "b h w 3"]:
        """See `Prompted.restore`; sides are multiples of the bottleneck's window at full resolution."""
        scales = self.config.scales
        keys = windows.split_key(key, 2 * scales + 1)

        def modulated(point: int, y: Array) -> Array:
            if guide is None:
                return y
            extractor = getattr(self, f"F_ext_net{max(point, 1)}")
            return prompting.modulate(self, str(point), y, extractor(guide))

        h, skips = jax.nn.leaky_relu(self.input_proj(image)), []
        for i in range(scales):
            skips.append(getattr(self, f"encoderlayer_{i}")(h, keys[i]))
            h = getattr(self, f"dowsample_{i}")(skips[-1])
        h = modulated(0, self.conv(h, keys[scales]))
        for i in range(scales):
            h = jnp.concatenate([getattr(self, f"upsample_{i}")(h), skips.pop()], -1)
            h = modulated(i + 1, getattr(self, f"decoderlayer_{i}")(h, keys[scales + 1 + i]))
        return modulated(scales + 1, self.output_proj(h)) + image
