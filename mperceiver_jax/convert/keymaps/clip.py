"""Key maps of the CLIP towers in the names of transformers. OpenCLIP's names are our own."""

from typing import Any

from mperceiver_jax.convert.keymaps.keymap import KeyMap, Rules


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
        # The image model alone is written without its prefix since transformers 5.6.
        aliases=((r"^(embeddings|encoder|pre_layrnorm|post_layernorm)\.", r"vision_model.\1."),),
        ignorable=r"\.position_ids$|^text_model\.|^text_projection\.|^logit_scale$",
    )


def text_open_clip(module: Any) -> KeyMap:
    """OpenCLIP's text tower, also where it is stored together with the image tower."""
    return KeyMap(ignorable=r"^attn_mask$|^visual\.")


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
