"""A whole run in small: all five stages of the tiny model, a few updates each, on a few images.

Also a config file: `python -m mperceiver_jax.main --config=tests/support/tiny_experiment.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from mperceiver_jax.config.experiment import Experiment, from_mapping, to_mapping
from mperceiver_jax.models.mperceiver.model import MPerceiverConfig
from tests.support.tiny_model import CLIP_SIDE, SIDE, single_scale_config

STEPS = 3
BATCH = 8


def nine_classes() -> MPerceiverConfig:
    """One scale of the denoising network, and as many degradations as there are tasks."""
    config = single_scale_config()
    parts = ("predictor", "adapter", "cm", "drm")
    return replace(config, **{part: replace(getattr(config, part), classes=9) for part in parts})


def _stage(**changes: Any) -> dict[str, Any]:
    # Made again for each stage: ml_collections keeps shared groups shared.
    optimizer = {"learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 1, "clip_norm": 1.0}
    stage = {"steps": STEPS, "batch_size": BATCH, "crop": SIDE, "ema_decay": 0.0, "optimizer": optimizer}
    return stage | changes


def tiny_run_mapping() -> dict[str, Any]:
    """The configuration as nested dicts. Stages of three updates; the prior keeps an average."""
    return {
        "variant": "tiny",
        "from_scratch": True,
        "pretrained": "",
        "variant_reason": "",
        "model": to_mapping(nine_classes()),
        "data": {
            "crop": SIDE,
            "image_size": SIDE,
            "clip_size": CLIP_SIDE,
            "threads": 0,
            "images": "",
            "heldout_images": "",
            "pairs": {},
            "weights": {"dehaze": 1.0, "denoise": 1.0},
        },
        "stages": {
            "vae": _stage(),
            "prior": _stage(ema_decay=0.5),
            "predictor": _stage(),
            "dual_branch": _stage(),
            "drm": _stage(),
        },
        "losses": {
            "lpips_weight": 0.0,
            "train_tower": True,
            "drm_latents": "online",
        },
        "sampler": {"steps": 1},
        "checkpoint": {"every": 2, "keep": 2, "keep_best": 1},
        "evaluation": {"every": 0, "per_task": 2, "batch_size": 4, "samples": 1},
        "restore": {"min_size": SIDE},
        "mesh": {"data": -1, "fsdp": 1, "model": 1},
        "seed": 5,
        "on_nonfinite": "stop",
        "max_skipped": 1,
        "log_every": 1,
    }


def get_config() -> ConfigDict:
    return ConfigDict(tiny_run_mapping())


def tiny_run(changes: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment, with fields changed by their dotted names: {'stages.vae.steps': 5}."""
    mapping = ConfigDict(tiny_run_mapping())
    mapping.update_from_flattened_dict(dict(changes or {}))
    return from_mapping(Experiment, mapping.to_dict())


def write_photographs(folder: Path, count: int = 4, side: int = 24, seed: int = 0) -> Path:
    """A folder of small smooth colour images: decoding the bundled photographs takes longer than a test."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = (rng.random((4, 4, 3)) * 255).astype(np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"image_{index}.png")
    return folder
