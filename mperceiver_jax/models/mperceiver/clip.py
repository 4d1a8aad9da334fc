"""The two towers of OpenCLIP's ViT models: images to one vector, tokens to contextual vectors.

Attribute names follow OpenCLIP. The text tower works on token *embeddings*, because
MPerceiver puts learned vectors in their place, and can run a prefix that many
sequences share only once (its attention is causal). Source: spec of the published towers.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.attention import KeysValues, attention
from mperceiver_jax.models.layers import Conv, Embedding, LayerNorm, Linear, gelu
from mperceiver_jax.models.mperceiver.stems import ConvStem, DetailStem
from mperceiver_jax.models.parameters import ZEROS, Init, normal, parameter
from mperceiver_jax.models.sizes import require_divisible, require_positive


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the image tower: square images of `image_size`, cut into patches of `patch_size`.

    Attributes:
        stem: how patches are embedded: by one linear map (`patch`, as published), by 3x3 convolutions with stride 2
            (`conv`), or by those and residual blocks on the image and its amplified detail (`detail`), see `stems`.

    Raises:
        ValueError: a convolutional stem for a patch size that is no power of two, or 1.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1280
    layers: int = 32
    heads: int = 16
    embed_width: int = 1024
    stem: Literal["patch", "conv", "detail"] = "patch"

    def __post_init__(self) -> None:
        require_positive(self)
        require_divisible(self, "width", "heads")
        if self.stem != "patch" and (self.patch_size < 2 or self.patch_size.bit_count() != 1):
            raise ValueError(
                f"VisionConfig.patch_size: a power of two is needed with stem={self.stem!r}, not {self.patch_size}"
            )

    @classmethod
    def vit_h_14(cls) -> "VisionConfig":
        """OpenCLIP ViT-H-14: 632,076,800 parameters."""
        return cls()

    @classmethod
    def small(cls) -> "VisionConfig":
        return cls(image_size=64, patch_size=8, width=96, layers=2, heads=4, embed_width=64, stem="conv")

    @classmethod
    def base(cls) -> "VisionConfig":
        """A tower of degradations for squares at native resolution, trained from nothing: 1.07 M parameters."""
        return cls(image_size=64, patch_size=16, width=128, layers=2, heads=4, embed_width=64, stem="detail")


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower.

    Attributes:
        layers: blocks that exist; layers_run: blocks that are run before the final norm.
        projection_width: width of the joint embedding (with it come `text_projection` and
            `logit_scale`, which exist for the sake of published weights and are not run), or None.
        sot_id, eot_id, pad_id: tokens that open, close and fill up a caption.
    """

    width: int = 1024
    layers: int = 24
    layers_run: int = 23
    heads: int = 16
    vocabulary: int = 49408
    context_length: int = 77
    projection_width: int | None = 1024
    sot_id: int = 49406
    eot_id: int = 49407
    pad_id: int = 0

    def __post_init__(self) -> None:
        require_positive(self, zero=("sot_id", "eot_id", "pad_id"))
        require_divisible(self, "width", "heads")

    @classmethod
    def vit_h_14(cls) -> "TextConfig":
        """OpenCLIP ViT-H-14 with its last block declared but not run: 354,032,641 parameters."""
        return cls()

    @classmethod
    def sd21(cls) -> "TextConfig":
        """As in Stable Diffusion 2.1's folder: only the part that is run, 340,387,840 parameters."""
        return cls(layers=23, projection_width=None)

    @classmethod
    def small(cls) -> "TextConfig":
        return cls(
            width=64,
            layers=3,
            layers_run=2,
            heads=4,
            vocabulary=8,
            context_length=24,
            projection_width=None,
            sot_id=6,
            eot_id=7,
        )

    def empty_caption(self) -> Int[np.ndarray, "n"]:
        """Token ids of the caption without words: start, end, padding."""
        ids = np.full(self.context_length, self.pad_id, np.int32)
        ids[:2] = self.sot_id, self.eot_id
        return ids


class VisionTower(nnx.Module):
    """Vision transformer; its result is the class token, projected and not normalised."""

    def __init__(self, config: VisionConfig):
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        std = config.width**-0.5
        stem = {"conv": ConvStem, "detail": DetailStem}.get(config.stem)
        self.conv1 = stem(config.width, config.patch_size) if stem else patch_embedding(config)
        self.class_embedding = parameter((config.width,), normal(std))
        self.positional_embedding = parameter((tokens, config.width), normal(std))
        self.ln_pre = LayerNorm(config.width)
        self.transformer = Transformer(config.width, config.layers, config.heads)
        self.ln_post = LayerNorm(config.width)
        self.proj = parameter((config.width, config.embed_width), normal(std))
        self.config = config

    def __call__(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b e"]:
        """Embeddings of CLIP-normalised images.

        Raises:
            ValueError: the images are not of `config.image_size`.
        """
        side = self.config.image_size
        if images.shape[1:3] != (side, side):
            given = "x".join(map(str, images.shape[1:3]))
            raise ValueError(f"VisionTower: images of {given}, {side}x{side} expected")
        b, dtype = images.shape[0], images.dtype
        patches = self.conv1(images).reshape(b, -1, self.config.width)
        first = jnp.broadcast_to(self.class_embedding[...].astype(dtype), (b, 1, self.config.width))
        x = jnp.concatenate([first, patches], 1) + self.positional_embedding[...].astype(dtype)
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x, _ = block(x)
        return self.ln_post(x[:, 0]) @ self.proj[...].astype(dtype)


def patch_embedding(config: VisionConfig) -> Conv:
    """A linear map of each patch, starting from cosines (`parameters.whitening_cosines`)."""
    embed = Conv(3, config.width, config.patch_size, stride=config.patch_size, padding=0, bias=False)
    embed.weight.set_metadata(init=Init("cosines", 1.0))
    return embed


class Prefix(NamedTuple):
    """A prefix of sequences, run: its outputs, and what later tokens need of every layer."""

    outputs: Array
    layers: tuple[KeysValues, ...]


class TextTower(nnx.Module):
    """Causal transformer over at most `context_length` token embeddings.

    It ends after `layers_run` blocks and the final norm: no pooling, no projection.
    """

    def __init__(self, config: TextConfig):
        self.token_embedding = Embedding(config.vocabulary, config.width)
        self.positional_embedding = parameter((config.context_length, config.width), normal(0.01))
        self.transformer = Transformer(config.width, config.layers, config.heads)
        self.ln_final = LayerNorm(config.width)
        if config.projection_width is not None:
            shape = (config.width, config.projection_width)
            self.text_projection = parameter(shape, normal(config.width**-0.5))
            self.logit_scale = parameter((), Init("constant", math.log(1 / 0.07)))
        self.config = config

    def encode(self, token_ids: Int[Array, "b n"], dtype: jax.typing.DTypeLike = jnp.float32) -> Float[Array, "b n w"]:
        """Contextual vectors of plain token ids."""
        return self(self.token_embedding(token_ids).astype(dtype))

    def __call__(self, embeddings: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        """Contextual vectors of token embeddings (without positions, which are added here)."""
        return self.encode_prefix(embeddings).outputs

    def encode_prefix(self, embeddings: Float[Array, "s m w"]) -> Prefix:
        """Runs the first m tokens of sequences."""
        return self._run(embeddings, None)

    def encode_after(self, prefix: Prefix, embeddings: Float[Array, "s n w"]) -> Float[Array, "s n w"]:
        """Outputs of the n tokens that follow a prefix, one sequence of it per sequence here."""
        return self._run(embeddings, prefix).outputs

    def _run(self, embeddings: Float[Array, "s n w"], prefix: Prefix | None) -> Prefix:
        start = 0 if prefix is None else prefix.outputs.shape[1]
        stop = start + embeddings.shape[1]
        if stop > self.config.context_length:
            raise ValueError(f"TextTower: {stop} tokens, at most {self.config.context_length} fit")
        x = embeddings + self.positional_embedding[start:stop].astype(embeddings.dtype)
        mask = jnp.asarray(np.tri(stop - start, stop, start, np.bool_))[None, None]
        layers = []
        for index, block in enumerate(self.transformer.resblocks[: self.config.layers_run]):
            x, own = block(x, mask, None if prefix is None else prefix.layers[index])
            layers.append(own)
        return Prefix(self.ln_final(x), tuple(layers))


class Transformer(nnx.Module):
    """The blocks of a tower, in order."""

    def __init__(self, width: int, layers: int, heads: int):
        self.resblocks = nnx.List([ResidualAttentionBlock(width, heads) for _ in range(layers)])


class ResidualAttentionBlock(nnx.Module):
    """x += attention(norm x); x += MLP(norm x), four times as wide inside, exact GELU."""

    def __init__(self, width: int, heads: int):
        self.ln_1 = LayerNorm(width)
        self.attn = PackedAttention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(width)

    def __call__(
        self,
        x: Float[Array, "s n w"],
        mask: Bool[Array, "1 1 n m"] | None = None,
        earlier: KeysValues | None = None,
    ) -> tuple[Float[Array, "s n w"], KeysValues]:
        """The new x, and the keys and values of its own tokens; `earlier` are those of tokens before them."""
        mixed, own = self.attn(self.ln_1(x), mask, earlier)
        x = x + mixed
        return x + self.mlp(self.ln_2(x)), own


class PackedAttention(nnx.Module):
    """Self-attention whose query, key and value projections are one matrix, in this order."""

    def __init__(self, width: int, heads: int):
        self.in_proj_weight = parameter((width, 3 * width), normal(width**-0.5), "linear")
        self.in_proj_bias = parameter((3 * width,), ZEROS)
        self.out_proj = Linear(width, width)
        self.heads = heads

    def __call__(
        self, x: Float[Array, "s n w"], mask: Bool[Array, "1 1 n m"] | None, earlier: KeysValues | None
    ) -> tuple[Float[Array, "s n w"], KeysValues]:
        packed = x @ self.in_proj_weight[...].astype(x.dtype) + self.in_proj_bias[...].astype(x.dtype)
        q, k, v = jnp.split(packed, 3, axis=-1)
        own = KeysValues(k, v)
        if earlier is not None:
            k = jnp.concatenate([earlier.keys, k], 1)
            v = jnp.concatenate([earlier.values, v], 1)
        return self.out_proj(attention(q, k, v, self.heads, mask)), own


class MLP(nnx.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int):
        self.c_fc = Linear(width, 4 * width)
        self.c_proj = Linear(4 * width, width)

    def __call__(self, x: Float[Array, "s n w"]) -> Float[Array, "s n w"]:
        return self.c_proj(gelu(self.c_fc(x)))
