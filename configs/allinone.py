"""The nine-task all-in-one recipe of MPerceiver.

--config=configs/allinone.py
    `small`: every module and stage, trained from nothing on the bundled images, in 40 minutes on two CPU cores.
--config=configs/allinone.py:base
    A larger predictor and refinement: ten minutes on a GPU with 15 cores that make the images
    (--config.data.workers=15), seven hours on two CPU cores. `base,10` makes ten times as many updates.
--config=configs/allinone.py:sd21 --config.pretrained=DIR
    The paper's scale, for accelerators, on Stable Diffusion 2.1 and OpenCLIP ViT-H/14 in a directory of
    `convert import`. What is known of the authors' recipe (AdamW, 1e-4 constant, decay 0.01, crops of 512) is kept.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from data_pipelines.config import PipelineConfig
from mperceiver_jax.config.experiment import (
    CheckpointConfig,
    EvaluationConfig,
    Experiment,
    LossConfig,
    RestoreConfig,
    SamplerConfig,
    StageConfig,
    to_config_dict,
)
from mperceiver_jax.models.mperceiver.model import MPerceiverConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig

# From nothing and in few updates, Muon brings autoencoder, prior and dual branch much further than AdamW.
MUON = OptimizerConfig("muon", 2e-3, "cosine", warmup_steps=30, betas=(0.9, 0.99), weight_decay=0.01)
ADAMW = replace(MUON, name="adamw", learning_rate=1.2e-3, warmup_steps=100, weight_decay=1e-4, clip_norm=1.0)
RELEASED = OptimizerConfig("adamw", 1e-4, "constant", weight_decay=0.01)


def get_config(variant: str = "small") -> ConfigDict:
    name, _, scale = variant.partition(",")
    variants = {"small": small, "base": base, "sd21": sd21}
    if name not in variants or (scale and name != "base"):
        raise ValueError(f"configs/allinone.py has the variants small, base, base,SCALE and sd21, not {variant!r}")
    return to_config_dict(base(float(scale)) if scale else variants[name]())


def small() -> Experiment:
    """MPerceiver on native squares of the bundled images, with a class for clean images."""
    model = MPerceiverConfig.small()
    data = PipelineConfig(
        crop=64, image_size=128, image_scales=(1.0, 2.0), severities="wide", flips="dihedral", threads=1,
        clip_size=model.predictor.vision.image_size, clip_view="native", clip_views=4,
        new_tasks=("clean",), degradations={"clean": "nearly_clean"},
    )  # fmt: skip
    stages = {
        "vae": StageConfig(300, 8, optimizer=MUON),
        "prior": StageConfig(150, 16, ema_decay=0.98, optimizer=MUON),
        "predictor": StageConfig(800, 16, optimizer=ADAMW),
        "dual_branch": StageConfig(250, 16, ema_decay=0.98, optimizer=replace(MUON, learning_rate=4e-3)),
        "drm": StageConfig(2500, 16, ema_decay=0.99, optimizer=ADAMW),
    }
    return Experiment(
        "small", model, data, stages, from_scratch=True,
        losses=LossConfig(train_tower=True, lpips_weight=0.0, drm_latents="online"),
        # One step gives the mean of what the image may have been; the detail of more is wrong in so small a prior.
        sampler=SamplerConfig("dpmpp_2m", steps=1),
        checkpoint=CheckpointConfig(every=200, keep=2),
        evaluation=EvaluationConfig(per_task=16, batch_size=20),
        restore=RestoreConfig(min_size=64),
        log_every=20,
    )  # fmt: skip


def base(scale: float = 1.0) -> Experiment:
    """`small` with a larger predictor and refinement, and more updates of these two."""
    shared, updates = small(), lambda steps: max(1, round(steps * scale))
    # On a GPU the update of Muon takes a minute and a half to compile, AdamW's seconds.
    dual_branch = replace(MUON, name="adamw", learning_rate=1e-3, clip_norm=1.0)
    stages = {
        "vae": replace(shared.stages["vae"], steps=updates(400)),
        "prior": replace(shared.stages["prior"], steps=updates(150)),
        "predictor": StageConfig(updates(1600), 256, ema_decay=0.995, optimizer=ADAMW),
        "dual_branch": StageConfig(updates(400), 64, ema_decay=0.98, optimizer=dual_branch),
        "drm": StageConfig(updates(3600), 96, ema_decay=0.998, optimizer=ADAMW),
    }
    return replace(
        shared, variant="base", model=MPerceiverConfig.base(), stages=stages,
        data=replace(shared.data, severities="mixed"), checkpoint=CheckpointConfig(every=300, keep=2),
        evaluation=EvaluationConfig(per_task=24, batch_size=24), log_every=50,
    )  # fmt: skip


def sd21() -> Experiment:
    model = MPerceiverConfig.sd21()
    data = PipelineConfig(
        crop=512, image_size=512, clip_size=model.predictor.vision.image_size, flips="none", threads=16, prefetch=8,
        workers=8,
    )  # fmt: skip
    predictor = replace(RELEASED, schedule="cosine", final_fraction=0.01, weight_decay=0.0)
    stages = {
        "predictor": StageConfig(10000, 1728, crop=32, optimizer=predictor),
        "dual_branch": StageConfig(200000, 144, optimizer=RELEASED),
        "drm": StageConfig(20000, 32, optimizer=replace(RELEASED, learning_rate=5e-5, weight_decay=0.0)),
    }
    return Experiment(
        "sd21", model, data, stages,
        losses=LossConfig(kl_weight=0.0, gan_start=500),
        evaluation=EvaluationConfig(every=10000, per_task=16),
        compute_dtype="bfloat16",
    )  # fmt: skip
