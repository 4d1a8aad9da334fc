"""Which PyTorch key holds which parameter: one table per network and layout.

A parameter's dotted path already follows the PyTorch names of its home library
(diffusers for the UNet and the autoencoder, OpenCLIP for the towers, the release for
what MPerceiver adds). A `KeyMap` renames paths into another family of keys; since the
renaming is one to one, the same table serves both directions.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx

from mperceiver_jax.models.parameters import Kind

Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class KeyMap:
    """How one family of checkpoints names the parameters of one module.

    Attributes:
        prefixes: (ours, theirs) beginnings of a path, tried in order; the first that fits is replaced.
        inner: (regex, replacement) rules applied one after another to the whole result.
        one_by_one: regex of *our* paths of linears that the family stores as 1x1 convolutions,
            with the number of size-1 axes behind the weight.
        transposed: regex of *our* paths of plain matrices that the family stores transposed, as linears.
        stacked: (name, parts): a key that contains `name` stands for one key per part, whose tensors are
            the outputs of ours in this order.
        aliases: (regex, replacement) rules that bring other spellings of *their* keys to the one above
            when reading; writing always uses the one above.
        ignorable: regex of *their* keys that carry nothing for this module (buffers, the other tower).
    """

    prefixes: Rules = ()
    inner: Rules = ()
    one_by_one: tuple[str, int] = ("(?!)", 0)
    transposed: str = "(?!)"
    stacked: tuple[str, tuple[str, ...]] | None = None
    aliases: Rules = ()
    ignorable: str = "(?!)"

    def key(self, path: str) -> str:
        for ours, theirs in self.prefixes:
            if path == ours or path.startswith(ours + "."):
                path = theirs + path[len(ours) :]
                break
        for pattern, replacement in self.inner:
            path = re.sub(pattern, replacement, path)
        return path

    def keys(self, path: str) -> tuple[str, ...]:
        """The keys that together hold a parameter: one, or the parts of a stack."""
        key = self.key(path)
        if self.stacked is None or self.stacked[0] not in key:
            return (key,)
        name, parts = self.stacked
        return tuple(key.replace(name, part) for part in parts)

    def kind(self, path: str, declared: Kind) -> Kind:
        """How the family's array relates to ours (see `parameters.parameter`)."""
        return "linear" if re.search(self.transposed, path) else declared

    def canonical(self, key: str) -> str:
        """The spelling that `key` and `keys` produce, for one that the aliases know."""
        for pattern, replacement in self.aliases:
            key = re.sub(pattern, replacement, key)
        return key

    def trailing_axes(self, path: str) -> int:
        pattern, axes = self.one_by_one
        return axes if re.search(pattern, path) else 0

    def ignored(self, key: str) -> bool:
        return re.search(self.ignorable, key) is not None


RESNET_BLOCK: Rules = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
"""Inside a residual block with a time term; `spade` is called the same in both."""

TIME_EMBEDDING: Rules = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
)


def resnet_block(ours: str, theirs: str) -> Rules:
    """The names of a residual block at path `ours` that is called `theirs`."""
    return [*((f"{ours}.{a}", f"{theirs}.{b}") for a, b in RESNET_BLOCK), (ours, theirs)]


def unet_release(module: Any) -> KeyMap:
    """The original names of Stable Diffusion's UNet; blocks are numbered through all levels."""
    config = module.config
    levels, n = config.levels, config.num_res_blocks
    prefixes = [
        *TIME_EMBEDDING,
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        ("mid_block.attentions.0", "middle_block.1"),
        *resnet_block("mid_block.resnets.0", "middle_block.0"),
        *resnet_block("mid_block.resnets.1", "middle_block.2"),
    ]
    for i in range(levels):
        for j in range(n):
            theirs = f"input_blocks.{1 + i * (n + 1) + j}"
            prefixes += resnet_block(f"down_blocks.{i}.resnets.{j}", f"{theirs}.0")
            prefixes.append((f"down_blocks.{i}.attentions.{j}", f"{theirs}.1"))
        prefixes.append((f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{(i + 1) * (n + 1)}.0.op"))
        for j in range(n + 1):
            theirs = f"output_blocks.{i * (n + 1) + j}"
            prefixes += resnet_block(f"up_blocks.{i}.resnets.{j}", f"{theirs}.0")
            prefixes.append((f"up_blocks.{i}.attentions.{j}", f"{theirs}.1"))
        # The last block of a level also holds the upsampling, behind the transformer if there is one.
        place = 2 if levels - 1 - i in config.attention_levels else 1
        prefixes.append((f"up_blocks.{i}.upsamplers.0", f"output_blocks.{i * (n + 1) + n}.{place}"))
    return KeyMap(prefixes=prefixes)


def ir_adapter_release(module: Any) -> KeyMap:
    """The release's adapter: its residual blocks have the UNet's original inner names."""
    config = module.config
    n = config.num_res_blocks
    prefixes = [*TIME_EMBEDDING]
    for scale in range(config.scales):
        for block in range(scale * (n + 1) + 1, (scale + 1) * (n + 1)):
            prefixes += resnet_block(f"input_blocks.{block}.0", f"input_blocks.{block}.0")
        down = f"input_blocks.{(scale + 1) * (n + 1)}.0"
        prefixes.append((f"{down}.conv", f"{down}.op"))
        prefixes += resnet_block(f"fea_tran.{scale}", f"fea_tran.{scale}")
    for block in (0, 2):
        prefixes += resnet_block(f"middle_block.{block}", f"middle_block.{block}")
    # The 1-D convolutions of the self-attention; the prompt attentions have linears.
    return KeyMap(prefixes=prefixes, one_by_one=(r"\.(qkv|proj_out)\.weight$", 1))


def autoencoder_release(module: Any) -> KeyMap:
    """The original names of Stable Diffusion's autoencoder, whose attention is made of 1x1 convolutions."""
    # `decoder.up` counts from the finest level, diffusers' `up_blocks` in the order they run.
    levels = len(module.config.channel_mult)
    return KeyMap(
        prefixes=[(f"decoder.up_blocks.{i}", f"decoder.up.{levels - 1 - i}") for i in range(levels)],
        inner=(
            (r"mid_block\.resnets\.0", "mid.block_1"),
            (r"mid_block\.resnets\.1", "mid.block_2"),
            (r"mid_block\.attentions\.0", "mid.attn_1"),
            (r"attn_1\.group_norm", "attn_1.norm"),
            (r"attn_1\.to_(q|k|v)\.", r"attn_1.\1."),
            (r"attn_1\.to_out\.0", "attn_1.proj_out"),
            (r"\.down_blocks\.", ".down."),
            (r"\.resnets\.", ".block."),
            (r"\.downsamplers\.0\.", ".downsample."),
            (r"\.upsamplers\.0\.", ".upsample."),
            (r"conv_shortcut", "nin_shortcut"),
            (r"conv_norm_out", "norm_out"),
        ),
        one_by_one=(r"mid_block\.attentions\.0\.to_", 2),
    )


def autoencoder_diffusers(module: Any) -> KeyMap:
    """The names of diffusers."""
    # Many published files still carry the attention names of early diffusers versions.
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return KeyMap(aliases=[(rf"(attentions\.0)\.{theirs}\.", rf"\1.{now}.") for theirs, now in old.items()])


def clip_blocks(tower: str) -> Rules:
    """The names that transformers gives to the blocks of a tower."""
    return (
        (r"^transformer\.resblocks\.", f"{tower}.encoder.layers."),
        (r"\.ln_(1|2)\.", r".layer_norm\1."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
        (r"\.attn\.in_proj_", ".self_attn.in_proj."),
    )


QKV = ("in_proj", ("q_proj", "k_proj", "v_proj"))


def vision_transformers(module: Any) -> KeyMap:
    """The image half of transformers' CLIP models, with its projection."""
    return KeyMap(
        prefixes=(
            ("class_embedding", "vision_model.embeddings.class_embedding"),
            ("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
            ("conv1", "vision_model.embeddings.patch_embedding"),
            ("ln_pre", "vision_model.pre_layrnorm"),
            ("ln_post", "vision_model.post_layernorm"),
            ("proj", "visual_projection.weight"),
        ),
        inner=clip_blocks("vision_model"),
        transposed=r"^proj$",
        stacked=QKV,
        ignorable=r"\.position_ids$|^text_model\.|^text_projection\.|^logit_scale$",
    )


def text_transformers(module: Any) -> KeyMap:
    """The text half of transformers' CLIP models, or the text model alone."""
    return KeyMap(
        prefixes=(
            ("token_embedding", "text_model.embeddings.token_embedding"),
            ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
            ("ln_final", "text_model.final_layer_norm"),
            ("text_projection", "text_projection.weight"),
        ),
        inner=clip_blocks("text_model"),
        transposed=r"^text_projection$",
        stacked=QKV,
        # The text model alone is written without its prefix since transformers 5.6.
        aliases=((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),),
        ignorable=r"\.position_ids$|^vision_model\.|^visual_projection\.",
    )


KEYMAPS: dict[tuple[str, str], Callable[[Any], KeyMap]] = {
    ("UNet", "release"): unet_release,
    ("UNet", "diffusers"): lambda module: KeyMap(),
    ("IRAdapter", "release"): ir_adapter_release,
    ("Modulator", "release"): lambda module: KeyMap(),
    ("ResnetBlock", "release"): lambda module: KeyMap(prefixes=RESNET_BLOCK),
    ("AutoencoderKL", "release"): autoencoder_release,
    ("AutoencoderKL", "diffusers"): autoencoder_diffusers,
    # The keys of OpenCLIP's image tower alone: a whole model has them behind `visual.`.
    ("VisionTower", "open_clip"): lambda _: KeyMap(),
    ("VisionTower", "transformers"): vision_transformers,
    ("TextTower", "open_clip"): lambda _: KeyMap(ignorable=r"^attn_mask$|^visual\."),
    ("TextTower", "transformers"): text_transformers,
    ("DegradationPredictor", "release"): lambda _: KeyMap(),
    ("CMInversion", "release"): lambda _: KeyMap(),
}
"""(class name, layout) -> the map for an instance of that class."""


def keymap(module: nnx.Module, layout: str) -> KeyMap:
    """The map of a module's class for a layout.

    Raises:
        ValueError: no such layout for this class; the message lists those there are.
    """
    name = type(module).__name__
    if (name, layout) not in KEYMAPS:
        known = sorted(other for cls, other in KEYMAPS if cls == name)
        raise ValueError(f"{name} has no layout {layout!r}; known: {known}")
    return KEYMAPS[name, layout](module)
