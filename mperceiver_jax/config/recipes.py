"""The fields that the configurations of restorers by regression have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.tasks import TASK_SETS
from mperceiver_jax.config.experiment import to_mapping
from mperceiver_jax.models.restorers.registry import FAMILIES, RegressionConfig

SETTINGS = {
    "3task": ("denoise", "derain", "dehaze"),
    "5task": ("denoise", "derain", "dehaze", "deblur_motion", "lowlight"),
}
"""The two settings of the field, in the names of the task set `pip`."""


def regression_recipe(
    variant: str,
    family: str,
    network: Any,
    stage: Mapping[str, Any],
    *,
    task_set: str = "pip",
    trained: Sequence[str] = (),
    model: Mapping[str, Any] | None = None,
    losses: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    small: bool = False,
) -> dict[str, Any]:
    """Fields of an experiment with one stage, `regression`.

    Args:
        family, network: see `RegressionConfig`.
        stage: of the regression stage.
        task_set: name in `TASK_SETS`: the labels.
        trained: the tasks that are trained and evaluated; all of the set where empty.
        model, losses, data: fields that are not as usual.
        small: for any machine: fewer threads, evaluation on small images.
    """
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}")
    tasks = tuple(task.name for task in TASK_SETS[task_set])
    described = RegressionConfig(family, network, tasks, **{"identity_start": small, **dict(model or {})})
    usual = {
        "batch_size": stage["batch_size"],
        "crop": stage["crop"],
        "image_size": 96 if small else 0,
        "image_scales": (1.0, 4.0) if small else (1.0, 1.0),
        "clip_size": 0,
        "flips": "dihedral",
        "threads": 1 if small else 16,
        "prefetch": 4 if small else 8,
        "workers": 0 if small else 8,
        "weights": dict.fromkeys(trained, 1.0),
        "pairs": {},
        "degradations": {},
        "images": "",
        "heldout_images": "",
    }
    return {
        "variant": variant,
        "variant_reason": "",
        "from_scratch": True,
        "pretrained": "",
        "model": to_mapping(described),
        "data": usual | dict(data or {}),
        "stages": {"regression": dict(stage)},
        "losses": {"lpips_weight": 0.0, **dict(losses or {})},
        "sampler": {},
        "checkpoint": {"every": 200 if small else 5000, "keep": 2, "keep_best": 1},
        "evaluation": {"every": 0, "per_task": 16, "batch_size": 16 if small else 8, "samples": 1},
        "restore": {"min_size": 1},
        "mesh": {"data": -1, "fsdp": 1, "model": 1},
        "compute_dtype": "float32",
        "seed": 23,
        "on_nonfinite": "stop",
        "max_skipped": 10,
        "log_every": 20 if small else 100,
    }


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
