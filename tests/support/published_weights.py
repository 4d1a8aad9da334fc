"""Small models in every layout in which the large ones are published, made by the libraries themselves."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mperceiver_jax import convert
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
from tests.support.tiny_model import tiny_config

torch = pytest.importorskip("torch")
diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")


def config() -> MPerceiverConfig:
    """The tiny model, with a text tower that has more than is run, as OpenCLIP's."""
    tiny = tiny_config()
    return replace(tiny, text=replace(tiny.text, layers=2, projection_width=16))


def get_config(variant: str = ""):
    """As a config file, for `--config`."""
    from ml_collections import ConfigDict

    from mperceiver_jax.config.experiment import to_mapping

    return ConfigDict({"model": to_mapping(config())})


def unet() -> "torch.nn.Module":
    torch.manual_seed(1)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=16,
        use_linear_projection=True,
        norm_num_groups=4,
    )


def vae() -> "torch.nn.Module":
    torch.manual_seed(2)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
    )


_TOWER = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2, "projection_dim": 16}
_TEXT = {"vocab_size": 4, "max_position_embeddings": 8, "bos_token_id": 2, "eos_token_id": 3}


def text(layers: int = 1) -> "torch.nn.Module":
    """As in Stable Diffusion 2.1's folder: without the blocks that are not run."""
    torch.manual_seed(3)
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**_TOWER, **_TEXT, num_hidden_layers=layers, hidden_act="gelu")
    )


def clip() -> "torch.nn.Module":
    torch.manual_seed(4)
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**_TOWER, **_TEXT, "num_hidden_layers": 2},
            vision_config={**_TOWER, "num_hidden_layers": 1, "patch_size": 4, "image_size": 8},
            projection_dim=16,
        )
    )


def vision() -> "torch.nn.Module":
    torch.manual_seed(5)
    return transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**_TOWER, num_hidden_layers=1, patch_size=4, image_size=8)
    )


@cache
def values(seed: int = 0) -> dict[str, np.ndarray]:
    """A value for every parameter of the model."""
    drawn = parameters.initial_values(MPerceiver(config()), seed, lambda path, value: value)
    rng = np.random.default_rng(seed)
    return {path: value + rng.standard_normal(value.shape, np.float32) for path, value in drawn.items()}


@cache
def release(seed: int = 0) -> dict[str, np.ndarray]:
    """The whole model under the release's keys, with the buffers that such checkpoints have."""
    tensors = convert.to_torch(MPerceiver(config()), values(seed))
    return tensors | {"betas": np.zeros(1000, np.float32), "cond_stage_model.model.attn_mask": np.zeros((8, 8))}


def open_clip(seed: int = 0) -> dict[str, np.ndarray]:
    """Both towers under OpenCLIP's keys."""
    tensors = release(seed)
    image = {
        k.replace("classifier.model.", "visual."): v for k, v in tensors.items() if k.startswith("classifier.model.")
    }
    start = "cond_stage_model.model."
    return image | {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


def stable_diffusion(seed: int = 0) -> dict[str, np.ndarray]:
    """UNet, autoencoder and text tower under CompVis' keys, and the buffers of an unpruned checkpoint."""
    wanted = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "betas")
    tensors = {k: v for k, v in release(seed).items() if k.startswith(wanted) and ".spade." not in k}
    return tensors | {"model_ema.decay": np.float32(0.99), "logvar": np.zeros(1000, np.float32)}


def open_clip_file(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(open_clip(), folder / "open_clip_model.safetensors")
    return str(folder / "open_clip_model.safetensors")


def pickled(path: Path, content: dict, container: str = "state_dict") -> str:
    """Saved by torch, as Lightning and BasicSR save."""
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in content.items()}
    torch.save({container: tensors, "global_step": 7} if container else tensors, path)
    return str(path)
