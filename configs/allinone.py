"""The nine-task all-in-one recipe of MPerceiver.

    python -m mperceiver_jax.main --config=configs/allinone.py:small
        Every module and every stage at a size that trains from nothing, on the bundled
        photographs, in well under 20 minutes on two CPU cores and in 4 GB of memory.

    python -m mperceiver_jax.main --config=configs/allinone.py:sd21 --config.pretrained=DIR
        The paper's scale: predictor, dual branch and detail refinement on top of the published
        Stable Diffusion 2.1 and OpenCLIP ViT-H/14 weights, in a directory that `python -m
        mperceiver_jax.convert import` wrote. For accelerators. The authors'
        batch size, iteration count and schedule are not published in full; what is known of
        their release (AdamW, 1e-4 constant, decay 0.01, crops of 512) is kept.

Without a variant: `sd21` where an accelerator is present, `small` elsewhere. Every field can be
set from the command line, as in --config.stages.dual_branch.steps=2000.
"""

from ml_collections import ConfigDict

from mperceiver_jax.config.experiment import to_mapping
from mperceiver_jax.distributed.runtime import accelerator
from mperceiver_jax.models.mperceiver.model import MPerceiverConfig


def get_config(variant: str = "") -> ConfigDict:
    reason = ""
    if not variant:
        variant, reason = ("sd21", "an accelerator is present") if accelerator() else ("small", "no accelerator here")
    if variant not in ("small", "sd21"):
        raise ValueError(f"configs/allinone.py has the variants small and sd21, not {variant!r}")
    config = ConfigDict(small() if variant == "small" else sd21())
    config.variant = variant
    config.variant_reason = reason
    return config


def small() -> dict:
    model = MPerceiverConfig.small()
    # From nothing and in few updates, Muon brings these networks much further than AdamW.
    muon = {
        "name": "muon",
        "schedule": "cosine",
        "warmup_steps": 30,
        "clip_norm": 0.0,
        "betas": (0.9, 0.99),
        "weight_decay": 0.01,
    }
    stage = {"batch_size": 8, "crop": 48, "accumulation": 1, "ema_decay": 0.0}
    averaged = stage | {"ema_decay": 0.98}
    return {
        "variant": "small",
        "variant_reason": "",
        "from_scratch": True,
        "pretrained": "",
        "model": to_mapping(model),
        "data": {
            "batch_size": 16,
            "crop": 64,
            "image_size": 96,
            "image_scales": (1.0, 4.0),
            "clip_size": model.predictor.vision.image_size,
            "flips": "horizontal",
            "threads": 1,
            "prefetch": 4,
            "workers": 0,
            "seed": 0,
            "weights": {},
            "pairs": {},
            "images": "",
            "heldout_images": "",
        },
        "stages": {
            "vae": stage | {"steps": 700, "crop": 64, "optimizer": muon | {"learning_rate": 2e-3}},
            "prior": averaged | {"steps": 400, "batch_size": 16, "optimizer": muon | {"learning_rate": 2e-3}},
            "predictor": stage
            | {"steps": 400, "batch_size": 32, "crop": 16, "optimizer": muon | {"learning_rate": 2e-3}},
            "dual_branch": averaged | {"steps": 800, "batch_size": 16, "optimizer": muon | {"learning_rate": 4e-3}},
            "drm": averaged | {"steps": 1300, "optimizer": muon | {"learning_rate": 4e-3}},
        },
        "losses": {
            "predictor": "focal",
            "focal_gamma": 2.0,
            "train_tower": True,
            "train_cm_inv": True,
            "kl_weight": 1e-6,
            "lpips_weight": 0.1,
            "lpips_net": "alex",
            "gan_weight": 0.0,
            "gan_start": 0,
            "drm_latents": "sampled",
            "drm_noise_std": 0.2,
            "drm_examples": 2304,
        },
        # One step from pure noise gives the mean of what the image may have been, the best estimate in PSNR. More
        # steps give detail, which a prior this small mostly gets wrong (3 dB less before the refinement).
        "sampler": {"name": "dpmpp_2m", "steps": 1, "eta": 0.0},
        "checkpoint": {"every": 200, "keep": 2, "keep_best": 1},
        "evaluation": {"every": 0, "per_task": 16, "batch_size": 24, "samples": 1},
        "restore": {"min_size": 96},
        "mesh": {"data": -1, "fsdp": 1, "model": 1},
        "cache": "",
        "cached_examples": 4096,
        "compute_dtype": "float32",
        "seed": 23,
        "on_nonfinite": "stop",
        "max_skipped": 10,
        "log_every": 20,
    }


def sd21() -> dict:
    model = MPerceiverConfig.sd21()
    reference = {
        "learning_rate": 1e-4,
        "schedule": "constant",
        "warmup_steps": 0,
        "final_fraction": 0.0,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "clip_norm": 0.0,
    }
    return {
        "variant": "sd21",
        "variant_reason": "",
        "from_scratch": False,
        "pretrained": "",
        "model": to_mapping(model),
        "data": {
            "batch_size": 144,
            "crop": 512,
            "image_size": 512,
            "image_scales": (1.0, 1.0),
            "clip_size": model.predictor.vision.image_size,
            "clip_view": "full",
            "flips": "none",
            "threads": 16,
            "prefetch": 8,
            "workers": 8,
            "seed": 0,
            "weights": {},
            "pairs": {},
            "images": "",
            "heldout_images": "",
        },
        "stages": {
            "predictor": {
                "steps": 10000,
                "batch_size": 1728,
                "crop": 32,
                "accumulation": 1,
                "ema_decay": 0.0,
                "optimizer": reference | {"schedule": "cosine", "final_fraction": 0.01, "weight_decay": 0.0},
            },
            "dual_branch": {
                "steps": 200000,
                "batch_size": 144,
                "crop": 512,
                "accumulation": 1,
                "ema_decay": 0.0,
                "optimizer": reference,
            },
            "drm": {
                "steps": 20000,
                "batch_size": 32,
                "crop": 512,
                "accumulation": 1,
                "ema_decay": 0.0,
                "optimizer": reference | {"learning_rate": 5e-5, "weight_decay": 0.0},
            },
        },
        "losses": {
            "predictor": "focal",
            "focal_gamma": 2.0,
            "train_tower": False,
            "train_cm_inv": True,
            "kl_weight": 0.0,
            "lpips_weight": 0.1,
            "lpips_net": "vgg",
            "gan_weight": 0.0,
            "gan_start": 500,
            "drm_latents": "perturbed_gt",
            "drm_noise_std": 0.2,
            "drm_examples": 0,
        },
        "sampler": {"name": "ddim", "steps": 50, "eta": 0.0},
        "checkpoint": {"every": 1000, "keep": 3, "keep_best": 1},
        "evaluation": {"every": 10000, "per_task": 16, "batch_size": 8, "samples": 1},
        "restore": {"min_size": 512},
        "mesh": {"data": -1, "fsdp": 1, "model": 1},
        "cache": "",
        "cached_examples": 4096,
        "compute_dtype": "bfloat16",
        "seed": 23,
        "on_nonfinite": "stop",
        "max_skipped": 10,
        "log_every": 50,
    }
