"""MiOIR: one task after another, with or without prompts, on five backbones.

    python -m mperceiver_jax.main --config=configs/mioir.py:small
        Seven tasks on SRResNet with explicit prompts, in a few minutes on two CPU cores, on the bundled photographs.
    python -m mperceiver_jax.main --config=configs/mioir.py:small-sequential
        The same, with the tasks one after another in the released order.

    python -m mperceiver_jax.main --config=configs/mioir.py:restormer-explicit-sequential --config.data.images=DIR
        As published: L1, crops of 128, Adam with a cosine that restarts, an average of 0.999.

A variant is a backbone (srresnet, swinir, restormer, uformer, promptir), then, in any order and joined by dashes:
`explicit` (prompts from a map of the task, which a classifier predicts) or `adaptive` (prompts from the image);
`sequential` (each phase adds a task of the released order, with a fresh optimizer and cosine) instead of all tasks
mixed; `3task` or `5task` instead of all seven; `faithful`: the last parameters are used and not their average, and
the classifier learns through two softmaxes (not with `small`).
"""

from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict

from mperceiver_jax.config.experiment import Experiment, LossConfig, StageConfig, to_config_dict
from mperceiver_jax.config.phases import cumulative
from mperceiver_jax.config.recipes import MUON, full_recipe, regression, small_recipe
from mperceiver_jax.models.restorers.mioir.prompted_restormer import (
    PromptedPromptIRConfig,
    PromptedRestormerConfig,
)
from mperceiver_jax.models.restorers.mioir.srresnet import SRResNetConfig
from mperceiver_jax.models.restorers.mioir.swinir import SwinIRConfig
from mperceiver_jax.models.restorers.mioir.uformer import UformerConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig

TASKS = {
    "3task": ("denoise", "derain", "dehaze"),
    "5task": ("blur_gauss", "denoise", "derain", "dehaze", "lowlight"),
    "7task": ("blur_gauss", "denoise", "jpeg", "derain", "dehaze", "lowlight", "sr4"),
}
FROM_BLUR = ("sr4", "blur_gauss", "denoise", "jpeg", "derain", "dehaze", "lowlight")
FROM_RAIN = ("derain", "jpeg", "blur_gauss", "sr4", "denoise", "dehaze", "lowlight")
# Sizes, order of the tasks, updates in a cycle, batch, decay of weights, lowest learning rate.
BACKBONES: dict[str, tuple[Any, tuple[str, ...], int, int, float, float]] = {
    "srresnet": (SRResNetConfig, FROM_BLUR, 250_000, 16, 0.0, 1e-7),
    "swinir": (SwinIRConfig, FROM_BLUR, 100_000, 8, 0.0, 1e-7),
    "restormer": (PromptedRestormerConfig, FROM_RAIN, 100_000, 8, 0.0, 1e-7),
    "promptir": (PromptedPromptIRConfig, FROM_RAIN, 100_000, 8, 0.0, 1e-7),
    "uformer": (UformerConfig, FROM_RAIN, 100_000, 8, 0.02, 1e-6),
}
OPTIONS = ("explicit", "adaptive", "sequential", "faithful", *TASKS)
EXCLUSIVE = (("explicit", "adaptive"), tuple(TASKS))
RATE = 2e-4


def get_config(variant: str = "small") -> ConfigDict:
    backbone, *options = variant.split("-")
    if backbone not in ("small", *BACKBONES) or set(options) - set(OPTIONS):
        raise ValueError(
            f"configs/mioir.py has the variants small, {', '.join(BACKBONES)}, each with any of "
            f"{', '.join('-' + option for option in OPTIONS)}, not {variant!r}"
        )
    for group in EXCLUSIVE:
        if sum(option in group for option in options) > 1:
            raise ValueError(f"configs/mioir.py takes at most one of {', '.join(group)}, not {variant!r}")
    if backbone == "small" and "faithful" in options:
        raise ValueError(f"configs/mioir.py: small is our own and has nothing to be faithful to, not {variant!r}")
    return to_config_dict(small(variant, options) if backbone == "small" else full(variant, backbone, options))


def small(variant: str, options: list[str]) -> Experiment:
    optimizer = replace(MUON, warmup_steps=20, weight_decay=0.0, clip_norm=0.0)
    network = SRResNetConfig.small("adaptive" if "adaptive" in options else "explicit")
    return small_recipe(
        f"mioir_{variant}".replace("-", "_"),
        regression("mioir_srresnet", network, "mioir"),
        StageConfig(
            **_length(FROM_BLUR, options, 800, 60, 440), batch_size=14, crop=48, ema_decay=0.98, optimizer=optimizer
        ),
        _tasks(options),
        LossConfig(lpips_weight=0.0, condition_source="classifier"),
    )


def full(variant: str, backbone: str, options: list[str]) -> Experiment:
    sizes, order, cycle, batch, decay, lowest = BACKBONES[backbone]
    optimizer = OptimizerConfig(
        learning_rate=RATE, schedule="restarts", period=cycle, final_fraction=lowest / RATE, betas=(0.9, 0.99),
        eps=1e-8, weight_decay=decay,
    )  # fmt: skip
    # The release keeps an average and never uses it.
    average = 0.0 if "faithful" in options else 0.999
    length = _length(order, options, 10 * cycle, cycle, 4 * cycle)
    prompts = next((option for option in options if option in ("explicit", "adaptive")), "plain")
    return full_recipe(
        f"mioir_{variant}".replace("-", "_"),
        regression(f"mioir_{backbone}", sizes.release(prompts), "mioir"),
        StageConfig(**length, batch_size=batch, crop=128, ema_decay=average, optimizer=optimizer),
        _tasks(options),
        LossConfig(lpips_weight=0.0, double_softmax="faithful" in options),
    )


def _tasks(options: list[str]) -> tuple[str, ...]:
    return TASKS[next((option for option in options if option in TASKS), "7task")]


def _length(order: tuple[str, ...], options: list[str], mixed: int, phase: int, last: int) -> dict[str, Any]:
    """Updates: all tasks mixed, or phases of which each adds a task."""
    if "sequential" not in options:
        return {"steps": mixed}
    phases = cumulative([task for task in order if task in _tasks(options)], phase, last)
    return {"steps": sum(phase.steps for phase in phases), "curriculum": phases}
