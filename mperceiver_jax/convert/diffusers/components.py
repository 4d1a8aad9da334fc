"""Where diffusers and transformers have a place for a part of the model: directory, `config.json`, file."""

import re
from dataclasses import dataclass
from typing import Any

from flax import nnx

from mperceiver_jax.diffusion.schedule import Schedule
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import TextConfig, VisionConfig
from mperceiver_jax.models.mperceiver.model import MPerceiver, Prediction
from mperceiver_jax.models.mperceiver.unet import UNetConfig
from mperceiver_jax.models.mperceiver.vae import VAEConfig

PICTURE_SIDE = 512
"""Default size of an image in the libraries' configurations: that of SD 2.1-base."""


@dataclass(frozen=True)
class LibraryComponent:
    """A directory that a library's `from_pretrained` reads.

    Attributes:
        folder: its name.
        root: what stands before the part's paths in the whole model.
        module: the part; layout: the family of names it is written in.
        file: the name of the weights in the folder.
        config: content of `config.json`.
        foreign: regular expression of the part's own paths that the library's class does not have.
    """

    folder: str
    root: str
    module: nnx.Module
    layout: str
    file: str
    config: dict[str, Any]
    foreign: str = "(?!)"

    def paths(self) -> tuple[str, ...]:
        """The paths, in the whole model, of what is written here."""
        own = (path for path in parameters.declared(self.module) if not re.search(self.foreign, path))
        return tuple(self.root + path for path in own)


def library_components(model: MPerceiver) -> list[LibraryComponent]:
    """The four parts that the libraries know: UNet without modulators, autoencoder, and the CLIP towers.

    Of the text tower, that is the part which is run, as in Stable Diffusion 2.1's own directory.
    """
    config, side = model.config, PICTURE_SIDE // model.config.downscale
    diffusers, transformers = "diffusion_pytorch_model.safetensors", "model.safetensors"
    run = config.text.layers_run
    idle = "|".join(rf"^transformer\.resblocks\.{index}\." for index in range(run, config.text.layers))
    idle = "|".join(filter(None, [r"^text_projection$|^logit_scale$", idle]))
    text, tower = text_config(config.text), vision_config(config.predictor.vision)
    return [
        LibraryComponent(
            "unet", "unet.", model.unet, "diffusers", diffusers, unet_config(config.unet, side), r"\.spade\."
        ),
        LibraryComponent("vae", "vae.", model.vae, "diffusers", diffusers, vae_config(config.vae)),
        LibraryComponent("text_encoder", "text_encoder.", model.text_encoder, "transformers", transformers, text, idle),
        LibraryComponent(
            "image_encoder", "predictor.model.", model.predictor.model, "transformers", transformers, tower
        ),
    ]


def unet_config(config: UNetConfig, side: int) -> dict[str, Any]:
    """For diffusers' UNet2DConditionModel; `side` is that of a usual latent."""
    attends = [level in config.attention_levels for level in range(config.levels)]
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.38.0",
        "sample_size": side,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "down_block_types": [f"{'CrossAttn' * yes}DownBlock2D" for yes in attends],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [f"{'CrossAttn' * yes}UpBlock2D" for yes in reversed(attends)],
        "block_out_channels": list(config.widths),
        "layers_per_block": config.num_res_blocks,
        "cross_attention_dim": config.context_width,
        # The number of heads of each level, in spite of the name.
        "attention_head_dim": [max(width // config.head_width, 1) for width in config.widths],
        "norm_num_groups": config.groups,
        "norm_eps": 1e-5,
        "use_linear_projection": True,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
        "center_input_sample": False,
    }


def vae_config(config: VAEConfig) -> dict[str, Any]:
    """For diffusers' AutoencoderKL.

    Raises:
        ValueError: sizes that it cannot represent.
    """
    if config.stem_channels not in (0, config.channels[0]):
        raise ValueError(f"vae.stem_channels: diffusers has no autoencoder with {config.stem_channels} channels there")
    levels = len(config.channel_mult)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.38.0",
        "sample_size": PICTURE_SIDE,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.num_res_blocks,
        "norm_num_groups": config.groups,
        "act_fn": "silu",
        "scaling_factor": config.scaling_factor,
    }


def scheduler_config(schedule: Schedule, prediction: Prediction) -> dict[str, Any]:
    """For diffusers' DDIMScheduler; with 50 steps its timesteps are ours, 981, 961, ..., 1."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.38.0",
        "num_train_timesteps": schedule.steps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "set_alpha_to_one": True,
        "clip_sample": False,
    }


def text_config(config: TextConfig) -> dict[str, Any]:
    """For transformers' CLIPTextModel; its `last_hidden_state` is what the UNet attends to."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers_run,
        "num_attention_heads": config.heads,
        "projection_dim": config.projection_width or config.width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": config.sot_id,
        "eos_token_id": config.eot_id,
        "pad_token_id": config.pad_id,
    }


def vision_config(config: VisionConfig) -> dict[str, Any]:
    """For transformers' CLIPVisionModelWithProjection; its `image_embeds` are the image's embedding."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "projection_dim": config.embed_width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
