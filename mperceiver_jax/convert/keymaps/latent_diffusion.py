"""Key maps of the denoising UNet, of the adapter that is built like it, and of the autoencoder."""

from typing import Any

from mperceiver_jax.convert.keymaps.keymap import KeyMap, Rules

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
        # Files of an autoencoder alone may still hold what trained it.
        ignorable=r"^(loss|model_ema)\.",
    )


def autoencoder_diffusers(module: Any) -> KeyMap:
    """The names of diffusers."""
    # Many published files still carry the attention names of early diffusers versions.
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return KeyMap(aliases=[(rf"(attentions\.0)\.{theirs}\.", rf"\1.{now}.") for theirs, now in old.items()])
