"""What the configurations of restorers by regression have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_pipelines.config import PipelineConfig
from data_pipelines.tasks import TASK_SETS
from mperceiver_jax.config.experiment import (
    CheckpointConfig,
    EvaluationConfig,
    Experiment,
    LossConfig,
    RestoreConfig,
    StageConfig,
)
from mperceiver_jax.models.restorers.registry import RegressionConfig
from mperceiver_jax.optim.optimizer import OptimizerConfig

SETTINGS = {
    "3task": ("denoise", "derain", "dehaze"),
    "5task": ("denoise", "derain", "dehaze", "deblur_motion", "lowlight"),
}
"""The two settings of the field, in the names of the task set `pip`."""

MUON = OptimizerConfig("muon", 5e-3, "cosine", warmup_steps=30, weight_decay=0.01, betas=(0.9, 0.99), clip_norm=1.0)
"""The optimizer of small variants, which have minutes."""


def regression(family: str, network: Any, task_set: str = "pip", **fields: Any) -> RegressionConfig:
    """The model with the labels of a task set; `fields` are further ones of `RegressionConfig`."""
    return RegressionConfig(family, network, tuple(task.name for task in TASK_SETS[task_set]), **fields)


def small_recipe(
    variant: str,
    model: RegressionConfig,
    stage: StageConfig,
    trained: Sequence[str] = (),
    losses: LossConfig | None = None,
) -> Experiment:
    """One stage, `regression`, for any machine, with evaluation on small images.

    Args:
        trained: the tasks that are trained and evaluated; all of the model where empty.
    """
    data = PipelineConfig(
        batch_size=stage.batch_size, crop=stage.crop, image_size=96, image_scales=(1.0, 4.0), clip_size=0,
        flips="dihedral", threads=1, weights=dict.fromkeys(trained, 1.0),
    )  # fmt: skip
    return Experiment(
        variant, replace(model, identity_start=True), data, {"regression": stage},
        losses=losses or LossConfig(lpips_weight=0.0), from_scratch=True,
        checkpoint=CheckpointConfig(every=200, keep=2, keep_best=1),
        evaluation=EvaluationConfig(every=0, per_task=16, batch_size=16, samples=1),
        restore=RestoreConfig(min_size=1), log_every=20,
    )  # fmt: skip


def full_recipe(
    variant: str,
    model: RegressionConfig,
    stage: StageConfig,
    trained: Sequence[str] = (),
    losses: LossConfig | None = None,
    data: Mapping[str, Any] | None = None,
) -> Experiment:
    """One stage, `regression`, as published, for accelerators.

    Args:
        trained: see `small_recipe`.
        data: fields of the data that are not as usual.
    """
    usual = PipelineConfig(
        batch_size=stage.batch_size, crop=stage.crop, clip_size=0, flips="dihedral", threads=16, prefetch=8, workers=8,
        weights=dict.fromkeys(trained, 1.0),
    )  # fmt: skip
    return Experiment(
        variant, model, replace(usual, **dict(data or {})), {"regression": stage},
        losses=losses or LossConfig(lpips_weight=0.0), from_scratch=True,
        checkpoint=CheckpointConfig(every=5000, keep=2, keep_best=1),
        evaluation=EvaluationConfig(every=0, per_task=16, batch_size=8, samples=1),
        restore=RestoreConfig(min_size=1), log_every=100,
    )  # fmt: skip


def split_variant(file: str, variant: str, names: Sequence[str]) -> tuple[str, bool]:
    """`3task,faithful` -> (`3task`, True): a variant's name, and whether it has the slips of its release.

    Raises:
        ValueError: no such variant.
    """
    name, comma, option = variant.partition(",")
    if name not in names or (comma and (option != "faithful" or name == "small")):
        known = ", ".join(names)
        raise ValueError(f"{file} has the variants {known} (those of full size also as NAME,faithful), not {variant!r}")
    return name, bool(comma)
