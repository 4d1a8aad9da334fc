"""The textual branch: what an image shows, and which degradation it has, as a context for the UNet.

Cross-modal inversion turns the image embedding into a few pseudo-words for each
degradation. Together with learned prompt words they fill an empty caption, the text
tower reads one caption per degradation, and the results are mixed by probability.
Source: the release; sharing the captions' prefix between images is our own.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from mperceiver_jax.models.arrays import Array
from mperceiver_jax.models.attention import KeysValues, attention
from mperceiver_jax.models.layers import CrossAttention, LayerNorm, Linear
from mperceiver_jax.models.mperceiver.clip import TextTower
from mperceiver_jax.models.sizes import require_divisible, require_positive

TokenOrder = Literal["t_cm", "cm_t"]


@dataclass(frozen=True)
class CMConfig:
    """Sizes of the cross-modal inversion.

    Attributes:
        embed_width: width of the image embedding; width: of the text tower.
        tokens: pseudo-words per degradation; classes: number of degradations.
    """

    embed_width: int = 1024
    width: int = 1024
    tokens: int = 16
    heads: int = 8
    classes: int = 9

    def __post_init__(self) -> None:
        require_positive(self)
        require_divisible(self, "width", "heads")

    @classmethod
    def release(cls) -> "CMConfig":
        """The release's: 54,553,600 parameters."""
        return cls()

    @classmethod
    def small(cls) -> "CMConfig":
        return cls(classes=10, embed_width=64, width=64, tokens=8)


class CMInversion(nnx.Module):
    """One projection of the image embedding into tokens, then one self-attention per degradation."""

    def __init__(self, config: CMConfig):
        if config.width % config.heads:
            raise ValueError(f"CMConfig: width {config.width} does not divide into {config.heads} heads")
        head_width = config.width // config.heads
        self.proj = Linear(config.embed_width, config.tokens * config.width)
        self.norm = LayerNorm(config.width)
        self.attns = nnx.List(
            CrossAttention(config.width, config.width, config.heads, head_width) for _ in range(config.classes)
        )
        self.config = config

    def __call__(self, e: Float[Array, "b e"]) -> Float[Array, "b classes tokens w"]:
        config, dtype = self.config, e.dtype
        h = self.norm(self.proj(e).reshape(-1, config.tokens, config.width))
        # The classes attend to the same tokens, so they are one attention with more heads.
        joined = (
            jnp.concatenate([getattr(attn, name).weight[...] for attn in self.attns], 1).astype(dtype)
            for name in ("to_q", "to_k", "to_v")
        )
        q, k, v = (h @ weight for weight in joined)
        mixed = attention(q, k, v, config.classes * config.heads)
        mixed = mixed.reshape(-1, config.tokens, config.classes, config.width)
        return jnp.stack([attn.to_out[0](mixed[:, :, j]) for j, attn in enumerate(self.attns)], 1)


def text_context(
    text_tower: TextTower,
    tp: Float[Array, "classes t w"],
    cm: Float[Array, "b classes m w"],
    logits: Float[Array, "b classes"],
    token_order: TokenOrder = "t_cm",
) -> Float[Array, "b n w"]:
    """The UNet's context: the text tower's reading of one caption per degradation, mixed by softmax(logits).

    A caption is: start, prompt words, pseudo-words, end, padding. What stands before the
    first pseudo-word does not depend on the image and is run once for the whole batch.

    Args:
        tp: learned prompt words.
        cm: pseudo-words of `CMInversion`; their dtype is that of the computation.
        token_order: prompt words before pseudo-words (as in the release's code), or after them
            (as in the paper's figure).

    Raises:
        ValueError: unknown order, or more words than the caption holds.
    """
    if token_order not in ("t_cm", "cm_t"):
        raise ValueError(f"token_order is {token_order!r}; known: 't_cm', 'cm_t'")
    config, dtype = text_tower.config, cm.dtype
    b, classes, _, width = cm.shape
    free = config.context_length - 1 - tp.shape[1] - cm.shape[2]
    if free < 1:
        words = f"{tp.shape[1]} prompt words and {cm.shape[2]} pseudo-words"
        raise ValueError(f"{words} do not fit into a caption of {config.context_length} tokens")
    special = jnp.asarray([config.sot_id, config.eot_id, config.pad_id])
    special = text_tower.token_embedding(special).astype(dtype)
    start = jnp.broadcast_to(special[0], (classes, 1, width))
    filling = jnp.broadcast_to(special[2], (free - 1, width))
    end = jnp.broadcast_to(jnp.concatenate([special[1:2], filling]), (b, classes, free, width))
    prompts = tp.astype(dtype)
    if token_order == "t_cm":
        shared, own = jnp.concatenate([start, prompts], 1), [cm, end]
    else:
        shared, own = start[:1], [cm, jnp.broadcast_to(prompts, (b, *prompts.shape)), end]

    def spread(x: Array) -> Array:
        return jnp.broadcast_to(x, (b, classes, *x.shape[1:])).reshape(b * classes, *x.shape[1:])

    prefix = text_tower.encode_prefix(shared)
    layers = tuple(KeysValues(spread(keys), spread(values)) for keys, values in prefix.layers)
    rest = jnp.concatenate(own, 2).reshape(b * classes, -1, width)
    outputs = text_tower.encode_after(prefix._replace(layers=layers), rest).reshape(b, classes, -1, width)

    p = jax.nn.softmax(logits.astype(jnp.float32), -1)
    first = jnp.einsum("bc,cnw->bnw", p, jnp.broadcast_to(prefix.outputs, (classes, *shared.shape[1:])))
    return jnp.concatenate([first, jnp.einsum("bc,bcnw->bnw", p, outputs)], 1).astype(dtype)
