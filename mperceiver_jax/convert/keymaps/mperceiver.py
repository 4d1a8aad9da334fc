"""The key map of the whole model: the release's checkpoint, which holds every part behind its own prefix."""

from typing import Any

from mperceiver_jax.convert.keymaps.clip import text_open_clip
from mperceiver_jax.convert.keymaps.keymap import AssemblyMap, KeyMap
from mperceiver_jax.convert.keymaps.latent_diffusion import (
    autoencoder_release,
    ir_adapter_release,
    unet_release,
)

# Tables of the diffusion schedule, stored as buffers, and the averages that unpruned checkpoints hold in addition.
BYSTANDERS = (
    r"^(betas|alphas_cumprod(_prev)?|(sqrt|log_one_minus|posterior)_\w+|logvar|lvlb_weights|scale_factor)$|^model_ema\."
)


def mperceiver_release(module: Any) -> AssemblyMap:
    """The release's names.

    Its inference script calls the inversion `image_proj` where its training calls it `CM_Inv`;
    both are read. It contains no detail refinement: ours stands under its own name, `drm`.
    """
    return AssemblyMap(
        parts={
            "unet": ("model.diffusion_model.", unet_release(module.unet)),
            "vae": ("first_stage_model.", autoencoder_release(module.vae)),
            "text_encoder": ("cond_stage_model.model.", text_open_clip(module.text_encoder)),
            "ir_adapter": ("structcond_stage_model.", ir_adapter_release(module.ir_adapter)),
            "predictor": ("classifier.", KeyMap()),
            "cm_inv": ("CM_Inv.", KeyMap()),
            "drm": ("drm.", KeyMap()),
        },
        aliases=((r"^image_proj\.", "CM_Inv."),),
        ignorable=BYSTANDERS,
    )
