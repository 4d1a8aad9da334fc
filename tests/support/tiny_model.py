"""The whole model at a size that compiles in seconds: two levels, one block each, every kind of layer."""

from dataclasses import replace

import numpy as np

from data_pipelines.config import PipelineConfig
from mperceiver_jax.config.experiment import (
    CheckpointConfig,
    EvaluationConfig,
    Experiment,
    LossConfig,
    RestoreConfig,
    SamplerConfig,
)
from mperceiver_jax.distributed.sharding import MeshConfig
from mperceiver_jax.models import parameters
from mperceiver_jax.models.mperceiver.clip import TextConfig, VisionConfig
from mperceiver_jax.models.mperceiver.cm_adapter import CMConfig
from mperceiver_jax.models.mperceiver.drm import DRMConfig
from mperceiver_jax.models.mperceiver.ir_adapter import IRAdapterConfig
from mperceiver_jax.models.mperceiver.model import MPerceiver, MPerceiverConfig
from mperceiver_jax.models.mperceiver.predictor import PredictorConfig
from mperceiver_jax.models.mperceiver.unet import UNetConfig
from mperceiver_jax.models.mperceiver.vae import VAEConfig

CLASSES = 3
SIDE = 16  # of an image
CLIP_SIDE = 8


def tiny_config(**changes) -> MPerceiverConfig:
    """Three degradations; images of 16 pixels become latents of 8."""
    parts = {
        "unet": UNetConfig(
            latent_channels=4,
            model_channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_levels=(1,),
            head_width=8,
            context_width=16,
            groups=4,
            feature_channels=16,
            modulator_hidden=8,
        ),
        "vae": VAEConfig(base_channels=8, channel_mult=(1, 2), num_res_blocks=1, groups=4, scaling_factor=1.0),
        "text": TextConfig(
            width=16,
            layers=1,
            layers_run=1,
            heads=2,
            vocabulary=4,
            context_length=8,
            projection_width=None,
            sot_id=2,
            eot_id=3,
        ),
        "predictor": PredictorConfig(
            vision=VisionConfig(image_size=CLIP_SIDE, patch_size=4, width=16, layers=1, heads=2, embed_width=16),
            hidden=16,
            classes=CLASSES,
        ),
        "adapter": IRAdapterConfig(
            latent_channels=4,
            model_channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_levels=(1,),
            heads=2,
            out_channels=16,
            classes=CLASSES,
            prompt_tokens=2,
            prompt_width=16,
            prompt_heads=2,
            prompt_head_width=8,
            groups=4,
        ),
        "cm": CMConfig(embed_width=16, width=16, tokens=2, heads=2, classes=CLASSES),
        "drm": DRMConfig(channels=(8,), classes=CLASSES, width=8, blocks=(1, 1)),
    }
    return MPerceiverConfig(**(parts | changes))


def tiny_experiment(model: MPerceiverConfig | None = None, dtype: str = "float32", **losses) -> Experiment:
    """An experiment around a model (the tiny one by default); `losses` are fields of `LossConfig`."""
    return Experiment(
        variant="test",
        model=model or tiny_config(),
        data=PipelineConfig(crop=SIDE, clip_size=CLIP_SIDE),
        stages={},
        losses=LossConfig(**({"lpips_weight": 0.0} | losses)),
        sampler=SamplerConfig(),
        checkpoint=CheckpointConfig(),
        evaluation=EvaluationConfig(),
        restore=RestoreConfig(),
        mesh=MeshConfig(),
        from_scratch=True,
        compute_dtype=dtype,
    )


def tiny_values(model: MPerceiver, seed: int = 0) -> dict[str, np.ndarray]:
    """Values as after the training of the pretrained weights: what starts at zero there, where it would block all
    gradients, is random; what MPerceiver adds is at its start."""
    values = parameters.initial_values(model, seed, lambda path, value: value)
    rng = np.random.default_rng(seed)
    for path, value in values.items():
        if path.startswith(("unet.", "vae.")) and ".spade." not in path and not value.any():
            values[path] = rng.standard_normal(value.shape, np.float32) * np.float32(0.1)
    return values


def single_scale_config() -> MPerceiverConfig:
    """The tiny model with one scale of its denoising network: for tests that compile it several times."""
    tiny = tiny_config()
    one = {"channel_mult": (1,), "attention_levels": ()}
    return replace(tiny, unet=replace(tiny.unet, **one), adapter=replace(tiny.adapter, **one))


def tiny_batch(size: int = 8, side: int = SIDE, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as the data pipeline gives it: smooth images, degraded by class-dependent noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((size, 4, 4, 3), np.float32)
    gt = coarse.repeat(side // 4, 1).repeat(side // 4, 2)
    task = (np.arange(size) % CLASSES).astype(np.int32)
    lq = np.clip(gt + (task + 1)[:, None, None, None] * 0.1 * rng.standard_normal(gt.shape, np.float32), 0, 1)
    lq_clip = rng.standard_normal((size, CLIP_SIDE, CLIP_SIDE, 3), np.float32) + task[:, None, None, None]
    return {"lq": lq.astype(np.float32), "gt": gt, "lq_clip": lq_clip.astype(np.float32), "task": task}
